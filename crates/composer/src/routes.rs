//! What URL does what. A request becomes one [`Endpoint`]; what the asker may not see is answered as if it were not there.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use http::{HeaderValue, StatusCode, header};
use larder_audit::Recorder;
use larder_auth::{Decision, View, Views, decide, unauthenticated};
use larder_core::{
    Error, Kind, Result,
    format::Format,
    grant::{Action, Principal},
};
use larder_db::{changes::Change, packages};
use larder_http::{
    AccessNote, Body, File, Request, Response, Room,
    error::{method_not_allowed, status_of},
};

use crate::{
    DIST, ID,
    documents::{Dist, Documents},
    feed, notify,
    offers::{Repository, ZIP},
    render, search,
};

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    /// `packages.json`
    Root,
    /// `p2/vendor/name.json`, or `p2/vendor/name~dev.json`: its tagged versions, or its branches.
    Package { name: &'a str, dev: bool },
    /// `dist/vendor/name/VERSION/REFERENCE.zip`
    Dist { name: &'a str, version: &'a str, reference: &'a str },
    /// `list.json?filter=…&vendor=…`
    List,
    /// `search.json?q=…&type=…`
    Search,
    /// `downloads`: what a client installed.
    Notify,
    /// `changes.json?since=…`
    Changes,
}

impl<'a> Endpoint<'a> {
    /// Reads a decoded path.
    fn parse(path: &'a str) -> Option<Self> {
        match path {
            "/packages.json" => return Some(Self::Root),
            "/list.json" => return Some(Self::List),
            "/search.json" => return Some(Self::Search),
            "/downloads" => return Some(Self::Notify),
            "/changes.json" => return Some(Self::Changes),
            _ => {}
        }
        if let Some(rest) = path.strip_prefix("/p2/") {
            let file = rest.strip_suffix(".json")?;
            let (name, dev) = file.strip_suffix("~dev").map_or((file, false), |name| (name, true));
            return is_package_path(name).then_some(Self::Package { name, dev });
        }
        let rest = path.strip_prefix("/dist/")?.strip_suffix(".zip")?;
        let (rest, reference) = rest.rsplit_once('/')?;
        let (name, version) = rest.rsplit_once('/')?;
        is_package_path(name).then_some(Self::Dist { name, version, reference })
    }
}

/// Whether it has the one slash of every package name.
fn is_package_path(name: &str) -> bool {
    name.split_once('/').is_some_and(|(vendor, rest)| !vendor.is_empty() && !rest.is_empty() && !rest.contains('/'))
}

/// The room.
pub struct ComposerRoom {
    repository: Repository,
    documents: Documents,
    recorder: Recorder,
    views: Views,
    format: Arc<dyn Format>,
}

impl ComposerRoom {
    /// Over the packages.
    pub fn new(repository: Repository, recorder: Recorder) -> Self {
        let documents = Documents::new(repository.clone());
        Self { repository, documents, recorder, views: Views::new(1_000), format: Arc::new(crate::Composer) }
    }

    /// Forgets what a change makes stale.
    pub fn on_change(&self, change: &Change) {
        self.documents.on_change(change);
    }

    /// The asker's view, or a demand for a token from somebody who showed none and sees nothing.
    fn view(&self, asker: &Principal) -> Result<Arc<View>> {
        let view = self.views.of(asker, ID);
        if view.is_empty() && asker.token.is_none() {
            return Err(unauthenticated());
        }
        Ok(view)
    }

    async fn root(&self, request: &Request, asker: &Principal, access: &mut AccessNote) -> Result<Response> {
        access.action = Some(Action::Read);
        let view = self.view(asker)?;
        Ok(self.documents.root(&view).await?.respond(request))
    }

    async fn package(
        &self,
        request: &Request,
        asker: &Principal,
        access: &mut AccessNote,
        name: &str,
        dev: bool,
    ) -> Result<Response> {
        access.action = Some(Action::Read);
        demand_sight(asker, name)?;
        let found = self.documents.package(name, dev).await?.ok_or_else(|| no_package(name))?;
        access.package = Some(Arc::clone(&found.name));
        Ok(found.document.respond(request))
    }

    async fn dist(
        &self,
        request: &Request,
        asker: &Principal,
        access: &mut AccessNote,
        path: &str,
        (name, version, reference): (&str, &str, &str),
    ) -> Result<Response> {
        access.action = Some(Action::Read);
        access.download = true;
        access.counts = true;
        demand_sight(asker, name)?;
        let mut dist = match self.documents.known_dist(path) {
            Some(dist) => dist,
            None => self.find_dist(path, name, version, reference).await?,
        };
        access.package = Some(Arc::clone(&dist.package));
        access.version = Some(Arc::clone(&dist.version));
        let sent = self.send(request, &dist).await;
        if !matches!(&sent, Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound)) {
            return sent.map_err(|error| not_to_be_had(name, error));
        }
        // The bytes are lost: the same tree gives them again, if the source still has it.
        self.documents.forget_dist(path);
        self.repository.sources.rebuild(dist.id, &self.format).await.map_err(|error| not_to_be_had(name, error))?;
        dist = self.find_dist(path, name, version, reference).await?;
        self.send(request, &dist).await.map_err(|error| not_to_be_had(name, error))
    }

    async fn send(&self, request: &Request, dist: &Dist) -> Result<Response> {
        let is_first = AtomicBool::new(true);
        let open = async |range: Option<Range<u64>>| {
            if !is_first.swap(false, Ordering::Relaxed)
                && let Some(range) = range
            {
                let len = Some(range.end - range.start);
                return Ok(Body::Stream { len, stream: self.repository.blobs.open_later(dist.digest, range) });
            }
            let blob = self.repository.blobs.open(&dist.digest, range.clone()).await?;
            let len = range.map_or(blob.size, |range| range.end - range.start);
            Ok(match blob.whole {
                Some(bytes) => Body::from(bytes),
                None => Body::Stream { len: Some(len), stream: blob.stream },
            })
        };
        dist.file.respond(request, open).await
    }

    /// Looks a dist up by its reference, which decides; the version in the path only tells two tags of one commit apart.
    /// Remembered is only the path that the documents tell, so that what clients invent fills no memory, and everything
    /// about a package is found when it must be forgotten.
    async fn find_dist(&self, path: &str, name: &str, version: &str, reference: &str) -> Result<Arc<Dist>> {
        let before = self.documents.changes();
        let package = packages::find(&self.repository.db, ID, name).await?.ok_or_else(|| no_dist(name, reference))?;
        let mut versions = packages::by_reference(&self.repository.db, package.id, reference, DIST).await?;
        let at = versions.iter().position(|found| render::version_in_path(&found.version) == version).unwrap_or(0);
        if versions.is_empty() {
            return Err(no_dist(name, reference));
        }
        let found = versions.swap_remove(at);
        let artifact = self
            .repository
            .sources
            .artifact(found.id, &self.format)
            .await
            .map_err(|error| not_to_be_had(name, error))?;
        let told = render::dist_path(name, &found.version, reference, ZIP);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
        let stem = format!("{name}-{}", found.version).replace(|c| !is_plain(c), "-");
        let file_name = format!("attachment; filename=\"{stem}.zip\"");
        let file = File::new(artifact.digest, artifact.size, "application/zip");
        let file = match HeaderValue::try_from(file_name) {
            Ok(value) => file.with(header::CONTENT_DISPOSITION, value),
            Err(_) => file,
        };
        let dist = Arc::new(Dist {
            file,
            digest: artifact.digest,
            id: found.id,
            package: package.name.into(),
            version: found.version.into(),
        });
        if path == told {
            self.documents.remember_dist(path, &dist, before);
        }
        Ok(dist)
    }
}

