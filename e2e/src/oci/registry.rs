//! A client of OCI registries that tests speak themselves: each request of the distribution specification as they want it, and
//! images pushed and pulled as docker does it. For what no real client sends, and for more of it than they would send.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};

use super::{Blob, Manifest};
use crate::wire::{self, Answer};

/// How many bytes of a body are sent in one go.
const PIECE: usize = 64 * 1024;

/// A registry behind one address or several, and who asks it. Each request goes to the next address on a connection of its
/// own.
#[derive(Clone, Debug)]
pub struct Registry {
    doors: Arc<Mutex<Vec<SocketAddr>>>,
    turn: Arc<AtomicUsize>,
    authorization: Option<String>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    path: String,
    headers: Vec<(HeaderName, String)>,
    body: Pieces,
}

/// A body that is sent in pieces.
#[derive(Clone, Debug, Default)]
struct Pieces {
    left: Bytes,
    /// Whether the server is not told how long it is.
    unsaid: bool,
}

/// How a blob is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// POST, one PATCH of unsaid length, PUT: docker, podman, skopeo, crane.
    Streamed,
    /// POST, a PATCH for each so many bytes, PUT.
    Chunked(usize),
    /// POST, one PUT with all bytes: containerd.
    Put,
    /// One POST with all bytes.
    Post,
}

/// Why something could not be pushed or pulled.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The connection broke, or there was none.
    Cut(String),
    /// The server said something else than what was wanted, to this request.
    Said(String, Box<Answer>),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(why) => write!(f, "no answer: {why}"),
            Self::Said(request, answer) => write!(f, "{request}: {} {}", answer.status, answer.text()),
        }
    }
}

impl Trouble {
    /// What the server said, if it said something.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Cut(_) => None,
            Self::Said(_, answer) => Some(answer),
        }
    }

    /// Whether the server said this code of the specification.
    pub fn is(&self, code: &str) -> bool {
        self.answer().is_some_and(|answer| code_of(answer) == code)
    }
}

/// The code of the first error in an answer; empty if there is none.
pub fn code_of(answer: &Answer) -> String {
    let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    document["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
}

impl Ask {
    /// A request without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: Pieces::default() }
    }

    /// GET
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// HEAD
    pub fn head(path: impl Into<String>) -> Self {
        Self::new(Method::HEAD, path)
    }

    /// POST
    pub fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    /// PUT
    pub fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path)
    }

    /// PATCH
    pub fn patch(path: impl Into<String>) -> Self {
        Self::new(Method::PATCH, path)
    }

    /// DELETE
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a body whose length the server is told.
    #[must_use]
    pub fn body(self, bytes: impl Into<Bytes>) -> Self {
        Self { body: Pieces { left: bytes.into(), unsaid: false }, ..self }
    }

    /// With a body whose length the server is not told.
    #[must_use]
    pub fn stream(self, bytes: impl Into<Bytes>) -> Self {
        Self { body: Pieces { left: bytes.into(), unsaid: true }, ..self }
    }

    /// With a chunk of an upload that begins at `offset`.
    #[must_use]
    pub fn chunk(self, offset: usize, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let range = format!("{offset}-{}", (offset + bytes.len()).saturating_sub(1));
        self.with(header::CONTENT_RANGE, range).body(bytes)
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        for (name, value) in self.headers.iter().filter(|(name, _)| *name != header::AUTHORIZATION) {
            write!(f, " [{name}: {value}]")?;
        }
        Ok(())
    }
}

impl Registry {
    /// One behind these addresses, for the bearer of a token.
    pub fn new(doors: &[SocketAddr], token: &str) -> Self {
        let authorization = Some(wire::basic("ci", token));
        Self { doors: Arc::new(Mutex::new(doors.to_vec())), turn: Arc::default(), authorization }
    }

    /// From now on it is behind this address, for everybody who asks it.
    pub fn lead_to(&self, door: SocketAddr) {
        *self.doors.lock().unwrap_or_else(PoisonError::into_inner) = vec![door];
    }

    /// The same for somebody else: the value of an `Authorization` header, or nothing.
    #[must_use]
    pub fn as_somebody(&self, authorization: Option<String>) -> Self {
        Self { authorization, ..self.clone() }
    }

    fn next_door(&self) -> SocketAddr {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors[self.turn.fetch_add(1, Ordering::Relaxed) % doors.len()]
    }

