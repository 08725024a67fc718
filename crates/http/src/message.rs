//! The two messages as rooms see them: a request that has passed the first checks, and a response.

use std::{borrow::Cow, fmt, net::IpAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use larder_core::Result;

use crate::{
    body::{Body, RequestBody},
    path::{self, Query, Segments},
};

/// A number for one request, unique among all processes for all practical purposes: it ties what a client saw to what
/// the log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// Drawn at random when the process started.
    pub process: u32,
    /// Counted up within the process.
    pub number: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:x}", self.process, self.number)
    }
}

/// A request whose path is known to be unambiguous (`path.rs` says what that means).
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub method: Method,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; take it, or read it where it is.
    pub body: RequestBody,
    /// The client, as far as trusted proxies tell.
    pub address: IpAddr,
    /// Ties this request to the log.
    pub id: RequestId,
    uri: Uri,
}

impl Request {
    /// Checks the path and fails with [`Invalid`](larder_core::Kind::Invalid) if there could be two opinions about it.
    pub fn new(
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: RequestBody,
        address: IpAddr,
        id: RequestId,
    ) -> Result<Self> {
        path::check(uri.path())?;
        Ok(Self { method, headers, body, address, id, uri })
    }

    /// The path as it was sent, percent-encoded, without the query.
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The whole path decoded, with encoded slashes as slashes. Borrowed when nothing was encoded.
    pub fn decoded_path(&self) -> Cow<'_, str> {
        path::decoded(self.uri.path())
    }

    /// The decoded segments of the path; an encoded slash stays inside its segment.
    pub fn segments(&self) -> Segments<'_> {
        Segments::of(self.uri.path())
    }

    /// The query; empty if there is none. Fails with [`Invalid`](larder_core::Kind::Invalid) on bad percent-encoding.
    pub fn query(&self) -> Result<Query<'_>> {
        Query::parse(self.uri.query().unwrap_or_default())
    }

    /// The text of a header; `None` if it is missing or not ASCII.
    pub fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether it only asks: GET or HEAD. A HEAD is answered like a GET; the site takes the body off.
    pub fn reads(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }
}

/// A response.
#[derive(Debug, Default)]
pub struct Response {
    /// Its status.
    pub status: StatusCode,
    /// Its headers. The host adds `Date` and, where the body's length is known, `Content-Length`.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Body,
}

impl Response {
    /// With a status alone.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, ..Self::default() }
    }

    /// With bytes of a content type.
    pub fn bytes(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        Self { status, body: Body::from(bytes.into()), ..Self::default() }
            .with(header::CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    /// With a JSON value, for answers that are not worth a [`Document`](crate::Document).
    pub fn json(status: StatusCode, value: &serde_json::Value) -> Self {
        Self::bytes(status, "application/json", value.to_string())
    }

    /// Adds or replaces a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl From<Response> for http::Response<Body> {
    fn from(response: Response) -> Self {
        let mut out = Self::new(response.body);
        *out.status_mut() = response.status;
        *out.headers_mut() = response.headers;
        out
    }
}

/// The value of a header out of text that we made of visible ASCII: digests, dates, numbers.
pub(crate) fn value_of(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("only visible ASCII is given to this function")
}
