//! Uploads that may go on: in another request, after a lost connection or a restart, on another replica.
//!
//! All that is known of one is its row: how many bytes are safe, what the store needs to go on, and the state of the hash.
//! One request at a time writes; it has a **claim** on the row that it renews as bytes flow. A claim that is not renewed lapses,
//! and the next one takes over at the last checkpoint. Everything that a writer says of the row is under the guard that the
//! claim is still its own, so that one that was taken over fails and changes nothing. It may still send bytes that were on
//! their way: a disk keeps the two apart; in a bucket it could reach a part of the other's. So an upload that was taken over is
//! read back and hashed after the commit, when nobody can change it any more, and only then becomes a blob.
//!
//! What it is not: a protocol. Who may do this, and what a client is told, is the room's.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    TryStreamExt,
    future::{Either, join, select},
};
use larder_core::{
    Digest, Error, Id, Kind, Result, Time,
    digest::{Algorithm, Hasher, hex},
};
use larder_db::{
    Batch, CommitError, Statement,
    uploads::{self, Place, Progress, UploadRow},
};

use crate::{
    Blobs, StoredBlob,
    put::{Landing, PIECE},
    store::{Checkpoint, Upload},
};

/// How long a writer that says nothing is believed to be alive.
const ALIVE: Duration = Duration::from_secs(10);
/// How often it says so while bytes flow.
const RENEW: Duration = Duration::from_secs(3);
/// How long another one waits for it, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(12);
const LOOK: Duration = Duration::from_millis(250);
/// After so many bytes, or so long, what came is made safe while more comes.
const SAVE_BYTES: u64 = 64 << 20;
const SAVE_AFTER: Duration = Duration::from_secs(10);
/// A checkpoint that costs more than one byte in so many is put off.
const WORTH: u64 = 8;
/// How many hashes that cannot be saved are kept in memory between two requests.
const PAUSED: usize = 64;

/// How far an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// How many bytes are safe: the next request goes on there.
    pub written: u64,
    /// Of the digest that is computed on the way. The end may ask for another one.
    pub algorithm: Algorithm,
}

/// Why a request may not write to an upload.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It ended, was cancelled, is lost, is somebody else's, or never was.
    #[error("there is no such upload; begin again")]
    Unknown,
    /// It goes on elsewhere.
    #[error("the upload goes on at byte {written}")]
    Offset {
        /// How many bytes are safe.
        written: u64,
    },
    /// Another request writes, and did not stop within 12 seconds.
    #[error("another request writes to this upload; it was at byte {written}")]
    Busy {
        /// How many bytes are safe, or were at the last look.
        written: u64,
    },
    /// Anything else.
    #[error(transparent)]
    Other(#[from] Error),
}

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Other(error) => error,
            SessionError::Unknown => Self::not_found(error.to_string()),
            SessionError::Offset { .. } | SessionError::Busy { .. } => Self::conflict(error.to_string()),
        }
    }
}

impl From<CommitError> for SessionError {
    fn from(error: CommitError) -> Self {
        Self::Other(error.into())
    }
}

/// Hashes that cannot be saved, by upload, with the offset at which they are. Lost with the process: then the bytes are read
/// again at the end.
#[derive(Default)]
pub(crate) struct Paused(Mutex<HashMap<Id, (u64, Hasher)>>);

impl Paused {
    fn put(&self, id: Id, written: u64, hasher: Hasher) {
        let mut paused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if paused.len() >= PAUSED
            && let Some(oldest) = paused.keys().min().copied()
        {
            paused.remove(&oldest);
        }
        paused.insert(id, (written, hasher));
    }

    fn take(&self, id: Id, written: u64) -> Option<Hasher> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        found.filter(|(at, _)| *at == written).map(|(_, hasher)| hasher)
    }
}

/// The right to write to an upload.
pub(crate) struct Claim {
    pub(crate) id: Id,
    writer: String,
    /// The bytes may be in a copy of those of which the row tells.
    pub(crate) taken_over: bool,
}