    /// The answer to a request, whatever it is.
    ///
    /// # Panics
    /// If the request cannot be written as HTTP.
    pub async fn try_ask(&self, ask: Ask) -> Result<Answer, Trouble> {
        let mut request = Request::new(ask.body);
        *request.method_mut() = ask.method;
        *request.uri_mut() = ask.path.parse().expect("the test's address is well-formed");
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_static("larder.test"));
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.parse().expect("it is a header's value"));
        }
        for (name, value) in ask.headers {
            headers.append(name, value.parse().expect("it is a header's value"));
        }
        wire::send(self.next_door(), request).await.map_err(Trouble::Cut)
    }

    /// [`try_ask`](Self::try_ask) where there must be an answer.
    ///
    /// # Panics
    /// If there is none.
    pub async fn ask(&self, ask: Ask) -> Answer {
        let shown = ask.to_string();
        self.try_ask(ask).await.unwrap_or_else(|trouble| panic!("{shown}: {trouble}"))
    }

    /// [`try_ask`](Self::try_ask) where the answer must be one of these.
    pub async fn want(&self, ask: Ask, wanted: &[StatusCode]) -> Result<Answer, Trouble> {
        let shown = ask.to_string();
        let answer = self.try_ask(ask).await?;
        if wanted.contains(&answer.status) { Ok(answer) } else { Err(Trouble::Said(shown, Box::new(answer))) }
    }

    /// Begins an upload. Gives its location.
    pub async fn begin(&self, repository: &str) -> Result<String, Trouble> {
        let begin = Ask::post(format!("/v2/{repository}/blobs/uploads/"));
        Ok(location(&self.want(begin, &[StatusCode::ACCEPTED]).await?))
    }

    /// Whether a blob is there, as clients ask before they push it.
    pub async fn has(&self, repository: &str, digest: &str) -> Result<bool, Trouble> {
        let head = Ask::head(format!("/v2/{repository}/blobs/{digest}"));
        Ok(self.want(head, &[StatusCode::OK, StatusCode::NOT_FOUND]).await?.status == StatusCode::OK)
    }

    /// Pushes a blob, whether or not it is there.
    pub async fn push_blob(&self, repository: &str, blob: &Blob, way: Way) -> Result<(), Trouble> {
        let created = [StatusCode::CREATED];
        if way == Way::Post {
            let post = Ask::post(format!("/v2/{repository}/blobs/uploads/?digest={}", blob.digest));
            self.want(octets(post).body(blob.bytes.clone()), &created).await?;
            return Ok(());
        }
        let at = self.begin(repository).await?;
        self.push_to(at, blob, way).await
    }

    /// Pushes a blob in an upload that was begun.
    pub async fn push_to(&self, mut at: String, blob: &Blob, way: Way) -> Result<(), Trouble> {
        let accepted = [StatusCode::ACCEPTED];
        let mut last = Bytes::new();
        match way {
            Way::Streamed => {
                at = location(&self.want(octets(Ask::patch(&at)).stream(blob.bytes.clone()), &accepted).await?);
            }
            Way::Chunked(size) => {
                for begin in (0..blob.bytes.len()).step_by(size) {
                    let chunk = blob.bytes.slice(begin..blob.bytes.len().min(begin + size));
                    at = location(&self.want(octets(Ask::patch(&at)).chunk(begin, chunk), &accepted).await?);
                }
            }
            Way::Put | Way::Post => last = blob.bytes.clone(),
        }
        let put = Ask::put(with_digest(&at, &blob.digest));
        self.want(octets(put).body(last), &[StatusCode::CREATED]).await?;
        Ok(())
    }

    /// Pushes a manifest alone, under a tag or its digest.
    pub async fn push_manifest(&self, repository: &str, to: &str, manifest: &Manifest) -> Result<Answer, Trouble> {
        self.want(put_manifest(repository, to, manifest), &[StatusCode::CREATED]).await
    }

    /// Pushes all that is missing, and then the manifest, as docker does.
    pub async fn push(&self, repository: &str, to: &str, manifest: &Manifest) -> Result<(), Trouble> {
        for part in &manifest.parts {
            Box::pin(self.push(repository, part.digest(), part)).await?;
        }
        for blob in &manifest.blobs {
            if !self.has(repository, &blob.digest).await? {
                self.push_blob(repository, blob, Way::Streamed).await?;
            }
        }
        self.push_manifest(repository, to, manifest).await?;
        Ok(())
    }

    /// Fetches a manifest and everything below it, and checks every byte against its digest. Gives its digest.
    ///
    /// # Panics
    /// If bytes are wrong.
    pub async fn pull(&self, repository: &str, reference: &str) -> Result<String, Trouble> {
        let ok = [StatusCode::OK];
        let answer = self.want(Ask::get(format!("/v2/{repository}/manifests/{reference}")), &ok).await?;
        let manifest = Blob::of(answer.body);
        let said = answer.headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
        assert_eq!(said, Some(manifest.digest.as_str()), "{repository}:{reference} has the digest that is said");
        let document: serde_json::Value = serde_json::from_slice(&manifest.bytes).expect("a manifest is JSON");
        let digests = |list: &str| {
            let list = document[list].as_array().cloned().unwrap_or_default();
            list.iter().filter_map(|one| one["digest"].as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        for part in digests("manifests") {
            Box::pin(self.pull(repository, &part)).await?;
        }
        let config = document["config"]["digest"].as_str().map(str::to_owned);
        for digest in config.into_iter().chain(digests("layers")) {
            let answer = self.want(Ask::get(format!("/v2/{repository}/blobs/{digest}")), &ok).await?;
            assert_eq!(Blob::of(answer.body).digest, digest, "the bytes of a blob of {repository}:{reference}");
        }
        Ok(manifest.digest)
    }
}

/// A request that pushes a manifest alone.
pub fn put_manifest(repository: &str, to: &str, manifest: &Manifest) -> Ask {
    let put = Ask::put(format!("/v2/{repository}/manifests/{to}"));
    put.with(header::CONTENT_TYPE, manifest.media_type.as_str()).body(manifest.blob.bytes.clone())
}

/// Where an answer leads to.
///
/// # Panics
/// If it leads nowhere, or away from this server: every proxy between would have to know of that.
pub fn location(answer: &Answer) -> String {
    let location = answer.header("location");
    assert!(location.starts_with('/'), "a location is relative: `{location}`");
    location.to_owned()
}

/// The location of an upload with the digest with which it ends.
pub fn with_digest(location: &str, digest: &str) -> String {
    format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' })
}

fn octets(ask: Ask) -> Ask {
    ask.with(header::CONTENT_TYPE, "application/octet-stream")
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.left.len().min(PIECE);
        let piece = self.left.split_to(piece);
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if self.unsaid { SizeHint::default() } else { SizeHint::with_exact(self.left.len() as u64) }
    }
}
