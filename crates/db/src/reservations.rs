//! Reservations: names that no upstream is asked for, and that no upstream may bring. What a reservation means is
//! decided by those who ask upstreams; here is also what they need to know of other people's packages for it.

use larder_core::{Id, Result, Time};

use crate::{Cells, Db, Statement};

statements! {
    LIST = "select id, format, pattern, created_at from reservations order by pattern, format";
    INSERT = "insert into reservations (id, format, pattern, created_at) values ($1, $2, $3, $4)";
    REMOVE = "delete from reservations where id = $1";
    EXISTS = "insert into guard (holds) select case when exists (select 1 from reservations where id = $1) then 1 end";
    UNCHANGED = "insert into guard (holds) select case when
        (select count(*) from reservations) = $1 and (select coalesce(max(id), '') from reservations) = $2 then 1 end";
    BROUGHT = "select p.id, p.format, p.name, s.name from packages p join sources s on s.id = p.source_id
        where s.kind = p.format and (p.format = $1 or $1 = '*') and p.id > $2 order by p.id limit $3";
    BROUGHT_UNCHANGED = "insert into guard (holds) select case when
        (select count(*) from packages p join sources s on s.id = p.source_id
            where s.kind = p.format and (p.format = $1 or $1 = '*')) = $2
        and (select coalesce(max(p.id), '') from packages p join sources s on s.id = p.source_id
            where s.kind = p.format and (p.format = $1 or $1 = '*')) = $3 then 1 end";
    OWN_NAMES = "select p.name from packages p left join sources s on s.id = p.source_id
        where p.format = $1 and (s.kind is null or s.kind <> p.format) and p.name > $2 order by p.name limit $3";
}

/// The topic under which changes of reservations are told.
pub const TOPIC: &str = "reservations";

/// Names that never leave the house.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationRow {
    /// Its identity.
    pub id: Id,
    /// The id of a format, or `*`.
    pub format: String,
    /// The package names that it is about.
    pub pattern: String,
    /// When it was made.
    pub created_at: Time,
}

/// Every reservation, by pattern. There are few: people write them by hand.
pub async fn list(db: &Db) -> Result<Vec<ReservationRow>> {
    db.read(Statement::read(LIST, [])).await?.into_iter().map(|row| reservation(row.cells())).collect()
}

/// Adds a reservation. The table allows only one for a pattern and a format.
pub fn insert(row: &ReservationRow) -> Statement {
    let ReservationRow { id, format, pattern, created_at } = row;
    Statement::write(INSERT, [(*id).into(), format.into(), pattern.into(), (*created_at).into()])
}

/// Guard `reservation exists`.
pub fn exists(id: Id) -> Statement {
    Statement::guard("reservation exists", EXISTS, [id.into()])
}

/// Takes a reservation away; goes with [`exists`].
pub fn remove(id: Id) -> Statement {
    Statement::write(REMOVE, [id.into()])
}

/// What a set of rows is told by: how many there are, and the last id. Ids are given in the order of time, so that a row
/// more or less, or another one in its place, is another mark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// How many.
    pub count: u64,
    /// The last one; empty for none.
    pub last: String,
}

/// Guard `reservations are as known`.
pub fn unchanged(mark: &Mark) -> Statement {
    let count = i64::try_from(mark.count).unwrap_or(i64::MAX);
    Statement::guard("reservations are as known", UNCHANGED, [count.into(), mark.last.as_str().into()])
}

/// A package that came from an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brought {
    /// Its identity.
    pub id: Id,
    /// The id of its format.
    pub format: String,
    /// Its name.
    pub name: String,
    /// The name of the source that it comes from.
    pub source: String,
}

/// A page of the packages of a format (`*`: of all) that came from an upstream, in the order in which they came, those
/// after `after`, `limit` at most.
pub async fn brought(db: &Db, format: &str, after: &str, limit: i64) -> Result<Vec<Brought>> {
    let rows = db.read(Statement::read(BROUGHT, [format.into(), after.into(), limit.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(Brought { id: cells.id()?, format: cells.text()?, name: cells.text()?, source: cells.text()? })
        })
        .collect()
}

/// Guard `upstream packages are as known`: those of a format (`*`: of all).
pub fn brought_unchanged(format: &str, mark: &Mark) -> Statement {
    let count = i64::try_from(mark.count).unwrap_or(i64::MAX);
    let values = [format.into(), count.into(), mark.last.as_str().into()];
    Statement::guard("upstream packages are as known", BROUGHT_UNCHANGED, values)
}

/// A page of the names of a format's packages that came from no upstream, those after `after`, `limit` at most.
pub async fn own_names(db: &Db, format: &str, after: &str, limit: i64) -> Result<Vec<String>> {
    let rows = db.read(Statement::read(OWN_NAMES, [format.into(), after.into(), limit.into()])).await?;
    rows.into_iter().map(|row| row.cells().text()).collect()
}

fn reservation(mut cells: Cells) -> Result<ReservationRow> {
    Ok(ReservationRow { id: cells.id()?, format: cells.text()?, pattern: cells.text()?, created_at: cells.time()? })
}
