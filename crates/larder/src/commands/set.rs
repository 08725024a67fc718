//! `larder source set`: changes a source that is there.

use std::fmt::Write as _;

use anyhow::Result;
use larder_db::packages;
use larder_sources::{
    change::{Change, Changed, Opened},
    forges::ForgeKind,
    work::is_scheduled,
};
use serde_json::{Value, json};

use super::{Desk, probe};
use crate::{
    cli::{Dists, Keep, MovedTags, SetSource, wrong_usage},
    output::counted,
};

pub async fn run(desk: &Desk, wanted: SetSource) -> Result<()> {
    let mut change = change_of(&wanted);
    let before = desk.house.sources.find(&wanted.name).await?;
    if let Some(why) = change.misplaced(&before) {
        wrong_usage(&why);
    }
    let moves = change.url.is_some() && !is_scheduled(&before) && !change.accept_address;
    if moves && !packages::of_source(&desk.house.db, before.id).await?.is_empty() {
        let question = format!("Packages that came from {} come from another address then.", before.url);
        change.accept_address = Desk::confirms(&question)?;
    }
    let changed = desk.house.sources.change(&desk.actor, &wanted.name, &change).await?;
    if changed.what.is_empty() {
        let document = json!({ "id": changed.source.id, "name": changed.source.name, "changed": {} });
        return Ok(desk.out.either(&document, format!("`{}` is like that already.", changed.source.name))?);
    }
    tell(desk, &changed).await
}

fn change_of(wanted: &SetSource) -> Change<'_> {
    let opened = wanted.credential.as_deref().map(Opened::By);
    let shown = wanted.show_source.then_some(true);
    Change {
        url: wanted.url.as_deref(),
        credential: opened.or(wanted.no_credential.then_some(Opened::ByNone)),
        show_source: shown.or(wanted.hide_source.then_some(false)),
        every: wanted.every,
        keep: wanted.keep.map(Keep::word),
        moved_tags: wanted.moved_tags.map(MovedTags::word),
        list_every: wanted.list_every,
        only: (wanted.every_name || !wanted.only.is_empty()).then(|| wanted.only.clone()),
        fresh: wanted.fresh,
        dists: wanted.dists.map(Dists::word),
        accept_address: wanted.yes,
    }
}

async fn tell(desk: &Desk, changed: &Changed) -> Result<()> {
    let Changed { source, what, followed, unwanted } = changed;
    let is_upstream = !is_scheduled(source);
    let is_elsewhere = what.contains_key("url");
    let probed = if is_upstream && (is_elsewhere || what.contains_key("credential")) {
        Some(probe::quickly(desk, source).await?)
    } else {
        None
    };
    desk.out.document(&json!({
        "id": source.id, "name": source.name, "changed": what, "repositories": followed, "unwanted_packages": unwanted,
        "probe": probed.as_ref().map(larder_sources::probe::Probed::document),
    }))?;
    let mut line = format!("{}:", source.name);
    for (at, (name, change)) in what.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let (from, to) = (shown(name, &change["from"]), shown(name, &change["to"]));
        write!(line, "{comma} {} {from} -> {to}", name.replace('_', " "))?;
    }
    desk.out.line(line)?;
    if is_upstream && is_elsewhere {
        desk.out.line(
            "All that the other address said is forgotten, and asked for again when a client next wants it; files that were fetched stay.",
        )?;
    }
    if *followed > 0 {
        desk.out.line(format!("The credential is also that of {} that it found.", repositories(*followed)))?;
    }
    if ForgeKind::of(source).is_some()
        && ["every", "keep", "moved_tags", "show_source"].iter().any(|name| what.contains_key(*name))
    {
        desk.out.line(
            "That holds for repositories which are found from now on; those that are here are sources of their own.",
        )?;
    }
    if *unwanted > 0 {
        desk.out.line(format!(
            "{} that came from it match none of these names: they stay, and `larder package remove` takes one away.",
            counted(*unwanted, "package")
        ))?;
    }
    if let Some(probed) = &probed {
        probe::warn(source, probed);
    }
    if is_scheduled(source) {
        desk.out.hint(format!("Next: larder source sync {}   (a running server has begun already)", source.name));
    }
    Ok(())
}

fn repositories(count: u64) -> String {
    if count == 1 { "1 repository".to_owned() } else { format!("{count} repositories") }
}

/// A value as people read it.
fn shown(name: &str, value: &Value) -> String {
    match value {
        Value::Null if name == "show_source" => "unless a credential is needed".to_owned(),
        Value::Null => "none".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(all) if all.is_empty() => "everything".to_owned(),
        Value::Array(all) => all.iter().map(|one| shown(name, one)).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
