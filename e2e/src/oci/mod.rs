//! Real clients of OCI registries, images for them, and a client of our own for what real ones never do.

mod client;
mod content;
mod image;
mod layout;
mod registry;

pub use client::{Client, Program};
pub use content::{Blob, CONFIG, INDEX, LAYER, MANIFEST, Manifest};
pub use image::Image;
pub use layout::Layout;
pub use registry::{Ask, Registry, Trouble, Way, code_of, location, put_manifest, with_digest};
