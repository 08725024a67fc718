//! A database that fails when a test wants it to, over a real one.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use larder_core::Time;
use larder_db::{Dialect, Done, Executor, ExecutorError, Row, Statement};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It cannot be reached.
    Away,
    /// It commits, and its answer is lost on the way.
    AnswerLost,
    /// It refuses every batch, and will always do so.
    Refuses,
}

/// An executor with a fault that a test sets, which counts what it is asked.
pub struct Faulty {
    inner: Arc<dyn Executor>,
    fault: Mutex<Fault>,
    queries: AtomicUsize,
    batches: AtomicUsize,
}

impl Faulty {
    /// Over a real one, without a fault at first.
    pub fn over(inner: Arc<dyn Executor>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            fault: Mutex::new(Fault::None),
            queries: AtomicUsize::new(0),
            batches: AtomicUsize::new(0),
        })
    }

    /// From now on this goes wrong.
    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// How often it has answered when asked to read.
    pub fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }

    /// How often it was asked to write.
    pub fn batches(&self) -> usize {
        self.batches.load(Ordering::SeqCst)
    }

    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn away() -> ExecutorError {
    ExecutorError::Unavailable("the test took it away".to_owned())
}

#[async_trait]
impl Executor for Faulty {
    fn dialect(&self) -> Dialect {
        self.inner.dialect()
    }

    async fn query(&self, statement: Statement) -> Result<Vec<Row>, ExecutorError> {
        let answer = match self.fault() {
            Fault::Away => Err(away()),
            _ => self.inner.query(statement).await,
        };
        self.queries.fetch_add(1, Ordering::SeqCst);
        answer
    }

    async fn batch(&self, statements: Vec<Statement>) -> Result<Vec<Done>, ExecutorError> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        match self.fault() {
            Fault::None => self.inner.batch(statements).await,
            Fault::Away => Err(away()),
            Fault::AnswerLost => self.inner.batch(statements).await.and(Err(away())),
            Fault::Refuses => Err(ExecutorError::Failed("the test made it refuse".to_owned())),
        }
    }

    async fn batch_lightly(&self, statements: Vec<Statement>) -> Result<Vec<Done>, ExecutorError> {
        self.batch(statements).await
    }

    async fn migrate(&self, version: i64, sql: &'static str, at: Time) -> Result<i64, ExecutorError> {
        self.inner.migrate(version, sql, at).await
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Faulty").field(&self.fault()).finish()
    }
}
