//! A server of a registry's files on loopback: it remembers what it was asked, wants a secret if a test says so, and does
//! what real ones do on bad days.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Catalogue, Layout};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The first moment of the feed of changes: it counts on with each change.
const EPOCH: u64 = 17_000_000_000_000;

/// What is done to a request in place of answering it.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The whole length is announced, half of it is sent, and the connection ends.
    BreakOff,
    /// Half of the bytes as if they were all: nothing in the message shows it.
    Half,
    /// No answer, ever.
    Silence,
    /// Half of the bytes, and then no more, ever.
    Stall,
    /// This status, with a page of HTML.
    Status(u16),
    /// 429, with the seconds after which to ask again.
    Busy(u64),
    /// A page of HTML with status 200.
    Page,
    /// The right answer, after this time.
    Slow(Duration),
    /// A redirect to this URL.
    Redirect(String),
    /// A redirect to itself, each time with another query.
    Loop,
    /// A body without end.
    Endless,
    /// JSON so deep that whoever recurses falls.
    Deep,
    /// Half a gigabyte of spaces before some JSON, small on the wire.
    Bomb,
    /// These bytes in place of the right ones.
    Bytes(Bytes),
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET`
    pub method: String,
    /// With its query.
    pub path: String,
    /// Of the answer.
    pub status: u16,
    /// What it said.
    pub headers: HeaderMap,
}

impl Asked {
    /// Whether it was for a dist.
    pub fn is_dist(&self) -> bool {
        is_dist(&self.path)
    }

    /// A header as text; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

#[derive(Debug)]
struct File {
    bytes: Bytes,
    /// The change that it came with.
    change: u64,
}

#[derive(Debug)]
struct State {
    catalogue: Catalogue,
    layout: Layout,
    files: BTreeMap<String, File>,
    /// How often something changed.
    change: u64,
    /// Names (with `~dev` after those of branches), the kind of each change, and its number.
    feed: Vec<(String, &'static str, u64)>,
    /// The header without which nothing is told.
    secret: Option<(String, String)>,
    faults: Vec<(String, Fault)>,
    asked: Vec<Asked>,
}

/// See the file.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Starts one.
    pub async fn start(catalogue: Catalogue, layout: Layout) -> Self {
        let state = State {
            catalogue,
            layout,
            files: BTreeMap::new(),
            change: 0,
            feed: Vec::new(),
            secret: None,
            faults: Vec::new(),
            asked: Vec::new(),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut upstream = Self { address, state: Arc::new(Mutex::new(state)), task: None };
        upstream.resume().await;
        upstream.change(|_| ());
        upstream
    }

    /// Serves again, at the same address.
    ///
    /// # Panics
    /// If somebody else has it.
    pub async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("a port on loopback is free");
        self.address = listener.local_addr().expect("a listener has an address");
        let state = Arc::clone(&self.state);
        self.task = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                let service = service_fn(move |request| answer(request, Arc::clone(&state)));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
                while connections.try_join_next().is_some() {}
            }
        }));
    }

    /// Stops serving: connections are refused, and those that are open end.
    pub async fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            drop(task.await);
        }
    }

    /// `http://127.0.0.1:PORT`, without the folder of the registry.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The URL of the registry.
    pub fn url(&self) -> String {
        format!("{}{}", self.base(), self.state().layout.folder)
    }

    /// What it has.
    pub fn catalogue(&self) -> Catalogue {
        self.state().catalogue.clone()
    }

    /// How it tells that.
    pub fn layout(&self) -> Layout {
        self.state().layout.clone()
    }

    /// Changes what it has. Files that are other ones then are newer, too.
    pub fn change(&self, change: impl FnOnce(&mut Catalogue)) {
        self.change_all(|catalogue, _| change(catalogue));
    }

    /// Changes what it has, or how it tells it.
    pub fn change_all(&self, change: impl FnOnce(&mut Catalogue, &mut Layout)) {
        let base = self.base();
        let mut state = self.state();
        let state = &mut *state;
        let before = state.catalogue.clone();
        change(&mut state.catalogue, &mut state.layout);
        state.change += 1;
        let mut files = BTreeMap::new();
        for (path, bytes) in state.layout.files(&state.catalogue, &base) {
            let old = state.files.get(&path).filter(|file| file.bytes == bytes).map(|file| file.change);
            files.insert(path, File { bytes, change: old.unwrap_or(state.change) });
        }
        // As static hosts do, it keeps files that nothing names any more, if they are dists.
        for (path, file) in std::mem::take(&mut state.files) {
            if is_dist(&path) && !files.contains_key(&path) {
                files.insert(path, file);
            }
        }
        state.files = files;
        for (name, kind) in differences(&before, &state.catalogue) {
            state.feed.push((name, kind, state.change));
        }
    }

    /// From now on it tells nothing to whoever does not show this header.
    pub fn lock(&self, header: &str, value: &str) {
        self.state().secret = Some((header.to_owned(), value.to_owned()));
    }

    /// From now on this is done to requests for `path`, which may begin or end with `*`. The last fault that fits counts.
    pub fn fault(&self, path: &str, fault: Fault) {
        self.state().faults.push((path.to_owned(), fault));
    }

    /// No fault any more.
    pub fn recover(&self) {
        self.state().faults.clear();
    }

    /// The requests since this was last asked.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }

    /// The requests since that was last asked, as `GET /packages.json 200`, sorted.
    pub fn requests(&self) -> Vec<String> {
        let line = |asked: Asked| format!("{} {} {}", asked.method, asked.path, asked.status);
        let mut lines: Vec<_> = self.asked().into_iter().map(line).collect();
        lines.sort();
        lines
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn is_dist(path: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, kind)| kind == "zip")
}

