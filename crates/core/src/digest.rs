//! Digests of bytes, and the one place that chooses who computes them.

use std::{fmt, str::FromStr};

use sha2::digest::common::hazmat::SerializableState;

use crate::error::{Error, Result};

/// How a digest is computed. Both are registered where digests are specified (the image specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// 32 bytes; what Larder names its own bytes by.
    Sha256,
    /// 64 bytes; for clients that ask for it.
    Sha512,
}

impl Algorithm {
    /// `sha256` or `sha512`, as it stands before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(Error::invalid(format!(
                "`{text}` is not a digest algorithm that Larder knows: use sha256 or sha512"
            ))),
        }
    }
}

/// The SHA-256 or SHA-512 of some bytes, written `sha256:` and 64, or `sha512:` and 128 hex digits. Sorts as its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Value);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Value {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Digest {
    /// The SHA-256 of bytes that are all here.
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_as(Algorithm::Sha256, bytes)
    }

    /// Of bytes that are all here.
    pub fn of_as(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// From its raw bytes; `None` if there are more or fewer than the algorithm makes.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        Some(Self(match algorithm {
            Algorithm::Sha256 => Value::Sha256(bytes.try_into().ok()?),
            Algorithm::Sha512 => Value::Sha512(bytes.try_into().ok()?),
        }))
    }

    /// How it was computed.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Value::Sha256(_) => Algorithm::Sha256,
            Value::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The 64 or 128 lower-case hex digits alone.
    pub fn hex(&self) -> String {
        hex(self.as_bytes())
    }

    /// The 32 or 64 raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Value::Sha256(bytes) => bytes,
            Value::Sha512(bytes) => bytes,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let (algorithm, digits) = text.split_once(':')?;
            Self::from_bytes(algorithm.parse().ok()?, &unhex(digits)?)
        };
        read().ok_or_else(|| {
            Error::invalid(format!(
                "`{}` is not a digest: write sha256: and 64, or sha512: and 128 lower-case hex digits",
                text.escape_debug()
            ))
        })
    }
}

/// Lower-case hex digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

/// The bytes that lower-case hex digits stand for; `None` for anything else.
pub fn unhex(digits: &str) -> Option<Vec<u8>> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.as_bytes().chunks_exact(2).map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect()
}

/// Computes a [`Digest`] over bytes as they stream by. Where the hardware allows it, its state can be saved and restored,
/// so that an upload goes on in another process without reading again what came before.
///
/// Who computes (measured in MB/s over pieces of 256 KiB, both libraries in one run):
///
/// | | ring | sha2 |
/// |---|---|---|
/// | SHA-256 with SHA instructions | 1,200 to 1,900 | 1,600 to 1,700 |
/// | SHA-256 without | not measured | 410 |
/// | SHA-512 with AVX2 | 650 | 620 |
///
/// ring cannot save its state. So it computes only SHA-256 without SHA instructions, for which it has assembly (SSSE3, AVX,
/// AVX2) where sha2 has portable code; for SHA-512 it gains less than reading the bytes once more would cost.
pub struct Hasher(Engine);

enum Engine {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
    #[cfg(not(target_arch = "wasm32"))]
    Ring(ring::digest::Context),
}

#[cfg(not(target_arch = "wasm32"))]
fn has_sha_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("sha") && std::arch::is_x86_feature_detected!("sse4.1");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("sha2");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

impl Hasher {
    /// Nothing hashed yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            #[cfg(not(target_arch = "wasm32"))]
            Algorithm::Sha256 if !has_sha_instructions() => Self::with_ring(),
            Algorithm::Sha256 => Self(Engine::Sha256(sha2::Sha256::default())),
            Algorithm::Sha512 => Self(Engine::Sha512(sha2::Sha512::default())),
        }
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn with_ring() -> Self {
        Self(Engine::Ring(ring::digest::Context::new(&ring::digest::SHA256)))
    }

    /// What it computes.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Engine::Sha512(_) => Algorithm::Sha512,
            _ => Algorithm::Sha256,
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Engine::Sha256(hasher) => sha2::Digest::update(hasher, bytes),
            Engine::Sha512(hasher) => sha2::Digest::update(hasher, bytes),
            #[cfg(not(target_arch = "wasm32"))]
            Engine::Ring(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        Digest(match self.0 {
            Engine::Sha256(hasher) => Value::Sha256(sha2::Digest::finalize(hasher).into()),
            Engine::Sha512(hasher) => Value::Sha512(sha2::Digest::finalize(hasher).into()),
            #[cfg(not(target_arch = "wasm32"))]
            Engine::Ring(hasher) => {
                let mut bytes = [0; 32];
                bytes.copy_from_slice(hasher.finish().as_ref());
                Value::Sha256(bytes)
            }
        })
    }

    /// All that [`restore`](Self::restore) needs to go on from here, the bytes of a block that is not full yet among it.
    /// `None` where the fastest way to compute cannot be interrupted.
    pub fn save(&self) -> Option<Vec<u8>> {
        match &self.0 {
            Engine::Sha256(hasher) => Some(hasher.serialize().to_vec()),
            Engine::Sha512(hasher) => Some(hasher.serialize().to_vec()),
            #[cfg(not(target_arch = "wasm32"))]
            Engine::Ring(_) => None,
        }
    }

    /// Goes on from what [`save`](Self::save) gave on any machine; `None` if `state` is not that.
    pub fn restore(algorithm: Algorithm, state: &[u8]) -> Option<Self> {
        Some(Self(match algorithm {
            Algorithm::Sha256 => Engine::Sha256(restored(state)?),
            Algorithm::Sha512 => Engine::Sha512(restored(state)?),
        }))
    }
}

