//! Who is asking? From the text of a token, or none, to a [`Principal`] with its grants. Warm it costs one SHA-256 and
//! one look into a map. What the principal may do is for [`decide`](crate::decide::decide).
//!
//! What is remembered is forgotten on every change of tokens or grants, which the watcher tells to every replica
//! within a second. Should a replica not hear of one (its connection to the database is broken), nothing is believed
//! for longer than [`TRUST`]: then the database is asked again, and while it does not answer nobody is let in.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::Shared};
use larder_core::{
    Error, Id, Kind, Result, Time,
    grant::{Principal, PrincipalName},
    host::BoxFuture,
};
use larder_db::{Batch, Db, changes::Change, grants, tokens};
use quick_cache::sync::Cache;

use crate::{
    secret::{Hash, is_token},
    view::{View, Views},
};

/// The topic under which changes of tokens and grants are told.
pub const TOPIC: &str = "auth";
/// How long an answer of the database is believed without asking again.
pub const TRUST: Duration = Duration::from_secs(30);
/// An answer older than this is asked for again, behind the request that uses it.
const REFRESH: Duration = Duration::from_secs(10);
/// How exact "last used" is.
const USED: Duration = Duration::from_secs(60);
/// How often the uses are written.
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// How many answers are remembered, of tokens that are and of tokens that are not.
const CAPACITY: usize = 10_000;
/// How many tokens are looked up at once.
const FLIGHTS: usize = 1_024;
/// How many uses of tokens wait to be written.
const WAITING_USES: usize = 10_000;
/// How many of them are written at once.
const USES_AT_ONCE: usize = 200;

/// Recognises principals. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    db: Db,
    /// Counts the changes of tokens and grants that were heard of. What was read before the last one is not believed.
    generation: AtomicU64,
    known: Cache<Key, Arc<Known>>,
    unknown: Cache<Key, Arc<Known>>,
    flights: Mutex<HashMap<Key, Flight>>,
    uses: Mutex<HashMap<Id, Time>>,
    views: Views,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Anonymous,
    Token(Hash),
}

/// What the database said of a key.
struct Known {
    generation: u64,
    at: Time,
    bearer: Option<Bearer>,
}

struct Bearer {
    principal: Arc<Principal>,
    expires_at: Option<Time>,
    /// The last use that was noted, in microseconds.
    used_at: AtomicI64,
}

type Answer = Shared<BoxFuture<'static, Result<Arc<Known>, Arc<Error>>>>;

/// A look into the database that has begun, for everybody who wants the same.
struct Flight {
    generation: u64,
    answer: Answer,
}

impl Authenticator {
    /// Knows nobody yet. It must hear of changes: `watcher.subscribe(Box::new(move |change| authenticator.hear(change)))`.
    pub fn new(db: Db) -> Self {
        Self(Arc::new(Inner {
            db,
            generation: AtomicU64::new(0),
            known: Cache::new(CAPACITY),
            // Apart, so that somebody who invents tokens drives out no real one.
            unknown: Cache::new(CAPACITY),
            flights: Mutex::default(),
            uses: Mutex::default(),
            views: Views::new(CAPACITY),
        }))
    }

    /// The principal who shows this token, or no token. [`Kind::Unauthenticated`]: there is no such token, or it is
    /// revoked or expired. [`Kind::Unavailable`]: the database must be asked and does not answer.
    pub async fn recognise(&self, token: Option<&str>) -> Result<Arc<Principal>> {
        if let Some(answer) = self.recognise_warm(token) {
            return answer;
        }
        let key = key(token).ok_or_else(refused)?;
        let known = self.0.flight(key)?.await.map_err(|error| again(&error))?;
        self.0.answer(&known, self.0.db.host().now())
    }

    /// The same without waiting, if it is known without asking the database: nearly always.
    pub fn recognise_warm(&self, token: Option<&str>) -> Option<Result<Arc<Principal>>> {
        let Some(key) = key(token) else {
            return Some(Err(refused()));
        };
        // Only what nobody knows is worth the look at its checksum.
        self.remembered(key).or_else(|| token.is_some_and(|text| !is_token(text)).then(|| Err(refused())))
    }

    /// The view that `principal` has of `format`, remembered.
    pub fn view(&self, principal: &Principal, format: &str) -> Arc<View> {
        self.0.views.of(principal, format)
    }

    /// Listens to the watcher of changes.
    pub fn hear(&self, change: &Change) {
        match change {
            Change::Topic(topic) if topic != TOPIC => {}
            Change::Topic(_) | Change::Everything => {
                self.0.generation.fetch_add(1, Ordering::AcqRel);
                self.0.known.clear();
                self.0.unknown.clear();
            }
        }
    }

    /// Writes down which tokens were used, every ten seconds, until it is dropped.
    pub async fn run(self) {
        loop {
            self.0.db.host().clock.sleep(WRITE_EVERY).await;
            if let Err(error) = self.write_uses().await {
                tracing::warn!(error = error.chain(), "cannot note which tokens were used; trying again");
            }
        }
    }

