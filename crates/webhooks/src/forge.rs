//! What the headers of a delivery say: which kind of forge it comes from, what happened, what it is called, and how it
//! shows the secret. Nothing here says whether that is true.
//!
//! Each kind is told by the header with its event, and believed by its own proof alone. Forgejo sends the headers of Gitea
//! as well, and both send those of GitHub, so they are asked in that order. A signature made with SHA-1 is no proof.

use http::{HeaderMap, header};
use larder_core::digest::unhex;
use larder_sources::webhooks::{Delivery, Proof};

/// What a delivery asks for, if its sender is to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Refs or releases changed: a sync.
    Sync,
    /// Nothing but an answer.
    Hello,
    /// Something that makes no version, such as a comment.
    Nothing,
}

/// What the headers of a delivery say.
#[derive(Clone, Copy)]
pub(crate) struct Told<'a> {
    pub(crate) delivery: Delivery<'a>,
    pub(crate) proof: Option<Proof<'a>>,
    pub(crate) wish: Wish,
}

/// A kind of forge that names itself.
struct Forge {
    word: &'static str,
    event: &'static str,
    /// The headers that may name a delivery, the best first.
    ids: &'static [&'static str],
    proof: fn(&HeaderMap) -> Option<Proof<'_>>,
    syncs: &'static [&'static str],
    hellos: &'static [&'static str],
}

/// Sources: forgejo.org and docs.gitea.com "Webhooks"; docs.github.com "Webhook events and payloads"; docs.gitlab.com
/// "Webhook events", and for the ids "Delivery headers"; Atlassian "Event payloads" of Cloud and of Data Center.
const FORGES: &[Forge] = &[
    Forge {
        word: "forgejo",
        event: "x-forgejo-event",
        ids: &["x-forgejo-delivery"],
        proof: |headers| signature(headers, "x-forgejo-signature", ""),
        syncs: REFS,
        hellos: &[],
    },
    Forge {
        word: "gitea",
        event: "x-gitea-event",
        ids: &["x-gitea-delivery"],
        proof: |headers| signature(headers, "x-gitea-signature", ""),
        syncs: REFS,
        hellos: &[],
    },
    Forge {
        word: "github",
        event: "x-github-event",
        ids: &["x-github-delivery"],
        proof: |headers| signature(headers, "x-hub-signature-256", "sha256="),
        syncs: REFS,
        hellos: &["ping"],
    },
    Forge {
        word: "gitlab",
        event: "x-gitlab-event",
        // The other one is shared by all deliveries that have one cause; GitLab before 17.4 has nothing better.
        ids: &["idempotency-key", "x-gitlab-event-uuid"],
        proof: |headers| text(headers, "x-gitlab-token").map(Proof::Secret),
        syncs: &["Push Hook", "Tag Push Hook", "Release Hook"],
        hellos: &[],
    },
    Forge {
        word: "bitbucket",
        event: "x-event-key",
        // Of Cloud, of Data Center.
        ids: &["x-request-uuid", "x-request-id"],
        proof: |headers| signature(headers, "x-hub-signature", "sha256="),
        syncs: &["repo:push", "repo:refs_changed", "mirror:repo_synchronized"],
        hellos: &["diagnostics:ping"],
    },
];

/// The events of GitHub, and of those that speak like it, after which a repository has other refs.
const REFS: &[&str] = &["push", "create", "delete", "release"];

/// Reads the headers of a delivery. What no forge claims is somebody's own script: each of its deliveries asks for a sync.
pub(crate) fn told(headers: &HeaderMap) -> Told<'_> {
    let named = FORGES.iter().find_map(|forge| text(headers, forge.event).map(|event| (forge, event)));
    let Some((forge, event)) = named else {
        let delivery = Delivery { forge: "generic", event: "delivery", id: None };
        return Told { delivery, proof: own(headers), wish: Wish::Sync };
    };
    let id = forge.ids.iter().find_map(|name| text(headers, name));
    let wish = match event {
        event if forge.syncs.contains(&event) => Wish::Sync,
        event if forge.hellos.contains(&event) => Wish::Hello,
        _ => Wish::Nothing,
    };
    Told { delivery: Delivery { forge: forge.word, event, id }, proof: (forge.proof)(headers), wish }
}

