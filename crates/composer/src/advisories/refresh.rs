//! Advisories of registries upstream, kept fresh: each is asked once an hour what has changed, and once a day for all.
//! Answers hold everything that an upstream knows, so that no name leaves the house; what is kept is what it may bring.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use larder_core::{Id, Result, Time};
use larder_db::{
    Batch, Db, Statement,
    events::Actor,
    upstream_checks::{self, Check},
};
use larder_jobs::{Handler, Job};
use larder_sources::registry::Upstream;

use super::{
    board::{self, Imported, Telling},
    formats::{self, Read},
};
use crate::upstream::Proxy;

/// The kind of the job; its subject is empty.
pub const REFRESH: &str = "composer.advisories";

/// How often the job looks which upstream is due: a new one need not wait for long.
const EVERY: Duration = Duration::from_secs(300);

/// How often an upstream is asked.
const DUE: Duration = Duration::from_secs(3_600);

/// How often it is asked for everything, so that what it took back goes.
const WHOLE: Duration = Duration::from_secs(86_400);

/// How far behind the last time it is asked: its clock is another one, and its answer may come out of a cache.
const OVERLAP: Duration = Duration::from_secs(7_200);

/// The subject of the check that keeps when it was asked.
const SUBJECT: &str = "advisories";

/// Does the job.
#[derive(Clone)]
pub struct RefreshHandler {
    db: Db,
    proxy: Proxy,
}

impl RefreshHandler {
    /// Over the upstreams.
    pub fn new(db: Db, proxy: Proxy) -> Self {
        Self { db, proxy }
    }
}

#[async_trait]
impl Handler for RefreshHandler {
    fn kind(&self) -> &'static str {
        REFRESH
    }

    async fn run(&self, job: &Job) -> Result<()> {
        job.repeat_at(self.db.host().now().plus(EVERY));
        forget_removed(&self.db, &self.proxy).await?;
        for upstream in self.proxy.upstreams().await? {
            if !is_due(&self.db, upstream.id()).await? {
                continue;
            }
            // One that fails does not keep the others; it is tried again when the job is next done.
            match refresh(&self.db, &self.proxy, &upstream, &Actor::house(), Some(job.still_mine())).await {
                Ok(Some(imported)) => {
                    tracing::debug!(upstream = upstream.source.name.as_str(), ?imported, "advisories");
                }
                Ok(None) => {}
                Err(error) => {
                    let (upstream, error) = (upstream.source.name.as_str(), error.chain());
                    tracing::warn!(upstream, error, "its advisories cannot be brought; those that are here still hold");
                }
            }
        }
        Ok(())
    }

    async fn given_up(&self, job: &Job) {
        job.repeat_at(self.db.host().now().plus(EVERY));
    }
}

/// Brings what every upstream knows, due or not. Each with what came of it; `None` if it tells no advisories.
pub async fn refresh_all(db: &Db, proxy: &Proxy, actor: &Actor) -> Result<Vec<(String, Result<Option<Imported>>)>> {
    forget_removed(db, proxy).await?;
    let mut outcomes = Vec::new();
    for upstream in proxy.upstreams().await? {
        outcomes.push((upstream.source.name.clone(), refresh(db, proxy, &upstream, actor, None).await));
    }
    Ok(outcomes)
}

/// Takes in an answer of an upstream. `is_all`: to the question for everything.
pub async fn import_from_upstream(
    db: &Db,
    upstream: &Upstream,
    answer: Bytes,
    is_all: bool,
    actor: &Actor,
    guard: Option<Statement>,
) -> Result<Imported> {
    let mut read: Read = db.host().heavy(async move { formats::read(&answer) }).await?;
    read.told.retain(|told| upstream.name_there(&told.package).is_some());
    if !read.problems.is_empty() {
        let (upstream, problems) = (upstream.source.name.as_str(), read.problems.len());
        tracing::warn!(upstream, problems, first = ?read.problems.first(), "advisories that cannot be read are left out");
    }
    let feed = board::feed_of(upstream.id());
    let known = board::feeds(db).await?.into_iter().find(|known| known.name == feed);
    let known = known.map_or(0, |known| usize::try_from(known.advisories).unwrap_or(usize::MAX));
    // An answer that lost so much lost it on the way.
    let is_whole = !read.told.is_empty() && read.told.len() >= known - known / 3;
    if is_all && !is_whole && known > 0 {
        tracing::warn!(
            upstream = upstream.source.name.as_str(),
            known,
            told = read.told.len(),
            "it tells far less than before: none is taken back"
        );
    }
    board::take_in(db, &Telling { actor, feed: &feed, is_all: is_all && is_whole, guard }, read).await
}

async fn refresh(
    db: &Db,
    proxy: &Proxy,
    upstream: &Upstream,
    actor: &Actor,
    guard: Option<Statement>,
) -> Result<Option<Imported>> {
    let now = db.host().now();
    let last = upstream_checks::find(db, upstream.id(), SUBJECT).await?;
    let whole_at = last.as_ref().and_then(whole_at).filter(|at| now.since(*at) < WHOLE);
    let since = match (&last, whole_at) {
        (Some(last), Some(_)) => last.checked_at.minus(OVERLAP),
        _ => Time::from_micros(0),
    };
    let imported = match proxy.advisories(upstream, since).await? {
        Some(answer) => {
            let is_all = whole_at.is_none();
            Some(import_from_upstream(db, upstream, answer, is_all, actor, guard.clone()).await?)
        }
        None => None,
    };
    let whole_at = whole_at.unwrap_or(now);
    let check = Check { checked_at: now, validator: whole_at.micros().to_string() };
    let mut batch = Batch::new();
    batch.extend(guard);
    db.commit(batch.with(upstream_checks::put(upstream.id(), SUBJECT, &check))).await?;
    Ok(imported)
}

async fn is_due(db: &Db, source: Id) -> Result<bool> {
    let last = upstream_checks::find(db, source, SUBJECT).await?;
    Ok(last.is_none_or(|last| db.host().now().since(last.checked_at) >= DUE))
}

/// When it was last asked for everything.
fn whole_at(check: &Check) -> Option<Time> {
    check.validator.parse().ok().map(Time::from_micros)
}

/// Removes what sources told that are not there any more.
async fn forget_removed(db: &Db, proxy: &Proxy) -> Result<()> {
    let upstreams = proxy.upstreams().await?;
    for feed in board::feeds(db).await? {
        if board::source_of(&feed.name).is_some_and(|id| !upstreams.iter().any(|upstream| upstream.id() == id)) {
            board::remove_feed(db, &Actor::house(), &feed.name).await?;
        }
    }
    Ok(())
}
