//! Every query and every write of Larder, one file per family of tables, over the [`Executor`](executor::Executor) port.
//! Nobody else writes SQL. A write is data: statements with their guards, committed as one atomic batch.

pub mod executor;

pub use executor::{Dialect, Done, Executor, ExecutorError, Row, Statement, Value};
