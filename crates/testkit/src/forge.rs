//! A Git host for tests: repositories made with the git program, served over http by git's own `http-backend` behind a
//! small CGI bridge, with switches for what real hosts do on bad days, and over ssh by a real sshd where there is one.
//! It is a host, not a stand-in for Larder's side: nothing of the Git port is in it.
#![expect(
    clippy::missing_panics_doc,
    reason = "a test that cannot have its host cannot go on: everything here panics then"
)]

use std::{
    convert::Infallible,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{HeaderMap, Request, Response, StatusCode, Uri, body::Frame, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinHandle,
};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What the host does with a request instead of, or before, serving it.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Whether objects may be left out of a fetch (`uploadpack.allowFilter`).
    pub filter: bool,
    /// Whether it speaks version 2 of the protocol.
    pub version_2: bool,
    /// Whether it serves files and runs nothing, as a plain web server does.
    pub dumb: bool,
    /// The `Authorization` header without which it answers 401.
    pub authorization: Option<String>,
    /// A repository that lives elsewhere now: its old path, and the new one to which it redirects.
    pub moved: Option<(String, String)>,
    /// How long it waits before each answer.
    pub delay: Duration,
    /// What it does.
    pub manner: Manner,
    /// What it answers in place of all this where it has something to say: an API beside the repositories.
    pub api: Option<Api>,
}

/// Answers some requests, by their address and headers; the others are left to the repositories.
#[derive(Clone)]
pub struct Api(pub Arc<Answers>);

/// See [`Api`].
pub type Answers = dyn Fn(&Uri, &HeaderMap) -> Option<Response<Bytes>> + Send + Sync;

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api(…)")
    }
}

/// How the host treats a request.
#[derive(Clone, Debug)]
pub enum Manner {
    /// It serves it.
    Serve,
    /// It accepts it and never answers.
    Silence,
    /// It answers with refs without end.
    Endless,
    /// It redirects: this, in place of everything before the path.
    Redirect(String),
    /// It answers with this status.
    Status(u16),
    /// It breaks off each answer after this many bytes.
    BreakOff(usize),
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            filter: true,
            version_2: true,
            dumb: false,
            authorization: None,
            moved: None,
            delay: Duration::ZERO,
            manner: Manner::Serve,
            api: None,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    rules: Mutex<Rules>,
    requests: AtomicU64,
    bytes: AtomicU64,
    authorizations: Mutex<Vec<String>>,
}

/// A Git host on a port of its own on loopback. Its repositories go when it goes.
#[derive(Debug)]
pub struct Forge {
    root: tempfile::TempDir,
    address: SocketAddr,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

impl Forge {
    /// Starts one.
    pub async fn start() -> Self {
        let root = tempfile::tempdir().expect("a folder for repositories can be made");
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut forge = Self { root, address, shared: Arc::default(), server: None };
        forge.resume().await;
        forge
    }

    /// Serves again, at the same address.
    pub async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("a port on loopback is free");
        self.address = listener.local_addr().expect("a listener has an address");
        self.server = Some(tokio::spawn(serve(listener, self.root.path().to_owned(), Arc::clone(&self.shared))));
    }

