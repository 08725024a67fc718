//! Usage: what each repository needs of the store, what it shares with others, what would be free without a tag, and how
//! much a quota leaves. Every sum is made by the database when it is asked for.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use larder_core::{Digest, Error, Id, Result, Time, pattern::Pattern};
use larder_db::{
    edges::{self, Edge},
    packages,
    usage::{self, Names},
};
use serde::Serialize;

use crate::{
    ID, MANIFEST, Registry,
    error::{Code, Refusal},
};

/// How many rows are read at once.
const PAGE: i64 = 500;

/// How many manifests may follow one.
const LARGEST_FAMILY: usize = 10_000;

/// How long a sum for a quota is believed.
const BELIEVED: Duration = Duration::from_secs(5);

/// What a repository has and needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RepositoryUsage {
    /// The repository.
    pub name: String,
    /// Its tags.
    pub tags: u64,
    /// Its manifests.
    pub manifests: u64,
    /// Those that nothing refers to: no tag, no index, and they are about nothing that is here.
    pub untagged: u64,
    /// Bytes of all blobs that its manifests need, each once.
    pub bytes: u64,
    /// Bytes of those that nobody else needs.
    pub unique: u64,
    /// Bytes of those that others need too.
    pub shared: u64,
    /// Bytes that were pushed or mounted, and that no manifest needs yet.
    pub pending: u64,
}

/// What would be free without a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Freed {
    /// The manifest that the tag names.
    pub digest: String,
    /// Bytes of the blobs that nobody else needs.
    pub bytes: u64,
    /// The manifests that would go, by digest.
    pub manifests: Vec<String>,
    /// Why nothing would go, for people.
    pub kept: Option<String>,
}

impl Registry {
    /// What the repositories of a pattern have and need, by name, and the bytes of all of them, each blob counted once; those
    /// only if they can be counted for this pattern.
    pub async fn usage(
        &self,
        wanted: &Pattern,
        report: &mut (dyn FnMut(RepositoryUsage) + Send),
    ) -> Result<Option<u64>> {
        let now = self.host().now();
        let mut after = String::new();
        loop {
            let page = packages::list(&self.db, ID, &after, PAGE).await?;
            let Some(last) = page.last() else { break };
            last.name.clone_into(&mut after);
            for package in page.into_iter().filter(|package| wanted.matches(&package.name)) {
                let found = usage::of_package(&self.db, package.id, now).await?;
                report(RepositoryUsage {
                    name: package.name,
                    tags: found.pointers,
                    manifests: found.versions,
                    untagged: found.orphans,
                    bytes: found.bytes,
                    unique: found.unique,
                    shared: found.bytes - found.unique,
                    pending: found.leased,
                });
            }
        }
        match names(wanted) {
            Some(names) => Ok(Some(usage::of_names(&self.db, ID, &names, now).await?)),
            None => Ok(None),
        }
    }

    /// What would be free if a tag went, and then, after the time that untagged manifests are kept, what it named.
    pub async fn frees(&self, name: &str, tag: &str) -> Result<Freed> {
        let package = packages::find(&self.db, ID, name).await?;
        let package = package.ok_or_else(|| Error::not_found(format!("there is no repository `{name}`")))?;
        let version = packages::by_pointer(&self.db, package.id, tag, MANIFEST).await?;
        let version = version.ok_or_else(|| Error::not_found(format!("`{name}` has no tag `{tag}`")))?;
        let digest = version.reference;
        if let Some(kept) = self.kept_without(package.id, version.id, &digest, tag).await? {
            return Ok(Freed { digest, bytes: 0, manifests: Vec::new(), kept: Some(kept) });
        }
        let family = self.family(package.id, version.id, &digest).await?;
        let mut needs: HashMap<_, (u64, u64)> = HashMap::new();
        for (id, _) in &family {
            for (blob, everywhere) in usage::of_version(&self.db, *id).await? {
                let (_, others) = needs.entry(blob.digest).or_insert((blob.size, everywhere));
                *others = others.saturating_sub(1);
            }
        }
        let bytes = needs.values().filter(|(_, others)| *others == 0).map(|(size, _)| size).sum();
        let manifests = family.into_iter().map(|(_, reference)| reference).collect();
        Ok(Freed { digest, bytes, manifests, kept: None })
    }

