//! A manifest as it is served: the bytes that came, with the headers made once.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use larder_core::Digest;
use larder_http::{Body, Request, Response};

use crate::answer::{DOCKER_CONTENT_DIGEST, value};

/// A manifest with the headers that it is served with.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) bytes: Bytes,
    /// Its digest.
    pub(crate) text: Arc<str>,
    /// Its repository.
    pub(crate) name: Arc<str>,
    etag: HeaderValue,
    headers: HeaderMap,
}

impl Served {
    pub(crate) fn new(name: &str, digest: Digest, media_type: &str, bytes: Bytes) -> Self {
        let text = digest.to_string();
        let etag = value(&format!("\"{text}\""));
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::CONTENT_TYPE, value(media_type));
        headers.insert(DOCKER_CONTENT_DIGEST, value(&text));
        headers.insert(header::ETAG, etag.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        // Whoever pushes chooses the media type, text/html as well: no browser may run what is in a manifest.
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
        Self { bytes, text: text.into(), name: name.into(), etag, headers }
    }

    /// The answer to a GET or HEAD.
    pub(crate) fn respond(&self, request: &Request) -> Response {
        let has = request.headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
            value.to_str().is_ok_and(|list| list.split(',').any(|tag| tag.trim().trim_start_matches("W/") == self.etag))
        });
        if has {
            return Response { status: StatusCode::NOT_MODIFIED, headers: self.headers.clone(), body: Body::Empty };
        }
        Response { status: StatusCode::OK, headers: self.headers.clone(), body: Body::from(self.bytes.clone()) }
    }
}
