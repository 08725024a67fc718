//! Finding packages, and taking them or single versions away: the operations behind the command line, and later the API
//! and the panel. Bringing them in is [`crate::sync`]'s.

use larder_core::{Error, Result};
use larder_db::{
    Batch, changes, events,
    events::{Actor, Event},
    packages::{self, Kept, Package},
};
use serde_json::json;

use crate::Sources;

impl Sources {
    /// The package of this name, written as clients may write it, or an error that says how to see which there are.
    pub async fn find_package(&self, format: &str, name: &str) -> Result<Package> {
        let known = self.format(format).ok_or_else(|| {
            let ids: Vec<_> = self.formats().iter().map(|format| format.id()).collect();
            Error::invalid(format!("there is no format `{format}`: write {}", ids.join(" or ")))
        })?;
        let normal = known.package_name(name)?;
        packages::find(&self.db, format, &normal).await?.ok_or_else(|| {
            Error::not_found(format!("there is no package `{name}`: `larder package list --format {format}` shows all"))
        })
    }

    /// Every version of a package, visible or not, the newest first, with its artifact.
    pub async fn kept_versions(&self, package: &Package) -> Result<Vec<Kept>> {
        let artifact = self.format(&package.format).map_or("", |format| format.artifact());
        packages::kept(&self.db, package.id, artifact).await
    }

    /// Takes a package away with all its versions and artifacts. Their blobs are collected later.
    pub async fn remove_package(&self, actor: &Actor, format: &str, name: &str) -> Result<Package> {
        let package = self.find_package(format, name).await?;
        let event = Event::new(actor, "package.remove", subject(&package));
        let batch = Batch::new()
            .with(packages::exists(package.id))
            .with(packages::remove(package.id))
            .with(events::record(self.db.host(), &event))
            .with(changes::notify(self.db.host(), &packages::topic(&package.format, &package.name)));
        self.db.commit(batch).await?;
        Ok(package)
    }

    /// Takes a version away: everything that was ever served under this name, in its normal form or as its author wrote
    /// it. Gives what went.
    pub async fn remove_version(&self, actor: &Actor, format: &str, name: &str, version: &str) -> Result<Vec<Kept>> {
        let package = self.find_package(format, name).await?;
        let mut going = self.kept_versions(&package).await?;
        going.retain(|kept| is_called(kept, version));
        if going.is_empty() {
            return Err(Error::not_found(format!(
                "{} has no version `{version}`: `larder package show {} {}` lists those that it has",
                package.name, package.format, package.name
            )));
        }
        let host = self.db.host();
        let references: Vec<&str> = going.iter().map(|kept| kept.reference.as_str()).collect();
        let event = Event::new(actor, "version.remove", subject(&package))
            .with(json!({ "version": going[0].version, "references": references }));
        let batch = Batch::new()
            .with(packages::exists(package.id))
            .with(packages::changed(package.id, host.now()))
            .with(events::record(host, &event))
            .with(changes::notify(host, &packages::topic(&package.format, &package.name)));
        let removals = going.iter().map(|kept| packages::remove_version(kept.id));
        self.db.commit(removals.fold(batch, Batch::with)).await?;
        Ok(going)
    }
}

fn subject(package: &Package) -> String {
    format!("package:{}:{}", package.format, package.name)
}

/// Whether people call a version so: `1.0.0` is also `v1.0.0`, and a branch goes by the name of its pointer.
fn is_called(kept: &Kept, name: &str) -> bool {
    let bare = |text: &str| text.strip_prefix('v').unwrap_or(text).to_owned();
    kept.version == name || kept.pointer.as_deref() == Some(name) || bare(&kept.display) == bare(name)
}
