//! The log of changes as JSON lines (one object per line, <https://jsonlines.org>), page by page, the newest first.

use larder_core::{Error, Id, Result, Time};
use larder_db::{
    Db,
    events::{self, Wanted},
};

/// How many events are read at once.
const PAGE: u32 = 500;

/// An export that goes on. What is written meanwhile is not in it.
#[derive(Debug)]
pub struct Export {
    db: Db,
    wanted: Wanted,
    before: Option<(Time, Id)>,
    ended: bool,
}

impl Export {
    /// Of the events that are wanted.
    pub fn new(db: Db, wanted: Wanted) -> Self {
        Self { db, wanted, before: None, ended: false }
    }

    /// The next lines, each with its line feed; `None` when there are no more.
    pub async fn next(&mut self) -> Result<Option<String>> {
        if self.ended {
            return Ok(None);
        }
        let page = events::list(&self.db, &self.wanted, self.before, PAGE).await?;
        self.ended = page.len() < PAGE as usize;
        self.before = page.last().map(|event| (event.at, event.id));
        let mut lines = String::new();
        for event in &page {
            lines.push_str(
                &serde_json::to_string(event).map_err(|error| Error::internal("writing an event as JSON", error))?,
            );
            lines.push('\n');
        }
        Ok((!lines.is_empty()).then_some(lines))
    }
}
