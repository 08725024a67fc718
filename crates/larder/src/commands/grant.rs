//! `larder grant`: add, list, remove.

use anyhow::Result;
use larder_auth::grants;
use larder_core::grant::{Grant, PrincipalName};
use serde_json::json;

use super::Desk;
use crate::{
    cli::{GrantArgs, GrantCommand},
    output::Table,
};

/// How many grants are read at once.
const PAGE: u32 = 500;

pub async fn run(desk: &Desk, command: GrantCommand) -> Result<()> {
    let (db, actor) = (&desk.house.db, &desk.actor);
    match command {
        GrantCommand::Add(GrantArgs { principal, grant }) => {
            desk.check_grants(std::slice::from_ref(&grant))?;
            let added = grants::add(db, actor, &principal, &grant).await?;
            let line = if added { "" } else { " already" };
            let document = json!({ "principal": principal.to_string(), "grant": grant.to_string(), "added": added });
            desk.out.either(&document, format!("{principal} may{line} {grant}."))?;
        }
        GrantCommand::List => list(desk).await?,
        GrantCommand::Remove(GrantArgs { principal, grant }) => {
            grants::remove(db, actor, &principal, &grant).await?;
            let document = json!({ "principal": principal.to_string(), "grant": grant.to_string(), "removed": true });
            desk.out.either(&document, format!("{principal} has the grant {grant} no more."))?;
        }
    }
    Ok(())
}

async fn list(desk: &Desk) -> Result<()> {
    let all = every_grant(desk).await?;
    if desk.out.wants_json() {
        let documents: Vec<_> = all
            .iter()
            .map(|(principal, grant)| json!({ "principal": principal.to_string(), "grant": grant.to_string() }))
            .collect();
        return Ok(desk.out.document(&documents)?);
    }
    if all.is_empty() {
        return Ok(desk
            .out
            .line("Nobody may do anything yet: `larder token create NAME` makes a token that may read.")?);
    }
    let mut table = Table::new(["PRINCIPAL", "GRANT"]);
    for (principal, grant) in &all {
        table.row([principal.to_string(), grant.to_string()]);
    }
    Ok(table.print(desk.out)?)
}

/// Who may do what: every grant, by principal.
pub async fn every_grant(desk: &Desk) -> Result<Vec<(PrincipalName, Grant)>> {
    let mut all = Vec::new();
    loop {
        let page = grants::list(&desk.house.db, all.last(), PAGE).await?;
        let is_last = page.len() < PAGE as usize;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}
