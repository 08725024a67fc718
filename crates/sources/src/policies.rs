//! Policies: a format's rules for the packages that a pattern names, read once and remembered, made and taken away.
//!
//! What a rule means is said by the format that keeps it. Several patterns may name a package; they come in the order in
//! which they count: the longest first.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use larder_core::{Error, Result, Time, pattern::Pattern};
use larder_db::{
    Batch, Db,
    changes::{self, Change},
    events::{self, Actor, Event},
    policies::{self, PolicyRow},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

/// How long policies are remembered where nobody tells of changes: a change by another process holds within a second.
const FRESH: Duration = Duration::from_millis(900);

/// How often they are read again because they changed meanwhile, before what was read last is used once.
const ATTEMPTS: usize = 3;

/// The rules of one format.
pub trait Rules: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The id of the format.
    const FORMAT: &'static str;

    /// Refuses what cannot be kept for the packages of this pattern.
    fn check(&self, pattern: &Pattern) -> Result<()>;
}

/// All policies of a format, the longest pattern first.
#[derive(Clone, Debug)]
pub struct Policies<R>(Vec<(Pattern, R)>);

impl<R> Policies<R> {
    /// Puts them in the order in which they count.
    pub fn sorted(mut all: Vec<(Pattern, R)>) -> Self {
        let length = |pattern: &Pattern| std::cmp::Reverse(pattern.as_str().len());
        all.sort_by(|(a, _), (b, _)| length(a).cmp(&length(b)).then_with(|| a.cmp(b)));
        Self(all)
    }

    /// Each pattern with its rules.
    pub fn iter(&self) -> impl Iterator<Item = &(Pattern, R)> {
        self.0.iter()
    }

    /// Those whose pattern names this package.
    pub fn matching<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a (Pattern, R)> {
        self.0.iter().filter(move |(pattern, _)| pattern.matches(name))
    }

    /// The rules of exactly this pattern.
    pub fn exactly(&self, pattern: &Pattern) -> Option<&R> {
        self.0.iter().find_map(|(known, rules)| (known == pattern).then_some(rules))
    }
}

impl<R> Default for Policies<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// The policies of a format in the database. Cheap to clone; clones remember together.
#[derive(Debug)]
pub struct Book<R> {
    db: Db,
    memory: Arc<Memory<R>>,
}

impl<R> Clone for Book<R> {
    fn clone(&self) -> Self {
        Self { db: self.db.clone(), memory: Arc::clone(&self.memory) }
    }
}

/// What was last read.
#[derive(Debug)]
struct Memory<R> {
    last: Mutex<Option<(Time, Arc<Policies<R>>)>>,
    /// Grows with every change that is heard of.
    changes: AtomicU64,
    /// Whether somebody tells of changes.
    hears: AtomicBool,
}

impl<R: Rules> Book<R> {
    /// Over a database. Nothing is read yet.
    pub fn new(db: Db) -> Self {
        let memory = Memory { last: Mutex::new(None), changes: AtomicU64::new(0), hears: AtomicBool::new(false) };
        Self { db, memory: Arc::new(memory) }
    }

    /// Forgets what a change makes stale. Once it was told of one, it trusts to be told of all.
    pub fn on_change(&self, change: &Change) {
        self.memory.hears.store(true, Ordering::SeqCst);
        if matches!(change, Change::Topic(topic) if topic != policies::TOPIC) {
            return;
        }
        self.forget();
    }

    /// All policies; without anybody who tells of changes, as they were within the last second.
    pub async fn all(&self) -> Result<Arc<Policies<R>>> {
        let now = self.db.host().now();
        if let Some(policies) = self.memory.get(now) {
            return Ok(policies);
        }
        for _ in 0..ATTEMPTS {
            let before = self.memory.changes.load(Ordering::SeqCst);
            let policies = Arc::new(self.read().await?);
            if self.memory.set(now, &policies, before) {
                return Ok(policies);
            }
        }
        Ok(Arc::new(self.read().await?))
    }

    /// Makes a policy, or replaces all rules of the one with this pattern.
    pub async fn set(&self, actor: &Actor, pattern: &Pattern, rules: &R) -> Result<()> {
        rules.check(pattern)?;
        self.put(actor, pattern, rules, None).await
    }

