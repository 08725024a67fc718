//! A running Larder: started, spoken to by its own command line, killed, started again, stopped, and its log read at the
//! end by somebody who wants to find a panic, an error or a secret in it.

use std::{
    fs::OpenOptions,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::process::{Child, Command};

use crate::{
    Gate, Ground, Ran,
    program::{larder, run},
    until,
    wait::within,
    wire::{self, Answer},
};

/// How long a server may take to come up or to stop.
const LIMIT: Duration = Duration::from_secs(60);

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More environment, over what the ground gives.
    pub environment: Vec<(String, String)>,
    /// Its data folder in place of a fresh temporary one.
    pub data: Option<PathBuf>,
    /// Whether its log may hold errors, because the test takes something away from it.
    pub may_log_errors: bool,
    /// Whether files and loopback may not be sources.
    pub refuse_local_sources: bool,
}

impl Options {
    /// With one more variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// See the file.
pub struct Server {
    ground: Arc<Ground>,
    options: Options,
    data: PathBuf,
    folder: tempfile::TempDir,
    /// Where clients reach it.
    pub gate: Gate,
    child: Option<Child>,
    secrets: Mutex<Vec<String>>,
}

impl Server {
    /// Starts one.
    pub async fn start(ground: Ground) -> Self {
        Self::start_with(&Arc::new(ground), Options::default()).await
    }

    /// Starts one on a ground that others may share.
    pub async fn start_with(ground: &Arc<Ground>, options: Options) -> Self {
        let mut server = Self::prepare(ground, options).await;
        server.resume().await;
        server
    }

    /// One that is not started yet.
    ///
    /// # Panics
    /// If there is no place for temporary files.
    pub async fn prepare(ground: &Arc<Ground>, options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a test needs a place for temporary files");
        let data = options.data.clone().unwrap_or_else(|| folder.path().join("data"));
        let ground = Arc::clone(ground);
        let secrets = ["LARDER_SECRET_KEY", "LARDER_S3_SECRET_KEY"];
        let secrets = ground.environment().iter().filter(|(name, _)| secrets.contains(&name.as_str()));
        let secrets = Mutex::new(secrets.map(|(_, value)| value.clone()).filter(|value| !value.is_empty()).collect());
        Self { ground, options, data, folder, gate: Gate::open().await, child: None, secrets }
    }

