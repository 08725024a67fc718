//! Takes jobs and does them: a few at once, each under a lease that is renewed while it works. Every replica runs one;
//! the command line uses one for a single job when no server runs.

use std::{
    collections::HashMap,
    fmt,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{AbortHandle, AbortRegistration, Abortable, Either, select},
};
use larder_core::{Bell, Error, Host, Id, Result, Time};
use larder_db::{
    Batch, Db, Statement,
    changes::Change,
    jobs::{self, Claimed, State},
};

use crate::{
    job::{Handler, Job},
    queue,
};

/// How long a job belongs to a worker that is not heard of.
pub const LEASE: Duration = Duration::from_secs(15);
/// How often a lease is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// How often progress is looked at, and what failed is tried again, while a job runs.
const BEAT: Duration = Duration::from_secs(1);
/// How often the queue is looked at when nobody rings.
const LOOK: Duration = Duration::from_secs(1);
/// How often a job is taken before it is given up.
const ATTEMPTS: u64 = 5;
/// How long it waits after the first failure; three times as long after each further one.
const BACKOFF: Duration = Duration::from_secs(10);

/// Does jobs. Cheap to clone.
#[derive(Clone)]
pub struct Runner(Arc<Inner>);

struct Inner {
    db: Db,
    name: String,
    handlers: HashMap<&'static str, Arc<dyn Handler>>,
    /// How many jobs are done at once.
    hands: usize,
    claims: AtomicU64,
    working: Mutex<HashMap<Id, AbortHandle>>,
    stopping: AtomicBool,
    bell: Bell,
    ended: Bell,
}

/// How the work on a job ended.
enum End {
    Finished(Result<()>),
    /// The program stops.
    Stopped,
    /// Somebody else has the lease, or may have it.
    Lost,
}

impl Runner {
    /// With these handlers, doing at most `hands` jobs at once. `name` says to people who works; it need not be unique.
    pub fn new(db: Db, name: &str, hands: usize, handlers: impl IntoIterator<Item = Arc<dyn Handler>>) -> Self {
        let unique = larder_core::digest::hex(&db.host().random_bytes::<4>());
        Self(Arc::new(Inner {
            name: format!("{name}-{unique}"),
            handlers: handlers.into_iter().map(|handler| (handler.kind(), handler)).collect(),
            hands,
            claims: AtomicU64::new(0),
            working: Mutex::default(),
            stopping: AtomicBool::new(false),
            bell: Bell::default(),
            ended: Bell::default(),
            db,
        }))
    }

    /// Looks at the queue now rather than within a second.
    pub fn poke(&self) {
        self.0.bell.ring();
    }

    /// Listens to the watcher of changes.
    pub fn hear(&self, change: &Change) {
        if matches!(change, Change::Everything) || matches!(change, Change::Topic(topic) if topic == queue::TOPIC) {
            self.poke();
        }
    }

    /// Takes and does jobs until [`stop`](Self::stop).
    pub async fn run(&self) {
        let inner = &self.0;
        let kinds: Vec<&str> = inner.handlers.keys().copied().collect();
        while !inner.stopping.load(Ordering::Acquire) {
            if let Err(error) = self.take(&kinds).await {
                tracing::warn!(error = error.chain(), "cannot look for jobs; trying again");
            }
            select(pin!(inner.bell.wait()), inner.db.host().clock.sleep(LOOK)).await;
        }
    }

    /// Takes jobs as long as there are some and hands for them.
    async fn take(&self, kinds: &[&str]) -> Result<()> {
        let inner = &self.0;
        while lock(&inner.working).len() < inner.hands && !inner.stopping.load(Ordering::Acquire) {
            let lease_until = inner.host().now().plus(LEASE);
            let Some(claimed) = jobs::claim(&inner.db, &inner.next_worker(), kinds, lease_until).await? else {
                break;
            };
            let work = self.begin(claimed, lease_until);
            inner.host().spawn.background(Box::pin(work));
        }
        Ok(())
    }

