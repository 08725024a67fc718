//! `larder source add`: a Git repository, a forge with many, or another registry.

use anyhow::{Result, bail};
use larder_db::sources::Source;
use larder_jobs::queue;
use larder_sources::{
    forges::ForgeKind,
    manage::{GIT, NewGitSource},
    probe::Probed,
    registry::{self, NewRegistry, Upstream},
    settings::GitSettings,
    work::SYNC,
};
use serde_json::json;

use super::{Desk, forge, probe};
use crate::{
    cli::{AddSource, Dists, Keep, MovedTags, wrong_usage},
    output::complain,
};

/// How often a Git source is looked at if nobody says otherwise.
pub const EVERY: std::time::Duration = std::time::Duration::from_secs(4 * 3_600);

pub async fn run(desk: &Desk, new: AddSource) -> Result<()> {
    let Some(url) = new.url.clone() else {
        if new.kind.contains([':', '/']) {
            bail!("say what it is: `larder source add git {}`", new.kind);
        }
        wrong_usage(&format!("the URL is missing: `larder source add {} URL`", new.kind));
    };
    let for_git = new.every.is_some() || new.keep.is_some() || new.moved_tags.is_some() || !new.packages.is_empty();
    let for_registries = !new.only.is_empty() || new.fresh.is_some() || new.prefix.is_some() || new.dists.is_some();
    let for_forges = new.api.is_some() || new.list_every.is_some();
    if new.kind == GIT {
        if for_registries {
            wrong_usage("--only, --fresh, --prefix and --dists are for other registries, and this is a Git repository");
        }
        if for_forges {
            wrong_usage("--api and --list-every are for forges, and this is one Git repository");
        }
        return git(desk, &new, &url).await;
    }
    if let Some(kind) = ForgeKind::parse(&new.kind) {
        if for_registries {
            wrong_usage(
                "--only, --fresh, --prefix and --dists are for other registries, and this is a forge: write 'acme/lib-*'",
            );
        }
        let source = forge::add(desk, &new, kind, &url, git_settings(&new)).await?;
        say(desk, &source, None)?;
        desk.out.hint(format!("Next: larder source sync {}   (a running server has begun already)", source.name));
        return Ok(());
    }
    if for_forges {
        wrong_usage("--api and --list-every are for forges, and this is another registry");
    }
    if for_git {
        wrong_usage(
            "--every, --keep, --moved-tags and --packages are for Git repositories, and this is another registry",
        );
    }
    upstream(desk, &new, &url).await
}

async fn git(desk: &Desk, new: &AddSource, url: &str) -> Result<()> {
    let house = &desk.house;
    let (name, credential) = (new.name.as_deref(), new.credential.as_deref());
    let git = NewGitSource { url, name, credential, every: new.every.unwrap_or(EVERY), settings: git_settings(new) };
    let source = house.sources.add_git(&desk.actor, git).await?;
    queue::enqueue(&house.db, SYNC, &source.id.to_string(), house.host.now()).await?;
    say(desk, &source, None)?;
    for other in house.sources.at_the_same_address(&source).await? {
        complain(format!(
            "Remark: the source `{}` has the same address. Both are looked at; each package comes from the one that brought it first, and is skipped in the other.",
            other.name
        ));
    }
    desk.out.hint(format!("Next: larder source sync {}   (a running server has begun already)", source.name));
    Ok(())
}

/// What the options say of a Git repository, or of each one of a forge.
fn git_settings(new: &AddSource) -> GitSettings {
    GitSettings {
        keep: new.keep.unwrap_or(Keep::Light).word(),
        moved_tags: new.moved_tags.unwrap_or(MovedTags::Freeze).word(),
        show_source: !new.hide_source,
        packages: new.packages.clone(),
    }
}

async fn upstream(desk: &Desk, new: &AddSource, url: &str) -> Result<()> {
    let registry = NewRegistry {
        format: &new.kind,
        url,
        name: new.name.as_deref(),
        credential: new.credential.as_deref(),
        only: new.only.clone(),
        fresh: new.fresh.unwrap_or(registry::FRESH),
        prefix: new.prefix.as_deref(),
        dists: new.dists.map(Dists::word).unwrap_or_default(),
        show_source: if new.show_source { Some(true) } else { new.hide_source.then_some(false) },
    };
    let source = desk.house.sources.add_registry(&desk.actor, registry).await?;
    let takes_all = Upstream::read(source.clone())?.takes_every_name();
    let probed = probe::quickly(desk, &source).await?;
    say(desk, &source, Some(&probed))?;
    if takes_all {
        note_names(desk, &source)?;
    }
    probe::warn(&source, &probed);
    Ok(())
}

/// Says what it means that a registry is asked for every name.
fn note_names(desk: &Desk, source: &Source) -> Result<()> {
    let can_prefix = desk.house.sources.format(&source.kind).and_then(|format| format.proxied()?.prefix.then_some(()));
    let note = if can_prefix.is_some() {
        format!(
            "Every name that nobody pushed here yet is its own now, and cannot be pushed. To leave some, choose with --only or \
             --prefix: `larder source set {} --only 'library/*'`, or remove it, and add it again with --prefix.",
            source.name
        )
    } else {
        format!(
            "It is asked for every name that is not here yet. Keep your own from it: `larder reserve add 'acme/*' --format {}`, or \
             choose: `larder source set {} --only 'vendor/*'`.",
            source.kind, source.name
        )
    };
    Ok(desk.out.line(note)?)
}

fn say(desk: &Desk, source: &Source, probed: Option<&Probed>) -> Result<()> {
    let mut document = json!({ "id": source.id, "name": source.name, "kind": source.kind, "url": source.url });
    if let Some(probed) = probed {
        document["probe"] = probed.document();
    }
    Ok(desk.out.either(&document, format!("Added the source `{}`: {}", source.name, source.url))?)
}
