//! Credentials: the sealed secrets with which Larder reaches sources. This file stores them; `larder-sources` seals them.

use larder_core::{Id, Result, Time};

use crate::{Cells, Db, Statement};

statements! {
    FIND = "select id, name, kind, username, host, key_id, sealed, created_at from credentials where name = $1 or id = $1";
    LIST = "select id, name, kind, username, host, key_id, sealed, created_at from credentials order by name";
    INSERT = "insert into credentials (id, name, kind, username, host, key_id, sealed, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8)";
    BIND = "update credentials set host = $2, key_id = $3, sealed = $4 where id = $1 and host is null";
    RESEAL = "update credentials set username = $2, key_id = $3, sealed = $4 where id = $1";
    SAME = "insert into guard (holds) select case when exists
        (select 1 from credentials where id = $1 and sealed = $2) then 1 end";
    REMOVE = "delete from credentials where id = $1";
    NAME_FREE = "insert into guard (holds) select case when not exists
        (select 1 from credentials where name = $1) then 1 end";
    UNBOUND = "insert into guard (holds) select case when exists
        (select 1 from credentials where id = $1 and host is null) then 1 end";
    UNUSED = "insert into guard (holds) select case when not exists
        (select 1 from sources where credential_id = $1) then 1 end";
}

/// A credential as it is stored: its secret sealed.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Its identity.
    pub id: Id,
    /// The name that people gave it.
    pub name: String,
    /// How it is shown to a host: `basic`, `bearer`, `ssh`, or the style of a forge.
    pub kind: String,
    /// The user name that goes with it.
    pub username: Option<String>,
    /// The one host that it may be sent to; `None` until its first source is added.
    pub host: Option<String>,
    /// The key that opens it.
    pub key_id: String,
    /// The sealed secret.
    pub sealed: Vec<u8>,
    /// When it was added.
    pub created_at: Time,
}

fn credential(mut cells: Cells) -> Result<Credential> {
    Ok(Credential {
        id: cells.id()?,
        name: cells.text()?,
        kind: cells.text()?,
        username: cells.optional_text()?,
        host: cells.optional_text()?,
        key_id: cells.text()?,
        sealed: cells.bytes()?,
        created_at: cells.time()?,
    })
}

/// The credential with this name or id.
pub async fn find(db: &Db, name_or_id: &str) -> Result<Option<Credential>> {
    db.read_one(Statement::read(FIND, [name_or_id.into()])).await?.map(|row| credential(row.cells())).transpose()
}

/// Every credential, by name.
pub async fn list(db: &Db) -> Result<Vec<Credential>> {
    db.read(Statement::read(LIST, [])).await?.into_iter().map(|row| credential(row.cells())).collect()
}

/// Adds a credential.
pub fn insert(credential: &Credential) -> Statement {
    Statement::write(
        INSERT,
        [
            credential.id.into(),
            credential.name.as_str().into(),
            credential.kind.as_str().into(),
            credential.username.clone().into(),
            credential.host.clone().into(),
            credential.key_id.as_str().into(),
            credential.sealed.clone().into(),
            credential.created_at.into(),
        ],
    )
}

/// Binds a credential to its host, sealed anew with it. Goes with [`unbound`].
pub fn bind(id: Id, host: &str, key_id: &str, sealed: Vec<u8>) -> Statement {
    Statement::write(BIND, [id.into(), host.into(), key_id.into(), sealed.into()])
}

/// Gives a credential another secret, sealed, and the user name that goes with it. Goes with [`is_same`].
pub fn reseal(id: Id, username: Option<&str>, key_id: &str, sealed: Vec<u8>) -> Statement {
    Statement::write(RESEAL, [id.into(), username.map(str::to_owned).into(), key_id.into(), sealed.into()])
}

/// Guard `credential is the same`: neither its secret nor what that is bound to has changed since it was read. No two
/// seals are equal.
pub fn is_same(credential: &Credential) -> Statement {
    Statement::guard("credential is the same", SAME, [credential.id.into(), credential.sealed.clone().into()])
}

/// Takes a credential away. Goes with [`unused`].
pub fn remove(id: Id) -> Statement {
    Statement::write(REMOVE, [id.into()])
}

/// Guard `credential name is free`.
pub fn name_free(name: &str) -> Statement {
    Statement::guard("credential name is free", NAME_FREE, [name.into()])
}

/// Guard `credential is not bound`.
pub fn unbound(id: Id) -> Statement {
    Statement::guard("credential is not bound", UNBOUND, [id.into()])
}

/// Guard `credential is not used`.
pub fn unused(id: Id) -> Statement {
    Statement::guard("credential is not used", UNUSED, [id.into()])
}
