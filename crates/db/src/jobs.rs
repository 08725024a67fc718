//! Jobs: work that must be done once, by whichever replica takes it. A job is a row; who works on it holds a lease that
//! must be renewed, and whose lease ends has lost it. Running them is `larder-jobs`'.
//!
//! Per kind and subject at most one job waits and at most one runs. A waiting one is not taken while another runs.

use larder_core::{Host, Id, Result, Time};

use crate::{Batch, Cells, CommitError, Db, Row, Statement, dialect};

statements! {
    ENQUEUE = "insert into jobs (id, kind, subject, state, run_at, attempts, created_at)
        values ($1, $2, $3, 'waiting', $4, 0, $5)
        on conflict (kind, subject) where state = 'waiting' do update set
            problem = null,
            attempts = case when excluded.run_at < jobs.run_at then 0 else jobs.attempts end,
            run_at = case when excluded.run_at < jobs.run_at then excluded.run_at else jobs.run_at end
        returning id";
    ENSURE = "insert into jobs (id, kind, subject, state, run_at, attempts, created_at)
        select cast($1 as text), cast($2 as text), cast($3 as text), 'waiting', cast($4 as bigint), 0, cast($5 as bigint)
        where not exists (
            select 1 from jobs where kind = $2 and subject = $3 and state in ('waiting', 'running'))";
    IS_DUE = "select 1 from jobs j where ((state = 'waiting' and run_at <= $1 and not exists (
            select 1 from jobs r where r.state = 'running' and r.kind = j.kind and r.subject = j.subject))
        or (state = 'running' and lease_until < $1))
        and cast($2 as text) like '%,' || kind || ',%' limit 1";
    CLAIM_ONE = "update jobs set state = 'running', worker = $1, lease_until = $2, attempts = attempts + 1,
        progress = null
        where id = $4 and ((state = 'waiting' and not exists (
            select 1 from jobs r where r.state = 'running' and r.kind = jobs.kind and r.subject = jobs.subject))
        or (state = 'running' and lease_until < $3))
        returning id, kind, subject, attempts";
    EXTEND = "update jobs set lease_until = $3, progress = coalesce($4, progress)
        where id = $1 and worker = $2 and state = 'running'";
    FINISH = "update jobs set state = $2, finished_at = $3, problem = $4, progress = coalesce($5, progress),
        lease_until = null where id = $1";
    AGAIN = "update jobs set
        state = case when exists (select 1 from jobs w where w.state = 'waiting' and w.kind = jobs.kind
            and w.subject = jobs.subject) then 'failed' else 'waiting' end,
        finished_at = case when exists (select 1 from jobs w where w.state = 'waiting' and w.kind = jobs.kind
            and w.subject = jobs.subject) then cast($2 as bigint) end,
        run_at = $3, problem = $4, attempts = attempts - $5, lease_until = null, worker = null where id = $1";
    FORGET_WAITING = "delete from jobs where kind = $1 and subject = $2 and state = 'waiting'";
    STILL_MINE = "insert into guard (holds) select case when (
        exists (select 1 from jobs where id = $1 and worker = $2 and state = 'running')) then 1 end";
    GET = "select id, kind, subject, state, run_at, lease_until, worker, attempts, progress, problem, created_at,
        finished_at from jobs where id = $1";
    OF_SUBJECT = "select id, kind, subject, state, run_at, lease_until, worker, attempts, progress, problem, created_at,
        finished_at from jobs where kind = $1 and subject = $2 order by created_at desc, id desc limit $3";
    QUEUE = "select kind, count(case when state = 'waiting' then 1 end), count(case when state = 'running' then 1 end),
        min(case when state = 'waiting' then run_at end), min(lease_until)
        from jobs where state in ('waiting', 'running') group by kind order by kind";
    SWEEP = "delete from jobs where id in (
        select id from jobs where finished_at < $1 order by finished_at limit $2)";
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Until its time has come and somebody takes it.
    Waiting,
    /// Somebody holds its lease.
    Running,
    /// It succeeded.
    Done,
    /// It failed, and is not tried again.
    Failed,
}

