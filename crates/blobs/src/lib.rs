//! Content-addressed bytes over the [`Store`](store::Store) port.

pub mod store;
