//! What a format's room, the API and the admin panel look like to the site.

use std::sync::Arc;

use async_trait::async_trait;
use larder_core::{
    Error, Result,
    grant::{Action, Principal},
};

use crate::{
    error,
    message::{Request, Response},
};

/// One protocol at its addresses.
#[async_trait]
pub trait Room: Send + Sync {
    /// Where it lives: exact paths (`/packages.json`) and prefixes that end in a slash (`/p2/`). The longest match of
    /// all rooms wins.
    fn mounts(&self) -> &'static [&'static str];

    /// Whether somebody who shows no credentials may come to this address even where anonymous may do nothing, for
    /// example because the credentials are in the body. Wrong credentials are refused everywhere, before any room is asked.
    fn admits(&self, request: &Request) -> bool {
        let _ = request;
        false
    }

    /// Whether it recognises whoever comes by itself, by secrets that are no tokens. The site then looks at no
    /// credentials, and `asker` is anonymous, who may do nothing; what the room answers with 401 is an access refused.
    fn recognises(&self) -> bool {
        false
    }

    /// Answers one request. `asker` has been recognised; what it may see is for the room to decide. It showed no
    /// credentials at all if it has no token and is not limited. What the room writes into `access` becomes the line of
    /// the access log, also when it fails.
    async fn handle(&self, request: &mut Request, asker: &Arc<Principal>, access: &mut AccessNote) -> Result<Response>;

    /// How this protocol says that something went wrong with `request`, also for what the site finds wrong under its
    /// mounts. By then the request may have been handled, and its body taken.
    fn face(&self, request: &Request, error: &Error) -> Response {
        let _ = request;
        error::face(error)
    }
}

/// What a room knows of an access, for the access log. Nothing is recorded until [`action`](Self::action) is set, but what
/// a room refuses that [`recognises`](Room::recognises) by itself.
#[derive(Clone, Debug, Default)]
pub struct AccessNote {
    /// What was done.
    pub action: Option<Action>,
    /// The id of the format.
    pub format: &'static str,
    /// The package. An `Arc`, so that a room's cached name costs a reference count.
    pub package: Option<Arc<str>>,
    /// The version, if the access was about one.
    pub version: Option<Arc<str>>,
    /// Whether an artifact was sent: a download, rather than metadata.
    pub download: bool,
    /// Whether that counts as one download of the version. A version of several artifacts is counted with one of them.
    pub counts: bool,
}
