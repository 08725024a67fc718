//! Forges: hosts of many Git repositories, with an API that lists them. A source of this kind is an organisation, a group,
//! a workspace or a user there; its sync is a [discovery](Forges::discover), which makes each repository that holds
//! packages a Git source of its own, and keeps up with what is added, archived, renamed and removed. Here is how one is
//! added and removed; nothing here reads packages.

mod account;
mod bitbucket;
mod client;
mod dialect;
mod discovery;
mod gitea;
mod github;
mod gitlab;
mod repositories;

use std::{sync::Arc, time::Duration};

use larder_core::{Error, Kind, Result, grant::check_name, pattern::Pattern};
use larder_db::{
    credentials as credential_rows,
    credentials::Credential,
    events::Actor,
    sources::{self as rows, Source, SourceState},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;

pub use self::{account::Standing, client::RateLimit, discovery::Discovery};
use self::{
    client::Api,
    dialect::{Account, Dialect, Found, Page},
};
use crate::{
    Sources,
    credentials::{self, CredentialKind},
    fetch::{self, Fetch, Secret},
    manage::KeptFiles,
    settings::GitSettings,
};

/// How often a forge is asked for its repositories if nobody says otherwise.
pub const EVERY: Duration = Duration::from_secs(3_600);

/// The shortest time between two scheduled discoveries.
const SHORTEST: Duration = Duration::from_secs(5 * 60);

/// A kind of forge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForgeKind {
    /// GitHub, and GitHub Enterprise.
    Github,
    /// GitLab.
    Gitlab,
    /// Bitbucket Cloud.
    Bitbucket,
    /// Gitea and Forgejo.
    Gitea,
}

impl ForgeKind {
    /// Every kind with its word, which is also that of its credentials.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::Github, "github"), (Self::Gitlab, "gitlab"), (Self::Bitbucket, "bitbucket"), (Self::Gitea, "gitea")];

    /// The kind of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == word).map(|(kind, _)| *kind)
    }

    /// The kind of a source; `None` if it is no forge.
    pub fn of(source: &Source) -> Option<Self> {
        Self::parse(&source.kind)
    }

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Bitbucket => "bitbucket",
            Self::Gitea => "gitea",
        }
    }

    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Github => "GitHub",
            Self::Gitlab => "GitLab",
            Self::Bitbucket => "Bitbucket",
            Self::Gitea => "Gitea",
        }
    }

    fn credential(self) -> CredentialKind {
        match self {
            Self::Github => CredentialKind::Github,
            Self::Gitlab => CredentialKind::Gitlab,
            Self::Bitbucket => CredentialKind::Bitbucket,
            Self::Gitea => CredentialKind::Gitea,
        }
    }

    /// Where the API of the one is that everybody knows.
    fn usual_api(self) -> Option<&'static str> {
        match self {
            Self::Github => Some("https://api.github.com/"),
            Self::Gitlab => Some("https://gitlab.com/api/v4/"),
            Self::Bitbucket => Some("https://api.bitbucket.org/2.0/"),
            Self::Gitea => None,
        }
    }

    /// Where the API is on a host of one's own.
    fn own_api(self) -> &'static str {
        match self {
            Self::Github => "/api/v3/",
            Self::Gitlab => "/api/v4/",
            Self::Bitbucket => "/2.0/",
            Self::Gitea => "/api/v1/",
        }
    }

    fn dialect(self) -> &'static dyn Dialect {
        match self {
            Self::Github => &github::Github,
            Self::Gitlab => &gitlab::Gitlab,
            Self::Bitbucket => &bitbucket::Bitbucket,
            Self::Gitea => &gitea::Gitea,
        }
    }
}

/// A forge that is about to be added.
#[derive(Clone, Debug)]
pub struct NewForge<'a> {
    /// Which kind of forge it is.
    pub kind: ForgeKind,
    /// Which repositories: `acme/*`, `acme/lib-*`, `acme/**`, or `acme` for all of them.
    pub wanted: &'a str,
    /// Where its API is; the one that everybody knows without one.
    pub api: Option<&'a str>,
    /// What people call it.
    pub name: Option<&'a str>,
    /// The name of the credential that opens it and its repositories.
    pub credential: Option<&'a str>,
    /// How often it is asked for its repositories.
    pub every: Duration,
    /// How often each repository is looked at.
    pub repositories_every: Duration,
    /// The rest, for each repository.
    pub repositories: GitSettings,
}

