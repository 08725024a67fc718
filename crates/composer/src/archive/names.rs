//! The names in a zip: which ones every program unpacks to the same file below the folder that it unpacks to, on every
//! system.

use std::collections::HashMap;

use super::{directory::Entry, refused_entry};
use larder_core::{Result, tree::EntryKind};

/// The longest name, in bytes; the longest part between slashes; and the most parts. File systems take no longer ones.
const LONGEST: usize = 1_024;
const LONGEST_PART: usize = 255;
const DEEPEST: usize = 64;

/// Reads a name: the path without a slash at its end, and whether there was one, which makes it a folder.
pub(super) fn read(name: &[u8]) -> Result<(String, bool), (String, &'static str)> {
    let refuse = |why| Err((String::from_utf8_lossy(name).into_owned(), why));
    let Ok(text) = std::str::from_utf8(name) else { return refuse("its name is not UTF-8") };
    let (path, is_folder) = text.strip_suffix('/').map_or((text, false), |path| (path, true));
    let drive = path.as_bytes();
    let has_drive = drive.len() > 1 && drive[0].is_ascii_alphabetic() && drive[1] == b':';
    if path.is_empty() || text.len() > LONGEST {
        return refuse("its name is empty, or longer than 1,024 bytes");
    }
    if text.contains(|c: char| c.is_control()) {
        return refuse("its name has a control character in it");
    }
    if path.starts_with('/') || path.contains('\\') || has_drive {
        return refuse("its name is absolute, or has a backslash or a drive in it");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse("its name has an empty, `.` or `..` part");
    }
    if path.split('/').count() > DEEPEST || path.split('/').any(|part| part.len() > LONGEST_PART) {
        return refuse("its name has more than 64 parts, or one of more than 255 bytes");
    }
    Ok((path.to_owned(), is_folder))
}

/// Refuses two entries for one file, and anything below what is not a folder. What is the same file where the case of
/// letters, or dots and spaces at the end of a part, mean nothing, is the same file here: the package would be another one
/// there.
pub(super) fn refuse_clashes(entries: &[Entry]) -> Result<()> {
    let mut kinds: HashMap<String, bool> = HashMap::with_capacity(entries.len());
    for entry in entries {
        if kinds.insert(folded(&entry.path), entry.kind == EntryKind::Directory).is_some() {
            return Err(refused_entry(
                &entry.path,
                "there is another entry with this name, or one that differs only in case",
            ));
        }
    }
    for entry in entries {
        let path = folded(&entry.path);
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        if above.into_iter().any(|above| kinds.get(above) == Some(&false)) {
            return Err(refused_entry(&entry.path, "it is below something that is not a folder"));
        }
    }
    Ok(())
}

fn folded(path: &str) -> String {
    let mut folded = String::with_capacity(path.len());
    for (at, part) in path.split('/').enumerate() {
        if at > 0 {
            folded.push('/');
        }
        folded.extend(part.trim_end_matches(['.', ' ']).chars().flat_map(char::to_lowercase));
    }
    folded
}

/// Whether the link at `path` leads to somewhere below `folder`. It may go up only at its beginning: after a part that is
/// itself a link, `..` is not what it looks like.
pub(super) fn stays_inside(folder: &str, path: &str, target: &str) -> bool {
    let Some(inside) = below(folder, path) else { return false };
    let parts: Vec<&str> = target.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let up = parts.iter().take_while(|part| **part == "..").count();
    !target.starts_with('/')
        && !target.is_empty()
        && !target.contains(|c: char| c.is_control() || c == '\\' || c == ':')
        && !parts[up..].contains(&"..")
        && up <= inside.matches('/').count()
}

/// The path from `folder`, which may be empty, to `path`, if it is below that.
pub(super) fn below<'a>(folder: &str, path: &'a str) -> Option<&'a str> {
    if folder.is_empty() { Some(path) } else { path.strip_prefix(folder)?.strip_prefix('/') }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_every_program_takes_for_the_same() {
        for (name, expected) in [
            ("composer.json", ("composer.json", false)),
            ("src/", ("src", true)),
            ("a b/é-ü.php", ("a b/é-ü.php", false)),
            ("a/..b/c..", ("a/..b/c..", false)),
        ] {
            assert_eq!(read(name.as_bytes()).unwrap(), (expected.0.to_owned(), expected.1), "{name}");
        }
        let deep = "a/".repeat(65) + "b";
        let long = "a".repeat(256);
        for name in [
            "",
            "/",
            "//",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a/..",
            "..",
            ".",
            "./a",
            "a//b",
            "a/./b",
            "a\\b",
            "..\\x",
            "C:x",
            "c:/x",
            "a\0b",
            "a\nb",
            "a\u{7f}",
            "a\u{85}b",
            &deep,
            &long,
        ] {
            assert!(read(name.as_bytes()).is_err(), "{name:?}");
        }
        assert!(read(b"caf\xe9.php").is_err());
    }

    #[test]
    fn links_stay_in_their_folder() {
        for (folder, path, target) in [
            ("", "a", "b"),
            ("", "a", "b/c"),
            ("", "x/a", "../b"),
            ("", "x/y/a", "../../b/c"),
            ("", "x/a", "./../b"),
            ("lib", "lib/x/a", "../b"),
        ] {
            assert!(stays_inside(folder, path, target), "{path} -> {target}");
        }
        for (folder, path, target) in [
            ("", "a", "../b"),
            ("", "a", ".."),
            ("", "a", "/etc/passwd"),
            ("", "a", ""),
            ("", "x/a", "../../b"),
            ("", "x/a", "y/../../../b"),
            ("", "x/y/a", "z/../b"),
            ("", "a", "..\\..\\b"),
            ("", "a", "C:b"),
            ("lib", "lib/a", "../b"),
            ("lib", "other/a", "b"),
            ("lib", "library/a", "b"),
        ] {
            assert!(!stays_inside(folder, path, target), "{path} -> {target}");
        }
    }
}
