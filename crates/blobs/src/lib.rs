//! Content-addressed bytes over the [`Store`] port: put, read, collect, prove.
//!
//! A blob is bytes in the store and a row in the database. The order in which they come and go is what keeps it safe:
//!
//! - **Put**: bytes are hashed as they stream by, made durable at a location that was never used before, and only then does
//!   a row say that they are there, with a lease: nothing collects the blob before the lease ends, so that whoever put it
//!   has time to let an artifact refer to it. Putting bytes that are here already proves that they are, and renews the lease.
//!   What else becomes true with the blob is in the same batch as its row.
//! - **Upload**: a put that may go on in another request has a row of its own, with all that any replica needs to go on:
//!   see [`SessionWriter`].
//! - **Collect**: in one batch the row goes, under a guard that no artifact refers to it and that the lease is over, and its
//!   bytes are noted in the trash. After a grace, in which readers come to their end, the bytes go, and then the note. Because
//!   no location is used twice, bytes that are put again meanwhile are other bytes, and stay.
//! - **Read**: the length is checked before and while bytes are sent. Bytes that are not there or not right are marked
//!   `missing` at once, so that nothing claims they exist, and the next put of the same bytes heals them.
//!
//! So all bytes in the store are those of a blob, of an upload, or in the trash ([`Blobs::accounted`]), also after a kill, but
//! for those that are on their way between two of these: an upload before its first checkpoint, or bytes that are durable and
//! have no row yet. [`Blobs::gc`] takes those away a day later.
//!
//! What it is not: a blob has no name, no owner and no permissions. Those are its artifacts'.

mod fsck;
mod gc;
mod open;
mod put;
mod session;
pub mod store;
mod trash;

use std::{sync::Arc, time::Duration};

use larder_core::{Digest, Host, Result};
use larder_db::{
    Batch, Db,
    blobs::{self, State},
    events::{self, Actor, Event},
    uploads,
};
use store::Store;

pub use fsck::{Checked, Difference, Finding, Progress, Step};
pub use gc::{Collected, Garbage, Sort};
pub use larder_db::{
    blobs::BlobRow,
    uploads::{Accounted, Place},
};
pub use open::OpenBlob;
pub use put::{StoredBlob, Writer};
pub use session::{SessionError, SessionStatus, SessionWriter};

/// How long a blob is safe without an artifact, counted from its last put. A client that pushes something large in many parts
/// has that long from the first part to the end.
pub const LEASE: Duration = Duration::from_secs(86_400);

/// How old an upload or an object without a row must be before it counts as left behind.
pub const ABANDONED: Duration = Duration::from_secs(86_400);

/// How long an upload that may go on waits for that.
pub const SESSION_IDLE: Duration = Duration::from_secs(12 * 3_600);

/// How long the bytes of a collected blob stay, for those who are reading them.
pub const GRACE: Duration = Duration::from_secs(600);

/// All blobs. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    inner: Arc<Inner>,
    times: Times,
}

#[derive(Clone, Copy)]
struct Times {
    lease: Duration,
    abandoned: Duration,
    idle: Duration,
    grace: Duration,
}

struct Inner {
    db: Db,
    store: Arc<dyn Store>,
    host: Host,
    hot: open::Hot,
    paused: session::Paused,
}

impl Blobs {
    /// Over a database and a store that belong together.
    pub fn new(db: Db, store: Arc<dyn Store>, host: Host) -> Self {
        let times = Times { lease: LEASE, abandoned: ABANDONED, idle: SESSION_IDLE, grace: GRACE };
        let inner = Inner { db, store, host, hot: open::Hot::new(), paused: session::Paused::default() };
        Self { inner: Arc::new(inner), times }
    }

    /// With another [`LEASE`].
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.times.lease = lease;
        self
    }

    /// With another [`ABANDONED`]. Nothing may be on its way for longer.
    #[must_use]
    pub fn with_abandoned(mut self, abandoned: Duration) -> Self {
        self.times.abandoned = abandoned;
        self
    }

    /// With another [`SESSION_IDLE`].
    #[must_use]
    pub fn with_session_idle(mut self, idle: Duration) -> Self {
        self.times.idle = idle;
        self
    }

    /// With another [`GRACE`].
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.times.grace = grace;
        self
    }

    /// How long a blob is safe without an artifact.
    pub fn lease_time(&self) -> Duration {
        self.times.lease
    }

    /// The store below, for its health.
    pub fn store(&self) -> &dyn Store {
        self.inner.store.as_ref()
    }

    /// What the database says of all bytes.
    pub async fn accounted(&self) -> Result<Accounted> {
        uploads::accounted(&self.inner.db).await
    }

    /// What the database says of a blob; it does not look at the bytes.
    pub async fn stat(&self, digest: &Digest) -> Result<Option<BlobRow>> {
        blobs::find(&self.inner.db, digest).await
    }

    /// Whether the store has as many bytes at the row's location as the row says.
    async fn is_whole(&self, row: &BlobRow) -> Result<bool> {
        Ok(self.inner.store.size(&row.location).await? == Some(row.size))
    }

    /// Notes that the bytes of a blob that the row calls live are not there or not right, with an event that says why.
    /// `false` if the row has changed meanwhile: then the finding is about something that is gone, and means nothing.
    async fn mark_missing(&self, row: &BlobRow, why: &str) -> Result<bool> {
        let detail = serde_json::json!({ "reason": why, "location": row.location, "size": row.size });
        self.change(row, State::Missing, Event::new(&Actor::house(), "blob.damaged", subject(&row.digest)).with(detail))
            .await
    }

    /// Notes that the bytes of a blob whose row calls them missing are there and right after all.
    async fn mark_live(&self, row: &BlobRow) -> Result<bool> {
        let detail = serde_json::json!({ "location": row.location, "size": row.size });
        self.change(row, State::Live, Event::new(&Actor::house(), "blob.restored", subject(&row.digest)).with(detail))
            .await
    }

    async fn change(&self, row: &BlobRow, state: State, event: Event) -> Result<bool> {
        let Inner { db, host, hot, .. } = self.inner.as_ref();
        let batch = Batch::new()
            .with(blobs::is_at(&row.digest, &row.location, row.state))
            .with(blobs::mark(&row.digest, state))
            .with(events::record(host, &event));
        hot.forget(&row.digest);
        match db.commit(batch).await {
            Ok(_) if state == State::Missing => {
                tracing::error!(digest = %row.digest, location = row.location, detail = %event.detail, "a blob is damaged");
                Ok(true)
            }
            Ok(_) => Ok(true),
            Err(error) if error.is_guard("blob_is_at") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl std::fmt::Debug for Blobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Blobs").field(&self.inner.db).finish()
    }
}

/// The thing of an event about a blob.
fn subject(digest: &Digest) -> String {
    format!("blob:{digest}")
}
