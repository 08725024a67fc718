//! The documents that a client reads, whole: what changes here changes for every client.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use larder_composer::render::{self, Links, Listed, Names};
use larder_core::Time;
use serde_json::{Map, Value};

fn version(version: &str, reference: &str, more: &str, shasum: Option<&str>) -> Listed {
    Listed {
        version: version.to_owned(),
        reference: reference.repeat(40),
        released: Time::from_seconds(1_790_000_000),
        metadata: format!(
            r#"{{"name":"acme/lib","description":"A library","require":{{"php":">=8.1"}},"version":"{version}","version_normalized":"{version}"{more}}}"#
        ),
        shasum: shasum.map(str::to_owned),
    }
}

fn links(source_url: Option<&str>) -> Links<'_> {
    Links { public_url: "https://packages.example.org", source_url }
}

fn versions() -> Vec<Listed> {
    vec![
        version("1.0.0.0", "a", r#","license":["MIT"]"#, Some("da39a3ee5e6b4b0d3255bfef95601890afd80709")),
        version("1.10.0.0", "c", "", None),
        version("1.9.0.0-beta1", "b", r#","license":["MIT"],"extra":{}"#, None),
    ]
}

fn pretty(bytes: &[u8]) -> String {
    let value: Value = serde_json::from_slice(bytes).unwrap();
    serde_json::to_string_pretty(&value).unwrap()
}

#[test]
fn a_package() {
    let entries = render::entries(versions(), links(Some("https://git.example.org/acme/lib.git"))).unwrap();
    insta::assert_snapshot!(pretty(&render::package_document("acme/lib", entries)));
}

#[test]
fn everything_in_the_root() {
    let entries = render::entries(versions(), links(None)).unwrap();
    let names = Names::Inline(vec![("acme/lib".to_owned(), entries)]);
    insta::assert_snapshot!(pretty(&render::root_document("https://packages.example.org", names)));
}

#[test]
fn names_and_patterns_in_the_root() {
    let names = Names::List(vec!["acme/a".to_owned(), "acme/b".to_owned()]);
    let list: Value = serde_json::from_slice(&render::root_document("https://x", names)).unwrap();
    assert_eq!(list["available-packages"], serde_json::json!(["acme/a", "acme/b"]));
    assert_eq!(list["packages"], serde_json::json!({}));
    let names = Names::Patterns(vec!["acme/*".to_owned()]);
    let patterns: Value = serde_json::from_slice(&render::root_document("https://x", names)).unwrap();
    assert_eq!(patterns["available-package-patterns"], serde_json::json!(["acme/*"]));
    assert!(patterns.get("available-packages").is_none());
}

/// `MetadataMinifier::expand` of composer/metadata-minifier.
fn expand(minified: &[Value]) -> Vec<Map<String, Value>> {
    let mut current = Map::new();
    let step = |difference: &Value| {
        for (key, value) in difference.as_object().unwrap() {
            if value == "__unset" {
                current.remove(key);
            } else {
                current.insert(key.clone(), value.clone());
            }
        }
        current.clone()
    };
    minified.iter().map(step).collect()
}

#[test]
fn what_is_minified_expands_to_what_it_was() {
    let entries = render::entries(versions(), links(None)).unwrap();
    let document: Value = serde_json::from_slice(&render::package_document("acme/lib", entries.clone())).unwrap();
    assert_eq!(expand(document["packages"]["acme/lib"].as_array().unwrap()), entries);
}

#[test]
fn the_dist_and_the_mirror_are_one_url_to_a_client() {
    let mirror = render::mirror_url("https://x");
    let expanded = mirror
        .replace("%package%", "acme/lib")
        .replace("%version%", "1.0.0.0")
        .replace("%reference%", "abc")
        .replace("%type%", "zip");
    assert_eq!(expanded, format!("https://x{}", render::dist_path("acme/lib", "1.0.0.0", "abc")));
}

#[test]
fn no_version_breaks_the_address_of_its_dist() {
    assert_eq!(render::dist_path("acme/lib", "dev-feature/50%zz", "abc"), "/dist/acme/lib/dev-feature~50~zz/abc.zip");
}
