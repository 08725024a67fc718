//! Running the git program: a cleared environment, its own process group, limits that the kernel enforces, and an end
//! for the whole group when time is up or when nobody waits any more. What git is asked for is decided elsewhere.

use std::{ffi::OsString, path::Path, process::Stdio, time::Duration};

use larder_core::{Error, Kind, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinHandle,
};

use super::GitProgram;

/// How much of what git writes to stderr is kept: the end of it, where the reason stands.
const STDERR_KEPT: usize = 32 * 1024;

/// Sets the limits, then becomes git. A system that lacks one of the limits runs without it.
const WITH_LIMITS: &str =
    r#"ulimit -c 0 2>/dev/null; ulimit -f "$1" 2>/dev/null; ulimit -v "$2" 2>/dev/null; shift 2; exec "$@""#;

/// One git command before it runs.
pub(super) struct Call {
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    config: Vec<(String, String)>,
    secrets: Vec<String>,
    file_bytes: u64,
    memory: u64,
}

impl Call {
    /// `git ARGS` within the ordinary limits.
    pub(super) fn new(git: &GitProgram, args: &[&str]) -> Self {
        Self {
            args: args.iter().map(OsString::from).collect(),
            env: Vec::new(),
            config: Vec::new(),
            secrets: Vec::new(),
            file_bytes: git.settings.limits.fetch_bytes,
            memory: git.settings.limits.memory,
        }
    }

    /// In this repository.
    pub(super) fn within(self, git_dir: &Path) -> Self {
        self.env("GIT_DIR", git_dir)
    }

