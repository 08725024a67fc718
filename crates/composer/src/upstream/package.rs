//! What an upstream says of one package, in any of the shapes that exist, made into the one that is kept:
//! `{"packages":{"v/p":[…]},"minified":"composer/2.0"}`, newest version first, fields untouched.
//!
//! What this is not: a judge of versions. Whether a client would understand them is asked when they are taken in.

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::{HashMap, HashSet},
    fmt,
};

use larder_core::Result;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{error::Category, value::RawValue};

use crate::{
    entry::{Entry, UNSET, minified},
    version::{Stability, Version},
};

/// The most versions of one package, and fields of one version.
const MOST_VERSIONS: usize = 50_000;
const MOST_FIELDS: usize = 500;

/// The most fields of all versions of one package, once what is left out because it stands before is written out.
const MOST_FIELDS_TOGETHER: usize = 2_000_000;

/// The most bytes of these.
const MOST_BYTES_TOGETHER: usize = 256 * 1024 * 1024;

/// How much is told of what came, in characters.
const MOST_TOLD: usize = 200;

/// Why what came is not kept, as what follows "it".
#[derive(Debug)]
pub(super) struct Wrong(pub(super) String);

impl From<serde_json::Error> for Wrong {
    fn from(error: serde_json::Error) -> Self {
        // It may quote what came, however long that is.
        let why: String = error.to_string().chars().take(MOST_TOLD).flat_map(char::escape_debug).collect();
        match error.classify() {
            Category::Eof => Self("ends in the middle".into()),
            Category::Data => Self(format!("has another shape than expected ({why})")),
            Category::Syntax | Category::Io => Self(format!("is not JSON ({why})")),
        }
    }
}

impl From<larder_core::Error> for Wrong {
    fn from(error: larder_core::Error) -> Self {
        Self(format!("cannot be read: {error}"))
    }
}

/// The pairs of an object, or the members of a list without names (PHP writes an empty object as `[]`). Values stay
/// text.
pub(super) type Pairs<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

/// The document of one package.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    packages: &'a RawValue,
    minified: Option<IgnoredAny>,
    #[serde(borrow, rename = "security-advisories")]
    advisories: Option<&'a RawValue>,
    #[serde(borrow)]
    filter: Option<&'a RawValue>,
}

/// Reads a file that is about one package, from an upstream whose files hold tagged versions or branches. `None` if it
/// holds nothing of that name.
pub(super) fn from_file(bytes: &[u8], name: &str) -> Result<Option<Vec<u8>>, Wrong> {
    let file: File<'_> = serde_json::from_slice(bytes)?;
    let Some(versions) = versions_of(file.packages, name)? else { return Ok(None) };
    let minified = if file.minified.is_some() {
        listed(&versions, None)?
    } else {
        let mut versions = listed(&versions, Some(name))?;
        sort(&mut versions);
        minified(&versions)?
    };
    Ok(Some(written(name, &minified, file.advisories, file.filter)?))
}

/// Reads a file that holds all versions of a package, and perhaps of others: its tagged versions and its branches.
pub(super) fn from_mixed(bytes: &[u8], name: &str) -> Result<Halves, Wrong> {
    let file: File<'_> = serde_json::from_slice(bytes)?;
    match versions_of(file.packages, name)? {
        Some(versions) => Halves::new(name, &versions),
        None => Ok(Halves::default()),
    }
}

/// The documents of a package whose versions came all together; `None` where there are none.
#[derive(Debug, Default)]
pub(super) struct Halves {
    pub(super) tagged: Option<Vec<u8>>,
    pub(super) branches: Option<Vec<u8>>,
}

