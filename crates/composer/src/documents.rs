//! The documents of the room, rendered when something changes and kept as the bytes that are sent.
//!
//! A document is rendered once for all who wait for it. A change that arrives while it is rendered makes it render again,
//! so that no cache ever keeps what was read before the change.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use larder_auth::View;
use larder_core::{Digest, Error, Id, Result, Time};
use larder_db::{
    changes::Change,
    packages::{self, Package},
    stamps,
};
use larder_http::{Document, File};
use quick_cache::{Weighter, sync::Cache};
use serde_json::Map;

use crate::{
    ID,
    entry::Entry,
    offers::{Part, Repository},
    render::{self, Available, Root},
};

/// Bytes that all documents in memory may have together, variants aside.
const DOCUMENT_BYTES: u64 = 64 * 1024 * 1024;

/// How many dists are remembered by their path.
const DISTS: usize = 10_000;

/// Up to this many bytes of metadata a view gets everything with `packages.json`, in one request.
const INLINE_BYTES: usize = 200 * 1024;

/// Up to this many names `packages.json` lists them; above it tells patterns.
const LISTED_NAMES: usize = 5_000;

/// How many packages are read from the database at once.
const PAGE: i64 = 1_000;

/// How often a document is rendered again because something changed meanwhile, before it is sent uncached.
const ATTEMPTS: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// A package's tagged versions, or its branches.
    Package(String, bool),
    /// `packages.json` of a view.
    Root(Arc<str>),
    /// Every package with its summary, for list and search.
    Catalogue,
}

/// A package's document.
pub(crate) struct PackageDocument {
    /// The package's name.
    pub(crate) name: Arc<str>,
    /// What is sent.
    pub(crate) document: Document,
}

/// A dist that was asked for before: enough to send it again without the database.
pub(crate) struct Dist {
    /// How it is sent.
    pub(crate) file: File,
    /// Its blob.
    pub(crate) digest: Digest,
    /// Its version.
    pub(crate) id: Id,
    /// The name of its package.
    pub(crate) package: Arc<str>,
    /// Its version in normal form.
    pub(crate) version: Arc<str>,
}

/// Every package of this format with its summary.
pub(crate) type Catalogue = Vec<(String, serde_json::Value)>;

#[derive(Clone)]
enum Kept {
    Package(Arc<PackageDocument>),
    Root(Arc<Document>),
    Catalogue(Arc<Catalogue>),
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Kept> for ByBytes {
    fn weight(&self, _: &Key, kept: &Kept) -> u64 {
        let bytes = match kept {
            Kept::Package(package) => package.document.bytes().len(),
            Kept::Root(document) => document.bytes().len(),
            Kept::Catalogue(catalogue) => catalogue.len() * 300,
        };
        bytes as u64 + 1_000
    }
}

/// The documents in memory.
pub(crate) struct Documents {
    repository: Repository,
    kept: Cache<Key, Kept, ByBytes>,
    dists: Cache<String, Arc<Dist>>,
    /// Grows with every change of a package.
    changes: AtomicU64,
}

impl Documents {
    pub(crate) fn new(repository: Repository) -> Self {
        Self {
            repository,
            kept: Cache::with_weighter(1_000, DOCUMENT_BYTES, ByBytes),
            dists: Cache::new(DISTS),
            changes: AtomicU64::new(0),
        }
    }

    /// Forgets what a change makes stale.
    pub(crate) fn on_change(&self, change: &Change) {
        match change {
            Change::Everything => {
                self.changes.fetch_add(1, Ordering::SeqCst);
                self.kept.clear();
                self.dists.clear();
            }
            Change::Topic(topic) => {
                let mut parts = topic.splitn(3, ':');
                let (Some("package"), Some(ID), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
                    return;
                };
                self.changes.fetch_add(1, Ordering::SeqCst);
                self.kept.remove(&Key::Package(name.to_owned(), false));
                self.kept.remove(&Key::Package(name.to_owned(), true));
                self.kept.retain(|key, _| matches!(key, Key::Package(..)));
                let prefix = format!("/dist/{name}/");
                self.dists.retain(|path, _| !path.starts_with(&prefix));
            }
        }
    }

    /// How many changes of packages there were.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// A dist that was found before, by its decoded path.
    pub(crate) fn known_dist(&self, path: &str) -> Option<Arc<Dist>> {
        self.dists.get(path)
    }

    /// Remembers a dist by its decoded path, unless a package changed since there were `before` changes: what was read
    /// then may not be true any more.
    pub(crate) fn remember_dist(&self, path: &str, dist: &Arc<Dist>, before: u64) {
        self.dists.insert(path.to_owned(), Arc::clone(dist));
        if self.changes() != before {
            self.dists.remove(path);
        }
    }

    /// Forgets a dist whose bytes turned out to be lost.
    pub(crate) fn forget_dist(&self, path: &str) {
        self.dists.remove(path);
    }

    /// `p2/NAME.json`, or `p2/NAME~dev.json`; `None` if there is no such package.
    pub(crate) async fn package(&self, name: &str, dev: bool) -> Result<Option<Arc<PackageDocument>>> {
        let key = Key::Package(name.to_owned(), dev);
        let kept = self.kept_or(&key, || async {
            let package = packages::find(&self.repository.db, ID, name).await?.ok_or(None)?;
            Ok(Kept::Package(Arc::new(self.render_package(package, dev).await?)))
        });
        match kept.await {
            Ok(Kept::Package(document)) => Ok(Some(document)),
            Ok(_) => Err(mixed_up()),
            Err(Missing(None)) => Ok(None),
            Err(Missing(Some(error))) => Err(error),
        }
    }

