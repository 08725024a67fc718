//! Who are you, and what may you do: tokens, passes, grants, and the one function that decides.

pub mod authenticator;
pub mod decide;
pub mod grants;
pub mod pass;
pub mod secret;
pub mod tokens;
pub mod view;

pub use authenticator::Authenticator;
pub use decide::{Decision, decide, demand, unauthenticated};
pub use pass::{Opens, Pass, Passes};
pub use secret::{Secret, is_token};
pub use view::{View, Views, view};
