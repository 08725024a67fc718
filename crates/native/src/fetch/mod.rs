//! The [`Fetch`] port by a client of our own making out of `reqwest`: HTTP/1.1 over rustls, no proxies, no cookies.
//!
//! Every name is looked up by the [`Guard`] at the moment of connecting, and the connection goes to what it answered; hosts
//! written as addresses are shown to it first. Redirects are followed here, one hop at a time, because the client would
//! take a secret along and check nothing.

mod body;
mod failure;
mod gzip;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use larder_core::{Error, Kind, Result};
use larder_sources::fetch::{self, Fetch, FetchRequest, FetchResponse, origin, shown};
use reqwest::{
    Certificate, Client, ClientBuilder, Response,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};
use url::{Host, Url};

use crate::guard::Guard;

/// How long connecting to a host may take, names and certificates included.
const CONNECT: Duration = Duration::from_secs(10);

/// How many idle connections to one host are kept for the next request, and how long.
const KEPT: usize = 8;
const KEPT_FOR: Duration = Duration::from_secs(20);

/// What a caller may not set: secrets, which have a field of their own, and what belongs to the connection.
const NOT_FOR_CALLERS: [HeaderName; 8] = [
    header::AUTHORIZATION,
    header::COOKIE,
    header::PROXY_AUTHORIZATION,
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::EXPECT,
];

/// How the outside is reached.
#[derive(Clone)]
pub struct FetchSettings {
    /// Which addresses may be reached.
    pub guard: Guard,
    /// Whether a secret may travel over plain http. Default: where local sources are allowed.
    pub plain_secrets: bool,
    /// A PEM file with certificates that are trusted beside those of the system.
    pub extra_roots: Option<PathBuf>,
    /// How many requests may be on their way at once, bodies included. Default 256.
    pub at_once: usize,
}

impl FetchSettings {
    /// The ordinary settings. `allow_local` permits hosts in private networks, and secrets over plain http.
    pub fn new(allow_local: bool) -> Self {
        Self { guard: Guard::new(allow_local), plain_secrets: allow_local, extra_roots: None, at_once: 256 }
    }
}

/// Asks hosts over HTTP. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct HttpFetch {
    client: Client,
    guard: Guard,
    plain_secrets: bool,
    on_their_way: Arc<Semaphore>,
}

impl HttpFetch {
    /// Reads the trusted certificates; asks nobody yet.
    pub fn new(settings: FetchSettings) -> Result<Self> {
        Ok(Self {
            client: client(&settings)?,
            guard: settings.guard,
            plain_secrets: settings.plain_secrets,
            on_their_way: Arc::new(Semaphore::new(settings.at_once)),
        })
    }
}

fn client(settings: &FetchSettings) -> Result<Client> {
    // Another part of the program may have chosen it already: it is the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let base = || {
        Client::builder()
            .http1_only()
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(KEPT)
            .pool_idle_timeout(KEPT_FOR)
            .dns_resolver(CheckedNames(settings.guard.clone()))
    };
    if let Some(path) = &settings.extra_roots {
        return trusting(base(), path);
    }
    base().build().or_else(|error| {
        tracing::warn!(%error, "this system has no certificates to trust (package ca-certificates): https hosts will be refused");
        base().tls_certs_only([]).build().map_err(|error| Error::internal("preparing to ask other hosts", error))
    })
}

fn trusting(builder: ClientBuilder, path: &Path) -> Result<Client> {
    let unusable = |why: &str| Error::invalid(format!("the certificates in {} cannot be used: {why}", path.display()));
    let text = std::fs::read(path).map_err(|error| unusable(&error.to_string()))?;
    let broken = |error| unusable("they are not what is in a PEM file of certificates").caused_by(error);
    let certificates = Certificate::from_pem_bundle(&text).map_err(broken)?;
    if certificates.is_empty() {
        return Err(unusable("there is none; a PEM certificate begins with -----BEGIN CERTIFICATE-----"));
    }
    builder.tls_certs_merge(certificates).build().map_err(broken)
}

/// Names as the guard answers them, for the client's connections.
struct CheckedNames(Guard);