    /// `packages.json` of a view.
    pub(crate) async fn root(&self, view: &View) -> Result<Arc<Document>> {
        let key = Key::Root(Arc::clone(view.key()));
        let kept = self.kept_or(&key, || async { Ok(Kept::Root(Arc::new(self.render_root(view).await?))) });
        match kept.await {
            Ok(Kept::Root(document)) => Ok(document),
            Err(Missing(Some(error))) => Err(error),
            _ => Err(mixed_up()),
        }
    }

    /// Every package with its summary.
    pub(crate) async fn catalogue(&self) -> Result<Arc<Catalogue>> {
        let kept =
            self.kept_or(&Key::Catalogue, || async { Ok(Kept::Catalogue(Arc::new(self.read_catalogue().await?))) });
        match kept.await {
            Ok(Kept::Catalogue(catalogue)) => Ok(catalogue),
            Err(Missing(Some(error))) => Err(error),
            _ => Err(mixed_up()),
        }
    }

    /// What is kept under `key`, or what `render` gives, once for all who wait.
    async fn kept_or<F>(&self, key: &Key, render: impl Fn() -> F + Send) -> Result<Kept, Missing>
    where
        F: Future<Output = Result<Kept, Missing>> + Send,
    {
        if let Some(kept) = self.kept.get(key) {
            return Ok(kept);
        }
        for _ in 0..ATTEMPTS {
            let before = self.changes.load(Ordering::SeqCst);
            let kept = self.kept.get_or_insert_async(key, render()).await?;
            if self.changes.load(Ordering::SeqCst) == before {
                return Ok(kept);
            }
            self.kept.remove(key);
        }
        render().await
    }

    async fn render_package(&self, package: Package, dev: bool) -> Result<PackageDocument> {
        let path = format!("/p2/{}{}.json", package.name, if dev { "~dev" } else { "" });
        let name = Arc::from(package.name.as_str());
        let offers = self.repository.offers(package, Part::of_document(dev)).await?;
        let bytes = render::package_document(&name, &offers.entries()?, offers.extras())?;
        Ok(PackageDocument { name, document: self.stamped(&path, "", bytes).await })
    }

    async fn render_root(&self, view: &View) -> Result<Document> {
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let page = packages::list(&self.repository.db, ID, &after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after.clone_from(&last.name);
            seen.extend(page.into_iter().filter(|package| view.sees(&package.name)));
        }
        let names: Vec<String> = seen.iter().map(|package| package.name.clone()).collect();
        let inline = self.inline(&seen).await?;
        let available = if inline.is_some() || names.len() <= LISTED_NAMES {
            Available { names, patterns: Vec::new() }
        } else {
            Available { names: Vec::new(), patterns: vendors(&seen) }
        };
        let root = Root { inline: inline.unwrap_or_default(), available: Some(available), extras: Map::new() };
        let bytes = render::root_document(&self.repository.public_url, root)?;
        Ok(self.stamped("/packages.json", view.key(), bytes).await)
    }

    /// Every version of every package, if that is little enough for one document.
    async fn inline(&self, seen: &[Package]) -> Result<Option<Vec<(String, Vec<Entry>)>>> {
        let mut inline = Vec::with_capacity(seen.len());
        let mut size = 0;
        for package in seen {
            let entries = self.repository.offers(package.clone(), Part::All).await?.entries()?;
            size += entries.iter().map(Entry::len).sum::<usize>();
            if size > INLINE_BYTES {
                return Ok(None);
            }
            inline.push((package.name.clone(), entries));
        }
        Ok(Some(inline))
    }

    async fn read_catalogue(&self) -> Result<Catalogue> {
        let mut catalogue = Catalogue::new();
        let mut after = String::new();
        loop {
            let page = packages::list(&self.repository.db, ID, &after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(catalogue) };
            after.clone_from(&last.name);
            catalogue.extend(page.into_iter().map(|package| {
                let summary = serde_json::from_str(&package.summary).unwrap_or_default();
                (package.name, summary)
            }));
        }
    }

    /// A document with the `Last-Modified` that belongs to these bytes in this view. Without a database to remember it
    /// there is none, and the client asks for the whole each time.
    async fn stamped(&self, path: &str, view: &str, bytes: Vec<u8>) -> Document {
        let stamp = match stamps::stamp(&self.repository.db, path, view, Digest::of(&bytes)).await {
            Ok(seconds) => Some(Time::from_seconds(seconds)),
            Err(error) => {
                tracing::warn!(path, error = %error.chain(), "a document is sent without Last-Modified");
                None
            }
        };
        Document::new("application/json", bytes, stamp)
    }
}

/// Why there is nothing to keep: an error, or simply nothing.
struct Missing(Option<Error>);

impl From<Error> for Missing {
    fn from(error: Error) -> Self {
        Self(Some(error))
    }
}

impl From<Option<Error>> for Missing {
    fn from(error: Option<Error>) -> Self {
        Self(error)
    }
}

fn mixed_up() -> Error {
    Error::internal("reading a document from memory", "it is of another kind than its key")
}

/// One pattern for each vendor.
fn vendors(seen: &[Package]) -> Vec<String> {
    let mut vendors: Vec<String> = seen
        .iter()
        .filter_map(|package| package.name.split_once('/'))
        .map(|(vendor, _)| format!("{vendor}/*"))
        .collect();
    vendors.dedup();
    vendors
}
