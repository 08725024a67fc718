//! Speaking to one upstream: where things are, who may have them, and what its answers mean. Every request runs through
//! the port, which checks where it goes; the credential never leaves the upstream's house (see `challenge`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use larder_core::{Digest, Kind, Time};
use larder_db::Db;
use larder_sources::{
    fetch::{self, Authorization, Fetch, FetchRequest, FetchResponse, Secret, shown},
    registry::{self, Upstream},
    turns::{Turn, Turns},
    vault::Vault,
};
use serde::Deserialize;
use url::Url;

use super::{Failure, answering, challenge, challenge::Challenge, odd};
use crate::{
    answer::{API_VERSION, DOCKER_CONTENT_DIGEST, link, value},
    model,
};

/// What is taken for a manifest. Without it some registries convert what they have.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json, */*;q=0.1";

/// How long the head of an answer may take for what somebody waits for, and the whole of a document.
const HEAD: Duration = Duration::from_secs(15);
const DOCUMENT: Duration = Duration::from_secs(60);

/// The largest answer of a token server.
const TOKEN: u64 = 1024 * 1024;

/// How long a token lasts whose maker does not say (the token specification), and how long one is used at most.
const TOKEN_LIFE: u64 = 60;
const LONGEST_TOKEN_LIFE: u64 = 3_600;

/// How many repositories' tokens are kept.
const MOST_TOKENS: usize = 1_000;

/// How long an upstream that cannot be reached, or that asks for patience, is left alone.
const PAUSE: Duration = Duration::from_secs(5);

/// How long it is left alone at most, whatever it asks for, and if it asks for patience without saying for how long.
const LONGEST_PAUSE: u64 = 600;
const BUSY_PAUSE: u64 = 30;

/// How many blobs are fetched at once from one upstream, and how long one waits for its turn.
const DOWNLOADS: usize = 16;
const TURN: Duration = Duration::from_secs(120);

/// One upstream.
pub(super) struct Client {
    pub(super) upstream: Upstream,
    /// Where it answers.
    base: Url,
    db: Db,
    vault: Vault,
    fetch: Arc<dyn Fetch>,
    allow_local: bool,
    state: Mutex<State>,
    /// Held while a token is fetched, so that it is fetched once.
    fetching: futures_util::lock::Mutex<()>,
    turns: Turns,
}

#[derive(Default)]
struct State {
    /// How it wants to be shown who asks, as it said last.
    challenge: Option<Challenge>,
    /// By repository: a token, and until when it is good.
    tokens: HashMap<String, (String, Time)>,
    /// Until when it is left alone, and why.
    pause: Option<(Time, Failure)>,
}

/// A manifest as it came.
pub(super) struct Fetched {
    pub(super) bytes: Bytes,
    pub(super) digest: Digest,
    pub(super) content_type: Option<String>,
}

/// How an upstream meets whoever asks for nothing but itself.
pub(super) enum Door {
    /// It takes the credential, or needs none.
    Open,
    /// It wants another credential, or one for what is not public.
    Guarded,
    /// It lets nobody in, or not with this credential, and does not say how.
    Closed,
}

/// One request.
struct Ask<'a> {
    method: Method,
    /// The repository, by its name there.
    name: &'a str,
    url: Url,
    accept: Option<&'static str>,
    document: bool,
    /// The first byte that is wanted.
    from: u64,
    most: u64,
}

impl Client {
    pub(super) fn new(upstream: Upstream, db: Db, vault: Vault, fetch: Arc<dyn Fetch>, allow_local: bool) -> Self {
        let turns = Turns::new(DOWNLOADS);
        let mut base = upstream.url.clone();
        if let Some(host) = answering(&fetch::origin(&base)) {
            // It is a host of an https address, and stays one.
            let _ = base.set_host(Some(host));
        }
        let fetching = futures_util::lock::Mutex::default();
        Self { upstream, base, db, vault, fetch, allow_local, state: Mutex::default(), fetching, turns }
    }

    /// Its host, for people.
    pub(super) fn host(&self) -> String {
        fetch::origin(&self.base)
    }

