//! `larder advisory`: what is known to be wrong with versions of packages.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use larder_composer::advisories::{
    Advisory,
    board::{self, Imported, Own, Telling},
    formats::{self, Problem, Read},
    refresh::refresh_all,
};
use larder_core::Time;
use serde_json::{Value, json};

use super::Desk;
use crate::{
    cli::{AdvisoryAdd, AdvisoryCommand},
    output::{Elements, Table, counted, when},
};

/// How large one file may be, in bytes.
const LARGEST: u64 = 64 * 1024 * 1024;

/// How many files, and how many levels of folders, are looked into.
const MOST_FILES: usize = 200_000;
const DEPTH: usize = 8;

/// How many packages are listed at once.
const PAGE: i64 = 500;

/// How many problems are told one by one.
const MOST_PROBLEMS: usize = 20;

pub async fn run(desk: &Desk, command: AdvisoryCommand) -> Result<()> {
    match command {
        AdvisoryCommand::Import { path, feed } => import(desk, &path, feed).await,
        AdvisoryCommand::Refresh => refresh(desk).await,
        AdvisoryCommand::Add(order) => add(desk, order).await,
        AdvisoryCommand::List { package: Some(package), .. } => of_package(desk, &package.to_ascii_lowercase()).await,
        AdvisoryCommand::List { feeds: true, .. } => feeds(desk).await,
        AdvisoryCommand::List { .. } => list(desk).await,
        AdvisoryCommand::Remove { feed: Some(feed), .. } => {
            let count = board::remove_feed(&desk.house.db, &desk.actor, &feed).await?;
            let document = json!({ "feed": feed, "removed": count });
            Ok(desk.out.either(&document, format!("All that {feed} told is gone: {count} advisories."))?)
        }
        AdvisoryCommand::Remove { id, .. } => {
            let id = id.context("say which advisory, or --feed")?;
            let removed = board::remove(&desk.house.db, &desk.actor, &id).await?;
            let packages: Vec<&str> = removed.iter().map(|advisory| advisory.package.as_str()).collect();
            let document = json!({ "id": id, "packages": packages, "removed": true });
            desk.out.either(&document, format!("The advisory {id} about {} is gone.", packages.join(", ")))?;
            if removed.iter().any(|advisory| advisory.feed != larder_composer::advisories::OWN) {
                desk.out.hint("The next import that has it brings it back.");
            }
            Ok(())
        }
    }
}

async fn add(desk: &Desk, order: AdvisoryAdd) -> Result<()> {
    let AdvisoryAdd { package, affected, title, cve, link, severity } = order;
    let own = Own { package, affected, title, cve, link, severity };
    let advisory = board::add(&desk.house.db, &desk.actor, own).await?;
    let text = format!("{} is about {} {}.", advisory.id, advisory.package, advisory.affected);
    desk.out.either(&document(&advisory), text)?;
    desk.out.hint(format!("`larder advisory remove {}` takes it back.", advisory.id));
    Ok(())
}

async fn refresh(desk: &Desk) -> Result<()> {
    let outcomes = refresh_all(&desk.house.db, &desk.house.upstreams, &desk.actor).await?;
    let failed = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).count();
    if desk.out.wants_json() {
        let all = outcomes.iter().map(|(name, outcome)| match outcome {
            Ok(imported) => json!({ "source": name, "imported": imported }),
            Err(error) => json!({ "source": name, "problem": error.message() }),
        });
        desk.out.document(&all.collect::<Vec<Value>>())?;
    } else if outcomes.is_empty() {
        desk.out.line("There is no registry upstream to ask: `larder source add composer URL` adds one.")?;
    } else {
        for (name, outcome) in &outcomes {
            desk.out.line(match outcome {
                Ok(Some(imported)) => sum(name, imported),
                Ok(None) => format!("{name}: it offers no advisories."),
                Err(error) => format!("{name}: {}", error.message()),
            })?;
        }
    }
    if failed > 0 {
        bail!("{} could not be asked; what was told before still holds", counted(failed as u64, "upstream"));
    }
    Ok(())
}

fn sum(feed: &str, imported: &Imported) -> String {
    let Imported { added, changed, unchanged, removed } = imported;
    format!("{feed}: {added} new, {changed} changed, {unchanged} the same, {removed} gone.")
}

async fn import(desk: &Desk, path: &Path, feed: Option<String>) -> Result<()> {
    let feed = feed.unwrap_or_else(|| name_of(path));
    board::check_feed(&feed)?;
    let is_folder = path.is_dir();
    let mut read = Read::default();
    let mut unread = 0_u64;
    for file in files(path)? {
        match read_file(&file) {
            Ok(more) => read.and(more),
            Err(error) if is_folder => {
                unread += 1;
                let what = file.strip_prefix(path).unwrap_or(&file).display().to_string();
                read.problems.push(Problem { what, why: format!("{error:#}") });
            }
            Err(error) => return Err(error),
        }
    }
    let (problems, others) = (read.problems.clone(), read.others);
    // What a file said that cannot be read now still holds.
    let telling = Telling { actor: &desk.actor, feed: &feed, is_all: is_folder && unread == 0, guard: None };
    let imported = board::take_in(&desk.house.db, &telling, read).await?;
    if desk.out.wants_json() {
        let sums = json!({ "feed": feed, "imported": imported, "others": others, "problems": problems });
        desk.out.document(&sums)?;
        return check_whole(&problems, &imported);
    }
    for problem in problems.iter().take(MOST_PROBLEMS) {
        desk.out.line(format!("{}: {}", problem.what, problem.why))?;
    }
    if problems.len() > MOST_PROBLEMS {
        desk.out.line(format!("… and {} more like that", problems.len() - MOST_PROBLEMS))?;
    }
    desk.out.line(sum(&feed, &imported))?;
    if unread > 0 {
        desk.out.hint(format!("Nothing was taken to be gone, because {} could not be read.", counted(unread, "file")));
    }
    check_whole(&problems, &imported)
}

