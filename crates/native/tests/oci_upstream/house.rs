//! A house with a room and a clock, into which requests go directly.

use std::{cmp::Ordering, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use larder_auth::{Authenticator, Passes};
use larder_blobs::Blobs;
use larder_core::{
    Digest, Result,
    format::Format,
    grant::{Grant, Principal, PrincipalName},
};
use larder_db::{Db, changes::Change, events::Actor};
use larder_http::{AccessNote, Body, Request, RequestId, Response, Room as _};
use larder_native::{
    fetch::{FetchSettings, HttpFetch},
    git::{GitProgram, GitSettings},
    store::Disk,
};
pub use larder_oci::model::INDEX;
use larder_oci::{Gate, ID, OciRoom, Proxy, Registry};
use larder_sources::{
    Limits, Sources,
    registry::{self, NewRegistry},
    vault::{SecretKey, Vault},
};
use larder_testkit::{FakeClock, Scratch};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::upstream::Upstream;

/// Far more than anything here takes; only a failure waits for it.
pub const AT_MOST: Duration = Duration::from_secs(20);

/// The media type of one image.
pub fn image_type() -> String {
    INDEX.replace("index", "manifest")
}

/// What the sources must know of the format.
struct Proxied;

impl Format for Proxied {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        ID
    }

    fn artifact(&self) -> &'static str {
        larder_oci::MANIFEST
    }

    fn proxied(&self) -> Option<larder_core::format::Proxied> {
        Some(larder_core::format::Proxied { prefix: true, links: false })
    }

    fn compare(&self, a: &str, b: &str) -> Ordering {
        a.cmp(b)
    }

    fn package_name(&self, name: &str) -> Result<String> {
        Ok(name.to_owned())
    }

    fn install_snippet(&self, _: &str, name: &str) -> String {
        name.to_owned()
    }
}

/// Everything here.
pub struct House {
    pub db: Db,
    pub clock: FakeClock,
    pub blobs: Blobs,
    pub sources: Sources,
    pub vault: Vault,
    pub room: OciRoom,
    pub asker: Arc<Principal>,
    _folder: tempfile::TempDir,
    _scratch: Scratch,
}

impl House {
    pub async fn each() -> Vec<(Self, Upstream)> {
        let mut houses = Vec::new();
        for scratch in Scratch::each().await {
            houses.push((Self::over(scratch).await, Upstream::new().await));
        }
        houses
    }

    async fn over(scratch: Scratch) -> Self {
        let (host, clock) = larder_testkit::host::host();
        let folder = tempfile::tempdir().unwrap();
        let db = scratch.db(&host).await;
        let blobs = Blobs::new(db.clone(), Arc::new(Disk::open(folder.path()).unwrap()), host.clone());
        let vault = Vault::new(SecretKey::new([3; 32]), []);
        let git = Arc::new(GitProgram::new(GitSettings::below(folder.path())));
        let formats = [Arc::new(Proxied) as _].into();
        let sources = Sources::new(db.clone(), blobs.clone(), git, vault.clone(), formats, Limits::default(), true);
        let room = room(&db, &blobs, &vault);
        let grants = vec!["*:*:*".parse::<Grant>().unwrap()];
        let name = PrincipalName::Token("ci".to_owned());
        let asker = Arc::new(Principal { name, grants, token: Some(host.new_id()), ..Principal::default() });
        Self { db, clock, blobs, sources, vault, room, asker, _folder: folder, _scratch: scratch }
    }

