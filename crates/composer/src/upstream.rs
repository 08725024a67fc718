//! Packages of other registries: asked for when a client wants them, kept as they were told, and served from here when the
//! other registry is slow, busy or gone.
//!
//! One name has one origin. A package that is made here, and a name that is reserved, is never asked for nor mentioned
//! anywhere else. Any other package belongs, for good, to the first upstream in their order that had it when somebody asked; an
//! upstream that fails ends the search, because the next one may have a look-alike.
//!
//! The versions of such a package are no rows: they are the documents of its upstream. Only a version whose dist somebody
//! fetched has a row, which nothing lists, so that its bytes stay when the upstream forgets it. `client` speaks to one
//! upstream, `mirror` brings documents in, `checked` reads them, `changes` follows what upstreams say has changed, `dists`
//! brings dists.

mod address;
mod advisories;
mod ask;
mod changes;
mod checked;
mod client;
mod dists;
mod health;
mod mirror;
mod package;
mod probe;
mod root;
mod whole;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use larder_blobs::Blobs;
use larder_core::{Error, Id, Kind, Result, Time};
use larder_db::{
    Db,
    changes::Change,
    packages::{self, Artifact, Package},
    reservations::TOPIC as RESERVATIONS,
    upstream_documents::{self as documents, Document},
};
use larder_sources::{
    Limits, credentials,
    fetch::Fetch,
    flight::Flights,
    registry::{self, Upstream},
    reservations::Reservations,
    vault::Vault,
};
use quick_cache::{Weighter, sync::Cache};

use self::{changes::Feed, client::Client, mirror::Seen, root::Root};
pub use self::{checked::UpstreamVersions, dists::dist_key};
use crate::{ID, names};

/// The origin of a version whose dist was fetched from an upstream.
pub(crate) const ORIGIN: &str = "upstream";

/// How long it is remembered that an upstream does not have something.
const ABSENT: Duration = Duration::from_secs(30);

/// How long an upstream that failed for something is not asked for it again.
const TROUBLED: Duration = Duration::from_secs(5);

/// How many bytes the documents may have together that are kept in memory, taken apart.
const READ_BYTES: u64 = 16 * 1024 * 1024;

/// How many things are remembered to be fresh, not to be there, and to be in trouble.
const MOST_REMEMBERED: usize = 50_000;

/// All upstreams, and what is being brought from them. Cheap to clone.
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    blobs: Blobs,
    vault: Vault,
    fetch: Arc<dyn Fetch>,
    limits: Limits,
    /// Whether upstreams may be unencrypted.
    allow_local: bool,
    reservations: Reservations,
    known: Mutex<Known>,
    /// What need not be looked at again before some time.
    fresh: Cache<String, Fresh>,
    /// How many changes there were after that of a package.
    changed: Cache<String, u64>,
    /// Names that no upstream had, and when.
    absent: Cache<String, Time>,
    /// What an upstream failed to give, when, and why.
    troubled: Cache<String, (Time, Failure)>,
    /// What is kept of packages, taken apart, by source and subject.
    read: Cache<(Id, String), Arc<Read>, ByBytes>,
    looks: Flights<Seen, Failure>,
    polls: Flights<Feed, Failure>,
    dists: Flights<(Id, Artifact), Failure>,
    /// How many look behind the backs of those who were answered.
    behind: AtomicUsize,
}

/// A document, taken apart.
struct Read {
    validator: String,
    fetched_at: Time,
    weight: u64,
    versions: Arc<UpstreamVersions>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(Id, String), Arc<Read>> for ByBytes {
    fn weight(&self, _: &(Id, String), read: &Arc<Read>) -> u64 {
        read.weight
    }
}

/// What is known without the database, once somebody has looked.
#[derive(Default)]
struct Known {
    /// Counted up by every change, so that what was read before one is not believed after it.
    changes: u64,
    /// How many there were after the last one that concerned everything.
    of_all: u64,
    clients: Option<Arc<[Client]>>,
    /// Those of before the last change: what one brings just then is not asked for once more by another.
    before: Option<Arc<[Client]>>,
    /// By source: what it said last of its changes.
    feeds: HashMap<Id, Feed>,
    /// By source: whose list of names was compared with our own last.
    noticed: HashMap<Id, Weak<Root>>,
}

/// What is remembered of a package's tagged versions, or of its branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fresh {
    /// No upstream has a say in it.
    Own,
    /// What is here is true until then.
    Here(Time),
    /// The upstream has none, and is not asked again before then.
    Absent(Time),
}

