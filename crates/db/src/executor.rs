//! The port to a database: run one statement, or one atomic batch of them. `larder-native` implements it for SQLite
//! and PostgreSQL; nothing above this crate sees a connection or a transaction.

use async_trait::async_trait;

/// A value as both databases know it. A NULL keeps its type, because PostgreSQL wants to know it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `bigint`
    Int(Option<i64>),
    /// `text`
    Text(Option<String>),
    /// `bytea`
    Bytes(Option<Vec<u8>>),
    /// `double precision`
    Float(Option<f64>),
}

macro_rules! value_from {
    ($($type:ty => $variant:ident, $convert:expr;)*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                let convert: fn($type) -> _ = $convert;
                Self::$variant(Some(convert(value)))
            }
        }
        impl From<Option<$type>> for Value {
            fn from(value: Option<$type>) -> Self {
                let convert: fn($type) -> _ = $convert;
                Self::$variant(value.map(convert))
            }
        }
    )*};
}

value_from! {
    i64 => Int, |value| value;
    bool => Int, i64::from;
    f64 => Float, |value| value;
    String => Text, |value| value;
    &str => Text, str::to_owned;
    Vec<u8> => Bytes, |value| value;
    larder_core::Id => Text, |id| id.to_string();
    larder_core::Time => Int, larder_core::Time::micros;
    larder_core::Digest => Text, |digest| digest.to_string();
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(Some(value.clone()))
    }
}

/// One SQL statement with its values, `$1`, `$2`, … in the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// The text, the same for every database.
    pub sql: &'static str,
    /// The values, in the order of their numbers.
    pub values: Vec<Value>,
    /// For a guard: what is told when it does not hold.
    pub guard: Option<&'static str>,
    /// Whether it gives rows (`select`, or `returning`).
    pub returns: bool,
}

impl Statement {
    /// A statement that gives no rows.
    pub fn write(sql: &'static str, values: impl Into<Vec<Value>>) -> Self {
        Self { sql, values: values.into(), guard: None, returns: false }
    }

    /// A statement that gives rows: a `select`, or a write with `returning`.
    pub fn read(sql: &'static str, values: impl Into<Vec<Value>>) -> Self {
        Self { sql, values: values.into(), guard: None, returns: true }
    }

    /// A guard: `sql` must be `insert into guard (holds) select case when (CONDITION) then 1 end`. A batch in which
    /// the condition is not true is undone, and says `name`. An executor that can look at results within a batch may
    /// run only what follows [`GUARD`], and must then refuse a NULL itself.
    pub fn guard(name: &'static str, sql: &'static str, values: impl Into<Vec<Value>>) -> Self {
        Self { sql, values: values.into(), guard: Some(name), returns: false }
    }
}

/// How the text of every guard begins.
pub const GUARD: &str = "insert into guard (holds)";

/// What one statement of a batch did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// How many rows it wrote.
    pub affected: u64,
    /// The rows that it gave, if it gives any.
    pub rows: Vec<Row>,
}

/// One row: its values in the order of the select list; [`cells`](Row::cells) reads them. SQLite does not know the
/// type of a NULL, so that a NULL in a row may be of any variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Row(pub Vec<Value>);

/// Why the database did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// A guard did not hold; nothing was written. Read again and decide again.
    #[error("the guard `{0}` did not hold")]
    Guard(&'static str),
    /// A unique key or a reference did not allow it; nothing was written.
    #[error("a key or reference does not allow it: {0}")]
    Constraint(String),
    /// The database's disk is full; nothing was written.
    #[error("the database has no room left: {0}")]
    Full(String),
    /// Not reachable, too busy for too long, or shutting down.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Anything else.
    #[error("the database failed: {0}")]
    Failed(String),
}

/// Which SQL is spoken where the two differ (`dialect.rs` is the only reader).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// SQLite 3.
    Sqlite,
    /// PostgreSQL 14 or later.
    Postgres,
}

/// Runs statements.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Which SQL it speaks.
    fn dialect(&self) -> Dialect;

    /// Runs one reading statement on a snapshot of its own.
    async fn query(&self, statement: Statement) -> Result<Vec<Row>, ExecutorError>;

    /// Runs all statements, in order, or none: what a guard sees stays true until the end. It retries what only
    /// lost a race inside the database (serialisation, busy), a bounded number of times.
    async fn batch(&self, statements: Vec<Statement>) -> Result<Vec<Done>, ExecutorError>;

    /// Like [`batch`](Self::batch), for what may be undone by a loss of power, and by nothing less: together with every
    /// other such batch after it, and never once a [`batch`](Self::batch) has run since. Does not wait for the disk where the
    /// database can promise that. PostgreSQL cannot: its own end would undo such a batch under servers that go on.
    async fn batch_lightly(&self, statements: Vec<Statement>) -> Result<Vec<Done>, ExecutorError> {
        self.batch(statements).await
    }

    /// Under a lock that no other migration shares: makes the table `migrations (version, applied_at)` if there is
    /// none; runs the statements in `sql`, as one batch, if `version` is the one after the newest there; and gives
    /// the newest version that the database then has.
    async fn migrate(&self, version: i64, sql: &'static str, at: larder_core::Time) -> Result<i64, ExecutorError>;
}
