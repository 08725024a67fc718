//! The hourly job of the house itself: what is too old goes, in small batches.

use std::time::Duration;

use async_trait::async_trait;
use larder_blobs::Blobs;
use larder_core::Result;
use larder_db::{Batch, Db, changes};
use larder_jobs::{Handler, Job, queue};

/// The kind of the job; its subject is empty.
pub const HOUSEKEEPING: &str = "house.sweep";

const EVERY: Duration = Duration::from_secs(3_600);

/// How long a finished job is remembered.
const JOBS: Duration = Duration::from_secs(7 * 86_400);

/// Sweeps accesses, changes, jobs and blobs.
pub struct Housekeeping {
    db: Db,
    blobs: Blobs,
    access_retention: Duration,
}

impl Housekeeping {
    /// Over what it sweeps; accesses are kept for `access_retention`.
    pub fn new(db: Db, blobs: Blobs, access_retention: Duration) -> Self {
        Self { db, blobs, access_retention }
    }
}

#[async_trait]
impl Handler for Housekeeping {
    fn kind(&self) -> &'static str {
        HOUSEKEEPING
    }

    async fn run(&self, job: &Job) -> Result<()> {
        let now = self.db.host().now();
        job.repeat_at(now.plus(EVERY));
        self.db.commit(Batch::from(changes::sweep(now.minus(changes::RETENTION)))).await?;
        let jobs = queue::sweep(&self.db, JOBS).await?;
        let accesses = larder_audit::retention::sweep(&self.db, self.access_retention).await?;
        let collected = self.blobs.gc(false, &mut |_| {}).await?;
        tracing::info!(jobs, accesses, collected = ?collected, "swept");
        Ok(())
    }

    async fn given_up(&self, job: &Job) {
        job.repeat_at(self.db.host().now().plus(EVERY));
    }
}
