//! `larder fsck`: proves that all stored bytes are there and right.

use anyhow::{Result, bail};
use larder_blobs::{Finding, Step};
use serde_json::json;

use super::Desk;
use crate::output::{Elements, Output, Progress, bytes, counted};

pub async fn run(desk: &Desk) -> Result<()> {
    let out = desk.out;
    let mut elements = if out.wants_json() { Some(Elements::begin(Some("findings"))?) } else { None };
    let mut progress = Progress::fleeting();
    // Whoever closes standard output wants to see no more; the proof goes on all the same.
    let mut closed = Ok(());
    let checked = desk
        .house
        .blobs
        .fsck(&mut |step| match step {
            Step::Progress(at) => progress.show(&format!(
                "{} of {} blobs proven, {} of {}",
                at.blobs,
                at.of_blobs,
                bytes(at.bytes),
                bytes(at.of_bytes)
            )),
            Step::Found(finding) if closed.is_ok() => {
                progress.clear();
                closed = match &mut elements {
                    Some(elements) => elements.push(&finding),
                    None => tell(out, &finding),
                };
            }
            Step::Found(_) => {}
        })
        .await;
    drop(progress);
    closed?;
    let sums = checked?;
    if let Some(elements) = elements {
        elements.end(Some(("sums", &json!(sums))))?;
    } else {
        let looked = format!("{} ({}) read and hashed", counted(sums.blobs, "blob"), bytes(sums.bytes));
        match (sums.damaged, sums.notices) {
            (0, 0) => out.line(format!("{looked}: all is well."))?,
            (damaged, notices) => {
                out.line(format!("{looked}: {} of damage, {} worth knowing.", counted(damaged, "case"), notices))?;
            }
        }
    }
    if sums.damaged > 0 {
        bail!("stored bytes are missing or damaged ({}): what is above says what to do", counted(sums.damaged, "case"));
    }
    Ok(())
}

fn tell(out: Output, finding: &Finding) -> std::io::Result<()> {
    let weight = if finding.difference.is_damage() { "DAMAGE" } else { "notice" };
    out.line(format!("{weight}: {}: {}", finding.name, finding.found))?;
    out.line(format!("  {}", finding.advice))
}
