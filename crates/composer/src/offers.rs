//! What of a package may be had, and what not and why: the one place where its versions are collected from wherever they
//! come and judged. The metadata, a download, an explanation and the check of a lock file all ask here, so that none of
//! them can say anything else than the others.

use std::{collections::HashMap, sync::Arc};

use larder_blobs::Blobs;
use larder_core::{Id, Result, Time};
use larder_db::{
    Db,
    changes::Change,
    packages::{self, Package, Version as Row},
    sources as source_rows,
};
use larder_sources::{
    Sources,
    policies::Book,
    registry::{Dists, Upstream},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    DIST, ID,
    advisories::{self, Advisory},
    entry::{Entry, Raw},
    filter,
    policy::{self, Abandoned, Judge, Judged, Policies, Rules, Verdict},
    render::{self, Dist, Field, Told},
    upstream::{self, Proxy},
    version::{Stability, Version},
    versions::Versions,
};

/// The kind of dist that is made here.
pub(crate) const ZIP: &str = "zip";

/// Kinds of dists that can be kept here, as they stand at the end of an address, with their media types.
pub(crate) const KINDS: [(&str, &str); 6] = [
    (ZIP, "application/zip"),
    ("tar", "application/x-tar"),
    ("gzip", "application/gzip"),
    ("xz", "application/x-xz"),
    ("rar", "application/vnd.rar"),
    ("phar", "application/octet-stream"),
];

/// How many kinds of malware in one package are heeded.
const MOST_HARMS: usize = 1_000;

/// How long a reason of another registry may be, in characters: it is printed in terminals.
const LONGEST_REASON: usize = 500;

/// How many reasons for missing versions a document tells.
const MOST_WARNINGS: usize = 10;

/// The packages of this format, with everything that has a say in them. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    pub(crate) db: Db,
    pub(crate) blobs: Blobs,
    pub(crate) sources: Sources,
    /// The registries that other packages come from.
    pub proxy: Proxy,
    /// The rules about what may be had.
    pub policies: Book<Rules>,
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
    /// That of a version in its normal form, also as it stands in an address.
    pub fn of_version(version: &str) -> Self {
        Self::of_document(Stability::of(version) == Stability::Dev)
    }

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

/// A version that there is, and whether it may be had.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The version.
    pub version: Version,
    /// What its bytes are made from, as lock files name it.
    pub reference: Option<String>,
    /// What stands for its bytes in our addresses; `None` if it has none.
    pub key: Option<String>,
    /// When it was released, if anybody knows.
    pub released: Option<Time>,
    /// Its row, if it has one: what came from another registry has one once its bytes are here.
    pub row: Option<Id>,
    /// SHA-1 of its bytes in hex, if they are here.
    pub sha1: Option<String>,
    /// What its author, or the registry that it comes from, says of it.
    pub entry: Entry,
    /// Whether it may be had.
    pub verdict: Verdict,
    /// The validator of the document that tells it, if it comes from another registry.
    pub document: Option<Arc<str>>,
    /// What a client is told beyond the entry.
    told: Told,
}

impl Offer {
    /// Whether it comes from another registry.
    pub fn is_foreign(&self) -> bool {
        self.document.is_some()
    }

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
    /// What is known to be wrong with any of them.
    pub advisories: Vec<Advisory>,
    /// The rules that hold for it.
    pub judge: Judge,
    /// When one that is too young is old enough: until then nothing of this changes by itself.
    pub until: Option<Time>,
    /// Which versions these are.
    part: Part,
    /// Whether it comes from another registry.
    is_foreign: bool,
    /// What that says beside its versions.
    beside: Beside,
}

/// What another registry says of a package beside its versions.
#[derive(Clone, Debug, Default)]
struct Beside {
    advisories: Option<Raw>,
    filters: Vec<Raw>,
}

impl Beside {
    /// What does harm, as the other registry says: that is held for every client, also for those who read no lists.
    fn harmful(&self) -> Vec<Harm> {
        let malware = |lists: Entry| lists.get(filter::MALWARE)?.read::<Vec<Value>>();
        let listed = self.filters.iter().filter_map(Raw::read).filter_map(malware).flatten();
        listed.take(MOST_HARMS).filter_map(|harm| serde_json::from_value(harm).ok()).collect()
    }
}

