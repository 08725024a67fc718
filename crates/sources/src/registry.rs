//! Sources that are other registries: adding them, and which packages are theirs. How one is spoken to, and what is taken
//! from it, is the business of its format's room; here is what is the same for all formats.
//!
//! One name has one origin. A package that somebody pushed here, or that comes from another source, never comes from an
//! upstream; every other name belongs to the first upstream, in their order, that takes it, and stays its own. The order is
//! that in which they were added, until somebody gives one another place.

use std::{sync::Arc, time::Duration};

use larder_core::{
    Error, Id, Kind, Result, Time,
    format::{Format, Proxied},
    grant::check_name,
    pattern::Pattern,
};
use larder_db::{
    Batch, Db, changes, credentials as credential_rows, events,
    events::{Actor, Event},
    sources::{self as rows, Source, SourceState},
    upstream_checks,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;

use crate::{
    Sources, credentials,
    fetch::{self, Secret},
    vault::Vault,
};

/// The topic under which a change of the sources is told to the caches ([`changes`]).
pub const TOPIC: &str = "sources";

/// How long what is known of an upstream counts as fresh if nobody says otherwise.
pub const FRESH: Duration = Duration::from_secs(300);

/// The longest time for which it may.
const LONGEST_FRESH: Duration = Duration::from_secs(30 * 86_400);

/// The most patterns of one source.
const MOST_PATTERNS: usize = 1_000;

/// An upstream registry that is about to be added.
#[derive(Clone, Debug)]
pub struct NewRegistry<'a> {
    /// The id of the format that it speaks.
    pub format: &'a str,
    /// Where it is.
    pub url: &'a str,
    /// What people call it; its host without one.
    pub name: Option<&'a str>,
    /// The name of the credential that opens it.
    pub credential: Option<&'a str>,
    /// Which of its packages are wanted, by the names that they have there; all without any.
    pub only: Vec<Pattern>,
    /// How long what is known of it counts as fresh.
    pub fresh: Duration,
    /// What its packages have in front of their names here: `PREFIX/name`.
    pub prefix: Option<&'a str>,
    /// Where clients fetch its files.
    pub dists: Dists,
    /// Whether clients are told where the sources of its packages are; without it, if it needs no credential.
    pub show_source: Option<bool>,
}

/// Where clients fetch the files of a package that comes from an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dists {
    /// From here, where they are kept once somebody fetched them.
    #[default]
    Here,
    /// Where the upstream says that they are.
    Upstream,
}

/// What only a source of this kind knows, as its row keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySettings {
    /// Which packages are wanted, by the names that they have upstream; all if there is none.
    pub only: Vec<Pattern>,
    /// What they have in front of their names here, without the slash.
    pub prefix: Option<String>,
    /// Where clients fetch their files.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dists: Dists,
    /// Whether clients are told where their sources are, if somebody decided that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_source: Option<bool>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_default(dists: &Dists) -> bool {
    *dists == Dists::default()
}

/// A source that is another registry.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its row. Its `every` is how long what is known of it counts as fresh.
    pub source: Source,
    /// Where it is.
    pub url: Url,
    /// The rest.
    pub settings: RegistrySettings,
}

impl Upstream {
    /// Whether another one is the same source, with the same settings and in the same state.
    pub fn is_like(&self, other: &Self) -> bool {
        let essence = |upstream: &Self| {
            let Source { id, name, url, credential_id, every, settings, state, problem, .. } = upstream.source.clone();
            (id, name, url, credential_id, every, settings, state, problem)
        };
        essence(self) == essence(other)
    }

    /// Reads a row.
    pub fn read(source: Source) -> Result<Self> {
        let url = fetch::address(&source.url)?;
        let settings = serde_json::from_str(&source.settings)
            .map_err(|error| Error::internal("reading the settings of a source", error))?;
        Ok(Self { source, url, settings })
    }

    /// Its identity.
    pub fn id(&self) -> Id {
        self.source.id
    }

    /// The name that a package has upstream; `None` if it does not come from there.
    pub fn name_there<'a>(&self, here: &'a str) -> Option<&'a str> {
        let there = match &self.settings.prefix {
            None => here,
            Some(prefix) => here.strip_prefix(prefix.as_str())?.strip_prefix('/')?,
        };
        let wanted = self.settings.only.is_empty() || self.settings.only.iter().any(|pattern| pattern.matches(there));
        wanted.then_some(there)
    }

    /// The name that a package of the upstream has here; `None` if it is not wanted.
    pub fn name_here(&self, there: &str) -> Option<String> {
        let here = self.settings.prefix.as_ref().map_or_else(|| there.to_owned(), |prefix| format!("{prefix}/{there}"));
        self.name_there(&here).is_some().then_some(here)
    }

    /// Whether clients are told where the sources of its packages are: whoever needs a credential hides them.
    pub fn shows_source(&self) -> bool {
        self.settings.show_source.unwrap_or(self.source.credential_id.is_none())
    }

    /// Whether every name that nobody has yet is its own.
    pub fn takes_every_name(&self) -> bool {
        self.settings.prefix.is_none()
            && (self.settings.only.is_empty() || self.settings.only.iter().any(Pattern::is_everything))
    }
}

