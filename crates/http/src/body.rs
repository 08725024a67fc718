//! Bodies: what a client sends, read in bounded pieces, and what Larder answers, handed over without copying.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use http_body::{Body as _, Frame, SizeHint};
use larder_core::{Error, Kind, Result};

/// What a host hands over as the body of a request. `Sync`, so that a room may hold its request across an await.
type Incoming = Pin<Box<dyn http_body::Body<Data = Bytes, Error = Error> + Send + Sync>>;

/// The body of a request. It is never held in memory as a whole unless [`read_all`](Self::read_all) is told how large
/// that may get.
#[derive(Default)]
pub struct RequestBody {
    incoming: Option<Incoming>,
    too_slow: bool,
}

impl RequestBody {
    /// A body that arrives over time. An error of [`Kind::Timeout`] in it means that the client was too slow.
    pub fn arriving(body: impl http_body::Body<Data = Bytes, Error = Error> + Send + Sync + 'static) -> Self {
        Self { incoming: Some(Box::pin(body)), too_slow: false }
    }

    /// How many bytes are still to come, if the client said so.
    pub fn announced(&self) -> Option<u64> {
        self.incoming.as_ref().map_or(Some(0), |body| body.size_hint().exact())
    }

    /// The next piece; `None` at the end.
    ///
    /// Fails with [`Kind::Timeout`] when the client is too slow and [`Kind::Invalid`] when it sends nonsense or leaves.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(body) = &mut self.incoming else { return Ok(None) };
            match std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                Some(Ok(frame)) => {
                    // Trailers carry nothing that any of the protocols uses.
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(error)) => {
                    self.too_slow = error.kind() == Kind::Timeout;
                    self.incoming = None;
                    return Err(error);
                }
                None => self.incoming = None,
            }
        }
    }

    /// All of it, if it is at most `limit` bytes; otherwise fails with [`Kind::TooLarge`], at once when the client
    /// announced the length.
    pub async fn read_all(&mut self, limit: usize) -> Result<Bytes> {
        let too_large =
            || Error::new(Kind::TooLarge, format!("the request body is larger than the {limit} bytes allowed here"));
        let announced = self.announced().map(usize::try_from);
        if matches!(announced, Some(length) if length.is_ok_and(|length| length > limit) || length.is_err()) {
            return Err(too_large());
        }
        let first = self.chunk().await?.unwrap_or_default();
        let Some(second) = self.chunk().await? else {
            return if first.len() > limit { Err(too_large()) } else { Ok(first) };
        };
        let mut all = BytesMut::from(first);
        let mut next = Some(second);
        while let Some(chunk) = next {
            if all.len() + chunk.len() > limit {
                return Err(too_large());
            }
            all.extend_from_slice(&chunk);
            next = self.chunk().await?;
        }
        Ok(all.freeze())
    }

    /// Whether reading failed because the client took longer than the host allows.
    pub(crate) fn was_too_slow(&self) -> bool {
        self.too_slow
    }
}

impl From<Bytes> for RequestBody {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::default() } else { Self::arriving(Whole(Some(bytes))) }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").field("announced", &self.announced()).finish_non_exhaustive()
    }
}

/// Bytes that are all here, as an arriving body.
struct Whole(Option<Bytes>);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// The body of a response.
#[derive(Default)]
pub enum Body {
    /// None.
    #[default]
    Empty,
    /// Bytes that are all in memory; cloning them costs a reference count.
    Bytes(Bytes),
    /// Bytes that come as they are read.
    Stream {
        /// How many they are, if that is known. A stream that yields fewer breaks the connection, so that the client
        /// notices.
        len: Option<u64>,
        /// The bytes. An error breaks the connection.
        stream: BoxStream<'static, Result<Bytes>>,
    },
}

impl Body {
    /// How many bytes there are, if that is known.
    pub fn len(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Stream { len, .. } => *len,
        }
    }

    /// Whether it is known that there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Its bytes as a stream.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes>> {
        match self {
            Self::Empty => stream::empty().boxed(),
            Self::Bytes(bytes) => stream::once(std::future::ready(Ok(bytes))).boxed(),
            Self::Stream { stream, .. } => stream,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Bytes(bytes) }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Stream { len, stream } => stream.poll_next_unpin(cx).map(|next| match (next, len) {
                (Some(Ok(bytes)), len) => {
                    if let Some(left) = len {
                        *left = left.saturating_sub(bytes.len() as u64);
                    }
                    Some(Ok(Frame::data(bytes)))
                }
                (Some(Err(error)), _) => Some(Err(error)),
                (None, Some(left)) if *left > 0 => {
                    Some(Err(Error::new(Kind::Damaged, format!("a response ended {left} bytes early"))))
                }
                (None, _) => None,
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        self.len().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
