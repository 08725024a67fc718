//! What differs between the APIs of forges: where repositories are listed, how one looks, what its root folder holds, who a
//! credential is. Pure: asking is the [`client`](super::client)'s.

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A repository as a forge lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Found {
    /// The forge's own name for it, which it keeps when it is renamed.
    pub(super) id: String,
    /// Its path: owner, groups, name.
    pub(super) name: String,
    /// Where it is cloned from over https.
    pub(super) clone: String,
    /// Whether it is kept for reading only.
    pub(super) archived: bool,
    /// Changes when its files do; a time in the forge's own writing.
    pub(super) changed: String,
    /// Its default branch.
    pub(super) branch: Option<String>,
    /// Whether it is known to hold no commit.
    pub(super) empty: bool,
}

/// A page of a list of repositories.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Page {
    pub(super) repositories: Vec<Found>,
    /// Where it goes on.
    pub(super) next: Option<String>,
}

/// What is in a root folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) folder: bool,
}

/// Whom a credential stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    /// What it may do, if the body of the answer says so.
    pub(super) scopes: Option<Vec<String>>,
    pub(super) expires_at: Option<larder_core::Time>,
}

/// One kind of forge. Paths are relative to the base of the API; bodies are answers with status 200.
pub(super) trait Dialect: Send + Sync {
    /// Where the repositories of `owner` are listed: the first of these that is there. `deep`: those of its groups as well.
    fn listings(&self, owner: &str, deep: bool) -> Vec<String>;

    /// Where those of the account that asks are listed, private ones included, if that is another place.
    fn own_listing(&self) -> Option<&'static str> {
        None
    }

    /// Reads a page of a list. Where it goes on may also stand in a `Link` header.
    fn page(&self, body: &[u8]) -> Result<Page, serde_json::Error>;

    /// How long after a change another one may not show in [`Found::changed`].
    fn settles(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// Where the root folder of the default branch is listed.
    fn root(&self, repository: &Found) -> String;

    /// Reads that, and where it goes on.
    fn entries(&self, body: &[u8]) -> Result<(Vec<Entry>, Option<String>), serde_json::Error>;

    /// Where it says whom a credential stands for.
    fn whoami(&self) -> &'static str;

    /// Reads that.
    fn account(&self, body: &[u8]) -> Result<Account, serde_json::Error>;

    /// What a credential with these scopes cannot do here, for people.
    fn lacking(&self, scopes: &[String]) -> Option<String>;
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(body)
}

/// Reads a page that is an array.
pub(super) fn items<T: DeserializeOwned>(body: &[u8], found: impl Fn(T) -> Found) -> Result<Page, serde_json::Error> {
    let list: Vec<T> = parse(body)?;
    Ok(Page { repositories: list.into_iter().map(found).collect(), next: None })
}

pub(super) fn number(number: &serde_json::Number) -> String {
    number.to_string()
}
