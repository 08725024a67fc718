//! What URL does what. A request becomes one [`Endpoint`]; what the asker may not see is answered as if it were not there.
//!
//! All state of an upload is in its path, and every `Location` is relative: no proxy in front of Larder can break either.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use larder_auth::{Decision, decide};
use larder_core::{
    Digest, Error, Kind, Result,
    grant::{Action, Principal},
};
use larder_db::{changes::Change, policies};
use larder_http::{AccessNote, Document, Request, Response, Room};
use serde_json::json;

use crate::{
    ID, Registry,
    error::{Code, Refusal, face},
    manifests::{PUSH, Push},
    model,
    names::{self, Reference},
    shelf::{self, Kept, Shelf},
    token::Gate,
    upstream::{Listed, Looked, OCI_NAMESPACE, Proxy, Stale},
};

/// The digest of what is answered with.
pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Where all of it lives.
const ROOT: &str = "/v2/";

/// How many tags one manifest may be pushed under at once.
const MOST_TAGS: usize = 64;

/// The longest page of a list.
const LONGEST_PAGE: usize = 10_000;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint<'a> {
    /// `/v2/`: whether this is a registry, and who is asking.
    Base,
    /// `/v2/token`
    Token,
    /// `/v2/_catalog`
    Catalog,
    /// `name/tags/list`
    Tags { name: &'a str },
    /// `name/manifests/REFERENCE`
    Manifest { name: &'a str, reference: &'a str },
    /// `name/blobs/DIGEST`
    Blob { name: &'a str, digest: &'a str },
    /// `name/blobs/uploads/`
    Uploads { name: &'a str },
    /// `name/blobs/uploads/ID`
    Upload { name: &'a str, id: &'a str },
    /// `name/referrers/DIGEST`
    Referrers { name: &'a str, digest: &'a str },
}

impl<'a> Endpoint<'a> {
    /// Reads a decoded path. A name may have words of this protocol in it, so what comes last decides.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        if path == "/v2" {
            return Some(Self::Base);
        }
        let rest = path.strip_prefix(ROOT)?;
        match rest {
            "" => return Some(Self::Base),
            "token" => return Some(Self::Token),
            "_catalog" => return Some(Self::Catalog),
            _ => {}
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(Self::Tags { name });
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads").or_else(|| rest.strip_suffix("/blobs/uploads/")) {
            return Some(Self::Uploads { name });
        }
        let (before, last) = rest.rsplit_once('/')?;
        if let Some(name) = before.strip_suffix("/blobs/uploads") {
            return Some(Self::Upload { name, id: last });
        }
        let (name, word) = before.rsplit_once('/')?;
        match word {
            "manifests" => Some(Self::Manifest { name, reference: last }),
            "blobs" => Some(Self::Blob { name, digest: last }),
            "referrers" => Some(Self::Referrers { name, digest: last }),
            _ => None,
        }
    }

    /// The repository that it is about.
    pub(crate) fn name(&self) -> Option<&'a str> {
        match self {
            Self::Base | Self::Token | Self::Catalog => None,
            Self::Tags { name }
            | Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. }
            | Self::Referrers { name, .. } => Some(name),
        }
    }

    fn methods(&self) -> &'static str {
        match self {
            Self::Base | Self::Catalog | Self::Tags { .. } | Self::Referrers { .. } => "GET, HEAD",
            Self::Token => "GET, POST",
            Self::Manifest { .. } => "GET, HEAD, PUT, DELETE",
            Self::Blob { .. } => "GET, HEAD, DELETE",
            Self::Uploads { .. } => "POST",
            Self::Upload { .. } => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }
}

/// One request to a repository.
pub(crate) struct Call<'a> {
    pub(crate) request: &'a mut Request,
    pub(crate) asker: &'a Arc<Principal>,
    pub(crate) access: &'a mut AccessNote,
    pub(crate) name: &'a str,
    /// The path by which answers are remembered: it says what is asked for, in the names that are used here.
    pub(crate) path: &'a str,
    pub(crate) gate: &'a Gate,
}

