//! What a registry upstream has: packages that need each other, in several versions, with zips that install. The same
//! bytes in every run.

use std::{collections::BTreeMap, io::Write as _};

use bytes::Bytes;
use flate2::{Compression, write::DeflateEncoder};
use rawzip::{CompressionMethod, ZipArchiveWriter, time::UtcDateTime};
use serde_json::{Map, Value, json};
use sha1::{Digest as _, Sha1};

/// When everything was released: a long time ago, so that no minimum age holds anything back.
const RELEASED: &str = "2024-03-05T12:00:00+00:00";

/// One version of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// `v1.2.0`, or `dev-main`.
    pub version: String,
    /// The commit that it was made of.
    pub reference: String,
    /// Its dist.
    pub zip: Bytes,
    /// All that a client reads of it but version, dist and source.
    pub manifest: Map<String, Value>,
}

impl Release {
    /// A version of a library with one class, `CLASS::VERSION`, that needs other packages.
    ///
    /// # Panics
    /// If a manifest is no object.
    pub fn new(name: &str, version: &str, needs: &[(String, String)]) -> Self {
        let space = namespace(name);
        let mut require = Map::new();
        require.insert("php".to_owned(), json!(">=7.4"));
        require.extend(needs.iter().map(|(name, constraint)| (name.clone(), json!(constraint))));
        let manifest = json!({
            "name": name,
            "description": format!("{name}, as somebody else publishes it: ünïcode, \"quotes\", 'and' <tags>/"),
            "keywords": ["upstream", "fixture"],
            "homepage": format!("https://example.org/{name}"),
            "license": ["MIT"],
            "authors": [{"name": "Ada Lovelace", "email": "ada@example.org", "role": "Developer"}],
            "type": "library",
            "time": RELEASED,
            "require": require,
            "autoload": {"psr-4": {format!("{space}\\"): "src/"}},
            "support": {"issues": format!("https://example.org/{name}/issues")},
            "funding": [{"type": "custom", "url": "https://example.org/fund"}],
            "extra": {"branch-alias": {"dev-main": "1.x-dev"}},
        });
        let Value::Object(manifest) = manifest else { panic!("a manifest is an object") };
        let class =
            format!("<?php\nnamespace {space};\n\nfinal class Part\n{{\n    const VERSION = '{version}';\n}}\n");
        let files = [
            ("composer.json".to_owned(), Value::Object(manifest.clone()).to_string().into_bytes()),
            ("src/Part.php".to_owned(), class.into_bytes()),
            ("src/table.bin".to_owned(), crate::oci::Blob::noise(seed(name) ^ seed(version), 6_000).bytes.to_vec()),
        ];
        let reference = hex(&Sha1::digest(format!("{name} {version}")));
        let folder = format!("{}-{}", name.replace('/', "-"), &reference[..7]);
        Self { version: version.to_owned(), reference, zip: zip(&folder, &files), manifest }
    }

    /// The same with one more key in its metadata.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.manifest.insert(key.to_owned(), value);
        self
    }

    /// The same version and reference, packed again: other bytes, another checksum.
    #[must_use]
    pub fn repacked(mut self) -> Self {
        let readme = format!("Packed again, after {}.\n", self.shasum());
        self.zip = zip(
            "again",
            &[
                ("composer.json".to_owned(), Value::Object(self.manifest.clone()).to_string().into_bytes()),
                ("src/Part.php".to_owned(), b"<?php\n".to_vec()),
                ("README.md".to_owned(), readme.into_bytes()),
            ],
        );
        self
    }

    /// The checksum that clients compare.
    pub fn shasum(&self) -> String {
        hex(&Sha1::digest(&self.zip))
    }

    /// As clients compare versions: `1.2.0.0`.
    pub fn normalized(&self) -> String {
        if self.is_branch() { self.version.clone() } else { format!("{}.0", self.version.trim_start_matches('v')) }
    }

    /// Whether it is a branch rather than a tag.
    pub fn is_branch(&self) -> bool {
        self.version.starts_with("dev-")
    }
}

