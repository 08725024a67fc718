//! Bringing documents in: what is here of a package is looked at again when it is no longer fresh, and what an upstream
//! says replaces it only if clients can read it.
//!
//! Up to twice its freshness a document is served at once and looked at behind, so that whoever works with it regularly never
//! waits, and nobody ever gets what is older than that while the upstream answers. After that the upstream is waited for,
//! for a moment.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use larder_core::{Error, Kind, Result, Time};
use larder_db::{
    Batch, CommitError, Statement, changes,
    events::{self, Actor, Event},
    packages::{self, Package},
    upstream_checks::{self as checks, Check},
    upstream_documents::{self as documents, Document},
};
use serde_json::json;

use super::{
    ABSENT, Failure, Fresh, Looked, Owner, Proxy,
    changes::{Feed, Standing},
    checked,
    client::{Client, Told},
    part,
    root::Root,
    subject,
};
use crate::ID;

/// How long somebody waits for an upstream before what is here is good enough.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many versions that were left out are told one by one.
const SHOWN: usize = 10;

/// What a look upstream found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Whether the upstream has it, so that it is here.
    pub(super) here: bool,
    /// Whether what is here is not what it was.
    pub(super) changed: bool,
    /// Which part of it (`dev`) came just now, so that it need not be looked at again.
    pub(super) came: Option<bool>,
}

impl Seen {
    fn known(here: bool, changed: bool) -> Self {
        Self { here, changed, came: None }
    }
}

/// What is kept of a package's tagged versions, or of its branches.
struct Kept {
    /// What their last check says.
    standing: Option<Standing>,
    /// The validator of their document, if it is here.
    document: Option<String>,
    /// Until when that is fresh.
    until: Time,
}

/// What somebody looks at.
#[derive(Clone)]
struct Subject {
    client: Client,
    package: Package,
    dev: bool,
}

/// A document that may be kept.
struct Prepared {
    document: Document,
    content: Vec<u8>,
    summary: String,
    left_out: Vec<String>,
}

impl Proxy {
    /// Looks at a package that an upstream brought.
    pub(super) async fn look_again(&self, client: &Client, package: Package, dev: bool) -> Result<Looked> {
        let part = part(&package.name, dev);
        let subject = Subject { client: client.clone(), package, dev };
        let before = self.changes();
        let kept = self.kept(&subject).await?;
        let now = self.now();
        if now < kept.until {
            self.remember(&subject.package.name, &part, kept.fresh(), before);
            return Ok(if kept.document.is_some() { Looked::Here { changed: false } } else { Looked::Absent });
        }
        let is_here = kept.document.is_some();
        match self.trouble(&part) {
            Some(failure) if is_here => return Ok(Looked::Stale { why: failure.text().to_owned() }),
            Some(failure) => return Err(failure.error(&subject.package.name)),
            None => {}
        }
        let every = subject.client.upstream.source.every;
        let host = self.db().host();
        let (proxy, name) = (self.clone(), subject.package.name.clone());
        let flight = self.inner.looks.join(host, &part, || proxy.refresh(subject));
        if is_here
            && now < kept.until.plus(every)
            && let Some(behind) = self.behind()
        {
            host.spawn.background(flight.map(|_| drop(behind)).boxed());
            return Ok(Looked::Here { changed: false });
        }
        let looked = if is_here { host.within(PATIENCE, flight).await } else { Some(flight.await) };
        match looked {
            Some(Ok(Seen { here: true, changed, .. })) => Ok(Looked::Here { changed }),
            Some(Ok(Seen { here: false, .. })) => Ok(Looked::Absent),
            Some(Err(failure)) if is_here => Ok(Looked::Stale { why: failure.text().to_owned() }),
            Some(Err(failure)) => Err(failure.error(&name)),
            None => {
                let why = "the upstream takes long to answer".to_owned();
                self.note_trouble(&part, &Failure::Failed(Kind::Timeout, why.clone()));
                Ok(Looked::Stale { why })
            }
        }
    }

