//! Bytes on their way into a bucket, and how an upload goes on in another process.
//!
//! A checkpoint remembers the multipart upload and its parts. What is too short for a part lies as an object of its own beside
//! it, the **tail**: read again when more bytes come, and the whole object if none do, so that a small layer that comes in one
//! piece is put once. Parts have one size each, by their number, so that a state needs only their tags.

use std::{mem, sync::Arc};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use larder_blobs::store::{Checkpoint, Tail, Upload};
use larder_core::{Error, Kind, Result};
use object_store::{
    MultipartId, ObjectStoreExt,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{Shared, fresh_name};
use crate::store::key;

/// The largest object that is put in one request, and the size of the first parts of a larger one.
pub(super) const SMALL: usize = 8 * 1024 * 1024;

/// Parts double in size every so many parts: S3 allows 10,000, which is then enough for its largest object (5 TiB), while
/// 100 GB need no part above 64 MiB.
const PARTS_OF_ONE_SIZE: usize = 1_000;

/// Bytes on their way into the bucket.
pub(super) struct S3Upload {
    shared: Arc<Shared>,
    buffer: BytesMut,
    /// What came after the parts at the last checkpoint, put beside them.
    tail: Option<Tail>,
    /// More came since, and all of the tail is in the buffer. Otherwise the buffer has it, or, just after resuming, nothing.
    stale: bool,
    large: Option<Large>,
    failed: bool,
}

/// A multipart upload. One part is on its way while the next is gathered.
struct Large {
    name: String,
    path: Path,
    /// Says which multipart upload this is, for whoever finds it abandoned.
    note: Path,
    id: MultipartId,
    parts: Vec<PartId>,
    sending: Option<JoinHandle<object_store::Result<PartId>>>,
    size: u64,
    /// A checkpoint tells of it.
    kept: bool,
}

/// What a checkpoint remembers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    large: Option<LargeState>,
    tail: Option<Tail>,
}

#[derive(Serialize, Deserialize)]
struct LargeState {
    name: String,
    id: MultipartId,
    /// The tags of its parts.
    parts: Vec<String>,
}

impl Shared {
    async fn begin_large(&self) -> Result<Large> {
        let name = fresh_name();
        let (path, note) = (self.raw(&format!("large/{name}")), self.raw(&format!("uploads/{name}")));
        let explain = |error| self.explain("beginning a large object", error);
        let id = self.client.create_multipart(&path).await.map_err(explain)?;
        self.client.put(&note, id.clone().into_bytes().into()).await.map_err(explain)?;
        Ok(Large { name, path, note, id, parts: Vec::new(), sending: None, size: 0, kept: false })
    }

    async fn resume_large(&self, state: LargeState) -> Result<Large> {
        let LargeState { name, id, parts } = state;
        let (path, note) = (self.path(&format!("large/{name}"))?, self.path(&format!("uploads/{name}"))?);
        // It goes with the multipart upload.
        self.size(&note).await?.ok_or_else(gone)?;
        let size = (0..parts.len()).map(|index| part_size(index) as u64).sum();
        let parts = parts.into_iter().map(|content_id| PartId { content_id }).collect();
        Ok(Large { name, path, note, id, parts, sending: None, size, kept: true })
    }

    /// Takes back a multipart upload that a note tells of, and then the note.
    pub(super) async fn abort_noted(&self, note: &Path) -> Result<()> {
        let explain = |error| self.explain("aborting an upload", error);
        let id = match self.client.get(note).await {
            Ok(found) => found.bytes().await.map_err(explain)?,
            Err(object_store::Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(explain(error)),
        };
        let name = note.filename().unwrap_or_default();
        let path = self.raw(&format!("large/{name}"));
        let id = String::from_utf8_lossy(&id).into_owned();
        if !name.starts_with("check-") {
            match self.client.abort_multipart(&path, &id).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(explain(error)),
            }
        }
        self.delete(note).await
    }
}

impl Large {
    /// How large the part that is gathered now will be.
    fn part_size(&self) -> usize {
        part_size(self.parts.len() + usize::from(self.sending.is_some()))
    }

