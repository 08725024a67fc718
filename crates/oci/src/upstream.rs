//! Repositories of other registries: asked for when a client wants something that is not here, kept as if it had been
//! pushed, and served from here when the other registry is slow, busy or gone.
//!
//! A repository comes from an upstream only if nobody pushed it here and nobody reserved its name: what is our own is
//! never asked for, nor mentioned, anywhere else. `client` speaks to one upstream, `mirror` brings manifests in, `listing`
//! keeps lists for a while, `layer` hands blobs on while they arrive, and `fan` is how it does so.

mod challenge;
mod client;
mod fan;
mod layer;
mod listing;
mod mirror;
mod probe;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderName, HeaderValue, StatusCode, header};
use larder_auth::{Decision, decide};
use larder_core::{
    Error, Kind, Result, Time,
    grant::{Action, Principal},
};
use larder_db::{
    Db,
    changes::Change,
    packages::{self, Package},
};
use larder_http::{Response, error::status_of, stale};
use larder_sources::{
    credentials,
    fetch::{self, Fetch},
    flight::Flights,
    registry,
    reservations::Reservations,
    vault::Vault,
};
use quick_cache::sync::Cache;

use self::{client::Client, layer::Downloads, listing::Listings};
pub(crate) use self::{layer::Cold, listing::Listed};
use crate::{
    ID, Registry,
    endpoint::Endpoint,
    error::{Code, Refusal},
};

/// How long it is remembered that an upstream does not have something.
const ABSENT: Duration = Duration::from_secs(30);

/// How long somebody waits for an upstream before what is here is good enough.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an upstream that failed for something is not asked for it again, while there is an older answer.
const TROUBLED: Duration = Duration::from_secs(5);

/// How many things are remembered not to be there, and to be in trouble.
const MOST_REMEMBERED: usize = 10_000;

/// The name by which everybody knows one registry, the host that answers for it, and other names of that.
const ALIASES: [(&str, &str, &[&str]); 1] = [("docker.io", "registry-1.docker.io", &["index.docker.io"])];

/// All upstreams, and what is being brought from them. Cheap to clone.
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    vault: Vault,
    reservations: Reservations,
    fetch: Arc<dyn Fetch>,
    /// Whether tokens may be fetched without encryption.
    allow_local: bool,
    known: Mutex<Known>,
    /// What an upstream did not have, and when.
    absent: Cache<String, Time>,
    /// What it failed to tell, when, and why.
    troubled: Cache<String, (Time, String)>,
    manifests: Flights<bool, Failure>,
    downloads: Downloads,
    listings: Listings,
}

/// The upstreams as the database has them, once somebody has looked.
#[derive(Default)]
struct Known {
    /// Counted up by every change, so that what was read before one is not believed after it.
    changes: u64,
    clients: Option<Arc<[Arc<Client>]>>,
}

/// A repository that comes from an upstream.
pub(super) struct Origin {
    client: Arc<Client>,
    /// Its name there.
    there: String,
    /// It, if something of it is here already.
    package: Option<Package>,
}

/// Why an upstream gives nothing.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// It does not have that.
    Absent,
    /// It does not give that to us.
    Refused(String),
    /// It has enough of us; after so many seconds it may not any more.
    Busy(String, u64),
    /// Anything else.
    Failed(Kind, String),
}

/// That an answer is what was true some time ago.
#[derive(Debug)]
pub(crate) struct Stale {
    since: Option<Time>,
    why: String,
}

/// What became of looking at an upstream.
#[derive(Debug)]
pub(crate) enum Looked {
    /// The repository is our own.
    Own,
    /// What is here is true.
    Here {
        /// Something came just now, and what is in memory is not true any more.
        changed: bool,
    },
    /// What is here was true once; better than nothing.
    Stale(Stale),
}

