//! Adding, listing and removing sources: the operations behind the command line, and later the API and the panel.

use std::time::Duration;

use larder_core::{Error, Kind, Result, grant::check_name};
use larder_db::{
    Batch, Statement, changes, credentials as credential_rows,
    credentials::Credential,
    events,
    events::{Actor, Event},
    packages,
    sources::{self as rows, Kept, Source, SourceState},
};
use serde_json::{Value, json};

use crate::{
    Sources, credentials,
    folders::Folders,
    git::Remote,
    registry,
    settings::GitSettings,
    url::{GitUrl, Transport},
    work::is_scheduled,
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

/// Refuses to look at a source all the time.
pub(crate) fn check_every(every: Duration) -> Result<()> {
    if every < SHORTEST {
        return Err(Error::invalid("a source is looked at every minute at most: give --every 1m or longer"));
    }
    Ok(())
}

fn depended_on(source: &Source, kept: Kept) -> Error {
    let Kept { packages, versions, bytes } = kept;
    Error::conflict(format!(
        "`{}` is not removed: files of {} of {} from it are kept here ({bytes} bytes), and lock files may depend on them. To remove it all the same, say --yes",
        source.name,
        counted(versions, "version"),
        counted(packages, "package"),
    ))
}

/// A number with its noun: `1 package`, `2 packages`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// What becomes of the files that are kept of the packages of an upstream which is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptFiles {
    /// They go with it.
    Drop,
    /// It is not removed if there are any: lock files may name them.
    Spare,
}

impl Sources {
    /// Adds a Git source; its first sync is the caller's to ask for.
    pub async fn add_git(&self, actor: &Actor, new: NewGitSource<'_>) -> Result<Source> {
        let url = GitUrl::parse(new.url)?;
        self.allow(&url)?;
        Folders::check(&new.settings.packages)?;
        check_every(new.every)?;
        let name = check_name(new.name.unwrap_or_else(|| url.short_name()))
            .map_err(|error| Error::invalid(format!("{error}. Give the source a name of your own with --name")))?;
        let credential = match new.credential {
            Some(name) => Some(credentials::find(&self.db, name).await?),
            None => None,
        };
        if let Some(credential) = &credential {
            self.check_encrypted(credential, &url)?;
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

    /// Refuses to send a credential where everybody can read it.
    pub(crate) fn check_encrypted(&self, credential: &Credential, url: &GitUrl) -> Result<()> {
        if url.transport() == Transport::Http && !self.allow_local {
            return Err(Error::invalid(format!("`{}` would travel unencrypted to {url}: use https", credential.name)));
        }
        Ok(())
    }

    /// Refuses transports that are only for sources on this machine.
    pub(crate) fn allow(&self, url: &GitUrl) -> Result<()> {
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

    /// Git sources that have the same address, with or without `.git` at its end.
    pub async fn at_the_same_address(&self, source: &Source) -> Result<Vec<Source>> {
        let address = |source: &Source| source.url.trim_end_matches('/').trim_end_matches(".git").to_owned();
        let (all, wanted) = (rows::list(&self.db).await?, address(source));
        let is_other = |other: &Source| other.kind == GIT && other.id != source.id && address(other) == wanted;
        Ok(all.into_iter().filter(is_other).collect())
    }

    /// What would be lost with a source, although nobody could be sure to get it again: the files that are kept of the packages
    /// of an upstream. Those of a Git repository can be built again.
    pub async fn kept(&self, source: &Source) -> Result<Kept> {
        if is_scheduled(source) {
            return Ok(Kept::default());
        }
        rows::kept(&self.db, source.id).await
    }

    /// Takes a source away with all its packages. Their blobs are collected later.
    pub async fn remove(&self, actor: &Actor, name_or_id: &str, files: KeptFiles) -> Result<Source> {
        let source = self.find(name_or_id).await?;
        let kept = self.kept(&source).await?;
        let owned = packages::of_source(&self.db, source.id).await?;
        let host = self.db.host();
        let names: Vec<&str> = owned.iter().map(|package| package.name.as_str()).collect();
        let event = Event::new(actor, "source.remove", format!("source:{}", source.name)).with(
            json!({"url": source.url, "packages": names, "kept_versions": kept.versions, "kept_bytes": kept.bytes}),
        );
        let spares = files == KeptFiles::Spare && !is_scheduled(&source);
        let mut batch = Batch::new().with(rows::exists(source.id));
        batch.extend(spares.then(|| rows::keeps_nothing(source.id)));
        batch = batch
            .with(packages::remove_of_source(source.id))
            .with(rows::remove(source.id))
            // A package of it may be one that another source was refused.
            .with(rows::forget_skipped())
            .with(events::record(host, &event))
            .with(changes::notify(host, "sources"));
        batch.extend(
            owned.iter().map(|package| changes::notify(host, &packages::topic(&package.format, &package.name))),
        );
        match self.db.commit(batch).await {
            Err(error) if error.is_guard("source keeps nothing") => {
                return Err(depended_on(&source, self.kept(&source).await?));
            }
            other => drop(other?),
        }
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
