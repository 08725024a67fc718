//! Names that never leave the house: reserving them, asking whether one is, and noticing when an upstream offers one.
//!
//! One name has one origin. A reserved name comes from here: from a Git source, an upload, a push; no upstream is asked for
//! it, and what an upstream tells of it by itself is not listened to. A package that is here already needs no reservation:
//! its name has an origin. How an upstream is asked is not here, but in the rooms; each asks [`Reservations::is_reserved`]
//! first, and puts [`Known::unchanged`] of [`Reservations::latest`] into the batch that brings a package.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use larder_core::{Error, Kind, Result, Time, pattern::Pattern};
use larder_db::{
    Batch, CommitError, Db, Statement,
    changes::{self, Change},
    events::{self, Actor, Event},
    packages,
    reservations::{self as rows, Brought, Mark, ReservationRow},
    sources::Source,
    upstream_checks::{self as checks, Check},
};
use serde_json::json;

use crate::Sources;

/// Every format, as reservations write it.
pub const EVERY_FORMAT: &str = "*";

/// How long reservations are remembered: one that another process makes holds within a second.
const FRESH: Duration = Duration::from_millis(900);

/// The most reservations.
const MOST: usize = 1_000;

/// The most packages that one reservation takes over.
const MOST_TAKEN: usize = 1_000;

/// How many names an error lists.
const SHOWN: usize = 20;

/// How many rows are read at once.
const PAGE: i64 = 5_000;

/// How often something that others change all the time is decided again.
const ATTEMPTS: usize = 5;

/// The most names that one upstream is noted to offer: who offers more has been noticed.
const MOST_NOTED: usize = 1_000;

/// The longest name that is noted; no format has longer ones.
const LONGEST_NAME: usize = 255;

/// How long a note that an upstream offers a name stays as it is while it goes on doing so.
const NOTED: Duration = Duration::from_secs(86_400);

/// A reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The format that it is about; `None` for every one.
    pub format: Option<String>,
    /// The names, in small letters.
    pub pattern: Pattern,
    /// When it was made.
    pub created_at: Time,
}

impl Reservation {
    fn read(row: &ReservationRow) -> Result<Self> {
        Ok(Self {
            format: Some(row.format.clone()).filter(|format| format != EVERY_FORMAT),
            pattern: row.pattern.parse()?,
            created_at: row.created_at,
        })
    }

    fn is_about(&self, format: &str, name: &str) -> bool {
        self.format.as_deref().is_none_or(|own| own == format) && self.pattern.matches(name)
    }
}

/// What came of reserving names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The pattern as it is kept.
    pub pattern: Pattern,
    /// Whether it is new.
    pub added: bool,
    /// The packages of upstreams that had such names, and are gone now.
    pub taken: Vec<Brought>,
}

/// All reservations at one moment.
#[derive(Debug, Default)]
pub struct Known {
    mark: Mark,
    /// By what stands before the first slash, for patterns that have no star there.
    by_vendor: HashMap<String, Vec<Reservation>>,
    others: Vec<Reservation>,
}

impl Known {
    fn read(rows: &[ReservationRow]) -> Result<Self> {
        let last = rows.iter().map(|row| row.id.to_string()).max().unwrap_or_default();
        let mut known = Self { mark: Mark { count: rows.len() as u64, last }, ..Self::default() };
        for row in rows {
            let reservation = Reservation::read(row)?;
            let vendor = vendor(reservation.pattern.as_str());
            if vendor.contains('*') {
                known.others.push(reservation);
            } else {
                known.by_vendor.entry(vendor.to_owned()).or_default().push(reservation);
            }
        }
        Ok(known)
    }

    /// Whether a name is reserved, in small or in capital letters.
    pub fn covers(&self, format: &str, name: &str) -> bool {
        let name = small(name);
        let of_vendor = self.by_vendor.get(vendor(&name)).into_iter().flatten();
        of_vendor.chain(&self.others).any(|reservation| reservation.is_about(format, &name))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_vendor.is_empty() && self.others.is_empty()
    }

