//! Passes: short-lived texts that stand for a token, or for anonymous, and let less be done than the token itself. They
//! are for protocols whose clients show a token once and then something else. Here they are made, signed and read; what
//! their bearer may do now is looked up at every use ([`crate::authenticator`]), so that a pass never outlives its token.
//!
//! A pass is a JSON Web Token (RFC 7519) with exactly one header, signed with HMAC-SHA256. Some clients look into it for
//! its times. Nothing in it is a secret, and any replica with the same keys can check it without a look into the database.

use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use larder_core::{
    Error, Host, Id, Kind, Result, Time,
    grant::{Grant, Principal},
};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// The longest pass, in bytes: half of what the head of a request may have.
pub const LONGEST: usize = 8 * 1024;

/// `{"alg":"HS256","typ":"JWT"}`, encoded. Nothing else is ever read as a header, so nobody can choose an algorithm.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

/// Who made it, and what it opens: packages, or the place where passes are made.
const ISSUER: &str = "larder";
const FOR_PACKAGES: &str = "larder packages";
const FOR_PASSES: &str = "larder passes";

/// The subject of a pass that stands for no token.
const ANONYMOUS: &str = "anonymous";

/// How much the clocks of two replicas may differ.
const SKEW: Duration = Duration::from_secs(60);

/// What a pass says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The token that it stands for; `None` for anonymous.
    pub token: Option<OfToken>,
    /// What it is good for.
    pub opens: Opens,
    /// From when on it is refused; exact to a second.
    pub expires_at: Time,
}

/// A token with one certain secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfToken {
    /// The token.
    pub id: Id,
    /// When its secret was made. Another time means another secret, and that this pass is dead.
    pub made_at: Time,
}

/// What a pass is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opens {
    /// Packages: what these grants and those that the token has at that moment both allow. None: nothing but being
    /// recognised.
    Packages(Vec<Grant>),
    /// The place where passes are made, and nothing else: it is shown there instead of the token.
    Passes,
}

impl Pass {
    /// For somebody who has just been recognised. Fails with [`Kind::Forbidden`] for one who showed a pass: none is made
    /// out of another.
    pub fn of(principal: &Principal, opens: Opens, expires_at: Time) -> Result<Self> {
        if principal.limited {
            return Err(Error::new(Kind::Forbidden, "a pass makes no other pass: show the token itself"));
        }
        let token = match (principal.token, principal.token_made_at) {
            (None, _) => None,
            (Some(id), Some(made_at)) => Some(OfToken { id, made_at }),
            (Some(_), None) => return Err(Error::internal("making a pass", "the token's secret has no time")),
        };
        Ok(Self { token, opens, expires_at })
    }
}

/// The claims as they are written. What an older version does not know it must not overlook.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
    /// When the token's secret was made, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    grants: Vec<String>,
}

/// Makes passes and checks them. Cheap to clone.
#[derive(Clone)]
pub struct Passes(Arc<Keys>);

struct Keys {
    first: Hmac<Sha256>,
    older: Vec<Hmac<Sha256>>,
}

impl Passes {
    /// With the key that signs, and older ones that are only checked with. They must be used for nothing else.
    pub fn new(first: [u8; 32], older: impl IntoIterator<Item = [u8; 32]>) -> Self {
        // What HMAC does with a key is done here, once: filled up with zeros, it is a block of the hash (RFC 2104).
        let mac = |key: [u8; 32]| {
            let mut block = [0; 64];
            block[..32].copy_from_slice(&key);
            Hmac::new(&block.into())
        };
        Self(Arc::new(Keys { first: mac(first), older: older.into_iter().map(mac).collect() }))
    }

    /// The text of a pass. Fails with [`Kind::TooLarge`] if it has so many grants that it would be longer than
    /// [`LONGEST`].
    pub fn issue(&self, host: &Host, pass: &Pass) -> Result<String> {
        let now = host.now();
        let (aud, grants) = match &pass.opens {
            Opens::Packages(grants) => (FOR_PACKAGES, grants.as_slice()),
            Opens::Passes => (FOR_PASSES, [].as_slice()),
        };
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: aud.to_owned(),
            sub: pass.token.map_or_else(|| ANONYMOUS.to_owned(), |token| token.id.to_string()),
            iat: now.seconds(),
            nbf: now.minus(SKEW).seconds(),
            exp: pass.expires_at.seconds(),
            jti: host.new_id().to_string(),
            made: pass.token.map(|token| token.made_at.micros()),
            grants: grants.iter().map(Grant::to_string).collect(),
        };
        let claims = serde_json::to_vec(&claims).map_err(|error| Error::internal("writing a pass", error))?;
        let mut text = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = self.0.first.clone().chain_update(text.as_bytes()).finalize().into_bytes();
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut text);
        if text.len() > LONGEST {
            return Err(Error::new(Kind::TooLarge, "too much is asked for at once: ask for fewer packages"));
        }
        Ok(text)
    }

    /// Reads a pass. Fails with [`Kind::Unauthenticated`] if it is not signed with one of the keys, if it has expired, or if
    /// it is not valid yet.
    pub fn check(&self, now: Time, text: &str) -> Result<Pass> {
        let claims = self.claims(text).ok_or_else(refused)?;
        if now < Time::from_seconds(claims.nbf) {
            return Err(refused());
        }
        let pass = read(&claims).ok_or_else(refused)?;
        if pass.expires_at <= now { Err(expired()) } else { Ok(pass) }
    }

    /// The claims, if the signature is good. They are not looked at before.
    fn claims(&self, text: &str) -> Option<Claims> {
        if !has_shape(text) {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let is_ours = |key: &Hmac<Sha256>| key.clone().chain_update(signed.as_bytes()).verify_slice(&signature).is_ok();
        if !std::iter::once(&self.0.first).chain(&self.0.older).any(is_ours) {
            return None;
        }
        let claims = URL_SAFE_NO_PAD.decode(signed.strip_prefix(HEADER)?.strip_prefix('.')?).ok()?;
        serde_json::from_slice(&claims).ok()
    }
}

