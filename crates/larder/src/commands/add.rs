//! `larder source add`: a Git repository, a forge with many, or another registry.

use anyhow::{Result, bail};
use larder_db::sources::Source;
use larder_jobs::queue;
use larder_sources::{
    forges::ForgeKind,
    manage::{GIT, NewGitSource},
    registry::{self, NewRegistry, Upstream},
    settings::{GitSettings, KeepWord, MovedTagsWord},
    work::SYNC,
};
use serde_json::json;

use super::{Desk, forge};
use crate::cli::{AddSource, Dists, Keep, MovedTags, wrong_usage};

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
        say(desk, &source)?;
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
    say(desk, &source)?;
    desk.out.hint(format!("Next: larder source sync {}   (a running server has begun already)", source.name));
    Ok(())
}

/// What the options say of a Git repository, or of each one of a forge.
fn git_settings(new: &AddSource) -> GitSettings {
    GitSettings {
        keep: match new.keep.unwrap_or(Keep::Light) {
            Keep::Light => KeepWord::Light,
            Keep::Full => KeepWord::Full,
        },
        moved_tags: match new.moved_tags.unwrap_or(MovedTags::Freeze) {
            MovedTags::Freeze => MovedTagsWord::Freeze,
            MovedTags::Follow => MovedTagsWord::Follow,
        },
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
        dists: match new.dists {
            Some(Dists::Upstream) => registry::Dists::Upstream,
            Some(Dists::Here) | None => registry::Dists::Here,
        },
        show_source: if new.show_source { Some(true) } else { new.hide_source.then_some(false) },
    };
    let source = desk.house.sources.add_registry(&desk.actor, registry).await?;
    let takes_all = Upstream::read(source.clone())?.takes_every_name();
    say(desk, &source)?;
    if !takes_all || desk.out.wants_json() {
        return Ok(());
    }
    let can_prefix = desk.house.sources.format(&source.kind).and_then(|format| format.proxied()?.prefix.then_some(()));
    let note = if can_prefix.is_some() {
        "Every name that nobody pushed here yet is its own now, and cannot be pushed. To leave some: remove it, and add it \
         again with --only or --prefix."
            .to_owned()
    } else {
        format!(
            "It is asked for every name that is not here yet. Keep your own from it: `larder reserve add 'acme/*' --format {}`, or \
             remove it, and add it again with --only.",
            source.kind
        )
    };
    Ok(desk.out.line(note)?)
}

fn say(desk: &Desk, source: &Source) -> Result<()> {
    let document = json!({ "id": source.id, "name": source.name, "kind": source.kind, "url": source.url });
    Ok(desk.out.either(&document, format!("Added the source `{}`: {}", source.name, source.url))?)
}
