//! Packages, their versions, the pointers that name some of them, and their artifacts.
//!
//! A version is visible while it is listed or a pointer names it. One that is neither keeps its artifacts, so that what
//! was once served can be served again.

use larder_core::{Digest, Id, Result, Time};

use crate::{Cells, Db, Statement};

statements! {
    FIND = "select id, format, name, source_id, summary, created_at, changed_at from packages where format = $1 and name = $2";
    OF_SOURCE = "select id, format, name, source_id, summary, created_at, changed_at from packages where source_id = $1 order by name";
    LIST = "select id, format, name, source_id, summary, created_at, changed_at from packages
        where (format = $1 or $1 = '*') and name > $2 order by name, format limit $3";
    CHANGED_SINCE = "select name, changed_at from packages where format = $1 and changed_at >= $2
        order by changed_at, name limit $3";
    INSERT = "insert into packages (id, format, name, source_id, summary, created_at, changed_at)
        values ($1, $2, $3, $4, $5, $6, $6)";
    NAME_FREE = "insert into guard (holds) select case when not exists
        (select 1 from packages where format = $1 and name = $2) then 1 end";
    EXISTS = "insert into guard (holds) select case when exists (select 1 from packages where id = $1) then 1 end";
    CHANGED = "update packages set changed_at = $2 where id = $1";
    DESCRIBE = "update packages set summary = $2 where id = $1";
    REMOVE = "delete from packages where id = $1";
    REMOVE_OF_SOURCE = "delete from packages where source_id = $1";

    VISIBLE = "select v.id, v.version, v.display, v.reference, v.stable, v.listed, v.origin, v.folder, v.released_at, v.metadata, a.sha1
        from versions v left join artifacts a on a.version_id = v.id and a.name = $2
        where v.package_id = $1
        and (v.listed = 1 or exists (select 1 from pointers p where p.version_id = v.id))";
    KEYS_OF_SOURCE = "select p.id, p.name, p.format, v.id, v.version, v.reference, v.stable, v.listed, v.origin, v.folder, q.name
        from packages p join versions v on v.package_id = p.id left join pointers q on q.version_id = v.id
        where p.source_id = $1";
    METADATA_OF_SOURCE = "select cast(coalesce(sum(length(v.metadata)), 0) as bigint)
        from packages p join versions v on v.package_id = p.id
        where p.source_id = $1
        and (v.listed = 1 or exists (select 1 from pointers q where q.version_id = v.id))";
    BY_REFERENCE = "select v.id, v.version, v.display, v.reference, v.stable, v.listed, v.origin, v.folder, v.released_at, v.metadata, a.sha1
        from versions v left join artifacts a on a.version_id = v.id and a.name = $3
        where v.package_id = $1 and v.reference = $2 order by v.version";
    KEPT = "select v.id, v.version, v.display, v.reference, v.stable, v.listed, v.origin, v.released_at, q.name,
        a.digest, a.size, a.sha1
        from versions v left join pointers q on q.version_id = v.id
        left join artifacts a on a.version_id = v.id and a.name = $2
        where v.package_id = $1 order by v.released_at desc, v.id desc";
    HAS_VERSION = "select 1 from versions v join packages p on p.id = v.package_id
        where p.format = $1 and p.name = $2 and v.version = $3 limit 1";
    VERSION = "select v.id, v.version, v.display, v.reference, v.stable, v.listed, v.origin, v.folder, v.released_at, v.metadata, a.sha1
        from versions v left join artifacts a on a.version_id = v.id and a.name = $2 where v.id = $1";
    ORIGIN = "select p.id, p.format, p.name, p.source_id, p.summary, p.created_at, p.changed_at
        from packages p join versions v on v.package_id = p.id where v.id = $1";
    VERSION_FREE = "insert into guard (holds) select case when not exists
        (select 1 from versions where package_id = $1 and version = $2) then 1 end";
    METADATA_OF_PACKAGE = "select cast(coalesce(sum(length(metadata)), 0) as bigint) from versions where package_id = $1";
    INSERT_VERSION = "insert into versions
        (id, package_id, version, display, reference, stable, listed, origin, folder, released_at, metadata, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    LIST_AGAIN = "update versions set listed = 1, origin = $2 where id = $1";
    UNLIST = "update versions set listed = 0 where id = $1";
    REMOVE_VERSION = "delete from versions where id = $1";
    REMOVE_UNBUILT = "delete from versions where id = $1 and listed = 0
        and not exists (select 1 from artifacts where version_id = $1)
        and not exists (select 1 from pointers where version_id = $1)";

    BY_POINTER = "select v.id, v.version, v.display, v.reference, v.stable, v.listed, v.origin, v.folder, v.released_at, v.metadata, a.sha1
        from pointers p join versions v on v.id = p.version_id left join artifacts a on a.version_id = v.id and a.name = $3
        where p.package_id = $1 and p.name = $2";
    POINTERS = "select p.name, v.reference, p.changed_at from pointers p join versions v on v.id = p.version_id
        where p.package_id = $1 and p.name > $2 order by p.name limit $3";
    POINTS_AT = "insert into guard (holds) select case when coalesce(
        (select v.reference from pointers p join versions v on v.id = p.version_id where p.package_id = $1 and p.name = $2), '') = $3
        then 1 end";
    POINTER_COUNT_IS = "insert into guard (holds) select case when
        (select count(*) from pointers where version_id = $1) = $2 then 1 end";
    POINTERS_TO = "select name from pointers where version_id = $1 order by name";
    VERSION_EXISTS = "insert into guard (holds) select case when exists (select 1 from versions where id = $1) then 1 end";
    PUT_POINTER = "insert into pointers (package_id, name, version_id, changed_at) values ($1, $2, $3, $4)
        on conflict (package_id, name) do update set version_id = excluded.version_id, changed_at = excluded.changed_at";
    REMOVE_POINTER = "delete from pointers where package_id = $1 and name = $2";

    ARTIFACT = "select digest, size, sha1 from artifacts where version_id = $1 and name = $2";
    INSERT_ARTIFACT = "insert into artifacts (id, version_id, package_id, name, digest, size, sha1, created_at)
        values ($1, $2, (select package_id from versions where id = $2), $3, $4, $5, $6, $7)";
    NOT_BUILT = "insert into guard (holds) select case when exists (select 1 from versions where id = $1)
        and not exists (select 1 from artifacts where version_id = $1 and name = $2) then 1 end";
}

