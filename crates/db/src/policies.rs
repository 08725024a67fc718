//! Policies: the rules for the packages that a pattern names. What a rule means is said where it is kept.

use larder_core::{Id, Result, Time};

use crate::{Cells, Db, Statement};

statements! {
    LIST = "select id, format, pattern, rules, created_at from policies where (format = $1 or $1 = '*') order by format, pattern";
    PUT = "insert into policies (id, format, pattern, rules, created_at) values ($1, $2, $3, $4, $5)
        on conflict (format, pattern) do update set rules = excluded.rules";
    REMOVE = "delete from policies where format = $1 and pattern = $2";
    EXISTS = "insert into guard (holds) select case when exists
        (select 1 from policies where format = $1 and pattern = $2) then 1 end";
    RULES_ARE = "insert into guard (holds) select case when coalesce(
        (select rules from policies where format = $1 and pattern = $2), '') = $3 then 1 end";
}

/// The topic under which changes of policies are told.
pub const TOPIC: &str = "policies";

/// Rules for the packages that a pattern names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRow {
    /// Its identity.
    pub id: Id,
    /// The id of a format.
    pub format: String,
    /// The package names that it is about.
    pub pattern: String,
    /// JSON: the rules.
    pub rules: String,
    /// When it was first made.
    pub created_at: Time,
}

/// The policies of a format (`*`: of all), by pattern. There are few: people write them by hand.
pub async fn list(db: &Db, format: &str) -> Result<Vec<PolicyRow>> {
    let rows = db.read(Statement::read(LIST, [format.into()])).await?;
    rows.into_iter().map(|row| policy(row.cells())).collect()
}

/// Makes a policy, or replaces the rules of the one with this pattern.
pub fn put(policy: &PolicyRow) -> Statement {
    let PolicyRow { id, format, pattern, rules, created_at } = policy;
    Statement::write(PUT, [(*id).into(), format.into(), pattern.into(), rules.into(), (*created_at).into()])
}

/// Guard `policy exists`.
pub fn exists(format: &str, pattern: &str) -> Statement {
    Statement::guard("policy exists", EXISTS, [format.into(), pattern.into()])
}

/// Guard `policy unchanged`: its rules are still these, or there still is none.
pub fn rules_are(format: &str, pattern: &str, rules: Option<&str>) -> Statement {
    Statement::guard("policy unchanged", RULES_ARE, [format.into(), pattern.into(), rules.unwrap_or_default().into()])
}

/// Takes a policy away; goes with [`exists`].
pub fn remove(format: &str, pattern: &str) -> Statement {
    Statement::write(REMOVE, [format.into(), pattern.into()])
}

fn policy(mut cells: Cells) -> Result<PolicyRow> {
    Ok(PolicyRow {
        id: cells.id()?,
        format: cells.text()?,
        pattern: cells.text()?,
        rules: cells.text()?,
        created_at: cells.time()?,
    })
}
