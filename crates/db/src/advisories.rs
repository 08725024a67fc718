//! Advisories: what is known to be wrong with versions of packages, whether these are here or not. Each belongs to a feed:
//! who told it, so that what a feed tells no more can go without touching the others.

use larder_core::{Id, Result, Time};

use crate::{Cells, Db, Statement, Value};

statements! {
    // What another registry says of a package that does not come from it is not heeded: it might say anything.
    OF_PACKAGES = "select id, format, package, feed, remote_id, affected, detail, reported_at, changed_at from advisories
        where format = $1 and package in ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
            $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33)
        and (substr(feed, 1, 7) <> 'source:' or not exists (select 1 from packages p
            where p.format = advisories.format and p.name = advisories.package
            and (p.source_id is null or 'source:' || p.source_id <> advisories.feed)))
        order by package, reported_at desc, remote_id, feed";
    LIST = "select id, format, package, feed, remote_id, affected, detail, reported_at, changed_at from advisories
        where format = $1 and package > $2 and package in (
            select distinct package from advisories where format = $1 and package > $2 and changed_at >= $3
            order by package limit $4)
        and (substr(feed, 1, 7) <> 'source:' or not exists (select 1 from packages p
            where p.format = advisories.format and p.name = advisories.package
            and (p.source_id is null or 'source:' || p.source_id <> advisories.feed)))
        order by package, reported_at desc, remote_id, feed";
    OF_FEED = "select id, format, package, feed, remote_id, affected, detail, reported_at, changed_at from advisories
        where format = $1 and feed = $2 and (package > $3 or (package = $3 and remote_id > $4))
        order by package, remote_id limit $5";
    NAMED = "select id, format, package, feed, remote_id, affected, detail, reported_at, changed_at from advisories
        where format = $1 and remote_id = $2 order by package, feed limit $3";
    FEEDS = "select feed, count(*), max(changed_at) from advisories where format = $1 group by feed order by feed";
    PUT = "insert into advisories (id, format, package, feed, remote_id, affected, detail, reported_at, changed_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        on conflict (format, package, feed, remote_id) do update set affected = excluded.affected,
            detail = excluded.detail, reported_at = excluded.reported_at, changed_at = excluded.changed_at";
    REMOVE = "delete from advisories where format = $1 and package = $2 and feed = $3 and remote_id = $4";
    REMOVE_FEED = "delete from advisories where format = $1 and feed = $2";
}

/// The topic under which changes of so many advisories are told that naming each package would be too much.
pub const TOPIC: &str = "advisories";

/// For how many packages one statement asks.
const AT_ONCE: usize = 32;

/// An advisory of a feed about a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvisoryRow {
    /// Its identity.
    pub id: Id,
    /// The id of a format.
    pub format: String,
    /// The package.
    pub package: String,
    /// Who says so: `own`, `source:ID`, or the name of an import.
    pub feed: String,
    /// Its name there.
    pub remote_id: String,
    /// Which versions, as a constraint of the format.
    pub affected: String,
    /// JSON: what the format tells of it.
    pub detail: String,
    /// When it became known.
    pub reported_at: Time,
    /// When it last changed here.
    pub changed_at: Time,
}

/// How many advisories a feed has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// Its name.
    pub name: String,
    /// How many.
    pub advisories: u64,
    /// When one of them last changed here.
    pub changed_at: Time,
}

/// All advisories about these packages, by package, the newest first.
pub async fn of_packages(db: &Db, format: &str, packages: &[&str]) -> Result<Vec<AdvisoryRow>> {
    let mut found = Vec::new();
    for some in packages.chunks(AT_ONCE) {
        let mut values = vec![Value::from(format)];
        // No package has an empty name.
        let filled = some.iter().copied().chain(std::iter::repeat("")).take(AT_ONCE);
        values.extend(filled.map(Value::from));
        found.extend(rows(db, Statement::read(OF_PACKAGES, values)).await?);
    }
    Ok(found)
}

/// All advisories about the first `packages` packages after `after` that have one which changed at `since` or later.
pub async fn list(db: &Db, format: &str, after: &str, since: Time, packages: i64) -> Result<Vec<AdvisoryRow>> {
    rows(db, Statement::read(LIST, [format.into(), after.into(), since.into(), packages.into()])).await
}

/// One page of the advisories of a feed, by package and name, after this one.
pub async fn of_feed(db: &Db, format: &str, feed: &str, after: (&str, &str), limit: i64) -> Result<Vec<AdvisoryRow>> {
    let values = [format.into(), feed.into(), after.0.into(), after.1.into(), limit.into()];
    rows(db, Statement::read(OF_FEED, values)).await
}

/// The advisories of this name, of any feed.
pub async fn named(db: &Db, format: &str, remote_id: &str, limit: i64) -> Result<Vec<AdvisoryRow>> {
    rows(db, Statement::read(NAMED, [format.into(), remote_id.into(), limit.into()])).await
}

/// Every feed that has advisories.
pub async fn feeds(db: &Db, format: &str) -> Result<Vec<Feed>> {
    let rows = db.read(Statement::read(FEEDS, [format.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(Feed { name: cells.text()?, advisories: cells.count()?, changed_at: cells.time()? })
        })
        .collect()
}

/// Writes an advisory, or replaces what its feed said before.
pub fn put(row: &AdvisoryRow) -> Statement {
    let AdvisoryRow { id, format, package, feed, remote_id, affected, detail, reported_at, changed_at } = row;
    Statement::write(
        PUT,
        [
            (*id).into(),
            format.into(),
            package.into(),
            feed.into(),
            remote_id.into(),
            affected.into(),
            detail.into(),
            (*reported_at).into(),
            (*changed_at).into(),
        ],
    )
}

/// Takes away what a feed says about a package under this name.
pub fn remove(format: &str, package: &str, feed: &str, remote_id: &str) -> Statement {
    Statement::write(REMOVE, [format.into(), package.into(), feed.into(), remote_id.into()])
}

/// Takes away all that a feed says.
pub fn remove_feed(format: &str, feed: &str) -> Statement {
    Statement::write(REMOVE_FEED, [format.into(), feed.into()])
}

async fn rows(db: &Db, statement: Statement) -> Result<Vec<AdvisoryRow>> {
    db.read(statement).await?.into_iter().map(|row| advisory(row.cells())).collect()
}

fn advisory(mut cells: Cells) -> Result<AdvisoryRow> {
    Ok(AdvisoryRow {
        id: cells.id()?,
        format: cells.text()?,
        package: cells.text()?,
        feed: cells.text()?,
        remote_id: cells.text()?,
        affected: cells.text()?,
        detail: cells.text()?,
        reported_at: cells.time()?,
        changed_at: cells.time()?,
    })
}