    /// Stops serving: connections are refused, and those that are open end.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            drop(server.await);
        }
    }

    /// `http://127.0.0.1:PORT`
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The http address of a repository.
    pub fn url(&self, name: &str) -> String {
        format!("{}/{name}.git", self.base())
    }

    /// The file address of a repository.
    pub fn file_url(&self, name: &str) -> String {
        format!("file://{}/{name}.git", self.root.path().display())
    }

    /// Changes the rules for requests from now on.
    pub fn rule(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How many requests came, and how many bytes of bodies went out, since it was last asked.
    pub fn traffic(&self) -> (u64, u64) {
        (self.shared.requests.swap(0, Ordering::SeqCst), self.shared.bytes.swap(0, Ordering::SeqCst))
    }

    /// The `Authorization` headers that came since it was last asked.
    pub fn authorizations(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.authorizations.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes an empty repository.
    pub fn repository(&self, name: &str) -> Repository {
        let path = self.root.path().join(format!("{name}.git"));
        std::fs::create_dir_all(&path).expect("a folder for a repository can be made");
        let repository = Repository { path };
        repository.git(&["init", "--quiet", "--bare", "--initial-branch=main", "."]);
        repository
    }

    /// Where the repositories are.
    pub fn root(&self) -> &Path {
        self.root.path()
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// One file of a commit.
#[derive(Clone, Debug)]
pub struct File {
    mode: &'static str,
    path: String,
    data: Vec<u8>,
}

impl File {
    /// An ordinary file.
    pub fn new(path: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        Self { mode: "100644", path: path.into(), data: data.into() }
    }

    /// A file that may be executed.
    pub fn executable(path: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        Self { mode: "100755", path: path.into(), data: data.into() }
    }

    /// A symbolic link.
    pub fn link(path: impl Into<String>, target: &str) -> Self {
        Self { mode: "120000", path: path.into(), data: target.into() }
    }

    /// A submodule at a commit.
    pub fn submodule(path: impl Into<String>, commit: &str) -> Self {
        Self { mode: "160000", path: path.into(), data: commit.into() }
    }

    /// The same one in a folder.
    #[must_use]
    pub fn below(mut self, folder: &str) -> Self {
        self.path = format!("{folder}/{}", self.path);
        self
    }

    fn write(&self, stream: &mut Vec<u8>) {
        if self.mode == "160000" {
            let commit = String::from_utf8_lossy(&self.data);
            stream.extend_from_slice(format!("M 160000 {commit} \"{}\"\n", self.path).as_bytes());
            return;
        }
        stream.extend_from_slice(
            format!("M {} inline \"{}\"\ndata {}\n", self.mode, self.path, self.data.len()).as_bytes(),
        );
        stream.extend_from_slice(&self.data);
        stream.push(b'\n');
    }
}

/// A bare repository of a forge.
#[derive(Clone, Debug)]
pub struct Repository {
    path: PathBuf,
}

/// When the commit with this number, from 0, was made: seconds since 1970.
pub fn committed(number: usize) -> i64 {
    1_700_000_000 + 60 * i64::try_from(number).expect("a test has no more commits than that")
}

impl Repository {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs git in it and returns what it printed.
    pub fn git(&self, args: &[&str]) -> String {
        String::from_utf8_lossy(&self.git_bytes(args, &[])).trim_end().to_owned()
    }

    /// Runs git in it with `input` and returns the bytes that it wrote.
    pub fn git_bytes(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new("git")
            .args(args)
            .current_dir(&self.path)
            .envs(quiet_environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the git program is installed");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().expect("git can be waited for");
        assert!(output.status.success(), "git {args:?} in {} failed: {}", self.path.display(), output.status);
        writer.join().expect("the writer does not panic").expect("git reads its input");
        output.stdout
    }

    /// Adds a commit to a branch, with exactly these files, and returns its id. Commits are a minute apart.
    pub fn commit(&self, branch: &str, message: &str, files: &[File]) -> String {
        let parent = self.resolve(&format!("refs/heads/{branch}"));
        let count = parent.as_ref().map_or(0, |parent| self.git(&["rev-list", "--count", parent]).parse().unwrap_or(0));
        let mut stream = Vec::new();
        begin_commit(&mut stream, &format!("refs/heads/{branch}"), count, message);
        if let Some(parent) = parent {
            stream.extend_from_slice(format!("from {parent}\n").as_bytes());
        }
        stream.extend_from_slice(b"deleteall\n");
        for file in files {
            file.write(&mut stream);
        }
        self.import(&stream);
        self.resolve(&format!("refs/heads/{branch}")).expect("the commit was just made")
    }

    /// Makes `count` commits on `main`, each with the files that `files` gives for its number and with the tag that
    /// `tag` names: one process for all.
    pub fn history(&self, count: usize, tag: impl Fn(usize) -> String, files: impl Fn(usize) -> Vec<File>) {
        let mut stream = Vec::new();
        for number in 0..count {
            begin_commit(&mut stream, "refs/heads/main", number, &format!("Commit {number}"));
            stream.extend_from_slice(b"deleteall\n");
            for file in files(number) {
                file.write(&mut stream);
            }
            stream.extend_from_slice(format!("reset refs/tags/{}\nfrom refs/heads/main\n\n", tag(number)).as_bytes());
        }
        self.import(&stream);
    }

    /// Feeds `git fast-import`.
    pub fn import(&self, stream: &[u8]) {
        self.git_bytes(&["fast-import", "--quiet", "--force"], stream);
    }

    /// Points a lightweight tag at a commit, whether it exists or not.
    pub fn tag(&self, name: &str, commit: &str) {
        self.git(&["update-ref", &format!("refs/tags/{name}"), commit]);
    }

    /// Makes an annotated tag.
    pub fn annotated_tag(&self, name: &str, commit: &str) {
        self.git(&["tag", "-a", "-f", "-m", name, name, commit]);
    }

    /// Removes a ref, given in full.
    pub fn remove(&self, full: &str) {
        self.git(&["update-ref", "-d", full]);
    }

    /// The commit of a ref or revision.
    pub fn resolve(&self, revision: &str) -> Option<String> {
        let output = Command::new("git")
            .args(["rev-parse", "--verify", "--quiet", &format!("{revision}^{{commit}}")])
            .current_dir(&self.path)
            .envs(quiet_environment())
            .output()
            .expect("the git program is installed");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }
}

fn begin_commit(stream: &mut Vec<u8>, full: &str, number: usize, message: &str) {
    let time = committed(number);
    stream.extend_from_slice(
        format!("commit {full}\ncommitter Ada <ada@example.org> {time} +0000\ndata {}\n{message}\n", message.len())
            .as_bytes(),
    );
}

/// So that nobody's own configuration has a say.
fn quiet_environment() -> [(&'static str, &'static str); 7] {
    [
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_AUTHOR_NAME", "Ada"),
        ("GIT_AUTHOR_EMAIL", "ada@example.org"),
        ("GIT_COMMITTER_NAME", "Ada"),
        ("GIT_COMMITTER_EMAIL", "ada@example.org"),
        ("GIT_COMMITTER_DATE", "1700000000 +0000"),
    ]
}

async fn serve(listener: TcpListener, root: PathBuf, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let (root, shared) = (root.clone(), Arc::clone(&shared));
        let service = hyper::service::service_fn(move |request| answer(request, root.clone(), Arc::clone(&shared)));
        connections.spawn(async move {
            // A client that goes away in the middle is an ordinary day.
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    root: PathBuf,
    shared: Arc<Shared>,
) -> Result<Response<Body>, Infallible> {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let rules = shared.rules.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    shared.authorizations.lock().unwrap_or_else(PoisonError::into_inner).extend(given.clone());
    tokio::time::sleep(rules.delay).await;
    if let Some(answer) = rules.api.as_ref().and_then(|api| (api.0)(request.uri(), request.headers())) {
        return Ok(answer.map(|body| http_body_util::Full::new(body).map_err(|never| match never {}).boxed_unsync()));
    }
    if rules.authorization.is_some() && rules.authorization != given {
        return Ok(short(StatusCode::UNAUTHORIZED, (header::WWW_AUTHENTICATE, "Basic realm=\"forge\"".to_owned())));
    }
    if let Some((old, new)) = &rules.moved
        && let Some(path) = request.uri().path_and_query().filter(|path| path.as_str().starts_with(old))
    {
        return Ok(short(StatusCode::MOVED_PERMANENTLY, (header::LOCATION, path.as_str().replacen(old, new, 1))));
    }
    Ok(match &rules.manner {
        Manner::Silence => std::future::pending().await,
        Manner::Endless => endless(),
        Manner::Redirect(base) => {
            let rest = request.uri().path_and_query().map_or("/", |path| path.as_str());
            short(StatusCode::FOUND, (header::LOCATION, format!("{base}{rest}")))
        }
        Manner::Status(status) => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::IM_A_TEAPOT);
            short(status, (header::CACHE_CONTROL, "no-store".to_owned()))
        }
        Manner::Serve => backend(request, &root, &rules, shared, usize::MAX).await,
        Manner::BreakOff(after) => backend(request, &root, &rules, shared, *after).await,
    })
}

fn short(status: StatusCode, (name, value): (header::HeaderName, String)) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(name, value)
        .body(http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync())
        .expect("a short answer is well-formed")
}

/// A list of refs that goes on for as long as somebody listens.
fn endless() -> Response<Body> {
    let start = Bytes::from_static(b"001e# service=git-upload-pack\n0000");
    let line = format!("003f{} refs/heads/aaaaaa\n", "1".repeat(40));
    let piece = Bytes::from(line.repeat(1_000));
    let lines = stream::once(async move { start }).chain(stream::repeat(piece));
    Response::builder()
        .header(header::CONTENT_TYPE, "application/x-git-upload-pack-advertisement")
        .body(Body::new(StreamBody::new(lines.map(|piece| Ok(Frame::data(piece))))))
        .expect("the answer is well-formed")
}

/// Runs `git http-backend` (CGI, RFC 3875) for one request.
async fn backend(
    request: Request<hyper::body::Incoming>,
    root: &Path,
    rules: &Rules,
    shared: Arc<Shared>,
    break_off: usize,
) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let query = if rules.dumb { "" } else { head.uri.query().unwrap_or_default() };
    let mut command = tokio::process::Command::new("git");
    command
        .arg("http-backend")
        .envs(quiet_environment())
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", head.method.as_str())
        .env("PATH_INFO", head.uri.path())
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", text("content-type"))
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "uploadpack.allowFilter")
        .env("GIT_CONFIG_VALUE_0", rules.filter.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    if head.headers.contains_key(header::CONTENT_LENGTH) {
        command.env("CONTENT_LENGTH", text("content-length"));
    }
    if rules.version_2 {
        command.env("GIT_PROTOCOL", text("git-protocol"));
    }
    let mut child = command.spawn().expect("the git program is installed");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if let Some(data) = frame.data_ref()
                && stdin.write_all(data).await.is_err()
            {
                return;
            }
        }
    });
    let mut response = Response::builder();
    loop {
        let mut line = String::new();
        stdout.read_line(&mut line).await.expect("git http-backend writes text first");
        match line.trim_end().split_once(": ") {
            Some(("Status", status)) => response = response.status(status.split(' ').next().unwrap_or("500")),
            Some((name, value)) => response = response.header(name, value),
            None => break,
        }
    }
    let data = stream::unfold((stdout, child, break_off), move |(mut stdout, child, left)| {
        let shared = Arc::clone(&shared);
        async move {
            if left == 0 {
                return Some((Err(std::io::Error::other("broken off")), (stdout, child, left)));
            }
            let mut piece = BytesMut::with_capacity(64 * 1024);
            let read = stdout.read_buf(&mut piece).await.ok().filter(|read| *read > 0)?;
            piece.truncate(left);
            shared.bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
            Some((Ok(Frame::data(piece.freeze())), (stdout, child, left.saturating_sub(read))))
        }
    });
    response.body(Body::new(StreamBody::new(data))).expect("git http-backend writes proper headers")
}

