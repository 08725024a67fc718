//! What is in memory: manifests, lists of tags, and which blobs a repository has, by the path that clients ask for.
//!
//! Everything of a repository goes stale together, by one flag that its entries share. The flag is taken before the
//! database is read, so that what was read before a change is never believed after it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use larder_core::Digest;
use larder_http::{Document, File};
use quick_cache::{Weighter, sync::Cache};

use crate::served::Served;

/// How many bytes are kept in all.
const BYTES: u64 = 32 * 1024 * 1024;

/// The largest manifest that is kept here; the blobs behind it keep larger ones.
pub(crate) const LARGEST: usize = 256 * 1024;

/// How many repositories are told apart; with more of them all are forgotten at once.
const REPOSITORIES: usize = 10_000;

/// A blob that a manifest of the repository needs.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    pub(crate) file: File,
}

/// The tags of a repository.
#[derive(Debug)]
pub(crate) struct Tags {
    /// Sorted.
    pub(crate) names: Vec<String>,
    /// The answer with all of them, once somebody asked for that.
    pub(crate) whole: OnceLock<Document>,
}

/// One thing that is kept.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    Manifest(Arc<Served>),
    Tags(Arc<Tags>),
    Layer(Arc<Layer>),
}

/// Whether what was read is still true.
#[derive(Clone, Debug)]
pub(crate) struct Flag(Arc<AtomicBool>);

#[derive(Clone)]
struct Entry {
    kept: Kept,
    stale: Flag,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<String, Entry> for ByBytes {
    fn weight(&self, key: &String, entry: &Entry) -> u64 {
        let bytes = match &entry.kept {
            Kept::Manifest(served) => served.bytes.len() + 500,
            Kept::Tags(tags) => tags.names.iter().map(|tag| 2 * tag.len() + 30).sum(),
            Kept::Layer(_) => 500,
        };
        (bytes + key.len() + 100) as u64
    }
}

/// All of it.
pub(crate) struct Shelf {
    kept: Cache<String, Entry, ByBytes>,
    flags: Mutex<HashMap<String, Flag>>,
}

impl Shelf {
    pub(crate) fn new() -> Self {
        Self { kept: Cache::with_weighter(10_000, BYTES, ByBytes), flags: Mutex::default() }
    }

    /// What is kept under a path and still true.
    pub(crate) fn get(&self, path: &str) -> Option<Kept> {
        let entry = self.kept.get(path)?;
        (!entry.stale.0.load(Ordering::Acquire)).then_some(entry.kept)
    }

    /// The flag of a repository. Take it before reading what is to be kept.
    pub(crate) fn flag(&self, name: &str) -> Flag {
        let mut flags = self.flags.lock().unwrap_or_else(PoisonError::into_inner);
        if flags.len() >= REPOSITORIES && !flags.contains_key(name) {
            // Of a repository that is not there nothing was kept: asking for many of them makes nobody else wait.
            flags.retain(|_, flag| Arc::strong_count(&flag.0) > 1);
        }
        if flags.len() >= REPOSITORIES && !flags.contains_key(name) {
            flags.drain().for_each(|(_, flag)| flag.0.store(true, Ordering::Release));
        }
        flags.entry(name.to_owned()).or_insert_with(|| Flag(Arc::default())).clone()
    }

    /// Keeps something that was read after `flag` was taken.
    pub(crate) fn keep(&self, path: &str, kept: Kept, flag: Flag) {
        if !flag.0.load(Ordering::Acquire) {
            self.kept.insert(path.to_owned(), Entry { kept, stale: flag });
        }
    }

    /// Forgets one path.
    pub(crate) fn drop_path(&self, path: &str) {
        self.kept.remove(path);
    }

    /// Everything of a repository is stale.
    pub(crate) fn forget(&self, name: &str) {
        let flag = self.flags.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(flag) = flag {
            flag.0.store(true, Ordering::Release);
        }
    }

    /// Everything is stale.
    pub(crate) fn clear(&self) {
        let mut flags = self.flags.lock().unwrap_or_else(PoisonError::into_inner);
        flags.drain().for_each(|(_, flag)| flag.0.store(true, Ordering::Release));
        drop(flags);
        self.kept.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags() -> Kept {
        Kept::Tags(Arc::new(Tags { names: vec!["1".to_owned()], whole: OnceLock::new() }))
    }

    #[test]
    fn a_change_makes_everything_of_its_repository_stale_and_nothing_else() {
        let shelf = Shelf::new();
        shelf.keep("a/tags/list", tags(), shelf.flag("a"));
        shelf.keep("b/tags/list", tags(), shelf.flag("b"));
        shelf.forget("a");
        assert!(shelf.get("a/tags/list").is_none());
        assert!(shelf.get("b/tags/list").is_some());
        shelf.clear();
        assert!(shelf.get("b/tags/list").is_none());
    }

    #[test]
    fn names_that_nothing_is_kept_for_drive_out_nothing() {
        let shelf = Shelf::new();
        shelf.keep("a/tags/list", tags(), shelf.flag("a"));
        for n in 0..3 * REPOSITORIES {
            drop(shelf.flag(&format!("invented-{n}")));
        }
        assert!(shelf.get("a/tags/list").is_some());
        shelf.forget("a");
        assert!(shelf.get("a/tags/list").is_none());
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let shelf = Shelf::new();
        let before = shelf.flag("a");
        shelf.forget("a");
        shelf.keep("a/tags/list", tags(), before);
        assert!(shelf.get("a/tags/list").is_none());
        shelf.keep("a/tags/list", tags(), shelf.flag("a"));
        assert!(shelf.get("a/tags/list").is_some());
    }
}