impl Claim {
    fn guard(&self) -> Statement {
        uploads::is_mine(self.id, &self.writer)
    }

    /// What goes before the end of an upload whose bytes are at `kept` now, or nowhere.
    pub(crate) fn end_for(&self, kept: Option<&str>, now: Time) -> [Statement; 2] {
        [self.guard(), uploads::discard_tail(self.id, kept, now)]
    }
}

impl Blobs {
    /// Begins an upload: a row, and no bytes yet.
    pub async fn open_session(&self, place: &Place<'_>, algorithm: Algorithm) -> Result<Id> {
        let host = &self.inner.host;
        let id = host.new_id();
        self.inner.db.commit(uploads::open(id, place, algorithm, host.now()).into()).await?;
        Ok(id)
    }

    /// How far an upload is; `None` if there is none of that principal in that package.
    pub async fn session(&self, id: Id, place: &Place<'_>) -> Result<Option<SessionStatus>> {
        let row = uploads::find(&self.inner.db, id, place).await?;
        Ok(row.map(|row| SessionStatus { written: row.written, algorithm: row.algorithm }))
    }

    /// Claims an upload for writing, at `expected` if that is given. While another request writes, it waits up to 12 seconds.
    pub async fn write_session(
        &self,
        id: Id,
        place: &Place<'_>,
        expected: Option<u64>,
    ) -> Result<SessionWriter, SessionError> {
        let (db, host) = (&self.inner.db, &self.inner.host);
        let deadline = host.now().plus(PATIENCE);
        loop {
            let row = uploads::find(db, id, place).await?.ok_or(SessionError::Unknown)?;
            let now = host.now();
            if row.writer.is_none() || row.writer_until < now {
                check_offset(&row, expected)?;
                let writer = hex(&host.random_bytes::<8>());
                let done = db.commit(uploads::claim(id, &writer, now.plus(ALIVE), now).into()).await?;
                let rows = done.into_iter().next().unwrap_or_default().rows;
                if let Some(row) = uploads::claimed(rows)? {
                    let claim = Claim { id, writer, taken_over: row.taken_over };
                    return self.go_on(claim, row, expected).await;
                }
            }
            if now >= deadline {
                return Err(SessionError::Busy { written: row.written });
            }
            host.clock.sleep(LOOK).await;
        }
    }

    async fn go_on(&self, claim: Claim, row: UploadRow, expected: Option<u64>) -> Result<SessionWriter, SessionError> {
        let upload = match (check_offset(&row, expected), &row.state) {
            (Err(error), _) => Err(error),
            (Ok(()), None) => self.inner.store.begin().await.map_err(Into::into),
            (Ok(()), Some(state)) => self.inner.store.resume(state).await.map_err(Into::into),
        };
        let upload = match upload {
            Ok(upload) => upload,
            Err(SessionError::Other(error)) if error.kind() == Kind::NotFound && row.state.is_some() => {
                tracing::warn!(id = %claim.id, error = error.chain(), "the bytes of an upload are lost");
                self.end_session(claim.id, claim.guard()).await?;
                return Err(SessionError::Unknown);
            }
            Err(error) => {
                self.inner.db.commit(uploads::release(claim.id, &claim.writer, false).into()).await?;
                return Err(error);
            }
        };
        let now = self.inner.host.now();
        let hasher = if row.taken_over { None } else { self.hasher(claim.id, &row) };
        let active = Active {
            blobs: self.clone(),
            claim,
            upload,
            algorithm: row.algorithm,
            hasher,
            written: row.written,
            safe: row.written,
            staged: row.staged,
            tail: row.tail,
            renewed: now,
            saved: now,
            torn: false,
        };
        Ok(SessionWriter { active: Some(active) })
    }

    /// The hash of what is safe, if it need not be computed again.
    fn hasher(&self, id: Id, row: &UploadRow) -> Option<Hasher> {
        match &row.hash {
            _ if row.written == 0 => Some(Hasher::new(row.algorithm)),
            Some(state) => Hasher::restore(row.algorithm, state),
            None => self.inner.paused.take(id, row.written),
        }
    }

