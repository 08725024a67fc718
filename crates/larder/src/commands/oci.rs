//! `larder oci`: policies, retention, usage and tag history of image repositories.

use anyhow::{Result, bail};
use larder_core::{Digest, pattern::Pattern};
use larder_db::events::Recorded;
use larder_oci::{
    policy::Rules,
    retention::{Sort, Swept, Verdict},
    usage::{Freed, RepositoryUsage},
};
use serde_json::{Value, json};

use super::{Desk, print_policies};
use crate::{
    cli::{OciCommand, PolicyCommand, PolicySet},
    formats,
    output::{Elements, Output, Table, bytes, counted, instant, when},
};

/// How many objects of the store are listed at once.
const PAGE: usize = 1_000;

pub async fn run(desk: &Desk, command: OciCommand) -> Result<()> {
    match command {
        OciCommand::Policy(PolicyCommand::Set(set)) => set_policy(desk, set).await,
        OciCommand::Policy(PolicyCommand::List) => policies(desk).await,
        OciCommand::Policy(PolicyCommand::Remove { pattern }) => {
            let rules = formats::registry(&desk.house).remove_policy(&desk.actor, &pattern).await?;
            let document = json!({ "pattern": pattern, "rules": rules, "removed": true });
            Ok(desk.out.either(&document, format!("The policy for {pattern} is gone."))?)
        }
        OciCommand::Retention { dry_run } => retention(desk, dry_run).await,
        OciCommand::Usage { pattern, tag: None } => usage(desk, &pattern).await,
        OciCommand::Usage { pattern, tag: Some(tag) } => frees(desk, &pattern, &tag).await,
        OciCommand::History { name, tag } => history(desk, &name, &tag).await,
        OciCommand::Rollback { name, tag, to } => rollback(desk, &name, &tag, to).await,
    }
}

async fn set_policy(desk: &Desk, set: PolicySet) -> Result<()> {
    let list = |patterns: Vec<Pattern>| (!patterns.is_empty()).then_some(patterns);
    let rules = Rules {
        immutable: list(set.immutable),
        keep_last: set.keep_last,
        keep_days: set.keep_days,
        keep_tags: list(set.keep_tag),
        untagged_days: set.untagged_days,
        quota: set.quota,
        sparse: set.sparse.then_some(true),
    };
    formats::registry(&desk.house).set_policy(&desk.actor, &set.pattern, &rules).await?;
    let document = json!({ "pattern": set.pattern, "rules": rules });
    desk.out.either(&document, format!("{}: {}", set.pattern, words(&rules)))?;
    desk.out.hint("`larder oci retention --dry-run` shows what the rules would take away.");
    Ok(())
}

async fn policies(desk: &Desk) -> Result<()> {
    print_policies(
        desk,
        formats::registry(&desk.house).policies().await?.iter(),
        words,
        "There are no policies: all tags stay and may move, and untagged manifests go after a while. \
         `larder oci policy set PATTERN …` makes one.",
    )
}

/// Rules, for people.
fn words(rules: &Rules) -> String {
    let patterns = |patterns: &[Pattern]| patterns.iter().map(Pattern::as_str).collect::<Vec<_>>().join(", ");
    let mut words = Vec::new();
    if let Some(tags) = &rules.immutable {
        words.push(format!("tags {} never move", patterns(tags)));
    }
    match (rules.keep_last, rules.keep_days) {
        (Some(last), Some(days)) => {
            let days = counted(days.into(), "day");
            words.push(format!("only the last {} and those of the last {days} stay", counted(last.into(), "tag")));
        }
        (Some(last), None) => words.push(format!("only the last {} stay", counted(last.into(), "tag"))),
        (None, Some(days)) => words.push(format!("only tags of the last {} stay", counted(days.into(), "day"))),
        (None, None) => {}
    }
    if let Some(tags) = &rules.keep_tags {
        words.push(format!("tags {} stay for ever", patterns(tags)));
    }
    if let Some(days) = rules.untagged_days {
        words.push(format!("untagged manifests stay for {}", counted(days.into(), "day")));
    }
    if let Some(quota) = rules.quota {
        words.push(format!("quota {}", bytes(quota)));
    }
    if let Some(sparse) = rules.sparse {
        words.push(if sparse { "manifests may be sparse" } else { "manifests may not be sparse" }.to_owned());
    }
    words.join("; ")
}

