//! The one error type that crosses crate walls, and the small set of kinds that protocol faces map from.
//!
//! A crate may have finer errors inside; at its edge it turns them into [`Error`]. What `Display` prints
//! is meant for whoever asked (it says what happened, to what, and what to do); the `source` is for the log only.

use std::fmt;

/// What sort of failure this is. A protocol's face turns each kind into its own status and code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The input is wrong; the same input will always be refused.
    Invalid,
    /// Nobody was recognised: no token, or an unknown, expired or revoked one.
    Unauthenticated,
    /// Recognised, but not allowed, and the thing's existence is no secret to the asker.
    Forbidden,
    /// There is no such thing, or the asker may not know of it.
    NotFound,
    /// It was here and is gone for good.
    Gone,
    /// It clashes with what is there: a taken name, different bytes under an immutable name, a lost race.
    Conflict,
    /// Larger than a documented, configurable limit.
    TooLarge,
    /// The store or the database has no room left.
    Full,
    /// Somebody else (a Git host, an upstream registry, the object store) failed or is not reachable.
    Upstream,
    /// It took longer than a documented limit.
    Timeout,
    /// Not now: overloaded, starting, or shutting down. Trying again may help.
    Unavailable,
    /// Stored bytes are missing or differ from their digest.
    Damaged,
    /// Our fault. The message says nothing of the inside; the log does.
    Internal,
}

/// A failure as the asker may see it, with its inside for the log.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything that can fail across a crate wall.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a message for the asker: what happened, to what, and what to do next.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Adds the inside, which only the log sees.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A failure of our own: `doing` is for the log (`"reading the package list"`), the asker learns nothing of it.
    pub fn internal(doing: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(Kind::Internal, format!("Larder failed while {doing}; its log says why")).caused_by(source)
    }

    /// Shorthand for [`Kind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// Shorthand for [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Shorthand for [`Kind::Conflict`].
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, message)
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The text for the asker.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the same operation may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        matches!(self.kind, Kind::Full | Kind::Upstream | Kind::Timeout | Kind::Unavailable)
    }

    /// The message followed by every cause, for the log.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
