//! Sources, and the refs of Git sources as the last sync saw them.

use std::time::Duration;

use larder_core::{Id, Result, Time};

use crate::{Cells, Db, Statement};

statements! {
    FIND = "select id, name, kind, url, credential_id, every_seconds, settings, created_at, state, problem, synced_at, report, position,
        parent_id, archived
        from sources where name = $1 or id = $1";
    LIST = "select id, name, kind, url, credential_id, every_seconds, settings, created_at, state, problem, synced_at, report, position,
        parent_id, archived
        from sources order by name";
    INSERT = "insert into sources (id, name, kind, url, credential_id, every_seconds, settings, created_at, state)
        values ($1, $2, $3, $4, $5, $6, $7, $8, 'new')";
    NAME_FREE = "insert into guard (holds) select case when not exists
        (select 1 from sources where name = $1) then 1 end";
    EXISTS = "insert into guard (holds) select case when exists (select 1 from sources where id = $1) then 1 end";
    SYNCED = "update sources set state = 'ok', problem = null, synced_at = $2, report = $3 where id = $1";
    REPORTED = "update sources set state = 'ok', problem = null, report = $2 where id = $1";
    TROUBLED = "update sources set state = $2, problem = $3 where id = $1";
    ADOPT = "update sources set parent_id = $2, archived = $3 where id = $1";
    MOVED = "update sources set url = $2 where id = $1";
    PLACE = "update sources set position = $2 where id = $1";
    SAME = "insert into guard (holds) select case when exists (select 1 from sources where id = $1 and url = $2
        and coalesce(credential_id, '') = $3 and every_seconds = $4 and settings = $5) then 1 end";
    SET = "update sources set url = $2, credential_id = $3, every_seconds = $4, settings = $5 where id = $1";
    SET_BELOW = "update sources set credential_id = $2 where parent_id = $1 and coalesce(credential_id, '') = $3";
    KEEPS = "select count(distinct a.package_id), count(distinct a.version_id),
        (select cast(coalesce(sum(blob.size), 0) as bigint) from
            (select distinct b.digest, b.size from artifacts b join packages q on q.id = b.package_id where q.source_id = $1) blob)
        from artifacts a join packages p on p.id = a.package_id where p.source_id = $1";
    KEEPS_NOTHING = "insert into guard (holds) select case when not exists (select 1 from artifacts a
        join packages p on p.id = a.package_id where p.source_id = $1) then 1 end";
    REMOVE = "delete from sources where id = $1";
    REFS = "select name, commit_id, skipped, warning, changed_at from source_refs where source_id = $1 order by name";
    PUT_REF = "insert into source_refs (source_id, name, commit_id, skipped, warning, changed_at)
        values ($1, $2, $3, $4, $5, $6)
        on conflict (source_id, name) do update set commit_id = excluded.commit_id, skipped = excluded.skipped,
        warning = excluded.warning, changed_at = excluded.changed_at";
    UNSETTLE = "update source_refs set commit_id = '' where source_id = $1";
    FORGET_SKIPPED = "delete from source_refs where skipped is not null";
    REMOVE_REF = "delete from source_refs where source_id = $1 and name = $2";
}

/// Where packages come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its identity; also the name of its local copy.
    pub id: Id,
    /// The name that people gave it.
    pub name: String,
    /// `git`, or the id of the format whose upstream registry it is.
    pub kind: String,
    /// Where it is, without any secret.
    pub url: String,
    /// What opens it.
    pub credential_id: Option<Id>,
    /// How often it is looked at.
    pub every: Duration,
    /// JSON: what only this kind of source knows.
    pub settings: String,
    /// When it was added.
    pub created_at: Time,
    /// How it is.
    pub state: SourceState,
    /// Why it failed or is held, for people.
    pub problem: Option<String>,
    /// When a sync last changed something here.
    pub synced_at: Option<Time>,
    /// JSON: counts of that sync.
    pub report: Option<String>,
    /// Where it stands among the upstreams of its format; those without a place come after the others.
    pub position: Option<i64>,
    /// The forge that found it.
    pub parent_id: Option<Id>,
    /// Whether its owner keeps it for reading only.
    pub archived: bool,
}