/// The upstreams of a format, in the order in which they are asked.
pub async fn of_format(db: &Db, format: &str) -> Result<Vec<Upstream>> {
    rows_of_format(db, format).await?.into_iter().map(Upstream::read).collect()
}

async fn rows_of_format(db: &Db, format: &str) -> Result<Vec<Source>> {
    let mut found: Vec<Source> = rows::list(db).await?.into_iter().filter(|source| source.kind == format).collect();
    found.sort_by_key(place);
    Ok(found)
}

/// Orders the upstreams of a format: those that were given a place first, then the others as they were added.
pub fn place(source: &Source) -> (i64, Time, Id) {
    (source.position.unwrap_or(i64::MAX), source.created_at, source.id)
}

/// Where an upstream is to stand among those of its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// Before all others.
    First,
    /// After all others.
    Last,
    /// Right before the one with this name or id.
    Before(&'a str),
}

/// What opens an upstream, for its own host alone; `None` if it is open to all.
pub async fn secret(db: &Db, vault: &Vault, upstream: &Upstream) -> Result<Option<Secret>> {
    let Some(id) = upstream.source.credential_id else { return Ok(None) };
    let credential = credential_rows::find(db, &id.to_string()).await?.ok_or_else(|| {
        Error::not_found(format!("the credential of the source `{}` is not there any more", upstream.source.name))
    })?;
    let origin = fetch::origin(&upstream.url);
    let authorization = credentials::open_for_host(vault, &credential, &origin)?;
    Ok(Some(Secret { origin, authorization }))
}

/// Has an upstream asked again for everything, when clients next want it. What is here stays.
pub async fn make_stale(db: &Db, actor: &Actor, source: &Source) -> Result<()> {
    let host = db.host();
    let batch = Batch::new()
        .with(rows::exists(source.id))
        .with(upstream_checks::remove_of_source(source.id))
        .with(events::record(host, &Event::new(actor, "source.refresh", format!("source:{}", source.name))))
        .with(changes::notify(host, TOPIC));
    db.commit(batch).await?;
    Ok(())
}

/// Refuses to believe what is known for longer than anybody should.
pub(crate) fn check_fresh(fresh: Duration) -> Result<()> {
    if fresh > LONGEST_FRESH {
        return Err(Error::invalid(
            "what is known of an upstream is fresh for 30 days at most: give a shorter --fresh",
        ));
    }
    Ok(())
}

impl Sources {
    /// Adds an upstream registry. Nothing is asked of it before a client wants something.
    pub async fn add_registry(&self, actor: &Actor, new: NewRegistry<'_>) -> Result<Source> {
        let url = self.registry_url(new.url)?;
        let settings = RegistrySettings {
            only: new.only.clone(),
            prefix: new.prefix.map(str::to_owned),
            dists: new.dists,
            show_source: new.show_source,
        };
        self.check_registry(new.format, &settings)?;
        check_fresh(new.fresh)?;
        let name = check_name(new.name.unwrap_or_else(|| url.host_str().unwrap_or_default()))
            .map_err(|error| Error::invalid(format!("{error}. Give the source a name of your own with --name")))?;
        let credential = match new.credential {
            Some(name) => Some(credentials::find(&self.db, name).await?),
            None => None,
        };
        if let Some(credential) = &credential {
            credentials::bind_to_host(&self.db, &self.vault, actor, credential, &fetch::origin(&url)).await?;
        }
        let source = Source {
            id: self.db.host().new_id(),
            name: name.to_owned(),
            kind: new.format.to_owned(),
            url: url.to_string(),
            credential_id: credential.as_ref().map(|credential| credential.id),
            every: new.fresh,
            settings: json!(settings).to_string(),
            created_at: self.db.host().now(),
            state: SourceState::New,
            problem: None,
            synced_at: None,
            report: None,
            position: None,
            parent_id: None,
            archived: false,
        };
        let mut detail = json!(settings);
        detail["credential"] = json!(credential.map(|credential| credential.name));
        self.insert(actor, &source, detail, None).await?;
        Ok(source)
    }

    /// Gives an upstream another place among those of its format; gives all of these in their new order. Packages that one
    /// of them brought stay its own.
    pub async fn move_registry(&self, actor: &Actor, name_or_id: &str, to: Place<'_>) -> Result<Vec<Source>> {
        let moved = self.find(name_or_id).await?;
        if self.format(&moved.kind).is_none() {
            return Err(Error::invalid(format!(
                "`{}` is no other registry: only those have an order, in which they are asked for a package",
                moved.name
            )));
        }
        let mut order = rows_of_format(&self.db, &moved.kind).await?;
        order.retain(|source| source.id != moved.id);
        let at = match to {
            Place::First => 0,
            Place::Last => order.len(),
            Place::Before(other) => {
                let other = self.find(other).await?;
                order.iter().position(|source| source.id == other.id).ok_or_else(|| {
                    Error::invalid(format!(
                        "`{}` cannot stand before `{}`: name another source of the kind {}",
                        moved.name, other.name, moved.kind
                    ))
                })?
            }
        };
        order.insert(at, moved);
        let host = self.db.host();
        let mut batch = Batch::new();
        for (position, source) in (1_i64..).zip(&mut order) {
            source.position = Some(position);
            batch.push(rows::exists(source.id));
            batch.push(rows::place(source.id, position));
        }
        let names: Vec<&str> = order.iter().map(|source| source.name.as_str()).collect();
        let event = Event::new(actor, "source.move", format!("source:{}", order[at].name));
        batch.push(events::record(host, &event.with(json!({ "order": names }))));
        batch.push(changes::notify(host, TOPIC));
        self.db.commit(batch).await?;
        Ok(order)
    }

