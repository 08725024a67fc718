//! Who is asking? From the text of a token, or none, to a [`Principal`] with its grants. Warm it costs one SHA-256 and
//! one look into a map; for a pass, which stands for a token, two looks. What the principal may do is for
//! [`decide`](crate::decide::decide).
//!
//! What is remembered is forgotten on every change of tokens or grants, which the watcher tells to every replica
//! within a second. Should a replica not hear of one (its connection to the database is broken), nothing is believed
//! for longer than [`TRUST`]: then the database is asked again, and while it does not answer nobody is let in.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::Shared};
use larder_core::{
    Digest, Error, Id, Kind, Result, Time,
    grant::{Grant, Principal, PrincipalName},
    host::BoxFuture,
};
use larder_db::{
    Batch, Db,
    changes::Change,
    grants,
    tokens::{self, Recognised},
};
use quick_cache::{Weighter, sync::Cache};

use crate::{
    pass::{self, Opens, Pass, Passes},
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
/// How much memory passes take whose signature was checked, in bytes, roughly.
const PASS_BYTES: u64 = 8 * 1024 * 1024;
/// How many uses of tokens wait to be written.
const WAITING_USES: usize = 10_000;
/// How many of them are written at once.
const USES_AT_ONCE: usize = 200;

/// Recognises principals. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    db: Db,
    passes: Passes,
    signed: Cache<Digest, Arc<Signed>, ByBytes>,
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
    /// A token that somebody stands for without its secret.
    Id(Id),
}

/// A pass whose signature is good.
struct Signed {
    pass: Pass,
    /// The length of its text.
    bytes: usize,
    /// What its token was when it was last shown, and what was left of that.
    narrowed: Mutex<Option<(Weak<Principal>, Arc<Principal>)>>,
}

/// Weighs passes by the memory that they take.
#[derive(Clone)]
struct ByBytes;

impl Weighter<Digest, Arc<Signed>> for ByBytes {
    fn weight(&self, _: &Digest, signed: &Arc<Signed>) -> u64 {
        // The grants are in it, in the principal, and in the text of neither.
        512 + 4 * signed.bytes as u64
    }
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
    pub fn new(db: Db, passes: Passes) -> Self {
        Self(Arc::new(Inner {
            db,
            passes,
            signed: Cache::with_weighter(CAPACITY, PASS_BYTES, ByBytes),
            generation: AtomicU64::new(0),
            known: Cache::new(CAPACITY),
            // Apart, so that somebody who invents tokens drives out no real one.
            unknown: Cache::new(CAPACITY),
            flights: Mutex::default(),
            uses: Mutex::default(),
            views: Views::new(CAPACITY),
        }))
    }

    /// The principal who shows this token, a pass for packages, or nothing. [`Kind::Unauthenticated`]: there is no such
    /// token, or it is revoked or expired. [`Kind::Unavailable`]: the database must be asked and does not answer.
    pub async fn recognise(&self, text: Option<&str>) -> Result<Arc<Principal>> {
        if let Some(answer) = self.recognise_warm(text) {
            return answer;
        }
        let shown = self.0.read(text)?;
        let known = self.0.flight(shown.key)?.await.map_err(|error| again(&error))?;
        self.0.principal(&shown, &known)
    }

    /// The same without waiting, if it is known without asking the database: nearly always.
    pub fn recognise_warm(&self, text: Option<&str>) -> Option<Result<Arc<Principal>>> {
        let shown = match self.0.read(text) {
            Ok(shown) => shown,
            Err(error) => return Some(Err(error)),
        };
        if let Some(known) = self.0.remembered(shown.key) {
            return Some(self.0.principal(&shown, &known));
        }
        // Only what nobody knows is worth the look at its checksum.
        let is_noise = matches!(shown.key, Key::Token(_)) && text.is_some_and(|text| !is_token(text));
        is_noise.then(|| Err(refused()))
    }

    /// The principal who shows a token, or the pass that is good for passes, where those are made. Fails as
    /// [`recognise`](Self::recognise) does.
    pub async fn recognise_secret(&self, text: &str) -> Result<Arc<Principal>> {
        if !pass::has_shape(text) {
            return self.recognise(Some(text)).await;
        }
        let signed = self.0.signed(text)?;
        if signed.pass.opens != Opens::Passes {
            return Err(Error::new(
                Kind::Unauthenticated,
                "this pass is for packages and makes no other: show the token",
            ));
        }
        let key = signed.key();
        let known = match self.0.remembered(key) {
            Some(known) => known,
            None => self.0.flight(key)?.await.map_err(|error| again(&error))?,
        };
        self.0.behind(&signed, &known)
    }

    /// A pass that stands for `principal` for as long as `lifetime`, and lets it do at most what `limits` allow: literal
    /// names of packages, or `*` for all. Fails with [`Kind::Forbidden`] if the principal shows a pass itself, and with
    /// [`Kind::TooLarge`] for too many limits.
    pub fn pass(&self, principal: &Principal, limits: Vec<Grant>, lifetime: Duration) -> Result<String> {
        self.0.issue(principal, Opens::Packages(limits), lifetime)
    }

