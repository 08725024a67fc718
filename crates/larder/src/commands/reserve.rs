//! `larder reserve`: add, list, remove.

use anyhow::Result;
use larder_sources::reservations::EVERY_FORMAT;
use serde_json::json;

use super::Desk;
use crate::{
    cli::{Names, ReserveCommand},
    output::{Table, counted, when},
};

pub async fn run(desk: &Desk, command: ReserveCommand) -> Result<()> {
    match command {
        ReserveCommand::Add { names, take_over } => add(desk, &names, take_over).await,
        ReserveCommand::List => list(desk).await,
        ReserveCommand::Remove(Names { pattern, format }) => {
            desk.house.sources.unreserve(&desk.actor, format.as_deref(), &pattern).await?;
            let document =
                json!({ "pattern": pattern, "format": format.as_deref().unwrap_or(EVERY_FORMAT), "removed": true });
            Ok(desk
                .out
                .either(&document, format!("`{pattern}` is not reserved any more: upstreams are asked again."))?)
        }
    }
}

async fn add(desk: &Desk, Names { pattern, format }: &Names, take_over: bool) -> Result<()> {
    let reserved = desk.house.sources.reserve(&desk.actor, format.as_deref(), pattern, take_over).await?;
    let taken: Vec<_> = reserved
        .taken
        .iter()
        .map(|package| json!({ "format": package.format, "name": package.name, "source": package.source }))
        .collect();
    desk.out.document(&json!({
        "pattern": reserved.pattern,
        "format": format.as_deref().unwrap_or(EVERY_FORMAT),
        "added": reserved.added,
        "taken_over": taken,
    }))?;
    for package in &reserved.taken {
        desk.out.line(format!("{} is gone: it came from `{}`.", package.name, package.source))?;
    }
    let pattern = &reserved.pattern;
    desk.out.line(match (reserved.added, reserved.taken.len()) {
        (false, _) => format!("`{pattern}` was reserved already."),
        (true, 0) => format!("`{pattern}` is reserved: no upstream is asked for such names."),
        (true, count) => format!(
            "`{pattern}` is reserved: no upstream is asked for such names; {} of upstreams went.",
            counted(count as u64, "package")
        ),
    })?;
    Ok(())
}

async fn list(desk: &Desk) -> Result<()> {
    let all = desk.house.sources.reservations().await?;
    let format_of = |format: &Option<String>| format.clone().unwrap_or_else(|| EVERY_FORMAT.to_owned());
    if desk.out.wants_json() {
        let documents: Vec<_> = all
            .iter()
            .map(|one| {
                json!({
                    "pattern": one.pattern,
                    "format": format_of(&one.format),
                    "created_at": one.created_at.rfc3339(),
                })
            })
            .collect();
        return Ok(desk.out.document(&documents)?);
    }
    if all.is_empty() {
        return Ok(desk.out.line(
            "No names are reserved: `larder reserve add 'acme/*'` keeps those of a vendor for your own packages.",
        )?);
    }
    let mut table = Table::new(["PATTERN", "FORMAT", "SINCE"]);
    for one in &all {
        table.row([one.pattern.to_string(), format_of(&one.format), when(one.created_at)]);
    }
    Ok(table.print(desk.out)?)
}
