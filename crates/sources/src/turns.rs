//! A fixed number of turns, so that only so much is asked of somebody at once. Who comes first goes first.

use futures_channel::mpsc;
use futures_util::{StreamExt as _, lock::Mutex};

/// Turns to do something.
pub struct Turns {
    free: Mutex<mpsc::UnboundedReceiver<()>>,
    back: mpsc::UnboundedSender<()>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn(mpsc::UnboundedSender<()>);

impl Turns {
    /// So many at once.
    pub fn new(count: usize) -> Self {
        let (back, free) = mpsc::unbounded();
        for _ in 0..count {
            // The other end is held beside it.
            let _ = back.unbounded_send(());
        }
        Self { free: Mutex::new(free), back }
    }

    /// Waits for a turn.
    pub async fn take(&self) -> Turn {
        // Never closed: a sender is held here.
        self.free.lock().await.next().await;
        Turn(self.back.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.0.unbounded_send(());
    }
}
