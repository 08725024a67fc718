//! Packages of other registries: who asks upstreams for what, and what is kept of their answers.

mod address;
mod ask;
mod client;
mod package;
mod root;
mod whole;

use larder_core::{Error, Kind};

/// Why an upstream gives nothing.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// It does not have that.
    Absent,
    /// It does not give that to us.
    Refused(String),
    /// It has enough of us; after so many seconds it may not any more.
    Busy(String, u64),
    /// Anything else.
    Failed(Kind, String),
}

impl Failure {
    /// In one line.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Absent => "it is not there any more",
            Self::Refused(message) | Self::Busy(message, _) | Self::Failed(_, message) => message,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.kind() {
            // What it sends or where it leads to is refused; whoever asked is not to blame.
            Kind::Invalid | Kind::TooLarge => Self::Failed(Kind::Upstream, error.message().to_owned()),
            kind => Self::Failed(kind, error.message().to_owned()),
        }
    }
}
