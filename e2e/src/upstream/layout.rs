//! The files in which a registry upstream tells what it has: every layout that clients understand, from the one file of a
//! static generator to one small document per package.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use super::{Catalogue, Release, catalogue::hex};

/// How clients find the versions of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `metadata-url`: one minified document per package, and one more for its branches.
    Metadata,
    /// The same, but every other package stands in the root ("partial packages"), and has no document.
    Partial,
    /// `providers-lazy-url`: one document per package, which no list names.
    Lazy,
    /// `providers-url`: one document per package, named after its hash, which files that the root includes tell.
    Providers,
    /// Files with everything, which the root includes with their checksums.
    Includes,
    /// Everything in the root.
    Inline,
}

/// How a registry tells what it has.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a habit of registries, and they come in all combinations")]
pub struct Layout {
    /// See the type.
    pub protocol: Protocol,
    /// Whether the URLs in it name the host. Those of dists always do: clients want that.
    pub absolute: bool,
    /// Whether the root lists the names (`available-packages`), where that is possible.
    pub listed: bool,
    /// Whether it tells what changes (`metadata-changes-url`).
    pub changes: bool,
    /// Whether versions name the Git repository that they are made of.
    pub source: bool,
    /// Whether dists have a reference.
    pub references: bool,
    /// Whether dists have a checksum.
    pub shasums: bool,
    /// The folder of the host in which it is: empty, or `/customer`.
    pub folder: String,
    /// The folder below that in which its dists are.
    pub archives: String,
    /// Where its dists are, if that is another host: `http://HOST`.
    pub elsewhere: Option<String>,
    /// Which versions of which packages it lists as malware.
    pub malware: BTreeMap<String, String>,
    /// More of the root.
    pub root: Map<String, Value>,
}

impl Layout {
    /// The layout of new registries, unless something is changed.
    pub fn of(protocol: Protocol) -> Self {
        Self {
            protocol,
            absolute: false,
            listed: false,
            changes: false,
            source: true,
            references: true,
            shasums: true,
            folder: String::new(),
            archives: "dists".to_owned(),
            elsewhere: None,
            malware: BTreeMap::new(),
            root: Map::new(),
        }
    }

    /// The layout of a shop that sells extensions: hashes in names, no sources, dists without references.
    pub fn shop() -> Self {
        let archives = "archives".to_owned();
        Self { source: false, references: false, absolute: true, archives, ..Self::of(Protocol::Providers) }
    }

    /// One of each kind.
    pub fn each() -> Vec<(&'static str, Self)> {
        let of = Self::of;
        let below = |layout: Self| Self { folder: "/customer/acme".to_owned(), ..layout };
        vec![
            ("metadata-url", of(Protocol::Metadata)),
            ("metadata-url, listed", Self { listed: true, ..of(Protocol::Metadata) }),
            ("metadata-url, absolute, below a folder", below(Self { absolute: true, ..of(Protocol::Metadata) })),
            ("metadata-url, relative, below a folder", below(of(Protocol::Metadata))),
            ("metadata-url without checksums", Self { shasums: false, ..of(Protocol::Metadata) }),
            ("partial packages", of(Protocol::Partial)),
            ("providers-lazy-url", of(Protocol::Lazy)),
            ("providers-url", of(Protocol::Providers)),
            ("a shop", Self::shop()),
            ("a shop below a folder", below(Self::shop())),
            ("includes", of(Protocol::Includes)),
            ("includes below a folder", below(of(Protocol::Includes))),
            ("inline", of(Protocol::Inline)),
        ]
    }

    /// All files, by their paths. `base` is `http://HOST`.
    pub fn files(&self, catalogue: &Catalogue, base: &str) -> BTreeMap<String, Bytes> {
        let mut files = BTreeMap::new();
        for (name, releases) in &catalogue.packages {
            for release in releases {
                files.insert(self.dist_path(name, release), release.zip.clone());
            }
        }
        let root = self.documents(catalogue, base, &mut files);
        files.insert(format!("{}/packages.json", self.folder), bytes(&root));
        files
    }