/// The topic under which a change of a package is told to the caches ([`changes`](crate::changes)).
pub fn topic(format: &str, name: &str) -> String {
    format!("package:{format}:{name}")
}

/// A named thing in one format.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its identity.
    pub id: Id,
    /// The id of its format.
    pub format: String,
    /// Its name in that format.
    pub name: String,
    /// The one source that it comes from.
    pub source_id: Option<Id>,
    /// JSON: what lists and searches show of it.
    pub summary: String,
    /// When it first appeared.
    pub created_at: Time,
    /// When one of its versions last changed.
    pub changed_at: Time,
}

fn package(mut cells: Cells) -> Result<Package> {
    Ok(Package {
        id: cells.id()?,
        format: cells.text()?,
        name: cells.text()?,
        source_id: cells.optional_id()?,
        summary: cells.text()?,
        created_at: cells.time()?,
        changed_at: cells.time()?,
    })
}

/// The package of this name.
pub async fn find(db: &Db, format: &str, name: &str) -> Result<Option<Package>> {
    let row = db.read_one(Statement::read(FIND, [format.into(), name.into()])).await?;
    row.map(|row| package(row.cells())).transpose()
}

/// The packages of a source, by name.
pub async fn of_source(db: &Db, source: Id) -> Result<Vec<Package>> {
    let rows = db.read(Statement::read(OF_SOURCE, [source.into()])).await?;
    rows.into_iter().map(|row| package(row.cells())).collect()
}

/// A page of the packages of a format (`*`: of all), by name, those after `after`, `limit` at most.
pub async fn list(db: &Db, format: &str, after: &str, limit: i64) -> Result<Vec<Package>> {
    let rows = db.read(Statement::read(LIST, [format.into(), after.into(), limit.into()])).await?;
    rows.into_iter().map(|row| package(row.cells())).collect()
}

