//! The ports on an operating system: databases, stores, git, the network, the clock. Only this crate (and the program)
//! touches files, sockets, processes and tasks.

pub mod database;
pub mod fetch;
pub mod git;
pub mod guard;
pub mod host;
pub mod listener;
pub mod store;
