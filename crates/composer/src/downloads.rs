//! A dist is downloaded: found by what stands for its bytes, judged again, brought or built if it never was, and sent.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{HeaderValue, header};
use larder_core::{Error, Id, Kind, Result, format::Format};
use larder_db::packages::{self, Artifact, Package, Version};
use larder_http::{Body, File, Request, Response};

use crate::{
    DIST,
    documents::{Dist, Documents},
    entry::Entry,
    legacy,
    offers::{KINDS, Offer, Part, Repository},
    policy::Verdict,
    render,
    upstream::{self, Looked},
    version,
};

/// A dist, as an address names it: `dist/vendor/name/VERSION/KEY.KIND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked<'a> {
    /// The package.
    pub(crate) name: &'a str,
    /// The version as [`render::version_in_path`] writes it. Only tells two versions with the same bytes apart.
    pub(crate) version: &'a str,
    /// What stands for the bytes: it decides.
    pub(crate) key: &'a str,
    /// `zip`, …
    pub(crate) kind: &'a str,
}

impl<'a> Asked<'a> {
    /// Reads a decoded path.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        let (rest, kind) = path.strip_prefix("/dist/")?.rsplit_once('.')?;
        KINDS.iter().find(|(known, _)| *known == kind)?;
        let (rest, key) = rest.rsplit_once('/')?;
        let (name, version) = rest.rsplit_once('/')?;
        let (vendor, short) = name.split_once('/')?;
        let is_whole = !vendor.is_empty() && !short.is_empty() && !short.contains('/');
        (is_whole && !version.is_empty() && !key.is_empty()).then_some(Self { name, version, key, kind })
    }

    /// Whether its name is that of a package beyond doubt. In an address of another server it may be the vendor of a package
    /// that is nobody else's business, behind what that server puts there.
    fn is_of_a_package(&self) -> bool {
        let is_version = |text: &str| version::normalize(&text.replace('~', "/")).is_ok();
        let is_mirrored = self.name.starts_with(legacy::MIRRORED) && is_version(self.key);
        is_version(self.version) && !is_mirrored
    }
}

/// What was found for an address.
pub(crate) struct Found {
    /// The row of the version.
    id: Id,
    /// Normal form.
    version: String,
    /// Its bytes.
    artifact: Artifact,
    /// Whether it comes from another registry.
    is_foreign: bool,
}

/// Sends dists, and remembers those that were sent.
pub(crate) struct Downloads {
    pub(crate) repository: Repository,
    pub(crate) format: Arc<dyn Format>,
}

impl Downloads {
    /// What answers for an address: from memory, or looked for now.
    pub(crate) async fn dist(&self, documents: &Documents, path: &str, asked: Asked<'_>) -> Result<Arc<Dist>> {
        if let Some(dist) = documents.known_dist(path) {
            self.look_behind(&dist);
            return Ok(dist);
        }
        let before = documents.changes();
        let package = self.package(asked).await?.ok_or_else(|| no_dist(asked))?;
        let found = self.find(&package, asked).await?;
        let dist = Arc::new(described(package, found, asked));
        // Only what the documents tell: what clients invent fills no memory, and everything about a package is found when
        // it must be forgotten.
        if path == render::dist_path(asked.name, &dist.version, asked.key, asked.kind) {
            documents.remember_dist(path, &dist, before);
        }
        self.look_behind(&dist);
        Ok(dist)
    }

    /// A client that installs from a lock file asks for no metadata, and would otherwise have for ever what its registry has
    /// come to warn of.
    fn look_behind(&self, dist: &Dist) {
        if dist.is_foreign {
            self.repository.proxy.look_behind(&dist.package);
        }
    }