/// Why an upstream gives nothing.
#[derive(Clone, Debug)]
enum Failure {
    /// It does not have that.
    Absent,
    /// It does not give that to us.
    Refused(String),
    /// It leads to where nothing is asked. Where that is, and why not, may tell about the network that this server is in: it is
    /// for whoever runs it.
    Elsewhere(String),
    /// It has enough of us; after so many seconds it may not any more.
    Busy(String, u64),
    /// Anything else.
    Failed(Kind, String),
}

/// What an upstream told of a package.
#[derive(Clone, Debug)]
pub struct Told {
    /// Where it comes from.
    pub upstream: Arc<Upstream>,
    /// The tagged versions.
    pub tagged: Option<Arc<UpstreamVersions>>,
    /// The branches.
    pub branches: Option<Arc<UpstreamVersions>>,
}

/// What became of looking at a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looked {
    /// No upstream has a say in it: it is made here, reserved, or nobody's.
    Own,
    /// What is here is true.
    Here {
        /// Something came just now, and what is in memory is not true any more.
        changed: bool,
    },
    /// What is here was true once; better than nothing.
    Stale {
        /// Why nothing newer is to be had, for people.
        why: String,
    },
    /// No upstream has it. Of a package whose other versions are here: it has none of these.
    Absent,
}

/// Whose a name is.
enum Owner {
    /// No upstream's.
    Own,
    /// This upstream's, which brought the package.
    Upstream(Client, Package),
    /// The first one's of these that has it.
    Nobody(Vec<Client>),
}

