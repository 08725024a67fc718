//! What a sync is going to write, decided without touching anything: the refs that were read and what is here already go
//! in, the changes come out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use larder_core::{Id, Time, format::Release};
use larder_db::{packages::VersionKey, sources::SourceRef};

use crate::git::RemoteRef;

/// Which refs differ between a remote and what the last sync saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// New ones and moved ones.
    pub changed: Vec<RemoteRef>,
    /// The names of those that are not there any more.
    pub gone: Vec<String>,
}

impl Difference {
    /// Compares. When a ref is gone, those that were skipped are looked at again: one of them may have its version.
    pub fn between(listed: &[RemoteRef], known: &[SourceRef]) -> Self {
        let now: HashSet<&str> = listed.iter().map(|one| one.name.as_str()).collect();
        let gone: Vec<String> =
            known.iter().filter(|seen| !now.contains(seen.name.as_str())).map(|seen| seen.name.clone()).collect();
        let known = known.iter().filter(|seen| gone.is_empty() || seen.skipped.is_none());
        let before: HashMap<&str, &str> = known.map(|seen| (seen.name.as_str(), seen.commit.as_str())).collect();
        let moved = |one: &&RemoteRef| before.get(one.name.as_str()) != Some(&one.commit.as_str());
        Self { changed: listed.iter().filter(moved).cloned().collect(), gone }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.gone.is_empty()
    }
}

/// The id of a format, and the name of a package in it.
pub type Name = (String, String);

/// A release that a ref gave, and its format.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The id of the format.
    pub format: String,
    /// The folder that it is in; empty for the root.
    pub folder: String,
    /// The release.
    pub release: Release,
}

/// What became of one changed ref.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The ref.
    pub seen: RemoteRef,
    /// When its commit was made.
    pub committed: Time,
    /// The releases in it, each package once.
    pub taken: Vec<Taken>,
    /// Folders that hold something which could not be taken in: what they gave before stays.
    pub broken: BTreeSet<String>,
    /// Whether some of its folders were not looked at: then all that it gave before stays.
    pub unread: bool,
    /// Why there is nothing, or not all of it, for people.
    pub skipped: Option<String>,
    /// What is odd, for people.
    pub warnings: Vec<String>,
}

/// A version that is going to be added.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// Format and package name.
    pub package: Name,
    /// Its identity.
    pub id: Id,
    /// What it is.
    pub release: Release,
    /// The folder that it is in.
    pub folder: String,
    /// The commit.
    pub reference: String,
    /// When that was made.
    pub committed: Time,
    /// The ref.
    pub origin: String,
    /// Whether it is listed at once: not if it must not replace a frozen one, nor if a pointer names it.
    pub listed: bool,
}

/// A tag that points elsewhere than it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Format and package name.
    pub package: Name,
    /// The version, normalised.
    pub version: String,
    /// The commit before.
    pub from: String,
    /// The commit now.
    pub to: String,
    /// Whether the metadata stays with the commit before.
    pub frozen: bool,
}

/// What a sync is going to write.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Versions to add.
    pub add: Vec<NewVersion>,
    /// Versions that are here, to be listed again, with the ref that they now come from.
    pub list_again: Vec<(Id, String)>,
    /// Versions to take off the list.
    pub unlist: Vec<Id>,
    /// Pointers to set: package, name, version.
    pub point: Vec<(Name, String, Id)>,
    /// Pointers to take away: package id, name.
    pub unpoint: Vec<(Id, String)>,
    /// Versions that nobody sees any more: forgotten if they were never built.
    pub forget: Vec<Id>,
    /// Refs to remember.
    pub refs: Vec<SourceRef>,
    /// Refs to forget.
    pub gone: Vec<String>,
    /// Tags that moved.
    pub moved: Vec<Moved>,
    /// The packages that change, each with what now describes it best, if that changes too.
    pub packages: BTreeMap<Name, Option<Release>>,
    /// How many visible versions there were.
    pub visible: usize,
    /// How many of them would vanish, as `package version`.
    pub dropped: Vec<String>,
}

impl Plan {
    /// Whether more than a third of the versions would vanish: that is more likely an accident at the remote than a wish.
    pub fn drops_too_much(&self) -> bool {
        self.dropped.len() * 3 > self.visible
    }
}

/// What decides about moved tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MovedTags {
    /// Stable releases stay what they were; everything else follows its tag.
    Freeze,
    /// Every version follows its tag.
    Follow,
}