    /// The digest of a manifest without the manifest; `None` if it does not tell.
    pub(super) async fn manifest_digest(&self, name: &str, reference: &str) -> Result<Option<Digest>, Failure> {
        let url = self.address(name, &format!("manifests/{reference}"))?;
        let ask = Ask { method: Method::HEAD, accept: Some(MANIFESTS), ..Ask::document(name, url) };
        let answer = match self.ask(ask).await {
            Ok(answer) => answer,
            Err(Failure::Failed(Kind::Invalid, _)) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        Ok(digest_of(&answer.headers))
    }

    /// A manifest, whose digest is right: the one that was asked for, or the one that the upstream says it has.
    pub(super) async fn manifest(&self, name: &str, reference: &str) -> Result<Fetched, Failure> {
        let url = self.address(name, &format!("manifests/{reference}"))?;
        let largest = model::LARGEST as u64;
        let ask = Ask { accept: Some(MANIFESTS), most: largest, ..Ask::document(name, url) };
        let answer = self.ask(ask).await?;
        let content_type =
            answer.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let announced = digest_of(&answer.headers);
        let bytes = self.noted(answer.read_all(largest).await.map_err(Failure::from))?;
        let wanted = reference.parse::<Digest>().ok().or(announced);
        let digest = wanted.map_or_else(|| Digest::of(&bytes), |wanted| Digest::of_as(wanted.algorithm(), &bytes));
        match wanted {
            Some(wanted) if wanted != digest => Err(Failure::Failed(
                Kind::Upstream,
                format!("{} sends other bytes than those of {wanted}; nothing of them is kept", self.host()),
            )),
            _ => Ok(Fetched { bytes, digest, content_type }),
        }
    }

    /// How large a blob is, without the blob; `None` if the upstream does not tell.
    pub(super) async fn blob_size(&self, name: &str, digest: &Digest) -> Result<Option<u64>, Failure> {
        let url = self.address(name, &format!("blobs/{digest}"))?;
        Ok(self.ask(Ask { method: Method::HEAD, document: false, ..Ask::document(name, url) }).await?.length)
    }

    /// A blob of `size` bytes from the byte `from` on, as it arrives.
    pub(super) async fn blob(
        &self,
        name: &str,
        digest: &Digest,
        from: u64,
        size: u64,
    ) -> Result<FetchResponse, Failure> {
        let url = self.address(name, &format!("blobs/{digest}"))?;
        self.ask(Ask { document: false, from, most: size - from, ..Ask::document(name, url) }).await
    }

    /// A document below a repository, such as `tags/list`, and where its next page is.
    pub(super) async fn page(&self, name: &str, at: &Page, most: u64) -> Result<(Bytes, Option<Page>), Failure> {
        let url = match at {
            Page::First(path) => self.address(name, path)?,
            Page::Next(url) => url.clone(),
        };
        let answer = self.ask(Ask { most, ..Ask::document(name, url.clone()) }).await?;
        let next = answer.headers.get(header::LINK).and_then(|value| value.to_str().ok()).and_then(link::target);
        let next = next.and_then(|target| url.join(target).ok());
        // A page of somebody else is no page of this list.
        let next = next.filter(|next| fetch::origin(next) == fetch::origin(&url) && next.scheme() == url.scheme());
        let bytes = self.noted(answer.read_all(most).await.map_err(Failure::from))?;
        Ok((bytes, next.map(Page::Next)))
    }

    /// Waits for its turn to fetch a blob; others wait until what this gives is dropped.
    pub(super) async fn turn(&self) -> Result<Turn, Failure> {
        let turn = self.db.host().within(TURN, self.turns.take()).await;
        turn.ok_or_else(|| {
            Failure::Failed(
                Kind::Unavailable,
                format!("too much is being fetched from {} just now: try again", self.host()),
            )
        })
    }

    /// Asks for the root of the API (the distribution specification, end-1). `Absent`: what answers is no registry.
    pub(super) async fn knock(&self) -> Result<Door, Failure> {
        let path = if self.base.path().ends_with("/v2/") { "" } else { "v2/" };
        let url = self.base.join(path).map_err(|_| Failure::Absent)?;
        let answer = self.ask_now(&Ask::document("", url)).await?;
        let is_page =
            answer.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/"));
        let is_registry = answer.headers.contains_key(API_VERSION) || !is_page;
        match answer.status {
            StatusCode::OK if is_registry => Ok(Door::Open),
            StatusCode::UNAUTHORIZED if Challenge::read(&answer.headers).is_some() => Ok(Door::Guarded),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Door::Closed),
            StatusCode::TOO_MANY_REQUESTS => Err(self.busy(&answer.headers)),
            status if status.is_server_error() => Err(odd(status, &self.host())),
            _ => Err(Failure::Absent),
        }
    }

