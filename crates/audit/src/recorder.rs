//! Collects accesses and downloads in memory and writes them in batches, so that no request waits for the database.
//!
//! Equal accesses within half a second are one row with their count. What waits is bounded: when there are too many
//! different ones (or the database is away for long), detail is given up before accesses are, and what had to be dropped
//! is counted and logged. At most half a second of records is lost when the machine dies, none when the program is
//! told to stop and calls [`Recorder::flush`].

use std::{
    borrow::Cow,
    collections::{VecDeque, hash_map::RandomState},
    fmt,
    hash::{BuildHasher, Hash},
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::select;
use hashbrown::HashTable;
use larder_core::{Bell, Id, Result, Time, grant::PrincipalName};
use larder_db::{Batch, CommitError, Db, access, access::Access, statistics, statistics::Counted};

/// How far behind the records are, at most, plus the time that writing takes.
const EVERY: Duration = Duration::from_millis(500);
/// So many parts that two requests seldom want the same one.
const SHARDS: usize = 16;
/// How many different accesses and downloads wait in full detail.
const DETAILED: usize = 50_000;
/// How many more wait without detail.
const FOLDED: usize = 5_000;
/// How many different accesses by people who were not recognised are kept in detail per writing. Whoever needs no token to
/// make them could otherwise fill the disk, with another user agent each time.
const REFUSED: usize = 32;
/// The HTTP status of those.
const UNAUTHENTICATED: u16 = 401;
/// How many accesses, and how many numbers, one batch writes.
const AT_ONCE: usize = 256;
/// How often a batch is tried that the database refuses for a reason that does not pass.
const REFUSALS: u32 = 3;
/// The longest text that is kept of what a client sent, in bytes.
const LONGEST: usize = 255;

/// One access, as the site saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// When it was answered.
    pub at: Time,
    /// Who asked.
    pub principal: &'a PrincipalName,
    /// What was done: `metadata`, `download`, `list`, `search`, …
    pub action: &'a str,
    /// The id of the format; empty if it was about none.
    pub format: &'a str,
    /// The package; empty if it was about none.
    pub package: &'a str,
    /// The version; empty if it was about none.
    pub version: &'a str,
    /// The HTTP status.
    pub result: u16,
    /// From where.
    pub address: IpAddr,
    /// With what client, as it calls itself.
    pub user_agent: &'a str,
}

/// What is added to the statistics.
#[derive(Clone, Copy, Debug)]
pub struct Download<'a> {
    /// The id of the format.
    pub format: &'a str,
    /// The package.
    pub package: &'a str,
    /// The version.
    pub version: &'a str,
    /// `download`: an artifact was sent. `install`: a client told that it installed one.
    pub kind: &'a str,
}

/// Records accesses and downloads. Cheap to clone.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    db: Db,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    /// How many entries there are in the shards and in `unwritten`.
    waiting: AtomicUsize,
    /// How many entries there are in the shards of people who were not recognised.
    refused: AtomicUsize,
    folded: AtomicU64,
    dropped: AtomicU64,
    unwritten: Mutex<VecDeque<Chunk>>,
    hurry: Bell,
}

#[derive(Default)]
struct Shard {
    accesses: HashTable<Entry>,
    downloads: HashTable<Tally>,
}

struct Entry {
    hash: u64,
    principal: PrincipalName,
    action: Box<str>,
    format: Box<str>,
    package: Box<str>,
    version: Box<str>,
    result: u16,
    address: Option<IpAddr>,
    user_agent: Box<str>,
    first_at: Time,
    last_at: Time,
    count: u64,
}

struct Tally {
    hash: u64,
    format: Box<str>,
    package: Box<str>,
    version: Box<str>,
    kind: Box<str>,
    day: i64,
    count: u64,
}

/// What is written as one batch, the same until it is written.
#[derive(Default)]
struct Chunk {
    accesses: Vec<Access>,
    counted: Vec<Counted>,
    refusals: u32,
}

impl Chunk {
    fn len(&self) -> usize {
        self.accesses.len() + self.counted.len()
    }
}

impl Recorder {
    /// Nothing recorded yet. [`run`](Self::run) writes what is.
    pub fn new(db: Db) -> Self {
        Self(Arc::new(Inner {
            db,
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
            waiting: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            folded: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            unwritten: Mutex::default(),
            hurry: Bell::default(),
        }))
    }

