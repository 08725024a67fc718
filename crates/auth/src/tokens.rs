//! What can be done to tokens: make one, give it a new secret, revoke it, list them. Each change is one batch with its
//! event, and every replica acts on it within a second.

use std::time::Duration;

use larder_core::{
    Error, Id, Result, Time,
    grant::{Grant, PrincipalName, check_name},
};
use larder_db::{
    Batch, Db, changes,
    events::{self, Actor, Event},
    grants,
    tokens::{self, Token},
};
use serde_json::json;

use crate::{authenticator::TOPIC, grants::MOST, secret::Secret};

/// Makes a token with these grants, and gives it with its secret, which is never shown again.
/// [`larder_core::Kind::Conflict`]: the name is taken.
pub async fn create(
    db: &Db,
    actor: &Actor,
    name: &str,
    allow: &[Grant],
    expires: Option<Duration>,
) -> Result<(Token, Secret)> {
    check_name(name)?;
    if allow.len() > MOST as usize {
        return Err(Error::invalid(format!("a token can have at most {MOST} grants: use patterns such as acme/*")));
    }
    let now = db.host().now();
    let secret = Secret::generate(db.host().random.as_ref());
    let token = Token {
        id: db.host().new_id(),
        name: name.to_owned(),
        created_at: now,
        expires_at: expires.map(|expires| now.plus(expires)),
        revoked_at: None,
        used_at: None,
    };
    let principal = PrincipalName::Token(name.to_owned());
    let event = Event::new(actor, "token.create", principal.to_string()).with(json!({
        "id": token.id,
        "grants": allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "expires_at": token.expires_at.map(Time::rfc3339),
    }));
    let mut batch = Batch::new()
        .with(tokens::name_is_free(name))
        .with(tokens::insert(&token, secret.hash().as_bytes()))
        .with(grants::remove_all(&principal))
        .with(events::record(db.host(), &event))
        .with(changes::notify(db.host(), TOPIC));
    batch.extend(allow.iter().map(|grant| grants::insert(db.host().new_id(), &principal, grant, now)));
    match db.commit(batch).await {
        Ok(_) => Ok((token, secret)),
        Err(error) if error.is_guard("name_is_free") => Err(Error::conflict(format!(
            "there is a token `{name}` already: choose another name, or give it a new secret with `larder token rotate {name}`, or end it with `larder token revoke {name}`"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Makes a token useless for ever, takes its grants away, and frees its name. To revoke one twice, by its id, is no
/// error and no event.
pub async fn revoke(db: &Db, actor: &Actor, name_or_id: &str) -> Result<Token> {
    let token = require(db, name_or_id).await?;
    if token.revoked_at.is_some() {
        return Ok(token);
    }
    let now = db.host().now();
    let principal = PrincipalName::Token(token.name.clone());
    let event = Event::new(actor, "token.revoke", principal.to_string()).with(json!({ "id": token.id }));
    let batch = Batch::new()
        .with(tokens::is_active(token.id))
        .with(tokens::revoke(token.id, now))
        .with(grants::remove_all(&principal))
        .with(events::record(db.host(), &event))
        .with(changes::notify(db.host(), TOPIC));
    match db.commit(batch).await {
        Ok(_) => Ok(Token { revoked_at: Some(now), ..token }),
        // Somebody else revoked it at the same moment.
        Err(error) if error.is_guard("token_is_active") => require(db, &token.id.to_string()).await,
        Err(error) => Err(error.into()),
    }
}

/// Gives a token another secret, with the same grants and as long a life as before, counted from now. The old secret
/// is dead at once.
pub async fn rotate(db: &Db, actor: &Actor, name_or_id: &str) -> Result<(Token, Secret)> {
    let token = require(db, name_or_id).await?;
    let now = db.host().now();
    let expires_at = token.expires_at.map(|expires_at| now.plus(expires_at.since(token.created_at)));
    let secret = Secret::generate(db.host().random.as_ref());
    let event = Event::new(actor, "token.rotate", format!("token:{}", token.name)).with(json!({
        "id": token.id,
        "expires_at": expires_at.map(Time::rfc3339),
    }));
    let batch = Batch::new()
        .with(tokens::is_active(token.id))
        .with(tokens::replace(token.id, secret.hash().as_bytes(), now, expires_at))
        .with(events::record(db.host(), &event))
        .with(changes::notify(db.host(), TOPIC));
    match db.commit(batch).await {
        Ok(_) => Ok((Token { created_at: now, expires_at, used_at: None, ..token }, secret)),
        Err(error) if error.is_guard("token_is_active") => Err(Error::conflict(format!(
            "the token `{}` is revoked: make a new one with `larder token create {}`",
            token.name, token.name
        ))),
        Err(error) => Err(error.into()),
    }
}

/// The tokens that are not revoked and whose names come after `after`, by name, at most `limit`.
pub async fn list(db: &Db, after: &str, limit: u32) -> Result<Vec<Token>> {
    tokens::list(db, after, limit).await
}

async fn require(db: &Db, name_or_id: &str) -> Result<Token> {
    if name_or_id.parse::<Id>().is_err() {
        check_name(name_or_id)?;
    }
    tokens::find(db, name_or_id).await?.ok_or_else(|| no_token(name_or_id))
}

/// The refusal of a name that no token has.
pub(crate) fn no_token(name: &str) -> Error {
    Error::not_found(format!("there is no token `{name}`; `larder token list` shows those that are"))
}