/// How a script shows the secret, in whichever way is easiest for it.
fn own(headers: &HeaderMap) -> Option<Proof<'_>> {
    let bearer = || {
        let (scheme, secret) = text(headers, header::AUTHORIZATION.as_str())?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
    };
    signature(headers, "x-hub-signature-256", "sha256=")
        .or_else(|| text(headers, "x-larder-token").or_else(bearer).map(Proof::Secret))
}

fn signature<'a>(headers: &'a HeaderMap, name: &str, start: &str) -> Option<Proof<'a>> {
    let digits = text(headers, name)?.strip_prefix(start)?;
    unhex(digits)?.try_into().ok().map(Proof::Signature)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    const SIGNED: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    #[test]
    fn a_forge_is_believed_by_its_own_proof_alone() {
        let cases: [&[(&str, &str)]; 7] = [
            &[("x-forgejo-event", "push"), ("x-github-event", "push"), ("x-hub-signature-256", SIGNED)],
            &[("x-gitea-event", "push"), ("x-github-event", "push"), ("x-hub-signature-256", SIGNED)],
            &[("x-github-event", "push"), ("x-gitlab-token", "secret")],
            &[("x-github-event", "push"), ("authorization", "Bearer secret")],
            &[("x-gitlab-event", "Push Hook"), ("x-hub-signature-256", SIGNED)],
            &[("x-event-key", "repo:push"), ("x-hub-signature-256", SIGNED)],
            &[("x-event-key", "repo:push"), ("x-larder-token", "secret")],
        ];
        for case in cases {
            assert!(told(&headers(case)).proof.is_none(), "{case:?}");
        }
    }

    #[test]
    fn a_short_old_or_odd_signature_is_none() {
        let sha1 = "sha1=a94a8fe5ccb19ba61c4c0873d391e987982fbbd3";
        for (event, name, value) in [
            ("x-github-event", "x-hub-signature", sha1),
            ("x-github-event", "x-hub-signature-256", sha1),
            ("x-github-event", "x-hub-signature-256", "sha256="),
            ("x-github-event", "x-hub-signature-256", "sha256=75"),
            ("x-github-event", "x-hub-signature-256", OTHER),
            ("x-event-key", "x-hub-signature", sha1),
            ("x-gitea-event", "x-gitea-signature", SIGNED),
        ] {
            assert!(told(&headers(&[(event, "push"), (name, value)])).proof.is_none(), "{name}: {value}");
        }
    }

    #[test]
    fn the_first_name_wins_and_so_does_its_signature() {
        let headers = headers(&[
            ("x-github-event", "ping"),
            ("x-gitea-event", "release"),
            ("x-gitea-delivery", "1"),
            ("x-github-delivery", "2"),
            ("x-gitea-signature", OTHER),
            ("x-hub-signature-256", SIGNED),
        ]);
        let told = told(&headers);
        assert_eq!(told.delivery, Delivery { forge: "gitea", event: "release", id: Some("1") });
        assert!(told.proof == Some(Proof::Signature([0; 32])));
        assert_eq!(told.wish, Wish::Sync);
    }

    #[test]
    fn a_script_shows_the_secret_as_it_likes() {
        let own = |pairs: &[(&'static str, &'static str)]| {
            let headers = headers(pairs);
            let told = told(&headers);
            assert_eq!((told.delivery.forge, told.delivery.id, told.wish), ("generic", None, Wish::Sync));
            match told.proof {
                Some(Proof::Secret(secret)) => secret.to_owned(),
                Some(Proof::Signature(_)) => "signed".to_owned(),
                None => "nothing".to_owned(),
            }
        };
        assert_eq!(own(&[("authorization", "bearer  secret")]), "secret");
        assert_eq!(own(&[("x-larder-token", "secret"), ("authorization", "Bearer other")]), "secret");
        assert_eq!(own(&[("x-hub-signature-256", SIGNED)]), "signed");
        assert_eq!(own(&[("authorization", "Basic c2VjcmV0")]), "nothing");
        assert_eq!(own(&[]), "nothing");
    }
}