impl Call<'_> {
    /// Asks the one place that decides, and notes what was wanted.
    pub(crate) fn demand(&mut self, action: Action) -> Result<(), Refusal> {
        self.access.action = Some(action);
        self.access.package = Some(self.name.into());
        match decide(self.asker, action, ID, self.name) {
            Decision::Allow => Ok(()),
            Decision::Unauthenticated => Err(self.gate.who_are_you(self.request, Some((self.name, action)))),
            _ if self.asker.limited => Err(self.gate.ask_for_more(self.request, self.name, action)),
            _ if action == Action::Read => Err(Refusal::no_repository(self.name)),
            _ => Err(Refusal::new(
                Code::Denied,
                format!("{} may not {} `{}`", self.asker.name, action.as_str(), self.name),
                format!("`larder grant add {} {}:{ID}:{}` allows it", self.asker.name, action.as_str(), self.name),
            )),
        }
    }

    /// The path by which answers are remembered.
    pub(crate) fn path(&self) -> String {
        self.path.to_owned()
    }
}

/// The room.
pub struct OciRoom {
    pub(crate) registry: Registry,
    pub(crate) shelf: Shelf,
    /// Where repositories of other registries come from.
    pub(crate) proxy: Option<Proxy>,
    gate: Gate,
}

impl OciRoom {
    /// Over the operations, with the gate that gives out tokens.
    pub fn new(registry: Registry, gate: Gate) -> Self {
        Self { registry, shelf: Shelf::new(), proxy: None, gate }
    }

    /// With repositories of other registries.
    #[must_use]
    pub fn with_proxy(self, proxy: Proxy) -> Self {
        Self { proxy: Some(proxy), ..self }
    }

    /// Forgets what a change makes stale.
    pub fn on_change(&self, change: &Change) {
        if let Some(proxy) = &self.proxy {
            proxy.on_change(change);
        }
        match change {
            Change::Everything => self.shelf.clear(),
            Change::Topic(topic) if topic == policies::TOPIC => {}
            Change::Topic(topic) => {
                if let Some(name) = topic.strip_prefix("package:").and_then(|rest| rest.strip_prefix("oci:")) {
                    self.shelf.forget(name);
                }
            }
        }
    }

    async fn answer(
        &self,
        request: &mut Request,
        asker: &Arc<Principal>,
        access: &mut AccessNote,
    ) -> Result<Response, Refusal> {
        access.format = ID;
        if let Some(response) = self.warm(request, asker, access) {
            return Ok(response);
        }
        let namespace = request.query()?.get("ns").filter(|namespace| !namespace.is_empty()).map(Cow::into_owned);
        let mut path = request.decoded_path().into_owned();
        if let Some(namespace) = &namespace {
            path = self.in_our_names(request, asker, namespace, &path).await?;
        }
        let response = self.answer_at(request, asker, access, &path).await?;
        Ok(match namespace {
            Some(namespace) => response.with(OCI_NAMESPACE, value(&namespace)),
            None => response,
        })
    }

    /// The path of a request to a mirror of another registry. Mirrors are only read.
    async fn in_our_names(
        &self,
        request: &Request,
        asker: &Principal,
        namespace: &str,
        path: &str,
    ) -> Result<String, Refusal> {
        let Some(proxy) = self.proxy.as_ref().filter(|_| request.reads()) else {
            return Err(Refusal::new(
                Code::Unsupported,
                format!("nothing of {namespace} is to be had or changed here"),
                "push without ?ns=, under a name of this registry",
            ));
        };
        proxy.path_for(asker, namespace, path).await
    }