impl Resolve for CheckedNames {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0.clone();
        Box::pin(async move {
            // The client puts the port of the URL in the place of 0.
            let found = guard.addresses(name.as_str(), 0).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[async_trait]
impl Fetch for HttpFetch {
    async fn fetch(&self, request: FetchRequest) -> Result<FetchResponse> {
        check(&request)?;
        let free = self.on_their_way.clone().acquire_owned();
        let Ok(Ok(permit)) = timeout(request.head, free).await else {
            let message =
                format!("too many requests to other hosts are on their way to ask {} too", shown(&request.url));
            return Err(Error::new(Kind::Unavailable, message));
        };
        let started = Instant::now();
        let head = request.whole.map_or(request.head, |whole| whole.min(request.head));
        let Ok(answer) = timeout_at(started + head, self.follow(&request)).await else {
            let message = format!("{} did not answer within {head:?}", shown(&request.url));
            return Err(Error::new(Kind::Timeout, message));
        };
        let (url, response) = answer?;
        body::answer(&request, url, response, request.whole.map(|whole| started + whole), permit)
    }
}

/// What no host should be asked.
fn check(request: &FetchRequest) -> Result<()> {
    if ![Method::GET, Method::HEAD, Method::POST].contains(&request.method) {
        return Err(Error::invalid(format!(
            "{} is not among the methods that other hosts are asked with",
            request.method
        )));
    }
    if request.method != Method::POST && !request.body.is_empty() {
        return Err(Error::invalid(format!("a {} has no body", request.method)));
    }
    match NOT_FOR_CALLERS.iter().find(|name| request.headers.contains_key(*name)) {
        Some(name) => {
            Err(Error::invalid(format!("the header {name} is not for callers: a secret has a field of its own")))
        }
        None => Ok(()),
    }
}

impl HttpFetch {
    /// Asks, and follows redirects to their end: who answered, and the answer.
    async fn follow(&self, request: &FetchRequest) -> Result<(Url, Response)> {
        let mut at = request.url.clone();
        at.set_fragment(None);
        let mut secret = self.secret_for(request)?;
        for hop in 0.. {
            let response =
                self.ask(request, &at, secret.as_ref()).await.map_err(|error| on_the_way(request, hop, error))?;
            let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !moved || request.redirects == 0 || request.method == Method::POST {
                return Ok((at, response));
            }
            if hop == request.redirects {
                break;
            }
            let next = location(&at, &response)?;
            if origin(&next) != origin(&at) {
                secret = None;
            }
            at = next;
        }
        let message = format!("{} redirects more than {} times", shown(&request.url), request.redirects);
        Err(Error::new(Kind::Upstream, message))
    }

    /// The header with the secret, if the first host is the one that it belongs to.
    fn secret_for(&self, request: &FetchRequest) -> Result<Option<(HeaderName, HeaderValue)>> {
        let Some(secret) = request.secret.as_ref().filter(|secret| secret.origin == origin(&request.url)) else {
            return Ok(None);
        };
        if request.url.scheme() != "https" && !self.plain_secrets {
            return Err(Error::invalid(format!(
                "the credential for {} would travel readable for everyone on the way: use https",
                secret.origin
            )));
        }
        let (name, value) = secret.authorization.header()?;
        if name != header::AUTHORIZATION && NOT_FOR_CALLERS.contains(&name) {
            return Err(Error::invalid(format!("a credential cannot be sent as the header {name}")));
        }
        Ok(Some((name, value)))
    }

    /// One request to one host.
    async fn ask(
        &self,
        request: &FetchRequest,
        at: &Url,
        secret: Option<&(HeaderName, HeaderValue)>,
    ) -> Result<Response> {
        fetch::check(at)?;
        // The client asks no resolver for these.
        if let Some(Host::Ipv4(_) | Host::Ipv6(_)) = at.host() {
            let host = at.host_str().unwrap_or_default().trim_matches(['[', ']']);
            self.guard.addresses(host, 0).await?;
        }
        let mut headers = HeaderMap::new();
        let encoding = if request.decode { "gzip" } else { "identity" };
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(encoding));
        headers.extend(request.headers.clone());
        headers.extend(secret.cloned());
        let mut asked = self.client.request(request.method.clone(), at.clone()).headers(headers);
        if request.method == Method::POST {
            asked = asked.body(request.body.clone());
        }
        asked.send().await.map_err(|error| failure::explain(at, error))
    }
}

/// Says of a failure on another host how one came there.
fn on_the_way(request: &FetchRequest, hop: usize, error: Error) -> Error {
    if hop == 0 {
        return error;
    }
    Error::new(error.kind(), format!("{} redirects: {error}", shown(&request.url))).caused_by(error)
}

/// Where an answer of `at` redirects to.
fn location(at: &Url, response: &Response) -> Result<Url> {
    let upstream = |why: String| Error::new(Kind::Upstream, format!("{} redirects {why}", shown(at)));
    let text = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let mut next =
        text.and_then(|text| at.join(text).ok()).ok_or_else(|| upstream("to a place that is no address".into()))?;
    next.set_fragment(None);
    if at.scheme() == "https" && next.scheme() == "http" {
        return Err(upstream(format!("to {}, which is not followed: it is not encrypted", shown(&next))));
    }
    Ok(next)
}