/// Format, package and version.
type Key = (String, String, String);

/// Plans a sync.
pub struct Planner<'a> {
    moved_tags: MovedTags,
    now: Time,
    plan: Plan,
    /// The visible rows of `known` by what they are.
    visible: HashMap<Key, &'a VersionKey>,
    /// All rows of `known`, by what they are and the commit that they are made from.
    exact: HashMap<(Key, &'a str), &'a VersionKey>,
    /// The oldest row of each stable release, visible or not: what was served first under its name.
    first: HashMap<Key, &'a VersionKey>,
    /// The visible rows of `known` by the ref that they came from.
    by_origin: HashMap<&'a str, Vec<&'a VersionKey>>,
    /// The versions that this plan itself gives out, and the ref that did.
    given: HashMap<Key, String>,
}

/// The longest reason that is kept of a ref, in characters.
const LONGEST_REASON: usize = 1_000;

/// A reason as it is kept. It may quote what a stranger wrote: a NUL, which PostgreSQL refuses with all beside it, or a
/// megabyte.
fn shown(reason: &str) -> String {
    let mut shown: String =
        reason.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(LONGEST_REASON).collect();
    if shown.len() < reason.len() && reason.chars().count() > LONGEST_REASON {
        shown.push('…');
    }
    shown
}

/// What is told of a folder: its path in front, unless it is the root.
pub(crate) fn of_folder(folder: &str, text: &str) -> String {
    if folder.is_empty() { text.to_owned() } else { format!("{folder}: {text}") }
}

/// One more reason beside those that are there. No more than are shown are collected.
pub(crate) fn also(there: Option<String>, reason: String) -> String {
    match there {
        None => reason,
        Some(there) if there.len() > 4 * LONGEST_REASON => there,
        Some(there) => format!("{there}; {reason}"),
    }
}

fn key_of(known: &VersionKey) -> Key {
    (known.format.clone(), known.package.clone(), known.version.clone())
}

impl<'a> Planner<'a> {
    /// With everything that ever came from the source.
    pub fn new(known: &'a [VersionKey], moved_tags: MovedTags, now: Time) -> Self {
        let visible: HashMap<_, _> = known.iter().filter(|key| key.visible()).map(|key| (key_of(key), key)).collect();
        let exact = known.iter().map(|key| ((key_of(key), key.reference.as_str()), key)).collect();
        let mut first: HashMap<Key, &VersionKey> = HashMap::new();
        for key in known.iter().filter(|key| key.stable) {
            first
                .entry(key_of(key))
                .and_modify(|there| *there = if key.id < there.id { key } else { *there })
                .or_insert(key);
        }
        let mut by_origin: HashMap<&str, Vec<_>> = HashMap::new();
        for key in known.iter().filter(|key| key.visible()) {
            by_origin.entry(&key.origin).or_default().push(key);
        }
        let plan = Plan { visible: visible.len(), ..Plan::default() };
        Self { moved_tags, now, plan, visible, exact, first, by_origin, given: HashMap::new() }
    }

    /// Plans for the refs that changed and those that are gone; `new_id` makes identities.
    pub fn plan(mut self, outcomes: Vec<Outcome>, gone: Vec<String>, new_id: &dyn Fn() -> Id) -> Plan {
        let gone_set: HashSet<&str> = gone.iter().map(String::as_str).collect();
        let mut lost = Vec::new();
        for outcome in outcomes {
            let of_ref = self.by_origin.get(outcome.seen.name.as_str()).cloned().unwrap_or_default();
            let (broken, unread) = (outcome.broken.clone(), outcome.unread);
            if self.outcome(outcome, &gone_set, new_id) && !unread {
                lost.extend(of_ref.into_iter().filter(|key| !broken.contains(&key.folder)));
            }
        }
        lost.extend(gone_set.iter().filter_map(|origin| self.by_origin.get(origin)).flatten());
        for key in lost {
            // A frozen release stays when its tag comes to hold another package; it goes when the tag goes.
            let frozen = key.stable && self.moved_tags == MovedTags::Freeze && !gone_set.contains(key.origin.as_str());
            if !frozen && !self.given.contains_key(&key_of(key)) {
                self.drop_version(key);
            }
        }
        // Told in the same order each time: a source that stays held says so once.
        self.plan.dropped.sort_unstable();
        self.plan.gone = gone;
        self.plan
    }