/// Versions that do harm.
#[derive(Deserialize)]
struct Harm {
    #[serde(rename = "constraint")]
    versions: Versions,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    url: Option<String>,
}

impl Harm {
    fn verdict(&self) -> Verdict {
        let reason = self.reason.as_deref().unwrap_or("it is malware").replace(char::is_control, " ");
        let reason = reason.chars().take(LONGEST_REASON).collect();
        let url = self.url.clone().filter(|url| policy::rules::is_web_address(url));
        Verdict::Blocked { reason, by: "the list of malware of the registry that it comes from".to_owned(), url }
    }
}

impl Offers {
    /// Whether another registry has a say in it.
    pub fn is_foreign(&self) -> bool {
        self.is_foreign
    }

    /// Those that may be had, as clients are told them.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        self.versions.iter().filter(|offer| offer.verdict.is_visible()).map(Offer::told).collect()
    }

    /// What a document says beside the versions.
    pub fn extras(&self) -> Map<String, Value> {
        let mut extras = Map::new();
        let mut advisories: Vec<Value> = self.advisories.iter().map(Advisory::partial).collect();
        let told: Vec<Value> = self.beside.advisories.as_ref().and_then(Raw::read).unwrap_or_default();
        for advisory in told {
            if !advisories.iter().any(|known| known["advisoryId"] == advisory["advisoryId"]) {
                advisories.push(advisory);
            }
        }
        // Also where nothing is known: a client that finds no such key in a package's document asks the API for it.
        if self.part != Part::Branches {
            extras.insert("security-advisories".to_owned(), advisories.into());
        }
        let mut lists: Map<String, Value> =
            self.beside.filters.iter().filter_map(Raw::read::<Map<String, Value>>).flatten().collect();
        if let Some(Value::Object(own)) = filter::entries(&self.package.name, &self.judge) {
            for (list, entries) in own {
                match (lists.get_mut(&list).and_then(Value::as_array_mut), entries) {
                    (Some(there), Value::Array(entries)) => there.extend(entries),
                    (_, entries) => drop(lists.insert(list, entries)),
                }
            }
        }
        if !lists.is_empty() {
            extras.insert("filter".to_owned(), lists.into());
        }
        let warnings = self.warnings();
        if !warnings.is_empty() {
            extras.insert("warnings".to_owned(), warnings.into());
        }
        extras
    }

    /// Says of each version whether it may be had at `now`.
    fn decide(&mut self, now: Time) {
        let Self { versions: offers, advisories, judge, .. } = self;
        let versions: Vec<&Version> = offers.iter().map(|offer| &offer.version).collect();
        let fixes = if judge.ages() { policy::fixes(&versions, advisories) } else { vec![false; versions.len()] };
        let abandoned = match judge.abandoned() {
            None => Field::Kept,
            Some(Abandoned::Is(abandoned)) => Field::Set(Value::from(*abandoned)),
            Some(Abandoned::For(replacement)) => Field::Set(Value::from(replacement.as_str())),
        };
        let harmful = self.beside.harmful();
        let mut until: Option<Time> = None;
        for (offer, fix) in offers.iter_mut().zip(fixes) {
            let judged = Judged {
                version: &offer.version,
                released: offer.released,
                upstream: offer.is_foreign(),
                fix,
                advisories,
            };
            let harm = harmful.iter().find(|harm| harm.versions.have(&offer.version));
            offer.verdict = harm.map_or_else(|| judge.verdict(judged, now), Harm::verdict);
            offer.told.abandoned = abandoned.clone();
            if let Verdict::TooYoung { until: ripe, .. } = offer.verdict {
                until = Some(until.map_or(ripe, |first| first.min(ripe)));
            }
        }
        self.until = until;
    }

    /// Why versions are missing: what is not there reaches no client's filter lists either. What only waits for its age is
    /// not worth a word, unless nothing else is left.
    fn warnings(&self) -> Vec<Value> {
        let mut reasons: Vec<(String, Vec<&str>)> = Vec::new();
        for offer in &self.versions {
            let Verdict::Blocked { .. } = offer.verdict else { continue };
            let because = offer.verdict.because().unwrap_or_default();
            match reasons.iter_mut().find(|(reason, _)| *reason == because) {
                Some((_, versions)) => versions.push(offer.version.pretty()),
                None => reasons.push((because, vec![offer.version.pretty()])),
            }
        }
        let told = reasons.into_iter().take(MOST_WARNINGS).map(|(because, versions)| {
            let named = match versions.as_slice() {
                [first, .., last] if versions.len() > 3 => format!("{last} to {first} ({})", versions.len()),
                few => few.join(", "),
            };
            json!({"message": format!("{} {named} {because}", self.package.name), "versions": "*"})
        });
        let mut told: Vec<Value> = told.collect();
        let is_anything_left = self.versions.iter().any(|offer| offer.verdict.is_visible());
        if let Some(until) = self.until.filter(|_| !is_anything_left) {
            let name = &self.package.name;
            let message = format!("every release of {name} is too young here: the first can be had from {until} on");
            told.push(json!({"message": message, "versions": "*"}));
        }
        told
    }
}

