//! What the root file of an upstream (`packages.json`) says: where its packages are, and which it has. What `Composer\
//! Repository\ComposerRepository::loadRootServerFile` reads of it, in the same order of precedence.
//!
//! What this is not: where the answers of an upstream are kept (`whole`), or how it is asked (`ask`).

use std::collections::{BTreeMap, HashMap};

use larder_core::digest::{hex, unhex};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use url::Url;

use super::{
    Failure,
    address::{self, Mirror, Place},
    package::{Wrong, pairs},
};
use crate::{entry::Entry, names::check_package};

/// The most names that an upstream may tell, files that its root file may be spread over, and patterns.
pub(super) const MOST_NAMES: usize = 500_000;
pub(super) const MOST_FILES: usize = 1_000;
const MOST_PATTERNS: usize = 10_000;
const MOST_MIRRORS: usize = 8;

/// Where the packages of an upstream are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Layout {
    /// `metadata-url`: one file for the tagged versions of a package, and one for its branches.
    Files(String),
    /// `providers-lazy-url`: one file per package.
    Lazy(String),
    /// `providers-url`: one file per package, named by its hash, which listings tell.
    Hashed(String),
    /// In the root file and those that it includes.
    Whole,
}

/// A file that the root file refers to, and its hash as it is written there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) path: String,
    pub(super) hash: Option<String>,
}

/// What a root file says, but for the packages in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) layout: Layout,
    /// Its packages, if it tells all their names; or patterns of them.
    pub(super) available: Option<Vec<String>>,
    pub(super) patterns: Option<Vec<String>>,
    pub(super) mirrors: Vec<Mirror>,
    changes: Option<String>,
    advisories: Option<String>,
}

/// A root file as it came.
pub(super) struct File<'a> {
    pub(super) facts: Facts,
    /// The packages in it.
    pub(super) packages: Option<&'a RawValue>,
    /// Files with more of them.
    pub(super) includes: Vec<Part>,
    /// The hashes of packages' files, and listings with more of them.
    pub(super) hashes: Hashes,
    pub(super) listings: Vec<Part>,
}

/// By package, the SHA-256 of its file.
pub(super) type Hashes = HashMap<Box<str>, [u8; 32]>;

/// What an upstream says of itself.
#[derive(Debug)]
pub(super) struct Root {
    /// Where it tells what has changed, if it does.
    pub(super) changes: Option<Result<Url, Failure>>,
    /// Where it tells advisories, if it does.
    pub(super) advisories: Option<Result<Url, Failure>>,
    pub(super) layout: Layout,
    /// The packages whose versions came with it; sorted.
    inline: Vec<Box<str>>,
    available: Option<Vec<Box<str>>>,
    patterns: Option<Vec<String>>,
    hashes: Hashes,
    mirrors: Vec<Mirror>,
}

impl Root {
    /// `inline` are the packages whose versions came with the facts.
    pub(super) fn new(facts: Facts, place: &Place, inline: Vec<Box<str>>, hashes: Hashes) -> Self {
        // Somebody who names a strange address here loses what it is for, and nothing else.
        let resolved = |text: Option<String>| text.map(|text| place.resolve(&text));
        let names = |names: Vec<String>| sorted(names.iter().filter_map(|name| usable(name)).collect());
        Self {
            changes: resolved(facts.changes),
            advisories: resolved(facts.advisories),
            layout: facts.layout,
            inline: sorted(inline),
            available: facts.available.map(names),
            patterns: facts.patterns,
            hashes,
            mirrors: facts.mirrors,
        }
    }

    /// Whether it has a package: `Some(false)` is certain and needs no request, `None` means that it has to be asked.
    pub(super) fn offers(&self, name: &str) -> Option<bool> {
        if self.is_inline(name) {
            return Some(true);
        }
        match &self.layout {
            Layout::Whole => Some(false),
            Layout::Hashed(_) => Some(self.hashes.contains_key(name)),
            Layout::Lazy(_) => None,
            Layout::Files(_) if self.available.is_none() && self.patterns.is_none() => None,
            Layout::Files(_) => Some(
                self.available.as_ref().is_some_and(|names| contains(names, name))
                    || self.patterns.iter().flatten().any(|pattern| is_like(pattern, name)),
            ),
        }
    }