    async fn answer_at(
        &self,
        request: &mut Request,
        asker: &Arc<Principal>,
        access: &mut AccessNote,
        path: &str,
    ) -> Result<Response, Refusal> {
        let endpoint = Endpoint::parse(path).ok_or_else(|| {
            Refusal::new(
                Code::Unsupported,
                "there is nothing at this address",
                "see the OCI distribution specification",
            )
            .status(StatusCode::NOT_FOUND)
        })?;
        let method = request.method.clone();
        let name = endpoint.name().unwrap_or_default();
        if endpoint.name().is_some() {
            names::check_name(name)?;
        }
        let mut call = Call { request, asker, access, name, path, gate: &self.gate };
        let reads = method == Method::GET || method == Method::HEAD;
        match &endpoint {
            Endpoint::Base if reads => self.base(&call),
            Endpoint::Token if reads || method == Method::POST => self.gate.give(&mut call).await,
            Endpoint::Catalog if reads => self.catalog(&mut call).await,
            Endpoint::Tags { .. } if reads => self.tags(&mut call).await,
            Endpoint::Referrers { digest, .. } if reads => {
                let digest = names::parse_digest(digest)?;
                self.referrers(&mut call, &digest).await
            }
            Endpoint::Manifest { reference, .. } => {
                let reference = Reference::parse(reference)?;
                match method {
                    Method::GET | Method::HEAD => self.manifest(&mut call, &reference).await,
                    Method::PUT => self.put_manifest(&mut call, &reference).await,
                    Method::DELETE => self.delete_manifest(&mut call, &reference).await,
                    _ => Err(not_allowed(&endpoint)),
                }
            }
            Endpoint::Blob { digest, .. } if reads => {
                let digest = names::parse_digest(digest)?;
                self.blob(&mut call, &digest).await
            }
            Endpoint::Blob { digest, .. } if method == Method::DELETE => {
                let digest = names::parse_digest(digest)?;
                self.delete_blob(&mut call, &digest).await
            }
            Endpoint::Uploads { .. } if method == Method::POST => self.begin_upload(&mut call).await,
            Endpoint::Upload { id, .. } => match method {
                Method::GET | Method::HEAD => self.upload_status(&mut call, id).await,
                Method::PATCH => self.continue_upload(&mut call, id).await,
                Method::PUT => self.finish_upload(&mut call, id).await,
                Method::DELETE => self.cancel_upload(&mut call, id).await,
                _ => Err(not_allowed(&endpoint)),
            },
            _ => Err(not_allowed(&endpoint)),
        }
    }

    /// A manifest that is in memory. Clusters ask for the same few all day long, so this way allocates nothing.
    fn warm(&self, request: &Request, asker: &Principal, access: &mut AccessNote) -> Option<Response> {
        if !request.reads() || request.query().is_ok_and(|query| query.get("ns").is_some()) {
            return None;
        }
        let path = request.decoded_path();
        let Some(Endpoint::Manifest { name, reference }) = Endpoint::parse(&path) else { return None };
        if decide(asker, Action::Read, ID, name) != Decision::Allow {
            return None;
        }
        let reference = Reference::parse(reference).ok()?;
        if relied_on(request, asker, name, &reference).is_some() {
            return None;
        }
        let Some(Kept::Manifest(served)) = self.shelf.get(&path) else { return None };
        access.action = Some(Action::Read);
        access.download = true;
        access.counts = true;
        access.package = Some(Arc::clone(&served.name));
        access.version = Some(Arc::clone(&served.text));
        Some(served.respond(request))
    }

    /// Clients read here how to log in, even where anonymous may read: only then do they ever log in.
    fn base(&self, call: &Call<'_>) -> Result<Response, Refusal> {
        if call.asker.token.is_none() && !call.asker.limited {
            return Err(self.gate.who_are_you(call.request, None));
        }
        Ok(Response::json(StatusCode::OK, &json!({})))
    }

    async fn manifest(&self, call: &mut Call<'_>, reference: &Reference<'_>) -> Result<Response, Refusal> {
        call.demand(Action::Read)?;
        call.access.download = true;
        call.access.counts = true;
        let looked = match &self.proxy {
            Some(proxy) => proxy.manifest(call.name, reference).await?,
            None => Looked::Own,
        };
        if let Looked::Here { changed: true } = looked {
            self.shelf.forget(call.name);
        }
        if let Some(digest) = relied_on(call.request, call.asker, call.name, reference) {
            self.registry.rely_on_manifest(call.name, digest).await?;
        }
        let flag = self.shelf.flag(call.name);
        let served = Arc::new(self.registry.manifest(call.name, reference).await?);
        // A tag of another registry is looked at again when its time has come; its manifest never changes.
        let lasts = matches!(looked, Looked::Own) || matches!(reference, Reference::Digest(_));
        if lasts && served.bytes.len() <= shelf::LARGEST {
            self.shelf.keep(&call.path(), Kept::Manifest(Arc::clone(&served)), flag);
        }
        call.access.version = Some(Arc::clone(&served.text));
        Ok(looked.dress(self.registry.host().now(), served.respond(call.request)))
    }

