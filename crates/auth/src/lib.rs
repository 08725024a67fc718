//! Who are you, and what may you do: tokens, grants, and the one function that decides.

pub mod decide;
pub mod token;
pub mod view;

pub use decide::{Decision, decide, demand, unauthenticated};
pub use view::{View, Views, view};
