//! One conversation with the API of a forge: every question goes to the one host that a person named, with the secret of
//! that host, and stops when the forge says that it was enough. What the answers mean is in the files of the forges.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use larder_core::{Error, Kind, Result, Time};
use larder_db::Db;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use url::Url;

use super::ForgeKind;
use crate::fetch::{self, Fetch, FetchRequest, FetchResponse, Secret};

/// The most bytes of one answer: a page of a hundred repositories has less than one megabyte.
const LARGEST: u64 = 8 * 1024 * 1024;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a forge is left alone that wants to be, if it does not say for how long.
const PAUSE: Duration = Duration::from_secs(15 * 60);

/// The longest and the shortest time for which one is left alone because of what it says.
const LONGEST_PAUSE: Duration = Duration::from_secs(86_400);
const SHORTEST_PAUSE: Duration = Duration::from_secs(60);

/// What a forge says of how often it may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// How often in all, within the forge's own span of time.
    pub limit: u64,
    /// How often still.
    pub remaining: u64,
    /// When it is `limit` again, in microseconds since 1970.
    pub reset_at: Option<i64>,
}

impl RateLimit {
    /// As the headers of an answer tell it: those of GitHub and Bitbucket begin with `x-`, those of GitLab do not.
    fn read(headers: &HeaderMap, now: Time) -> Option<Self> {
        let number = |name: &str| {
            let found = headers.get(format!("x-{name}")).or_else(|| headers.get(name))?;
            found.to_str().ok()?.trim().parse::<u64>().ok()
        };
        let remaining = number("ratelimit-remaining")?;
        // Seconds since 1970, or from now on.
        let reset = number("ratelimit-reset").and_then(|reset| i64::try_from(reset).ok()).map(|reset| {
            if reset > 1_000_000_000 { Time::from_seconds(reset) } else { Time::from_seconds(now.seconds() + reset) }
        });
        let limit = number("ratelimit-limit").unwrap_or(remaining);
        Some(Self { limit, remaining, reset_at: reset.map(Time::micros) })
    }

    /// When it is `limit` again.
    pub fn reset(&self) -> Option<Time> {
        self.reset_at.map(Time::from_micros)
    }

    /// How many questions are left to others who use the same credential.
    fn reserve(&self) -> u64 {
        self.limit / 20
    }
}

/// An answer.
pub(super) struct Answer {
    pub(super) body: Bytes,
    pub(super) headers: HeaderMap,
}

/// What became of a question.
pub(super) enum Said {
    /// Here it is.
    New(Answer),
    /// The same as the validator that was sent along stands for.
    Same,
    /// There is no such thing, or nothing in it.
    Nothing,
    /// The credential does not permit it: in the forge's words.
    Refused(StatusCode),
    /// Not before this time.
    Later(Time),
}

/// A conversation with one forge.
pub(super) struct Api {
    db: Db,
    fetch: Arc<dyn Fetch>,
    kind: ForgeKind,
    base: Url,
    secret: Option<Secret>,
    /// What the last answer said.
    pub(super) rate: Option<RateLimit>,
    /// When the credential ends, if an answer told it.
    pub(super) expires_at: Option<Time>,
}

impl Api {
    pub(super) fn new(db: Db, fetch: Arc<dyn Fetch>, kind: ForgeKind, base: Url, secret: Option<Secret>) -> Self {
        Self { db, fetch, kind, base, secret, rate: None, expires_at: None }
    }

    pub(super) fn is_anonymous(&self) -> bool {
        self.secret.is_none()
    }

    /// The address of a path below the base.
    pub(super) fn url(&self, path: &str) -> Result<Url> {
        self.base.join(path).map_err(|error| Error::internal("making the address of a question to a forge", error))
    }

    /// An address that the forge gave for its next page: only below the base, where all the others are.
    pub(super) fn next(&self, given: &str, from: &Url) -> Result<Url> {
        let url = from.join(given).ok().filter(|url| {
            fetch::origin(url) == fetch::origin(&self.base)
                && url.scheme() == self.base.scheme()
                && url.path().starts_with(self.base.path())
                && fetch::check(url).is_ok()
        });
        url.ok_or_else(|| {
            let shown = Url::parse(given).map_or_else(|_| "something else".to_owned(), |url| fetch::shown(&url));
            Error::new(
                Kind::Upstream,
                format!(
                    "{} sends on to {shown} for its next page, which is not below {}",
                    self.kind.title(),
                    self.base
                ),
            )
        })
    }