/// The documents that are other ones now, and what happened to them.
fn differences(before: &Catalogue, after: &Catalogue) -> Vec<(String, &'static str)> {
    let mut found = Vec::new();
    for name in before.packages.keys().chain(after.packages.keys().filter(|name| !before.packages.contains_key(*name)))
    {
        let versions = |catalogue: &Catalogue, branches: bool| -> Vec<_> {
            let releases = catalogue.packages.get(name).into_iter().flatten();
            releases.filter(|release| release.is_branch() == branches).cloned().collect()
        };
        for (suffix, branches) in [("", false), ("~dev", true)] {
            let (old, new) = (versions(before, branches), versions(after, branches));
            if old != new {
                found.push((format!("{name}{suffix}"), if new.is_empty() { "delete" } else { "update" }));
            }
        }
    }
    found
}

/// What is to be done with a request: decided at once, done afterwards.
struct Plan {
    status: StatusCode,
    headers: Vec<(header::HeaderName, String)>,
    bytes: Bytes,
    fault: Option<Fault>,
}

impl Plan {
    fn of(status: StatusCode, kind: &str, bytes: impl Into<Bytes>) -> Self {
        Self { status, headers: vec![(header::CONTENT_TYPE, kind.to_owned())], bytes: bytes.into(), fault: None }
    }

    fn page(status: StatusCode) -> Self {
        Self::of(status, "text/html; charset=utf-8", "<!doctype html><title>Sorry</title><p>Please try again later.\n")
    }
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    // A client that is still sending does not read.
    drop(body.collect().await);
    let plan = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = decide(&state, &head);
        state.asked.push(Asked {
            method: head.method.to_string(),
            path: head.uri.query().map_or(path_of(&head), |query| format!("{}?{query}", path_of(&head))),
            status: plan.status.as_u16(),
            headers: head.headers.clone(),
        });
        plan
    };
    if let Some(Fault::Slow(time)) = plan.fault {
        tokio::time::sleep(time).await;
    }
    if matches!(plan.fault, Some(Fault::Silence)) {
        std::future::pending::<()>().await;
    }
    let is_head = head.method == Method::HEAD || plan.status == StatusCode::NOT_MODIFIED;
    let mut response = Response::new(body_of(&plan, is_head));
    *response.status_mut() = plan.status;
    for (name, value) in plan.headers {
        response.headers_mut().insert(name, value.parse().expect("the header is text"));
    }
    if !is_head && !matches!(plan.fault, Some(Fault::Endless)) {
        response.headers_mut().insert(header::CONTENT_LENGTH, plan.bytes.len().into());
    }
    Ok(response)
}

