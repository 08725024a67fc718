//! The harness of the end-to-end tests: the real program on a real socket, real clients, a real Git host. What is
//! expected of them is in `tests/`; nothing of Larder's own code runs in here.
//!
//! `LARDER_TEST_BINARY` names the program to test; without it the harness builds it, in the profile of the tests.

pub mod composer;
pub mod dice;
pub mod gate;
pub mod ground;
pub mod oci;
pub mod packages;
pub mod program;
pub mod server;
pub mod stored;
pub mod upstream;
pub mod wait;
pub mod wire;

pub use composer::{Composer, Project};
pub use dice::Dice;
pub use gate::{Gate, Seen};
pub use ground::Ground;
pub use program::Ran;
pub use server::{Options, Server};
pub use stored::Stored;
pub use upstream::Upstream;
pub use wait::until;

/// A variable of the environment in which the tests run, if it says something.
#[expect(clippy::disallowed_methods, reason = "the one place where the end-to-end tests learn what this machine has")]
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Says on standard error, whether or not the test's output is shown, that something is not tested here.
pub fn not_tested(what: &str) {
    use std::io::Write as _;
    // The print macros are captured by the test harness; this is not.
    drop(writeln!(std::io::stderr(), "NOT TESTED: {what}"));
}

/// Makes tests of async functions that take a [`Ground`]: each on `SQLite` and disk, and again on `PostgreSQL` and S3
/// where these are configured.
#[macro_export]
macro_rules! on_every_ground {
    ($($case:ident),+ $(,)?) => {
        mod sqlite_and_disk {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case($crate::Ground::local()).await;
            })+
        }
        mod postgres_and_s3 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                if let Some(ground) = $crate::Ground::shared().await {
                    super::$case(ground).await;
                }
            })+
        }
    };
}
