//! Edges: versions that refer to other versions, or to blobs, of their package. What a version consists of lives as long
//! as it does; what is about a version lives as long as that. The other end may not be there (yet).

use std::collections::HashSet;

use larder_core::{Digest, Id, Result, Time};

use crate::{Db, Row, Statement, Value};

/// How many versions one statement asks about.
const MANY: usize = 16;

statements! {
    INSERT = "insert into edges (version_id, package_id, kind, reference) values ($1, $2, $3, $4)
        on conflict (version_id, kind, reference) do nothing";
    ABOUT = "select v.id, v.reference, v.metadata from edges e join versions v on v.id = e.version_id
        where e.package_id = $1 and e.reference = $2 and e.kind = 'subject' and v.id > $3 order by v.id limit $4";
    OF_VERSION = "select kind, reference from edges where version_id = $1";
    PARENTS = "select v.reference from edges e join versions v on v.id = e.version_id
        where e.package_id = $1 and e.reference = $2 and e.kind = $3 order by v.id limit $4";

    THERE = "select reference from versions where package_id = $1
        and reference in ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)";
    ALL_THERE = "insert into guard (holds) select case when (
        select count(distinct reference) from versions where package_id = $1
        and reference in ($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)) = $2 then 1 end";

    WHOLES_ARE = "insert into guard (holds) select case when (
        select count(*) from edges where package_id = $1 and reference = $2 and kind = 'part') = $3 then 1 end";

    // A blob that a version was waiting for has come.
    ADOPT_BLOB = "insert into artifacts (id, version_id, package_id, name, digest, size, sha1, created_at)
        select e.version_id || ':' || e.reference, e.version_id, e.package_id, e.reference, b.digest, b.size, '', $4
        from edges e join packages p on p.id = e.package_id join blobs b on b.digest = e.reference
        where p.format = $1 and p.name = $2 and e.kind = 'blob' and e.reference = $3
        on conflict (version_id, name) do nothing";

    ORPHANS = "select v.id, p.name, v.reference, v.created_at, v.orphaned_at,
        (select l.until from leases l where l.format = p.format and l.package = p.name and l.digest = v.reference)
        from versions v join packages p on p.id = v.package_id
        where p.format = $1 and v.id > $2
        and not exists (select 1 from pointers q where q.version_id = v.id)
        and not exists (select 1 from edges e where e.package_id = v.package_id and e.reference = v.reference and e.kind = 'part')
        and not exists (select 1 from edges e join versions s on s.package_id = e.package_id and s.reference = e.reference
            where e.version_id = v.id and e.kind = 'subject')
        order by v.id limit $3";
    IS_ORPHAN = "insert into guard (holds) select case when exists (select 1 from versions v
        join packages p on p.id = v.package_id
        where v.id = $1 and v.orphaned_at <= $2
        and not exists (select 1 from leases l where l.format = p.format and l.package = p.name
            and l.digest = v.reference and l.until > $3)
        and not exists (select 1 from pointers q where q.version_id = v.id)
        and not exists (select 1 from edges e where e.package_id = v.package_id and e.reference = v.reference and e.kind = 'part')
        and not exists (select 1 from edges e join versions s on s.package_id = e.package_id and s.reference = e.reference
            where e.version_id = v.id and e.kind = 'subject')) then 1 end";
    MARK_ORPHAN = "update versions set orphaned_at = $2 where id = $1 and orphaned_at is null
        and not exists (select 1 from pointers q where q.version_id = versions.id)
        and not exists (select 1 from edges e where e.package_id = versions.package_id
            and e.reference = versions.reference and e.kind = 'part')
        and not exists (select 1 from edges e join versions s on s.package_id = e.package_id and s.reference = e.reference
            where e.version_id = versions.id and e.kind = 'subject')";
    NO_ORPHAN = "update versions set orphaned_at = null where id = $1 and orphaned_at is not null";
    PARTS_NO_ORPHANS = "update versions set orphaned_at = null
        where package_id = $2 and orphaned_at is not null
        and reference in (select e.reference from edges e where e.version_id = $1 and e.kind = 'part')";
    ABOUT_NO_ORPHANS = "update versions set orphaned_at = null
        where orphaned_at is not null and id in (select e.version_id from edges e
            where e.package_id = $1 and e.reference = $2 and e.kind = 'subject')";
    LEAVE_PARTS = "update versions set orphaned_at = $3
        where package_id = $2 and orphaned_at is null
        and reference in (select e.reference from edges e where e.version_id = $1 and e.kind = 'part')
        and not exists (select 1 from pointers q where q.version_id = versions.id)
        and not exists (select 1 from edges o where o.package_id = $2 and o.reference = versions.reference
            and o.kind = 'part' and o.version_id <> $1)
        and not exists (select 1 from edges o join versions s on s.package_id = o.package_id and s.reference = o.reference
            where o.version_id = versions.id and o.kind = 'subject')";
    LEAVE_ABOUT = "update versions set orphaned_at = $3
        where orphaned_at is null and id in (select e.version_id from edges e
            where e.package_id = $1 and e.reference = $2 and e.kind = 'subject')
        and not exists (select 1 from pointers q where q.version_id = versions.id)
        and not exists (select 1 from edges o where o.package_id = $1 and o.reference = versions.reference
            and o.kind = 'part')";
}

/// How a version refers to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// To a version that it consists of.
    Part,
    /// To the version that it is about.
    Subject,
    /// To a blob that was not here when it came.
    Blob,
}

impl Edge {
    fn word(self) -> &'static str {
        match self {
            Self::Part => "part",
            Self::Subject => "subject",
            Self::Blob => "blob",
        }
    }
}

/// A version that is about another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its identity, which orders them by age.
    pub id: Id,
    /// Its reference.
    pub reference: String,
    /// JSON: the format's own.
    pub metadata: String,
}