    /// An address as a person wrote it, ending in a slash, so that paths can be joined to it, unless it is that of a file.
    pub(crate) fn registry_url(&self, text: &str) -> Result<Url> {
        let mut url = fetch::address(text)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(Error::invalid(
                "the address of a registry has no query and no fragment: write https://host/path",
            ));
        }
        if url.scheme() != "https" && !self.allow_local {
            return Err(Error::invalid(format!(
                "{} is not encrypted: use https, or set LARDER_ALLOW_LOCAL_SOURCES=true to permit it, and private addresses",
                fetch::shown(&url)
            )));
        }
        if !url.path().ends_with('/') && url.path().strip_suffix(".json").is_none() {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        Ok(url)
    }

    /// Whether a format can have upstreams with these settings.
    pub(crate) fn check_registry(&self, format: &str, settings: &RegistrySettings) -> Result<()> {
        let proxied = |format: &Arc<dyn Format>| Some((format.id(), format.proxied()?));
        let known: Vec<(&str, Proxied)> = self.formats().iter().filter_map(proxied).collect();
        let Some((_, can)) = known.iter().find(|(id, _)| *id == format) else {
            let known: Vec<&str> = known.iter().map(|(id, _)| *id).collect();
            return Err(Error::invalid(format!(
                "upstream registries of the kind `{}` are not available in this version: it knows {}",
                format,
                known.join(" and ")
            )));
        };
        if settings.prefix.is_some() && !can.prefix {
            return Err(Error::invalid(format!(
                "{format} packages have the same name here as there: leave --prefix out, and choose with --only and the order"
            )));
        }
        if (settings.dists != Dists::Here || settings.show_source.is_some()) && !can.links {
            return Err(Error::invalid(format!(
                "{format} clients are told no other address: leave --dists, --show-source and --hide-source out"
            )));
        }
        if settings.only.len() > MOST_PATTERNS {
            return Err(Error::new(
                Kind::TooLarge,
                format!("{MOST_PATTERNS} patterns are the most that one source has"),
            ));
        }
        if let (Some(prefix), Some(known)) = (&settings.prefix, self.format(format)) {
            let whole = format!("{prefix}/a");
            // A prefix that is written in two ways would be two prefixes.
            if known.package_name(&whole).ok().as_deref() != Some(&whole) {
                return Err(Error::invalid(format!(
                    "`{prefix}` cannot stand in front of the names of {format} packages: write it as a part of such a name, without a slash at its end"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(only: &[&str], prefix: Option<&str>) -> Upstream {
        let only = only.iter().map(|text| text.parse().unwrap()).collect();
        let settings = RegistrySettings { only, prefix: prefix.map(str::to_owned), ..RegistrySettings::default() };
        Upstream::read(Source {
            id: Id::new(Time::from_seconds(1), [0; 10]),
            name: "up".into(),
            kind: "some".into(),
            url: "https://up.example.org/".into(),
            credential_id: None,
            every: FRESH,
            settings: json!(settings).to_string(),
            created_at: Time::from_seconds(1),
            state: SourceState::New,
            problem: None,
            synced_at: None,
            report: None,
            position: None,
            parent_id: None,
            archived: false,
        })
        .unwrap()
    }

    #[test]
    fn names_here_and_there() {
        let all = upstream(&[], None);
        assert_eq!((all.name_there("a/b"), all.name_here("a/b").as_deref()), (Some("a/b"), Some("a/b")));
        assert!(all.takes_every_name());
        let some = upstream(&["library/*", "acme/**"], None);
        assert_eq!((some.name_there("library/x"), some.name_there("library/x/y")), (Some("library/x"), None));
        assert_eq!((some.name_here("acme/a/b").as_deref(), some.name_here("evil/a")), (Some("acme/a/b"), None));
        assert!(!some.takes_every_name());
        let below = upstream(&["library/*"], Some("hub"));
        assert_eq!((below.name_there("hub/library/x"), below.name_there("library/x")), (Some("library/x"), None));
        assert_eq!((below.name_there("hubs/library/x"), below.name_there("hub/acme/x")), (None, None));
        assert_eq!(below.name_here("library/x").as_deref(), Some("hub/library/x"));
        assert!(!upstream(&[], Some("hub")).takes_every_name());
    }
}
