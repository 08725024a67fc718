//! The smallest ports: the clock, randomness, and work in the background. Passed in, never global,
//! so that tests decide what time it is and so that the same code runs on an operating system and on the edge.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use crate::{error::Result, id::Id, time::Time};

/// A boxed future that may cross threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Tells the time, and waits.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Time;
    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// Gives randomness that nobody can guess.
pub trait Random: Send + Sync {
    /// Fills all of `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// Up to this many bytes are worked on where they are.
const FEW: usize = 16 * 1024;

/// Runs work beside the request that caused it.
pub trait Spawn: Send + Sync {
    /// Starts `task` in the background and forgets it. A panic in it is logged and ends only that task.
    fn background(&self, task: BoxFuture<'static, ()>);
    /// Runs a long computation off the threads that answer requests, and completes when it has.
    fn heavy(&self, task: BoxFuture<'static, ()>) -> BoxFuture<'static, ()>;
}

/// What every operation is handed: the clock, randomness, and a way to do things beside.
#[derive(Clone)]
pub struct Host {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Background work.
    pub spawn: Arc<dyn Spawn>,
}

impl Host {
    /// Now.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// A new identity.
    pub fn new_id(&self) -> Id {
        Id::new(self.now(), self.random_bytes())
    }

    /// `N` random bytes.
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes);
        bytes
    }

    /// Runs `work` but gives up after `limit`: `None` means that it took longer, and that it was dropped.
    pub async fn within<T>(&self, limit: Duration, work: impl Future<Output = T> + Send) -> Option<T> {
        let work = std::pin::pin!(work);
        match futures_util::future::select(work, self.clock.sleep(limit)).await {
            futures_util::future::Either::Left((done, _)) => Some(done),
            futures_util::future::Either::Right(((), _)) => None,
        }
    }

    /// Like [`heavy`](Self::heavy), for a computation over so many bytes: a few are worked on here, in less time than the way
    /// to another thread takes.
    pub async fn compute<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if bytes <= FEW { work.await } else { self.heavy(work).await }
    }

    /// Runs a long computation off the threads that answer requests and hands its result back.
    pub async fn heavy<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let (give, take) = futures_channel::oneshot::channel();
        self.spawn
            .heavy(Box::pin(async move {
                // Nobody waits any more: the result goes with them.
                drop(give.send(work.await));
            }))
            .await;
        take.await.unwrap_or_else(|_| {
            Err(crate::error::Error::new(
                crate::error::Kind::Internal,
                "a background computation ended early; the log says why",
            ))
        })
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Host")
    }
}
