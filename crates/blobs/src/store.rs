//! The port to where bytes lie: a disk or an S3 bucket, implemented in `larder-native`. It knows keys and bytes,
//! nothing of digests, rows or leases: that is [`Blobs`](crate::Blobs).

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use larder_core::{Result, Time};
use serde::{Deserialize, Serialize};

/// Bytes as they stream by. Chunks are at most a few hundred KiB.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// One object as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where it is: what [`Upload::commit`] returned.
    pub location: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: Time,
}

/// An object that is being read.
pub struct Object {
    /// How large the whole object is, whatever part of it was asked for.
    pub size: u64,
    /// The part that was asked for; shorter if the object ends before.
    pub stream: ByteStream,
}

/// How far an upload is, and what its going on needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// What [`Store::resume`] wants to go on exactly here: a text that only the store understands.
    pub state: String,
    /// The location by which [`Store::abandoned`] would list this upload, if it would.
    pub staged: Option<String>,
    /// Where bytes wait that are too few to be sent on, if there are any. [`Store::list`] lists it; it may become the location
    /// of the whole. A later checkpoint has another one: whoever has remembered that deletes this.
    pub tail: Option<Tail>,
}

/// The last bytes of an upload, at a location of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Where they are.
    pub location: String,
    /// How many.
    pub size: u64,
}

/// Keeps bytes under locations.
#[async_trait]
pub trait Store: Send + Sync {
    /// Begins to write an object whose name is not known yet. Nothing is visible before [`Upload::commit`].
    async fn begin(&self) -> Result<Box<dyn Upload>>;

    /// Goes on with an upload where a checkpoint was: all that was written later is forgotten. `Kind::NotFound` if it was
    /// aborted, committed or lost meanwhile. While somebody else still writes to it, the two do not share what they write
    /// if the store can help it (a disk); if it cannot (S3), the bytes have to be proven after the commit.
    async fn resume(&self, state: &str) -> Result<Box<dyn Upload>>;

    /// Reads part of an object, and tells how large all of it is, so that a damaged one is known before the first byte is
    /// sent on. `Kind::NotFound` if it is not there; an error within the stream if reading fails midway.
    async fn get(&self, location: &str, range: Range<u64>) -> Result<Object>;

    /// How large the object is; `None` if it is not there.
    async fn size(&self, location: &str) -> Result<Option<u64>>;

    /// Takes the object away; fine if it is not there.
    async fn delete(&self, location: &str) -> Result<()>;

    /// Lists objects, a page of at most `limit`, in an order of the store's own (some S3 servers sort by folders): those
    /// that come after `after`, the last location of the page before. Nothing but what uploads can commit is listed:
    /// whatever else lies in the same folder or bucket is somebody else's.
    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Stored>>;

    /// Lists uploads that nothing was written to since `before` (S3: that were begun before) and that were not committed, a
    /// page of at most `limit` after `after`, the last location of the page before; their locations can be deleted.
    async fn abandoned(&self, before: Time, after: Option<&str>, limit: usize) -> Result<Vec<Stored>>;

    /// Proves that a small object can be written, read back and deleted.
    async fn check(&self) -> Result<()>;
}

/// An object that is being written. After an error, or a `write` that was dropped half-way, it can only be aborted, or be
/// resumed from its last checkpoint. Dropping one without a checkpoint aborts it as well as can be done without waiting.
#[async_trait]
pub trait Upload: Send {
    /// Appends bytes.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;

    /// How many bytes a checkpoint now would have to write that the commit writes once more.
    fn unsent(&self) -> u64;

    /// Makes all that was written outlive this process, and tells how to go on from here. From now on only `abort` takes it
    /// back. Writing may go on. It need not outlive a loss of power: then `resume` knows, and says that it is gone.
    async fn checkpoint(&mut self) -> Result<Checkpoint>;

    /// Makes it durable and visible (on a disk: fdatasync, rename, fsync of the directory) and tells where it is:
    /// at `key` when the store can still choose, elsewhere when it cannot rename (a large object in S3).
    /// Writing the same key twice is fine: equal keys hold equal bytes.
    async fn commit(self: Box<Self>, key: &str) -> Result<String>;

    /// Takes back what was written, the checkpoints too.
    async fn abort(self: Box<Self>);
}