    /// A pass that can be shown to [`recognise_secret`](Self::recognise_secret) instead of the token of `principal`, as long
    /// as the token keeps its secret, and at most for `lifetime`. Fails with [`Kind::Forbidden`] if the principal shows a
    /// pass itself, or no token.
    pub fn pass_for_passes(&self, principal: &Principal, lifetime: Duration) -> Result<String> {
        if principal.token.is_none() {
            return Err(Error::new(Kind::Forbidden, "only a token has a pass that makes others"));
        }
        self.0.issue(principal, Opens::Passes, lifetime)
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
}

impl Signed {
    /// Who is behind it.
    fn key(&self) -> Key {
        self.pass.token.map_or(Key::Anonymous, |token| Key::Id(token.id))
    }
}

/// What a client showed, as far as it can be told without knowing who is behind it.
struct Shown {
    key: Key,
    pass: Option<Arc<Signed>>,
}

impl Inner {
    fn issue(&self, principal: &Principal, opens: Opens, lifetime: Duration) -> Result<String> {
        let host = self.db.host();
        self.passes.issue(host, &Pass::of(principal, opens, host.now().plus(lifetime))?)
    }

    fn read(&self, text: Option<&str>) -> Result<Shown> {
        let Some(text) = text else {
            return Ok(Shown { key: Key::Anonymous, pass: None });
        };
        if !pass::has_shape(text) {
            return Ok(Shown { key: Hash::of(text).map(Key::Token).ok_or_else(refused)?, pass: None });
        }
        let signed = self.signed(text)?;
        Ok(Shown { key: signed.key(), pass: Some(signed) })
    }

    /// The pass with this text, if it is one of ours and has not expired. Only good ones are remembered.
    fn signed(&self, text: &str) -> Result<Arc<Signed>> {
        let digest = Digest::of(text.as_bytes());
        let now = self.db.host().now();
        if let Some(signed) = self.signed.get(&digest) {
            return if signed.pass.expires_at <= now { Err(pass::expired()) } else { Ok(signed) };
        }
        let pass = self.passes.check(now, text)?;
        let signed = Arc::new(Signed { pass, bytes: text.len(), narrowed: Mutex::default() });
        self.signed.insert(digest, Arc::clone(&signed));
        Ok(signed)
    }

    /// Who shows this, with what he may do.
    fn principal(&self, shown: &Shown, known: &Known) -> Result<Arc<Principal>> {
        let Some(signed) = &shown.pass else {
            return self.answer(known, self.db.host().now());
        };
        let Opens::Packages(limits) = &signed.pass.opens else {
            return Err(Error::new(Kind::Unauthenticated, "this pass only makes others: it opens no package"));
        };
        let behind = self.behind(signed, known)?;
        let mut narrowed = lock(&signed.narrowed);
        // What is only pointed at keeps its place in memory, so that the same place is the same principal.
        if let Some((before, left)) = &*narrowed
            && before.as_ptr() == Arc::as_ptr(&behind)
        {
            return Ok(Arc::clone(left));
        }
        let left = Arc::new(narrow(&behind, limits));
        *narrowed = Some((Arc::downgrade(&behind), Arc::clone(&left)));
        Ok(left)
    }

    /// Whom a pass stands for, with all that he may do.
    fn behind(&self, signed: &Signed, known: &Known) -> Result<Arc<Principal>> {
        let behind = self.answer(known, self.db.host().now())?;
        let has_same_secret = behind.token_made_at == signed.pass.token.map(|token| token.made_at);
        if has_same_secret { Ok(behind) } else { Err(pass::refused()) }
    }

    /// What the database said, if it still holds.
    fn remembered(self: &Arc<Self>, key: Key) -> Option<Arc<Known>> {
        let known = self.known.get(&key).or_else(|| self.unknown.get(&key))?;
        let now = self.db.host().now();
        // A clock that was set back makes every answer one from the future: those are asked for again.
        if known.generation != self.generation.load(Ordering::Acquire) || known.at > now {
            return None;
        }
        let age = now.since(known.at);
        if age >= TRUST {
            return None;
        }
        if age >= REFRESH {
            // Nobody waits for it, and if it fails, somebody will when the trust ends.
            drop(self.flight(key));
        }
        Some(known)
    }

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
                    principal: Arc::new(Principal { name, grants, ..Principal::default() }),
                    expires_at: None,
                    used_at: AtomicI64::new(i64::MAX),
                })
            }
            Key::Token(hash) => tokens::recognise(&self.db, hash.as_bytes()).await?.map(bearer),
            Key::Id(id) => tokens::recognise_id(&self.db, id).await?.map(bearer),
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

fn bearer(token: Recognised) -> Bearer {
    Bearer {
        principal: Arc::new(Principal {
            name: PrincipalName::Token(token.name),
            token: Some(token.id),
            token_made_at: Some(token.created_at),
            grants: token.grants,
            limited: false,
            behind: None,
        }),
        expires_at: token.expires_at,
        used_at: AtomicI64::new(token.used_at.map_or(0, Time::micros)),
    }
}

/// The same principal, who may do what both its grants and the limits allow.
fn narrow(principal: &Arc<Principal>, limits: &[Grant]) -> Principal {
    let mut grants: Vec<Grant> =
        limits.iter().flat_map(|limit| principal.grants.iter().filter_map(|grant| grant.and(limit))).collect();
    grants.sort_unstable();
    grants.dedup();
    Principal {
        name: principal.name.clone(),
        token: principal.token,
        token_made_at: principal.token_made_at,
        grants,
        limited: true,
        behind: Some(Arc::clone(principal)),
    }
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
