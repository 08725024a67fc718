//! The Git port on an operating system: the `git` program, kept on a short leash, and local copies below one folder.
//! It brings refs, commits and files; it knows nothing of formats, rows or policies.
//!
//! How it stays fast: a light copy has no refs and no history. A fetch names commits, not refs, so that the host answers
//! with their trees and nothing is negotiated; contents come later, by their ids, many in one request. `list` is one
//! `ls-remote`. How it stays safe: see [`crate::guard`] for addresses; every command runs in a cleared environment, in its own
//! process group, under limits of size, memory and time ([`GitLimits`]); secrets are neither in arguments nor in errors.

mod access;
mod archive;
mod batch;
mod failure;
mod fetch;
mod list;
mod mirror;
mod process;
mod read;
mod redirect;
mod trees;

use std::{
    collections::HashMap,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use larder_core::{Error, Kind, Result, tree::TreeEvent};
use larder_sources::git::{CommitFiles, Fetched, Git, Keep, Remote, RemoteRef, Wanted};
use tokio::sync::{OnceCell, Semaphore};

/// The oldest git that works: it is the first that reads settings from the environment.
const OLDEST: GitVersion = GitVersion(2, 31, 0);

/// The first git that can be told which address a host has.
const FIRST_TO_PIN: GitVersion = GitVersion(2, 37, 0);

/// What git starts when `export-subst` asks for the state of a commit's signature (`%G?`), with what a stranger signed.
/// `git archive` reads no setting that names another program.
const VERIFIERS: [&str; 3] = ["gpg", "gpgsm", "ssh-keygen"];

/// How far a Git host and a repository may go. All of them are limits per command.
#[derive(Clone, Debug)]
pub struct GitLimits {
    /// How long listing refs may take. Default 30 s.
    pub list: Duration,
    /// How long one fetch may take. Default 15 min.
    pub fetch: Duration,
    /// How long a host may be silent, and how long a command on the local copy may be. Default 60 s.
    pub idle: Duration,
    /// How many branches and tags a repository may have. Default 50,000.
    pub refs: usize,
    /// How many bytes one fetch may bring. Default 4 GiB.
    pub fetch_bytes: u64,
    /// How many bytes of files one archive may hold. Default 1 GiB.
    pub archive_bytes: u64,
    /// How many files one archive may hold. Default 200,000.
    pub archive_entries: usize,
    /// How much memory one git command may ask for. Default 2 GiB.
    pub memory: u64,
    /// How many git commands run at once. Default 4.
    pub at_once: usize,
}

impl Default for GitLimits {
    fn default() -> Self {
        Self {
            list: Duration::from_secs(30),
            fetch: Duration::from_secs(15 * 60),
            idle: Duration::from_secs(60),
            refs: 50_000,
            fetch_bytes: 4 << 30,
            archive_bytes: 1 << 30,
            archive_entries: 200_000,
            memory: 2 << 30,
            at_once: 4,
        }
    }
}

/// Where the git program is and where it works.
#[derive(Clone, Debug)]
pub struct GitSettings {
    /// The program: a name that is looked up in `path`, or a path.
    pub program: PathBuf,
    /// `PATH` for git and what it starts (ssh).
    pub path: OsString,
    /// More environment for git, such as `GIT_SSL_CAINFO`.
    pub environment: Vec<(OsString, OsString)>,
    /// The folder of the local copies: a cache that can be deleted at any time.
    pub mirrors: PathBuf,
    /// The ssh host keys seen so far: the first one that a host shows is trusted, another one later is refused.
    pub known_hosts: PathBuf,
    /// Whether `file://`, loopback and private addresses may be sources.
    pub allow_local: bool,
    /// How far hosts and repositories may go.
    pub limits: GitLimits,
}

impl GitSettings {
    /// The ordinary settings for a data folder: copies in `mirrors`, host keys in `known_hosts`.
    pub fn below(data: &Path) -> Self {
        Self {
            program: "git".into(),
            path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
            environment: Vec::new(),
            mirrors: data.join("mirrors"),
            known_hosts: data.join("known_hosts"),
            allow_local: false,
            limits: GitLimits::default(),
        }
    }
}

/// A version of git: `2.39.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GitVersion(u32, u32, u32);

impl GitVersion {
    /// Reads what `git version` prints: `git version 2.39.5 (Apple Git-154)`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().strip_prefix("git version ")?.split_whitespace().next()?.split('.');
        let mut next = || numbers.next().and_then(|number| number.parse().ok());
        Some(Self(next()?, next()?, next().unwrap_or(0)))
    }

    /// Whether it can be told which address a host has, so that a name cannot change its meaning after it was checked.
    pub fn pins_addresses(self) -> bool {
        self >= FIRST_TO_PIN
    }
}

