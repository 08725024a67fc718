//! The `Last-Modified` of a document as each view of it has it. Clients compare it for equality only, and a client
//! may keep one cache for several tokens: so no two different documents of one path ever carry the same stamp, and
//! the stamps of one view only grow.
//!
//! A stamp that is not ahead of the clock is not waited for until it has reached the disk. One that a loss of power takes
//! back is not given a second time: the next one is not before the time at which the machine runs again.

use larder_core::{Digest, Error, Kind, Result};

use crate::{Batch, CommitError, Db, Statement};

statements! {
    FIND = "select digest, at from stamps where path = $1 and view = $2";
    GIVE = "insert into stamps (path, view, digest, at)
        select cast($1 as text), cast($2 as text), cast($3 as text),
            case when cast($4 as bigint) > coalesce(max(at), 0) then cast($4 as bigint) else max(at) + 1 end
        from stamps where path = $1
        on conflict (path, view) do update set digest = excluded.digest, at = excluded.at
        where stamps.digest <> excluded.digest";
    SETTLE = "update stamps set at = at where path = $1 and view = $2";
}

/// How often it starts anew when another replica gives a stamp for the same path at the same moment.
const ATTEMPTS: u32 = 8;

/// The stamp, in whole seconds since 1970, of the document with this digest at `path` in `view`: the one that it has,
/// or a new one that is later than every other of this path, and not before now.
pub async fn stamp(db: &Db, path: &str, view: &str, digest: Digest) -> Result<i64> {
    if let Some(at) = known(db, path, view, digest).await? {
        return Ok(at);
    }
    for _ in 0..ATTEMPTS {
        let now = db.host().now().seconds();
        let batch = Batch::new()
            .with(Statement::write(GIVE, [path.into(), view.into(), digest.into(), now.into()]))
            .with(Statement::read(FIND, [path.into(), view.into()]));
        match db.commit_lightly(batch).await {
            Ok(mut done) => {
                let row = done.pop().and_then(|found| found.rows.into_iter().next());
                let mut cells = row.ok_or_else(|| vanished(path))?.cells();
                cells.text()?;
                let at = cells.int()?;
                if at > now {
                    db.commit(Statement::write(SETTLE, [path.into(), view.into()]).into()).await?;
                }
                return Ok(at);
            }
            // PostgreSQL may tell of the race as a duplicate of (path, at) rather than try again by itself.
            Err(CommitError::Other(error)) if error.kind() == Kind::Conflict => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::new(Kind::Unavailable, format!("too many changes of `{path}` at once; try again")))
}

async fn known(db: &Db, path: &str, view: &str, digest: Digest) -> Result<Option<i64>> {
    let Some(row) = db.read_one(Statement::read(FIND, [path.into(), view.into()])).await? else {
        return Ok(None);
    };
    let mut cells = row.cells();
    Ok((cells.digest()? == digest).then_some(cells.int()?))
}

fn vanished(path: &str) -> Error {
    Error::internal("stamping a document", format!("the stamp of `{path}` is not there right after it was written"))
}
