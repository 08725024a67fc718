//! The one way through which every request goes: who is asking, which room answers, and what is written down about it.
//! It knows no protocol, and it listens nowhere.

use std::{
    fmt,
    net::IpAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use larder_core::{
    Error, Host, Kind, Result, Time,
    grant::{Principal, PrincipalName},
};

use crate::{
    body::RequestBody,
    credentials::{self, Scratch},
    error,
    message::{Request, RequestId, Response},
    readiness::{Readiness, Ready},
    room::{AccessNote, Room},
};

/// The header that ties a failed answer to the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Finds the principal that a token belongs to.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// The principal of a token, or anonymous for `None`, if memory knows it and it still holds. Never waits.
    fn cached(&self, token: Option<&str>) -> Option<Arc<Principal>>;

    /// The principal of a token, or anonymous for `None`. Fails with [`Kind::Unauthenticated`] for a token that is
    /// malformed, unknown, expired or revoked.
    async fn authenticate(&self, token: Option<&str>, address: IpAddr) -> Result<Arc<Principal>>;
}

/// Writes accesses down.
pub trait AccessLog: Send + Sync {
    /// Takes one line. Never waits; what it cannot hold any more it drops and counts.
    fn record(&self, access: Access<'_>);
}

/// One access to a package.
#[derive(Debug)]
pub struct Access<'a> {
    /// When it was answered.
    pub at: Time,
    /// Who asked.
    pub asker: &'a Arc<Principal>,
    /// What the room noted. Without an action nobody was recognised.
    pub note: AccessNote,
    /// How it was answered.
    pub status: StatusCode,
    /// From where it was asked.
    pub address: IpAddr,
    /// The program that asked, as it calls itself; as long as the client pleased.
    pub user_agent: Option<&'a str>,
}

/// A request as a host received it.
#[derive(Debug)]
pub struct Received {
    /// What to do.
    pub method: Method,
    /// To what.
    pub uri: Uri,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: RequestBody,
    /// The client, as far as trusted proxies tell.
    pub address: IpAddr,
}

/// All rooms under one roof.
pub struct Site {
    host: Host,
    authenticator: Arc<dyn Authenticator>,
    access_log: Arc<dyn AccessLog>,
    ready: Ready,
    /// By the length of their mounts, longest first.
    rooms: Vec<(&'static str, Arc<dyn Room>)>,
    process: u32,
    requests: AtomicU64,
    /// Whoever was not recognised.
    nobody: Arc<Principal>,
}

impl Site {
    /// A site without rooms.
    pub fn new(
        host: Host,
        authenticator: Arc<dyn Authenticator>,
        access_log: Arc<dyn AccessLog>,
        readiness: Arc<dyn Readiness>,
    ) -> Self {
        let process = u32::from_be_bytes(host.random_bytes());
        let ready = Ready::new(host.clone(), readiness);
        let nobody = Arc::default();
        let requests = AtomicU64::new(0);
        Self { host, authenticator, access_log, ready, rooms: Vec::new(), process, requests, nobody }
    }

    /// With one more room.
    #[must_use]
    pub fn with_room(mut self, room: &Arc<dyn Room>) -> Self {
        self.rooms.extend(room.mounts().iter().map(|mount| (*mount, room.clone())));
        self.rooms.sort_by_key(|(mount, _)| std::cmp::Reverse(mount.len()));
        self
    }

    /// Answers one request. Never fails and never panics; a panic in a room becomes a 500.
    pub async fn answer(&self, received: Received) -> Response {
        let started = self.host.now();
        let id = RequestId { process: self.process, number: self.requests.fetch_add(1, Ordering::Relaxed) };
        let Received { method, uri, headers, body, address } = received;
        let mut response = match Request::new(method.clone(), uri, headers, body, address, id) {
            Ok(mut request) => self.enter(&mut request, started).await,
            Err(error) => error::face(&error),
        };
        if method == Method::HEAD {
            take_body_off(&mut response);
        }
        if response.status.is_server_error()
            && let Ok(id) = HeaderValue::try_from(id.to_string())
        {
            response.headers.insert(REQUEST_ID, id);
        }
        response
    }