    /// Looks for a package that nobody brought yet, upstream after upstream.
    pub(super) async fn look_around(&self, name: &str, clients: Vec<Client>, dev: bool) -> Result<Looked> {
        // No part of any package is called so.
        let key = format!("{name}\0");
        if let Some(failure) = self.trouble(&key) {
            return Err(failure.error(name));
        }
        let (proxy, wanted, trouble) = (self.clone(), name.to_owned(), key.clone());
        let flight = self.inner.looks.join(self.db().host(), &key, || async move {
            if let Some(failure) = proxy.trouble(&trouble) {
                return Err(failure);
            }
            let before = proxy.changes();
            let found = proxy.discover(&wanted, &clients).await;
            match &found {
                Ok(Seen { here: false, .. }) => proxy.note_absent(&wanted, before),
                Ok(_) => {}
                Err(failure) => proxy.note_trouble(&trouble, failure),
            }
            found
        });
        let seen = flight.await.map_err(|failure| failure.error(name))?;
        if !seen.here {
            return Ok(Looked::Absent);
        }
        if seen.came == Some(dev) {
            return Ok(Looked::Here { changed: true });
        }
        match self.owner(name).await? {
            Owner::Own => Ok(Looked::Own),
            Owner::Upstream(client, package) => match self.look_again(&client, package, dev).await? {
                Looked::Here { .. } => Ok(Looked::Here { changed: true }),
                other => Ok(other),
            },
            Owner::Nobody(_) => {
                Err(Error::new(Kind::Unavailable, format!("`{name}` was taken away just now: try again")))
            }
        }
    }

    async fn kept(&self, subject: &Subject) -> Result<Kept> {
        let source = &subject.client.upstream.source;
        let check = checks::find(self.db(), source.id, &subject.text()).await?;
        let document = documents::look(self.db(), source.id, &subject.text()).await?.map(|(validator, _)| validator);
        let standing = check.as_ref().map(Standing::read);
        let checked_at = check.map(|check| check.checked_at).unwrap_or_default();
        let until = match (&standing, &document) {
            (Some(Standing::Here), Some(_)) => checked_at.plus(source.every),
            (Some(standing @ Standing::Covered(_)), Some(_)) => {
                let feed = self.feed(&subject.client).await?;
                let polled_at = feed.filter(|feed| standing.is_covered_by(feed)).map(|feed| feed.polled_at);
                polled_at.unwrap_or_default().max(checked_at).plus(source.every)
            }
            (Some(Standing::Gone), None) => checked_at.plus(source.every.min(ABSENT)),
            _ => Time::default(),
        };
        Ok(Kept { standing, document, until })
    }

    /// Looks at what is kept of a package upstream.
    async fn refresh(self, subject: Subject) -> Result<Seen, Failure> {
        let part = part(&subject.package.name, subject.dev);
        // A flight before this one may have failed since it was looked for.
        if let Some(failure) = self.trouble(&part) {
            return Err(failure);
        }
        let seen = self.try_refresh(&subject).await;
        if let Err(failure) = &seen {
            self.note_trouble(&part, failure);
        }
        seen
    }

    async fn try_refresh(&self, subject: &Subject) -> Result<Seen, Failure> {
        // A flight before this one may have landed since it was looked for.
        let mut kept = self.kept(subject).await?;
        if self.now() < kept.until {
            return Ok(Seen::known(kept.document.is_some(), true));
        }
        let feed = self.newest_feed(&subject.client).await?;
        if matches!(kept.standing, Some(Standing::Covered(_))) {
            kept = self.kept(subject).await?;
            if self.now() < kept.until {
                return Ok(Seen::known(true, false));
            }
        }
        // What changes while it answers is not in the answer.
        let began = self.now();
        match subject.client.package(&subject.package.name, subject.dev, kept.document.as_deref()).await {
            Ok(Told::Same) if kept.document.is_some() => {
                self.confirm(subject, &kept, feed.as_ref(), began, None).await?;
                Ok(Seen::known(true, false))
            }
            Ok(Told::Same) => Err(Failure::Failed(
                Kind::Upstream,
                format!("{} says that nothing has changed, of something that is not here", subject.client.host()),
            )),
            Ok(Told::Versions { document, validator }) => {
                match self.prepare(&subject.client, &subject.package.name, document, validator).await? {
                    Some(prepared) => self.keep(subject, &kept, feed.as_ref(), began, prepared).await,
                    None => self.gone(subject, &kept, began).await,
                }
            }
            Ok(Told::Absent) | Err(Failure::Absent) => self.gone(subject, &kept, began).await,
            Err(failure) => Err(failure),
        }
    }

