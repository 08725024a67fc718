//! Bringing packages in: Git repositories become versions, trees become artifacts, secrets are sealed and opened.
//!
//! The way of a pushed tag: [`sync`] lists the refs, fetches the changed ones over the [`git`] port, shows their
//! manifests to every format, lets [`plan`] decide what to write, and writes it as one batch. The way of a download:
//! [`artifacts`] builds what was never built. [`manage`] adds and removes sources, [`change`] changes them, [`registry`] knows those that are other
//! registries, [`forges`] those that list repositories, [`packages`] takes packages away, [`webhooks`] believes forges.

pub mod artifacts;
pub mod change;
pub mod credentials;
pub mod fetch;
pub mod flight;
pub mod folders;
pub mod forges;
pub mod git;
mod intake;
pub mod manage;
pub mod packages;
pub mod plan;
pub mod policies;
pub mod probe;
pub mod registry;
pub mod reservations;
pub mod settings;
pub mod sync;
pub mod turns;
pub mod url;
pub mod vault;
pub mod webhooks;
pub mod work;

use std::sync::Arc;

use larder_blobs::Blobs;
use larder_core::format::Format;
use larder_db::Db;

use crate::{artifacts::Builds, git::Git, vault::Vault};

/// What one source may cost. Every limit is documented in the book and can be changed in `larder.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Branches and tags that are read of one source.
    pub refs: usize,
    /// Bytes of metadata that all visible versions of one source have together: a document holds that of a package in
    /// memory.
    pub metadata: u64,
    /// Bytes of one artifact.
    pub artifact: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { refs: 10_000, metadata: 64 * 1024 * 1024, artifact: 512 * 1024 * 1024 }
    }
}

/// Everything about sources. Cheap to clone.
#[derive(Clone)]
pub struct Sources {
    db: Db,
    blobs: Blobs,
    git: Arc<dyn Git>,
    vault: Vault,
    formats: Arc<[Arc<dyn Format>]>,
    limits: Limits,
    allow_local: bool,
    builds: Builds,
}

impl Sources {
    /// Over its ports. `allow_local` permits `file://` URLs and unencrypted hosts.
    pub fn new(
        db: Db,
        blobs: Blobs,
        git: Arc<dyn Git>,
        vault: Vault,
        formats: Arc<[Arc<dyn Format>]>,
        limits: Limits,
        allow_local: bool,
    ) -> Self {
        Self { db, blobs, git, vault, formats, limits, allow_local, builds: Builds::default() }
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// The formats whose packages are looked for.
    pub fn formats(&self) -> &[Arc<dyn Format>] {
        &self.formats
    }

    /// The format of this id.
    pub fn format(&self, id: &str) -> Option<&Arc<dyn Format>> {
        self.formats.iter().find(|format| format.id() == id)
    }

    /// Where secrets are sealed and opened.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }
}