/// What only a forge knows, as its row keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgeSettings {
    /// Organisation, group with its path, workspace or user.
    pub owner: String,
    /// Which of its repositories.
    pub pattern: Pattern,
    /// How often each of them is looked at, in seconds.
    pub repositories_every: u64,
    /// The rest, for each of them.
    pub repositories: GitSettings,
}

impl ForgeSettings {
    /// Reads what a row keeps.
    pub fn read(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| Error::internal("reading the settings of a forge", error))
    }

    /// Reads what a person wrote.
    fn wanted(kind: ForgeKind, text: &str) -> Result<(String, Pattern)> {
        let refuse = || {
            let deep = if kind == ForgeKind::Gitlab { ", or acme/** with the groups in it" } else { "" };
            Error::invalid(format!(
                "`{text}` names no repositories: write acme/* for all of an organisation or a user, acme/lib-* for some{deep}"
            ))
        };
        let text = text.trim_matches('/');
        let text = if text.contains(['/', '*']) { text.to_owned() } else { format!("{text}/*") };
        let fixed = text.split_once('*').map_or(text.as_str(), |(before, _)| before);
        let owner = fixed.rsplit_once('/').map(|(owner, _)| owner).filter(|owner| is_path(owner)).ok_or_else(refuse)?;
        if owner.contains('/') && kind != ForgeKind::Gitlab {
            return Err(refuse());
        }
        // Forges tell no difference between upper and lower case.
        Ok((owner.to_owned(), text.to_ascii_lowercase().parse().map_err(|_| refuse())?))
    }

    /// Whether the repository with this path is wanted.
    fn wants(&self, path: &str) -> bool {
        self.pattern.matches(&path.to_ascii_lowercase())
    }

    /// Whether those in the groups of a group may be wanted.
    fn is_deep(&self) -> bool {
        let below = self.pattern.as_str().get(self.owner.len() + 1..).unwrap_or_default();
        below.contains("**") || below.contains('/')
    }
}

/// Whether a text is the path of an owner or a repository, as every forge writes them.
fn is_path(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-+~".contains(&b);
    !text.is_empty()
        && text.len() <= 255
        && text.split('/').all(|segment| !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed))
}

/// Everything about forges. Cheap to clone.
#[derive(Clone)]
pub struct Forges {
    sources: Sources,
    fetch: Arc<dyn Fetch>,
}

impl Forges {
    /// Over the sources that repositories become, and the way to the outside.
    pub fn new(sources: Sources, fetch: Arc<dyn Fetch>) -> Self {
        Self { sources, fetch }
    }

    /// The sources.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Adds a forge; its first discovery is the caller's to ask for.
    pub async fn add(&self, actor: &Actor, new: NewForge<'_>) -> Result<Source> {
        let (kind, db) = (new.kind, &self.sources.db);
        let (owner, pattern) = ForgeSettings::wanted(kind, new.wanted)?;
        let api = self.api_url(kind, new.api)?;
        check_times(new.every, new.repositories_every)?;
        let usual = format!("{}-{}", kind.word(), owner.replace('/', "-"));
        let name = check_name(new.name.unwrap_or(&usual))
            .map_err(|error| Error::invalid(format!("{error}. Give the source a name of your own with --name")))?;
        let credential = match new.credential {
            Some(name) => Some(credentials::find(db, name).await?),
            None => None,
        };
        if let Some(credential) = &credential {
            check_credential(kind, credential)?;
            credentials::bind_to_host(db, &self.sources.vault, actor, credential, &clone_origin(kind, &api)).await?;
        }
        let settings = ForgeSettings {
            owner,
            pattern,
            repositories_every: new.repositories_every.as_secs(),
            repositories: new.repositories,
        };
        let source = Source {
            id: db.host().new_id(),
            name: name.to_owned(),
            kind: kind.word().to_owned(),
            url: api.to_string(),
            credential_id: credential.as_ref().map(|credential| credential.id),
            every: new.every,
            settings: json!(settings).to_string(),
            created_at: db.host().now(),
            state: SourceState::New,
            problem: None,
            synced_at: None,
            report: None,
            position: None,
            parent_id: None,
            archived: false,
        };
        let detail = json!({
            "repositories": settings.pattern, "credential": credential.map(|credential| credential.name),
        });
        self.sources.insert(actor, &source, detail, None).await?;
        Ok(source)
    }