    async fn settle(&mut self, shared: &Shared) -> Result<()> {
        if let Some(sending) = &mut self.sending {
            let sent = sending.await;
            self.sending = None;
            let part = sent.map_err(|error| Error::internal("sending a part", error))?;
            self.parts.push(part.map_err(|error| shared.explain("sending a part", error))?);
        }
        Ok(())
    }

    async fn send(&mut self, shared: &Arc<Shared>, part: Bytes) -> Result<()> {
        self.settle(shared).await?;
        self.size += part.len() as u64;
        let (shared, path, id, index) = (shared.clone(), self.path.clone(), self.id.clone(), self.parts.len());
        self.sending = Some(tokio::spawn(async move { shared.client.put_part(&path, &id, index, part.into()).await }));
        Ok(())
    }

    async fn complete(mut self, shared: &Arc<Shared>, rest: Bytes) -> Result<String> {
        if !rest.is_empty() {
            self.send(shared, rest).await?;
        }
        self.settle(shared).await?;
        let explain = |error| shared.explain("completing a large object", error);
        let parts = mem::take(&mut self.parts);
        shared.client.complete_multipart(&self.path, &self.id, parts).await.map_err(explain)?;
        // Servers have been seen to say yes and keep less.
        let kept = shared.client.head(&self.path).await.map_err(explain)?.size;
        if kept != self.size {
            return Err(Error::new(
                Kind::Upstream,
                format!("{} kept {kept} of {} bytes of a large object", shared.place, self.size),
            ));
        }
        // A note that stays names an upload that is complete: aborting it later changes nothing.
        if let Err(error) = shared.delete(&self.note).await {
            tracing::warn!(error = error.chain(), "the note of a completed upload stays for now");
        }
        Ok(format!("large/{}", self.name))
    }

    fn state(&self) -> LargeState {
        let parts = self.parts.iter().map(|part| part.content_id.clone()).collect();
        LargeState { name: self.name.clone(), id: self.id.clone(), parts }
    }
}

fn part_size(index: usize) -> usize {
    SMALL << (index / PARTS_OF_ONE_SIZE)
}

impl S3Upload {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, buffer: BytesMut::new(), tail: None, stale: false, large: None, failed: false }
    }

    pub(super) async fn resume(shared: Arc<Shared>, state: &str) -> Result<Self> {
        let state: State = serde_json::from_str(state).map_err(|error| gone().caused_by(error))?;
        if let Some(tail) = &state.tail
            && shared.size(&shared.path(&tail.location)?).await? != Some(tail.size)
        {
            return Err(gone());
        }
        let large = match state.large {
            Some(large) => Some(shared.resume_large(large).await?),
            None => None,
        };
        Ok(Self { shared, buffer: BytesMut::new(), tail: state.tail, stale: false, large, failed: false })
    }

    /// Before more comes: the tail is read back. Its object stays, for an older state may name it.
    async fn take_back_tail(&mut self) -> Result<()> {
        if let Some(tail) = self.current_tail().filter(|_| self.buffer.is_empty()) {
            let explain = |error| self.shared.explain("going on with an upload", error);
            let found = self.shared.client.get(&self.shared.path(&tail.location)?).await.map_err(explain)?;
            let bytes = found.bytes().await.map_err(explain)?;
            if bytes.len() as u64 != tail.size {
                return Err(gone());
            }
            self.buffer = bytes.into();
        }
        self.stale = true;
        Ok(())
    }

    fn current_tail(&self) -> Option<&Tail> {
        self.tail.as_ref().filter(|_| !self.stale)
    }

    async fn take_in(&mut self, bytes: &Bytes) -> Result<()> {
        self.take_back_tail().await?;
        self.buffer.extend_from_slice(bytes);
        loop {
            let size = self.large.as_ref().map_or(SMALL, Large::part_size);
            // Exactly `SMALL` bytes may be all there is.
            if self.buffer.len() <= size {
                return Ok(());
            }
            if self.large.is_none() {
                self.large = Some(self.shared.begin_large().await?);
            }
            let part = self.buffer.split_to(size).freeze();
            if let Some(large) = &mut self.large {
                large.send(&self.shared, part).await?;
            }
        }
    }

    /// Puts what is gathered beside the parts, unless it is there already.
    async fn put_tail(&mut self) -> Result<()> {
        if self.current_tail().is_some() {
            return Ok(());
        }
        self.tail = None;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let (location, bytes) = (format!("large/{}", fresh_name()), self.buffer.split().freeze());
        let size = bytes.len() as u64;
        let put = self.shared.client.put(&self.shared.path(&location)?, bytes.clone().into()).await;
        put.map_err(|error| self.shared.explain("putting the end of an upload", error))?;
        self.buffer = bytes.into();
        (self.tail, self.stale) = (Some(Tail { location, size }), false);
        Ok(())
    }

    fn refuse_failed(&self) -> Result<()> {
        if self.failed {
            return Err(Error::new(Kind::Internal, "an upload went on after it had failed"));
        }
        Ok(())
    }
}

