//! `larder package`: list, show, remove. Publishing is [`publish`]'s.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use larder_audit::of_versions;
use larder_core::Time;
use larder_db::{
    packages::{self, Kept, Package},
    sources,
};
use larder_sources::manage::GIT;
use serde_json::{Value, json};

use super::{Desk, publish, source::short};
use crate::{
    cli::PackageCommand,
    output::{Table, bytes, counted, when},
};

/// The origin of versions of other registries whose files were fetched.
pub const FETCHED: &str = "upstream";

/// How many packages are read at once.
const PAGE: i64 = 500;

/// How many days the statistics reach back.
const DAYS: i64 = 30;

pub async fn run(desk: &Desk, command: PackageCommand) -> Result<()> {
    match command {
        PackageCommand::List { format } => list(desk, format.as_deref()).await,
        PackageCommand::Show { format, name } => show(desk, &format, &name).await,
        PackageCommand::Publish(order) => publish::run(desk, order).await,
        PackageCommand::Remove { format, name, version: None } => {
            let package = desk.house.sources.remove_package(&desk.actor, &format, &name).await?;
            let document = json!({ "format": package.format, "name": package.name, "removed": true });
            desk.out.either(&document, format!("The package {} is gone, with all its versions.", package.name))?;
            hint_return(desk, &package).await;
            Ok(())
        }
        PackageCommand::Remove { format, name, version: Some(version) } => {
            let package = desk.house.sources.find_package(&format, &name).await?;
            let gone = desk.house.sources.remove_version(&desk.actor, &format, &name, &version).await?;
            let references: Vec<_> = gone.iter().map(|kept| kept.reference.as_str()).collect();
            let document = json!({ "format": format, "name": name, "version": version, "references": references, "removed": true });
            desk.out.either(&document, format!("The version {version} of {name} is gone."))?;
            if gone.iter().any(|kept| kept.origin == FETCHED) {
                desk.out.hint(format!(
                    "Its file comes back when a client next asks for it. To keep it away: larder {format} block {name} {version} --reason TEXT"
                ));
                return Ok(());
            }
            hint_return(desk, &package).await;
            Ok(())
        }
    }
}

async fn hint_return(desk: &Desk, package: &Package) {
    let Some(id) = package.source_id else { return };
    let source = sources::find(&desk.house.db, &id.to_string()).await.ok().flatten();
    if source.is_some_and(|source| source.kind != GIT) {
        desk.out.hint("It comes back when a client next asks for it.");
    } else {
        desk.out.hint("It comes back when its tag or branch moves: delete it in the Git repository as well.");
    }
}

async fn list(desk: &Desk, format: Option<&str>) -> Result<()> {
    if let Some(format) = format {
        desk.check_format(format)?;
    }
    let db = &desk.house.db;
    let names: HashMap<_, _> = sources::list(db).await?.into_iter().map(|source| (source.id, source.name)).collect();
    let mut all: Vec<Package> = Vec::new();
    for known in desk.house.sources.formats() {
        if format.is_some_and(|wanted| wanted != known.id()) {
            continue;
        }
        let mut after = String::new();
        loop {
            let page = packages::list(db, known.id(), &after, PAGE).await?;
            let is_last = i64::try_from(page.len()).is_ok_and(|count| count < PAGE);
            all.extend(page);
            if is_last {
                break;
            }
            all.last().map_or("", |package| package.name.as_str()).clone_into(&mut after);
        }
    }
    let source_of = |package: &Package| package.source_id.and_then(|id| names.get(&id)).map(String::as_str);
    if desk.out.wants_json() {
        let documents: Vec<_> = all.iter().map(|package| describe(package, source_of(package))).collect();
        return Ok(desk.out.document(&documents)?);
    }
    if all.is_empty() {
        return Ok(desk.out.line("There are no packages yet: `larder source add git URL` brings some.")?);
    }
    let mut table = Table::new(["FORMAT", "NAME", "SOURCE", "CHANGED", "DESCRIPTION"]);
    for package in &all {
        table.row([
            package.format.clone(),
            package.name.clone(),
            source_of(package).unwrap_or_default().to_owned(),
            when(package.changed_at),
            description(package),
        ]);
    }
    Ok(table.print(desk.out)?)
}

fn description(package: &Package) -> String {
    let summary: Value = serde_json::from_str(&package.summary).unwrap_or_default();
    summary["description"].as_str().unwrap_or_default().to_owned()
}

fn describe(package: &Package, source: Option<&str>) -> Value {
    json!({
        "id": package.id,
        "format": package.format,
        "name": package.name,
        "source": source,
        "summary": serde_json::from_str::<Value>(&package.summary).unwrap_or_default(),
        "created_at": package.created_at.rfc3339(),
        "changed_at": package.changed_at.rfc3339(),
    })
}