    /// The base of an API as a person wrote it, ending in a slash. A host alone stands for the usual place on it.
    fn api_url(&self, kind: ForgeKind, text: Option<&str>) -> Result<Url> {
        let text = text.or(kind.usual_api()).ok_or_else(|| {
            Error::invalid(format!(
                "say where {} is: --api https://git.example.org{}",
                kind.title(),
                kind.own_api().trim_end_matches('/')
            ))
        })?;
        let mut url = fetch::address(text)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(Error::invalid("the address of an API has no query and no fragment: write https://host/path"));
        }
        if url.scheme() != "https" && !self.sources.allow_local {
            return Err(Error::invalid(format!(
                "{} is not encrypted: use https, or set LARDER_ALLOW_LOCAL_SOURCES=true to permit it, and private addresses",
                fetch::shown(&url)
            )));
        }
        // `api.` in front of a host says already what it is.
        let bare = url.path() == "/" && !url.host_str().unwrap_or_default().starts_with("api.");
        if bare {
            url.set_path(kind.own_api());
        } else if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        Ok(url)
    }

    /// Begins to speak with the forge that a source is.
    async fn api(&self, source: &Source, kind: ForgeKind) -> Result<(Api, Option<String>)> {
        let sources = &self.sources;
        let base = self.api_url(kind, Some(&source.url))?;
        let credential = match source.credential_id {
            None => None,
            Some(id) => Some(credential_rows::find(&sources.db, &id.to_string()).await?.ok_or_else(|| {
                Error::not_found(format!("the credential of the source `{}` is not there any more", source.name))
            })?),
        };
        let secret = credential.as_ref().map(|credential| self.secret(credential, &base)).transpose()?;
        let api = Api::new(sources.db.clone(), Arc::clone(&self.fetch), kind, base, secret);
        Ok((api, credential.map(|credential| credential.name)))
    }

    fn secret(&self, credential: &Credential, base: &Url) -> Result<Secret> {
        let origin = fetch::origin(base);
        let authorization = credentials::open_for_api(&self.sources.vault, credential, &origin)?;
        Ok(Secret { origin, authorization })
    }

    /// The sources that a forge found.
    pub async fn children(&self, forge: &Source) -> Result<Vec<Source>> {
        let all = rows::list(&self.sources.db).await?;
        Ok(all.into_iter().filter(|source| source.parent_id == Some(forge.id)).collect())
    }

    /// Takes a source away. Of a forge that found others, `repositories` says what becomes of these: gone with all their
    /// packages, or sources of their own from now on. Without a word nothing is done.
    pub async fn remove(
        &self,
        actor: &Actor,
        name_or_id: &str,
        repositories: Option<Orphans>,
        files: KeptFiles,
    ) -> Result<Source> {
        let source = self.sources.find(name_or_id).await?;
        let children = if ForgeKind::of(&source).is_some() { self.children(&source).await? } else { Vec::new() };
        if repositories.is_none() && !children.is_empty() {
            return Err(Error::conflict(format!(
                "`{}` found {} repositories, which are sources here: remove them and their packages with it by --with-repositories, or keep them as sources of their own by --keep-repositories",
                source.name,
                children.len()
            )));
        }
        if repositories == Some(Orphans::Remove) {
            for child in &children {
                match self.sources.remove(actor, &child.id.to_string(), files).await {
                    // Somebody else was faster.
                    Err(error) if error.kind() == Kind::NotFound => {}
                    other => drop(other?),
                }
            }
        }
        self.sources.remove(actor, &source.id.to_string(), files).await
    }
}