impl Halves {
    /// Of all versions of a package, in any order.
    pub(super) fn new(name: &str, versions: &Pairs<'_>) -> Result<Self, Wrong> {
        let mut versions = listed(versions, Some(name))?;
        let mut seen = HashSet::new();
        versions.retain(|version| version.text("version").is_some_and(|text| seen.insert(text)));
        sort(&mut versions);
        let is_branch =
            |version: &Entry| version.text("version").is_some_and(|text| Stability::of(&text) == Stability::Dev);
        let (branches, tagged): (Vec<_>, Vec<_>) = versions.into_iter().partition(is_branch);
        let document = |versions: Vec<Entry>| {
            let some = !versions.is_empty();
            some.then(|| written(name, &minified(&versions)?, None, None)).transpose()
        };
        Ok(Self { tagged: document(tagged)?, branches: document(branches)? })
    }
}

/// The versions of one package of many.
fn versions_of<'a>(packages: &'a RawValue, name: &str) -> Result<Option<Pairs<'a>>, Wrong> {
    /// Keeps the one that is wanted, by its name as it is, or else in capitals.
    struct One<'n>(&'n str);
    impl<'de> Visitor<'de> for One<'_> {
        type Value = Option<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("packages by their names")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut exact, mut alike) = (None, None);
            while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                let value = map.next_value::<&'de RawValue>()?;
                if key == self.0 {
                    exact = Some(value);
                } else if key.eq_ignore_ascii_case(self.0) {
                    alike = Some(value);
                }
            }
            Ok(exact.or(alike))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            match list.next_element::<IgnoredAny>()? {
                None => Ok(None),
                Some(_) => Err(A::Error::custom("packages without names")),
            }
        }
    }
    let found = serde_json::Deserializer::from_str(packages.get()).deserialize_any(One(name))?;
    Ok(found.map(|versions| pairs(versions, MOST_VERSIONS, "versions")).transpose()?)
}

/// Reads an object or a list of at most `most` members.
pub(super) fn pairs<'a>(raw: &'a RawValue, most: usize, what: &'static str) -> serde_json::Result<Pairs<'a>> {
    struct Members(usize, &'static str);
    impl<'de> Visitor<'de> for Members {
        type Value = Pairs<'de>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}: an object or a list", self.1)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                if pairs.len() == self.0 {
                    return Err(A::Error::custom(format!("more than {} {}", self.0, self.1)));
                }
                pairs.push(pair);
            }
            Ok(pairs)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(value) = list.next_element()? {
                if pairs.len() == self.0 {
                    return Err(A::Error::custom(format!("more than {} {}", self.0, self.1)));
                }
                pairs.push((Cow::Borrowed(""), value));
            }
            Ok(pairs)
        }
    }
    serde_json::Deserializer::from_str(raw.get()).deserialize_any(Members(most, what))
}

/// Reads versions. Those that stand for themselves get the `name` and `version` that they stand under, if they leave
/// them out; those that are minified leave out what stands before them.
fn listed(versions: &Pairs<'_>, alone: Option<&str>) -> Result<Vec<Entry>, Wrong> {
    if versions.len() > MOST_VERSIONS {
        return Err(Wrong(format!("has more than {MOST_VERSIONS} versions")));
    }
    let mut read: Vec<Entry> = Vec::with_capacity(versions.len());
    // By field, how many bytes it adds to this version and to those after it.
    let mut carried: HashMap<String, usize> = HashMap::new();
    let (mut size, mut fields_together, mut bytes_together) = (0, 0, 0);
    for (key, version) in versions {
        if count_of_fields(version)? > MOST_FIELDS {
            return Err(too_many());
        }
        let mut entry = Entry::parse(version.get())?;
        if let Some(name) = alone {
            carried.clear();
            size = 0;
            if entry.get("name").is_none() {
                entry.set("name", &name)?;
            }
            if entry.get("version").is_none() && !key.is_empty() {
                entry.set("version", &key)?;
            }
        }
        for (field, value) in entry.fields() {
            if alone.is_none() && value.json() == UNSET {
                size -= carried.remove(field).unwrap_or_default();
                continue;
            }
            let adds = field.len() + value.json().len();
            size += adds;
            match carried.get_mut(field) {
                Some(before) => size -= std::mem::replace(before, adds),
                None => drop(carried.insert(field.to_owned(), adds)),
            }
        }
        fields_together += carried.len();
        bytes_together += size;
        if fields_together > MOST_FIELDS_TOGETHER {
            return Err(too_many());
        }
        if bytes_together > MOST_BYTES_TOGETHER {
            return Err(Wrong(format!("is more than {MOST_BYTES_TOGETHER} bytes, once it is expanded")));
        }
        read.push(entry);
    }
    Ok(read)
}