impl fmt::Debug for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passes")
    }
}

fn read(claims: &Claims) -> Option<Pass> {
    let token = match (claims.sub.as_str(), claims.made) {
        (ANONYMOUS, None) => None,
        (id, Some(made)) => Some(OfToken { id: id.parse().ok()?, made_at: Time::from_micros(made) }),
        _ => return None,
    };
    let opens = match claims.aud.as_str() {
        FOR_PACKAGES => Opens::Packages(claims.grants.iter().map(|grant| grant.parse()).collect::<Result<_>>().ok()?),
        FOR_PASSES if claims.grants.is_empty() => Opens::Passes,
        _ => return None,
    };
    (claims.iss == ISSUER).then(|| Pass { token, opens, expires_at: Time::from_seconds(claims.exp) })
}

/// Whether `text` could be a pass by its length and its beginning. It says nothing of its signature.
pub fn has_shape(text: &str) -> bool {
    text.len() <= LONGEST && text.strip_prefix(HEADER).is_some_and(|rest| rest.starts_with('.'))
}

pub(crate) fn refused() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "this pass is not one of this server, or what it stands for has changed: log in with the token again",
    )
}

pub(crate) fn expired() -> Error {
    Error::new(Kind::Unauthenticated, "this pass has expired: get another one with the token")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use larder_core::host::{BoxFuture, Clock, Random, Spawn};

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    /// A host that stands still.
    #[derive(Default)]
    struct Still(AtomicI64);

    impl Clock for Still {
        fn now(&self) -> Time {
            Time::from_seconds(1_790_000_000 + self.0.load(Ordering::Relaxed))
        }

        fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    impl Random for Still {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(1);
        }
    }

    impl Spawn for Still {
        fn background(&self, _: BoxFuture<'static, ()>) {}

        fn heavy(&self, task: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
            task
        }
    }

    fn host() -> (Host, Arc<Still>) {
        let still = Arc::new(Still::default());
        (Host { clock: still.clone(), random: still.clone(), spawn: still.clone() }, still)
    }

    fn pass(host: &Host) -> Pass {
        let token = OfToken { id: host.new_id(), made_at: Time::from_micros(1_234_567) };
        let grants = ["read,publish:x:acme/app", "read:x:*"].map(|grant| grant.parse().unwrap()).to_vec();
        let expires_at = host.now().plus(Duration::from_secs(300));
        Pass { token: Some(token), opens: Opens::Packages(grants), expires_at }
    }

    fn decoded(part: &str) -> serde_json::Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    /// Signs any text with the right key.
    fn signed(header: &str, claims: &serde_json::Value) -> String {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mac = <Hmac<Sha256>>::new_from_slice(&KEY).unwrap().chain_update(text.as_bytes()).finalize().into_bytes();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac))
    }

    #[test]
    fn what_is_issued_is_read_back_until_it_expires() {
        let (host, still) = host();
        let passes = Passes::new(KEY, []);
        let anonymous = Pass { token: None, opens: Opens::Packages(Vec::new()), ..pass(&host) };
        let refresh = Pass { opens: Opens::Passes, ..pass(&host) };
        for pass in [pass(&host), anonymous, refresh] {
            let text = passes.issue(&host, &pass).unwrap();
            assert_eq!(passes.check(host.now(), &text).unwrap(), pass);
            let expired = passes.check(pass.expires_at, &text).unwrap_err();
            assert!(expired.kind() == Kind::Unauthenticated && expired.message().contains("expired"), "{expired}");
            // A replica whose clock is a little behind takes it; one whose clock is far off does not.
            assert!(passes.check(host.now().minus(SKEW), &text).is_ok());
            assert!(passes.check(host.now().minus(SKEW * 2), &text).is_err());
        }
        let first = passes.issue(&host, &pass(&host)).unwrap();
        still.0.store(1, Ordering::Relaxed);
        assert_ne!(passes.issue(&host, &passes.check(host.now(), &first).unwrap()).unwrap(), first);
    }

    #[test]
    fn a_client_can_look_into_it() {
        let (host, _) = host();
        let text = Passes::new(KEY, []).issue(&host, &pass(&host)).unwrap();
        let parts: Vec<&str> = text.split('.').collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(decoded(parts[0]), serde_json::json!({"alg": "HS256", "typ": "JWT"}));
        let claims = decoded(parts[1]);
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300);
        assert_eq!(signed(r#"{"alg":"HS256","typ":"JWT"}"#, &claims), text);
    }

    #[test]
    fn no_byte_of_it_can_be_changed() {
        let (host, _) = host();
        let passes = Passes::new(KEY, []);
        let text = passes.issue(&host, &pass(&host)).unwrap();
        for at in 0..text.len() {
            for other in [b'A', b'B', b'z', b'_', b'.', b'='] {
                let mut bytes = text.as_bytes().to_vec();
                if bytes[at] != other {
                    bytes[at] = other;
                    let altered = String::from_utf8(bytes).unwrap();
                    assert!(passes.check(host.now(), &altered).is_err(), "{at}");
                }
            }
        }
        for cut in 0..text.len() {
            assert!(passes.check(host.now(), &text[..cut]).is_err(), "{cut}");
        }
        assert!(passes.check(host.now(), &format!("{text}A")).is_err());
        assert!(passes.check(host.now(), &format!("{text}=")).is_err());
    }

    #[test]
    fn keys_are_rotated() {
        let (host, _) = host();
        let old = Passes::new(KEY, []);
        let new = Passes::new([8; 32], [KEY]);
        let other = Passes::new([8; 32], []);
        let pass = pass(&host);
        let (before, after) = (old.issue(&host, &pass).unwrap(), new.issue(&host, &pass).unwrap());
        assert!(new.check(host.now(), &before).is_ok() && other.check(host.now(), &after).is_ok());
        assert!(old.check(host.now(), &after).is_err() && other.check(host.now(), &before).is_err());
    }

    #[test]
    fn only_what_this_version_understands_is_read() {
        let (host, _) = host();
        let passes = Passes::new(KEY, []);
        let text = passes.issue(&host, &pass(&host)).unwrap();
        let good = decoded(text.split('.').nth(1).unwrap());
        let header = r#"{"alg":"HS256","typ":"JWT"}"#;
        assert!(passes.check(host.now(), &signed(header, &good)).is_ok());
        for wrong in
            [r#"{"alg":"none","typ":"JWT"}"#, r#"{"alg":"HS512","typ":"JWT"}"#, r#"{"typ":"JWT","alg":"HS256"}"#]
        {
            let text = signed(wrong, &good);
            assert!(passes.check(host.now(), &text).is_err(), "{wrong}");
            let unsigned = format!("{}.", text.rsplit_once('.').unwrap().0);
            assert!(passes.check(host.now(), &unsigned).is_err(), "{wrong}");
        }
        for (claim, value) in [
            ("iss", serde_json::json!("other")),
            ("aud", serde_json::json!("other")),
            ("aud", serde_json::json!(FOR_PASSES)),
            ("sub", serde_json::json!("anonymous")),
            ("sub", serde_json::json!("1")),
            ("made", serde_json::Value::Null),
            ("exp", serde_json::json!("soon")),
            ("grants", serde_json::json!(["everything"])),
            ("only_from", serde_json::json!("10.0.0.0/8")),
        ] {
            let mut claims = good.clone();
            claims[claim] = value.clone();
            assert!(passes.check(host.now(), &signed(header, &claims)).is_err(), "{claim}: {value}");
        }
    }

    #[test]
    fn a_pass_is_bounded() {
        let (host, _) = host();
        let passes = Passes::new(KEY, []);
        let grants: Vec<Grant> = (0..400).map(|n| format!("read:x:acme/app-{n:04}").parse().unwrap()).collect();
        let long = Pass { opens: Opens::Packages(grants), ..pass(&host) };
        assert_eq!(passes.issue(&host, &long).unwrap_err().kind(), Kind::TooLarge);
        let padded = format!("{HEADER}.{}", "A".repeat(LONGEST));
        assert!(!has_shape(&padded) && passes.check(host.now(), &padded).is_err());
    }

    #[test]
    fn none_is_made_out_of_another() {
        let (host, _) = host();
        let limited = Principal { limited: true, ..Principal::default() };
        assert_eq!(Pass::of(&limited, Opens::Passes, host.now()).unwrap_err().kind(), Kind::Forbidden);
        assert_eq!(Pass::of(&Principal::default(), Opens::Passes, host.now()).unwrap().token, None);
    }
}
