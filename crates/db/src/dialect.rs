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

/// Takes the job that is due for longest: worker, end of the lease, now, kinds between commas. On PostgreSQL nobody
/// waits for a row that another replica is taking; SQLite has one writer.
pub const CLAIM_JOB: Spoken = Spoken {
    name: "larder_db::dialect::CLAIM_JOB",
    sqlite: "update jobs set state = 'running', worker = $1, lease_until = $2, attempts = attempts + 1, progress = null
        where id = (select j.id from jobs j where ((j.state = 'waiting' and j.run_at <= $3 and not exists (
            select 1 from jobs r where r.state = 'running' and r.kind = j.kind and r.subject = j.subject))
        or (j.state = 'running' and j.lease_until < $3))
        and cast($4 as text) like '%,' || j.kind || ',%' order by j.run_at, j.id limit 1)
        returning id, kind, subject, attempts",
    postgres:
        "update jobs set state = 'running', worker = $1, lease_until = $2, attempts = attempts + 1, progress = null
        where id = (select j.id from jobs j where ((j.state = 'waiting' and j.run_at <= $3 and not exists (
            select 1 from jobs r where r.state = 'running' and r.kind = j.kind and r.subject = j.subject))
        or (j.state = 'running' and j.lease_until < $3))
        and cast($4 as text) like '%,' || j.kind || ',%' order by j.run_at, j.id limit 1 for update of j skip locked)
        returning id, kind, subject, attempts",
};

/// Every statement of this file.
const ALL: &[Spoken] = &[CLAIM_JOB];

/// Every text of this file, with its full name.
pub(crate) fn texts(dialect: Dialect) -> impl Iterator<Item = (&'static str, &'static str)> {
    ALL.iter().map(move |spoken| (spoken.name, spoken.text(dialect)))
}
