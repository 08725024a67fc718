//! Another registry, made of raw sockets: it answers what a test wants, wrong lengths and silence included, and remembers
//! what it was asked.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use larder_core::Digest;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

/// How one path is answered.
#[derive(Clone)]
enum Answer {
    /// A file, and 304 to whoever knows it.
    File(Bytes),
    /// A status and a body.
    Page(u16, Bytes),
    /// 200, and the first half of what was announced.
    Half(Bytes),
    /// A file, to everybody who gets a permit.
    Paced(Bytes, Arc<Semaphore>),
}

/// Another registry, on a loopback address.
#[derive(Clone)]
pub struct Server {
    at: SocketAddr,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    _talks: Arc<JoinSet<()>>,
}

impl Server {
    /// One with a root of the newest layout, and no package.
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (answers, asked) = (Arc::<Mutex<HashMap<_, _>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let mut talks = JoinSet::new();
        let (what, log) = (Arc::clone(&answers), Arc::clone(&asked));
        talks.spawn(async move {
            let mut each = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                // Whoever does not listen any more has its reasons.
                each.spawn(talk(socket, Arc::clone(&what), Arc::clone(&log)));
            }
        });
        let server = Self { at, answers, asked, _talks: Arc::new(talks) };
        server.root(&json!({}));
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    /// Says more of itself.
    pub fn root(&self, more: &Value) {
        let mut root = json!({ "packages": [], "metadata-url": "/p2/%package%.json" });
        root.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.file("/packages.json", root.to_string());
    }

    /// Has these versions of a package.
    pub fn package(&self, part: &str, versions: &[Value]) {
        let name = part.trim_end_matches("~dev");
        self.file(&format!("/p2/{part}.json"), json!({ "packages": { name: versions } }).to_string());
    }

    /// A version with a dist at `/d/VERSION.zip`.
    pub fn version(&self, name: &str, version: &str, shasum: &str) -> Value {
        let dist = json!({
            "type": "zip", "url": self.url(&format!("/d/{version}.zip")), "reference": format!("ref{version}"), "shasum": shasum,
        });
        json!({ "name": name, "version": version, "time": "2026-01-02T03:04:05+00:00", "dist": dist })
    }

    pub fn file(&self, path: &str, body: impl Into<Bytes>) {
        self.put(path, Answer::File(body.into()));
    }

    pub fn page(&self, path: &str, status: u16, body: &'static str) {
        self.put(path, Answer::Page(status, body.into()));
    }

    pub fn half(&self, path: &str, body: impl Into<Bytes>) {
        self.put(path, Answer::Half(body.into()));
    }

    /// Gives a file to as many as the semaphore has permits.
    pub fn paced(&self, path: &str, body: impl Into<Bytes>) -> Arc<Semaphore> {
        let pace = Arc::new(Semaphore::new(0));
        self.put(path, Answer::Paced(body.into(), Arc::clone(&pace)));
        pace
    }

    pub fn forget(&self, path: &str) {
        self.answers.lock().unwrap().remove(path);
    }

    fn put(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// What it was asked since the last time, sorted: each path, with `?` behind it if the asker knew something.
    pub fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.sort();
        asked
    }

    /// Whether it was asked for this, and nobody took notice yet.
    pub fn was_asked(&self, line: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked == line)
    }
}

async fn talk(mut socket: TcpStream, answers: Arc<Mutex<HashMap<String, Answer>>>, log: Arc<Mutex<Vec<String>>>) {
    while let Some(head) = read_head(&mut socket).await {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let known = head.lines().find_map(|line| line.strip_prefix("if-none-match: "));
        log.lock().unwrap().push(format!("{path}{}", if known.is_some() { " ?" } else { "" }));
        let plain = path.split('?').next().unwrap_or_default();
        let answer = answers.lock().unwrap().get(plain).cloned();
        let (status, body, announced) = match answer.unwrap_or(Answer::Page(404, "not here".into())) {
            Answer::File(body) => file(body, known),
            Answer::Paced(body, pace) => {
                pace.acquire().await.unwrap().forget();
                file(body, known)
            }
            Answer::Page(status, body) => (format!("{status} Said"), body.clone(), body.len()),
            Answer::Half(body) => ("200 OK".to_owned(), body.slice(..body.len() / 2), body.len()),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {announced}\r\n\r\n");
        let written = [socket.write_all(head.as_bytes()).await, socket.write_all(&body).await];
        if written.iter().any(Result::is_err) || body.len() != announced {
            return;
        }
    }
}

fn file(body: Bytes, known: Option<&str>) -> (String, Bytes, usize) {
    let tag = format!("\"{}\"", &Digest::of(&body).hex()[..8]);
    if known == Some(tag.as_str()) {
        return ("304 Same".to_owned(), Bytes::new(), 0);
    }
    let length = body.len();
    (format!("200 OK\r\nETag: {tag}"), body, length)
}

async fn read_head(socket: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}
