//! The queue from outside: ask for jobs, look at them, wait for them. Doing them is [`Runner`](crate::Runner)'s.

use std::time::Duration;

use larder_core::{Error, Id, Kind, Result, Time};
use larder_db::{
    Batch, Db, Done, changes,
    jobs::{self, Job, Queued, State},
};

/// The topic under which new jobs are told.
pub const TOPIC: &str = "jobs";
/// How long a finished job can still be looked at.
pub const KEEP: Duration = Duration::from_secs(7 * 86_400);
/// How often a waiting look is repeated.
const LOOK: Duration = Duration::from_millis(200);
/// How many finished jobs are deleted in one batch.
const AT_ONCE: u32 = 1_000;
/// How many batches one sweep makes; the next one goes on.
const BATCHES: u32 = 100;

/// Asks, as part of a batch, for a job not before `run_at`. If one of the same kind and subject waits already it is that
/// one, at the earlier of the two times. Gives the place in the batch whose result [`id`] reads.
pub fn enqueue_in(batch: &mut Batch, db: &Db, kind: &str, subject: &str, run_at: Time) -> usize {
    batch.push(changes::notify(db.host(), TOPIC));
    batch.push(jobs::enqueue(db.host(), kind, subject, run_at))
}

/// The id of the job that [`enqueue_in`] asked for.
pub fn id(done: &Done) -> Result<Id> {
    let row = done.rows.first().cloned();
    row.ok_or_else(|| Error::internal("asking for a job", "the database gave no id"))?.cells().id()
}

/// Asks for a job not before `run_at`, and gives its id; see [`enqueue_in`].
pub async fn enqueue(db: &Db, kind: &str, subject: &str, run_at: Time) -> Result<Id> {
    let mut batch = Batch::new();
    let place = enqueue_in(&mut batch, db, kind, subject, run_at);
    id(&db.commit(batch).await?[place])
}

/// Begins a schedule: asks for a job at `run_at` unless one of the same kind and subject waits or runs already. The
/// handler goes on with it, by [`repeat_at`](crate::Job::repeat_at): the schedule lives in the table, not in a process.
pub async fn ensure(db: &Db, kind: &str, subject: &str, run_at: Time) -> Result<()> {
    db.commit(Batch::from(jobs::ensure(db.host(), kind, subject, run_at))).await?;
    Ok(())
}

/// A job. [`Kind::NotFound`]: it finished long ago, or never was.
pub async fn get(db: &Db, id: Id) -> Result<Job> {
    let job = jobs::get(db, id).await?;
    job.ok_or_else(|| Error::not_found(format!("there is no job {id} any more: it was removed, or finished long ago")))
}

/// Waits until a job has finished or an attempt has failed since it was last asked for, and tells each change of it.
/// What it gives is done, failed, or waiting for another attempt with a problem. [`Kind::Timeout`]: it takes longer than `limit`.
pub async fn wait(db: &Db, id: Id, limit: Duration, mut tell: impl FnMut(&Job) + Send) -> Result<Job> {
    let begun = db.host().now();
    let mut last: Option<Job> = None;
    loop {
        let job = get(db, id).await?;
        if last.as_ref().is_none_or(|last| (last.state, &last.progress) != (job.state, &job.progress)) {
            tell(&job);
        }
        if has_ended(&job) {
            return Ok(job);
        }
        if db.host().now().since(begun) >= limit {
            return Err(Error::new(Kind::Timeout, format!("the job {id} ({}) is not done yet; it goes on", job.kind)));
        }
        last = Some(job);
        db.host().clock.sleep(LOOK).await;
    }
}

/// Whether a job has finished, or failed and waits to be tried again.
fn has_ended(job: &Job) -> bool {
    match job.state {
        State::Done | State::Failed => true,
        State::Waiting => job.problem.is_some(),
        State::Running => false,
    }
}

/// What waits and runs, per kind.
pub async fn queued(db: &Db) -> Result<Vec<Queued>> {
    jobs::queue(db).await
}

/// How long the oldest job has been due that nobody takes: much longer than a second, and the queue is stuck or too
/// busy.
pub fn behind(queued: &[Queued], now: Time) -> Duration {
    let idle = queued.iter().filter(|kind| kind.running == 0).filter_map(|kind| kind.oldest_run_at);
    let dead = queued.iter().filter_map(|kind| kind.oldest_lease);
    idle.chain(dead).min().map_or(Duration::ZERO, |oldest| now.since(oldest))
}

/// Deletes the jobs that finished longer than `keep` ago, in small batches, and gives how many they were.
pub async fn sweep(db: &Db, keep: Duration) -> Result<u64> {
    let before = db.host().now().minus(keep);
    let mut swept = 0;
    for _ in 0..BATCHES {
        let done = db.commit(Batch::from(jobs::sweep(before, AT_ONCE))).await?;
        let affected: u64 = done.iter().map(|done| done.affected).sum();
        swept += affected;
        if affected < u64::from(AT_ONCE) {
            break;
        }
    }
    Ok(swept)
}
