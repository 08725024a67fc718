//! All who want the same thing at the same time wait for one piece of work, which goes on if they leave.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use larder_core::Host;

/// Work under way: all who have a clone get the same outcome.
pub type Flight<T, E> = Shared<BoxFuture<'static, Result<T, E>>>;

/// What is under way, by name. Cheap to clone.
#[derive(Clone)]
pub struct Flights<T: Clone, E: Clone>(Arc<Mutex<HashMap<String, Flight<T, E>>>>);

impl<T: Clone, E: Clone> Default for Flights<T, E> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone + Send + Sync + 'static, E: Clone + Send + Sync + 'static> Flights<T, E> {
    /// Joins the work of this name, or begins it.
    pub fn join<W>(&self, host: &Host, name: &str, work: impl FnOnce() -> W) -> Flight<T, E>
    where
        W: Future<Output = Result<T, E>> + Send + 'static,
    {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(name) {
            return flight.clone();
        }
        let landing = Landing(self.clone(), name.to_owned());
        let work = work();
        let flight = async move {
            let _landing = landing;
            work.await
        };
        let flight = flight.boxed().shared();
        flights.insert(name.to_owned(), flight.clone());
        host.spawn.background(flight.clone().map(drop).boxed());
        flight
    }
}

/// Takes a flight off the list when it is over, however it ended.
struct Landing<T: Clone, E: Clone>(Flights<T, E>, String);

impl<T: Clone, E: Clone> Drop for Landing<T, E> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}
