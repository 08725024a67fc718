//! The jobs about sources: looking at one, and building an artifact before anybody asks for it.

use async_trait::async_trait;
use larder_core::{Id, Kind, Result};
use larder_db::{events::Actor, packages, sources as rows};
use larder_jobs::{Handler, Job, queue};

use crate::{Sources, manage::GIT, sync::SyncRun};

/// The kind of a job that syncs a source; its subject is the source's id.
pub const SYNC: &str = "source.sync";

/// The kind of a job that builds an artifact; its subject is the version's id.
pub const BUILD: &str = "artifact.build";

/// Syncs sources, each again after its own time.
pub struct SyncHandler(pub Sources);

#[async_trait]
impl Handler for SyncHandler {
    fn kind(&self) -> &'static str {
        SYNC
    }

    async fn run(&self, job: &Job) -> Result<()> {
        let source = rows::find(self.0.db(), job.subject()).await?;
        let Some(source) = source.filter(|source| source.kind == GIT) else { return Ok(()) };
        job.repeat_at(self.0.db().host().now().plus(source.every));
        let began = self.0.db().host().now();
        let actor = Actor::house();
        let run = SyncRun { actor: &actor, guards: vec![job.still_mine()], progress: &|text| job.progress(text) };
        let report = self.0.sync(&source, &run).await?;
        let ended = self.0.db().host().now();
        job.repeat_at(ended.plus(source.every));
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
            queue::enqueue(self.0.db(), BUILD, &version.to_string(), self.0.db().host().now()).await?;
        }
        Ok(())
    }

    async fn given_up(&self, job: &Job) {
        if let Ok(Some(source)) = rows::find(self.0.db(), job.subject()).await {
            job.repeat_at(self.0.db().host().now().plus(source.every));
        }
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
