//! Registries upstream: what they have (`catalogue`), the files in which they say so (`layout`), and a server of these
//! files that remembers what it was asked and misbehaves when a test wants it to (`server`). It is what others run, not a
//! stand-in for Larder's side: real clients install from it directly, in every layout.

mod catalogue;
mod layout;
mod server;

pub use catalogue::{Catalogue, Release, zip};
pub use layout::{Layout, Protocol, document};
pub use server::{Asked, Fault, Upstream};
