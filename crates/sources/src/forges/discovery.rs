//! One discovery: what a forge lists, page by page, against what is known of it. A listing that is not whole, because the
//! forge wants to be left alone, adds what it has, and lets nothing go. What is then written about one repository is in
//! [`repositories`](super::repositories).

use std::collections::{BTreeMap, HashMap, HashSet};

use larder_core::{Error, Kind, Result, Time};
use larder_db::{
    Batch, events,
    events::Event,
    forges::{self as rows, Repository, RepositoryState},
    sources::{self as source_rows, Source, SourceState},
    upstream_documents::{self, Document},
};
use serde_json::{Value, json};
use url::Url;

use super::{
    Api, Dialect, ForgeKind, ForgeSettings, Forges, Found, Page,
    client::{RateLimit, Said, next_link},
    clone_origin, is_path,
};
use crate::{registry, sync::SyncRun};

/// The most repositories of one forge that are listed, and the most pages that this may take.
const MOST: usize = 10_000;
const MOST_PAGES: usize = 1_000;

/// The most pages of one root folder that are looked at.
const MOST_ENTRY_PAGES: usize = 10;

/// How many names of repositories a report lists of each kind.
const NAMED: usize = 50;

/// What a kept page is filed under, before its address.
const KEPT: &str = "page:";

/// What a discovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// Repositories that the forge lists and that are wanted.
    pub listed: usize,
    /// Those that were looked into.
    pub looked: usize,
    /// Names of sources that are new.
    pub added: Vec<String>,
    /// Names of sources that are elsewhere now.
    pub moved: Vec<String>,
    /// Names of sources that were archived, or are no longer.
    pub archived: Vec<String>,
    /// Names of sources that the forge does not list any more, since now.
    pub gone: Vec<String>,
    /// Names of sources that it lists again.
    pub back: Vec<String>,
    /// Paths of repositories that cannot be sources, and why.
    pub refused: BTreeMap<String, String>,
    /// Paths of repositories that are sources already which the forge did not add.
    pub taken: Vec<String>,
    /// When it goes on, if the forge wants to be left alone until then.
    pub resume_at: Option<Time>,
    /// How often the forge may be asked.
    pub rate: Option<RateLimit>,
    /// When the credential ends, if the forge tells that beside its answers.
    pub credential_expires_at: Option<Time>,
}

impl Discovery {
    /// In one line, for people.
    pub fn sentence(&self) -> String {
        let mut parts = vec![format!("{} repositories listed", self.listed)];
        for (list, what) in [
            (&self.added, "added"),
            (&self.moved, "moved"),
            (&self.archived, "archived or no longer"),
            (&self.gone, "not listed any more"),
            (&self.back, "listed again"),
            (&self.taken, "left alone"),
        ] {
            if !list.is_empty() {
                parts.push(format!("{} {what}", list.len()));
            }
        }
        if !self.refused.is_empty() {
            parts.push(format!("{} refused", self.refused.len()));
        }
        if let Some(at) = self.resume_at {
            parts.push(format!("the forge wants to be left alone, so it goes on at {at}"));
        }
        parts.join(", ")
    }

    fn changed_something(&self) -> bool {
        [&self.added, &self.moved, &self.archived, &self.gone, &self.back].iter().any(|list| !list.is_empty())
    }

    /// As the source keeps it.
    fn report(&self) -> Value {
        let some = |list: &[String]| list.iter().take(NAMED).cloned().collect::<Vec<_>>();
        json!({
            "listed": self.listed, "looked": self.looked,
            "added": some(&self.added), "moved": some(&self.moved), "archived": some(&self.archived),
            "gone": some(&self.gone), "back": some(&self.back), "taken": some(&self.taken),
            "refused": self.refused.iter().take(NAMED).collect::<BTreeMap<_, _>>(),
            "resume_at": self.resume_at.map(Time::rfc3339),
            "rate_limit": self.rate.map(|rate| json!({
                "limit": rate.limit, "remaining": rate.remaining, "reset_at": rate.reset().map(Time::rfc3339),
            })),
            "credential_expires_at": self.credential_expires_at.map(Time::rfc3339),
        })
    }
}

/// A discovery that is being made.
pub(super) struct Round<'a> {
    pub(super) forges: &'a Forges,
    pub(super) forge: &'a Source,
    pub(super) settings: ForgeSettings,
    pub(super) run: &'a SyncRun<'a>,
    /// The one host that clones come from.
    pub(super) clones_at: String,
    /// Sources by where they are, and every name that is in use.
    pub(super) by_url: HashMap<String, Source>,
    pub(super) names: HashSet<String>,
    pub(super) done: Discovery,
    api: Api,
    pub(super) dialect: &'static dyn Dialect,
    credential: Option<String>,
}

