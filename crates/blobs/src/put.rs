//! Taking bytes in. They are hashed once, as they stream by, and durable before anybody hears of them.

use bytes::Bytes;
use futures_util::future::join;
use larder_core::{
    Digest, Error, Kind, Result,
    digest::{Algorithm, Hasher, Sha1, hex},
};
use larder_db::{
    Batch,
    blobs::{self, BlobRow, State},
};

use crate::{Blobs, LEASE, store::Upload};

/// Bytes are hashed and written in pieces of this size, so that no large buffer holds up the requests beside it.
const PIECE: usize = 256 * 1024;

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

    /// Makes the bytes a blob: durable, with a row, and safe from collection for [`LEASE`].
    pub async fn finish(self) -> Result<StoredBlob> {
        self.finish_expecting(None, None).await
    }

    /// Like [`finish`](Self::finish), but bytes of another digest or size are refused with `Kind::Invalid` and leave nothing.
    pub async fn finish_expecting(self, digest: Option<Digest>, size: Option<u64>) -> Result<StoredBlob> {
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
        blobs.store_as(upload, &stored).await?;
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

impl Blobs {
    async fn store_as(&self, upload: Box<dyn Upload>, stored: &StoredBlob) -> Result<()> {
        if self.reuse(&stored.digest).await? {
            upload.abort().await;
            return Ok(());
        }
        // When something fails from here on, the bytes stay without a row: perhaps the row is there, and only the answer
        // was lost. `gc` can tell; this cannot.
        let location = upload.commit(&self.fresh_key(&stored.digest)).await?;
        for _ in 0..ATTEMPTS {
            if self.claim(stored, &location).await? {
                return Ok(());
            }
            if self.reuse(&stored.digest).await? {
                self.discard_unclaimed(&location).await;
                return Ok(());
            }
        }
        Err(Error::new(Kind::Unavailable, "too many others put the same bytes just now; try again"))
    }

    /// A key that was never used: a blob that is collected, and one that is put meanwhile, never share their bytes.
    fn fresh_key(&self, digest: &Digest) -> String {
        let (digits, unique) = (digest.hex(), hex(&self.inner.host.random_bytes::<8>()));
        format!("blobs/{}/{}/{digits}-{unique}", digest.algorithm(), &digits[..2])
    }

    /// Renews the lease of a blob whose bytes are provably there. `false` if there is no such blob.
    async fn reuse(&self, digest: &Digest) -> Result<bool> {
        let Some(row) = self.stat(digest).await?.filter(|row| row.state == State::Live) else { return Ok(false) };
        if !self.is_whole(&row).await? {
            self.mark_missing(&row, "its bytes were not there when the same bytes were put again").await?;
            return Ok(false);
        }
        let batch = Batch::new()
            .with(blobs::is_at(digest, &row.location, State::Live))
            .with(blobs::renew(digest, self.inner.host.now().plus(LEASE)));
        match self.inner.db.commit(batch).await {
            Ok(_) => Ok(true),
            // It was collected after the look at its bytes.
            Err(error) if error.is_guard("blob_is_at") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the row of bytes that are durable at `location`. `false` if a live row was there already.
    async fn claim(&self, stored: &StoredBlob, location: &str) -> Result<bool> {
        let before = self.stat(&stored.digest).await?;
        let now = self.inner.host.now();
        let row = BlobRow {
            digest: stored.digest,
            size: stored.size,
            location: location.to_owned(),
            state: State::Live,
            created_at: now,
            lease_until: now.plus(LEASE),
        };
        let done = self.inner.db.commit(blobs::keep(&row).into()).await?;
        if done.first().is_none_or(|keep| keep.rows.is_empty()) {
            return Ok(false);
        }
        self.inner.hot.forget(&stored.digest);
        if let Some(damaged) = before.filter(|before| before.location != location) {
            tracing::info!(digest = %stored.digest, location, "a damaged blob was healed");
            self.discard_unclaimed(&damaged.location).await;
        }
        Ok(true)
    }

    /// Takes away bytes that no row refers to. If that fails they stay, and `gc` finds them.
    async fn discard_unclaimed(&self, location: &str) {
        if let Err(error) = self.inner.store.delete(location).await {
            tracing::warn!(location, error = error.chain(), "bytes without a row stay for now");
        }
    }
}
