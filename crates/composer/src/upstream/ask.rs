//! Asking one upstream: who may have what, what its answers mean, and when it is to be left alone. Every request runs
//! through the port, which checks where it goes and shows the credential to its own host alone.
//!
//! What this is not: what is asked for (`client`), and what the documents say (`root`, `package`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use larder_core::{Digest, Error, Kind, Time};
use larder_db::Db;
use larder_sources::{
    fetch::{self, Fetch, FetchRequest, FetchResponse, shown},
    registry::{self, Upstream},
    turns::{Turn, Turns},
    vault::Vault,
};
use url::Url;

use super::{Failure, health::Health, package::Wrong};

/// How long the head of an answer may take for a document, which somebody waits for, and the whole of it.
const HEAD: Duration = Duration::from_secs(15);
const DOCUMENT: Duration = Duration::from_secs(60);

/// The largest document about one package, and the largest root file with all that it includes.
pub(super) const PACKAGE: u64 = 64 * 1024 * 1024;
pub(super) const ROOT: u64 = 128 * 1024 * 1024;

/// Above this size a document about one package waits for its turn to be read on: honest ones are smaller, and together
/// they would fill the memory.
const LARGE: usize = 8 * 1024 * 1024;
const LARGE_AT_ONCE: usize = 2;

/// How long a host that is too slow is left alone; how long one is that asks for patience, at most and if it does not say.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: u64 = 600;
const BUSY_PAUSE: u64 = 30;

/// How many hosts are remembered to be left alone.
const MOST_PAUSES: usize = 1_000;

/// How many documents and dists are fetched at once from one upstream, and how long one waits for its turn.
const DOCUMENTS: usize = 24;
const DISTS: usize = 16;
const TURN: Duration = Duration::from_secs(120);

/// Which line of a validator tells where its upstream was; those that were kept by older versions have none.
const PLACE_LINE: usize = 3;

/// Asks one upstream.
pub(super) struct Asker {
    pub(super) upstream: Arc<Upstream>,
    pub(super) db: Db,
    pub(super) health: Arc<Health>,
    vault: Vault,
    fetch: Arc<dyn Fetch>,
    /// By host: until when it is left alone, and why.
    pauses: Mutex<HashMap<String, (Time, Failure)>>,
    documents: Turns,
    large: Turns,
    dists: Turns,
}

/// A large document, and its turn to be in memory.
struct Large {
    bytes: Bytes,
    _turn: Turn,
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What became of asking for a document.
#[derive(Debug)]
pub(super) enum Asked {
    /// It is what it was.
    Same,
    /// It is this.
    Document {
        bytes: Bytes,
        /// To be shown with the next question.
        validator: String,
    },
}

impl Asker {
    pub(super) fn new(upstream: Arc<Upstream>, db: Db, vault: Vault, fetch: Arc<dyn Fetch>) -> Self {
        let (documents, large, dists) = (Turns::new(DOCUMENTS), Turns::new(LARGE_AT_ONCE), Turns::new(DISTS));
        let health = Health::new(db.clone(), &upstream.source);
        Self { upstream, db, health, vault, fetch, pauses: Mutex::default(), documents, large, dists }
    }

    /// A document of at most `most` bytes. `known` is the validator of what is here.
    pub(super) async fn document(&self, url: &Url, most: u64, known: Option<&str>) -> Result<Asked, Failure> {
        self.document_or(url, most, known, None).await
    }

    /// Like [`Self::document`]; an answer of the status `also` will do as well.
    pub(super) async fn document_or(
        &self,
        url: &Url,
        most: u64,
        known: Option<&str>,
        also: Option<StatusCode>,
    ) -> Result<Asked, Failure> {
        let known = known.filter(|known| self.is_from_here(known)).map(Validator::read);
        let mut request = FetchRequest::get(url.clone());
        if let Some(known) = &known {
            known.dress(&mut request.headers);
        }
        (request.head, request.whole, request.most, request.decode) = (HEAD, Some(DOCUMENT), Some(most), true);
        let is_conditional = !request.headers.is_empty();
        let _turn = self.turn(&self.documents).await?;
        let answer = self.ask(request).await?;
        if answer.status == StatusCode::NOT_MODIFIED && is_conditional {
            self.health.is_good();
            return Ok(Asked::Same);
        }
        if Some(answer.status) != also {
            self.judge(url, &answer)?;
        }
        let mut validator = Validator::of(&answer.headers);
        let bytes = self.noted(url, self.read(answer, most).await)?;
        validator.hash = Digest::of(&bytes).hex();
        // The same bytes under another date are told, so that the next question is asked with that date.
        if known.is_some_and(|known| known == validator) {
            return Ok(Asked::Same);
        }
        Ok(Asked::Document { bytes, validator: format!("{}\n{}", validator.written(), self.place()) })
    }