/// What a forge listed.
struct Listing {
    repositories: Vec<Found>,
    /// Whether that is all.
    whole: bool,
}

impl Forges {
    /// Brings a forge up to date: asks for its repositories, and makes sources of those that hold packages. A failure
    /// leaves everything as it was, and is remembered at the source.
    pub async fn discover(&self, forge: &Source, run: &SyncRun<'_>) -> Result<Discovery> {
        let result = self.try_discover(forge, run).await;
        if let Err(error) = &result
            && error.kind() != Kind::Conflict
            && forge.state != SourceState::Held
            && forge.problem.as_deref() != Some(error.message())
        {
            let troubled = source_rows::troubled(forge.id, SourceState::Failed, error.message());
            let batch: Batch = run.guards.iter().cloned().chain([troubled]).collect();
            if let Err(second) = self.sources.db.commit(batch).await {
                tracing::warn!(source = %forge.name, error = %second, "the failure of a discovery could not be stored");
            }
        }
        result
    }

    async fn try_discover(&self, forge: &Source, run: &SyncRun<'_>) -> Result<Discovery> {
        let kind = ForgeKind::of(forge)
            .ok_or_else(|| Error::invalid(format!("`{}` is no forge: it lists no repositories", forge.name)))?;
        let (api, credential) = self.api(forge, kind).await?;
        let mut round = Round {
            forges: self,
            forge,
            settings: ForgeSettings::read(&forge.settings)?,
            run,
            clones_at: clone_origin(kind, &self.api_url(kind, Some(&forge.url))?),
            by_url: HashMap::new(),
            names: HashSet::new(),
            done: Discovery::default(),
            api,
            dialect: kind.dialect(),
            credential,
        };
        let listing = round.list().await?;
        round.compare(listing).await?;
        round.finish().await
    }
}