/// What becomes of the repositories of a forge that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphans {
    /// They go as well, with their packages.
    Remove,
    /// They stay, as if somebody had added them one by one.
    Keep,
}

/// Refuses a credential that the API of a forge would not know.
pub(crate) fn check_credential(kind: ForgeKind, credential: &Credential) -> Result<()> {
    if CredentialKind::parse(&credential.kind)? == kind.credential() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the API of {} wants a credential of its own kind, and `{}` is of the kind {}: add one with `larder credential add NAME --kind {}`",
        kind.title(),
        credential.name,
        credential.kind,
        kind.word()
    )))
}

/// Refuses to ask a forge, or for what is in its repositories, all the time.
pub(crate) fn check_times(every: Duration, repositories_every: Duration) -> Result<()> {
    if every < SHORTEST || repositories_every < Duration::from_secs(60) {
        return Err(Error::invalid(
            "a forge is asked for its repositories every 5 minutes at most, and each of them is looked at every minute at most",
        ));
    }
    Ok(())
}

/// The one host that the repositories of a forge are cloned from. What its API says of other hosts is not believed.
pub(crate) fn clone_origin(kind: ForgeKind, api: &Url) -> String {
    let origin = fetch::origin(api);
    credentials::other_host(kind.credential(), &origin).unwrap_or(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(kind: ForgeKind, text: &str) -> Result<ForgeSettings> {
        let (owner, pattern) = ForgeSettings::wanted(kind, text)?;
        Ok(ForgeSettings { owner, pattern, repositories_every: 1, repositories: GitSettings::default() })
    }

    #[test]
    fn what_people_want() {
        use ForgeKind::{Bitbucket, Gitea, Github, Gitlab};
        for (kind, text, owner, deep, yes, no) in [
            (Github, "acme/*", "acme", false, "Acme/Lib", "other/lib"),
            (Github, "acme", "acme", false, "acme/lib", "acme2/lib"),
            (Bitbucket, "Acme/lib-*", "Acme", false, "acme/lib-x", "acme/app"),
            (Gitea, "acme/lib", "acme", false, "acme/lib", "acme/lib2"),
            (Gitlab, "acme/*", "acme", false, "acme/lib", "acme/team/lib"),
            (Gitlab, "acme/**", "acme", true, "acme/team/lib", "other/lib"),
            (Gitlab, "acme/team/*", "acme/team", false, "acme/team/lib", "acme/lib"),
            (Gitlab, "acme/*/lib-*", "acme", true, "acme/team/lib-x", "acme/lib-x"),
        ] {
            let settings = settings(kind, text).unwrap();
            assert_eq!((settings.owner.as_str(), settings.is_deep()), (owner, deep), "{text}");
            assert!(settings.wants(yes) && !settings.wants(no), "{text}");
        }
        for (kind, text) in [
            (Github, ""),
            (Github, "*"),
            (Github, "*/lib"),
            (Github, "a*/lib"),
            (Github, "acme/team/*"),
            (Gitlab, "acme/../x/*"),
        ] {
            assert!(settings(kind, text).is_err(), "{text}");
        }
    }

    #[test]
    fn repositories_are_where_their_forge_is() {
        for (kind, api, clone) in [
            (ForgeKind::Github, "https://api.github.com/", "github.com"),
            (ForgeKind::Github, "https://api.acme.ghe.com/", "acme.ghe.com"),
            (ForgeKind::Github, "https://git.example.org:8443/api/v3/", "git.example.org:8443"),
            (ForgeKind::Gitlab, "https://gitlab.com/api/v4/", "gitlab.com"),
            (ForgeKind::Bitbucket, "https://api.bitbucket.org/2.0/", "bitbucket.org"),
            (ForgeKind::Gitea, "http://git.example.org/api/v1/", "git.example.org:80"),
        ] {
            assert_eq!(clone_origin(kind, &Url::parse(api).unwrap()), clone, "{api}");
        }
    }
}
