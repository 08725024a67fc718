//! Identities of rows: `UUIDv7`, made by us, so that they sort by time and need no database to be handed out.

use std::{fmt, str::FromStr};

use crate::{error::Error, time::Time};

/// A `UUIDv7` (RFC 9562). The database keeps its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(uuid::Uuid);

impl Id {
    /// Makes an identity out of a time and ten random bytes.
    pub fn new(time: Time, random: [u8; 10]) -> Self {
        let millis = u64::try_from(time.micros() / 1_000).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        uuid::Uuid::try_parse(text).map(Self).map_err(|_| Error::invalid(format!("`{text}` is not an id")))
    }
}

impl serde::Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
