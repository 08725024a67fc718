//! Registries upstream: what they have (`catalogue`), the files in which they say so (`layout`), and a server of these
//! files that remembers what it was asked (`server`) and misbehaves when a test wants it to (`answer`). It is what others run, not a
//! stand-in for Larder's side: real clients install from it directly, in every layout.

mod answer;
mod catalogue;
mod layout;
mod server;

pub use catalogue::{Catalogue, Release, zip};
pub use layout::{Layout, Protocol, document};
pub use server::{Asked, Fault, Upstream};
