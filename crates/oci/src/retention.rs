//! Retention: tags go as the policies of their repository say, and manifests to which nothing refers any more go some
//! days later, with what they alone consist of and what is about them. Blobs are not its business: what no manifest
//! needs is collected by `larder-blobs`.
//!
//! It runs at any time and beside everything else: each thing goes in a batch of its own, under the guard that nothing has
//! come to need it, and one that cannot go does not keep the others.

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;
use larder_core::{Digest, Error, Result, Time};
use larder_db::{
    Batch, CommitError, changes,
    edges::{self, Orphan},
    events::{self, Actor, Event},
    leases,
    packages::{self, Package, Pointer},
    usage,
};
use larder_jobs::{Handler, Job};
use serde::Serialize;
use serde_json::json;

use crate::{
    ID, MANIFEST, Registry,
    error::Refusal,
    manifests::{pointer_subject, subject},
    policy::{Policies, Rules, UNTAGGED_DAYS, days},
};

/// The kind of the job; its subject is empty.
pub const SWEEP: &str = "oci.sweep";

/// How long a manifest is kept that nothing refers to, unless a policy or the configuration says otherwise.
pub const UNTAGGED: Duration = Duration::from_secs(UNTAGGED_DAYS as u64 * 86_400);

/// How many rows are looked at in one go.
const PAGE: i64 = 256;

/// How deep indexes are nested, at most, for one sweep to follow them to the end. The next one goes on.
const DEPTH: usize = 32;

/// How many things one sweep takes away, at most. The next one goes on.
const MOST: u64 = 100_000;

/// What sort of thing a verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// A tag.
    Tag,
    /// A manifest.
    Manifest,
}

/// What happens to a tag or a manifest, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The repository.
    pub repository: String,
    /// What it is.
    pub sort: Sort,
    /// The tag, or the digest of the manifest.
    pub name: String,
    /// Whether it goes, or is kept.
    pub goes: bool,
    /// Why, for people.
    pub reason: String,
    /// Why it could not be taken away, for people; the next sweep tries again.
    pub problem: Option<String>,
}

/// The sums of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Tags that went, or would.
    pub tags: u64,
    /// Manifests that went, or would.
    pub manifests: u64,
    /// Manifests that nothing refers to, and that are kept for now.
    pub waiting: u64,
    /// Things that could not be taken away, in none of the other sums.
    pub failed: u64,
}

/// Where each verdict goes, at once, so that none are gathered.
pub type Report<'a> = &'a mut (dyn FnMut(Verdict) + Send);

impl Registry {
    /// Takes away what is not to be kept any longer. Manifests that nothing refers to are kept for `untagged` where the
    /// policies do not say otherwise.
    pub async fn sweep(&self, untagged: Duration, report: Report<'_>) -> Result<Swept> {
        let mut sweep = Sweep::new(self, untagged, false, report).await?;
        sweep.tags().await?;
        for _ in 0..DEPTH {
            let before = sweep.swept.manifests;
            sweep.orphans().await?;
            // Whatever went may have left others behind.
            if sweep.swept.manifests == before || sweep.is_enough() {
                break;
            }
        }
        let swept = sweep.swept;
        self.db.commit(Batch::from(leases::sweep(self.host().now()))).await?;
        Ok(swept)
    }

    /// Leases a manifest to its repository: whoever may push and is told that it is here does not push it again before
    /// what refers to it.
    pub(crate) async fn rely_on_manifest(&self, name: &str, digest: &Digest) -> Result<(), Refusal> {
        if let Some(seen) = self.visible(name, digest).await? {
            self.rely(name, digest, &seen).await?;
        }
        Ok(())
    }

    /// Tells what a sweep now would take away and what it would keep, each with the reason. Of tags, only those are told
    /// for whose repository there is a rule; of manifests, only those that nothing refers to, and those that go with them.
    pub async fn sweep_dry(&self, untagged: Duration, report: Report<'_>) -> Result<Swept> {
        let mut sweep = Sweep::new(self, untagged, true, report).await?;
        sweep.tags().await?;
        sweep.foresee().await?;
        Ok(sweep.swept)
    }
}

