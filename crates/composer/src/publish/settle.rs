//! The second half of publishing: bytes that are here are looked into, and become a version in one batch, or not at all.

use async_trait::async_trait;
use bytes::Bytes;
use larder_blobs::{StoredBlob, Writer};
use larder_core::{Error, Id, Kind, Result, Time, format::Release, tree::ByteSink};
use larder_db::{
    Batch, CommitError, blobs, changes,
    events::{self, Actor, Event},
    packages::{self, Artifact, Kept, Package, Version},
};
use serde_json::json;

use super::{Order, Published, Publisher, UPLOAD};
use crate::{
    DIST, ID,
    archive::{self, Archive, Source},
    dist, ingest,
    offers::ZIP,
    render, version,
};

/// How often a publication that lost a race is decided again.
const ATTEMPTS: usize = 10;

/// A version that may be published.
struct Ready {
    release: Release,
    /// SHA-1 of what was sent.
    reference: String,
    artifact: Artifact,
    from: Option<String>,
    actor: Actor,
}

/// What became of an attempt.
enum Attempt {
    /// It is published.
    Done,
    /// It was before.
    Same(Artifact),
    /// Somebody else changed something meanwhile.
    Again,
}

impl Publisher {
    /// Makes a version of a zip that is stored, or says why not.
    pub(super) async fn settle(
        &self,
        actor: &Actor,
        order: &Order,
        stored: &StoredBlob,
        since: Time,
    ) -> Result<Published> {
        let blobs = self.repository.blobs.clone();
        let digest = stored.digest;
        let source = Source::new(stored.size, move |range| blobs.open_later(digest, range));
        let limits = archive::Limits::for_size(self.limits.artifact);
        let archive = archive::look(&source, &limits, order.manifest.is_none()).await?;
        let manifest = order.manifest.as_ref().or(archive.manifest.as_ref()).map_or(&[][..], |bytes| bytes);
        let mut release = ingest::take_upload(manifest, order.version.as_deref())
            .map_err(|skipped| Error::invalid(format!("this is refused: {}", skipped.0)))?;
        refuse_other_name(order, &release)?;
        let served = if archive.is_plain {
            stored.clone()
        } else {
            release.warnings.push(format!(
                "the package is the folder `{}` of the zip: it was packed anew, without what is beside that, because clients \
                 look no deeper than one folder that everything is in",
                archive.folder()
            ));
            self.repack(&archive, &source).await?
        };
        let artifact = Artifact { digest: served.digest, size: served.size, sha1: served.sha1.clone() };
        let (from, reference) = (order.from.clone(), stored.sha1.clone());
        let ready = Ready { release, reference, artifact, from, actor: actor.clone() };
        let made = self.make(&ready).await;
        if made.is_err() && served != *stored {
            self.take_back(&served, since).await;
        }
        let (artifact, is_new) = made?;
        Ok(self.published(ready, artifact, is_new))
    }

    fn published(&self, ready: Ready, artifact: Artifact, is_new: bool) -> Published {
        let Ready { release, reference, .. } = ready;
        let path = render::dist_path(&release.package, &release.version, &reference, ZIP);
        Published {
            url: format!("{}{path}", self.repository.public_url),
            name: release.package,
            version: release.display,
            normalized: release.version,
            reference,
            shasum: artifact.sha1,
            size: artifact.size,
            is_new,
            warnings: release.warnings,
        }
    }

    /// Takes a blob away that nothing came of. If that fails, `gc` does it a day later.
    pub(super) async fn take_back(&self, stored: &StoredBlob, since: Time) {
        if let Err(error) = self.repository.blobs.take_back(stored, since).await {
            tracing::warn!(digest = %stored.digest, error = error.chain(), "the bytes of a refused upload stay for now");
        }
    }

    /// Packs the folder of the package alone.
    async fn repack(&self, archive: &Archive, source: &Source) -> Result<StoredBlob> {
        let mut sink = Sink { writer: self.repository.blobs.begin().await?, publisher: self };
        match dist::pack(archive.changed(), archive.files(source), &mut sink).await {
            Ok(()) => sink.writer.finish().await,
            Err(error) => {
                sink.writer.abort().await;
                Err(error)
            }
        }
    }

    /// Publishes, and gives what is served, and whether it is new.
    async fn make(&self, ready: &Ready) -> Result<(Artifact, bool)> {
        for _ in 0..ATTEMPTS {
            match self.attempt(ready).await? {
                Attempt::Done => return Ok((ready.artifact.clone(), true)),
                Attempt::Same(artifact) => return Ok((artifact, false)),
                Attempt::Again => {}
            }
        }
        Err(Error::new(Kind::Unavailable, "too many others publish to this package just now; try again"))
    }

