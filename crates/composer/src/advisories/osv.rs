//! Reads OSV (<https://ossf.github.io/osv-schema/>, 1.7): events along the line of versions become a constraint.

use std::fmt::Write as _;

use larder_core::Time;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Origin,
    formats::{Read, Told, is_id, line},
};
use crate::{version::Version, versions::Versions};

/// What OSV calls the packages of this room.
const ECOSYSTEM: &str = "Packagist";

#[derive(Deserialize)]
struct Document {
    id: String,
    withdrawn: Option<Value>,
    #[serde(default)]
    aliases: Vec<String>,
    published: Option<String>,
    modified: Option<String>,
    summary: Option<String>,
    details: Option<String>,
    #[serde(default)]
    affected: Vec<Affected>,
    #[serde(default)]
    references: Vec<Reference>,
    database_specific: Option<Value>,
}

#[derive(Deserialize)]
struct Affected {
    package: Option<Package>,
    #[serde(default)]
    ranges: Vec<Range>,
    #[serde(default)]
    versions: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    ecosystem: String,
    name: String,
}

#[derive(Deserialize)]
struct Range {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    events: Vec<Event>,
}

/// Exactly one of them is there.
#[derive(Deserialize)]
struct Event {
    introduced: Option<String>,
    fixed: Option<String>,
    last_affected: Option<String>,
}

#[derive(Deserialize)]
struct Reference {
    #[serde(rename = "type")]
    kind: String,
    url: String,
}

/// Reads one document.
pub(super) fn read(document: &Value, read: &mut Read) {
    let id = document["id"].as_str().unwrap_or("a document without id");
    match Document::deserialize(document) {
        Ok(document) if document.withdrawn.is_some() => read.withdrawn.push(document.id),
        Ok(document) => take(&document, read),
        Err(error) => read.problem(id, format!("it is left out: {error}")),
    }
}

fn take(document: &Document, read: &mut Read) {
    let ours = document.affected.iter().filter_map(|affected| Some((affected.package.as_ref()?, affected)));
    let ours: Vec<_> = ours.filter(|(package, _)| is_ours(&package.ecosystem)).collect();
    if ours.is_empty() {
        read.others += 1;
        return;
    }
    // A package may stand there several times, once per branch.
    let mut names: Vec<String> = ours.iter().map(|(package, _)| package.name.to_ascii_lowercase()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let of_it = ours.iter().filter(|(package, _)| package.name.eq_ignore_ascii_case(&name));
        let what = format!("{} of {name}", document.id);
        match constraint(of_it.map(|(_, affected)| *affected)) {
            Ok(affected) => told(document, name, affected).checked(&what, read),
            Err(why) => read.problem(&what, format!("it is left out: {why}")),
        }
    }
}

/// Also of other registries of the same ecosystem, whose address then follows behind a colon.
fn is_ours(ecosystem: &str) -> bool {
    ecosystem.split(':').next() == Some(ECOSYSTEM)
}

fn told(document: &Document, package: String, affected: Versions) -> Told {
    let is_cve = |name: &&String| name.starts_with("CVE-");
    let names = || std::iter::once(&document.id).chain(&document.aliases);
    let reference = |kind: &str| document.references.iter().find(|reference| reference.kind == kind);
    let link = ["ADVISORY", "WEB", "REPORT", "FIX"].into_iter().find_map(reference);
    let severity = document.database_specific.as_ref().and_then(|more| more["severity"].as_str());
    let time = document.published.as_deref().or(document.modified.as_deref());
    Told {
        id: document.id.clone(),
        package,
        affected,
        title: line(document.summary.as_deref().or(document.details.as_deref()).unwrap_or_default()),
        cve: names().find(is_cve).cloned(),
        link: link.map(|reference| reference.url.clone()),
        severity: severity.and_then(|severity| severity.parse().ok()),
        sources: names().filter(|name| is_id(name) && !is_cve(name)).map(|name| origin(name)).collect(),
        reported: time.and_then(|text| Time::parse(text).ok()),
    }
}

fn origin(name: &str) -> Origin {
    let by = if name.starts_with("GHSA-") { "GitHub" } else { name.split('-').next().unwrap_or("OSV") };
    Origin { name: by.to_owned(), remote_id: name.to_owned() }
}

/// All versions that any of the ranges or lists says.
fn constraint<'a>(affected: impl Iterator<Item = &'a Affected>) -> Result<Versions, String> {
    let (mut ranges, mut listed) = (Vec::new(), Vec::new());
    for affected in affected {
        for range in affected.ranges.iter().filter(|range| matches!(range.kind.as_str(), "ECOSYSTEM" | "SEMVER")) {
            intervals(range, &mut ranges)?;
        }
        listed.extend(affected.versions.iter().filter_map(|text| Version::parse(text).ok()));
    }
    if ranges.iter().any(|range| range == "*") {
        return Ok(Versions::all());
    }
    ranges.dedup();
    let within: Option<Versions> = if ranges.is_empty() { None } else { Some(parse(&ranges.join(" || "))?) };
    // Most lists only spell out what the ranges say.
    listed.retain(|version| within.as_ref().is_none_or(|within| !within.have(version)));
    listed.sort();
    listed.dedup();
    ranges.extend(listed.iter().map(|version| version.pretty().to_owned()));
    if ranges.is_empty() {
        return Err("it says of no version that it is affected".to_owned());
    }
    parse(&ranges.join(" || "))
}

