//! `larder gc`: takes away stored bytes that nothing needs.

use anyhow::{Result, bail};
use larder_blobs::{Garbage, Sort};
use serde_json::json;

use super::Desk;
use crate::output::{Elements, Output, bytes, counted};

pub async fn run(desk: &Desk, dry_run: bool) -> Result<()> {
    let out = desk.out;
    let mut elements = if out.wants_json() { Some(Elements::begin(Some("garbage"))?) } else { None };
    // Whoever closes standard output wants to see no more; the work is done all the same.
    let mut closed = Ok(());
    let sums = desk
        .house
        .blobs
        .gc(dry_run, &mut |garbage| {
            if closed.is_ok() {
                closed = match &mut elements {
                    Some(elements) => elements.push(&garbage),
                    None => tell(out, &garbage, dry_run),
                };
            }
        })
        .await;
    closed?;
    let sums = sums?;
    if let Some(elements) = elements {
        elements.end(Some(("sums", &json!(sums))))?;
    } else {
        let verb = if dry_run { "Would take away" } else { "Took away" };
        out.line(format!(
            "{verb} {}, {} and {}: {}.",
            counted(sums.blobs, "blob"),
            counted(sums.uploads + sums.sessions, "unfinished upload"),
            counted(sums.strays, "stray object"),
            bytes(sums.bytes),
        ))?;
    }
    if sums.failed > 0 {
        bail!("{} could not be taken away: see above why, and run `larder gc` again", counted(sums.failed, "thing"));
    }
    Ok(())
}

fn tell(out: Output, garbage: &Garbage, dry_run: bool) -> std::io::Result<()> {
    let sort = match garbage.sort {
        Sort::Blob => "blob",
        Sort::Trash => "trash",
        Sort::Session | Sort::Upload => "upload",
        Sort::Stray => "stray",
    };
    let verb = match (&garbage.problem, dry_run) {
        (Some(_), _) => "kept",
        (None, true) => "would go",
        (None, false) => "gone",
    };
    out.line(format!("{verb}: {sort} {} ({}): {}", garbage.name, bytes(garbage.size), garbage.reason))?;
    garbage.problem.as_ref().map_or(Ok(()), |problem| out.line(format!("  it could not be taken away: {problem}")))
}
