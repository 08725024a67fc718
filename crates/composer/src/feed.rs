//! `changes.json`: which packages changed since a moment, for other registries that follow this one
//! (`metadata-changes-url`; package managers do not read it).

use std::time::Duration;

use http::StatusCode;
use larder_auth::View;
use larder_core::{Result, Time};
use larder_db::{
    Db,
    events::{self, Wanted},
    packages,
};
use larder_http::{Request, Response};
use serde_json::{Value, json};

use crate::ID;

/// A moment as the feed counts them: in units of 100 microseconds since 1970, as packagist.org does.
const UNIT: i64 = 100;

/// How far the next question goes back, in microseconds: a change is dated shortly before others can see it.
const OVERLAP: i64 = 10_000_000;

/// How far back single changes are told: what may have changed for anybody is looked for in all events since.
const WINDOW: Duration = Duration::from_secs(7 * 86_400);

/// The most actions of one answer: whoever missed more begins anew.
const MOST: i64 = 50_000;

/// Families of events after which any document may be another one, to any asker.
const SWEEPING: [&str; 6] = ["policy", "grant", "reservation", "advisory", "source.remove", "source.add"];

/// `{"actions": [{"type", "package", "time"}, …], "timestamp": …}`: updates and deletions of what the view sees, or a
/// `resync` where single changes cannot tell it all.
pub(crate) async fn changes(db: &Db, view: &View, request: &Request) -> Result<Response> {
    let now = db.host().now();
    let timestamp = (now.micros() - OVERLAP) / UNIT;
    let query = request.query()?;
    let since =
        query.get("since").and_then(|since| since.parse::<i64>().ok()).and_then(|since| since.checked_mul(UNIT));
    let Some(since) = since.map(Time::from_micros) else {
        let error =
            "there is no number in ?since=: begin with the timestamp of this answer, and then with that of each";
        return Ok(Response::json(StatusCode::BAD_REQUEST, &json!({"error": error, "timestamp": timestamp})));
    };
    let actions = actions(db, view, since)
        .await?
        .unwrap_or_else(|| vec![json!({"type": "resync", "package": "*", "time": now.micros() / 1_000_000})]);
    Ok(Response::json(StatusCode::OK, &json!({"actions": actions, "timestamp": timestamp})))
}

/// What changed; `None` if that cannot be told one by one.
async fn actions(db: &Db, view: &View, since: Time) -> Result<Option<Vec<Value>>> {
    if since < db.host().now().minus(WINDOW) {
        return Ok(None);
    }
    let wanted = |action: &str| Wanted { since: Some(since), action: Some(action.to_owned()), ..Wanted::default() };
    for family in SWEEPING {
        if !events::list(db, &wanted(family), None, 1).await?.is_empty() {
            return Ok(None);
        }
    }
    let changed = packages::changed_since(db, ID, since, MOST).await?;
    let removed = events::list(db, &wanted("package.remove"), None, 1_000).await?;
    if i64::try_from(changed.len()).is_ok_and(|count| count >= MOST) || removed.len() >= 1_000 {
        return Ok(None);
    }
    let mut actions = Vec::new();
    let mut tell = |kind: &str, name: &str, at: Time| {
        if view.sees(name) {
            // Tagged versions and branches are two documents.
            for document in [name.to_owned(), format!("{name}~dev")] {
                actions.push(json!({"type": kind, "package": document, "time": at.micros() / 1_000_000}));
            }
        }
    };
    let prefix = format!("package:{ID}:");
    for event in removed.iter().rev() {
        if let Some(name) = event.subject.strip_prefix(&prefix) {
            tell("delete", name, event.at);
        }
    }
    for (name, at) in &changed {
        tell("update", name, *at);
    }
    Ok(Some(actions))
}
