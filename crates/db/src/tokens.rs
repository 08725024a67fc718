//! Tokens: who may knock, known by the hash of their secret. What each may do is in [`crate::grants`].
//!
//! A name belongs to at most one token that is not revoked. A revoked token stays as a row, so that the audit log can
//! still be read by id.

use larder_core::{Id, Result, Time, grant::Grant};

use crate::{Cells, Db, Row, Statement, grants};

statements! {
    RECOGNISE = "select t.id, t.name, t.created_at, t.expires_at, t.used_at, g.actions, g.format, g.pattern
        from tokens t left join grants g on g.principal = 'token:' || t.name
        where t.hash = $1 and t.revoked_at is null";
    RECOGNISE_ID = "select t.id, t.name, t.created_at, t.expires_at, t.used_at, g.actions, g.format, g.pattern
        from tokens t left join grants g on g.principal = 'token:' || t.name
        where t.id = $1 and t.revoked_at is null";
    FIND = "select id, name, created_at, expires_at, revoked_at, used_at from tokens
        where id = $1 or (name = $1 and revoked_at is null)
        order by case when id = $1 then 1 else 0 end limit 1";
    LIST = "select id, name, created_at, expires_at, revoked_at, used_at from tokens
        where revoked_at is null and name > $1 order by name limit $2";
    INSERT = "insert into tokens (id, name, hash, created_at, expires_at) values ($1, $2, $3, $4, $5)";
    REVOKE = "update tokens set revoked_at = $2 where id = $1";
    REPLACE = "update tokens set hash = $2, created_at = $3, expires_at = $4, used_at = null where id = $1";
    USED = "update tokens set used_at = $2 where id = $1 and (used_at is null or used_at < $2)";
    NAME_IS_FREE = "insert into guard (holds) select case when (
        not exists (select 1 from tokens where name = $1 and revoked_at is null)) then 1 end";
    IS_ACTIVE = "insert into guard (holds) select case when (
        exists (select 1 from tokens where id = $1 and revoked_at is null)) then 1 end";
    NAME_IS_ACTIVE = "insert into guard (holds) select case when (
        exists (select 1 from tokens where name = $1 and revoked_at is null)) then 1 end";
}

/// A token as its owners see it: everything but its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its identity, for ever.
    pub id: Id,
    /// Its name, as long as it is not revoked.
    pub name: String,
    /// When its secret was made.
    pub created_at: Time,
    /// From when on it is refused.
    pub expires_at: Option<Time>,
    /// When it was revoked.
    pub revoked_at: Option<Time>,
    /// When it was last used, exact to about a minute.
    pub used_at: Option<Time>,
}

/// What is needed to recognise the bearer of a token and to decide what he may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The token's id.
    pub id: Id,
    /// The token's name.
    pub name: String,
    /// When its secret was made.
    pub created_at: Time,
    /// From when on it is refused.
    pub expires_at: Option<Time>,
    /// When it was last used.
    pub used_at: Option<Time>,
    /// What it may do, sorted, without doubles.
    pub grants: Vec<Grant>,
}

/// The token with this hash, unless it is revoked. It may be expired: that is for the clock to say, at every use.
pub async fn recognise(db: &Db, hash: &[u8; 32]) -> Result<Option<Recognised>> {
    recognised(db.read(Statement::read(RECOGNISE, [hash.to_vec().into()])).await?)
}

/// The token with this id, for whoever proved otherwise that it stands behind him, unless it is revoked.
pub async fn recognise_id(db: &Db, id: Id) -> Result<Option<Recognised>> {
    recognised(db.read(Statement::read(RECOGNISE_ID, [id.into()])).await?)
}

fn recognised(rows: Vec<Row>) -> Result<Option<Recognised>> {
    let mut found: Option<Recognised> = None;
    for row in rows {
        let mut cells = row.cells();
        let (id, name, created_at) = (cells.id()?, cells.text()?, cells.time()?);
        let (expires_at, used_at) = (cells.optional_time()?, cells.optional_time()?);
        let token =
            found.get_or_insert_with(|| Recognised { id, name, created_at, expires_at, used_at, grants: Vec::new() });
        token.grants.extend(grants::optional_grant(&mut cells)?);
    }
    if let Some(token) = &mut found {
        token.grants.sort_unstable();
    }
    Ok(found)
}

/// The active token of this name, or the token (revoked or not) with this id.
pub async fn find(db: &Db, name_or_id: &str) -> Result<Option<Token>> {
    db.read_one(Statement::read(FIND, [name_or_id.into()])).await?.map(token).transpose()
}

/// The active tokens whose names come after `after`, by name, at most `limit`.
pub async fn list(db: &Db, after: &str, limit: u32) -> Result<Vec<Token>> {
    let rows = db.read(Statement::read(LIST, [after.into(), i64::from(limit).into()])).await?;
    rows.into_iter().map(token).collect()
}

/// Adds a token.
pub fn insert(token: &Token, hash: &[u8; 32]) -> Statement {
    let Token { id, name, created_at, expires_at, .. } = token;
    let values = [(*id).into(), name.into(), hash.to_vec().into(), (*created_at).into(), (*expires_at).into()];
    Statement::write(INSERT, values)
}

/// Makes a token dead for ever and its name free.
pub fn revoke(id: Id, at: Time) -> Statement {
    Statement::write(REVOKE, [id.into(), at.into()])
}

/// Gives a token another secret; the old one is dead.
pub fn replace(id: Id, hash: &[u8; 32], at: Time, expires_at: Option<Time>) -> Statement {
    Statement::write(REPLACE, [id.into(), hash.to_vec().into(), at.into(), expires_at.into()])
}

/// Notes that a token was used.
pub fn used(id: Id, at: Time) -> Statement {
    Statement::write(USED, [id.into(), at.into()])
}

/// Guard `name_is_free`: no active token has this name.
pub fn name_is_free(name: &str) -> Statement {
    Statement::guard("name_is_free", NAME_IS_FREE, [name.into()])
}

/// Guard `token_is_active`: the token is there and not revoked.
pub fn is_active(id: Id) -> Statement {
    Statement::guard("token_is_active", IS_ACTIVE, [id.into()])
}

/// Guard `token_is_active`: there is a token of this name that is not revoked.
pub fn name_is_active(name: &str) -> Statement {
    Statement::guard("token_is_active", NAME_IS_ACTIVE, [name.into()])
}

fn token(row: Row) -> Result<Token> {
    let mut cells: Cells = row.cells();
    Ok(Token {
        id: cells.id()?,
        name: cells.text()?,
        created_at: cells.time()?,
        expires_at: cells.optional_time()?,
        revoked_at: cells.optional_time()?,
        used_at: cells.optional_time()?,
    })
}