/// A version that nothing refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its identity.
    pub id: Id,
    /// The name of its package.
    pub package: String,
    /// Its reference.
    pub reference: String,
    /// When it came.
    pub created_at: Time,
    /// Since when nothing refers to it, if that was noted already.
    pub orphaned_at: Option<Time>,
    /// Until when its reference is leased to its package, or was: somebody may be about to refer to it.
    pub leased_until: Option<Time>,
}

/// Versions of a package that are about the one with this reference, those after `after` (at first empty), the oldest
/// first, at most `limit`.
pub async fn about(db: &Db, package: Id, reference: &str, after: &str, limit: i64) -> Result<Vec<About>> {
    let statement = Statement::read(ABOUT, [package.into(), reference.into(), after.into(), limit.into()]);
    let about = |row: Row| {
        let mut cells = row.cells();
        Ok(About { id: cells.id()?, reference: cells.text()?, metadata: cells.text()? })
    };
    db.read(statement).await?.into_iter().map(about).collect()
}

/// References of versions of a package that refer so to the one with this reference, at most `limit`.
pub async fn parents(db: &Db, package: Id, reference: &str, edge: Edge, limit: i64) -> Result<Vec<String>> {
    let values = [package.into(), reference.into(), edge.word().into(), limit.into()];
    db.read(Statement::read(PARENTS, values)).await?.into_iter().map(|row| row.cells().text()).collect()
}

/// Which of these versions a package has, by reference.
pub async fn there(db: &Db, package: Id, references: &[Digest]) -> Result<HashSet<String>> {
    let mut found = HashSet::new();
    for some in references.chunks(MANY) {
        let values: Vec<Value> = std::iter::once(package.into()).chain(padded(some)).collect();
        for row in db.read(Statement::read(THERE, values)).await? {
            found.insert(row.cells().text()?);
        }
    }
    Ok(found)
}

/// Guards `versions are there`: the package has each of these different versions.
pub fn all_there(package: Id, references: &[Digest]) -> Vec<Statement> {
    let guard = |some: &[Digest]| {
        let count = i64::try_from(some.len()).unwrap_or(i64::MAX);
        let values: Vec<Value> = [package.into(), count.into()].into_iter().chain(padded(some)).collect();
        Statement::guard("versions are there", ALL_THERE, values)
    };
    references.chunks(MANY).map(guard).collect()
}

/// Guard `wholes are the same`: as many versions of the package consist of the one with this reference.
pub fn wholes_are(package: Id, reference: &str, count: usize) -> Statement {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    Statement::guard("wholes are the same", WHOLES_ARE, [package.into(), reference.into(), count.into()])
}

fn padded(digests: &[Digest]) -> impl Iterator<Item = Value> {
    digests.iter().map(|digest| Value::from(*digest)).chain(std::iter::repeat("".into())).take(MANY)
}

/// What a version refers to.
pub async fn of_version(db: &Db, version: Id) -> Result<Vec<(Edge, String)>> {
    let rows = db.read(Statement::read(OF_VERSION, [version.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            let edge = match cells.text()?.as_str() {
                "part" => Edge::Part,
                "subject" => Edge::Subject,
                _ => Edge::Blob,
            };
            Ok((edge, cells.text()?))
        })
        .collect()
}

/// Versions of a format that nothing refers to, those after `after` (at first empty), at most `limit`.
pub async fn orphans(db: &Db, format: &str, after: &str, limit: i64) -> Result<Vec<Orphan>> {
    let rows = db.read(Statement::read(ORPHANS, [format.into(), after.into(), limit.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(Orphan {
                id: cells.id()?,
                package: cells.text()?,
                reference: cells.text()?,
                created_at: cells.time()?,
                orphaned_at: cells.optional_time()?,
                leased_until: cells.optional_time()?,
            })
        })
        .collect()
}

/// Adds an edge.
pub fn insert(version: Id, package: Id, edge: Edge, reference: &str) -> Statement {
    Statement::write(INSERT, [version.into(), package.into(), edge.word().into(), reference.into()])
}

/// Gives a blob that has come to every version of the package that waits for it.
pub fn adopt_blob(format: &str, package: &str, digest: &Digest, at: Time) -> Statement {
    Statement::write(ADOPT_BLOB, [format.into(), package.into(), (*digest).into(), at.into()])
}

/// Guard `version is an orphan`: nothing refers to it, which was noted at `noted` or before, and no lease on its reference is
/// alive at `now`.
pub fn is_orphan(version: Id, noted: Time, now: Time) -> Statement {
    Statement::guard("version is an orphan", IS_ORPHAN, [version.into(), noted.into(), now.into()])
}

/// Notes that nothing refers to a version, unless that is noted already, or something does after all.
pub fn mark_orphan(version: Id, at: Time) -> Statement {
    Statement::write(MARK_ORPHAN, [version.into(), at.into()])
}

/// Something refers to a version, what it consists of, and what is about it: none of them is an orphan.
pub fn no_orphans(version: Id, package: Id, reference: &str) -> [Statement; 3] {
    [
        Statement::write(NO_ORPHAN, [version.into()]),
        Statement::write(PARTS_NO_ORPHANS, [version.into(), package.into()]),
        Statement::write(ABOUT_NO_ORPHANS, [package.into(), reference.into()]),
    ]
}

/// A version goes: what it alone consisted of, and what is about it, are orphans since `at`.
pub fn leave(version: Id, package: Id, reference: &str, at: Time) -> [Statement; 2] {
    [
        Statement::write(LEAVE_PARTS, [version.into(), package.into(), at.into()]),
        Statement::write(LEAVE_ABOUT, [package.into(), reference.into(), at.into()]),
    ]
}
