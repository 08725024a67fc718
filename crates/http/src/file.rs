//! Answers with the bytes of a blob: whole or in ranges, cached for ever, because the bytes under an address never
//! change. Where the bytes come from is the caller's business.

use std::ops::Range;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use larder_core::{Digest, Result};

use crate::{
    body::Body,
    conditional, error,
    message::{Request, Response, value_of},
    range::Wanted,
};

/// What is known of a blob before it is opened. Cheap to clone; worth keeping beside a cached lookup.
#[derive(Clone, Debug)]
pub struct File {
    digest: Digest,
    size: u64,
    etag: HeaderValue,
    /// Of every answer that has bytes or stands for them.
    headers: HeaderMap,
    /// Of every answer.
    always: HeaderMap,
}

impl File {
    /// A file of `size` bytes whose digest is known. Clients may keep it for ever
    /// (`Cache-Control: private, max-age=31536000, immutable`). It is sent as it is, never encoded.
    pub fn new(digest: Digest, size: u64, content_type: &'static str) -> Self {
        let etag = value_of(format!("\"{}\"", digest.hex()));
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::ETAG, etag.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        Self { digest, size, etag, headers, always: HeaderMap::new() }
    }

    /// With a content type that is known only now.
    #[must_use]
    pub fn with_type(self, content_type: HeaderValue) -> Self {
        self.with(header::CONTENT_TYPE, content_type)
    }

    /// With another header in every answer that has bytes or says that the client has them, for example
    /// `Content-Disposition`, or another value of one, for example of `Cache-Control`.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With another header in every answer, also in one that refuses a range.
    #[must_use]
    pub fn with_always(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.always.insert(name.clone(), value.clone());
        self.with(name, value)
    }

    /// The answer to a GET or HEAD. `open` gives the bytes of a range, or all of them for `None`; it is not called when
    /// no bytes are to be sent, and at most 16 times.
    pub async fn respond<O, F>(&self, request: &Request, open: O) -> Result<Response>
    where
        O: Fn(Option<Range<u64>>) -> F + Send + Sync,
        F: Future<Output = Result<Body>> + Send,
    {
        let headers = &request.headers;
        if conditional::client_has(headers, &self.etag, None) {
            return Ok(self.not_modified());
        }
        if request.method == Method::HEAD {
            return Ok(self
                .answer(StatusCode::OK, Body::Empty)
                .with(header::CONTENT_LENGTH, HeaderValue::from(self.size)));
        }
        let wanted = match headers.get(header::RANGE).and_then(|value| value.to_str().ok()) {
            Some(range) if conditional::range_is_of(headers, &self.etag, None) => Wanted::parse(range, self.size),
            _ => Wanted::Everything,
        };
        match wanted {
            Wanted::Everything => Ok(self.answer(StatusCode::OK, open(None).await?)),
            Wanted::Nothing => Ok(self.not_satisfiable()),
            Wanted::Parts(parts) => match parts.as_slice() {
                [part] => Ok(self
                    .answer(StatusCode::PARTIAL_CONTENT, open(Some(part.clone())).await?)
                    .with(header::CONTENT_RANGE, self.content_range(part))),
                parts => self.multipart(parts, open).await,
            },
        }
    }

    fn answer(&self, status: StatusCode, body: Body) -> Response {
        Response { status, headers: self.headers.clone(), body }
    }

    fn not_modified(&self) -> Response {
        let mut headers = self.headers.clone();
        headers.remove(header::CONTENT_TYPE);
        Response { status: StatusCode::NOT_MODIFIED, headers, body: Body::Empty }
    }

    fn not_satisfiable(&self) -> Response {
        let range = value_of(format!("bytes */{}", self.size));
        let mut response = error::plain(
            StatusCode::RANGE_NOT_SATISFIABLE,
            &format!("the file has {} bytes, and none of the wanted ones is among them", self.size),
        )
        .with(header::CONTENT_RANGE, range);
        response.headers.extend(self.always.clone());
        response
    }

    fn content_range(&self, part: &Range<u64>) -> HeaderValue {
        value_of(format!("bytes {}-{}/{}", part.start, part.end - 1, self.size))
    }

    /// Several ranges as `multipart/byteranges` (RFC 9110, 14.6).
    async fn multipart<O, F>(&self, parts: &[Range<u64>], open: O) -> Result<Response>
    where
        O: Fn(Option<Range<u64>>) -> F + Send + Sync,
        F: Future<Output = Result<Body>> + Send,
    {
        // No file can hold its own digest on purpose, so this never appears inside one. A boundary has at most 70
        // characters (RFC 2046, 5.1.1).
        let mut boundary = self.digest.hex();
        boundary.truncate(64);
        let mut pieces = Vec::with_capacity(parts.len() * 2 + 1);
        for part in parts {
            let mut head = format!("\r\n--{boundary}\r\n").into_bytes();
            for (name, value) in [
                (header::CONTENT_TYPE, &self.headers[header::CONTENT_TYPE]),
                (header::CONTENT_RANGE, &self.content_range(part)),
            ] {
                head.extend_from_slice(name.as_str().as_bytes());
                head.extend_from_slice(b": ");
                head.extend_from_slice(value.as_bytes());
                head.extend_from_slice(b"\r\n");
            }
            head.extend_from_slice(b"\r\n");
            pieces.push(Body::from(Bytes::from(head)));
            pieces.push(open(Some(part.clone())).await?);
        }
        pieces.push(Body::from(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
        let len = pieces.iter().map(Body::len).sum();
        let stream = stream::iter(pieces).flat_map(Body::into_stream).boxed();
        let kind = value_of(format!("multipart/byteranges; boundary={boundary}"));
        Ok(self.answer(StatusCode::PARTIAL_CONTENT, Body::Stream { len, stream }).with(header::CONTENT_TYPE, kind))
    }
}
