//! The [`Executor`] port on SQLite and on PostgreSQL. The only place that knows either of them.

mod postgres;
mod sqlite;

use std::{path::Path, sync::Arc};

use larder_core::{Error, Kind, Result};
use larder_db::{Executor, ExecutorError, Statement, executor::GUARD};

pub use postgres::Postgres;
pub use sqlite::Sqlite;

/// Opens the database that `url` names: `sqlite:PATH` (made when it is not there) or `postgres://…` (a connection is
/// made when one is needed; `?sslmode=verify-full` and the like ask for TLS). No error says what the URL was, because
/// a password may be in it.
pub async fn connect(url: &str) -> Result<Arc<dyn Executor>> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        let usable = !path.is_empty() && !path.starts_with(':') && !path.contains('?');
        if !usable {
            return Err(Error::invalid("a SQLite database is `sqlite:` and the path of a file, nothing else"));
        }
        return Ok(Arc::new(Sqlite::open(Path::new(path)).await?));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(Arc::new(Postgres::open(url)?));
    }
    Err(Error::new(
        Kind::Invalid,
        "the database's URL must begin with `sqlite:` (a path) or `postgres://` (user:password@host/name)",
    ))
}

/// What of a guard's text is run: its condition as a query, so that no row is ever written for it.
fn guard_query(statement: &Statement) -> Result<&'static str, ExecutorError> {
    statement
        .sql
        .strip_prefix(GUARD)
        .map(str::trim_start)
        .ok_or_else(|| ExecutorError::Failed(format!("the text of a guard must begin with `{GUARD}`")))
}
