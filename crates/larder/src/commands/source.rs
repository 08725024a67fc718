//! `larder source`: list, show, move, remove. Adding is in [`super::add`], changing in [`super::set`], bringing in what is
//! new in [`super::sync`].

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use larder_core::{Time, time::format_duration};
use larder_db::{
    credentials, jobs, packages,
    packages::VersionKey,
    sources::{self, Source, SourceRef, SourceState},
};
use larder_jobs::{Entry, State};
use larder_sources::{
    forges::Orphans,
    manage::{GIT, KeptFiles},
    registry::{self, Dists, Place, Upstream},
    reservations::Reservations,
    settings::{GitSettings, MovedTagsWord},
    work::{SYNC, is_scheduled},
};
use serde_json::{Value, json};

use super::{
    Desk, add,
    forge::{self, Forge, Origin},
    package::FETCHED,
    set, sync,
    webhook::{self, Webhook},
};
use crate::{
    cli::{MoveSource, SourceCommand},
    output::{Output, Table, bytes, counted, when, when_or},
};

/// How many branches and tags are listed for people; a JSON document has all.
const SHOWN: usize = 40;

pub async fn run(desk: &Desk, command: SourceCommand) -> Result<()> {
    match command {
        SourceCommand::Add(new) => add::run(desk, new).await,
        SourceCommand::List => list(desk).await,
        SourceCommand::Show { name } => show(desk, &name).await,
        SourceCommand::Sync { name: Some(name), accept_removals, .. } => sync::one(desk, &name, accept_removals).await,
        SourceCommand::Sync { name: None, .. } => sync::all(desk).await,
        SourceCommand::Move(MoveSource { name, before, first, .. }) => {
            let to = match (&before, first) {
                (Some(other), _) => Place::Before(other),
                (None, true) => Place::First,
                (None, false) => Place::Last,
            };
            move_to(desk, &name, to).await
        }
        SourceCommand::RotateWebhook { name } => webhook::rotate(desk, &name).await,
        SourceCommand::Set(wanted) => set::run(desk, wanted).await,
        SourceCommand::Remove { name, with_repositories, keep_repositories, yes } => {
            let repositories = match (with_repositories, keep_repositories) {
                (true, _) => Some(Orphans::Remove),
                (_, true) => Some(Orphans::Keep),
                _ => None,
            };
            remove(desk, &name, repositories, yes).await
        }
    }
}

async fn remove(desk: &Desk, name: &str, repositories: Option<Orphans>, yes: bool) -> Result<()> {
    let source = desk.house.sources.find(name).await?;
    let kept = desk.house.sources.kept(&source).await?;
    let losses = format!(
        "{} of {} ({})",
        counted(kept.versions, "kept version"),
        counted(kept.packages, "package"),
        bytes(kept.bytes)
    );
    let asks = !yes && kept.versions > 0;
    let goes =
        yes || (asks && Desk::confirms(&format!("`{name}` goes with {losses}. Lock files may depend on them."))?);
    let files = if goes { KeptFiles::Drop } else { KeptFiles::Spare };
    let source = desk.house.forges.remove(&desk.actor, name, repositories, files).await?;
    let document = json!({
        "id": source.id, "name": source.name, "removed": true,
        "packages": kept.packages, "versions": kept.versions, "bytes": kept.bytes,
    });
    let with = if kept.versions > 0 { format!(": {losses}") } else { String::new() };
    desk.out.either(&document, format!("The source `{}` is gone, with all its packages{with}.", source.name))?;
    desk.out.hint("Its bytes go with the next `larder gc`, an hour after they were last stored at the earliest.");
    Ok(())
}

async fn move_to(desk: &Desk, name: &str, to: Place<'_>) -> Result<()> {
    let order = desk.house.sources.move_registry(&desk.actor, name, to).await?;
    let names: Vec<&str> = order.iter().map(|source| source.name.as_str()).collect();
    let format = order.first().map_or("", |source| &source.kind);
    let line = format!("{format} packages that are not here are asked for in this order: {}", names.join(", "));
    Ok(desk.out.either(&json!({ "kind": format, "order": names }), line)?)
}

