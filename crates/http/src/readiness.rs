//! `/healthz` and `/readyz`: whether the process lives, and whether it can do its work. No authentication, so nothing
//! but the names of the parts is told; why one of them fails stands in the log.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use http::StatusCode;
use larder_core::{Error, Host, Kind, Result, Time};
use serde_json::json;

use crate::message::Response;

/// How long an answer is used again: probes from many sides cost one check.
const FRESH: Duration = Duration::from_secs(1);

/// How long the parts may take before they count as not ready.
const PATIENCE: Duration = Duration::from_secs(3);

/// A part of the house that must work, for example `database`.
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Whether it works.
    pub state: Result<()>,
}

/// Checks the parts that this process needs: the database, the store, the queue.
#[async_trait]
pub trait Readiness: Send + Sync {
    /// Tries each part in a cheap way.
    async fn check(&self) -> Vec<Part>;
}

/// Answers `/readyz`.
pub(crate) struct Ready {
    host: Host,
    parts: Arc<dyn Readiness>,
    last: Mutex<Option<Last>>,
}

#[derive(Clone)]
struct Last {
    at: Time,
    ready: bool,
    body: String,
}

impl Ready {
    pub(crate) fn new(host: Host, parts: Arc<dyn Readiness>) -> Self {
        Self { host, parts, last: Mutex::new(None) }
    }

    /// 200 when every part works and 503 otherwise, with a JSON object of the parts.
    pub(crate) async fn respond(&self) -> Response {
        let last = match self.fresh() {
            Some(last) => last,
            None => self.look().await,
        };
        let status = if last.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Response::bytes(status, "application/json", last.body)
    }

    /// What was found last, if it is fresh. If it is not, whoever asks first looks again, and the others get what was
    /// found last in the meantime.
    fn fresh(&self) -> Option<Last> {
        let now = self.host.now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.as_mut()?;
        if now >= known.at && now.since(known.at) < FRESH {
            return Some(known.clone());
        }
        known.at = now;
        None
    }

    async fn look(&self) -> Last {
        let parts = self.host.within(PATIENCE, self.parts.check()).await.unwrap_or_else(|| {
            let late = Error::new(Kind::Timeout, format!("the parts took longer than {} s", PATIENCE.as_secs()));
            vec![Part { name: "all", state: Err(late) }]
        });
        for part in &parts {
            if let Err(error) = &part.state {
                tracing::warn!(part = part.name, error = error.chain(), "not ready");
            }
        }
        let ready = parts.iter().all(|part| part.state.is_ok());
        let listed: Vec<_> =
            parts.iter().map(|part| json!({ "name": part.name, "ready": part.state.is_ok() })).collect();
        let found = Last { at: self.host.now(), ready, body: json!({ "ready": ready, "parts": listed }).to_string() };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.clone());
        found
    }
}