    fn busy(&self, headers: &HeaderMap) -> Failure {
        let seconds = retry_after(headers).unwrap_or(BUSY_PAUSE).clamp(1, LONGEST_PAUSE);
        Failure::Busy(format!("{} has been asked too often", self.host()), seconds)
    }

    fn address(&self, name: &str, rest: &str) -> Result<Url, Failure> {
        let base = &self.base;
        let version = if base.path().ends_with("/v2/") { "" } else { "v2/" };
        let path = format!("{version}{name}/{rest}");
        base.join(&path)
            .map_err(|_| Failure::Failed(Kind::Internal, format!("{} has no place for {path}", shown(base))))
    }

    /// Asks, and says what the answer means. Only answers with what was asked for come back.
    async fn ask(&self, ask: Ask<'_>) -> Result<FetchResponse, Failure> {
        if let Some((until, failure)) = &self.state().pause
            && *until > self.now()
        {
            return Err(failure.clone());
        }
        let answer = self.ask_now(&ask).await;
        let answer = match answer {
            Ok(answer) => self.judge(&ask, answer),
            Err(failure) => Err(failure),
        };
        self.noted(answer)
    }

    async fn ask_now(&self, ask: &Ask<'_>) -> Result<FetchResponse, Failure> {
        let first = self.send(ask, self.shown_at_once(ask.name).await?).await?;
        if first.status != StatusCode::UNAUTHORIZED {
            return Ok(first);
        }
        let Some(challenge) = Challenge::read(&first.headers) else { return Ok(first) };
        // A token that it does not take any more is not shown again.
        self.state().tokens.remove(ask.name);
        self.state().challenge = Some(challenge);
        match self.shown_at_once(ask.name).await? {
            Some(secret) => self.send(ask, Some(secret)).await,
            None => Ok(first),
        }
    }

    async fn send(&self, ask: &Ask<'_>, secret: Option<Secret>) -> Result<FetchResponse, Failure> {
        let mut request = FetchRequest::new(ask.method.clone(), ask.url.clone());
        if let Some(accept) = ask.accept {
            request.headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        }
        if ask.from > 0 {
            request.headers.insert(header::RANGE, value(&format!("bytes={}-", ask.from)));
        }
        if ask.document {
            request.head = HEAD;
            request.whole = Some(DOCUMENT);
        }
        request.most = Some(ask.most);
        request.secret = secret;
        Ok(self.fetch.fetch(request).await?)
    }