/// Gives each upstream its number among those of its format, and sorts them so, after all Git sources.
fn numbered(mut sources: Vec<Source>) -> Vec<(Source, Option<usize>)> {
    // Both sorts keep equals as they were: Git sources by name.
    sources.sort_by_key(|source| if is_scheduled(source) { None } else { Some(registry::place(source)) });
    sources.sort_by_key(|source| if is_scheduled(source) { String::new() } else { source.kind.clone() });
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let numbered = sources.into_iter().map(|source| {
        let number = (!is_scheduled(&source)).then(|| {
            let number = numbers.entry(source.kind.clone()).or_default();
            *number += 1;
            *number
        });
        (source, number)
    });
    numbered.collect()
}

async fn list(desk: &Desk) -> Result<()> {
    let db = &desk.house.db;
    let sources = numbered(sources::list(db).await?);
    let mut documents = Vec::new();
    let mut table = Table::new(["NAME", "KIND", "ORDER", "STATE", "PACKAGES", "CHANGED", "NEXT LOOK", "URL"]);
    let mut troubled = 0;
    for (source, order) in &sources {
        let packages = packages::of_source(db, source.id).await?.len();
        let recent = jobs::of_subject(db, SYNC, &source.id.to_string(), RECENT).await?;
        troubled += u64::from(source.problem.is_some());
        if desk.out.wants_json() {
            let mut document = describe(source, &recent);
            document["packages"] = packages.into();
            document["order"] = (*order).into();
            documents.push(document);
        } else {
            table.row([
                source.name.clone(),
                source.kind.clone(),
                order.map_or_else(|| "-".to_owned(), |number| number.to_string()),
                format!("{}{}", state_of(source), if source.archived { ", archived" } else { "" }),
                packages.to_string(),
                when_or(source.synced_at, "never"),
                if is_scheduled(source) { next_look(&recent, desk.house.host.now()) } else { "when asked".to_owned() },
                source.url.clone(),
            ]);
        }
    }
    if desk.out.wants_json() {
        return Ok(desk.out.document(&documents)?);
    }
    if sources.is_empty() {
        return Ok(desk.out.line("There are no sources yet: `larder source add git URL` adds one.")?);
    }
    table.print(desk.out)?;
    if troubled > 0 {
        desk.out.hint(format!("{} in trouble: `larder source show NAME` says why.", counted(troubled, "source")));
    }
    Ok(())
}

/// How many of the latest jobs of a source are looked at: one that runs, one that waits, one that is done.
const RECENT: u32 = 3;

fn next_look(recent: &[Entry], now: Time) -> String {
    if let Some(running) = recent.iter().find(|job| job.state == State::Running) {
        return running.progress.clone().unwrap_or_else(|| "running".to_owned());
    }
    match recent.iter().find(|job| job.state == State::Waiting) {
        Some(waiting) if waiting.run_at <= now => "due now".to_owned(),
        Some(waiting) => when(waiting.run_at),
        None => "when a server starts".to_owned(),
    }
}

fn describe(source: &Source, recent: &[Entry]) -> Value {
    let waiting = recent.iter().find(|job| job.state == State::Waiting);
    let running = recent.iter().find(|job| job.state == State::Running);
    json!({
        "id": source.id,
        "name": source.name,
        "kind": source.kind,
        "url": source.url,
        "archived": source.archived,
        "state": state_of(source),
        "problem": source.problem,
        "every_seconds": source.every.as_secs(),
        "settings": parsed(&source.settings),
        "created_at": source.created_at.rfc3339(),
        "synced_at": source.synced_at.map(Time::rfc3339),
        "report": source.report.as_deref().map(parsed),
        "next_sync_at": waiting.map(|job| job.run_at.rfc3339()),
        "running": running.map(|job| job.progress.clone().unwrap_or_default()),
    })
}

