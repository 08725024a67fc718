//! Leases: which blobs a package may show and refer to although none of its versions does yet, and until when. Whoever
//! puts, mounts or is told of a blob gets one, so that nothing is collected between that and the version that needs it.
//! A lease always comes with a [`renew`](crate::blobs::renew) of its blob until the same time.

use larder_core::{Digest, Id, Result, Time};

use crate::{Db, Statement, Value};

/// How many blobs one guard asks about.
pub const MANY: usize = 16;

statements! {
    PUT = "insert into leases (format, package, digest, until) values ($1, $2, $3, $4)
        on conflict (format, package, digest) do update set
        until = case when leases.until > excluded.until then leases.until else excluded.until end";
    REMOVE = "delete from leases where format = $1 and package = $2 and digest = $3";
    REMOVE_OF_PACKAGE = "delete from leases where format = $1 and package = $2";
    EXPIRED = "delete from leases where until < $1";
    SEEN = "select b.size, b.state,
        (select l.until from leases l where l.format = $1 and l.package = $2 and l.digest = $3),
        case when exists (select 1 from artifacts a join packages p on p.id = a.package_id
            where p.format = $1 and p.name = $2 and a.digest = $3) then 1 else 0 end
        from blobs b where b.digest = $3";
    PACKAGES_WITH = "select p.name from packages p where p.format = $1 and p.id in
        (select a.package_id from artifacts a where a.digest = $2) order by p.name limit $3";
    PACKAGES_LEASING = "select package from leases where format = $1 and digest = $2 and until > $3 order by package limit $4";

    ALL_SEEN = "insert into guard (holds) select case when (
        select count(*) from blobs b where b.state = 'live'
        and b.digest in ($6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)
        and (exists (select 1 from leases l where l.format = $1 and l.package = $2 and l.digest = b.digest and l.until > $3)
            or exists (select 1 from artifacts a where a.package_id = $4 and a.digest = b.digest))) = $5 then 1 end";
}

/// What a package knows of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How many bytes it has.
    pub size: u64,
    /// Whether they can be had.
    pub live: bool,
    /// Until when it is leased to the package, if it ever was.
    pub leased_until: Option<Time>,
    /// Whether a version of the package has it.
    pub used: bool,
}

/// What the package `name` knows of a blob: `None` if there is no such blob anywhere. It may show the blob only if it is
/// used, or leased until later than now.
pub async fn seen(db: &Db, format: &str, name: &str, digest: &Digest) -> Result<Option<Seen>> {
    let row = db.read_one(Statement::read(SEEN, [format.into(), name.into(), (*digest).into()])).await?;
    row.map(|row| {
        let mut cells = row.cells();
        Ok(Seen {
            size: cells.count()?,
            live: cells.text()? == "live",
            leased_until: cells.optional_time()?,
            used: cells.boolean()?,
        })
    })
    .transpose()
}

/// Names of packages that have or lease a blob, at most `limit` of each sort.
pub async fn packages_with(db: &Db, format: &str, digest: &Digest, now: Time, limit: i64) -> Result<Vec<String>> {
    let digest: Value = (*digest).into();
    let using = Statement::read(PACKAGES_WITH, [format.into(), digest.clone(), limit.into()]);
    let leasing = Statement::read(PACKAGES_LEASING, [format.into(), digest, now.into(), limit.into()]);
    let mut names = Vec::new();
    for row in db.read(using).await?.into_iter().chain(db.read(leasing).await?) {
        names.push(row.cells().text()?);
    }
    names.dedup();
    Ok(names)
}

/// Leases a blob to a package, at least until `until`.
pub fn put(format: &str, package: &str, digest: &Digest, until: Time) -> Statement {
    Statement::write(PUT, [format.into(), package.into(), (*digest).into(), until.into()])
}

/// Ends a lease.
pub fn remove(format: &str, package: &str, digest: &Digest) -> Statement {
    Statement::write(REMOVE, [format.into(), package.into(), (*digest).into()])
}

/// Ends all leases of a package.
pub fn remove_of_package(format: &str, package: &str) -> Statement {
    Statement::write(REMOVE_OF_PACKAGE, [format.into(), package.into()])
}

/// Removes the leases that were over before `now`.
pub fn sweep(now: Time) -> Statement {
    Statement::write(EXPIRED, [now.into()])
}

/// Guards `blobs are there`: each of these different blobs is live, and leased to the package or used by it.
pub fn all_seen(format: &str, name: &str, package: Option<Id>, digests: &[Digest], now: Time) -> Vec<Statement> {
    let id = package.map_or_else(String::new, |id| id.to_string());
    let guard = |some: &[Digest]| {
        let count = i64::try_from(some.len()).unwrap_or(i64::MAX);
        let mut values: Vec<Value> = vec![format.into(), name.into(), now.into(), id.as_str().into(), count.into()];
        let padded = some.iter().map(|digest| Value::from(*digest)).chain(std::iter::repeat("".into())).take(MANY);
        values.extend(padded);
        Statement::guard("blobs are there", ALL_SEEN, values)
    };
    digests.chunks(MANY).map(guard).collect()
}
