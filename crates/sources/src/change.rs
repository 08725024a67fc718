//! Changing a source that is there: where it is, what opens it, how often it is looked at, and its settings. What it has
//! brought stays.
//!
//! What this is not: its name, its kind, the prefix of a registry and the folders of a repository stay what they are, because
//! its packages would be other ones.

use std::time::Duration;

use larder_core::{Error, Result, pattern::Pattern, time::format_duration};
use larder_db::{
    Batch, changes, credentials as credential_rows,
    credentials::Credential,
    events,
    events::{Actor, Event},
    packages,
    sources::{self as rows, Source},
    upstream_checks, upstream_documents,
};
use larder_jobs::queue;
use serde_json::{Map, Value, json};

use crate::{
    Sources, credentials, fetch,
    forges::{self, ForgeKind, ForgeSettings},
    manage::{self, GIT},
    registry::{self, Dists, Upstream},
    settings::{GitSettings, KeepWord, MovedTagsWord},
    url::GitUrl,
    work::{SYNC, is_scheduled},
};

/// What is to open a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// The credential with this name or id.
    By(&'a str),
    /// No credential.
    ByNone,
}

/// What is to be different about a source. `None`: it stays.
#[derive(Clone, Debug, Default)]
pub struct Change<'a> {
    /// Where it is; not of a forge.
    pub url: Option<&'a str>,
    /// What opens it.
    pub credential: Option<Opened<'a>>,
    /// Whether clients are told where the sources of its packages are.
    pub show_source: Option<bool>,
    /// Of a Git source: how often it is looked at. This and the next two, of a forge: for what it finds from now on.
    pub every: Option<Duration>,
    /// How much of the repository is kept.
    pub keep: Option<KeepWord>,
    /// What happens to moved tags.
    pub moved_tags: Option<MovedTagsWord>,
    /// Of a forge: how often it is asked for its repositories.
    pub list_every: Option<Duration>,
    /// Of an upstream: which packages are wanted; all, if there is no pattern.
    pub only: Option<Vec<Pattern>>,
    /// Of an upstream: how long what is known of it counts as fresh.
    pub fresh: Option<Duration>,
    /// Of an upstream: where clients fetch its files.
    pub dists: Option<Dists>,
    /// Accepts that the packages which an upstream has brought come from another address from now on.
    pub accept_address: bool,
}

/// What became of a change.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The source as it is now.
    pub source: Source,
    /// What is different: by name, `{"from": …, "to": …}`. Empty if it was like that before.
    pub what: Map<String, Value>,
    /// How many repositories of a forge have got its new credential.
    pub followed: u64,
    /// How many packages of an upstream are here that match none of its patterns any more. They stay.
    pub unwanted: u64,
}

impl Change<'_> {
    /// What is asked for that a source of this kind does not know, for people.
    pub fn misplaced(&self, source: &Source) -> Option<String> {
        let for_git = self.every.is_some() || self.keep.is_some() || self.moved_tags.is_some();
        let for_registries = self.only.is_some() || self.fresh.is_some() || self.dists.is_some();
        let is_forge = ForgeKind::of(source).is_some();
        let (is_git, name) = (source.kind == GIT, &source.name);
        let refuse = |options: &str, whose: &str| Some(format!("{options} are for {whose}, and `{name}` is none"));
        if for_registries && (is_git || is_forge) {
            return refuse("--only, --every-name, --fresh and --dists", "other registries");
        }
        if for_git && !is_git && !is_forge {
            return refuse("--every, --keep and --moved-tags", "Git repositories");
        }
        if self.list_every.is_some() && !is_forge {
            return Some(format!("--list-every is for forges, and `{name}` is none"));
        }
        if self.url.is_some() && is_forge {
            return Some(format!("where the forge `{name}` is cannot be changed: remove it, and add it again"));
        }
        None
    }
}