    /// The path of a dist.
    pub fn dist_path(&self, name: &str, release: &Release) -> String {
        let own = name.replace('/', "-");
        format!("{}/{}/{name}/{own}-{}.zip", self.folder, self.archives, release.normalized())
    }

    /// The path of the document of a package, where it has one that is named after it.
    pub fn document_path(&self, name: &str) -> String {
        match self.protocol {
            Protocol::Lazy => format!("{}/lazy/{name}.json", self.folder),
            _ => format!("{}/p2/{name}.json", self.folder),
        }
    }

    /// Adds the documents to `files` and gives the root.
    fn documents(&self, catalogue: &Catalogue, base: &str, files: &mut BTreeMap<String, Bytes>) -> Value {
        let host = if self.absolute { base } else { "" };
        let url = |path: &str| format!("{host}{}{path}", self.folder);
        let mut root = self.root.clone();
        root.insert("packages".to_owned(), json!([]));
        root.insert("notify-batch".to_owned(), json!(url("/downloads/")));
        if self.changes {
            root.insert("metadata-changes-url".to_owned(), json!(url("/changes.json")));
        }
        match self.protocol {
            Protocol::Metadata | Protocol::Partial => {
                root.insert("metadata-url".to_owned(), json!(url("/p2/%package%.json")));
                if self.listed {
                    root.insert("available-packages".to_owned(), json!(catalogue.names()));
                }
                let is_partial = self.protocol == Protocol::Partial;
                let mut inline = Map::new();
                for (number, (name, releases)) in catalogue.packages.iter().enumerate() {
                    if is_partial && number.is_multiple_of(2) {
                        inline.insert(name.clone(), self.by_version(name, releases, base));
                    } else {
                        self.metadata(name, releases, base, files);
                    }
                }
                if is_partial {
                    root.insert("packages".to_owned(), Value::Object(inline));
                }
            }
            Protocol::Lazy => {
                root.insert("providers-lazy-url".to_owned(), json!(url("/lazy/%package%.json")));
                for (name, releases) in &catalogue.packages {
                    let document = json!({"packages": {name: self.by_version(name, releases, base)}});
                    files.insert(format!("{}/lazy/{name}.json", self.folder), bytes(&document));
                }
            }
            Protocol::Providers => {
                root.insert("providers-url".to_owned(), json!(url("/p/%package%$%hash%.json")));
                root.insert("provider-includes".to_owned(), self.providers(catalogue, base, files));
            }
            Protocol::Includes => {
                root.insert("includes".to_owned(), self.includes(catalogue, base, files));
            }
            Protocol::Inline => {
                root.insert("packages".to_owned(), self.all(catalogue.packages.iter(), base));
            }
        }
        Value::Object(root)
    }

    fn metadata(&self, name: &str, releases: &[Release], base: &str, files: &mut BTreeMap<String, Bytes>) {
        for (suffix, is_branch) in [("", false), ("~dev", true)] {
            let entries: Vec<_> = releases
                .iter()
                .filter(|release| release.is_branch() == is_branch)
                .map(|release| self.entry(name, release, base))
                .collect();
            if entries.is_empty() {
                continue;
            }
            let mut document = document(name, &entries);
            if let Some(constraint) = self.malware.get(name).filter(|_| !is_branch) {
                let harm = json!({"package": name, "constraint": constraint, "reason": "it mines coins"});
                document["filter"] = json!({"malware": [harm]});
            }
            files.insert(format!("{}/p2/{name}{suffix}.json", self.folder), bytes(&document));
        }
    }

