//! What is done with advisories: reading those of a package, taking in what a feed tells, writing and removing one's own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use larder_core::{Error, Id, Kind, Result, Time};
use larder_db::{
    Batch, Db, Statement,
    advisories::{self as rows, Feed, TOPIC},
    changes,
    events::{self, Actor, Event},
    packages,
};
use serde::Serialize;
use serde_json::json;

use super::{
    Advisory, OWN, Origin, Severity, distinct,
    formats::{Read, Told, is_id, line},
};
use crate::{ID, names, policy::rules::is_web_address, versions::Versions};

/// How many advisories one feed may have.
const MOST: usize = 200_000;

/// How many rows are read at once.
const PAGE: i64 = 1_000;

/// How many advisories are written in one batch.
const AT_ONCE: usize = 200;

/// About how many packages a change is told to the caches one by one.
const MOST_TOPICS: usize = 200;

/// How the feed of an upstream is called: this, and the id of its source.
const OF_SOURCE: &str = "source:";

/// The feed of an upstream.
pub fn feed_of(source: Id) -> String {
    format!("{OF_SOURCE}{source}")
}

/// The upstream of a feed.
pub(super) fn source_of(feed: &str) -> Option<Id> {
    feed.strip_prefix(OF_SOURCE)?.parse().ok()
}

/// Everything that is known to be wrong with a package, the newest first.
pub async fn of_package(db: &Db, name: &str) -> Result<Vec<Advisory>> {
    let found = rows::of_packages(db, ID, &[name]).await?;
    Ok(distinct(found.into_iter().map(Advisory::read).collect::<Result<_>>()?))
}

/// Everything that is known to be wrong with some packages. A package without advisories is not there.
pub async fn of_packages(db: &Db, names: &[&str]) -> Result<BTreeMap<String, Vec<Advisory>>> {
    by_package(rows::of_packages(db, ID, names).await?)
}

/// All advisories about up to `packages` packages after `after` that have one which changed at `since` or later.
pub async fn list(db: &Db, after: &str, since: Time, packages: i64) -> Result<BTreeMap<String, Vec<Advisory>>> {
    by_package(rows::list(db, ID, after, since, packages).await?)
}

fn by_package(found: Vec<rows::AdvisoryRow>) -> Result<BTreeMap<String, Vec<Advisory>>> {
    let mut packages: BTreeMap<String, Vec<Advisory>> = BTreeMap::new();
    for row in found {
        let advisory = Advisory::read(row)?;
        packages.entry(advisory.package.clone()).or_default().push(advisory);
    }
    Ok(packages.into_iter().map(|(name, advisories)| (name, distinct(advisories))).collect())
}

/// Whether there are any.
pub async fn are_there(db: &Db) -> Result<bool> {
    Ok(!rows::list(db, ID, "", Time::from_micros(i64::MIN), 1).await?.is_empty())
}

/// Every feed, with how much it told.
pub async fn feeds(db: &Db) -> Result<Vec<Feed>> {
    rows::feeds(db, ID).await
}

/// What came of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Advisories that were new.
    pub added: u64,
    /// Advisories that said something else before.
    pub changed: u64,
    /// Advisories that were there like this.
    pub unchanged: u64,
    /// Advisories that went: taken back, or not told any more.
    pub removed: u64,
}

/// Who tells something, and how.
#[derive(Clone, Debug)]
pub struct Telling<'a> {
    /// Who has it written.
    pub actor: &'a Actor,
    /// The name of the feed.
    pub feed: &'a str,
    /// Whether that is all that the feed has to say: what it does not tell any more goes.
    pub is_all: bool,
    /// What every batch has to hold to.
    pub guard: Option<Statement>,
}

/// Takes in what a feed tells. What it told before in the same words is left alone, so that telling it again changes
/// nothing.
pub async fn take_in(db: &Db, telling: &Telling<'_>, read: Read) -> Result<Imported> {
    if read.told.len() > MOST {
        return Err(Error::new(Kind::TooLarge, format!("a feed may have {MOST} advisories, and this is more")));
    }
    if telling.is_all && read.told.is_empty() {
        return Err(Error::invalid(format!(
            "there is no advisory in it: nothing was changed. `larder advisory remove --feed {}` removes a feed",
            telling.feed
        )));
    }
    let before = of_feed(db, telling.feed).await?;
    let (steps, mut imported) = steps(db, telling, read, &before);
    imported.removed = steps.iter().filter(|step| matches!(step, Step::Remove { .. })).count() as u64;
    write(db, telling, &steps).await?;
    Ok(imported)
}

/// What is to be written.
enum Step {
    Put(Box<Advisory>),
    Remove { package: String, id: String },
}

