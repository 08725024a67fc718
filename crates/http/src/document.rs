//! A document that clients read again and again: rendered once, compressed once per encoding, and answered from then
//! on by counting references. What stands in it, and when it changes, is a room's business.

use std::sync::OnceLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use larder_core::{Digest, Time};

use crate::{
    body::Body,
    conditional,
    encoding::{self, Encoding},
    message::{Request, Response, value_of},
};

/// Below this size, in bytes, a compressed variant saves no packet.
const WORTH_COMPRESSING: usize = 256;

/// Bytes with their validators and encodings. Immutable: a change makes a new one.
#[derive(Debug)]
pub struct Document {
    digest: Digest,
    last_modified: Option<HeaderValue>,
    /// The headers that all answers share.
    shared: HeaderMap,
    content_type: HeaderValue,
    plain: Variant,
    encoded: [OnceLock<Option<Variant>>; 3],
}

/// The document in one encoding, with the headers of both possible answers.
#[derive(Debug)]
struct Variant {
    bytes: Bytes,
    etag: HeaderValue,
    found: HeaderMap,
    not_modified: HeaderMap,
}

impl Document {
    /// A document that a cache may keep but must ask about each time (`Cache-Control: private, no-cache`).
    ///
    /// `last_modified` has a grain of one second; whoever gives it sees to it that no two contents of one address share
    /// one. Without it the entity tag, made from the bytes, is the only validator.
    pub fn new(content_type: &'static str, bytes: impl Into<Bytes>, last_modified: Option<Time>) -> Self {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let last_modified = last_modified.map(|time| value_of(time.http_date()));
        let mut shared = HeaderMap::with_capacity(8);
        shared.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        shared.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        if let Some(date) = &last_modified {
            shared.insert(header::LAST_MODIFIED, date.clone());
        }
        let content_type = HeaderValue::from_static(content_type);
        let plain = Variant::new(&shared, &content_type, digest, None, bytes);
        Self { digest, last_modified, shared, content_type, plain, encoded: Default::default() }
    }

    /// With another header in every answer, for example another `Cache-Control`.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.shared.insert(name, value);
        self.plain = Variant::new(&self.shared, &self.content_type, self.digest, None, self.plain.bytes);
        self.encoded = Default::default();
        self
    }

    /// The bytes, not encoded.
    pub fn bytes(&self) -> &Bytes {
        &self.plain.bytes
    }

    /// The digest of the bytes, not encoded.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Makes all encodings now instead of on first demand. Takes some ten milliseconds per 100 KB, so it belongs off the
    /// threads that answer requests.
    pub fn prepare(&self) {
        for encoding in Encoding::ALL {
            self.variant(encoding);
        }
    }

    /// The answer to a GET or HEAD: 200 in the encoding that the client likes best, or an empty 304.
    pub fn respond(&self, request: &Request) -> Response {
        let headers = &request.headers;
        let variant = encoding::preferred(headers).find_map(|encoding| self.variant(encoding)).unwrap_or(&self.plain);
        if conditional::client_has(headers, &variant.etag, self.last_modified.as_ref()) {
            return Response {
                status: StatusCode::NOT_MODIFIED,
                headers: variant.not_modified.clone(),
                body: Body::Empty,
            };
        }
        Response { status: StatusCode::OK, headers: variant.found.clone(), body: Body::from(variant.bytes.clone()) }
    }

    fn variant(&self, encoding: Encoding) -> Option<&Variant> {
        let plain = &self.plain.bytes;
        if plain.len() < WORTH_COMPRESSING {
            return None;
        }
        let made = self.encoded[encoding as usize].get_or_init(|| {
            let bytes = encoding.compress(plain).filter(|bytes| bytes.len() < plain.len())?;
            Some(Variant::new(&self.shared, &self.content_type, self.digest, Some(encoding), bytes.into()))
        });
        made.as_ref()
    }
}

impl Variant {
    fn new(
        shared: &HeaderMap,
        content_type: &HeaderValue,
        digest: Digest,
        encoding: Option<Encoding>,
        bytes: Bytes,
    ) -> Self {
        // Half of the digest is plenty to tell apart what was ever served under one address.
        let digits = &digest.hex()[..32];
        let tag = match encoding {
            None => format!("\"{digits}\""),
            Some(encoding) => format!("\"{digits}-{}\"", encoding.name()),
        };
        let etag = value_of(tag);
        let mut not_modified = shared.clone();
        not_modified.insert(header::ETAG, etag.clone());
        let mut found = not_modified.clone();
        found.insert(header::CONTENT_TYPE, content_type.clone());
        if let Some(encoding) = encoding {
            found.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
        }
        Self { bytes, etag, found, not_modified }
    }
}