    /// Asks for what is at `url`, unless it is what `validator` stands for.
    pub(super) async fn ask(&mut self, url: &Url, validator: Option<&str>) -> Result<Said> {
        if let Some(until) = self.exhausted() {
            return Ok(Said::Later(until));
        }
        let mut request = FetchRequest::get(url.clone());
        request.headers = self.headers(validator);
        request.secret.clone_from(&self.secret);
        request.redirects = 3;
        (request.whole, request.most, request.decode) = (Some(PATIENCE), Some(LARGEST), true);
        let response = self.fetch.fetch(request).await?;
        if fetch::origin(&response.url) != fetch::origin(&self.base) {
            return Err(self.wrong(url, &format!("sends on to {}", fetch::shown(&response.url))));
        }
        let now = self.db.host().now();
        self.rate = RateLimit::read(&response.headers, now).or(self.rate);
        self.expires_at = expiry(&response.headers).or(self.expires_at);
        self.judge(url, response, now).await
    }

    async fn judge(&mut self, url: &Url, response: FetchResponse, now: Time) -> Result<Said> {
        let status = response.status;
        match status {
            StatusCode::OK => {
                let headers = response.headers.clone();
                Ok(Said::New(Answer { body: response.read_all(LARGEST).await?, headers }))
            }
            StatusCode::NOT_MODIFIED => Ok(Said::Same),
            // GitHub says «conflict» about a repository that is empty.
            StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::GONE => Ok(Said::Nothing),
            StatusCode::TOO_MANY_REQUESTS => Ok(Said::Later(self.pause(&response.headers, now))),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                let asks_for_less = response.headers.contains_key(header::RETRY_AFTER)
                    || self.rate.is_some_and(|rate| rate.remaining == 0);
                let pause = self.pause(&response.headers, now);
                if asks_for_less || (status == StatusCode::FORBIDDEN && tells_of_a_limit(response).await) {
                    return Ok(Said::Later(pause));
                }
                Ok(Said::Refused(status))
            }
            status => Err(self.wrong(url, &format!("answers {status}"))),
        }
    }

    /// Until when nothing more is asked: little is left, and it is not all ours.
    fn exhausted(&self) -> Option<Time> {
        let rate = self.rate.filter(|rate| rate.remaining <= rate.reserve())?;
        let now = self.db.host().now();
        let reset = rate.reset().map_or_else(|| now.plus(PAUSE), |reset| reset.min(now.plus(LONGEST_PAUSE)));
        (reset > now).then_some(reset)
    }

    /// Until when a forge wants to be left alone.
    fn pause(&self, headers: &HeaderMap, now: Time) -> Time {
        let after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
        let reset = self.rate.filter(|rate| rate.remaining == 0).and_then(|rate| rate.reset());
        let wait = match (after, reset) {
            (Some(seconds), _) => Duration::from_secs(seconds),
            (None, Some(reset)) => reset.since(now),
            (None, None) => PAUSE,
        };
        now.plus(wait.clamp(SHORTEST_PAUSE, LONGEST_PAUSE))
    }

    fn headers(&self, validator: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let accept = if self.kind == ForgeKind::Github { "application/vnd.github+json" } else { "application/json" };
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        if self.kind == ForgeKind::Github {
            headers.insert("x-github-api-version", HeaderValue::from_static("2022-11-28"));
        }
        if let Some(validator) = validator.and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(header::IF_NONE_MATCH, validator);
        }
        headers
    }

    /// The error for a question that the credential does not permit, or that needs one.
    pub(super) fn refused(&self, url: &Url, status: StatusCode, credential: Option<&str>) -> Error {
        let advice = credential.map_or_else(
            || format!("give the source a credential (--credential, of the kind {})", self.kind.word()),
            |name| format!("`larder credential test {name}` says what it may do"),
        );
        Error::new(Kind::Forbidden, format!("{} answers {status}: {advice}", fetch::shown(url)))
    }

    /// The error for an answer that makes no sense.
    pub(super) fn wrong(&self, url: &Url, what: &str) -> Error {
        let message = format!(
            "{} {what}: that is not how the API of {} speaks, or not now (is --api right?)",
            fetch::shown(url),
            self.kind.title()
        );
        Error::new(Kind::Upstream, message)
    }

    /// Reads an answer as the forge documents it.
    pub(super) fn read<T: DeserializeOwned>(&self, url: &Url, body: &[u8]) -> Result<T> {
        serde_json::from_slice(body).map_err(|error| self.wrong(url, "answers with something else").caused_by(error))
    }
}