    /// Does this job here and now, if nobody else does it and it is not finished; `false` otherwise.
    pub async fn run_one(&self, id: Id) -> Result<bool> {
        let inner = &self.0;
        let lease_until = inner.host().now().plus(LEASE);
        let claimed = jobs::claim_one(&inner.db, id, &inner.next_worker(), lease_until).await?;
        let Some(claimed) = claimed else {
            return Ok(false);
        };
        self.begin(claimed, lease_until).await;
        Ok(true)
    }

    /// Waits for a job like [`queue::wait`], but does it itself if it still waits after `patience`: because no server
    /// runs, or all are busy.
    pub async fn run_or_wait(
        &self,
        id: Id,
        patience: Duration,
        limit: Duration,
        tell: impl FnMut(&jobs::Job) + Send,
    ) -> Result<jobs::Job> {
        let help = async {
            let host = self.0.host();
            loop {
                host.clock.sleep(patience).await;
                let waits = queue::get(&self.0.db, id).await?.state == State::Waiting;
                if waits && self.run_one(id).await? {
                    return queue::get(&self.0.db, id).await;
                }
            }
        };
        match select(pin!(queue::wait(&self.0.db, id, limit, tell)), pin!(help)).await {
            Either::Left((waited, _)) => waited,
            Either::Right((done, _)) => done,
        }
    }

    /// Takes no more jobs, gives those that are being done `within` to end, and hands the others back to the queue.
    pub async fn stop(&self, within: Duration) {
        let inner = &self.0;
        inner.stopping.store(true, Ordering::Release);
        inner.bell.ring();
        if inner.host().within(within, inner.all_ended()).await.is_none() {
            for working in lock(&inner.working).values() {
                working.abort();
            }
            // Handing back takes a batch each; a database that does not answer gets them back by the end of the lease.
            inner.host().within(RENEW, inner.all_ended()).await;
        }
    }

    /// Registers a job as being done, and gives the work on it, which never fails.
    fn begin(&self, claimed: Claimed, lease_until: Time) -> impl Future<Output = ()> + Send + 'static {
        let (handle, registration) = AbortHandle::new_pair();
        let id = claimed.id;
        lock(&self.0.working).insert(id, handle);
        let entry = Working { inner: Arc::clone(&self.0), id };
        async move {
            entry.inner.work(Job::new(claimed), lease_until, registration).await;
            drop(entry);
        }
    }
}

/// A job that is being done, taken off the list also when the work on it is dropped.
struct Working {
    inner: Arc<Inner>,
    id: Id,
}

impl Drop for Working {
    fn drop(&mut self) {
        lock(&self.inner.working).remove(&self.id);
        self.inner.bell.ring();
        self.inner.ended.ring();
    }
}

impl Inner {
    fn host(&self) -> &Host {
        self.db.host()
    }

    /// Another name for each claim, so that a lost lease is not mistaken for a later one.
    fn next_worker(&self) -> String {
        format!("{}-{}", self.name, self.claims.fetch_add(1, Ordering::Relaxed))
    }

    async fn all_ended(&self) {
        while !lock(&self.working).is_empty() {
            self.ended.wait().await;
        }
    }

    async fn work(&self, job: Job, lease_until: Time, stop: AbortRegistration) {
        let Some(handler) = self.handlers.get(job.claimed.kind.as_str()) else {
            let problem = format!("this Larder does not know jobs of the kind `{}`", job.claimed.kind);
            return self.end(&job, End::Finished(Err(Error::invalid(problem))), lease_until).await;
        };
        if job.attempt() > ATTEMPTS {
            handler.given_up(&job).await;
            let problem =
                format!("given up: {ATTEMPTS} times somebody began it and did not end it; the log may say why");
            return self.end(&job, End::Finished(Err(Error::invalid(problem))), lease_until).await;
        }
        // What a panic leaves behind is what a worker that was killed leaves behind.
        let run = Abortable::new(AssertUnwindSafe(handler.run(&job)).catch_unwind(), stop);
        let (end, lease_until) = {
            let mut lease = lease_until;
            let ended = match select(pin!(run), pin!(self.keep_lease(&job, &mut lease))).await {
                Either::Left((Ok(Ok(result)), _)) => End::Finished(result),
                Either::Left((Ok(Err(panic)), _)) => {
                    End::Finished(Err(Error::internal("doing this job", panic_text(&*panic))))
                }
                Either::Left((Err(_), _)) => End::Stopped,
                Either::Right(((), _)) => End::Lost,
            };
            (ended, lease)
        };
        self.end(&job, end, lease_until).await;
    }

