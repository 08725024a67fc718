//! Lists of an upstream (its tags, and what is about a manifest), kept in memory as long as they are fresh. When there is
//! no fresh one to be had, an old one will do, and then what is here.

use std::sync::Arc;

use larder_core::{Digest, Kind, Time};
use larder_sources::flight::Flights;
use quick_cache::{Weighter, sync::Cache};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Failure, Origin, Proxy, Stale,
    client::{Client, Page},
    key,
};
use crate::{
    error::Refusal,
    model::{LARGEST, Listing},
    names,
};

/// How many bytes of lists are kept.
const BYTES: u64 = 16 * 1024 * 1024;

/// How many pages, and how many entries, one list has at most.
const MOST_PAGES: usize = 200;
const MOST_ENTRIES: usize = 100_000;

/// A list.
#[derive(Clone)]
pub(super) enum List {
    Tags(Arc<Vec<String>>),
    Referrers(Arc<Vec<Value>>),
}

#[derive(Clone)]
struct Entry {
    list: List,
    at: Time,
    bytes: u64,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<String, Entry> for ByBytes {
    fn weight(&self, key: &String, entry: &Entry) -> u64 {
        entry.bytes + key.len() as u64 + 200
    }
}

/// All of them.
pub(super) struct Listings {
    kept: Cache<String, Entry, ByBytes>,
    flights: Flights<List, Failure>,
}

impl Listings {
    pub(super) fn new() -> Self {
        Self { kept: Cache::with_weighter(1_000, BYTES, ByBytes), flights: Flights::default() }
    }

    pub(super) fn clear(&self) {
        self.kept.clear();
    }
}

/// What an upstream lists.
pub(crate) enum Listed<T> {
    /// The repository is our own.
    Own,
    /// This, and whether it is old.
    There(T, Option<Stale>),
    /// It cannot be asked, and never was: what is here is the next best.
    OnlyHere(Stale),
}

impl Proxy {
    /// The tags of a repository that comes from an upstream, sorted by their bytes.
    pub(crate) async fn tags(&self, name: &str) -> Result<Listed<Arc<Vec<String>>>, Refusal> {
        let Some(origin) = self.origin(name).await? else { return Ok(Listed::Own) };
        let key = key(name, "/tags");
        Ok(match self.list(name, origin, key, tags).await? {
            Listed::There(List::Tags(tags), stale) => Listed::There(tags, stale),
            Listed::OnlyHere(stale) => Listed::OnlyHere(stale),
            Listed::There(..) | Listed::Own => Listed::Own,
        })
    }

    /// What is about a manifest of a repository that comes from an upstream: descriptors, unfiltered.
    pub(crate) async fn referrers(&self, name: &str, digest: &Digest) -> Result<Listed<Arc<Vec<Value>>>, Refusal> {
        let Some(origin) = self.origin(name).await? else { return Ok(Listed::Own) };
        let (key, digest) = (key(name, &format!("/referrers/{digest}")), *digest);
        Ok(match self.list(name, origin, key, move |client, there| referrers(client, there, digest)).await? {
            Listed::There(List::Referrers(found), stale) => Listed::There(found, stale),
            Listed::OnlyHere(stale) => Listed::OnlyHere(stale),
            Listed::There(..) | Listed::Own => Listed::Own,
        })
    }

