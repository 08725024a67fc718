//! Whether an upstream is in trouble, as lists of sources show it. Written beside the requests that found it out, which
//! neither wait for it nor fail of it.
//!
//! What this is not: when an upstream is to be left alone (`ask`), and what is served meanwhile (`mirror`).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use larder_core::{Id, Time};
use larder_db::{
    Batch, Db,
    sources::{self, Source, SourceState},
};
use larder_sources::turns::Turns;

/// How often trouble is written, at most.
const EVERY: Duration = Duration::from_secs(60);

/// How much is told of it, in characters.
const MOST_TOLD: usize = 1_000;

/// How one upstream is.
pub(super) struct Health {
    db: Db,
    source: Id,
    name: String,
    report: String,
    state: Mutex<State>,
    /// One writes at a time, and each what is true by then.
    writes: Turns,
}

#[derive(Default)]
struct State {
    /// What is shown.
    problem: Option<String>,
    written_at: Option<Time>,
    is_hushed: bool,
}

impl Health {
    pub(super) fn new(db: Db, source: &Source) -> Arc<Self> {
        let report = source.report.clone().unwrap_or_else(|| "{}".to_owned());
        let problem = source.problem.clone().filter(|_| source.state == SourceState::Failed);
        let state = Mutex::new(State { problem, ..State::default() });
        Arc::new(Self { db, source: source.id, name: source.name.clone(), report, state, writes: Turns::new(1) })
    }

    /// Has nothing written from now on: whoever asks does that.
    pub(super) fn hush(&self) {
        self.state().is_hushed = true;
    }

    /// It is in trouble.
    pub(super) fn is_bad(self: &Arc<Self>, why: &str) {
        let now = self.db.host().now();
        let mut state = self.state();
        let is_told = state.problem.is_some() && state.written_at.is_some_and(|at| now.since(at) < EVERY);
        if state.is_hushed || is_told {
            return;
        }
        let why = why.chars().take(MOST_TOLD).collect();
        *state = State { problem: Some(why), written_at: Some(now), is_hushed: false };
        drop(state);
        self.write();
    }

    /// It answers as it should.
    pub(super) fn is_good(self: &Arc<Self>) {
        if self.state().problem.take().is_some() {
            self.write();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(self: &Arc<Self>) {
        let health = Arc::clone(self);
        let writing = async move {
            let _turn = health.writes.take().await;
            let problem = health.state().problem.clone();
            let statement = match problem {
                Some(problem) => sources::troubled(health.source, SourceState::Failed, &problem),
                None => sources::reported(health.source, &health.report),
            };
            if let Err(error) = health.db.commit(Batch::new().with(statement)).await {
                let error = larder_core::Error::from(error).chain();
                tracing::warn!(source = health.name, error, "the state of an upstream could not be written");
            }
        };
        self.db.host().spawn.background(writing.boxed());
    }
}
