//! What the rest of the house knows of a format. One room implements it; nobody else names a format.

use std::cmp::Ordering;

use async_trait::async_trait;

use crate::{
    error::Result,
    time::Time,
    tree::{ByteSink, Snapshot, TreeStream},
};

/// A protocol with its clients.
pub trait Format: Send + Sync {
    /// Its id in grants, tables and commands: lower-case letters and digits.
    fn id(&self) -> &'static str;

    /// Its name for people.
    fn title(&self) -> &'static str;

    /// The name of the artifact that stands for a version: the one that is built, or that describes the others.
    fn artifact(&self) -> &'static str;

    /// How its packages are found in Git repositories and built from them; `None` if they only come from clients.
    fn trees(&self) -> Option<&dyn FromTree> {
        None
    }

    /// How its packages can be taken from other registries, as clients ask for them; `None` if they cannot.
    fn proxied(&self) -> Option<Proxied> {
        None
    }

    /// Orders two of this format's versions by precedence, lowest first.
    fn compare(&self, a: &str, b: &str) -> Ordering;

    /// Checks and normalises a package name as clients may write it.
    fn package_name(&self, name: &str) -> Result<String>;

    /// What a person pastes into a terminal to use the package `name` from the registry at `public_url`.
    fn install_snippet(&self, public_url: &str, name: &str) -> String;
}

/// What can be said of a source that is another registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proxied {
    /// Whether its packages can have something in front of their names here: not where a name stands inside the package.
    pub prefix: bool,
    /// Whether clients can be told to fetch files there, and where its sources are: where metadata holds addresses.
    pub links: bool,
}

/// How the packages of a format look inside a Git repository.
#[async_trait]
pub trait FromTree: Send + Sync {
    /// The names of the files that mark a folder as a package of this format; the first one must be there.
    fn manifests(&self) -> &'static [&'static str];

    /// The largest manifest that is read, in bytes. A larger one makes its ref a skipped one.
    fn manifest_limit(&self) -> u64 {
        1024 * 1024
    }

    /// Makes a release out of one ref. `Err` says, for people, why this ref is not one; it never fails the other refs.
    fn take_in(&self, snapshot: &Snapshot<'_>) -> std::result::Result<Release, Skipped>;

    /// Packs the files of a tree, committed at `committed`, into the artifact: a zip, a tarball, a wheel. The same
    /// files give the same bytes, always and everywhere, however they are cut into pieces on their way.
    async fn pack(&self, committed: Time, files: TreeStream<'_>, out: &mut dyn ByteSink) -> Result<()>;
}

/// A version of a package, as a format found it in a tree or an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The package's name.
    pub package: String,
    /// The version in its normal form: two texts of the same version are the same here.
    pub version: String,
    /// The version as its author wrote it.
    pub display: String,
    /// Whether it is a stable release; stable releases are built eagerly and frozen by default.
    pub stable: bool,
    /// The movable name that now stands for this version; `None` for a release that is meant to stay.
    pub pointer: Option<String>,
    /// The format's own metadata: a JSON object.
    pub metadata: String,
    /// What lists and searches show of the package: a JSON object with at most `description`, `type` and `abandoned`.
    pub summary: String,
    /// Whether the package is best described by this release: it is of the default branch.
    pub describes: bool,
    /// What is odd but not wrong, for people.
    pub warnings: Vec<String>,
}

/// Why a ref is not a release, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped(pub String);

impl Skipped {
    /// With its reason.
    pub fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
