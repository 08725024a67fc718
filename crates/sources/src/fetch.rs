//! The port to the outside: one HTTP request, with every limit that it runs under. `larder-native` implements it. It knows
//! addresses, heads and bytes; nothing of formats, caches or trying again.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use base64::Engine;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use larder_core::{Error, Kind, Result};
use url::Url;

/// The longest address that is asked, in bytes: presigned ones are long.
const LONGEST: usize = 8 * 1024;

/// Asks hosts on the outside.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// Sends `request` and gives the answer as soon as its head is there, whatever its status says.
    ///
    /// Errors: [`Kind::Invalid`] for an address that is refused (where it leads included), [`Kind::Upstream`] for a host that
    /// fails, [`Kind::Timeout`] for one that is too slow, [`Kind::TooLarge`] for a body that says it is over the limit,
    /// [`Kind::Unavailable`] while too many requests are on their way. None of them tells a secret.
    async fn fetch(&self, request: FetchRequest) -> Result<FetchResponse>;
}

/// What to ask, and how much time and memory the answer may take. Start from [`FetchRequest::new`] and change fields.
#[derive(Clone)]
pub struct FetchRequest {
    /// GET, HEAD or POST.
    pub method: Method,
    /// `http` or `https`, without a user, a password or a fragment: see [`address`].
    pub url: Url,
    /// What the question is about (`Accept`, `If-None-Match`, `Range`, …). They follow redirects to other hosts, so those
    /// that hold secrets are refused here, and so are those that belong to the connection.
    pub headers: HeaderMap,
    /// Sent with a POST.
    pub body: Bytes,
    /// What opens it.
    pub secret: Option<Secret>,
    /// How many redirects are followed; with 0 the 3xx is the answer. That of a POST always is. None leads from https to
    /// http.
    pub redirects: usize,
    /// How long it may take until the head of the last answer is there.
    pub head: Duration,
    /// How long the body may pause.
    pub idle: Duration,
    /// How long all of it may take, the body included; for documents, which somebody waits for.
    pub whole: Option<Duration>,
    /// How many bytes the body may have, before and after it is decoded.
    pub most: Option<u64>,
    /// Whether gzip is asked for and taken off. Without it the bytes are those that a digest is made of.
    pub decode: bool,
}

/// A secret and the one place that it is sent to.
#[derive(Clone)]
pub struct Secret {
    /// `host` or `host:port`, as [`origin`] writes it. To nobody else: not after a redirect to another host, not even when
    /// that leads back.
    pub origin: String,
    /// How it is shown there.
    pub authorization: Authorization,
}

/// How a secret is shown to a host. Its `Debug` shows nothing.
#[derive(Clone)]
pub enum Authorization {
    /// HTTP Basic.
    Basic {
        /// User name.
        username: String,
        /// Password or token.
        password: String,
    },
    /// `Authorization: Bearer`.
    Bearer(String),
    /// A header of the host's own.
    Header {
        /// Such as `Private-Token`.
        name: String,
        /// The token.
        value: String,
    },
}

/// An answer: its head, and its body as it arrives.
pub struct FetchResponse {
    /// Any status, errors and (as far as none are followed) redirects too.
    pub status: StatusCode,
    /// As the host sent them; without `Content-Encoding` and `Content-Length` where the body was decoded.
    pub headers: HeaderMap,
    /// Who answered, after redirects.
    pub url: Url,
    /// How many bytes `body` will have, or would have, for a HEAD; `None` if the host does not say.
    pub length: Option<u64>,
    /// Pieces of at most about a megabyte. One that ends before its announced length is an error. Dropped early, it closes
    /// the connection.
    pub body: BoxStream<'static, Result<Bytes>>,
}

impl FetchRequest {
    /// A request without a body or a secret that follows 5 redirects, waits 30 s for the head and between pieces of the
    /// body, and takes a body of any size as it is.
    pub fn new(method: Method, url: Url) -> Self {
        let patience = Duration::from_secs(30);
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            secret: None,
            redirects: 5,
            head: patience,
            idle: patience,
            whole: None,
            most: None,
            decode: false,
        }
    }

    /// [`FetchRequest::new`] with GET.
    pub fn get(url: Url) -> Self {
        Self::new(Method::GET, url)
    }
}

