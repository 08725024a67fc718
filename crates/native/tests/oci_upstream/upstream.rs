//! Another registry, made of raw sockets, because no library could be made to lie like this.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use larder_core::Digest;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};

use crate::house::{digest_of, image};

/// How the other registry answers.
#[derive(Clone)]
pub enum Answer {
    /// A status with headers, and a body.
    Page(String, Bytes),
    /// 200, and then fewer bytes than announced.
    Cut(Bytes, usize),
    /// As many bytes as these, from where they are asked for, and then the end.
    Breaking(Bytes, usize),
    /// 200, and then as many pieces as there are permits.
    Paced(Bytes, usize, Arc<Semaphore>),
    /// Nothing, for ever.
    Hang,
}

pub fn page(status: &str, body: impl Into<Bytes>) -> Answer {
    Answer::Page(status.to_owned(), body.into())
}

pub fn manifest_page(manifest: &Value) -> Answer {
    let kind = manifest["mediaType"].as_str().unwrap();
    let digest = digest_of(manifest);
    page(&format!("200 OK\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {digest}"), manifest.to_string())
}

/// Another registry, on a loopback address.
#[derive(Clone)]
pub struct Upstream {
    pub at: SocketAddr,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    seen: Arc<Mutex<Vec<String>>>,
    /// A header without which everything is 401, and the challenge.
    pub lock: Arc<Mutex<Option<(String, String)>>>,
    listening: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Upstream {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Self {
            at: listener.local_addr().unwrap(),
            answers: Arc::default(),
            seen: Arc::default(),
            lock: Arc::default(),
            listening: Arc::default(),
        };
        let this = upstream.clone();
        let task = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let this = this.clone();
                talks.spawn(async move {
                    // Whoever does not listen any more has its reasons.
                    let _ = this.talk(socket).await;
                });
            }
        });
        *upstream.listening.lock().unwrap() = Some(task);
        upstream
    }

    /// From now on nobody is there.
    pub async fn die(&self) {
        let task = self.listening.lock().unwrap().take().unwrap();
        task.abort();
        drop(task.await);
    }

    async fn talk(&self, mut socket: TcpStream) -> std::io::Result<()> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if socket.read(&mut byte).await? == 0 {
                    return Ok(());
                }
                head.extend(byte);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let line = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
            let (method, path) = line.split_once(' ').unwrap();
            self.seen.lock().unwrap().push(line.clone());
            let answer = self.answer(path, &head);
            let only_head = method == "HEAD";
            match answer {
                Answer::Hang => std::future::pending().await,
                Answer::Page(status, body) => {
                    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
                    socket.write_all(head.as_bytes()).await?;
                    if !only_head {
                        socket.write_all(&body).await?;
                    }
                }
                Answer::Cut(body, at) => {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    socket.write_all(head.as_bytes()).await?;
                    socket.write_all(&body[..at]).await?;
                    return Ok(());
                }
                Answer::Breaking(body, most) => {
                    let range = head.to_ascii_lowercase().split("range: bytes=").nth(1).map(str::to_owned);
                    let from = range.map_or(0, |range| range.split('-').next().unwrap().parse::<usize>().unwrap());
                    let status = format!("206 Part\r\nContent-Range: bytes {from}-{}/{}", body.len() - 1, body.len());
                    let status = if from > 0 { &status } else { "200 OK" };
                    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len() - from);
                    socket.write_all(head.as_bytes()).await?;
                    socket.write_all(&body[from..body.len().min(from + most)]).await?;
                    return Ok(());
                }
                Answer::Paced(body, piece, pace) => {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    socket.write_all(head.as_bytes()).await?;
                    for piece in body.chunks(piece).filter(|_| !only_head) {
                        pace.acquire().await.unwrap().forget();
                        socket.write_all(piece).await?;
                        socket.flush().await?;
                    }
                }
            }
        }
    }

    fn answer(&self, path: &str, head: &str) -> Answer {
        let lock = self.lock.lock().unwrap().clone();
        if let Some((key, challenge)) = lock
            && !path.starts_with("/token")
            && !head.to_ascii_lowercase().contains(&key.to_ascii_lowercase())
        {
            return page(&format!("401 Unauthorized\r\nWWW-Authenticate: {challenge}"), "who?");
        }
        let answers = self.answers.lock().unwrap();
        let plain = path.split('?').next().unwrap();
        answers.get(path).or(answers.get(plain)).cloned().unwrap_or_else(|| page("404 Not Found", "nothing"))
    }

    pub fn set(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    pub fn forget(&self, path: &str) {
        self.answers.lock().unwrap().remove(path);
    }

    /// Has an image of these layers under a tag. Gives its manifest.
    pub fn has(&self, name: &str, tag: &str, layers: &[&[u8]]) -> Value {
        let manifest = image(layers);
        for blob in layers.iter().chain(&[b"{}".as_slice()]) {
            let at = format!("/v2/{name}/blobs/{}", Digest::of(blob));
            self.set(&at, page("200 OK", Bytes::copy_from_slice(blob)));
        }
        self.names(name, tag, &manifest);
        manifest
    }

    pub fn names(&self, name: &str, tag: &str, manifest: &Value) {
        for reference in [tag, &digest_of(manifest).to_string()] {
            self.set(&format!("/v2/{name}/manifests/{reference}"), manifest_page(manifest));
        }
    }

    /// What it was asked for since the last time.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.at)
    }
}