    /// Starts it again after [`kill`](Self::kill) or [`stop`](Self::stop), and waits until it is ready.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn resume(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).expect("the log can be written");
        let begin = log.metadata().expect("the log is there").len();
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0"]).await;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true).spawn();
        self.child = Some(child.expect("the program starts"));
        let address = within(LIMIT, "it says where it listens", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            let log = self.log();
            assert!(ended.is_none(), "it ended with {ended:?}: {log}");
            let address = log[usize::try_from(begin).unwrap_or(0)..].lines().find_map(listening);
            async move { address }
        });
        let address = address.await;
        self.gate.lead_to(address);
        within(LIMIT, "it is ready", || async {
            wire::send(address, wire::get("/readyz", None)).await.ok().filter(|answer| answer.status.is_success())
        })
        .await;
    }

    /// Ends it as a power cut would.
    ///
    /// # Panics
    /// If it does not run.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().await.expect("it can be killed");
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Panics
    /// If it does not run, or does not stop.
    pub async fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        signal(&child, rustix::process::Signal::TERM);
        let ended = tokio::time::timeout(LIMIT, child.wait()).await.expect("it stops when it is asked to");
        ended.expect("a child can be waited for")
    }

    /// Stops it, and reads its log.
    ///
    /// # Panics
    /// If it did not end well, or if its log holds a panic, an error or a secret.
    pub async fn close(mut self) {
        if self.child.is_some() {
            let status = self.stop().await;
            assert!(status.success(), "it stopped with {status} (signal {:?})", status.signal());
        }
        self.judge(&self.log());
    }

    /// Looks for what must never be in something that the program said.
    fn judge(&self, said: &str) {
        assert!(!said.contains("panicked at"), "a panic: {said}");
        for secret in self.secrets.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            assert!(!said.contains(secret.as_str()), "a secret is in {said}");
        }
        let error = said.lines().find(|line| line.contains(r#""level":"ERROR""#));
        assert!(error.is_none() || self.options.may_log_errors, "an error: {}", error.unwrap_or_default());
    }

    /// Remembers a secret that must never be in the log.
    pub fn guard(&self, secret: &str) {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).push(secret.to_owned());
    }

    /// What it stands on.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Where it keeps its data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Where it listens itself.
    pub fn address(&self) -> SocketAddr {
        self.gate.server()
    }

    /// Where clients reach it.
    pub fn url(&self) -> String {
        self.gate.url()
    }

    /// The most memory that it ever had, in bytes. Its git processes are not in it.
    ///
    /// # Panics
    /// If it does not run.
    pub fn peak_memory(&self) -> u64 {
        let id = self.child.as_ref().and_then(Child::id).expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("Linux tells of its processes");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells the peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("it is a number") * 1024
    }

    /// The program with the environment of this server.
    pub async fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(larder().await);
        let local = if self.options.refuse_local_sources { "false" } else { "true" };
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", crate::setting("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("LARDER_DATA", &self.data)
            .env("LARDER_PUBLIC_URL", self.gate.url())
            .env("LARDER_ALLOW_LOCAL_SOURCES", local)
            .envs(self.ground.environment().iter().cloned())
            .envs(self.options.environment.iter().cloned());
        command
    }

    /// Runs a command of the program on this server's data.
    pub async fn larder(&self, args: &[&str]) -> Ran {
        self.larder_with(args, "").await
    }

    /// [`larder`](Self::larder) with something on standard input.
    pub async fn larder_with(&self, args: &[&str], input: &str) -> Ran {
        let ran = run(self.command(args).await, input.as_bytes()).await;
        self.judge(&ran.stderr);
        ran
    }

    /// Runs a command that must succeed, and returns what it wrote.
    pub async fn ok(&self, args: &[&str]) -> String {
        self.larder(args).await.ok()
    }

    /// Runs a command with `--json` that must succeed.
    ///
    /// # Panics
    /// If it fails, or writes something else than one JSON document.
    pub async fn json(&self, args: &[&str]) -> serde_json::Value {
        let said = self.ok(&[args, &["--json"]].concat()).await;
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
    }

    /// Makes a token with these grants (none: it may read everything).
    pub async fn token(&self, name: &str, grants: &[&str]) -> String {
        let allow = grants.iter().flat_map(|grant| ["--allow", grant]);
        let args: Vec<&str> = ["token", "create", name].into_iter().chain(allow).collect();
        let token = self.ok(&args).await;
        self.guard(&token);
        token
    }

    /// Adds a Git source and waits for its first sync.
    pub async fn add(&self, name: &str, url: &str, more: &[&str]) {
        self.ok(&[&["source", "add", "git", url, "--name", name], more].concat()).await;
        self.ok(&["source", "sync", name]).await;
    }

    /// Asks the server itself, past the gate.
    ///
    /// # Panics
    /// If there is no answer.
    pub async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        wire::send(self.address(), wire::get(path, token)).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The versions of a package as clients see them, expanded, the newest first; empty if there is no such package.
    ///
    /// # Panics
    /// If the metadata cannot be read.
    pub async fn versions(&self, token: &str, package: &str, dev: bool) -> Vec<serde_json::Value> {
        let path = format!("/p2/{package}{}.json", if dev { "~dev" } else { "" });
        let answer = self.get(&path, Some(token)).await;
        if answer.status == http::StatusCode::NOT_FOUND {
            return Vec::new();
        }
        assert!(answer.status.is_success(), "{path}: {} {}", answer.status, answer.text());
        crate::packages::expand(&answer.json()["packages"][package])
    }

    /// Waits until clients see exactly these versions of a package, in this order.
    pub async fn until_versions(&self, token: &str, package: &str, dev: bool, expected: &[&str]) {
        until(&format!("{package} has the versions {expected:?}"), || async {
            let versions = self.versions(token, package, dev).await;
            let names: Vec<_> =
                versions.iter().map(|version| version["version"].as_str().unwrap_or_default()).collect();
            (names == expected).then_some(())
        })
        .await;
    }

    /// Proves that all stored bytes are there and right.
    pub async fn fsck(&self) -> String {
        self.ok(&["fsck"]).await
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let skip = log.lines().count().saturating_sub(60);
            eprintln!("The end of the server's log:");
            log.lines().skip(skip).for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// The address in a log line that tells it.
fn listening(line: &str) -> Option<SocketAddr> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    if line["message"] != "listening" {
        return None;
    }
    line["address"].as_str()?.parse().ok()
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(id.expect("it runs"), signal).expect("a running child can be told something");
}