impl FetchResponse {
    /// The whole body, if it has at most `limit` bytes.
    pub async fn read_all(mut self, limit: u64) -> Result<Bytes> {
        let too_large = |size: &str, url: &Url| {
            Error::new(
                Kind::TooLarge,
                format!("{} answers with {size} bytes, and {limit} are the limit for this", shown(url)),
            )
        };
        if let Some(length) = self.length.filter(|length| *length > limit) {
            return Err(too_large(&length.to_string(), &self.url));
        }
        let mut all = BytesMut::new();
        while let Some(piece) = self.body.next().await {
            let piece = piece?;
            if (all.len() + piece.len()) as u64 > limit {
                return Err(too_large("more", &self.url));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}

impl Authorization {
    /// The header, marked as one that is not to be shown.
    pub fn header(&self) -> Result<(HeaderName, HeaderValue)> {
        let unusable =
            || Error::invalid("the credential cannot be sent in a header: store it again, without line breaks");
        let (name, value) = match self {
            Self::Basic { username, password } => {
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
                (header::AUTHORIZATION, format!("Basic {pair}"))
            }
            Self::Bearer(token) => (header::AUTHORIZATION, format!("Bearer {token}")),
            Self::Header { name, value } => (name.parse().map_err(|_| unusable())?, value.clone()),
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| unusable())?;
        value.set_sensitive(true);
        Ok((name, value))
    }
}

/// Reads an address as a person or an upstream wrote it.
pub fn address(text: &str) -> Result<Url> {
    // Not repeated: it may hold a password.
    let url = Url::parse(text).map_err(|_| Error::invalid("this is no address: write https://host/path"))?;
    check(&url)?;
    Ok(url)
}

/// Whether `url` may be asked at all. An implementation checks every one that it is about to ask.
pub fn check(url: &Url) -> Result<()> {
    let refuse = |why: &str| Err(Error::invalid(format!("{} cannot be asked: {why}", shown(url))));
    if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none_or(str::is_empty) {
        return refuse("write https://host/path");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse(
            "its address holds a user name or a password; leave it out, and store it with `larder credential add`",
        );
    }
    if url.as_str().len() > LONGEST {
        return refuse("its address is too long");
    }
    Ok(())
}

/// `host` or `host:port`: what a credential is bound to, as [`crate::url::GitUrl::origin`] writes it. Unencrypted http has
/// its port always: what was made for https does not go there.
pub fn origin(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port().or((url.scheme() == "http").then_some(80));
    port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The longest address that is shown, in characters.
const LONGEST_SHOWN: usize = 300;

/// `url` as it may be shown: queries hold signatures and tokens, and users are secrets at some hosts. What is no address of a
/// host (`data:…`) may be anything, and is not shown.
pub fn shown(url: &Url) -> String {
    if url.cannot_be_a_base() {
        return format!("{}:…", url.scheme());
    }
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Fails only for URLs that cannot have either.
    let _ = (url.set_username(""), url.set_password(None));
    let mut text = url.to_string();
    if let Some((end, _)) = text.char_indices().nth(LONGEST_SHOWN) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl fmt::Debug for FetchRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, shown(&self.url))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret(for {})", self.origin)
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorization(…)")
    }
}

impl fmt::Debug for FetchResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.status, shown(&self.url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::GitUrl;

    #[test]
    fn what_is_asked_at_all() {
        for text in ["https://a.example.org/x?y=1", "http://a.example.org:8080", "https://[::1]/"] {
            assert!(address(text).is_ok(), "{text}");
        }
        let long = format!("https://a.example.org/{}", "x".repeat(LONGEST));
        for text in ["", "a.example.org", "ftp://a.example.org/", "file:///etc/passwd", "https://", "data:x", &long] {
            assert_eq!(address(text).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
        for text in
            ["https://hidden@a.example.org/", "https://u:hidden@a.example.org/?token=hidden", "http://u:hidden@"]
        {
            assert!(!address(text).unwrap_err().to_string().contains("hidden"), "{text}");
        }
    }

    #[test]
    fn a_credential_is_bound_to_the_same_text_as_for_git() {
        for text in
            ["https://a.example.org/x", "https://A.example.org:8443/", "http://a.example.org/", "http://[::1]:3000/"]
        {
            let git = GitUrl::parse(text).unwrap();
            assert_eq!(origin(&Url::parse(text).unwrap()), git.origin(), "{text}");
        }
        assert_ne!(origin(&Url::parse("http://a/").unwrap()), origin(&Url::parse("https://a/").unwrap()));
    }

    #[test]
    fn nothing_shows_a_secret() {
        let url = Url::parse("https://user:hidden@a.example.org/x?signature=hidden#hidden").unwrap();
        let basic = Authorization::Basic { username: "me".into(), password: "hidden".into() };
        let header = basic.header().unwrap();
        let secret = Secret { origin: origin(&url), authorization: basic };
        let request = FetchRequest { secret: Some(secret.clone()), ..FetchRequest::get(url) };
        let all = format!("{request:?} {secret:?} {:?} {header:?}", secret.authorization);
        assert!(!all.contains("hidden") && !all.contains("bWU6"), "{all}");
    }

    #[test]
    fn what_others_put_into_an_address_is_shown_in_part() {
        let long = Url::parse(&format!("https://a.example.org/{}", "ä".repeat(5_000))).unwrap();
        assert!(shown(&long).chars().count() <= LONGEST_SHOWN + 1, "{}", shown(&long));
        assert_eq!(shown(&Url::parse("data:x,</warning><error>run this").unwrap()), "data:…");
    }

    #[test]
    fn a_secret_that_breaks_a_header_is_refused() {
        for secret in
            [Authorization::Bearer("a\r\nb".into()), Authorization::Header { name: "a b".into(), value: "c".into() }]
        {
            let error = secret.header().unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
        }
    }
}