    /// Guard `reservations are as known`: for the batch that brings a package from an upstream.
    pub fn unchanged(&self) -> Statement {
        rows::unchanged(&self.mark)
    }
}

fn vendor(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
}

/// Formats differ in whether capitals make another name; a reservation is better too wide than too narrow.
fn small(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
}

/// All reservations, remembered: every request of a proxy asks for them. Cheap to clone; clones remember together.
#[derive(Clone)]
pub struct Reservations {
    db: Db,
    remembered: Arc<Mutex<Remembered>>,
}

#[derive(Default)]
struct Remembered {
    /// Counted up by every change, so that what was read before one is not believed after it.
    changes: u64,
    known: Option<(Time, Arc<Known>)>,
}

impl Reservations {
    /// As the database has them.
    pub fn new(db: Db) -> Self {
        Self { db, remembered: Arc::default() }
    }

    /// Forgets what a change makes stale.
    pub fn on_change(&self, change: &Change) {
        if matches!(change, Change::Everything) || *change == Change::Topic(rows::TOPIC.to_owned()) {
            let mut remembered = self.remembered();
            remembered.changes += 1;
            remembered.known = None;
        }
    }

    /// Whether no upstream may be asked for a name.
    pub async fn is_reserved(&self, format: &str, name: &str) -> Result<bool> {
        Ok(self.known().await?.covers(format, name))
    }

    /// All of them, as they were within the last second.
    pub async fn known(&self) -> Result<Arc<Known>> {
        let now = self.db.host().now();
        let remembered = self.remembered().known.clone();
        match remembered {
            Some((at, known)) if now.since(at) < FRESH => Ok(known),
            _ => self.latest().await,
        }
    }

    /// All of them, as they are now: for the batch that brings a package, which would fail again and again with those of a
    /// second ago.
    pub async fn latest(&self) -> Result<Arc<Known>> {
        let now = self.db.host().now();
        let changes = self.remembered().changes;
        let known = Arc::new(Known::read(&rows::list(&self.db).await?)?);
        let mut remembered = self.remembered();
        if remembered.changes == changes {
            remembered.known = Some((now, Arc::clone(&known)));
        }
        Ok(known)
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares names that an upstream tells by itself (its list, its changes, whole documents; never what was asked for),
    /// as they are here, with those that are not its own: reserved ones, and those of packages that came from no upstream.
    /// The first time that a source is seen to offer one there is an event and a warning. Gives how many are new.
    ///
    /// Costs one look per name, and the memory of our own names.
    pub async fn note_offered<'a>(
        &self,
        source: &Source,
        names: impl Iterator<Item = &'a str> + Send,
    ) -> Result<usize> {
        let known = self.known().await?;
        let own = self.own_names(&source.kind).await?;
        if known.is_empty() && own.is_empty() {
            return Ok(0);
        }
        let offered = find_offered(&known, &own, &source.kind, names);
        if offered.is_empty() {
            return Ok(0);
        }
        self.note(source, offered).await
    }

    async fn note(&self, source: &Source, offered: BTreeMap<String, Why>) -> Result<usize> {
        let now = self.db.host().now();
        let most = i64::try_from(MOST_NOTED).unwrap_or(i64::MAX);
        let noted: HashMap<String, Time> = checks::offered(&self.db, source.id, most).await?.into_iter().collect();
        let (again, mut new): (Vec<_>, Vec<_>) = offered.into_iter().partition(|(name, _)| noted.contains_key(name));
        let room = MOST_NOTED.saturating_sub(noted.len());
        if new.len() > room {
            tracing::warn!(source = %source.name, "this upstream offers so many names that are not its own that no more are noted");
            new.truncate(room);
        }
        let check = Check { checked_at: now, validator: String::new() };
        let old = again.iter().filter(|(name, _)| noted.get(name).is_none_or(|at| now.since(*at) > NOTED));
        let refreshed: Batch =
            old.map(|(name, _)| checks::put(source.id, &checks::offered_subject(name), &check)).collect();
        self.db.commit(refreshed).await?;
        let mut count = 0;
        for (name, why) in new {
            count += usize::from(self.note_one(source, &name, why, &check).await?);
        }
        Ok(count)
    }