fn parse(text: &str) -> Result<Versions, String> {
    text.parse().map_err(|error: larder_core::Error| error.message().to_owned())
}

/// Where something stands in the line of versions; what ends at a version comes before what begins there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Fixed,
    Introduced,
    LastAffected,
}

/// The events of a range, in the order of their versions, as constraints between each beginning and end.
fn intervals(range: &Range, found: &mut Vec<String>) -> Result<(), String> {
    let mut events = Vec::with_capacity(range.events.len());
    for event in &range.events {
        let marks = [
            (&event.introduced, Mark::Introduced),
            (&event.fixed, Mark::Fixed),
            (&event.last_affected, Mark::LastAffected),
        ];
        for (text, mark) in marks {
            let Some(text) = text else { continue };
            // Before every version; written like none, so that there is no bound below it.
            let version = (text != "0").then(|| Version::parse(text)).transpose().map_err(|error| error.to_string())?;
            events.push((version, mark));
        }
    }
    events.sort();
    let mut since: Option<Option<Version>> = None;
    for (version, mark) in events {
        match (mark, since.take()) {
            (Mark::Introduced, None) => since = Some(version),
            (Mark::Introduced, open) => since = open,
            // Fixed before it was ever introduced: nothing was affected.
            (_, None) => {}
            (Mark::Fixed, Some(from)) => found.push(interval(from.as_ref(), Some(("<", version.as_ref())))),
            (Mark::LastAffected, Some(from)) => found.push(interval(from.as_ref(), Some(("<=", version.as_ref())))),
        }
    }
    if let Some(from) = since {
        found.push(interval(from.as_ref(), None));
    }
    Ok(())
}

fn interval(from: Option<&Version>, until: Option<(&str, Option<&Version>)>) -> String {
    let mut text = from.map(|from| format!(">={}", bound(from))).unwrap_or_default();
    if let Some((operator, Some(until))) = until {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a text cannot fail.
        let _ = write!(text, "{comma}{operator}{}", bound(until));
    }
    if text.is_empty() { "*".to_owned() } else { text }
}