    /// Records an access. Never waits for the database; allocates nothing if an equal one waits to be written.
    pub fn record(&self, seen: &Seen<'_>) {
        let inner = &self.0;
        let (package, version, user_agent) = (fit(seen.package), fit(seen.version), fit(seen.user_agent));
        let seen = Seen { package: &package, version: &version, user_agent: &user_agent, ..*seen };
        if inner.add(&seen, Some(seen.address), DETAILED) {
            return;
        }
        inner.folded.fetch_add(1, Ordering::Relaxed);
        let package = if seen.package.is_empty() { "" } else { "*" };
        let without_detail = Seen { package, version: "", user_agent: "", ..seen };
        if !inner.add(&without_detail, None, DETAILED + FOLDED) {
            inner.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds one to the statistics of the day of `at`. Never waits for the database.
    pub fn count(&self, download: &Download<'_>, at: Time) {
        let inner = &self.0;
        let Download { format, package, version, kind } = *download;
        let (package, version, day) = (&*fit(package), &*fit(version), at.day());
        let hash = inner.hasher.hash_one((format, package, version, kind, day));
        let mut shard = inner.shard(hash);
        let same = |tally: &Tally| {
            tally.day == day
                && *tally.version == *version
                && *tally.package == *package
                && *tally.kind == *kind
                && *tally.format == *format
        };
        if let Some(tally) = shard.downloads.find_mut(hash, same) {
            tally.count += 1;
        } else if inner.has_room(DETAILED + FOLDED) {
            let (format, kind) = (format.into(), kind.into());
            let tally = Tally { hash, format, package: package.into(), version: version.into(), kind, day, count: 1 };
            shard.downloads.insert_unique(hash, tally, |tally| tally.hash);
        } else {
            inner.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what was recorded, twice a second, until it is dropped.
    pub async fn run(self) {
        loop {
            let tick = self.0.db.host().clock.sleep(EVERY);
            select(pin!(self.0.hurry.wait()), tick).await;
            if let Err(error) = self.flush().await {
                tracing::warn!(
                    error = error.chain(),
                    waiting = self.0.waiting.load(Ordering::Relaxed),
                    "cannot write accesses; trying again"
                );
                // The bell would ring at once when there is much to write.
                self.0.db.host().clock.sleep(EVERY).await;
            }
        }
    }

    /// How many records wait to be written, about.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Writes what was recorded until now. [`run`](Self::run) does it; so does whoever stops the program. What could
    /// not be written is kept for the next time.
    pub async fn flush(&self) -> Result<()> {
        let inner = &self.0;
        inner.collect();
        while let Some(mut taken) = inner.take() {
            if let Err(error) = inner.write(&taken.chunk).await {
                taken.chunk.refusals += u32::from(!error.is_temporary());
                if taken.chunk.refusals < REFUSALS {
                    return Err(error);
                }
                let lost = taken.chunk.len();
                tracing::error!(error = error.chain(), lost, "the database refuses these accesses; they are lost");
            }
            inner.waiting.fetch_sub(taken.chunk.len(), Ordering::Relaxed);
            taken.chunk = Chunk::default();
        }
        Ok(())
    }
}

/// A chunk that is being written. It goes back unless it was emptied: also when the task that writes it is aborted.
struct Taken<'a> {
    inner: &'a Inner,
    chunk: Chunk,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.chunk.len() > 0 {
            lock(&self.inner.unwritten).push_front(std::mem::take(&mut self.chunk));
        }
    }
}

impl Inner {
    /// Adds to an equal entry, or makes one if there are fewer than `most`; `false` if neither can be.
    fn add(&self, seen: &Seen<'_>, address: Option<IpAddr>, most: usize) -> bool {
        let Seen { at, principal, action, format, package, version, result, user_agent, .. } = *seen;
        let hash =
            self.hasher.hash_one(Fields(principal, action, format, package, version, result, address, user_agent));
        let mut shard = self.shard(hash);
        let same = |entry: &Entry| {
            entry.result == result
                && entry.address == address
                && *entry.package == *package
                && *entry.version == *version
                && *entry.action == *action
                && *entry.user_agent == *user_agent
                && *entry.format == *format
                && entry.principal == *principal
        };
        if let Some(entry) = shard.accesses.find_mut(hash, same) {
            entry.count += 1;
            entry.last_at = entry.last_at.max(at);
            return true;
        }
        let stranger = result == UNAUTHENTICATED && address.is_some();
        if stranger && self.refused.fetch_add(1, Ordering::Relaxed) >= REFUSED {
            return false;
        }
        if !self.has_room(most) {
            return false;
        }
        let entry = Entry {
            hash,
            principal: principal.clone(),
            action: action.into(),
            format: format.into(),
            package: package.into(),
            version: version.into(),
            result,
            address,
            user_agent: user_agent.into(),
            first_at: at,
            last_at: at,
            count: 1,
        };
        shard.accesses.insert_unique(hash, entry, |entry| entry.hash);
        true
    }

    /// Takes one place of `most`, if one is free. When half of them are taken, writing begins at once.
    fn has_room(&self, most: usize) -> bool {
        let taken = self.waiting.fetch_add(1, Ordering::Relaxed);
        if taken >= most {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        if taken == DETAILED / 2 {
            self.hurry.ring();
        }
        true
    }

    /// The lowest bits choose the bucket, and the highest seven its mark: the shard is chosen by others.
    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[(hash >> 40) as usize % SHARDS])
    }

    /// Moves everything recorded into chunks.
    fn collect(&self) {
        let (mut accesses, mut counted) = (Vec::new(), Vec::new());
        self.refused.store(0, Ordering::Relaxed);
        for shard in &self.shards {
            let Shard { accesses: entries, downloads } = std::mem::take(&mut *lock(shard));
            accesses.extend(entries.into_iter().map(|entry| entry.into_row(self.db.host().new_id())));
            counted.extend(downloads.into_iter().map(Tally::into_row));
        }
        counted.sort_unstable();
        accesses.sort_unstable_by_key(|access| access.first_at);
        let (mut accesses, mut counted) = (accesses.into_iter(), counted.into_iter());
        let mut unwritten = lock(&self.unwritten);
        loop {
            let chunk = Chunk {
                accesses: accesses.by_ref().take(AT_ONCE).collect(),
                counted: counted.by_ref().take(AT_ONCE).collect(),
                refusals: 0,
            };
            if chunk.len() == 0 {
                break;
            }
            unwritten.push_back(chunk);
        }
        drop(unwritten);
        let (folded, dropped) = (self.folded.swap(0, Ordering::Relaxed), self.dropped.swap(0, Ordering::Relaxed));
        if folded > 0 {
            tracing::warn!(
                folded,
                dropped,
                "too many different accesses: some were recorded without detail, or not at all"
            );
        }
    }

    fn take(&self) -> Option<Taken<'_>> {
        let chunk = lock(&self.unwritten).pop_front()?;
        Some(Taken { inner: self, chunk })
    }

