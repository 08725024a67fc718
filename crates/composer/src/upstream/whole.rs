//! The root of an upstream, brought here with all that it consists of, and kept: its facts, the hashes of its packages'
//! files, the files that it includes, and the versions of packages that stand in it, one document each, so that a large
//! repository is taken apart once and not for each question.
//!
//! Everything is fetched and proven before anything is kept; the root itself is kept last, so that what was interrupted is
//! begun anew.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use larder_core::{
    Digest, Id, Kind, Time,
    digest::{Sha1, hex, unhex},
};
use larder_db::{
    Batch, Statement,
    upstream_checks::{self, Check},
    upstream_documents::{self as documents, Document},
};

use super::{
    Failure,
    address::Place,
    ask::{Asked, Asker, ROOT},
    package::{Halves, Pairs, Wrong, pairs},
    root::{Facts, File, Hashes, Layout, MOST_FILES, MOST_NAMES, Part, Root, read_listing, usable},
};

/// The subjects of what is kept: the facts, the hashes, files by their paths, and packages by their names.
pub(super) const ROOT_SUBJECT: &str = "root";
const HASHES: &str = "hashes";
const PART: &str = "part:";
pub(super) const INLINE: &str = "inline:";

/// What stands behind the name of a package in the subject of its branches.
const BRANCHES: &str = "~dev";

/// The most versions of all packages of a repository.
const MOST_VERSIONS: usize = 2_000_000;

/// How many rows are read, and how many packages are written, at once.
const PAGE: u32 = 2_000;
const CHUNK: usize = 64;

/// The subject of one half of a package.
pub(super) fn half(prefix: &str, name: &str, dev: bool) -> String {
    format!("{prefix}{name}{}", if dev { BRANCHES } else { "" })
}

/// What keeps a half of a package as it is now, or forgets it; nothing if that is what is kept.
pub(super) fn keep(
    asker: &Asker,
    subject: &str,
    content: Option<&[u8]>,
    kept: Option<&str>,
    now: Time,
) -> Option<Statement> {
    let source = asker.upstream.id();
    let Some(content) = content else { return kept.map(|_| documents::remove(source, subject)) };
    let hash = Digest::of(content).hex();
    (kept != Some(hash.as_str())).then(|| documents::put(source, subject, &Document::new(content, hash, now)))
}

/// The root as it is kept, and its validator.
pub(super) async fn kept(asker: &Arc<Asker>, place: &Place) -> Result<Option<(Root, String)>, Failure> {
    let (db, source) = (&asker.db, asker.upstream.id());
    let Some(document) = documents::find(db, source, ROOT_SUBJECT).await? else { return Ok(None) };
    let Ok(facts) = serde_json::from_slice::<Facts>(&document.content()?) else {
        tracing::info!(source = %asker.upstream.source.name, "its root was kept by another version, and is fetched again");
        return Ok(None);
    };
    let hashes = match documents::find(db, source, HASHES).await? {
        Some(document) if matches!(facts.layout, Layout::Hashed(_)) => {
            db.host().heavy(async move { Ok(hashes_from(&document.content()?)) }).await?
        }
        _ => Hashes::new(),
    };
    let inline = kept_halves(asker, INLINE).await?.into_keys();
    let names = inline.map(|subject| subject[INLINE.len()..].trim_end_matches(BRANCHES).into()).collect();
    Ok(Some((Root::new(facts, place, names, hashes), document.validator)))
}

