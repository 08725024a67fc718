//! Addresses that other servers gave out before this one stood in their place, as they stand in lock files: those of
//! PACKAGE.broker and of Packgrid. Each is read, and becomes the address of the same bytes here, where the package is known.
//!
//! An old address names a version or a ref, and not bytes. What is sent is what that is now; a lock file says by its reference
//! and its hash whether it is what was meant.

use std::collections::BTreeMap;

use larder_core::{Error, Kind, Result};
use larder_db::{packages, sources};
use larder_sources::manage::GIT;
use serde::Serialize;

use crate::{
    DIST,
    downloads::Asked,
    entry::{Entry, Raw},
    names,
    offers::{Offer, Offers, Part, Repository, ZIP},
    render,
    upstream::{self, Looked},
    version::Version,
};

/// The kinds of files that stood at the end of old addresses.
const ENDINGS: [&str; 5] = [".zip", ".tar.gz", ".tar.bz2", ".tgz", ".tar"];

/// The most metadata that are told in a document of Packgrid, in bytes.
const LARGEST: usize = 16 * 1024 * 1024;

/// What stands before the package in old addresses of mirrors.
pub(crate) const MIRRORED: &str = "m/";

/// An old address, in one of the ways in which it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old<'a> {
    /// PACKAGE.broker: `dist/vendor/name/VERSION/REFERENCE.zip`. Its version may be written in any way.
    Bytes {
        /// The package.
        name: &'a str,
        /// In normal form, or as its author wrote it.
        version: &'a str,
        /// The reference. Other registries may say one of several versions.
        reference: &'a str,
    },
    /// PACKAGE.broker: `dist/m/vendor/name/VERSION.zip`, and `dist/ANYTHING/vendor/name/VERSION.zip`, where it writes the
    /// id of a repository.
    Version {
        /// The package.
        name: &'a str,
        /// In normal form, or as its author wrote it.
        version: &'a str,
        /// Whether it is of a mirror, and cannot mean anything else: then upstreams may be asked for the package.
        mirrored: bool,
    },
    /// Packgrid: `dist/owner/repository/REF.zip`.
    Ref {
        /// Owner and name of a Git repository.
        repository: &'a str,
        /// A tag, a branch or a commit, with its slashes.
        reference: &'a str,
    },
}

/// Where the same bytes are to be had here: what [`Asked`] reads of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The package.
    pub name: String,
    /// Its version as it stands in a path.
    pub version: String,
    /// What stands for its bytes.
    pub key: String,
    /// `zip`, …
    pub kind: String,
}

impl Address {
    /// As something that is asked for.
    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked { name: &self.name, version: &self.version, key: &self.key, kind: &self.kind }
    }

    /// Its path here.
    pub fn path(&self) -> String {
        format!("/dist/{}/{}/{}.{}", self.name, self.version, self.key, self.kind)
    }

    fn of_row(name: &str, row: &packages::Version) -> Result<Self> {
        Ok(Self::new(name, &row.version, &row.reference, &kind_of(&Entry::parse(&row.metadata)?)))
    }

    fn new(name: &str, version: &str, key: &str, kind: &str) -> Self {
        let (name, key, kind) = (name.to_owned(), key.to_owned(), kind.to_owned());
        Self { name, version: render::version_in_path(version), key, kind }
    }
}

/// Packgrid's `p/vendor/name.json`: the package that it is about.
pub fn document_of(path: &str) -> Option<&str> {
    path.strip_prefix("/p/")?.strip_suffix(".json").filter(|name| names::check_package(name).is_ok())
}

/// That document: the versions that may be had by what their authors call them. Refused if it is large: nobody reads it in
/// parts.
pub fn document(offers: &Offers) -> Result<String> {
    let name = &offers.package.name;
    let visible = || offers.versions.iter().filter(|offer| offer.verdict.is_visible());
    check_size(name, visible().map(|offer| offer.entry.len()).sum())?;
    written(name, visible().map(Offer::told))
}

fn check_size(name: &str, bytes: usize) -> Result<()> {
    if bytes <= LARGEST {
        return Ok(());
    }
    let text = format!(
        "{name} has more than {} MiB of metadata, which this server gives to Composer 2 only: use that, with the \
         repository at /packages.json",
        LARGEST >> 20
    );
    Err(Error::new(Kind::TooLarge, text))
}