fn gone() -> Error {
    Error::not_found("the upload is not there any more; begin again")
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.refuse_failed()?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.failed = true;
        self.take_in(&bytes).await?;
        self.failed = false;
        Ok(())
    }

    fn unsent(&self) -> u64 {
        if self.current_tail().is_some() { 0 } else { self.buffer.len() as u64 }
    }

    async fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.refuse_failed()?;
        self.failed = true;
        let mut staged = None;
        if let Some(large) = &mut self.large {
            large.settle(&self.shared).await?;
            large.kept = true;
            staged = Some(format!("uploads/{}", large.name));
        }
        self.put_tail().await?;
        self.failed = false;
        let state = State { large: self.large.as_ref().map(Large::state), tail: self.tail.clone() };
        let state = serde_json::to_string(&state).map_err(|error| Error::internal("writing a checkpoint", error))?;
        Ok(Checkpoint { state, staged, tail: self.tail.clone() })
    }

    async fn commit(mut self: Box<Self>, key: &str) -> Result<String> {
        key::check(key, &["blobs/"])?;
        self.refuse_failed()?;
        if let (None, Some(tail)) = (&self.large, self.current_tail()) {
            return Ok(tail.location.clone());
        }
        self.take_back_tail().await?;
        let rest = mem::take(&mut self.buffer).freeze();
        let location = match self.large.take() {
            Some(large) => large.complete(&self.shared, rest).await?,
            None => match self.shared.client.put(&self.shared.path(key)?, rest.into()).await {
                Ok(_) => key.to_owned(),
                Err(error) => return Err(self.shared.explain("putting", error)),
            },
        };
        self.shared.forget_tail(self.tail.take()).await;
        Ok(location)
    }

    async fn abort(mut self: Box<Self>) {
        self.shared.forget_tail(self.tail.take()).await;
        if let Some(large) = self.large.take() {
            large.abort(&self.shared).await;
        }
    }
}

impl Shared {
    async fn forget_tail(&self, tail: Option<Tail>) {
        let Some(tail) = tail else { return };
        if let Err(error) = self.delete(&self.raw(&tail.location)).await {
            tracing::warn!(error = error.chain(), location = tail.location, "the end of an upload stays for now");
        }
    }
}

impl Large {
    async fn abort(mut self, shared: &Arc<Shared>) {
        // A part that is still on its way would be kept, and paid for.
        drop(self.settle(shared).await);
        if let Err(error) = shared.abort_noted(&self.note).await {
            tracing::warn!(error = error.chain(), "an upload could not be taken back; gc will try again");
        }
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        let Some(mut large) = self.large.take() else { return };
        if large.kept {
            // It would come after the last checkpoint, and perhaps in the way of whoever goes on from there.
            if let Some(sending) = large.sending.take() {
                sending.abort();
            }
        } else if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let shared = self.shared.clone();
            runtime.spawn(async move { large.abort(&shared).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_are_enough() {
        let sum = |parts: usize| (0..parts).map(|index| part_size(index) as u64).sum::<u64>();
        assert!(sum(10_000) > 5 << 40, "the largest object that S3 takes");
        assert!(part_size(9_999) < 5 << 30, "the largest part that S3 takes");
        let parts = (1..10_000).find(|parts| sum(*parts) >= 100_000_000_000).unwrap();
        assert_eq!(part_size(parts - 1), 64 << 20, "what a push of 100 GB holds in memory, twice");
    }
}
