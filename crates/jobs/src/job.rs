//! What a handler is and what it is handed: a job whose lease somebody else keeps alive.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use larder_core::{Id, Result, Time};
use larder_db::{
    Statement,
    jobs::{self, Claimed},
};

/// Does one kind of job.
#[async_trait]
pub trait Handler: Send + Sync {
    /// The kind, a lower-case word with dots: `source.sync`.
    fn kind(&self) -> &'static str;

    /// Does a job, or fails with what people should know. A temporary failure is tried again, later and later. It is
    /// dropped at its next await when the lease is lost or the program stops; whatever takes long without an await belongs
    /// into `Host::heavy`, because the lease is renewed beside it.
    async fn run(&self, job: &Job) -> Result<()>;

    /// Told when a job is given up because its workers died again and again. What recurs asks for its next time here.
    async fn given_up(&self, job: &Job) {
        let _ = job;
    }
}

/// A job that is being done.
#[derive(Debug)]
pub struct Job {
    pub(crate) claimed: Claimed,
    progress: Mutex<Option<String>>,
    next: Mutex<Option<Time>>,
    lost: AtomicBool,
}

impl Job {
    pub(crate) fn new(claimed: Claimed) -> Self {
        Self { claimed, progress: Mutex::default(), next: Mutex::default(), lost: AtomicBool::new(false) }
    }

    /// Its identity.
    pub fn id(&self) -> Id {
        self.claimed.id
    }

    /// What is to be done to it.
    pub fn subject(&self) -> &str {
        &self.claimed.subject
    }

    /// The how manieth attempt this is, from 1.
    pub fn attempt(&self) -> u64 {
        self.claimed.attempts
    }

    /// The guard `job_is_mine`, for every batch that the job writes.
    pub fn still_mine(&self) -> Statement {
        jobs::still_mine(self.claimed.id, &self.claimed.worker)
    }

    /// Whether the lease was lost: whatever the job still does is for nothing. For work that cannot be dropped.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Tells people how far it is. It is written at most once a second, and only the last text.
    pub fn progress(&self, text: impl Into<String>) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.into());
    }

    /// Asks for the next job of the same kind and subject, once this one has ended, well or not. The last call counts.
    pub fn repeat_at(&self, at: Time) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    pub(crate) fn next(&self) -> Option<Time> {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The progress that was not written yet.
    pub(crate) fn take_progress(&self) -> Option<String> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Puts back what could not be written, unless there is something newer.
    pub(crate) fn put_progress_back(&self, text: Option<String>) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        *progress = progress.take().or(text);
    }

    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }
}