    /// Whether it was new, and not noted by another replica meanwhile.
    async fn note_one(&self, source: &Source, name: &str, why: Why, check: &Check) -> Result<bool> {
        let subject = checks::offered_subject(name);
        let event = Event::new(&Actor::house(), "name.offered", format!("package:{}:{name}", source.kind))
            .with(json!({ "source": source.name, "because": why.as_str() }));
        let batch = Batch::new()
            .with(checks::is_new(source.id, &subject))
            .with(checks::put(source.id, &subject, check))
            .with(events::record(self.db.host(), &event));
        match self.db.commit(batch).await {
            Ok(_) => {
                tracing::warn!(
                    source = %source.name, name, because = why.as_str(),
                    "an upstream offers a name that is not its own; nothing is taken from there"
                );
                Ok(true)
            }
            Err(CommitError::Guard(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The names that a source was noted to offer although they are not its own, and still are not, each with when it was
    /// last seen to.
    pub async fn offered(&self, source: &Source) -> Result<Vec<(String, Time)>> {
        let most = i64::try_from(MOST_NOTED).unwrap_or(i64::MAX);
        let mut noted = checks::offered(&self.db, source.id, most).await?;
        if noted.is_empty() {
            return Ok(noted);
        }
        let known = self.known().await?;
        let own = self.own_names(&source.kind).await?;
        noted.retain(|(name, _)| why(&known, &own, &source.kind, name).is_some());
        Ok(noted)
    }

    async fn own_names(&self, format: &str) -> Result<HashSet<String>> {
        let mut names = HashSet::new();
        let mut after = String::new();
        loop {
            let page = rows::own_names(&self.db, format, &after, PAGE).await?;
            let is_last = i64::try_from(page.len()).is_ok_and(|count| count < PAGE);
            page.last().map_or("", String::as_str).clone_into(&mut after);
            names.extend(page);
            if is_last {
                return Ok(names);
            }
        }
    }
}

/// Why a name is not an upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Own,
    Reserved,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::Own => "a package of this name is made here",
            Self::Reserved => "the name is reserved",
        }
    }
}

fn why(known: &Known, own: &HashSet<String>, format: &str, name: &str) -> Option<Why> {
    if own.contains(name) || own.contains(small(name).as_ref()) {
        return Some(Why::Own);
    }
    known.covers(format, name).then_some(Why::Reserved)
}

/// At most one more than can be noted.
fn find_offered<'a>(
    known: &Known,
    own: &HashSet<String>,
    format: &str,
    names: impl Iterator<Item = &'a str>,
) -> BTreeMap<String, Why> {
    let sane = |name: &str| !name.is_empty() && name.len() <= LONGEST_NAME && !name.contains(char::is_control);
    let mut offered = BTreeMap::new();
    for name in names.filter(|name| sane(name)) {
        if let Some(why) = why(known, own, format, name) {
            offered.insert(small(name).into_owned(), why);
            if offered.len() > MOST_NOTED {
                break;
            }
        }
    }
    offered
}

impl Sources {
    /// Every reservation, by pattern.
    pub async fn reservations(&self) -> Result<Vec<Reservation>> {
        rows::list(&self.db).await?.iter().map(Reservation::read).collect()
    }

