//! The [`Executor`] port on SQLite: one writer, a few readers, in WAL mode, so that readers never wait and several
//! processes share one file. A commit has reached the disk when it is told to have succeeded.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use larder_core::{Time, host::BoxFuture};
use larder_db::{Dialect, Done, Executor, ExecutorError, Row, Statement, Value};
use sqlx::{
    Column as _, ConnectOptions as _, Row as _, SqliteConnection, TypeInfo as _, ValueRef as _,
    query::Query,
    sqlite::{SqliteArguments, SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow},
};
use tokio::sync::Mutex;

use super::guard_query;

/// How long a statement waits for another process's write.
const BUSY: Duration = Duration::from_secs(10);
/// How long a batch waits for its turn among the batches of this process.
const TURN: Duration = Duration::from_secs(30);
/// How many reads run at once; each costs a thread and a page cache.
const READERS: u32 = 4;
/// The WAL file is cut back to this size, in bytes, when a burst of writes has made it larger.
const WAL_LIMIT: &str = "67108864";
/// The page caches, in KiB (negative is SQLite's way to say so). The operating system caches the file as well.
const WRITER_CACHE: &str = "-2048";
const READER_CACHE: &str = "-1024";

/// A SQLite database in a file.
pub struct Sqlite {
    writer: Arc<Writer>,
    readers: SqlitePool,
}

impl Sqlite {
    /// Opens the database, and makes the file (mode 0600) and its folder (mode 0700) when they are not there.
    pub async fn open(path: &Path) -> Result<Self, ExecutorError> {
        make(path).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ExecutorError::Full(at(path, &error)),
            _ => ExecutorError::Unavailable(at(path, &error)),
        })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(BUSY)
            .pragma("temp_store", "memory")
            .disable_statement_logging();
        let writer = Writer {
            options: options
                .clone()
                .statement_cache_capacity(128)
                .pragma("synchronous", "full")
                .pragma("journal_size_limit", WAL_LIMIT)
                .pragma("cache_size", WRITER_CACHE),
            path: path.to_owned(),
            connection: Mutex::new(None),
        };
        writer.use_wal().await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .acquire_timeout(TURN)
            .idle_timeout(Duration::from_secs(300))
            .max_lifetime(None)
            .connect_lazy_with(
                options.statement_cache_capacity(64).pragma("query_only", "on").pragma("cache_size", READER_CACHE),
            );
        Ok(Self { writer: Arc::new(writer), readers })
    }
}

#[async_trait]
impl Executor for Sqlite {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    async fn query(&self, statement: Statement) -> Result<Vec<Row>, ExecutorError> {
        let query = bind(statement.sql, statement.values);
        query.fetch_all(&self.readers).await.map_err(failed)?.iter().map(row).collect()
    }

    async fn batch(&self, statements: Vec<Statement>) -> Result<Vec<Done>, ExecutorError> {
        self.writer.transaction(Sync::Full, |connection| Box::pin(run(connection, statements))).await
    }

    async fn batch_lightly(&self, statements: Vec<Statement>) -> Result<Vec<Done>, ExecutorError> {
        self.writer.transaction(Sync::Later, |connection| Box::pin(run(connection, statements))).await
    }

    async fn migrate(&self, version: i64, sql: &'static str, at: Time) -> Result<i64, ExecutorError> {
        self.writer.transaction(Sync::Full, move |connection| Box::pin(migrate(connection, version, sql, at))).await
    }
}

/// When a transaction reaches the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// Before its commit is told to have succeeded.
    Full,
    /// With the next one that does.
    Later,
}

/// The one connection that writes. It is taken out while it is in use, and put back only when no transaction is open
/// on it and its commits reach the disk again: whatever goes wrong in between, the next batch finds either a sound connection or none.
struct Writer {
    options: SqliteConnectOptions,
    path: PathBuf,
    connection: Mutex<Option<SqliteConnection>>,
}

impl Writer {
    /// Runs `work` in a transaction of its own, to its end even when nobody waits for it any more.
    async fn transaction<T, W>(self: &Arc<Self>, sync: Sync, work: W) -> Result<T, ExecutorError>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, ExecutorError>> + Send + 'static,
    {
        let this = Arc::clone(self);
        let task = tokio::spawn(async move {
            let turn = tokio::time::timeout(TURN, this.connection.lock()).await;
            let mut slot = turn.map_err(|_| ExecutorError::Unavailable("too many writes are waiting".to_owned()))?;
            let mut connection = match slot.take() {
                Some(connection) => connection,
                None => this.connect().await?,
            };
            if sync == Sync::Later {
                execute(&mut connection, "pragma synchronous = normal").await?;
            }
            let mut is_sound = true;
            let begun = execute(&mut connection, "begin immediate").await;
            let result = if let Err(error) = begun {
                Err(error)
            } else {
                let result = match work(&mut connection).await {
                    Ok(done) => execute(&mut connection, "commit").await.map(|()| done),
                    Err(error) => Err(error),
                };
                is_sound = result.is_ok() || execute(&mut connection, "rollback").await.is_ok();
                result
            };
            if is_sound && sync == Sync::Later {
                is_sound = execute(&mut connection, "pragma synchronous = full").await.is_ok();
            }
            if is_sound {
                *slot = Some(connection);
            }
            result
        });
        task.await.unwrap_or_else(|error| Err(ExecutorError::Failed(format!("a batch ended early: {error}"))))
    }