/// A version as a bound is written: `v1.2` is `1.2`.
fn bound(version: &Version) -> &str {
    version.pretty().trim_start_matches(['v', 'V'])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::advisories::Severity;

    fn of(affected: &Value) -> Result<String, String> {
        let affected: Vec<Affected> = serde_json::from_value(affected.clone()).unwrap();
        constraint(affected.iter()).map(|versions| versions.to_string())
    }

    fn range(events: &Value) -> Value {
        json!([{ "ranges": [{ "type": "ECOSYSTEM", "events": events }] }])
    }

    #[test]
    fn events_become_constraints() {
        let cases = [
            (json!([{"introduced": "0"}]), "*"),
            (json!([{"introduced": "0"}, {"fixed": "1.2.3"}]), "<1.2.3"),
            (json!([{"introduced": "1.0.0"}, {"fixed": "1.2.3"}]), ">=1.0.0,<1.2.3"),
            (json!([{"introduced": "1.0.0"}, {"last_affected": "1.2.3"}]), ">=1.0.0,<=1.2.3"),
            (json!([{"introduced": "v1.0"}]), ">=1.0"),
            (
                json!([{"introduced": "2.0"}, {"fixed": "2.1.4"}, {"introduced": "0"}, {"fixed": "1.9.10"}]),
                "<1.9.10 || >=2.0,<2.1.4",
            ),
            // By number, not by text; a beginning within a range changes nothing; an end without beginning neither.
            (json!([{"fixed": "1.10"}, {"introduced": "1.9"}]), ">=1.9,<1.10"),
            (json!([{"introduced": "1.0"}, {"introduced": "1.5"}, {"fixed": "2.0"}]), ">=1.0,<2.0"),
            (json!([{"fixed": "0.9"}, {"introduced": "1.0"}, {"fixed": "2.0"}, {"fixed": "3.0"}]), ">=1.0,<2.0"),
            (json!([{"introduced": "1.0"}, {"fixed": "2.0"}, {"introduced": "2.0"}]), ">=1.0,<2.0 || >=2.0"),
            (json!([{"introduced": "1.0.0-beta1"}, {"fixed": "1.0.0"}]), ">=1.0.0-beta1,<1.0.0"),
        ];
        for (events, expected) in cases {
            assert_eq!(of(&range(&events)).as_deref(), Ok(expected), "{events}");
        }
        assert!(of(&range(&json!([{"introduced": "banana"}]))).is_err());
        assert!(of(&range(&json!([{"fixed": "1.0"}]))).is_err());
        assert!(of(&json!([{ "ranges": [{ "type": "GIT", "events": [{"introduced": "0"}] }] }])).is_err());
    }

    #[test]
    fn lists_add_what_ranges_do_not_say() {
        let events = json!([{"introduced": "0"}, {"fixed": "1.2.3"}]);
        let ranges =
            json!([{ "type": "GIT", "events": [{"introduced": "0"}] }, { "type": "ECOSYSTEM", "events": events }]);
        let both = json!([{ "ranges": ranges, "versions": ["1.0", "v1.1", "2.0.0", "not a version"] }]);
        assert_eq!(of(&both).as_deref(), Ok("<1.2.3 || 2.0.0"));
        assert_eq!(of(&json!([{ "versions": ["1.1", "1.0", "1.1.0"] }])).as_deref(), Ok("1.0 || 1.1"));
        assert_eq!(of(&json!([{ "versions": [] }])).ok(), None);
        let branches = json!([{ "ranges": range(&json!([{"introduced": "3.0"}, {"fixed": "3.1"}]))[0]["ranges"] }, { "ranges": ranges }]);
        assert_eq!(of(&branches).as_deref(), Ok(">=3.0,<3.1 || <1.2.3"));
    }

    /// The shape of an export of GitHub's advisories.
    fn document() -> Value {
        json!({
            "schema_version": "1.4.0",
            "id": "GHSA-aaaa-bbbb-cccc",
            "modified": "2026-03-04T05:06:07Z",
            "published": "2026-01-02T03:04:05Z",
            "aliases": ["CVE-2026-1"],
            "summary": "Acme lib lets everybody in",
            "details": "## Impact\nAll.",
            "severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}],
            "affected": [
                {"package": {"ecosystem": "Packagist", "name": "Acme/lib"},
                 "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.2.3"}]}]},
                {"package": {"ecosystem": "Packagist", "name": "acme/lib"},
                 "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "2.0.0"}, {"fixed": "2.0.1"}]}]},
                {"package": {"ecosystem": "Packagist:https://packages.example.org", "name": "acme/app"},
                 "versions": ["1.0.0"]},
                {"package": {"ecosystem": "Go", "name": "example.org/lib"}, "versions": ["1.0.0"]},
            ],
            "references": [
                {"type": "WEB", "url": "https://example.org/web"},
                {"type": "ADVISORY", "url": "https://example.org/advisory"},
            ],
            "database_specific": {"cwe_ids": ["CWE-287"], "severity": "MODERATE", "github_reviewed": true},
        })
    }

    fn read_one(document: &Value) -> Read {
        super::super::formats::read(document.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_document_of_several_packages() {
        let read = read_one(&document());
        assert!(read.problems.is_empty() && read.withdrawn.is_empty() && read.others == 0, "{read:?}");
        let about: Vec<_> = read.told.iter().map(|told| (told.package.as_str(), told.affected.as_str())).collect();
        assert_eq!(about, [("acme/app", "1.0.0"), ("acme/lib", "<1.2.3 || >=2.0.0,<2.0.1")]);
        let told = &read.told[1];
        assert_eq!((told.severity, told.cve.as_deref()), (Some(Severity::Medium), Some("CVE-2026-1")));
        assert_eq!(told.link.as_deref(), Some("https://example.org/advisory"));
        assert_eq!(told.title, "Acme lib lets everybody in");
        assert_eq!(told.reported, Some(Time::parse("2026-01-02T03:04:05Z").unwrap()));
        assert_eq!(told.sources, [origin("GHSA-aaaa-bbbb-cccc")]);
    }

    #[test]
    fn what_is_taken_back_and_what_is_not_ours() {
        let mut gone = document();
        gone["withdrawn"] = "2026-05-01T00:00:00Z".into();
        assert_eq!(read_one(&gone).withdrawn, ["GHSA-aaaa-bbbb-cccc"]);
        let mut other = document();
        other["affected"] = json!([{"package": {"ecosystem": "Go", "name": "x"}, "versions": ["1"]}]);
        assert_eq!(read_one(&other), Read { others: 1, ..Read::default() });
        let mut wrong = document();
        wrong["affected"][0]["ranges"][0]["events"][1]["fixed"] = "soon".into();
        let read = read_one(&wrong);
        assert_eq!(read.told.len(), 1);
        assert_eq!(read.problems[0].what, "GHSA-aaaa-bbbb-cccc of acme/lib");
        let all = read_one(&json!([document(), gone, {"id": 5}]));
        assert_eq!((all.told.len(), all.withdrawn.len(), all.problems.len()), (2, 1, 1));
    }
}