    /// Refuses to change what comes from another registry.
    pub(crate) async fn refuse_push(&self, name: &str) -> Result<(), Refusal> {
        match &self.proxy {
            Some(proxy) => proxy.refuse_push(name).await,
            None => Ok(()),
        }
    }

    async fn put_manifest(&self, call: &mut Call<'_>, reference: &Reference<'_>) -> Result<Response, Refusal> {
        call.demand(Action::Publish)?;
        self.refuse_push(call.name).await?;
        let bytes = call.request.body.read_all(model::LARGEST).await.map_err(too_large)?;
        let query = call.request.query()?;
        let also: Vec<Cow<'_, str>> = query.pairs().filter(|(name, _)| name == "tag").map(|(_, tag)| tag).collect();
        let (digest, mut tags) = match reference {
            Reference::Tag(tag) => (None, vec![*tag]),
            Reference::Digest(digest) => (Some(*digest), Vec::new()),
        };
        for tag in &also {
            names::check_tag(tag)?;
            if !tags.contains(&tag.as_ref()) {
                tags.push(tag);
            }
        }
        if tags.len() > MOST_TAGS {
            return Err(Refusal::new(
                Code::ManifestInvalid,
                format!("{} tags in one request are too many", tags.len()),
                format!("send {MOST_TAGS} at most, and the others in another request"),
            )
            .status(StatusCode::URI_TOO_LONG));
        }
        let content_type = call.request.header(header::CONTENT_TYPE);
        let push = Push { name: call.name, digest, tags, content_type, bytes, origin: PUSH };
        let pushed = self.registry.publish(call.asker, &push).await?;
        // Whoever pushed sees it at once; the other replicas hear of it within a second.
        self.shelf.forget(call.name);
        call.access.version = Some(pushed.digest.to_string().into());
        let mut response = created(call.name, "manifests", &pushed.digest);
        if let Some(subject) = &pushed.subject {
            response.headers.insert(OCI_SUBJECT, value(&subject.to_string()));
        }
        for tag in &also {
            response.headers.append(OCI_TAG, value(tag));
        }
        Ok(response)
    }

    async fn delete_manifest(&self, call: &mut Call<'_>, reference: &Reference<'_>) -> Result<Response, Refusal> {
        call.demand(Action::Delete)?;
        let actor = larder_db::events::Actor::from(call.asker.as_ref());
        match reference {
            Reference::Tag(tag) => self.registry.delete_tag(&actor, call.name, tag).await?,
            Reference::Digest(digest) => {
                call.access.version = Some(digest.to_string().into());
                self.registry.delete_manifest(&actor, call.name, digest).await?;
            }
        }
        self.shelf.forget(call.name);
        Ok(Response::empty(StatusCode::ACCEPTED))
    }

    async fn tags(&self, call: &mut Call<'_>) -> Result<Response, Refusal> {
        call.demand(Action::Read)?;
        let stale = match &self.proxy {
            None => None,
            Some(proxy) => match proxy.tags(call.name).await? {
                Listed::Own => None,
                Listed::OnlyHere(stale) => Some(stale),
                Listed::There(names, stale) => {
                    let page = Page::of(call.request, &names)?;
                    let answer = page.answer(call.request, &json!({ "name": call.name, "tags": page.names }));
                    return Ok(Stale::dressed(stale.as_ref(), self.registry.host().now(), answer));
                }
            },
        };
        let path = call.path();
        let tags = if let Some(Kept::Tags(tags)) = self.shelf.get(&path) {
            tags
        } else {
            let flag = self.shelf.flag(call.name);
            let names = self.registry.tag_names(call.name).await?;
            let names = names.ok_or_else(|| Refusal::no_repository(call.name))?;
            let tags = Arc::new(shelf::Tags { names, whole: OnceLock::new() });
            self.shelf.keep(&path, Kept::Tags(Arc::clone(&tags)), flag);
            tags
        };
        let page = Page::of(call.request, &tags.names)?;
        let list = || json!({ "name": call.name, "tags": page.names });
        if page.names.len() == tags.names.len() {
            let whole = tags.whole.get_or_init(|| Document::new("application/json", list().to_string(), None));
            return Ok(Stale::dressed(stale.as_ref(), self.registry.host().now(), whole.respond(call.request)));
        }
        Ok(Stale::dressed(stale.as_ref(), self.registry.host().now(), page.answer(call.request, &list())))
    }