/// How it is. Another registry is asked when a client wants something, and so is never new.
fn state_of(source: &Source) -> &'static str {
    // Another registry that was never asked is as well as one that answered.
    let is_new = !is_scheduled(source) && source.state == SourceState::New;
    if is_new { "ok" } else { source.state.as_str() }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

async fn show(desk: &Desk, name: &str) -> Result<()> {
    let db = &desk.house.db;
    let source = desk.house.sources.find(name).await?;
    let credential = match source.credential_id {
        Some(id) => credentials::find(db, &id.to_string()).await?.map(|credential| credential.name),
        None => None,
    };
    let seen = Seen {
        recent: jobs::of_subject(db, SYNC, &source.id.to_string(), RECENT).await?,
        refs: sources::refs(db, source.id).await?,
        versions: packages::keys_of_source(db, source.id).await?,
        offered: Reservations::new(db.clone()).offered(&source).await?,
        webhook: if source.kind == GIT { Some(Webhook::of(desk, &source).await) } else { None },
        credential,
        forge: Forge::of(desk, &source).await?,
        origin: forge::origin_of(desk, &source).await?,
        source,
    };
    if desk.out.wants_json() {
        return Ok(desk.out.document(&seen.document())?);
    }
    if seen.source.kind == GIT {
        return seen.print(desk.out, desk.house.host.now());
    }
    if let Some(forge) = &seen.forge {
        let next = next_look(&seen.recent, desk.house.host.now());
        return forge.print(&seen.source, &next, seen.credential.as_deref(), desk.out);
    }
    let format = desk.house.sources.format(&seen.source.kind);
    let links = format.and_then(|format| format.proxied()).is_some_and(|proxied| proxied.links);
    seen.print_registry(desk.out, links)
}

/// All that is known of a source.
struct Seen {
    source: Source,
    credential: Option<String>,
    webhook: Option<Webhook>,
    /// The repositories that it lists.
    forge: Option<Forge>,
    /// The forge that found it.
    origin: Option<Origin>,
    recent: Vec<Entry>,
    /// The names that it offers although they are not its own, each with when it was last seen to.
    offered: Vec<(String, Time)>,
    refs: Vec<SourceRef>,
    versions: Vec<VersionKey>,
}

/// A tag whose release was made from more than one commit.
struct MovedTag<'a> {
    tag: &'a str,
    package: &'a str,
    version: &'a str,
    /// What clients get.
    serves: Option<&'a str>,
    /// Where the tag is now.
    now_at: &'a str,
}

impl Seen {
    /// The packages, each with the number of its versions (of another registry: of those whose files are kept) and the
    /// folders that these are in.
    fn packages(&self) -> BTreeMap<(&str, &str), (u64, BTreeSet<&str>)> {
        let mut packages: BTreeMap<_, (u64, BTreeSet<&str>)> = BTreeMap::new();
        for key in &self.versions {
            let (versions, folders) = packages.entry((key.format.as_str(), key.package.as_str())).or_default();
            *versions += u64::from(key.visible() || key.origin == FETCHED);
            folders.extend(key.visible().then_some(key.folder.as_str()).filter(|folder| !folder.is_empty()));
        }
        packages
    }

