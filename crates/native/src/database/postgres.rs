//! The [`Executor`] port on PostgreSQL: a small pool; every batch is one SERIALIZABLE transaction, tried again a
//! bounded number of times when it only lost a race. That is what makes a guard mean the same as on SQLite.

use std::time::Duration;

use async_trait::async_trait;
use larder_core::{Error, Time, host::Random as _};
use larder_db::{Dialect, Done, Executor, ExecutorError, Row, Statement, Value};
use sqlx::{
    Column as _, ConnectOptions as _, Connection as _, PgConnection, PgPool, Row as _, TypeInfo as _, ValueRef as _,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow},
    query::Query,
};

use super::guard_query;
use crate::host::SystemRandom;

/// How many connections one replica holds at most.
const CONNECTIONS: u32 = 10;
/// How long a statement waits for a free connection, and a connection for the server.
const TURN: Duration = Duration::from_secs(10);
/// A connection that was idle for longer is tried before it is used: the server may have been restarted.
const TRUSTED: Duration = Duration::from_secs(1);
/// How often a batch is tried, and the longest wait before the next try. Together about ten seconds.
const ATTEMPTS: u32 = 100;
const LONGEST_WAIT: Duration = Duration::from_millis(200);
/// How often a statement is tried that found its connection broken before it could do anything.
const RECONNECTS: u32 = 3;
/// What the server ends by itself, so that a replica that vanished holds nothing for long.
const LIMITS: &str = "set statement_timeout = '60s'; set idle_in_transaction_session_timeout = '60s'";
/// The advisory lock under which migrations run: `larder` in ASCII.
const MIGRATIONS: &str = "select pg_advisory_xact_lock(119143928784242)";

/// A PostgreSQL database, reached when it is needed.
pub struct Postgres {
    pool: PgPool,
}

