//! What an upstream says of a package, read and checked. Pure: nothing is fetched or kept here.
//!
//! A client stops at the first version that it cannot read, and then loads nothing of the whole document. So everything
//! that a client reads is read here first, and a version with something wrong is left out; the others pass through as
//! they came.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use larder_core::{Error, Result};
use serde_json::{Map, Value};

use crate::{
    constraint::Constraint,
    entry::{self, Entry, Raw},
    names,
    version::{self, Stability, Version},
};

/// An older name of the development version of a repository's first branch (`VersionParser::DEFAULT_BRANCH_ALIAS`).
const OLD_DEFAULT_BRANCH: &str = "9999999-dev";

/// How many levels of arrays and objects every parser of JSON accepts.
const MOST_LEVELS: usize = 100;

/// The fields whose values are constraints on other packages.
const LINKS: [&str; 5] = ["require", "require-dev", "conflict", "replace", "provide"];

/// What an upstream told of the tagged versions of a package, or of its branches.
#[derive(Clone, Debug)]
pub struct UpstreamVersions {
    /// Each version with all its fields, in the upstream's order. Each has a `name`, a `version` and a
    /// `version_normalized` that clients can read.
    pub entries: Vec<Entry>,
    /// Its `security-advisories`, as they came.
    pub advisories: Option<Raw>,
    /// Its `filter`, as it came.
    pub filter: Option<Raw>,
    /// The validator of the document that says all this.
    pub document: Arc<str>,
}

impl UpstreamVersions {
    /// How many bytes of memory it takes, about: neighbours share most of their values.
    pub(super) fn weight(&self, content: usize) -> u64 {
        let fields: usize = self.entries.iter().map(|entry| entry.fields().count()).sum();
        (content + fields * size_of::<(Arc<str>, Raw)>()) as u64
    }
}

/// A document that may be kept.
#[derive(Debug)]
pub(super) struct Checked {
    /// Its bytes: as they came, unless something had to be left out.
    pub(super) content: Vec<u8>,
    /// What lists and searches show of the package: a JSON object.
    pub(super) summary: String,
    /// Why versions were left out, for people.
    pub(super) left_out: Vec<String>,
}

/// The parts of a document.
struct Parts {
    /// Everything beside the versions.
    rest: Entry,
    versions: Vec<Entry>,
}

/// Reads what an upstream told of a package; `None` if that is no version at all. `Err` says, for people, why nothing of it can be kept.
pub(super) fn read_told(name: &str, content: &[u8]) -> Result<Option<Checked>, String> {
    let parts = split(name, content)?;
    let came = parts.versions.len();
    let mut checker = Checker::default();
    let mut left_out = Vec::new();
    let mut changed = false;
    let mut versions = Vec::with_capacity(came);
    for mut version in parts.versions {
        match checker.check(name, &mut version) {
            Ok(fixed) => {
                changed |= fixed;
                versions.push(version);
            }
            Err(why) => {
                let called = version.text("version").unwrap_or_else(|| "a version without a name".to_owned());
                left_out.push(format!("{}: {why}", called.chars().take(80).collect::<String>()));
            }
        }
    }
    if versions.is_empty() {
        return match left_out.first() {
            None => Ok(None),
            Some(first) => Err(format!("none of its {came} versions can be read by clients; the first is {first}")),
        };
    }
    let summary = summary(&versions);
    let content =
        if changed || !left_out.is_empty() { written(name, parts.rest, &versions)? } else { content.to_vec() };
    Ok(Some(Checked { content, summary, left_out }))
}

/// Reads a document that is kept.
pub(super) fn read_kept(name: &str, content: &[u8], document: &str) -> Result<UpstreamVersions> {
    let parts = split(name, content).map_err(|why| Error::internal("reading what an upstream said", why))?;
    let told = |field: &str| parts.rest.get(field).cloned();
    Ok(UpstreamVersions {
        advisories: told("security-advisories"),
        filter: told("filter"),
        entries: parts.versions,
        document: document.into(),
    })
}