    /// Ends an upload, and takes back what was written, whoever writes now. `false` if there is none.
    pub async fn cancel_session(&self, id: Id, place: &Place<'_>) -> Result<bool> {
        self.end_session(id, uploads::is_of(id, place)).await
    }

    pub(crate) async fn end_idle(&self, id: Id, before: Time, now: Time) -> Result<bool> {
        self.end_session(id, uploads::is_idle(id, before, now)).await
    }

    /// The row goes under its guard, and the bytes through the trash. `false` if the guard did not hold.
    async fn end_session(&self, id: Id, guard: Statement) -> Result<bool> {
        let (now, name) = (self.inner.host.now(), guard.guard);
        let batch = Batch::new()
            .with(guard)
            .with(uploads::discard_staged(id, None, now))
            .with(uploads::discard_tail(id, None, now))
            .with(uploads::end(id));
        match self.commit_and_take_out(batch, &[]).await {
            Ok(()) => Ok(true),
            Err(error) if name.is_some_and(|name| error.is_guard(name)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn check_offset(row: &UploadRow, expected: Option<u64>) -> Result<(), SessionError> {
    match expected {
        Some(expected) if expected != row.written => Err(SessionError::Offset { written: row.written }),
        _ => Ok(()),
    }
}

/// The one who writes to an upload. It ends with [`pause`](Self::pause) or [`finish`](Self::finish); one that is dropped, as
/// when a connection breaks, is paused in the background.
pub struct SessionWriter {
    active: Option<Active>,
}

struct Active {
    blobs: Blobs,
    claim: Claim,
    upload: Box<dyn Upload>,
    algorithm: Algorithm,
    /// `None` if it is not known of the bytes before: then they are read back at the end.
    hasher: Option<Hasher>,
    written: u64,
    /// How many of them the row tells of, and where it says that they are.
    safe: u64,
    staged: Option<String>,
    tail: Option<String>,
    renewed: Time,
    saved: Time,
    /// A piece went into the hash but perhaps not into the upload, or the other way round.
    torn: bool,
}

impl SessionWriter {
    /// Appends bytes. After an error, or when the call was dropped before it returned, the writer can only be paused, and
    /// goes on from the last bytes that were safe.
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        let active = self.active()?;
        let mut bytes = bytes.into();
        while !bytes.is_empty() {
            active.take_in(bytes.split_to(bytes.len().min(PIECE))).await?;
            active.stay_alive().await?;
        }
        Ok(())
    }

    /// How many bytes there are, of earlier requests too.
    pub fn written(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.written)
    }

    /// Makes what came safe, lets another request go on, and says where: fewer bytes than were written if a write failed.
    pub async fn pause(mut self) -> Result<u64> {
        match self.active.take() {
            Some(active) => active.pause().await,
            None => Err(over()),
        }
    }

    /// Makes all bytes the blob `digest`, and `extra` true together with it. Bytes of another digest are refused with
    /// `Kind::Invalid`, and the upload is over. After any other failure it goes on where it was safe, if it is still there.
    pub async fn finish(mut self, digest: Digest, extra: Vec<Statement>) -> Result<StoredBlob> {
        match self.active.take() {
            Some(active) => active.finish(digest, &extra).await,
            None => Err(over()),
        }
    }

    fn active(&mut self) -> Result<&mut Active> {
        self.active.as_mut().ok_or_else(over)
    }
}

impl Drop for SessionWriter {
    fn drop(&mut self) {
        if let Some(active) = self.active.take() {
            let host = active.blobs.inner.host.clone();
            host.spawn.background(Box::pin(async move {
                let id = active.claim.id;
                if let Err(error) = active.pause().await {
                    tracing::info!(%id, error = error.chain(), "the last bytes of an upload could not be kept");
                }
            }));
        }
    }
}

fn over() -> Error {
    Error::new(Kind::Internal, "an upload went on after it had ended")
}

fn lost() -> Error {
    Error::conflict("another request goes on with this upload, or it was cancelled; ask how far it is")
}

impl Active {
    async fn take_in(&mut self, piece: Bytes) -> Result<()> {
        self.refuse_torn()?;
        self.torn = true;
        let hash = async {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&piece);
            }
        };
        let (written, ()) = join(self.upload.write(piece.clone()), hash).await;
        written?;
        self.written += piece.len() as u64;
        self.torn = false;
        Ok(())
    }

