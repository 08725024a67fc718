//! What a format sees of a Git repository: one ref at one commit, and the files of a tree as they stream by.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::{error::Result, time::Time};

/// Whether a ref is meant to stay or to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefKind {
    /// `refs/tags/…`: a release, not meant to move.
    Tag,
    /// `refs/heads/…`: a line of development.
    Branch,
}

/// One ref at one commit, as it is shown to every format.
#[derive(Clone, Debug)]
pub struct Snapshot<'a> {
    /// Tag or branch.
    pub kind: RefKind,
    /// The ref's name without `refs/tags/` or `refs/heads/`.
    pub name: &'a str,
    /// Whether the repository's HEAD points at this branch.
    pub default_branch: bool,
    /// The commit, in hex.
    pub commit: &'a str,
    /// When it was committed.
    pub committed: Time,
    /// The folder within the tree, without slashes at its ends; empty for the root.
    pub folder: &'a str,
    /// Those of [`Format::manifests`](crate::format::Format::manifests) that the folder holds, with their bytes.
    pub manifests: &'a [(String, Bytes)],
}

/// The kind of a file in a tree, as far as an archive can keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A symbolic link; its data is the target.
    Symlink,
    /// A directory; it has no data.
    Directory,
}

/// What precedes the data of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryHead {
    /// Path within the tree, `/` between segments; never absolute, never with `..`.
    pub path: String,
    /// File, link or directory.
    pub kind: EntryKind,
    /// How many bytes of data follow.
    pub size: u64,
}

/// One step of a tree that streams by, files in the order of their paths.
#[derive(Clone, Debug)]
pub enum TreeEvent {
    /// A file begins; the one before it is complete.
    Entry(EntryHead),
    /// Some of its data.
    Data(Bytes),
}

/// The files of a tree as they stream by.
pub type TreeStream<'a> = BoxStream<'a, Result<TreeEvent>>;

/// Where a format writes the bytes of an artifact that it packs.
#[async_trait]
pub trait ByteSink: Send {
    /// Appends bytes.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;
}