impl Round<'_> {
    /// Asks for every page of the list.
    async fn list(&mut self) -> Result<Listing> {
        (self.run.progress)("asking for repositories");
        let mut listing = Listing { repositories: Vec::new(), whole: true };
        let Some((mut url, mut page)) = self.first_page().await? else {
            listing.whole = false;
            return Ok(listing);
        };
        let mut seen = HashSet::new();
        loop {
            if !seen.insert(url.to_string()) || seen.len() > MOST_PAGES {
                return Err(self.api.wrong(&url, "goes on without an end"));
            }
            listing.repositories.extend(page.repositories);
            if listing.repositories.len() > MOST {
                return Err(Error::new(
                    Kind::TooLarge,
                    format!(
                        "`{}` has more than {MOST} repositories: name fewer, for example by group",
                        self.settings.owner
                    ),
                ));
            }
            let Some(next) = page.next else { break };
            url = self.api.next(&next, &url)?;
            (self.run.progress)(&format!("{} repositories listed", listing.repositories.len()));
            match self.page(&url).await? {
                Turn::Page(next) => page = next,
                Turn::Nothing => return Err(self.api.wrong(&url, "is a next page that is not there")),
                Turn::Later => {
                    listing.whole = false;
                    break;
                }
            }
        }
        Ok(listing)
    }

    /// The first page, wherever this owner's list is; `None` if the forge wants to be left alone.
    async fn first_page(&mut self) -> Result<Option<(Url, Page)>> {
        let mut paths = self.dialect.listings(&self.settings.owner, self.settings.is_deep());
        let mut at = 0;
        while let Some(path) = paths.get(at) {
            let url = self.api.url(path)?;
            match self.page(&url).await? {
                Turn::Page(page) => return Ok(Some((url, page))),
                Turn::Later => return Ok(None),
                Turn::Nothing => at += 1,
            }
            // No organisation, so a user: who asks for its own sees more of them elsewhere.
            if at == 1
                && let Some(own) = self.dialect.own_listing()
                && self.is_own().await?
            {
                paths.insert(1, own.to_owned());
            }
        }
        Err(Error::not_found(format!(
            "there is no `{}` at {}, or it is hidden from {}",
            self.settings.owner,
            self.forge.url,
            self.credential
                .as_deref()
                .map_or_else(|| "those who show no credential".to_owned(), |name| format!("`{name}`"))
        )))
    }

    /// Whether the owner is whoever the credential stands for.
    async fn is_own(&mut self) -> Result<bool> {
        if self.api.is_anonymous() {
            return Ok(false);
        }
        let url = self.api.url(self.dialect.whoami())?;
        let Said::New(answer) = self.api.ask(&url, None).await? else { return Ok(false) };
        let account = self.dialect.account(&answer.body);
        Ok(account.is_ok_and(|account| account.name.eq_ignore_ascii_case(&self.settings.owner)))
    }

    /// One page, from here if the forge says that it is the same as before.
    async fn page(&mut self, url: &Url) -> Result<Turn> {
        let (db, forge) = (&self.forges.sources.db, self.forge.id);
        let subject = format!("{KEPT}{url}");
        let kept = upstream_documents::find(db, forge, &subject).await?;
        let said = self.api.ask(url, kept.as_ref().map(|kept| kept.validator.as_str())).await?;
        let answer = match said {
            Said::New(answer) => answer,
            Said::Same => {
                let kept = kept.ok_or_else(|| self.api.wrong(url, "answers 304 to a question without conditions"))?;
                return Ok(Turn::Page(self.api.read(url, &kept.content()?)?));
            }
            Said::Nothing => return Ok(Turn::Nothing),
            Said::Refused(status) => return Err(self.api.refused(url, status, self.credential.as_deref())),
            Said::Later(at) => {
                self.done.resume_at = Some(at);
                return Ok(Turn::Later);
            }
        };
        let mut page = self
            .dialect
            .page(&answer.body)
            .map_err(|error| self.api.wrong(url, "answers with no list of repositories").caused_by(error))?;
        page.next = page.next.or_else(|| next_link(&answer.headers));
        // What no forge writes is not shown to anybody either.
        page.repositories.retain(|found| is_path(&found.name) && !found.id.is_empty() && found.id.len() <= 64);
        let validator = answer.headers.get(http::header::ETAG).and_then(|value| value.to_str().ok());
        // An entity tag may be that of the body alone: the last page stays the same when another one follows it.
        if let Some(validator) = validator.filter(|_| page.next.is_some()) {
            let content = serde_json::to_vec(&page).map_err(|error| Error::internal("keeping a page", error))?;
            let document = Document::new(&content, validator, db.host().now());
            let mut batch: Batch = self.run.guards.iter().cloned().collect();
            batch.push(upstream_documents::put(forge, &subject, &document));
            db.commit(batch).await?;
        } else if kept.is_some() {
            let mut batch: Batch = self.run.guards.iter().cloned().collect();
            batch.push(upstream_documents::remove(forge, &subject));
            db.commit(batch).await?;
        }
        Ok(Turn::Page(page))
    }

    /// Compares what is listed with what is known, one repository after the other.
    async fn compare(&mut self, listing: Listing) -> Result<()> {
        let db = &self.forges.sources.db;
        let mut wanted: BTreeMap<String, Found> = BTreeMap::new();
        for found in listing.repositories {
            if self.settings.wants(&found.name) {
                wanted.insert(found.id.clone(), found);
            }
        }
        self.done.listed = wanted.len();
        let sources = source_rows::list(db).await?;
        self.names = sources.iter().map(|source| source.name.clone()).collect();
        let by_id: HashMap<_, _> = sources.iter().map(|source| (source.id, source.clone())).collect();
        self.by_url = sources.into_iter().map(|source| (same(&source.url), source)).collect();
        let mut known: BTreeMap<String, Repository> =
            rows::of_source(db, self.forge.id).await?.into_iter().map(|row| (row.remote_id.clone(), row)).collect();
        self.relink(&wanted, &mut known).await?;
        if listing.whole {
            self.hold_if_too_many_vanish(&wanted, &known).await?;
        }
        let mut plain = Vec::new();
        let mut order: Vec<&Found> = wanted.values().collect();
        order.sort_by(|a, b| a.name.cmp(&b.name));
        for found in order {
            let row = known.get(&found.id);
            let child = row.and_then(|row| by_id.get(&row.child_id?));
            match (row, child) {
                (Some(row), Some(child)) => self.follow(found, row, child).await?,
                // Somebody removed that source, and does not want it back.
                (Some(Repository { state: RepositoryState::Added | RepositoryState::Gone, .. }), None) => {}
                _ => self.consider(found, row, &mut plain).await?,
            }
        }
        self.remember(plain).await?;
        if listing.whole {
            for row in known.values().filter(|row| !wanted.contains_key(&row.remote_id)) {
                self.let_go(row, row.child_id.and_then(|id| by_id.get(&id))).await?;
            }
        }
        Ok(())
    }

    /// A repository that was removed and made again has another id and the same address: it is the same source.
    async fn relink(
        &mut self,
        wanted: &BTreeMap<String, Found>,
        known: &mut BTreeMap<String, Repository>,
    ) -> Result<()> {
        let new: Vec<&Found> = wanted.values().filter(|found| !known.contains_key(&found.id)).collect();
        for found in new {
            let Some(child) = self.by_url.get(&same(&found.clone)) else { continue };
            let old = known.values().find(|row| row.child_id == Some(child.id) && !wanted.contains_key(&row.remote_id));
            let Some(old) = old.cloned() else { continue };
            let row = Repository { remote_id: found.id.clone(), ..old.clone() };
            let mut batch: Batch = self.run.guards.iter().cloned().collect();
            batch.push(source_rows::exists(self.forge.id));
            batch.push(rows::remove(self.forge.id, &old.remote_id));
            batch.push(rows::put(self.forge.id, &row));
            self.forges.sources.db.commit(batch).await?;
            known.remove(&old.remote_id);
            known.insert(row.remote_id.clone(), row);
        }
        Ok(())
    }

    /// Does nothing at all if more than a third of the repositories are not listed any more, until somebody accepts that.
    async fn hold_if_too_many_vanish(
        &self,
        wanted: &BTreeMap<String, Found>,
        known: &BTreeMap<String, Repository>,
    ) -> Result<()> {
        let there: Vec<&Repository> =
            known.values().filter(|row| row.state == RepositoryState::Added && row.child_id.is_some()).collect();
        let vanished: Vec<&str> =
            there.iter().filter(|row| !wanted.contains_key(&row.remote_id)).map(|row| row.name.as_str()).collect();
        if vanished.len() * 3 <= there.len() || self.forge.state == SourceState::Released {
            return Ok(());
        }
        let problem = format!(
            "{} of the {} repositories are not listed any more, {}: nothing was changed. If that is right, run `larder source sync {} --accept-removals`; if not, look whether the credential still sees them",
            vanished.len(),
            there.len(),
            vanished.iter().take(5).copied().collect::<Vec<_>>().join(", "),
            self.forge.name
        );
        if self.forge.state != SourceState::Held || self.forge.problem.as_deref() != Some(problem.as_str()) {
            let db = &self.forges.sources.db;
            let event = Event::new(self.run.actor, "source.hold", format!("source:{}", self.forge.name))
                .with(json!({ "repositories": there.len(), "vanished": vanished }));
            let mut batch: Batch = self.run.guards.iter().cloned().collect();
            batch.push(source_rows::troubled(self.forge.id, SourceState::Held, &problem));
            batch.push(events::record(db.host(), &event));
            db.commit(batch).await?;
        }
        Err(Error::conflict(problem))
    }

    /// Whether a repository holds packages of any format: one question, or a few where its root folder is large. `None`
    /// if the forge wants to be left alone.
    pub(super) async fn holds_packages(&mut self, found: &Found) -> Result<Option<bool>> {
        if self.done.resume_at.is_some() {
            return Ok(None);
        }
        (self.run.progress)(&format!("looking into {}", found.name));
        let mut url = self.api.url(&self.dialect.root(found))?;
        self.done.looked += 1;
        for _ in 0..MOST_ENTRY_PAGES {
            let answer = match self.api.ask(&url, None).await? {
                Said::New(answer) => answer,
                Said::Later(at) => {
                    self.done.resume_at = Some(at);
                    return Ok(None);
                }
                Said::Refused(status) => {
                    let error = self.api.refused(&url, status, self.credential.as_deref());
                    self.done.refused.insert(found.name.clone(), error.message().to_owned());
                    return Ok(Some(false));
                }
                Said::Nothing | Said::Same => return Ok(Some(false)),
            };
            let (entries, next) = self
                .dialect
                .entries(&answer.body)
                .map_err(|error| self.api.wrong(&url, "answers with no list of files").caused_by(error))?;
            if entries.iter().any(|entry| self.is_telling(entry)) {
                return Ok(Some(true));
            }
            match next.or_else(|| next_link(&answer.headers)) {
                Some(next) => url = self.api.next(&next, &url)?,
                None => break,
            }
        }
        Ok(Some(false))
    }

    /// Writes down what it came to.
    async fn finish(mut self) -> Result<Discovery> {
        self.done.rate = self.api.rate;
        self.done.credential_expires_at = self.api.expires_at;
        let db = &self.forges.sources.db;
        let report = self.done.report();
        let mut batch: Batch = self.run.guards.iter().cloned().collect();
        batch.push(source_rows::exists(self.forge.id));
        if self.done.changed_something() || self.forge.synced_at.is_none() {
            batch.push(source_rows::synced(self.forge.id, db.host().now(), &report.to_string()));
            let event = Event::new(self.run.actor, "source.discover", format!("source:{}", self.forge.name));
            batch.push(events::record(db.host(), &event.with(report)));
            batch.push(larder_db::changes::notify(db.host(), registry::TOPIC));
        } else {
            batch.push(source_rows::reported(self.forge.id, &report.to_string()));
        }
        db.commit(batch).await?;
        Ok(self.done)
    }
}

/// One question for a page.
enum Turn {
    Page(Page),
    Nothing,
    Later,
}

/// An address as two writings of the same one have it.
pub(super) fn same(url: &str) -> String {
    let url = url.trim_end_matches('/');
    url.strip_suffix(".git").unwrap_or(url).to_ascii_lowercase()
}
