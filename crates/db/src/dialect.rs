//! The few texts that must differ between the databases, side by side. Everything else is one text for both.

use crate::executor::Dialect;

/// One statement in the words of each database. Its parameters and its columns are the same in both.
#[derive(Clone, Copy, Debug)]
pub struct Spoken {
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

impl Spoken {
    /// The text that `dialect` understands.
    pub fn text(&self, dialect: Dialect) -> &'static str {
        match dialect {
            Dialect::Sqlite => self.sqlite,
            Dialect::Postgres => self.postgres,
        }
    }
}

/// Every statement of this file.
const ALL: &[Spoken] = &[];

/// Every text of this file, with its full name.
pub(crate) fn texts(dialect: Dialect) -> impl Iterator<Item = (&'static str, &'static str)> {
    ALL.iter().map(move |spoken| (spoken.name, spoken.text(dialect)))
}