impl Sources {
    /// Changes a source. Nothing is written if it is like that already.
    pub async fn change(&self, actor: &Actor, name_or_id: &str, change: &Change<'_>) -> Result<Changed> {
        let before = self.find(name_or_id).await?;
        if let Some(why) = change.misplaced(&before) {
            return Err(Error::invalid(why));
        }
        let old = self.credential_of(&before).await?;
        let credential = match change.credential {
            None => old.clone(),
            Some(Opened::ByNone) => None,
            Some(Opened::By(name)) => Some(credentials::find(&self.db, name).await?),
        };
        let mut after = self.changed(&before, change)?;
        after.credential_id = credential.as_ref().map(|credential| credential.id);
        let what = differences(&told(&before, old.as_ref())?, &told(&after, credential.as_ref())?);
        let mut changed = Changed { source: after, what, followed: 0, unwanted: 0 };
        if changed.what.is_empty() {
            return Ok(changed);
        }
        let after = &changed.source;
        if change.credential.is_none() && origin(&before)? != origin(after)? {
            refuse_to_send(old.as_ref(), &before, after)?;
        }
        let is_upstream = !is_scheduled(after);
        let owned = if is_upstream { packages::of_source(&self.db, after.id).await? } else { Vec::new() };
        if before.url != after.url && !owned.is_empty() && !change.accept_address {
            return Err(Error::conflict(format!(
                "{} of `{}` would come from {} in place of {} from now on, whoever has them there: if that is the same registry, say --yes; if not, add the other one, and remove this one",
                manage::counted(owned.len() as u64, "package"),
                after.name,
                after.url,
                before.url
            )));
        }
        if let Some(credential) = &credential {
            self.bind_for(actor, credential, after).await?;
        }
        changed.followed = self.write_change(actor, &before, after, &changed.what).await?;
        if is_upstream && changed.what.contains_key("only") {
            let upstream = Upstream::read(after.clone())?;
            let unwanted = owned.iter().filter(|package| upstream.name_there(&package.name).is_none());
            changed.unwanted = unwanted.count() as u64;
        }
        Ok(changed)
    }

    /// One batch: the change, and what has to be done anew because of it. Gives how many repositories of a forge changed too.
    async fn write_change(
        &self,
        actor: &Actor,
        before: &Source,
        after: &Source,
        what: &Map<String, Value>,
    ) -> Result<u64> {
        let host = self.db.host();
        let has = |names: &[&str]| names.iter().any(|name| what.contains_key(*name));
        let event = Event::new(actor, "source.set", format!("source:{}", after.name)).with(what.clone().into());
        let mut batch = Batch::new().with(rows::is_same(before)).with(rows::set(after));
        let is_forge = ForgeKind::of(after).is_some();
        let below = (is_forge && has(&["credential"]))
            .then(|| batch.push(rows::set_credential_below(after.id, before.credential_id, after.credential_id)));
        if is_scheduled(after) {
            // What is there already has to be fetched with its history, and tags that moved before may follow now.
            let becomes = |name: &str, word: &str| what.get(name).is_some_and(|change| change["to"] == word);
            let rereads = !is_forge && (becomes("keep", "full") || becomes("moved_tags", "follow"));
            batch.extend(rereads.then(|| rows::unsettle(after.id)));
            queue::enqueue_in(&mut batch, &self.db, SYNC, &after.id.to_string(), host.now());
        } else if has(&["url", "credential"]) {
            batch.push(upstream_checks::remove_of_source(after.id));
            // What the other address said is no answer of this one, and no condition for a question to it.
            batch.extend(has(&["url"]).then(|| upstream_documents::remove_of_source(after.id)));
        }
        if after.kind == GIT && has(&["url", "show_source"]) {
            for package in packages::of_source(&self.db, after.id).await? {
                batch.push(packages::changed(package.id, host.now()));
                batch.push(changes::notify(host, &packages::topic(&package.format, &package.name)));
            }
        }
        batch.push(events::record(host, &event));
        batch.push(changes::notify(host, registry::TOPIC));
        let done = self.db.commit(batch).await.map_err(|error| match error {
            error if error.is_guard("source is the same") => Error::conflict(format!(
                "somebody else has changed the source `{}` just now: look at it (`larder source show`), and try again",
                after.name
            )),
            error => error.into(),
        })?;
        Ok(below.map_or(0, |place| done[place].affected))
    }

    /// A source with everything changed but its credential.
    fn changed(&self, before: &Source, change: &Change<'_>) -> Result<Source> {
        let mut after = before.clone();
        if before.kind == GIT {
            self.change_git(&mut after, change)?;
        } else if ForgeKind::of(before).is_some() {
            change_forge(&mut after, change)?;
        } else {
            self.change_registry(&mut after, change)?;
        }
        Ok(after)
    }

    fn change_git(&self, source: &mut Source, change: &Change<'_>) -> Result<()> {
        let mut settings = GitSettings::read(&source.settings)?;
        apply(&mut settings, change);
        source.settings = settings.write();
        if let Some(every) = change.every {
            manage::check_every(every)?;
            source.every = every;
        }
        let Some(url) = change.url else { return Ok(()) };
        if source.parent_id.is_some() {
            return Err(Error::invalid(format!(
                "`{}` is where its forge says: remove it, and add it again with `larder source add git`",
                source.name
            )));
        }
        let url = GitUrl::parse(url)?;
        self.allow(&url)?;
        url.as_str().clone_into(&mut source.url);
        Ok(())
    }

