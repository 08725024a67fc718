//! One stream of bytes for many readers while it arrives. Memory does not grow with their number: pieces are shared, and
//! who falls too far behind is let go, to read on from the store when all of it is there.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use larder_core::Host;

/// How many bytes may wait for one reader.
const WAITING: usize = 1024 * 1024;

/// How long all others wait for one reader, all in all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where readers join before the first piece comes.
#[derive(Default)]
pub(super) struct Fan(Mutex<Option<Vec<Arc<Inbox>>>>);

/// What waits for one reader.
#[derive(Default)]
struct Inbox(Mutex<Held>);

#[derive(Default)]
struct Held {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    closed: bool,
    /// Whoever waits for a piece, or for room: never both.
    waiting: Option<Waker>,
}

impl Inbox {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader's end.
pub(super) struct Reader(Arc<Inbox>);

impl Fan {
    /// Open for readers.
    pub(super) fn open() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }

    /// A reader of everything that comes; `None` if something came already.
    pub(super) fn join(&self) -> Option<Reader> {
        let inbox = Arc::<Inbox>::default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.push(Arc::clone(&inbox));
        Some(Reader(inbox))
    }

    /// Nobody joins any more. Dropping what this gives ends all readers.
    pub(super) fn close(&self) -> Outlets {
        let readers = self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        Outlets(readers.into_iter().map(|inbox| Outlet { inbox, patience: PATIENCE }).collect())
    }
}

/// The other ends of all readers.
pub(super) struct Outlets(Vec<Outlet>);

struct Outlet {
    inbox: Arc<Inbox>,
    patience: Duration,
}

impl Outlets {
    /// Hands a piece to everybody who keeps up.
    pub(super) async fn give(&mut self, host: &Host, piece: &Bytes) {
        let mut keeping_up = Vec::with_capacity(self.0.len());
        for mut outlet in self.0.drain(..) {
            if outlet.give(host, piece).await {
                keeping_up.push(outlet);
            }
        }
        self.0 = keeping_up;
    }
}

impl Outlet {
    async fn give(&mut self, host: &Host, piece: &Bytes) -> bool {
        if !self.try_give(piece) {
            let began = host.now();
            let inbox = &self.inbox;
            let room = poll_fn(|context| {
                let mut held = inbox.held();
                if held.closed || held.bytes < WAITING {
                    return Poll::Ready(());
                }
                held.waiting = Some(context.waker().clone());
                Poll::Pending
            });
            let came = host.within(self.patience, room).await;
            self.patience = self.patience.saturating_sub(host.now().since(began));
            if came.is_none() || !self.try_give(piece) {
                return false;
            }
        }
        !self.inbox.held().closed
    }

    fn try_give(&self, piece: &Bytes) -> bool {
        let mut held = self.inbox.held();
        if held.closed {
            return true;
        }
        if held.bytes >= WAITING {
            return false;
        }
        held.bytes += piece.len();
        held.pieces.push_back(piece.clone());
        if let Some(reader) = held.waiting.take() {
            reader.wake();
        }
        true
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let mut held = self.inbox.held();
        held.closed = true;
        if let Some(reader) = held.waiting.take() {
            reader.wake();
        }
        if held.bytes >= WAITING {
            // Let go for being slow: what it has not read yet comes from the store as well.
            held.pieces.clear();
            held.bytes = 0;
        }
    }
}

impl Reader {
    /// The next piece. `None`: there will be no more from here; whatever is missing is in the store, or will never be.
    pub(super) async fn next(&self) -> Option<Bytes> {
        poll_fn(|context| {
            let mut held = self.0.held();
            if let Some(piece) = held.pieces.pop_front() {
                held.bytes -= piece.len();
                if let Some(giver) = held.waiting.take() {
                    giver.wake();
                }
                return Poll::Ready(Some(piece));
            }
            if held.closed {
                return Poll::Ready(None);
            }
            held.waiting = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut held = self.0.held();
        held.closed = true;
        held.pieces.clear();
        held.bytes = 0;
        if let Some(giver) = held.waiting.take() {
            giver.wake();
        }
    }
}