    /// What refers to a manifest beside one tag.
    async fn kept_without(&self, package: Id, version: Id, reference: &str, tag: &str) -> Result<Option<String>> {
        let tags = packages::pointers_to(&self.db, version).await?;
        if let Some(other) = tags.iter().find(|other| other.as_str() != tag) {
            return Ok(Some(format!("the tag `{other}` names it too")));
        }
        if let Some(whole) = edges::parents(&self.db, package, reference, Edge::Part, 1).await?.pop() {
            return Ok(Some(format!("{whole} consists of it")));
        }
        Ok(self.subject_of(package, version).await?.map(|subject| format!("it is about {subject}")))
    }

    /// The manifest that one is about, if it is here.
    async fn subject_of(&self, package: Id, version: Id) -> Result<Option<String>> {
        for (edge, reference) in edges::of_version(&self.db, version).await? {
            if edge == Edge::Subject
                && !packages::by_reference(&self.db, package, &reference, MANIFEST).await?.is_empty()
            {
                return Ok(Some(reference));
            }
        }
        Ok(None)
    }

    /// A manifest, and all that goes with it: what it alone consists of, and what is about any of them.
    pub(crate) async fn family(&self, package: Id, version: Id, reference: &str) -> Result<Vec<(Id, String)>> {
        let mut family = vec![(version, reference.to_owned())];
        let mut known: HashSet<String> = HashSet::from([reference.to_owned()]);
        let mut looked_at = 0;
        // What is not free yet may be when more of the others are known to go.
        let mut shared: Vec<(Id, String)> = Vec::new();
        while let Some((id, reference)) = family.get(looked_at).cloned() {
            looked_at += 1;
            let mut candidates = std::mem::take(&mut shared);
            candidates.extend(self.relatives(package, id, &reference).await?);
            for (id, reference) in candidates {
                if known.contains(&reference) {
                    continue;
                }
                if self.is_free(package, id, &reference, &known).await? {
                    known.insert(reference.clone());
                    family.push((id, reference));
                } else {
                    shared.push((id, reference));
                }
            }
            if family.len() > LARGEST_FAMILY {
                return Err(Error::new(
                    larder_core::Kind::TooLarge,
                    format!("more than {LARGEST_FAMILY} manifests belong to {reference}: too many to foresee"),
                ));
            }
        }
        Ok(family)
    }

    /// What a manifest consists of, and what is about it.
    async fn relatives(&self, package: Id, id: Id, reference: &str) -> Result<Vec<(Id, String)>> {
        let mut found = Vec::new();
        for (edge, part) in edges::of_version(&self.db, id).await? {
            if edge == Edge::Part {
                let versions = packages::by_reference(&self.db, package, &part, MANIFEST).await?;
                found.extend(versions.into_iter().map(|version| (version.id, version.reference)));
            }
        }
        let mut after = String::new();
        loop {
            let page = edges::about(&self.db, package, reference, &after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(found) };
            after = last.id.to_string();
            found.extend(page.into_iter().map(|about| (about.id, about.reference)));
            if found.len() > LARGEST_FAMILY {
                return Ok(found);
            }
        }
    }

    /// Whether nothing refers to a manifest but those that go.
    async fn is_free(&self, package: Id, id: Id, reference: &str, going: &HashSet<String>) -> Result<bool> {
        if !packages::pointers_to(&self.db, id).await?.is_empty() {
            return Ok(false);
        }
        let wholes = edges::parents(&self.db, package, reference, Edge::Part, PAGE).await?;
        if wholes.iter().any(|whole| !going.contains(whole)) {
            return Ok(false);
        }
        Ok(self.subject_of(package, id).await?.is_none_or(|subject| going.contains(&subject)))
    }

    /// Lets a blob come to a repository if that stays within the quota; it counts from now on, and until what is given is
    /// dropped it counts although the database does not know of it. One that the repositories of the quota have already
    /// needs nothing more; without a digest the blob is believed to be new.
    pub async fn check_quota(&self, name: &str, digest: Option<&Digest>, size: u64) -> Result<Reserved, Refusal> {
        let policies = self.policies().await?;
        let Some((pattern, quota)) = policies.quota_of(name) else { return Ok(Reserved::default()) };
        let now = self.host().now();
        if let Ok(reserved) = self.quotas.reserve(pattern, size, quota, now) {
            return Ok(reserved);
        }
        let names = names(pattern).ok_or_else(|| Error::internal("counting a quota", pattern.to_string()))?;
        if let Some(digest) = digest
            && usage::have(&self.db, ID, &names, digest, now).await?
        {
            return Ok(Reserved::default());
        }
        // Nobody is refused for what is gone already.
        let since = self.quotas.begin_count(pattern);
        let counted = usage::of_names(&self.db, ID, &names, now).await?;
        self.quotas.end_count(pattern, counted, since, now);
        self.quotas.reserve(pattern, size, quota, now).map_err(|used| {
            Refusal::new(
                Code::Denied,
                format!(
                    "quota exceeded: the repositories `{pattern}` may have {quota} bytes together, they have {used}, and \
                     this needs {size} more"
                ),
                format!(
                    "delete what is not needed (`larder oci usage '{pattern}'` shows where it is), or allow more with \
                     `larder oci policy set '{pattern}' --quota SIZE`"
                ),
            )
        })
    }
}