    fn change_registry(&self, source: &mut Source, change: &Change<'_>) -> Result<()> {
        let mut settings = Upstream::read(source.clone())?.settings;
        settings.only = change.only.clone().unwrap_or(settings.only);
        settings.dists = change.dists.unwrap_or(settings.dists);
        settings.show_source = change.show_source.or(settings.show_source);
        self.check_registry(&source.kind, &settings)?;
        source.settings = json!(settings).to_string();
        if let Some(fresh) = change.fresh {
            registry::check_fresh(fresh)?;
            source.every = fresh;
        }
        if let Some(url) = change.url {
            source.url = self.registry_url(url)?.into();
        }
        Ok(())
    }

    async fn credential_of(&self, source: &Source) -> Result<Option<Credential>> {
        let Some(id) = source.credential_id else { return Ok(None) };
        credential_rows::find(&self.db, &id.to_string()).await
    }

    /// Checks that a credential can open a source, and binds it to its host if it is bound to none yet.
    async fn bind_for(&self, actor: &Actor, credential: &Credential, source: &Source) -> Result<()> {
        if source.kind == GIT {
            let url = GitUrl::parse(&source.url)?;
            self.check_encrypted(credential, &url)?;
            return credentials::bind(&self.db, &self.vault, actor, credential, &url).await;
        }
        if let Some(kind) = ForgeKind::of(source) {
            forges::check_credential(kind, credential)?;
        }
        credentials::bind_to_host(&self.db, &self.vault, actor, credential, &origin(source)?).await
    }
}

/// A credential is named again for another host, or left out.
fn refuse_to_send(credential: Option<&Credential>, before: &Source, after: &Source) -> Result<()> {
    let Some(credential) = credential else { return Ok(()) };
    Err(Error::invalid(format!(
        "`{}` opens {} and is not sent to {} unasked: say what opens that, with --credential NAME or --no-credential",
        credential.name,
        origin(before)?,
        origin(after)?
    )))
}

fn change_forge(source: &mut Source, change: &Change<'_>) -> Result<()> {
    let mut settings = ForgeSettings::read(&source.settings)?;
    apply(&mut settings.repositories, change);
    let repositories_every = change.every.unwrap_or(Duration::from_secs(settings.repositories_every));
    source.every = change.list_every.unwrap_or(source.every);
    forges::check_times(source.every, repositories_every)?;
    settings.repositories_every = repositories_every.as_secs();
    source.settings = json!(settings).to_string();
    Ok(())
}

fn apply(settings: &mut GitSettings, change: &Change<'_>) {
    settings.keep = change.keep.unwrap_or(settings.keep);
    settings.moved_tags = change.moved_tags.unwrap_or(settings.moved_tags);
    settings.show_source = change.show_source.unwrap_or(settings.show_source);
}

/// The one host that the credential of a source is bound to.
fn origin(source: &Source) -> Result<String> {
    if source.kind == GIT {
        return Ok(GitUrl::parse(&source.url)?.origin());
    }
    let url = fetch::address(&source.url)?;
    Ok(ForgeKind::of(source).map_or_else(|| fetch::origin(&url), |kind| forges::clone_origin(kind, &url)))
}

/// What can be changed about a source, as events tell it.
fn told(source: &Source, credential: Option<&Credential>) -> Result<Map<String, Value>> {
    let mut told = Map::new();
    let mut tell = |name: &str, value: Value| drop(told.insert(name.to_owned(), value));
    tell("url", json!(source.url));
    tell("credential", json!(credential.map(|credential| &credential.name)));
    let every = format_duration(source.every);
    let (every, repositories) = if source.kind == GIT {
        (every, GitSettings::read(&source.settings)?)
    } else if ForgeKind::of(source).is_some() {
        let settings = ForgeSettings::read(&source.settings)?;
        tell("list_every", json!(every));
        (format_duration(Duration::from_secs(settings.repositories_every)), settings.repositories)
    } else {
        let settings = Upstream::read(source.clone())?.settings;
        tell("only", json!(settings.only));
        tell("fresh", json!(every));
        tell("dists", json!(settings.dists));
        tell("show_source", json!(settings.show_source));
        return Ok(told);
    };
    tell("every", json!(every));
    tell("keep", json!(repositories.keep));
    tell("moved_tags", json!(repositories.moved_tags));
    tell("show_source", json!(repositories.show_source));
    Ok(told)
}

fn differences(before: &Map<String, Value>, after: &Map<String, Value>) -> Map<String, Value> {
    let pairs = after.iter().map(|(name, to)| (name, before.get(name).unwrap_or(&Value::Null), to));
    pairs
        .filter(|(_, from, to)| from != to)
        .map(|(name, from, to)| (name.clone(), json!({ "from": from, "to": to })))
        .collect()
}
