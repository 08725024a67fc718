//! Lock files of projects: reading one, saying of each of its entries whether it could be installed from here ([`check`]),
//! and pointing it at this server ([`rewrite`]).
//!
//! A lock file is somebody's text: read within limits, and changed only where it must be, byte for byte.

pub mod check;
pub mod rewrite;

use std::{fmt, ops::Range};

use larder_core::{Error, Kind, Result};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use url::Url;

use crate::entry::{Entry, Raw};

/// The largest lock file that is read, in bytes.
pub const LARGEST: u64 = 64 * 1024 * 1024;

/// The most packages that one may have.
pub const MOST: usize = 20_000;

/// A lock file.
#[derive(Clone, Debug)]
pub struct Lock {
    text: String,
    entries: Vec<Locked>,
}

/// A package as a lock file has it.
#[derive(Clone, Debug)]
pub struct Locked {
    /// Its name, in small letters.
    pub name: String,
    /// Its version as its author wrote it.
    pub version: String,
    /// Whether only development needs it.
    pub dev: bool,
    /// What its bytes are made from.
    pub reference: Option<String>,
    /// Where a client gets it without this server: the dist, else the repository.
    pub url: Option<String>,
    /// The kind of its dist: `zip`, `path`, …
    pub kind: Option<String>,
    /// The SHA-1 of its dist in hex, if the file has one.
    pub shasum: Option<String>,
    /// All of it.
    pub entry: Entry,
    /// Where it stands in the text.
    at: Range<usize>,
}

impl Lock {
    /// Reads a lock file.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        if bytes.len() as u64 > LARGEST {
            let text = format!("the lock file is larger than {} MiB, which is the most that is read", LARGEST >> 20);
            return Err(Error::new(Kind::TooLarge, text));
        }
        let text = String::from_utf8(bytes).map_err(|_| no_lock("it is not UTF-8"))?;
        let file: File = serde_json::from_str(&text).map_err(|error| no_lock(&error.to_string()))?;
        let of = |list: Option<Vec<&RawValue>>, dev| {
            list.unwrap_or_default().into_iter().map(|raw| Locked::read(&text, raw, dev)).collect::<Result<Vec<_>>>()
        };
        let too_many = file.packages.as_ref().map_or(0, Vec::len) + file.dev.as_ref().map_or(0, Vec::len) > MOST;
        if too_many {
            return Err(Error::new(
                Kind::TooLarge,
                format!("{MOST} packages are the most that one lock file may have"),
            ));
        }
        if file.packages.is_none() {
            return Err(no_lock("it has no `packages`"));
        }
        let mut entries = of(file.packages, false)?;
        entries.extend(of(file.dev, true)?);
        Ok(Self { text, entries })
    }

    /// Its packages, in their order.
    pub fn entries(&self) -> &[Locked] {
        &self.entries
    }
}

impl Locked {
    fn read(text: &str, raw: &RawValue, dev: bool) -> Result<Self> {
        let entry: Entry = serde_json::from_str(raw.get()).map_err(|error| no_lock(&error.to_string()))?;
        let name = entry.text("name").ok_or_else(|| no_lock("one of its packages has no name"))?.to_ascii_lowercase();
        let version = entry.text("version").ok_or_else(|| no_lock(&format!("`{name}` has no version in it")))?;
        let [dist, source] = ["dist", "source"].map(|field| entry.get(field).and_then(Raw::read::<Entry>));
        let of_either = |field: &str| {
            let text = |place: &Option<Entry>| place.as_ref()?.text(field).filter(|text| !text.is_empty());
            text(&dist).or_else(|| text(&source))
        };
        let of_dist = |field: &str| dist.as_ref()?.text(field).filter(|text| !text.is_empty());
        Ok(Self {
            reference: of_either("reference"),
            url: of_either("url"),
            kind: of_dist("type"),
            shasum: of_dist("shasum"),
            at: span(text, raw.get()),
            name,
            version,
            dev,
            entry,
        })
    }

    /// Whether it is a folder of the project's own machine.
    pub fn is_local(&self) -> bool {
        self.kind.as_deref() == Some("path")
    }

    /// Whether it has no files at all.
    pub fn is_empty(&self) -> bool {
        self.kind.is_none() && self.url.is_none() && self.entry.text("type").as_deref() == Some("metapackage")
    }

