//! Blobs: which bytes are here, where they lie, and until when nothing collects them although no artifact refers to them.
//! The bytes themselves, and the order in which bytes and rows come and go, are `larder-blobs`'s.

use larder_core::{Digest, Result, Time};

use crate::{Db, Row, Statement, Value};

/// How many locations [`LOCATED`] asks about.
const MANY: usize = 16;

statements! {
    FIND = "select digest, size, location, state, created_at, lease_until from blobs where digest = $1";
    LIST = "select digest, size, location, state, created_at, lease_until from blobs
        where digest > $1 order by digest limit $2";
    UNUSED = "select digest, size, location, state, created_at, lease_until from blobs
        where digest > $1 and lease_until < $2
        and not exists (select 1 from artifacts where artifacts.digest = blobs.digest)
        order by digest limit $3";
    TOTALS = "select count(*), cast(coalesce(sum(size), 0) as bigint) from blobs";
    LOCATED = "select location from blobs
        where location in ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
        union all select location from trash
        where location in ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
        union all select staged from uploads
        where staged in ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
        union all select tail from uploads
        where tail in ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)";
    USES = "select p.format, p.name, v.display, a.name from artifacts a
        join versions v on v.id = a.version_id join packages p on p.id = v.package_id
        where a.digest = $1 order by a.id limit $2";
    UNFOUNDED = "select a.id, p.format, p.name, v.display, a.name, a.digest, a.size, b.size from artifacts a
        join versions v on v.id = a.version_id join packages p on p.id = v.package_id
        left join blobs b on b.digest = a.digest
        where a.id > $1 and (b.digest is null or b.size <> a.size) order by a.id limit $2";

    // A row that is live stays as it is: its bytes were first. One whose bytes are missing is healed.
    KEEP = "insert into blobs (digest, size, location, state, created_at, lease_until) values ($1, $2, $3, 'live', $4, $5)
        on conflict (digest) do update set size = excluded.size, location = excluded.location, state = 'live',
        lease_until = case when blobs.lease_until > excluded.lease_until then blobs.lease_until else excluded.lease_until end
        where blobs.state <> 'live'";
    RENEW = "update blobs set lease_until = $2 where digest = $1 and lease_until < $2";
    MARK = "update blobs set state = $2 where digest = $1";
    REMOVE = "delete from blobs where digest = $1";

    IS_LIVE = "insert into guard (holds) select case when (
        exists (select 1 from blobs where digest = $1 and state = 'live')) then 1 end";
    IS_NOT_LIVE = "insert into guard (holds) select case when (
        not exists (select 1 from blobs where digest = $1 and state = 'live')) then 1 end";
    IS_AT = "insert into guard (holds) select case when (
        exists (select 1 from blobs where digest = $1 and location = $2 and state = $3)) then 1 end";
    IS_UNTOUCHED = "insert into guard (holds) select case when (
        exists (select 1 from blobs where digest = $1 and location = $2 and created_at = $3 and lease_until = $4)
        and not exists (select 1 from artifacts where digest = $1)) then 1 end";
    IS_UNUSED = "insert into guard (holds) select case when (
        exists (select 1 from blobs where digest = $1 and location = $2 and lease_until < $3)
        and not exists (select 1 from artifacts where digest = $1)) then 1 end";
}

/// Whether the bytes of a blob can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// They were there, and right, at the last look.
    Live,
    /// They were not there, or not right, at the last look: nothing may claim that the blob exists.
    Missing,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Missing => "missing",
        }
    }
}

/// What is known of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRow {
    /// The digest of its bytes.
    pub digest: Digest,
    /// How many bytes.
    pub size: u64,
    /// Where the store has them. No location is ever used twice.
    pub location: String,
    /// Whether they can be had.
    pub state: State,
    /// When it was first put.
    pub created_at: Time,
    /// Nothing collects it before.
    pub lease_until: Time,
}

/// An artifact, as people know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The id of a format.
    pub format: String,
    /// The package.
    pub package: String,
    /// The version, as its author wrote it.
    pub version: String,
    /// The artifact's name.
    pub artifact: String,
}

/// An artifact whose blob has no row, or a row of another size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfounded {
    /// The artifact's id, which sorts the list.
    pub id: String,
    /// Which artifact it is.
    pub of: Use,
    /// The blob that it points at.
    pub digest: Digest,
    /// The size that the artifact says.
    pub size: u64,
    /// The size that the blob's row says; `None` if there is no row.
    pub blob_size: Option<u64>,
}

/// The row of a blob.
pub async fn find(db: &Db, digest: &Digest) -> Result<Option<BlobRow>> {
    db.read_one(Statement::read(FIND, [(*digest).into()])).await?.map(blob).transpose()
}

/// Blobs in the order of their digests, those after `after` (at first `None`), at most `limit`.
pub async fn list(db: &Db, after: Option<&Digest>, limit: u32) -> Result<Vec<BlobRow>> {
    let rows = db.read(Statement::read(LIST, [start(after), i64::from(limit).into()])).await?;
    rows.into_iter().map(blob).collect()
}

