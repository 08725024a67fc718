//! What everybody's tests stand on: scratch databases, a host whose time a test sets, a format of no protocol.

pub mod database;
pub mod faults;
pub mod forge;
pub mod format;
pub mod host;

pub use database::Scratch;
pub use faults::{Fault, Faulty};
pub use forge::Forge;
pub use format::Things;
pub use host::FakeClock;