/// A job as it stands in the table.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Job {
    /// Its identity.
    pub id: Id,
    /// What is to be done.
    pub kind: String,
    /// To which thing: an id, or empty.
    pub subject: String,
    /// Where it is in its life.
    pub state: State,
    /// Not before.
    pub run_at: Time,
    /// How long whoever works on it has it.
    pub lease_until: Option<Time>,
    /// Who works or worked on it.
    pub worker: Option<String>,
    /// How often it was taken.
    pub attempts: u64,
    /// How far it is, for people.
    pub progress: Option<String>,
    /// Why its last attempt failed, for people.
    pub problem: Option<String>,
    /// When it was asked for.
    pub created_at: Time,
    /// When it was done or given up.
    pub finished_at: Option<Time>,
}

/// A job that somebody has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Its identity.
    pub id: Id,
    /// What is to be done.
    pub kind: String,
    /// To which thing.
    pub subject: String,
    /// How often it was taken, this time included.
    pub attempts: u64,
    /// By whom: unlike for any other claim, so that a lost lease cannot be mistaken for a later one.
    pub worker: String,
}

/// The jobs of one kind that are not finished.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Queued {
    /// The kind.
    pub kind: String,
    /// How many wait.
    pub waiting: u64,
    /// How many run.
    pub running: u64,
    /// When the first of those that wait is due; long past: nobody works.
    pub oldest_run_at: Option<Time>,
    /// When the first lease of those that run ends; past: its worker died.
    pub oldest_lease: Option<Time>,
}

/// Asks for a job not before `run_at`; gives its id. If one waits already it is that one, at the earlier of the times, and
/// forgets why it failed before.
pub fn enqueue(host: &Host, kind: &str, subject: &str, run_at: Time) -> Statement {
    let values = [host.new_id().into(), kind.into(), subject.into(), run_at.into(), host.now().into()];
    Statement::read(ENQUEUE, values)
}

/// Asks for a job at `run_at` unless one waits or runs already. A schedule is begun with it.
pub fn ensure(host: &Host, kind: &str, subject: &str, run_at: Time) -> Statement {
    let values = [host.new_id().into(), kind.into(), subject.into(), run_at.into(), host.now().into()];
    Statement::write(ENSURE, values)
}

/// Takes a job out of the queue if it is not being worked on.
pub fn forget_waiting(kind: &str, subject: &str) -> Statement {
    Statement::write(FORGET_WAITING, [kind.into(), subject.into()])
}

/// Guard `job_is_mine`: the lease was not lost. It belongs in every batch that a job writes.
pub fn still_mine(job: Id, worker: &str) -> Statement {
    Statement::guard("job_is_mine", STILL_MINE, [job.into(), worker.into()])
}

/// Takes the job that is due for longest among `kinds`, until `lease_until`. It begins with a look that writes nothing.
pub async fn claim(db: &Db, worker: &str, kinds: &[&str], lease_until: Time) -> Result<Option<Claimed>> {
    let now = db.host().now();
    let kinds = format!(",{},", kinds.join(","));
    if db.read_one(Statement::read(IS_DUE, [now.into(), kinds.as_str().into()])).await?.is_none() {
        return Ok(None);
    }
    let text = dialect::CLAIM_JOB.text(db.dialect());
    let values = [worker.into(), lease_until.into(), now.into(), kinds.into()];
    claimed(db, Statement::read(text, values), worker).await
}

/// Takes this job, also before its time, if nobody works on it.
pub async fn claim_one(db: &Db, id: Id, worker: &str, lease_until: Time) -> Result<Option<Claimed>> {
    let values = [worker.into(), lease_until.into(), db.host().now().into(), id.into()];
    claimed(db, Statement::read(CLAIM_ONE, values), worker).await
}

