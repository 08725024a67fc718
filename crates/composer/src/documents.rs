//! The documents of the room, rendered when something changes and kept as the bytes that are sent.
//!
//! A document is rendered once for all who wait for it. A change that arrives while it is rendered makes it render again,
//! so that no cache ever keeps what was read before the change.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use larder_auth::View;
use larder_core::{Digest, Error, Id, Result, Time, pattern::Pattern};
use larder_db::{
    changes::Change,
    packages::{self, Package},
    policies, reservations, stamps,
};
use larder_http::{Document, File};
use larder_sources::registry::{self, Upstream};
use quick_cache::{Weighter, sync::Cache};
use serde_json::{Map, Value, json};

use crate::{
    ID, advisories,
    entry::Entry,
    filter,
    offers::{Part, Repository},
    render::{self, Available, Root},
    upstream::Looked,
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

/// Topics of changes after which any document may be another one.
const SWEEPING: [&str; 4] = [policies::TOPIC, reservations::TOPIC, registry::TOPIC, advisories::TOPIC];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// A package's tagged versions, or its branches.
    Package(String, bool),
    /// `packages.json` of a view.
    Root(Arc<str>),
    /// What is blocked of a view.
    Filter(Arc<str>),
    /// Every package with its summary, for list and search.
    Catalogue,
}

/// A package's document.
pub(crate) struct PackageDocument {
    /// The package's name.
    pub(crate) name: Arc<str>,
    /// What is sent.
    pub(crate) document: Document,
    /// Whether another registry has a say in it.
    is_foreign: bool,
    /// When it changes by itself, because a version has become old enough.
    until: Option<Time>,
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
    /// Whether it comes from another registry.
    pub(crate) is_foreign: bool,
}

/// Every package of this format with its summary.
pub(crate) type Catalogue = Vec<(String, Value)>;

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
            Change::Topic(topic) if SWEEPING.contains(&topic.as_str()) => self.on_change(&Change::Everything),
            Change::Topic(topic) => {
                let mut parts = topic.splitn(3, ':');
                let (Some("package"), Some(ID), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
                    return;
                };
                self.changes.fetch_add(1, Ordering::SeqCst);
                self.forget(name);
                self.kept.retain(|key, _| matches!(key, Key::Package(..)));
                let prefix = format!("/dist/{name}/");
                self.dists.retain(|path, _| !path.starts_with(&prefix));
            }
        }
    }

    fn forget(&self, name: &str) {
        self.kept.remove(&Key::Package(name.to_owned(), false));
        self.kept.remove(&Key::Package(name.to_owned(), true));
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
        if let Some(Kept::Package(document)) = self.kept.get(&key) {
            if document.until.is_some_and(|until| until <= self.repository.db.host().now()) {
                self.kept.remove(&key);
            } else if !document.is_foreign {
                return Ok(Some(document));
            }
        }
        match self.repository.proxy.look(name, dev).await? {
            Looked::Own | Looked::Here { changed: false } => {}
            Looked::Here { changed: true } => self.forget(name),
            Looked::Stale { why } => tracing::debug!(package = name, why, "what is sent may be outdated"),
            Looked::Absent => return Ok(None),
        }
        let kept = self.kept_or(&key, || async {
            let package = self.repository.find(name).await?.ok_or(None)?;
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

    /// `filter.json` of a view: which versions of its packages are blocked.
    pub(crate) async fn filter(&self, view: &View) -> Result<Arc<Document>> {
        let key = Key::Filter(Arc::clone(view.key()));
        let kept = self.kept_or(&key, || async {
            let catalogue = self.catalogue().await?;
            let names = catalogue.iter().map(|(name, _)| name.as_str()).filter(|name| view.sees(name));
            let summary = filter::summary(&self.repository.rules().await?, names);
            let bytes = summary.to_string().into_bytes();
            Ok(Kept::Root(Arc::new(self.stamped("/filter.json", view.key(), bytes).await)))
        });
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
        let document = self.stamped(&path, "", bytes).await;
        Ok(PackageDocument { name, document, is_foreign: offers.is_foreign(), until: offers.until })
    }

    async fn render_root(&self, view: &View) -> Result<Document> {
        let upstreams = registry::of_format(&self.repository.db, ID).await?;
        let (inline, available) = if upstreams.is_empty() {
            let seen = self.seen(view).await?;
            let inline = self.inline(&seen).await?;
            let available = if inline.is_some() || seen.len() <= LISTED_NAMES {
                Available { names: names(seen), patterns: Vec::new() }
            } else {
                Available { names: Vec::new(), patterns: vendors(&seen) }
            };
            (inline, Some(available))
        } else {
            (None, self.elsewhere(view, &upstreams).await?)
        };
        let extras = self.offered(inline.is_some()).await?;
        let root = Root { inline: inline.unwrap_or_default(), available, extras };
        let bytes = render::root_document(&self.repository.public_url, root)?;
        Ok(self.stamped("/packages.json", view.key(), bytes).await)
    }

    /// The packages that are here and that a view sees.
    async fn seen(&self, view: &View) -> Result<Vec<Package>> {
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let page = packages::list(&self.repository.db, ID, &after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(seen) };
            after.clone_from(&last.name);
            seen.extend(page.into_iter().filter(|package| view.sees(&package.name)));
        }
    }

    /// What there may be where other registries have packages: `None` if that is any name. A name that is not there costs a
    /// client one question, so patterns may promise too much.
    async fn elsewhere(&self, view: &View, upstreams: &[Upstream]) -> Result<Option<Available>> {
        let (names, only): (_, Vec<&Pattern>) = if !view.sees_everything() {
            // Whatever they have, no more is seen than this; which patterns they have is nothing that this view should know.
            (Vec::new(), view.patterns().iter().collect())
        } else if upstreams.iter().any(Upstream::takes_every_name) {
            return Ok(None);
        } else {
            (names(self.seen(view).await?), upstreams.iter().flat_map(|upstream| &upstream.settings.only).collect())
        };
        if names.len() > LISTED_NAMES || only.iter().any(|pattern| pattern.is_everything()) {
            return Ok(None);
        }
        // To clients a `*` crosses slashes.
        let mut patterns: Vec<String> = only.iter().map(|pattern| pattern.as_str().replace("**", "*")).collect();
        patterns.sort_unstable();
        patterns.dedup();
        Ok(Some(Available { names, patterns }))
    }

    /// What the root document offers beside packages. Where everything is in the root document, advisories are not said to
    /// be in the metadata of packages: clients would ask for those again.
    async fn offered(&self, is_inline: bool) -> Result<Map<String, Value>> {
        let mut offered = Map::new();
        let url = &self.repository.public_url;
        // Always, where that costs a client nothing: one that read the root before the first of them would not ask.
        if !is_inline || advisories::are_there(&self.repository.db).await? {
            let api = format!("{url}{}", advisories::API);
            offered.insert("security-advisories".to_owned(), json!({"metadata": !is_inline, "api-url": api}));
        }
        let summary = format!("{url}/filter.json");
        if let Some(filter) = filter::offered(&self.repository.rules().await?, &summary) {
            offered.insert("filter".to_owned(), filter);
        }
        Ok(offered)
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

fn names(packages: Vec<Package>) -> Vec<String> {
    packages.into_iter().map(|package| package.name).collect()
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
