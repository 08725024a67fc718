//! Taking bytes in. They are hashed once, as they stream by, and durable before anybody hears of them.

use bytes::Bytes;
use futures_util::future::join;
use larder_core::{
    Digest, Error, Kind, Result, Time,
    digest::{Algorithm, Hasher, Sha1, hex},
};
use larder_db::{
    Batch, Statement,
    blobs::{self, BlobRow, State},
    uploads,
};

use crate::{Blobs, session::Claim, store::Upload};

/// Bytes are hashed and written in pieces of this size, so that no large buffer holds up the requests beside it.
pub(crate) const PIECE: usize = 256 * 1024;

/// How often two puts of the same bytes, and a collection between them, may make this one look again.
const ATTEMPTS: usize = 5;

/// What became of bytes that were put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBlob {
    /// Their digest, which is the blob's name.
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// Their SHA-1 in hex, for the protocols that print it; empty where nobody asked for it.
    pub sha1: String,
}

/// Bytes that are being put. Nothing is visible before [`Writer::finish`] returns, and dropping it leaves nothing.
pub struct Writer {
    blobs: Blobs,
    upload: Box<dyn Upload>,
    hasher: Hasher,
    sha1: Option<Sha1>,
    size: u64,
    /// A piece went into the hash but perhaps not into the upload, or the other way round.
    torn: bool,
}

impl Blobs {
    /// Begins to put bytes that are named by their SHA-256, and of which the SHA-1 is wanted too.
    pub async fn begin(&self) -> Result<Writer> {
        let writer = self.begin_as(Algorithm::Sha256).await?;
        Ok(Writer { sha1: Some(Sha1::new()), ..writer })
    }

    /// Begins to put bytes that are named by their digest of this algorithm; nothing else is computed.
    pub async fn begin_as(&self, algorithm: Algorithm) -> Result<Writer> {
        let upload = self.inner.store.begin().await?;
        let hasher = Hasher::new(algorithm);
        Ok(Writer { blobs: self.clone(), upload, hasher, sha1: None, size: 0, torn: false })
    }
}

impl Writer {
    /// Appends bytes. After an error, or when the call was dropped before it returned, the writer can only be aborted.
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        let mut bytes = bytes.into();
        self.refuse_torn()?;
        self.torn = true;
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            self.size += piece.len() as u64;
            // The store takes the piece first, and writes it on another thread while it is hashed on this one.
            let hash = async {
                self.hasher.update(&piece);
                if let Some(sha1) = &mut self.sha1 {
                    sha1.update(&piece);
                }
            };
            let (written, ()) = join(self.upload.write(piece.clone()), hash).await;
            written?;
        }
        self.torn = false;
        Ok(())
    }

    /// How many bytes were written so far.
    pub fn written(&self) -> u64 {
        self.size
    }

    /// The SHA-1 in hex of what was written so far, if it is wanted.
    pub fn sha1(&self) -> Option<String> {
        self.sha1.clone().map(Sha1::finish)
    }

    /// Makes the bytes a blob: durable, with a row, and safe from collection for a lease.
    pub async fn finish(self) -> Result<StoredBlob> {
        self.finish_expecting(None, None).await
    }

    /// Like [`finish`](Self::finish), but bytes of another digest or size are refused with `Kind::Invalid` and leave nothing.
    pub async fn finish_expecting(self, digest: Option<Digest>, size: Option<u64>) -> Result<StoredBlob> {
        self.finish_with(digest, size, |_| Vec::new()).await
    }

    /// Like [`finish_expecting`](Self::finish_expecting), and what `extra` makes of the blob becomes true together with it,
    /// or not at all: when a guard in it does not hold, that is the error.
    pub async fn finish_with(
        self,
        digest: Option<Digest>,
        size: Option<u64>,
        extra: impl FnOnce(&StoredBlob) -> Vec<Statement>,
    ) -> Result<StoredBlob> {
        self.refuse_torn()?;
        let Self { blobs, upload, hasher, sha1, size: written, .. } = self;
        let stored =
            StoredBlob { digest: hasher.finish(), size: written, sha1: sha1.map(Sha1::finish).unwrap_or_default() };
        let complaint = match (digest, size) {
            (_, Some(size)) if size != stored.size => Some(format!("{size} bytes were promised, {} came", stored.size)),
            (Some(digest), _) if digest != stored.digest => {
                Some(format!("bytes with the digest {digest} were promised, the digest is {}", stored.digest))
            }
            _ => None,
        };
        if let Some(complaint) = complaint {
            upload.abort().await;
            return Err(Error::invalid(format!("{complaint}; nothing was stored, send them again")));
        }
        blobs.store_as(upload, &stored, &Landing { claim: None, extra: &extra(&stored) }).await?;
        Ok(stored)
    }

    /// Takes back what was written.
    pub async fn abort(self) {
        self.upload.abort().await;
    }

    fn refuse_torn(&self) -> Result<()> {
        if self.torn {
            return Err(Error::new(Kind::Internal, "a write failed before; begin again"));
        }
        Ok(())
    }
}

