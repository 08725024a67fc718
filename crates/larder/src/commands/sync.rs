//! `larder source sync`: asks for the job, waits while a server does it, or does it itself.

use std::{pin::pin, sync::Arc, time::Duration};

use anyhow::{Result, anyhow, bail};
use larder_core::Id;
use larder_db::sources::{self, Source, SourceState};
use larder_jobs::{Entry, Runner, State, queue};
use larder_sources::{
    registry,
    work::{SYNC, is_scheduled},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

use super::Desk;
use crate::{
    formats::{self, Registries},
    output::{Progress, counted},
};

/// How long a server that runs here has to take the job before this command does it. It should: what it fetches then
/// belongs to the account that it runs under.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long one sync may take, its wait for others included.
const LIMIT: Duration = Duration::from_secs(2 * 3_600);

/// How many sources are synced at once.
const AT_ONCE: usize = 8;

/// What a sync of another registry does, once that answers.
const REFRESHED: &str = "everything is asked for again when a client next wants it";

/// How a sync ended.
struct Ended {
    name: String,
    /// What it did, or why it failed.
    result: Result<String, String>,
}

/// Syncs one source.
pub async fn one(desk: &Desk, name: &str, accept_removals: bool) -> Result<()> {
    let mut source = desk.house.sources.find(name).await?;
    if !is_scheduled(&source) {
        return refresh(desk, &source).await;
    }
    if accept_removals && source.state == SourceState::Held {
        source = desk.house.sources.release(&desk.actor, &source).await?;
    } else if accept_removals {
        desk.out.hint(format!("`{}` is not held: there is nothing to accept.", source.name));
    }
    let job = ask(desk, &source).await?;
    let mut progress = Progress::new(desk.out);
    let runner = desk.house.runner.clone();
    let work = finish(&runner, source.name, job, patience(desk)?, |text| progress.show(text));
    let ended = interruptible(desk, work).await?;
    drop(progress);
    if desk.out.wants_json() {
        desk.out.document(&describe(desk, &ended).await?)?;
    }
    match ended.result {
        Ok(_) if desk.out.wants_json() => Ok(()),
        Ok(report) => {
            desk.out.line(format!("{}: {report}", ended.name))?;
            hint_skipped(desk, &ended.name).await
        }
        Err(problem) => Err(anyhow!("{}: {problem}", ended.name)),
    }
}

/// Has another registry asked again for everything, when clients next want it, and asks now whether it answers.
async fn refresh(desk: &Desk, source: &Source) -> Result<()> {
    registry::make_stale(&desk.house.db, &desk.actor, source).await?;
    let ended = probed(source, &formats::registries(&desk.house)?).await;
    desk.out.document(&describe(desk, &ended).await?)?;
    match ended.result {
        Ok(report) => Ok(desk.out.line(format!("{}: {report}", ended.name))?),
        Err(problem) => Err(anyhow!("{}: {problem}", ended.name)),
    }
}

async fn probed(source: &Source, registries: &Registries) -> Ended {
    let probed = registries.probe(source).await;
    let sentence = probed.sentence();
    let result = if probed.problem().is_none() { Ok(format!("{sentence}; {REFRESHED}")) } else { Err(sentence) };
    Ended { name: source.name.clone(), result }
}

/// Syncs every source, a few at once.
pub async fn all(desk: &Desk) -> Result<()> {
    let sources = sources::list(&desk.house.db).await?;
    let total = sources.len();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let (patience, registries) = (patience(desk)?, formats::registries(&desk.house)?);
    let mut running = JoinSet::new();
    for source in sources {
        if !is_scheduled(&source) {
            registry::make_stale(&desk.house.db, &desk.actor, &source).await?;
            let (registries, places) = (registries.clone(), Arc::clone(&places));
            running.spawn(async move {
                let _place = places.acquire().await;
                Ok(probed(&source, &registries).await)
            });
            continue;
        }
        // All are asked for at once: a server begins with them while the first are waited for.
        let (job, runner, places) = (ask(desk, &source).await?, desk.house.runner.clone(), Arc::clone(&places));
        running.spawn(async move {
            let place = places.acquire().await;
            let ended = finish(&runner, source.name, job, patience, |_| {}).await;
            drop(place);
            ended
        });
    }
    let mut progress = Progress::fleeting();
    progress.show(&format!("0 of {total} sources synced"));
    let (mut documents, mut failed, mut done) = (Vec::new(), 0, 0);
    while let Some(ended) = interruptible(desk, async { Ok(running.join_next().await) }).await? {
        let ended = ended.map_err(|error| anyhow!("a sync ended early ({error}): run it again"))??;
        done += 1;
        failed += u64::from(ended.result.is_err());
        progress.clear();
        if desk.out.wants_json() {
            documents.push(describe(desk, &ended).await?);
        } else {
            let (mark, text) = match &ended.result {
                Ok(report) => ("", report),
                Err(problem) => ("FAILED: ", problem),
            };
            desk.out.line(format!("{}: {mark}{text}", ended.name))?;
        }
        progress.show(&format!("{done} of {total} sources synced"));
    }
    drop(progress);
    if desk.out.wants_json() {
        desk.out.document(&documents)?;
    } else if total == 0 {
        desk.out.line("There are no sources yet: `larder source add git URL` adds one.")?;
    } else {
        desk.out.line(format!("{} synced, {failed} failed.", counted(total as u64 - failed, "source")))?;
    }
    if failed > 0 {
        bail!(
            "{} of {} could not be synced: `larder source show NAME` says why",
            failed,
            counted(total as u64, "source")
        );
    }
    Ok(())
}

/// Asks for the job, or joins the one that waits.
async fn ask(desk: &Desk, source: &Source) -> Result<Id> {
    let house = &desk.house;
    Ok(queue::enqueue(&house.db, SYNC, &source.id.to_string(), house.host.now()).await?)
}

/// How long this command waits for a server before it does a job itself.
fn patience(desk: &Desk) -> Result<Duration> {
    Ok(if desk.house.is_served()? { PATIENCE } else { Duration::ZERO })
}

/// Waits for a job, or does it.
async fn finish(
    runner: &Runner,
    name: String,
    job: Id,
    patience: Duration,
    mut tell: impl FnMut(&str) + Send,
) -> Result<Ended> {
    let told = |job: &Entry| match (job.state, &job.progress) {
        (State::Waiting, _) => tell(&format!("{name}: waiting")),
        (State::Running, Some(progress)) => tell(&format!("{name}: {progress}")),
        _ => {}
    };
    let job = runner.run_or_wait(job, patience, LIMIT, told).await?;
    let result = match job.state {
        State::Done => Ok(job.progress.unwrap_or_else(|| "done".to_owned())),
        _ => Err(job.problem.unwrap_or_else(|| "it ended without a reason; try again".to_owned())),
    };
    Ok(Ended { name, result })
}

/// Runs `work`; an interrupt hands the jobs that this program does back to the queue first.
async fn interruptible<T>(desk: &Desk, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = pin!(work);
    tokio::select! {
        ended = &mut work => return ended,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    let mut stopping = pin!(desk.house.runner.stop(Duration::ZERO));
    // The work goes on meanwhile: it is what hands its job back.
    tokio::select! {
        () = &mut stopping => {}
        _ = &mut work => stopping.await,
    }
    bail!("interrupted: nothing is half done, and a running server or the next sync goes on")
}

async fn describe(desk: &Desk, ended: &Ended) -> Result<Value> {
    let source = sources::find(&desk.house.db, &ended.name).await?;
    let report = source.as_ref().and_then(|source| source.report.as_deref());
    Ok(json!({
        "source": ended.name,
        "ok": ended.result.is_ok(),
        "summary": ended.result.as_ref().ok(),
        "problem": ended.result.as_ref().err(),
        "state": source.as_ref().map(|source| source.state.as_str()),
        "last_change": report.and_then(|report| serde_json::from_str::<Value>(report).ok()),
    }))
}

/// Says that some refs are in no package, where to read why.
async fn hint_skipped(desk: &Desk, name: &str) -> Result<()> {
    let source = desk.house.sources.find(name).await?;
    let refs = sources::refs(&desk.house.db, source.id).await?;
    let skipped = refs.iter().filter(|seen| seen.skipped.is_some()).count();
    if skipped > 0 {
        desk.out.hint(format!("{skipped} branches and tags are in no package: `larder source show {name}` says why."));
    }
    Ok(())
}