impl Proxy {
    /// Over the database, the blobs that belong to it, and the port to the outside. `allow_local` permits upstreams
    /// without encryption.
    pub fn new(db: Db, blobs: Blobs, vault: Vault, fetch: Arc<dyn Fetch>, limits: Limits, allow_local: bool) -> Self {
        let inner = Inner {
            reservations: Reservations::new(db.clone()),
            db,
            blobs,
            vault,
            fetch,
            limits,
            allow_local,
            known: Mutex::default(),
            fresh: Cache::new(MOST_REMEMBERED),
            changed: Cache::new(MOST_REMEMBERED),
            absent: Cache::new(MOST_REMEMBERED),
            troubled: Cache::new(MOST_REMEMBERED),
            read: Cache::with_weighter(1_000, READ_BYTES, ByBytes),
            looks: Flights::default(),
            polls: Flights::default(),
            dists: Flights::default(),
            behind: AtomicUsize::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Forgets what a change makes stale.
    pub fn on_change(&self, change: &Change) {
        let inner = &self.inner;
        inner.reservations.on_change(change);
        let package = match change {
            Change::Topic(topic) => topic.strip_prefix(&packages::topic(ID, "")),
            Change::Everything => None,
        };
        let all = match change {
            Change::Everything => true,
            Change::Topic(topic) => [registry::TOPIC, credentials::TOPIC, RESERVATIONS].contains(&topic.as_str()),
        };
        if !all && package.is_none() {
            return;
        }
        let mut known = self.known();
        known.changes += 1;
        let changes = known.changes;
        if all {
            known.of_all = changes;
            if let Some(clients) = known.clients.take() {
                clients.iter().for_each(Client::look_anew);
                known.before = Some(clients);
            }
            known.feeds.clear();
            known.noticed.clear();
        }
        drop(known);
        if let Some(name) = package {
            inner.changed.insert(name.to_owned(), changes);
            inner.absent.remove(name);
            inner.fresh.remove(&part(name, false));
            inner.fresh.remove(&part(name, true));
        } else {
            inner.absent.clear();
            inner.fresh.clear();
            inner.troubled.clear();
        }
    }

    /// Sees to it that what is here of a package is true, as far as an upstream has a say in it: of its tagged versions, or
    /// (`dev`) of its branches. Without the database where somebody has looked a moment ago.
    ///
    /// Errors: an upstream that may have the package cannot be asked, and nothing of it is here.
    pub async fn look(&self, name: &str, dev: bool) -> Result<Looked> {
        let part = part(name, dev);
        if let Some(looked) = self.remembered(name, &part) {
            return Ok(looked);
        }
        if names::check_package(name).is_err() {
            return Ok(Looked::Absent);
        }
        let before = self.changes();
        match self.owner(name).await? {
            Owner::Own => {
                self.remember(name, &part, Fresh::Own, before);
                Ok(Looked::Own)
            }
            Owner::Upstream(client, package) => self.look_again(&client, package, dev).await,
            Owner::Nobody(clients) if clients.is_empty() => Ok(Looked::Own),
            Owner::Nobody(clients) => self.look_around(name, clients, dev).await,
        }
    }

    /// Looks at the tagged versions of a package behind the back of somebody who is answered without that, unless what is
    /// here is fresh: what its upstream says by now, for instance that one of them does harm, holds for whoever comes next.
    pub fn look_behind(&self, name: &str) {
        if self.remembered(name, &part(name, false)).is_some() {
            return;
        }
        let Some(place) = self.behind() else { return };
        let (proxy, name) = (self.clone(), name.to_owned());
        let looking = async move {
            // Trouble is told where it is met.
            drop(proxy.look(&name, false).await);
            drop(place);
        };
        self.db().host().spawn.background(looking.boxed());
    }

    /// The versions of a package of an upstream as it told them last; `None` if it comes from none, or that has none any
    /// more.
    pub async fn told(&self, package: &Package) -> Result<Option<Told>> {
        let Some(client) = self.client_of(package).await? else { return Ok(None) };
        let source = client.upstream.id();
        let subjects = [false, true].map(|dev| subject(&package.name, dev));
        let [tagged, branches] = documents::look_at_two(self.db(), source, [&subjects[0], &subjects[1]]).await?;
        let [tagged_subject, branches_subject] = subjects;
        let tagged = self.read(package, source, tagged_subject, tagged).await?;
        let branches = self.read(package, source, branches_subject, branches).await?;
        let is_any = tagged.is_some() || branches.is_some();
        Ok(is_any.then(|| Told { upstream: Arc::clone(&client.upstream), tagged, branches }))
    }

    /// Takes a document apart, if that was not done since it came.
    async fn read(
        &self,
        package: &Package,
        source: Id,
        subject: String,
        newest: Option<(String, Time)>,
    ) -> Result<Option<Arc<UpstreamVersions>>> {
        let Some((validator, fetched_at)) = newest else { return Ok(None) };
        let key = (source, subject);
        if let Some(read) = self.inner.read.get(&key)
            && read.fetched_at == fetched_at
            && read.validator == validator
        {
            return Ok(Some(Arc::clone(&read.versions)));
        }
        let Some(document) = documents::find(self.db(), source, &key.1).await? else { return Ok(None) };
        let (size, name) = (usize::try_from(document.size).unwrap_or(usize::MAX), package.name.clone());
        let reading = async move {
            let versions = checked::read_kept(&name, &document.content()?, &document.validator)?;
            let Document { validator, fetched_at, .. } = document;
            Ok(Read { validator, fetched_at, weight: versions.weight(size), versions: Arc::new(versions) })
        };
        let read = self.db().host().compute(size, reading).await?;
        let versions = Arc::clone(&read.versions);
        self.inner.read.insert(key, Arc::new(read));
        Ok(Some(versions))
    }

    /// Whose a name is, as the database has it.
    async fn owner(&self, name: &str) -> Result<Owner> {
        let clients = self.clients().await?;
        if clients.is_empty() {
            return Ok(Owner::Own);
        }
        if let Some(package) = packages::find(self.db(), ID, name).await? {
            let client = clients.iter().find(|client| Some(client.upstream.id()) == package.source_id);
            return Ok(client.map_or(Owner::Own, |client| Owner::Upstream(client.clone(), package)));
        }
        if self.inner.reservations.is_reserved(ID, name).await? {
            return Ok(Owner::Own);
        }
        let takes = |client: &&Client| client.upstream.name_there(name) == Some(name);
        Ok(Owner::Nobody(clients.iter().filter(takes).cloned().collect()))
    }

    /// The upstream that a package comes from.
    async fn client_of(&self, package: &Package) -> Result<Option<Client>> {
        let Some(source) = package.source_id else { return Ok(None) };
        Ok(self.clients().await?.iter().find(|client| client.upstream.id() == source).cloned())
    }

    async fn clients(&self) -> Result<Arc<[Client]>> {
        let (before, old) = {
            let known = self.known();
            if let Some(clients) = &known.clients {
                return Ok(Arc::clone(clients));
            }
            (known.changes, known.before.clone())
        };
        let inner = &self.inner;
        let upstreams = registry::of_format(self.db(), ID).await?;
        let client = |upstream: Upstream| {
            let is_same = |client: &&Client| client.upstream.is_like(&upstream);
            if let Some(client) = old.iter().flat_map(|clients| clients.iter()).find(is_same) {
                return client.clone();
            }
            let (vault, fetch) = (inner.vault.clone(), Arc::clone(&inner.fetch));
            Client::new(upstream, self.db().clone(), vault, fetch, inner.allow_local)
        };
        let clients: Arc<[Client]> = upstreams.into_iter().map(client).collect();
        let mut known = self.known();
        if known.of_all <= before {
            // Two may have looked at once: what the first one has learned meanwhile is kept.
            return Ok(Arc::clone(known.clients.get_or_insert(clients)));
        }
        Ok(clients)
    }

    fn remembered(&self, name: &str, part: &str) -> Option<Looked> {
        let now = self.now();
        if self.is_absent(name) {
            return Some(Looked::Absent);
        }
        match self.inner.fresh.get(part)? {
            Fresh::Own => Some(Looked::Own),
            Fresh::Here(until) if now < until => Some(Looked::Here { changed: false }),
            Fresh::Absent(until) if now < until => Some(Looked::Absent),
            Fresh::Here(_) | Fresh::Absent(_) => None,
        }
    }

    /// Remembers what was read of a package when there were `before` changes, unless it changed since.
    fn remember(&self, name: &str, part: &str, fresh: Fresh, before: u64) {
        self.inner.fresh.insert(part.to_owned(), fresh);
        if self.has_changed(name, before) {
            self.inner.fresh.remove(part);
        }
    }

    /// Whether no upstream had a package a moment ago.
    fn is_absent(&self, name: &str) -> bool {
        self.inner.absent.get(name).is_some_and(|at| self.now().since(at) < ABSENT)
    }

    fn note_absent(&self, name: &str, before: u64) {
        self.inner.absent.insert(name.to_owned(), self.now());
        if self.has_changed(name, before) {
            self.inner.absent.remove(name);
        }
    }

    /// How many changes there were.
    fn changes(&self) -> u64 {
        self.known().changes
    }

    /// Whether something that concerns a package has changed since there were `before` changes.
    fn has_changed(&self, name: &str, before: u64) -> bool {
        self.known().of_all > before || self.inner.changed.get(name).is_some_and(|at| at > before)
    }

    /// Why an upstream failed to give something a moment ago.
    fn trouble(&self, what: &str) -> Option<Failure> {
        self.inner.troubled.get(what).filter(|(at, _)| self.now().since(*at) < TROUBLED).map(|(_, failure)| failure)
    }

    fn note_trouble(&self, what: &str, failure: &Failure) {
        self.inner.troubled.insert(what.to_owned(), (self.now(), failure.clone()));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn db(&self) -> &Db {
        &self.inner.db
    }

    fn now(&self) -> Time {
        self.db().host().now()
    }

    /// Takes a place among those who look behind, until what this gives is dropped; `None` if there are enough of them.
    fn behind(&self) -> Option<Behind> {
        let most = |count: usize| (count < MOST_BEHIND).then_some(count + 1);
        let taken = self.inner.behind.fetch_update(Ordering::SeqCst, Ordering::SeqCst, most);
        taken.is_ok().then(|| Behind(Arc::clone(&self.inner)))
    }
}

/// How many packages are looked at behind the backs of those who were answered: an upstream is not flooded by a client that
/// needs to wait for nothing.
const MOST_BEHIND: usize = 32;

struct Behind(Arc<Inner>);

impl Drop for Behind {
    fn drop(&mut self) {
        self.0.behind.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Failure {
    /// In one line.
    fn text(&self) -> &str {
        match self {
            Self::Absent => "it is not there any more",
            Self::Refused(message) | Self::Elsewhere(message) | Self::Busy(message, _) | Self::Failed(_, message) => {
                message
            }
        }
    }

    /// For whoever asked for `what`.
    fn error(self, what: &str) -> Error {
        match self {
            Self::Absent => Error::not_found(format!("there is no {what} upstream any more")),
            Self::Refused(message) => Error::new(
                Kind::Upstream,
                format!("{what} cannot be had: {message}; or leave such names out of the source with --only"),
            ),
            Self::Elsewhere(message) => Error::new(
                Kind::Upstream,
                format!(
                    "{what} cannot be had: the registry that it comes from is not asked from here. The log of the server says why"
                ),
            )
            .caused_by(message),
            Self::Busy(message, seconds) => {
                Error::new(Kind::Unavailable, format!("{what} cannot be had now: {message}; try again in {seconds} s"))
            }
            Self::Failed(kind, message) => Error::new(kind, message),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.kind() {
            // What it sends or where it leads to is refused; whoever asked is not to blame.
            Kind::Invalid | Kind::TooLarge => Self::Failed(Kind::Upstream, error.message().to_owned()),
            kind => Self::Failed(kind, error.message().to_owned()),
        }
    }
}

/// A package's tagged versions, or its branches, as they are called in addresses and here.
fn part(name: &str, dev: bool) -> String {
    format!("{name}{}", if dev { "~dev" } else { "" })
}

/// The subject of a document, and of the check of it.
fn subject(name: &str, dev: bool) -> String {
    format!("package:{}", part(name, dev))
}
