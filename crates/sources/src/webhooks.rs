//! Webhooks: what a forge must show to be believed, and what then happens. Each Git source has a secret of its own, sealed
//! like a credential. A delivery is checked on its raw bytes while they stream by ([`Check`]); only what is
//! [`Proven`] can be accepted, and accepting makes the source's sync due now. Nothing of a body is ever kept or parsed: a
//! forge says that something happened, and what it was is read from the repository. Headers and answers are in
//! `larder-webhooks`.

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use larder_core::{Digest, Error, Id, Kind, Result, digest::hex};
use larder_db::{
    Batch, Statement, deliveries, events,
    events::{Actor, Event},
    sources as rows,
    sources::Source,
    webhooks::{self, Webhook},
};
use larder_jobs::queue;
use serde_json::json;
use sha2::Sha256;

use crate::{
    Sources,
    manage::GIT,
    vault::{Binding, Sealed},
    work::SYNC,
};

/// What every secret starts with, so that scanners recognise it.
const SECRET_START: &str = "lrw_";

/// Random bytes in a secret. Its text fits into one block of the hash, like [`NOBODYS`].
const SECRET: usize = 24;

/// What deliveries to webhooks that are not there are checked with, so that this takes as long. None of them is believed.
const NOBODYS: &str = "lrw_000000000000000000000000000000000000000000000000";

/// How long equal deliveries are one, if their sender does not tell them apart.
const SAME: Duration = Duration::from_secs(60);

/// How a delivery shows that its sender knows the secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Proof<'a> {
    /// HMAC-SHA256 of the raw body under the secret.
    Signature([u8; 32]),
    /// The secret itself.
    Secret(&'a str),
}

/// A delivery, as its headers tell of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// The word for the kind of forge: `github`, …
    pub forge: &'static str,
    /// What happened, in the forge's own word.
    pub event: &'a str,
    /// What the forge calls this delivery, the same when it is delivered again.
    pub id: Option<&'a str>,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The sync is due now.
    Now,
    /// It was accepted before, and nothing more happens.
    Before,
}

/// A delivery that is being checked while its body arrives.
pub struct Check {
    /// `None`: there is no such webhook.
    webhook: Option<(Id, String)>,
    body: Hmac<Sha256>,
    signature: Option<[u8; 32]>,
}

/// A delivery whose sender knows the secret.
#[derive(Clone, Debug)]
pub struct Proven {
    source: Id,
    name: String,
    /// HMAC-SHA256 of the body: whoever does not know the secret cannot make two bodies with the same one.
    body: [u8; 32],
}