impl Step {
    fn package(&self) -> &str {
        match self {
            Self::Put(advisory) => &advisory.package,
            Self::Remove { package, .. } => package,
        }
    }
}

/// The package and the name of an advisory.
type Key = (String, String);

fn steps(db: &Db, telling: &Telling<'_>, read: Read, before: &HashMap<Key, Advisory>) -> (Vec<Step>, Imported) {
    let now = db.host().now();
    let (mut imported, mut steps) = (Imported::default(), Vec::new());
    let mut told: HashMap<Key, Told> = HashMap::new();
    for one in read.told {
        told.insert((one.package.clone(), one.id.clone()), one);
    }
    let withdrawn: HashSet<String> = read.withdrawn.into_iter().collect();
    // What can no longer be read still holds as it was.
    let unread: HashSet<String> = read.problems.into_iter().map(|problem| problem.what).collect();
    for (key, known) in before {
        let is_gone = telling.is_all && !told.contains_key(key) && !unread.contains(&format!("{} of {}", key.1, key.0));
        if is_gone || withdrawn.contains(&known.id) {
            steps.push(Step::Remove { package: key.0.clone(), id: key.1.clone() });
        }
    }
    for (key, one) in told.into_iter().filter(|(key, _)| !withdrawn.contains(&key.1)) {
        let known = before.get(&key);
        let advisory = advisory(one, telling.feed, known, now);
        match known {
            Some(known) if Advisory { changed: known.changed, ..advisory.clone() } == *known => imported.unchanged += 1,
            Some(_) => {
                imported.changed += 1;
                steps.push(Step::Put(Box::new(advisory)));
            }
            None => {
                imported.added += 1;
                steps.push(Step::Put(Box::new(advisory)));
            }
        }
    }
    // In an order of their own, so that two who write the same do not wait for each other crosswise.
    steps.sort_by(|a, b| a.package().cmp(b.package()));
    (steps, imported)
}

fn advisory(told: Told, feed: &str, known: Option<&Advisory>, now: Time) -> Advisory {
    Advisory {
        id: told.id,
        package: told.package,
        feed: feed.to_owned(),
        affected: told.affected,
        title: told.title,
        cve: told.cve,
        link: told.link,
        severity: told.severity,
        sources: told.sources,
        reported: told.reported.or(known.map(|known| known.reported)).unwrap_or(now),
        changed: now,
    }
}

async fn of_feed(db: &Db, feed: &str) -> Result<HashMap<Key, Advisory>> {
    let mut known = HashMap::new();
    let mut after = (String::new(), String::new());
    loop {
        let page = rows::of_feed(db, ID, feed, (&after.0, &after.1), PAGE).await?;
        let Some(last) = page.last() else { return Ok(known) };
        after = (last.package.clone(), last.remote_id.clone());
        for row in page {
            let advisory = Advisory::read(row)?;
            known.insert((advisory.package.clone(), advisory.id.clone()), advisory);
        }
    }
}

/// Writes in several batches, each with its event: a feed may tell more than fits in one, and what is written stays true
/// when a later one fails.
async fn write(db: &Db, telling: &Telling<'_>, steps: &[Step]) -> Result<()> {
    let host = db.host();
    let packages: BTreeSet<&str> = steps.iter().map(Step::package).collect();
    let is_much = packages.len() > MOST_TOPICS;
    for some in steps.chunks(AT_ONCE) {
        let mut batch = Batch::new();
        batch.extend(telling.guard.clone());
        let mut written = 0_u64;
        for step in some {
            batch.push(match step {
                Step::Put(advisory) => {
                    written += 1;
                    rows::put(&advisory.row(host.new_id()))
                }
                Step::Remove { package, id } => rows::remove(ID, package, telling.feed, id),
            });
        }
        let packages: BTreeSet<&str> = some.iter().map(Step::package).collect();
        let detail = json!({ "written": written, "removed": some.len() as u64 - written, "packages": packages.len() });
        batch.push(events::record(
            host,
            &Event::new(telling.actor, "advisory.import", feed_subject(telling.feed)).with(detail),
        ));
        batch.extend(topics(db, is_much, packages));
        db.commit(batch).await?;
    }
    Ok(())
}

/// Tells the caches.
fn topics<'a>(db: &Db, is_much: bool, packages: impl IntoIterator<Item = &'a str>) -> Vec<Statement> {
    let host = db.host();
    if is_much {
        return vec![changes::notify(host, TOPIC)];
    }
    packages.into_iter().map(|package| changes::notify(host, &packages::topic(ID, package))).collect()
}

