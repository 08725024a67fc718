//! The Git port with the real git program against a real Git host on loopback: what it brings, in how many requests,
//! and what hostile or broken hosts and repositories do to it.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod archives;
mod copies;
mod folders;
mod hosts;
mod port;
mod reading;