/// How a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Never synced.
    New,
    /// The last sync went well.
    Ok,
    /// The last sync failed; what is here stays.
    Failed,
    /// The last sync would have dropped too much; what is here stays until somebody decides.
    Held,
    /// Somebody decided: the next sync may drop as much as it wants.
    Released,
}

impl SourceState {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Held => "held",
            Self::Released => "released",
        }
    }

    fn read(text: &str) -> Self {
        match text {
            "ok" => Self::Ok,
            "failed" => Self::Failed,
            "held" => Self::Held,
            "released" => Self::Released,
            _ => Self::New,
        }
    }
}

fn source(mut cells: Cells) -> Result<Source> {
    Ok(Source {
        id: cells.id()?,
        name: cells.text()?,
        kind: cells.text()?,
        url: cells.text()?,
        credential_id: cells.optional_id()?,
        every: Duration::from_secs(cells.count()?),
        settings: cells.text()?,
        created_at: cells.time()?,
        state: SourceState::read(&cells.text()?),
        problem: cells.optional_text()?,
        synced_at: cells.optional_time()?,
        report: cells.optional_text()?,
        position: cells.optional_int()?,
        parent_id: cells.optional_id()?,
        archived: cells.boolean()?,
    })
}

/// The source with this name or id.
pub async fn find(db: &Db, name_or_id: &str) -> Result<Option<Source>> {
    db.read_one(Statement::read(FIND, [name_or_id.into()])).await?.map(|row| source(row.cells())).transpose()
}

/// Every source, by name.
pub async fn list(db: &Db) -> Result<Vec<Source>> {
    db.read(Statement::read(LIST, [])).await?.into_iter().map(|row| source(row.cells())).collect()
}

/// Adds a source that was never synced. An upstream comes after those that are there.
pub fn insert(source: &Source) -> Statement {
    Statement::write(
        INSERT,
        [
            source.id.into(),
            source.name.as_str().into(),
            source.kind.as_str().into(),
            source.url.as_str().into(),
            source.credential_id.into(),
            seconds(source.every).into(),
            source.settings.as_str().into(),
            source.created_at.into(),
        ],
    )
}

/// Guard `source name is free`.
pub fn name_free(name: &str) -> Statement {
    Statement::guard("source name is free", NAME_FREE, [name.into()])
}

/// Guard `source exists`.
pub fn exists(id: Id) -> Statement {
    Statement::guard("source exists", EXISTS, [id.into()])
}

/// A sync changed something, or ended a trouble.
pub fn synced(id: Id, at: Time, report: &str) -> Statement {
    Statement::write(SYNCED, [id.into(), at.into(), report.into()])
}

/// A sync went well and changed nothing but what it has to tell.
pub fn reported(id: Id, report: &str) -> Statement {
    Statement::write(REPORTED, [id.into(), report.into()])
}

/// A sync failed or is held, or a held one is released.
pub fn troubled(id: Id, state: SourceState, problem: &str) -> Statement {
    Statement::write(TROUBLED, [id.into(), state.as_str().into(), problem.into()])
}

/// Makes a source one that a forge found, and says whether its owner keeps it for reading only.
pub fn adopt(id: Id, parent: Id, archived: bool) -> Statement {
    Statement::write(ADOPT, [id.into(), parent.into(), archived.into()])
}

/// A source is elsewhere now.
pub fn moved(id: Id, url: &str) -> Statement {
    Statement::write(MOVED, [id.into(), url.into()])
}

/// Gives an upstream its place among those of its format, the lowest first.
pub fn place(id: Id, position: i64) -> Statement {
    Statement::write(PLACE, [id.into(), position.into()])
}