    async fn list<F, W>(&self, name: &str, origin: Origin, key: String, work: F) -> Result<Listed<List>, Refusal>
    where
        F: FnOnce(Arc<Client>, String) -> W + Send,
        W: Future<Output = Result<(List, u64), Failure>> + Send + 'static,
    {
        let kept = self.inner.listings.kept.get(&key);
        if let Some(entry) = &kept
            && self.now().since(entry.at) < origin.client.upstream.source.every
        {
            return Ok(Listed::There(entry.list.clone(), None));
        }
        let unknown = || Refusal::no_repository(name);
        if self.is_absent(&key) {
            return Err(unknown());
        }
        let is_here = origin.package.is_some();
        let (proxy, at) = (self.clone(), key.clone());
        let flight = self.inner.listings.flights.join(self.db().host(), &key, || {
            let every = origin.client.upstream.source.every;
            let listing = work(origin.client, origin.there);
            async move {
                // A flight before this one may have landed since it was looked for.
                if let Some(entry) = proxy.inner.listings.kept.get(&at)
                    && proxy.now().since(entry.at) < every
                {
                    return Ok(entry.list);
                }
                let (list, bytes) = listing.await?;
                let entry = Entry { list: list.clone(), at: proxy.now(), bytes };
                proxy.inner.listings.kept.insert(at, entry);
                Ok(list)
            }
        });
        match (flight.await, kept) {
            (Ok(list), _) => Ok(Listed::There(list, None)),
            (Err(Failure::Absent), _) => {
                self.note_absent(&key);
                self.inner.listings.kept.remove(&key);
                Err(unknown())
            }
            (Err(failure), Some(entry)) => {
                let stale = Stale { since: Some(entry.at), why: failure.text().to_owned() };
                Ok(Listed::There(entry.list, Some(stale)))
            }
            (Err(failure), None) if is_here => {
                Ok(Listed::OnlyHere(Stale { since: None, why: failure.text().to_owned() }))
            }
            (Err(failure), None) => Err(failure.refusal(name, unknown)),
        }
    }
}

#[derive(Deserialize)]
struct TagPage {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

async fn tags(client: Arc<Client>, there: String) -> Result<(List, u64), Failure> {
    let pages = pages(&client, &there, "tags/list", |bytes| {
        serde_json::from_slice::<TagPage>(bytes).ok().map(|page| page.tags.unwrap_or_default())
    });
    let mut tags = pages.await?;
    tags.retain(|tag| names::check_tag(tag).is_ok());
    tags.sort_unstable();
    tags.dedup();
    let bytes = tags.iter().map(|tag| tag.len() as u64 + 24).sum();
    Ok((List::Tags(Arc::new(tags)), bytes))
}

async fn referrers(client: Arc<Client>, there: String, digest: Digest) -> Result<(List, u64), Failure> {
    let read = |bytes: &[u8]| serde_json::from_slice::<Listing>(bytes).ok().map(|listing| listing.manifests);
    let found = match pages(&client, &there, &format!("referrers/{digest}"), read).await {
        // It does not know such lists. Clients then put them under a tag.
        Err(Failure::Absent) => match client.manifest(&there, &names::fallback_tag(&digest)).await {
            Ok(fetched) => read(&fetched.bytes).unwrap_or_default(),
            Err(Failure::Absent) => Vec::new(),
            Err(failure) => return Err(failure),
        },
        other => other?,
    };
    let found: Vec<Value> = found.into_iter().filter(|one| one.get("digest").is_some_and(Value::is_string)).collect();
    let bytes = found.iter().map(|one| one.to_string().len() as u64 + 200).sum();
    Ok((List::Referrers(Arc::new(found)), bytes))
}

/// All pages of a list.
async fn pages<T>(
    client: &Client,
    there: &str,
    path: &str,
    read: impl Fn(&[u8]) -> Option<Vec<T>>,
) -> Result<Vec<T>, Failure> {
    let odd = |what: &str| Failure::Failed(Kind::Upstream, format!("{} {what}", client.host()));
    let (mut all, mut next) = (Vec::new(), Some(Page::First(path.to_owned())));
    for _ in 0..MOST_PAGES {
        let Some(page) = next else { return Ok(all) };
        let (bytes, after) = client.page(there, &page, LARGEST as u64).await?;
        all.extend(read(&bytes).ok_or_else(|| odd("does not answer with a list"))?);
        if all.len() > MOST_ENTRIES {
            return Err(odd(&format!("lists more than {MOST_ENTRIES} entries")));
        }
        next = after;
    }
    Err(odd(&format!("lists more than {MOST_PAGES} pages")))
}