async fn retention(desk: &Desk, dry_run: bool) -> Result<()> {
    let (out, untagged) = (desk.out, desk.house.config.untagged);
    let registry = formats::registry(&desk.house);
    let mut elements = if out.wants_json() { Some(Elements::begin(Some("verdicts"))?) } else { None };
    // Whoever closes standard output wants to see no more; the work is done all the same.
    let mut closed = Ok(());
    let mut report = |verdict: Verdict| {
        if closed.is_ok() {
            closed = match &mut elements {
                Some(elements) => elements.push(&verdict),
                None => tell(out, &verdict, dry_run),
            };
        }
    };
    let swept = if dry_run {
        registry.sweep_dry(untagged, &mut report).await
    } else {
        registry.sweep(untagged, &mut report).await
    };
    closed?;
    let swept = swept?;
    if let Some(elements) = elements {
        elements.end(Some(("sums", &json!(swept))))?;
    } else {
        out.line(sum(&swept, dry_run))?;
    }
    if swept.failed > 0 {
        bail!("{} could not be taken away: see above why", counted(swept.failed, "thing"));
    }
    Ok(())
}

fn sum(swept: &Swept, dry_run: bool) -> String {
    let verb = if dry_run { "Would take away" } else { "Took away" };
    format!(
        "{verb} {} and {}; {} that nothing refers to stay for now. What no manifest needs goes with garbage collection.",
        counted(swept.tags, "tag"),
        counted(swept.manifests, "manifest"),
        counted(swept.waiting, "manifest"),
    )
}

fn tell(out: Output, verdict: &Verdict, dry_run: bool) -> std::io::Result<()> {
    let verb = match (&verdict.problem, verdict.goes, dry_run) {
        (Some(_), ..) | (_, false, _) => "kept",
        (None, true, true) => "would go",
        (None, true, false) => "gone",
    };
    let thing = match verdict.sort {
        Sort::Tag => format!("{}:{}", verdict.repository, verdict.name),
        Sort::Manifest => format!("{}@{}", verdict.repository, verdict.name),
    };
    out.line(format!("{verb}: {thing}: {}", verdict.reason))?;
    verdict.problem.as_ref().map_or(Ok(()), |problem| out.line(format!("  it could not be taken away: {problem}")))
}

async fn usage(desk: &Desk, pattern: &Pattern) -> Result<()> {
    let mut found: Vec<RepositoryUsage> = Vec::new();
    let together = formats::registry(&desk.house).usage(pattern, &mut |usage| found.push(usage)).await?;
    if found.is_empty() && pattern.is_name() {
        bail!("there is no repository `{pattern}`: `larder package list --format oci` shows all");
    }
    let accounted = desk.house.blobs.accounted().await?;
    let stored = if pattern.is_everything() { Some(stored(desk).await?) } else { None };
    if desk.out.wants_json() {
        return Ok(desk.out.document(&json!({
            "repositories": found,
            "together": together,
            "database": {
                "blobs": accounted.blobs, "trash": accounted.trash, "uploads": accounted.uploads,
                "sum": accounted.blobs + accounted.trash + accounted.uploads,
            },
            "stored": stored,
        }))?);
    }
    let mut table = Table::new(["REPOSITORY", "TAGS", "MANIFESTS", "UNTAGGED", "NEEDS", "ALONE", "SHARED", "PENDING"]);
    for usage in &found {
        table.row([
            usage.name.clone(),
            usage.tags.to_string(),
            usage.manifests.to_string(),
            usage.untagged.to_string(),
            bytes(usage.bytes),
            bytes(usage.unique),
            bytes(usage.shared),
            bytes(usage.pending),
        ]);
    }
    table.print(desk.out)?;
    if let Some(together) = together {
        desk.out.line(format!("\nTogether, each blob counted once: {}.", bytes(together)))?;
    }
    if let Some(stored) = stored {
        let sum = accounted.blobs + accounted.trash + accounted.uploads;
        desk.out.line(format!(
            "The database knows of {sum} bytes: {} of blobs of all formats, {} in the trash, {} of uploads.",
            accounted.blobs, accounted.trash, accounted.uploads
        ))?;
        desk.out.line(match stored.abs_diff(sum) {
            0 => format!("The store has {stored} bytes: the same."),
            // What is written just now is in the store first.
            difference => format!(
                "The store has {stored} bytes: {difference} {}. Uploads that run just now explain some; `larder fsck` says more.",
                if stored > sum { "more" } else { "less" }
            ),
        })?;
    }
    Ok(())
}

