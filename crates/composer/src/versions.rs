//! Which versions something is about: a constraint together with the text that it was written as, because that is what
//! people and clients are shown.

use std::fmt;

use larder_core::Error;
use serde::{Deserialize, Serialize};

use crate::{constraint::Constraint, version::Version};

/// A constraint as it was written. Two are equal if they are written the same.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Versions {
    text: String,
    constraint: Constraint,
}

impl Versions {
    /// Every version.
    pub fn all() -> Self {
        Self { text: "*".to_owned(), constraint: Constraint::Any }
    }

    /// Whether this version is one of them.
    pub fn have(&self, version: &Version) -> bool {
        self.constraint.matches(version)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Default for Versions {
    fn default() -> Self {
        Self::all()
    }
}

impl PartialEq for Versions {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Versions {}

impl std::str::FromStr for Versions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let constraint = Constraint::parse(text).map_err(|error| {
            let shown: String = text.chars().take(80).collect();
            Error::invalid(format!(
                "`{shown}` is not a version constraint: {error}. Write something like <1.2.3, ^2.0 or *"
            ))
        })?;
        Ok(Self { text: text.to_owned(), constraint })
    }
}

impl TryFrom<String> for Versions {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Versions> for String {
    fn from(versions: Versions) -> Self {
        versions.text
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
