//! Tags: listed, taken away, looked back at, and put back to where they were.

use larder_core::{Digest, Error, Kind, Result};
use larder_db::{
    Batch, CommitError, changes, edges,
    events::{self, Actor, Event, Recorded, Wanted},
    packages,
};
use serde_json::json;

use crate::{
    ID, MANIFEST, Registry,
    error::Refusal,
    manifests::{immutable, no_manifest, pointer_subject},
    names::Reference,
};

/// How many rows are read at once.
const PAGE: i64 = 1_000;

/// How much of a tag's history is looked at.
const HISTORY: u32 = 1_000;

impl Registry {
    /// The tags of a repository, sorted by their bytes; `None` if there is no such repository.
    pub(crate) async fn tag_names(&self, name: &str) -> Result<Option<Vec<String>>> {
        let Some(package) = packages::find(&self.db, ID, name).await? else { return Ok(None) };
        let mut tags: Vec<String> = Vec::new();
        loop {
            let after = tags.last().map_or("", String::as_str);
            let page = packages::pointers(&self.db, package.id, after, PAGE).await?;
            let is_last = i64::try_from(page.len()).is_ok_and(|count| count < PAGE);
            tags.extend(page.into_iter().map(|pointer| pointer.name));
            if is_last {
                break;
            }
        }
        // A database sorts by the rules of its own language.
        tags.sort_unstable();
        Ok(Some(tags))
    }

    /// Every repository, sorted by its bytes.
    pub(crate) async fn repository_names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names.last().map_or("", String::as_str);
            let page = packages::list(&self.db, ID, after, PAGE).await?;
            let is_last = i64::try_from(page.len()).is_ok_and(|count| count < PAGE);
            names.extend(page.into_iter().map(|package| package.name));
            if is_last {
                break;
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Takes a tag away. The manifest that it named stays until nothing needs it.
    pub(crate) async fn delete_tag(&self, actor: &Actor, name: &str, tag: &str) -> Result<(), Refusal> {
        let unknown = || no_manifest(name, &Reference::Tag(tag));
        let package = packages::find(&self.db, ID, name).await?.ok_or_else(|| Refusal::no_repository(name))?;
        let version = packages::by_pointer(&self.db, package.id, tag, MANIFEST).await?.ok_or_else(unknown)?;
        if self.policies().await?.of(name).is_immutable(tag) {
            return Err(immutable(name, tag, &version.reference));
        }
        let host = self.host();
        let event =
            Event::new(actor, "pointer.remove", pointer_subject(name, tag)).with(json!({ "from": version.reference }));
        let batch = Batch::new()
            .with(packages::points_at(package.id, tag, &version.reference))
            .with(packages::remove_pointer(package.id, tag))
            .with(packages::changed(package.id, host.now()))
            .with(events::record(host, &event))
            .with(changes::notify(host, &packages::topic(ID, name)));
        match self.db.commit(batch).await {
            Ok(_) => Ok(()),
            Err(CommitError::Guard(_)) => {
                Err(Error::new(Kind::Conflict, format!("the tag `{tag}` moved just now: look again")).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What happened to a tag, the newest first.
    pub async fn tag_history(&self, name: &str, tag: &str) -> Result<Vec<Recorded>> {
        let wanted = Wanted {
            action: Some("pointer".to_owned()),
            subject: Some(pointer_subject(name, tag)),
            ..Wanted::default()
        };
        events::list(&self.db, &wanted, None, HISTORY).await
    }

    /// Puts a tag back to `to`, or, without it, to where it was before its last move. Gives where it was, and where it is.
    pub async fn rollback(
        &self,
        actor: &Actor,
        name: &str,
        tag: &str,
        to: Option<Digest>,
    ) -> Result<(Option<String>, String)> {
        let package = packages::find(&self.db, ID, name).await?.ok_or_else(|| {
            Error::not_found(format!("there is no repository `{name}`: `larder package list --format oci`"))
        })?;
        let now = packages::by_pointer(&self.db, package.id, tag, MANIFEST).await?.map(|version| version.reference);
        let target = match to {
            Some(digest) => digest.to_string(),
            None => self.before(name, tag, now.as_deref()).await?,
        };
        let version =
            packages::by_reference(&self.db, package.id, &target, MANIFEST).await?.pop().ok_or_else(|| {
                Error::not_found(format!(
                    "`{name}` does not have the manifest {target} any more: push it again, or choose another with --to"
                ))
            })?;
        if now.as_deref() == Some(target.as_str()) {
            return Err(Error::conflict(format!("the tag `{tag}` of `{name}` is at {target} already")));
        }
        // A tag that is gone may come back to where it was.
        if now.is_some() && self.policies().await?.of(name).is_immutable(tag) {
            return Err(Error::new(
                Kind::Forbidden,
                format!("the tag `{tag}` of `{name}` never moves: `larder oci policy list` shows the rule"),
            ));
        }
        let host = self.host();
        let event = Event::new(actor, "pointer.set", pointer_subject(name, tag))
            .with(json!({ "from": now, "to": target, "rollback": true }));
        let mut batch = Batch::new()
            .with(packages::version_exists(version.id))
            .with(packages::points_at(package.id, tag, now.as_deref().unwrap_or("")))
            .with(packages::put_pointer(package.id, tag, version.id, host.now()))
            .with(packages::changed(package.id, host.now()));
        batch.extend(edges::no_orphans(version.id, package.id, &target));
        batch.push(events::record(host, &event));
        batch.push(changes::notify(host, &packages::topic(ID, name)));
        self.db.commit(batch).await?;
        Ok((now, target))
    }

    /// Where a tag was before it came to where it is now.
    async fn before(&self, name: &str, tag: &str, now: Option<&str>) -> Result<String> {
        let history = self.tag_history(name, tag).await?;
        let mut from = history.iter().filter_map(|event| event.detail.get("from")?.as_str());
        from.find(|from| Some(*from) != now).map(str::to_owned).ok_or_else(|| {
            Error::not_found(format!("the tag `{tag}` of `{name}` was never anywhere else: choose a digest with --to"))
        })
    }
}