fn written(name: &str, entries: impl Iterator<Item = Result<Entry>>) -> Result<String> {
    let mut versions = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        versions.insert(entry.text("version").unwrap_or_default(), entry);
    }
    let document = Document { packages: BTreeMap::from([(name, versions)]) };
    serde_json::to_string(&document)
        .map_err(|error| Error::internal("writing a package as another server told it", error))
}

#[derive(Serialize)]
struct Document<'a> {
    packages: BTreeMap<&'a str, BTreeMap<String, Entry>>,
}

/// Whether a decoded path is rather an old address of a mirror than one of ours.
pub(crate) fn is_mirrored(path: &str) -> bool {
    path.strip_prefix("/dist/").is_some_and(|rest| rest.starts_with(MIRRORED))
}

/// Every way in which a decoded path can be read as an old address, the likeliest first.
pub fn readings(path: &str) -> Vec<Old<'_>> {
    let Some(rest) = path.strip_prefix("/dist/") else { return Vec::new() };
    let Some(rest) = ENDINGS.iter().find_map(|ending| rest.strip_suffix(ending)) else { return Vec::new() };
    let mut readings = Vec::new();
    let cuts: Vec<usize> = rest.match_indices('/').map(|(at, _)| at).collect();
    if rest.split('/').any(str::is_empty) {
        return readings;
    }
    if let [first, second, third] = cuts[..] {
        let (short, long) = (&rest[..second], &rest[first + 1..third]);
        let mirrored = rest.starts_with(MIRRORED);
        readings.push(Old::Version { name: long, version: &rest[third + 1..], mirrored });
        let version = &rest[second + 1..third];
        readings.push(Old::Bytes { name: short, version, reference: &rest[third + 1..] });
        if !mirrored {
            readings.rotate_left(1);
        }
    }
    if let Some(second) = cuts.get(1) {
        readings.push(Old::Ref { repository: &rest[..*second], reference: &rest[second + 1..] });
    }
    readings
}

