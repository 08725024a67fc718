//! The queue of work, in the database: each job is done once, by whichever replica takes it, and again by another if that
//! one dies. What the work is, its [`Handler`] knows.
//!
//! A job can be done twice (its worker is cut off just before the end), so a handler must be able to begin anew; and
//! each batch that it writes must carry [`Job::still_mine`], so that of two workers only one writes.

mod job;
pub mod queue;
mod runner;

pub use job::{Handler, Job};
pub use larder_db::jobs::{Job as Entry, Queued, State};
pub use runner::Runner;
