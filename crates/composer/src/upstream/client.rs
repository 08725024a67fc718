//! One upstream, as the rest of the room asks it: its root, its packages, its files, what has changed, and what is known
//! to be wrong with versions. All layouts give the same documents here.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use larder_core::{Kind, Time};
use larder_db::{
    Batch, Db,
    upstream_checks::{self, Check},
    upstream_documents as documents,
};
use larder_sources::{
    fetch::{self, Fetch, FetchResponse},
    flight::Flights,
    registry::Upstream,
    turns::Turn,
    vault::Vault,
};
use quick_cache::sync::Cache;
use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use super::{
    Failure,
    address::Place,
    ask::{Asked, Asker, PACKAGE, ROOT},
    package::{self, Wrong},
    root::{Layout, Root},
    whole::{self, Sum},
};

/// How long somebody waits for a newer root before the one that is here is good enough, and how long an upstream whose
/// root cannot be had is not asked for it again.
const PATIENCE: Duration = Duration::from_secs(5);
const TROUBLED: Duration = Duration::from_secs(5);

/// How long a file that holds both halves of a package serves both without being asked for again.
const BOTH_HALVES: Duration = Duration::from_secs(10);

/// How many packages are remembered not to be there for as long.
const MOST_ABSENT: usize = 5_000;

/// The largest list of changes, and the most changes in one.
const CHANGES: u64 = 32 * 1024 * 1024;
const MOST_CHANGES: usize = 200_000;

/// The subjects of packages whose files hold both halves.
const MIXED: &str = "mixed:";

/// One upstream. Cheap to clone; clones share what is known and what is under way.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) upstream: Arc<Upstream>,
    inner: Arc<Inner>,
}

struct Inner {
    asker: Arc<Asker>,
    place: Place,
    state: Mutex<State>,
    roots: Flights<Latest, Failure>,
    files: Flights<(), Failure>,
    /// Packages without a file that would hold both halves, and when that was.
    absent: Cache<String, Time>,
}

#[derive(Default)]
struct State {
    known: Option<Known>,
    /// Until when the root is not asked for again, and why.
    trouble: Option<(Time, Failure)>,
    /// When it turned out to be outdated.
    doubted_at: Option<Time>,
}

/// The newest root that is to be had.
#[derive(Clone)]
pub(super) struct Latest {
    pub(super) root: Arc<Root>,
    /// Why it is older than it should be.
    outdated: Option<Failure>,
}

/// The root as it was last told.
#[derive(Clone)]
struct Known {
    root: Arc<Root>,
    validator: String,
    checked_at: Time,
}