    /// Plans one ref, and says whether it now stands for what it gave, but for its broken folders: a ref whose newest
    /// commit gives nothing keeps what it last gave.
    fn outcome(&mut self, outcome: Outcome, gone: &HashSet<&str>, new_id: &dyn Fn() -> Id) -> bool {
        let Outcome { seen, committed, taken, mut skipped, mut warnings, .. } = outcome;
        let gave_something = !taken.is_empty();
        for taken in taken {
            let folder = taken.folder.clone();
            warnings.extend(taken.release.warnings.iter().map(|warning| of_folder(&folder, warning)));
            if let Err(reason) = self.release(taken, &seen, committed, gone, new_id) {
                skipped = Some(also(skipped, of_folder(&folder, &reason)));
            }
        }
        self.plan.refs.push(SourceRef {
            name: seen.name,
            commit: seen.commit,
            skipped: skipped.map(|reason| shown(&reason)),
            warning: (!warnings.is_empty()).then(|| shown(&warnings.join("; "))),
            changed_at: self.now,
        });
        gave_something
    }

    /// Plans one release, or says which other ref has its version.
    fn release(
        &mut self,
        taken: Taken,
        seen: &RemoteRef,
        committed: Time,
        gone: &HashSet<&str>,
        new_id: &dyn Fn() -> Id,
    ) -> Result<(), String> {
        let Taken { format, folder, release } = taken;
        let package: Name = (format.clone(), release.package.clone());
        let key: Key = (format, release.package.clone(), release.version.clone());
        let current = self.visible.get(&key).copied();
        let other = current.map(|current| &current.origin).filter(|origin| !gone.contains(origin.as_str()));
        if let Some(other) = self.given.get(&key).or(other).filter(|other| **other != seen.name) {
            return Err(format!("{other} is the same version, {}, and is used instead", release.version));
        }
        self.describe(&package, &release);
        // A stable release whose tag was deleted and comes back elsewhere has moved too: in two steps rather than in one.
        let returned = self.first.get(&key).copied().filter(|_| self.moved_tags == MovedTags::Freeze && release.stable);
        let before = current.or(returned).filter(|_| release.pointer.is_none());
        let moved = before.filter(|before| before.reference != seen.commit);
        let frozen = moved.is_some_and(|before| before.stable && self.moved_tags == MovedTags::Freeze);
        if let Some(before) = moved.filter(|before| frozen && !before.visible()) {
            self.plan.list_again.push((before.id, seen.name.clone()));
        }
        if let Some(current) = moved {
            self.plan.moved.push(Moved {
                package: package.clone(),
                version: release.version.clone(),
                from: current.reference.clone(),
                to: seen.commit.clone(),
                frozen,
            });
        }
        let listed = release.pointer.is_none() && !frozen;
        let pointer = release.pointer.clone();
        let same = self.exact.get(&(key.clone(), seen.commit.as_str())).copied();
        self.given.insert(key, seen.name.clone());
        let id = if let Some(same) = same {
            if listed && (!same.listed || same.origin != seen.name) {
                self.plan.list_again.push((same.id, seen.name.clone()));
            }
            same.id
        } else {
            let id = new_id();
            let (reference, origin, package) = (seen.commit.clone(), seen.name.clone(), package.clone());
            self.plan.add.push(NewVersion { package, id, release, folder, reference, committed, origin, listed });
            id
        };
        let before = current.filter(|current| current.id != id);
        if let Some(pointer) = pointer {
            self.plan.point.push((package, pointer, id));
            self.plan.forget.extend(before.map(|before| before.id));
        } else if !frozen {
            self.plan.unlist.extend(before.filter(|before| before.listed).map(|before| before.id));
        }
        Ok(())
    }

    /// Notes that a package changes, and by which release it is described: the default branch if it has one.
    fn describe(&mut self, package: &Name, release: &Release) {
        let described = self.plan.packages.entry(package.clone()).or_default();
        if described.as_ref().is_none_or(|best| !best.describes) {
            *described = Some(release.clone());
        }
    }

    /// Takes a version out of the metadata.
    fn drop_version(&mut self, key: &VersionKey) {
        if key.listed {
            self.plan.unlist.push(key.id);
        }
        if let Some(pointer) = &key.pointer {
            self.plan.unpoint.push((key.package_id, pointer.clone()));
            self.plan.forget.push(key.id);
        }
        self.plan.packages.entry((key.format.clone(), key.package.clone())).or_default();
        self.plan.dropped.push(format!("{} {}", key.package, key.version));
    }
}