fn restored<T: SerializableState>(state: &[u8]) -> Option<T> {
    T::deserialize(state.try_into().ok()?).ok()
}

/// Computes SHA-1, which some protocols still put beside a file. Never used where safety depends on it.
// Measured with SHA instructions: 0.55 s of CPU per GB; ring, which has no assembly for it, takes 1.9 s.
#[derive(Clone)]
pub struct Sha1(sha1::Sha1);

impl Sha1 {
    /// Nothing hashed yet.
    pub fn new() -> Self {
        Self(sha1::Digest::new())
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        sha1::Digest::update(&mut self.0, bytes);
    }

    /// 40 lower-case hex digits.
    pub fn finish(self) -> String {
        hex(&sha1::Digest::finalize(self.0))
    }
}

impl Default for Sha1 {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    #[test]
    fn known_digests() {
        assert_eq!(
            Digest::of(b"abc").to_string(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            Digest::of_as(Algorithm::Sha512, b"abc").to_string(),
            "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        );
        let mut sha1 = Sha1::new();
        sha1.update(b"a");
        sha1.update(b"bc");
        assert_eq!(sha1.finish(), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }

    #[test]
    fn only_the_canonical_text_is_read() {
        for algorithm in BOTH {
            let digest = Digest::of_as(algorithm, b"abc");
            assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
            assert_eq!(digest.algorithm(), algorithm);
            assert_eq!(algorithm.as_str().parse::<Algorithm>().unwrap(), algorithm);
            let longer = format!("{digest}00");
            for wrong in [&digest.hex(), &digest.to_string().to_uppercase(), &longer, &format!("md5:{}", digest.hex())]
            {
                assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
            }
        }
        let crossed = format!("sha512:{}", Digest::of(b"abc").hex());
        for wrong in ["", "sha256:", "sha256:00", "sha512:", &crossed] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn digests_sort_as_their_texts() {
        let mut digests: Vec<Digest> =
            (0_u8..20).flat_map(|seed| BOTH.map(|algorithm| Digest::of_as(algorithm, &[seed]))).collect();
        digests.sort();
        assert!(digests.is_sorted_by_key(Digest::to_string));
    }

    #[test]
    fn what_is_not_a_state_is_not_restored() {
        for algorithm in BOTH {
            let mut state = engine(algorithm).save().unwrap();
            assert!(Hasher::restore(algorithm, &state).is_some());
            assert!(Hasher::restore(algorithm, &state[1..]).is_none());
            // More bytes in a partial block than a block has.
            state.fill(255);
            assert!(Hasher::restore(algorithm, &state).is_none());
        }
    }

    /// The one that can be saved, whatever this machine computes with.
    fn engine(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => Engine::Sha256(sha2::Sha256::default()),
            Algorithm::Sha512 => Engine::Sha512(sha2::Sha512::default()),
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    #[test]
    fn ring_computes_the_same_and_cannot_be_saved() {
        let mut hasher = Hasher::with_ring();
        hasher.update(b"abc");
        assert!(hasher.save().is_none());
        let mut other = engine(Algorithm::Sha256);
        other.update(b"abc");
        assert_eq!(hasher.finish(), other.finish());
    }

    proptest! {
        #[test]
        fn a_state_goes_on_wherever_it_was_saved(
            bytes in proptest::collection::vec(any::<u8>(), 0..1000),
            mut cuts in proptest::collection::vec(0_usize..1000, 0..6),
        ) {
            cuts.retain(|cut| *cut <= bytes.len());
            cuts.sort_unstable();
            for algorithm in BOTH {
                let mut hasher = engine(algorithm);
                let mut from = 0;
                for cut in cuts.iter().copied().chain([bytes.len()]) {
                    hasher.update(&bytes[from..cut]);
                    from = cut;
                    hasher = Hasher::restore(algorithm, &hasher.save().unwrap()).unwrap();
                    prop_assert_eq!(hasher.algorithm(), algorithm);
                }
                prop_assert_eq!(hasher.finish(), Digest::of_as(algorithm, &bytes));
            }
        }
    }
}
