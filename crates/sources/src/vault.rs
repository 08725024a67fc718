//! Seals the secrets of credentials: AES-256-GCM under Larder's secret key, bound to everything in the row that
//! decides where a secret may go. Whoever can write the database, but lacks the key, can neither read a secret
//! nor point it at another host.

use aes_gcm::{
    Aes256Gcm, KeyInit as _, Nonce,
    aead::{Aead as _, Payload},
};
use hmac::{Hmac, Mac as _};
use larder_core::{Digest, Error, Host, Kind, Result};
use sha2::Sha256;

/// Bytes of a nonce in front of each sealed secret.
const NONCE: usize = 12;

/// A secret key: 32 bytes. Its `Debug` shows nothing but its id.
#[derive(Clone)]
pub struct SecretKey {
    bytes: [u8; 32],
    id: String,
}

impl SecretKey {
    /// From its bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        let id = Digest::of(&[b"larder secret key id\0".as_slice(), &bytes].concat()).hex()[..16].to_owned();
        Self { bytes, id }
    }

    /// From 64 hex digits, as the key file and `LARDER_SECRET_KEY` hold it.
    pub fn parse(text: &str) -> Result<Self> {
        larder_core::digest::unhex(text.trim()).and_then(|bytes| bytes.try_into().ok()).map(Self::new).ok_or_else(
            || {
                Error::invalid(
                    "the secret key must be 64 lower-case hex digits (32 bytes); make one with `openssl rand -hex 32`",
                )
            },
        )
    }

    /// A new one.
    pub fn generate(host: &Host) -> Self {
        Self::new(host.random_bytes())
    }

    /// The text that [`parse`](Self::parse) reads. For the key file only.
    pub fn to_hex(&self) -> String {
        larder_core::digest::hex(&self.bytes)
    }

    /// Another key, for one other purpose: HMAC-SHA256 of the purpose under this key. No key is used for two purposes.
    fn derive(&self, purpose: &str) -> [u8; 32] {
        let mac = <Hmac<Sha256>>::new_from_slice(&self.bytes).expect("HMAC takes keys of any length");
        mac.chain_update(b"larder key for ").chain_update(purpose).finalize().into_bytes().into()
    }

    /// Tells keys apart without telling anything about them.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretKey({})", self.id)
    }
}

/// What a sealed secret is bound to: unsealing with anything else fails.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The credential's id.
    pub id: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// The user name that goes with it.
    pub username: Option<&'a str>,
    /// The one host that it may be sent to, once that is known.
    pub host: Option<&'a str>,
}

impl Binding<'_> {
    /// Unambiguous bytes: each part with its length in front.
    fn bytes(&self) -> Vec<u8> {
        let part = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), |text| format!("{}:{text}", text.len()));
        [
            "larder credential 1".to_owned(),
            part(Some(self.id)),
            part(Some(self.kind)),
            part(self.username),
            part(self.host),
        ]
        .join("\0")
        .into_bytes()
    }
}

/// A sealed secret and the id of the key that opens it.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Which key.
    pub key_id: String,
    /// Nonce and ciphertext.
    pub bytes: Vec<u8>,
}

/// Seals with the first of its keys and opens with any of them, so that keys can be rotated.
#[derive(Clone, Debug)]
pub struct Vault {
    keys: Vec<SecretKey>,
}

impl Vault {
    /// With the key that seals, and older ones that only open.
    pub fn new(first: SecretKey, older: impl IntoIterator<Item = SecretKey>) -> Self {
        Self { keys: std::iter::once(first).chain(older).collect() }
    }

    /// The id of the key that seals.
    pub fn key_id(&self) -> &str {
        self.keys[0].id()
    }

    /// Keys for something else than secrets: the first one is made from the key that seals, the others from the older
    /// ones. They tell nothing about each other, nor about those that they are made from.
    pub fn derive(&self, purpose: &str) -> ([u8; 32], Vec<[u8; 32]>) {
        let older = self.keys[1..].iter().map(|key| key.derive(purpose)).collect();
        (self.keys[0].derive(purpose), older)
    }

    /// Seals `secret`.
    pub fn seal(&self, host: &Host, binding: Binding<'_>, secret: &str) -> Result<Sealed> {
        let nonce: [u8; NONCE] = host.random_bytes();
        let payload = Payload { msg: secret.as_bytes(), aad: &binding.bytes() };
        let ciphertext = cipher(&self.keys[0])
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|_| Error::new(Kind::Internal, "the secret could not be sealed"))?;
        Ok(Sealed { key_id: self.key_id().to_owned(), bytes: [nonce.as_slice(), &ciphertext].concat() })
    }

    /// Opens what [`seal`](Self::seal) sealed with the same binding.
    pub fn open(&self, binding: Binding<'_>, sealed: &Sealed) -> Result<String> {
        let key = self.keys.iter().find(|key| key.id() == sealed.key_id).ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!(
                    "the credential is sealed with the secret key {}, which is not here (here: {}). Start Larder with the \
                     secret key that it was made with, or give the credential its secret again (`larder credential rotate`)",
                    sealed.key_id,
                    self.keys.iter().map(SecretKey::id).collect::<Vec<_>>().join(", ")
                ),
            )
        })?;
        let altered = || {
            Error::new(
                Kind::Damaged,
                "the credential was altered in the database and is not used any more: give it its secret again (`larder credential rotate`)",
            )
        };
        let (nonce, ciphertext) = sealed.bytes.split_first_chunk::<NONCE>().ok_or_else(altered)?;
        let payload = Payload { msg: ciphertext, aad: &binding.bytes() };
        let secret = cipher(key).decrypt(&Nonce::from(*nonce), payload).map_err(|_| altered())?;
        String::from_utf8(secret).map_err(|_| altered())
    }
}

fn cipher(key: &SecretKey) -> Aes256Gcm {
    Aes256Gcm::new(&key.bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_keys_belong_to_one_key_and_one_purpose() {
        let key = |byte| SecretKey::new([byte; 32]);
        let (first, older) = Vault::new(key(1), [key(2), key(3)]).derive("passes");
        assert_eq!(Vault::new(key(2), []).derive("passes"), (older[0], Vec::new()));
        let other = Vault::new(key(1), []).derive("cookies").0;
        let all = [first, older[0], older[1], other, [1; 32]];
        assert!(all.iter().enumerate().all(|(at, key)| !all[at + 1..].contains(key)));
        // HMAC-SHA256 of `larder key for passes` under 32 bytes of 1, computed with OpenSSL.
        assert_eq!(
            larder_core::digest::hex(&first),
            "15d11dd2a3f302fdf8a7acbc0375418659c6073487151941f053c4b25ada0b16"
        );
    }
}
