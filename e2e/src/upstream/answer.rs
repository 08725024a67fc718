//! What a registry upstream answers: what it has, or what a fault makes of it.

use std::{
    convert::Infallible,
    io::Write as _,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::{StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};

use super::server::{Asked, Fault, State};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The first moment of the feed of changes: it counts on with each change.
const EPOCH: u64 = 17_000_000_000_000;

/// What is to be done with a request: decided at once, done afterwards.
struct Plan {
    status: StatusCode,
    headers: Vec<(header::HeaderName, String)>,
    bytes: Bytes,
    fault: Option<Fault>,
}

impl Plan {
    fn of(status: StatusCode, kind: &str, bytes: impl Into<Bytes>) -> Self {
        Self { status, headers: vec![(header::CONTENT_TYPE, kind.to_owned())], bytes: bytes.into(), fault: None }
    }

    fn page(status: StatusCode) -> Self {
        Self::of(status, "text/html; charset=utf-8", "<!doctype html><title>Sorry</title><p>Please try again later.\n")
    }
}

/// Answers a request as `state` wants it, and remembers it.
pub(super) async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    // A client that is still sending does not read.
    drop(body.collect().await);
    let plan = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = decide(&state, &head);
        state.asked.push(Asked {
            method: head.method.to_string(),
            path: head.uri.query().map_or(path_of(&head), |query| format!("{}?{query}", path_of(&head))),
            status: plan.status.as_u16(),
            headers: head.headers.clone(),
        });
        plan
    };
    if let Some(Fault::Slow(time)) = plan.fault {
        tokio::time::sleep(time).await;
    }
    if matches!(plan.fault, Some(Fault::Silence)) {
        std::future::pending::<()>().await;
    }
    let is_head = head.method == Method::HEAD || plan.status == StatusCode::NOT_MODIFIED;
    let mut response = Response::new(body_of(&plan, is_head));
    *response.status_mut() = plan.status;
    for (name, value) in plan.headers {
        response.headers_mut().insert(name, value.parse().expect("the header is text"));
    }
    if !is_head && !matches!(plan.fault, Some(Fault::Endless)) {
        response.headers_mut().insert(header::CONTENT_LENGTH, plan.bytes.len().into());
    }
    Ok(response)
}

