//! Every query and every write of Larder, one file per family of tables, over the [`Executor`] port.
//! Nobody else writes SQL. A write is data: statements with their guards, committed as one atomic [`Batch`].
//!
//! A family file looks like this: its texts, declared once with `statements!`; functions that read (`async`, over
//! [`Db`]); and functions that give a [`Statement`], which the operation above puts into its batch, its event beside
//! it. Every text is `$1` style, the same for both databases, and prepares without values: where PostgreSQL could not
//! tell the type of a parameter, write `cast($1 as bigint)`. A `sum` is cast to bigint as well, because PostgreSQL makes
//! it a numeric. The texts that must differ live in [`dialect`].

/// Declares the SQL texts of a family, each a constant of its file, and lists them for the test that prepares every
/// text on every database: `statements! { FIND = "select …"; REMOVE = "delete …"; }`. Texts may have comments.
macro_rules! statements {
    ($($(#[$attribute:meta])* $name:ident = $text:expr;)*) => {
        $($(#[$attribute])* const $name: &str = $text;)*
        /// Every text of this file, with its full name.
        pub(crate) const STATEMENTS: &[(&str, &str)] =
            &[$((concat!(module_path!(), "::", stringify!($name)), $name)),*];
    };
}

pub mod access;
pub mod advisories;
mod batch;
pub mod blobs;
pub mod changes;
pub mod credentials;
pub mod deliveries;
pub mod dialect;
pub mod edges;
pub mod events;
pub mod executor;
pub mod forges;
pub mod grants;
pub mod jobs;
pub mod leases;
mod migrations;
pub mod packages;
pub mod policies;
pub mod reservations;
mod row;
pub mod settings;
pub mod sources;
pub mod stamps;
pub mod statistics;
pub mod tokens;
pub mod uploads;
pub mod upstream_checks;
pub mod upstream_documents;
pub mod usage;
pub mod webhooks;

use std::sync::Arc;

use larder_core::{Error, Host, Result};

pub use batch::{Batch, CommitError};
pub use executor::{Dialect, Done, Executor, ExecutorError, Row, Statement, Value};
pub use row::Cells;

/// Every SQL text with its full name (`larder_db::settings::GET`), as `dialect` speaks it.
pub fn statements(dialect: Dialect) -> Vec<(&'static str, &'static str)> {
    let families = [
        access::STATEMENTS,
        advisories::STATEMENTS,
        blobs::STATEMENTS,
        changes::STATEMENTS,
        credentials::STATEMENTS,
        deliveries::STATEMENTS,
        edges::STATEMENTS,
        events::STATEMENTS,
        forges::STATEMENTS,
        grants::STATEMENTS,
        jobs::STATEMENTS,
        leases::STATEMENTS,
        packages::STATEMENTS,
        policies::STATEMENTS,
        reservations::STATEMENTS,
        settings::STATEMENTS,
        sources::STATEMENTS,
        stamps::STATEMENTS,
        statistics::STATEMENTS,
        tokens::STATEMENTS,
        upstream_checks::STATEMENTS,
        upstream_documents::STATEMENTS,
        usage::STATEMENTS,
        uploads::STATEMENTS,
        webhooks::STATEMENTS,
    ];
    families.concat().into_iter().chain(dialect::texts(dialect)).collect()
}

/// The database, as every operation is handed it. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    executor: Arc<dyn Executor>,
    host: Host,
    signal: Arc<changes::Signal>,
}

impl Db {
    /// Over an executor whose tables are known to be there.
    pub fn new(executor: Arc<dyn Executor>, host: Host) -> Self {
        Self { executor, host, signal: Arc::default() }
    }

    /// Brings the tables up to date first, under a lock. A database that a newer Larder has changed is refused.
    pub async fn open(executor: Arc<dyn Executor>, host: Host) -> Result<Self> {
        migrations::apply(executor.as_ref(), &host).await?;
        Ok(Self::new(executor, host))
    }

    /// The clock, randomness and background work that come with it.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Which SQL it speaks; only for the texts of [`dialect`].
    pub fn dialect(&self) -> Dialect {
        self.executor.dialect()
    }

    /// Runs one reading statement. What needs two reads to agree with each other is one statement, or a batch.
    pub async fn read(&self, statement: Statement) -> Result<Vec<Row>> {
        readable(&statement)?;
        Ok(self.executor.query(statement).await?)
    }

    /// Runs one reading statement of which at most the first row matters.
    pub async fn read_one(&self, statement: Statement) -> Result<Option<Row>> {
        Ok(self.read(statement).await?.into_iter().next())
    }

    /// Commits all statements of a batch, or none, and tells what each did, in their order. An empty batch is free.
    pub async fn commit(&self, batch: Batch) -> Result<Vec<Done>, CommitError> {
        let statements = batch.into_statements();
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        statements.iter().try_for_each(readable).map_err(CommitError::Other)?;
        let noted: Vec<_> = statements.iter().map(changes::noted).collect();
        let done = self.executor.batch(statements).await?;
        if noted.iter().any(Option::is_some) {
            let is_there = |(noted, done): (Option<_>, &Done)| noted.filter(|_| done.affected > 0);
            self.signal.raise(noted.into_iter().zip(&done).filter_map(is_there));
        }
        Ok(done)
    }

    /// Tries whether the database can be written: whether it has room, above all.
    pub async fn try_writing(&self) -> Result<()> {
        let now = self.host.now();
        Ok(self.commit_lightly(settings::put("written", &now.rfc3339(), now).into()).await.map(drop)?)
    }

    /// Commits what a loss of power, and nothing less, may undo, without waiting for the disk. Notifies nobody.
    async fn commit_lightly(&self, batch: Batch) -> Result<Vec<Done>, CommitError> {
        let statements = batch.into_statements();
        statements.iter().try_for_each(readable).map_err(CommitError::Other)?;
        Ok(self.executor.batch_lightly(statements).await?)
    }
}

/// PostgreSQL knows no text with a NUL character. Refused here, it is the asker's mistake on every database.
fn readable(statement: &Statement) -> Result<()> {
    let has_nul = |value: &Value| matches!(value, Value::Text(Some(text)) if text.contains('\0'));
    if statement.values.iter().any(has_nul) {
        return Err(Error::invalid("a text with a NUL character cannot be kept; leave it out"));
    }
    Ok(())
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Db").field(&self.dialect()).finish()
    }
}