    /// Whether a validator is of an answer from where the upstream is now: what it said where it was before is no condition
    /// here. Whoever has not heard yet that it moved may have kept such an answer since.
    fn is_from_here(&self, validator: &str) -> bool {
        validator.split('\n').nth(PLACE_LINE).is_none_or(|place| place == self.place())
    }

    /// Tells the address of the upstream from others.
    fn place(&self) -> String {
        Digest::of(self.upstream.url.as_str().as_bytes()).hex()[..16].to_owned()
    }

    /// The whole body. Of one about a package that turns out to be large, as much as fits, until others are done with.
    async fn read(&self, mut answer: FetchResponse, most: u64) -> Result<Bytes, Failure> {
        if most != PACKAGE {
            return Ok(answer.read_all(most).await?);
        }
        let (mut all, mut large) = (BytesMut::new(), None);
        while let Some(piece) = answer.body.next().await {
            let piece = piece?;
            if (all.len() + piece.len()) as u64 > most {
                let place = shown(&answer.url);
                return Err(Failure::Failed(Kind::Upstream, format!("{place} answers with more than {most} bytes")));
            }
            all.extend_from_slice(&piece);
            if large.is_none() && all.len() > LARGE {
                large = Some(self.turn(&self.large).await?);
            }
        }
        let all = all.freeze();
        Ok(match large {
            Some(turn) => Bytes::from_owner(Large { bytes: all, _turn: turn }),
            None => all,
        })
    }

    /// A file of at most `most` bytes, as it arrives.
    pub(super) async fn file(&self, url: &Url, most: u64) -> Result<FetchResponse, Failure> {
        let request = FetchRequest { most: Some(most), ..FetchRequest::get(url.clone()) };
        let answer = self.ask(request).await?;
        self.judge(url, &answer)?;
        self.health.is_good();
        Ok(answer)
    }

    /// Waits for its turn to fetch a dist.
    pub(super) async fn dist_turn(&self) -> Result<Turn, Failure> {
        self.turn(&self.dists).await
    }

    /// What came from `url` is not what it should be, for instance not JSON.
    pub(super) fn wrong(&self, url: &Url, bytes: &[u8], wrong: &Wrong) -> Failure {
        let begins = bytes.iter().find(|byte| !byte.is_ascii_whitespace() && !matches!(byte, 0xef | 0xbb | 0xbf));
        let why = match begins {
            Some(b'<') => "is a web page, and no JSON".to_owned(),
            None => "is empty".to_owned(),
            _ => wrong.0.clone(),
        };
        self.told(Failure::Failed(Kind::Upstream, format!("what {} answers {why}; nothing of it is kept", shown(url))))
    }

    /// Writes trouble to the log, and to where people look for it.
    pub(super) fn told(&self, failure: Failure) -> Failure {
        if !matches!(failure, Failure::Absent) {
            tracing::warn!(source = %self.upstream.source.name, why = failure.text(), "an upstream is in trouble");
            self.health.is_bad(failure.text());
        }
        failure
    }

    async fn turn(&self, turns: &Turns) -> Result<Turn, Failure> {
        let turn = self.db.host().within(TURN, turns.take()).await;
        turn.ok_or_else(|| {
            let host = fetch::origin(&self.upstream.url);
            Failure::Failed(Kind::Unavailable, format!("too much is being fetched from {host} just now: try again"))
        })
    }

    async fn ask(&self, mut request: FetchRequest) -> Result<FetchResponse, Failure> {
        let url = request.url.clone();
        if let Some(failure) = self.pause(&fetch::origin(&url)) {
            return Err(failure);
        }
        request.secret = registry::secret(&self.db, &self.vault, &self.upstream).await?;
        self.noted(&url, self.fetch.fetch(request).await.map_err(not_asked))
    }

    /// Whether an answer is what was asked for.
    fn judge(&self, url: &Url, answer: &FetchResponse) -> Result<(), Failure> {
        let (place, status) = (shown(url), answer.status);
        let outcome = match status {
            StatusCode::OK => return Ok(()),
            StatusCode::NOT_FOUND | StatusCode::GONE => return Err(Failure::Absent),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Refused(self.refused(url, status)),
            StatusCode::TOO_MANY_REQUESTS => busy(url, &answer.headers),
            StatusCode::SERVICE_UNAVAILABLE if answer.headers.contains_key(header::RETRY_AFTER) => {
                busy(url, &answer.headers)
            }
            status => Failure::Failed(Kind::Upstream, format!("{place} answers with {status}")),
        };
        self.noted(url, Err(outcome))
    }