    async fn catalog(&self, call: &mut Call<'_>) -> Result<Response, Refusal> {
        call.access.action = Some(Action::Read);
        let view = self.gate.view(call.asker);
        if view.is_empty() && call.asker.token.is_none() {
            return Err(self.gate.who_are_you(call.request, None));
        }
        let mut names = self.registry.repository_names().await?;
        names.retain(|name| view.sees(name));
        let page = Page::of(call.request, &names)?;
        Ok(page.answer(call.request, &json!({ "repositories": page.names })))
    }
}

#[async_trait]
impl Room for OciRoom {
    fn mounts(&self) -> &'static [&'static str] {
        &["/v2", ROOT]
    }

    fn admits(&self, request: &Request) -> bool {
        matches!(Endpoint::parse(&request.decoded_path()), Some(Endpoint::Token))
    }

    async fn handle(&self, request: &mut Request, asker: &Arc<Principal>, access: &mut AccessNote) -> Result<Response> {
        let response = match self.answer(request, asker, access).await {
            Ok(response) => response,
            Err(Refusal::Said(said)) => (*said).into(),
            Err(Refusal::House(error)) => return Err(error),
        };
        Ok(response.with(API_VERSION, HeaderValue::from_static("registry/2.0")))
    }

    fn face(&self, request: &Request, error: &Error) -> Response {
        self.gate.dressed(request, error, face(error)).with(API_VERSION, HeaderValue::from_static("registry/2.0"))
    }
}

/// One page of a sorted list.
struct Page<'a> {
    names: &'a [String],
    /// The page's length, if more come after it.
    more: Option<usize>,
}

impl<'a> Page<'a> {
    /// The page that `n` and `last` ask for.
    fn of(request: &Request, all: &'a [String]) -> Result<Self, Refusal> {
        let query = request.query()?;
        let last = query.get("last").unwrap_or_default();
        let start = if last.is_empty() { 0 } else { all.partition_point(|name| name.as_str() <= last.as_ref()) };
        let wanted = match query.get("n") {
            None => LONGEST_PAGE,
            Some(text) => text.parse::<usize>().map(|n| n.min(LONGEST_PAGE)).map_err(|_| {
                Refusal::new(
                    Code::Unsupported,
                    format!("n={text} is not a number"),
                    "give the length of a page as n=100",
                )
                .status(StatusCode::BAD_REQUEST)
            })?,
        };
        let end = all.len().min(start.saturating_add(wanted));
        Ok(Self { names: &all[start..end], more: (end < all.len() && wanted > 0).then_some(wanted) })
    }

    fn answer(&self, request: &Request, body: &serde_json::Value) -> Response {
        let mut response = Response::json(StatusCode::OK, body);
        if let (Some(n), Some(last)) = (self.more, self.names.last()) {
            let rest = format!("n={n}&last={}", link::encoded(last));
            response.headers.insert(header::LINK, link::next(&request.decoded_path(), &rest));
        }
        response
    }
}

/// Where the next page is (RFC 8288).
pub(crate) mod link {
    use std::fmt::Write as _;

    use http::HeaderValue;

    /// Where the next page is, by the header of somebody else.
    pub(crate) fn target(text: &str) -> Option<&str> {
        text.split(',').find_map(|link| {
            let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            let is_next = |parameter: &str| {
                let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
            };
            parameters.split(';').any(is_next).then_some(target)
        })
    }