/// Guard `source is the same`: nobody has changed what [`set`] changes since it was read.
pub fn is_same(source: &Source) -> Statement {
    let credential = source.credential_id.map(|id| id.to_string()).unwrap_or_default();
    let values = [
        source.id.into(),
        source.url.as_str().into(),
        credential.into(),
        seconds(source.every).into(),
        source.settings.as_str().into(),
    ];
    Statement::guard("source is the same", SAME, values)
}

/// Changes where a source is, what opens it, how often it is looked at and its settings to those of `source`. Goes with
/// [`is_same`].
pub fn set(source: &Source) -> Statement {
    let values = [
        source.id.into(),
        source.url.as_str().into(),
        source.credential_id.into(),
        seconds(source.every).into(),
        source.settings.as_str().into(),
    ];
    Statement::write(SET, values)
}

/// Gives another credential to those sources that a forge found and that had the same one as it.
pub fn set_credential_below(forge: Id, before: Option<Id>, after: Option<Id>) -> Statement {
    let before = before.map(|id| id.to_string()).unwrap_or_default();
    Statement::write(SET_BELOW, [forge.into(), after.into(), before.into()])
}

fn seconds(every: Duration) -> i64 {
    i64::try_from(every.as_secs()).unwrap_or(i64::MAX)
}

/// What is kept of a source's packages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Packages with files that are kept.
    pub packages: u64,
    /// Versions with files that are kept.
    pub versions: u64,
    /// The bytes of these files, each counted once.
    pub bytes: u64,
}

/// What is kept of a source's packages.
pub async fn kept(db: &Db, source: Id) -> Result<Kept> {
    let Some(row) = db.read_one(Statement::read(KEEPS, [source.into()])).await? else { return Ok(Kept::default()) };
    let mut cells = row.cells();
    Ok(Kept { packages: cells.count()?, versions: cells.count()?, bytes: cells.count()? })
}

/// Guard `source keeps nothing`: no file of any of its packages is kept.
pub fn keeps_nothing(id: Id) -> Statement {
    Statement::guard("source keeps nothing", KEEPS_NOTHING, [id.into()])
}

/// Takes a source away. Its packages must be gone before, in the same batch.
pub fn remove(id: Id) -> Statement {
    Statement::write(REMOVE, [id.into()])
}

/// A ref as the last sync saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRef {
    /// `refs/tags/…` or `refs/heads/…`
    pub name: String,
    /// The commit in hex.
    pub commit: String,
    /// Why it is not in any package, for people.
    pub skipped: Option<String>,
    /// What is odd about it, for people.
    pub warning: Option<String>,
    /// When it last moved or changed its outcome.
    pub changed_at: Time,
}

/// The refs of a source, by name.
pub async fn refs(db: &Db, source: Id) -> Result<Vec<SourceRef>> {
    let rows = db.read(Statement::read(REFS, [source.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(SourceRef {
                name: cells.text()?,
                commit: cells.text()?,
                skipped: cells.optional_text()?,
                warning: cells.optional_text()?,
                changed_at: cells.time()?,
            })
        })
        .collect()
}

/// Remembers a ref.
pub fn put_ref(source: Id, seen: &SourceRef) -> Statement {
    Statement::write(
        PUT_REF,
        [
            source.into(),
            seen.name.as_str().into(),
            seen.commit.as_str().into(),
            seen.skipped.clone().into(),
            seen.warning.clone().into(),
            seen.changed_at.into(),
        ],
    )
}

/// Has the next sync look at every ref again, as if all of them had moved.
pub fn unsettle(source: Id) -> Statement {
    Statement::write(UNSETTLE, [source.into()])
}

/// Forgets every ref that was skipped, of all sources, so that their next syncs look at them again.
pub fn forget_skipped() -> Statement {
    Statement::write(FORGET_SKIPPED, [])
}

/// Forgets a ref.
pub fn remove_ref(source: Id, name: &str) -> Statement {
    Statement::write(REMOVE_REF, [source.into(), name.into()])
}
