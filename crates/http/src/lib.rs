//! Placeholder until the first real file of this crate.
