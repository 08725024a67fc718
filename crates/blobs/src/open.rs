//! Giving bytes out: small hot blobs from memory, others as a stream whose length is proven.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use larder_core::{Digest, Error, Kind, Result};
use larder_db::blobs::{BlobRow, State};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter, sync};

use crate::{
    Blobs,
    store::{ByteStream, Object},
};

/// The largest blob that is kept in memory.
const LARGEST_HOT: u64 = 2 * 1024 * 1024;
/// How many bytes are kept in memory in all.
const ALL_HOT: u64 = 32 * 1024 * 1024;
/// What an entry costs beside its bytes, roughly.
const OVERHEAD: u64 = 256;

/// A blob, or a part of it, that is being read.
pub struct OpenBlob {
    /// How large the whole blob is.
    pub size: u64,
    /// The bytes that were asked for, if they are in memory: then there is no need to stream them.
    pub whole: Option<Bytes>,
    /// The same bytes as a stream. It ends with an error, and never early, when the store has fewer of them.
    pub stream: ByteStream,
}

impl OpenBlob {
    fn in_memory(bytes: &Bytes, range: Option<Range<u64>>) -> Result<Self> {
        let size = bytes.len() as u64;
        let range = within(range, size)?;
        let part = match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) => bytes.slice(start..end),
            _ => bytes.clone(),
        };
        let chunk = (!part.is_empty()).then(|| Ok(part.clone()));
        Ok(Self { size, whole: Some(part), stream: stream::iter(chunk).boxed() })
    }
}

impl Blobs {
    /// Opens a blob for reading, all of it or a range of bytes. `Kind::NotFound` if there never was one (or it is collected),
    /// `Kind::Damaged` if its bytes are gone or of the wrong length, `Kind::Invalid` for a range beyond its end.
    pub async fn open(&self, digest: &Digest, range: Option<Range<u64>>) -> Result<OpenBlob> {
        if let Some(bytes) = self.inner.hot.get(digest) {
            return OpenBlob::in_memory(&bytes, range);
        }
        let row = match self.stat(digest).await? {
            Some(row) if row.state == State::Live => row,
            Some(row) => return Err(damaged(&row)),
            None => return Err(Error::not_found(format!("there is no blob {digest}"))),
        };
        if row.size <= LARGEST_HOT {
            let bytes = self.inner.hot.get_or_load(digest, self.load(row)).await?;
            return OpenBlob::in_memory(&bytes, range);
        }
        let range = within(range, row.size)?;
        let object = self.object(&row, range.clone()).await?;
        let size = row.size;
        Ok(OpenBlob { size, whole: None, stream: self.proven(row, range.end - range.start, object.stream) })
    }

    /// A range that is opened when its turn comes: whoever asks for many and reads slowly holds one file, and not one for
    /// each, with what is read ahead of it.
    pub fn open_later(&self, digest: Digest, range: Range<u64>) -> ByteStream {
        let blobs = self.clone();
        let open = async move {
            let blob = blobs.open(&digest, Some(range)).await?;
            Ok::<_, Error>(match blob.whole {
                Some(bytes) => stream::iter([Ok(bytes)]).boxed(),
                None => blob.stream,
            })
        };
        stream::once(open).try_flatten().boxed()
    }

    /// Opens the bytes of a live row, and proves that the store has as many as the row says.
    async fn object(&self, row: &BlobRow, range: Range<u64>) -> Result<Object> {
        let complaint = match self.inner.store.get(&row.location, range).await {
            Ok(object) if object.size == row.size => return Ok(object),
            Ok(object) => format!("the store has {} bytes of it instead of {}", object.size, row.size),
            Err(error) if error.kind() == Kind::NotFound => "its bytes are not in the store".to_owned(),
            Err(error) => return Err(error),
        };
        if self.mark_missing(row, &complaint).await? {
            return Err(damaged(row));
        }
        Err(Error::new(Kind::Unavailable, format!("blob {} was just put again or collected; try again", row.digest)))
    }

    /// Reads a small blob whole, and proves its digest once, since these very bytes are given out many times.
    async fn load(&self, row: BlobRow) -> Result<Bytes> {
        let object = self.object(&row, 0..row.size).await?;
        let mut stream = self.proven(row.clone(), row.size, object.stream);
        let mut bytes = BytesMut::with_capacity(usize::try_from(row.size).unwrap_or(0));
        while let Some(chunk) = stream.try_next().await? {
            bytes.extend_from_slice(&chunk);
        }
        let (bytes, digest) = (bytes.freeze(), row.digest);
        let proof = bytes.clone();
        if self.inner.host.heavy(async move { Ok(Digest::of_as(digest.algorithm(), &proof) == digest) }).await? {
            return Ok(bytes);
        }
        self.mark_missing(&row, "its bytes have another digest").await?;
        Err(damaged(&row))
    }

    /// Passes a stream on, and turns an early end into an error.
    fn proven(&self, row: BlobRow, wanted: u64, stream: ByteStream) -> ByteStream {
        let state = Some((self.clone(), row, wanted, stream));
        stream::unfold(state, |state| async move {
            let (blobs, row, left, mut stream) = state?;
            match stream.next().await {
                Some(Ok(chunk)) if chunk.len() as u64 <= left => {
                    let left = left - chunk.len() as u64;
                    Some((Ok(chunk), Some((blobs, row, left, stream))))
                }
                None if left == 0 => None,
                Some(Err(error)) => Some((Err(error), None)),
                Some(Ok(_)) | None => {
                    let why = "its bytes ended early or late while they were read";
                    if let Err(error) = blobs.mark_missing(&row, why).await {
                        tracing::error!(error = error.chain(), digest = %row.digest, "a damaged blob could not be marked");
                    }
                    Some((Err(damaged(&row)), None))
                }
            }
        })
        .boxed()
    }
}

/// What the asker hears of a blob whose bytes cannot be had.
fn damaged(row: &BlobRow) -> Error {
    Error::new(
        Kind::Damaged,
        format!("the bytes of {} are missing or damaged; putting the same bytes again heals it", row.digest),
    )
}

fn within(range: Option<Range<u64>>, size: u64) -> Result<Range<u64>> {
    match range {
        None => Ok(0..size),
        Some(range) if range.start <= range.end && range.end <= size => Ok(range),
        Some(range) => {
            Err(Error::invalid(format!("bytes {} to {} are asked for, but there are {size}", range.start, range.end)))
        }
    }
}

/// Small blobs in memory, by digest, their bytes proven. Whoever asks for one that is being loaded waits for that load.
pub(crate) struct Hot(sync::Cache<Digest, Bytes, Weight>);

#[derive(Clone)]
struct Weight;

impl Weighter<Digest, Bytes> for Weight {
    fn weight(&self, _: &Digest, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + OVERHEAD
    }
}

impl Hot {
    pub(crate) fn new() -> Self {
        // Each shard has its share of the room, and must have room for several of the largest.
        let options = OptionsBuilder::new().shards(2).estimated_items_capacity(512).weight_capacity(ALL_HOT).build();
        let options = options.expect("both capacities are given");
        Self(sync::Cache::with_options(
            options,
            Weight,
            DefaultHashBuilder::default(),
            sync::DefaultLifecycle::default(),
        ))
    }

    fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.0.get(digest)
    }

    async fn get_or_load(&self, digest: &Digest, load: impl Future<Output = Result<Bytes>>) -> Result<Bytes> {
        self.0.get_or_insert_async(digest, load).await
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        self.0.remove(digest);
    }
}