/// The packages of a format that changed since a moment, and when they did last, the oldest change first.
pub async fn changed_since(db: &Db, format: &str, since: Time, limit: i64) -> Result<Vec<(String, Time)>> {
    let rows = db.read(Statement::read(CHANGED_SINCE, [format.into(), since.into(), limit.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok((cells.text()?, cells.time()?))
        })
        .collect()
}

/// Adds a package. Goes with [`name_free`].
pub fn insert(package: &Package) -> Statement {
    Statement::write(
        INSERT,
        [
            package.id.into(),
            package.format.as_str().into(),
            package.name.as_str().into(),
            package.source_id.into(),
            package.summary.as_str().into(),
            package.created_at.into(),
        ],
    )
}

/// Guard `package name is free`.
pub fn name_free(format: &str, name: &str) -> Statement {
    Statement::guard("package name is free", NAME_FREE, [format.into(), name.into()])
}

/// Guard `package exists`.
pub fn exists(id: Id) -> Statement {
    Statement::guard("package exists", EXISTS, [id.into()])
}

/// Something of the package changed.
pub fn changed(id: Id, at: Time) -> Statement {
    Statement::write(CHANGED, [id.into(), at.into()])
}

/// Replaces what lists and searches show of it.
pub fn describe(id: Id, summary: &str) -> Statement {
    Statement::write(DESCRIBE, [id.into(), summary.into()])
}

/// Takes a package away with everything of it; its blobs are collected later.
pub fn remove(id: Id) -> Statement {
    Statement::write(REMOVE, [id.into()])
}

/// Takes all packages of a source away.
pub fn remove_of_source(source: Id) -> Statement {
    Statement::write(REMOVE_OF_SOURCE, [source.into()])
}

/// A published release, or one of its predecessors under the same name.
#[derive(Clone, Debug)]
pub struct Version {
    /// Its identity.
    pub id: Id,
    /// Normal form.
    pub version: String,
    /// As its author wrote it.
    pub display: String,
    /// What its bytes are made from.
    pub reference: String,
    /// Whether it is a stable release.
    pub stable: bool,
    /// Whether it is visible without a pointer.
    pub listed: bool,
    /// The ref or the upload that it came from.
    pub origin: String,
    /// The folder of the tree that it is made of, without slashes at its ends; empty for all of it.
    pub folder: String,
    /// When it was released.
    pub released_at: Time,
    /// JSON: the format's own.
    pub metadata: String,
    /// SHA-1 of its artifact in hex, once that is built.
    pub sha1: Option<String>,
}

fn version(mut cells: Cells) -> Result<Version> {
    Ok(Version {
        id: cells.id()?,
        version: cells.text()?,
        display: cells.text()?,
        reference: cells.text()?,
        stable: cells.boolean()?,
        listed: cells.boolean()?,
        origin: cells.text()?,
        folder: cells.text()?,
        released_at: cells.time()?,
        metadata: cells.text()?,
        sha1: cells.optional_text()?,
    })
}

/// The visible versions of a package, in no order, each with its artifact of this name.
pub async fn visible(db: &Db, package: Id, artifact: &str) -> Result<Vec<Version>> {
    let rows = db.read(Statement::read(VISIBLE, [package.into(), artifact.into()])).await?;
    rows.into_iter().map(|row| version(row.cells())).collect()
}

/// The versions of a package with this reference, visible or not: two tags may name one commit.
pub async fn by_reference(db: &Db, package: Id, reference: &str, artifact: &str) -> Result<Vec<Version>> {
    let rows = db.read(Statement::read(BY_REFERENCE, [package.into(), reference.into(), artifact.into()])).await?;
    rows.into_iter().map(|row| version(row.cells())).collect()
}

/// A version as people who look after a package see it.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its identity.
    pub id: Id,
    /// Normal form.
    pub version: String,
    /// As its author wrote it.
    pub display: String,
    /// What its bytes are made from.
    pub reference: String,
    /// Whether it is a stable release.
    pub stable: bool,
    /// Whether it is visible without a pointer.
    pub listed: bool,
    /// The ref or the upload that it came from.
    pub origin: String,
    /// When it was released.
    pub released_at: Time,
    /// The pointer that names it.
    pub pointer: Option<String>,
    /// Its artifact, once that is built.
    pub artifact: Option<Artifact>,
}

impl Kept {
    /// Whether it is in the metadata.
    pub fn visible(&self) -> bool {
        self.listed || self.pointer.is_some()
    }
}

