//! What the world was told, and may rely on: which tag names what, what refers to it, and what was deleted when.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::StatusCode;
use larder_e2e::{
    Dice,
    oci::{Ask, Blob, Manifest, Registry, Trouble},
};

use crate::requests::next;

pub(super) const REPOSITORIES: [&str; 4] = ["team/app", "team/web", "tools", "mirror/library/base"];
const TAGS: usize = 24;

/// A tag, and what may be found under it.
pub(super) struct Tag {
    pub(super) repository: &'static str,
    pub(super) name: String,
    /// Held by whoever changes it.
    pub(super) turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

/// What is known of a tag. While somebody changes it, and after a change of which nobody knows how it ended, that may be
/// one of several things.
#[derive(Clone, Default)]
pub(super) struct State {
    /// Grows with each change.
    pub(super) version: u64,
    /// What may be found: digests, or nothing.
    pub(super) possible: Vec<Option<String>>,
    /// What refers to it, acknowledged.
    pub(super) referrers: Vec<String>,
}

impl State {
    /// What is found for certain: a digest, or nothing.
    pub(super) fn certain(&self) -> Option<&Option<String>> {
        if self.possible.len() == 1 { self.possible.first() } else { None }
    }
}

impl Tag {
    pub(super) fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on this may be found too.
    pub(super) fn begin(&self, next: Option<&str>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.version += 1;
        let next = next.map(str::to_owned);
        if !state.possible.contains(&next) {
            state.possible.push(next);
            state.referrers.clear();
        }
    }

    /// From now on only this is found.
    pub(super) fn settle(&self, now: Option<&str>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.version += 1;
        state.possible = vec![now.map(str::to_owned)];
    }

