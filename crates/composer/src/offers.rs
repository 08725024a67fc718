//! What of a package may be had, and what not and why: the one place where its versions are collected from wherever they
//! come and judged. The metadata, a download, an explanation and the check of a lock file all ask here, so that none of
//! them can say anything else than the others.

use larder_blobs::Blobs;
use larder_core::{Id, Result, Time};
use larder_db::{
    Db,
    packages::{self, Package, Version},
    sources as source_rows,
};
use larder_sources::Sources;
use serde_json::{Map, Value};

use crate::{
    DIST, ID,
    entry::Entry,
    render::{self, Dist, Field, Told},
    version::Stability,
};

/// The kind of dist that is made here.
pub(crate) const ZIP: &str = "zip";

/// The packages of this format, with everything that has a say in them. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    pub(crate) db: Db,
    pub(crate) blobs: Blobs,
    pub(crate) sources: Sources,
    /// Where clients reach it, without a slash at its end.
    pub(crate) public_url: String,
}

/// Which versions of a package are meant: clients ask for those that stay and for branches apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those that stay.
    Tagged,
    /// Those that move.
    Branches,
    /// Both.
    All,
}

impl Part {
    /// What a document has.
    pub fn of_document(dev: bool) -> Self {
        if dev { Self::Branches } else { Self::Tagged }
    }

    /// Whether a version, in its normal form, is of this part.
    pub fn has(self, version: &str) -> bool {
        let dev = Stability::of(version) == Stability::Dev;
        match self {
            Self::Tagged => !dev,
            Self::Branches => dev,
            Self::All => true,
        }
    }
}

/// A version that there is.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Normal form.
    pub version: String,
    /// As its author wrote it.
    pub display: String,
    /// What its bytes are made from, as lock files name it.
    pub reference: Option<String>,
    /// What stands for its bytes in our addresses; `None` if it has none, or they are not served from here.
    pub key: Option<String>,
    /// When it was released, if anybody knows.
    pub released: Option<Time>,
    /// Its row, if it has one.
    pub row: Option<Id>,
    /// SHA-1 of its bytes in hex, if they are here.
    pub sha1: Option<String>,
    /// What its author, or the registry that it comes from, says of it.
    pub entry: Entry,
    /// What a client is told beyond that.
    told: Told,
}

impl Offer {
    /// As a client is told it.
    pub fn told(&self) -> Result<Entry> {
        render::told(self.entry.clone(), &self.told)
    }
}

/// The versions of a package.
#[derive(Clone, Debug)]
pub struct Offers {
    /// The package.
    pub package: Package,
    /// Its versions, the newest first.
    pub versions: Vec<Offer>,
}

impl Offers {
    /// Those that may be had, as clients are told them.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        self.versions.iter().map(Offer::told).collect()
    }

    /// What a document says beside the versions.
    pub fn extras(&self) -> Map<String, Value> {
        Map::new()
    }
}

impl Repository {
    /// At `public_url`, without a slash at its end.
    pub fn new(db: Db, blobs: Blobs, sources: Sources, public_url: String) -> Self {
        Self { db, blobs, sources, public_url }
    }

    /// The package of this name, if something of it is here.
    pub async fn find(&self, name: &str) -> Result<Option<Package>> {
        packages::find(&self.db, ID, name).await
    }

    /// What is here of a package.
    pub async fn offers(&self, package: Package, part: Part) -> Result<Offers> {
        let mut versions = self.own(&package, part).await?;
        versions.sort_by(|a, b| render::newest_first(&a.version, &b.version));
        Ok(Offers { package, versions })
    }

    /// The versions of a package that was taken in here.
    async fn own(&self, package: &Package, part: Part) -> Result<Vec<Offer>> {
        let source_url = self.shown_url(package.source_id).await?;
        let versions = packages::visible(&self.db, package.id, DIST).await?;
        let versions = versions.into_iter().filter(|version| part.has(&version.version));
        versions.map(|version| self.own_offer(package, version, source_url.as_ref())).collect()
    }

    fn own_offer(&self, package: &Package, row: Version, source_url: Option<&String>) -> Result<Offer> {
        let dist = Dist {
            kind: ZIP.to_owned(),
            url: self.dist_url(&package.name, &row.version, &row.reference, ZIP),
            reference: Some(row.reference.clone()),
            shasum: row.sha1.clone().unwrap_or_default(),
        };
        // A clone would be the whole repository, and not the folder.
        let source_url = source_url.filter(|_| row.folder.is_empty());
        let source = source_url.map_or(Field::Hidden, |url| Field::Set((url.clone(), row.reference.clone())));
        Ok(Offer {
            told: Told { dist: Field::Set(dist), source, time: Field::Set(row.released_at), abandoned: Field::Kept },
            entry: Entry::parse(&row.metadata)?,
            key: Some(row.reference.clone()),
            reference: Some(row.reference),
            version: row.version,
            display: row.display,
            released: Some(row.released_at),
            row: Some(row.id),
            sha1: row.sha1,
        })
    }

    fn dist_url(&self, package: &str, version: &str, key: &str, kind: &str) -> String {
        format!("{}{}", self.public_url, render::dist_path(package, version, key, kind))
    }

    /// Where a package's Git repository is, if clients may know.
    async fn shown_url(&self, source: Option<Id>) -> Result<Option<String>> {
        let Some(id) = source else { return Ok(None) };
        Ok(source_rows::find(&self.db, &id.to_string()).await?.as_ref().and_then(Sources::shown_url))
    }
}