/// What becomes true together with a blob.
#[derive(Clone, Copy)]
pub(crate) struct Landing<'a> {
    /// The upload that it was, whose row goes.
    pub(crate) claim: Option<&'a Claim>,
    /// What the caller wants.
    pub(crate) extra: &'a [Statement],
}

impl Blobs {
    /// Proves that a live blob's bytes are there, and renews its lease together with `extra`. `false`, and nothing is
    /// written, if there is no such blob.
    pub async fn lease(&self, digest: &Digest, extra: Vec<Statement>) -> Result<bool> {
        self.reuse(digest, &Landing { claim: None, extra: &extra }, None).await
    }

    /// Takes a blob away at once that was put as `stored` at or after `since` and is not wanted after all. It stays, for `gc`
    /// to decide, if it was here before, or if somebody else has put it, leased it, or let an artifact refer to it.
    pub async fn take_back(&self, stored: &StoredBlob, since: Time) -> Result<bool> {
        let Some(row) = self.stat(&stored.digest).await? else { return Ok(false) };
        // A lease that was renewed ends later than the first.
        if row.created_at < since || row.lease_until != row.created_at.plus(self.times.lease) {
            return Ok(false);
        }
        let batch = Batch::new()
            .with(blobs::is_untouched(&row))
            .with(uploads::discard_blob(&row.digest, None, self.inner.host.now()))
            .with(blobs::remove(&row.digest));
        match self.commit_and_take_out(batch, &[]).await {
            Ok(()) => {
                self.inner.hot.forget(&row.digest);
                Ok(true)
            }
            Err(error) if error.is_guard("blob_is_untouched") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there is such a blob, and its bytes are there. A row whose bytes are not is marked, so that they come again.
    pub async fn prove(&self, digest: &Digest) -> Result<bool> {
        let Some(row) = self.stat(digest).await?.filter(|row| row.state == State::Live) else { return Ok(false) };
        if self.is_whole(&row).await? {
            return Ok(true);
        }
        self.mark_missing(&row, "its bytes were not there when somebody asked for them").await?;
        Ok(false)
    }

    /// Makes an upload, whose digest is known, a blob; or proves that there is one, and takes the upload back.
    pub(crate) async fn store_as(
        &self,
        upload: Box<dyn Upload>,
        stored: &StoredBlob,
        landing: &Landing<'_>,
    ) -> Result<()> {
        if self.reuse(&stored.digest, landing, None).await? {
            upload.abort().await;
            return Ok(());
        }
        let location = upload.commit(&self.fresh_key(&stored.digest)).await?;
        self.land(stored, &location, landing).await
    }

    /// Makes bytes that are durable at `location`, and are what `stored` says, a blob; or proves that there is one, and takes
    /// the bytes away. When it fails and it is certain that there is no row, they go at once: who tries again and again must not
    /// fill the store. Otherwise they stay: perhaps the row is there, and only the answer was lost. `gc` can tell; this cannot.
    pub(crate) async fn land(&self, stored: &StoredBlob, location: &str, landing: &Landing<'_>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            match self.keep(stored, location, landing).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    // An upload that can go on has its bytes for longer than this call.
                    let is_certain = matches!(error.kind(), Kind::Full | Kind::Conflict) && landing.claim.is_none();
                    if is_certain && let Err(error) = self.inner.store.delete(location).await {
                        tracing::warn!(
                            location,
                            error = error.chain(),
                            "bytes without a row stay until they are collected"
                        );
                    }
                    return Err(error);
                }
            }
            if self.reuse(&stored.digest, landing, Some((location, stored.size))).await? {
                return Ok(());
            }
        }
        Err(Error::new(Kind::Unavailable, "too many others put the same bytes just now; try again"))
    }

    /// A key that was never used: a blob that is collected, and one that is put meanwhile, never share their bytes.
    pub(crate) fn fresh_key(&self, digest: &Digest) -> String {
        let (digits, unique) = (digest.hex(), hex(&self.inner.host.random_bytes::<8>()));
        format!("blobs/{}/{}/{digits}-{unique}", digest.algorithm(), &digits[..2])
    }

    /// Renews the lease of a blob whose bytes are provably there, and puts those that came again, at a location without a
    /// row, into the trash. `false` if there is no such blob.
    async fn reuse(&self, digest: &Digest, landing: &Landing<'_>, again: Option<(&str, u64)>) -> Result<bool> {
        let Some(row) = self.stat(digest).await?.filter(|row| row.state == State::Live) else { return Ok(false) };
        if !self.is_whole(&row).await? {
            self.mark_missing(&row, "its bytes were not there when the same bytes were put again").await?;
            return Ok(false);
        }
        let now = self.inner.host.now();
        let mut batch = Batch::new()
            .with(blobs::is_at(digest, &row.location, State::Live))
            .with(blobs::renew(digest, now.plus(self.times.lease)));
        if let Some((location, size)) = again {
            batch.push(uploads::discard(location, Some(digest), size, now));
        }
        if let Some(claim) = landing.claim {
            batch.extend(claim.end_for(again.map(|(location, _)| location), now));
            if again.is_none() || claim.taken_over {
                batch.push(uploads::discard_staged(claim.id, None, now));
            }
            batch.push(uploads::end(claim.id));
        }
        match self.commit_and_take_out(batch, landing.extra).await {
            Ok(()) => Ok(true),
            // It was collected after the look at its bytes.
            Err(error) if error.is_guard("blob_is_at") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the row of bytes that are durable at `location`. `false` if a live row was there already.
    async fn keep(&self, stored: &StoredBlob, location: &str, landing: &Landing<'_>) -> Result<bool> {
        let now = self.inner.host.now();
        let row = BlobRow {
            digest: stored.digest,
            size: stored.size,
            location: location.to_owned(),
            state: State::Live,
            created_at: now,
            lease_until: now.plus(self.times.lease),
        };
        let mut batch = Batch::new()
            .with(blobs::is_not_live(&stored.digest))
            .with(uploads::discard_blob(&stored.digest, Some(location), now))
            .with(blobs::keep(&row));
        if let Some(claim) = landing.claim {
            batch.extend(claim.end_for(Some(location), now));
            if claim.taken_over {
                batch.push(uploads::discard_staged(claim.id, None, now));
            }
            batch.push(uploads::end(claim.id));
        }
        match self.commit_and_take_out(batch, landing.extra).await {
            Ok(()) => {
                self.inner.hot.forget(&stored.digest);
                Ok(true)
            }
            Err(error) if error.is_guard("blob_is_not_live") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
