//! A host whose time stands still until a test moves it, and whose randomness repeats itself.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use larder_core::{
    Digest, Host, Time,
    host::{BoxFuture, Clock, Random},
};
use larder_native::host::Tokio;

/// When the time of a test begins: 2026-11-20T08:00:00Z.
pub const START: Time = Time::from_seconds(1_795_161_600);

/// A host with a clock that starts at [`START`] and its own randomness, and that clock. Background work really runs,
/// on the test's tokio runtime.
pub fn host() -> (Host, FakeClock) {
    replica(1)
}

/// Like [`host`]; hosts of different numbers never make the same ids.
pub fn replica(number: u64) -> (Host, FakeClock) {
    let clock = FakeClock::new(START);
    let random = Arc::new(RepeatableRandom::new(number));
    let host = Host { clock: Arc::new(clock.clone()), random, spawn: Arc::new(Tokio::current()) };
    (host, clock)
}

/// Tells the time that the test has set. Its clones are the same clock.
#[derive(Clone)]
pub struct FakeClock(Arc<Mutex<State>>);

struct State {
    now: Time,
    next: u64,
    sleepers: Vec<Sleeper>,
}

struct Sleeper {
    number: u64,
    until: Time,
    waker: Waker,
}

impl FakeClock {
    /// Stands at `now`.
    pub fn new(now: Time) -> Self {
        Self(Arc::new(Mutex::new(State { now, next: 0, sleepers: Vec::new() })))
    }

    /// Moves the time forward, and wakes those whose sleep is over.
    pub fn advance(&self, by: Duration) {
        let now = self.state().now.plus(by);
        self.set(now);
    }

    /// Sets the time, back as well: clocks do jump.
    pub fn set(&self, now: Time) {
        let mut state = self.state();
        state.now = now;
        let over: Vec<_> = state.sleepers.extract_if(.., |sleeper| sleeper.until <= now).collect();
        drop(state);
        for sleeper in over {
            sleeper.waker.wake();
        }
    }

    /// How many sleep right now.
    pub fn sleepers(&self) -> usize {
        self.state().sleepers.len()
    }

    /// Whether somebody sleeps until exactly `time`.
    pub fn is_awaited(&self, time: Time) -> bool {
        self.state().sleepers.iter().any(|sleeper| sleeper.until == time)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Time {
        self.state().now
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut state = self.state();
        state.next += 1;
        Box::pin(Sleep { clock: self.clone(), number: state.next, until: state.now.plus(duration) })
    }
}

/// Over when the clock says so; who drops it sleeps no more.
struct Sleep {
    clock: FakeClock,
    number: u64,
    until: Time,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.clock.state();
        state.sleepers.retain(|sleeper| sleeper.number != self.number);
        if state.now >= self.until {
            return Poll::Ready(());
        }
        let waker = context.waker().clone();
        state.sleepers.push(Sleeper { number: self.number, until: self.until, waker });
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clock.state().sleepers.retain(|sleeper| sleeper.number != self.number);
    }
}

impl fmt::Debug for FakeClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FakeClock").field(&self.state().now).finish()
    }
}

/// Gives the same bytes for the same seed, and never twice the same: SHA-256 of the seed and a counter.
#[derive(Debug)]
pub struct RepeatableRandom {
    seed: u64,
    next: AtomicU64,
}

impl RepeatableRandom {
    /// Begins anew.
    pub fn new(seed: u64) -> Self {
        Self { seed, next: AtomicU64::new(0) }
    }
}

impl Random for RepeatableRandom {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let mut input = self.seed.to_be_bytes().to_vec();
            input.extend(number.to_be_bytes());
            chunk.copy_from_slice(&Digest::of(&input).as_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_sleep_is_over_when_the_test_says_so() {
        let (host, clock) = host();
        let sleeper = tokio::spawn(host.clock.sleep(Duration::from_secs(10)));
        while clock.sleepers() == 0 {
            tokio::task::yield_now().await;
        }
        clock.advance(Duration::from_secs(9));
        assert_eq!(clock.sleepers(), 1);
        clock.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
        assert_eq!(host.now(), START.plus(Duration::from_secs(10)));
        assert!(host.clock.sleep(Duration::ZERO).now_or_never().is_some());
    }

    #[test]
    fn randomness_repeats_itself_and_never_within_a_test() {
        let fill = |random: &RepeatableRandom| {
            let mut bytes = [0; 40];
            random.fill(&mut bytes);
            bytes
        };
        let (one, other) = (RepeatableRandom::new(1), RepeatableRandom::new(1));
        let first = fill(&one);
        assert_eq!(first, fill(&other));
        assert_ne!(first, fill(&one));
        assert_ne!(first, fill(&RepeatableRandom::new(2)));
    }
}
