//! The `Fetch` port against hosts that do what they should, and hosts that do what they should not. The hosts are raw
//! sockets: no HTTP library could be made to lie like this.

#![expect(clippy::unwrap_used, reason = "the functions around the tests are tests too")]

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::StreamExt as _;
use http::{HeaderValue, Method, header};
use larder_core::{Error, Kind, Result};
use larder_native::{
    fetch::{FetchSettings, HttpFetch},
    guard::{self, Guard, Names},
};
use larder_sources::fetch::{Authorization, Fetch as _, FetchRequest, FetchResponse, Secret, address, origin};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};

/// Far more than anything here takes; only a failure waits for it.
const AT_MOST: Duration = Duration::from_secs(20);

/// A limit that is meant to be met.
const SOON: Duration = Duration::from_millis(300);

/// What a host does with one request, step by step. It closes the connection after the last one.
enum Step {
    Say(Vec<u8>),
    /// Says it again and again, until nobody listens.
    Repeat(Vec<u8>, Duration),
    /// Keeps the connection open and says nothing.
    Hang,
    /// Reads the next request from the same connection.
    Next,
}

fn say(text: impl AsRef<[u8]>) -> Step {
    Step::Say(text.as_ref().to_vec())
}

fn page(head: &str, body: impl AsRef<[u8]>) -> Vec<Step> {
    let body = body.as_ref();
    vec![say(format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len())), say(body), Step::Next]
}

fn moved(status: u16, to: &str) -> Vec<Step> {
    page(&format!("{status} Moved\r\nLocation: {to}"), "")
}

type Answers = Arc<dyn Fn(&str) -> Vec<Step> + Send + Sync>;

/// A host on a loopback address.
#[derive(Clone)]
struct Host {
    at: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    /// Bytes that the system took from it.
    sent: Arc<AtomicUsize>,
}

impl Host {
    /// Answers by path.
    async fn new(answers: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::listening(TcpListener::bind("127.0.0.1:0").await.unwrap(), None, Arc::new(answers))
    }