async fn claimed(db: &Db, claim: Statement, worker: &str) -> Result<Option<Claimed>> {
    let done = match db.commit(Batch::from(claim)).await {
        Ok(done) => done,
        // Another replica was faster to take a job of the same kind and subject.
        Err(CommitError::Other(error)) if error.kind() == larder_core::Kind::Conflict => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(row) = done.into_iter().flat_map(|done| done.rows).next() else {
        return Ok(None);
    };
    let mut cells = row.cells();
    Ok(Some(Claimed {
        id: cells.id()?,
        kind: cells.text()?,
        subject: cells.text()?,
        attempts: cells.count()?,
        worker: worker.to_owned(),
    }))
}

/// Renews a lease and tells the progress, if there is any. It wrote no row: the lease was lost.
pub fn extend(job: &Claimed, lease_until: Time, progress: Option<&str>) -> Statement {
    let values = [job.id.into(), job.worker.as_str().into(), lease_until.into(), progress.into()];
    Statement::write(EXTEND, values)
}

/// Ends a job for good. The problem is why it failed; `None`: it succeeded. Goes with [`still_mine`].
pub fn finish(job: &Claimed, at: Time, problem: Option<&str>, progress: Option<&str>) -> Statement {
    let state = if problem.is_some() { "failed" } else { "done" };
    Statement::write(FINISH, [job.id.into(), state.into(), at.into(), problem.into(), progress.into()])
}

/// Puts a job back to be tried again at `run_at`; if another one waits by now, that one takes its place and this one
/// has failed. Goes with [`still_mine`]. `forgive`: this attempt does not count.
pub fn again(job: &Claimed, now: Time, run_at: Time, problem: Option<&str>, forgive: bool) -> Statement {
    Statement::write(AGAIN, [job.id.into(), now.into(), run_at.into(), problem.into(), i64::from(forgive).into()])
}

/// A job.
pub async fn get(db: &Db, id: Id) -> Result<Option<Job>> {
    db.read_one(Statement::read(GET, [id.into()])).await?.map(job).transpose()
}

/// The jobs of one kind and subject, the newest first, at most `limit`.
pub async fn of_subject(db: &Db, kind: &str, subject: &str, limit: u32) -> Result<Vec<Job>> {
    let statement = Statement::read(OF_SUBJECT, [kind.into(), subject.into(), i64::from(limit).into()]);
    db.read(statement).await?.into_iter().map(job).collect()
}

/// What waits and runs, per kind.
pub async fn queue(db: &Db) -> Result<Vec<Queued>> {
    let rows = db.read(Statement::read(QUEUE, [])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(Queued {
                kind: cells.text()?,
                waiting: cells.count()?,
                running: cells.count()?,
                oldest_run_at: cells.optional_time()?,
                oldest_lease: cells.optional_time()?,
            })
        })
        .collect()
}

/// Deletes at most `limit` of the jobs that were finished before `before`.
pub fn sweep(before: Time, limit: u32) -> Statement {
    Statement::write(SWEEP, [before.into(), i64::from(limit).into()])
}

fn job(row: Row) -> Result<Job> {
    let mut cells = row.cells();
    Ok(Job {
        id: cells.id()?,
        kind: cells.text()?,
        subject: cells.text()?,
        state: state(&mut cells)?,
        run_at: cells.time()?,
        lease_until: cells.optional_time()?,
        worker: cells.optional_text()?,
        attempts: cells.count()?,
        progress: cells.optional_text()?,
        problem: cells.optional_text()?,
        created_at: cells.time()?,
        finished_at: cells.optional_time()?,
    })
}

fn state(cells: &mut Cells) -> Result<State> {
    match cells.text()?.as_str() {
        "waiting" => Ok(State::Waiting),
        "running" => Ok(State::Running),
        "done" => Ok(State::Done),
        "failed" => Ok(State::Failed),
        other => Err(larder_core::Error::internal("reading a job", format!("`{other}` is not a state"))),
    }
}