impl Postgres {
    /// Reads the URL; connects later. The error does not repeat the URL.
    pub fn open(url: &str) -> Result<Self, Error> {
        let wrong = || Error::invalid("the database's URL must look like postgres://user:password@host:5432/name");
        let options: PgConnectOptions = url.parse().map_err(|_| wrong())?;
        let options = options.application_name("larder").statement_cache_capacity(256).disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(TURN)
            .idle_timeout(Duration::from_secs(300))
            .test_before_acquire(false)
            .after_connect(|connection, _| {
                Box::pin(async move { sqlx::raw_sql(LIMITS).execute(connection).await.map(|_| ()) })
            })
            .before_acquire(|connection, used| {
                Box::pin(async move {
                    if used.idle_for > TRUSTED {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    async fn attempt(&self, statements: Vec<Statement>) -> Result<Vec<Done>, Failure> {
        let mut connection = self.pool.acquire().await.map_err(Failure::before)?;
        let mut transaction =
            connection.begin_with("begin isolation level serializable").await.map_err(Failure::before)?;
        match run(&mut transaction, statements).await {
            Ok(done) => transaction.commit().await.map(|()| done).map_err(Failure::within),
            Err(error) => {
                // Should this fail, the connection is broken, and the server undoes the transaction by itself.
                drop(transaction.rollback().await);
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Executor for Postgres {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    async fn query(&self, statement: Statement) -> Result<Vec<Row>, ExecutorError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let query = bind(statement.sql, statement.values.clone());
            match query.fetch_all(&self.pool).await {
                Ok(rows) => return rows.iter().map(row).collect::<Result<_, _>>().map_err(failed),
                Err(error) if attempt < RECONNECTS && is_broken(&error) => wait(attempt).await,
                Err(error) => return Err(failed(error)),
            }
        }
    }

    async fn batch(&self, statements: Vec<Statement>) -> Result<Vec<Done>, ExecutorError> {
        let this = Self { pool: self.pool.clone() };
        // A task of its own: the batch runs to its end even when nobody waits for it any more.
        let task = tokio::spawn(async move {
            let mut attempt = 0;
            loop {
                attempt += 1;
                match this.attempt(statements.clone()).await {
                    Ok(done) => return Ok(done),
                    Err(Failure::Race(_)) if attempt < ATTEMPTS => wait(attempt).await,
                    Err(Failure::Untouched(_)) if attempt < RECONNECTS => wait(attempt).await,
                    Err(Failure::Race(error) | Failure::Untouched(error) | Failure::Final(error)) => return Err(error),
                }
            }
        });
        task.await.unwrap_or_else(|error| Err(ExecutorError::Failed(format!("a batch ended early: {error}"))))
    }

    async fn migrate(&self, version: i64, sql: &'static str, at: Time) -> Result<i64, ExecutorError> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        let newest = migrate(&mut transaction, version, sql, at).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(newest)
    }
}

/// Why an attempt failed, as far as the next one cares.
enum Failure {
    /// Another batch was faster (serialisation, deadlock): nothing was done, and the next attempt may succeed.
    Race(ExecutorError),
    /// The connection was broken before anything was done.
    Untouched(ExecutorError),
    /// Trying again would not help, or could do it twice.
    Final(ExecutorError),
}

impl Failure {
    fn before(error: sqlx::Error) -> Self {
        if is_broken(&error) { Self::Untouched(failed(error)) } else { Self::Final(failed(error)) }
    }

    fn within(error: sqlx::Error) -> Self {
        match code(&error).as_deref() {
            Some("40001" | "40P01") => Self::Race(failed(error)),
            _ => Self::Final(failed(error)),
        }
    }
}

async fn run(connection: &mut PgConnection, statements: Vec<Statement>) -> Result<Vec<Done>, Failure> {
    let mut all = Vec::with_capacity(statements.len());
    for statement in statements {
        let done = if let Some(name) = statement.guard {
            let query = bind(guard_query(&statement).map_err(Failure::Final)?, statement.values);
            let holds = query.fetch_one(&mut *connection).await.map_err(Failure::within)?;
            if holds.try_get_raw(0).map_err(Failure::within)?.is_null() {
                return Err(Failure::Final(ExecutorError::Guard(name)));
            }
            Done::default()
        } else if statement.returns {
            let query = bind(statement.sql, statement.values);
            let found = query.fetch_all(&mut *connection).await.map_err(Failure::within)?;
            let rows = found.iter().map(row).collect::<Result<Vec<_>, _>>().map_err(Failure::within)?;
            Done { affected: rows.len() as u64, rows }
        } else {
            let query = bind(statement.sql, statement.values);
            let result = query.execute(&mut *connection).await.map_err(Failure::within)?;
            Done { affected: result.rows_affected(), rows: Vec::new() }
        };
        all.push(done);
    }
    Ok(all)
}

async fn migrate(connection: &mut PgConnection, version: i64, sql: &'static str, at: Time) -> Result<i64, sqlx::Error> {
    sqlx::query(MIGRATIONS).execute(&mut *connection).await?;
    let table = "create table if not exists migrations (version bigint primary key, applied_at bigint not null)";
    sqlx::query(table).execute(&mut *connection).await?;
    let newest: i64 =
        sqlx::query_scalar("select coalesce(max(version), 0) from migrations").fetch_one(&mut *connection).await?;
    if version != newest + 1 {
        return Ok(newest);
    }
    sqlx::raw_sql(sql).execute(&mut *connection).await?;
    let record = bind("insert into migrations (version, applied_at) values ($1, $2)", vec![version.into(), at.into()]);
    record.execute(&mut *connection).await?;
    Ok(version)
}

fn bind(sql: &'static str, values: Vec<Value>) -> Query<'static, sqlx::Postgres, PgArguments> {
    values.into_iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
        Value::Float(value) => query.bind(value),
    })
}

fn row(row: &PgRow) -> Result<Row, sqlx::Error> {
    row.columns()
        .iter()
        .map(|column| value(row, column.ordinal(), column.type_info().name()))
        .collect::<Result<_, _>>()
        .map(Row)
}

fn value(row: &PgRow, at: usize, kind: &str) -> Result<Value, sqlx::Error> {
    Ok(match kind {
        "INT8" => Value::Int(row.try_get(at)?),
        "INT4" => Value::Int(row.try_get::<Option<i32>, _>(at)?.map(i64::from)),
        "BOOL" => Value::Int(row.try_get::<Option<bool>, _>(at)?.map(i64::from)),
        "FLOAT8" => Value::Float(row.try_get(at)?),
        "BYTEA" => Value::Bytes(row.try_get(at)?),
        // A NUMERIC is what `sum` gives: the text should cast it to bigint.
        _ => Value::Text(row.try_get(at)?),
    })
}

/// Waits for a random part of a time that doubles with every attempt, so that those who met once do not meet again.
async fn wait(attempt: u32) {
    let longest = Duration::from_millis(2_u64 << attempt.min(10)).min(LONGEST_WAIT);
    let mut random = [0_u8];
    SystemRandom::default().fill(&mut random);
    tokio::time::sleep(longest.mul_f64(f64::from(random[0]) / 255.0)).await;
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(std::borrow::Cow::into_owned)
}

/// Whether the connection, not the statement, is to blame: lost, or ended by a server that stops or starts.
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        _ => code(error).is_some_and(|code| matches!(code.as_str(), "57P01" | "57P02" | "57P03" | "25P03")),
    }
}

/// Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn failed(error: sqlx::Error) -> ExecutorError {
    let text = match &error {
        sqlx::Error::PoolTimedOut => format!("no connection within {} s: not reachable, or all in use", TURN.as_secs()),
        other => other.to_string(),
    };
    let unreachable =
        is_broken(&error) || matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_));
    match code(&error).as_deref() {
        _ if unreachable => ExecutorError::Unavailable(text),
        Some("53100") => ExecutorError::Full(text),
        // Lost races; no memory or connections left; a lock or a statement that took too long; a server that only reads.
        Some("40001" | "40P01" | "55P03" | "57014" | "25006") => ExecutorError::Unavailable(text),
        Some(code) if code.starts_with("53") || code.starts_with("08") => ExecutorError::Unavailable(text),
        Some(code) if code.starts_with("23") => ExecutorError::Constraint(text),
        _ => ExecutorError::Failed(text),
    }
}
