//! A server of a registry's files on loopback: it remembers what it was asked, wants a secret if a test says so, and does
//! what real ones do on bad days.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    Catalogue, Layout,
    answer::{answer, is_dist},
};

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
pub(super) struct File {
    pub(super) bytes: Bytes,
    /// The change that it came with.
    pub(super) change: u64,
}

/// What it has and does, and what it was asked.
#[derive(Debug)]
pub(super) struct State {
    pub(super) catalogue: Catalogue,
    pub(super) layout: Layout,
    pub(super) files: BTreeMap<String, File>,
    /// How often something changed.
    pub(super) change: u64,
    /// Names (with `~dev` after those of branches), the kind of each change, and its number.
    pub(super) feed: Vec<(String, &'static str, u64)>,
    /// The header without which nothing is told.
    pub(super) secret: Option<(String, String)>,
    pub(super) faults: Vec<(String, Fault)>,
    pub(super) asked: Vec<Asked>,
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