    /// Writes down which tokens were used. [`run`](Self::run) does it; so does whoever stops the program.
    pub async fn write_uses(&self) -> Result<()> {
        loop {
            let some: Vec<(Id, Time)> = {
                let mut uses = lock(&self.0.uses);
                let ids: Vec<Id> = uses.keys().copied().take(USES_AT_ONCE).collect();
                ids.into_iter().filter_map(|id| uses.remove_entry(&id)).collect()
            };
            if some.is_empty() {
                return Ok(());
            }
            let batch: Batch = some.iter().map(|(id, at)| tokens::used(*id, *at)).collect();
            if let Err(error) = self.0.db.commit(batch).await {
                for (id, at) in some {
                    self.0.note_use(id, at);
                }
                return Err(error.into());
            }
        }
    }

    fn remembered(&self, key: Key) -> Option<Result<Arc<Principal>>> {
        let inner = &self.0;
        let known = inner.known.get(&key).or_else(|| inner.unknown.get(&key))?;
        let now = inner.db.host().now();
        // A clock that was set back makes every answer one from the future: those are asked for again.
        if known.generation != inner.generation.load(Ordering::Acquire) || known.at > now {
            return None;
        }
        let age = now.since(known.at);
        if age >= TRUST {
            return None;
        }
        if age >= REFRESH {
            // Nobody waits for it, and if it fails, somebody will when the trust ends.
            drop(inner.flight(key));
        }
        Some(inner.answer(&known, now))
    }
}

impl Inner {
    fn answer(&self, known: &Known, now: Time) -> Result<Arc<Principal>> {
        let bearer = known.bearer.as_ref().ok_or_else(refused)?;
        if bearer.expires_at.is_some_and(|expires_at| expires_at <= now) {
            return Err(Error::new(
                Kind::Unauthenticated,
                "this token has expired: `larder token rotate NAME` makes a new secret for it",
            ));
        }
        if let Some(id) = bearer.principal.token {
            let last = bearer.used_at.load(Ordering::Relaxed);
            let due = now.since(Time::from_micros(last)) >= USED;
            let exchange =
                |last| bearer.used_at.compare_exchange(last, now.micros(), Ordering::Relaxed, Ordering::Relaxed);
            if due && exchange(last).is_ok() {
                self.note_use(id, now);
            }
        }
        Ok(Arc::clone(&bearer.principal))
    }

    fn note_use(&self, id: Id, at: Time) {
        let mut uses = lock(&self.uses);
        if uses.len() < WAITING_USES || uses.contains_key(&id) {
            let noted = uses.entry(id).or_insert(at);
            *noted = at.max(*noted);
        }
    }

    /// Joins the look into the database for this key, or begins one. It goes on when everybody who waits has left.
    fn flight(self: &Arc<Self>, key: Key) -> Result<Answer> {
        let generation = self.generation.load(Ordering::Acquire);
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&key).filter(|flight| flight.generation == generation) {
            return Ok(flight.answer.clone());
        }
        if flights.len() >= FLIGHTS {
            return Err(Error::new(Kind::Unavailable, "too many tokens are being looked up; try again soon"));
        }
        let inner = Arc::clone(self);
        let look: BoxFuture<'static, _> = Box::pin(async move {
            let answer = inner.look(key, generation).await;
            lock(&inner.flights).retain(|other, flight| *other != key || flight.generation != generation);
            answer.map_err(Arc::new)
        });
        let answer = look.shared();
        flights.insert(key, Flight { generation, answer: answer.clone() });
        drop(flights);
        self.db.host().spawn.background(Box::pin(answer.clone().map(drop)));
        Ok(answer)
    }

    async fn look(&self, key: Key, generation: u64) -> Result<Arc<Known>> {
        // Dated before the look: what is committed during it may not be in the answer.
        let at = self.db.host().now();
        let bearer = match key {
            Key::Anonymous => {
                let name = PrincipalName::Anonymous;
                let grants = grants::of(&self.db, &name).await?;
                Some(Bearer {
                    principal: Arc::new(Principal { name, token: None, grants, limited: false }),
                    expires_at: None,
                    used_at: AtomicI64::new(i64::MAX),
                })
            }
            Key::Token(hash) => tokens::recognise(&self.db, hash.as_bytes()).await?.map(|token| Bearer {
                principal: Arc::new(Principal {
                    name: PrincipalName::Token(token.name),
                    token: Some(token.id),
                    grants: token.grants,
                    limited: false,
                }),
                expires_at: token.expires_at,
                used_at: AtomicI64::new(token.used_at.map_or(0, Time::micros)),
            }),
        };
        let known = Arc::new(Known { generation, at, bearer });
        if known.bearer.is_some() {
            self.known.insert(key, Arc::clone(&known));
        } else {
            self.known.remove(&key);
            self.unknown.insert(key, Arc::clone(&known));
        }
        Ok(known)
    }
}

/// `None` if the text cannot be a token.
fn key(token: Option<&str>) -> Option<Key> {
    token.map_or(Some(Key::Anonymous), |text| Hash::of(text).map(Key::Token))
}

fn refused() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "this token is not known, or was revoked: `larder token list` shows those that are, `larder token create NAME` makes one",
    )
}

/// One failure for everybody who waited.
fn again(error: &Arc<Error>) -> Error {
    Error::new(error.kind(), error.message()).caused_by(error.chain())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing that holds one of these locks leaves its map half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("known", &self.0.known.len())
            .field("unknown", &self.0.unknown.len())
            .finish_non_exhaustive()
    }
}