/// Packages by name, the newest version of each first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// See the type.
    pub packages: BTreeMap<String, Vec<Release>>,
}

impl Catalogue {
    /// `VENDOR/part-01` to `VENDOR/part-COUNT`: each needs the one before it, and every third one the one three before it. All have
    /// three tags, every fifth one a branch as well. Whoever needs the last one needs all.
    pub fn chain(vendor: &str, count: usize) -> Self {
        let mut catalogue = Self::default();
        for number in 1..=count {
            let mut needs: Vec<_> = Vec::new();
            if number > 1 {
                needs.push((part(vendor, number - 1), "^1.0".to_owned()));
            }
            if number > 3 && number.is_multiple_of(3) {
                needs.push((part(vendor, number - 3), ">=1.1 <2.0".to_owned()));
            }
            let branch = number.is_multiple_of(5).then_some("dev-main");
            for version in ["v1.0.0", "v1.1.0", "v1.2.0"].into_iter().chain(branch) {
                catalogue.add(&part(vendor, number), Release::new(&part(vendor, number), version, &needs));
            }
        }
        catalogue
    }

    /// Adds a newest version.
    pub fn add(&mut self, name: &str, release: Release) {
        self.packages.entry(name.to_owned()).or_default().insert(0, release);
    }

    /// Adds a newest version of a package that needs nothing.
    pub fn release(&mut self, name: &str, version: &str) {
        self.add(name, Release::new(name, version, &[]));
    }

    /// With all that another one has.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.packages.extend(other.packages);
        self
    }

    /// A version.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&self, name: &str, version: &str) -> &Release {
        self.packages[name].iter().find(|release| release.version == version).expect("the catalogue has the version")
    }

    /// A version, to be changed.
    ///
    /// # Panics
    /// If there is none.
    pub fn get_mut(&mut self, name: &str, version: &str) -> &mut Release {
        let releases = self.packages.get_mut(name).expect("the catalogue has the package");
        releases.iter_mut().find(|release| release.version == version).expect("the catalogue has the version")
    }

    /// The names, in order.
    pub fn names(&self) -> Vec<&str> {
        self.packages.keys().map(String::as_str).collect()
    }

    /// PHP that prints the versions of the installed `packages` as their own code tells them.
    pub fn telling<'a>(packages: impl IntoIterator<Item = &'a str>) -> String {
        let parts: Vec<_> = packages.into_iter().map(|name| format!("{}\\Part::VERSION", namespace(name))).collect();
        format!("require 'vendor/autoload.php'; echo implode(' ', [{}]);", parts.join(", "))
    }
}

fn part(vendor: &str, number: usize) -> String {
    format!("{vendor}/part-{number:02}")
}

/// `Initech\Part01`
fn namespace(name: &str) -> String {
    let words = |text: &str| -> String {
        let upper = |word: &str| word[..1].to_uppercase() + &word[1..];
        text.split('-').map(upper).collect()
    };
    let (vendor, own) = name.split_once('/').expect("a package has a vendor");
    format!("{}\\{}", words(vendor), words(own))
}

fn seed(text: &str) -> u64 {
    text.bytes().fold(7, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("text takes everything");
        text
    })
}

/// Files in one folder of a zip, as forges pack them.
///
/// # Panics
/// If a name cannot stand in a zip.
pub fn zip(folder: &str, files: &[(String, Vec<u8>)]) -> Bytes {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    for (path, bytes) in files {
        let (mut entry, config) = archive
            .new_file(format!("{folder}/{path}"))
            .compression_method(CompressionMethod::DEFLATE)
            .last_modified(UtcDateTime::from_unix(1_709_640_000))
            .unix_permissions(0o100_644)
            .start()
            .expect("a zip can be written");
        let mut data = config.wrap(DeflateEncoder::new(&mut entry, Compression::fast()));
        data.write_all(bytes).expect("memory takes everything");
        let (encoder, descriptor) = data.finish().expect("memory takes everything");
        encoder.finish().expect("memory takes everything");
        entry.finish(descriptor).expect("memory takes everything");
    }
    archive.finish().expect("memory takes everything").into()
}
