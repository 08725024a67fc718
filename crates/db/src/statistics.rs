//! Statistics: how often each version was downloaded or installed, per day. Counted in memory with the accesses
//! (`larder-audit`) and added up here; they outlive the accesses.

use larder_core::Result;

use crate::{Db, Statement, Value};

/// How many rows [`ADD_MANY`] writes.
const MANY: usize = 16;

statements! {
    ADD = "insert into statistics (format, package, version, day, kind, count) values
        ($1, $2, $3, $4, $5, $6)
        on conflict (format, package, version, day, kind) do update set count = statistics.count + excluded.count";
    ADD_MANY = "insert into statistics (format, package, version, day, kind, count) values
        ($1, $2, $3, $4, $5, $6),
        ($7, $8, $9, $10, $11, $12),
        ($13, $14, $15, $16, $17, $18),
        ($19, $20, $21, $22, $23, $24),
        ($25, $26, $27, $28, $29, $30),
        ($31, $32, $33, $34, $35, $36),
        ($37, $38, $39, $40, $41, $42),
        ($43, $44, $45, $46, $47, $48),
        ($49, $50, $51, $52, $53, $54),
        ($55, $56, $57, $58, $59, $60),
        ($61, $62, $63, $64, $65, $66),
        ($67, $68, $69, $70, $71, $72),
        ($73, $74, $75, $76, $77, $78),
        ($79, $80, $81, $82, $83, $84),
        ($85, $86, $87, $88, $89, $90),
        ($91, $92, $93, $94, $95, $96)
        on conflict (format, package, version, day, kind) do update set count = statistics.count + excluded.count";
    OF_VERSIONS = "select version, kind, cast(sum(count) as bigint) from statistics
        where format = $1 and package = $2 and day >= $3 group by version, kind order by version, kind";
    OF_DAYS = "select day, kind, cast(sum(count) as bigint) from statistics
        where format = $1 and package = $2 and day >= $3 group by day, kind order by day, kind";
}

/// A number to be added.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted {
    /// The id of the format.
    pub format: String,
    /// The package.
    pub package: String,
    /// The version.
    pub version: String,
    /// Days since 1970.
    pub day: i64,
    /// `download`: counted here. `install`: told by a client.
    pub kind: String,
    /// How many.
    pub count: u64,
}

impl Counted {
    fn values(&self) -> [Value; 6] {
        [
            (&self.format).into(),
            (&self.package).into(),
            (&self.version).into(),
            self.day.into(),
            (&self.kind).into(),
            i64::try_from(self.count).unwrap_or(i64::MAX).into(),
        ]
    }
}

/// Adds numbers, with as few statements as possible. No two may be of the same version, day and kind; they should be
/// sorted, so that two replicas that add at once wait for each other and never in a circle.
pub fn add(counted: &[Counted]) -> impl Iterator<Item = Statement> {
    let whole = counted.chunks_exact(MANY);
    let rest = whole.remainder();
    let values = |some: &[Counted]| some.iter().flat_map(Counted::values).collect::<Vec<_>>();
    whole
        .map(move |many| Statement::write(ADD_MANY, values(many)))
        .chain(rest.iter().map(|one| Statement::write(ADD, one.values())))
}

/// The sums of a package since a day (days since 1970): version, kind, count.
pub async fn of_versions(db: &Db, format: &str, package: &str, since: i64) -> Result<Vec<(String, String, u64)>> {
    let rows = db.read(Statement::read(OF_VERSIONS, [format.into(), package.into(), since.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok((cells.text()?, cells.text()?, cells.count()?))
        })
        .collect()
}

/// The sums of a package since a day (days since 1970): day, kind, count.
pub async fn of_days(db: &Db, format: &str, package: &str, since: i64) -> Result<Vec<(i64, String, u64)>> {
    let rows = db.read(Statement::read(OF_DAYS, [format.into(), package.into(), since.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok((cells.int()?, cells.text()?, cells.count()?))
        })
        .collect()
}