    /// What is kept was true when `began` was. `again`: it came again, with another validator.
    async fn confirm(
        &self,
        subject: &Subject,
        kept: &Kept,
        feed: Option<&Feed>,
        began: Time,
        again: Option<&Document>,
    ) -> Result<()> {
        let (client, db) = (&subject.client, self.db());
        let id = client.upstream.id();
        let standing = kept.standing.as_ref().unwrap_or(&Standing::Mentioned).confirmed(feed);
        let put = |standing: &Standing| {
            let document = again.map(|document| documents::put(id, &subject.text(), document));
            let check = checks::put(id, &subject.text(), &Check { checked_at: began, validator: standing.validator() });
            document.into_iter().chain([check])
        };
        let mut batch = Batch::new();
        batch.extend(feed.filter(|feed| standing.is_covered_by(feed)).map(|feed| feed.is_newest(client)));
        batch.extend(put(&standing));
        match db.commit(batch).await {
            // Somebody heard of changes meanwhile, and this may be one of them.
            Err(CommitError::Guard(_)) => {
                db.commit(put(&Standing::Here).collect()).await?;
            }
            other => {
                other?;
            }
        }
        Ok(())
    }

    /// Keeps a new document of a package that is here.
    async fn keep(
        &self,
        subject: &Subject,
        kept: &Kept,
        feed: Option<&Feed>,
        began: Time,
        prepared: Prepared,
    ) -> Result<Seen, Failure> {
        let Subject { client, package, dev } = subject;
        let (db, host, id) = (self.db(), self.db().host(), client.upstream.id());
        if kept.document.is_some()
            && let Some(before) = documents::find(db, id, &subject.text()).await?
            && before.size == prepared.document.size
            && before.content()? == prepared.content
        {
            self.confirm(subject, kept, feed, began, Some(&prepared.document)).await?;
            return Ok(Seen::known(true, false));
        }
        prepared.warn(client, &package.name);
        let describes = !dev || documents::look(db, id, &super::subject(&package.name, false)).await?.is_none();
        let mut batch = Batch::new().with(packages::exists(package.id));
        batch.extend(subject.put(&Standing::Here, began, Some(&prepared.document)));
        batch.push(packages::changed(package.id, host.now()));
        if describes {
            batch.push(packages::describe(package.id, &prepared.summary));
        }
        batch.push(changes::notify(host, &packages::topic(ID, &package.name)));
        self.db().commit(batch).await.map_err(Error::from)?;
        Ok(Seen::known(true, true))
    }

    /// The upstream does not have it (any more). What was fetched of it stays.
    async fn gone(&self, subject: &Subject, kept: &Kept, began: Time) -> Result<Seen, Failure> {
        let Subject { client, package, dev } = subject;
        let host = self.db().host();
        let mut batch = Batch::new();
        batch.extend(subject.put(&Standing::Gone, began, None));
        if kept.document.is_some() {
            let detail = json!({ "source": client.upstream.source.name, "branches": dev });
            let event = Event::new(&Actor::house(), "package.vanish", packages::topic(ID, &package.name)).with(detail);
            batch.push(packages::exists(package.id));
            batch.push(packages::changed(package.id, host.now()));
            batch.push(events::record(host, &event));
            batch.push(changes::notify(host, &packages::topic(ID, &package.name)));
        }
        self.db().commit(batch).await.map_err(Error::from)?;
        Ok(Seen::known(false, kept.document.is_some()))
    }

    /// Looks for a package at one upstream after the other. The first that has it is where it comes from, from now on.
    async fn discover(&self, name: &str, clients: &[Client]) -> Result<Seen, Failure> {
        // A flight before this one may have landed since it was looked for.
        if self.is_absent(name) {
            return Ok(Seen::known(false, false));
        }
        if packages::find(self.db(), ID, name).await?.is_some() {
            return Ok(Seen::known(true, true));
        }
        for client in clients {
            let latest = client.latest().await?;
            self.notice(client, &latest.root);
            if latest.offers(name)? == Some(false) {
                continue;
            }
            for dev in [false, true] {
                let began = self.now();
                match client.package(name, dev, None).await {
                    Ok(Told::Versions { document, validator }) => {
                        if let Some(prepared) = self.prepare(client, name, document, validator).await? {
                            let is_taken = self.take(client, name, dev, began, prepared).await?;
                            return Ok(Seen { here: true, changed: true, came: is_taken.then_some(dev) });
                        }
                    }
                    Ok(Told::Absent | Told::Same) | Err(Failure::Absent) => {}
                    // The next one may have a look-alike.
                    Err(failure) => return Err(failure),
                }
            }
        }
        Ok(Seen::known(false, false))
    }

