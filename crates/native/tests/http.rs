//! The HTTP kit behind the real listener, on a real socket, spoken to in raw bytes: what a client library would never
//! send is what is of interest here.

#![expect(clippy::unwrap_used, reason = "the functions around the tests are tests too")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderName, HeaderValue};
use larder_core::{
    Digest, Error, Kind, Result, Time,
    digest::Algorithm,
    grant::{Action, Grant, Principal, PrincipalName},
};
use larder_http::{
    Access, AccessLog, AccessNote, Authenticator, Body, Document, File, Part, Readiness, Request, Response, Room, Site,
};
use larder_native::listener::{Limits, Listener, Proxies};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// Far more than anything here takes; only a failure waits for it.
const AT_MOST: Duration = Duration::from_secs(20);

const AUTH: &str = "Authorization: Bearer lrd_good\r\n";

/// A room with one endpoint per thing to test.
struct TestRoom {
    document: Document,
    small: Document,
    file: File,
    /// The same bytes, whose digest is longer and whose type is known late.
    long: File,
    bytes: Bytes,
    /// Told when a hanging request begins, and when what it holds is dropped.
    begun: Notify,
    ended: Arc<Notify>,
    go_on: Notify,
}

struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl TestRoom {
    fn new() -> Self {
        let text = r#"{"packages":{"acme/lib":[{"version":"1.0.0"}]}}"#.repeat(100);
        let bytes = Bytes::from((0..=255).cycle().take(10_000).collect::<Vec<u8>>());
        Self {
            document: Document::new("application/json", text, Some(Time::from_seconds(1_790_000_000))),
            small: Document::new("application/json", "{}", None),
            file: File::new(Digest::of(&bytes), bytes.len() as u64, "application/zip")
                .with_always(HeaderName::from_static("x-digest"), HeaderValue::from_static("always")),
            long: File::new(Digest::of_as(Algorithm::Sha512, &bytes), bytes.len() as u64, "text/plain")
                .with_type(HeaderValue::try_from(String::from("application/x.known-late")).unwrap()),
            bytes,
            begun: Notify::new(),
            ended: Arc::new(Notify::new()),
            go_on: Notify::new(),
        }
    }

    fn endless(&self) -> Response {
        let guard = Dropped(self.ended.clone());
        let piece = Bytes::from(vec![b'x'; 65_536]);
        let stream = stream::repeat_with(move || {
            let _held = &guard;
            Ok(piece.clone())
        });
        Response { body: Body::Stream { len: None, stream: stream.boxed() }, ..Response::default() }
    }

    fn short(&self) -> Response {
        let stream = stream::iter([Ok(self.bytes.clone())]).boxed();
        Response { body: Body::Stream { len: Some(20_000), stream }, ..Response::default() }
    }
}