/// What became of asking for a package.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl Client {
    pub(super) fn new(upstream: Upstream, db: Db, vault: Vault, fetch: Arc<dyn Fetch>, allow_local: bool) -> Self {
        let place = Place::new(&upstream.url, allow_local);
        let upstream = Arc::new(upstream);
        let asker = Arc::new(Asker::new(Arc::clone(&upstream), db, vault, fetch));
        let (state, roots, files) = (Mutex::default(), Flights::default(), Flights::default());
        let absent = Cache::new(MOST_ABSENT);
        Self { upstream, inner: Arc::new(Inner { asker, place, state, roots, files, absent }) }
    }

    /// Believes nothing that it knows without looking at it again, and asks whom it would have left alone for a while.
    pub(super) fn look_anew(&self) {
        let mut state = self.inner.state();
        state.trouble = None;
        if let Some(known) = &mut state.known {
            known.checked_at = Time::default();
        }
        drop(state);
        self.inner.absent.clear();
        self.inner.asker.forget_pauses();
    }

    /// Its host, for people.
    pub(super) fn host(&self) -> String {
        fetch::origin(&self.upstream.url)
    }

    /// What it says of itself, at most as old as the source's freshness, or older if it cannot be asked.
    pub(super) async fn root(&self) -> Result<Arc<Root>, Failure> {
        Ok(self.latest().await?.root)
    }

    /// Like [`Self::root`], for those who ask what it does not have.
    pub(super) async fn latest(&self) -> Result<Latest, Failure> {
        let inner = &self.inner;
        if let Some(latest) = inner.fresh_enough()? {
            return Ok(latest);
        }
        let old = inner.state().known.as_ref().map(|known| Arc::clone(&known.root));
        let host = inner.asker.db.host();
        let flight = inner.roots.join(host, "root", || refresh(Arc::clone(inner)));
        match old {
            None => flight.await,
            Some(root) => host.within(PATIENCE, flight).await.unwrap_or_else(|| {
                let why = format!("{} takes long to say what it has", self.host());
                Ok(Latest { root, outdated: Some(Failure::Failed(Kind::Timeout, why)) })
            }),
        }
    }

    /// A package's tagged versions, or its branches. `known` is the validator of what is here. `name` is in small letters.
    ///
    /// An upstream with `metadata-url` tells what stands in the file that was asked for, whatever that is; all others are
    /// split here.
    pub(super) async fn package(&self, name: &str, dev: bool, known: Option<&str>) -> Result<Told, Failure> {
        let latest = self.latest().await?;
        if latest.offers(name)? == Some(false) {
            return Ok(Told::Absent);
        }
        let root = latest.root;
        if root.is_inline(name) {
            return self.inner.half(whole::INLINE, name, dev, known).await;
        }
        let outcome = match &root.layout {
            Layout::Files(template) => return self.inner.file(template, name, dev, known).await,
            Layout::Whole => return Ok(Told::Absent),
            Layout::Lazy(template) => self.mixed(template.clone(), name, None).await,
            Layout::Hashed(template) => {
                let Some(hash) = root.hash(name) else { return Ok(Told::Absent) };
                self.mixed(template.clone(), name, Some(hash)).await
            }
        };
        match outcome {
            Ok(()) => self.inner.half(MIXED, name, dev, known).await,
            Err(Failure::Absent) => Ok(Told::Absent),
            Err(failure) => Err(failure),
        }
    }

    /// Begins the download of a dist of at most `most` bytes. `url` is one of [`Root::dist_addresses`].
    pub(super) async fn dist(&self, url: &str, most: u64) -> Result<FetchResponse, Failure> {
        let asker = &self.inner.asker;
        let url = self.inner.place.resolve(url).map_err(|failure| asker.told(failure))?;
        asker.file(&url, most).await
    }

    /// An address that the root names, if it does.
    fn named(&self, address: Option<Result<Url, Failure>>) -> Result<Url, Failure> {
        address.ok_or(Failure::Absent)?.map_err(|failure| self.inner.asker.told(failure))
    }

    /// What has changed since a timestamp that it gave. Without one: the timestamp to begin with. `Absent` if it does
    /// not tell changes.
    pub(super) async fn changes(&self, since: Option<&str>) -> Result<Changes, Failure> {
        let mut url = self.named(self.root().await?.changes.clone())?;
        // Asked without one, registries say with a 400 what to begin with.
        let also = since.is_none().then_some(StatusCode::BAD_REQUEST);
        if let Some(since) = since {
            url.query_pairs_mut().append_pair("since", since);
        }
        let bytes = self.inner.asked(&url, CHANGES, also).await?;
        changes_from(&bytes).map_err(|wrong| self.inner.asker.wrong(&url, &bytes, &wrong))
    }

    /// All advisories that changed since then, as `{"advisories":{…}}`. No names are sent. `Absent` if it has none.
    pub(super) async fn advisories(&self, since: Time) -> Result<Bytes, Failure> {
        let mut url = self.named(self.root().await?.advisories.clone())?;
        url.query_pairs_mut().append_pair("updatedSince", &since.seconds().max(0).to_string());
        let bytes = self.inner.asked(&url, ROOT, None).await?;
        match serde_json::from_slice::<Advisories<'_>>(&bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => Err(self.inner.asker.wrong(&url, &bytes, &error.into())),
        }
    }

    /// Waits for its turn to fetch a dist; others wait until what this gives is dropped.
    pub(super) async fn turn(&self) -> Result<Turn, Failure> {
        self.inner.asker.dist_turn().await
    }

    /// Has a file that holds both halves of a package here, and as fresh as it should be.
    async fn mixed(&self, template: String, name: &str, hash: Option<String>) -> Result<(), Failure> {
        let inner = Arc::clone(&self.inner);
        let host = self.inner.asker.db.host();
        let package = name.to_owned();
        self.inner.files.join(host, name, || async move { inner.mixed(&template, &package, hash).await }).await
    }
}

