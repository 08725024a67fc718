//! Proving all bytes: every blob is read and hashed, every object in the store and every artifact is accounted for, and
//! each difference comes with what it means and what to do.

use futures_util::TryStreamExt;
use larder_core::{Digest, Error, Kind, Result, digest::Hasher};
use larder_db::blobs::{self, BlobRow, State, Use};
use serde::Serialize;

use crate::{Blobs, gc::is_ours};

/// How many rows or objects are looked at in one go.
const BATCH: u32 = 256;
/// How many artifacts are named for one damaged blob.
const NAMED: u32 = 5;
/// A store that fails so often in a row is down, and tells nothing about blobs.
const FAILURES: u32 = 10;

/// What is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The bytes of a blob are not in the store.
    MissingBytes,
    /// There are fewer or more bytes than the row says.
    WrongSize,
    /// The bytes have another digest.
    WrongDigest,
    /// The store could not read the bytes this time.
    Unreadable,
    /// The bytes of a blob that was marked missing are there and right.
    Restored,
    /// An artifact refers to a blob that has no row, or another size.
    Unfounded,
    /// Bytes that no row refers to.
    Stray,
    /// An object that Larder did not make.
    Foreign,
}

impl Difference {
    /// Whether somebody may miss bytes because of it. Others are only worth knowing.
    pub fn is_damage(self) -> bool {
        !matches!(self, Self::Restored | Self::Stray | Self::Foreign)
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What sort.
    pub difference: Difference,
    /// A blob's digest, or else the location in the store.
    pub name: String,
    /// What was found, for people.
    pub found: String,
    /// What it means and what to do, for people.
    pub advice: String,
}

/// How far the proof is. Sums of rows may change while it runs, so that it ends near its totals, not exactly there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Blobs proven.
    pub blobs: u64,
    /// Blobs in all.
    pub of_blobs: u64,
    /// Bytes proven.
    pub bytes: u64,
    /// Bytes in all.
    pub of_bytes: u64,
}

/// What is told while it runs, at once, so that nothing is gathered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// About once per few MiB, for a terminal.
    Progress(Progress),
    /// One difference.
    Found(Finding),
}

/// The sums at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Blobs that were looked at.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Differences by which somebody may miss bytes.
    pub damaged: u64,
    /// Differences that are only worth knowing.
    pub notices: u64,
}

/// A run: where its steps go, and what it has counted.
struct Run<'a> {
    blobs: &'a Blobs,
    report: &'a mut (dyn FnMut(Step) + Send),
    progress: Progress,
    sums: Checked,
    /// Failures of the store in a row.
    failures: u32,
}

impl Blobs {
    /// Reads and hashes every blob, and looks for objects without a row and artifacts without a blob. Bytes that are not
    /// there or not right are marked missing; ones that were marked and are right are marked live again.
    pub async fn fsck(&self, report: &mut (dyn FnMut(Step) + Send)) -> Result<Checked> {
        let (of_blobs, of_bytes) = blobs::totals(&self.inner.db).await?;
        let progress = Progress { of_blobs, of_bytes, ..Progress::default() };
        let mut run = Run { blobs: self, report, progress, sums: Checked::default(), failures: 0 };
        run.prove_blobs().await?;
        run.find_unfounded().await?;
        run.find_strays().await?;
        Ok(run.sums)
    }
}