/// How often a version was fetched and installed.
#[derive(Clone, Copy, Default)]
struct Counts {
    downloads: u64,
    installs: u64,
}

async fn show(desk: &Desk, format: &str, name: &str) -> Result<()> {
    let house = &desk.house;
    let package = house.sources.find_package(format, name).await?;
    let source = match package.source_id {
        Some(id) => sources::find(&house.db, &id.to_string()).await?.map(|source| source.name),
        None => None,
    };
    let mut versions = house.sources.kept_versions(&package).await?;
    if let Some(format) = house.sources.format(format) {
        versions.sort_by(|a, b| format.compare(&b.version, &a.version));
    }
    let counts = counts(desk, &package).await?;
    let snippet = house.sources.format(format).map(|format| format.install_snippet(&desk.public_url(), &package.name));
    let snippet = snippet.unwrap_or_default();
    if desk.out.wants_json() {
        let mut document = describe(&package, source.as_deref());
        document["versions"] = versions.iter().map(|kept| version_document(kept, &counts)).collect();
        document["install"] = snippet.into();
        return Ok(desk.out.document(&document)?);
    }
    print(desk, &package, source.as_deref(), &versions, &counts, &snippet)
}

/// The statistics of the last days, by version.
async fn counts(desk: &Desk, package: &Package) -> Result<BTreeMap<String, Counts>> {
    let since = desk.house.host.now().day() - DAYS + 1;
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    for (version, kind, count) in of_versions(&desk.house.db, &package.format, &package.name, since).await? {
        let entry = counts.entry(version).or_default();
        match kind.as_str() {
            "install" => entry.installs += count,
            _ => entry.downloads += count,
        }
    }
    Ok(counts)
}

fn print(
    desk: &Desk,
    package: &Package,
    source: Option<&str>,
    versions: &[Kept],
    counts: &BTreeMap<String, Counts>,
    snippet: &str,
) -> Result<()> {
    let out = desk.out;
    out.line(&package.name)?;
    let described = description(package);
    if !described.is_empty() {
        out.line(format!("  {described}"))?;
    }
    out.line(format!("  from the source  {}", source.unwrap_or("none: it was uploaded")))?;
    out.line(format!("  changed          {}", when(package.changed_at)))?;
    let (downloads, installs) = counts.values().fold((0, 0), |sum, one| (sum.0 + one.downloads, sum.1 + one.installs));
    out.line(format!(
        "  last {DAYS} days     {}, {} told by clients",
        counted(downloads, "download"),
        counted(installs, "install")
    ))?;
    out.line("")?;
    let mut table = Table::new(["VERSION", "REFERENCE", "RELEASED", "ARTIFACT", "DOWNLOADS", "INSTALLS", ""]);
    for kept in versions {
        let count = counts.get(&kept.version).copied().unwrap_or_default();
        table.row([
            kept.display.clone(),
            short(&kept.reference).to_owned(),
            when(kept.released_at),
            kept.artifact.as_ref().map_or_else(|| "not built yet".to_owned(), |artifact| bytes(artifact.size)),
            count.downloads.to_string(),
            count.installs.to_string(),
            // Of another registry's packages only what was fetched is here; whether it still tells them is another question.
            if kept.visible() || kept.origin == FETCHED { "" } else { "only for old lock files" }.to_owned(),
        ]);
    }
    table.print(out)?;
    if versions.iter().any(|kept| kept.origin == FETCHED) {
        out.line(format!(
            "\nThese are the versions whose files were fetched and are kept: `larder explain {} {}` shows all that there are.",
            package.format, package.name
        ))?;
    }
    out.line(format!("\nInstall it:\n  {}", snippet.replace('\n', "\n  ")))?;
    Ok(())
}

fn version_document(kept: &Kept, counts: &BTreeMap<String, Counts>) -> Value {
    let count = counts.get(&kept.version).copied().unwrap_or_default();
    let artifact = kept
        .artifact
        .as_ref()
        .map(|artifact| json!({ "digest": artifact.digest.to_string(), "size": artifact.size, "sha1": artifact.sha1 }));
    json!({
        "id": kept.id,
        "version": kept.version,
        "display": kept.display,
        "reference": kept.reference,
        "origin": kept.origin,
        "stable": kept.stable,
        "visible": kept.visible(),
        "pointer": kept.pointer,
        "released_at": Time::rfc3339(kept.released_at),
        "artifact": artifact,
        "downloads": count.downloads,
        "installs": count.installs,
    })
}