    fn moved_tags(&self) -> Vec<MovedTag<'_>> {
        let at: BTreeMap<&str, &str> =
            self.refs.iter().map(|seen| (seen.name.as_str(), seen.commit.as_str())).collect();
        let mut references: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
        let mut serves = BTreeMap::new();
        for key in self.versions.iter().filter(|key| key.origin.starts_with("refs/tags/")) {
            let release = (key.origin.as_str(), key.package.as_str(), key.version.as_str());
            references.entry(release).or_default().insert(&key.reference);
            if key.visible() {
                serves.insert(release, key.reference.as_str());
            }
        }
        let moved = references.into_iter().filter(|(_, references)| references.len() > 1);
        moved
            .filter_map(|(release, _)| {
                let (tag, package, version) = release;
                Some(MovedTag { tag, package, version, serves: serves.get(&release).copied(), now_at: at.get(tag)? })
            })
            .collect()
    }

    fn document(&self) -> Value {
        let mut document = describe(&self.source, &self.recent);
        document["credential"] = self.credential.clone().into();
        let offered = self.offered.iter().map(|(name, seen)| json!({ "name": name, "seen_at": seen.rfc3339() }));
        document["offered"] = offered.collect();
        document["repositories"] = self.forge.as_ref().map(Forge::document).into();
        document["forge"] = self.origin.as_ref().map(Origin::document).into();
        document["webhook"] = self.webhook.as_ref().map(Webhook::document).into();
        let packages = self.packages();
        document["packages"] = packages
            .into_iter()
            .map(|((format, name), (versions, folders))| {
                json!({ "format": format, "name": name, "versions": versions, "folders": folders })
            })
            .collect();
        let refs = self.refs.iter().map(|seen| {
            json!({
                "name": seen.name,
                "commit": seen.commit,
                "skipped": seen.skipped,
                "warning": seen.warning,
                "changed_at": seen.changed_at.rfc3339(),
            })
        });
        document["refs"] = refs.collect();
        let moved = self.moved_tags().into_iter().map(|moved| {
            json!({
                "tag": moved.tag,
                "package": moved.package,
                "version": moved.version,
                "serves": moved.serves,
                "now_at": moved.now_at,
            })
        });
        document["moved_tags"] = moved.collect();
        document
    }

    fn print(&self, out: Output, now: Time) -> Result<()> {
        let source = &self.source;
        out.line(format!("{}: {}", source.name, source.url))?;
        out.line(format!("  state       {}", source.state.as_str()))?;
        if let Some(problem) = &source.problem {
            out.line(format!("  problem     {problem}"))?;
        }
        out.line(format!("  changed     {}", when_or(source.synced_at, "never")))?;
        let last = self.recent.iter().find(|job| matches!(job.state, State::Done | State::Failed));
        if let Some((last, at)) = last.and_then(|last| Some((last, last.finished_at?))) {
            let failed = last.problem.as_deref().map(|_| "failed");
            let how = failed.or(last.progress.as_deref()).unwrap_or("done");
            out.line(format!("  last look   {}: {how}", when(at)))?;
        }
        out.line(format!("  next look   {} (every {})", next_look(&self.recent, now), format_duration(source.every)))?;
        out.line(format!("  credential  {}", self.credential.as_deref().unwrap_or("none")))?;
        if let Some(origin) = &self.origin {
            out.line(origin.line(source.archived))?;
        }
        if let Some(webhook) = &self.webhook {
            webhook.print(out)?;
        }
        let settings = GitSettings::read(&source.settings)?;
        let follows = if settings.moved_tags == MovedTagsWord::Follow { "follow" } else { "freeze" };
        let keep = if settings.keeps_everything() { "full" } else { "light" };
        let shown = if settings.show_source { "" } else { ", hidden from clients" };
        out.line(format!("  settings    keep {keep}, moved tags {follows}{shown}"))?;
        if !settings.packages.is_empty() {
            out.line(format!("  folders     {}", settings.folders().sentence()))?;
        }
        let branches = self.refs.iter().filter(|seen| seen.name.starts_with("refs/heads/")).count();
        let tags = self.refs.len() - branches;
        let skipped = self.refs.iter().filter(|seen| seen.skipped.is_some()).count();
        out.line(format!("  refs        {branches} branches, {tags} tags, {skipped} of them skipped"))?;
        if let Some(note) =
            source.report.as_deref().and_then(|report| parsed(report)["note"].as_str().map(str::to_owned))
        {
            out.line(format!("  note        {note}"))?;
        }
        self.print_packages(out)?;
        self.print_refs(out)
    }

    fn print_registry(&self, out: Output, links: bool) -> Result<()> {
        let upstream = Upstream::read(self.source.clone())?;
        let only: Vec<_> = upstream.settings.only.iter().map(ToString::to_string).collect();
        out.line(format!("{}: {} ({})", self.source.name, self.source.url, self.source.kind))?;
        if let Some(problem) = &self.source.problem {
            out.line(format!("  problem     {problem}"))?;
        }
        out.line(format!("  fresh       for {}", format_duration(self.source.every)))?;
        out.line(format!("  credential  {}", self.credential.as_deref().unwrap_or("none")))?;
        out.line(format!("  only        {}", if only.is_empty() { "everything".to_owned() } else { only.join(" ") }))?;
        if let Some(prefix) = &upstream.settings.prefix {
            out.line(format!("  here        {prefix}/NAME"))?;
        }
        self.print_offered(out)?;
        if links {
            let from = if upstream.settings.dists == Dists::Here { "here" } else { "the registry itself" };
            let shown = if upstream.shows_source() { "shown to" } else { "hidden from" };
            out.line(format!("  clients     fetch files from {from}; where sources are is {shown} them"))?;
        }
        self.print_packages(out)
    }

    /// Names that are ours, and that it has as well.
    fn print_offered(&self, out: Output) -> Result<()> {
        for (name, seen) in self.offered.iter().take(SHOWN) {
            out.line(format!(
                "  WARNING     it offers {name}, which is yours: nothing is taken (last seen {})",
                when(*seen)
            ))?;
        }
        if let Some(more) = self.offered.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            out.line(format!("  WARNING     and {more} more; --json lists all"))?;
        }
        Ok(())
    }

    fn print_packages(&self, out: Output) -> Result<()> {
        let packages = self.packages();
        if !packages.is_empty() {
            out.line("\nPackages")?;
        }
        for ((format, name), (versions, folders)) in packages {
            let folders = folders.into_iter().map(|folder| format!(", {folder}")).collect::<Vec<_>>().concat();
            let noun = if self.source.kind == format { "kept file" } else { "version" };
            out.line(format!("  {format} {name}: {}{folders}", counted(versions, noun)))?;
        }
        let moved = self.moved_tags();
        if !moved.is_empty() {
            out.line("\nMoved tags")?;
        }
        let lines = moved.iter().map(|moved| {
            let what = match moved.serves {
                Some(serves) if serves == moved.now_at => "clients get the new commit".to_owned(),
                Some(serves) => format!("frozen: clients get {}", short(serves)),
                None => "not in the metadata any more".to_owned(),
            };
            format!(
                "  {} ({} {}) is now at {}: {what}",
                name_of(moved.tag),
                moved.package,
                moved.version,
                short(moved.now_at)
            )
        });
        print_some(out, lines)
    }

    fn print_refs(&self, out: Output) -> Result<()> {
        let line = |seen: &SourceRef, text: &Option<String>| {
            text.as_ref().map(|text| format!("  {}: {text}", name_of(&seen.name)))
        };
        let skipped: Vec<_> = self.refs.iter().filter_map(|seen| line(seen, &seen.skipped)).collect();
        let warnings: Vec<_> = self.refs.iter().filter_map(|seen| line(seen, &seen.warning)).collect();
        for (title, lines) in [("\nSkipped", skipped), ("\nWarnings", warnings)] {
            if !lines.is_empty() {
                out.line(title)?;
            }
            print_some(out, lines.into_iter())?;
        }
        Ok(())
    }
}

/// Prints the first lines, and how many more there are.
pub fn print_some(out: Output, lines: impl ExactSizeIterator<Item = String>) -> Result<()> {
    let more = lines.len().saturating_sub(SHOWN);
    for line in lines.take(SHOWN) {
        out.line(line)?;
    }
    if more > 0 {
        out.line(format!("  and {more} more: --json lists all"))?;
    }
    Ok(())
}

/// The name of a branch or tag as people say it.
fn name_of(full: &str) -> &str {
    full.strip_prefix("refs/tags/").or_else(|| full.strip_prefix("refs/heads/")).unwrap_or(full)
}

/// So much of a commit as tells it from others.
pub fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}
