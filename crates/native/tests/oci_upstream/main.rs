//! Repositories of other registries, on every database: the room asks a registry that a test has told how to answer, and
//! remembers what it was asked. Freshness and patience run on a clock that the tests set.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod content;
mod house;
mod origin;
mod probe;
mod trouble;
mod upstream;
