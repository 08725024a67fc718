//! Taking away what nobody needs any more: blobs without an artifact, what is in the trash, uploads with which nobody goes
//! on, bytes without a row.
//!
//! In bounded batches, past anything that fails, and at any time: it holds nothing that a put or a read waits for.

use larder_core::{Digest, Result, Time};
use larder_db::{
    Batch,
    blobs::{self, BlobRow},
    uploads,
};
use serde::Serialize;

use crate::{Blobs, store::Stored};

/// How many rows or objects are looked at in one go.
const BATCH: u32 = 256;

/// What sort of thing is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// A blob: its row at once, its bytes into the trash.
    Blob,
    /// The bytes of what came into the trash before.
    Trash,
    /// An upload that could have gone on, and did not for too long.
    Session,
    /// An upload that never ended, and that nothing can go on with.
    Upload,
    /// Bytes without a row.
    Stray,
}

/// One thing that is taken away, or with `dry_run` would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Garbage {
    /// What it is.
    pub sort: Sort,
    /// A blob's digest, or else the location in the store.
    pub name: String,
    /// How many bytes.
    pub size: u64,
    /// Why nobody needs it, for people.
    pub reason: String,
    /// Why it could not be taken away, for people; the next run tries again.
    pub problem: Option<String>,
}

/// The sums of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Blobs.
    pub blobs: u64,
    /// Objects that were in the trash.
    pub trash: u64,
    /// Uploads that could have gone on.
    pub sessions: u64,
    /// Uploads that never ended.
    pub uploads: u64,
    /// Objects without a row.
    pub strays: u64,
    /// Bytes of all of them, counted when they become garbage: not again when they go out of the trash.
    pub bytes: u64,
    /// Things that could not be taken away, in none of the other sums.
    pub failed: u64,
}

impl Collected {
    fn count(&mut self, garbage: &Garbage) {
        if garbage.problem.is_some() {
            self.failed += 1;
            return;
        }
        match garbage.sort {
            Sort::Blob => self.blobs += 1,
            Sort::Trash => {
                self.trash += 1;
                return;
            }
            Sort::Session => self.sessions += 1,
            Sort::Upload => self.uploads += 1,
            Sort::Stray => self.strays += 1,
        }
        self.bytes += garbage.size;
    }
}

/// Where each finding goes, at once, so that none are gathered.
type Report<'a> = &'a mut (dyn FnMut(Garbage) + Send);

impl Blobs {
    /// Takes away what nobody needs, or with `dry_run` only says what that is, one finding after the other.
    pub async fn gc(&self, dry_run: bool, report: Report<'_>) -> Result<Collected> {
        let mut sums = self.gc_known(dry_run, report).await?;
        let mut tell = |garbage: Garbage| {
            sums.count(&garbage);
            report(garbage);
        };
        self.collect_uploads(dry_run, &mut tell).await?;
        self.collect_strays(dry_run, &mut tell).await?;
        Ok(sums)
    }

    /// Like [`gc`](Self::gc), but only of what the database knows: it does not list the store, however large that is.
    pub async fn gc_known(&self, dry_run: bool, report: Report<'_>) -> Result<Collected> {
        let mut sums = Collected::default();
        let mut tell = |garbage: Garbage| {
            sums.count(&garbage);
            report(garbage);
        };
        self.collect_unused(dry_run, &mut tell).await?;
        self.collect_trash(dry_run, &mut tell).await?;
        self.collect_sessions(dry_run, &mut tell).await?;
        Ok(sums)
    }