    /// Sends a dist; one whose bytes turn out to be lost is made or brought again first.
    pub(crate) async fn send(
        &self,
        request: &Request,
        documents: &Documents,
        path: &str,
        asked: Asked<'_>,
        dist: &Dist,
    ) -> Result<Response> {
        let sent = self.respond(request, dist).await;
        if !matches!(&sent, Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound)) {
            return sent.map_err(|error| not_to_be_had(asked.name, error));
        }
        documents.forget_dist(path);
        self.heal(dist.id).await.map_err(|error| not_to_be_had(asked.name, error))?;
        let dist = self.dist(documents, path, asked).await?;
        self.respond(request, &dist).await.map_err(|error| not_to_be_had(asked.name, error))
    }

    async fn respond(&self, request: &Request, dist: &Dist) -> Result<Response> {
        let blobs = &self.repository.blobs;
        let is_first = AtomicBool::new(true);
        let open = async |range: Option<Range<u64>>| {
            if !is_first.swap(false, Ordering::Relaxed)
                && let Some(range) = range
            {
                let len = Some(range.end - range.start);
                return Ok(Body::Stream { len, stream: blobs.open_later(dist.digest, range) });
            }
            let blob = blobs.open(&dist.digest, range.clone()).await?;
            let len = range.map_or(blob.size, |range| range.end - range.start);
            Ok(match blob.whole {
                Some(bytes) => Body::from(bytes),
                None => Body::Stream { len: Some(len), stream: blob.stream },
            })
        };
        dist.file.respond(request, open).await
    }

    /// The package that an address is about. One that is not here yet may come from another registry.
    async fn package(&self, asked: Asked<'_>) -> Result<Option<Package>> {
        if let Some(package) = self.repository.find(asked.name).await? {
            return Ok(Some(package));
        }
        if !asked.is_of_a_package() {
            return Ok(None);
        }
        let dev = Part::of_version(asked.version) == Part::Branches;
        match self.repository.proxy.look(asked.name, dev).await? {
            Looked::Own | Looked::Absent => Ok(None),
            Looked::Here { .. } | Looked::Stale { .. } => self.repository.find(asked.name).await,
        }
    }

    async fn find(&self, package: &Package, asked: Asked<'_>) -> Result<Found> {
        let mut rows = self.repository.rows(package, asked.key).await?;
        let at = rows.iter().position(|row| render::version_in_path(&row.version) == asked.version);
        // A version that comes from another registry has a row of its own only once somebody fetched it.
        let is_other = |row: &Version| row.origin == upstream::ORIGIN;
        if at.is_none() && rows.first().is_none_or(is_other) {
            return self.bring(package, asked).await;
        }
        let row = rows.swap_remove(at.unwrap_or(0));
        refuse(asked.name, &row.display, &self.repository.verdict(package, &row).await?)?;
        let artifact = self.artifact(package, &row).await.map_err(|error| not_to_be_had(asked.name, error))?;
        Ok(Found { is_foreign: is_other(&row), id: row.id, version: row.version, artifact })
    }

    /// The bytes of a version that has a row.
    async fn artifact(&self, package: &Package, row: &Version) -> Result<Artifact> {
        let repository = &self.repository;
        if row.origin != upstream::ORIGIN {
            return repository.sources.artifact(row.id, &self.format).await;
        }
        let entry = Entry::parse(&row.metadata)?;
        Ok(repository.proxy.bring(package, &row.version, &row.reference, &entry, None).await?.1)
    }

    /// Brings the bytes of a version from the registry that it comes from.
    async fn bring(&self, package: &Package, asked: Asked<'_>) -> Result<Found> {
        let offers = self.repository.offers(package.clone(), Part::of_version(asked.version)).await?;
        let mut wanted = offers.versions.into_iter().filter(|offer| offer.key.as_deref() == Some(asked.key));
        let wanted = wanted.find(|offer| render::version_in_path(offer.version.normalized()) == asked.version);
        let offer = wanted.filter(Offer::is_foreign).ok_or_else(|| no_dist(asked))?;
        refuse(asked.name, offer.version.pretty(), &offer.verdict)?;
        let version = offer.version.normalized();
        let document = offer.document.as_deref();
        let brought = self.repository.proxy.bring(package, version, asked.key, &offer.entry, document).await;
        let (id, artifact) = brought.map_err(|error| not_to_be_had(asked.name, error))?;
        Ok(Found { id, version: version.to_owned(), artifact, is_foreign: true })
    }

    /// Makes or brings lost bytes again, if their source still has them.
    async fn heal(&self, version: Id) -> Result<()> {
        let found = packages::version_with_package(&self.repository.db, version, DIST).await?;
        match found {
            Some((row, package)) if row.origin == upstream::ORIGIN => self.artifact(&package, &row).await.map(drop),
            _ => self.repository.sources.rebuild(version, &self.format).await.map(drop),
        }
    }
}

/// Refuses what may not be had, with the reason, which clients print.
fn refuse(name: &str, version: &str, verdict: &Verdict) -> Result<()> {
    verdict.because().map_or(Ok(()), |because| Err(Error::new(Kind::Gone, format!("{name} {version} {because}"))))
}