/// Every version of a package, visible or not, the newest first, each with its artifact of this name. One that several
/// pointers name comes once for each.
pub async fn kept(db: &Db, package: Id, artifact: &str) -> Result<Vec<Kept>> {
    let rows = db.read(Statement::read(KEPT, [package.into(), artifact.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(Kept {
                id: cells.id()?,
                version: cells.text()?,
                display: cells.text()?,
                reference: cells.text()?,
                stable: cells.boolean()?,
                listed: cells.boolean()?,
                origin: cells.text()?,
                released_at: cells.time()?,
                pointer: cells.optional_text()?,
                artifact: match (cells.optional_digest()?, cells.optional_count()?, cells.optional_text()?) {
                    (Some(digest), Some(size), Some(sha1)) => Some(Artifact { digest, size, sha1 }),
                    _ => None,
                },
            })
        })
        .collect()
}

/// Whether a package has a version of this normal form, visible or not.
pub async fn has_version(db: &Db, format: &str, name: &str, version: &str) -> Result<bool> {
    let row = db.read_one(Statement::read(HAS_VERSION, [format.into(), name.into(), version.into()])).await?;
    Ok(row.is_some())
}

/// The version with this id, and the package that it is of.
pub async fn version_with_package(db: &Db, id: Id, artifact: &str) -> Result<Option<(Version, Package)>> {
    let found = db.read_one(Statement::read(VERSION, [id.into(), artifact.into()])).await?;
    let of = db.read_one(Statement::read(ORIGIN, [id.into()])).await?;
    let (Some(found), Some(of)) = (found, of) else { return Ok(None) };
    Ok(Some((version(found.cells())?, package(of.cells())?)))
}

/// How many characters of metadata the visible versions of a source have together.
pub async fn metadata_of_source(db: &Db, source: Id) -> Result<u64> {
    let row = db.read_one(Statement::read(METADATA_OF_SOURCE, [source.into()])).await?;
    row.map_or(Ok(0), |row| row.cells().count())
}

/// How many characters of metadata all versions of a package have together.
pub async fn metadata_of_package(db: &Db, package: Id) -> Result<u64> {
    let row = db.read_one(Statement::read(METADATA_OF_PACKAGE, [package.into()])).await?;
    row.map_or(Ok(0), |row| row.cells().count())
}

/// Guard `version is free`: the package has none of this normal form, whatever it is made from.
pub fn version_free(package: Id, version: &str) -> Statement {
    Statement::guard("version is free", VERSION_FREE, [package.into(), version.into()])
}

/// What a sync needs to know of a version that is here already.
#[derive(Clone, Debug)]
pub struct VersionKey {
    /// Its package.
    pub package_id: Id,
    /// The package's name.
    pub package: String,
    /// The package's format.
    pub format: String,
    /// Its identity.
    pub id: Id,
    /// Normal form.
    pub version: String,
    /// The commit.
    pub reference: String,
    /// Whether it is a stable release.
    pub stable: bool,
    /// Whether it is visible without a pointer.
    pub listed: bool,
    /// The ref that it came from.
    pub origin: String,
    /// The folder of the tree that it is made of; empty for all of it.
    pub folder: String,
    /// The pointer that names it.
    pub pointer: Option<String>,
}

impl VersionKey {
    /// Whether it is in the metadata.
    pub fn visible(&self) -> bool {
        self.listed || self.pointer.is_some()
    }
}

/// Every version that ever came from a source.
pub async fn keys_of_source(db: &Db, source: Id) -> Result<Vec<VersionKey>> {
    let rows = db.read(Statement::read(KEYS_OF_SOURCE, [source.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(VersionKey {
                package_id: cells.id()?,
                package: cells.text()?,
                format: cells.text()?,
                id: cells.id()?,
                version: cells.text()?,
                reference: cells.text()?,
                stable: cells.boolean()?,
                listed: cells.boolean()?,
                origin: cells.text()?,
                folder: cells.text()?,
                pointer: cells.optional_text()?,
            })
        })
        .collect()
}

/// Adds a version.
pub fn insert_version(package: Id, version: &Version, at: Time) -> Statement {
    Statement::write(
        INSERT_VERSION,
        [
            version.id.into(),
            package.into(),
            version.version.as_str().into(),
            version.display.as_str().into(),
            version.reference.as_str().into(),
            version.stable.into(),
            version.listed.into(),
            version.origin.as_str().into(),
            version.folder.as_str().into(),
            version.released_at.into(),
            version.metadata.as_str().into(),
            at.into(),
        ],
    )
}

/// Lists a version that is here already, now from the ref `origin`.
pub fn list_again(id: Id, origin: &str) -> Statement {
    Statement::write(LIST_AGAIN, [id.into(), origin.into()])
}

/// Takes a version off the list.
pub fn unlist(id: Id) -> Statement {
    Statement::write(UNLIST, [id.into()])
}

/// Takes a version away with its artifacts.
pub fn remove_version(id: Id) -> Statement {
    Statement::write(REMOVE_VERSION, [id.into()])
}

/// Forgets a version that nobody can see and that was never built.
pub fn remove_unbuilt(id: Id) -> Statement {
    Statement::write(REMOVE_UNBUILT, [id.into()])
}

/// The version that a pointer names, with its artifact of this name.
pub async fn by_pointer(db: &Db, package: Id, pointer: &str, artifact: &str) -> Result<Option<Version>> {
    let statement = Statement::read(BY_POINTER, [package.into(), pointer.into(), artifact.into()]);
    db.read_one(statement).await?.map(|row| version(row.cells())).transpose()
}

/// A movable name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// The name.
    pub name: String,
    /// The reference of the version that it names.
    pub reference: String,
    /// When it last moved.
    pub changed_at: Time,
}

/// A page of the pointers of a package, by name as the database sorts it, those after `after`, `limit` at most.
pub async fn pointers(db: &Db, package: Id, after: &str, limit: i64) -> Result<Vec<Pointer>> {
    let rows = db.read(Statement::read(POINTERS, [package.into(), after.into(), limit.into()])).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok(Pointer { name: cells.text()?, reference: cells.text()?, changed_at: cells.time()? })
        })
        .collect()
}