    /// Every name that it has, in small letters, sorted; `None` if it does not tell (or tells only patterns).
    pub(super) fn names(&self) -> Option<Vec<&str>> {
        let inline = self.inline.iter().map(Box::as_ref);
        let mut names: Vec<&str> = match &self.layout {
            Layout::Whole => inline.collect(),
            Layout::Hashed(_) => inline.chain(self.hashes.keys().map(Box::as_ref)).collect(),
            Layout::Files(_) if self.patterns.is_none() => {
                inline.chain(self.available.as_ref()?.iter().map(Box::as_ref)).collect()
            }
            Layout::Files(_) | Layout::Lazy(_) => return None,
        };
        names.sort_unstable();
        names.dedup();
        Some(names)
    }

    /// Where the dist of a version can be had, best first: preferred mirrors, its own address, other mirrors.
    /// Placeholders are filled in. Empty if the version has no dist.
    pub(super) fn dist_addresses(&self, version: &Entry) -> Vec<String> {
        address::of_dist(version, &self.mirrors)
    }

    /// Whether the versions of a package came with the root file.
    pub(super) fn is_inline(&self, name: &str) -> bool {
        contains(&self.inline, name)
    }

    /// The SHA-256 of a package's file, in hex.
    pub(super) fn hash(&self, name: &str) -> Option<String> {
        self.hashes.get(name).map(|hash| hex(hash))
    }
}

/// The name of a package in small letters, if it is one that anybody can ask for.
pub(super) fn usable(name: &str) -> Option<Box<str>> {
    let name = name.to_ascii_lowercase();
    check_package(&name).is_ok().then(|| name.into())
}

fn sorted(mut names: Vec<Box<str>>) -> Vec<Box<str>> {
    names.sort_unstable();
    names.dedup();
    names
}

fn contains(names: &[Box<str>], name: &str) -> bool {
    names.binary_search_by(|known| known.as_ref().cmp(name)).is_ok()
}

impl<'a> File<'a> {
    /// Reads a root file, or one that it includes: that has the same shape.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Wrong> {
        let written: Written<'a> = serde_json::from_slice(bytes)?;
        let is_root = [&written.metadata, &written.lazy, &written.hashed, &written.packages, &written.includes]
            .iter()
            .any(|field| field.is_some());
        if !is_root {
            return Err(Wrong("says nothing about packages".into()));
        }
        let text = |field: Option<&RawValue>| read::<String>(field).filter(|text| !text.is_empty());
        let files = text(written.metadata);
        let is_files = files.is_some();
        let layout = match (files, text(written.lazy), text(written.hashed)) {
            (Some(url), _, _) => Layout::Files(url),
            (_, Some(url), _) => Layout::Lazy(url),
            (_, _, Some(url)) => Layout::Hashed(url),
            _ => Layout::Whole,
        };
        let is_hashed = matches!(layout, Layout::Hashed(_));
        let includes = if layout == Layout::Whole { parts(written.includes)? } else { Vec::new() };
        let listings = if is_hashed { parts(written.listings.or(written.listings_alias))? } else { Vec::new() };
        let mut hashes = Hashes::new();
        if let Some(providers) = written.hashes.filter(|_| is_hashed) {
            add_hashes(&mut hashes, providers)?;
        }
        let (available, patterns) = if is_files { offered(&written) } else { (None, None) };
        let facts = Facts {
            layout,
            available,
            patterns,
            mirrors: read::<Vec<Mirror>>(written.mirrors).into_iter().flatten().take(MOST_MIRRORS).collect(),
            changes: text(written.changes),
            advisories: read::<Advisories>(written.advisories).and_then(|advisories| advisories.api_url),
        };
        Ok(Self { facts, packages: written.packages, includes, hashes, listings })
    }
}

/// Adds the hashes of a listing: `{"v/p":{"sha256":"…"}}`.
pub(super) fn add_hashes(hashes: &mut Hashes, listing: &RawValue) -> Result<(), Wrong> {
    for (name, entry) in pairs(listing, MOST_NAMES, "names")? {
        let hash = read::<Hash>(Some(entry)).and_then(|hash| hash.sha256);
        let hash = hash.and_then(|hash| unhex(&hash.to_ascii_lowercase())).and_then(|hash| hash.try_into().ok());
        let Some(hash) = hash else {
            return Err(Wrong(format!("tells no SHA-256 of the file of `{}`", name.escape_debug())));
        };
        hashes.extend(usable(&name).map(|name| (name, hash)));
        if hashes.len() > MOST_NAMES {
            return Err(Wrong(format!("tells more than {MOST_NAMES} names")));
        }
    }
    Ok(())
}

