//! From a manifest to a release: what is kept, what is left out, and why a ref is none.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use bytes::Bytes;
use larder_composer::ingest::take_in;
use larder_core::{
    Time,
    format::{Release, Skipped},
    tree::{RefKind, Snapshot},
};
use serde_json::Value;

fn read(kind: RefKind, name: &str, manifest: impl Into<Bytes>) -> Result<Release, Skipped> {
    take_in(&Snapshot {
        kind,
        name,
        default_branch: name == "main",
        commit: "0123456789012345678901234567890123456789",
        committed: Time::from_seconds(1_790_000_000),
        folder: "",
        manifests: &[("composer.json".to_owned(), manifest.into())],
    })
}

fn tag(manifest: &str) -> Result<Release, Skipped> {
    read(RefKind::Tag, "v1.2.0", manifest.to_owned())
}

fn metadata(release: &Release) -> Value {
    serde_json::from_str(&release.metadata).unwrap()
}

#[test]
fn a_tag_is_a_release() {
    let release =
        tag(r#"{"name":"Acme/Lib","description":"x","require":{"PHP":">=8.1","acme/a":"^1.0 || @dev"}}"#).unwrap();
    assert_eq!((release.package.as_str(), release.version.as_str()), ("acme/lib", "1.2.0.0"));
    assert_eq!((release.display.as_str(), release.stable, &release.pointer), ("v1.2.0", true, &None));
    assert_eq!(metadata(&release)["require"], serde_json::json!({"php": ">=8.1", "acme/a": "^1.0 || @dev"}));
}

#[test]
fn branches_move() {
    let manifest = r#"{"name":"acme/lib","extra":{"branch-alias":{"dev-main":"2.x-dev"}}}"#;
    let main = read(RefKind::Branch, "main", manifest).unwrap();
    assert_eq!((main.version.as_str(), main.stable, main.describes), ("dev-main", false, true));
    assert_eq!(main.pointer.as_deref(), Some("dev-main"));
    assert_eq!(metadata(&main)["default-branch"], true);
    assert_eq!(metadata(&main)["extra"]["branch-alias"]["dev-main"], "2.x-dev");
    let line = read(RefKind::Branch, "1.x", manifest).unwrap();
    assert_eq!(line.version, "1.9999999.9999999.9999999-dev");
    let feature = read(RefKind::Branch, "feature/x", manifest).unwrap();
    assert_eq!(feature.version, "dev-feature/x");
}

#[test]
fn what_means_nothing_to_others_stays_out() {
    let release = tag(
        r#"{"name":"acme/lib","config":{"http-basic":{"x":{"password":"hunter2"}}},"scripts":{"post-install-cmd":"x"},
        "repositories":[{"url":"https://user:hunter2@x"}],"dist":{"url":"https://evil"},"source":{"url":"https://evil"},
        "transport-options":{"ssl":{}},"keywords":["a"]}"#,
    )
    .unwrap();
    let names: Vec<String> = metadata(&release).as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["name", "keywords", "version", "version_normalized"]);
    assert_eq!(release.warnings.len(), 1, "{:?}", release.warnings);
}

#[test]
fn a_field_that_no_client_reads_is_left_out_with_a_warning() {
    let release = tag(r#"{"name":"acme/lib","license":{"MIT":1},"autoload":[],"keywords":"one"}"#).unwrap();
    assert!(metadata(&release).get("license").is_none() && metadata(&release).get("keywords").is_none());
    assert_eq!(release.warnings.len(), 2);
}

/// Each of them ends a client with a `TypeError`, or a warning that it takes for one.
#[test]
fn nothing_that_would_end_a_client_gets_through() {
    for field in [
        r#""keywords":[["a"]]"#,
        r#""keywords":[null]"#,
        r#""suggest":{"acme/a":["x"]}"#,
        r#""archive":{"exclude":"tests"}"#,
        r#""archive":{"name":{}}"#,
    ] {
        let release = tag(&format!(r#"{{"name":"acme/lib",{field}}}"#)).unwrap();
        assert_eq!(metadata(&release).as_object().unwrap().len(), 3, "{field}");
        assert_eq!(release.warnings.len(), 1, "{field}");
    }
    for aliases in [r#"{"dev-main":["1.x-dev"]}"#, r#""1.x-dev""#, r#"["1.x-dev"]"#] {
        let manifest = format!(r#"{{"name":"acme/lib","extra":{{"class":"A","branch-alias":{aliases}}}}}"#);
        let release = read(RefKind::Branch, "main", manifest).unwrap();
        assert_eq!(metadata(&release)["extra"], serde_json::json!({"class": "A"}), "{aliases}");
        assert_eq!(release.warnings.len(), 1, "{aliases}");
    }
    let fine = tag(r#"{"name":"acme/lib","keywords":["a",1],"suggest":[],"archive":{"exclude":["/t"]}}"#).unwrap();
    assert!(fine.warnings.is_empty(), "{:?}", fine.warnings);
}

#[test]
fn why_a_ref_is_no_release() {
    let deep = format!(r#"{{"name":"acme/lib","extra":{}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    for (manifest, reason) in [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        (r#"{"description":"x"}"#, "no \"name\""),
        (r#"{"name":"acme"}"#, "acme"),
        (r#"{"name":"../etc/passwd"}"#, ".."),
        (r#"{"name":"acme/lib","version":"3.0.0"}"#, "3.0.0"),
        (r#"{"name":"acme/lib","require":{"acme/a":"~~1"}}"#, "acme/a"),
        (r#"{"name":"acme/lib","require":["acme/a"]}"#, "require"),
        (r#"{"name":"acme/lib","conflict":{"acme/a":1}}"#, "not a text"),
        (r#"{"name":"acme/lib","bin":["../../bin/sh"]}"#, "bin"),
        (deep.as_str(), "recursion"),
    ] {
        let skipped = tag(manifest).unwrap_err();
        assert!(skipped.0.contains(reason), "{}: {}", &manifest[..manifest.len().min(60)], skipped.0);
    }
    let invalid = read(RefKind::Tag, "v1.2.0", b"{\"name\":\"acme/\xff\"}".to_vec()).unwrap_err();
    assert!(invalid.0.contains("not valid JSON"), "{}", invalid.0);
    assert!(read(RefKind::Tag, "nightly", r#"{"name":"acme/lib"}"#).is_err());
}