    async fn collect_unused(&self, dry_run: bool, tell: Report<'_>) -> Result<()> {
        let now = self.inner.host.now();
        let mut after: Option<Digest> = None;
        loop {
            let rows = blobs::unused(&self.inner.db, after.as_ref(), now, BATCH).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.digest);
            for row in rows {
                let collected = if dry_run { Ok(true) } else { self.collect(&row, now).await };
                let problem = match collected {
                    Ok(true) => None,
                    // An artifact refers to it, or somebody put it again, since the list was made.
                    Ok(false) => continue,
                    Err(error) => Some(failure(&row.digest.to_string(), &error)),
                };
                let reason = format!("no artifact refers to it, and its lease ended at {}", row.lease_until);
                tell(Garbage { sort: Sort::Blob, name: row.digest.to_string(), size: row.size, reason, problem });
            }
        }
    }

    /// The row, under its guard, and a note of the bytes: they stay for those who read them just now.
    async fn collect(&self, row: &BlobRow, now: Time) -> Result<bool> {
        let batch = Batch::new()
            .with(blobs::is_unused(&row.digest, &row.location, now))
            .with(uploads::discard_blob(&row.digest, None, now))
            .with(blobs::remove(&row.digest));
        match self.inner.db.commit(batch).await {
            Ok(_) => {
                self.inner.hot.forget(&row.digest);
                Ok(true)
            }
            Err(error) if error.is_guard("blob_is_unused") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn collect_trash(&self, dry_run: bool, tell: Report<'_>) -> Result<()> {
        let until = self.inner.host.now().minus(self.times.grace);
        let mut after = String::new();
        loop {
            let trash = uploads::trash(&self.inner.db, &after, until, BATCH).await?;
            let Some(last) = trash.last() else { return Ok(()) };
            after.clone_from(&last.location);
            for it in trash {
                let gone = if dry_run { Ok(()) } else { self.take_out(&it.location).await };
                let problem = gone.err().map(|error| failure(&it.location, &error));
                let of = it.digest.map_or_else(|| "an upload".to_owned(), |digest| digest.to_string());
                let reason = format!("bytes of {of}, in the trash since {}", it.trashed_at);
                tell(Garbage { sort: Sort::Trash, name: it.location, size: it.size, reason, problem });
            }
        }
    }

    /// Takes away uploads with which nobody went on for [`SESSION_IDLE`](crate::SESSION_IDLE), and says how many; `gc` does it too.
    pub async fn sweep_sessions(&self) -> Result<u64> {
        let mut swept = 0;
        self.collect_sessions(false, &mut |garbage| swept += u64::from(garbage.problem.is_none())).await?;
        Ok(swept)
    }

    async fn collect_sessions(&self, dry_run: bool, tell: Report<'_>) -> Result<()> {
        let now = self.inner.host.now();
        let before = now.minus(self.times.idle);
        let mut after = String::new();
        loop {
            let idle = uploads::idle(&self.inner.db, &after, before, now, BATCH).await?;
            let Some((last, _)) = idle.last() else { return Ok(()) };
            after = last.to_string();
            for (id, size) in idle {
                let ended = if dry_run { Ok(true) } else { self.end_idle(id, before, now).await };
                let problem = match ended {
                    Ok(true) => None,
                    // Somebody went on with it since the list was made.
                    Ok(false) => continue,
                    Err(error) => Some(failure(&id.to_string(), &error)),
                };
                let reason = format!("an upload with which nobody went on since {before}");
                tell(Garbage { sort: Sort::Session, name: id.to_string(), size, reason, problem });
            }
        }
    }

    async fn collect_uploads(&self, dry_run: bool, tell: Report<'_>) -> Result<()> {
        let before = self.inner.host.now().minus(self.times.abandoned);
        let mut after: Option<String> = None;
        loop {
            let uploads = self.inner.store.abandoned(before, after.as_deref(), BATCH as usize).await?;
            let Some(last) = uploads.last() else { return Ok(()) };
            after = Some(last.location.clone());
            for upload in self.strays(uploads, before).await? {
                let reason = format!("an upload that stopped at {} and never ended", upload.modified);
                self.discard(Sort::Upload, upload, reason, dry_run, tell).await;
            }
        }
    }

    async fn collect_strays(&self, dry_run: bool, tell: Report<'_>) -> Result<()> {
        let before = self.inner.host.now().minus(self.times.abandoned);
        let mut after: Option<String> = None;
        loop {
            let objects = self.inner.store.list(after.as_deref(), BATCH as usize).await?;
            let Some(last) = objects.last() else { return Ok(()) };
            after = Some(last.location.clone());
            for stray in self.strays(objects, before).await? {
                if is_ours(&stray.location) {
                    let reason = format!("bytes since {} that no blob refers to", stray.modified);
                    self.discard(Sort::Stray, stray, reason, dry_run, tell).await;
                }
            }
        }
    }

    /// The objects among these of which no row knows, of a blob, an upload or in the trash, and that were written before `before`: younger ones may be about to get theirs.
    pub(crate) async fn strays(&self, mut objects: Vec<Stored>, before: Time) -> Result<Vec<Stored>> {
        objects.retain(|object| object.modified < before);
        let locations: Vec<&str> = objects.iter().map(|object| object.location.as_str()).collect();
        let located = blobs::located(&self.inner.db, &locations).await?;
        objects.retain(|object| !located.contains(&object.location));
        Ok(objects)
    }

    async fn discard(&self, sort: Sort, it: Stored, reason: String, dry_run: bool, tell: Report<'_>) {
        let deleted = if dry_run { Ok(()) } else { self.inner.store.delete(&it.location).await };
        let problem = deleted.err().map(|error| failure(&it.location, &error));
        tell(Garbage { sort, name: it.location, size: it.size, reason, problem });
    }
}

/// Whether a location looks like one that a put makes. Whatever else lies in the store is somebody else's, and stays.
pub(crate) fn is_ours(location: &str) -> bool {
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    if let Some(name) = location.strip_prefix("large/") {
        return is_hex(name, 32);
    }
    let parts = location.strip_prefix("blobs/").and_then(|rest| rest.split_once('/'));
    parts.is_some_and(|(algorithm, rest)| {
        let digits = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return false,
        };
        rest.split_once('/').is_some_and(|(folder, name)| {
            name.starts_with(folder)
                && is_hex(folder, 2)
                && name.split_once('-').is_some_and(|(digest, unique)| is_hex(digest, digits) && is_hex(unique, 16))
        })
    })
}

fn failure(name: &str, error: &larder_core::Error) -> String {
    tracing::warn!(name, error = error.chain(), "garbage could not be taken away");
    error.message().to_owned()
}
