//! `larder gc`: takes away stored bytes that nothing needs, and explains why others are kept.

use anyhow::{Result, bail};
use larder_blobs::{Garbage, Sort};
use larder_core::Time;
use larder_db::{
    uploads,
    usage::{self, About, Reason},
};
use serde_json::json;

use super::Desk;
use crate::{
    cli::Explain,
    output::{Elements, Output, bytes, counted},
};

/// How many blobs are explained in one go.
const PAGE: i64 = 256;

/// How many of the versions that need one blob are told, when somebody asks for that blob alone.
const USES: u32 = 50;

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

/// `larder gc --explain`: says of blobs why they are kept, or when they go.
pub async fn explain(desk: &Desk, explain: Explain) -> Result<()> {
    let (out, db) = (desk.out, &desk.house.db);
    let about = match explain {
        Explain::Everything => About::Everything,
        Explain::Blob(digest) => About::Blob(digest),
        Explain::Package(format, name) => {
            desk.check_format(&format)?;
            About::Package(format, name)
        }
    };
    let mut elements = if out.wants_json() { Some(Elements::begin(Some("blobs"))?) } else { None };
    let (mut blobs, mut size, mut after) = (0, 0, None);
    loop {
        let page = usage::reasons(db, &about, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.digest);
        for reason in &page {
            (blobs, size) = (blobs + 1, size + reason.size);
            let (kept, text) = why(reason, desk.house.host.now());
            match &mut elements {
                Some(elements) => elements.push(&json!({
                    "digest": reason.digest.to_string(), "size": reason.size, "kept": kept, "reason": text,
                }))?,
                None => out.line(format!("{} ({}): {text}", reason.digest, bytes(reason.size)))?,
            }
        }
    }
    if let About::Blob(digest) = &about {
        for it in larder_db::blobs::uses(db, digest, USES).await? {
            out.line(format!("  {}:{} has it as {} in {}", it.format, it.package, it.artifact, it.version))?;
        }
    }
    let trash = explain_trash(desk, &about, &mut elements).await?;
    if let Some(elements) = elements {
        return Ok(elements.end(Some(("sums", &json!({ "blobs": blobs, "bytes": size, "trash": trash }))))?);
    }
    Ok(out.line(format!(
        "{} ({}), and {} in the trash.",
        counted(blobs, "blob"),
        bytes(size),
        counted(trash, "object")
    ))?)
}

/// Whether a blob is kept now, and why or until when, for people.
fn why(reason: &Reason, now: Time) -> (bool, String) {
    let lost = if reason.live { "" } else { "; its bytes are lost, and come back with the next push" };
    let leased = match &reason.leased_to {
        Some((format, name)) => format!("leased to {format}:{name}"),
        None => "leased to whoever put it".to_owned(),
    };
    let Some(by) = &reason.needed_by else {
        if reason.lease_until > now {
            let until = reason.lease_until;
            return (true, format!("{leased}; goes at {until} unless something needs it by then{lost}"));
        }
        let since = reason.lease_until;
        let text = format!("goes with the next collection: nothing needs it, and its lease ended at {since}{lost}");
        return (false, text);
    };
    let named = match (&by.pointer, &by.pointer_of_whole, &by.subject, by.orphaned_at) {
        (Some(pointer), ..) => format!(" ({pointer})"),
        (None, Some(whole), ..) => format!(" (part of {whole})"),
        (None, None, Some(subject), _) => format!(" (about {subject})"),
        (None, None, None, Some(at)) => format!(" (which nothing has referred to since {at})"),
        (None, None, None, None) => String::new(),
    };
    let others = match reason.versions {
        0 | 1 => String::new(),
        count => format!(", and {} more", counted(count - 1, "version")),
    };
    (true, format!("kept because {}:{} needs it in {}{named}{others}{lost}", by.format, by.package, by.version))
}

/// What is in the trash, and until when.
async fn explain_trash(desk: &Desk, about: &About, elements: &mut Option<Elements>) -> Result<u64> {
    let (mut count, mut after) = (0, String::new());
    loop {
        let page = uploads::trash(&desk.house.db, &after, Time::from_micros(i64::MAX), 256).await?;
        let Some(last) = page.last() else { return Ok(count) };
        last.location.clone_into(&mut after);
        for it in page {
            let wanted = match about {
                About::Everything => true,
                About::Blob(digest) => it.digest == Some(*digest),
                About::Package(..) => false,
            };
            if !wanted {
                continue;
            }
            count += 1;
            let until = it.trashed_at.plus(desk.house.config.blob_grace);
            let of = it.digest.map_or_else(|| "an upload".to_owned(), |digest| digest.to_string());
            let text = format!("in the trash since {}; its bytes go at {until}", it.trashed_at);
            match elements {
                Some(elements) => elements.push(&json!({
                    "digest": it.digest.map(|digest| digest.to_string()), "size": it.size, "kept": false,
                    "location": it.location, "reason": text,
                }))?,
                None => desk.out.line(format!("{of} ({}): {text}", bytes(it.size)))?,
            }
        }
    }
}