impl Repository {
    /// What an old address stands for here, if anything. Nothing is looked for under names that the asker may not read
    /// (`may`).
    pub async fn from_old(&self, path: &str, may: impl Fn(&str) -> bool + Send + Sync) -> Result<Option<Address>> {
        for old in readings(path) {
            let found = match old {
                Old::Bytes { name, version, reference } if is_readable(name, &may) => {
                    self.of_bytes(name, Version::parse(version).ok().as_ref(), reference).await?
                }
                Old::Version { name, version, mirrored } if is_readable(name, &may) => {
                    self.of_version(name, version, mirrored).await?
                }
                Old::Ref { repository, reference } => self.of_ref(repository, reference, &may).await?,
                Old::Bytes { .. } | Old::Version { .. } => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn of_bytes(&self, name: &str, version: Option<&Version>, reference: &str) -> Result<Option<Address>> {
        let Some(package) = self.find(name).await? else { return Ok(None) };
        let wanted = version.map(Version::normalized);
        let rows = self.rows(&package, reference).await?;
        let row = rows.iter().find(|row| Some(row.version.as_str()) == wanted);
        // What is made here from one commit, or was sent here, is the same in every version.
        if let Some(row) = row.or_else(|| rows.iter().find(|row| row.origin != upstream::ORIGIN)) {
            return Address::of_row(name, row).map(Some);
        }
        let mut found = BTreeMap::new();
        for offer in self.offers(package, Part::All).await?.versions {
            if let (true, Some(key)) = (offer.reference.as_deref() == Some(reference), &offer.key) {
                let version = offer.version.normalized();
                found.insert(version.to_owned(), Address::new(name, version, key, &kind_of(&offer.entry)));
            }
        }
        for row in &rows {
            if !found.contains_key(&row.version) {
                found.insert(row.version.clone(), Address::of_row(name, row)?);
            }
        }
        Ok(meant(found, wanted))
    }

    /// An upstream is asked for the package only if `mirrored`: what another reading takes for a package may be a part of the
    /// name of one that is nobody else's business.
    async fn of_version(&self, name: &str, version: &str, mirrored: bool) -> Result<Option<Address>> {
        let Ok(version) = Version::parse(version) else { return Ok(None) };
        let part = Part::of_version(version.normalized());
        let mut package = self.find(name).await?;
        if package.is_none()
            && mirrored
            && matches!(
                self.proxy.look(name, part == Part::Branches).await?,
                Looked::Here { .. } | Looked::Stale { .. }
            )
        {
            package = self.find(name).await?;
        }
        let Some(package) = package else { return Ok(None) };
        let offers = self.offers(package, part).await?;
        let is_it = |normalized: &str| normalized == version.normalized();
        if let Some(offer) = offers.versions.iter().find(|offer| is_it(offer.version.normalized()))
            && let Some(key) = &offer.key
        {
            return Ok(Some(Address::new(name, offer.version.normalized(), key, &kind_of(&offer.entry))));
        }
        // One that is in no document any more, as old lock files need it: the newest that was called so.
        let kept = packages::kept(&self.db, offers.package.id, DIST).await?;
        let Some(kept) = kept.into_iter().find(|kept| is_it(&kept.version)) else { return Ok(None) };
        self.of_bytes(name, Some(&version), &kept.reference).await
    }

    async fn of_ref(
        &self,
        repository: &str,
        wanted: &str,
        may: &(dyn Fn(&str) -> bool + Send + Sync),
    ) -> Result<Option<Address>> {
        let all = sources::list(&self.db).await?;
        for source in all.iter().filter(|source| source.kind == GIT && is_repository(&source.url, repository)) {
            let commit = self.commit_of(source, wanted).await?;
            let mut found = None;
            for package in packages::of_source(&self.db, source.id).await? {
                if !is_readable(&package.name, may) {
                    continue;
                }
                let rows = self.rows(&package, &commit).await?;
                let Some(row) = rows.into_iter().next() else { continue };
                let address = Address::new(&package.name, &row.version, &row.reference, ZIP);
                // All of the tree, as the old address meant it, if there is such a package.
                if row.folder.is_empty() {
                    return Ok(Some(address));
                }
                found.get_or_insert(address);
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The commit that a tag or a branch is at; what is neither is taken for a commit.
    async fn commit_of(&self, source: &sources::Source, wanted: &str) -> Result<String> {
        let refs = sources::refs(&self.db, source.id).await?;
        let named = |kind: &str| refs.iter().find(|seen| seen.name.strip_prefix(kind) == Some(wanted));
        let found = named("refs/tags/").or_else(|| named("refs/heads/"));
        Ok(found.map_or_else(|| wanted.to_owned(), |seen| seen.commit.clone()))
    }
}

/// Which of several versions with one reference an address means: the one that it names, or the only one. Any other would be
/// somebody else's bytes.
fn meant(mut found: BTreeMap<String, Address>, wanted: Option<&str>) -> Option<Address> {
    let named = wanted.and_then(|wanted| found.remove(wanted));
    named.or_else(|| if found.len() == 1 { found.into_values().next() } else { None })
}

/// The kind of a dist, as another registry says it; what is made here is a zip.
fn kind_of(entry: &Entry) -> String {
    let dist: Option<Entry> = entry.get("dist").and_then(Raw::read);
    dist.and_then(|dist| dist.text("type")).unwrap_or_else(|| ZIP.to_owned())
}

fn is_readable(name: &str, may: &(dyn Fn(&str) -> bool + Send + Sync)) -> bool {
    names::check_package(name).is_ok() && may(name)
}

/// Whether an address is that of the repository `owner/name`, on whichever host.
fn is_repository(url: &str, repository: &str) -> bool {
    let url = url.trim_end_matches('/');
    let url = url.strip_suffix(".git").unwrap_or(url);
    let Some(at) = url.len().checked_sub(repository.len()) else { return false };
    let end = url.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(repository));
    end && url[..at].ends_with(['/', ':'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_other_servers() {
        let version = |name, version| Old::Version { name, version, mirrored: false };
        let mirrored = |name, version| Old::Version { name, version, mirrored: true };
        let bytes = |name, version, reference| Old::Bytes { name, version, reference };
        let of = |repository, reference| Old::Ref { repository, reference };
        for (path, expected) in [
            (
                "/dist/m/acme/lib/1.2.3.0.zip",
                vec![mirrored("acme/lib", "1.2.3.0"), bytes("m/acme", "lib", "1.2.3.0"), of("m/acme", "lib/1.2.3.0")],
            ),
            (
                "/dist/m/acme/lib/1.9999999.9999999.9999999-dev.tar.gz",
                vec![
                    mirrored("acme/lib", "1.9999999.9999999.9999999-dev"),
                    bytes("m/acme", "lib", "1.9999999.9999999.9999999-dev"),
                    of("m/acme", "lib/1.9999999.9999999.9999999-dev"),
                ],
            ),
            (
                "/dist/acme/lib/1.2.3/0a1b2c.zip",
                vec![
                    bytes("acme/lib", "1.2.3", "0a1b2c"),
                    version("lib/1.2.3", "0a1b2c"),
                    of("acme/lib", "1.2.3/0a1b2c"),
                ],
            ),
            (
                "/dist/V1StGXR8_Z5jdHi6B-myT/acme/lib/v1.2.3.zip",
                vec![
                    bytes("V1StGXR8_Z5jdHi6B-myT/acme", "lib", "v1.2.3"),
                    version("acme/lib", "v1.2.3"),
                    of("V1StGXR8_Z5jdHi6B-myT/acme", "lib/v1.2.3"),
                ],
            ),
            ("/dist/Acme/Lib/v1.0.0.zip", vec![of("Acme/Lib", "v1.0.0")]),
            ("/dist/acme/lib/feature/a/b.zip", vec![of("acme/lib", "feature/a/b")]),
            ("/dist/acme/lib.zip", vec![]),
            ("/dist/acme/lib/v1.0.0.exe", vec![]),
            ("/dist/acme//v1.0.0.zip", vec![]),
            ("/dist/m/acme/lib/.zip", vec![]),
            ("/p2/acme/lib.json", vec![]),
        ] {
            assert_eq!(readings(path), expected, "{path}");
        }
    }

    #[test]
    fn of_versions_with_one_reference_the_named_one_is_meant() {
        let of = |version: &str| (version.to_owned(), Address::new("acme/lib", version, "master", ZIP));
        let both = BTreeMap::from(["1.0.0.0", "1.1.0.0"].map(of));
        let one = BTreeMap::from([of("1.0.0.0")]);
        let meant = |found: &BTreeMap<String, Address>, wanted| meant(found.clone(), wanted).map(|is| is.version);
        assert_eq!(meant(&both, Some("1.1.0.0")).as_deref(), Some("1.1.0.0"));
        assert_eq!((meant(&both, Some("1.2.0.0")), meant(&both, None)), (None, None));
        assert_eq!(meant(&one, Some("1.1.0.0")).as_deref(), Some("1.0.0.0"));
    }

    #[test]
    fn versions_as_old_addresses_write_them() {
        for (old, display) in [
            ("1.2.3.0", "1.2.3"),
            ("1.2.3", "v1.2.3"),
            ("v1.2.3", "1.2.3"),
            ("1.2.3.0-patch8", "1.2.3-p8"),
            ("1.9999999.9999999.9999999-dev", "1.x-dev"),
            ("dev-main", "dev-main"),
        ] {
            let normalized = |text| Version::parse(text).unwrap().normalized().to_owned();
            assert_eq!(normalized(old), normalized(display), "{old}");
        }
    }

    #[test]
    fn repositories_by_owner_and_name() {
        for (url, expected) in [
            ("https://forge.example.org/acme/lib.git", true),
            ("https://forge.example.org/Acme/Lib/", true),
            ("ssh://git@forge.example.org/acme/lib.git", true),
            ("git@forge.example.org:acme/lib.git", true),
            ("https://forge.example.org/group/acme/lib", true),
            ("https://forge.example.org/evilacme/lib.git", false),
            ("https://forge.example.org/acme/lib2.git", false),
            ("lib", false),
        ] {
            assert_eq!(is_repository(url, "acme/lib"), expected, "{url}");
        }
    }

    #[test]
    fn a_package_as_packgrid_told_it() {
        assert_eq!(document_of("/p/acme/lib.json"), Some("acme/lib"));
        for path in ["/p/acme.json", "/p/acme/lib", "/p2/acme/lib.json", "/p/a/b/c.json"] {
            assert_eq!(document_of(path), None, "{path}");
        }
        let entries =
            ["1.0.0", "dev-main"].map(|version| Entry::parse(&format!(r#"{{"version":"{version}"}}"#)).unwrap());
        assert_eq!(
            written("acme/lib", entries.into_iter().map(Ok)).unwrap(),
            r#"{"packages":{"acme/lib":{"1.0.0":{"version":"1.0.0"},"dev-main":{"version":"dev-main"}}}}"#
        );
        assert!(check_size("acme/lib", LARGEST).is_ok());
        let refused = check_size("acme/lib", LARGEST + 1).unwrap_err();
        assert!(refused.kind() == Kind::TooLarge && refused.message().contains("/packages.json"), "{refused}");
    }
}
