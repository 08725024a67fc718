//! The port to Git: what Larder asks of a Git host and of its local copy. `larder-native` implements it with the
//! `git` program. It knows refs, commits and files; nothing of formats, rows or policies.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use larder_core::{Result, Time, tree::TreeEvent};

use crate::{folders::Folders, url::GitUrl};

/// A repository to talk to, with what opens it. The secret goes to `url`'s host and nowhere else, redirects included.
#[derive(Clone)]
pub struct Remote {
    /// Where it is.
    pub url: GitUrl,
    /// What opens it.
    pub secret: Option<GitSecret>,
}

/// What opens a repository. Its `Debug` shows nothing.
#[derive(Clone)]
pub enum GitSecret {
    /// HTTP Basic.
    Basic {
        /// User name.
        username: String,
        /// Password or token.
        password: String,
    },
    /// `Authorization: Bearer`.
    Bearer(String),
    /// An OpenSSH private key.
    Ssh {
        /// The key file's text.
        key: String,
    },
}

impl std::fmt::Debug for GitSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GitSecret(…)")
    }
}

/// A branch or tag of a remote. Other refs (`refs/pull` and the like) are never listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteRef {
    /// `refs/heads/…` or `refs/tags/…`
    pub name: String,
    /// The commit in hex; for an annotated tag the one that it points at.
    pub commit: String,
}

/// How much of a repository is kept locally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The newest commit of each ref with its trees, file contents only when needed.
    Light,
    /// Everything, for good.
    Full,
}

/// What a fetch brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// The commit that the remote's HEAD points at, if it has one.
    pub head: Option<String>,
    /// By how many bytes the local copy grew.
    pub bytes: u64,
}

/// One file that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileContent {
    /// Its bytes.
    Bytes(Bytes),
    /// It is larger than the limit; this many bytes.
    TooLarge(u64),
    /// It is a symbolic link, a directory or a submodule.
    NotAFile,
    /// The remote did not give it.
    Missing,
}

/// Which files of a commit are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The folders that may have them, beside the root, which is always looked at.
    pub folders: &'a Folders,
    /// Their names.
    pub names: &'a [String],
    /// A file with more bytes than this is not read.
    pub limit: u64,
}

/// What one folder of a commit holds of the files asked for. The root comes first, the folders below it in the order of
/// their paths, and only those that have any of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitFiles {
    /// The commit in hex.
    pub commit: String,
    /// When it was committed; `None` if the commit itself could not be read (broken or not given by the remote).
    pub committed: Option<Time>,
    /// The folder, without slashes at its ends; empty for the root.
    pub folder: String,
    /// The files that it has, by name.
    pub files: Vec<(String, FileContent)>,
    /// With the root: why folders of this commit were not looked at, for people.
    pub unread: Option<String>,
}

/// Talks to Git hosts and reads the local copies. `mirror` names a local copy (the id of its source): a cache that
/// can be deleted at any time, made again when missing.
#[async_trait]
pub trait Git: Send + Sync {
    /// Lists branches and tags: one request.
    async fn list(&self, remote: &Remote) -> Result<Vec<RemoteRef>>;

    /// Brings the commits of `refs` into the local copy: a bounded number of requests for any number of refs.
    async fn fetch(&self, mirror: &str, remote: &Remote, refs: &[RemoteRef], keep: Keep) -> Result<Fetched>;

    /// Reads files of `commits`, in that order and folder by folder, with one process for all of their folders and at
    /// most one request for the contents that the local copy lacks. A folder that is the same in several commits is looked
    /// into once.
    async fn read<'a>(
        &'a self,
        mirror: &'a str,
        remote: &'a Remote,
        commits: Vec<String>,
        wanted: Wanted<'a>,
    ) -> Result<BoxStream<'a, Result<CommitFiles>>>;

    /// Streams the files of `commit` below `folder` (empty: all) as `git archive` gives them, with paths from there:
    /// `export-ignore` and `export-subst` honoured, sorted by path. What the `.gitattributes` above a folder say holds in
    /// it too, but cannot leave out the folder itself. Missing contents are fetched first, in one request.
    async fn archive(
        &self,
        mirror: &str,
        remote: &Remote,
        commit: &str,
        folder: &str,
    ) -> Result<BoxStream<'static, Result<TreeEvent>>>;

    /// Removes the local copy.
    async fn forget(&self, mirror: &str) -> Result<()>;
}