/// Takes a document apart as the client makes it out of every layout.
fn split(name: &str, content: &[u8]) -> Result<Parts, String> {
    let text = std::str::from_utf8(content).map_err(|_| "it is no text".to_owned())?;
    let mut rest = Entry::parse(text).map_err(|_| "it is no JSON object".to_owned())?;
    let packages: Option<Entry> = rest.get("packages").and_then(Raw::read);
    let versions: Option<Vec<Entry>> = packages.as_ref().and_then(|packages| packages.get(name)?.read());
    let versions = entry::expanded(versions.ok_or("it has no list of versions of the package")?);
    rest.remove("packages");
    Ok(Parts { rest, versions })
}

fn written(name: &str, mut document: Entry, versions: &[Entry]) -> Result<Vec<u8>, String> {
    let failed = |error: Error| error.message().to_owned();
    let mut packages = Entry::default();
    packages.set(name, &entry::minified(versions).map_err(failed)?).map_err(failed)?;
    document.set("packages", &packages).map_err(failed)?;
    document.to_json().map(String::into_bytes).map_err(failed)
}

/// What `list` and `search` answer with, out of the newest version, a stable one if there is any.
fn summary(versions: &[Entry]) -> String {
    let normalized = |entry: &Entry| entry.text("version_normalized").unwrap_or_default();
    let newest = |a: &&Entry, b: &&Entry| -> Ordering {
        let (a, b) = (normalized(a), normalized(b));
        let stable = |version: &str| Stability::of(version) == Stability::Stable;
        stable(&a).cmp(&stable(&b)).then_with(|| version::compare(&a, &b))
    };
    let Some(newest) = versions.iter().max_by(newest) else { return "{}".to_owned() };
    let part = |field: &str| Some((field.to_owned(), newest.get(field)?.read::<Value>()?));
    Value::Object(["description", "type", "abandoned"].into_iter().filter_map(part).collect()).to_string()
}

/// Checks versions, and what neighbours have in common only once.
#[derive(Default)]
struct Checker {
    /// By check and field: what was right last.
    right: HashMap<(Check, String), Raw>,
}

/// What can be wrong with the value of a field.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Check {
    Json,
    Place,
    Links,
    Binaries,
    Aliases,
}

impl Checker {
    /// Whether something had to be written in another way. `Err` says why a client cannot read it.
    fn check(&mut self, name: &str, version: &mut Entry) -> Result<bool, String> {
        for (field, value) in version.fields() {
            self.once(Check::Json, field, Some(value), |value| check_json(field, value))?;
        }
        let own = version.text("name").ok_or("it has no \"name\"")?;
        if !own.eq_ignore_ascii_case(name) {
            return Err(format!("it calls itself `{}`", own.chars().take(80).collect::<String>()));
        }
        let display = version.text("version").ok_or("its \"version\" is no text")?;
        let parsed = Version::parse(&display).map_err(|error| error.to_string())?;
        for (field, parts) in [("dist", &["type", "url"][..]), ("source", &["type", "url", "reference"])] {
            self.once(Check::Place, field, version.get(field), |place| check_place(field, place, parts))?;
        }
        for field in LINKS {
            self.once(Check::Links, field, version.get(field), |links| check_links(field, links))?;
        }
        self.once(Check::Binaries, "bin", version.get("bin"), check_binaries)?;
        self.once(Check::Aliases, "extra", version.get("extra"), check_aliases)?;
        let normalized = version.text("version_normalized");
        let right = match normalized.as_deref() {
            Some(OLD_DEFAULT_BRANCH) | None => false,
            Some(told) => told == parsed.normalized(),
        };
        if !right {
            version.set("version_normalized", &parsed.normalized()).map_err(|error| error.message().to_owned())?;
        }
        Ok(!right)
    }

    /// Checks the value of a field, unless it is the one that was right last.
    fn once(
        &mut self,
        check: Check,
        field: &str,
        value: Option<&Raw>,
        judge: impl FnOnce(&Raw) -> Result<(), String>,
    ) -> Result<(), String> {
        let Some(value) = value else { return Ok(()) };
        let key = (check, field.to_owned());
        if self.right.get(&key) != Some(value) {
            judge(value)?;
            self.right.insert(key, value.clone());
        }
        Ok(())
    }
}