    fn refuse_torn(&self) -> Result<()> {
        if self.torn {
            return Err(Error::new(
                Kind::Internal,
                "a write failed before; ask how far the upload is, and go on there",
            ));
        }
        Ok(())
    }

    /// Keeps the claim, and makes what came safe now and then.
    async fn stay_alive(&mut self) -> Result<()> {
        let now = self.blobs.inner.host.now();
        let since = self.written - self.safe;
        let is_due = since >= SAVE_BYTES || now.since(self.saved) >= SAVE_AFTER;
        if is_due && self.upload.unsent().saturating_mul(WORTH) <= since {
            // Whatever stops it midway leaves an upload of which only the row tells the truth.
            self.torn = true;
            self.save(self.hasher.as_ref().and_then(Hasher::save)).await?;
            self.torn = false;
        } else if now.since(self.renewed) >= RENEW {
            self.torn = !self.renew().await?;
            self.renewed = now;
            if self.torn {
                return Err(lost());
            }
        }
        Ok(())
    }

    /// Says that this writer is alive; `false` if the claim is somebody else's by now.
    async fn renew(&mut self) -> Result<bool> {
        let (id, now) = (self.claim.id, self.blobs.inner.host.now());
        let renew = uploads::renew(id, &self.claim.writer, now.plus(ALIVE), now);
        let done = self.blobs.inner.db.commit(renew.into()).await?;
        Ok(done.first().is_some_and(|done| done.affected > 0))
    }

    /// A checkpoint in the store, and then in the row. What the row told of before goes.
    async fn save(&mut self, hash: Option<Vec<u8>>) -> Result<()> {
        let Checkpoint { state, staged, tail } = self.upload.checkpoint().await?;
        let (id, now) = (self.claim.id, self.blobs.inner.host.now());
        let location = tail.as_ref().map(|tail| tail.location.clone());
        let tail = tail.map(|tail| (tail.location, tail.size));
        let progress = Progress { written: self.written, state, staged: staged.clone(), tail, hash };
        let batch = Batch::new()
            .with(self.claim.guard())
            .with(uploads::discard_staged(id, staged.as_deref(), now))
            .with(uploads::discard_tail(id, location.as_deref(), now))
            .with(uploads::save(id, &progress, now.plus(ALIVE), now));
        match self.blobs.commit_and_take_out(batch, &[]).await {
            Ok(()) => {}
            Err(error) if error.is_guard("upload_is_mine") => {
                self.forget_unknown(staged, location).await;
                return Err(lost());
            }
            Err(error) => return Err(error.into()),
        }
        (self.staged, self.tail, self.safe) = (staged, location, self.written);
        (self.saved, self.renewed) = (now, now);
        Ok(())
    }

    /// Takes back what no row ever told of.
    async fn forget_unknown(&mut self, staged: Option<String>, tail: Option<String>) {
        let staged = staged.filter(|staged| self.staged.as_ref() != Some(staged));
        let tail = tail.filter(|tail| self.tail.as_ref() != Some(tail));
        for location in [staged, tail].into_iter().flatten() {
            if let Err(error) = self.blobs.inner.store.delete(&location).await {
                tracing::warn!(location, error = error.chain(), "bytes without a row stay for now");
            }
        }
    }