    /// Renews the lease and writes progress, until the lease is lost.
    async fn keep_lease(&self, job: &Job, lease_until: &mut Time) {
        let mut renewed = self.host().now();
        loop {
            self.host().clock.sleep(BEAT).await;
            let now = self.host().now();
            if now >= *lease_until {
                // The machine slept, or a long computation stood in the way: somebody else may have the job by now.
                break;
            }
            let progress = job.take_progress();
            if progress.is_none() && now.since(renewed) < RENEW {
                continue;
            }
            let until = now.plus(LEASE);
            let batch = Batch::from(jobs::extend(&job.claimed, until, progress.as_deref()));
            match self.host().within(lease_until.since(now), self.db.commit(batch)).await {
                Some(Ok(done)) if done.iter().any(|done| done.affected == 1) => {
                    (renewed, *lease_until) = (now, until);
                }
                Some(Err(error)) if self.host().now() < *lease_until => {
                    tracing::warn!(job = %job.id(), error = Error::from(error).chain(), "cannot renew a lease; trying again");
                    job.put_progress_back(progress);
                }
                Some(Ok(_) | Err(_)) | None => break,
            }
        }
        job.lose();
    }

    /// Writes how a job ended, as long as it is ours.
    async fn end(&self, job: &Job, end: End, lease_until: Time) {
        let (id, kind, subject) = (job.id(), &job.claimed.kind, job.subject());
        let result = match end {
            End::Finished(result) => result,
            End::Lost => {
                tracing::warn!(%id, kind, subject, "the lease of this job was lost: somebody else does it");
                return;
            }
            End::Stopped => {
                let now = self.host().now();
                return self.write_end(job, vec![jobs::again(&job.claimed, now, now, None, true)], lease_until).await;
            }
        };
        if let Err(error) = &result {
            tracing::warn!(%id, kind, subject, attempt = job.attempt(), error = error.chain(), "a job failed");
        }
        let now = self.host().now();
        let problem = result.as_ref().err().map(Error::message);
        let statements = match &result {
            Err(error) if error.is_temporary() && job.attempt() < ATTEMPTS => {
                vec![jobs::again(&job.claimed, now, now.plus(self.backoff(job.attempt())), problem, false)]
            }
            _ => {
                let progress = job.take_progress();
                let mut statements = vec![jobs::finish(&job.claimed, now, problem, progress.as_deref())];
                statements.extend(job.next().map(|at| jobs::enqueue(self.host(), kind, subject, at)));
                statements
            }
        };
        self.write_end(job, statements, lease_until).await;
    }

    /// Tries until the lease ends; then somebody else does the job again.
    async fn write_end(&self, job: &Job, statements: Vec<Statement>, lease_until: Time) {
        loop {
            let mut batch = Batch::from(job.still_mine());
            batch.extend(statements.iter().cloned());
            let error = match self.db.commit(batch).await {
                Ok(_) => return,
                Err(error) if error.is_guard("job_is_mine") => {
                    tracing::warn!(job = %job.id(), "the lease of this job was lost at its end: somebody else does it");
                    return;
                }
                Err(error) => Error::from(error),
            };
            tracing::warn!(job = %job.id(), error = error.chain(), "cannot write how a job ended; trying again");
            if self.host().now() >= lease_until {
                return;
            }
            self.host().clock.sleep(BEAT).await;
        }
    }

    /// Longer each time, and never the same for two jobs that failed together.
    fn backoff(&self, attempt: u64) -> Duration {
        let times = 3_u32.saturating_pow(u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX)).min(360);
        let [random] = self.host().random_bytes::<1>();
        let base = BACKOFF * times;
        base + base / 4 * u32::from(random) / 255
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a panic: {}", text.unwrap_or("without a text"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds the lock can panic half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner")
            .field("name", &self.0.name)
            .field("working", &lock(&self.0.working).len())
            .finish_non_exhaustive()
    }
}
