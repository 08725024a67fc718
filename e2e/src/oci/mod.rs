//! Real clients of OCI registries, and images for them.

mod client;
mod image;
mod layout;

pub use client::{Client, Program};
pub use image::Image;
pub use layout::Layout;