fn body_of(plan: &Plan, is_head: bool) -> Body {
    let half = plan.bytes.slice(..plan.bytes.len() / 2);
    let pieces = match plan.fault {
        _ if is_head => stream::empty().boxed(),
        Some(Fault::BreakOff) => {
            let broken = std::io::Error::other("the test breaks it off");
            stream::iter([Ok(half), Err(broken)]).boxed()
        }
        Some(Fault::Stall) => stream::iter([Ok(half)]).chain(stream::pending()).boxed(),
        Some(Fault::Endless) => {
            let piece = plan.bytes.clone();
            stream::repeat_with(move || Ok(piece.clone())).boxed()
        }
        _ => stream::iter([Ok(plan.bytes.clone())]).boxed(),
    };
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// The path as it is meant: some clients write `%24` for the `$` before a hash.
fn path_of(head: &http::request::Parts) -> String {
    percent_encoding::percent_decode_str(head.uri.path()).decode_utf8_lossy().into_owned()
}

fn decide(state: &State, head: &http::request::Parts) -> Plan {
    let path = path_of(head);
    if let Some((name, value)) = &state.secret
        && head.headers.get(name).is_none_or(|shown| shown != value)
    {
        let mut plan = Plan::of(StatusCode::UNAUTHORIZED, "application/json", r#"{"message": "Who are you?"}"#);
        plan.headers.push((header::WWW_AUTHENTICATE, "Basic realm=\"upstream\"".to_owned()));
        return plan;
    }
    let fits = |pattern: &str| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => path.ends_with(end),
        (_, Some(begin)) => path.starts_with(begin),
        _ => path == pattern,
    };
    match state.faults.iter().rev().find(|(pattern, _)| fits(pattern)) {
        Some((_, fault)) => misbehave(state, head, fault),
        None => serve(state, head),
    }
}

fn serve(state: &State, head: &http::request::Parts) -> Plan {
    let path = path_of(head);
    let folder = &state.layout.folder;
    if head.method == Method::POST {
        return Plan::of(StatusCode::OK, "application/json", r#"{"status": "success"}"#);
    }
    if state.layout.changes && path == format!("{folder}/changes.json") {
        return changes(state, head.uri.query().unwrap_or_default());
    }
    let Some(file) = state.files.get(&path) else {
        return Plan::of(StatusCode::NOT_FOUND, "application/json", r#"{"error": "not found, my dear"}"#);
    };
    let date = date(file.change);
    let mut plan = Plan::of(StatusCode::OK, "application/zip", file.bytes.clone());
    plan.headers.push((header::LAST_MODIFIED, date.clone()));
    if head.headers.get(header::IF_MODIFIED_SINCE).is_some_and(|known| known == date.as_str()) {
        plan.status = StatusCode::NOT_MODIFIED;
    } else if !is_dist(&path) {
        plan.headers[0] = (header::CONTENT_TYPE, "application/json".to_owned());
        let accepted = head.headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
        if accepted.is_some_and(|accepted| accepted.contains("gzip")) {
            plan.headers.push((header::CONTENT_ENCODING, "gzip".to_owned()));
            plan.bytes = gzip(&plan.bytes);
        }
    }
    plan
}

fn misbehave(state: &State, head: &http::request::Parts, fault: &Fault) -> Plan {
    let status = |code| StatusCode::from_u16(code).expect("it is a status");
    let json = |bytes: Bytes| Plan::of(StatusCode::OK, "application/json", bytes);
    let elsewhere = |to: String| {
        let mut plan = Plan::page(StatusCode::FOUND);
        plan.headers.push((header::LOCATION, to));
        plan
    };
    match fault {
        Fault::Status(code) => Plan::page(status(*code)),
        Fault::Busy(seconds) => {
            let mut plan = Plan::page(StatusCode::TOO_MANY_REQUESTS);
            plan.headers.push((header::RETRY_AFTER, seconds.to_string()));
            plan
        }
        Fault::Page => Plan::page(StatusCode::OK),
        Fault::Redirect(to) => elsewhere(to.clone()),
        Fault::Loop => {
            let turn = head.uri.query().and_then(|turn| turn.parse::<u64>().ok()).unwrap_or_default() + 1;
            elsewhere(format!("{}?{turn}", head.uri.path()))
        }
        Fault::Deep => {
            let deep = 200_000;
            json([b"{\"packages\": ".as_slice(), &b"[".repeat(deep), &b"]".repeat(deep), b"}"].concat().into())
        }
        Fault::Bomb => {
            let mut plan = json(bomb());
            plan.headers.push((header::CONTENT_ENCODING, "gzip".to_owned()));
            plan
        }
        Fault::Bytes(bytes) => {
            let mut plan = serve(state, head);
            plan.headers.retain(|(name, _)| name != header::CONTENT_ENCODING);
            Plan { status: StatusCode::OK, bytes: bytes.clone(), ..plan }
        }
        Fault::Half => {
            let mut plan = serve(state, head);
            plan.headers.retain(|(name, _)| name != header::CONTENT_ENCODING);
            let whole = state.files.get(&path_of(head)).map(|file| file.bytes.clone()).unwrap_or_default();
            Plan { bytes: whole.slice(..whole.len() / 2), ..plan }
        }
        Fault::Endless => Plan { fault: Some(Fault::Endless), ..json(Bytes::from(vec![b' '; 64 << 10])) },
        Fault::BreakOff | Fault::Silence | Fault::Stall | Fault::Slow(_) => {
            Plan { fault: Some(fault.clone()), ..serve(state, head) }
        }
    }
}

/// The feed of changes since a moment. What is older than all that it remembers means: look at everything again.
fn changes(state: &State, query: &str) -> Plan {
    let now = EPOCH + state.change;
    let since = query.split('&').find_map(|pair| pair.strip_prefix("since=")?.parse::<u64>().ok());
    let Some(since) = since else {
        let said = json!({"error": "Invalid or missing \"since\" query parameter", "timestamp": now});
        return Plan::of(StatusCode::BAD_REQUEST, "application/json", said.to_string());
    };
    let actions: Vec<Value> = if since < EPOCH {
        vec![json!({"type": "resync", "package": "*", "time": state.change})]
    } else {
        let newer = state.feed.iter().filter(|(_, _, change)| EPOCH + change > since);
        newer.map(|(name, kind, change)| json!({"type": kind, "package": name, "time": change})).collect()
    };
    let said = json!({"actions": actions, "timestamp": now});
    Plan::of(StatusCode::OK, "application/json", said.to_string())
}

/// A moment for each change, a second apart.
fn date(change: u64) -> String {
    format!("Tue, 05 Mar 2024 {:02}:{:02}:{:02} GMT", change / 3600 % 24, change / 60 % 60, change % 60)
}

fn gzip(bytes: &[u8]) -> Bytes {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).expect("memory takes everything");
    packed.finish().expect("memory takes everything").into()
}

/// A few hundred kilobytes that are half a gigabyte.
fn bomb() -> Bytes {
    static PACKED: LazyLock<Bytes> = LazyLock::new(|| {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        let piece = vec![b' '; 1 << 20];
        for _ in 0..512 {
            packed.write_all(&piece).expect("memory takes everything");
        }
        packed.write_all(b"{\"packages\": {}}").expect("memory takes everything");
        packed.finish().expect("memory takes everything").into()
    });
    PACKED.clone()
}
