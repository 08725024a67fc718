//! Saying of an answer that it may be outdated: what it is made from could not be asked for again.

use std::time::Duration;

use http::{HeaderValue, header};

use crate::Response;

/// The longest reason that is told, in characters.
const LONGEST: usize = 500;

/// Adds a `Warning` (RFC 7234, 5.5: code 299) that says why, and an `Age` (RFC 9111, 5.1) if that is known.
pub fn warn(response: &mut Response, why: &str, age: Option<Duration>) {
    let visible = |c: char| if c == '"' || c == '\\' || !(' '..='~').contains(&c) { '\'' } else { c };
    let why: String = why.chars().map(visible).take(LONGEST).collect();
    let text = format!("299 - \"this may be outdated: {why}\"");
    let value = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("299 - \"\""));
    response.headers.insert(header::WARNING, value);
    if let Some(age) = age {
        response.headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn a_warning_is_a_header_whatever_it_says() {
        let mut response = Response::empty(StatusCode::OK);
        warn(&mut response, &"a \"quote\",\r\nä line".repeat(100), Some(Duration::from_secs(65)));
        assert_eq!(response.headers[header::AGE], "65");
        let text = response.headers[header::WARNING].to_str().unwrap();
        assert!(text.starts_with("299 - \"this may be outdated: a 'quote',''' line") && text.ends_with('"'), "{text}");
        assert!(text.len() < 4096);
    }
}
