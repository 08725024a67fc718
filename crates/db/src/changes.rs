//! How the caches of every replica hear of a change: a batch that changes something cached adds a [`notify`]; each
//! replica's [`Watcher`] looks every 200 ms, and at once after a commit of its own, and tells its listeners.
//!
//! Nothing is lost and nothing is told twice as long as two things differ by less than [`OVERLAP`]: the clocks of any
//! two replicas, and the moments at which a change is dated and is committed. It is not a queue: who was away for
//! longer than [`RETENTION`] hears only that everything may have changed.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
    time::Duration,
};

use futures_util::{
    future::{poll_fn, select},
    task::AtomicWaker,
};
use larder_core::{Host, Result, Time};

use crate::{Db, Row, Statement};

statements! {
    NOTIFY = "insert into changes (id, at, topic) values ($1, $2, $3)";
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

/// Says, when its batch is committed, that what `topic` names has changed. A topic is a word of the listeners' choice,
/// such as `grants` or `package:` and an id.
pub fn notify(host: &Host, topic: &str) -> Statement {
    Statement::write(NOTIFY, [host.new_id().into(), host.now().into(), topic.into()])
}

/// Removes the changes before `before`; see [`RETENTION`].
pub fn sweep(before: Time) -> Statement {
    Statement::write(SWEEP, [before.into()])
}

/// Whether a statement is a [`notify`].
pub(crate) fn is_notification(statement: &Statement) -> bool {
    statement.sql == NOTIFY
}

/// What a listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What this topic names has changed.
    Topic(String),
    /// Anything may have changed: forget all that is cached.
    Everything,
}

/// Wakes the watcher of this process. One watcher per [`Db`] (and its clones) hears it.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    raised: AtomicBool,
    waker: AtomicWaker,
}

impl Signal {
    pub(crate) fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.waker.wake();
    }

    async fn wait(&self) {
        poll_fn(|context| {
            self.waker.register(context.waker());
            if self.raised.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
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
            select(pin!(signal.wait()), self.db.host().clock.sleep(wait)).await;
        }
    }

    /// Looks once: tells every change that it has not told, and gives how many these were.
    pub async fn look(&mut self) -> Result<usize> {
        let now = self.db.host().now();
        // Whichever is earlier: a clock that was set back must not hide what is written from now on.
        let from = self.looked.unwrap_or(now).min(now).minus(OVERLAP);
        let rows = self.db.read(Statement::read(NEWER, [from.into(), MOST.into()])).await?;
        let away_too_long = self.looked.is_none_or(|looked| looked.plus(RETENTION) < now.plus(OVERLAP));
        let too_many = i64::try_from(rows.len()).is_ok_and(|count| count >= MOST);
        let mut fresh = Vec::new();
        self.seen.retain(|_, at| *at > from);
        for row in rows {
            let (id, at, topic) = read(row)?;
            if self.seen.insert(id, at).is_none() {
                fresh.push(Change::Topic(topic));
            }
        }
        self.looked = Some(now);
        if away_too_long || too_many {
            fresh = vec![Change::Everything];
        }
        for change in &fresh {
            self.tell(change);
        }
        Ok(fresh.len())
    }

    fn tell(&self, change: &Change) {
        for listener in &self.listeners {
            if catch_unwind(AssertUnwindSafe(|| listener(change))).is_err() {
                tracing::error!(?change, "a listener of changes panicked");
            }
        }
    }
}

fn read(row: Row) -> Result<(String, Time, String)> {
    let mut cells = row.cells();
    Ok((cells.text()?, cells.time()?, cells.text()?))
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("looked", &self.looked).field("seen", &self.seen.len()).finish_non_exhaustive()
    }
}