impl std::fmt::Display for GitVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The [`Git`] port over the git program.
#[derive(Clone)]
pub struct GitProgram {
    settings: Arc<GitSettings>,
    places: Arc<Semaphore>,
    version: Arc<OnceCell<GitVersion>>,
    writers: Arc<mirror::Writers>,
    moved: Arc<Mutex<HashMap<String, larder_sources::url::GitUrl>>>,
}

impl GitProgram {
    /// Starts nothing and makes nothing yet.
    pub fn new(mut settings: GitSettings) -> Self {
        for path in [&mut settings.mirrors, &mut settings.known_hosts] {
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
        Self {
            places: Arc::new(Semaphore::new(settings.limits.at_once.max(1))),
            settings: Arc::new(settings),
            version: Arc::new(OnceCell::new()),
            writers: Arc::default(),
            moved: Arc::default(),
        }
    }

    /// The names of the local copies on this machine that are only caches: those that are not full.
    pub async fn caches(&self) -> Result<Vec<String>> {
        mirror::Mirror::light(self).await
    }

    /// The version of the git program; an error that says what to do if there is none or if it is too old.
    pub async fn version(&self) -> Result<GitVersion> {
        self.version.get_or_try_init(|| self.ask_version()).await.copied()
    }

    async fn ask_version(&self) -> Result<GitVersion> {
        let ended =
            process::Call::new(self, &["version"]).run(self, Vec::new(), 1024, self.settings.limits.idle).await?;
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        let Some(version) = GitVersion::parse(&said).filter(|_| ended.outcome == process::Outcome::Success) else {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "the git program `{}` does not run: install git {OLDEST} or newer",
                    self.settings.program.display()
                ),
            )
            .caused_by(ended.stderr));
        };
        if version < OLDEST {
            return Err(Error::new(
                Kind::Unavailable,
                format!("git {version} is too old: install git {OLDEST} or newer"),
            ));
        }
        Ok(version)
    }

    /// Git's home, with the settings that hold for every command.
    fn home(&self) -> PathBuf {
        self.settings.mirrors.join("home")
    }

    async fn make_home(&self) -> Result<()> {
        let home = self.home();
        // Only for this user, even where the data folder is open to others.
        tokio::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&home)
            .await
            .map_err(|error| mirror::disk("making the folder of local copies", error))?;
        mirror::replace(&home.join("gitconfig"), &self.standing_config()).await
    }

    /// The `PATH` of a command that makes an archive, with [`VERIFIERS`] that do nothing in front.
    async fn mute_path(&self) -> Result<OsString> {
        let mute = self.home().join("mute");
        let failed = |error| mirror::disk("making git's home", error);
        tokio::fs::create_dir_all(&mute).await.map_err(failed)?;
        for name in VERIFIERS {
            match tokio::fs::symlink("/bin/false", mute.join(name)).await {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
                _ => {}
            }
        }
        let mut path = mute.into_os_string();
        path.push(":");
        path.push(&self.settings.path);
        Ok(path)
    }

    /// What holds for every command, whatever the machine's own configuration says (which is not read).
    fn standing_config(&self) -> String {
        let idle = self.settings.limits.idle.as_secs().max(1);
        format!(
            "[safe]\n\tdirectory = *\n\
             [protocol]\n\tversion = 2\n\
             [gc]\n\tauto = 0\n\
             [maintenance]\n\tauto = false\n\
             [fetch]\n\tunpackLimit = 1\n\trecurseSubmodules = false\n\twriteCommitGraph = false\n\
             [transfer]\n\tbundleURI = false\n\
             [core]\n\thooksPath = /dev/null\n\tattributesFile = /dev/null\n\tabbrev = 10\n\tbigFileThreshold = 32m\n\
             \tpackedGitWindowSize = 32m\n\tpackedGitLimit = 256m\n\tdeltaBaseCacheLimit = 32m\n\tfsmonitor = false\n\
             [pack]\n\tthreads = 1\n\twindowMemory = 64m\n\
             [http]\n\tfollowRedirects = false\n\tlowSpeedLimit = 1\n\tlowSpeedTime = {idle}\n\tpostBuffer = 16m\n\
             [tar]\n\tumask = 0022\n"
        )
    }

    fn base_environment(&self) -> Vec<(OsString, OsString)> {
        let home = self.home();
        let mut environment: Vec<(OsString, OsString)> = self.settings.environment.clone();
        environment.extend(
            [
                ("PATH", self.settings.path.clone()),
                ("HOME", home.clone().into()),
                ("LC_ALL", "C".into()),
                ("TZ", "UTC".into()),
                ("GIT_CONFIG_NOSYSTEM", "1".into()),
                ("GIT_CONFIG_GLOBAL", home.join("gitconfig").into()),
                ("GIT_ATTR_NOSYSTEM", "1".into()),
                ("GIT_CEILING_DIRECTORIES", self.settings.mirrors.clone().into()),
                ("GIT_TERMINAL_PROMPT", "0".into()),
                ("GIT_NO_LAZY_FETCH", "1".into()),
                ("GIT_NO_REPLACE_OBJECTS", "1".into()),
                ("GIT_ALLOW_PROTOCOL", "none".into()),
            ]
            .map(|(name, value)| (name.into(), value)),
        );
        environment
    }
}

