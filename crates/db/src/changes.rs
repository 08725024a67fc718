//! How the caches of every replica hear of a change: a batch that changes something cached adds a [`notify`]; each
//! replica's [`Watcher`] tells its listeners of those of its own commits at once, and looks for others every 200 ms.
//!
//! Nothing is lost and nothing is told twice as long as two things differ by less than [`OVERLAP`]: the clocks of any
//! two replicas, and the moments at which a change is dated and is committed. It is not a queue: who was away for
//! longer than [`RETENTION`] hears only that everything may have changed.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use futures_util::{
    future::{Either, poll_fn, select},
    task::AtomicWaker,
};
use larder_core::{Host, Result, Time};

use crate::{Db, Row, Statement, Value};

statements! {
    NOTIFY = "insert into changes (id, at, topic) values ($1, $2, $3)";
    COUNT = "select count(*) from changes where at > $1";
    NEWER = "select id, at, topic from changes where at > $1 order by at, id limit $2";
    SWEEP = "delete from changes where at < $1";
}

/// How often a replica looks.
const EVERY: Duration = Duration::from_millis(200);
/// How long it waits, at most, before it tries again when the database does not answer.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How far behind its last look it looks again.
pub const OVERLAP: Duration = Duration::from_secs(30);
/// How long a change stays to be seen; give [`sweep`] nothing younger.
pub const RETENTION: Duration = Duration::from_secs(3_600);
/// More than so many changes within one look are not told one by one.
const MOST: i64 = 10_000;

/// How many changes of its own a watcher is told directly when it is behind.
const MOST_OWN: usize = 1_000;

/// Says, when its batch is committed, that what `topic` names has changed. A topic is a word of the listeners' choice,
/// such as `grants` or `package:` and an id.
pub fn notify(host: &Host, topic: &str) -> Statement {
    Statement::write(NOTIFY, [host.new_id().into(), host.now().into(), topic.into()])
}

/// Removes the changes before `before`; see [`RETENTION`].
pub fn sweep(before: Time) -> Statement {
    Statement::write(SWEEP, [before.into()])
}

/// A change as its row has it.
#[derive(Debug)]
pub(crate) struct Noted {
    id: String,
    at: Time,
    topic: String,
}

/// What a statement notes, if it is a [`notify`], under whatever condition.
pub(crate) fn noted(statement: &Statement) -> Option<Noted> {
    match statement.values.as_slice() {
        [Value::Text(Some(id)), Value::Int(Some(at)), Value::Text(Some(topic)), ..]
            if statement.sql.starts_with("insert into changes ") =>
        {
            Some(Noted { id: id.clone(), at: Time::from_micros(*at), topic: topic.clone() })
        }
        _ => None,
    }
}

/// What a listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What this topic names has changed.
    Topic(String),
    /// Anything may have changed: forget all that is cached.
    Everything,
}

/// Tells the watcher of this process what was committed here. One watcher per [`Db`] (and its clones) hears it.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    own: Mutex<Option<Vec<Noted>>>,
    waker: AtomicWaker,
}

impl Signal {
    /// Keeps what was committed for the watcher, if there is one. What it does not come to in time it finds in the table.
    pub(crate) fn raise(&self, committed: impl Iterator<Item = Noted>) {
        if let Some(own) = &mut *self.own() {
            own.extend(committed);
            own.truncate(MOST_OWN);
        }
        self.waker.wake();
    }

    fn listen(&self) {
        self.own().get_or_insert_default();
    }

    fn take(&self) -> Vec<Noted> {
        self.own().as_mut().map(std::mem::take).unwrap_or_default()
    }