fn too_many() -> Wrong {
    Wrong("has more fields than any package needs".into())
}

/// How many fields an object has, which is found out before it is taken apart.
fn count_of_fields(raw: &RawValue) -> Result<usize, Wrong> {
    struct Count;
    impl<'de> Visitor<'de> for Count {
        type Value = usize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a version: an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
            let mut count = 0;
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                count += 1;
            }
            Ok(count)
        }
    }
    Ok(serde_json::Deserializer::from_str(raw.get()).deserialize_map(Count)?)
}

/// Newest first; those that are no versions last.
fn sort(versions: &mut Vec<Entry>) {
    let mut keyed: Vec<_> = std::mem::take(versions)
        .into_iter()
        .map(|entry| (entry.text("version").and_then(|text| Version::parse(&text).ok()), entry))
        .collect();
    keyed.sort_by(|(a, _), (b, _)| match (a, b) {
        (Some(a), Some(b)) => b.compare(a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    });
    versions.extend(keyed.into_iter().map(|(_, entry)| entry));
}

fn written(
    name: &str,
    minified: &[Entry],
    advisories: Option<&RawValue>,
    filter: Option<&RawValue>,
) -> Result<Vec<u8>, Wrong> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"packages\":{");
    serde_json::to_writer(&mut out, name)?;
    out.push(b':');
    serde_json::to_writer(&mut out, minified)?;
    out.extend_from_slice(b"},\"minified\":\"composer/2.0\"");
    for (field, value) in [("security-advisories", advisories), ("filter", filter)] {
        if let Some(value) = value {
            out.extend_from_slice(format!(",\"{field}\":{}", value.get()).as_bytes());
        }
    }
    out.push(b'}');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(document: Option<Vec<u8>>) -> String {
        String::from_utf8(document.expect("there are versions")).unwrap()
    }

    #[test]
    fn what_is_minified_stays_as_it_is() {
        let body = r#"{"minified":"composer/2.0","packages":{"a/b":[ {"name":"a/b","version":"2.0","x":1.10},{"version":"1.0","x":"__unset"} ]},
            "security-advisories":[{"advisoryId":"A"}],"filter":{"malware":[]},"other":1}"#;
        assert_eq!(
            text(from_file(body.as_bytes(), "a/b").unwrap()),
            r#"{"packages":{"a/b":[{"name":"a/b","version":"2.0","x":1.10},{"version":"1.0","x":"__unset"}]},"minified":"composer/2.0","security-advisories":[{"advisoryId":"A"}],"filter":{"malware":[]}}"#
        );
    }

    #[test]
    fn lists_and_objects_of_versions_become_one_list() {
        let list = r#"{"packages":{"A/b":[{"name":"a/b","version":"1.0"},{"name":"a/b","version":"1.10"},{"name":"a/b","version":"odd one"}]}}"#;
        let expected = r#"{"packages":{"a/b":[{"name":"a/b","version":"1.10"},{"version":"1.0"},{"version":"odd one"}]},"minified":"composer/2.0"}"#;
        assert_eq!(text(from_file(list.as_bytes(), "a/b").unwrap()), expected);
        let object = r#"{"packages":{"c/d":{},"a/b":{"odd one":{},"1.0":{},"1.10":{}}}}"#;
        let read = text(from_file(object.as_bytes(), "a/b").unwrap());
        assert_eq!(
            read,
            r#"{"packages":{"a/b":[{"name":"a/b","version":"1.10"},{"version":"1.0"},{"version":"odd one"}]},"minified":"composer/2.0"}"#
        );
    }

    #[test]
    fn what_is_not_there_is_not_there() {
        for body in [r#"{"packages":[]}"#, r#"{"packages":{}}"#, r#"{"packages":{"a/c":[]}}"#] {
            assert!(from_file(body.as_bytes(), "a/b").unwrap().is_none(), "{body}");
        }
        let halves = from_mixed(br#"{"packages":{"a/b":{}}}"#, "a/b").unwrap();
        assert!(halves.tagged.is_none() && halves.branches.is_none());
    }

    #[test]
    fn tags_and_branches_part() {
        let body = r#"{"packages":{"a/b":{"dev-main":{"name":"a/b","version":"dev-main"},"1.0":{"name":"a/b","version":"1.0"},
            "2.x-dev":{"name":"a/b","version":"2.x-dev"},"1.1-RC1":{"name":"a/b","version":"1.1-RC1"},"x":{"name":"a/b","version":"1.0"}}}}"#;
        let halves = from_mixed(body.as_bytes(), "a/b").unwrap();
        assert!(text(halves.tagged).contains(r#"[{"name":"a/b","version":"1.1-RC1"},{"version":"1.0"}]"#));
        assert!(text(halves.branches).contains(r#"[{"name":"a/b","version":"2.x-dev"},{"version":"dev-main"}]"#));
    }

    #[test]
    fn other_shapes_are_refused() {
        let wrong = |body: &str| from_file(body.as_bytes(), "a/b").unwrap_err().0;
        assert!(wrong(r#"{"packages":{"a/b":[{"name":"#).contains("ends in the middle"));
        assert!(wrong("<html>").contains("not JSON"));
        for body in [
            "[]",
            "{}",
            r#"{"packages":1}"#,
            r#"{"packages":[{"name":"a/b"}]}"#,
            r#"{"packages":{"a/b":1}}"#,
            r#"{"packages":{"a/b":["1.0"]}}"#,
            r#"{"packages":{"a/b":[null]}}"#,
            &format!(r#"{{"packages":"{}"}}"#, "x\\u0007".repeat(10_000)),
        ] {
            assert!(wrong(body).len() < 1_000 && !wrong(body).contains(char::is_control));
            assert!(wrong(body).contains("shape"), "{body}: {}", wrong(body));
        }
    }

    #[test]
    fn what_would_fill_the_memory_is_refused() {
        let fields: Vec<String> = (0..400).map(|n| format!("\"f{n}\":1")).collect();
        let first = format!("{{{}}}", fields.join(","));
        let many = format!(r#"{{"minified":"composer/2.0","packages":{{"a/b":[{first}{}]}}}}"#, ",{}".repeat(6_000));
        assert!(from_file(many.as_bytes(), "a/b").unwrap_err().0.contains("more fields"));
        let long = "x".repeat(1024 * 1024);
        let large = |versions: String| format!(r#"{{"minified":"composer/2.0","packages":{{"a/b":[{versions}]}}}}"#);
        let heavy = large(format!(r#"{{"x":"{long}"}}{}"#, ",{}".repeat(300)));
        assert!(from_file(heavy.as_bytes(), "a/b").unwrap_err().0.contains("once it is expanded"));
        let light = large(format!(r#"{{"x":"{long}"}},{{"x":"__unset"}}{}"#, ",{}".repeat(300)));
        assert!(from_file(light.as_bytes(), "a/b").is_ok());
        let versions = format!(r#"{{"packages":{{"a/b":[{{}}{}]}}}}"#, ",{}".repeat(MOST_VERSIONS));
        assert!(from_file(versions.as_bytes(), "a/b").unwrap_err().0.contains("more than 50000 versions"));
    }
}