impl Latest {
    /// Like [`Root::offers`]. Of an outdated root nobody knows what it does not have: the failure says why it is one.
    pub(super) fn offers(&self, name: &str) -> Result<Option<bool>, Failure> {
        match (self.root.offers(name), &self.outdated) {
            // Somebody else may have a look-alike of what is new there.
            (Some(false), Some(failure)) => Err(failure.clone()),
            (offers, _) => Ok(offers),
        }
    }
}

/// Has the root here, and as fresh as it should be; or an old one, if the upstream cannot be asked.
async fn refresh(inner: Arc<Inner>) -> Result<Latest, Failure> {
    // Another flight may have landed meanwhile.
    if let Some(latest) = inner.fresh_enough()? {
        return Ok(latest);
    }
    inner.look().await?;
    if let Some(latest) = inner.fresh_enough()? {
        return Ok(latest);
    }
    let before = inner.state().known.clone();
    let validator = before.as_ref().map(|known| known.validator.as_str());
    let now = inner.now();
    match whole::bring(&inner.asker, &inner.place, validator).await {
        Ok(brought) => {
            let known = match (brought, before) {
                (Some((root, validator)), _) => Known { root: Arc::new(root), validator, checked_at: now },
                (None, Some(before)) => {
                    let check = Check { checked_at: now, validator: before.validator.clone() };
                    inner
                        .commit(Batch::new().with(upstream_checks::put(inner.source(), whole::ROOT_SUBJECT, &check)))
                        .await?;
                    Known { checked_at: now, ..before }
                }
                (None, None) => {
                    return Err(Failure::Failed(Kind::Internal, "there is nothing to be the same as".into()));
                }
            };
            let root = Arc::clone(&known.root);
            *inner.state() = State { known: Some(known), ..State::default() };
            inner.asker.health.is_good();
            Ok(Latest { root, outdated: None })
        }
        Err(failure) => {
            inner.state().trouble = Some((inner.now().plus(TROUBLED), failure.clone()));
            match before {
                Some(known) => Ok(Latest { root: known.root, outdated: Some(failure) }),
                None => Err(failure),
            }
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        self.asker.db.host().now()
    }

    fn source(&self) -> larder_core::Id {
        self.asker.upstream.id()
    }

    async fn commit(&self, batch: Batch) -> Result<(), Failure> {
        self.asker.db.commit(batch).await.map(drop).map_err(|error| larder_core::Error::from(error).into())
    }

    /// The root in memory, if it is fresh, or if the upstream is to be left alone.
    fn fresh_enough(&self) -> Result<Option<Latest>, Failure> {
        let state = self.state();
        let now = self.now();
        let known = state.known.as_ref();
        let is_fresh = |known: &&Known| {
            let is_young = now.since(known.checked_at) < self.asker.upstream.source.every;
            is_young && state.doubted_at.is_none_or(|doubted_at| known.checked_at >= doubted_at)
        };
        if let Some(known) = known.filter(is_fresh) {
            return Ok(Some(Latest { root: Arc::clone(&known.root), outdated: None }));
        }
        match (&state.trouble, known) {
            (Some((until, failure)), Some(known)) if *until > now => {
                Ok(Some(Latest { root: Arc::clone(&known.root), outdated: Some(failure.clone()) }))
            }
            (Some((until, failure)), None) if *until > now => Err(failure.clone()),
            _ => Ok(None),
        }
    }

    /// Takes over what is kept, which another replica may have brought.
    async fn look(&self) -> Result<(), Failure> {
        let check = upstream_checks::find(&self.asker.db, self.source(), whole::ROOT_SUBJECT).await?;
        let checked_at = check.as_ref().map_or(Time::from_micros(0), |check| check.checked_at);
        {
            let mut state = self.state();
            if let Some(known) = &mut state.known
                && check.as_ref().is_none_or(|check| check.validator == known.validator)
            {
                known.checked_at = checked_at;
                return Ok(());
            }
        }
        if let Some((root, validator)) = whole::kept(&self.asker, &self.place).await? {
            self.state().known = Some(Known { root: Arc::new(root), validator, checked_at });
        }
        Ok(())
    }

    /// A half of a package that is kept here.
    async fn half(&self, prefix: &str, name: &str, dev: bool, known: Option<&str>) -> Result<Told, Failure> {
        let (db, subject) = (&self.asker.db, whole::half(prefix, name, dev));
        if let Some(known) = known {
            let kept = documents::look(db, self.source(), &subject).await?;
            if kept.is_some_and(|(validator, _)| validator == known) {
                return Ok(Told::Same);
            }
        }
        let Some(document) = documents::find(db, self.source(), &subject).await? else { return Ok(Told::Absent) };
        Ok(Told::Versions { document: document.content()?.into(), validator: document.validator })
    }

    /// A half of a package that has a file of its own upstream.
    async fn file(&self, template: &str, name: &str, dev: bool, known: Option<&str>) -> Result<Told, Failure> {
        let file = if dev { format!("{name}~dev") } else { name.to_owned() };
        let url = self.place.package(template, &file, None).map_err(|failure| self.asker.told(failure))?;
        let (bytes, validator) = match self.asker.document(&url, PACKAGE, known).await {
            Ok(Asked::Same) => return Ok(Told::Same),
            Ok(Asked::Document { bytes, validator }) => (bytes, validator),
            Err(Failure::Absent) => return Ok(Told::Absent),
            Err(failure) => return Err(failure),
        };
        let name = name.to_owned();
        let document = self.read(&url, bytes, move |bytes| package::from_file(bytes, &name)).await?;
        Ok(document.map_or(Told::Absent, |document| Told::Versions { document: document.into(), validator }))
    }

    /// Asks for a file that holds both halves of a package, unless the one that is here will do, and keeps the halves.
    async fn mixed(&self, template: &str, name: &str, hash: Option<String>) -> Result<(), Failure> {
        let subject = format!("{MIXED}{name}");
        let check = upstream_checks::find(&self.asker.db, self.source(), &subject).await?;
        let fresh = BOTH_HALVES.min(self.asker.upstream.source.every);
        let is_absent = self.absent.get(name).is_some_and(|at| self.now().since(at) < fresh);
        match (&check, &hash) {
            (None, None) if is_absent => return Err(Failure::Absent),
            (Some(check), Some(hash)) if check.validator == *hash => return Ok(()),
            (Some(check), None) if self.now().since(check.checked_at) < fresh => return Ok(()),
            _ => {}
        }
        let url = self.place.package(template, name, hash.as_deref()).map_err(|failure| self.asker.told(failure))?;
        let is_asked = hash.is_none();
        let known = check.as_ref().filter(|_| is_asked).map(|check| check.validator.as_str());
        let now = self.now();
        let asked = match (self.asker.document(&url, PACKAGE, known).await, &hash) {
            (Err(failure), Some(_)) => return Err(self.gone(failure, &url)),
            (Err(Failure::Absent), None) => None,
            (asked, _) => Some(asked?),
        };
        let (halves, validator) = match asked {
            Some(Asked::Same) => {
                let check =
                    Check { checked_at: now, ..check.unwrap_or(Check { checked_at: now, validator: String::new() }) };
                return self.commit(Batch::new().with(upstream_checks::put(self.source(), &subject, &check))).await;
            }
            Some(Asked::Document { bytes, validator }) => {
                if let Some(hash) = &hash {
                    whole::check(&self.asker, &url, &bytes, hash, Sum::Sha256)?;
                }
                let name = name.to_owned();
                let halves = self.read(&url, bytes, move |bytes| package::from_mixed(bytes, &name)).await?;
                (halves, hash.unwrap_or(validator))
            }
            None => (package::Halves::default(), String::new()),
        };
        let (mut batch, mut is_changed) = (Batch::new(), false);
        for (dev, content) in [(false, &halves.tagged), (true, &halves.branches)] {
            let subject = whole::half(MIXED, name, dev);
            let kept = documents::look(&self.asker.db, self.source(), &subject).await?.map(|(validator, _)| validator);
            let statement = whole::keep(&self.asker, &subject, content.as_deref(), kept.as_deref(), now);
            is_changed |= statement.is_some();
            batch = statement.into_iter().fold(batch, Batch::with);
        }
        // Anybody can ask for names that are nowhere: nothing is kept of them.
        let is_nothing = halves.tagged.is_none() && halves.branches.is_none();
        if is_nothing && !is_changed && check.is_none() && is_asked {
            self.absent.insert(name.to_owned(), now);
            return Err(Failure::Absent);
        }
        let check = Check { checked_at: now, validator };
        self.commit(batch.with(upstream_checks::put(self.source(), &subject, &check))).await
    }

    /// A file that the root announces is not there: the next question asks for the root again, unless that was just done.
    fn gone(&self, failure: Failure, url: &Url) -> Failure {
        if !matches!(failure, Failure::Absent) {
            return failure;
        }
        let now = self.now();
        let mut state = self.state();
        if state.known.as_ref().is_some_and(|known| now.since(known.checked_at) >= TROUBLED) {
            state.doubted_at = Some(now);
        }
        drop(state);
        self.asker.told(whole::listed_but_gone(failure, url))
    }

    /// A document that is never the same.
    async fn asked(&self, url: &Url, most: u64, also: Option<StatusCode>) -> Result<Bytes, Failure> {
        match self.asker.document_or(url, most, None, also).await? {
            Asked::Document { bytes, .. } => Ok(bytes),
            Asked::Same => Err(Failure::Failed(Kind::Internal, "there is nothing to be the same as".into())),
        }
    }

    /// Takes a document apart, a large one off the threads that answer requests.
    async fn read<T: Send + 'static>(
        &self,
        url: &Url,
        bytes: Bytes,
        read: impl FnOnce(&[u8]) -> Result<T, Wrong> + Send + 'static,
    ) -> Result<T, Failure> {
        let (size, content) = (bytes.len(), bytes.clone());
        let outcome = self.asker.db.host().compute(size, async move { Ok(read(&content)) }).await?;
        let read = outcome.map_err(|wrong| self.asker.wrong(url, &bytes, &wrong))?;
        self.asker.health.is_good();
        Ok(read)
    }
}