/// Fails if something was left out, however much was taken in.
fn check_whole(problems: &[Problem], imported: &Imported) -> Result<()> {
    let Some(Problem { what, why }) = problems.first() else { return Ok(()) };
    let others = match problems.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more like that)"),
    };
    let taken = imported.added + imported.changed + imported.unchanged;
    let rest = if taken == 0 { "nothing was taken in" } else { "the others were taken in" };
    bail!("{what}: {why}{others}; {rest}")
}

/// What a feed is called after the file or folder that it is in.
fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = whole.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).take(64).collect()
}

/// The file, or the JSON files of a folder and the folders in it, in a fixed order. Links are not followed.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let about = fs::metadata(path).with_context(|| format!("{} cannot be read", path.display()))?;
    if !about.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let (mut found, mut folders) = (Vec::new(), vec![(path.to_owned(), 1)]);
    while let Some((folder, depth)) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, entry.path());
            if kind.is_dir() && depth < DEPTH {
                folders.push((path, depth + 1));
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "json") {
                found.push(path);
            }
            if found.len() > MOST_FILES {
                bail!("there are more than {MOST_FILES} files in {}: import its folders one by one", folder.display());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn read_file(path: &Path) -> Result<Read> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).with_context(|| format!("{} cannot be read", path.display()))?;
    if bytes.len() as u64 > LARGEST {
        bail!("{} is larger than {} MiB: split it", path.display(), LARGEST >> 20);
    }
    formats::read(&bytes).with_context(|| format!("{} is no advisory", path.display()))
}

async fn of_package(desk: &Desk, package: &str) -> Result<()> {
    let found = board::of_package(&desk.house.db, package).await?;
    if desk.out.wants_json() {
        return Ok(desk.out.document(&found.iter().map(document).collect::<Vec<_>>())?);
    }
    if found.is_empty() {
        return Ok(desk.out.line(format!("Nothing is known to be wrong with {package}."))?);
    }
    Ok(table(&found).print(desk.out)?)
}

async fn list(desk: &Desk) -> Result<()> {
    let mut elements = if desk.out.wants_json() { Some(Elements::begin(None)?) } else { None };
    let (mut after, mut all) = (String::new(), Vec::new());
    loop {
        let page = board::list(&desk.house.db, &after, Time::from_micros(i64::MIN), PAGE).await?;
        let Some(last) = page.keys().next_back() else { break };
        after.clone_from(last);
        for advisory in page.into_values().flatten() {
            match &mut elements {
                Some(elements) => elements.push(&document(&advisory))?,
                None => all.push(advisory),
            }
        }
    }
    match elements {
        Some(elements) => Ok(elements.end(None)?),
        None if all.is_empty() => Ok(desk.out.line(
            "There are no advisories. `larder advisory import PATH` takes some in, `larder advisory add` writes one.",
        )?),
        None => Ok(table(&all).print(desk.out)?),
    }
}

async fn feeds(desk: &Desk) -> Result<()> {
    let feeds = board::feeds(&desk.house.db).await?;
    if desk.out.wants_json() {
        let all = feeds.iter().map(|feed| {
            json!({ "name": feed.name, "advisories": feed.advisories, "changed_at": crate::output::instant(feed.changed_at) })
        });
        return Ok(desk.out.document(&all.collect::<Vec<Value>>())?);
    }
    let mut table = Table::new(["FEED", "ADVISORIES", "CHANGED"]);
    for feed in feeds {
        table.row([feed.name, feed.advisories.to_string(), when(feed.changed_at)]);
    }
    Ok(table.print(desk.out)?)
}

fn table(advisories: &[Advisory]) -> Table<7> {
    let mut table = Table::new(["ID", "PACKAGE", "AFFECTED", "SEVERITY", "CVE", "FEED", "TITLE"]);
    for advisory in advisories {
        table.row([
            advisory.id.clone(),
            advisory.package.clone(),
            advisory.affected.to_string(),
            advisory.severity.map_or("-", larder_composer::advisories::Severity::as_str).to_owned(),
            advisory.cve.clone().unwrap_or_default(),
            advisory.feed.clone(),
            advisory.title.clone(),
        ]);
    }
    table
}

fn document(advisory: &Advisory) -> Value {
    let mut document = advisory.full();
    document["feed"] = advisory.feed.as_str().into();
    document
}