/// The time at which a GitHub token ends: `2026-12-01 08:15:54 UTC`, or with an offset in place of UTC.
fn expiry(headers: &HeaderMap) -> Option<Time> {
    let text = headers.get("github-authentication-token-expiration")?.to_str().ok()?.trim();
    let (date, zone) = text.rsplit_once(' ')?;
    Time::parse(&format!("{date}{}", if zone == "UTC" { "Z" } else { zone })).ok()
}

/// Whether a refusal is about how often it was asked: GitHub's secondary limits may come without any header.
async fn tells_of_a_limit(response: FetchResponse) -> bool {
    let body = response.read_all(64 * 1024).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&body).to_ascii_lowercase();
    text.contains("rate limit") || text.contains("abuse detection")
}

/// The address of the next page (RFC 8288): `<https://…?page=2>; rel="next"`.
pub(super) fn next_link(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::LINK)?.to_str().ok()?;
    text.split(',').find_map(|link| {
        let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters.split(';').any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"));
        next.then(|| address.to_owned())
    })
}

/// Writes a text as one segment of a path.
pub(super) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let write = |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(write).collect()
}

/// Writes a path of several segments.
pub(super) fn segments(path: &str) -> String {
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn limits_as_forges_tell_them() {
        let now = Time::from_seconds(1_795_161_600);
        let of = |pairs: &[(&'static str, &'static str)]| RateLimit::read(&headers(pairs), now);
        let github = of(&[
            ("x-ratelimit-limit", "5000"),
            ("x-ratelimit-remaining", "4999"),
            ("x-ratelimit-reset", "1795165200"),
        ])
        .unwrap();
        assert_eq!((github.limit, github.remaining, github.reserve()), (5000, 4999, 250));
        assert_eq!(github.reset(), Some(Time::from_seconds(1_795_165_200)));
        let relative = of(&[("RateLimit-Remaining", "3"), ("RateLimit-Reset", "90")]).unwrap();
        assert_eq!((relative.limit, relative.reset()), (3, Some(Time::from_seconds(1_795_161_690))));
        assert_eq!(of(&[("x-ratelimit-limit", "5000")]), None);
        assert_eq!(of(&[("x-ratelimit-remaining", "many")]), None);
    }

    #[test]
    fn when_a_token_ends() {
        let of = |text| expiry(&headers(&[("github-authentication-token-expiration", text)]));
        assert_eq!(of("2026-12-01 08:15:54 UTC"), Time::parse("2026-12-01T08:15:54Z").ok());
        assert_eq!(of("2026-12-01 08:15:54 +0200"), Time::parse("2026-12-01T06:15:54Z").ok());
        assert_eq!(of("soon"), None);
    }

    #[test]
    fn the_next_page() {
        let of = |text| next_link(&headers(&[("link", text)]));
        let github = "<https://a.example.org/x?page=1>; rel=\"prev\", <https://a.example.org/x?page=3>; rel=\"next\"";
        assert_eq!(of(github).as_deref(), Some("https://a.example.org/x?page=3"));
        for none in
            ["", "<https://a.example.org/x>; rel=\"last\"", "https://a.example.org/x; rel=\"next\"", "<x; rel=next"]
        {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn paths_are_written_so_that_they_stay_where_they_are() {
        assert_eq!(segment("acme/team"), "acme%2Fteam");
        assert_eq!(segments("acme/lib x"), "acme/lib%20x");
        assert_eq!(segment("{a-b}?"), "%7Ba-b%7D%3F");
    }
}