    async fn pause(mut self) -> Result<u64> {
        let hash = self.hasher.as_ref().and_then(Hasher::save);
        let is_new = self.written > self.safe;
        let saved = if self.torn || !is_new { Ok(()) } else { self.save(hash.clone()).await };
        let may_write_late = self.torn || saved.is_err();
        let Self { blobs, claim, upload, hasher, safe, .. } = self;
        if hash.is_none()
            && !may_write_late
            && let Some(hasher) = hasher
        {
            blobs.inner.paused.put(claim.id, safe, hasher);
        }
        // The next one finds a file that nobody holds.
        drop(upload);
        let release = uploads::release(claim.id, &claim.writer, may_write_late);
        let released = blobs.inner.db.commit(release.into()).await;
        saved?;
        released?;
        Ok(safe)
    }

    async fn finish(mut self, digest: Digest, extra: &[Statement]) -> Result<StoredBlob> {
        self.refuse_torn()?;
        if !self.renew().await? {
            return Err(lost());
        }
        let Self { blobs, claim, upload, algorithm, hasher, written, .. } = self;
        let stored = StoredBlob { digest, size: written, sha1: String::new() };
        let landing = Landing { claim: Some(&claim), extra };
        let known = hasher.filter(|_| algorithm == digest.algorithm()).map(Hasher::finish);
        let work = async {
            match known {
                Some(found) if found != digest => {
                    drop(upload);
                    return Ok(Some(found));
                }
                Some(_) => blobs.store_as(upload, &stored, &landing).await?,
                None => return blobs.store_unproven(upload, &stored, &landing).await,
            }
            Ok(None)
        };
        match blobs.while_alive(&claim, work).await {
            Ok(None) => Ok(stored),
            Ok(Some(found)) => {
                blobs.end_session(claim.id, claim.guard()).await?;
                Err(Error::invalid(format!(
                    "bytes with the digest {digest} were promised, the digest is {found}; nothing was stored, send them again"
                )))
            }
            Err(error) => {
                let release = uploads::release(claim.id, &claim.writer, true);
                if let Err(error) = blobs.inner.db.commit(release.into()).await {
                    tracing::warn!(id = %claim.id, %error, "the claim on an upload stays until it lapses");
                }
                Err(error)
            }
        }
    }
}

impl Blobs {
    /// Does long work, and says meanwhile that the writer is alive.
    async fn while_alive<T>(&self, claim: &Claim, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let renew = async {
            loop {
                self.inner.host.clock.sleep(RENEW).await;
                let now = self.inner.host.now();
                let renew = uploads::renew(claim.id, &claim.writer, now.plus(ALIVE), now);
                if let Err(error) = self.inner.db.commit(renew.into()).await {
                    tracing::warn!(id = %claim.id, %error, "the claim on an upload could not be renewed");
                }
            }
        };
        match select(std::pin::pin!(work), std::pin::pin!(renew)).await {
            Either::Left((done, _)) => done,
            Either::Right(((), _)) => Err(over()),
        }
    }

    /// Makes an upload a blob whose digest was not computed on the way: its bytes are made durable, read back and hashed.
    /// If that gives another digest, it is told, and the bytes are taken away.
    async fn store_unproven(
        &self,
        upload: Box<dyn Upload>,
        stored: &StoredBlob,
        landing: &Landing<'_>,
    ) -> Result<Option<Digest>> {
        let location = upload.commit(&self.fresh_key(&stored.digest)).await?;
        let (found, size) = self.hash_of(&location, stored).await?;
        if found == stored.digest && size == stored.size {
            self.land(stored, &location, landing).await?;
            return Ok(None);
        }
        let mut batch = Batch::new();
        batch.extend(landing.claim.map(Claim::guard));
        batch.push(uploads::discard(&location, None, size, self.inner.host.now()));
        self.commit_and_take_out(batch, &[]).await?;
        Ok(Some(found))
    }

    async fn hash_of(&self, location: &str, stored: &StoredBlob) -> Result<(Digest, u64)> {
        let mut stream = self.inner.store.get(location, 0..stored.size).await?.stream;
        let (mut hasher, mut size) = (Hasher::new(stored.digest.algorithm()), 0);
        while let Some(chunk) = stream.try_next().await? {
            hasher.update(&chunk);
            size += chunk.len() as u64;
        }
        Ok((hasher.finish(), size))
    }
}