impl Run<'_> {
    fn tell(&mut self, difference: Difference, name: String, found: String, advice: String) {
        *if difference.is_damage() { &mut self.sums.damaged } else { &mut self.sums.notices } += 1;
        (self.report)(Step::Found(Finding { difference, name, found, advice }));
    }

    async fn prove_blobs(&mut self) -> Result<()> {
        let mut after: Option<Digest> = None;
        loop {
            let rows = blobs::list(&self.blobs.inner.db, after.as_ref(), BATCH).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.digest);
            for row in rows {
                self.judge(row).await?;
                self.sums.blobs += 1;
                self.progress.blobs += 1;
                (self.report)(Step::Progress(self.progress));
            }
        }
    }

    /// Compares one blob with its row, and makes the row say what is true.
    async fn judge(&mut self, row: BlobRow) -> Result<()> {
        let proof = match self.prove(&row).await {
            Ok(proof) => {
                self.failures = 0;
                proof
            }
            Err(error) => return self.unreadable(&row, error),
        };
        let name = row.digest.to_string();
        match (proof, row.state) {
            (None, State::Live) => Ok(()),
            (None, State::Missing) => {
                if self.blobs.mark_live(&row).await? {
                    let found = "it was marked missing, and its bytes are there and right".to_owned();
                    self.tell(Difference::Restored, name, found, "it can be had again; nothing to do".to_owned());
                }
                Ok(())
            }
            (Some((difference, found)), state) => {
                // A row that changed under the proof belongs to other bytes by now.
                if state == State::Missing || self.blobs.mark_missing(&row, &found).await? {
                    let advice = self.advise(&row).await?;
                    self.tell(difference, name, found, advice);
                }
                Ok(())
            }
        }
    }

    /// Reads and hashes a blob; `None` if all is right.
    async fn prove(&mut self, row: &BlobRow) -> Result<Option<(Difference, String)>> {
        let mut object = match self.blobs.inner.store.get(&row.location, 0..row.size).await {
            Ok(object) => object,
            Err(error) if error.kind() == Kind::NotFound => {
                let found = format!("its bytes are not in the store (they should be at {})", row.location);
                return Ok(Some((Difference::MissingBytes, found)));
            }
            Err(error) => return Err(error),
        };
        let (mut hash, mut size) = (Hasher::new(row.digest.algorithm()), 0);
        while let Some(chunk) = object.stream.try_next().await? {
            hash.update(&chunk);
            let before = size >> 23;
            size += chunk.len() as u64;
            self.progress.bytes += chunk.len() as u64;
            if size >> 23 != before {
                (self.report)(Step::Progress(self.progress));
            }
        }
        self.sums.bytes += size;
        let digest = hash.finish();
        if object.size != row.size || size != row.size {
            let found =
                format!("the store has {} bytes instead of {} at {}", object.size.max(size), row.size, row.location);
            return Ok(Some((Difference::WrongSize, found)));
        }
        if digest != row.digest {
            return Ok(Some((
                Difference::WrongDigest,
                format!("the bytes at {} have the digest {digest}", row.location),
            )));
        }
        Ok(None)
    }

    fn unreadable(&mut self, row: &BlobRow, error: Error) -> Result<()> {
        self.failures += 1;
        if self.failures >= FAILURES {
            return Err(error);
        }
        tracing::error!(digest = %row.digest, location = row.location, error = error.chain(), "a blob cannot be read");
        let advice = "nothing was changed: look at the disk or the object store, then run this again".to_owned();
        self.tell(Difference::Unreadable, row.digest.to_string(), error.message().to_owned(), advice);
        Ok(())
    }

    async fn advise(&self, row: &BlobRow) -> Result<String> {
        let mut uses = blobs::uses(&self.blobs.inner.db, &row.digest, NAMED + 1).await?;
        if uses.is_empty() {
            return Ok("no artifact refers to it: `larder gc` takes the row away once its lease is over".to_owned());
        }
        let more = if uses.len() > NAMED as usize { " and others" } else { "" };
        uses.truncate(NAMED as usize);
        let names: Vec<String> = uses.iter().map(describe).collect();
        Ok(format!(
            "{}{more} cannot be downloaded until the same bytes are put again: build, push or fetch them again, or bring \
             back the file from a backup and run this again",
            names.join(", ")
        ))
    }

    async fn find_unfounded(&mut self) -> Result<()> {
        let mut after = String::new();
        loop {
            let artifacts = blobs::unfounded(&self.blobs.inner.db, &after, BATCH).await?;
            let Some(last) = artifacts.last() else { return Ok(()) };
            after.clone_from(&last.id);
            for artifact in artifacts {
                let found = match artifact.blob_size {
                    Some(size) => format!("{} says {} bytes, its blob {size}", describe(&artifact.of), artifact.size),
                    None => format!("{} refers to a blob that has no row", describe(&artifact.of)),
                };
                let advice = "the database was changed by something else than Larder: remove this version and bring it in \
                              again, or restore the database from a backup";
                self.tell(Difference::Unfounded, artifact.digest.to_string(), found, advice.to_owned());
            }
        }
    }

    async fn find_strays(&mut self) -> Result<()> {
        let before = self.blobs.inner.host.now().minus(self.blobs.times.abandoned);
        let mut after: Option<String> = None;
        loop {
            let objects = self.blobs.inner.store.list(after.as_deref(), BATCH as usize).await?;
            let Some(last) = objects.last() else { return Ok(()) };
            after = Some(last.location.clone());
            for stray in self.blobs.strays(objects, before).await? {
                let found = format!("{} bytes since {} that no row knows of", stray.size, stray.modified);
                let (difference, advice) = if is_ours(&stray.location) {
                    (Difference::Stray, "harmless, left by a crash: `larder gc` takes it away")
                } else {
                    (Difference::Foreign, "not made by Larder, which leaves it alone: keep other files elsewhere")
                };
                self.tell(difference, stray.location, found, advice.to_owned());
            }
        }
    }
}

fn describe(of: &Use) -> String {
    format!("{} of {} {} {}", of.artifact, of.format, of.package, of.version)
}