/// How many bytes the store has: objects, and uploads that go on.
async fn stored(desk: &Desk) -> Result<u64> {
    let (store, mut sum) = (&desk.house.store, 0);
    let mut after: Option<String> = None;
    loop {
        let page = store.list(after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.location.clone());
        sum += page.iter().map(|object| object.size).sum::<u64>();
    }
    after = None;
    // Everything that was begun before now, and so everything.
    let now = desk.house.host.now();
    loop {
        let page = store.abandoned(now, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(sum) };
        after = Some(last.location.clone());
        sum += page.iter().map(|object| object.size).sum::<u64>();
    }
}

async fn frees(desk: &Desk, name: &Pattern, tag: &str) -> Result<()> {
    let name = name.as_str();
    let freed: Freed = formats::registry(&desk.house).frees(name, tag).await?;
    let text = match &freed.kept {
        Some(kept) => format!("Deleting {name}:{tag} frees nothing: {kept}."),
        None => format!(
            "Deleting {name}:{tag} frees {}, once its {} and then their blobs are collected.",
            bytes(freed.bytes),
            counted(freed.manifests.len() as u64, "manifest"),
        ),
    };
    Ok(desk.out.either(&freed, text)?)
}

async fn history(desk: &Desk, name: &str, tag: &str) -> Result<()> {
    let history = formats::registry(&desk.house).tag_history(name, tag).await?;
    if desk.out.wants_json() {
        let all: Vec<Value> = history.iter().map(document).collect();
        return Ok(desk.out.document(&all)?);
    }
    if history.is_empty() {
        bail!("nothing ever happened to a tag `{tag}` of `{name}`: check both names");
    }
    let mut table = Table::new(["WHEN", "WHO", "FROM", "TO", ""]);
    for event in &history {
        let digest = |key: &str| event.detail[key].as_str().unwrap_or("-").to_owned();
        let note =
            if event.detail["rollback"] == true { "rollback" } else { event.detail["reason"].as_str().unwrap_or("") };
        table.row([when(event.at), event.actor.clone(), digest("from"), digest("to"), note.to_owned()]);
    }
    table.print(desk.out)?;
    desk.out.hint(format!("`larder oci rollback {name} {tag}` puts it back to where it was before."));
    Ok(())
}

fn document(event: &Recorded) -> Value {
    json!({
        "at": instant(event.at),
        "actor": event.actor,
        "action": event.action,
        "from": event.detail["from"],
        "to": event.detail["to"],
        "reason": event.detail["reason"],
        "rollback": event.detail["rollback"] == true,
    })
}

async fn rollback(desk: &Desk, name: &str, tag: &str, to: Option<Digest>) -> Result<()> {
    let (from, to) = formats::registry(&desk.house).rollback(&desk.actor, name, tag, to).await?;
    let document = json!({ "name": name, "tag": tag, "from": from, "to": to });
    let from = from.unwrap_or_else(|| "nothing".to_owned());
    Ok(desk.out.either(&document, format!("{name}:{tag} is at {to} again; before, it was at {from}."))?)
}
