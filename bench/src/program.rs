//! The larder program: building it, its commands, and a running server.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::machine;

/// How long a server has to stop.
const STOP: Duration = Duration::from_secs(30);

/// The program.
#[derive(Clone, Debug)]
pub struct Larder {
    path: PathBuf,
}

impl Larder {
    /// The given program; otherwise the one of this workspace, built beside this one.
    pub async fn find(given: Option<&Path>) -> Result<Self> {
        if let Some(path) = given {
            return Ok(Self { path: path.to_owned() });
        }
        let own = std::env::current_exe().context("a program knows where it is")?;
        let folder = own.parent().context("cargo puts programs into TARGET/PROFILE")?;
        if folder.file_name().is_none_or(|name| name != "release") {
            bail!("figures of a slow build say nothing: run `cargo run --release -p larder-bench`");
        }
        let target = folder.parent().context("cargo puts profiles into a target folder")?;
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--quiet", "--package", "larder", "--target-dir"])
            .arg(target)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .status()
            .await?;
        if !built.success() {
            bail!("larder does not compile");
        }
        Ok(Self { path: folder.join("larder") })
    }

    /// What it says of itself.
    pub async fn version(&self) -> Result<String> {
        let output = Command::new(&self.path).arg("--version").output().await.context("larder does not run")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Runs one of its commands on a data folder, and gives what it wrote.
    pub async fn run(&self, data: &Path, words: &[&str]) -> Result<String> {
        let output = on(data, Command::new(&self.path)).args(words).output().await?;
        if !output.status.success() {
            bail!("larder {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Syncs a source where no server runs, and gives how long that took.
    pub async fn sync(&self, data: &Path, name: &str) -> Result<Synced> {
        let began = Instant::now();
        let mut command = on(data, Command::new(&self.path));
        let output = command.env("LARDER_LOG", "info").args(["source", "sync", name]).output().await?;
        let whole = began.elapsed();
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("larder source sync {name}: {said}");
        }
        let own = entries(&said, "synced").last().and_then(took).context("the log does not say how long it took")?;
        Ok(Synced { whole, own })
    }

    /// The command that serves a data folder at an address, on the core of the servers.
    pub fn on_server_core(&self, data: &Path, address: SocketAddr) -> Command {
        let mut command = on(data, machine::on_server_core(&self.path));
        command.args(["serve", "--listen", &address.to_string()]);
        command
    }

    /// Starts a server on a data folder, on the core of the servers or on all, and does not wait until it answers.
    pub fn serve(&self, data: &Path, pinned: bool) -> Result<Server> {
        let address = free_address()?;
        let log = data.join("bench.log");
        fs::create_dir_all(data)?;
        let began = Instant::now();
        let command = if pinned { machine::on_server_core(&self.path) } else { Command::new(&self.path) };
        let child = on(data, command)
            .args(["serve", "--listen", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()
            .context("larder does not start")?;
        Ok(Server { pid: child.id().context("it has just started")?, child, address, log, began })
    }
}

/// A command of larder on a data folder.
fn on(data: &Path, mut command: Command) -> Command {
    command.env("LARDER_DATA", data).env("LARDER_ALLOW_LOCAL_SOURCES", "true");
    command
}

/// How long a sync took.
#[derive(Clone, Copy, Debug)]
pub struct Synced {
    /// The command: it starts, opens the database, and waits for a server that might do it (there is none), as well.
    pub whole: Duration,
    /// The sync.
    pub own: Duration,
}

/// How long a sync took, as its line in the log says.
fn took(entry: &Value) -> Option<Duration> {
    entry["took_ms"].as_u64().map(Duration::from_millis)
}

/// The entries of a log with this message.
fn entries(log: &str, message: &str) -> Vec<Value> {
    let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    entries.filter(|entry| entry["message"] == message).collect()
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Its process: taskset turns into the program that it starts.
    pub pid: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it logs.
    log: PathBuf,
    /// When it was started.
    pub began: Instant,
}

impl Server {
    /// Waits until it answers.
    pub async fn ready(&self) -> Result<()> {
        crate::fetch::first_answer(self.address, "/healthz", &[], self.began)
            .await
            .map(drop)
            .with_context(|| format!("larder does not serve: {}", fs::read_to_string(&self.log).unwrap_or_default()))
    }

    /// The entries of its log, so far, with this message.
    pub fn logged(&self, message: &str) -> Result<Vec<Value>> {
        Ok(entries(&fs::read_to_string(&self.log)?, message))
    }

    /// Stops it, as a service manager does.
    pub async fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("a process has an id")?;
        kill_process(pid, Signal::TERM)?;
        tokio::time::timeout(STOP, self.child.wait()).await.context("larder does not stop")??;
        Ok(())
    }
}

/// An address on loopback where nobody listens now.
pub fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
