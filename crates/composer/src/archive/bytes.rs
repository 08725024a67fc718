//! A file read from front to back, and the numbers in it. What they mean is not known here.

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use larder_blobs::store::ByteStream;
use larder_core::Result;

use super::refused;

/// A file as it streams by.
pub(super) struct Reader {
    stream: ByteStream,
    piece: Bytes,
    at: u64,
}

impl Reader {
    /// Of a stream whose first byte is at `at`.
    pub(super) fn new(stream: ByteStream, at: u64) -> Self {
        Self { stream, piece: Bytes::new(), at }
    }

    /// Where the next byte is.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// At least one byte, and at most `most` of them, which is not 0.
    pub(super) async fn some(&mut self, most: u64) -> Result<Bytes> {
        while self.piece.is_empty() {
            match self.stream.next().await {
                Some(piece) => self.piece = piece?,
                None => return Err(refused("it ends in the middle of something")),
            }
        }
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.piece.len());
        let some = self.piece.split_to(length);
        self.at += some.len() as u64;
        Ok(some)
    }

    /// So many bytes.
    pub(super) async fn exactly(&mut self, count: usize) -> Result<Bytes> {
        if count == 0 {
            return Ok(Bytes::new());
        }
        let first = self.some(count as u64).await?;
        if first.len() == count {
            return Ok(first);
        }
        let mut all = BytesMut::with_capacity(count);
        all.extend_from_slice(&first);
        while all.len() < count {
            let more = self.some((count - all.len()) as u64).await?;
            all.extend_from_slice(&more);
        }
        Ok(all.freeze())
    }
}

/// Numbers one after the other, lowest byte first. Behind the end there are zeros, and [`is_over`](Self::is_over) says so.
pub(super) struct Numbers<'a> {
    rest: &'a [u8],
    over: bool,
}

impl<'a> Numbers<'a> {
    /// From the beginning of `bytes`.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, over: false }
    }

    /// So many bytes.
    pub(super) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at_checked(count).unwrap_or_else(|| {
            self.over = true;
            (&[], &[])
        });
        self.rest = rest;
        taken
    }

    fn number<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().unwrap_or([0; N])
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.number())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.number())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.number())
    }

    /// What was not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether more was read than there is.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}
