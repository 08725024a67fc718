//! What URL does what. A request becomes one [`Endpoint`]; what the asker may not see is answered as if it were not there.
//!
//! All state of an upload is in its path, and every `Location` is relative: no proxy in front of Larder can break either.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use http::{HeaderValue, Method, StatusCode, header};
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
    answer::{API_VERSION, OCI_SUBJECT, OCI_TAG, Page, created, value},
    call::Call,
    endpoint::{Endpoint, ROOT},
    error::{Code, Refusal, face},
    manifests::{PUSH, Push},
    model,
    names::{self, Reference},
    shelf::{self, Kept, Shelf},
    token::Gate,
    upstream::{Listed, Looked, OCI_NAMESPACE, Proxy, Stale},
};

/// How many tags one manifest may be pushed under at once.
const MOST_TAGS: usize = 64;

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
        self.registry.book.on_change(change);
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
            Endpoint::Token if reads || method == Method::POST => {
                self.gate.give(call.request, call.asker, call.access).await
            }
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

/// The manifest that is asked for by somebody who does not push it if it is here.
fn relied_on<'a>(request: &Request, asker: &Principal, name: &str, reference: &'a Reference<'_>) -> Option<&'a Digest> {
    let Reference::Digest(digest) = reference else { return None };
    let relies = request.method == Method::HEAD && decide(asker, Action::Publish, ID, name) == Decision::Allow;
    relies.then_some(digest)
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
