//! Events: every change, who made it and to what, for ever. An event is written in the batch of the change that it
//! tells of, so that there is never one without the other. Accesses are in [`crate::access`].

use std::fmt;

use larder_core::{
    Host, Id, Result, Time,
    grant::{Principal, PrincipalName},
};

use crate::{Db, Row, Statement};

statements! {
    INSERT = "insert into events (id, at, actor, action, subject, detail) values ($1, $2, $3, $4, $5, $6)";
    LIST = "select id, at, actor, action, subject, detail from events
        where at >= $1 and (at < $2 or (at = $2 and id < $3))
        and (cast($4 as text) = '' or action = $4 or substr(action, 1, length($4) + 1) = $4 || '.')
        and (cast($5 as text) = '' or subject = $5)
        order by at desc, id desc limit $6";
    LIST_OF_ACTOR = "select id, at, actor, action, subject, detail from events
        where at >= $1 and (at < $2 or (at = $2 and id < $3))
        and (cast($4 as text) = '' or action = $4 or substr(action, 1, length($4) + 1) = $4 || '.')
        and (cast($5 as text) = '' or subject = $5)
        and actor = $7
        order by at desc, id desc limit $6";
}

/// Who makes a change, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// Whoever runs commands on the machine that the server or its database is on.
    pub fn command_line() -> Self {
        Self("cli".to_owned())
    }

    /// Larder itself: a schedule, a job, a collection of garbage.
    pub fn house() -> Self {
        Self("larder".to_owned())
    }

    /// A forge that was believed, because it knew the secret of a webhook.
    pub fn webhook(forge: &str) -> Self {
        Self(format!("webhook:{forge}"))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&PrincipalName> for Actor {
    fn from(name: &PrincipalName) -> Self {
        Self(name.to_string())
    }
}

impl From<&Principal> for Actor {
    fn from(principal: &Principal) -> Self {
        Self::from(&principal.name)
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A change, as the operation that makes it tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who.
    pub actor: Actor,
    /// What: `token.create`, `source.sync`, … The word before the dot is the family.
    pub action: &'static str,
    /// To which thing: `token:ci`, `source:lib`, `package:FORMAT:NAME`.
    pub subject: String,
    /// A JSON object, never with a secret in it.
    pub detail: serde_json::Value,
}

impl Event {
    /// Without detail.
    pub fn new(actor: &Actor, action: &'static str, subject: impl Into<String>) -> Self {
        let detail = serde_json::Value::Object(serde_json::Map::new());
        Self { actor: actor.clone(), action, subject: subject.into(), detail }
    }

    /// With this detail, a JSON object.
    #[must_use]
    pub fn with(mut self, detail: serde_json::Value) -> Self {
        self.detail = detail;
        self
    }
}

/// Writes an event, dated now. It belongs in the batch of the change.
pub fn record(host: &Host, event: &Event) -> Statement {
    let values = [
        host.new_id().into(),
        host.now().into(),
        event.actor.as_str().into(),
        event.action.into(),
        event.subject.as_str().into(),
        event.detail.to_string().into(),
    ];
    Statement::write(INSERT, values)
}

/// An event as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Recorded {
    /// Its identity.
    pub id: Id,
    /// When, in microseconds since 1970.
    pub at: Time,
    /// Who: `anonymous`, `token:NAME`, `cli`, `larder`, …
    pub actor: String,
    /// What.
    pub action: String,
    /// To which thing.
    pub subject: String,
    /// More, as a JSON object.
    pub detail: serde_json::Value,
}

/// Which events are wanted. The default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Not before.
    pub since: Option<Time>,
    /// Before.
    pub until: Option<Time>,
    /// Only of this actor.
    pub actor: Option<String>,
    /// Only this action, or this family of actions: `token` is `token.create`, `token.revoke`, …
    pub action: Option<String>,
    /// Only to this thing.
    pub subject: Option<String>,
}

/// One page of the events that are wanted, the newest first: those before `before`, at most `limit`.
pub async fn list(db: &Db, wanted: &Wanted, before: Option<(Time, Id)>, limit: u32) -> Result<Vec<Recorded>> {
    let until = wanted.until.unwrap_or(Time::from_micros(i64::MAX));
    // No id is before the empty text: `until` itself is not wanted.
    let (at, id) = before.map_or((until, String::new()), |(at, id)| (at, id.to_string()));
    let text = |value: &Option<String>| crate::Value::from(value.as_deref().unwrap_or(""));
    let mut values = vec![
        wanted.since.unwrap_or(Time::from_micros(i64::MIN)).into(),
        at.into(),
        id.into(),
        text(&wanted.action),
        text(&wanted.subject),
        i64::from(limit).into(),
    ];
    let statement = match &wanted.actor {
        None => Statement::read(LIST, values),
        Some(actor) => {
            values.push(actor.into());
            Statement::read(LIST_OF_ACTOR, values)
        }
    };
    db.read(statement).await?.into_iter().map(recorded).collect()
}

fn recorded(row: Row) -> Result<Recorded> {
    let mut cells = row.cells();
    let (id, at, actor, action, subject) = (cells.id()?, cells.time()?, cells.text()?, cells.text()?, cells.text()?);
    let text = cells.text()?;
    let detail = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
    Ok(Recorded { id, at, actor, action, subject, detail })
}
