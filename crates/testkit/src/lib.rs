//! What everybody's tests stand on: scratch databases, and a host whose time a test sets.

pub mod database;
pub mod faults;
pub mod forge;
pub mod host;

pub use database::Scratch;
pub use faults::{Fault, Faulty};
pub use forge::Forge;
pub use host::FakeClock;