/// One sweep.
struct Sweep<'a> {
    judge: Judge<'a>,
    dry_run: bool,
    swept: Swept,
    report: Report<'a>,
}

/// Decides about each thing, and takes it away.
struct Judge<'a> {
    registry: &'a Registry,
    policies: Policies,
    untagged: Duration,
    now: Time,
}

impl<'a> Sweep<'a> {
    async fn new(registry: &'a Registry, untagged: Duration, dry_run: bool, report: Report<'a>) -> Result<Self> {
        let (policies, now) = (registry.policies().await?, registry.host().now());
        let judge = Judge { registry, policies, untagged, now };
        Ok(Self { judge, dry_run, swept: Swept::default(), report })
    }

    fn is_enough(&self) -> bool {
        self.swept.tags + self.swept.manifests >= MOST
    }

    async fn tags(&mut self) -> Result<()> {
        if !self.judge.policies.iter().any(|(_, rules)| rules.limits_tags()) {
            return Ok(());
        }
        let mut after = String::new();
        loop {
            let page = packages::list(&self.judge.registry.db, ID, &after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            last.name.clone_into(&mut after);
            for package in &page {
                let rules = self.judge.policies.of(&package.name);
                if rules.limits_tags() && !self.is_enough() {
                    self.tags_of(package, &rules).await?;
                }
            }
        }
    }

    /// The tags of a repository, the one that moved last first.
    async fn tags_of(&mut self, package: &Package, rules: &Rules) -> Result<()> {
        let mut counted = 0;
        let mut after: Option<Pointer> = None;
        loop {
            let page = usage::pointers_by_age(&self.judge.registry.db, package.id, after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for pointer in &page {
                let (goes, reason) = match self.judge.why_kept(package, rules, pointer, &mut counted).await? {
                    Ok(kept) => (false, kept),
                    Err(goes) => (true, goes),
                };
                if !goes && !self.dry_run {
                    continue;
                }
                let gone = if goes && !self.dry_run { self.judge.drop_tag(package, pointer).await } else { Ok(goes) };
                self.tell(&package.name, Sort::Tag, &pointer.name, (goes, reason), gone)?;
            }
        }
    }

    /// Notes which manifests nothing refers to, and takes those away for which that was noted long enough ago.
    async fn orphans(&mut self) -> Result<()> {
        self.swept.waiting = 0;
        let mut after = String::new();
        loop {
            let page = edges::orphans(&self.judge.registry.db, ID, &after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id.to_string();
            let new = page.iter().filter(|orphan| orphan.orphaned_at.is_none());
            let marks: Batch = new.map(|orphan| edges::mark_orphan(orphan.id, self.judge.now)).collect();
            self.judge.registry.db.commit(marks).await?;
            for orphan in &page {
                let since = orphan.orphaned_at.unwrap_or(self.judge.now);
                if self.judge.until(orphan) > self.judge.now {
                    self.swept.waiting += 1;
                } else if !self.is_enough() {
                    let gone = self.judge.drop_manifest(orphan, since).await;
                    let reason = format!("nothing has referred to it since {since}");
                    self.tell(&orphan.package, Sort::Manifest, &orphan.reference, (true, reason), gone)?;
                }
            }
        }
    }

    /// What [`orphans`](Self::orphans) would do, with all that would follow.
    async fn foresee(&mut self) -> Result<()> {
        let mut after = String::new();
        let mut told = HashSet::new();
        loop {
            let page = edges::orphans(&self.judge.registry.db, ID, &after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id.to_string();
            for orphan in &page {
                let until = self.judge.until(orphan);
                let since = orphan.orphaned_at.map_or_else(|| "just now".to_owned(), |at| at.to_string());
                if until > self.judge.now {
                    let reason = format!("nothing has referred to it since {since}; it goes at {until}");
                    self.tell(&orphan.package, Sort::Manifest, &orphan.reference, (false, reason), Ok(false))?;
                    continue;
                }
                let Some(package) = packages::find(&self.judge.registry.db, ID, &orphan.package).await? else {
                    continue;
                };
                let family = self.judge.registry.family(package.id, orphan.id, &orphan.reference).await?;
                for (id, reference) in family {
                    if !told.insert(id) {
                        continue;
                    }
                    let reason = if id == orphan.id {
                        format!("nothing has referred to it since {since}")
                    } else {
                        format!("it belongs to {}, which goes", orphan.reference)
                    };
                    self.tell(&orphan.package, Sort::Manifest, &reference, (true, reason), Ok(true))?;
                }
            }
        }
    }

    /// Counts and reports what became of something. What may succeed later without anybody's doing ends the sweep.
    fn tell(
        &mut self,
        repository: &str,
        sort: Sort,
        name: &str,
        (goes, reason): (bool, String),
        gone: Result<bool>,
    ) -> Result<()> {
        let problem = match gone {
            Ok(false) if goes => return Ok(()),
            Ok(_) => None,
            Err(error) if error.is_temporary() => return Err(error),
            Err(error) => Some(failure(repository, name, &error)),
        };
        match (problem.is_some(), goes, sort) {
            (true, ..) => self.swept.failed += 1,
            (_, true, Sort::Tag) => self.swept.tags += 1,
            (_, true, Sort::Manifest) => self.swept.manifests += 1,
            (_, false, Sort::Manifest) => self.swept.waiting += 1,
            (_, false, Sort::Tag) => {}
        }
        let (repository, name) = (repository.to_owned(), name.to_owned());
        (self.report)(Verdict { repository, sort, name, goes, reason, problem });
        Ok(())
    }
}

fn failure(repository: &str, name: &str, error: &Error) -> String {
    tracing::warn!(repository, name, error = error.chain(), "what is not to be kept could not be taken away");
    error.message().to_owned()
}

impl Judge<'_> {
    /// Why a tag is kept, or else why it goes. `counted` is how many of those that moved later count for `keep_last`.
    async fn why_kept(
        &self,
        package: &Package,
        rules: &Rules,
        pointer: &Pointer,
        counted: &mut u32,
    ) -> Result<Result<String, String>> {
        let moved = pointer.changed_at;
        if rules.is_immutable(&pointer.name) {
            return Ok(Ok("it is immutable".to_owned()));
        }
        if rules.keeps(&pointer.name) {
            return Ok(Ok("a pattern keeps it for ever".to_owned()));
        }
        if let Some(about) = about(&pointer.name) {
            let About::Manifest(digest) = about else { return Ok(Ok("it is about a manifest".to_owned())) };
            if !packages::by_reference(&self.registry.db, package.id, &digest, MANIFEST).await?.is_empty() {
                return Ok(Ok(format!("it is about {digest}, which is here")));
            }
            let until = moved.plus(rules.untagged(self.untagged));
            return Ok(if until > self.now {
                Ok(format!("it is about {digest}, which is not here; it goes at {until} if that does not come"))
            } else {
                Err(format!("it is about {digest}, which is not here"))
            });
        }
        let mut missed = Vec::new();
        if let Some(last) = rules.keep_last {
            if *counted < last {
                *counted += 1;
                return Ok(Ok(format!("it is among the last {last} that moved")));
            }
            missed.push(format!("it is not among the last {last} that moved"));
        }
        if let Some(count) = rules.keep_days {
            let until = moved.plus(days(count));
            if until > self.now {
                return Ok(Ok(format!("it moved at {moved}, and is kept until {until}")));
            }
            missed.push(format!("it has not moved since {moved}"));
        }
        Ok(Err(missed.join(", and ")))
    }

    async fn drop_tag(&self, package: &Package, pointer: &Pointer) -> Result<bool> {
        let host = self.registry.host();
        let detail = json!({ "from": pointer.reference, "reason": "retention" });
        let event =
            Event::new(&Actor::house(), "pointer.remove", pointer_subject(&package.name, &pointer.name)).with(detail);
        let batch = Batch::new()
            .with(packages::points_at(package.id, &pointer.name, &pointer.reference))
            .with(packages::remove_pointer(package.id, &pointer.name))
            .with(packages::changed(package.id, host.now()))
            .with(events::record(host, &event))
            .with(changes::notify(host, &packages::topic(ID, &package.name)));
        self.commit(batch).await
    }

    /// When a manifest goes that nothing refers to.
    fn until(&self, orphan: &Orphan) -> Time {
        let rules = self.policies.of(&orphan.package);
        let until = orphan.orphaned_at.unwrap_or(self.now).plus(rules.untagged(self.untagged));
        orphan.leased_until.map_or(until, |leased| leased.max(until))
    }

    /// What it alone consists of, and what is about it, is waited for no longer than it was itself.
    async fn drop_manifest(&self, orphan: &Orphan, since: Time) -> Result<bool> {
        let host = self.registry.host();
        let Some(package) = packages::find(&self.registry.db, ID, &orphan.package).await? else { return Ok(false) };
        let detail = json!({ "digest": orphan.reference, "reason": "retention", "untagged_since": since.to_string() });
        let event = Event::new(&Actor::house(), "version.remove", subject(&orphan.package)).with(detail);
        let mut batch = Batch::new().with(edges::is_orphan(orphan.id, since, host.now()));
        batch.extend(edges::leave(orphan.id, package.id, &orphan.reference, since));
        batch.push(packages::remove_version(orphan.id));
        batch.push(packages::changed(package.id, host.now()));
        batch.push(events::record(host, &event));
        batch.push(changes::notify(host, &packages::topic(ID, &orphan.package)));
        self.commit(batch).await
    }

    /// `false` if something came to need it meanwhile.
    async fn commit(&self, batch: Batch) -> Result<bool> {
        match self.registry.db.commit(batch).await {
            Ok(_) => Ok(true),
            Err(CommitError::Guard(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a tag is about that a client made from a digest, because some registries have no list of referrers.
#[derive(Debug, PartialEq, Eq)]
enum About {
    Manifest(String),
    /// One whose digest is too long for a tag.
    Some,
}

/// Reads `sha256-HEX`, also with a suffix: `sha256-HEX.sig`. Such a tag is no version that people would count.
fn about(tag: &str) -> Option<About> {
    let (algorithm, rest) = tag.split_once('-')?;
    let (digits, suffix) = rest.split_at_checked(64)?;
    let is_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !is_hex || !(suffix.is_empty() || suffix.starts_with('.')) {
        return None;
    }
    match algorithm {
        "sha256" => Some(About::Manifest(format!("sha256:{digits}"))),
        "sha512" => Some(About::Some),
        _ => None,
    }
}

/// Sweeps again and again.
#[derive(Debug)]
pub struct SweepHandler {
    registry: Registry,
    every: Duration,
    untagged: Duration,
}

impl SweepHandler {
    /// Sweeps once `every` so long; manifests that nothing refers to are kept for `untagged` where no policy says otherwise.
    pub fn new(registry: Registry, every: Duration, untagged: Duration) -> Self {
        Self { registry, every, untagged }
    }
}

#[async_trait]
impl Handler for SweepHandler {
    fn kind(&self) -> &'static str {
        SWEEP
    }

    async fn run(&self, job: &Job) -> Result<()> {
        job.repeat_at(self.registry.host().now().plus(self.every));
        let swept = self.registry.sweep(self.untagged, &mut |_| {}).await?;
        if swept.tags + swept.manifests + swept.failed > 0 {
            tracing::info!(?swept, "retention");
        }
        Ok(())
    }

    async fn given_up(&self, job: &Job) {
        job.repeat_at(self.registry.host().now().plus(self.every));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_that_are_about_a_manifest() {
        let hex = "a".repeat(64);
        assert_eq!(about(&format!("sha256-{hex}")), Some(About::Manifest(format!("sha256:{hex}"))));
        assert_eq!(about(&format!("sha256-{hex}.sig")), Some(About::Manifest(format!("sha256:{hex}"))));
        assert_eq!(about(&format!("sha512-{hex}")), Some(About::Some));
        for tag in ["1.0", "sha256-abc", "latest", &format!("sha256-{hex}x"), &format!("md5-{hex}")] {
            assert_eq!(about(tag), None, "{tag}");
        }
    }
}