fn described(package: Package, found: Found, asked: Asked<'_>) -> Dist {
    let media_type = KINDS.iter().find_map(|(kind, media_type)| (*kind == asked.kind).then_some(*media_type));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    let stem = format!("{}-{}", package.name, found.version).replace(|c| !is_plain(c), "-");
    let file_name = format!("attachment; filename=\"{stem}.{}\"", asked.kind);
    let file = File::new(found.artifact.digest, found.artifact.size, media_type.unwrap_or("application/octet-stream"));
    let file = match HeaderValue::try_from(file_name) {
        Ok(value) => file.with(header::CONTENT_DISPOSITION, value),
        Err(_) => file,
    };
    Dist {
        file,
        digest: found.artifact.digest,
        id: found.id,
        package: package.name.into(),
        version: found.version.into(),
        is_foreign: found.is_foreign,
    }
}

fn no_dist(asked: Asked<'_>) -> Error {
    let Asked { name, key, .. } = asked;
    Error::not_found(format!(
        "{name} has no version made from {key} here, or your token may not read it: run `composer update {name}`"
    ))
}

/// What a client is told when the bytes of a dist cannot be had: why, but neither where its source is, which may be hidden,
/// nor where things lie on this server.
fn not_to_be_had(name: &str, error: Error) -> Error {
    let (kind, why) = match error.kind() {
        // The tree itself is wrong, and its author reads this.
        Kind::Invalid => return error,
        kind @ (Kind::NotFound | Kind::Gone) => {
            (kind, "it is not stored here, and its source does not have it any more")
        }
        Kind::TooLarge => (Kind::TooLarge, "it is larger than the limits of this server"),
        // Not as such: the client would ask its user for another token.
        Kind::Forbidden | Kind::Unauthenticated => (Kind::Upstream, "its source refuses this server"),
        kind @ (Kind::Upstream | Kind::Timeout) => {
            (kind, "its source does not answer, or with other bytes than it promised, and nothing of those is kept")
        }
        kind => (kind, "this server has trouble with its storage"),
    };
    let text = format!("the dist of {name} cannot be had: {why}. The log of the server says more");
    Error::new(kind, text).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_hears_nothing_of_hosts_and_paths() {
        let secret = "https://git.internal/x.git and /var/lib/larder";
        for kind in [Kind::NotFound, Kind::Gone, Kind::Forbidden, Kind::Upstream, Kind::Full, Kind::TooLarge] {
            let told = not_to_be_had("acme/lib", Error::new(kind, secret));
            assert!(!told.message().contains("internal") && told.chain().contains(secret), "{told}");
            assert_ne!(told.kind(), Kind::Forbidden);
        }
    }

    #[test]
    fn addresses() {
        let asked = |version, key, kind| Some(Asked { name: "acme/lib", version, key, kind });
        for (path, expected) in [
            ("/dist/acme/lib/1.0.0.0/abc.zip", asked("1.0.0.0", "abc", "zip")),
            ("/dist/acme/lib/1.0.0.0/a.b-c.tar", asked("1.0.0.0", "a.b-c", "tar")),
            ("/dist/acme/lib/abc.zip", None),
            ("/dist/a/b/c/1.0.0.0/abc.zip", None),
            ("/dist/acme/lib/1.0.0.0/abc.exe", None),
            ("/dist/acme/lib/1.0.0.0/.zip", None),
            ("/dist/acme//1.0.0.0/abc.zip", None),
        ] {
            assert_eq!(Asked::parse(path), expected, "{path}");
        }
    }

    #[test]
    fn nobody_is_asked_for_what_may_be_the_vendor_of_a_package() {
        for (path, expected) in [
            ("/dist/acme/lib/1.0.0.0/abc.zip", true),
            ("/dist/acme/lib/dev-feature~x/abc.zip", true),
            ("/dist/acme/lib/1.9999999.9999999.9999999-dev/abc.zip", true),
            ("/dist/m/lib/1.0.0.0/abc.zip", true),
            ("/dist/m/acme/lib/1.0.0.zip", false),
            ("/dist/m/acme/dev-tools/1.0.0.zip", false),
            ("/dist/key/acme/lib/1.0.0.zip", false),
        ] {
            assert_eq!(Asked::parse(path).unwrap().is_of_a_package(), expected, "{path}");
        }
    }
}
