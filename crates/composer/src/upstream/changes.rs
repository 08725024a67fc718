//! What an upstream says has changed. Where it says so, one question answers for all documents that it does not mention.
//!
//! A document that was looked at and found unchanged is **covered**: it is true for as long as the upstream, asked again and
//! again what has changed since, does not mention it. Only what a look found unchanged is covered, and what is mentioned
//! has to be found so twice: the document may come to an upstream's mirrors later than the news of it.

use larder_core::{Kind, Result, Time};
use larder_db::{
    Batch, CommitError, Statement,
    upstream_checks::{self as checks, Check},
};

use super::{Failure, Proxy, client::Client, part, subject};

/// The subject of the check that keeps what it said last.
const SUBJECT: &str = "changes";

/// What the check of a document says that was mentioned since.
const MENTIONED: &str = "mentioned";

/// What it says of one that is here, and not covered.
const HERE: &str = "here";

/// What it says of one that the upstream does not have.
const GONE: &str = "absent";

/// So many changes at once are no news any more: everything is looked at again instead.
const MOST: usize = 5_000;

/// How far an upstream's changes are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Feed {
    /// Since when without a gap: what was covered before counts no more.
    since: String,
    /// What to ask with next time.
    timestamp: String,
    /// When it was asked last.
    pub(super) polled_at: Time,
}

impl Feed {
    fn read(check: &Check) -> Option<Self> {
        let (since, timestamp) = check.validator.split_once(' ')?;
        Some(Self { since: since.to_owned(), timestamp: timestamp.to_owned(), polled_at: check.checked_at })
    }

    fn check(&self) -> Check {
        Check { checked_at: self.polled_at, validator: self.validator() }
    }

    fn validator(&self) -> String {
        format!("{} {}", self.since, self.timestamp)
    }

    /// Guard: nobody has heard of newer changes.
    pub(super) fn is_newest(&self, client: &Client) -> Statement {
        checks::is_same(client.upstream.id(), SUBJECT, &self.validator())
    }
}

/// What the check of a document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is here.
    Here,
    /// It is here, and true as long as the feed that began so does not mention it.
    Covered(String),
    /// It was mentioned since it was looked at.
    Mentioned,
    /// The upstream does not have it.
    Gone,
}

impl Standing {
    pub(super) fn read(check: &Check) -> Self {
        match check.validator.as_str() {
            MENTIONED => Self::Mentioned,
            GONE => Self::Gone,
            other => other
                .strip_prefix(HERE)
                .and_then(|rest| rest.strip_prefix(' '))
                .map_or(Self::Here, |since| Self::Covered(since.to_owned())),
        }
    }

    pub(super) fn validator(&self) -> String {
        match self {
            Self::Here => HERE.to_owned(),
            Self::Covered(since) => format!("{HERE} {since}"),
            Self::Mentioned => MENTIONED.to_owned(),
            Self::Gone => GONE.to_owned(),
        }
    }

    /// As `feed` has it, if that covers it.
    pub(super) fn is_covered_by(&self, feed: &Feed) -> bool {
        matches!(self, Self::Covered(since) if *since == feed.since)
    }

    /// What it is after a look that found nothing new.
    pub(super) fn confirmed(&self, feed: Option<&Feed>) -> Self {
        match (self, feed) {
            (Self::Here | Self::Covered(_), Some(feed)) => Self::Covered(feed.since.clone()),
            _ => Self::Here,
        }
    }
}

impl Proxy {
    /// How far the changes of an upstream are known, without asking it.
    pub(super) async fn feed(&self, client: &Client) -> Result<Option<Feed>> {
        let id = client.upstream.id();
        let before = {
            let known = self.known();
            if let Some(feed) = known.feeds.get(&id).filter(|feed| self.is_recent(client, feed)) {
                return Ok(Some(feed.clone()));
            }
            known.changes
        };
        let feed = checks::find(self.db(), id, SUBJECT).await?.as_ref().and_then(Feed::read);
        if let Some(feed) = &feed {
            let mut known = self.known();
            if known.of_all <= before {
                known.feeds.insert(id, feed.clone());
            }
        }
        Ok(feed)
    }

