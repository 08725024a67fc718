//! Grants: what each principal may do. Deciding with them is `larder-auth`'s.

use larder_core::{
    Error, Id, Result, Time,
    grant::{Grant, PrincipalName},
};

use crate::{Cells, Db, Statement};

statements! {
    OF = "select actions, format, pattern from grants where principal = $1 order by actions, format, pattern";
    LIST = "select principal, actions, format, pattern from grants
        where (principal, actions, format, pattern) > ($1, $2, $3, $4)
        order by principal, actions, format, pattern limit $5";
    INSERT = "insert into grants (id, principal, actions, format, pattern, created_at) values ($1, $2, $3, $4, $5, $6)
        on conflict (principal, actions, format, pattern) do nothing";
    REMOVE = "delete from grants where principal = $1 and actions = $2 and format = $3 and pattern = $4";
    REMOVE_ALL = "delete from grants where principal = $1";
    IS_NEW = "insert into guard (holds) select case when (not exists (
        select 1 from grants where principal = $1 and actions = $2 and format = $3 and pattern = $4)) then 1 end";
    IS_THERE = "insert into guard (holds) select case when (exists (
        select 1 from grants where principal = $1 and actions = $2 and format = $3 and pattern = $4)) then 1 end";
    HAS_ROOM = "insert into guard (holds) select case when (
        (select count(*) from grants where principal = $1) < cast($2 as bigint)) then 1 end";
}

/// Everything that a principal may do, sorted, without doubles.
pub async fn of(db: &Db, principal: &PrincipalName) -> Result<Vec<Grant>> {
    let rows = db.read(Statement::read(OF, [principal.to_string().into()])).await?;
    let mut grants = rows.into_iter().map(|row| required_grant(&mut row.cells())).collect::<Result<Vec<_>>>()?;
    grants.sort_unstable();
    Ok(grants)
}

/// All grants that come after `after`, by principal, at most `limit`.
pub async fn list(db: &Db, after: Option<&(PrincipalName, Grant)>, limit: u32) -> Result<Vec<(PrincipalName, Grant)>> {
    let mut values = match after {
        Some((principal, grant)) => key(principal, grant).to_vec(),
        None => vec!["".into(); 4],
    };
    values.push(i64::from(limit).into());
    let rows = db.read(Statement::read(LIST, values)).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            let principal = cells.text()?.parse().map_err(damaged)?;
            Ok((principal, required_grant(&mut cells)?))
        })
        .collect()
}

/// Adds a grant; one that is there already stays as it is.
pub fn insert(id: Id, principal: &PrincipalName, grant: &Grant, at: Time) -> Statement {
    let [principal, actions, format, pattern] = key(principal, grant);
    Statement::write(INSERT, [id.into(), principal, actions, format, pattern, at.into()])
}

/// Takes a grant away.
pub fn remove(principal: &PrincipalName, grant: &Grant) -> Statement {
    Statement::write(REMOVE, key(principal, grant))
}

/// Takes all grants of a principal away.
pub fn remove_all(principal: &PrincipalName) -> Statement {
    Statement::write(REMOVE_ALL, [principal.to_string().into()])
}

/// Guard `grant_is_new`: the principal does not have this very grant.
pub fn is_new(principal: &PrincipalName, grant: &Grant) -> Statement {
    Statement::guard("grant_is_new", IS_NEW, key(principal, grant))
}

/// Guard `grant_is_there`: the principal has this very grant.
pub fn is_there(principal: &PrincipalName, grant: &Grant) -> Statement {
    Statement::guard("grant_is_there", IS_THERE, key(principal, grant))
}

/// Guard `grants_have_room`: the principal has fewer than `most` grants.
pub fn have_room(principal: &PrincipalName, most: u32) -> Statement {
    Statement::guard("grants_have_room", HAS_ROOM, [principal.to_string().into(), i64::from(most).into()])
}

fn key(principal: &PrincipalName, grant: &Grant) -> [crate::Value; 4] {
    [
        principal.to_string().into(),
        grant.actions.to_string().into(),
        grant.format.as_deref().unwrap_or("*").into(),
        grant.pattern.as_str().into(),
    ]
}

/// Reads actions, format and pattern; `None` if they are NULL, as an outer join gives them.
pub(crate) fn optional_grant(cells: &mut Cells) -> Result<Option<Grant>> {
    let (actions, format, pattern) = (cells.optional_text()?, cells.optional_text()?, cells.optional_text()?);
    let (Some(actions), Some(format), Some(pattern)) = (actions, format, pattern) else {
        return Ok(None);
    };
    format!("{actions}:{format}:{pattern}").parse().map(Some).map_err(damaged)
}

fn required_grant(cells: &mut Cells) -> Result<Grant> {
    optional_grant(cells)?.ok_or_else(|| Error::internal("reading grants", "a grant is NULL"))
}

/// What stands in the table was checked when it was written.
fn damaged(error: Error) -> Error {
    Error::internal("reading grants", error)
}