/// Like [`list`], but only blobs that no artifact refers to and whose lease was over before `now`.
pub async fn unused(db: &Db, after: Option<&Digest>, now: Time, limit: u32) -> Result<Vec<BlobRow>> {
    let rows = db.read(Statement::read(UNUSED, [start(after), now.into(), i64::from(limit).into()])).await?;
    rows.into_iter().map(blob).collect()
}

/// How many blobs there are, and how many bytes they have together.
pub async fn totals(db: &Db) -> Result<(u64, u64)> {
    let Some(row) = db.read_one(Statement::read(TOTALS, [])).await? else { return Ok((0, 0)) };
    let mut cells = row.cells();
    Ok((cells.count()?, cells.count()?))
}

/// Which of these locations have a row: of a blob, of an upload, or in the trash.
pub async fn located(db: &Db, locations: &[&str]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for some in locations.chunks(MANY) {
        let padded = some.iter().copied().chain(std::iter::repeat("")).take(MANY);
        for row in db.read(Statement::read(LOCATED, padded.map(Value::from).collect::<Vec<_>>())).await? {
            found.push(row.cells().text()?);
        }
    }
    Ok(found)
}

/// Some artifacts that refer to a blob, at most `limit`.
pub async fn uses(db: &Db, digest: &Digest, limit: u32) -> Result<Vec<Use>> {
    let rows = db.read(Statement::read(USES, [(*digest).into(), i64::from(limit).into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(Use { format: cells.text()?, package: cells.text()?, version: cells.text()?, artifact: cells.text()? })
        })
        .collect()
}

/// Artifacts that promise what no blob can keep, those after the artifact `after` (at first empty), at most `limit`.
pub async fn unfounded(db: &Db, after: &str, limit: u32) -> Result<Vec<Unfounded>> {
    let rows = db.read(Statement::read(UNFOUNDED, [after.into(), i64::from(limit).into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(Unfounded {
                id: cells.text()?,
                of: Use {
                    format: cells.text()?,
                    package: cells.text()?,
                    version: cells.text()?,
                    artifact: cells.text()?,
                },
                digest: cells.digest()?,
                size: cells.count()?,
                blob_size: cells.optional_count()?,
            })
        })
        .collect()
}

/// Adds a blob whose bytes are durable at its location, or heals one whose bytes were missing; guard it with
/// [`is_not_live`].
pub fn keep(row: &BlobRow) -> Statement {
    let BlobRow { digest, size, location, created_at, lease_until, .. } = row;
    let size = i64::try_from(*size).unwrap_or(i64::MAX);
    let values = [(*digest).into(), size.into(), location.into(), (*created_at).into(), (*lease_until).into()];
    Statement::write(KEEP, values)
}

/// Makes a lease end not before `until`.
pub fn renew(digest: &Digest, until: Time) -> Statement {
    Statement::write(RENEW, [(*digest).into(), until.into()])
}

/// Says whether the bytes can be had.
pub fn mark(digest: &Digest, state: State) -> Statement {
    Statement::write(MARK, [(*digest).into(), state.word().into()])
}

/// Takes the row away; guard it with [`is_unused`].
pub fn remove(digest: &Digest) -> Statement {
    Statement::write(REMOVE, [(*digest).into()])
}

/// Guard `blob_is_live`: for the batch that lets an artifact refer to it.
pub fn is_live(digest: &Digest) -> Statement {
    Statement::guard("blob_is_live", IS_LIVE, [(*digest).into()])
}

/// Guard `blob_is_not_live`: its bytes were never put, or are missing.
pub fn is_not_live(digest: &Digest) -> Statement {
    Statement::guard("blob_is_not_live", IS_NOT_LIVE, [(*digest).into()])
}

/// Guard `blob_is_at`: the row still has this state and says that the bytes are at this location.
pub fn is_at(digest: &Digest, location: &str, state: State) -> Statement {
    Statement::guard("blob_is_at", IS_AT, [(*digest).into(), location.into(), state.word().into()])
}

/// Guard `blob_is_unused`: no artifact refers to it, its lease was over before `now`, and its bytes are at this location.
pub fn is_unused(digest: &Digest, location: &str, now: Time) -> Statement {
    Statement::guard("blob_is_unused", IS_UNUSED, [(*digest).into(), location.into(), now.into()])
}

/// Guard `blob_is_untouched`: no artifact refers to it, and since `row` was read nobody has put it again or leased it.
pub fn is_untouched(row: &BlobRow) -> Statement {
    let BlobRow { digest, location, created_at, lease_until, .. } = row;
    let values = [(*digest).into(), location.into(), (*created_at).into(), (*lease_until).into()];
    Statement::guard("blob_is_untouched", IS_UNTOUCHED, values)
}

fn start(after: Option<&Digest>) -> Value {
    after.map_or_else(String::new, Digest::to_string).into()
}

fn blob(row: Row) -> Result<BlobRow> {
    let mut cells = row.cells();
    Ok(BlobRow {
        digest: cells.digest()?,
        size: cells.count()?,
        location: cells.text()?,
        state: if cells.text()? == State::Live.word() { State::Live } else { State::Missing },
        created_at: cells.time()?,
        lease_until: cells.time()?,
    })
}