/// Refuses, as if it were not there, a package that the asker may not read.
fn demand_sight(asker: &Principal, name: &str) -> Result<()> {
    match decide(asker, Action::Read, ID, name) {
        Decision::Allow => Ok(()),
        Decision::Unauthenticated => Err(unauthenticated()),
        _ => Err(no_package(name)),
    }
}

fn no_package(name: &str) -> Error {
    Error::not_found(format!("there is no package {name} here, or your token may not read it"))
}

fn no_dist(name: &str, reference: &str) -> Error {
    Error::new(
        Kind::NotFound,
        format!(
            "{name} has no version made from {reference} here, or your token may not read it: run `composer update {name}`"
        ),
    )
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
        kind @ (Kind::Upstream | Kind::Timeout) => (kind, "its source, or the storage of this server, does not answer"),
        kind => (kind, "this server has trouble with its storage"),
    };
    let text = format!("the dist of {name} cannot be had: {why}. The log of the server says more");
    Error::new(kind, text).caused_by(error)
}

#[async_trait]
impl Room for ComposerRoom {
    fn mounts(&self) -> &'static [&'static str] {
        &["/packages.json", "/p2/", "/dist/", "/list.json", "/search.json", "/downloads", "/changes.json"]
    }

    async fn handle(&self, request: &mut Request, asker: &Arc<Principal>, access: &mut AccessNote) -> Result<Response> {
        access.format = ID;
        let path = request.decoded_path().into_owned();
        let endpoint = Endpoint::parse(&path).ok_or_else(|| {
            Error::not_found("this is not an address of the Composer repository: it begins at /packages.json")
        })?;
        if endpoint == Endpoint::Notify {
            if request.method != http::Method::POST {
                return Ok(method_not_allowed("POST"));
            }
            return notify::notify(&self.repository.db, &self.recorder, request, asker).await;
        }
        if !request.reads() {
            return Ok(method_not_allowed("GET, HEAD"));
        }
        match endpoint {
            Endpoint::Root => self.root(request, asker, access).await,
            Endpoint::Package { name, dev } => self.package(request, asker, access, name, dev).await,
            Endpoint::Dist { name, version, reference } => {
                self.dist(request, asker, access, &path, (name, version, reference)).await
            }
            Endpoint::List => {
                access.action = Some(Action::Read);
                let view = self.view(asker)?;
                let catalogue = self.documents.catalogue().await?;
                search::list(&catalogue, &view, request)
            }
            Endpoint::Search => {
                access.action = Some(Action::Read);
                let view = self.view(asker)?;
                let catalogue = self.documents.catalogue().await?;
                search::search(&catalogue, &view, request)
            }
            Endpoint::Changes => {
                access.action = Some(Action::Read);
                let view = self.view(asker)?;
                feed::changes(&self.repository.db, &view, request).await
            }
            Endpoint::Notify => Err(Error::internal("routing", "handled above")),
        }
    }

    /// A client prints `warning` of an error if the content type is exactly `application/json`. It asks for names that are
    /// not here as a matter of course, so that a missing package is no reason to warn.
    fn face(&self, _: &Request, error: &Error) -> Response {
        let mut body = serde_json::json!({"error": error.message()});
        if !matches!(error.kind(), Kind::NotFound | Kind::Unauthenticated)
            || error.message().contains("composer update")
        {
            body["warning"] = error.message().into();
        }
        let status: StatusCode = status_of(error.kind());
        larder_http::error::dressed(error, Response::json(status, &body))
    }
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
    fn paths() {
        let cases = [
            ("/packages.json", Some(Endpoint::Root)),
            ("/p2/acme/lib.json", Some(Endpoint::Package { name: "acme/lib", dev: false })),
            ("/p2/acme/lib~dev.json", Some(Endpoint::Package { name: "acme/lib", dev: true })),
            ("/p2/acme.json", None),
            ("/p2/a/b/c.json", None),
            ("/p2//b.json", None),
            ("/p2/acme/lib", None),
            (
                "/dist/acme/lib/1.0.0.0/abc.zip",
                Some(Endpoint::Dist { name: "acme/lib", version: "1.0.0.0", reference: "abc" }),
            ),
            ("/dist/acme/lib/abc.zip", None),
            ("/dist/a/b/c/1.0.0.0/abc.zip", None),
            ("/dist/acme/lib/1.0.0.0/abc.tar", None),
        ];
        for (path, expected) in cases {
            assert_eq!(Endpoint::parse(path), expected, "{path}");
        }
    }
}