    /// One more argument.
    pub(super) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// One more environment variable.
    pub(super) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// One more setting, which no list of processes shows.
    pub(super) fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((key.into(), value.into()));
        self
    }

    /// What must never be seen in an error text.
    pub(super) fn hide(mut self, secrets: &[String]) -> Self {
        self.secrets.extend_from_slice(secrets);
        self
    }

    /// At most this many bytes of memory.
    pub(super) fn memory(mut self, bytes: u64) -> Self {
        self.memory = self.memory.min(bytes);
        self
    }

    /// No file that it writes may grow beyond this.
    pub(super) fn file_bytes(mut self, bytes: u64) -> Self {
        self.file_bytes = self.file_bytes.min(bytes);
        self
    }

    /// Starts it, as soon as one of the places is free.
    pub(super) async fn start(self, git: &GitProgram) -> Result<Running> {
        // The folder of local copies may be deleted at any time, git's home in it.
        git.make_home().await?;
        let permit = git
            .places
            .clone()
            .acquire_owned()
            .await
            .map_err(|closed| Error::internal("waiting for a place to run git", closed))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", WITH_LIMITS, "sh"])
            .arg((self.file_bytes / 512).max(1).to_string())
            .arg((self.memory / 1024).max(1).to_string())
            .arg(&git.settings.program)
            .args(&self.args)
            .env_clear()
            .envs(git.base_environment())
            .envs(self.env)
            .env("GIT_CONFIG_COUNT", self.config.len().to_string())
            .current_dir(git.home())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for (index, (key, value)) in self.config.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{index}"), key).env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        let mut child = command.spawn().map_err(|error| Error::internal("starting the git program", error))?;
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw));
        let taken = || Error::internal("starting the git program", "a pipe is missing");
        let stdin = child.stdin.take().ok_or_else(taken)?;
        let stdout = child.stdout.take().ok_or_else(taken)?;
        let stderr = child.stderr.take().ok_or_else(taken)?;
        Ok(Running {
            group,
            child,
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: tokio::spawn(last_of(stderr)),
            secrets: self.secrets,
            _permit: permit,
        })
    }

    /// Runs it to its end: gives it `input`, takes at most `output` bytes from it, and ends it after `limit`.
    pub(super) async fn run(self, git: &GitProgram, input: Vec<u8>, output: u64, limit: Duration) -> Result<Ended> {
        let mut running = self.start(git).await?;
        let work = async {
            running.feed(input);
            let mut stdout = Vec::new();
            let mut pipe = running.take_stdout()?;
            (&mut pipe)
                .take(output)
                .read_to_end(&mut stdout)
                .await
                .map_err(|error| Error::internal("reading from git", error))?;
            let cut = stdout.len() as u64 == output && pipe.read(&mut [0]).await.is_ok_and(|more| more > 0);
            Ok((stdout, cut))
        };
        match tokio::time::timeout(limit, work).await {
            Ok(Ok((_, true))) => Ok(Ended { outcome: Outcome::TooMuch, stdout: Vec::new(), stderr: String::new() }),
            Ok(Ok((stdout, false))) => {
                let (success, stderr) = running.end(limit).await?;
                Ok(Ended { outcome: if success { Outcome::Success } else { Outcome::Failure }, stdout, stderr })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(Ended { outcome: Outcome::TimeUp, stdout: Vec::new(), stderr: String::new() }),
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With status 0.
    Success,
    /// With another status, or by a signal.
    Failure,
    /// It was ended because it took too long.
    TimeUp,
    /// It was ended because it wrote too much.
    TooMuch,
}

/// A command that has ended.
pub(super) struct Ended {
    /// How.
    pub(super) outcome: Outcome,
    /// What it wrote.
    pub(super) stdout: Vec<u8>,
    /// What it said, without secrets.
    pub(super) stderr: String,
}

/// A command that runs. Dropping it ends it and all that it started.
pub(super) struct Running {
    group: Group,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: JoinHandle<Vec<u8>>,
    secrets: Vec<String>,
    _permit: OwnedSemaphorePermit,
}

impl Running {
    /// Writes all of `input` to it, beside whatever else happens, and closes its input.
    pub(super) fn feed(&mut self, input: Vec<u8>) {
        if let Some(mut stdin) = self.stdin.take() {
            tokio::spawn(async move {
                // A git that ends early closes its input; its status says why.
                drop(stdin.write_all(&input).await);
            });
        }
    }

    /// Writes to it what is sent, beside whatever else happens, and closes its input when nobody can send any more.
    pub(super) fn feed_on(&mut self) -> mpsc::UnboundedSender<Vec<u8>> {
        let (give, mut take) = mpsc::unbounded_channel::<Vec<u8>>();
        if let Some(mut stdin) = self.stdin.take() {
            tokio::spawn(async move {
                while let Some(input) = take.recv().await {
                    if stdin.write_all(&input).await.is_err() {
                        return;
                    }
                }
            });
        }
        give
    }

    /// What it writes.
    pub(super) fn take_stdout(&mut self) -> Result<ChildStdout> {
        self.stdout.take().ok_or_else(|| Error::internal("reading from git", "its output was taken before"))
    }

    /// Waits for its end: whether it succeeded, and what it said.
    pub(super) async fn end(mut self, limit: Duration) -> Result<(bool, String)> {
        drop(self.stdin.take());
        drop(self.stdout.take());
        let waited = tokio::time::timeout(limit, self.child.wait()).await;
        let Ok(status) = waited else {
            return Err(Error::new(Kind::Timeout, "git did not end when its work was done"));
        };
        let status = status.map_err(|error| Error::internal("waiting for git", error))?;
        // What it started may hold the pipe a moment longer, but not for ever.
        let said = tokio::time::timeout(Duration::from_secs(2), &mut self.stderr).await;
        let mut said = said.ok().and_then(std::result::Result::ok).unwrap_or_default();
        if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
            said.extend_from_slice(format!("\nfatal: git was ended by signal {signal}").as_bytes());
        }
        self.group.spare();
        Ok((status.success(), hidden(&String::from_utf8_lossy(&said), &self.secrets)))
    }
}

/// A process group that dies with this value.
struct Group(Option<rustix::process::Pid>);

impl Group {
    /// Its leader has ended by itself and was waited for: its number may already belong to somebody else.
    fn spare(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0
            && let Err(error) = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL)
        {
            tracing::debug!(%error, "a git process group had already ended");
        }
    }
}

/// The last [`STDERR_KEPT`] bytes of what `pipe` gives.
async fn last_of(mut pipe: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut piece = vec![0; 4096];
    while let Ok(read @ 1..) = pipe.read(&mut piece).await {
        kept.extend_from_slice(&piece[..read]);
        if kept.len() > 2 * STDERR_KEPT {
            kept.drain(..kept.len() - STDERR_KEPT);
        }
    }
    kept
}

/// `text` without `secrets`.
pub(super) fn hidden(text: &str, secrets: &[String]) -> String {
    secrets.iter().filter(|secret| !secret.is_empty()).fold(text.to_owned(), |text, secret| text.replace(secret, "…"))
}
