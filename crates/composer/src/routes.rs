//! What URL does what. A request becomes one [`Endpoint`]; what the asker may not see is answered as if it were not there.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, StatusCode};
use larder_audit::Recorder;
use larder_auth::{Decision, View, Views, decide, unauthenticated};
use larder_core::{
    Error, Kind, Result,
    grant::{Action, Principal},
};
use larder_db::changes::Change;
use larder_http::{
    AccessNote, Request, Response, Room,
    error::{method_not_allowed, status_of},
    stale,
};

use crate::{
    ID, advisories,
    documents::Documents,
    downloads::{Asked, Downloads},
    feed, legacy, notify,
    offers::{Part, Repository},
    publish::{self, Publisher},
    search,
};

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    /// `packages.json`
    Root,
    /// `p2/vendor/name.json`, or `p2/vendor/name~dev.json`: its tagged versions, or its branches.
    Package { name: &'a str, dev: bool },
    /// `dist/vendor/name/VERSION/KEY.zip`
    Dist(Asked<'a>),
    /// `list.json?filter=…&vendor=…`
    List,
    /// `search.json?q=…&type=…`
    Search,
    /// `downloads`: what a client installed.
    Notify,
    /// `changes.json?since=…`
    Changes,
    /// `filter.json`: what is blocked of what the asker sees.
    Filter,
    /// [`advisories::API`]
    Advisories,
    /// Below [`publish::MOUNT`].
    Publish,
    /// Anything else below `dist/`: an address that another server gave out.
    Old,
    /// `p/vendor/name.json`: a package as another server told it.
    OldPackage { name: &'a str },
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
            "/filter.json" => return Some(Self::Filter),
            advisories::API => return Some(Self::Advisories),
            _ if path.starts_with(publish::MOUNT) => return Some(Self::Publish),
            _ => {}
        }
        if let Some(rest) = path.strip_prefix("/p2/") {
            let file = rest.strip_suffix(".json")?;
            let (name, dev) = file.strip_suffix("~dev").map_or((file, false), |name| (name, true));
            return is_package_path(name).then_some(Self::Package { name, dev });
        }
        if let Some(name) = legacy::document_of(path) {
            return Some(Self::OldPackage { name });
        }
        let old = || (!legacy::readings(path).is_empty()).then_some(Self::Old);
        Asked::parse(path).map(Self::Dist).or_else(old)
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
    downloads: Downloads,
    publisher: Publisher,
    views: Views,
}

impl ComposerRoom {
    /// Over the packages, and what takes new ones in.
    pub fn new(repository: Repository, publisher: Publisher, recorder: Recorder) -> Self {
        let documents = Documents::new(repository.clone());
        let downloads = Downloads { repository: repository.clone(), format: Arc::new(crate::Composer) };
        Self { repository, documents, recorder, downloads, publisher, views: Views::new(1_000) }
    }

    /// Forgets what a change makes stale.
    pub fn on_change(&self, change: &Change) {
        self.repository.on_change(change);
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
        let (found, outdated) = self.documents.package(name, dev).await?.ok_or_else(|| no_package(name))?;
        access.package = Some(Arc::clone(&found.name));
        let mut response = found.document.respond(request);
        if let Some(why) = outdated {
            // Who has no more than a token need not know which host it is.
            tracing::debug!(package = name, why, "what is sent may be outdated");
            stale::warn(&mut response, "the registry that it comes from could not be asked again", None);
        }
        Ok(response)
    }

    async fn dist(
        &self,
        request: &Request,
        asker: &Principal,
        access: &mut AccessNote,
        path: &str,
        wanted: Asked<'_>,
    ) -> Result<Response> {
        access.action = Some(Action::Read);
        access.download = true;
        access.counts = true;
        demand_sight(asker, wanted.name)?;
        let dist = self.downloads.dist(&self.documents, path, wanted).await?;
        access.package = Some(Arc::clone(&dist.package));
        access.version = Some(Arc::clone(&dist.version));
        self.downloads.send(request, &self.documents, path, wanted, &dist).await
    }

    /// What an address of another server stands for; `otherwise` if that is nothing.
    async fn old(
        &self,
        request: &Request,
        asker: &Principal,
        access: &mut AccessNote,
        path: &str,
        otherwise: Error,
    ) -> Result<Response> {
        let may = |name: &str| decide(asker, Action::Read, ID, name) == Decision::Allow;
        let Some(address) = self.repository.from_old(path, may).await? else {
            access.action = Some(Action::Read);
            return Err(otherwise);
        };
        self.dist(request, asker, access, &address.path(), address.asked()).await
    }

    async fn old_package(&self, asker: &Principal, access: &mut AccessNote, name: &str) -> Result<Response> {
        access.action = Some(Action::Read);
        demand_sight(asker, name)?;
        let package = self.repository.find(name).await?.ok_or_else(|| no_package(name))?;
        access.package = Some(package.name.as_str().into());
        let offers = self.repository.offers(package, Part::All).await?;
        let document = self.repository.db.host().heavy(async move { legacy::document(&offers) }).await?;
        Ok(Response::bytes(StatusCode::OK, "application/json", document))
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

fn no_old() -> Error {
    Error::not_found(
        "this address was given out by another server, and what it stands for is not here, or your token may not read it: run `composer update`",
    )
}

#[async_trait]
impl Room for ComposerRoom {
    fn mounts(&self) -> &'static [&'static str] {
        &[
            "/packages.json",
            "/p2/",
            "/p/",
            "/dist/",
            "/list.json",
            "/search.json",
            "/downloads",
            "/changes.json",
            "/filter.json",
            advisories::API,
            publish::MOUNT,
        ]
    }

    async fn handle(&self, request: &mut Request, asker: &Arc<Principal>, access: &mut AccessNote) -> Result<Response> {
        access.format = ID;
        let path = request.decoded_path().into_owned();
        let endpoint = Endpoint::parse(&path).ok_or_else(|| {
            Error::not_found("this is not an address of the Composer repository: it begins at /packages.json")
        })?;
        match endpoint {
            Endpoint::Notify if request.method == Method::POST => {
                notify::notify(&self.repository.db, &self.recorder, request, asker).await
            }
            Endpoint::Notify => Ok(method_not_allowed("POST")),
            Endpoint::Publish => self.publisher.handle(request, asker, access).await,
            Endpoint::Advisories => {
                access.action = Some(Action::Read);
                advisories::api::answer(&self.repository.db, request, asker).await
            }
            _ if !request.reads() => Ok(method_not_allowed("GET, HEAD")),
            Endpoint::Root => self.root(request, asker, access).await,
            Endpoint::Package { name, dev } => self.package(request, asker, access, name, dev).await,
            Endpoint::Dist(wanted) if legacy::is_mirrored(&path) => {
                match self.old(request, asker, access, &path, no_old()).await {
                    Err(error) if error.kind() == Kind::NotFound => {
                        self.dist(request, asker, access, &path, wanted).await
                    }
                    answer => answer,
                }
            }
            Endpoint::Dist(wanted) => match self.dist(request, asker, access, &path, wanted).await {
                Err(error) if error.kind() == Kind::NotFound => self.old(request, asker, access, &path, error).await,
                answer => answer,
            },
            Endpoint::Old => {
                let unknown = if asker.token.is_some() { no_old() } else { unauthenticated() };
                self.old(request, asker, access, &path, unknown).await
            }
            Endpoint::OldPackage { name } => self.old_package(asker, access, name).await,
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
            Endpoint::Filter => {
                access.action = Some(Action::Read);
                let view = self.view(asker)?;
                Ok(self.documents.filter(&view).await?.respond(request))
            }
        }
    }

    /// A client prints `warning` of an error if the content type is exactly `application/json`. It asks for names that are
    /// not here as a matter of course, so that a missing package is no reason to warn.
    fn face(&self, request: &Request, error: &Error) -> Response {
        let message = larder_http::error::told(error);
        let mut body = serde_json::json!({"error": message});
        let is_asked_for_metadata = || {
            let path = request.decoded_path();
            matches!(Endpoint::parse(&path), Some(Endpoint::Package { .. } | Endpoint::OldPackage { .. }))
        };
        let is_no_news = match error.kind() {
            Kind::Unauthenticated => true,
            Kind::NotFound => is_asked_for_metadata(),
            _ => false,
        };
        if !is_no_news {
            body["warning"] = message.into();
        }
        let status: StatusCode = status_of(error.kind());
        larder_http::error::dressed(error, Response::json(status, &body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("/dist/acme/lib/1.0.0.0/abc.tar.bz2", Some(Endpoint::Old)),
            ("/dist/acme/lib/v1.0.0.zip", Some(Endpoint::Old)),
            ("/dist/acme/lib.zip", None),
            ("/p/acme/lib.json", Some(Endpoint::OldPackage { name: "acme/lib" })),
            ("/p/acme.json", None),
        ];
        for (path, expected) in cases {
            assert_eq!(Endpoint::parse(path), expected, "{path}");
        }
    }
}