    fn listening(listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>, answers: Answers) -> Self {
        let host = Self::idle(listener.local_addr().unwrap());
        let this = host.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                this.connections.fetch_add(1, Ordering::SeqCst);
                let (this, tls, answers) = (this.clone(), tls.clone(), answers.clone());
                tokio::spawn(async move {
                    match tls {
                        None => this.talk(socket, &answers).await,
                        Some(tls) => this.talk(tls.accept(socket).await?, &answers).await,
                    }
                });
            }
        });
        host
    }

    fn idle(at: SocketAddr) -> Self {
        Self { at, seen: Arc::default(), connections: Arc::default(), sent: Arc::default() }
    }

    async fn talk(&self, mut socket: impl AsyncRead + AsyncWrite + Unpin, answers: &Answers) -> io::Result<()> {
        'requests: loop {
            let Some(asked) = read_request(&mut socket).await? else { return Ok(()) };
            let path = asked.split(' ').nth(1).unwrap_or_default().to_owned();
            self.seen.lock().unwrap().push(asked);
            for step in answers(&path) {
                match step {
                    Step::Say(bytes) => self.send(&mut socket, &bytes).await?,
                    Step::Repeat(bytes, pause) => loop {
                        self.send(&mut socket, &bytes).await?;
                        tokio::time::sleep(pause).await;
                    },
                    // Until the other side gives up.
                    Step::Hang => drop(socket.read(&mut [0]).await?),
                    Step::Next => continue 'requests,
                }
            }
            return Ok(());
        }
    }

    async fn send(&self, socket: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(65_536) {
            socket.write_all(piece).await?;
            socket.flush().await?;
            self.sent.fetch_add(piece.len(), Ordering::SeqCst);
        }
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    fn get(&self, path: &str) -> FetchRequest {
        FetchRequest::get(address(&self.url(path)).unwrap())
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// How often a line that starts like this was among the heads of requests.
    fn saw(&self, start: &str) -> usize {
        self.seen().iter().filter(|asked| asked.lines().any(|line| line.starts_with(start))).count()
    }
}

async fn read_request(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<String>> {
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\n") {
        // One byte at a time, so that nothing of the next request is taken.
        let mut byte = [0];
        if socket.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        all.extend(byte);
    }
    let mut text = String::from_utf8_lossy(&all).into_owned();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    socket.read_exact(&mut body).await?;
    text.push_str(&String::from_utf8_lossy(&body));
    Ok(Some(text))
}

fn local() -> HttpFetch {
    HttpFetch::new(FetchSettings::new(true)).unwrap()
}

/// Only 127.0.0.2 counts as public.
fn guarded(names: Arc<dyn Names>) -> HttpFetch {
    let rule = |address: IpAddr| if address == PUBLIC { None } else { guard::refusal(address) };
    HttpFetch::new(FetchSettings { guard: Guard::over(names, rule), ..FetchSettings::new(false) }).unwrap()
}

const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Answers the nth question with the nth address, and with the last one from then on.
struct Changing(Vec<IpAddr>, AtomicUsize);

#[async_trait]
impl Names for Changing {
    async fn lookup(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        let asked = self.1.fetch_add(1, Ordering::SeqCst);
        self.0.get(asked).or(self.0.last()).map(|address| vec![*address]).ok_or(io::ErrorKind::NotFound.into())
    }
}

fn names(answers: &[IpAddr]) -> Arc<Changing> {
    Arc::new(Changing(answers.to_vec(), AtomicUsize::new(0)))
}

/// The status and the whole body.
async fn whole(fetch: &HttpFetch, request: FetchRequest) -> Result<(u16, Bytes)> {
    timeout(AT_MOST, async {
        let answer = fetch.fetch(request).await?;
        Ok((answer.status.as_u16(), answer.read_all(64 << 20).await?))
    })
    .await
    .unwrap()
}

async fn failure(fetch: &HttpFetch, request: FetchRequest) -> Error {
    whole(fetch, request).await.unwrap_err()
}

/// How a body fails, how many bytes it gave before, and how many of them at once.
async fn until_it_fails(mut answer: FetchResponse) -> (Error, usize, usize) {
    let (mut given, mut largest) = (0, 0);
    let reading = async {
        loop {
            match answer.body.next().await.unwrap() {
                Ok(piece) => (given, largest) = (given + piece.len(), largest.max(piece.len())),
                Err(error) => break error,
            }
        }
    };
    let error = timeout(AT_MOST, reading).await.unwrap();
    assert!(answer.body.next().await.is_none(), "nothing follows a failure");
    (error, given, largest)
}

fn expect(error: &Error, kind: Kind, words: &str) {
    assert!(error.kind() == kind && error.message().contains(words), "{kind:?} {words}: {error:?}");
}

fn bearer(host: &Host, secret: &str) -> Secret {
    let origin = origin(&address(&host.url("/")).unwrap());
    Secret { origin, authorization: Authorization::Bearer(secret.into()) }
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn asks_what_it_is_told_and_gives_what_it_gets() {
    let host = Host::new(|path| match path {
        "/missing" => page("404 Not Found", "<html>nothing here</html>"),
        "/busy" => page("503 Busy\r\nRetry-After: 7", "later"),
        "/same" => vec![say("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"), Step::Next],
        "/head" => vec![say("HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n"), Step::Next],
        _ => page("200 OK\r\nContent-Type: text/html", "<html>no JSON</html>"),
    })
    .await;
    let fetch = local();

    let mut request = host.get("/x?a=b%20c#not-sent");
    request.headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    let answer = fetch.fetch(request).await.unwrap();
    assert_eq!((answer.length, answer.url.as_str()), (Some(20), host.url("/x?a=b%20c").as_str()));
    assert_eq!(answer.headers[header::CONTENT_TYPE], "text/html");
    assert_eq!(answer.read_all(20).await.unwrap(), "<html>no JSON</html>");

    let asked = &host.seen()[0].to_ascii_lowercase();
    assert!(asked.starts_with("get /x?a=b%20c http/1.1\r\n"), "{asked}");
    for line in ["accept: application/json", "accept-encoding: identity", "user-agent: larder/0.", "host: 127.0.0.1:"] {
        assert!(asked.contains(&format!("\r\n{line}")), "{line} in {asked}");
    }
    assert!(!asked.contains("authorization") && !asked.contains("referer"), "{asked}");

    assert_eq!(whole(&fetch, host.get("/missing")).await.unwrap(), (404, "<html>nothing here</html>".into()));
    let busy = fetch.fetch(host.get("/busy")).await.unwrap();
    assert_eq!((busy.status.as_u16(), &busy.headers[header::RETRY_AFTER]), (503, &HeaderValue::from_static("7")));
    drop(busy.read_all(100).await.unwrap());
    assert_eq!(whole(&fetch, host.get("/same")).await.unwrap(), (304, Bytes::new()));

    let head = FetchRequest { method: Method::HEAD, most: Some(10), ..host.get("/head") };
    let head = fetch.fetch(head).await.unwrap();
    assert_eq!((head.length, head.read_all(5 << 30).await.unwrap()), (Some(5_000_000_000), Bytes::new()));

    let post = FetchRequest { method: Method::POST, body: "grant=password".into(), ..host.get("/token") };
    assert_eq!(whole(&fetch, post).await.unwrap().0, 200);
    assert!(host.seen().last().unwrap().ends_with("\r\n\r\ngrant=password"), "{:?}", host.seen());
    assert_eq!(host.connections.load(Ordering::SeqCst), 1, "a connection is used again");
}

#[tokio::test]
async fn what_nobody_should_be_asked() {
    let host = Host::new(|_| page("200 OK", "")).await;
    let fetch = local();
    let with = |name: header::HeaderName| {
        let mut request = host.get("/");
        request.headers.insert(name, HeaderValue::from_static("hidden"));
        request
    };
    for request in [
        with(header::AUTHORIZATION),
        with(header::COOKIE),
        with(header::HOST),
        with(header::TRANSFER_ENCODING),
        FetchRequest { method: Method::DELETE, ..host.get("/") },
        FetchRequest { body: "x".into(), ..host.get("/") },
        FetchRequest::get("ftp://127.0.0.1/".parse().unwrap()),
        FetchRequest::get(format!("http://user:hidden@{}/", host.at).parse().unwrap()),
    ] {
        let error = failure(&fetch, request).await;
        assert!(error.kind() == Kind::Invalid && !error.chain().contains("hidden"), "{error}");
    }
    assert_eq!(host.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn redirects_are_followed_as_far_as_they_may() {
    let host = Host::new(|path| match path {
        "/loop" => moved(302, "/loop"),
        "/a" => moved(301, "b/c?d#e"),
        "/b/c?d" => moved(307, "//LOCALHOST/../f"),
        "/nowhere" => page("302 Found", ""),
        "/choices" => page("300 Multiple Choices\r\nLocation: /a", "choose"),
        "/mail" => moved(302, "mailto:a@example.org"),
        "/file" => moved(302, "file:///etc/passwd"),
        "/user" => moved(302, "http://user:hidden@example.org/?token=hidden"),
        "/strange" => moved(302, "http://[:::]/"),
        _ => page("200 OK", "here"),
    })
    .await;
    let fetch = local();
    let error = failure(&fetch, host.get("/loop")).await;
    expect(&error, Kind::Upstream, "redirects more than 5 times");
    assert_eq!(host.saw("GET /loop"), 6);

    let one = FetchRequest { redirects: 1, ..host.get("/a") };
    expect(&failure(&fetch, one).await, Kind::Upstream, "more than 1 times");
    let none = fetch.fetch(FetchRequest { redirects: 0, ..host.get("/a") }).await.unwrap();
    assert_eq!((none.status.as_u16(), &none.headers[header::LOCATION]), (301, &HeaderValue::from_static("b/c?d#e")));
    drop(none);
    let post = FetchRequest { method: Method::POST, body: "secret".into(), ..host.get("/loop") };
    assert_eq!(whole(&fetch, post).await.unwrap().0, 302, "a POST goes to one host");
    assert_eq!(whole(&fetch, host.get("/choices")).await.unwrap(), (300, "choose".into()));

    for (path, kind) in [
        ("/nowhere", Kind::Upstream),
        ("/strange", Kind::Upstream),
        ("/mail", Kind::Invalid),
        ("/file", Kind::Invalid),
        ("/user", Kind::Invalid),
    ] {
        let error = failure(&fetch, host.get(path)).await;
        expect(&error, kind, "redirects");
        assert!(!error.chain().contains("hidden"), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_redirect_leads_to_another_host() {
    let other = Host::new(|_| page("200 OK", "there")).await;
    let to = other.url("/file?signature=hidden");
    let host = Host::new(move |_| moved(307, &to)).await;
    let answer = local().fetch(host.get("/")).await.unwrap();
    assert_eq!(answer.url.as_str(), other.url("/file?signature=hidden"));
    assert!(!format!("{answer:?}").contains("hidden"));
    assert_eq!(answer.read_all(5).await.unwrap(), "there");
}

#[tokio::test]
async fn a_secret_goes_to_its_host_and_nowhere_else() {
    // Leads on to the path that it is asked for.
    let back = Arc::new(Mutex::new(String::new()));
    let to = back.clone();
    let other = Host::new(move |path| match path {
        "/back" => moved(302, &to.lock().unwrap()),
        _ => page("200 OK", "there"),
    })
    .await;
    let away = other.clone();
    let host = Host::new(move |path| match path {
        "/stay" => moved(302, "/here"),
        "/leave" => moved(302, &away.url("/there")),
        "/and-return" => moved(302, &away.url("/back")),
        _ => page("200 OK", "here"),
    })
    .await;
    *back.lock().unwrap() = host.url("/returned");
    let fetch = local();
    let with = |path| FetchRequest { secret: Some(bearer(&host, "hidden")), ..host.get(path) };

    assert_eq!(whole(&fetch, with("/stay")).await.unwrap().1, "here");
    assert_eq!(host.saw("authorization: Bearer hidden"), 2);
    assert_eq!(whole(&fetch, with("/leave")).await.unwrap().1, "there");
    assert_eq!((host.saw("authorization: Bearer hidden"), other.saw("authorization")), (3, 0));
    assert_eq!(whole(&fetch, with("/and-return")).await.unwrap().1, "here");
    assert_eq!((host.saw("authorization: Bearer hidden"), other.saw("authorization")), (4, 0), "nor when led back");

    // The same host under another port is another place, and so is one that redirects to where the secret belongs.
    assert_eq!(
        whole(&fetch, FetchRequest { secret: Some(bearer(&host, "hidden")), ..other.get("/") }).await.unwrap().0,
        200
    );
    assert_eq!(
        whole(&fetch, FetchRequest { secret: Some(bearer(&host, "hidden")), ..other.get("/back") }).await.unwrap().0,
        200
    );
    assert_eq!((host.saw("authorization: Bearer hidden"), other.saw("authorization")), (4, 0));

    for (authorization, line) in [
        (
            Authorization::Basic { username: "me".into(), password: "hidden".into() },
            "authorization: Basic bWU6aGlkZGVu",
        ),
        (Authorization::Header { name: "Private-Token".into(), value: "hidden".into() }, "private-token: hidden"),
    ] {
        let secret = Some(Secret { authorization, ..bearer(&host, "") });
        whole(&fetch, FetchRequest { secret, ..host.get("/leave") }).await.unwrap();
        assert_eq!((host.saw(line), other.saw(line)), (1, 0));
    }
    let bad = Authorization::Header { name: "host".into(), value: "evil.example.org".into() };
    let secret = Some(Secret { authorization: bad, ..bearer(&host, "") });
    assert_eq!(failure(&fetch, FetchRequest { secret, ..host.get("/") }).await.kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_secret_does_not_travel_in_the_open() {
    let host = Host::new(|_| page("200 OK", "")).await;
    let fetch = HttpFetch::new(FetchSettings { plain_secrets: false, ..FetchSettings::new(true) }).unwrap();
    let error = failure(&fetch, FetchRequest { secret: Some(bearer(&host, "hidden")), ..host.get("/") }).await;
    expect(&error, Kind::Invalid, "use https");
    assert_eq!(host.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_own_network_is_not_reached() {
    let host = Host::new(|_| page("200 OK", "internal")).await;
    let fetch = HttpFetch::new(FetchSettings::new(false)).unwrap();
    let port = host.at.port();
    for name in ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost", "0x7f.1", "2130706433", "0", "[::]"] {
        let error = failure(&fetch, FetchRequest::get(address(&format!("http://{name}:{port}/")).unwrap())).await;
        expect(&error, Kind::Invalid, "LARDER_ALLOW_LOCAL_SOURCES");
    }
    assert_eq!(host.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn no_redirect_leads_into_the_own_network() {
    let inside = Host::new(|_| page("200 OK", "internal")).await;
    let port = inside.at.port();
    let listener = TcpListener::bind((PUBLIC, 0)).await.unwrap();
    let answers = move |path: &str| moved(302, &format!("http://{}:{port}/", path.trim_start_matches('/')));
    let outside = Host::listening(listener, None, Arc::new(answers));
    let fetch = guarded(names(&[PRIVATE]));
    for name in ["127.0.0.1", "[::ffff:7f00:1]", "inside.example.org", "169.254.169.254", "[fd00::1]", "10.0.0.1"] {
        let error = failure(&fetch, outside.get(&format!("/{name}"))).await;
        expect(&error, Kind::Invalid, "redirects: ");
        expect(&error, Kind::Invalid, "is not reached, because its address");
    }
    assert_eq!((inside.connections.load(Ordering::SeqCst), outside.saw("GET /")), (0, 6));
}

#[tokio::test]
async fn a_name_that_changes_its_meaning_changes_nothing() {
    // The same port on both addresses, as somebody who rebinds a name would have it.
    let (public, private) = loop {
        let public = TcpListener::bind((PUBLIC, 0)).await.unwrap();
        if let Ok(private) = TcpListener::bind((PRIVATE, public.local_addr().unwrap().port())).await {
            break (public, private);
        }
    };
    let closing = |text: &'static str| -> Answers {
        Arc::new(move |_| vec![say(format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\n{text}"))])
    };
    let public = Host::listening(public, None, closing("public"));
    let private = Host::listening(private, None, closing("secret"));
    let rebound = names(&[PUBLIC, PRIVATE]);
    let fetch = guarded(rebound.clone());
    let request = || FetchRequest::get(address(&format!("http://rebind.example.org:{}/", public.at.port())).unwrap());

    assert_eq!(whole(&fetch, request()).await.unwrap().1, "public");
    assert_eq!(rebound.1.load(Ordering::SeqCst), 1, "there is no second question whose answer could differ");
    expect(&failure(&fetch, request()).await, Kind::Invalid, "rebind.example.org is not reached");
    assert_eq!((public.saw("GET /"), private.connections.load(Ordering::SeqCst)), (1, 0));
}

#[tokio::test]
async fn names_and_hosts_that_do_not_answer() {
    struct Never;
    #[async_trait]
    impl Names for Never {
        async fn lookup(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            std::future::pending().await
        }
    }
    let request =
        || FetchRequest { head: SOON, ..FetchRequest::get(address("http://a.example.org/?token=hidden").unwrap()) };
    expect(&failure(&guarded(names(&[])), request()).await, Kind::Upstream, "a.example.org is not known");
    expect(&failure(&guarded(Arc::new(Never)), request()).await, Kind::Timeout, "did not answer within");

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = failure(&local(), FetchRequest::get(address(&format!("http://{closed}/?token=hidden")).unwrap())).await;
    expect(&error, Kind::Upstream, "refuses the connection");
    assert!(error.message().contains(&closed.to_string()) && !error.chain().contains("hidden"), "{}", error.chain());
}

#[tokio::test]
async fn hosts_that_take_their_time() {
    let host = Host::new(|path| match path {
        "/hang" => vec![Step::Hang],
        "/half-a-head" => vec![say("HTTP/1.1 200 OK\r\nX-"), Step::Hang],
        "/head-in-drops" => {
            vec![say("HTTP/1.1 200 OK\r\nX: "), Step::Repeat(b"x".to_vec(), Duration::from_millis(20))]
        }
        "/continue" => vec![Step::Repeat(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), Duration::from_millis(20))],
        "/pause" => vec![say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf "), Step::Hang],
        "/drops" => vec![
            say("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"),
            Step::Repeat(b"x".to_vec(), Duration::from_millis(20)),
        ],
        _ => moved(302, "/hang"),
    })
    .await;
    let fetch = local();
    for path in ["/hang", "/half-a-head", "/head-in-drops", "/continue", "/moved"] {
        let error = failure(&fetch, FetchRequest { head: SOON, ..host.get(path) }).await;
        expect(&error, Kind::Timeout, "did not answer within 300ms");
    }
    let mut paused = fetch.fetch(FetchRequest { idle: SOON, ..host.get("/pause") }).await.unwrap();
    assert_eq!(paused.body.next().await.unwrap().unwrap(), "half ");
    expect(&paused.body.next().await.unwrap().unwrap_err(), Kind::Timeout, "paused for 300ms");
    assert!(paused.body.next().await.is_none());

    let drops = FetchRequest { whole: Some(SOON), ..host.get("/drops") };
    expect(&failure(&fetch, drops).await, Kind::Timeout, "takes too long");
    let hang = FetchRequest { whole: Some(SOON), ..host.get("/hang") };
    expect(&failure(&fetch, hang).await, Kind::Timeout, "did not answer within");
}

#[tokio::test]
async fn a_body_that_ends_early_is_never_taken_for_whole() {
    let host = Host::new(|path| match path {
        "/length" => vec![say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot a hundred")],
        "/old" => vec![say("HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nnot a hundred")],
        "/chunk" => vec![say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nnot 32 bytes")],
        "/no-last-chunk" => vec![say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n")],
        "/no-number" => vec![say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\nzz\r\n")],
        "/huge-chunk" => {
            vec![say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nfour")]
        }
        "/nothing" => vec![],
        _ => vec![say("HTTP/1.1 200")],
    })
    .await;
    let fetch = local();
    for path in ["/length", "/old", "/chunk", "/no-last-chunk", "/no-number", "/huge-chunk", "/nothing", "/head"] {
        let error = failure(&fetch, host.get(path)).await;
        expect(&error, Kind::Upstream, &host.url(path));
    }
}

#[tokio::test]
async fn hosts_that_speak_otherwise() {
    let host = Host::new(|path| match path {
        "/old" => vec![say("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")],
        "/ssh" => vec![say("SSH-2.0-OpenSSH_9.9\r\n\r\n\r\n")],
        "/two-lengths" => vec![say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nfour")],
        "/odd-length" => vec![say("HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nfour")],
        "/no-version" => vec![say("just text, as in 1991")],
        "/chunks" => vec![
            say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nuntil\r\n8\r\n the end\r\n0\r\nX-T: 1\r\n\r\n"),
            Step::Next,
        ],
        // What follows the body is no answer to anything.
        _ => vec![say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"), Step::Next],
    })
    .await;
    let fetch = local();
    assert_eq!(whole(&fetch, host.get("/old")).await.unwrap(), (200, "until the end".into()));
    assert_eq!(whole(&fetch, host.get("/chunks")).await.unwrap(), (200, "until the end".into()));
    for path in ["/ssh", "/two-lengths", "/odd-length", "/no-version"] {
        expect(&failure(&fetch, host.get(path)).await, Kind::Upstream, "does not answer in HTTP");
    }
    for _ in 0..3 {
        assert_eq!(whole(&fetch, host.get("/more")).await.unwrap(), (200, "ok".into()));
    }
}

#[tokio::test]
async fn a_head_of_twenty_megabytes_is_not_read() {
    let host = Host::new(|path| {
        let line = match path {
            "/one" => format!("X: {}\r\n", "x".repeat(20 << 20)),
            _ => format!("X: {}\r\n", "x".repeat(1_000)).repeat(20_000),
        };
        vec![say("HTTP/1.1 200 OK\r\n"), say(line), say("\r\n")]
    })
    .await;
    let fetch = local();
    for path in ["/one", "/many"] {
        host.sent.store(0, Ordering::SeqCst);
        let error = failure(&fetch, host.get(path)).await;
        expect(&error, Kind::Upstream, "with a head that is too large");
        let sent = host.sent.load(Ordering::SeqCst);
        assert!(sent < 12 << 20, "{sent} bytes were taken, or wait in sockets");
    }
}

#[tokio::test]
async fn no_body_is_larger_than_allowed() {
    let host = Host::new(|path| match path {
        "/announced" => vec![say("HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n"), Step::Hang],
        "/error" => vec![
            say("HTTP/1.1 404 Not Found\r\nContent-Length: 2000000000\r\n\r\n"),
            Step::Repeat(vec![b'x'; 10_000], Duration::ZERO),
        ],
        "/exact" => page("200 OK", vec![b'x'; 1_000_000]),
        "/until-the-end" => vec![say("HTTP/1.1 200 OK\r\n\r\n"), Step::Repeat(vec![b'x'; 10_000], Duration::ZERO)],
        _ => {
            let chunk = [b"2710\r\n".to_vec(), vec![b'x'; 10_000], b"\r\n".to_vec()].concat();
            vec![say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Step::Repeat(chunk, Duration::ZERO)]
        }
    })
    .await;
    let fetch = local();
    let small = |path| FetchRequest { most: Some(1_000_000), ..host.get(path) };
    let announced = timeout(AT_MOST, fetch.fetch(small("/announced"))).await.unwrap();
    expect(&announced.unwrap_err(), Kind::TooLarge, "1000000");
    assert_eq!(whole(&fetch, small("/exact")).await.unwrap().1.len(), 1_000_000);
    for path in ["/error", "/until-the-end", "/chunks"] {
        let (error, given, _) = until_it_fails(fetch.fetch(small(path)).await.unwrap()).await;
        expect(&error, Kind::TooLarge, &host.url(path));
        assert!(given <= 1_000_000, "{given}");
    }

    // The reader's own limit.
    let answer = fetch.fetch(host.get("/exact")).await.unwrap();
    assert_eq!(answer.read_all(999_999).await.unwrap_err().kind(), Kind::TooLarge);
    let answer = fetch.fetch(host.get("/chunks")).await.unwrap();
    expect(&answer.read_all(100_000).await.unwrap_err(), Kind::TooLarge, "100000");
}

#[tokio::test]
async fn gzip_is_taken_off_when_asked_and_never_else() {
    let text = b"{\"packages\":{}}".repeat(10_000);
    let packed = gzipped(&text);
    let (served, cut) = (packed.clone(), packed[..packed.len() - 9].to_vec());
    let host = Host::new(move |path| match path {
        "/cut" => page("200 OK\r\nContent-Encoding: gzip", &cut),
        "/no-gzip" => page("200 OK\r\nContent-Encoding: gzip", "<html>"),
        "/other" => page("200 OK\r\nContent-Encoding: br", "x"),
        "/both" => page("200 OK\r\nContent-Encoding: gzip, gzip", "x"),
        "/plain" => page("200 OK", "plain"),
        "/empty" => page("200 OK\r\nContent-Encoding: gzip", ""),
        "/bomb" => page("200 OK\r\nContent-Encoding: gzip", gzipped(&vec![0; 200 << 20])),
        "/members" => vec![
            say("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"),
            Step::Repeat(gzipped(b"").repeat(1_000), Duration::ZERO),
        ],
        _ => page("200 OK\r\nContent-Encoding: gzip", &served),
    })
    .await;
    let fetch = local();
    let decoded = |path| FetchRequest { decode: true, most: Some(1_000_000), ..host.get(path) };

    let answer = fetch.fetch(decoded("/")).await.unwrap();
    assert_eq!((answer.length, answer.headers.get(header::CONTENT_ENCODING)), (None, None));
    assert_eq!(answer.read_all(1_000_000).await.unwrap(), text);
    assert_eq!(host.saw("accept-encoding: gzip"), 1);
    let raw = fetch.fetch(host.get("/")).await.unwrap();
    assert_eq!(
        (raw.length, &raw.headers[header::CONTENT_ENCODING]),
        (Some(packed.len() as u64), &HeaderValue::from_static("gzip"))
    );
    assert_eq!(raw.read_all(1_000_000).await.unwrap(), packed);
    assert_eq!(whole(&fetch, decoded("/plain")).await.unwrap().1, "plain");
    assert_eq!(whole(&fetch, decoded("/empty")).await.unwrap().1, "");

    for path in ["/cut", "/no-gzip"] {
        expect(&failure(&fetch, decoded(path)).await, Kind::Upstream, "broken or incomplete gzip");
    }
    for path in ["/other", "/both"] {
        expect(&failure(&fetch, decoded(path)).await, Kind::Upstream, "encoding that was not asked for");
    }
    for path in ["/bomb", "/members"] {
        let (error, given, largest) = until_it_fails(fetch.fetch(decoded(path)).await.unwrap()).await;
        expect(&error, Kind::TooLarge, "1000000");
        assert!(given <= 1_000_000 && largest < 1_200_000, "{given} {largest}");
    }
}

#[tokio::test]
async fn a_large_body_waits_for_its_reader() {
    const SIZE: usize = 64 << 20;
    let host = Host::new(|_| page("200 OK", vec![b'x'; SIZE])).await;
    let mut answer = local().fetch(host.get("/")).await.unwrap();
    let mut given = answer.body.next().await.unwrap().unwrap().len();
    let (mut before, mut now) = (0, host.sent.load(Ordering::SeqCst));
    // Until the host can send no more.
    while before != now {
        tokio::time::sleep(SOON).await;
        (before, now) = (now, host.sent.load(Ordering::SeqCst));
    }
    assert!(now < 16 << 20, "{now} bytes are held for a reader who does not read");
    while let Some(piece) = answer.body.next().await {
        let piece = piece.unwrap();
        assert!(piece.len() <= 1 << 20);
        given += piece.len();
    }
    assert_eq!(given, SIZE);
}

#[tokio::test]
async fn only_so_many_requests_are_on_their_way() {
    let host = Host::new(|_| page("200 OK", "body")).await;
    let fetch = HttpFetch::new(FetchSettings { at_once: 1, ..FetchSettings::new(true) }).unwrap();
    let first = fetch.fetch(host.get("/")).await.unwrap();
    let error = failure(&fetch, FetchRequest { head: SOON, ..host.get("/") }).await;
    expect(&error, Kind::Unavailable, "too many requests");
    drop(first);
    assert_eq!(whole(&fetch, host.get("/")).await.unwrap().1, "body");
    failure(&fetch, FetchRequest { most: Some(1), ..host.get("/") }).await;
    assert_eq!(whole(&fetch, host.get("/")).await.unwrap().1, "body", "a failure gives its place back");
}

/// A host with a certificate for `name` that nobody knows, and the certificate.
async fn encrypted(name: &str, answers: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static) -> (Host, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = Host::listening(listener, Some(Arc::new(config).into()), Arc::new(answers));
    (host, made.cert.pem())
}

/// A host that does not wait to be asked, as mail servers do.
async fn speaking_first() -> Host {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = Host::idle(listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            socket.write_all(b"220 mail.example.org ESMTP\r\n").await?;
        }
        io::Result::Ok(())
    });
    host
}

fn trusting(pem: &str) -> Result<HttpFetch> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem).unwrap();
    HttpFetch::new(FetchSettings { extra_roots: Some(file.path().into()), ..FetchSettings::new(true) })
}

#[tokio::test]
async fn encryption_is_with_whom_it_says() {
    let plain = Host::new(|_| page("200 OK", "readable")).await;
    let down = plain.url("/");
    let (host, pem) = encrypted("localhost", move |path| match path {
        "/down" => moved(302, &down),
        // Cut without the goodbye of TLS: nobody can tell whether that is all.
        "/cut" => vec![say("HTTP/1.1 200 OK\r\n\r\nhalf")],
        _ => page("200 OK", "sealed"),
    })
    .await;
    let request = |host: &Host, name, path| {
        FetchRequest::get(address(&format!("https://{name}:{}{path}", host.at.port())).unwrap())
    };
    expect(
        &failure(&local(), request(&host, "localhost", "/")).await,
        Kind::Upstream,
        "signed by nobody that is trusted",
    );
    let fetch = trusting(&pem).unwrap();
    let secret = Secret {
        origin: format!("localhost:{}", host.at.port()),
        authorization: Authorization::Bearer("hidden".into()),
    };
    let sealed = FetchRequest { secret: Some(secret.clone()), ..request(&host, "localhost", "/") };
    assert_eq!(whole(&fetch, sealed).await.unwrap().1, "sealed");
    assert_eq!(host.saw("authorization: Bearer hidden"), 1);
    expect(&failure(&fetch, request(&host, "127.0.0.1", "/")).await, Kind::Upstream, "is not good");
    let error = failure(&fetch, request(&speaking_first().await, "localhost", "/")).await;
    expect(&error, Kind::Upstream, "does it speak https");
    expect(&failure(&fetch, request(&host, "localhost", "/cut")).await, Kind::Upstream, "ended the connection");

    let down = FetchRequest { secret: Some(secret), ..request(&host, "localhost", "/down") };
    expect(&failure(&fetch, down).await, Kind::Upstream, "it is not encrypted");
    assert!(plain.seen().is_empty(), "{:?}", plain.seen());
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_named() {
    for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let Err(error) = trusting(text) else { panic!("{text} was trusted") };
        expect(&error, Kind::Invalid, "cannot be used");
    }
}
