//! Artifacts built from Git trees: on first demand, once for all who ask at the same time, and never again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Shared},
};
use larder_blobs::Writer;
use larder_core::{
    Error, Id, Kind, Result,
    format::Format,
    tree::{ByteSink, TreeEvent},
};
use larder_db::{
    Batch, blobs, changes, events,
    events::{Actor, Event},
    packages::{self, Artifact, Package, Version},
    sources as rows,
};
use serde_json::json;

use crate::Sources;

/// How the file of a Git LFS pointer begins.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

type Building = Shared<BoxFuture<'static, Result<Artifact, Arc<Error>>>>;

/// The builds that are under way in this process.
#[derive(Clone, Default)]
pub(crate) struct Builds(Arc<Mutex<HashMap<Id, Building>>>);

impl Sources {
    /// The artifact of a version, built now if it never was. Ten who ask for the same cold one wait for one build, which
    /// goes on if they leave.
    pub async fn artifact(&self, version: Id, format: &Arc<dyn Format>) -> Result<Artifact> {
        if let Some(artifact) = packages::artifact(&self.db, version, format.artifact()).await? {
            return Ok(artifact);
        }
        self.join_build(version, format).await
    }

    /// Builds an artifact anew whose blob is missing or damaged. The same bytes heal it; others are refused.
    pub async fn rebuild(&self, version: Id, format: &Arc<dyn Format>) -> Result<Artifact> {
        self.join_build(version, format).await
    }

    async fn join_build(&self, version: Id, format: &Arc<dyn Format>) -> Result<Artifact> {
        let building = {
            let mut builds = self.builds.0.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = || {
                let building = self.begin_build(version, Arc::clone(format));
                // It goes on without those who wait, and takes itself off the list.
                self.db.host().spawn.background(building.clone().map(drop).boxed());
                building
            };
            builds.entry(version).or_insert_with(begin).clone()
        };
        building.await.map_err(|error| Error::new(error.kind(), error.message()))
    }

    fn begin_build(&self, version: Id, format: Arc<dyn Format>) -> Building {
        let sources = self.clone();
        let work = async move {
            let host = sources.db.host().clone();
            let inner = sources.clone();
            let result = host.heavy(async move { inner.build(version, format.as_ref()).await }).await;
            sources.builds.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&version);
            result.map_err(|error| {
                tracing::warn!(%version, error = %error.chain(), "an artifact could not be built");
                Arc::new(error)
            })
        };
        work.boxed().shared()
    }

    /// Builds, stores and records one artifact.
    async fn build(&self, version: Id, format: &dyn Format) -> Result<Artifact> {
        let trees = format.trees().ok_or_else(|| Error::not_found("packages of this format are not built from Git"))?;
        let gone = || Error::not_found("this version is not there any more");
        let (version, package) =
            packages::version_with_package(&self.db, version, format.artifact()).await?.ok_or_else(gone)?;
        let source = package.source_id.map(|id| id.to_string());
        let source = match source {
            Some(id) => rows::find(&self.db, &id).await?,
            None => None,
        };
        let source = source.ok_or_else(|| {
            Error::new(
                Kind::Gone,
                format!("the source of {} was removed, and this version was never built", package.name),
            )
        })?;
        let remote = self.remote(&source).await?;
        let files = self.git.archive(&source.id.to_string(), &remote, &version.reference, &version.folder).await?;
        let pointers = Arc::new(Mutex::new(0_u32));
        let counted = Arc::clone(&pointers);
        let files = files.inspect(move |event| {
            if matches!(event, Ok(TreeEvent::Data(bytes)) if bytes.starts_with(LFS_POINTER)) {
                *counted.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            }
        });
        let mut sink = Sink { writer: self.blobs.begin().await?, written: 0, limit: self.limits.artifact };
        let built = match trees.pack(version.released_at, files.boxed(), &mut sink).await {
            Ok(()) => sink.writer.finish().await?,
            Err(error) => {
                sink.writer.abort().await;
                return Err(error);
            }
        };
        let built = Artifact { digest: built.digest, size: built.size, sha1: built.sha1 };
        let pointers = *pointers.lock().unwrap_or_else(PoisonError::into_inner);
        self.record(&version, &package, format, built, pointers).await
    }

    /// Writes the artifact's row, or checks that the one which is there names the same bytes.
    async fn record(
        &self,
        version: &Version,
        package: &Package,
        format: &dyn Format,
        built: Artifact,
        lfs_pointers: u32,
    ) -> Result<Artifact> {
        let host = self.db.host();
        let mut detail = json!({"version": version.version, "reference": version.reference, "digest": built.digest.to_string(), "size": built.size});
        if lfs_pointers > 0 {
            tracing::warn!(package = %package.name, version = %version.version, lfs_pointers, "an artifact holds Git LFS pointers in place of their contents");
            detail["lfs_pointers"] = lfs_pointers.into();
        }
        let event =
            Event::new(&Actor::house(), "artifact.build", format!("package:{}:{}", package.format, package.name))
                .with(detail);
        let batch = Batch::new()
            .with(packages::not_built(version.id, format.artifact()))
            .with(blobs::is_live(&built.digest))
            .with(packages::insert_artifact(host.new_id(), version.id, format.artifact(), &built, host.now()))
            .with(events::record(host, &event))
            .with(changes::notify(host, &packages::topic(&package.format, &package.name)));
        match self.db.commit(batch).await {
            Ok(_) => Ok(built),
            Err(error) if error.is_guard("artifact is not built yet") => {
                match packages::artifact(&self.db, version.id, format.artifact()).await? {
                    Some(there) if there.digest == built.digest => Ok(there),
                    Some(there) => Err(Error::new(
                        Kind::Damaged,
                        format!(
                            "the dist of {} {} was lost and cannot be made again with the same bytes ({} then, {} now): restore it from a backup",
                            package.name, version.display, there.digest, built.digest
                        ),
                    )),
                    None => Err(Error::not_found("this version is not there any more")),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A blob that is being written, no larger than a limit.
struct Sink {
    writer: Writer,
    written: u64,
    limit: u64,
}

#[async_trait]
impl ByteSink for Sink {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.written += bytes.len() as u64;
        if self.written > self.limit {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "the dist is larger than {} bytes: raise `limits.artifact` in larder.toml, or leave files out with export-ignore",
                    self.limit
                ),
            ));
        }
        self.writer.write(bytes).await
    }
}