/// A listing of hashes that the root file refers to.
pub(super) fn read_listing(hashes: &mut Hashes, bytes: &[u8]) -> Result<(), Wrong> {
    /// What is in it.
    #[derive(Deserialize)]
    struct Listing<'a> {
        #[serde(borrow)]
        providers: &'a RawValue,
    }
    let listing: Listing<'_> = serde_json::from_slice(bytes)?;
    add_hashes(hashes, listing.providers)
}

/// The fields of a root file that matter.
#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow, rename = "metadata-url")]
    metadata: Option<&'a RawValue>,
    #[serde(borrow, rename = "providers-lazy-url")]
    lazy: Option<&'a RawValue>,
    #[serde(borrow, rename = "providers-url")]
    hashed: Option<&'a RawValue>,
    #[serde(borrow, rename = "providers")]
    hashes: Option<&'a RawValue>,
    #[serde(borrow, rename = "provider-includes")]
    listings: Option<&'a RawValue>,
    #[serde(borrow, rename = "providers-includes")]
    listings_alias: Option<&'a RawValue>,
    #[serde(borrow)]
    packages: Option<&'a RawValue>,
    #[serde(borrow)]
    includes: Option<&'a RawValue>,
    #[serde(borrow, rename = "available-packages")]
    available: Option<&'a RawValue>,
    #[serde(borrow, rename = "available-package-patterns")]
    patterns: Option<&'a RawValue>,
    #[serde(borrow, rename = "metadata-changes-url")]
    changes: Option<&'a RawValue>,
    #[serde(borrow, rename = "security-advisories")]
    advisories: Option<&'a RawValue>,
    #[serde(borrow)]
    mirrors: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Advisories {
    #[serde(rename = "api-url")]
    api_url: Option<String>,
}

#[derive(Deserialize)]
struct Hash {
    sha256: Option<String>,
    sha1: Option<String>,
}

/// A field that may be of any type, because PHP writes `[]` and `false` where it means nothing.
fn read<T: DeserializeOwned>(field: Option<&RawValue>) -> Option<T> {
    field.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

/// The names and patterns of what it has. One of them alone says too little if the other cannot be read, or is more
/// than can be kept.
fn offered(written: &Written<'_>) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let strings = |field: Option<&RawValue>, most| match field {
        None => Some(None),
        Some(field) => {
            let members = pairs(field, most, "names").ok()?;
            members.into_iter().map(|(_, text)| read(Some(text))).collect::<Option<Vec<String>>>().map(Some)
        }
    };
    match (strings(written.available, MOST_NAMES), strings(written.patterns, MOST_PATTERNS)) {
        (Some(available), Some(patterns)) => (available, patterns),
        _ => (None, None),
    }
}

fn parts(field: Option<&RawValue>) -> Result<Vec<Part>, Wrong> {
    let Some(field) = field else { return Ok(Vec::new()) };
    let files: BTreeMap<_, _> = pairs(field, MOST_FILES, "files")?.into_iter().collect();
    let part = |(path, hash): (std::borrow::Cow<'_, str>, &RawValue)| {
        let hash = read::<Hash>(Some(hash)).and_then(|hash| hash.sha256.or(hash.sha1)).filter(|hash| !hash.is_empty());
        Part { path: path.into_owned(), hash: hash.map(|hash| hash.to_ascii_lowercase()) }
    };
    Ok(files.into_iter().map(part).collect())
}