/// The sums of the patterns that have a quota: what was counted, and what this process has let in since. Several servers
/// do not know of what the others let in within the same seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quotas(Arc<Mutex<HashMap<Pattern, Sum>>>);

/// A sum, as far as this process knows.
#[derive(Debug, Default)]
struct Sum {
    /// What the database had, and when; `None` before the first count.
    counted: Option<(u64, Time)>,
    /// What was let in, and is on its way into the database.
    coming: u64,
    /// What came since the last count began, each with its place in the order of events.
    came: Vec<(u64, u64)>,
    /// The place of the next event.
    next: u64,
}

impl Sum {
    fn total(&self, counted: u64) -> u64 {
        self.came.iter().fold(counted.saturating_add(self.coming), |sum, (_, size)| sum.saturating_add(*size))
    }
}

impl Quotas {
    /// Counts `size` more, if that stays within `quota`. Otherwise gives the sum, of which nobody should be sure.
    fn reserve(&self, pattern: &Pattern, size: u64, quota: u64, now: Time) -> Result<Reserved, u64> {
        let mut sums = self.lock();
        let sum = sums.entry(pattern.clone()).or_default();
        let Some((counted, _)) = sum.counted.filter(|(_, at)| now.since(*at) < BELIEVED) else { return Err(0) };
        let used = sum.total(counted);
        if used.saturating_add(size) > quota {
            return Err(used);
        }
        sum.coming += size;
        Ok(Reserved(Some((self.clone(), pattern.clone(), size))))
    }

    fn begin_count(&self, pattern: &Pattern) -> u64 {
        let mut sums = self.lock();
        let sum = sums.entry(pattern.clone()).or_default();
        sum.next += 1;
        sum.next
    }

    /// What came before the count began is in it.
    fn end_count(&self, pattern: &Pattern, counted: u64, since: u64, now: Time) {
        let mut sums = self.lock();
        let sum = sums.entry(pattern.clone()).or_default();
        sum.counted = Some((counted, now));
        sum.came.retain(|(place, _)| *place >= since);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Pattern, Sum>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that were let in and are on their way. Dropped, they are there, or will never be; the next count tells.
#[derive(Debug, Default)]
#[must_use = "what was let in counts until the database knows of it"]
pub struct Reserved(Option<(Quotas, Pattern, u64)>);

impl Reserved {
    /// It does not come.
    pub(crate) fn cancel(mut self) {
        if let Some((quotas, pattern, size)) = self.0.take() {
            let mut sums = quotas.lock();
            let sum = sums.entry(pattern).or_default();
            sum.coming = sum.coming.saturating_sub(size);
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some((quotas, pattern, size)) = self.0.take() else { return };
        let mut sums = quotas.lock();
        let sum = sums.entry(pattern).or_default();
        sum.coming = sum.coming.saturating_sub(size);
        sum.came.push((sum.next, size));
    }
}

/// A pattern for the database. One with both sorts of stars it could not tell exactly.
pub(crate) fn names(pattern: &Pattern) -> Option<Names> {
    if pattern.is_everything() {
        return Some(Names { like: "%".to_owned(), slashes: None });
    }
    let text = pattern.as_str().replace('~', "~~").replace('_', "~_");
    if text.contains("**") {
        let like = text.replace("**", "%");
        return (!like.contains('*')).then_some(Names { like, slashes: None });
    }
    // With as many slashes as the pattern has, no star can have crossed one.
    let slashes = text.bytes().filter(|byte| *byte == b'/').count();
    Some(Names { like: text.replace('*', "%"), slashes: Some(u32::try_from(slashes).ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_for_the_database() {
        let read = |text: &str| names(&text.parse().unwrap()).map(|names| (names.like, names.slashes));
        let like = |text: &str, slashes| Some((text.to_owned(), slashes));
        assert_eq!(read("*"), like("%", None));
        assert_eq!(read("acme/*"), like("acme/%", Some(1)));
        assert_eq!(read("acme/**"), like("acme/%", None));
        assert_eq!(read("a_b/*-x"), like("a~_b/%-x", Some(1)));
        assert_eq!(read("acme/app"), like("acme/app", Some(1)));
        assert_eq!(read("a/*/b**"), None);
    }
}