impl Proxy {
    /// Over the operations on repositories and the port to the outside. `allow_local` permits upstreams without
    /// encryption.
    pub fn new(registry: Registry, vault: Vault, fetch: Arc<dyn Fetch>, allow_local: bool) -> Self {
        let inner = Inner {
            reservations: Reservations::new(registry.db.clone()),
            registry,
            vault,
            fetch,
            allow_local,
            known: Mutex::default(),
            absent: Cache::new(MOST_REMEMBERED),
            troubled: Cache::new(MOST_REMEMBERED),
            manifests: Flights::default(),
            downloads: Downloads::default(),
            listings: Listings::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Forgets what a change makes stale.
    pub fn on_change(&self, change: &Change) {
        self.inner.reservations.on_change(change);
        let concerns = match change {
            Change::Everything => true,
            Change::Topic(topic) => topic == registry::TOPIC || topic == credentials::TOPIC,
        };
        if concerns {
            let mut known = self.known();
            known.changes += 1;
            known.clients = None;
            drop(known);
            self.inner.absent.clear();
            self.inner.troubled.clear();
            self.inner.listings.clear();
        }
    }

    /// Where a repository comes from, if not from here.
    pub(super) async fn origin(&self, name: &str) -> Result<Option<Origin>> {
        let clients = self.clients().await?;
        let mut candidates = clients.iter().filter_map(|client| Some((client, client.upstream.name_there(name)?)));
        let Some(first) = candidates.next() else { return Ok(None) };
        if self.inner.reservations.is_reserved(ID, name).await? {
            return Ok(None);
        }
        let package = packages::find(self.db(), ID, name).await?;
        let found = match package.as_ref().map(|package| package.source_id) {
            None => Some(first),
            // It was pushed here.
            Some(None) => None,
            Some(Some(source)) => {
                std::iter::once(first).chain(candidates).find(|(client, _)| client.upstream.id() == source)
            }
        };
        Ok(found.map(|(client, there)| Origin { client: Arc::clone(client), there: there.to_owned(), package }))
    }

    /// Refuses a push to a repository that comes from an upstream.
    pub(crate) async fn refuse_push(&self, name: &str) -> Result<(), Refusal> {
        let Some(origin) = self.origin(name).await? else { return Ok(()) };
        let source = &origin.client.upstream.source.name;
        Err(Refusal::new(
            Code::Denied,
            format!("`{name}` comes from the source `{source}`, and nobody can push to it"),
            format!("push under another name; `larder source show {source}` shows which names are its own"),
        ))
    }

    /// What is asked for by a client that uses this as a mirror of another registry (`?ns=docker.io`): the same path with
    /// the name that the repository has here. Who may read that is told nothing about repositories that come from
    /// elsewhere, and who may not is refused by what comes next.
    pub(crate) async fn path_for(&self, asker: &Principal, namespace: &str, path: &str) -> Result<String, Refusal> {
        let unknown = || {
            Refusal::new(
                Code::NameUnknown,
                format!("nothing of {namespace} is to be had here"),
                "`larder source add oci https://HOST` adds an upstream registry",
            )
        };
        let Some(there) = Endpoint::parse(path).and_then(|endpoint| endpoint.name()) else {
            return Ok(path.to_owned());
        };
        let clients = self.clients().await?;
        let mut matching = clients.iter().filter(|client| means(namespace, &fetch::origin(&client.upstream.url)));
        let (client, here) =
            matching.find_map(|client| Some((client, client.upstream.name_here(there)?))).ok_or_else(unknown)?;
        if decide(asker, Action::Read, ID, &here) == Decision::Allow {
            let origin = self.origin(&here).await?;
            if origin.is_none_or(|origin| origin.client.upstream.id() != client.upstream.id()) {
                return Err(unknown());
            }
        }
        let rest = path.strip_prefix("/v2/").and_then(|rest| rest.strip_prefix(there)).unwrap_or_default();
        Ok(format!("/v2/{here}{rest}"))
    }

    async fn clients(&self) -> Result<Arc<[Arc<Client>]>> {
        let changes = {
            let known = self.known();
            if let Some(clients) = &known.clients {
                return Ok(Arc::clone(clients));
            }
            known.changes
        };
        let inner = &self.inner;
        let upstreams = registry::of_format(self.db(), ID).await?;
        let client = |upstream| {
            Arc::new(Client::new(
                upstream,
                self.db().clone(),
                inner.vault.clone(),
                Arc::clone(&inner.fetch),
                inner.allow_local,
            ))
        };
        let clients: Arc<[Arc<Client>]> = upstreams.into_iter().map(client).collect();
        let mut known = self.known();
        if known.changes == changes {
            // Two may have looked at once: what the first one has learned meanwhile is kept.
            return Ok(Arc::clone(known.clients.get_or_insert(clients)));
        }
        Ok(clients)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn db(&self) -> &Db {
        &self.inner.registry.db
    }

    fn now(&self) -> Time {
        self.db().host().now()
    }

    /// Whether an upstream was found not to have something a moment ago.
    fn is_absent(&self, key: &str) -> bool {
        self.inner.absent.get(key).is_some_and(|at| self.now().since(at) < ABSENT)
    }

    fn note_absent(&self, key: &str) {
        self.inner.absent.insert(key.to_owned(), self.now());
    }

    /// Why an upstream failed to tell something a moment ago.
    fn trouble(&self, key: &str) -> Option<String> {
        self.inner.troubled.get(key).filter(|(at, _)| self.now().since(*at) < TROUBLED).map(|(_, why)| why)
    }

    fn note_trouble(&self, key: &str, why: &str) {
        self.inner.troubled.insert(key.to_owned(), (self.now(), why.to_owned()));
    }
}

/// Whether a client that says `namespace` means the registry at `origin`.
fn means(namespace: &str, origin: &str) -> bool {
    namespace == origin
        || ALIASES
            .iter()
            .any(|(name, host, others)| *name == namespace && (*host == origin || others.contains(&origin)))
}

/// The host that answers for the one that somebody wrote.
fn answering(origin: &str) -> Option<&'static str> {
    let alias = ALIASES.iter().find(|(name, _, others)| *name == origin || others.contains(&origin));
    alias.map(|(_, host, _)| *host)
}

impl Failure {
    /// For whoever asked.
    fn refusal(self, name: &str, unknown: impl FnOnce() -> Refusal) -> Refusal {
        match self {
            Self::Absent => unknown(),
            Self::Refused(message) => Refusal::new(
                Code::NameUnknown,
                format!("`{name}` cannot be had: {message}"),
                "check the name; if it is private there, give the source a credential (`larder credential add`)",
            ),
            Self::Busy(message, seconds) => {
                Refusal::new(Code::TooManyRequests, message, format!("try again in {seconds} s"))
                    .with(header::RETRY_AFTER, HeaderValue::from(seconds))
            }
            Self::Failed(kind @ (Kind::Upstream | Kind::Timeout | Kind::Unavailable), message) => {
                let todo = "try again soon; what was pulled before is still here";
                Refusal::new(Code::Unavailable, message, todo).status(status_of(kind))
            }
            Self::Failed(kind, message) => Refusal::House(Error::new(kind, message)),
        }
    }

    /// In one line.
    fn text(&self) -> &str {
        match self {
            Self::Absent => "it is not there any more",
            Self::Refused(message) | Self::Busy(message, _) | Self::Failed(_, message) => message,
        }
    }
}

impl Looked {
    /// Says in an answer whether it is old.
    pub(crate) fn dress(&self, now: Time, response: Response) -> Response {
        let stale = if let Self::Stale(stale) = self { Some(stale) } else { None };
        Stale::dressed(stale, now, response)
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

impl Stale {
    /// Says in an answer whether it is old.
    pub(crate) fn dressed(stale: Option<&Self>, now: Time, mut response: Response) -> Response {
        if let Some(stale) = stale {
            stale::warn(&mut response, &stale.why, stale.since.map(|since| now.since(since)));
        }
        response
    }
}

/// Says of which registry an answer is (the distribution specification, registry proxying).
pub(crate) const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// The subject of a check of a tag.
fn tag_subject(there: &str, tag: &str) -> String {
    format!("tag:{there}:{tag}")
}

/// What one thing of a repository is remembered by.
fn key(name: &str, what: &str) -> String {
    format!("{name}\0{what}")
}

/// An answer that no upstream gives.
fn odd(status: StatusCode, host: &str) -> Failure {
    Failure::Failed(Kind::Upstream, format!("{host} answers with {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_known_by_their_host() {
        for (namespace, origin, expected) in [
            ("docker.io", "registry-1.docker.io", true),
            ("registry-1.docker.io", "registry-1.docker.io", true),
            ("docker.io", "docker.io", true),
            ("docker.io", "evil.io", false),
            ("registry-1.docker.io", "docker.io", false),
            ("r.example.org:5000", "r.example.org:5000", true),
            ("r.example.org", "r.example.org:5000", false),
        ] {
            assert_eq!(means(namespace, origin), expected, "{namespace} {origin}");
        }
    }

    #[test]
    fn a_registry_is_asked_where_it_answers() {
        for name in ["docker.io", "index.docker.io"] {
            assert_eq!(answering(name), Some("registry-1.docker.io"));
        }
        assert_eq!((answering("registry-1.docker.io"), answering("docker.io:5000")), (None, None));
    }
}
