//! The room of Composer (PHP): its names, versions, documents and routes.
//!
//! Nothing outside this crate knows what Composer is, except the list of formats of the program. [`Composer`] is what the
//! rest of the house sees of it; [`routes`] is what clients see.

pub mod advisories;
mod archive;
pub mod branch;
pub mod constraint;
pub mod dist;
mod documents;
mod downloads;
pub mod entry;
mod feed;
pub mod filter;
pub mod ingest;
pub mod legacy;
pub mod lockfile;
pub mod names;
mod notify;
pub mod offers;
pub mod policy;
pub mod publish;
pub mod render;
pub mod routes;
mod search;
pub mod upstream;
pub mod version;
pub mod versions;

use std::cmp::Ordering;

use async_trait::async_trait;
use larder_core::{
    Error, Result, Time,
    format::{Format, FromTree, Proxied, Release, Skipped},
    tree::{ByteSink, Snapshot, TreeStream},
};

pub use offers::Repository;
pub use routes::ComposerRoom;
pub use upstream::Proxy;

/// Its id in grants, tables and commands.
pub const ID: &str = "composer";

/// The name of the one artifact of a version.
pub const DIST: &str = "dist.zip";

/// Composer as a format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Composer;

impl Format for Composer {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "Composer (PHP)"
    }

    fn artifact(&self) -> &'static str {
        DIST
    }

    fn trees(&self) -> Option<&dyn FromTree> {
        Some(self)
    }

    fn proxied(&self) -> Option<Proxied> {
        // A name stands in the manifest inside each dist.
        Some(Proxied { prefix: false, links: true })
    }

    fn compare(&self, a: &str, b: &str) -> Ordering {
        version::compare(a, b)
    }

    fn package_name(&self, name: &str) -> Result<String> {
        let name = name.to_ascii_lowercase();
        names::check_package(&name).map_err(|error| Error::invalid(error.to_string()))?;
        Ok(name)
    }

    fn install_snippet(&self, public_url: &str, name: &str) -> String {
        format!("composer config repositories.larder composer {public_url}\ncomposer require {name}")
    }
}

#[async_trait]
impl FromTree for Composer {
    fn manifests(&self) -> &'static [&'static str] {
        &[ingest::MANIFEST]
    }

    fn take_in(&self, snapshot: &Snapshot<'_>) -> std::result::Result<Release, Skipped> {
        ingest::take_in(snapshot)
    }

    async fn pack(&self, committed: Time, files: TreeStream<'_>, out: &mut dyn ByteSink) -> Result<()> {
        dist::pack(committed, files, out).await
    }
}
