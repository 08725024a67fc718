//! Uploads that may go on in another request, and the trash: bytes that no row refers to any more. The order in which bytes
//! and rows come and go is `larder-blobs`'s.

use larder_core::{Digest, Id, Result, Time, digest::Algorithm};

use crate::{Db, Row, Statement, Value};

statements! {
    OPEN = "insert into uploads (id, format, package, principal, algorithm, written, tail_size, writer_until, taken_over,
        created_at, touched_at) values ($1, $2, $3, $4, $5, 0, 0, 0, 0, $6, $6)";
    FIND = "select algorithm, written, state, staged, tail, hash, writer, writer_until, taken_over from uploads
        where id = $1 and format = $2 and package = $3 and principal = $4";
    // Whoever goes on although the writer before has not let go takes over.
    CLAIM = "update uploads set writer = $2, writer_until = $3, touched_at = $4,
        taken_over = case when writer is null then taken_over else 1 end
        where id = $1 and (writer is null or writer_until < $4)
        returning algorithm, written, state, staged, tail, hash, writer, writer_until, taken_over";
    RENEW = "update uploads set writer_until = $3, touched_at = $4 where id = $1 and writer = $2";
    SAVE = "update uploads set written = $2, state = $3, staged = $4, tail = $5, tail_size = $6, hash = $7, writer_until = $8,
        touched_at = $9 where id = $1";
    RELEASE = "update uploads set writer = null, writer_until = 0, taken_over = case when cast($3 as bigint) = 1 then 1 else taken_over end
        where id = $1 and writer = $2";
    END = "delete from uploads where id = $1";
    IDLE = "select id, written from uploads where id > $1 and touched_at < $2 and writer_until < $3 order by id limit $4";

    IS_MINE = "insert into guard (holds) select case when (
        exists (select 1 from uploads where id = $1 and writer = $2)) then 1 end";
    IS_OF = "insert into guard (holds) select case when (
        exists (select 1 from uploads where id = $1 and format = $2 and package = $3 and principal = $4)) then 1 end";
    IS_IDLE = "insert into guard (holds) select case when (
        exists (select 1 from uploads where id = $1 and touched_at < $2 and writer_until < $3)) then 1 end";

    DISCARD = "insert into trash (location, digest, size, trashed_at) values ($1, $2, $3, $4) on conflict (location) do nothing
        returning location";
    DISCARD_STAGED = "insert into trash (location, digest, size, trashed_at)
        select staged, null, written - tail_size, cast($2 as bigint) from uploads where id = $1 and staged is not null and staged <> $3
        on conflict (location) do nothing returning location";
    DISCARD_TAIL = "insert into trash (location, digest, size, trashed_at)
        select tail, null, tail_size, cast($2 as bigint) from uploads where id = $1 and tail is not null and tail <> $3
        on conflict (location) do nothing returning location";
    DISCARD_BLOB = "insert into trash (location, digest, size, trashed_at)
        select location, digest, size, cast($3 as bigint) from blobs where digest = $1 and location <> $2
        on conflict (location) do nothing returning location";
    // No location is used twice; a blob that has one all the same is worth more than the room.
    TRASH = "select location, digest, size, trashed_at from trash
        where location > $1 and trashed_at <= $2 and not exists (select 1 from blobs where blobs.location = trash.location)
        order by location limit $3";
    FORGET = "delete from trash where location = $1";

    ACCOUNTED = "select
        (select cast(coalesce(sum(size), 0) as bigint) from blobs where state = 'live'),
        (select cast(coalesce(sum(size), 0) as bigint) from trash),
        (select cast(coalesce(sum(written), 0) as bigint) from uploads)";
}

/// Whose upload it is: only the same principal goes on with it, in the same package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The id of a format.
    pub format: &'a str,
    /// The package.
    pub package: &'a str,
    /// Who began it.
    pub principal: &'a str,
}

