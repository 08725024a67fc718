//! Adding, listing and removing sources: the operations behind the command line, and later the API and the panel.

use std::time::Duration;

use larder_core::{Error, Kind, Result, grant::check_name};
use larder_db::{
    Batch, Statement, changes, credentials as credential_rows, events,
    events::{Actor, Event},
    packages,
    sources::{self as rows, Source, SourceState},
};
use serde_json::{Value, json};

use crate::{
    Sources, credentials,
    folders::Folders,
    git::Remote,
    registry,
    settings::GitSettings,
    url::{GitUrl, Transport},
};

/// The kind of a source that is a Git repository.
pub const GIT: &str = "git";

/// The shortest time between two scheduled looks at a source.
const SHORTEST: Duration = Duration::from_secs(60);

/// A Git source that is about to be added.
#[derive(Clone, Debug)]
pub struct NewGitSource<'a> {
    /// Where it is.
    pub url: &'a str,
    /// What people call it; the repository's own name without one.
    pub name: Option<&'a str>,
    /// The name of the credential that opens it.
    pub credential: Option<&'a str>,
    /// How often it is looked at.
    pub every: Duration,
    /// The rest.
    pub settings: GitSettings,
}

impl Sources {
    /// Adds a Git source; its first sync is the caller's to ask for.
    pub async fn add_git(&self, actor: &Actor, new: NewGitSource<'_>) -> Result<Source> {
        let url = GitUrl::parse(new.url)?;
        self.allow(&url)?;
        Folders::check(&new.settings.packages)?;
        if new.every < SHORTEST {
            return Err(Error::invalid("a source is looked at every minute at most: give --every 1m or longer"));
        }
        let name = check_name(new.name.unwrap_or_else(|| url.short_name()))
            .map_err(|error| Error::invalid(format!("{error}. Give the source a name of your own with --name")))?;
        let credential = match new.credential {
            Some(name) => Some(credentials::find(&self.db, name).await?),
            None => None,
        };
        if let Some(credential) = &credential {
            if url.transport() == Transport::Http && !self.allow_local {
                return Err(Error::invalid(format!(
                    "`{}` would travel unencrypted to {url}: use https",
                    credential.name
                )));
            }
            credentials::bind(&self.db, &self.vault, actor, credential, &url).await?;
        }
        let host = self.db.host();
        let source = Source {
            id: host.new_id(),
            name: name.to_owned(),
            kind: GIT.to_owned(),
            url: url.as_str().to_owned(),
            credential_id: credential.as_ref().map(|credential| credential.id),
            every: new.every,
            settings: new.settings.write(),
            created_at: host.now(),
            state: SourceState::New,
            problem: None,
            synced_at: None,
            report: None,
            position: None,
            parent_id: None,
            archived: false,
        };
        let detail = json!({ "credential": credential.map(|credential| credential.name) });
        let (_, webhook) = self.new_webhook(&source)?;
        self.insert(actor, &source, detail, Some(webhook)).await?;
        Ok(source)
    }

    /// Adds a source whose parts were checked, and what becomes true together with it. `detail` is for the event.
    pub(crate) async fn insert(
        &self,
        actor: &Actor,
        source: &Source,
        mut detail: Value,
        with: Option<Statement>,
    ) -> Result<()> {
        let (host, name) = (self.db.host(), &source.name);
        detail["kind"] = source.kind.as_str().into();
        detail["url"] = source.url.as_str().into();
        let event = Event::new(actor, "source.add", format!("source:{name}")).with(detail);
        let mut batch = Batch::new().with(rows::name_free(name)).with(rows::insert(source));
        batch.extend(with);
        batch.push(events::record(host, &event));
        batch.push(changes::notify(host, registry::TOPIC));
        self.db.commit(batch).await.map_err(|error| match error {
            error if error.is_guard("source name is free") => {
                Error::conflict(format!("there is a source called `{name}` already: choose another one with --name"))
            }
            error => error.into(),
        })?;
        Ok(())
    }

