//! Forges at the command line: adding one, and what `larder source show` tells of one. A discovery is a sync, and so in
//! [`super::sync`].

use anyhow::Result;
use larder_core::{Id, time::format_duration};
use larder_db::{
    forges::{self as rows, Repository, RepositoryState},
    sources::Source,
};
use larder_jobs::queue;
use larder_sources::{
    forges::{EVERY, ForgeKind, ForgeSettings, NewForge},
    settings::GitSettings,
    work::SYNC,
};
use serde_json::{Value, json};

use super::{Desk, source::print_some};
use crate::{
    cli::AddSource,
    output::{Output, when_or},
};

/// Adds a forge: `wanted` is `acme/*` and the like.
pub async fn add(
    desk: &Desk,
    new: &AddSource,
    kind: ForgeKind,
    wanted: &str,
    repositories: GitSettings,
) -> Result<Source> {
    let house = &desk.house;
    let forge = NewForge {
        kind,
        wanted,
        api: new.api.as_deref(),
        name: new.name.as_deref(),
        credential: new.credential.as_deref(),
        every: new.list_every.unwrap_or(EVERY),
        repositories_every: new.every.unwrap_or(super::add::EVERY),
        repositories,
    };
    let source = house.forges.add(&desk.actor, forge).await?;
    queue::enqueue(&house.db, SYNC, &source.id.to_string(), house.host.now()).await?;
    Ok(source)
}

/// What is known of a forge and its repositories.
pub struct Forge {
    settings: ForgeSettings,
    repositories: Vec<Repository>,
    /// The names of the sources that they are.
    names: Vec<(Id, String, bool)>,
}

impl Forge {
    /// That of a source; `None` if it is no forge.
    pub async fn of(desk: &Desk, source: &Source) -> Result<Option<Self>> {
        if ForgeKind::of(source).is_none() {
            return Ok(None);
        }
        let children = desk.house.forges.children(source).await?;
        Ok(Some(Self {
            settings: ForgeSettings::read(&source.settings)?,
            repositories: rows::of_source(&desk.house.db, source.id).await?,
            names: children.into_iter().map(|child| (child.id, child.name, child.archived)).collect(),
        }))
    }

    fn child(&self, repository: &Repository) -> Option<(&str, bool)> {
        let id = repository.child_id?;
        self.names.iter().find(|(own, ..)| *own == id).map(|(_, name, archived)| (name.as_str(), *archived))
    }

    /// For a JSON document.
    pub fn document(&self) -> Value {
        let repositories = self.repositories.iter().map(|repository| {
            let child = self.child(repository);
            json!({
                "id": repository.remote_id,
                "name": repository.name,
                "state": repository.state.as_str(),
                "note": repository.note,
                "source": child.map(|(name, _)| name),
                "archived": child.is_some_and(|(_, archived)| archived),
                "looked_at": repository.looked_at.rfc3339(),
            })
        });
        repositories.collect()
    }

    /// For people.
    pub fn print(&self, source: &Source, next: &str, credential: Option<&str>, out: Output) -> Result<()> {
        let report: Value =
            source.report.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        out.line(format!("{}: {} at {} ({})", source.name, self.settings.pattern, source.url, source.kind))?;
        out.line(format!("  state       {}", source.state.as_str()))?;
        if let Some(problem) = &source.problem {
            out.line(format!("  problem     {problem}"))?;
        }
        out.line(format!("  changed     {}", when_or(source.synced_at, "never")))?;
        out.line(format!("  next look   {next} (every {})", format_duration(source.every)))?;
        out.line(format!("  credential  {}", credential.unwrap_or("none")))?;
        out.line(format!("  rate limit  {}", rate_limit(&report["rate_limit"])))?;
        if let Some(at) = report["resume_at"].as_str() {
            out.line(format!("  paused      until {at}: the forge wants to be left alone"))?;
        }
        if let Some(at) = report["credential_expires_at"].as_str() {
            out.line(format!("  expires     the credential ends at {at}"))?;
        }
        self.print_repositories(out)
    }

    fn print_repositories(&self, out: Output) -> Result<()> {
        for (state, title) in [
            (RepositoryState::Added, "Repositories"),
            (RepositoryState::Gone, "Not listed any more"),
            (RepositoryState::Taken, "Left alone"),
            (RepositoryState::Refused, "Refused"),
        ] {
            let of_state: Vec<_> = self.repositories.iter().filter(|repository| repository.state == state).collect();
            if of_state.is_empty() {
                continue;
            }
            out.line(format!("\n{title}"))?;
            let line = |repository: &&Repository| {
                let name = &repository.name;
                match (self.child(repository), &repository.note) {
                    (Some((child, archived)), None) => {
                        format!("  {name}: source `{child}`{}", if archived { ", archived" } else { "" })
                    }
                    (Some((child, _)), Some(note)) => format!("  {name}: source `{child}`: {note}"),
                    (None, Some(note)) => format!("  {name}: {note}"),
                    (None, None) => format!("  {name}: its source was removed here, and stays so"),
                }
            };
            print_some(out, of_state.iter().map(line).collect::<Vec<_>>().into_iter())?;
        }
        let plain = self.repositories.iter().filter(|repository| repository.state == RepositoryState::Plain).count();
        if plain > 0 {
            out.line(format!("\nWithout packages: {plain} more; --json lists them."))?;
        }
        Ok(())
    }
}

fn rate_limit(rate: &Value) -> String {
    match (rate["remaining"].as_u64(), rate["limit"].as_u64()) {
        (Some(remaining), Some(limit)) => {
            let reset = rate["reset_at"].as_str().map_or_else(String::new, |at| format!(", whole again at {at}"));
            format!("{remaining} of {limit} questions left{reset}")
        }
        _ => "the forge tells of none".to_owned(),
    }
}

/// The line about the forge that found a Git source, with what it last said of it.
pub async fn origin_of(desk: &Desk, source: &Source) -> Result<Option<Origin>> {
    let Some(parent) = source.parent_id else { return Ok(None) };
    let Some(forge) = larder_db::sources::find(&desk.house.db, &parent.to_string()).await? else { return Ok(None) };
    let repository = rows::of_child(&desk.house.db, source.id).await?;
    Ok(Some(Origin { forge: forge.name, repository }))
}

/// The forge that found a source.
pub struct Origin {
    forge: String,
    repository: Option<Repository>,
}

impl Origin {
    /// For a JSON document.
    pub fn document(&self) -> Value {
        json!({
            "source": self.forge,
            "repository": self.repository.as_ref().map(|repository| &repository.name),
            "listed": self.repository.as_ref().map(|repository| repository.state != RepositoryState::Gone),
        })
    }

    /// For people.
    pub fn line(&self, archived: bool) -> String {
        let path = self.repository.as_ref().map_or("", |repository| &repository.name);
        let gone = self.repository.as_ref().is_some_and(|repository| repository.state == RepositoryState::Gone);
        let note = match (gone, archived) {
            (true, _) => ", not listed there any more",
            (false, true) => ", archived: looked at once a day",
            (false, false) => "",
        };
        format!("  forge       {}: {path}{note}", self.forge)
    }
}