#[async_trait]
impl Git for GitProgram {
    async fn list(&self, remote: &Remote) -> Result<Vec<RemoteRef>> {
        list::list(self, remote).await
    }

    async fn fetch(&self, mirror: &str, remote: &Remote, refs: &[RemoteRef], keep: Keep) -> Result<Fetched> {
        fetch::fetch(self, mirror, remote, refs, keep).await
    }

    async fn read<'a>(
        &'a self,
        mirror: &'a str,
        remote: &'a Remote,
        commits: Vec<String>,
        wanted: Wanted<'a>,
    ) -> Result<BoxStream<'a, Result<CommitFiles>>> {
        read::read(self, mirror, remote, commits, wanted).await
    }

    async fn archive(
        &self,
        mirror: &str,
        remote: &Remote,
        commit: &str,
        folder: &str,
    ) -> Result<BoxStream<'static, Result<TreeEvent>>> {
        archive::archive(self, mirror, remote, commit, folder).await
    }

    async fn forget(&self, mirror: &str) -> Result<()> {
        mirror::Mirror::of(self, mirror)?.forget(self).await
    }
}

impl std::fmt::Debug for GitProgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GitProgram").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_git_prints_them() {
        for (text, version) in [
            ("git version 2.39.5\n", GitVersion(2, 39, 5)),
            ("git version 2.39.5 (Apple Git-154)\n", GitVersion(2, 39, 5)),
            ("git version 2.52.0.windows.1\n", GitVersion(2, 52, 0)),
            ("git version 2.31.rc1\n", GitVersion(2, 31, 0)),
        ] {
            assert_eq!(GitVersion::parse(text), Some(version), "{text}");
        }
        assert_eq!(GitVersion::parse("sh: git: not found"), None);
        assert!(!GitVersion(2, 36, 9).pins_addresses() && GitVersion(2, 37, 0).pins_addresses());
    }
}
