//! When something of an upstream registry was last asked for, and what it was then. Kept, so that a restart does not make
//! everything stale at once, and so that replicas ask once between them.

use larder_core::{Id, Result, Time};

use crate::{Db, Statement};

statements! {
    FIND = "select checked_at, validator from upstream_checks where source_id = $1 and subject = $2";
    PUT = "insert into upstream_checks (source_id, subject, checked_at, validator)
        select id, cast($2 as text), cast($3 as bigint), cast($4 as text) from sources where id = $1
        on conflict (source_id, subject) do update set checked_at = excluded.checked_at, validator = excluded.validator";
    NEW = "insert into guard (holds) select case when exists (select 1 from sources where id = $1)
        and not exists (select 1 from upstream_checks where source_id = $1 and subject = $2) then 1 end";
    SAME = "insert into guard (holds) select case when exists (select 1 from upstream_checks
        where source_id = $1 and subject = $2 and validator = $3) then 1 end";
    MARK = "update upstream_checks set validator = $3 where source_id = $1 and subject = $2";
    REMOVE = "delete from upstream_checks where source_id = $1 and subject = $2";
    REMOVE_OF_SOURCE = "delete from upstream_checks where source_id = $1 and substr(subject, 1, 8) <> 'offered:'";
    OFFERED = "select substr(subject, 9), checked_at from upstream_checks
        where source_id = $1 and substr(subject, 1, 8) = 'offered:' order by subject limit $2";
    SWEEP = "delete from upstream_checks where checked_at < $1";
}

/// What was found, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// When it was asked for.
    pub checked_at: Time,
    /// Tells whether it has changed since: a digest, an `ETag`.
    pub validator: String,
}

/// The last check of a subject, which is the format's own word for what was asked for.
pub async fn find(db: &Db, source: Id, subject: &str) -> Result<Option<Check>> {
    let row = db.read_one(Statement::read(FIND, [source.into(), subject.into()])).await?;
    row.map(|row| {
        let mut cells = row.cells();
        Ok(Check { checked_at: cells.time()?, validator: cells.text()? })
    })
    .transpose()
}

/// Remembers a check, unless its source is gone.
pub fn put(source: Id, subject: &str, check: &Check) -> Statement {
    let Check { checked_at, validator } = check;
    Statement::write(PUT, [source.into(), subject.into(), (*checked_at).into(), validator.as_str().into()])
}

/// Guard `check is new`: the source is there, and its subject was never checked.
pub fn is_new(source: Id, subject: &str) -> Statement {
    Statement::guard("check is new", NEW, [source.into(), subject.into()])
}

/// Guard `check is the same`: the subject was checked, and this was found.
pub fn is_same(source: Id, subject: &str, validator: &str) -> Statement {
    Statement::guard("check is the same", SAME, [source.into(), subject.into(), validator.into()])
}

/// Says something else of a subject, if it was ever checked; when that was stays.
pub fn mark(source: Id, subject: &str, validator: &str) -> Statement {
    Statement::write(MARK, [source.into(), subject.into(), validator.into()])
}

/// Forgets a subject, so that it is asked for again.
pub fn remove(source: Id, subject: &str) -> Statement {
    Statement::write(REMOVE, [source.into(), subject.into()])
}

/// Forgets everything of a source, so that all of it is asked for again; not what it [offers](offered).
pub fn remove_of_source(source: Id) -> Statement {
    Statement::write(REMOVE_OF_SOURCE, [source.into()])
}

/// The names that a source is known to offer although they are not its own, each with when it was last seen to, `limit`
/// at most: the checks whose subject is [`offered_subject`].
pub async fn offered(db: &Db, source: Id, limit: i64) -> Result<Vec<(String, Time)>> {
    let rows = db.read(Statement::read(OFFERED, [source.into(), limit.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok((cells.text()?, cells.time()?))
        })
        .collect()
}

/// The subject of a check that remembers that a name is offered.
pub fn offered_subject(name: &str) -> String {
    format!("offered:{name}")
}

/// Removes the checks before `before`, which nobody relies on any more.
pub fn sweep(before: Time) -> Statement {
    Statement::write(SWEEP, [before.into()])
}
