//! Speaking to one upstream: where things are, who may have them, and what its answers mean.

use std::sync::Arc;

use bytes::Bytes;
use larder_core::{Kind, Time};
use larder_db::Db;
use larder_sources::{
    fetch::{Fetch, FetchResponse},
    registry::Upstream,
    vault::Vault,
};

use super::{Failure, root::Root};

/// One upstream. Cheap to clone; clones share what is known and what is under way.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) upstream: Arc<Upstream>,
}

/// What became of asking for a package.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// What is known is still true.
    Same,
    /// It is not there.
    Absent,
    /// Its versions.
    Versions {
        /// `{"packages":{"v/p":[…]},"minified":"composer/2.0"}`, with `security-advisories` and `filter` if it gave them.
        document: Bytes,
        /// To be shown with the next question.
        validator: String,
    },
}

/// What has changed upstream.
#[derive(Clone, Debug)]
pub(super) struct Changes {
    /// What to ask with next time.
    pub(super) timestamp: String,
    /// Each change, oldest first.
    pub(super) actions: Vec<Change>,
    /// So much has changed that everything has to be asked for again.
    pub(super) resync: bool,
}

/// A change of one package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Its name.
    pub(super) package: String,
    /// Whether its branches changed, or its tagged versions.
    pub(super) dev: bool,
    /// Whether they are gone.
    pub(super) deleted: bool,
}

/// A turn to fetch a dist, until it is dropped.
pub(super) struct Turn;

impl Client {
    pub(super) fn new(upstream: Upstream, _db: Db, _vault: Vault, _fetch: Arc<dyn Fetch>, _allow_local: bool) -> Self {
        Self { upstream: Arc::new(upstream) }
    }

    /// Its host, for people.
    pub(super) fn host(&self) -> String {
        larder_sources::fetch::origin(&self.upstream.url)
    }

    /// What it says of itself, at most as old as the source's freshness, or older if it cannot be asked.
    pub(super) async fn root(&self) -> Result<Arc<Root>, Failure> {
        Err(not_yet())
    }

    /// A package's tagged versions, or its branches. `known` is the validator of what is here.
    pub(super) async fn package(&self, _name: &str, _dev: bool, _known: Option<&str>) -> Result<Told, Failure> {
        Err(not_yet())
    }

    /// Begins the download of a dist of at most `most` bytes. `url` is one of [`Root::dist_addresses`].
    pub(super) async fn dist(&self, _url: &str, _most: u64) -> Result<FetchResponse, Failure> {
        Err(not_yet())
    }

    /// What has changed since a timestamp that it gave. Without one: the timestamp to begin with. `Absent` if it does
    /// not tell changes.
    pub(super) async fn changes(&self, _since: Option<&str>) -> Result<Changes, Failure> {
        Err(not_yet())
    }

    /// All advisories that changed since then, as `{"advisories":{…}}`. No names are sent. `Absent` if it has none.
    pub(super) async fn advisories(&self, _since: Time) -> Result<Bytes, Failure> {
        Err(not_yet())
    }

    /// Waits for its turn to fetch a dist; others wait until what this gives is dropped.
    pub(super) async fn turn(&self) -> Result<Turn, Failure> {
        Err(not_yet())
    }
}

fn not_yet() -> Failure {
    Failure::Failed(Kind::Internal, "not yet".into())
}
