//! The room of Composer (PHP): its names, versions, documents and routes.
//!
//! Nothing outside this crate knows what Composer is, except the list of formats of the program.

pub mod branch;
pub mod constraint;
pub mod names;
pub mod version;