/// An upload's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadRow {
    /// Of the digest that is computed on the way.
    pub algorithm: Algorithm,
    /// How many bytes are safe.
    pub written: u64,
    /// What the store needs to go on.
    pub state: Option<String>,
    /// Where the store keeps the bytes meanwhile.
    pub staged: Option<String>,
    /// Where it keeps those that were too few to be sent on.
    pub tail: Option<String>,
    /// The digest's state after the bytes that are safe.
    pub hash: Option<Vec<u8>>,
    /// Who writes now.
    pub writer: Option<String>,
    /// Until when that one is believed to be alive.
    pub writer_until: Time,
    /// Whether somebody went on before the writer before had let go.
    pub taken_over: bool,
}

/// How far an upload is, for its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes are safe.
    pub written: u64,
    /// What the store needs to go on.
    pub state: String,
    /// Where the store keeps the bytes meanwhile.
    pub staged: Option<String>,
    /// Where it keeps those that were too few to be sent on, and how many they are.
    pub tail: Option<(String, u64)>,
    /// The digest's state after the bytes that are safe.
    pub hash: Option<Vec<u8>>,
}

/// Bytes that no row refers to any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trash {
    /// Where they are.
    pub location: String,
    /// The blob that they were, if they were one.
    pub digest: Option<Digest>,
    /// How many.
    pub size: u64,
    /// Since when.
    pub trashed_at: Time,
}

/// What the database says of all bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounted {
    /// Bytes of live blobs.
    pub blobs: u64,
    /// Bytes that are about to go.
    pub trash: u64,
    /// Bytes of uploads that may go on. While one is being written, the store is a little ahead.
    pub uploads: u64,
}

/// Begins an upload of no bytes.
pub fn open(id: Id, place: &Place<'_>, algorithm: Algorithm, now: Time) -> Statement {
    let Place { format, package, principal } = *place;
    let algorithm = algorithm.as_str().into();
    Statement::write(OPEN, [id.into(), format.into(), package.into(), principal.into(), algorithm, now.into()])
}

/// The row of an upload, if it is of this place.
pub async fn find(db: &Db, id: Id, place: &Place<'_>) -> Result<Option<UploadRow>> {
    db.read_one(Statement::read(FIND, of(id, place))).await?.map(upload).transpose()
}

/// Makes `writer` the one who writes until `until`, if nobody does now; it gives the row then, for [`claimed`].
pub fn claim(id: Id, writer: &str, until: Time, now: Time) -> Statement {
    Statement::read(CLAIM, [id.into(), writer.into(), until.into(), now.into()])
}

/// Reads what [`claim`] gave; `None` if somebody else writes.
pub fn claimed(rows: Vec<Row>) -> Result<Option<UploadRow>> {
    rows.into_iter().next().map(upload).transpose()
}

/// Says that the writer is alive. It changes nothing if somebody else is the writer.
pub fn renew(id: Id, writer: &str, until: Time, now: Time) -> Statement {
    Statement::write(RENEW, [id.into(), writer.into(), until.into(), now.into()])
}

/// Says how far it is; guard it with [`is_mine`].
pub fn save(id: Id, progress: &Progress, until: Time, now: Time) -> Statement {
    let size = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    let (tail, tail_size) = progress.tail.clone().unzip();
    let values: [Value; 9] = [
        id.into(),
        size(progress.written).into(),
        progress.state.as_str().into(),
        progress.staged.clone().into(),
        tail.into(),
        size(tail_size.unwrap_or(0)).into(),
        progress.hash.clone().into(),
        until.into(),
        now.into(),
    ];
    Statement::write(SAVE, values)
}

/// Lets somebody else write. With `may_write_late` the bytes are proven before they become a blob.
pub fn release(id: Id, writer: &str, may_write_late: bool) -> Statement {
    Statement::write(RELEASE, [id.into(), writer.into(), may_write_late.into()])
}

/// Takes the row away.
pub fn end(id: Id) -> Statement {
    Statement::write(END, [id.into()])
}