#[async_trait]
impl Room for TestRoom {
    fn mounts(&self) -> &'static [&'static str] {
        &["/room/", "/exact.json"]
    }

    fn admits(&self, request: &Request) -> bool {
        request.path() == "/room/open"
    }

    fn face(&self, request: &Request, error: &Error) -> Response {
        let face = larder_http::error::face(error);
        if request.path() != "/room/challenge" || error.kind() != Kind::Unauthenticated {
            return face;
        }
        let scope =
            request.query().ok().and_then(|query| query.get("scope").map(|scope| format!(r#"Bearer scope="{scope}""#)));
        face.with(http::header::WWW_AUTHENTICATE, HeaderValue::try_from(scope.unwrap()).unwrap())
    }

    async fn handle(&self, request: &mut Request, asker: &Arc<Principal>, access: &mut AccessNote) -> Result<Response> {
        let path = request.decoded_path().into_owned();
        match (path.as_str(), request.reads()) {
            ("/room/document" | "/exact.json", true) => {
                *access = AccessNote {
                    action: Some(Action::Read),
                    format: "test",
                    package: Some("acme/lib".into()),
                    ..AccessNote::default()
                };
                Ok(self.document.respond(request))
            }
            ("/room/small", true) => Ok(self.small.respond(request)),
            ("/room/file" | "/room/long", true) => {
                let bytes = &self.bytes;
                let open = |range: Option<std::ops::Range<u64>>| async move {
                    let at = |position| usize::try_from(position).unwrap();
                    Ok(Body::from(range.map_or(bytes.clone(), |range| bytes.slice(at(range.start)..at(range.end)))))
                };
                let file = if path == "/room/long" { &self.long } else { &self.file };
                file.respond(request, open).await
            }
            ("/room/count", false) => {
                let mut length = 0;
                while let Some(chunk) = request.body.chunk().await? {
                    length += chunk.len();
                }
                Ok(Response::bytes(http::StatusCode::OK, "text/plain", length.to_string()))
            }
            ("/room/open", false) => {
                let body = request.body.read_all(1_000).await?;
                Ok(Response::bytes(
                    http::StatusCode::OK,
                    "text/plain",
                    [asker.name.to_string().as_bytes(), b" ", &body].concat(),
                ))
            }
            ("/room/echo", false) => {
                let body = request.body.read_all(1_000).await?;
                Ok(Response::bytes(http::StatusCode::OK, "text/plain", body))
            }
            ("/room/endless", true) => Ok(self.endless()),
            ("/room/short", true) => Ok(self.short()),
            ("/room/panic", true) => panic!("on purpose"),
            ("/room/secret", true) => Err(Error::internal("testing", "a secret of the inside")),
            ("/room/hang", true) => {
                let _guard = Dropped(self.ended.clone());
                self.begun.notify_one();
                self.go_on.notified().await;
                Ok(Response::bytes(http::StatusCode::OK, "text/plain", "at last"))
            }
            ("/room/echo", true) => Ok(larder_http::error::method_not_allowed("POST")),
            (_, true) => Err(Error::not_found("there is no such thing")),
            (_, false) => Ok(larder_http::error::method_not_allowed("GET, HEAD")),
        }
    }
}

/// Who, which package, with what result, from where, with which program.
type Seen = (String, Option<String>, u16, IpAddr, Option<String>);

/// Everything around the room, as simple as it can be.
#[derive(Default)]
struct Around {
    accesses: Mutex<Vec<Seen>>,
    broken: AtomicBool,
}

#[async_trait]
impl Authenticator for Around {
    fn cached(&self, _: Option<&str>) -> Option<Arc<Principal>> {
        None
    }

    async fn authenticate(&self, token: Option<&str>, _: IpAddr) -> Result<Arc<Principal>> {
        let (name, grants) = match token {
            Some("standing for nobody") => return Ok(Arc::new(Principal { limited: true, ..Principal::default() })),
            None => (PrincipalName::Anonymous, Vec::new()),
            Some("lrd_good") => (PrincipalName::Token("good".to_owned()), vec![Grant::read_everything()]),
            Some(_) => return Err(Error::new(Kind::Unauthenticated, "this token is not known here")),
        };
        Ok(Arc::new(Principal { name, grants, ..Principal::default() }))
    }
}

impl AccessLog for Around {
    fn record(&self, access: Access<'_>) {
        self.accesses.lock().unwrap().push((
            access.asker.name.to_string(),
            access.note.package.as_deref().map(str::to_owned),
            access.status.as_u16(),
            access.address,
            access.user_agent.map(str::to_owned),
        ));
    }
}

#[async_trait]
impl Readiness for Around {
    async fn check(&self) -> Vec<Part> {
        let broken = self.broken.load(Ordering::Relaxed);
        let state = if broken { Err(Error::internal("asking the database", "its address")) } else { Ok(()) };
        vec![Part { name: "database", state }, Part { name: "store", state: Ok(()) }]
    }
}

struct Server {
    address: SocketAddr,
    room: Arc<TestRoom>,
    around: Arc<Around>,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        Self::with(Limits::default(), "").await
    }

    async fn with(limits: Limits, proxies: &str) -> Self {
        let room = Arc::new(TestRoom::new());
        let around = Arc::new(Around::default());
        let site = Site::new(larder_native::host::system(), around.clone(), around.clone(), around.clone())
            .with_room(&(room.clone() as Arc<dyn Room>));
        let listener = Listener::bind("127.0.0.1:0", limits, proxies.parse::<Proxies>().unwrap()).await.unwrap();
        let address = listener.address().unwrap();
        let (stop, stopped) = oneshot::channel();
        let done = tokio::spawn(listener.serve(Arc::new(site), async {
            drop(stopped.await);
        }));
        Self { address, room, around, stop: Some(stop), done }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes on a new connection and reads until the server closes it.
    async fn talk(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        // The server may answer and close before it has read all of it.
        drop(stream.write_all(bytes.as_ref()).await);
        rest_of(&mut stream).await
    }

    /// One request with a token, on a connection of its own.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> String {
        self.talk(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{AUTH}{headers}\r\n")).await
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }
}

async fn rest_of(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is as good an end as any.
    drop(timeout(AT_MOST, stream.read_to_end(&mut answer)).await.expect("the server leaves the connection open"));
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap();
    head.lines().skip(1).filter_map(|line| line.split_once(": ")).find(|(own, _)| *own == name).map(|(_, value)| value)
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn what_no_client_should_send() {
    let server = Server::start().await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{AUTH}\r\n");
    let with =
        |headers: &str| format!("GET /room/small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{AUTH}{headers}\r\n");
    let cases: Vec<(String, u16)> = vec![
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("\0\0\0\0".to_owned(), 400),
        ("GET\r\n\r\n".to_owned(), 400),
        ("GET /room/small HTTP/9.9\r\n\r\n".to_owned(), 400),
        ("GET /room/small HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400),
        ("GET /room/small HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned(), 400),
        ("POST /room/echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_owned(), 400),
        (with(&format!("X: {}\r\n", "x".repeat(20_000))), 431),
        (with(&"X: y\r\n".repeat(200)), 431),
        (get(&format!("/room/{}", "x".repeat(9_000))), 414),
        (get("/room/%"), 400),
        (get("/room/%zz"), 400),
        (get("/room/%00"), 400),
        (get("/room/%ff"), 400),
        (get("/room/../room/small"), 400),
        (get("/room/%2e%2e/room/small"), 400),
        (get("/room/a%2f..%2f..%2fetc"), 400),
        (get("/room/..%5cetc"), 400),
        (get("//room/small"), 400),
        (get("/room//small"), 400),
        (get("/room/small?q=%"), 200),
        (get("/nowhere"), 404),
        (get("/room/nothing"), 404),
        (get("/roomy"), 404),
        (get("http://elsewhere/room/small"), 200),
        (with("Authorization: Basic =\r\n"), 200),
        (with("Range: bytes=9-1\r\n"), 200),
        (with("If-None-Match: \x7f\r\n"), 400),
    ];
    for (request, expected) in cases {
        let answer = server.talk(&request).await;
        assert_eq!(status(&answer), expected, "{}\n{answer}", request.chars().take(100).collect::<String>());
    }
    // Half a request and then nothing: no answer, and no harm.
    for half in ["", "GE", "GET / HTTP/1.1\r\nHost", "POST /room/echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf"] {
        let mut stream = server.connect().await;
        stream.write_all(half.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = rest_of(&mut stream).await;
        assert!(!answer.contains(" 200 ") && !answer.contains(" 50"), "{half:?}: {answer}");
    }
    assert_eq!(status(&server.ask("GET", "/room/small", "").await), 200);
}

#[tokio::test]
async fn methods() {
    let server = Server::start().await;
    for (method, path, expected, allow) in [
        ("POST", "/room/small", 405, Some("GET, HEAD")),
        ("OPTIONS", "/room/small", 405, Some("GET, HEAD")),
        ("BREW", "/room/small", 405, Some("GET, HEAD")),
        ("get", "/room/small", 405, Some("GET, HEAD")),
        ("TRACE", "/room/small", 405, Some("GET, HEAD")),
        ("GET", "/room/echo", 405, Some("POST")),
        ("POST", "/healthz", 405, Some("GET, HEAD")),
        ("OPTIONS", "*", 400, None),
        ("CONNECT", "example.org:443", 400, None),
    ] {
        let answer = server.ask(method, path, "").await;
        assert_eq!((status(&answer), header(&answer, "allow")), (expected, allow), "{method} {path}\n{answer}");
    }
}

#[tokio::test]
async fn strangers_get_401_everywhere_but_for_the_probes() {
    let server = Server::start().await;
    for path in ["/", "/room/small", "/nowhere", "/exact.json"] {
        for token in ["", "Authorization: Bearer lrd_bad\r\n", "Authorization: Basic ???\r\n", "PRIVATE-TOKEN: x\r\n"] {
            let answer =
                server.talk(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{token}\r\n")).await;
            assert_eq!(status(&answer), 401, "{path} {token}");
            assert_eq!(header(&answer, "www-authenticate"), Some(r#"Basic realm="Larder", charset="UTF-8""#));
            assert_eq!(header(&answer, "content-type"), Some("application/json"));
        }
    }
    let health = server.talk("GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert_eq!((status(&health), body(&health)), (200, "ok\n"));
    let ready = server.talk("GET /readyz HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    let parts = r#"{"ready":true,"parts":[{"name":"database","ready":true},{"name":"store","ready":true}]}"#;
    assert_eq!((status(&ready), body(&ready)), (200, parts));
}

#[tokio::test]
async fn a_broken_part_is_told_but_not_why() {
    let server = Server::start().await;
    server.around.broken.store(true, Ordering::Relaxed);
    let ready = server.talk("GET /readyz HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    let parts = r#"{"ready":false,"parts":[{"name":"database","ready":false},{"name":"store","ready":true}]}"#;
    assert_eq!((status(&ready), body(&ready)), (503, parts));
}

#[tokio::test]
async fn failures_of_ours_tell_nothing_and_harm_nobody() {
    let server = Server::start().await;
    for path in ["/room/panic", "/room/secret"] {
        let answer = server.ask("GET", path, "").await;
        assert_eq!(status(&answer), 500);
        assert!(header(&answer, "x-request-id").is_some());
        assert!(!answer.contains("purpose") && !answer.contains("secret of"), "{answer}");
    }
    // A body that ends early must not look complete: it has no end, or no beginning either.
    let short = server.ask("GET", "/room/short", "").await;
    assert!(short.is_empty() || (header(&short, "content-length") == Some("20000") && body(&short).len() < 20_000));
    assert_eq!(status(&server.ask("GET", "/room/small", "").await), 200);
}

#[tokio::test]
async fn documents_are_conditional_and_encoded() {
    let server = Server::start().await;
    let plain = server.ask("GET", "/room/document", "").await;
    assert_eq!(header(&plain, "content-encoding"), None);
    assert_eq!(header(&plain, "vary"), Some("accept-encoding"));
    assert_eq!(header(&plain, "last-modified"), Some("Mon, 21 Sep 2026 14:13:20 GMT"));
    let tag = header(&plain, "etag").unwrap();

    let zstd = server.ask("GET", "/room/document", "Accept-Encoding: deflate, gzip, br, zstd\r\n").await;
    assert_eq!(header(&zstd, "content-encoding"), Some("zstd"));
    assert!(header(&zstd, "content-length").unwrap().parse::<usize>().unwrap() < body(&plain).len() / 10);
    let zstd_tag = header(&zstd, "etag").unwrap();
    assert_ne!(tag, zstd_tag);

    for (condition, expected) in [
        (format!("If-None-Match: {tag}\r\n"), 304),
        (format!("If-None-Match: W/{tag}\r\n"), 304),
        (format!("If-None-Match: {zstd_tag}\r\n"), 200),
        (format!("Accept-Encoding: zstd\r\nIf-None-Match: {zstd_tag}\r\n"), 304),
        (format!("Accept-Encoding: gzip\r\nIf-None-Match: {zstd_tag}\r\n"), 200),
        ("If-Modified-Since: Mon, 21 Sep 2026 14:13:20 GMT\r\n".to_owned(), 304),
        ("If-Modified-Since: Mon, 21 Sep 2026 14:13:21 GMT\r\n".to_owned(), 200),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = server.ask(method, "/room/document", &condition).await;
            assert_eq!(status(&answer), expected, "{method} {condition}");
            if expected == 304 {
                assert_eq!(body(&answer), "");
                assert_eq!(header(&answer, "content-length"), None, "{answer}");
                assert!(header(&answer, "etag").is_some() && header(&answer, "last-modified").is_some());
            }
        }
    }
    let small = server.ask("GET", "/room/small", "Accept-Encoding: gzip\r\n").await;
    assert_eq!((header(&small, "content-encoding"), body(&small)), (None, "{}"));
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = Server::start().await;
    for path in ["/room/document", "/room/file", "/room/small", "/room/nothing", "/nowhere", "/healthz"] {
        let get = server.ask("GET", path, "").await;
        let head = server.ask("HEAD", path, "").await;
        assert_eq!(status(&get), status(&head), "{path}");
        assert_eq!(header(&get, "content-length"), header(&head, "content-length"), "{path}\n{head}");
        assert_eq!(header(&get, "etag"), header(&head, "etag"), "{path}");
        assert_eq!(body(&head), "", "{path}");
    }
}

#[tokio::test]
async fn a_room_may_admit_strangers_and_challenge_by_address() {
    let server = Server::start().await;
    let post = |path: &str, headers: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: 2\r\n\r\nin")
    };
    let answer = server.talk(post("/room/open", "")).await;
    assert_eq!((status(&answer), body(&answer)), (200, "anonymous in"));
    let answer = server.talk(post("/room/open", AUTH)).await;
    assert_eq!((status(&answer), body(&answer)), (200, "token:good in"));
    // Whoever shows something that is good is not asked for a token, whatever it allows.
    let shown =
        "GET /room/small HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer standing for nobody\r\n\r\n";
    assert_eq!(status(&server.talk(shown).await), 200);
    // It is good as a bearer token alone.
    let basic = format!(
        "Authorization: Basic {}\r\n",
        base64::engine::general_purpose::STANDARD.encode("me:standing for nobody")
    );
    assert_eq!(status(&server.talk(post("/room/open", &basic)).await), 401);
    // Wrong credentials are wrong everywhere, and nobody is admitted next to it.
    assert_eq!(status(&server.talk(post("/room/open", "Authorization: Bearer lrd_bad\r\n")).await), 401);
    assert_eq!(status(&server.talk(post("/room/echo", "")).await), 401);
    let answer = server.talk("GET /room/challenge?scope=a%3Ab HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!((status(&answer), header(&answer, "www-authenticate")), (401, Some(r#"Bearer scope="a:b""#)));
}

/// Like [`Server::ask`] for the file, with its body as bytes.
async fn file(server: &Server, headers: &str) -> (String, Vec<u8>) {
    file_at(server, "/room/file", headers).await
}

async fn file_at(server: &Server, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = server.connect().await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{AUTH}{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(AT_MOST, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let at = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8(answer[..at].to_vec()).unwrap(), answer[at..].to_vec())
}

#[tokio::test]
async fn files_come_whole_and_in_ranges() {
    let server = Server::start().await;
    let all = server.room.bytes.clone();
    let (head, bytes) = file(&server, "").await;
    assert_eq!((status(&head), &bytes[..]), (200, &all[..]));
    assert_eq!(header(&head, "cache-control"), Some("private, max-age=31536000, immutable"));
    let tag = header(&head, "etag").unwrap().to_owned();

    let (head, bytes) = file(&server, "Range: bytes=100-199\r\n").await;
    assert_eq!((status(&head), &bytes[..]), (206, &all[100..200]));
    assert_eq!(header(&head, "content-range"), Some("bytes 100-199/10000"));
    assert_eq!(header(&head, "content-length"), Some("100"));

    let (head, bytes) = file(&server, &format!("Range: bytes=-5\r\nIf-Range: {tag}\r\n")).await;
    assert_eq!((status(&head), &bytes[..]), (206, &all[9_995..]));
    let (head, _) = file(&server, "Range: bytes=-5\r\nIf-Range: \"other\"\r\n").await;
    assert_eq!(status(&head), 200);
    let (head, _) = file(&server, "Range: bytes=10000-\r\n").await;
    assert_eq!((status(&head), header(&head, "content-range")), (416, Some("bytes */10000")));
    let (head, bytes) = file(&server, &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!((status(&head), bytes.len(), header(&head, "content-length")), (304, 0, None));
    for (headers, expected) in [
        ("Accept-Encoding: gzip, zstd\r\n".to_owned(), 200),
        ("Range: bytes=1-2\r\n".to_owned(), 206),
        ("Range: bytes=10000-\r\n".to_owned(), 416),
        (format!("If-None-Match: {tag}\r\n"), 304),
    ] {
        let (head, _) = file(&server, &headers).await;
        assert_eq!((status(&head), header(&head, "x-digest")), (expected, Some("always")), "{headers}");
        assert_eq!(header(&head, "content-encoding"), None);
    }
    assert_eq!(header(&server.ask("HEAD", "/room/file", "").await, "x-digest"), Some("always"));
}

#[tokio::test]
async fn several_ranges_come_as_parts() {
    let server = Server::start().await;
    let (head, bytes) = file(&server, "Range: bytes=0-1,48-49\r\n").await;
    assert_eq!(status(&head), 206);
    assert_eq!(header(&head, "content-length"), Some(bytes.len().to_string().as_str()));
    let boundary = header(&head, "content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
    let expected = format!(
        "\r\n--{boundary}\r\ncontent-type: application/zip\r\ncontent-range: bytes 0-1/10000\r\n\r\n\0\x01\
         \r\n--{boundary}\r\ncontent-type: application/zip\r\ncontent-range: bytes 48-49/10000\r\n\r\n01\
         \r\n--{boundary}--\r\n"
    );
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);

    let (head, bytes) = file_at(&server, "/room/long", "Range: bytes=0-1,48-49\r\n").await;
    let boundary = header(&head, "content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
    assert!(boundary.len() <= 70, "{boundary}");
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(
        text.matches(&format!("--{boundary}\r\ncontent-type: application/x.known-late\r\n")).count(),
        2,
        "{text}"
    );
}

#[tokio::test]
async fn bodies_are_bounded() {
    let server = Server::start().await;
    let post = |headers: &str, body: &str| {
        format!("POST /room/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{AUTH}{headers}\r\n{body}")
    };
    let answer = server.talk(post("Content-Length: 4\r\n", "echo")).await;
    assert_eq!((status(&answer), body(&answer)), (200, "echo"));
    let answer = server.talk(post("Transfer-Encoding: chunked\r\n", "2\r\nec\r\n2\r\nho\r\n0\r\n\r\n")).await;
    assert_eq!((status(&answer), body(&answer)), (200, "echo"));
    let answer = server.talk(post("Content-Length: 1001\r\n", "")).await;
    assert_eq!(status(&answer), 413);
    let chunked = format!("3e8\r\n{}\r\n1\r\nx\r\n0\r\n\r\n", "x".repeat(1_000));
    assert_eq!(status(&server.talk(post("Transfer-Encoding: chunked\r\n", &chunked)).await), 413);
    assert_eq!(status(&server.talk(post("Transfer-Encoding: chunked\r\n", "zz\r\n")).await), 400);
    let patient = server.talk(post("Content-Length: 4\r\nExpect: 100-continue\r\n", "echo")).await;
    assert!(patient.starts_with("HTTP/1.1 100 "), "{patient}");
}

#[tokio::test]
async fn a_refused_upload_is_told_why_once_it_is_sent() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    let head = format!("POST /room/echo HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: {}\r\n\r\n", 8 << 20);
    stream.write_all(head.as_bytes()).await.unwrap();
    timeout(AT_MOST, stream.write_all(&vec![b'x'; 8 << 20])).await.unwrap().expect("the connection was reset");
    assert_eq!(status(&rest_of(&mut stream).await), 413);
}

#[tokio::test]
async fn what_comes_after_a_refused_upload_is_not_taken_for_a_request() {
    let server = Server::start().await;
    // The refusal is known before the body, and the body looks like a request.
    let inner = format!("GET /room/small HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n");
    let large = format!("{}{inner}", "x".repeat(1 << 20));
    for (headers, expected) in [("", 401), (AUTH, 413)] {
        let head = format!("POST /room/echo HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n", large.len());
        let answers = server.talk(format!("{head}{large}{inner}")).await;
        assert_eq!(status(&answers), expected);
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
    }
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_go_on_is_told_so_only_when_its_body_is_wanted() {
    let server = Server::start().await;
    for (headers, expected) in [("", "HTTP/1.1 401"), (AUTH, "HTTP/1.1 100")] {
        let mut stream = server.connect().await;
        let head = format!(
            "POST /room/count HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        timeout(AT_MOST, stream.read_exact(&mut first)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&first), expected);
    }
}

#[tokio::test]
async fn a_long_upload_is_patiently_taken_while_its_bytes_flow() {
    let limits = Limits {
        head_time: Duration::from_millis(50),
        stall: Duration::from_secs(1),
        rest: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = Server::with(limits, "").await;
    let mut stream = server.connect().await;
    let head =
        format!("POST /room/count HTTP/1.1\r\nHost: x\r\n{AUTH}Connection: close\r\nContent-Length: 61440\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // Longer than a stall, and far longer than a head or a rest.
    for _ in 0..60 {
        stream.write_all(&[b'x'; 1_024]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answer = rest_of(&mut stream).await;
    assert_eq!((status(&answer), body(&answer)), (200, "61440"));
}

#[tokio::test]
async fn old_and_impatient_clients() {
    let server = Server::start().await;
    let old = server.talk(format!("GET /room/small HTTP/1.0\r\n{AUTH}\r\n")).await;
    assert!(old.starts_with("HTTP/1.0 200 "), "{old}");

    let one = |path: &str, last: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{AUTH}{last}\r\n");
    let three = [one("/room/small", ""), one("/room/nothing", ""), one("/healthz", "Connection: close\r\n")].concat();
    let answers = server.talk(three).await;
    let statuses: Vec<_> = answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "404", "200"]);
}

#[tokio::test]
async fn slow_senders_are_cut_short() {
    let quick = Duration::from_millis(150);
    let limits = Limits { head_time: quick, stall: quick, rest: quick, ..Limits::default() };
    let server = Server::with(limits, "").await;

    let mut slow_head = server.connect().await;
    slow_head.write_all(b"GET /room/small HTTP/1.1\r\nHost: ").await.unwrap();
    assert_eq!(status(&rest_of(&mut slow_head).await), 408);

    let mut slow_body = server.connect().await;
    let head = format!("POST /room/echo HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: 4\r\n\r\nec");
    slow_body.write_all(head.as_bytes()).await.unwrap();
    let answer = rest_of(&mut slow_body).await;
    assert_eq!((status(&answer), header(&answer, "connection")), (408, Some("close")), "{answer}");

    // A connection at rest is closed without a word.
    let mut at_rest = server.connect().await;
    at_rest.write_all(format!("GET /room/small HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n").as_bytes()).await.unwrap();
    let answer = rest_of(&mut at_rest).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");

    // A client that takes nothing is let go, with all that its answer holds.
    let mut deaf = server.connect().await;
    deaf.write_all(format!("GET /room/endless HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n").as_bytes()).await.unwrap();
    timeout(AT_MOST, server.room.ended.notified()).await.expect("the answer is still held");
}

#[tokio::test]
async fn a_trickling_body_must_keep_up_an_average() {
    let limits = Limits { stall: Duration::from_millis(400), body_rate: 1_000_000, ..Limits::default() };
    let server = Server::with(limits, "").await;
    let mut stream = server.connect().await;
    let head = format!("POST /room/echo HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: 900\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    // Never silent for as long as `stall`, and still too slow.
    let trickle = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut answer = vec![0; 12];
    timeout(AT_MOST, read.read_exact(&mut answer)).await.unwrap().unwrap();
    trickle.abort();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408");
}

#[tokio::test]
async fn a_stop_lets_requests_end_and_idle_connections_go() {
    let mut server = Server::start().await;
    let mut idle = server.connect().await;
    idle.write_all(format!("GET /room/small HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    let mut busy = server.connect().await;
    busy.write_all(format!("GET /room/hang HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n").as_bytes()).await.unwrap();
    server.room.begun.notified().await;

    server.stop();
    rest_of(&mut idle).await;
    assert!(!server.done.is_finished());
    server.room.go_on.notify_one();
    let answer = rest_of(&mut busy).await;
    assert_eq!((status(&answer), body(&answer)), (200, "at last"));
    timeout(AT_MOST, &mut server.done).await.expect("the server does not stop").unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_stop_waits_only_so_long() {
    let mut server = Server::with(Limits { drain: Duration::from_millis(100), ..Limits::default() }, "").await;
    let mut busy = server.connect().await;
    busy.write_all(format!("GET /room/hang HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n").as_bytes()).await.unwrap();
    server.room.begun.notified().await;
    server.stop();
    timeout(AT_MOST, &mut server.done).await.expect("the server does not stop").unwrap();
    assert_eq!(rest_of(&mut busy).await, "");
    timeout(AT_MOST, server.room.ended.notified()).await.expect("the request still runs");
}

#[tokio::test]
async fn more_connections_than_allowed_wait_for_their_turn() {
    let server = Server::with(Limits { connections: 1, ..Limits::default() }, "").await;
    let mut first = server.connect().await;
    first.write_all(format!("GET /room/hang HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n").as_bytes()).await.unwrap();
    server.room.begun.notified().await;
    let mut second = server.connect().await;
    second.write_all(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(timeout(Duration::from_millis(100), second.read_u8()).await.is_err(), "the second one was let in");
    drop(first);
    assert_eq!(status(&rest_of(&mut second).await), 200);
}

#[tokio::test]
async fn accesses_are_recorded_with_the_client_behind_the_proxy() {
    let server = Server::with(Limits::default(), "127.0.0.0/8").await;
    let headers = "X-Forwarded-For: 203.0.113.9\r\nUser-Agent: Client/1.0\r\nIf-None-Match: *\r\n";
    assert_eq!(status(&server.ask("GET", "/exact.json", headers).await), 304);
    assert_eq!(status(&server.ask("GET", "/room/nothing", headers).await), 404);
    let accesses = server.around.accesses.lock().unwrap().clone();
    let address: IpAddr = "203.0.113.9".parse().unwrap();
    let expected = ("token:good".to_owned(), Some("acme/lib".to_owned()), 304, address, Some("Client/1.0".to_owned()));
    assert_eq!(accesses, [expected]);
}

#[tokio::test]
async fn a_taken_port_is_explained() {
    let server = Server::start().await;
    let address = server.address.to_string();
    let error = Listener::bind(&address, Limits::default(), Proxies::default()).await.unwrap_err();
    assert!(error.message().contains(&address) && error.message().contains("another program"), "{error}");
    assert!(Listener::bind("nonsense", Limits::default(), Proxies::default()).await.is_err());
}