    async fn connect(&self) -> Result<SqliteConnection, ExecutorError> {
        self.options.connect().await.map_err(|error| unusable(&self.path, &failed(error)))
    }

    /// Puts a new database into WAL mode. SQLite does not wait by itself when two processes do this at once.
    async fn use_wal(&self) -> Result<(), ExecutorError> {
        let mut connection = self.connect().await?;
        let mut waited = Duration::ZERO;
        let step = Duration::from_millis(20);
        while let Err(error) = execute(&mut connection, "pragma journal_mode = wal").await {
            if waited >= BUSY || !matches!(error, ExecutorError::Unavailable(_)) {
                return Err(unusable(&self.path, &error));
            }
            tokio::time::sleep(step).await;
            waited += step;
        }
        *self.connection.lock().await = Some(connection);
        Ok(())
    }
}

async fn run(connection: &mut SqliteConnection, statements: Vec<Statement>) -> Result<Vec<Done>, ExecutorError> {
    let mut all = Vec::with_capacity(statements.len());
    for statement in statements {
        let done = if let Some(name) = statement.guard {
            let query = bind(guard_query(&statement)?, statement.values);
            let holds = query.fetch_one(&mut *connection).await.map_err(failed)?;
            if holds.try_get_raw(0).map_err(failed)?.is_null() {
                return Err(ExecutorError::Guard(name));
            }
            Done::default()
        } else if statement.returns {
            let found = bind(statement.sql, statement.values).fetch_all(&mut *connection).await.map_err(failed)?;
            let rows = found.iter().map(row).collect::<Result<Vec<_>, _>>()?;
            Done { affected: rows.len() as u64, rows }
        } else {
            let result = bind(statement.sql, statement.values).execute(&mut *connection).await.map_err(failed)?;
            Done { affected: result.rows_affected(), rows: Vec::new() }
        };
        all.push(done);
    }
    Ok(all)
}

async fn migrate(
    connection: &mut SqliteConnection,
    version: i64,
    sql: &'static str,
    at: Time,
) -> Result<i64, ExecutorError> {
    execute(
        connection,
        "create table if not exists migrations (version bigint primary key, applied_at bigint not null)",
    )
    .await?;
    let newest: i64 = sqlx::query_scalar("select coalesce(max(version), 0) from migrations")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    if version != newest + 1 {
        return Ok(newest);
    }
    sqlx::raw_sql(sql).execute(&mut *connection).await.map_err(failed)?;
    let record = bind("insert into migrations (version, applied_at) values ($1, $2)", vec![version.into(), at.into()]);
    record.execute(&mut *connection).await.map_err(failed)?;
    Ok(version)
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), ExecutorError> {
    sqlx::query(sql).execute(connection).await.map(|_| ()).map_err(failed)
}

fn bind(sql: &'static str, values: Vec<Value>) -> Query<'static, sqlx::Sqlite, SqliteArguments> {
    values.into_iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
        Value::Float(value) => query.bind(value),
    })
}

fn row(row: &SqliteRow) -> Result<Row, ExecutorError> {
    let values = row.columns().iter().map(|column| value(row, column.ordinal()));
    values.collect::<Result<_, _>>().map(Row).map_err(failed)
}

fn value(row: &SqliteRow, at: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(at)?;
    let kind = raw.type_info();
    Ok(match kind.name() {
        "NULL" => Value::Text(None),
        "INTEGER" | "BOOLEAN" => Value::Int(row.try_get_unchecked(at)?),
        "REAL" => Value::Float(row.try_get_unchecked(at)?),
        "BLOB" => Value::Bytes(row.try_get_unchecked(at)?),
        _ => Value::Text(row.try_get_unchecked(at)?),
    })
}

fn make(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

/// Why a database cannot be opened: whatever that is, it is not available.
fn unusable(path: &Path, error: &ExecutorError) -> ExecutorError {
    match error {
        ExecutorError::Full(_) => ExecutorError::Full(at(path, error)),
        _ => ExecutorError::Unavailable(at(path, error)),
    }
}

fn at(path: &Path, error: &dyn std::error::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Result codes: <https://www.sqlite.org/rescode.html>; the low byte is the primary one.
#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn failed(error: sqlx::Error) -> ExecutorError {
    const FULL: [i32; 2] = [13, 4_874 /* SQLITE_IOERR_SHMSIZE: no room for the -shm file */];
    let text = error.to_string();
    let code = match &error {
        sqlx::Error::Database(inner) => inner.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or_default(),
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            return ExecutorError::Unavailable(text);
        }
        _ => return ExecutorError::Failed(text),
    };
    match (code, code & 0xff) {
        (code, primary) if FULL.contains(&code) || FULL.contains(&primary) => ExecutorError::Full(text),
        // BUSY, LOCKED, READONLY, CANTOPEN
        (_, 5 | 6 | 8 | 14) => ExecutorError::Unavailable(text),
        (_, 19) => ExecutorError::Constraint(text),
        _ => ExecutorError::Failed(text),
    }
}