/// Uploads of which nothing was heard since `before`, those after the id `after` (at first empty): id and bytes.
pub async fn idle(db: &Db, after: &str, before: Time, now: Time, limit: u32) -> Result<Vec<(Id, u64)>> {
    let values = [after.into(), before.into(), now.into(), i64::from(limit).into()];
    let rows = db.read(Statement::read(IDLE, values)).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok((cells.id()?, cells.count()?))
        })
        .collect()
}

/// Guard `upload_is_mine`: `writer` still is the one who writes.
pub fn is_mine(id: Id, writer: &str) -> Statement {
    Statement::guard("upload_is_mine", IS_MINE, [id.into(), writer.into()])
}

/// Guard `upload_is_there`: it is, and of this place.
pub fn is_of(id: Id, place: &Place<'_>) -> Statement {
    Statement::guard("upload_is_there", IS_OF, of(id, place))
}

/// Guard `upload_is_idle`: nothing was heard of it since `before`.
pub fn is_idle(id: Id, before: Time, now: Time) -> Statement {
    Statement::guard("upload_is_idle", IS_IDLE, [id.into(), before.into(), now.into()])
}

/// Puts bytes into the trash. Like those below, it gives the location of what it put there.
pub fn discard(location: &str, digest: Option<&Digest>, size: u64, now: Time) -> Statement {
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    Statement::read(DISCARD, [location.into(), digest.copied().into(), size.into(), now.into()])
}

/// Puts an upload's bytes into the trash, unless they are at `kept`.
pub fn discard_staged(id: Id, kept: Option<&str>, now: Time) -> Statement {
    Statement::read(DISCARD_STAGED, [id.into(), now.into(), kept.unwrap_or_default().into()])
}

/// Puts the last bytes of an upload into the trash, unless they are at `kept`.
pub fn discard_tail(id: Id, kept: Option<&str>, now: Time) -> Statement {
    Statement::read(DISCARD_TAIL, [id.into(), now.into(), kept.unwrap_or_default().into()])
}

/// Puts the bytes of a blob into the trash, unless they are at `kept`; for the batch that takes its row away or heals it.
pub fn discard_blob(digest: &Digest, kept: Option<&str>, now: Time) -> Statement {
    Statement::read(DISCARD_BLOB, [(*digest).into(), kept.unwrap_or_default().into(), now.into()])
}

/// What is in the trash since `until` or longer, after a location (at first empty), at most `limit`.
pub async fn trash(db: &Db, after: &str, until: Time, limit: u32) -> Result<Vec<Trash>> {
    let rows = db.read(Statement::read(TRASH, [after.into(), until.into(), i64::from(limit).into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(Trash {
                location: cells.text()?,
                digest: cells.optional_digest()?,
                size: cells.count()?,
                trashed_at: cells.time()?,
            })
        })
        .collect()
}

/// Notes that bytes are gone from the trash.
pub fn forget(location: &str) -> Statement {
    Statement::write(FORGET, [location.into()])
}

/// What the database says of all bytes, at one moment.
pub async fn accounted(db: &Db) -> Result<Accounted> {
    let Some(row) = db.read_one(Statement::read(ACCOUNTED, [])).await? else { return Ok(Accounted::default()) };
    let mut cells = row.cells();
    Ok(Accounted { blobs: cells.count()?, trash: cells.count()?, uploads: cells.count()? })
}

fn of(id: Id, place: &Place<'_>) -> Vec<Value> {
    vec![id.into(), place.format.into(), place.package.into(), place.principal.into()]
}

fn upload(row: Row) -> Result<UploadRow> {
    let mut cells = row.cells();
    Ok(UploadRow {
        algorithm: cells.text()?.parse()?,
        written: cells.count()?,
        state: cells.optional_text()?,
        staged: cells.optional_text()?,
        tail: cells.optional_text()?,
        hash: cells.optional_bytes()?,
        writer: cells.optional_text()?,
        writer_until: cells.time()?,
        taken_over: cells.boolean()?,
    })
}
