//! Usage: how many bytes packages need, which of them they share, what a version alone needs, and why a blob is kept.
//! Sums are made by the database; whatever has no bound comes in pages.

use larder_core::{Digest, Id, Result, Time};

use crate::{
    Db, Row, Statement, Value,
    packages::{Artifact, Pointer},
};

statements! {
    POINTERS_BY_AGE = "select p.name, v.reference, p.changed_at from pointers p join versions v on v.id = p.version_id
        where p.package_id = $1 and (p.changed_at < $2 or (p.changed_at = $2 and p.name > $3))
        order by p.changed_at desc, p.name limit $4";
    VERSIONS = "select count(*) from versions v join packages p on p.id = v.package_id where p.format = $1";
    OF_PACKAGE = "select
        (select count(*) from pointers q where q.package_id = p.id),
        (select count(*) from versions v where v.package_id = p.id),
        (select count(*) from versions v where v.package_id = p.id
            and not exists (select 1 from pointers q where q.version_id = v.id)
            and not exists (select 1 from edges e where e.package_id = v.package_id and e.reference = v.reference
                and e.kind = 'part')
            and not exists (select 1 from edges e join versions s on s.package_id = e.package_id
                and s.reference = e.reference where e.version_id = v.id and e.kind = 'subject')),
        (select cast(coalesce(sum(d.size), 0) as bigint) from
            (select max(a.size) as size from artifacts a where a.package_id = $1 group by a.digest) d),
        (select cast(coalesce(sum(d.size), 0) as bigint) from
            (select max(a.size) as size from artifacts a where a.package_id = $1
                and not exists (select 1 from artifacts o where o.digest = a.digest and o.package_id < $1)
                and not exists (select 1 from artifacts o where o.digest = a.digest and o.package_id > $1)
                group by a.digest) d),
        (select cast(coalesce(sum(b.size), 0) as bigint) from leases l join blobs b on b.digest = l.digest
            where l.format = p.format and l.package = p.name and l.until > $2
            and not exists (select 1 from artifacts a where a.package_id = p.id and a.digest = b.digest))
        from packages p where p.id = $1";
    // How many slashes a name has tells apart what stays within one segment of it from what crosses them.
    OF_NAMES = "select cast(coalesce(sum(b.size), 0) as bigint) from blobs b where b.digest in (
        select a.digest from artifacts a join packages p on p.id = a.package_id
            where p.format = $1 and p.name like $2 escape '~'
            and (cast($3 as bigint) < 0 or length(p.name) - length(replace(p.name, '/', '')) = $3)
        union select l.digest from leases l where l.format = $1 and l.until > $4 and l.package like $2 escape '~'
            and (cast($3 as bigint) < 0 or length(l.package) - length(replace(l.package, '/', '')) = $3))";
    HAVE = "select 1 from blobs b where b.digest = $5 and (exists (
        select 1 from artifacts a join packages p on p.id = a.package_id
            where a.digest = b.digest and p.format = $1 and p.name like $2 escape '~'
            and (cast($3 as bigint) < 0 or length(p.name) - length(replace(p.name, '/', '')) = $3))
        or exists (select 1 from leases l
            where l.digest = b.digest and l.format = $1 and l.until > $4 and l.package like $2 escape '~'
            and (cast($3 as bigint) < 0 or length(l.package) - length(replace(l.package, '/', '')) = $3)))";
    OF_VERSION = "select a.digest, b.size, (select count(*) from artifacts o where o.digest = a.digest)
        from artifacts a join blobs b on b.digest = a.digest where a.version_id = $1";
    // Of all versions that need a blob, one of the package that is asked about explains best why it is kept, and then one
    // that is not about to go.
    REASONS = "select b.digest, b.size, b.state, b.lease_until,
        (select count(distinct a.version_id) from artifacts a where a.digest = b.digest),
        p.format, p.name, v.display, v.orphaned_at,
        (select min(q.name) from pointers q where q.version_id = v.id),
        (select min(q.name) from edges e join pointers q on q.version_id = e.version_id
            where e.package_id = v.package_id and e.reference = v.reference and e.kind = 'part'),
        (select min(e.reference) from edges e where e.version_id = v.id and e.kind = 'subject'),
        (select l.format from leases l where l.digest = b.digest order by l.until desc, l.format, l.package limit 1),
        (select l.package from leases l where l.digest = b.digest order by l.until desc, l.format, l.package limit 1)
        from blobs b
        left join artifacts u on u.id = (select a.id from artifacts a join versions w on w.id = a.version_id
            where a.digest = b.digest order by
                case when a.package_id = (select y.id from packages y where y.format = $4 and y.name = $5) then 0 else 1 end,
                case when w.orphaned_at is null then 0 else 1 end, a.id limit 1)
        left join versions v on v.id = u.version_id
        left join packages p on p.id = v.package_id
        where b.digest > $1 and (cast($3 as text) = '' or b.digest = $3)
        and (cast($4 as text) = ''
            or exists (select 1 from artifacts x join packages y on y.id = x.package_id
                where x.digest = b.digest and y.format = $4 and y.name = $5)
            or exists (select 1 from leases x where x.digest = b.digest and x.format = $4 and x.package = $5))
        order by b.digest limit $2";
}

/// A page of the pointers of a package, the one that moved last first, those after `after`, `limit` at most.
pub async fn pointers_by_age(db: &Db, package: Id, after: Option<&Pointer>, limit: i64) -> Result<Vec<Pointer>> {
    let (at, name) = after.map_or((Time::from_micros(i64::MAX), ""), |after| (after.changed_at, after.name.as_str()));
    let values = [package.into(), at.into(), name.into(), limit.into()];
    let pointer = |row: Row| {
        let mut cells = row.cells();
        Ok(Pointer { name: cells.text()?, reference: cells.text()?, changed_at: cells.time()? })
    };
    db.read(Statement::read(POINTERS_BY_AGE, values)).await?.into_iter().map(pointer).collect()
}

