//! Paths and queries, decoded strictly and in one place. What they mean is a room's business.

use std::borrow::Cow;

use larder_core::{Error, Result};
use percent_encoding::percent_decode_str;

/// Refuses a path that some part of the house might read differently from another: bad percent-encoding, bytes that
/// are not UTF-8, control characters, backslashes, and empty, `.` or `..` segments, encoded or not. A slash at the end
/// is fine.
pub(crate) fn check(path: &str) -> Result<()> {
    let Some(inside) = path.strip_prefix('/') else {
        return Err(Error::invalid("the path of a request must start with a slash"));
    };
    let inside = inside.strip_suffix('/').unwrap_or(inside);
    if inside.is_empty() && path.len() <= 1 {
        return Ok(());
    }
    let decoded = decode(inside)?;
    if decoded.bytes().any(|byte| byte.is_ascii_control() || byte == b'\\') {
        return Err(Error::invalid("the path holds a control character or a backslash; no path here does"));
    }
    if decoded.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::invalid("the path holds an empty, `.` or `..` segment; write it without"));
    }
    Ok(())
}

/// Decodes percent-encoding; every `%` must stand before two hex digits, and the result must be UTF-8.
fn decode(text: &str) -> Result<Cow<'_, str>> {
    if !text.as_bytes().contains(&b'%') {
        return Ok(Cow::Borrowed(text));
    }
    let whole = |escape: &str| escape.len() >= 2 && escape.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if !text.split('%').skip(1).all(whole) {
        return Err(Error::invalid("a `%` in the address is not followed by two hex digits; write %25 for the sign"));
    }
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| Error::invalid("the percent-encoding in the address does not decode to UTF-8"))
}

/// The decoded form of a path that passed [`check`].
pub(crate) fn decoded(path: &str) -> Cow<'_, str> {
    if path.as_bytes().contains(&b'%') { percent_decode_str(path).decode_utf8_lossy() } else { Cow::Borrowed(path) }
}

/// The segments of a path, each decoded on its own: an encoded slash stays inside its segment. A slash at the end of
/// the path makes no segment.
#[derive(Clone, Debug)]
pub struct Segments<'a>(Option<std::str::Split<'a, char>>);

impl<'a> Segments<'a> {
    pub(crate) fn of(path: &'a str) -> Self {
        let inside = path.trim_matches('/');
        Self((!inside.is_empty()).then(|| inside.split('/')))
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Cow<'a, str>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.as_mut()?.next().map(decoded)
    }
}

/// The query of a request: `name=value` pairs with `&` between them and `+` for a space, as forms write it.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    /// Of a text without the `?`. Refuses bad percent-encoding, so that reading it later cannot fail.
    pub fn parse(text: &'a str) -> Result<Self> {
        decode(text).map(|_| Self(text))
    }

    /// All pairs in their order. A pair without `=` has an empty value.
    pub fn pairs(self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
        self.0.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (form_decoded(name), form_decoded(value))
        })
    }

    /// The value of the first pair called `name`.
    pub fn get(self, name: &str) -> Option<Cow<'a, str>> {
        self.pairs().find(|(own, _)| own == name).map(|(_, value)| value)
    }
}

fn form_decoded(text: &str) -> Cow<'_, str> {
    if text.as_bytes().contains(&b'+') {
        Cow::Owned(decoded(&text.replace('+', " ")).into_owned())
    } else {
        decoded(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unambiguous_paths_pass() {
        for fine in
            ["/", "/a", "/a/", "/a/b.json", "/@acme%2fui", "/a%20b", "/v2/x/manifests/sha256:ab", "/%C3%A9", "/..a"]
        {
            assert!(check(fine).is_ok(), "{fine}");
        }
        let wrong = [
            "",
            "*",
            "a",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/.",
            "/..",
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/a/../",
            "/%2e%2e/b",
            "/a/.%2E/b",
            "/a%2f..%2fb",
            "/a%2f%2fb",
            "/%",
            "/%2",
            "/%zz",
            "/%+1",
            "/a%00b",
            "/a%0ab",
            "/a%7f",
            "/a\\b",
            "/a%5cb",
            "/%ff",
            "/%2f",
            "/a%2f",
        ];
        for wrong in wrong {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn segments_decode_on_their_own() {
        let of = |path| Segments::of(path).map(Cow::into_owned).collect::<Vec<_>>();
        assert_eq!(of("/shelf/@acme%2fui/"), ["shelf", "@acme/ui"]);
        assert!(of("/").is_empty());
    }

    #[test]
    fn queries_read_like_forms() {
        let query = Query::parse("q=a+b%2B&&flag&x=1&x=2").unwrap();
        assert_eq!(query.get("q").unwrap(), "a b+");
        assert_eq!(query.get("flag").unwrap(), "");
        assert_eq!(query.get("x").unwrap(), "1");
        assert_eq!(query.pairs().count(), 4);
        assert!(Query::parse("q=%").is_err());
        assert!(Query::parse("q=%ff").is_err());
    }
}
