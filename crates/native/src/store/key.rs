//! The one choke point for names of objects: every key and location passes here before it becomes a path or a URL.

use larder_core::{Error, Kind, Result};

/// The longest name in bytes; S3 allows 1024, and a prefix comes before it.
const LONGEST: usize = 512;

/// Whether `name` can be an object's: segments of letters, digits, `-` and `.`, parted by single slashes, none
/// of which begins with a dot. So there is no `..`, no absolute path, no hidden file and nothing to escape.
pub(super) fn is_sound(name: &str) -> bool {
    name.len() <= LONGEST
        && name.split('/').all(|segment| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
        })
}

/// Checks that `name` is sound and below one of `roots` (which end with a slash).
pub(super) fn check(name: &str, roots: &[&str]) -> Result<()> {
    if is_sound(name) && roots.iter().any(|root| name.starts_with(root)) {
        return Ok(());
    }
    Err(Error::new(Kind::Internal, "Larder made up an impossible name for stored bytes; its log says which")
        .caused_by(format!("`{name}` is not a name below {roots:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tame_names_pass() {
        for good in ["blobs/sha256/ab/abcd-01", "blobs/a.b"] {
            assert!(check(good, &["blobs/"]).is_ok(), "{good}");
        }
        let long = format!("blobs/{}", "a".repeat(LONGEST));
        for wrong in [
            "",
            "blobs",
            "blobs/",
            "/blobs/a",
            "blobs//a",
            "blobs/../a",
            "blobs/..",
            "blobs/.a",
            "blobs/a/",
            "blobs/a\0",
            "blobs/a b",
            "blobs/a%2e",
            "blobs/a\\b",
            "blobs/ä",
            "uploads/a",
            "../blobs/a",
            &long,
        ] {
            assert!(check(wrong, &["blobs/"]).is_err(), "{wrong}");
        }
    }
}