    pub async fn add(&self, upstream: &Upstream, name: &str, only: &[&str], change: impl FnOnce(&mut NewRegistry<'_>)) {
        let url = upstream.url();
        let only = only.iter().map(|pattern| pattern.parse().unwrap()).collect();
        let (credential, prefix) = (None, None);
        let mut new = NewRegistry {
            format: ID,
            url: &url,
            name: Some(name),
            credential,
            only,
            fresh: registry::FRESH,
            prefix,
            dists: registry::Dists::Here,
            show_source: None,
        };
        change(&mut new);
        self.sources.add_registry(&Actor::command_line(), new).await.unwrap();
        self.room.on_change(&Change::Topic(registry::TOPIC.to_owned()));
    }

    /// As another process would have it that starts now.
    pub fn restart(&mut self) {
        self.room = room(&self.db, &self.blobs, &self.vault);
    }

    pub async fn send(&self, method: Method, address: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Response> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(header::HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        let id = RequestId { process: 1, number: 1 };
        let client = IpAddr::from([127, 0, 0, 1]);
        let mut request = Request::new(method, address.parse().unwrap(), map, body.into(), client, id).unwrap();
        let mut access = AccessNote::default();
        let answer = self.room.handle(&mut request, &self.asker, &mut access);
        let answer = timeout(AT_MOST, answer).await.unwrap();
        Ok(answer.unwrap_or_else(|error| self.room.face(&request, &error)))
    }

    pub async fn get(&self, address: &str) -> Response {
        self.send(Method::GET, address, &[], Bytes::new()).await.unwrap()
    }

    pub async fn head(&self, address: &str) -> Response {
        self.send(Method::HEAD, address, &[], Bytes::new()).await.unwrap()
    }

    /// What the body of a GET is. It must be right.
    pub async fn read(&self, address: &str) -> Bytes {
        let response = self.get(address).await;
        assert_eq!(response.status, StatusCode::OK, "{address}: {}", text(&response));
        whole(response.body).await.unwrap()
    }

    pub async fn push(&self, name: &str, tag: &str, manifest: &Value) -> Response {
        let headers = [("content-type", manifest["mediaType"].as_str().unwrap())];
        let address = format!("/v2/{name}/manifests/{tag}");
        self.send(Method::PUT, &address, &headers, manifest.to_string().into()).await.unwrap()
    }

    pub async fn upload(&self, name: &str, bytes: &[u8]) -> Response {
        let address = format!("/v2/{name}/blobs/uploads/?digest={}", Digest::of(bytes));
        self.send(Method::POST, &address, &[], Bytes::copy_from_slice(bytes)).await.unwrap()
    }

    /// How many blobs there are.
    pub async fn blobs(&self) -> u64 {
        larder_db::blobs::totals(&self.db).await.unwrap().0
    }

    pub fn later(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

fn room(db: &Db, blobs: &Blobs, vault: &Vault) -> OciRoom {
    let authenticator = Authenticator::new(db.clone(), Passes::new([7; 32], []));
    let registry = Registry::new(db.clone(), blobs.clone());
    let fetch = Arc::new(HttpFetch::new(FetchSettings::new(true)).unwrap());
    let proxy = Proxy::new(registry.clone(), vault.clone(), fetch, true);
    OciRoom::new(registry, Gate::new(authenticator, db.host().clone(), None)).with_proxy(proxy)
}

pub fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
}

pub fn image(layers: &[&[u8]]) -> Value {
    let layer = |layer: &&[u8]| descriptor("test/layer", layer);
    json!({
        "schemaVersion": 2,
        "mediaType": image_type(),
        "config": descriptor("test/config", b"{}"),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

pub fn digest_of(manifest: &Value) -> Digest {
    Digest::of(manifest.to_string().as_bytes())
}

pub fn text(response: &Response) -> String {
    match &response.body {
        Body::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    }
}

pub async fn whole(body: Body) -> Result<Bytes> {
    let mut all = Vec::new();
    let mut stream = body.into_stream();
    while let Some(piece) = timeout(AT_MOST, stream.next()).await.unwrap() {
        all.extend_from_slice(&piece?);
    }
    Ok(all.into())
}

pub fn noise(length: usize) -> Bytes {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 256).unwrap()).collect()
}

pub fn refused(response: &Response, status: u16, words: &[&str]) {
    let said = text(response);
    let missing = words.iter().find(|words| !said.contains(*words));
    assert!(response.status.as_u16() == status && missing.is_none(), "{}: {said} ({missing:?})", response.status);
}