    /// Something refers to what the tag names, if it has not changed since `version`.
    pub(super) fn refer(&self, version: u64, referrer: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.version == version {
            state.referrers.push(referrer.to_owned());
        }
    }
}

#[derive(Default)]
struct Counts {
    pushed: AtomicU64,
    retried: AtomicU64,
    pulled: AtomicU64,
    deleted: AtomicU64,
    referred: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    kills: AtomicU64,
}

/// What happened.
#[derive(Clone, Copy)]
pub(super) enum Count {
    Pushed,
    Retried,
    Pulled,
    Deleted,
    Referred,
    Refused,
    Cut,
}

pub(super) struct World {
    pub(super) registry: Registry,
    tags: Vec<Tag>,
    /// What images are made of, again and again.
    layers: Vec<Blob>,
    /// A few that are so large that they are rare.
    large: Vec<Blob>,
    /// Images that everybody pushes, under tags of their own.
    pub(super) common: Vec<Manifest>,
    /// When a blob may last have been taken out of a repository.
    taken: Mutex<HashMap<(String, String), Instant>>,
    counts: Counts,
    wrong: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl World {
    pub(super) fn new(registry: Registry, seed: u64) -> Self {
        let tags = (0..TAGS).map(|number| Tag {
            repository: REPOSITORIES[number % REPOSITORIES.len()],
            name: format!("v{number}"),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::new(State { possible: vec![None], ..State::default() }),
        });
        // From nothing at all to more than S3 takes in one piece.
        let sizes = [0, 1, 700, 4_096, 20_000, 65_536, 65_537, 200_000, 300_001];
        let layers: Vec<Blob> = (seed..)
            .zip(sizes)
            .flat_map(|(at, size)| [(at, size), (at + 100, size / 2)])
            .map(|(at, size)| Blob::noise(at, size))
            .collect();
        let common =
            (0..5).map(|number| Manifest::image(&format!("common {number}"), &layers[number * 3..number * 3 + 4]));
        Self {
            registry,
            tags: tags.collect(),
            common: common.collect(),
            layers,
            large: (seed + 1_000..)
                .zip([1_500_000, 6_000_000, 12_000_000])
                .map(|(at, size)| Blob::noise(at, size))
                .collect(),
            taken: Mutex::default(),
            counts: Counts::default(),
            wrong: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn tags(&self) -> &[Tag] {
        &self.tags
    }

    /// One of the layers.
    pub(super) fn layer(&self, dice: &mut Dice) -> &Blob {
        let all = if dice.once_in(25) { &self.large } else { &self.layers };
        dice.pick(all)
    }

    pub(super) fn count(&self, what: Count) {
        let counter = match what {
            Count::Pushed => &self.counts.pushed,
            Count::Retried => &self.counts.retried,
            Count::Pulled => &self.counts.pulled,
            Count::Deleted => &self.counts.deleted,
            Count::Referred => &self.counts.referred,
            Count::Refused => &self.counts.refused,
            Count::Cut => &self.counts.cut,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_kill(&self) {
        self.counts.kills.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counted(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        format!(
            "{} pushed ({} tries more), {} pulled, {} deleted, {} referred, {} refused for now, {} cut, {} kills",
            of(&counts.pushed),
            of(&counts.retried),
            of(&counts.pulled),
            of(&counts.deleted),
            of(&counts.referred),
            of(&counts.refused),
            of(&counts.cut),
            of(&counts.kills),
        )
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Something happened that must never happen.
    pub(super) fn wrong(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        self.end();
    }

    pub(super) fn has_failed(&self) -> bool {
        !self.wrong.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Fails if something was wrong, or if too little happened to prove anything.
    pub(super) fn judge(&self, when: &str) {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(wrong.is_empty(), "{when}; {}:\n{}", self.counted(), wrong.join("\n"));
        for counter in
            [&self.counts.pushed, &self.counts.pulled, &self.counts.deleted, &self.counts.referred, &self.counts.kills]
        {
            assert!(counter.load(Ordering::Relaxed) > 1, "{when}: too little happened: {}", self.counted());
        }
    }

    /// A blob is about to be taken out of a repository, or just was.
    pub(super) fn take(&self, repository: &str, digest: &str) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert((repository.to_owned(), digest.to_owned()), Instant::now());
    }

    /// Whether somebody took it out after `since`.
    pub(super) fn was_taken(&self, repository: &str, digest: &str, since: Instant) -> bool {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.get(&(repository.to_owned(), digest.to_owned())).is_some_and(|at| *at >= since)
    }

    /// After a connection that broke: waits as clients do.
    pub(super) async fn wait(&self) {
        self.count(Count::Cut);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// With nobody else at work: a tag names one of the things that it may, whole and with all that refers to it.
    pub(super) async fn check_at_rest(&self, tag: &Tag) {
        let state = tag.state();
        let at = format!("{}:{}", tag.repository, tag.name);
        let found = match self.registry.pull(tag.repository, &tag.name).await {
            Ok(digest) => Some(digest),
            Err(trouble) if trouble.is("MANIFEST_UNKNOWN") || trouble.is("NAME_UNKNOWN") => None,
            Err(trouble) => return self.wrong(format!("{at} cannot be pulled: {trouble}")),
        };
        if !state.possible.contains(&found) {
            return self.wrong(format!("{at} names {found:?}, not one of {:?}", state.possible));
        }
        if let Some(digest) = found
            && let Err(what) = self.check_referrers(tag.repository, &digest, &state.referrers).await
        {
            self.wrong(format!("{at}: {what}"));
        }
    }

    pub(super) async fn check_referrers(
        &self,
        repository: &str,
        subject: &str,
        known: &[String],
    ) -> Result<(), String> {
        let mut listed = Vec::new();
        let mut at = Some(format!("/v2/{repository}/referrers/{subject}"));
        while let Some(page) = at {
            let answer = match self.registry.want(Ask::get(page), &[StatusCode::OK]).await {
                Ok(answer) => answer,
                Err(Trouble::Cut(_)) => return Ok(()),
                Err(trouble) => return Err(trouble.to_string()),
            };
            listed.extend(answer.json()["manifests"].as_array().cloned().unwrap_or_default());
            at = next(&answer);
        }
        match known.iter().find(|digest| !listed.iter().any(|one| one["digest"] == ***digest)) {
            Some(lost) => Err(format!("{lost} refers to {subject} and is not listed")),
            None => Ok(()),
        }
    }

    /// With nobody else at work: takes the tag's image away.
    pub(super) async fn delete_at_rest(&self, tag: &Tag) {
        let delete = Ask::delete(format!("/v2/{}/manifests/{}", tag.repository, tag.name));
        let answer = self.registry.ask(delete).await;
        assert!([StatusCode::ACCEPTED, StatusCode::NOT_FOUND].contains(&answer.status), "{}", answer.text());
    }
}
