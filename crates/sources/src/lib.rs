//! Bringing packages in.

pub mod git;
pub mod url;
