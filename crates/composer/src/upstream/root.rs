//! What the root file of an upstream (`packages.json`) says: where its packages are, and which it has.

use url::Url;

use crate::entry::Entry;

/// What an upstream says of itself.
#[derive(Debug)]
pub(super) struct Root {
    /// Where it tells what has changed, if it does.
    pub(super) changes: Option<Url>,
    /// Where it tells advisories, if it does.
    pub(super) advisories: Option<Url>,
    /// Where it wants to hear of installs, if it does (`notify-batch`).
    pub(super) notify: Option<Url>,
    /// Where it lists the names of its packages, if it does.
    pub(super) list: Option<Url>,
}

impl Root {
    /// Whether it has a package: `Some(false)` is certain and needs no request, `None` means that it has to be asked.
    pub(super) fn offers(&self, _name: &str) -> Option<bool> {
        None
    }

    /// Every name that it has, in small letters, sorted; `None` if it does not tell (or tells only patterns).
    pub(super) fn names(&self) -> Option<Vec<&str>> {
        None
    }

    /// Where the dist of a version can be had, best first: preferred mirrors, its own address, other mirrors. Absolute,
    /// placeholders filled in. Empty if the version has no dist.
    pub(super) fn dist_addresses(&self, _version: &Entry) -> Vec<String> {
        Vec::new()
    }
}