    /// Two files that list the packages with the hashes of their documents.
    fn providers(&self, catalogue: &Catalogue, base: &str, files: &mut BTreeMap<String, Bytes>) -> Value {
        let mut lists = [("latest", Map::new()), ("archived", Map::new())];
        for (number, (name, releases)) in catalogue.packages.iter().enumerate() {
            let document = bytes(&json!({"packages": {name: self.by_version(name, releases, base)}}));
            let hash = hex(&Sha256::digest(&document));
            files.insert(format!("{}/p/{name}${hash}.json", self.folder), document);
            lists[number % 2].1.insert(name.clone(), json!({"sha256": hash}));
        }
        let mut includes = Map::new();
        for (list, providers) in lists {
            let document = bytes(&json!({"providers": providers}));
            let hash = hex(&Sha256::digest(&document));
            files.insert(format!("{}/p/provider-{list}${hash}.json", self.folder), document);
            includes.insert(format!("p/provider-{list}$%hash%.json"), json!({"sha256": hash}));
        }
        Value::Object(includes)
    }

    /// Two files with all packages between them.
    fn includes(&self, catalogue: &Catalogue, base: &str, files: &mut BTreeMap<String, Bytes>) -> Value {
        let mut includes = Map::new();
        for half in 0..2 {
            let own = catalogue.packages.iter().enumerate().filter(|(number, _)| number % 2 == half);
            let document = bytes(&json!({"packages": self.all(own.map(|(_, package)| package), base)}));
            let hash = hex(&Sha1::digest(&document));
            let path = format!("include/all${hash}.json");
            files.insert(format!("{}/{path}", self.folder), document);
            includes.insert(path, json!({"sha1": hash}));
        }
        Value::Object(includes)
    }

    fn all<'a>(&self, packages: impl Iterator<Item = (&'a String, &'a Vec<Release>)>, base: &str) -> Value {
        packages
            .map(|(name, releases)| (name.clone(), self.by_version(name, releases, base)))
            .collect::<Map<_, _>>()
            .into()
    }

    /// The versions of a package as an object, as all but the newest protocol have them.
    fn by_version(&self, name: &str, releases: &[Release], base: &str) -> Value {
        let entries = releases.iter().enumerate().map(|(number, release)| {
            let mut entry = self.entry(name, release, base);
            // A number that no other version of the registry has.
            let uid = name.bytes().fold(0, |sum: u64, byte| sum * 31 % 1_000_003 + u64::from(byte)) * 100;
            entry.insert("uid".to_owned(), json!(uid + number as u64));
            (release.version.clone(), Value::Object(entry))
        });
        entries.collect::<Map<_, _>>().into()
    }

    /// A version as a client reads it.
    pub fn entry(&self, name: &str, release: &Release, base: &str) -> Map<String, Value> {
        let mut entry = release.manifest.clone();
        entry.insert("version".to_owned(), json!(release.version));
        entry.insert("version_normalized".to_owned(), json!(release.normalized()));
        let host = self.elsewhere.as_deref().unwrap_or(base);
        let mut dist = json!({"type": "zip", "url": format!("{host}{}", self.dist_path(name, release)), "shasum": ""});
        if self.references {
            dist["reference"] = json!(release.reference);
        }
        if self.shasums {
            dist["shasum"] = json!(release.shasum());
        }
        entry.insert("dist".to_owned(), dist);
        if self.source {
            let url = format!("https://git.example.org/{name}.git");
            entry.insert("source".to_owned(), json!({"type": "git", "url": url, "reference": release.reference}));
        }
        entry
    }
}

/// A document of one package: each version holds what differs from the one before it.
pub fn document(name: &str, entries: &[Map<String, Value>]) -> Value {
    let mut before = Map::new();
    let mut minified = Vec::new();
    for entry in entries {
        let changed = entry.iter().filter(|(key, value)| before.get(*key) != Some(value));
        let mut own: Map<_, _> = changed.map(|(key, value)| (key.clone(), value.clone())).collect();
        let gone = before.keys().filter(|key| !entry.contains_key(*key));
        own.extend(gone.map(|key| (key.clone(), json!("__unset"))));
        minified.push(Value::Object(own));
        before.clone_from(entry);
    }
    json!({"packages": {name: minified}, "minified": "composer/2.0"})
}

fn bytes(document: &Value) -> Bytes {
    document.to_string().into()
}