fn body_of(plan: &Plan, is_head: bool) -> Body {
    let half = plan.bytes.slice(..plan.bytes.len() / 2);
    let pieces = match plan.fault {
        _ if is_head => stream::empty().boxed(),
        Some(Fault::BreakOff) => {
            let broken = std::io::Error::other("the test breaks it off");
            stream::iter([Ok(half), Err(broken)]).boxed()
        }
        Some(Fault::Stall) => stream::iter([Ok(half)]).chain(stream::pending()).boxed(),
        Some(Fault::Endless) => {
            let piece = plan.bytes.clone();
            stream::repeat_with(move || Ok(piece.clone())).boxed()
        }
        _ => stream::iter([Ok(plan.bytes.clone())]).boxed(),
    };
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// The path as it is meant: some clients write `%24` for the `$` before a hash.
fn path_of(head: &http::request::Parts) -> String {
    percent_encoding::percent_decode_str(head.uri.path()).decode_utf8_lossy().into_owned()
}

fn decide(state: &State, head: &http::request::Parts) -> Plan {
    let path = path_of(head);
    if let Some((name, value)) = &state.secret
        && head.headers.get(name).is_none_or(|shown| shown != value)
    {
        let mut plan = Plan::of(StatusCode::UNAUTHORIZED, "application/json", r#"{"message": "Who are you?"}"#);
        plan.headers.push((header::WWW_AUTHENTICATE, "Basic realm=\"upstream\"".to_owned()));
        return plan;
    }
    let fits = |pattern: &str| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => path.ends_with(end),
        (_, Some(begin)) => path.starts_with(begin),
        _ => path == pattern,
    };
    match state.faults.iter().rev().find(|(pattern, _)| fits(pattern)) {
        Some((_, fault)) => misbehave(state, head, fault),
        None => serve(state, head),
    }
}

fn serve(state: &State, head: &http::request::Parts) -> Plan {
    let path = path_of(head);
    let folder = &state.layout.folder;
    if head.method == Method::POST {
        return Plan::of(StatusCode::OK, "application/json", r#"{"status": "success"}"#);
    }
    if state.layout.changes && path == format!("{folder}/changes.json") {
        return changes(state, head.uri.query().unwrap_or_default());
    }
    let Some(file) = state.files.get(&path) else {
        return Plan::of(StatusCode::NOT_FOUND, "application/json", r#"{"error": "not found, my dear"}"#);
    };
    let date = date(file.change);
    let mut plan = Plan::of(StatusCode::OK, "application/zip", file.bytes.clone());
    plan.headers.push((header::LAST_MODIFIED, date.clone()));
    if head.headers.get(header::IF_MODIFIED_SINCE).is_some_and(|known| known == date.as_str()) {
        plan.status = StatusCode::NOT_MODIFIED;
    } else if !is_dist(&path) {
        plan.headers[0] = (header::CONTENT_TYPE, "application/json".to_owned());
        let accepted = head.headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
        if accepted.is_some_and(|accepted| accepted.contains("gzip")) {
            plan.headers.push((header::CONTENT_ENCODING, "gzip".to_owned()));
            plan.bytes = gzip(&plan.bytes);
        }
    }
    plan
}

fn misbehave(state: &State, head: &http::request::Parts, fault: &Fault) -> Plan {
    let status = |code| StatusCode::from_u16(code).expect("it is a status");
    let json = |bytes: Bytes| Plan::of(StatusCode::OK, "application/json", bytes);
    let elsewhere = |to: String| {
        let mut plan = Plan::page(StatusCode::FOUND);
        plan.headers.push((header::LOCATION, to));
        plan
    };
    match fault {
        Fault::Status(code) => Plan::page(status(*code)),
        Fault::Busy(seconds) => {
            let mut plan = Plan::page(StatusCode::TOO_MANY_REQUESTS);
            plan.headers.push((header::RETRY_AFTER, seconds.to_string()));
            plan
        }
        Fault::Page => Plan::page(StatusCode::OK),
        Fault::Redirect(to) => elsewhere(to.clone()),
        Fault::Loop => {
            let turn = head.uri.query().and_then(|turn| turn.parse::<u64>().ok()).unwrap_or_default() + 1;
            elsewhere(format!("{}?{turn}", head.uri.path()))
        }
        Fault::Deep => {
            let deep = 200_000;
            json([b"{\"packages\": ".as_slice(), &b"[".repeat(deep), &b"]".repeat(deep), b"}"].concat().into())
        }
        Fault::Bomb => {
            let mut plan = json(bomb());
            plan.headers.push((header::CONTENT_ENCODING, "gzip".to_owned()));
            plan
        }
        Fault::Bytes(bytes) => {
            let mut plan = serve(state, head);
            plan.headers.retain(|(name, _)| name != header::CONTENT_ENCODING);
            Plan { status: StatusCode::OK, bytes: bytes.clone(), ..plan }
        }
        Fault::Half => {
            let mut plan = serve(state, head);
            plan.headers.retain(|(name, _)| name != header::CONTENT_ENCODING);
            let whole = state.files.get(&path_of(head)).map(|file| file.bytes.clone()).unwrap_or_default();
            Plan { bytes: whole.slice(..whole.len() / 2), ..plan }
        }
        Fault::Endless => Plan { fault: Some(Fault::Endless), ..json(Bytes::from(vec![b' '; 64 << 10])) },
        Fault::BreakOff | Fault::Silence | Fault::Stall | Fault::Slow(_) => {
            Plan { fault: Some(fault.clone()), ..serve(state, head) }
        }
    }
}

/// The feed of changes since a moment. What is older than all that it remembers means: look at everything again.
fn changes(state: &State, query: &str) -> Plan {
    let now = EPOCH + state.change;
    let since = query.split('&').find_map(|pair| pair.strip_prefix("since=")?.parse::<u64>().ok());
    let Some(since) = since else {
        let said = json!({"error": "Invalid or missing \"since\" query parameter", "timestamp": now});
        return Plan::of(StatusCode::BAD_REQUEST, "application/json", said.to_string());
    };
    let actions: Vec<Value> = if since < EPOCH {
        vec![json!({"type": "resync", "package": "*", "time": state.change})]
    } else {
        let newer = state.feed.iter().filter(|(_, _, change)| EPOCH + change > since);
        newer.map(|(name, kind, change)| json!({"type": kind, "package": name, "time": change})).collect()
    };
    let said = json!({"actions": actions, "timestamp": now});
    Plan::of(StatusCode::OK, "application/json", said.to_string())
}

/// A moment for each change, a second apart.
fn date(change: u64) -> String {
    format!("Tue, 05 Mar 2024 {:02}:{:02}:{:02} GMT", change / 3600 % 24, change / 60 % 60, change % 60)
}

fn gzip(bytes: &[u8]) -> Bytes {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).expect("memory takes everything");
    packed.finish().expect("memory takes everything").into()
}

/// A few hundred kilobytes that are half a gigabyte.
fn bomb() -> Bytes {
    static PACKED: LazyLock<Bytes> = LazyLock::new(|| {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        let piece = vec![b' '; 1 << 20];
        for _ in 0..512 {
            packed.write_all(&piece).expect("memory takes everything");
        }
        packed.write_all(b"{\"packages\": {}}").expect("memory takes everything");
        packed.finish().expect("memory takes everything").into()
    });
    PACKED.clone()
}

/// Whether a path is one of a dist.
pub(super) fn is_dist(path: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, kind)| kind == "zip")
}
