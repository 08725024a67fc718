//! From versions to the documents that a client reads: `packages.json`, `p2/…json`, list and search.
//! Pure: what goes in decides every byte that comes out.

use std::cmp::Ordering;

use larder_core::{Error, Result, Time};
use serde_json::{Map, Value, json};

use crate::version;

/// A version as it is stored, with what the document adds to the format's own metadata.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Normal form.
    pub version: String,
    /// The commit in hex.
    pub reference: String,
    /// When it was committed.
    pub released: Time,
    /// What [`ingest`](crate::ingest) made: a JSON object.
    pub metadata: String,
    /// SHA-1 of its dist in hex, once that has been built.
    pub shasum: Option<String>,
}

/// Where the documents of one package point to.
#[derive(Clone, Copy, Debug)]
pub struct Links<'a> {
    /// The public URL of this server, without a slash at its end.
    pub public_url: &'a str,
    /// The Git URL for clients that prefer a clone; `None` keeps it to ourselves.
    pub source_url: Option<&'a str>,
}

/// The path of a dist below the public URL. It equals what a client makes of [`mirror_url`] for the same version, so that
/// both are one URL to it, and one entry of its cache.
pub fn dist_path(package: &str, version: &str, reference: &str) -> String {
    format!("/dist/{package}/{}/{reference}.zip", version_in_path(version))
}

/// A version as a segment of a path. `ComposerMirror::processUrl` replaces one with a slash by its MD5; ours are made
/// readable instead: a client asks the mirror only when this very URL failed. A percent sign would begin an escape.
pub fn version_in_path(version: &str) -> String {
    version.replace(['/', '%'], "~")
}

/// The `dist-url` of this server as a mirror.
pub fn mirror_url(public_url: &str) -> String {
    format!("{public_url}/dist/%package%/%version%/%reference%.%type%")
}

/// The versions as a client wants them, the newest first.
pub fn entries(mut versions: Vec<Listed>, links: Links<'_>) -> Result<Vec<Map<String, Value>>> {
    versions.sort_by(|a, b| newest_first(&a.version, &b.version));
    versions.iter().map(|version| entry(version, links)).collect()
}

fn newest_first(a: &str, b: &str) -> Ordering {
    version::compare(b, a).then_with(|| a.cmp(b))
}

fn entry(version: &Listed, links: Links<'_>) -> Result<Map<String, Value>> {
    let mut entry: Map<String, Value> = serde_json::from_str(&version.metadata)
        .map_err(|error| Error::internal("reading a version's metadata", error))?;
    let name = entry.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(url) = links.source_url {
        entry.insert("source".to_owned(), json!({"type": "git", "url": url, "reference": version.reference}));
    }
    let url = format!("{}{}", links.public_url, dist_path(&name, &version.version, &version.reference));
    let shasum = version.shasum.as_deref().unwrap_or_default();
    entry.insert(
        "dist".to_owned(),
        json!({"type": "zip", "url": url, "reference": version.reference, "shasum": shasum}),
    );
    entry.insert("time".to_owned(), version.released.rfc3339().into());
    Ok(entry)
}

/// `p2/vendor/name.json`: minified as `composer/metadata-minifier` expands it.
pub fn package_document(package: &str, entries: Vec<Map<String, Value>>) -> Vec<u8> {
    let document = json!({"packages": {package: minify(entries)}, "minified": "composer/2.0"});
    document.to_string().into_bytes()
}

/// Each entry keeps only what differs from the one before; `"__unset"` takes a key away.
fn minify(entries: Vec<Map<String, Value>>) -> Vec<Value> {
    let mut previous: Map<String, Value> = Map::new();
    let mut minified = Vec::with_capacity(entries.len());
    for entry in entries {
        let mut difference: Map<String, Value> = entry
            .iter()
            .filter(|(key, value)| previous.get(*key) != Some(value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        for key in previous.keys().filter(|key| !entry.contains_key(*key)) {
            difference.insert(key.clone(), "__unset".into());
        }
        minified.push(Value::Object(difference));
        previous = entry;
    }
    minified
}

/// Which names a view has, as the root document tells it.
#[derive(Clone, Debug)]
pub enum Names {
    /// Every name, and every version of every one of them: the client asks for nothing else.
    Inline(Vec<(String, Vec<Map<String, Value>>)>),
    /// Every name.
    List(Vec<String>),
    /// Patterns that cover every name, because there are too many to list.
    Patterns(Vec<String>),
}

/// `packages.json`.
pub fn root_document(public_url: &str, names: Names) -> Vec<u8> {
    let mut root = json!({
        "packages": {},
        // Relative, with a slash: resolved against scheme and host by every version of the client.
        "metadata-url": "/p2/%package%.json",
        // Absolute: clients before 2.7 resolve neither of these.
        "list": format!("{public_url}/list.json"),
        "search": format!("{public_url}/search.json?q=%query%&type=%type%"),
        "notify-batch": format!("{public_url}/downloads"),
        "mirrors": [{"dist-url": mirror_url(public_url), "preferred": true}],
    });
    match names {
        Names::Inline(packages) => {
            root["available-packages"] = packages.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().into();
            let mut numbers = 1_u64..;
            let inline = packages.into_iter().map(|(name, entries)| {
                let versions = entries.into_iter().map(|mut entry| {
                    // Without it a client takes all versions of a package for one (`ComposerRepository::whatProvides`).
                    entry.insert("uid".to_owned(), numbers.next().into());
                    let version = entry.get("version").and_then(Value::as_str).unwrap_or_default().to_owned();
                    (version, Value::Object(entry))
                });
                (name, Value::Object(versions.collect()))
            });
            root["packages"] = Value::Object(inline.collect());
        }
        Names::List(names) => root["available-packages"] = names.into(),
        Names::Patterns(patterns) => root["available-package-patterns"] = patterns.into(),
    }
    root.to_string().into_bytes()
}