/// Whether PHP can decode a value: it gives up at 512 levels, and at half of a surrogate pair.
fn check_json(field: &str, value: &Raw) -> Result<(), String> {
    let text = value.json();
    let opens = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    let is_plain = opens < MOST_LEVELS && !text.contains("\\ud") && !text.contains("\\uD");
    // What this parser accepts has no more levels than that, and only whole pairs.
    if is_plain || value.read::<Value>().is_some() {
        return Ok(());
    }
    Err(format!("its \"{}\" cannot be decoded", field.chars().take(80).collect::<String>()))
}

/// Where a dist or a source is. `null` is nothing; everything else must have its parts (`ArrayLoader`).
fn check_place(field: &str, place: &Raw, parts: &[&str]) -> Result<(), String> {
    if place.json() == "null" {
        return Ok(());
    }
    let wrong = || format!("its \"{field}\" has no {}", parts.join(", "));
    let place = place.read::<Entry>().ok_or_else(wrong)?;
    let is_there = |part: &&str| place.get(part).is_some_and(|value| value.json() != "null");
    let texts = parts.iter().filter(|part| **part != "reference").all(|part| place.text(part).is_some());
    if texts && parts.iter().all(is_there) { Ok(()) } else { Err(wrong()) }
}

fn check_links(field: &str, links: &Raw) -> Result<(), String> {
    let Some(links) = links.read::<Map<String, Value>>() else {
        let empty = links.json() == "null" || links.read::<Vec<Value>>().is_some_and(|list| list.is_empty());
        return if empty { Ok(()) } else { Err(format!("its \"{field}\" is no object of names and constraints")) };
    };
    for (target, constraint) in &links {
        let shown = target.chars().take(80).collect::<String>();
        let text =
            constraint.as_str().ok_or_else(|| format!("in \"{field}\": the constraint on {shown} is no text"))?;
        if text != "self.version" {
            Constraint::parse(text).map_err(|error| format!("in \"{field}\": the constraint on {shown}: {error}"))?;
        }
    }
    Ok(())
}