/// An advisory of one's own, as it is written.
#[derive(Clone, Debug)]
pub struct Own {
    /// The package, here or not.
    pub package: String,
    /// Which versions.
    pub affected: Versions,
    /// What is wrong.
    pub title: String,
    /// Its number in the list of all vulnerabilities.
    pub cve: Option<String>,
    /// Where more is to be read.
    pub link: Option<String>,
    /// How bad it is.
    pub severity: Option<Severity>,
}

/// Writes an advisory of one's own.
pub async fn add(db: &Db, actor: &Actor, own: Own) -> Result<Advisory> {
    let package = own.package.to_ascii_lowercase();
    names::check_package(&package).map_err(|error| Error::invalid(error.to_string()))?;
    let title = line(&own.title);
    if title.is_empty() {
        return Err(Error::invalid("say in one line what is wrong: clients print it"));
    }
    if own.cve.as_deref().is_some_and(|cve| !is_id(cve)) {
        return Err(Error::invalid("a CVE is written like CVE-2026-1234"));
    }
    if own.link.as_deref().is_some_and(|link| !is_web_address(link)) {
        return Err(Error::invalid("a link begins with https:// or http:// and has no spaces"));
    }
    let host = db.host();
    let id = format!("LRD-{}", u64::from_be_bytes(host.random_bytes()) % 1_000_000_000_000);
    let advisory = Advisory {
        sources: vec![Origin { name: "Larder".to_owned(), remote_id: id.clone() }],
        id,
        package,
        feed: OWN.to_owned(),
        affected: own.affected,
        title,
        cve: own.cve,
        link: own.link,
        severity: own.severity,
        reported: host.now(),
        changed: host.now(),
    };
    let event = Event::new(actor, "advisory.add", subject(&advisory.id)).with(advisory.full());
    let batch = Batch::new()
        .with(rows::put(&advisory.row(host.new_id())))
        .with(events::record(host, &event))
        .with(changes::notify(host, &packages::topic(ID, &advisory.package)));
    db.commit(batch).await?;
    Ok(advisory)
}

/// Removes an advisory by its name, whoever told it, and gives what it said. What an upstream tells cannot be removed: it
/// would tell it again.
pub async fn remove(db: &Db, actor: &Actor, id: &str) -> Result<Vec<Advisory>> {
    let found = rows::named(db, ID, id, PAGE).await?;
    let found: Vec<Advisory> = found.into_iter().map(Advisory::read).collect::<Result<_>>()?;
    if found.is_empty() {
        return Err(Error::not_found(format!("there is no advisory `{id}`: `larder advisory list` shows all")));
    }
    if found.iter().any(|advisory| source_of(&advisory.feed).is_some()) {
        return Err(Error::conflict(format!(
            "`{id}` is told by a registry upstream, which would tell it again: projects ignore an advisory with \
             `audit.ignore` in their composer.json"
        )));
    }
    let host = db.host();
    let mut batch = Batch::new();
    for advisory in &found {
        batch.push(rows::remove(ID, &advisory.package, &advisory.feed, id));
    }
    let told: Vec<_> = found.iter().map(|advisory| json!({ "feed": advisory.feed, "said": advisory.full() })).collect();
    batch.push(events::record(
        host,
        &Event::new(actor, "advisory.remove", subject(id)).with(json!({ "removed": told })),
    ));
    let packages: BTreeSet<&str> = found.iter().map(|advisory| advisory.package.as_str()).collect();
    batch.extend(topics(db, packages.len() > MOST_TOPICS, packages));
    db.commit(batch).await?;
    Ok(found)
}

/// Removes all that a feed told, and gives how many advisories that were.
pub async fn remove_feed(db: &Db, actor: &Actor, feed: &str) -> Result<u64> {
    let known = feeds(db).await?.into_iter().find(|known| known.name == feed);
    let Some(known) = known else {
        return Err(Error::not_found(format!("there is no feed `{feed}`: `larder advisory list --feeds` shows all")));
    };
    let host = db.host();
    let event =
        Event::new(actor, "advisory.remove", feed_subject(feed)).with(json!({ "advisories": known.advisories }));
    let batch = Batch::new()
        .with(rows::remove_feed(ID, feed))
        .with(events::record(host, &event))
        .with(changes::notify(host, TOPIC));
    db.commit(batch).await?;
    Ok(known.advisories)
}

/// Checks the name that somebody gives to an import.
pub fn check_feed(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) || name == OWN {
        return Err(Error::invalid(format!(
            "`{name}` cannot be the name of a feed: use lowercase letters, digits, `-`, `_` and `.`, and not `{OWN}`"
        )));
    }
    Ok(())
}

/// The thing of an event about an advisory.
fn subject(id: &str) -> String {
    format!("advisory:{ID}:{id}")
}

/// The thing of an event about a feed.
fn feed_subject(feed: &str) -> String {
    format!("advisories:{ID}:{feed}")
}
