//! How long a client is waited for. Instead of a timer per request, which costs more than the request, each connection
//! notes in one word what it waits for and since when, and one task looks at all of them now and then.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::task::AtomicWaker;

use super::Limits;

/// Looks per shortest limit: a limit is kept to within this part of itself.
const LOOKS: u32 = 8;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client, to begin another request.
    Rest = 0,
    /// The client, to send the rest of a head.
    Head = 1,
    /// Larder, to answer.
    Answer = 2,
}

/// What is to be done about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may go on.
    Fine,
    /// The head came too slowly: say so and close.
    LateHead,
    /// Close without a word.
    Close,
}

/// All connections of one listener.
pub(super) struct Patience {
    /// Looks since the start.
    now: AtomicU64,
    every: Duration,
    head: u64,
    rest: u64,
    stall: u64,
    stopping: AtomicBool,
    cut_off: AtomicBool,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    watched: HashMap<u64, Arc<State>>,
}

/// What one connection and the looking task share. The connection writes and judges; the task only wakes it.
#[derive(Default)]
struct State {
    /// The look at which the phase began, shifted by two bits, and the phase.
    phase: AtomicU64,
    /// The look at which the client stopped taking bytes, and 0 while it takes them.
    blocked: AtomicU64,
    /// Whether a request was answered without reading all of its body.
    unread: AtomicBool,
    waker: AtomicWaker,
}

/// One connection's end of it. Dropping it ends the watch.
pub(super) struct Watched {
    number: u64,
    state: Arc<State>,
    patience: Arc<Patience>,
}

impl Patience {
    pub(super) fn new(limits: &Limits) -> Self {
        let shortest = limits.head_time.min(limits.rest).min(limits.stall);
        let every = (shortest / LOOKS).clamp(Duration::from_millis(5), Duration::from_secs(2));
        let looks = |limit: Duration| u64::try_from(limit.as_nanos().div_ceil(every.as_nanos())).unwrap_or(u64::MAX);
        Self {
            // From 1, so that 0 can mean "not blocked".
            now: AtomicU64::new(1),
            every,
            head: looks(limits.head_time),
            rest: looks(limits.rest),
            stall: looks(limits.stall),
            stopping: AtomicBool::default(),
            cut_off: AtomicBool::default(),
            connections: Mutex::default(),
        }
    }

    /// Looks at all connections, for ever.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut looks = tokio::time::interval(self.every);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            looks.tick().await;
            self.now.fetch_add(1, Ordering::Relaxed);
            // A connection may have asked whether to stop just before it began to wait: it is woken again.
            let stopping = self.stopping.load(Ordering::Relaxed);
            for state in self.lock().watched.values() {
                if stopping || self.judge(state) != Verdict::Fine {
                    state.waker.wake();
                }
            }
        }
    }

    fn judge(&self, state: &State) -> Verdict {
        let now = self.now.load(Ordering::Relaxed);
        let blocked = state.blocked.load(Ordering::Relaxed);
        let stalled = blocked != 0 && now.saturating_sub(blocked) > self.stall;
        if stalled || self.cut_off.load(Ordering::Relaxed) {
            return Verdict::Close;
        }
        let word = state.phase.load(Ordering::Relaxed);
        let waited = now.saturating_sub(word >> 2);
        match word & 3 {
            phase if phase == Phase::Rest as u64 && waited > self.rest => Verdict::Close,
            phase if phase == Phase::Head as u64 && waited > self.head => Verdict::LateHead,
            _ => Verdict::Fine,
        }
    }

    /// Begins to watch a connection that has just been accepted, and must send its first head.
    pub(super) fn begin(self: &Arc<Self>) -> Watched {
        let state = Arc::<State>::default();
        let mut connections = self.lock();
        let number = connections.next;
        connections.next += 1;
        connections.watched.insert(number, state.clone());
        drop(connections);
        let watched = Watched { number, state, patience: self.clone() };
        watched.enter(Phase::Head);
        watched
    }

    /// Lets every connection end after the request that it is in.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.wake_all();
    }

    /// Ends every connection where it is.
    pub(super) fn cut_off(&self) {
        self.cut_off.store(true, Ordering::Relaxed);
        self.wake_all();
    }

    /// How many connections there are.
    pub(super) fn count(&self) -> usize {
        self.lock().watched.len()
    }

    fn wake_all(&self) {
        for state in self.lock().watched.values() {
            state.waker.wake();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// Notes what the connection waits for from now on.
    pub(super) fn enter(&self, phase: Phase) {
        self.state.phase.store(self.patience.now.load(Ordering::Relaxed) << 2 | phase as u64, Ordering::Relaxed);
    }

    /// Bytes came: if the connection rested, a head has begun.
    pub(super) fn received(&self) {
        if self.state.phase.load(Ordering::Relaxed) & 3 == Phase::Rest as u64 {
            self.enter(Phase::Head);
        }
    }

    /// The client takes bytes, or it does not.
    pub(super) fn sent(&self, blocked: bool) {
        let since = &self.state.blocked;
        match (blocked, since.load(Ordering::Relaxed)) {
            (true, 0) => since.store(self.patience.now.load(Ordering::Relaxed), Ordering::Relaxed),
            (false, 1..) => since.store(0, Ordering::Relaxed),
            _ => {}
        }
    }

    /// A request has come whole, so that whatever was left of the one before it has been read.
    pub(super) fn answer(&self) {
        self.enter(Phase::Answer);
        self.state.unread.store(false, Ordering::Relaxed);
    }

    /// A request was answered without reading all of its body.
    pub(super) fn leave_unread(&self) {
        self.state.unread.store(true, Ordering::Relaxed);
    }

    pub(super) fn left_unread(&self) -> bool {
        self.state.unread.load(Ordering::Relaxed)
    }

    /// Wakes `waker` when there is a verdict or a stop.
    pub(super) fn wake(&self, waker: &std::task::Waker) {
        self.state.waker.register(waker);
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.patience.judge(&self.state)
    }

    /// Whether the connection is to end after the request that it is in.
    pub(super) fn must_stop(&self) -> bool {
        self.patience.stopping.load(Ordering::Relaxed)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.patience.lock().watched.remove(&self.number);
    }
}