/// Every subject that begins with `prefix`, with its validator.
async fn kept_halves(asker: &Asker, prefix: &str) -> Result<HashMap<String, String>, Failure> {
    let mut all = HashMap::new();
    let mut after = String::new();
    loop {
        let page = documents::page(&asker.db, asker.upstream.id(), prefix, &after, PAGE).await?;
        let is_last = page.len() < PAGE as usize;
        if let Some((last, _)) = page.last() {
            after.clone_from(last);
        }
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

/// Asks for the root and all that belongs to it, and keeps it. `None` if it is what `known` says. The validator comes
/// with it.
pub(super) async fn bring(
    asker: &Arc<Asker>,
    place: &Place,
    known: Option<&str>,
) -> Result<Option<(Root, String)>, Failure> {
    let answer = asker.document(&place.root, ROOT, known).await.map_err(|failure| no_root(failure, place))?;
    let Asked::Document { bytes, validator } = answer else { return Ok(None) };
    let mut brought = Brought { left: ROOT - bytes.len() as u64, ..Brought::default() };
    let outline = outline(asker, &place.root, &bytes).await?;
    let files = brought.includes(asker, place, bytes, outline.includes).await?;
    let listings = brought.listings(asker, place, outline.listings).await?;
    let hashes = gathered(asker, place, outline.hashes, listings).await?;
    let now = asker.db.host().now();
    let names = keep_inline(asker, files, now).await?;
    let facts = serde_json::to_vec(&outline.facts)
        .map_err(|error| larder_core::Error::internal("keeping the root of an upstream", error))?;
    let source = asker.upstream.id();
    let batch = brought
        .batch(asker)
        .await?
        .with(keep_hashes(source, &hashes, now))
        .with(documents::put(source, ROOT_SUBJECT, &Document::new(&facts, validator.as_str(), now)))
        .with(upstream_checks::put(source, ROOT_SUBJECT, &Check { checked_at: now, validator: validator.clone() }));
    asker.db.commit(batch).await.map_err(larder_core::Error::from)?;
    Ok(Some((Root::new(outline.facts, place, names, hashes), validator)))
}

fn keep_hashes(source: Id, hashes: &Hashes, now: Time) -> Statement {
    if hashes.is_empty() {
        return documents::remove(source, HASHES);
    }
    let text = hashes_to(hashes);
    documents::put(source, HASHES, &Document::new(&text, Digest::of(&text).hex(), now))
}

/// A registry without a root is no registry: that says nothing about its packages.
fn no_root(failure: Failure, place: &Place) -> Failure {
    match failure {
        Failure::Absent => Failure::Failed(
            Kind::Upstream,
            format!(
                "{} is not there: check the address of the source, which is that of the folder of `packages.json`",
                larder_sources::fetch::shown(&place.root)
            ),
        ),
        other => other,
    }
}

/// What a root file says, but for the packages in it.
struct Outline {
    facts: Facts,
    includes: Vec<Part>,
    listings: Vec<Part>,
    hashes: Hashes,
}

async fn outline(asker: &Arc<Asker>, url: &url::Url, bytes: &Bytes) -> Result<Outline, Failure> {
    let read = {
        let bytes = bytes.clone();
        asker.db.host().heavy(async move {
            Ok(File::read(&bytes).map(|file| Outline {
                facts: file.facts,
                includes: file.includes,
                listings: file.listings,
                hashes: file.hashes,
            }))
        })
    };
    read.await?.map_err(|wrong| asker.wrong(url, bytes, &wrong))
}

/// What came with the root file.
#[derive(Default)]
struct Brought {
    /// How many more bytes all of it may have.
    left: u64,
    /// The paths of what belongs to it now, and what has to be kept.
    paths: HashSet<String>,
    new: Vec<(String, Document)>,
}

impl Brought {
    /// The root file, and those that it includes.
    async fn includes(
        &mut self,
        asker: &Arc<Asker>,
        place: &Place,
        root: Bytes,
        mut waiting: Vec<Part>,
    ) -> Result<Vec<Bytes>, Failure> {
        let mut files = vec![root];
        while let Some(part) = waiting.pop() {
            let url = place.resolve(&part.path).map_err(|failure| asker.told(failure))?;
            if self.paths.contains(&part.path) {
                continue;
            }
            let bytes = self.part(asker, &url, &part, Sum::Sha1).await?;
            waiting.extend(outline(asker, &url, &bytes).await?.includes);
            files.push(bytes);
        }
        Ok(files)
    }

    async fn listings(&mut self, asker: &Arc<Asker>, place: &Place, parts: Vec<Part>) -> Result<Vec<Bytes>, Failure> {
        let mut listings = Vec::with_capacity(parts.len());
        for part in parts {
            let hash = part.hash.clone().unwrap_or_default();
            let path = part.path.replace("%hash%", &hash);
            let url = place.resolve(&path).map_err(|failure| asker.told(failure))?;
            listings.push(self.part(asker, &url, &Part { path, ..part }, Sum::Sha256).await?);
        }
        Ok(listings)
    }

    /// A file that the root refers to: the one that is here if its hash is the same, or else the upstream's.
    async fn part(&mut self, asker: &Asker, url: &url::Url, part: &Part, sum: Sum) -> Result<Bytes, Failure> {
        if self.paths.len() == MOST_FILES {
            let why = format!("{} is spread over more than {MOST_FILES} files", asker.upstream.source.name);
            return Err(asker.told(Failure::Failed(Kind::Upstream, why)));
        }
        self.paths.insert(part.path.clone());
        let subject = format!("{PART}{}", part.path);
        if let Some(hash) = &part.hash
            && let Some(document) = documents::find(&asker.db, asker.upstream.id(), &subject).await?
            && document.validator == *hash
            && document.size <= self.left
        {
            self.left -= document.size;
            return Ok(document.content()?.into());
        }
        let answer = asker.document(url, self.left, None).await.map_err(|failure| listed_but_gone(failure, url))?;
        let Asked::Document { bytes, .. } = answer else {
            return Err(Failure::Failed(Kind::Upstream, format!("{url} answers as if it had been asked before")));
        };
        self.left -= bytes.len() as u64;
        if let Some(hash) = &part.hash {
            check(asker, url, &bytes, hash, sum)?;
            self.new.push((subject, Document::new(&bytes, hash.as_str(), asker.db.host().now())));
        }
        Ok(bytes)
    }

    /// Keeps the files that came, and forgets those that do not belong to the root any more.
    async fn batch(&self, asker: &Asker) -> Result<Batch, Failure> {
        let source = asker.upstream.id();
        let mut batch = Batch::new();
        for (subject, document) in &self.new {
            batch.push(documents::put(source, subject, document));
        }
        for subject in kept_halves(asker, PART).await?.into_keys() {
            if !self.paths.contains(&subject[PART.len()..]) {
                batch.push(documents::remove(source, &subject));
            }
        }
        Ok(batch)
    }
}

/// How the hash of a file is computed.
#[derive(Clone, Copy)]
pub(super) enum Sum {
    Sha1,
    Sha256,
}

/// Refuses a file that has another hash than the one that was announced.
pub(super) fn check(asker: &Asker, url: &url::Url, bytes: &[u8], hash: &str, sum: Sum) -> Result<(), Failure> {
    let found = match sum {
        Sum::Sha256 => Digest::of(bytes).hex(),
        Sum::Sha1 => {
            let mut sha1 = Sha1::new();
            sha1.update(bytes);
            sha1.finish()
        }
    };
    if found == hash {
        return Ok(());
    }
    Err(asker.wrong(url, bytes, &Wrong(format!("has the hash {found}, and its registry announces {hash}"))))
}

/// What an upstream announces and does not have is not known to be absent.
pub(super) fn listed_but_gone(failure: Failure, url: &url::Url) -> Failure {
    match failure {
        Failure::Absent => Failure::Failed(
            Kind::Upstream,
            format!("{} is announced by its registry, and is not there", larder_sources::fetch::shown(url)),
        ),
        other => other,
    }
}

async fn gathered(
    asker: &Arc<Asker>,
    place: &Place,
    mut hashes: Hashes,
    listings: Vec<Bytes>,
) -> Result<Hashes, Failure> {
    let read = asker.db.host().heavy(async move {
        Ok(listings.iter().try_for_each(|listing| read_listing(&mut hashes, listing)).map(|()| hashes))
    });
    read.await?.map_err(|wrong| asker.wrong(&place.root, b"{", &wrong))
}

/// Keeps the versions of every package that stands in these files, and gives the packages' names.
async fn keep_inline(asker: &Arc<Asker>, files: Vec<Bytes>, now: Time) -> Result<Vec<Box<str>>, Failure> {
    let asker = Arc::clone(asker);
    let host = asker.db.host().clone();
    let kept = host.heavy(async move {
        let packages = match gather_inline(&files) {
            Ok(packages) => packages,
            Err(wrong) => return Ok(Err(wrong)),
        };
        let mut kept = match kept_halves(&asker, INLINE).await {
            Ok(kept) => kept,
            Err(failure) => return Ok(Err(Wrong(failure.text().to_owned()))),
        };
        let mut names: Vec<Box<str>> = Vec::with_capacity(packages.len());
        let mut batch = Batch::new();
        for (name, versions) in packages {
            let halves = Halves::new(&name, &versions).unwrap_or_else(|wrong| {
                tracing::warn!(source = %asker.upstream.source.name, package = %name, why = wrong.0, "left out");
                Halves::default()
            });
            for (dev, content) in [(false, &halves.tagged), (true, &halves.branches)] {
                let subject = half(INLINE, &name, dev);
                let before = kept.remove(&subject);
                let statement = keep(&asker, &subject, content.as_deref(), before.as_deref(), now);
                batch = statement.into_iter().fold(batch, Batch::with);
            }
            names.push(name);
            if batch.len() >= CHUNK {
                asker.db.commit(std::mem::take(&mut batch)).await?;
            }
        }
        for subject in kept.into_keys() {
            batch.push(documents::remove(asker.upstream.id(), &subject));
        }
        asker.db.commit(batch).await?;
        Ok(Ok(names))
    });
    kept.await?.map_err(|wrong| Failure::Failed(Kind::Upstream, format!("what an upstream sends {}", wrong.0)))
}

/// The versions of each package, from all files, by its name in small letters.
fn gather_inline(files: &[Bytes]) -> Result<BTreeMap<Box<str>, Pairs<'_>>, Wrong> {
    let mut packages: BTreeMap<Box<str>, Pairs<'_>> = BTreeMap::new();
    let mut left = MOST_VERSIONS;
    for file in files {
        let Some(field) = File::read(file)?.packages else { continue };
        for (name, versions) in pairs(field, MOST_NAMES, "packages")? {
            let versions = pairs(versions, left, "versions")?;
            left -= versions.len();
            let name = if name.is_empty() { name_of(&versions) } else { name };
            if name.is_empty() && !versions.is_empty() {
                return Err(Wrong("has packages without names".into()));
            }
            if let Some(name) = usable(&name) {
                packages.entry(name).or_default().extend(versions);
            }
        }
        if packages.len() > MOST_NAMES {
            return Err(Wrong(format!("tells more than {MOST_NAMES} packages")));
        }
    }
    Ok(packages)
}

/// The name that the first one of some versions has.
fn name_of(versions: &Pairs<'_>) -> Cow<'static, str> {
    #[derive(serde::Deserialize)]
    struct Named {
        name: String,
    }
    let first = versions.first().and_then(|(_, first)| serde_json::from_str::<Named>(first.get()).ok());
    first.map_or(Cow::Borrowed(""), |named| Cow::Owned(named.name))
}

/// One line for each package: its hash and its name.
fn hashes_to(hashes: &Hashes) -> Vec<u8> {
    let mut lines: Vec<String> = hashes.iter().map(|(name, hash)| format!("{} {name}\n", hex(hash))).collect();
    lines.sort_unstable();
    lines.concat().into_bytes()
}

fn hashes_from(text: &[u8]) -> Hashes {
    let text = String::from_utf8_lossy(text);
    let line = |line: &str| {
        let (hash, name) = line.split_once(' ')?;
        Some((name.into(), unhex(hash)?.try_into().ok()?))
    };
    text.lines().filter_map(line).collect()
}
