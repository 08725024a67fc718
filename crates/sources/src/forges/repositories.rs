//! One repository of a forge: whether it becomes a source, and what becomes of the source. Each decision is written as one
//! batch, so that a discovery that ends early keeps what it has.

use larder_core::{Result, Time, grant::check_name};
use larder_db::{
    Batch, changes, events,
    events::Event,
    forges::{self as rows, Repository, RepositoryState},
    sources::{self as source_rows, Source, SourceState},
};
use larder_jobs::queue;
use serde_json::json;

use super::{
    Found,
    dialect::Entry,
    discovery::{Round, same},
};
use crate::{
    manage::GIT,
    registry,
    url::{GitUrl, Transport},
    work::SYNC,
};

/// The longest name that a source gets from a path; what makes it the only one comes behind it.
const LONGEST_NAME: usize = 56;

impl Round<'_> {
    /// A repository that is no source yet.
    pub(super) async fn consider(
        &mut self,
        found: &Found,
        row: Option<&Repository>,
        plain: &mut Vec<Repository>,
    ) -> Result<()> {
        let url = match self.clone_url(found) {
            Ok(url) => url,
            Err(why) => {
                self.done.refused.insert(found.name.clone(), why.clone());
                return self.note(found, row, RepositoryState::Refused, Some(why)).await;
            }
        };
        if let Some(other) = self.by_url.get(&same(url.as_str())) {
            let why = format!("it is the source `{}` already", other.name);
            self.done.taken.push(found.name.clone());
            return self.note(found, row, RepositoryState::Taken, Some(why)).await;
        }
        if row.is_some_and(|row| row.state == RepositoryState::Plain && self.is_settled(found, row)) {
            return Ok(());
        }
        let holds = if found.empty { Some(false) } else { self.holds_packages(found).await? };
        match holds {
            None => Ok(()),
            Some(true) => self.add_child(found, &url).await,
            Some(false) => {
                plain.push(self.row(found, RepositoryState::Plain, None));
                Ok(())
            }
        }
    }

    /// A repository that is a source: it may have been renamed, archived, or be back.
    pub(super) async fn follow(&mut self, found: &Found, row: &Repository, child: &Source) -> Result<()> {
        let mut batch: Batch = self.run.guards.iter().cloned().collect();
        batch.push(source_rows::exists(child.id));
        let subject = format!("source:{}", child.name);
        let host = self.forges.sources.db.host();
        let before = batch.len();
        let mut new = Repository { name: found.name.clone(), state: RepositoryState::Added, note: None, ..row.clone() };
        match self.clone_url(found) {
            Err(why) => {
                self.done.refused.insert(found.name.clone(), why.clone());
                new.note = Some(why);
            }
            Ok(url) if url.as_str() != child.url => {
                if same(url.as_str()) != same(&child.url) && self.by_url.contains_key(&same(url.as_str())) {
                    self.done.taken.push(found.name.clone());
                    new.note = Some("another source is where it went".to_owned());
                } else {
                    self.done.moved.push(child.name.clone());
                    batch.push(source_rows::moved(child.id, url.as_str()));
                    let event = Event::new(self.run.actor, "source.relocate", subject.clone());
                    batch.push(events::record(host, &event.with(json!({ "from": child.url, "to": url.as_str() }))));
                    queue::enqueue_in(&mut batch, &self.forges.sources.db, SYNC, &child.id.to_string(), host.now());
                }
            }
            Ok(_) => {}
        }
        if child.archived != found.archived {
            self.done.archived.push(child.name.clone());
            batch.push(source_rows::adopt(child.id, self.forge.id, found.archived));
            let action = if found.archived { "source.archive" } else { "source.unarchive" };
            batch.push(events::record(host, &Event::new(self.run.actor, action, subject.clone())));
            queue::enqueue_in(&mut batch, &self.forges.sources.db, SYNC, &child.id.to_string(), host.now());
        }
        if row.state == RepositoryState::Gone {
            self.done.back.push(child.name.clone());
            batch.push(events::record(host, &Event::new(self.run.actor, "source.back", subject)));
            queue::enqueue_in(&mut batch, &self.forges.sources.db, SYNC, &child.id.to_string(), host.now());
        }
        if new != *row {
            batch.push(rows::put(self.forge.id, &new));
        }
        if batch.len() > before {
            batch.push(changes::notify(host, registry::TOPIC));
            self.forges.sources.db.commit(batch).await?;
        }
        Ok(())
    }

    /// A repository that the forge does not list any more. Its packages stay: only a person takes a source away.
    pub(super) async fn let_go(&mut self, row: &Repository, child: Option<&Source>) -> Result<()> {
        let db = &self.forges.sources.db;
        let mut batch: Batch = self.run.guards.iter().cloned().collect();
        let Some(child) = child else {
            batch.push(rows::remove(self.forge.id, &row.remote_id));
            db.commit(batch).await?;
            return Ok(());
        };
        if row.state == RepositoryState::Gone {
            return Ok(());
        }
        let problem = format!(
            "`{}` does not list it any more: it was removed, or hidden from the credential. Its packages stay; `larder source remove {}` takes them away",
            self.forge.name, child.name
        );
        self.done.gone.push(child.name.clone());
        let event = Event::new(self.run.actor, "source.vanish", format!("source:{}", child.name));
        batch.push(source_rows::exists(child.id));
        batch.push(source_rows::troubled(child.id, SourceState::Failed, &problem));
        batch.push(rows::put(
            self.forge.id,
            &Repository { state: RepositoryState::Gone, note: Some(problem), ..row.clone() },
        ));
        batch.push(events::record(db.host(), &event.with(json!({ "forge": self.forge.name, "repository": row.name }))));
        batch.push(changes::notify(db.host(), registry::TOPIC));
        db.commit(batch).await?;
        Ok(())
    }

    /// Remembers repositories without packages, so that they are not looked into again before they change.
    pub(super) async fn remember(&self, plain: Vec<Repository>) -> Result<()> {
        for some in plain.chunks(100) {
            let mut batch: Batch = self.run.guards.iter().cloned().collect();
            batch.push(source_rows::exists(self.forge.id));
            batch.extend(some.iter().map(|row| rows::put(self.forge.id, row)));
            self.forges.sources.db.commit(batch).await?;
        }
        Ok(())
    }

    async fn note(
        &self,
        found: &Found,
        row: Option<&Repository>,
        state: RepositoryState,
        why: Option<String>,
    ) -> Result<()> {
        let new = self.row(found, state, why);
        let other = |row: &Repository| (row.state, &row.note, &row.name) != (new.state, &new.note, &new.name);
        if row.is_none_or(other) {
            self.remember(vec![new]).await?;
        }
        Ok(())
    }

    /// Makes a repository a source of its own, and has it synced.
    async fn add_child(&mut self, found: &Found, url: &GitUrl) -> Result<()> {
        let (sources, forge) = (&self.forges.sources, self.forge);
        let (db, host) = (&sources.db, sources.db.host());
        let child = Source {
            id: host.new_id(),
            name: self.free_name(&found.name),
            kind: GIT.to_owned(),
            url: url.as_str().to_owned(),
            credential_id: forge.credential_id,
            every: std::time::Duration::from_secs(self.settings.repositories_every),
            settings: self.settings.repositories.write(),
            created_at: host.now(),
            state: SourceState::New,
            problem: None,
            synced_at: None,
            report: None,
            position: None,
            parent_id: Some(forge.id),
            archived: found.archived,
        };
        let (_, webhook) = sources.new_webhook(&child)?;
        let event = Event::new(self.run.actor, "source.add", format!("source:{}", child.name))
            .with(json!({ "kind": GIT, "url": child.url, "forge": forge.name }));
        let mut batch: Batch = self.run.guards.iter().cloned().collect();
        batch.push(source_rows::exists(forge.id));
        batch.push(source_rows::name_free(&child.name));
        batch.push(source_rows::insert(&child));
        batch.push(source_rows::adopt(child.id, forge.id, found.archived));
        batch.push(webhook);
        batch.push(rows::put(
            forge.id,
            &Repository { child_id: Some(child.id), ..self.row(found, RepositoryState::Added, None) },
        ));
        batch.push(events::record(host, &event));
        batch.push(changes::notify(host, registry::TOPIC));
        queue::enqueue_in(&mut batch, db, SYNC, &child.id.to_string(), host.now());
        db.commit(batch).await?;
        self.done.added.push(child.name.clone());
        self.names.insert(child.name.clone());
        self.by_url.insert(same(&child.url), child);
        Ok(())
    }

    fn row(&self, found: &Found, state: RepositoryState, note: Option<String>) -> Repository {
        Repository {
            remote_id: found.id.clone(),
            name: found.name.clone(),
            state,
            note,
            changed: found.changed.clone(),
            looked_at: self.forges.sources.db.host().now(),
            child_id: None,
        }
    }

    /// Where a repository is cloned from, if that is where those of this forge are. What an API answers about other hosts
    /// would otherwise have the credential sent there.
    fn clone_url(&self, found: &Found) -> Result<GitUrl, String> {
        let url = GitUrl::parse(&found.clone).map_err(|error| error.message().to_owned())?;
        if !matches!(url.transport(), Transport::Https | Transport::Http) || url.origin() != self.clones_at {
            return Err(format!(
                "its address for cloning is at {}, and repositories of this forge are at {} alone",
                if url.host().is_empty() { "no host".to_owned() } else { url.origin() },
                self.clones_at
            ));
        }
        Ok(url)
    }

    /// Whether a repository without packages is still what it was when it was looked into.
    fn is_settled(&self, found: &Found, row: &Repository) -> bool {
        // A change that followed too fast may not show.
        let changed = Time::parse(&found.changed).unwrap_or(Time::from_seconds(0));
        found.changed == row.changed && (found.empty || row.looked_at.since(changed) >= self.dialect.settles())
    }

    /// Whether a root folder with this in it may hold packages: a manifest, or a folder that packages are looked for in.
    pub(super) fn is_telling(&self, entry: &Entry) -> bool {
        let folders = self.settings.repositories.folders();
        if entry.folder {
            let step = folders.enter(&folders.begin(), &entry.name);
            return folders.holds(&step) || folders.goes_on(&step);
        }
        if !folders.holds(&folders.begin()) {
            return false;
        }
        let trees = self.forges.sources.formats.iter().filter_map(|format| format.trees());
        trees.filter_map(|trees| trees.manifests().first().copied()).any(|manifest| manifest == entry.name)
    }

    /// A name for a source out of the path of its repository, that nobody else has.
    fn free_name(&self, path: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = path.chars().map(plain).collect();
        let mut name = name.trim_start_matches(['.', '_', '-']).to_owned();
        name.truncate(LONGEST_NAME);
        if check_name(&name).is_err() {
            "repository".clone_into(&mut name);
        }
        if !self.names.contains(&name) {
            return name;
        }
        // One of so many is free: there are no more names than that in use.
        let numbers = 2..self.names.len() + 3;
        numbers.map(|number| format!("{name}-{number}")).find(|name| !self.names.contains(name)).unwrap_or(name)
    }
}