/// The same repositories over ssh, by a real sshd on loopback that lets one key in.
#[derive(Debug)]
pub struct SshForge {
    folder: tempfile::TempDir,
    port: u16,
    user: String,
    sshd: std::process::Child,
}

impl SshForge {
    /// Starts one; `None` where there is no sshd, or where it does not run.
    pub async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().ok()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        for key in ["host", "client"] {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]).status().ok()?;
            assert!(made.success(), "ssh-keygen makes a key");
        }
        let user = Command::new("id").arg("-un").output().ok()?;
        let user = String::from_utf8_lossy(&user.stdout).trim().to_owned();
        let port = TcpListener::bind("127.0.0.1:0").await.ok()?.local_addr().ok()?.port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nAcceptEnv GIT_PROTOCOL\n\
             PermitRootLogin prohibit-password\n",
            at("host"),
            at("client.pub")
        );
        std::fs::write(at("config"), config).ok()?;
        let sshd = Command::new("/usr/sbin/sshd").args(["-D", "-f", &at("config"), "-E", &at("log")]).spawn().ok()?;
        let mut forge = Self { folder, port, user, sshd };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(forge);
            }
            if forge.sshd.try_wait().is_ok_and(|ended| ended.is_some()) {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        None
    }

    /// The ssh address of a repository.
    pub fn url(&self, repository: &Repository) -> String {
        format!("ssh://{}@127.0.0.1:{}{}", self.user, self.port, repository.path().display())
    }

    /// The private key that is let in.
    pub fn key(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("client")).expect("the key was made at the start")
    }
}

impl Drop for SshForge {
    fn drop(&mut self) {
        // It may have ended already.
        drop((self.sshd.kill(), self.sshd.wait()));
    }
}
