//! Names, tags and references, as the distribution specification writes them.

use larder_core::Digest;

use crate::error::{Code, Refusal};

/// The longest name: clients put host and name together into 255 characters.
const LONGEST_NAME: usize = 255;

/// The longest tag.
const LONGEST_TAG: usize = 128;

/// What comes after `manifests/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference<'a> {
    /// A movable name.
    Tag(&'a str),
    /// The manifest itself.
    Digest(Digest),
}

impl<'a> Reference<'a> {
    /// Reads a reference. Only a digest has a colon.
    pub fn parse(text: &'a str) -> Result<Self, Refusal> {
        if text.contains(':') {
            return Ok(Self::Digest(parse_digest(text)?));
        }
        check_tag(text)?;
        Ok(Self::Tag(text))
    }
}

/// Reads a digest.
pub fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|_| {
        Refusal::new(
            Code::DigestInvalid,
            format!("`{text}` is not a digest that can be stored here"),
            "write sha256: and 64 lower-case hex digits, or sha512: and 128",
        )
    })
}

/// The tag under which clients of a registry without lists of referrers keep that of a manifest.
pub fn fallback_tag(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), &digest.hex()[..64])
}

/// Checks a repository name: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, and more of that behind slashes.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    if name.len() <= LONGEST_NAME && name.split('/').all(is_component) {
        return Ok(());
    }
    Err(Refusal::new(
        Code::NameInvalid,
        format!("`{name}` is not a repository name"),
        "use lower-case letters and digits, with single . _ __ or any number of - between them, and / between the parts; 255 characters at most",
    ))
}

fn is_component(part: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_alphanumeric(*first) || !is_alphanumeric(*last) {
        return false;
    }
    bytes.split(|byte| is_alphanumeric(*byte)).all(|between| match between {
        b"" | b"." | b"_" | b"__" => true,
        dashes => dashes.iter().all(|byte| *byte == b'-'),
    })
}

/// Checks a tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub fn check_tag(tag: &str) -> Result<(), Refusal> {
    let bytes = tag.as_bytes();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if bytes.len() <= LONGEST_TAG
        && bytes.first().is_some_and(|first| is_word(*first))
        && bytes.iter().all(|byte| is_word(*byte) || matches!(byte, b'.' | b'-'))
    {
        return Ok(());
    }
    Err(Refusal::new(
        Code::ManifestInvalid,
        format!("`{tag}` is not a tag"),
        "use letters, digits, _ . and -, not beginning with . or -; 128 characters at most",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_specification() {
        for fine in ["a", "a/b", "acme/app", "a.b/c_d/e__f/g-h/i---j", "0/1", "library/x2", &"a".repeat(255)] {
            assert!(check_name(fine).is_ok(), "{fine}");
        }
        let wrong = [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a..b",
            "a___b",
            "-a",
            "a-",
            ".a",
            "a.",
            "_a",
            "a_",
            "a._b",
            "a/-b",
            "ä",
            "a b",
            "a-_b",
            &"a".repeat(256),
        ];
        for wrong in wrong {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tags_of_the_specification() {
        for fine in ["a", "_", "1.0.0", "v1-rc.1_x", "LATEST", &"t".repeat(128)] {
            assert!(check_tag(fine).is_ok(), "{fine}");
        }
        for wrong in ["", ".a", "-a", "a+b", "a/b", "a:b", "ä", &"t".repeat(129)] {
            assert!(check_tag(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_colon_makes_a_digest() {
        let digest = Digest::of(b"x").to_string();
        assert!(matches!(Reference::parse(&digest), Ok(Reference::Digest(_))));
        assert!(matches!(Reference::parse("1.0"), Ok(Reference::Tag("1.0"))));
        for wrong in ["sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "a:b", ":"] {
            assert!(Reference::parse(wrong).is_err(), "{wrong}");
        }
    }
}