    /// Reserves the names of a format (`None`: of every one). If packages of upstreams have such names already, they are
    /// taken away in the same batch, or, without `take_over`, named in an error.
    pub async fn reserve(
        &self,
        actor: &Actor,
        format: Option<&str>,
        pattern: &Pattern,
        take_over: bool,
    ) -> Result<Reserved> {
        let format = self.reserved_format(format)?;
        let pattern: Pattern = pattern.as_str().to_ascii_lowercase().parse()?;
        for _ in 0..ATTEMPTS {
            let known = rows::list(&self.db).await?;
            if known.iter().any(|row| row.format == format && row.pattern == pattern.as_str()) {
                return Ok(Reserved { pattern, added: false, taken: Vec::new() });
            }
            if known.len() >= MOST {
                let text = format!(
                    "there are {MOST} reservations already: reserve wider patterns, and remove the narrow ones"
                );
                return Err(Error::new(Kind::TooLarge, text));
            }
            let (taken, mark) = self.brought(format, &pattern).await?;
            if !taken.is_empty() && !take_over || taken.len() > MOST_TAKEN {
                return Err(in_the_way(&pattern, &taken));
            }
            // Guards first: they are about what was there before.
            let mut batch =
                Batch::new().with(Known::read(&known)?.unchanged()).with(rows::brought_unchanged(format, &mark));
            self.reserving(&mut batch, actor, format, &pattern, &taken);
            match self.db.commit(batch).await {
                Ok(_) => return Ok(Reserved { pattern, added: true, taken }),
                Err(CommitError::Guard(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::conflict("packages of upstreams come in all the time: try again in a moment"))
    }

    fn reserving(&self, batch: &mut Batch, actor: &Actor, format: &str, pattern: &Pattern, taken: &[Brought]) {
        let host = self.db.host();
        let row = ReservationRow {
            id: host.new_id(),
            format: format.to_owned(),
            pattern: pattern.to_string(),
            created_at: host.now(),
        };
        let names: Vec<_> = taken.iter().map(|package| &package.name).collect();
        let event = Event::new(actor, "reservation.add", subject(format, pattern)).with(json!({ "taken_over": names }));
        batch.extend([rows::insert(&row), events::record(host, &event), changes::notify(host, rows::TOPIC)]);
        for package in taken {
            let event = Event::new(actor, "package.remove", format!("package:{}:{}", package.format, package.name))
                .with(json!({ "source": package.source, "reserved": pattern }));
            batch.extend([
                packages::exists(package.id),
                packages::remove(package.id),
                events::record(host, &event),
                changes::notify(host, &packages::topic(&package.format, &package.name)),
            ]);
        }
    }

    /// The packages of upstreams whose names a pattern matches, and a mark of all packages that were looked at.
    async fn brought(&self, format: &str, pattern: &Pattern) -> Result<(Vec<Brought>, Mark)> {
        let (mut found, mut mark) = (Vec::new(), Mark::default());
        loop {
            let page = rows::brought(&self.db, format, &mark.last, PAGE).await?;
            mark.count += page.len() as u64;
            if let Some(last) = page.last() {
                mark.last = last.id.to_string();
            }
            let is_last = i64::try_from(page.len()).is_ok_and(|count| count < PAGE);
            found.extend(page.into_iter().filter(|package| pattern.matches(&small(&package.name))));
            if is_last {
                found.sort_by(|a, b| (&a.name, &a.format).cmp(&(&b.name, &b.format)));
                return Ok((found, mark));
            }
        }
    }

    /// Gives names free again: upstreams may be asked for them. What is here stays.
    pub async fn unreserve(&self, actor: &Actor, format: Option<&str>, pattern: &Pattern) -> Result<()> {
        let format = format.unwrap_or(EVERY_FORMAT);
        let pattern: Pattern = pattern.as_str().to_ascii_lowercase().parse()?;
        let all = rows::list(&self.db).await?;
        let found = all.iter().find(|row| row.format == format && row.pattern == pattern.as_str());
        let row = found.ok_or_else(|| {
            let other = all.iter().find(|row| row.pattern == pattern.as_str());
            let hint = other.map_or_else(
                || "`larder reserve list` shows all".to_owned(),
                |other| format!("but for the format `{0}`: give --format '{0}'", other.format),
            );
            Error::not_found(format!("there is no reservation of `{pattern}` for the format `{format}`: {hint}"))
        })?;
        let host = self.db.host();
        let batch = Batch::new()
            .with(rows::exists(row.id))
            .with(rows::remove(row.id))
            .with(events::record(host, &Event::new(actor, "reservation.remove", subject(format, &pattern))))
            .with(changes::notify(host, rows::TOPIC));
        self.db.commit(batch).await?;
        Ok(())
    }

    fn reserved_format<'a>(&self, format: Option<&'a str>) -> Result<&'a str> {
        match format {
            None | Some(EVERY_FORMAT) => Ok(EVERY_FORMAT),
            Some(id) if self.format(id).is_some() => Ok(id),
            Some(id) => {
                let ids: Vec<_> = self.formats().iter().map(|format| format.id()).collect();
                let text = format!("there is no format `{id}`: write {}, or leave it out for all", ids.join(" or "));
                Err(Error::invalid(text))
            }
        }
    }
}

fn subject(format: &str, pattern: &Pattern) -> String {
    format!("reservation:{format}:{pattern}")
}

fn in_the_way(pattern: &Pattern, taken: &[Brought]) -> Error {
    if taken.len() > MOST_TAKEN {
        return Error::new(
            Kind::TooLarge,
            format!(
                "`{pattern}` matches {} packages of upstreams: {MOST_TAKEN} are the most that one reservation takes over; reserve narrower patterns, or narrow the sources",
                taken.len()
            ),
        );
    }
    let shown: Vec<_> =
        taken.iter().take(SHOWN).map(|package| format!("{} (from `{}`)", package.name, package.source)).collect();
    let more = taken.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Error::conflict(format!(
        "upstreams have brought packages that `{pattern}` matches: {}{more}. Reserve other names, or take these away with --take-over",
        shown.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use larder_core::Id;

    use super::*;

    fn known(all: &[(&str, &str)]) -> Known {
        let row = |(at, (format, pattern)): (usize, &(&str, &str))| ReservationRow {
            id: Id::new(Time::from_seconds(i64::try_from(at).unwrap()), [0; 10]),
            format: (*format).to_owned(),
            pattern: (*pattern).to_owned(),
            created_at: Time::from_seconds(0),
        };
        Known::read(&all.iter().enumerate().map(row).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn names_are_reserved_by_vendor_by_star_and_whole() {
        let known = known(&[("*", "acme/*"), ("x", "solo"), ("x", "*/secret"), ("y", "deep/**"), ("y", "ac*/tool")]);
        for (format, name, expected) in [
            ("x", "acme/lib", true),
            ("y", "acme/lib", true),
            ("y", "ACME/Lib", true),
            ("x", "acme", false),
            ("x", "acme/lib/sub", false),
            ("x", "acmeevil/lib", false),
            ("x", "solo", true),
            ("y", "solo", false),
            ("x", "solo/lib", false),
            ("x", "other/secret", true),
            ("y", "other/secret", false),
            ("y", "deep/a/b", true),
            ("y", "acorn/tool", true),
            ("x", "", false),
        ] {
            assert_eq!(known.covers(format, name), expected, "{format} {name}");
        }
    }

    #[test]
    fn what_is_offered_is_found_among_many_names() {
        let known = known(&[("x", "acme/*")]);
        let own: HashSet<String> = ["made/here".to_owned()].into();
        let long = format!("acme/{}", "a".repeat(LONGEST_NAME));
        let names = ["a/b", "Acme/Lib", "made/here", "made/there", "acme/\u{0}", long.as_str(), "", "acme/lib"];
        let found = find_offered(&known, &own, "x", names.into_iter());
        let expected = [("acme/lib".to_owned(), Why::Reserved), ("made/here".to_owned(), Why::Own)];
        assert_eq!(found, expected.into());
        assert!(find_offered(&known, &HashSet::new(), "y", names.into_iter()).is_empty());
        let many: Vec<String> = (0..MOST_NOTED + 50).map(|at| format!("acme/{at}")).collect();
        assert_eq!(find_offered(&known, &own, "x", many.iter().map(String::as_str)).len(), MOST_NOTED + 1);
    }
}