impl Repository {
    /// At `public_url`, without a slash at its end.
    pub fn new(db: Db, blobs: Blobs, sources: Sources, proxy: Proxy, public_url: String) -> Self {
        let policies = Book::new(db.clone());
        Self { db, blobs, sources, proxy, policies, public_url }
    }

    /// Forgets what a change makes stale.
    pub fn on_change(&self, change: &Change) {
        self.proxy.on_change(change);
        self.policies.on_change(change);
    }

    /// The package of this name, if something of it is here.
    pub async fn find(&self, name: &str) -> Result<Option<Package>> {
        packages::find(&self.db, ID, name).await
    }

    /// The rules for all packages.
    pub async fn rules(&self) -> Result<Policies> {
        Ok(self.policies.all().await?.into())
    }

    /// The rows of the versions whose bytes `key` stands for: two tags may name one commit.
    pub(crate) async fn rows(&self, package: &Package, key: &str) -> Result<Vec<Row>> {
        packages::by_reference(&self.db, package.id, key, DIST).await
    }

    /// What is here of a package, judged. Nothing is asked of anybody else.
    pub async fn offers(&self, package: Package, part: Part) -> Result<Offers> {
        let mut beside = Beside::default();
        let foreign = self.foreign(&package, part, &mut beside).await?;
        let is_foreign = foreign.is_some();
        let mut versions = match foreign {
            Some(versions) => versions,
            None => self.own(&package, part).await?,
        };
        versions.sort_by(|a, b| render::newest_first(a.version.normalized(), b.version.normalized()));
        let judge = self.rules().await?.of(&package.name);
        let advisories = advisories::of_package(&self.db, &package.name).await?;
        let mut offers = Offers { package, versions, advisories, judge, until: None, part, is_foreign, beside };
        offers.decide(self.db.host().now());
        Ok(offers)
    }

    /// Whether the bytes of a version that has a row may be had, also if no document tells it any more.
    pub(crate) async fn verdict(&self, package: &Package, row: &Row) -> Result<Verdict> {
        let judge = self.rules().await?.of(&package.name);
        let is_foreign = row.origin == upstream::ORIGIN;
        let version = Version::from_normalized(row.display.as_str(), row.version.as_str());
        if is_foreign {
            let offers = self.offers(package.clone(), Part::of_version(&row.version)).await?;
            // Who lists malware takes it away, too: its bytes may still be here.
            if let Some(harm) = offers.beside.harmful().iter().find(|harm| harm.versions.have(&version)) {
                return Ok(harm.verdict());
            }
            let offer = offers.versions.into_iter().find(|offer| offer.version.normalized() == row.version);
            if let Some(offer) = offer.filter(|offer| offer.key.as_ref() == Some(&row.reference)) {
                return Ok(offer.verdict);
            }
        }
        if judge.is_silent() {
            return Ok(Verdict::Visible);
        }
        let advisories = advisories::of_package(&self.db, &package.name).await?;
        let judged = Judged {
            version: &version,
            released: Some(row.released_at),
            upstream: is_foreign,
            fix: false,
            advisories: &advisories,
        };
        Ok(judge.verdict(judged, self.db.host().now()))
    }

