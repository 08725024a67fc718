//! A write as data: statements and guards that are committed together or not at all, and why that may fail.

use larder_core::{Error, Kind};

use crate::executor::{ExecutorError, Statement};

/// Statements that are committed together or not at all. A guard among them undoes all of them when it does not hold;
/// what a guard has seen stays true until the end of the batch.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "nothing is written before `Db::commit`"]
pub struct Batch {
    statements: Vec<Statement>,
}

impl Batch {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a statement or a guard, in a chain.
    pub fn with(mut self, statement: Statement) -> Self {
        self.statements.push(statement);
        self
    }

    /// Adds a statement or a guard, and gives the place at which [`Db::commit`](crate::Db::commit) tells what it did.
    pub fn push(&mut self, statement: Statement) -> usize {
        self.statements.push(statement);
        self.statements.len() - 1
    }

    /// How many statements and guards there are.
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    pub(crate) fn into_statements(self) -> Vec<Statement> {
        self.statements
    }
}

impl Extend<Statement> for Batch {
    fn extend<T: IntoIterator<Item = Statement>>(&mut self, statements: T) {
        self.statements.extend(statements);
    }
}

impl FromIterator<Statement> for Batch {
    fn from_iter<T: IntoIterator<Item = Statement>>(statements: T) -> Self {
        Self { statements: statements.into_iter().collect() }
    }
}

impl From<Statement> for Batch {
    fn from(statement: Statement) -> Self {
        Self { statements: vec![statement] }
    }
}

/// Why a batch was not committed. Nothing of it was written.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The guard of this name did not hold: read again and decide again.
    #[error("the guard `{0}` did not hold")]
    Guard(&'static str),
    /// Anything else. [`Kind::Conflict`]: a unique key or a reference did not allow it.
    #[error(transparent)]
    Other(Error),
}

impl CommitError {
    /// Whether it was the guard of this name.
    pub fn is_guard(&self, name: &str) -> bool {
        matches!(self, Self::Guard(guard) if *guard == name)
    }
}

impl From<ExecutorError> for CommitError {
    fn from(error: ExecutorError) -> Self {
        match error {
            ExecutorError::Guard(name) => Self::Guard(name),
            other => Self::Other(other.into()),
        }
    }
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Guard(name) => ExecutorError::Guard(name).into(),
            CommitError::Other(error) => error,
        }
    }
}

impl From<ExecutorError> for Error {
    fn from(error: ExecutorError) -> Self {
        let (kind, message) = match error {
            ExecutorError::Guard(_) => {
                (Kind::Conflict, "it was changed by somebody else meanwhile; look at it again, then try again")
            }
            ExecutorError::Constraint(_) => {
                (Kind::Conflict, "it clashes with something that is there already, or is still in use; look again")
            }
            ExecutorError::Full(_) => {
                (Kind::Full, "the database has no room left; make room where it is kept, then try again")
            }
            ExecutorError::Unavailable(_) => (Kind::Unavailable, "the database is not available now; try again soon"),
            ExecutorError::Failed(_) => {
                return Self::internal("using the database", error);
            }
        };
        Self::new(kind, message).caused_by(error)
    }
}