    /// Makes a package one of this upstream; `false` if somebody else took its name, or reserved it, meanwhile.
    async fn take(
        &self,
        client: &Client,
        name: &str,
        dev: bool,
        began: Time,
        prepared: Prepared,
    ) -> Result<bool, Failure> {
        prepared.warn(client, name);
        let (host, reservations) = (self.db().host(), self.inner.reservations.known().await?);
        if reservations.covers(ID, name) {
            return Ok(false);
        }
        let now = host.now();
        let package = Package {
            id: host.new_id(),
            format: ID.to_owned(),
            name: name.to_owned(),
            source_id: Some(client.upstream.id()),
            summary: prepared.summary.clone(),
            created_at: now,
            changed_at: now,
        };
        let left_out: Vec<&String> = prepared.left_out.iter().take(SHOWN).collect();
        let detail = json!({ "source": client.upstream.source.name, "left_out": left_out });
        let event = Event::new(&Actor::house(), "package.add", packages::topic(ID, name)).with(detail);
        let mut batch = Batch::new()
            .with(reservations.unchanged())
            .with(packages::name_free(ID, name))
            .with(packages::insert(&package));
        let subject = Subject { client: client.clone(), package, dev };
        batch.extend(subject.put(&Standing::Here, began, Some(&prepared.document)));
        if dev {
            // The tagged versions were asked for before.
            batch.extend(Subject { dev: false, ..subject }.put(&Standing::Gone, began, None));
        }
        batch.push(events::record(host, &event));
        batch.push(changes::notify(host, &packages::topic(ID, name)));
        match self.db().commit(batch).await {
            Ok(_) => Ok(true),
            Err(CommitError::Guard(_)) => Ok(false),
            Err(CommitError::Other(error)) if error.kind() == Kind::Conflict => Ok(false),
            Err(error) => Err(Error::from(error).into()),
        }
    }

    /// Reads what came; `None` if that says nothing of the package.
    async fn prepare(
        &self,
        client: &Client,
        name: &str,
        content: Bytes,
        validator: String,
    ) -> Result<Option<Prepared>, Failure> {
        let (most, host) = (self.inner.limits.metadata, client.host());
        if content.len() as u64 > most {
            return Err(Failure::Failed(
                Kind::Upstream,
                format!(
                    "{host} has {} bytes of metadata for {name}, and {most} are the limit: raise `limits.metadata` in \
                     larder.toml",
                    content.len()
                ),
            ));
        }
        let (name, size, fetched_at) = (name.to_owned(), content.len(), self.now());
        let reading = async move {
            match checked::read_told(&name, &content) {
                Ok(None) => Ok(None),
                Ok(Some(checked)) => Ok(Some(Prepared {
                    document: Document::new(&checked.content, validator, fetched_at),
                    content: checked.content,
                    summary: checked.summary,
                    left_out: checked.left_out,
                })),
                Err(why) => {
                    Err(Error::new(Kind::Upstream, format!("what {host} says of {name} cannot be kept: {why}")))
                }
            }
        };
        Ok(self.db().host().compute(size, reading).await?)
    }

    /// Compares the names that an upstream lists with our own, each list once.
    fn notice(&self, client: &Client, root: &Arc<Root>) {
        let new = Arc::downgrade(root);
        let before = self.known().noticed.insert(client.upstream.id(), new.clone());
        if before.is_some_and(|before| before.ptr_eq(&new)) {
            return;
        }
        let (proxy, client, root) = (self.clone(), client.clone(), Arc::clone(root));
        let noticing = async move {
            let Some(names) = root.names() else { return };
            let source = &client.upstream.source;
            if let Err(error) = proxy.inner.reservations.note_offered(source, names.into_iter()).await {
                let error = error.chain();
                tracing::warn!(
                    source = source.name,
                    error,
                    "the names of an upstream could not be compared with our own"
                );
            }
        };
        self.db().host().spawn.background(noticing.boxed());
    }
}

impl Kept {
    fn fresh(&self) -> Fresh {
        if self.document.is_some() { Fresh::Here(self.until) } else { Fresh::Absent(self.until) }
    }
}

impl Subject {
    fn text(&self) -> String {
        subject(&self.package.name, self.dev)
    }

    /// What a look that began at `at` found: this document, or none.
    fn put(&self, standing: &Standing, at: Time, document: Option<&Document>) -> [Statement; 2] {
        let id = self.client.upstream.id();
        let check = Check { checked_at: at, validator: standing.validator() };
        let document = document
            .map_or_else(|| documents::remove(id, &self.text()), |document| documents::put(id, &self.text(), document));
        [document, checks::put(id, &self.text(), &check)]
    }
}

impl Prepared {
    fn warn(&self, client: &Client, package: &str) {
        if self.left_out.is_empty() {
            return;
        }
        let (source, count) = (&client.upstream.source.name, self.left_out.len());
        let first: Vec<&str> = self.left_out.iter().take(SHOWN).map(String::as_str).collect();
        tracing::warn!(
            source,
            package,
            count,
            first = first.join("; "),
            "versions are left out: no client could read them"
        );
    }
}
