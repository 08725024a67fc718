//! The sealed secrets of webhooks, one per Git source at most. This file stores them; `larder-sources` seals them. What
//! came through a webhook is in [`crate::deliveries`].

use larder_core::{Id, Result, Time};

use crate::{Cells, Db, Statement};

statements! {
    AT = "select s.id, s.name, w.key_id, w.sealed from sources s join webhooks w on w.source_id = s.id
        where s.name = $1 or s.id = $1";
    PUT = "insert into webhooks (source_id, key_id, sealed, created_at) values ($1, $2, $3, $4)
        on conflict (source_id) do update set key_id = excluded.key_id, sealed = excluded.sealed,
        created_at = excluded.created_at";
    MISSING = "insert into guard (holds) select case when not exists
        (select 1 from webhooks where source_id = $1) then 1 end";
}

/// The webhook of a source: its secret sealed.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// The source.
    pub source: Id,
    /// The name that people gave the source.
    pub name: String,
    /// The key that opens the secret.
    pub key_id: String,
    /// The sealed secret.
    pub sealed: Vec<u8>,
}

fn webhook(mut cells: Cells) -> Result<Webhook> {
    Ok(Webhook { source: cells.id()?, name: cells.text()?, key_id: cells.text()?, sealed: cells.bytes()? })
}

/// The webhook of the source with this name or id; `None` also if that source has none. One look, whatever there is.
pub async fn at(db: &Db, name_or_id: &str) -> Result<Option<Webhook>> {
    db.read_one(Statement::read(AT, [name_or_id.into()])).await?.map(|row| webhook(row.cells())).transpose()
}

/// Gives a source a secret, in place of the one that it has.
pub fn put(source: Id, key_id: &str, sealed: Vec<u8>, at: Time) -> Statement {
    Statement::write(PUT, [source.into(), key_id.into(), sealed.into(), at.into()])
}

/// Guard `webhook is missing`: the source has no secret yet.
pub fn missing(source: Id) -> Statement {
    Statement::guard("webhook is missing", MISSING, [source.into()])
}