/// Clients before 2.10.2 would link to programs outside the package.
fn check_binaries(binaries: &Raw) -> Result<(), String> {
    let Some(binaries) = binaries.read::<Value>() else { return Ok(()) };
    let binaries = match &binaries {
        Value::String(one) => vec![one.as_str()],
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    binaries
        .into_iter()
        .try_for_each(|path| names::check_bin(path).map(drop))
        .map_err(|error| format!("in \"bin\": {error}"))
}

fn check_aliases(extra: &Raw) -> Result<(), String> {
    let extra = extra.read::<Entry>();
    let Some(aliases) = extra.as_ref().and_then(|extra| extra.get("branch-alias")) else { return Ok(()) };
    let fits = match aliases.read::<Value>() {
        Some(Value::Object(aliases)) => aliases.values().all(Value::is_string),
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Null) => true,
        _ => false,
    };
    if fits { Ok(()) } else { Err("its \"branch-alias\" is no object of texts".to_owned()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NAME: &str = "acme/lib";

    fn version(version: &str, more: &Value) -> Value {
        let mut entry = json!({ "name": NAME, "version": version });
        entry["version_normalized"] =
            Version::parse(version).map_or(Value::Null, |version| version.normalized().into());
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        entry
    }

    fn read(document: &Value) -> Result<Option<Checked>, String> {
        read_told(NAME, document.to_string().as_bytes())
    }

    fn versions(content: &[u8]) -> Vec<String> {
        let parts = split(NAME, content).unwrap();
        parts.versions.iter().map(|version| version.text("version").unwrap()).collect()
    }

    #[test]
    fn what_is_right_stays_as_it_came() {
        let text = r#"{"minified":"composer/2.0","packages":{"acme/lib":[
            {"name":"acme/lib","version":"2.0.0","version_normalized":"2.0.0.0","extra":{"x":1.10},"description":"new",
             "dist":{"type":"zip","url":"https://h/a.zip","reference":"abc","shasum":""},"require":{"php":">=8"}},
            {"version":"1.0.0","version_normalized":"1.0.0.0","description":"old","dist":"__unset","require":"__unset"}
            ]},"security-advisories":[{"advisoryId":"X","affectedVersions":"<2"}],"filter":[]}"#;
        let checked = read_told(NAME, text.as_bytes()).unwrap().unwrap();
        assert_eq!(checked.content, text.as_bytes());
        assert_eq!((checked.summary.as_str(), checked.left_out), (r#"{"description":"new"}"#, Vec::new()));
        let parts = split(NAME, text.as_bytes()).unwrap();
        assert_eq!(parts.versions[1].get("extra").unwrap().json(), r#"{"x":1.10}"#);
        assert!(parts.versions[1].get("dist").is_none() && parts.rest.get("security-advisories").is_some());
    }

    #[test]
    fn what_clients_would_stumble_over_is_left_out_alone() {
        let surrogate: Value = json!("SURROGATE");
        let mut bad = vec![
            version("3.1.2-develop", &json!({})),
            version("1.0.1", &json!({ "require": { "a/b": "not a constraint at all" } })),
            version("1.0.2", &json!({ "require-dev": ["a/b"] })),
            version("1.0.3", &json!({ "conflict": { "a/b": 5 } })),
            version("1.0.4", &json!({ "dist": { "type": "zip" } })),
            version("1.0.5", &json!({ "source": { "type": "git", "url": "x" } })),
            version("1.0.6", &json!({ "bin": ["../../evil"] })),
            version("1.0.7", &json!({ "extra": { "branch-alias": "x" } })),
            version("1.0.8", &json!({ "name": "acme/other" })),
            version("1.0.9", &json!({ "description": surrogate })),
            version("1.0.10", &json!({ "extra": "DEEP" })),
        ];
        let count = bad.len();
        bad.insert(4, version("1.0.0", &json!({ "require": [], "dist": null, "unknown": { "field": 1 } })));
        let bad: Vec<Entry> = bad.iter().map(|one| Entry::parse(&one.to_string()).unwrap()).collect();
        let bad = entry::minified(&bad).unwrap();
        let text = json!({ "packages": { NAME: bad }, "filter": { "x": 1 } }).to_string();
        let deep = format!("{}{}", "[".repeat(600), "]".repeat(600));
        let text = text.replace("SURROGATE", "\\ud800").replace("\"DEEP\"", &deep);
        let checked = read_told(NAME, text.as_bytes()).unwrap().unwrap();
        assert_eq!(checked.left_out.len(), count, "{:?}", checked.left_out);
        assert_eq!(versions(&checked.content), ["1.0.0"]);
        let parts = split(NAME, &checked.content).unwrap();
        assert_eq!(parts.versions[0].get("unknown").unwrap().json(), r#"{"field":1}"#);
        assert!(parts.rest.get("filter").is_some());
        assert!(serde_json::from_slice::<Value>(&checked.content).is_ok());
    }

    #[test]
    fn a_normal_form_is_written_where_there_is_none_or_a_wrong_one() {
        let mut told = vec![version("dev-master", &json!({})), version("2.x-dev", &json!({}))];
        told[0]["version_normalized"] = "9999999-dev".into();
        told[1].as_object_mut().unwrap().remove("version_normalized");
        told.push(version("1.0", &json!({ "version_normalized": "9.0.0.0" })));
        let checked = read(&json!({ "packages": { NAME: told } })).unwrap().unwrap();
        let parts = split(NAME, &checked.content).unwrap();
        let normal: Vec<_> = parts.versions.iter().map(|one| one.text("version_normalized").unwrap()).collect();
        assert_eq!(normal, ["dev-master", "2.9999999.9999999.9999999-dev", "1.0.0.0"]);
    }

    #[test]
    fn what_cannot_be_kept_at_all() {
        assert!(read(&json!({ "packages": { NAME: [] } })).unwrap().is_none());
        let unreadable = json!({ "packages": { NAME: [version("x y", &json!({}))] } });
        for wrong in [json!([]), json!({}), json!({ "packages": 1 }), json!({ "packages": { NAME: 1 } }), unreadable] {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
        for wrong in [&b"<html>"[..], b"", b"{", b"\xff"] {
            assert!(read_told(NAME, wrong).is_err());
        }
    }

    #[test]
    fn the_newest_stable_version_describes_the_package() {
        let describe = |text: &str| json!({ "description": text, "abandoned": text == "stable" });
        let told = [
            version("2.0-beta1", &describe("beta")),
            version("1.0", &describe("old")),
            version("1.5", &describe("stable")),
        ];
        let checked = read(&json!({ "packages": { NAME: told } })).unwrap().unwrap();
        assert_eq!(checked.summary, r#"{"description":"stable","abandoned":true}"#);
    }
}