    async fn wait(&self) {
        poll_fn(|context| {
            self.waker.register(context.waker());
            if self.own().as_ref().is_some_and(|own| !own.is_empty()) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn own(&self) -> MutexGuard<'_, Option<Vec<Noted>>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Listener = Box<dyn Fn(&Change) + Send + Sync>;

/// Looks for changes and tells them. One runs in each replica.
pub struct Watcher {
    db: Db,
    listeners: Vec<Listener>,
    /// When the last look that succeeded began; `None` before the first.
    looked: Option<Time>,
    /// What was told and may be read again, with its date.
    seen: HashMap<String, Time>,
}

impl Watcher {
    /// Has not looked yet. Commits through `db` and its clones wake it.
    pub fn new(db: Db) -> Self {
        db.signal.listen();
        Self { db, listeners: Vec::new(), looked: None, seen: HashMap::new() }
    }

    /// Adds a listener, which is called once per change, in no particular order. It must be quick: it forgets
    /// something, or raises a flag. One that panics is logged and called again at the next change.
    pub fn subscribe(&mut self, listener: Listener) {
        self.listeners.push(listener);
    }

    /// Looks until it is dropped. The first look tells [`Change::Everything`].
    pub async fn run(mut self) {
        let signal = self.db.signal.clone();
        let mut wait = EVERY;
        loop {
            match self.look().await {
                Ok(_) => wait = EVERY,
                Err(error) => {
                    wait = (wait * 2).min(LONGEST_WAIT);
                    tracing::warn!(error = error.chain(), "cannot look for changes; trying again");
                }
            }
            let clock = Arc::clone(&self.db.host().clock);
            let mut next = clock.sleep(wait);
            while let Either::Left(((), _)) = select(pin!(signal.wait()), &mut next).await {
                self.hear();
            }
        }
    }

    /// Tells what was committed here since.
    fn hear(&mut self) -> usize {
        let own = self.db.signal.take();
        let fresh = own.into_iter().filter_map(|noted| self.fresh(noted)).collect::<Vec<_>>();
        for change in &fresh {
            self.tell(change);
        }
        fresh.len()
    }

    fn fresh(&mut self, noted: Noted) -> Option<Change> {
        self.seen.insert(noted.id, noted.at).is_none().then_some(Change::Topic(noted.topic))
    }

    /// Looks once: tells every change that it has not told, and gives how many these were.
    pub async fn look(&mut self) -> Result<usize> {
        let heard = self.hear();
        let now = self.db.host().now();
        // Whichever is earlier: a clock that was set back must not hide what is written from now on.
        let from = self.looked.unwrap_or(now).min(now).minus(OVERLAP);
        self.seen.retain(|_, at| *at > from);
        let away_too_long = self.looked.is_none_or(|looked| looked.plus(RETENTION) < now.plus(OVERLAP));
        let mut fresh = Vec::new();
        // Nearly always everything was seen before, and to count is much less than to read.
        let count = self.count(from).await?;
        if count != self.seen.len() {
            for row in self.db.read(Statement::read(NEWER, [from.into(), MOST.into()])).await? {
                fresh.extend(self.fresh(read(row)?));
            }
        }
        self.looked = Some(now);
        if away_too_long || i64::try_from(count).is_ok_and(|count| count >= MOST) {
            fresh = vec![Change::Everything];
        }
        for change in &fresh {
            self.tell(change);
        }
        Ok(heard + fresh.len())
    }

    async fn count(&self, from: Time) -> Result<usize> {
        let row = self.db.read_one(Statement::read(COUNT, [from.into()])).await?;
        let count = row.map_or(Ok(0), |row| row.cells().int())?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    fn tell(&self, change: &Change) {
        for listener in &self.listeners {
            if catch_unwind(AssertUnwindSafe(|| listener(change))).is_err() {
                tracing::error!(?change, "a listener of changes panicked");
            }
        }
    }
}

fn read(row: Row) -> Result<Noted> {
    let mut cells = row.cells();
    Ok(Noted { id: cells.text()?, at: cells.time()?, topic: cells.text()? })
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("looked", &self.looked).field("seen", &self.seen.len()).finish_non_exhaustive()
    }
}
