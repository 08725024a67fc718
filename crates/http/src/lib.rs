//! The HTTP kit: everything that is the same for every protocol that Larder speaks.
//!
//! A [`Site`] finds out who is asking, hands the request to the [`Room`] that is mounted at its path, and records the
//! access. A room parses method, path and query into its own endpoints, and answers with [`Document`]s (metadata:
//! rendered once, compressed once, conditional), [`File`]s (blobs: ranges, immutable) or errors, for which there is a
//! default face. Nothing here listens on a socket: a host (an operating system, the edge) turns what it received into
//! [`Received`], and the [`Response`] into bytes.

mod body;
mod conditional;
mod credentials;
mod document;
mod encoding;
pub mod error;
mod file;
mod message;
mod path;
mod range;
mod readiness;
mod room;
mod site;
pub mod stale;

pub use body::{Body, RequestBody};
pub use document::Document;
pub use file::File;
pub use message::{Request, RequestId, Response};
pub use path::{Query, Segments};
pub use readiness::{Part, Readiness};
pub use room::{AccessNote, Room};
pub use site::{Access, AccessLog, Authenticator, Received, Site};