    fn refused(&self, url: &Url, status: StatusCode) -> String {
        let (place, source) = (shown(url), &self.upstream.source.name);
        let todo = if self.upstream.source.credential_id.is_none() {
            format!("give the source `{source}` a credential (`larder credential add`)")
        } else if fetch::origin(url) == fetch::origin(&self.upstream.url) {
            format!("check the credential of the source `{source}`: it may have expired")
        } else {
            format!("the credential of the source `{source}` belongs to another host and is not sent there")
        };
        format!("{place} answers with {status}: {todo}")
    }

    /// Leaves no host alone any more.
    pub(super) fn forget_pauses(&self) {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn pause(&self, origin: &str) -> Option<Failure> {
        let pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, failure) = pauses.get(origin)?;
        (*until > self.db.host().now()).then(|| failure.clone())
    }

    /// Remembers trouble that the next request to the same host would meet as well.
    fn noted<T>(&self, url: &Url, answer: Result<T, Failure>) -> Result<T, Failure> {
        let Err(failure) = answer else { return answer };
        let pause = match &failure {
            Failure::Busy(_, seconds) => Some(Duration::from_secs(*seconds)),
            Failure::Failed(Kind::Timeout, _) => Some(PAUSE),
            _ => None,
        };
        if let Some(pause) = pause {
            let until = self.db.host().now().plus(pause);
            let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
            if pauses.len() >= MOST_PAUSES {
                pauses.clear();
            }
            pauses.insert(fetch::origin(url), (until, failure.clone()));
        }
        Err(self.told(failure))
    }
}

/// An address that the port refuses is one that the upstream has led to.
fn not_asked(error: Error) -> Failure {
    match error.kind() {
        Kind::Invalid => Failure::Elsewhere(error.message().to_owned()),
        _ => error.into(),
    }
}

fn busy(url: &Url, headers: &HeaderMap) -> Failure {
    let after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let seconds = after.unwrap_or(BUSY_PAUSE).clamp(1, LONGEST_PAUSE);
    Failure::Busy(format!("{} has been asked too often, or is closed for a while", fetch::origin(url)), seconds)
}

/// What makes a question a conditional one: the hash of the body, and what the upstream said of it, word for word.
#[derive(Debug, Default, PartialEq, Eq)]
struct Validator {
    hash: String,
    modified: String,
    tag: String,
}

impl Validator {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        Self { hash: String::new(), modified: text(header::LAST_MODIFIED), tag: text(header::ETAG) }
    }

    /// Anything that is no validator of ours makes no condition.
    fn read(text: &str) -> Self {
        let mut lines = text.split('\n').map(str::to_owned);
        let mut line = || lines.next().unwrap_or_default();
        Self { hash: line(), modified: line(), tag: line() }
    }

    fn written(&self) -> String {
        format!("{}\n{}\n{}", self.hash, self.modified, self.tag)
    }

    fn dress(&self, headers: &mut HeaderMap) {
        for (name, text) in [(header::IF_MODIFIED_SINCE, &self.modified), (header::IF_NONE_MATCH, &self.tag)] {
            if let (false, Ok(value)) = (text.is_empty(), HeaderValue::from_str(text)) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_upstream_says_of_a_document_is_said_back_word_for_word() {
        let mut headers = HeaderMap::new();
        headers.insert(header::LAST_MODIFIED, HeaderValue::from_static("Thu,  1 Jan 1970"));
        headers.insert(header::ETAG, HeaderValue::from_static("W/\"x\""));
        let validator = Validator { hash: "ab".into(), ..Validator::of(&headers) };
        let again = Validator::read(&validator.written());
        assert_eq!(again, validator);
        let mut asked = HeaderMap::new();
        again.dress(&mut asked);
        assert_eq!(asked[header::IF_MODIFIED_SINCE], "Thu,  1 Jan 1970");
        assert_eq!(asked[header::IF_NONE_MATCH], "W/\"x\"");
        for text in ["", "ab", "ab\n\n"] {
            let mut asked = HeaderMap::new();
            Validator::read(text).dress(&mut asked);
            assert!(asked.is_empty(), "{text}");
        }
    }
}