    /// Takes a policy away, and gives the rules that it had.
    pub async fn remove(&self, actor: &Actor, pattern: &Pattern) -> Result<R> {
        let rules = self.read().await?.exactly(pattern).cloned();
        let rules = rules.ok_or_else(|| {
            let format = R::FORMAT;
            Error::not_found(format!("there is no policy for `{pattern}`: `larder {format} policy list` shows all"))
        })?;
        let host = self.db.host();
        let event = Event::new(actor, "policy.remove", subject::<R>(pattern)).with(json!(rules));
        let batch = Batch::new()
            .with(policies::exists(R::FORMAT, pattern.as_str()))
            .with(policies::remove(R::FORMAT, pattern.as_str()))
            .with(events::record(host, &event))
            .with(changes::notify(host, policies::TOPIC));
        self.db.commit(batch).await?;
        self.forget();
        Ok(rules)
    }

    /// Changes the rules of a pattern, or makes them from none; `None` takes the policy away. Whoever changes them at the
    /// same time is not overwritten: `change` is then called again with what they made of it.
    pub async fn edit(
        &self,
        actor: &Actor,
        pattern: &Pattern,
        change: impl Fn(Option<R>) -> Result<Option<R>> + Send + Sync,
    ) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let now =
                policies::list(&self.db, R::FORMAT).await?.into_iter().find(|row| row.pattern == pattern.as_str());
            let before = now.as_ref().map(|row| parse(row)).transpose()?;
            let Some(rules) = change(before)? else {
                return if now.is_some() { self.remove(actor, pattern).await.map(drop) } else { Ok(()) };
            };
            rules.check(pattern)?;
            let unchanged =
                policies::rules_are(R::FORMAT, pattern.as_str(), now.as_ref().map(|row| row.rules.as_str()));
            match self.put(actor, pattern, &rules, Some(unchanged)).await {
                Err(error) if error.kind() == larder_core::Kind::Conflict => {}
                done => return done,
            }
        }
        Err(Error::conflict(format!("the policy for `{pattern}` is being changed by somebody else: try again")))
    }

    async fn put(
        &self,
        actor: &Actor,
        pattern: &Pattern,
        rules: &R,
        guard: Option<larder_db::Statement>,
    ) -> Result<()> {
        let host = self.db.host();
        let text = json!(rules);
        let row = PolicyRow {
            id: host.new_id(),
            format: R::FORMAT.to_owned(),
            pattern: pattern.to_string(),
            rules: text.to_string(),
            created_at: host.now(),
        };
        let event = Event::new(actor, "policy.set", subject::<R>(pattern)).with(text);
        let mut batch = Batch::new();
        batch.extend(guard);
        let batch = batch
            .with(policies::put(&row))
            .with(events::record(host, &event))
            .with(changes::notify(host, policies::TOPIC));
        self.db.commit(batch).await?;
        self.forget();
        Ok(())
    }

    async fn read(&self) -> Result<Policies<R>> {
        let mut found = Vec::new();
        for row in policies::list(&self.db, R::FORMAT).await? {
            found.push((row.pattern.parse::<Pattern>()?, parse(&row)?));
        }
        Ok(Policies::sorted(found))
    }

    fn forget(&self) {
        self.memory.changes.fetch_add(1, Ordering::SeqCst);
        *self.memory.last() = None;
    }
}

impl<R> Memory<R> {
    fn last(&self) -> std::sync::MutexGuard<'_, Option<(Time, Arc<Policies<R>>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, now: Time) -> Option<Arc<Policies<R>>> {
        let hears = self.hears.load(Ordering::SeqCst);
        let last = self.last();
        last.as_ref().filter(|(at, _)| hears || now.since(*at) < FRESH).map(|(_, policies)| Arc::clone(policies))
    }

    /// Remembers what was read when there had been `before` changes; not if there was one since.
    fn set(&self, now: Time, policies: &Arc<Policies<R>>, before: u64) -> bool {
        let mut last = self.last();
        let same = self.changes.load(Ordering::SeqCst) == before;
        if same {
            *last = Some((now, Arc::clone(policies)));
        }
        same
    }
}

fn parse<R: Rules>(row: &PolicyRow) -> Result<R> {
    serde_json::from_str(&row.rules)
        .map_err(|error| Error::internal("reading a policy", format!("{}: {error}", row.pattern)))
}

/// The thing of an event about a policy.
fn subject<R: Rules>(pattern: &Pattern) -> String {
    format!("policy:{}:{pattern}", R::FORMAT)
}