/// Whether a name is like a pattern, in which `*` is anything, slashes included (`BasePackage::packageNameToRegexp`).
fn is_like(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut star) = ((0, 0), None);
    while at.1 < name.len() {
        match pattern.get(at.0) {
            Some(b'*') => {
                star = Some(at);
                at.0 += 1;
            }
            Some(byte) if byte.eq_ignore_ascii_case(&name[at.1]) => at = (at.0 + 1, at.1 + 1),
            _ => match &mut star {
                Some(back) => {
                    back.1 += 1;
                    at = (back.0 + 1, back.1);
                }
                None => return false,
            },
        }
    }
    pattern[at.0..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn layout(root: &serde_json::Value) -> Layout {
        File::read(root.to_string().as_bytes()).unwrap().facts.layout
    }

    #[test]
    fn the_newest_protocol_of_a_root_counts() {
        let all = json!({"metadata-url": "a", "providers-lazy-url": "b", "providers-url": "c", "packages": {},
            "includes": {"x": {}}, "provider-includes": {"y": {}}});
        let mut root = all.clone();
        for (field, expected) in [
            ("metadata-url", Layout::Files("a".into())),
            ("providers-lazy-url", Layout::Lazy("b".into())),
            ("providers-url", Layout::Hashed("c".into())),
            ("", Layout::Whole),
        ] {
            assert_eq!(layout(&root), expected);
            root.as_object_mut().unwrap().remove(field);
        }
        let text = all.to_string();
        let file = File::read(text.as_bytes()).unwrap();
        assert!(file.includes.is_empty() && file.listings.is_empty(), "what is older is not fetched");
    }

    #[test]
    fn empty_things_of_other_types_are_nothing() {
        for nothing in [json!([]), json!(null), json!({})] {
            let root = json!({"packages": nothing, "includes": nothing, "metadata-url": "", "mirrors": nothing,
                "security-advisories": nothing, "metadata-changes-url": false, "available-packages": nothing,
                "providers-lazy-url": nothing, "list": 1});
            let text = root.to_string();
            let file = File::read(text.as_bytes()).unwrap();
            assert_eq!(file.facts.layout, Layout::Whole, "{nothing}");
            assert!(file.includes.is_empty());
        }
    }

    #[test]
    fn half_of_what_is_offered_is_nothing() {
        let read = |root: serde_json::Value| {
            let text = root.to_string();
            let facts = File::read(text.as_bytes()).unwrap().facts;
            let place = Place::new(&Url::parse("https://a.example.org/").unwrap(), false);
            let kept: Facts = serde_json::from_slice(&serde_json::to_vec(&facts).unwrap()).unwrap();
            assert_eq!(kept, facts);
            Root::new(facts, &place, Vec::new(), Hashes::new())
        };
        let root = |available, patterns| {
            read(
                json!({"metadata-url": "/%package%", "available-packages": available, "available-package-patterns": patterns}),
            )
        };
        assert_eq!(root(json!(["a/b"]), json!(null)).offers("c/d"), Some(false));
        assert_eq!(root(json!([]), json!(null)).offers("c/d"), Some(false));
        assert_eq!(root(json!(["a/b"]), json!(["c/*"])).offers("c/d"), Some(true));
        for unreadable in
            [root(json!(["a/b", 1]), json!(["e/*"])), root(json!(["a/b"]), json!("e/*")), root(json!(7), json!(null))]
        {
            assert_eq!((unreadable.offers("c/d"), unreadable.names()), (None, None));
        }
    }

    #[test]
    fn patterns_as_clients_read_them() {
        for (pattern, name, expected) in [
            ("a/*", "a/b", true),
            ("A/*", "a/b", true),
            ("a/*", "ab/c", false),
            ("*", "a/b", true),
            ("a*/x", "a/b/x", true),
            ("a/b", "a/b", true),
            ("a/b", "a/bc", false),
            ("*/*-bundle", "a/x-bundle-bundle", true),
            ("a.c/*", "abc/d", false),
            ("", "a/b", false),
        ] {
            assert_eq!(is_like(pattern, name), expected, "{pattern} {name}");
        }
        let slow = format!("{}b", "a*".repeat(100));
        assert!(!is_like(&slow, &"a".repeat(255)));
    }

    #[test]
    fn a_listing_tells_hashes() {
        let mut hashes = Hashes::new();
        let good = format!(r#"{{"providers":{{"A/b":{{"sha256":"{}"}},"php":{{"sha256":"{0}"}}}}}}"#, "AB".repeat(32));
        read_listing(&mut hashes, good.as_bytes()).unwrap();
        assert_eq!((hashes.len(), hashes.get("a/b")), (1, Some(&[0xab; 32])));
        for wrong in [r#"{"providers":{"a/b":{"sha256":"12"}}}"#, r#"{"providers":{"a/b":{}}}"#, "{}", "[]"] {
            assert!(read_listing(&mut hashes, wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