    async fn attempt(&self, ready: &Ready) -> Result<Attempt> {
        let (db, host, now) = (&self.repository.db, self.host(), self.host().now());
        let release = &ready.release;
        let package = self.owned(&release.package).await?;
        let known = match &package {
            Some(package) => packages::kept(db, package.id, DIST).await?,
            None => Vec::new(),
        };
        let there = known.iter().find(|kept| kept.version == release.version && kept.reference == ready.reference);
        let pointed =
            release.pointer.as_ref().and_then(|name| known.iter().find(|kept| kept.pointer.as_ref() == Some(name)));
        match (&release.pointer, there, pointed) {
            (None, Some(there), _) => return Ok(Attempt::Same(served(there, ready))),
            (Some(_), Some(there), Some(pointed)) if there.id == pointed.id => {
                return Ok(Attempt::Same(served(there, ready)));
            }
            (None, None, _) => refuse_other_bytes(&known, ready)?,
            (Some(_), ..) => {}
        }
        let mut batch = Batch::new();
        let id = self.stay_or_come(&mut batch, package.as_ref(), &known, release).await?;
        let version = if let Some(there) = there {
            batch.push(packages::version_exists(there.id));
            there.id
        } else {
            if release.pointer.is_none() {
                batch.push(packages::version_free(id, &release.version));
            }
            self.insert(&mut batch, id, ready)
        };
        if let Some(name) = &release.pointer {
            batch.push(packages::points_at(id, name, pointed.map_or("", |pointed| &pointed.reference)));
            batch.push(packages::put_pointer(id, name, version, now));
        }
        batch.push(events::record(host, &event(ready, pointed)));
        batch.push(changes::notify(host, &packages::topic(ID, &release.package)));
        match db.commit(batch).await {
            Ok(_) => Ok(Attempt::Done),
            Err(error) if error.is_guard("blob_is_live") => Err(Error::new(
                Kind::Unavailable,
                "the bytes were collected before they were published: send them again",
            )
            .caused_by(error)),
            Err(CommitError::Guard(_)) => Ok(Attempt::Again),
            Err(CommitError::Other(error)) if error.kind() == Kind::Conflict => Ok(Attempt::Again),
            Err(error) => Err(error.into()),
        }
    }

    /// Adds to a batch that the package is still there, or that it appears. Gives its id.
    async fn stay_or_come(
        &self,
        batch: &mut Batch,
        package: Option<&Package>,
        known: &[Kept],
        release: &Release,
    ) -> Result<Id> {
        let (host, now) = (self.host(), self.host().now());
        let Some(package) = package else {
            let package = Package {
                id: host.new_id(),
                format: ID.to_owned(),
                name: release.package.clone(),
                source_id: None,
                summary: release.summary.clone(),
                created_at: now,
                changed_at: now,
            };
            batch.push(packages::name_free(ID, &package.name));
            batch.push(packages::insert(&package));
            return Ok(package.id);
        };
        let metadata = packages::metadata_of_package(&self.repository.db, package.id).await?;
        if metadata + release.metadata.len() as u64 > self.limits.metadata {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "the metadata of all versions of {} would have more than {} bytes: take old versions away with `larder package \
                     remove`, or raise `limits.metadata` in larder.toml",
                    package.name, self.limits.metadata
                ),
            ));
        }
        batch.push(packages::exists(package.id));
        batch.push(packages::changed(package.id, now));
        // The newest release describes the package best.
        let newer = known.iter().filter(|kept| kept.visible() && (kept.listed || release.pointer.is_some()));
        if newer.into_iter().all(|kept| version::compare(&kept.version, &release.version).is_le()) {
            batch.push(packages::describe(package.id, &release.summary));
        }
        Ok(package.id)
    }

    /// Adds the version and its artifact to a batch. Gives its id.
    fn insert(&self, batch: &mut Batch, package: Id, ready: &Ready) -> Id {
        let (host, now) = (self.host(), self.host().now());
        let Ready { release, reference, artifact, .. } = ready;
        let version = Version {
            id: host.new_id(),
            version: release.version.clone(),
            display: release.display.clone(),
            reference: reference.clone(),
            stable: release.stable,
            listed: release.pointer.is_none(),
            origin: UPLOAD.to_owned(),
            folder: String::new(),
            released_at: now,
            metadata: release.metadata.clone(),
            sha1: None,
        };
        batch.push(blobs::is_live(&artifact.digest));
        batch.push(packages::insert_version(package, &version, now));
        batch.push(packages::insert_artifact(host.new_id(), version.id, DIST, artifact, now));
        version.id
    }
}

/// What is served of a version that is here already.
fn served(there: &Kept, ready: &Ready) -> Artifact {
    there.artifact.clone().unwrap_or_else(|| ready.artifact.clone())
}

fn event(ready: &Ready, pointed: Option<&Kept>) -> Event {
    let Ready { release, reference, artifact, from, actor } = ready;
    let detail = json!({
        "version": release.version,
        "reference": reference,
        "digest": artifact.digest.to_string(),
        "size": artifact.size,
        "before": pointed.map(|kept| &kept.reference),
        "from": from,
    });
    Event::new(actor, "version.publish", format!("package:{ID}:{}", release.package)).with(detail)
}

fn refuse_other_name(order: &Order, release: &Release) -> Result<()> {
    match &order.name {
        Some(name) if *name != release.package => Err(Error::invalid(format!(
            "this is the package {}, and was to be published as {name}: correct \"name\" in its {}, or where you send it",
            release.package,
            ingest::MANIFEST
        ))),
        _ => Ok(()),
    }
}

/// A version that stays is what it was first.
fn refuse_other_bytes(known: &[Kept], ready: &Ready) -> Result<()> {
    let release = &ready.release;
    let Some(other) = known.iter().find(|kept| kept.version == release.version) else { return Ok(()) };
    Err(Error::conflict(format!(
        "{} {} is here already, since {}, with other contents (SHA-1 {}, now {}): a version never changes. Publish a new version, or \
         take this one away first, if nobody uses it: `larder package remove {ID} {} {}`",
        release.package,
        other.display,
        other.released_at,
        other.reference,
        ready.reference,
        release.package,
        other.display
    )))
}

/// A blob that is being written, no larger than a limit.
struct Sink<'a> {
    writer: Writer,
    publisher: &'a Publisher,
}

#[async_trait]
impl ByteSink for Sink<'_> {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.publisher.refuse_too_large(self.writer.written() + bytes.len() as u64)?;
        self.writer.write(bytes).await
    }
}
