//! How answers are written: headers of this protocol, places of what was made, and pages of lists.

use http::{HeaderName, HeaderValue, StatusCode, header};
use larder_core::Digest;
use larder_http::{Request, Response};

use crate::{
    endpoint::ROOT,
    error::{Code, Refusal},
};

/// The digest of what is answered with.
pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The manifest that the one that was pushed is about.
pub(crate) const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// A tag that was set beside the one in the path.
pub(crate) const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
/// What old clients look for.
pub(crate) const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// The longest page of a list.
const LONGEST_PAGE: usize = 10_000;

/// 201: it is at `name/KIND/DIGEST` now.
pub(crate) fn created(name: &str, kind: &str, digest: &Digest) -> Response {
    let digest = digest.to_string();
    Response::empty(StatusCode::CREATED)
        .with(header::LOCATION, value(&format!("{ROOT}{name}/{kind}/{digest}")))
        .with(DOCKER_CONTENT_DIGEST, value(&digest))
}

/// A header's value out of text that was checked to be visible ASCII.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// One page of a sorted list.
pub(crate) struct Page<'a> {
    pub(crate) names: &'a [String],
    /// The page's length, if more come after it.
    more: Option<usize>,
}

impl<'a> Page<'a> {
    /// The page that `n` and `last` ask for.
    pub(crate) fn of(request: &Request, all: &'a [String]) -> Result<Self, Refusal> {
        let query = request.query()?;
        let last = query.get("last").unwrap_or_default();
        let start = if last.is_empty() { 0 } else { all.partition_point(|name| name.as_str() <= last.as_ref()) };
        let wanted = match query.get("n") {
            None => LONGEST_PAGE,
            Some(text) => text.parse::<usize>().map(|n| n.min(LONGEST_PAGE)).map_err(|_| {
                Refusal::new(
                    Code::Unsupported,
                    format!("n={text} is not a number"),
                    "give the length of a page as n=100",
                )
                .status(StatusCode::BAD_REQUEST)
            })?,
        };
        let end = all.len().min(start.saturating_add(wanted));
        Ok(Self { names: &all[start..end], more: (end < all.len() && wanted > 0).then_some(wanted) })
    }

    pub(crate) fn answer(&self, request: &Request, body: &serde_json::Value) -> Response {
        let mut response = Response::json(StatusCode::OK, body);
        if let (Some(n), Some(last)) = (self.more, self.names.last()) {
            let rest = format!("n={n}&last={}", link::encoded(last));
            response.headers.insert(header::LINK, link::next(&request.decoded_path(), &rest));
        }
        response
    }
}

/// Where the next page is (RFC 8288).
pub(crate) mod link {
    use std::fmt::Write as _;

    use http::HeaderValue;

    /// Where the next page is, by the header of somebody else.
    pub(crate) fn target(text: &str) -> Option<&str> {
        text.split(',').find_map(|link| {
            let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            let is_next = |parameter: &str| {
                let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
            };
            parameters.split(';').any(is_next).then_some(target)
        })
    }

    /// The header's value.
    pub(crate) fn next(path: &str, query: &str) -> HeaderValue {
        let text = format!("<{path}?{query}>; rel=\"next\"");
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
    }

    /// Text as a value of a query.
    pub(crate) fn encoded(text: &str) -> String {
        text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
                out.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
            out
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_pages_of_others_are_found() {
        for (text, expected) in [
            (r#"</v2/a/tags/list?n=2&last=b>; rel="next""#, Some("/v2/a/tags/list?n=2&last=b")),
            (r#"<https://a.example.org/x>; rel="prev", <y>; title=z; REL=Next"#, Some("y")),
            (r#"<x>; rel="prev""#, None),
            ("x; rel=next", None),
            ("", None),
        ] {
            assert_eq!(link::target(text), expected, "{text}");
        }
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(link::encoded("application/vnd.a+json"), "application/vnd.a%2Bjson");
    }
}