/// An answer about advisories.
#[derive(Deserialize)]
struct Advisories<'a> {
    #[serde(borrow, rename = "advisories")]
    _advisories: &'a RawValue,
}

/// Reads an answer about changes.
fn changes_from(bytes: &[u8]) -> Result<Changes, Wrong> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        timestamp: &'a RawValue,
        #[serde(default, borrow)]
        actions: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Action {
        #[serde(rename = "type")]
        kind: String,
        package: String,
    }
    let answer: Answer<'_> = serde_json::from_slice(bytes)?;
    let timestamp = answer.timestamp.get().trim_matches('"').to_owned();
    if timestamp.is_empty() || !timestamp.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Wrong("has no timestamp".into()));
    }
    let mut changes = Changes { timestamp, actions: Vec::new(), resync: false };
    let actions = answer.actions.map(|actions| package::pairs(actions, MOST_CHANGES, "changes")).transpose()?;
    for (_, action) in actions.into_iter().flatten() {
        let action: Action = serde_json::from_str(action.get())?;
        let (package, dev) = match action.package.strip_suffix("~dev") {
            Some(package) => (package.to_ascii_lowercase(), true),
            None => (action.package.to_ascii_lowercase(), false),
        };
        match action.kind.as_str() {
            "update" => changes.actions.push(Change { package, dev, deleted: false }),
            "delete" => changes.actions.push(Change { package, dev, deleted: true }),
            // Also one that is not known yet: who cannot say what it means has to look at everything.
            _ => changes.resync = true,
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests;
