//! From versions to the documents that a client reads: `packages.json`, `p2/…json`, list and search.
//! Pure: what goes in decides every byte that comes out.

use std::cmp::Ordering;

use larder_core::{Error, Result, Time};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Map, Value, json};

use crate::{
    entry::{self, Entry},
    version,
};

/// What becomes of a field that its author, or another registry, wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Field<T> {
    /// It stays as it is.
    #[default]
    Kept,
    /// It is told to nobody.
    Hidden,
    /// It is this.
    Set(T),
}

/// What a document tells of a version beyond what its author wrote.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Where its bytes are.
    pub dist: Field<Dist>,
    /// For clients that prefer a clone: the Git URL, and the commit.
    pub source: Field<(String, String)>,
    /// When it was released.
    pub time: Field<Time>,
    /// That nobody should use it any more: `true`, or what to use instead.
    pub abandoned: Field<Value>,
}

/// Where the bytes of a version are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dist {
    /// `zip`, `tar`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The whole address.
    pub url: String,
    /// What they are made from; a client compares it with its lock file.
    pub reference: Option<String>,
    /// SHA-1 in hex; empty while it is not known.
    pub shasum: String,
}

/// The path of a dist below the public URL. It equals what a client makes of [`mirror_url`] for the same version, so that
/// both are one URL to it, and one entry of its cache.
pub fn dist_path(package: &str, version: &str, key: &str, kind: &str) -> String {
    format!("/dist/{package}/{}/{key}.{kind}", version_in_path(version))
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

/// Where clients tell what they installed.
pub fn notify_url(public_url: &str) -> String {
    format!("{public_url}/downloads")
}

/// Which of two versions (in normal form) a document lists first.
pub fn newest_first(a: &str, b: &str) -> Ordering {
    version::compare(b, a).then_with(|| a.cmp(b))
}

/// A version as a client is told it.
pub fn told(mut entry: Entry, told: &Told) -> Result<Entry> {
    // Where some other server would like to hear of installs: it has no business to.
    entry.remove("notification-url");
    let source = match &told.source {
        Field::Set((url, reference)) => Field::Set(json!({"type": "git", "url": url, "reference": reference})),
        Field::Hidden => Field::Hidden,
        Field::Kept => Field::Kept,
    };
    put(&mut entry, "source", &source)?;
    put(&mut entry, "dist", &told.dist)?;
    if let Field::Set(time) = told.time {
        entry.set("time", &time.rfc3339())?;
    }
    put(&mut entry, "abandoned", &told.abandoned)?;
    Ok(entry)
}

fn put<T: Serialize>(entry: &mut Entry, name: &str, field: &Field<T>) -> Result<()> {
    match field {
        Field::Kept => {}
        Field::Hidden => entry.remove(name),
        Field::Set(value) => entry.set(name, value)?,
    }
    Ok(())
}

/// `p2/vendor/name.json`: minified as `composer/metadata-minifier` expands it, with `extras` beside the versions
/// (`security-advisories`, `filter`, `warnings`).
pub fn package_document(package: &str, entries: &[Entry], extras: Map<String, Value>) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Package<'a> {
        packages: Versions<'a>,
        minified: &'static str,
        #[serde(flatten)]
        extras: Map<String, Value>,
    }
    let packages = Versions(package, entry::minified(entries)?);
    let document = Package { packages, minified: "composer/2.0", extras };
    serde_json::to_vec(&document).map_err(|error| Error::internal("writing a document", error))
}

/// One package with its versions.
struct Versions<'a>(&'a str, Vec<Entry>);

impl Serialize for Versions<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.0, &self.1)?;
        map.end()
    }
}

/// What the root document tells a view.
#[derive(Clone, Debug, Default)]
pub struct Root {
    /// Packages with every version of theirs: a client asks for none of them.
    pub inline: Vec<(String, Vec<Entry>)>,
    /// What there is; `None` if any name may be here: then a client asks for each that it needs.
    pub available: Option<Available>,
    /// What else is offered: `security-advisories`, `filter`.
    pub extras: Map<String, Value>,
}

/// Every name that there is; a client asks for no other one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Available {
    /// Names.
    pub names: Vec<String>,
    /// Patterns in which `*` stands for anything.
    pub patterns: Vec<String>,
}

/// `packages.json`.
pub fn root_document(public_url: &str, root: Root) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Document {
        packages: Entry,
        #[serde(flatten)]
        rest: Map<String, Value>,
    }
    let Value::Object(mut rest) = json!({
        // Relative, with a slash: resolved against scheme and host by every version of the client.
        "metadata-url": "/p2/%package%.json",
        // Absolute: clients before 2.7 resolve neither of these.
        "list": format!("{public_url}/list.json"),
        "search": format!("{public_url}/search.json?q=%query%&type=%type%"),
        "notify-batch": notify_url(public_url),
        // For other registries that follow this one; clients do not read it.
        "metadata-changes-url": format!("{public_url}/changes.json"),
        "mirrors": [{"dist-url": mirror_url(public_url), "preferred": true}],
    }) else {
        return Err(Error::internal("writing a document", "it is no object"));
    };
    if let Some(available) = root.available {
        if !available.names.is_empty() || available.patterns.is_empty() {
            rest.insert("available-packages".to_owned(), available.names.into());
        }
        if !available.patterns.is_empty() {
            rest.insert("available-package-patterns".to_owned(), available.patterns.into());
        }
    }
    rest.extend(root.extras);
    let mut packages = Entry::default();
    let mut numbers = 1_u64..;
    for (name, entries) in root.inline {
        let mut versions = Entry::default();
        for mut entry in entries {
            // Without it a client takes all versions of a package for one (`ComposerRepository::whatProvides`).
            entry.set("uid", &numbers.next())?;
            versions.set(&entry.text("version").unwrap_or_default(), &entry)?;
        }
        packages.set(&name, &versions)?;
    }
    serde_json::to_vec(&Document { packages, rest }).map_err(|error| Error::internal("writing a document", error))
}
