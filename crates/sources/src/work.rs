//! The jobs about sources: looking at one, and building an artifact before anybody asks for it.

use std::time::Duration;

use async_trait::async_trait;
use larder_core::{Id, Kind, Result};
use larder_db::{
    events::Actor,
    packages,
    sources::{self as rows, Source},
};
use larder_jobs::{Handler, Job, queue};

use crate::{
    Sources,
    forges::{ForgeKind, Forges},
    manage::GIT,
    sync::SyncRun,
};

/// The kind of a job that syncs a source; its subject is the source's id.
pub const SYNC: &str = "source.sync";

/// The kind of a job that builds an artifact; its subject is the version's id.
pub const BUILD: &str = "artifact.build";

/// How often a repository is looked at that its owner keeps for reading only.
const ARCHIVED: Duration = Duration::from_secs(86_400);

/// Syncs sources, each again after its own time: Git repositories, and the forges that list some.
pub struct SyncHandler(pub Forges);

/// Whether a source is synced by a schedule; the others are asked when a client wants something.
pub fn is_scheduled(source: &Source) -> bool {
    source.kind == GIT || ForgeKind::of(source).is_some()
}

/// How long a source is left alone after a sync.
fn rest(source: &Source) -> Duration {
    if source.archived { source.every.max(ARCHIVED) } else { source.every }
}

#[async_trait]
impl Handler for SyncHandler {
    fn kind(&self) -> &'static str {
        SYNC
    }

    async fn run(&self, job: &Job) -> Result<()> {
        let sources = self.0.sources();
        let Some(source) = rows::find(sources.db(), job.subject()).await? else { return Ok(()) };
        if !is_scheduled(&source) {
            return Ok(());
        }
        let began = sources.db().host().now();
        job.repeat_at(began.plus(rest(&source)));
        let actor = Actor::house();
        let run = SyncRun { actor: &actor, guards: vec![job.still_mine()], progress: &|text| job.progress(text) };
        if source.kind != GIT {
            return self.discover(&source, job, &run).await;
        }
        let report = sources.sync(&source, &run).await?;
        let ended = sources.db().host().now();
        job.repeat_at(ended.plus(rest(&source)));
        job.progress(report.sentence());
        tracing::info!(
            source = %source.name,
            added = report.added,
            removed = report.removed,
            moved = report.moved,
            skipped = report.skipped,
            took_ms = u64::try_from(ended.since(began).as_millis()).unwrap_or(u64::MAX),
            "synced"
        );
        for version in &report.eager {
            queue::enqueue(sources.db(), BUILD, &version.to_string(), sources.db().host().now()).await?;
        }
        Ok(())
    }

    async fn given_up(&self, job: &Job) {
        let db = self.0.sources().db();
        if let Ok(Some(source)) = rows::find(db, job.subject()).await {
            job.repeat_at(db.host().now().plus(rest(&source)));
        }
    }
}

impl SyncHandler {
    async fn discover(&self, forge: &Source, job: &Job, run: &SyncRun<'_>) -> Result<()> {
        let found = self.0.discover(forge, run).await?;
        let ended = self.0.sources().db().host().now();
        // A forge that wants to be left alone longer than usual is.
        job.repeat_at(found.resume_at.unwrap_or_else(|| ended.plus(forge.every)));
        job.progress(found.sentence());
        tracing::info!(
            source = %forge.name,
            listed = found.listed,
            looked = found.looked,
            added = found.added.len(),
            gone = found.gone.len(),
            "asked a forge for its repositories"
        );
        Ok(())
    }
}

/// Builds artifacts.
pub struct BuildHandler(pub Sources);

#[async_trait]
impl Handler for BuildHandler {
    fn kind(&self) -> &'static str {
        BUILD
    }

    async fn run(&self, job: &Job) -> Result<()> {
        let version: Id = job.subject().parse()?;
        let Some((_, package)) = packages::version_with_package(self.0.db(), version, "").await? else { return Ok(()) };
        let Some(format) = self.0.format(&package.format) else { return Ok(()) };
        match self.0.artifact(version, format).await {
            // It went away meanwhile: nobody will ask for it.
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }
}
