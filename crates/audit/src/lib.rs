//! What was done and what was read: events, which are written with the change that they tell of and stay for ever, and
//! accesses, which are collected in memory, land in batches, and go when retention says. With the accesses go the
//! statistics.

pub mod export;
pub mod recorder;
pub mod retention;

pub use export::Export;
pub use larder_db::{
    access::{Access, Wanted as WantedAccess, list as list_access},
    events::{Actor, Event, Recorded, Wanted as WantedEvents, list as list_events, record},
    statistics::{of_days, of_versions},
};
pub use recorder::{Download, Recorder, Seen};
