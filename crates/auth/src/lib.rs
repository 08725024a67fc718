//! Who are you, and what may you do: tokens, grants, and the one function that decides.

pub mod authenticator;
pub mod decide;
pub mod grants;
pub mod secret;
pub mod tokens;
pub mod view;

pub use authenticator::Authenticator;
pub use decide::{Decision, decide, demand, unauthenticated};
pub use secret::{Secret, is_token};
pub use view::{View, Views, view};
