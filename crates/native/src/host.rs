//! The smallest ports on an operating system: its clock, its randomness, and tokio's threads.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;
use larder_core::{
    Host, Time,
    host::{BoxFuture, Clock, Random, Spawn},
};
use ring::rand::SecureRandom as _;
use tokio::{runtime::Handle, sync::Semaphore};

/// The host of a program. Call it within a tokio runtime, which then runs all background work.
pub fn system() -> Host {
    Host { clock: Arc::new(SystemClock), random: Arc::new(SystemRandom::default()), spawn: Arc::new(Tokio::current()) }
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everybody else is handed")]
    fn now(&self) -> Time {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time::default().plus(since)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move { tokio::time::sleep(duration).await })
    }
}

/// The operating system's randomness.
#[derive(Debug)]
pub struct SystemRandom(ring::rand::SystemRandom);

impl Default for SystemRandom {
    #[expect(clippy::disallowed_methods, reason = "this is the randomness that everybody else is handed")]
    fn default() -> Self {
        Self(ring::rand::SystemRandom::new())
    }
}

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.fill(bytes).expect("an operating system that gives no randomness cannot keep any secret");
    }
}

/// Background work on the threads of a tokio runtime.
#[derive(Clone, Debug)]
pub struct Tokio {
    runtime: Handle,
    /// One per long computation that may run at once; the others wait for their turn.
    turns: Arc<Semaphore>,
}

tokio::task_local! {
    /// Set within a long computation: one that starts another one runs it in its own turn, and never waits for two.
    static HEAVY: ();
}

impl Tokio {
    /// On the runtime within which this is called.
    pub fn current() -> Self {
        let cores = thread::available_parallelism().map_or(2, usize::from);
        Self { runtime: Handle::current(), turns: Arc::new(Semaphore::new(cores.max(2) * 2)) }
    }
}

impl Spawn for Tokio {
    fn background(&self, task: BoxFuture<'static, ()>) {
        self.runtime.spawn(logged(task));
    }

    fn heavy(&self, task: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
        let (runtime, turns) = (self.runtime.clone(), Arc::clone(&self.turns));
        Box::pin(async move {
            if HEAVY.try_with(|()| ()).is_ok() {
                return logged(task).await;
            }
            let turn = turns.acquire_owned().await.expect("nobody closes the semaphore");
            let thread = runtime.clone();
            let ended = runtime
                .spawn_blocking(move || {
                    thread.block_on(HEAVY.scope((), logged(task)));
                    drop(turn);
                })
                .await;
            if ended.is_err() {
                tracing::debug!("a long computation was given up: the program stops");
            }
        })
    }
}

/// Runs a task; a panic in it is logged and ends it.
async fn logged(task: BoxFuture<'static, ()>) {
    if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
        tracing::error!(panic = text(panic.as_ref()), "a background task panicked");
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("of no text")
}

#[cfg(test)]
mod tests {
    use larder_core::{Kind, Result};

    use super::*;

    #[tokio::test]
    async fn time_and_randomness_are_the_machines() {
        let host = system();
        assert!(host.now() > Time::parse("2025-01-01").unwrap());
        assert_ne!(host.random_bytes::<16>(), host.random_bytes::<16>());
        assert!(host.within(Duration::ZERO, std::future::pending::<()>()).await.is_none());
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_task() {
        let host = system();
        host.spawn.background(Box::pin(async { panic!("on purpose") }));
        assert_eq!(host.heavy::<()>(async { panic!("on purpose") }).await.unwrap_err().kind(), Kind::Internal);
        assert_eq!(host.heavy(async { Ok(7) }).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn long_computations_leave_the_requests_alone() {
        let host = system();
        let here = thread::current().id();
        let there = host.heavy(async { Ok(thread::current().id()) }).await.unwrap();
        assert_ne!(here, there);
    }

    /// As many at once as have turns, each of which starts another one: were those to wait for a turn, none would end.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_long_computation_may_start_another() {
        let host = system();
        let outer = (0..100_u32).map(|number| {
            let inner = host.clone();
            host.heavy(async move { inner.heavy(async move { Ok(number) }).await })
        });
        let numbers: Vec<Result<u32>> = futures_util::future::join_all(outer).await;
        assert_eq!(numbers.into_iter().sum::<Result<u32>>().unwrap(), 4_950);
    }
}
