//! Conditional requests (RFC 9110, 13): whether the client already has what it asks for.

use http::{HeaderMap, HeaderValue, header};

/// Whether `If-None-Match`, or without it `If-Modified-Since`, says that the client has the bytes of `etag`.
///
/// A date counts only when it is the very text that was sent as `Last-Modified`. One address can serve several views,
/// each with its own time, and a later date says nothing about which of them the client has.
pub(crate) fn client_has(headers: &HeaderMap, etag: &HeaderValue, last_modified: Option<&HeaderValue>) -> bool {
    let mut tags = headers.get_all(header::IF_NONE_MATCH).iter().peekable();
    if tags.peek().is_some() {
        return tags.any(|list| list == etag || names(list.as_bytes(), etag.as_bytes()));
    }
    match (headers.get(header::IF_MODIFIED_SINCE), last_modified) {
        (Some(theirs), Some(ours)) => theirs == ours,
        _ => false,
    }
}

/// Whether `If-Range` lets a range of the bytes of `etag` be sent: only an exact match does, and its absence.
pub(crate) fn range_is_of(headers: &HeaderMap, etag: &HeaderValue, last_modified: Option<&HeaderValue>) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|theirs| theirs == etag || Some(theirs) == last_modified)
}

/// Whether a list of entity tags is `*` or names `tag`, weak or not. What follows something malformed is not read.
fn names(list: &[u8], tag: &[u8]) -> bool {
    let mut rest = list.trim_ascii();
    if rest == b"*" {
        return true;
    }
    loop {
        rest = rest.trim_ascii_start();
        rest = rest.strip_prefix(b"W/").unwrap_or(rest);
        if rest.first() != Some(&b'"') {
            return false;
        }
        let Some(end) = rest[1..].iter().position(|byte| *byte == b'"') else { return false };
        let (own, after) = rest.split_at(end + 2);
        if own == tag {
            return true;
        }
        let Some(after) = after.trim_ascii_start().strip_prefix(b",") else { return false };
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Fri, 20 Nov 2026 08:00:00 GMT";

    #[test]
    fn the_table_of_conditions() {
        let cases: [(&[(header::HeaderName, &str)], bool); 18] = [
            (&[], false),
            (&[(header::IF_NONE_MATCH, r#""a""#)], true),
            (&[(header::IF_NONE_MATCH, r#"W/"a""#)], true),
            (&[(header::IF_NONE_MATCH, "*")], true),
            (&[(header::IF_NONE_MATCH, r#""b""#)], false),
            (&[(header::IF_NONE_MATCH, r#""b", W/"c" ,"a""#)], true),
            (&[(header::IF_NONE_MATCH, r#""b,", "x"a", "a""#)], false),
            (&[(header::IF_NONE_MATCH, r#""b,c", "a""#)], true),
            (&[(header::IF_NONE_MATCH, "a")], false),
            (&[(header::IF_NONE_MATCH, r#""a"#)], false),
            (&[(header::IF_NONE_MATCH, r#""b""#), (header::IF_NONE_MATCH, r#""a""#)], true),
            (&[(header::IF_NONE_MATCH, "")], false),
            (&[(header::IF_MODIFIED_SINCE, DATE)], true),
            (&[(header::IF_MODIFIED_SINCE, "Fri, 20 Nov 2026 08:00:01 GMT")], false),
            (&[(header::IF_MODIFIED_SINCE, "Fri, 20 Nov 2026 07:59:59 GMT")], false),
            (&[(header::IF_MODIFIED_SINCE, "yesterday")], false),
            (&[(header::IF_NONE_MATCH, r#""b""#), (header::IF_MODIFIED_SINCE, DATE)], false),
            (&[(header::IF_NONE_MATCH, r#""a""#), (header::IF_MODIFIED_SINCE, "yesterday")], true),
        ];
        let etag = HeaderValue::from_static(r#""a""#);
        let date = HeaderValue::from_static(DATE);
        for (given, expected) in cases {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.append(name.clone(), HeaderValue::from_static(value));
            }
            assert_eq!(client_has(&headers, &etag, Some(&date)), expected, "{given:?}");
        }
    }

    #[test]
    fn without_a_date_of_ours_theirs_says_nothing() {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MODIFIED_SINCE, HeaderValue::from_static(DATE));
        assert!(!client_has(&headers, &HeaderValue::from_static(r#""a""#), None));
    }
}
