//! Settings that live in the database because every replica must agree on them.

use larder_core::{Result, Time};

use crate::{Db, Statement};

statements! {
    GET = "select value from settings where key = $1";
    PUT = "insert into settings (key, value, changed_at) values ($1, $2, $3)
        on conflict (key) do update set value = excluded.value, changed_at = excluded.changed_at";
    REMOVE = "delete from settings where key = $1";
}

/// The value of a setting, if it was ever set.
pub async fn get(db: &Db, key: &str) -> Result<Option<String>> {
    let row = db.read_one(Statement::read(GET, [key.into()])).await?;
    row.map(|row| row.cells().text()).transpose()
}

/// Sets a setting.
pub fn put(key: &str, value: &str, at: Time) -> Statement {
    Statement::write(PUT, [key.into(), value.into(), at.into()])
}

/// Forgets a setting.
pub fn remove(key: &str) -> Statement {
    Statement::write(REMOVE, [key.into()])
}