    /// Hears what has changed upstream, unless that was done a moment ago; `None` if it does not tell. Where nothing is
    /// known yet that happens behind, because nothing can be covered yet.
    pub(super) async fn newest_feed(&self, client: &Client) -> Result<Option<Feed>, Failure> {
        let feed = self.feed(client).await?;
        if let Some(feed) = feed.as_ref().filter(|feed| self.is_recent(client, feed)) {
            return Ok(Some(feed.clone()));
        }
        if client.root().await?.changes.is_none() {
            return Ok(None);
        }
        let key = format!("{SUBJECT}\0{}", client.upstream.id());
        if self.trouble(&key).is_some() {
            return Ok(None);
        }
        let (proxy, of) = (self.clone(), client.clone());
        let flight = self.inner.polls.join(self.db().host(), &key, || async move {
            let polled = proxy.poll(&of).await;
            if let Err(failure) = &polled {
                let source = &of.upstream.source.name;
                tracing::warn!(
                    source,
                    why = failure.text(),
                    "an upstream does not tell its changes; documents are asked for one by one"
                );
                proxy.note_trouble(&format!("{SUBJECT}\0{}", of.upstream.id()), failure);
            }
            polled
        });
        if feed.is_none() {
            return Ok(None);
        }
        Ok(flight.await.ok())
    }

    fn is_recent(&self, client: &Client, feed: &Feed) -> bool {
        self.now().since(feed.polled_at) < client.upstream.source.every
    }

    async fn poll(&self, client: &Client) -> Result<Feed, Failure> {
        let (db, id) = (self.db(), client.upstream.id());
        let before = checks::find(db, id, SUBJECT).await?.as_ref().and_then(Feed::read);
        if let Some(feed) = before.as_ref().filter(|feed| self.is_recent(client, feed)) {
            // Another replica was faster.
            return Ok(feed.clone());
        }
        // What changes while it answers is what it tells next time.
        let polled_at = self.now();
        let told = client.changes(before.as_ref().map(|feed| feed.timestamp.as_str())).await?;
        let is_gap = told.resync || told.actions.len() > MOST;
        let since = match &before {
            Some(feed) if !is_gap => feed.since.clone(),
            _ => polled_at.micros().to_string(),
        };
        let feed = Feed { since, timestamp: told.timestamp, polled_at };
        let mut batch = Batch::new();
        batch.push(before.map_or_else(|| checks::is_new(id, SUBJECT), |before| before.is_newest(client)));
        if !is_gap {
            for change in &told.actions {
                batch.push(checks::mark(id, &subject(&change.package, change.dev), MENTIONED));
                if change.deleted && !change.dev {
                    batch.push(checks::mark(id, &subject(&change.package, true), MENTIONED));
                }
            }
        }
        batch.push(checks::put(id, SUBJECT, &feed.check()));
        match db.commit(batch).await {
            Ok(_) => {}
            Err(CommitError::Guard(_)) => {
                return Err(Failure::Failed(Kind::Conflict, "another replica asked at the same time".to_owned()));
            }
            Err(error) => return Err(larder_core::Error::from(error).into()),
        }
        for change in &told.actions {
            self.inner.fresh.remove(&part(&change.package, false));
            self.inner.fresh.remove(&part(&change.package, true));
        }
        self.known().feeds.insert(id, feed.clone());
        let names = told.actions.iter().map(|change| change.package.as_str());
        if let Err(error) = self.inner.reservations.note_offered(&client.upstream.source, names).await {
            let source = &client.upstream.source.name;
            tracing::warn!(
                source,
                error = error.chain(),
                "the names that an upstream offers could not be compared with our own"
            );
        }
        Ok(feed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_reads_back() {
        let feed = Feed { since: "5".into(), timestamp: "16 7".into(), polled_at: Time::from_seconds(9) };
        assert_eq!(Feed::read(&feed.check()), Some(feed.clone()));
        for standing in [Standing::Here, Standing::Covered("5".into()), Standing::Mentioned, Standing::Gone] {
            let check = Check { checked_at: feed.polled_at, validator: standing.validator() };
            assert_eq!(Standing::read(&check), standing);
        }
    }

    #[test]
    fn only_what_was_found_unchanged_is_covered() {
        let feed = Feed { since: "5".into(), timestamp: "6".into(), polled_at: Time::from_seconds(9) };
        let later = Feed { since: "8".into(), ..feed.clone() };
        let covered = Standing::Here.confirmed(Some(&feed));
        assert!(covered.is_covered_by(&feed) && !covered.is_covered_by(&later));
        assert_eq!(Standing::Mentioned.confirmed(Some(&feed)), Standing::Here);
        assert_eq!(Standing::Gone.confirmed(Some(&feed)), Standing::Here);
        assert_eq!(covered.confirmed(None), Standing::Here);
    }
}