    /// The header's value.
    pub(crate) fn next(path: &str, query: &str) -> HeaderValue {
        let text = format!("<{path}?{query}>; rel=\"next\"");
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
    }

    /// Text as a value of a query.
    pub(crate) fn encoded(text: &str) -> String {
        text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
                out.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
            out
        })
    }
}

/// The manifest that is asked for by somebody who does not push it if it is here.
fn relied_on<'a>(request: &Request, asker: &Principal, name: &str, reference: &'a Reference<'_>) -> Option<&'a Digest> {
    let Reference::Digest(digest) = reference else { return None };
    let relies = request.method == Method::HEAD && decide(asker, Action::Publish, ID, name) == Decision::Allow;
    relies.then_some(digest)
}

/// 201: it is at `name/KIND/DIGEST` now.
pub(crate) fn created(name: &str, kind: &str, digest: &Digest) -> Response {
    let digest = digest.to_string();
    Response::empty(StatusCode::CREATED)
        .with(header::LOCATION, value(&format!("{ROOT}{name}/{kind}/{digest}")))
        .with(DOCKER_CONTENT_DIGEST, value(&digest))
}

/// A header's value out of text that was checked to be visible ASCII.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

fn too_large(error: Error) -> Refusal {
    if error.kind() != Kind::TooLarge {
        return error.into();
    }
    let what = format!("the manifest has more than the {} bytes that clients take", model::LARGEST);
    Refusal::new(Code::SizeInvalid, what, "put what makes it so large into a blob")
        .status(StatusCode::PAYLOAD_TOO_LARGE)
}

fn not_allowed(endpoint: &Endpoint<'_>) -> Refusal {
    Refusal::new(
        Code::Unsupported,
        "this address does not know this method",
        format!("it knows {}", endpoint.methods()),
    )
    .with(header::ALLOW, HeaderValue::from_static(endpoint.methods()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let cases = [
            ("/v2", Some(Endpoint::Base)),
            ("/v2/", Some(Endpoint::Base)),
            ("/v2/token", Some(Endpoint::Token)),
            ("/v2/_catalog", Some(Endpoint::Catalog)),
            ("/v2/a/tags/list", Some(Endpoint::Tags { name: "a" })),
            ("/v2/a/b/tags/list", Some(Endpoint::Tags { name: "a/b" })),
            ("/v2/a/manifests/1", Some(Endpoint::Manifest { name: "a", reference: "1" })),
            ("/v2/a/manifests/b/manifests/1", Some(Endpoint::Manifest { name: "a/manifests/b", reference: "1" })),
            ("/v2/a/blobs/uploads", Some(Endpoint::Uploads { name: "a" })),
            ("/v2/a/blobs/uploads/", Some(Endpoint::Uploads { name: "a" })),
            ("/v2/a/blobs/uploads/x", Some(Endpoint::Upload { name: "a", id: "x" })),
            ("/v2/a/blobs/uploads/b/blobs/uploads/x", Some(Endpoint::Upload { name: "a/blobs/uploads/b", id: "x" })),
            (
                "/v2/a/referrers/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                Some(Endpoint::Referrers { name: "a", digest }),
            ),
            ("/v2/a", None),
            ("/v2/a/b", None),
            ("/v2/a/other/x", None),
            ("/v3/", None),
        ];
        for (path, expected) in cases {
            assert_eq!(Endpoint::parse(path), expected, "{path}");
        }
    }

    #[test]
    fn next_pages_of_others_are_found() {
        for (text, expected) in [
            (r#"</v2/a/tags/list?n=2&last=b>; rel="next""#, Some("/v2/a/tags/list?n=2&last=b")),
            (r#"<https://a.example.org/x>; rel="prev", <y>; title=z; REL=Next"#, Some("y")),
            (r#"<x>; rel="prev""#, None),
            ("x; rel=next", None),
            ("", None),
        ] {
            assert_eq!(link::target(text), expected, "{text}");
        }
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(link::encoded("application/vnd.a+json"), "application/vnd.a%2Bjson");
    }
}
