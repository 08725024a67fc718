//! The text of a token: how it is made, recognised at sight, and hashed. Not who it belongs to: that is [`crate::authenticator`].
//!
//! `lrd_`, 40 random base62 characters, and 6 base62 characters of checksum: the CRC-32 (IEEE 802.3, as in zip and
//! gzip) of the 40 characters, as GitHub's tokens have it. The checksum lets secret scanners tell a token from noise, and lets
//! Larder refuse a mistyped one without a look into the database. It is no secret and protects nothing.

use std::fmt;

use larder_core::{Digest, host::Random};

const PREFIX: &str = "lrd_";
const RANDOM: usize = 40;
const CHECKSUM: usize = 6;
const LENGTH: usize = PREFIX.len() + RANDOM + CHECKSUM;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The secret of a token. It is shown once, when it is made; only its hash is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A new one: 40 characters with 238 bits that nobody can guess.
    pub fn generate(random: &dyn Random) -> Self {
        let mut text = String::with_capacity(LENGTH);
        text.push_str(PREFIX);
        let mut bytes = [0; 64];
        while text.len() < PREFIX.len() + RANDOM {
            random.fill(&mut bytes);
            // 248 is the largest multiple of 62 in a byte: what lies above it would favour the first characters.
            let fair = bytes.iter().filter(|byte| **byte < 248).map(|byte| char::from(BASE62[usize::from(byte % 62)]));
            text.extend(fair.take(PREFIX.len() + RANDOM - text.len()));
        }
        let sum = checksum(&text.as_bytes()[PREFIX.len()..]);
        text.extend(sum.map(char::from));
        Self(text)
    }

    /// The text, to be shown to its owner.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What the database knows it by.
    pub fn hash(&self) -> Hash {
        Hash(sha256(&self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(lrd_…)")
    }
}

/// The SHA-256 of a token's text. The text has far more entropy than anybody can try, so it needs no salt and no
/// slow hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Of what a client sent; `None` if that cannot be a token by its length, prefix or characters. The checksum is not
    /// looked at, because it takes as long as the hash: [`is_token`] does, before anybody asks the database.
    pub fn of(text: &str) -> Option<Self> {
        has_shape(text).then(|| Self(sha256(text)))
    }

    /// Its bytes, as the table keeps them.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(…)")
    }
}

fn sha256(text: &str) -> [u8; 32] {
    Digest::of(text.as_bytes()).as_bytes().try_into().expect("a SHA-256 has 32 bytes")
}

/// Whether `text` has the form of a token, with the right checksum. It says nothing of whether there is such a token.
pub fn is_token(text: &str) -> bool {
    has_shape(text) && {
        let (random, sum) = text.as_bytes()[PREFIX.len()..].split_at(RANDOM);
        checksum(random) == *sum
    }
}

fn has_shape(text: &str) -> bool {
    text.len() == LENGTH
        && text.starts_with(PREFIX)
        && text.as_bytes()[PREFIX.len()..].iter().all(u8::is_ascii_alphanumeric)
}

/// CRC-32 in six base62 digits, the highest first.
fn checksum(random: &[u8]) -> [u8; CHECKSUM] {
    let mut rest = crc32(random);
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xEDB8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[index as usize] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 255) as usize])
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// `SplitMix64`: even enough to count with, and the same every time.
    #[derive(Default)]
    struct Even(AtomicU64);

    impl Random for Even {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill_with(|| {
                let state = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
                let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB).to_be_bytes()[0]
            });
        }
    }

    #[test]
    fn checksum_is_the_crc32_of_zip() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(&checksum(b""), b"000000");
    }

    #[test]
    fn a_generated_secret_is_a_token_and_one_typing_error_makes_it_none() {
        let secret = Secret::generate(&Even::default());
        let text = secret.reveal();
        assert_eq!(text.len(), 50);
        assert_eq!(Hash::of(text), Some(secret.hash()));
        for at in 0..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            assert!(!is_token(std::str::from_utf8(&bytes).unwrap()), "{at}");
        }
        for wrong in ["", "lrd_", &text[..49], &format!("{text}0"), &"é".repeat(25), "ghp_0123"] {
            assert!(!is_token(wrong), "{wrong}");
        }
    }

    #[test]
    fn every_character_is_as_likely_as_every_other() {
        // 10,000 of each are expected, give or take 100. Taking the rest of 256 by 62 would favour eight of them by a quarter.
        let random = Even::default();
        let mut seen = [0_u32; 256];
        for _ in 0..(62 * 250) {
            let secret = Secret::generate(&random);
            for byte in &secret.reveal().as_bytes()[PREFIX.len()..PREFIX.len() + RANDOM] {
                seen[usize::from(*byte)] += 1;
            }
        }
        let counts: Vec<_> = BASE62.iter().map(|byte| seen[usize::from(*byte)]).collect();
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least > 9_400 && *most < 10_600, "{least} to {most}");
    }

    #[test]
    fn debug_tells_nothing() {
        let secret = Secret::generate(&Even::default());
        let shown = format!("{secret:?} {:?}", secret.hash());
        assert!(!shown.contains(&secret.reveal()[4..12]), "{shown}");
    }
}