    /// Refuses transports that are only for sources on this machine.
    fn allow(&self, url: &GitUrl) -> Result<()> {
        if url.transport() == Transport::File && !self.allow_local {
            return Err(Error::invalid(format!(
                "{url} is a local source: set LARDER_ALLOW_LOCAL_SOURCES=true to permit files and private addresses"
            )));
        }
        Ok(())
    }

    /// The source with this name or id, or an error that says how to see which there are.
    pub async fn find(&self, name_or_id: &str) -> Result<Source> {
        rows::find(&self.db, name_or_id).await?.ok_or_else(|| {
            Error::not_found(format!("there is no source called `{name_or_id}`: `larder source list` shows all"))
        })
    }

    /// Takes a source away with all its packages. Their blobs are collected later.
    pub async fn remove(&self, actor: &Actor, name_or_id: &str) -> Result<Source> {
        let source = self.find(name_or_id).await?;
        let owned = packages::of_source(&self.db, source.id).await?;
        let host = self.db.host();
        let names: Vec<&str> = owned.iter().map(|package| package.name.as_str()).collect();
        let event = Event::new(actor, "source.remove", format!("source:{}", source.name))
            .with(json!({"url": source.url, "packages": names}));
        let mut batch = Batch::new()
            .with(rows::exists(source.id))
            .with(packages::remove_of_source(source.id))
            .with(rows::remove(source.id))
            // A package of it may be one that another source was refused.
            .with(rows::forget_skipped())
            .with(events::record(host, &event))
            .with(changes::notify(host, "sources"));
        batch.extend(
            owned.iter().map(|package| changes::notify(host, &packages::topic(&package.format, &package.name))),
        );
        self.db.commit(batch).await?;
        if let Err(error) = self.git.forget(&source.id.to_string()).await {
            tracing::warn!(source = %source.name, error = %error.chain(), "the local copy of a removed source stays on disk");
        }
        Ok(source)
    }

    /// Permits the next sync of a held source to drop as many versions as it wants.
    pub async fn release(&self, actor: &Actor, source: &Source) -> Result<Source> {
        let host = self.db.host();
        let event = Event::new(actor, "source.release", format!("source:{}", source.name));
        let batch = Batch::new()
            .with(rows::troubled(source.id, SourceState::Released, "removals are accepted once"))
            .with(events::record(host, &event));
        self.db.commit(batch).await?;
        self.find(&source.name).await
    }

    /// Reaches a source with its credential once, and says how many branches and tags it has.
    pub async fn probe(&self, source: &Source) -> Result<usize> {
        let remote = self.remote(source).await?;
        Ok(self.git.list(&remote).await?.len())
    }

    /// What the Git port needs to reach a source.
    pub(crate) async fn remote(&self, source: &Source) -> Result<Remote> {
        if source.kind != GIT {
            return Err(Error::new(Kind::Invalid, format!("`{}` is not a Git source", source.name)));
        }
        let url = GitUrl::parse(&source.url)?;
        self.allow(&url)?;
        let secret = match source.credential_id {
            None => None,
            Some(id) => {
                let credential = credential_rows::find(&self.db, &id.to_string()).await?.ok_or_else(|| {
                    Error::not_found(format!("the credential of source `{}` is not there any more", source.name))
                })?;
                Some(credentials::open_for(&self.vault, &credential, &url)?)
            }
        };
        Ok(Remote { url, secret })
    }

    /// The Git URL of a source as clients may see it: `None` if it is hidden, or means nothing to them.
    pub fn shown_url(source: &Source) -> Option<String> {
        let shown =
            source.kind == GIT && GitSettings::read(&source.settings).is_ok_and(|settings| settings.show_source);
        let url = GitUrl::parse(&source.url).ok().filter(|url| shown && url.transport() != Transport::File)?;
        Some(url.as_str().to_owned())
    }
}