/// The names of the pointers at a version.
pub async fn pointers_to(db: &Db, version: Id) -> Result<Vec<String>> {
    let rows = db.read(Statement::read(POINTERS_TO, [version.into()])).await?;
    rows.into_iter().map(|row| row.cells().text()).collect()
}

/// Guard `version exists`.
pub fn version_exists(id: Id) -> Statement {
    Statement::guard("version exists", VERSION_EXISTS, [id.into()])
}

/// Guard `pointer is unmoved`: it names the version with this reference; empty for no such pointer.
pub fn points_at(package: Id, pointer: &str, reference: &str) -> Statement {
    Statement::guard("pointer is unmoved", POINTS_AT, [package.into(), pointer.into(), reference.into()])
}

/// Guard `pointers are as many`: so many names point at a version. With [`points_at`] for each of them it is these.
pub fn pointer_count_is(version: Id, count: usize) -> Statement {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    Statement::guard("pointers are as many", POINTER_COUNT_IS, [version.into(), count.into()])
}

/// Points a name at a version.
pub fn put_pointer(package: Id, name: &str, version: Id, at: Time) -> Statement {
    Statement::write(PUT_POINTER, [package.into(), name.into(), version.into(), at.into()])
}

/// Takes a name away.
pub fn remove_pointer(package: Id, name: &str) -> Statement {
    Statement::write(REMOVE_POINTER, [package.into(), name.into()])
}

/// A file of a version: a name that points at a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-1 in hex.
    pub sha1: String,
}

/// The artifact of this name, if it was ever built.
pub async fn artifact(db: &Db, version: Id, name: &str) -> Result<Option<Artifact>> {
    let row = db.read_one(Statement::read(ARTIFACT, [version.into(), name.into()])).await?;
    row.map(|row| {
        let mut cells = row.cells();
        Ok(Artifact { digest: cells.digest()?, size: cells.count()?, sha1: cells.text()? })
    })
    .transpose()
}

/// Adds an artifact. Goes with [`not_built`].
pub fn insert_artifact(id: Id, version: Id, name: &str, artifact: &Artifact, at: Time) -> Statement {
    let size = i64::try_from(artifact.size).unwrap_or(i64::MAX);
    Statement::write(
        INSERT_ARTIFACT,
        [
            id.into(),
            version.into(),
            name.into(),
            artifact.digest.into(),
            size.into(),
            artifact.sha1.as_str().into(),
            at.into(),
        ],
    )
}

/// Guard `artifact is not built yet`: the version is there, and this artifact of it is not.
pub fn not_built(version: Id, name: &str) -> Statement {
    Statement::guard("artifact is not built yet", NOT_BUILT, [version.into(), name.into()])
}