impl Sources {
    /// The secret of a Git source's webhook; made now, if the source is older than webhooks.
    pub async fn webhook_secret(&self, actor: &Actor, source: &Source) -> Result<String> {
        if let Some(webhook) = webhooks::at(&self.db, &source.id.to_string()).await? {
            return self.open_webhook(&webhook);
        }
        let (secret, put) = self.new_webhook(source)?;
        let event = Event::new(actor, "webhook.create", format!("source:{}", source.name));
        let batch = Batch::new()
            .with(rows::exists(source.id))
            .with(webhooks::missing(source.id))
            .with(put)
            .with(events::record(self.db.host(), &event));
        match self.db.commit(batch).await {
            Ok(_) => Ok(secret),
            Err(error) if error.is_guard("webhook is missing") => {
                let webhook = webhooks::at(&self.db, &source.id.to_string()).await?;
                self.open_webhook(&webhook.ok_or(error)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the webhook of a Git source another secret: what still shows the old one is refused from now on.
    pub async fn rotate_webhook(&self, actor: &Actor, source: &Source) -> Result<String> {
        let (secret, put) = self.new_webhook(source)?;
        let event = Event::new(actor, "webhook.rotate", format!("source:{}", source.name));
        let batch = Batch::new().with(rows::exists(source.id)).with(put).with(events::record(self.db.host(), &event));
        self.db.commit(batch).await?;
        Ok(secret)
    }

    /// A new secret for a Git source, and what stores it.
    pub(crate) fn new_webhook(&self, source: &Source) -> Result<(String, Statement)> {
        if source.kind != GIT {
            return Err(Error::invalid(format!("`{}` is not a Git source, and so has no webhook", source.name)));
        }
        let host = self.db.host();
        let secret = format!("{SECRET_START}{}", hex(&host.random_bytes::<SECRET>()));
        let sealed = self.vault.seal(host, binding(&source.id.to_string()), &secret)?;
        Ok((secret, webhooks::put(source.id, &sealed.key_id, sealed.bytes, host.now())))
    }

    fn open_webhook(&self, webhook: &Webhook) -> Result<String> {
        let sealed = Sealed { key_id: webhook.key_id.clone(), bytes: webhook.sealed.clone() };
        self.vault.open(binding(&webhook.source.to_string()), &sealed).map_err(|error| {
            let message = format!(
                "the secret of the webhook of `{}` cannot be opened: make a new one with `larder source rotate-webhook {}`",
                webhook.name, webhook.name
            );
            Error::new(error.kind(), message).caused_by(error)
        })
    }

    /// Begins to check a delivery to the webhook of the source with this name or id. Fails with
    /// [`Kind::Unauthenticated`], before any of the body is read, if no body could make it good; a webhook that is not
    /// there fails no sooner and in no other words than one whose secret is not known.
    pub async fn check_delivery(&self, name_or_id: &str, proof: Option<Proof<'_>>) -> Result<Check> {
        let found = webhooks::at(&self.db, name_or_id).await?;
        let opened = found.and_then(|webhook| match self.open_webhook(&webhook) {
            Ok(secret) => Some((webhook, secret)),
            Err(error) => {
                tracing::warn!(source = %webhook.name, error = error.chain(), "a delivery could not be checked");
                None
            }
        });
        let secret = opened.as_ref().map_or(NOBODYS, |(_, secret)| secret);
        let signature = match proof {
            Some(Proof::Signature(signature)) => Some(signature),
            Some(Proof::Secret(shown)) if is_same(secret, shown) => None,
            Some(Proof::Secret(_)) | None => return Err(refused()),
        };
        let body = keyed(secret);
        Ok(Check { webhook: opened.map(|(webhook, _)| (webhook.source, webhook.name)), body, signature })
    }

    /// Makes the sync of the source due now, unless the same delivery was accepted before.
    pub async fn accept_delivery(&self, proven: &Proven, delivery: &Delivery<'_>) -> Result<Accepted> {
        let host = self.db.host();
        let now = host.now();
        let key = key_of(proven, delivery);
        let same = if delivery.id.is_some() { deliveries::RETENTION } else { SAME };
        let event = Event::new(&Actor::webhook(delivery.forge), "webhook.accept", format!("source:{}", proven.name))
            .with(json!({ "event": delivery.event, "delivery": delivery.id }));
        let mut batch = Batch::new()
            .with(rows::exists(proven.source))
            .with(deliveries::is_new(proven.source, &key, now.minus(same)))
            .with(deliveries::put(proven.source, &key, now))
            .with(deliveries::trim(proven.source))
            .with(events::record(host, &event));
        queue::enqueue_in(&mut batch, &self.db, SYNC, &proven.source.to_string(), now);
        match self.db.commit(batch).await {
            Ok(_) => Ok(Accepted::Now),
            Err(error) if error.is_guard("delivery is new") => Ok(Accepted::Before),
            Err(error) if error.is_guard("source exists") => Err(refused()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Check {
    /// The next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        self.body.update(bytes);
    }

    /// The name of the source, for the log: the sender must not learn whether there is one.
    pub fn source(&self) -> Option<&str> {
        self.webhook.as_ref().map(|(_, name)| name.as_str())
    }

    /// Ends the check. Fails with [`Kind::Unauthenticated`] if the sender does not know the secret.
    pub fn finish(self) -> Result<Proven> {
        let holds = self.signature.is_none_or(|signature| self.body.clone().verify_slice(&signature).is_ok());
        let body = self.body.finalize().into_bytes().into();
        match self.webhook {
            Some((source, name)) if holds => Ok(Proven { source, name, body }),
            _ => Err(refused()),
        }
    }
}

impl Proven {
    /// The name of the source.
    pub fn source(&self) -> &str {
        &self.name
    }
}

/// What tells a delivery from others. The forge's word for it alone would not do: nobody signs the headers, and GitLab gives
/// the same one to different deliveries that have one cause.
fn key_of(proven: &Proven, delivery: &Delivery<'_>) -> String {
    let parts = [delivery.forge, delivery.event, delivery.id.unwrap_or_default(), &hex(&proven.body)];
    Digest::of(parts.join("\0").as_bytes()).hex()
}

fn binding(source: &str) -> Binding<'_> {
    Binding { id: source, kind: "webhook", username: None, host: None }
}

fn keyed(secret: &str) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length")
}

/// Whether two secrets are the same. How long it takes tells nothing about where they differ.
fn is_same(secret: &str, shown: &str) -> bool {
    let sum = |text: &str| keyed(secret).chain_update(text).finalize();
    sum(secret) == sum(shown)
}

fn refused() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "there is no webhook here, or this is not its secret: give the forge the address and the secret that \
         `larder source show NAME` prints",
    )
}

#[cfg(test)]
mod tests {
    use larder_core::{Time, digest::unhex};

    use super::*;

    /// The example of GitHub's documentation, "Validating webhook deliveries".
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[&str] = &["Hello, ", "World!"];
    const SIGNATURE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn check(signature: Option<[u8; 32]>, is_there: bool) -> Result<Proven> {
        let webhook = is_there.then(|| (Id::new(Time::from_seconds(1), [0; 10]), "lib".to_owned()));
        let mut check = Check { webhook, body: keyed(SECRET), signature };
        for piece in BODY {
            check.update(piece.as_bytes());
        }
        check.finish()
    }

    #[test]
    fn a_signature_is_that_of_the_documentation() {
        let signature: [u8; 32] = unhex(SIGNATURE).unwrap().try_into().unwrap();
        assert_eq!(check(Some(signature), true).unwrap().body, signature);
        for bit in 0..256 {
            let mut wrong = signature;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check(Some(wrong), true).unwrap_err().kind(), Kind::Unauthenticated);
        }
    }

    #[test]
    fn nothing_is_good_enough_for_a_webhook_that_is_not_there() {
        let signature: [u8; 32] = unhex(SIGNATURE).unwrap().try_into().unwrap();
        let refusals = [check(Some(signature), false), check(None, false), check(Some([0; 32]), true)];
        let messages = refusals.map(|refusal| refusal.unwrap_err().message().to_owned());
        assert!(messages.iter().all(|message| *message == messages[0]));
    }

    #[test]
    fn secrets_are_the_same_only_as_a_whole() {
        assert!(is_same(SECRET, SECRET));
        for wrong in ["", "It's a Secret to Everybod", "It's a Secret to Everybody!", "it's a Secret to Everybody"] {
            assert!(!is_same(SECRET, wrong), "{wrong}");
        }
    }

    #[test]
    fn deliveries_differ_by_their_name_and_by_what_is_in_them() {
        let key = |id, event, body| {
            let proven =
                Proven { source: Id::new(Time::from_seconds(1), [0; 10]), name: "lib".to_owned(), body: [body; 32] };
            key_of(&proven, &Delivery { forge: "gitlab", event, id })
        };
        let first = key(Some("1"), "push", 1);
        assert_eq!(first, key(Some("1"), "push", 1));
        for other in
            [key(Some("2"), "push", 1), key(None, "push", 1), key(Some("1"), "tag_push", 1), key(Some("1"), "push", 2)]
        {
            assert_ne!(first, other);
        }
    }
}
