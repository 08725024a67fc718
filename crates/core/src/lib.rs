//! The words of Larder as types, and the smallest ports. No I/O, no clock, no randomness of its own.
//!
//! Everything above stands on this crate: names, times, digests, grants, the error kinds that every
//! protocol face maps from, the [`Format`](format::Format) trait that a room implements, and the
//! [`Host`](host::Host) through which time, randomness and background work are passed in.

pub mod bell;
pub mod digest;
pub mod error;
pub mod format;
pub mod grant;
pub mod host;
pub mod id;
pub mod pattern;
pub mod time;
pub mod tree;

pub use bell::Bell;
pub use digest::Digest;
pub use error::{Error, Kind, Result};
pub use host::Host;
pub use id::Id;
pub use time::Time;