    /// The host that a client asks for it without this server; nothing else of the address, which may hold a secret.
    pub fn host(&self) -> Option<String> {
        let url = self.url.as_deref()?;
        if let Ok(parsed) = Url::parse(url)
            && let Some(host) = parsed.host_str()
        {
            return Some(parsed.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")));
        }
        // `git@host:path`, as Git writes addresses.
        let (place, _) = url.split_once(':')?;
        place.rsplit('@').next().filter(|host| !host.is_empty() && !host.contains('/')).map(str::to_owned)
    }

    /// Whether nobody should use it any more, as the file has it: `true`, or what to use instead.
    pub fn abandoned(&self) -> Option<Value> {
        abandoned(&self.entry)
    }
}

/// What an entry says of being abandoned, if it is.
pub(crate) fn abandoned(entry: &Entry) -> Option<Value> {
    entry.get("abandoned").and_then(Raw::read).filter(|value: &Value| match value {
        Value::Bool(is) => *is,
        Value::String(instead) => !instead.is_empty(),
        _ => false,
    })
}

fn no_lock(why: &str) -> Error {
    Error::invalid(format!("this is no lock file of Composer: {why}"))
}

/// The file, as far as it matters.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow, default)]
    packages: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default, rename = "packages-dev")]
    dev: Option<Vec<&'a RawValue>>,
}

/// Where a part of a text stands in it.
fn span(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - text.as_ptr().addr();
    start..start + part.len()
}

/// The fields of an object, in order, each value as the very part of the text that it is.
struct Fields<'a>(Vec<(String, &'a str)>);

impl<'a> Fields<'a> {
    /// `None` if it is no object.
    fn parse(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// Of fields with the same name, clients read the last.
    fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().rposition(|(field, _)| field == name)
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.position(name).map(|at| self.0[at].1)
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    fields.push((name, value.get()));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Lock> {
        Lock::parse(text.as_bytes().to_vec())
    }

    #[test]
    fn what_stands_in_a_lock_file() {
        let text = r#"{"content-hash": "x", "packages": [
            {"name": "Acme/Lib", "version": "v1.0.0", "source": {"type": "git", "url": "git@git.example.org:acme/lib.git",
                "reference": "abc"}, "dist": {"type": "zip", "url": "https://u:secret@files.example.org:8443/a.zip",
                "reference": "abc", "shasum": ""}},
            {"name": "acme/meta", "version": "1.0.0", "type": "metapackage"}
        ], "packages-dev": [
            {"name": "acme/here", "version": "dev-main", "dist": {"type": "path", "url": "../here", "reference": "0"},
                "abandoned": "acme/there"},
            {"name": "acme/source", "version": "dev-main", "source": {"type": "git", "url": "git@git.example.org:x.git",
                "reference": "def"}, "dist": null, "abandoned": false}
        ]}"#;
        let lock = parse(text).unwrap();
        let [lib, meta, here, source] = lock.entries() else { panic!("{lock:?}") };
        assert_eq!((lib.name.as_str(), lib.version.as_str(), lib.dev), ("acme/lib", "v1.0.0", false));
        assert_eq!((lib.reference.as_deref(), lib.shasum.as_deref()), (Some("abc"), None));
        assert_eq!(lib.host().as_deref(), Some("files.example.org:8443"));
        assert!(meta.is_empty() && !meta.is_local() && meta.host().is_none());
        assert!(here.is_local() && here.dev && here.host().is_none());
        assert_eq!((here.abandoned(), source.abandoned()), (Some(Value::from("acme/there")), None));
        assert_eq!((source.host().as_deref(), source.reference.as_deref()), (Some("git.example.org"), Some("def")));
        assert_eq!(&text[lib.at.clone()][..30], r#"{"name": "Acme/Lib", "version""#);
    }

    #[test]
    fn what_is_no_lock_file_is_refused() {
        for (text, why) in [
            ("", "EOF"),
            ("{}", "no `packages`"),
            (r#"{"require": {}}"#, "no `packages`"),
            (r#"{"packages": {}}"#, "map"),
            (r#"{"packages": [1]}"#, "version"),
            (r#"{"packages": [{"version": "1"}]}"#, "no name"),
            (r#"{"packages": [{"name": "a/b", "version": 1}]}"#, "`a/b` has no version"),
            (r#"{"packages": [], "packages": []}"#, "duplicate"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.kind() == Kind::Invalid && error.message().contains(why), "{text}: {error}");
        }
        assert!(Lock::parse(vec![b'"', 0xff, b'"']).is_err());
        let many = format!(r#"{{"packages": [{}1]}}"#, "1,".repeat(MOST));
        assert_eq!(parse(&many).unwrap_err().kind(), Kind::TooLarge);
        let deep = format!(
            r#"{{"packages": [{{"name": "a/b", "version": "1", "extra": {}1{}}}]}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        // Whether it is read or refused: it ends.
        drop(parse(&deep));
    }

    #[test]
    fn a_lock_file_without_packages_for_development_is_one() {
        assert!(parse(r#"{"packages": [], "packages-dev": null}"#).unwrap().entries().is_empty());
    }
}