    async fn enter(&self, request: &mut Request, started: Time) -> Response {
        let mut response = match request.path() {
            "/healthz" | "/readyz" if !request.reads() => error::method_not_allowed("GET, HEAD"),
            "/healthz" => Response::bytes(StatusCode::OK, "text/plain", "ok\n"),
            "/readyz" => self.ready.respond().await,
            _ => self.visit(request).await,
        };
        if request.body.was_too_slow() {
            response = error::plain(StatusCode::REQUEST_TIMEOUT, "the request body came too slowly")
                .with(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // A number in the log: as 128 bits it would be a text.
        let micros = u64::try_from(self.host.now().since(started).as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(
            target: "larder::request",
            id = %request.id,
            address = %request.address,
            method = %request.method,
            path = request.path(),
            status = response.status.as_u16(),
            bytes = response.body.len(),
            micros,
        );
        response
    }

    /// Authenticates, routes, answers, and records the access.
    async fn visit(&self, request: &mut Request) -> Response {
        let room = self.room_at(&request.decoded_path());
        let face = |request: &Request, error: &Error| match room {
            Some(room) => error::dressed(error, room.face(request, error)),
            None => error::face(error),
        };
        let asker = match self.recognise(request, room).await {
            Ok(asker) => asker,
            Err(error) => {
                log_failure(request, &error);
                let response = face(request, &error);
                self.record(request, &self.nobody, AccessNote::default(), &response);
                return response;
            }
        };
        let Some(room) = room else {
            return face(request, &Error::not_found("there is nothing at this address"));
        };
        let mut note = AccessNote::default();
        // A room is shared by all requests, so what a panic leaves behind is what any other request may see at any time.
        let answer = AssertUnwindSafe(room.handle(request, &asker, &mut note)).catch_unwind().await;
        let answer = answer.unwrap_or_else(|panic| Err(Error::internal("answering this request", panic_text(&*panic))));
        let response = answer.unwrap_or_else(|error| {
            log_failure(request, &error);
            face(request, &error)
        });
        // Nothing is downloaded with a HEAD, and no room needs to remember that.
        note.download &= request.method != Method::HEAD;
        let is_refused = room.recognises() && response.status == StatusCode::UNAUTHORIZED;
        if note.action.is_some() || is_refused {
            self.record(request, &asker, note, &response);
        }
        response
    }

    fn record(&self, request: &Request, asker: &Arc<Principal>, note: AccessNote, response: &Response) {
        self.access_log.record(Access {
            at: self.host.now(),
            asker,
            note,
            status: response.status,
            address: request.address,
            user_agent: request.header(header::USER_AGENT),
        });
    }

    /// Who is asking. Whoever shows no token on a server where anonymous may do nothing is asked for one before
    /// anything else is told, unless the room takes credentials of its own at this address.
    async fn recognise(&self, request: &Request, room: Option<&Arc<dyn Room>>) -> Result<Arc<Principal>> {
        if room.is_some_and(|room| room.recognises()) {
            return Ok(self.nobody.clone());
        }
        let asker = match self.remembered(&request.headers) {
            Ok(asker) => asker,
            Err(token) => self.authenticator.authenticate(token.as_deref(), request.address).await?,
        };
        let is_stranger = asker.name == PrincipalName::Anonymous && asker.grants.is_empty() && !asker.limited;
        if is_stranger && !room.is_some_and(|room| room.admits(request)) {
            return Err(Error::new(
                Kind::Unauthenticated,
                "a token is needed here: give it as the password, with any user name, or as a bearer token",
            ));
        }
        Ok(asker)
    }

    /// The principal that memory knows; otherwise the token to ask about, owned only now, when it must outlive a wait.
    fn remembered(&self, headers: &HeaderMap) -> Result<Arc<Principal>, Option<String>> {
        let mut scratch = Scratch::new();
        let token = credentials::shown(headers, &mut scratch);
        self.authenticator.cached(token).ok_or_else(|| token.map(str::to_owned))
    }

    fn room_at(&self, path: &str) -> Option<&Arc<dyn Room>> {
        self.rooms.iter().find(|(mount, _)| is_under(path, mount)).map(|(_, room)| room)
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mounts: Vec<_> = self.rooms.iter().map(|(mount, _)| mount).collect();
        f.debug_struct("Site").field("mounts", &mounts).finish_non_exhaustive()
    }
}

/// Whether a path is a mount or, where the mount ends in a slash, below it.
fn is_under(path: &str, mount: &str) -> bool {
    match mount.strip_suffix('/') {
        Some(folder) => path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        None => path == mount,
    }
}

/// The answer to a HEAD is that to a GET without its body.
fn take_body_off(response: &mut Response) {
    let length = std::mem::take(&mut response.body).len();
    let has_none = response.status == StatusCode::NOT_MODIFIED || response.status == StatusCode::NO_CONTENT;
    if let Some(length) = length
        && !has_none
    {
        response.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}

fn log_failure(request: &Request, error: &Error) {
    let (id, path) = (request.id, request.path());
    match error.kind() {
        // Somebody else's trouble, or the moment's: an error is what the operator of this server must look into.
        Kind::Upstream | Kind::Timeout | Kind::Unavailable => {
            tracing::warn!(%id, path, error = error.chain(), "request failed");
        }
        kind if error::status_of(kind).is_server_error() => {
            tracing::error!(%id, path, error = error.chain(), "request failed");
        }
        _ => tracing::debug!(%id, path, error = error.chain(), "request refused"),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a panic: {}", text.unwrap_or("without a message"))
}