/// How many versions all packages of a format have.
pub async fn versions(db: &Db, format: &str) -> Result<u64> {
    count(db, Statement::read(VERSIONS, [format.into()])).await
}

/// What a package has, and how many bytes it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackageUsage {
    /// Its pointers.
    pub pointers: u64,
    /// Its versions.
    pub versions: u64,
    /// Versions to which nothing refers.
    pub orphans: u64,
    /// Bytes of all blobs that it needs, each once.
    pub bytes: u64,
    /// Bytes of those that no other package needs.
    pub unique: u64,
    /// Bytes of blobs that are leased to it, and that none of its versions needs.
    pub leased: u64,
}

/// What a package has and needs; nothing if there is no such package.
pub async fn of_package(db: &Db, package: Id, now: Time) -> Result<PackageUsage> {
    let Some(row) = db.read_one(Statement::read(OF_PACKAGE, [package.into(), now.into()])).await? else {
        return Ok(PackageUsage::default());
    };
    let mut cells = row.cells();
    Ok(PackageUsage {
        pointers: cells.count()?,
        versions: cells.count()?,
        orphans: cells.count()?,
        bytes: cells.count()?,
        unique: cells.count()?,
        leased: cells.count()?,
    })
}

/// Package names as a `like` of the database has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// `%` is any text; `~` makes the next character mean itself. SQLite takes capitals for small letters.
    pub like: String,
    /// How many slashes a name has, if that matters.
    pub slashes: Option<u32>,
}

impl Names {
    fn values(&self, format: &str, now: Time) -> Vec<Value> {
        let slashes = self.slashes.map_or(-1, i64::from);
        vec![format.into(), self.like.as_str().into(), slashes.into(), now.into()]
    }
}

/// Bytes of all blobs that the packages of these names need, or that are leased to them at `now`, each counted once.
pub async fn of_names(db: &Db, format: &str, names: &Names, now: Time) -> Result<u64> {
    count(db, Statement::read(OF_NAMES, names.values(format, now))).await
}

/// Whether a blob is among those that [`of_names`] counts.
pub async fn have(db: &Db, format: &str, names: &Names, digest: &Digest, now: Time) -> Result<bool> {
    let mut values = names.values(format, now);
    values.push((*digest).into());
    Ok(db.read_one(Statement::read(HAVE, values)).await?.is_some())
}

/// The blobs of a version, each with how many artifacts of any version there are of it.
pub async fn of_version(db: &Db, version: Id) -> Result<Vec<(Artifact, u64)>> {
    let rows = db.read(Statement::read(OF_VERSION, [version.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            let artifact = Artifact { digest: cells.digest()?, size: cells.count()?, sha1: String::new() };
            Ok((artifact, cells.count()?))
        })
        .collect()
}

/// Why a blob is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Whether they can be had.
    pub live: bool,
    /// Nothing collects it before.
    pub lease_until: Time,
    /// How many versions need it.
    pub versions: u64,
    /// One of those.
    pub needed_by: Option<NeededBy>,
    /// The format and the name of the package to which it is leased for longest, or was.
    pub leased_to: Option<(String, String)>,
}

/// A version that needs a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededBy {
    /// The id of a format.
    pub format: String,
    /// The package.
    pub package: String,
    /// The version, as its author wrote it.
    pub version: String,
    /// Since when nothing refers to the version.
    pub orphaned_at: Option<Time>,
    /// A pointer at it.
    pub pointer: Option<String>,
    /// A pointer at a version that it is part of.
    pub pointer_of_whole: Option<String>,
    /// The reference of the version that it is about.
    pub subject: Option<String>,
}

/// Which blobs [`reasons`] tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// All.
    Everything,
    /// One.
    Blob(Digest),
    /// Those that this package of this format needs or leases.
    Package(String, String),
}

/// Why blobs are kept, in the order of their digests, those after `after` (at first `None`), at most `limit`.
pub async fn reasons(db: &Db, about: &About, after: Option<&Digest>, limit: i64) -> Result<Vec<Reason>> {
    let (blob, format, package) = match about {
        About::Everything => (String::new(), "", ""),
        About::Blob(digest) => (digest.to_string(), "", ""),
        About::Package(format, package) => (String::new(), format.as_str(), package.as_str()),
    };
    let start = after.map_or_else(String::new, Digest::to_string);
    let values = [start.into(), limit.into(), blob.into(), format.into(), package.into()];
    db.read(Statement::read(REASONS, values)).await?.into_iter().map(reason).collect()
}

fn reason(row: Row) -> Result<Reason> {
    let mut cells = row.cells();
    let (digest, size, live) = (cells.digest()?, cells.count()?, cells.text()? == "live");
    let (lease_until, versions) = (cells.time()?, cells.count()?);
    let (format, package, version) = (cells.optional_text()?, cells.optional_text()?, cells.optional_text()?);
    let orphaned_at = cells.optional_time()?;
    let (pointer, pointer_of_whole, subject) = (cells.optional_text()?, cells.optional_text()?, cells.optional_text()?);
    let needed_by = match (format, package, version) {
        (Some(format), Some(package), Some(version)) => {
            Some(NeededBy { format, package, version, orphaned_at, pointer, pointer_of_whole, subject })
        }
        _ => None,
    };
    let leased_to = cells.optional_text()?.zip(cells.optional_text()?);
    Ok(Reason { digest, size, live, lease_until, versions, needed_by, leased_to })
}

async fn count(db: &Db, statement: Statement) -> Result<u64> {
    db.read_one(statement).await?.map_or(Ok(0), |row| row.cells().count())
}
