//! Which token a request shows. Whether it is a good one is the [`Authenticator`](crate::Authenticator)'s to say.

use base64::Engine as _;
use http::{HeaderMap, HeaderName, header};

/// What every token starts with (design: contract, commands).
const TOKEN_START: &str = "lrd_";

/// The longest `user:password` that is read, in bytes; a token is far shorter, and anything longer is not one.
const LONGEST: usize = 1024;

/// Another header for a token, which clients of some forges send.
const PRIVATE_TOKEN: HeaderName = HeaderName::from_static("private-token");

/// Room for what Basic authentication decodes to, so that reading it allocates nothing.
pub(crate) struct Scratch([u8; LONGEST]);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self([0; LONGEST])
    }
}

/// The token that a request shows: `Bearer`, `Basic` with the token as password or as user name, or `PRIVATE-TOKEN`. What
/// stands for a token is shown as `Bearer` alone.
///
/// `None` if it shows nothing. Credentials that cannot be read are an empty token, which no principal has.
pub(crate) fn shown<'a>(headers: &'a HeaderMap, scratch: &'a mut Scratch) -> Option<&'a str> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        let value = headers.get(PRIVATE_TOKEN)?.to_str().unwrap_or_default().trim();
        return Some(if is_token(value) { value } else { "" });
    };
    let text = value.to_str().unwrap_or_default();
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(basic(rest.trim(), scratch).unwrap_or_default());
    }
    Some("")
}

fn basic<'a>(encoded: &str, scratch: &'a mut Scratch) -> Option<&'a str> {
    let engine = base64::engine::general_purpose::STANDARD;
    let length = engine.decode_slice(encoded, &mut scratch.0).ok()?;
    let (user, password) = std::str::from_utf8(&scratch.0[..length]).ok()?.split_once(':')?;
    [password, user].into_iter().find(|text| is_token(text))
}

fn is_token(text: &str) -> bool {
    text.starts_with(TOKEN_START)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn tokens_are_found_wherever_clients_put_them() {
        let basic = |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
        let cases = [
            (basic("anyone:lrd_abc"), "lrd_abc"),
            (basic("lrd_abc:"), "lrd_abc"),
            (basic("lrd_abc:x-oauth-basic"), "lrd_abc"),
            (basic("lrd_user:lrd_abc"), "lrd_abc"),
            (basic(":lrd_abc"), "lrd_abc"),
            (basic("me:wrong"), ""),
            (basic("no colon"), ""),
            (basic("a:lrd_b:c"), "lrd_b:c"),
            (basic(&format!("a:{}", "x".repeat(2_000))), ""),
            ("Basic".to_owned(), ""),
            ("Basic %%%".to_owned(), ""),
            ("Basic /w==".to_owned(), ""),
            ("bearer lrd_abc".to_owned(), "lrd_abc"),
            ("Bearer   lrd_abc ".to_owned(), "lrd_abc"),
            ("Bearer".to_owned(), ""),
            ("Digest username=x".to_owned(), ""),
            ("lrd_abc".to_owned(), ""),
            (String::new(), ""),
        ];
        for (value, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::try_from(&value).unwrap());
            assert_eq!(shown(&headers, &mut Scratch::new()), Some(expected), "{value}");
        }
    }

    #[test]
    fn the_other_header_and_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(shown(&headers, &mut Scratch::new()), None);
        headers.insert(PRIVATE_TOKEN, HeaderValue::from_static("lrd_abc"));
        assert_eq!(shown(&headers, &mut Scratch::new()), Some("lrd_abc"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer other"));
        assert_eq!(shown(&headers, &mut Scratch::new()), Some("other"));
    }
}