    /// The versions of a package that was taken in here.
    async fn own(&self, package: &Package, part: Part) -> Result<Vec<Offer>> {
        let source_url = self.shown_url(package.source_id).await?;
        let rows = packages::visible(&self.db, package.id, DIST).await?;
        let rows = rows.into_iter().filter(|row| part.has(&row.version));
        rows.map(|row| self.own_offer(package, row, source_url.as_ref())).collect()
    }

    fn own_offer(&self, package: &Package, row: Row, source_url: Option<&String>) -> Result<Offer> {
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
            version: Version::from_normalized(row.display, row.version),
            released: Some(row.released_at),
            row: Some(row.id),
            sha1: row.sha1,
            verdict: Verdict::Visible,
            document: None,
        })
    }

    /// The versions of a package that comes from another registry, as that told them last; `None` if it does not.
    async fn foreign(&self, package: &Package, part: Part, beside: &mut Beside) -> Result<Option<Vec<Offer>>> {
        let Some(told) = self.proxy.told(package).await? else { return Ok(None) };
        // What does harm is told beside either, and holds for both.
        let both = [(false, told.tagged), (true, told.branches)];
        for half in both.iter().filter_map(|(_, half)| half.as_ref()) {
            beside.advisories = beside.advisories.take().or_else(|| half.advisories.clone());
            beside.filters.extend(half.filter.clone());
        }
        let kept = packages::kept(&self.db, package.id, DIST).await?;
        let kept: HashMap<(String, String), (Id, Option<String>)> = kept
            .into_iter()
            .map(|row| ((row.version, row.reference), (row.id, row.artifact.map(|artifact| artifact.sha1))))
            .collect();
        let wanted = both.into_iter().filter(|(dev, _)| part == Part::All || part == Part::of_document(*dev));
        let mut offers = Vec::new();
        for half in wanted.filter_map(|(_, half)| half) {
            let offer =
                |entry: &Entry| self.foreign_offer(package, entry.clone(), &half.document, &told.upstream, &kept);
            offers.extend(half.entries.iter().map(offer));
        }
        Ok(Some(offers))
    }

    fn foreign_offer(
        &self,
        package: &Package,
        entry: Entry,
        document: &Arc<str>,
        upstream: &Upstream,
        kept: &HashMap<(String, String), (Id, Option<String>)>,
    ) -> Offer {
        let normalized = entry.text("version_normalized").unwrap_or_default();
        let version = Version::from_normalized(entry.text("version").unwrap_or_default(), normalized.as_str());
        let there: Option<DistThere> = entry.get("dist").and_then(Raw::read);
        let key = upstream::dist_key(&entry);
        let row = key.as_ref().and_then(|key| kept.get(&(normalized.clone(), key.clone()))).cloned();
        let sha1 = row.as_ref().and_then(|(_, sha1)| sha1.clone());
        let dist = match (upstream.settings.dists, &there, &key) {
            // Elsewhere than over HTTP no client should look, and it would look for a relative address here.
            (Dists::Upstream, Some(there), _) if policy::rules::is_web_address(&there.url) => Field::Kept,
            (_, Some(there), Some(key)) if is_kept_here(&there.kind) => Field::Set(Dist {
                kind: there.kind.clone(),
                url: self.dist_url(&package.name, &normalized, key, &there.kind),
                reference: there.reference.clone(),
                // What is here stays what it is, whatever the other registry has made of it since.
                shasum: match (&sha1, there.shasum.as_deref().unwrap_or_default()) {
                    (Some(here), there) if !there.is_empty() => here.clone(),
                    (_, there) => there.to_owned(),
                },
            }),
            _ => Field::Hidden,
        };
        let source = if upstream.shows_source() { Field::Kept } else { Field::Hidden };
        let released = entry.released();
        Offer {
            told: Told { dist, source, ..Told::default() },
            reference: there.and_then(|there| there.reference),
            key,
            version,
            released,
            row: row.map(|(id, _)| id),
            sha1,
            entry,
            verdict: Verdict::Visible,
            document: Some(Arc::clone(document)),
        }
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

/// A dist as another registry tells it.
#[derive(Deserialize)]
struct DistThere {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    url: String,
    #[serde(default)]
    reference: Option<String>,
    #[serde(default)]
    shasum: Option<String>,
}

fn is_kept_here(kind: &str) -> bool {
    KINDS.iter().any(|(known, _)| *known == kind)
}
