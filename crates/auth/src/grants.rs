//! What can be done to grants: add one, take one away, list them. Each change is one batch with its event, and every
//! replica acts on it within a second.

use larder_core::{
    Error, Result,
    grant::{Grant, PrincipalName},
};
use larder_db::{
    Batch, CommitError, Db, changes,
    events::{self, Actor, Event},
    grants, tokens,
};
use serde_json::json;

use crate::{authenticator::TOPIC, tokens::no_token};

/// How many grants a principal can have: enough for one per package of a large team, few enough to be looked through
/// at every request.
pub const MOST: u32 = 1_000;

/// Gives a principal a grant. `false`: it had this very grant already, and nothing was changed.
pub async fn add(db: &Db, actor: &Actor, principal: &PrincipalName, grant: &Grant) -> Result<bool> {
    let mut batch = Batch::new();
    if let PrincipalName::Token(name) = principal {
        batch.push(tokens::name_is_active(name));
    }
    let batch = batch
        .with(grants::is_new(principal, grant))
        .with(grants::have_room(principal, MOST))
        .with(grants::insert(db.host().new_id(), principal, grant, db.host().now()))
        .with(events::record(db.host(), &event(actor, "grant.add", principal, grant)))
        .with(changes::notify(db.host(), TOPIC));
    match (db.commit(batch).await, principal) {
        (Ok(_), _) => Ok(true),
        (Err(CommitError::Guard("grant_is_new")), _) => Ok(false),
        (Err(CommitError::Guard("token_is_active")), PrincipalName::Token(name)) => Err(no_token(name)),
        (Err(CommitError::Guard("grants_have_room")), _) => Err(Error::invalid(format!(
            "{principal} has {MOST} grants, and that is as many as there can be: use patterns such as acme/*, and take some away with `larder grant remove`"
        ))),
        (Err(error), _) => Err(error.into()),
    }
}

/// Takes a grant away, written as it was given. [`larder_core::Kind::NotFound`]: the principal has no such grant.
pub async fn remove(db: &Db, actor: &Actor, principal: &PrincipalName, grant: &Grant) -> Result<()> {
    let batch = Batch::new()
        .with(grants::is_there(principal, grant))
        .with(grants::remove(principal, grant))
        .with(events::record(db.host(), &event(actor, "grant.remove", principal, grant)))
        .with(changes::notify(db.host(), TOPIC));
    match db.commit(batch).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_guard("grant_is_there") => Err(Error::not_found(format!(
            "{principal} has no grant `{grant}`; `larder grant list` shows those that it has, as they must be written"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// All grants that come after `after`, by principal, at most `limit`.
pub async fn list(db: &Db, after: Option<&(PrincipalName, Grant)>, limit: u32) -> Result<Vec<(PrincipalName, Grant)>> {
    grants::list(db, after, limit).await
}

/// What one principal may do.
pub async fn of(db: &Db, principal: &PrincipalName) -> Result<Vec<Grant>> {
    grants::of(db, principal).await
}

fn event(actor: &Actor, action: &'static str, principal: &PrincipalName, grant: &Grant) -> Event {
    Event::new(actor, action, principal.to_string()).with(json!({ "grant": grant.to_string() }))
}
