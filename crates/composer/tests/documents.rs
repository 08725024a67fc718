//! The documents that a client reads, whole: what changes here changes for every client.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use larder_composer::{
    entry::{self, Entry},
    render::{self, Available, Dist, Field, Root, Told},
};
use larder_core::Time;
use serde_json::{Map, Value};

fn version(version: &str, reference: &str, more: &str, shasum: &str, source: Option<&str>) -> Entry {
    let reference = reference.repeat(40);
    let url = format!("https://packages.example.org{}", render::dist_path("acme/lib", version, &reference, "zip"));
    let dist = Dist { kind: "zip".into(), url, reference: Some(reference.clone()), shasum: shasum.into() };
    let told = Told {
        dist: Field::Set(dist),
        source: source.map_or(Field::Hidden, |url| Field::Set((url.to_owned(), reference))),
        time: Field::Set(Time::from_seconds(1_790_000_000)),
        abandoned: Field::Kept,
    };
    let entry = format!(
        r#"{{"name":"acme/lib","description":"A library","require":{{"php":">=8.1"}},"version":"{version}","version_normalized":"{version}"{more}}}"#
    );
    render::told(Entry::parse(&entry).unwrap(), &told).unwrap()
}

fn versions(source: Option<&str>) -> Vec<Entry> {
    let mut versions = vec![
        version("1.0.0.0", "a", r#","license":["MIT"]"#, "da39a3ee5e6b4b0d3255bfef95601890afd80709", source),
        version("1.10.0.0", "c", "", "", source),
        version("1.9.0.0-beta1", "b", r#","license":["MIT"],"extra":{}"#, "", source),
    ];
    versions.sort_by(|a, b| render::newest_first(&a.text("version").unwrap(), &b.text("version").unwrap()));
    versions
}

fn pretty(bytes: &[u8]) -> String {
    let value: Value = serde_json::from_slice(bytes).unwrap();
    serde_json::to_string_pretty(&value).unwrap()
}

fn document(root: Root) -> Value {
    serde_json::from_slice(&render::root_document("https://x", root).unwrap()).unwrap()
}

#[test]
fn a_package() {
    let entries = versions(Some("https://git.example.org/acme/lib.git"));
    insta::assert_snapshot!(pretty(&render::package_document("acme/lib", &entries, Map::new()).unwrap()));
}

#[test]
fn everything_in_the_root() {
    let available = Some(Available { names: vec!["acme/lib".to_owned()], patterns: Vec::new() });
    let inline = vec![("acme/lib".to_owned(), versions(None))];
    let root = Root { inline, available, extras: Map::new() };
    insta::assert_snapshot!(pretty(&render::root_document("https://packages.example.org", root).unwrap()));
}

#[test]
fn what_another_registry_says_is_kept_or_hidden() {
    let text = r#"{"name":"a/b","version":"1","notification-url":"https://up.example.org/downloads","source":{"type":"hg"},"dist":{"url":"x"},"x":1.0}"#;
    let entry = Entry::parse(text).unwrap();
    let kept = render::told(entry.clone(), &Told::default()).unwrap();
    assert_eq!(kept.to_json().unwrap(), text.replace(r#""notification-url":"https://up.example.org/downloads","#, ""));
    let told =
        Told { dist: Field::Hidden, source: Field::Hidden, abandoned: Field::Set("c/d".into()), ..Told::default() };
    let hidden = render::told(entry, &told).unwrap();
    assert_eq!(hidden.to_json().unwrap(), r#"{"name":"a/b","version":"1","x":1.0,"abandoned":"c/d"}"#);
}

#[test]
fn names_and_patterns_in_the_root() {
    let available = |names: &[&str], patterns: &[&str]| {
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        Root { available: Some(Available { names: owned(names), patterns: owned(patterns) }), ..Root::default() }
    };
    let list = document(available(&["acme/a", "acme/b"], &[]));
    assert_eq!(list["available-packages"], serde_json::json!(["acme/a", "acme/b"]));
    assert_eq!(list["packages"], serde_json::json!({}));
    let patterns = document(available(&[], &["acme/*"]));
    assert_eq!(patterns["available-package-patterns"], serde_json::json!(["acme/*"]));
    assert!(patterns.get("available-packages").is_none());
    assert_eq!(document(available(&[], &[]))["available-packages"], serde_json::json!([]));
    let anything = document(Root::default());
    assert!(anything.get("available-packages").is_none() && anything.get("available-package-patterns").is_none());
}

#[test]
fn what_is_minified_expands_to_what_it_was() {
    let entries = versions(None);
    let bytes = render::package_document("acme/lib", &entries, Map::new()).unwrap();
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    let minified: Vec<Entry> = serde_json::from_value(document["packages"]["acme/lib"].clone()).unwrap();
    let plain = |entry: &Entry| serde_json::from_str::<Map<String, Value>>(&entry.to_json().unwrap()).unwrap();
    let expanded: Vec<_> = entry::expanded(minified).iter().map(plain).collect();
    assert_eq!(expanded, entries.iter().map(plain).collect::<Vec<_>>());
}

#[test]
fn the_dist_and_the_mirror_are_one_url_to_a_client() {
    let mirror = render::mirror_url("https://x");
    let expanded = mirror
        .replace("%package%", "acme/lib")
        .replace("%version%", "1.0.0.0")
        .replace("%reference%", "abc")
        .replace("%type%", "zip");
    assert_eq!(expanded, format!("https://x{}", render::dist_path("acme/lib", "1.0.0.0", "abc", "zip")));
}

#[test]
fn no_version_breaks_the_address_of_its_dist() {
    assert_eq!(
        render::dist_path("acme/lib", "dev-feature/50%zz", "abc", "zip"),
        "/dist/acme/lib/dev-feature~50~zz/abc.zip"
    );
}
