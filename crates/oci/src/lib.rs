//! The room of OCI: container images, and every other artifact of the distribution specification.
//!
//! A repository is a package, a manifest is a version whose reference is its digest, a tag is a pointer, and what a
//! manifest needs are its artifacts: so one rule says which blobs are needed, for this format as for every other.
//! [`Oci`] is what the rest of the house sees of it; [`routes`] is what clients see; [`Registry`] has the operations, for
//! clients and for the command line.

mod answer;
mod call;
mod content;
mod endpoint;
pub mod error;
mod manifests;
pub mod model;
pub mod names;
pub mod policy;
mod referrers;
pub mod retention;
pub mod routes;
mod served;
mod shelf;
mod tags;
pub mod token;
mod uploads;
mod upstream;
pub mod usage;

use std::cmp::Ordering;

use larder_blobs::Blobs;
use larder_core::{
    Error, Host, Result,
    format::{Format, Proxied},
};
use larder_db::Db;
use larder_sources::policies::Book;

pub use routes::OciRoom;
pub use token::Gate;
pub use upstream::Proxy;

/// Its id in grants, tables and commands.
pub const ID: &str = "oci";

/// The name of the artifact that is a manifest's own bytes.
pub const MANIFEST: &str = "manifest";

/// OCI as a format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Oci;

impl Format for Oci {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "Docker and OCI images"
    }

    fn artifact(&self) -> &'static str {
        MANIFEST
    }

    fn proxied(&self) -> Option<Proxied> {
        Some(Proxied { prefix: true, links: false })
    }

    fn compare(&self, a: &str, b: &str) -> Ordering {
        // Digests have no order of their own.
        a.cmp(b)
    }

    fn package_name(&self, name: &str) -> Result<String> {
        names::check_name(name).map_err(|_| Error::invalid(format!("`{name}` is not a repository name")))?;
        Ok(name.to_owned())
    }

    fn install_snippet(&self, public_url: &str, name: &str) -> String {
        let host = public_url.split_once("://").map_or(public_url, |(_, host)| host);
        format!("docker login {host}\ndocker pull {host}/{name}")
    }
}

/// The operations on repositories. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(crate) db: Db,
    pub(crate) blobs: Blobs,
    pub(crate) quotas: usage::Quotas,
    pub(crate) book: Book<policy::Rules>,
}

impl Registry {
    /// Over a database and the blobs that belong to it.
    pub fn new(db: Db, blobs: Blobs) -> Self {
        Self { book: Book::new(db.clone()), db, blobs, quotas: usage::Quotas::default() }
    }

    pub(crate) fn host(&self) -> &Host {
        self.db.host()
    }
}