    /// What an answer means.
    fn judge(&self, ask: &Ask<'_>, answer: FetchResponse) -> Result<FetchResponse, Failure> {
        let host = self.host();
        match answer.status {
            StatusCode::OK if ask.from == 0 => Ok(answer),
            StatusCode::PARTIAL_CONTENT if ask.from > 0 && begins_at(&answer.headers, ask.from) => Ok(answer),
            StatusCode::NOT_FOUND => Err(Failure::Absent),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Failure::Refused(format!("{host} answers {} for `{}`", answer.status, ask.name)))
            }
            StatusCode::TOO_MANY_REQUESTS => Err(self.busy(&answer.headers)),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED if ask.method == Method::HEAD => {
                Err(Failure::Failed(Kind::Invalid, format!("{host} does not answer HEAD")))
            }
            status => Err(odd(status, &host)),
        }
    }

    /// Remembers trouble that the next request would meet as well.
    fn noted<T>(&self, answer: Result<T, Failure>) -> Result<T, Failure> {
        let pause = match &answer {
            Err(Failure::Busy(_, seconds)) => Some(Duration::from_secs(*seconds)),
            Err(Failure::Failed(Kind::Timeout, _)) => Some(PAUSE),
            _ => None,
        };
        if let (Some(pause), Err(failure)) = (pause, &answer) {
            self.state().pause = Some((self.now().plus(pause), failure.clone()));
        }
        if let Err(Failure::Failed(_, message) | Failure::Busy(message, _)) = &answer {
            tracing::warn!(source = %self.upstream.source.name, why = message, "an upstream is in trouble");
        }
        answer
    }

    /// What is shown without being asked for it, because the upstream will ask.
    async fn shown_at_once(&self, name: &str) -> Result<Option<Secret>, Failure> {
        let challenge = self.state().challenge.clone();
        let own = registry::secret(&self.db, &self.vault, &self.upstream).await?;
        let (realm, service) = match (challenge, &own) {
            // It was told so by whoever added it.
            (_, Some(Secret { authorization: Authorization::Bearer(_) | Authorization::Header { .. }, .. })) => {
                return Ok(own);
            }
            (Some(Challenge::Basic), _) => return Ok(own),
            (None, _) => return Ok(None),
            (Some(Challenge::Bearer { realm, service }), _) => (realm, service),
        };
        if let Some(token) = self.token(name) {
            return Ok(Some(self.bearer(token)));
        }
        let _one = self.fetching.lock().await;
        if let Some(token) = self.token(name) {
            return Ok(Some(self.bearer(token)));
        }
        let (token, seconds) = self.fetch_token(name, &realm, service.as_deref(), own).await?;
        // Some time goes by before it is shown.
        let until = self.now().plus(Duration::from_secs(seconds.saturating_sub(10)));
        let mut state = self.state();
        if state.tokens.len() >= MOST_TOKENS {
            state.tokens.clear();
        }
        state.tokens.insert(name.to_owned(), (token.clone(), until));
        drop(state);
        Ok(Some(self.bearer(token)))
    }

    fn token(&self, name: &str) -> Option<String> {
        let now = self.now();
        self.state().tokens.get(name).filter(|(_, until)| *until > now).map(|(token, _)| token.clone())
    }

    fn bearer(&self, token: String) -> Secret {
        Secret { origin: self.host(), authorization: Authorization::Bearer(token) }
    }

    /// Fetches a token for one repository, or (without a name) for none, and how many seconds it is good for.
    async fn fetch_token(
        &self,
        name: &str,
        realm: &Url,
        service: Option<&str>,
        own: Option<Secret>,
    ) -> Result<(String, u64), Failure> {
        if realm.scheme() != "https" && !self.allow_local {
            return Err(Failure::Failed(
                Kind::Upstream,
                format!("{} wants tokens to be fetched without encryption, from {}", self.host(), shown(realm)),
            ));
        }
        let mut url = realm.clone();
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        if !name.is_empty() {
            url.query_pairs_mut().append_pair("scope", &format!("repository:{name}:pull"));
        }
        let secret = match own {
            None => None,
            Some(own) => {
                challenge::may_show(&self.upstream.url, realm)?;
                Some(Secret { origin: fetch::origin(realm), ..own })
            }
        };
        let with_credential = secret.is_some();
        let request = FetchRequest {
            secret,
            redirects: 0,
            head: HEAD,
            whole: Some(DOCUMENT),
            most: Some(TOKEN),
            decode: true,
            ..FetchRequest::get(url)
        };
        let answer = self.fetch.fetch(request).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let what = if with_credential { "the credential of the source" } else { "strangers" };
                let whose = if name.is_empty() { String::new() } else { format!(" for `{name}`") };
                return Err(Failure::Refused(format!("{} gives {what} no token{whose}", fetch::origin(realm))));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds = retry_after(&answer.headers).unwrap_or(BUSY_PAUSE).clamp(1, LONGEST_PAUSE);
                return Err(Failure::Busy(format!("{} has been asked too often", fetch::origin(realm)), seconds));
            }
            status => return Err(odd(status, &fetch::origin(realm))),
        }
        let bytes = answer.read_all(TOKEN).await?;
        let given: Given = serde_json::from_slice(&bytes).unwrap_or_default();
        let token = [given.token, given.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let token = token.ok_or_else(|| {
            Failure::Failed(Kind::Upstream, format!("{} does not answer with a token", fetch::origin(realm)))
        })?;
        Ok((token, given.expires_in.unwrap_or(TOKEN_LIFE).clamp(TOKEN_LIFE, LONGEST_TOKEN_LIFE)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        self.db.host().now()
    }
}

impl<'a> Ask<'a> {
    fn document(name: &'a str, url: Url) -> Self {
        Self { method: Method::GET, name, url, accept: None, document: true, from: 0, most: model::LARGEST as u64 }
    }
}

/// A page of a list.
#[derive(Clone, Debug)]
pub(super) enum Page {
    /// The first one, by its path below the repository.
    First(String),
    /// Where the one before says that it goes on.
    Next(Url),
}

/// What a token server answers.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Given {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

fn digest_of(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

/// Whether a part begins where it was asked to.
fn begins_at(headers: &HeaderMap, from: u64) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}
