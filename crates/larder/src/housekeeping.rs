//! The recurring job of the house itself: what is too old goes, and what nobody needs, in small batches.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use larder_blobs::{Blobs, Collected};
use larder_core::{Result, Time};
use larder_db::{Batch, Db, changes, deliveries, sources, upstream_checks};
use larder_jobs::{Handler, Job, queue};
use larder_native::git::GitProgram;
use larder_sources::git::Git as _;

/// The kind of the job; its subject is empty.
pub const HOUSEKEEPING: &str = "house.sweep";

/// How often it is done, unless the configuration says otherwise.
pub const EVERY: Duration = Duration::from_secs(600);

/// How often the whole store is listed, to find what the database does not know, unless something is left behind sooner.
pub const WALK: Duration = Duration::from_secs(3_600);

/// How often the local copies are looked through.
const COPIES: Duration = Duration::from_secs(3_600);

/// How long it is remembered when an upstream was last asked; longer than any answer of one is fresh.
const CHECKS: Duration = Duration::from_secs(90 * 86_400);

/// How long a finished job is remembered.
const JOBS: Duration = Duration::from_secs(7 * 86_400);

/// Sweeps accesses, changes, jobs and blobs.
pub struct Housekeeping {
    db: Db,
    blobs: Blobs,
    times: Times,
    walked: Mutex<Option<Time>>,
}

/// How often and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How often all of it is done.
    pub every: Duration,
    /// How often the store is listed.
    pub walk: Duration,
    /// How long accesses are kept.
    pub access_retention: Duration,
}

impl Housekeeping {
    /// Over what it sweeps.
    pub fn new(db: Db, blobs: Blobs, times: Times) -> Self {
        Self { db, blobs, times, walked: Mutex::new(None) }
    }

    /// Whether it is time to list the store; then it is not for a while.
    fn is_time_to_walk(&self, now: Time) -> bool {
        let mut walked = self.walked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = walked.is_none_or(|walked| now.since(walked) >= self.times.walk);
        if is_time {
            *walked = Some(now);
        }
        is_time
    }
}

#[async_trait]
impl Handler for Housekeeping {
    fn kind(&self) -> &'static str {
        HOUSEKEEPING
    }

    async fn run(&self, job: &Job) -> Result<()> {
        let now = self.db.host().now();
        job.repeat_at(now.plus(self.times.every));
        let old = Batch::new()
            .with(changes::sweep(now.minus(changes::RETENTION)))
            .with(deliveries::sweep(now.minus(deliveries::RETENTION)))
            .with(upstream_checks::sweep(now.minus(CHECKS)));
        self.db.commit(old).await?;
        let jobs = queue::sweep(&self.db, JOBS).await?;
        let accesses = larder_audit::retention::sweep(&self.db, self.times.access_retention).await?;
        let collected = if self.is_time_to_walk(now) {
            self.blobs.gc(false, &mut |_| {}).await?
        } else {
            self.blobs.gc_known(false, &mut |_| {}).await?
        };
        if collected == Collected::default() {
            tracing::debug!(jobs, accesses, "swept");
        } else {
            tracing::info!(jobs, accesses, ?collected, "swept");
        }
        Ok(())
    }

    async fn given_up(&self, job: &Job) {
        job.repeat_at(self.db.host().now().plus(self.times.every));
    }
}

/// Removes, every hour until it is dropped, the local copies of sources that are gone: removed by another replica, or
/// just before this one died. It is no job, because each machine has copies of its own. Full copies stay: what only they
/// have must survive a start on the wrong database.
pub async fn sweep_copies(git: Arc<GitProgram>, db: Db) {
    loop {
        if let Err(error) = forget_copies(&git, &db).await {
            tracing::warn!(error = error.chain(), "local copies of removed sources stay on disk for now");
        }
        db.host().clock.sleep(COPIES).await;
    }
}

async fn forget_copies(git: &GitProgram, db: &Db) -> Result<()> {
    // In this order: whatever is copied later than it is looked for has its source.
    let copies = git.caches().await?;
    let known: HashSet<String> = sources::list(db).await?.into_iter().map(|source| source.id.to_string()).collect();
    for copy in copies.iter().filter(|copy| !known.contains(*copy)) {
        git.forget(copy).await?;
        tracing::info!(copy, "the local copy of a removed source is gone");
    }
    Ok(())
}