    async fn write(&self, chunk: &Chunk) -> Result<()> {
        let mut batch = Batch::new();
        if let Some(first) = chunk.accesses.first() {
            batch.push(access::is_new(first.id));
        }
        batch.extend(access::insert(&chunk.accesses));
        batch.extend(statistics::add(&chunk.counted));
        match self.db.commit(batch).await {
            // It was committed before, but the answer was lost on its way.
            Ok(_) | Err(CommitError::Guard(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What tells accesses apart, in the order in which it is hashed.
#[derive(Hash)]
struct Fields<'a>(&'a PrincipalName, &'a str, &'a str, &'a str, &'a str, u16, Option<IpAddr>, &'a str);

impl Entry {
    fn into_row(self, id: Id) -> Access {
        Access {
            id,
            first_at: self.first_at,
            last_at: self.last_at,
            principal: self.principal.to_string(),
            action: self.action.into(),
            format: self.format.into(),
            package: self.package.into(),
            version: self.version.into(),
            result: self.result,
            address: self.address.map(|address| address.to_string()).unwrap_or_default(),
            user_agent: self.user_agent.into(),
            count: self.count,
        }
    }
}

impl Tally {
    fn into_row(self) -> Counted {
        Counted {
            format: self.format.into(),
            package: self.package.into(),
            version: self.version.into(),
            day: self.day,
            kind: self.kind.into(),
            count: self.count,
        }
    }
}

/// What is kept of a text that a client sent: not more than the beginning, and no NUL, because PostgreSQL would refuse it
/// with all that is beside it.
fn fit(text: &str) -> Cow<'_, str> {
    let end = (0..=LONGEST.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let text = &text[..end];
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic within one of these locks leaves at worst one entry less.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("waiting", &self.0.waiting).finish_non_exhaustive()
    }
}
