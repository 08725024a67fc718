//! Bringing manifests in: a tag is looked at again when it is no longer fresh, and what it names is kept as if it had been
//! pushed, with the blobs that are not here yet as promises.

use std::sync::Arc;

use larder_core::{Digest, Kind, Result};
use larder_db::{
    Batch, CommitError, changes, edges,
    events::{self, Actor, Event},
    leases,
    packages::{self, Package},
    upstream_checks::{self as checks, Check},
};
use serde_json::json;

use super::{
    Failure, Looked, Origin, PATIENCE, Proxy, Stale,
    client::{Client, Fetched},
    key, tag_subject,
};
use crate::{
    ID, MANIFEST, Registry,
    error::Refusal,
    manifests::{Inventory, Push, no_manifest, pointer_subject, subject},
    model::{Manifest, Needed},
    names::Reference,
};

/// How often a manifest that lost a race is kept again.
const ATTEMPTS: usize = 10;

/// In how many other repositories a blob is looked for before it is fetched again.
const SIBLINGS: i64 = 20;

/// What is known of a tag of an upstream.
struct KnownTag {
    /// What it names here.
    reference: Option<String>,
    /// When the upstream was asked, and what it said.
    check: Option<Check>,
    /// Whether that is so recent that it need not be asked again.
    is_fresh: bool,
}

impl Proxy {
    /// Sees to it that what is here of a manifest is true, as far as an upstream has a say in it.
    pub(crate) async fn manifest(&self, name: &str, reference: &Reference<'_>) -> Result<Looked, Refusal> {
        let Some(origin) = self.origin(name).await? else { return Ok(Looked::Own) };
        match reference {
            Reference::Digest(digest) => self.digest(name, origin, digest).await,
            Reference::Tag(tag) => self.tag(name, origin, tag).await,
        }
    }

    async fn digest(&self, name: &str, origin: Origin, digest: &Digest) -> Result<Looked, Refusal> {
        let text = digest.to_string();
        if let Some(package) = &origin.package
            && !packages::by_reference(self.db(), package.id, &text, MANIFEST).await?.is_empty()
        {
            return Ok(Looked::Here { changed: false });
        }
        let unknown = || no_manifest(name, &Reference::Digest(*digest));
        let key = key(name, &text);
        if self.is_absent(&key) {
            return Err(unknown());
        }
        let (proxy, here, there, client) = (self.clone(), name.to_owned(), origin.there, origin.client);
        let flight = self.inner.manifests.join(self.db().host(), &key, || async move {
            // A flight before this one may have landed since it was looked for.
            if let Some(package) = packages::find(proxy.db(), ID, &here).await?
                && !packages::by_reference(proxy.db(), package.id, &text, MANIFEST).await?.is_empty()
            {
                return Ok(true);
            }
            let fetched = client.manifest(&there, &text).await?;
            proxy.keep(&client, &here, &there, None, fetched).await
        });
        match flight.await {
            Ok(changed) => Ok(Looked::Here { changed }),
            Err(failure) => {
                if matches!(failure, Failure::Absent) {
                    self.note_absent(&key);
                }
                Err(failure.refusal(name, unknown))
            }
        }
    }

    async fn tag(&self, name: &str, origin: Origin, tag: &str) -> Result<Looked, Refusal> {
        let unknown = || no_manifest(name, &Reference::Tag(tag));
        let KnownTag { reference: known, check, is_fresh } =
            self.known_tag(&origin.client, &origin.there, origin.package.as_ref(), tag).await?;
        if is_fresh {
            return Ok(Looked::Here { changed: false });
        }
        let key = key(name, tag);
        if known.is_none() && self.is_absent(&key) {
            return Err(unknown());
        }
        let since = check.map(|check| check.checked_at);
        let is_known = known.is_some();
        if is_known && let Some(why) = self.trouble(&key) {
            return Ok(Looked::Stale(Stale { since, why }));
        }
        let (proxy, here, tag) = (self.clone(), name.to_owned(), tag.to_owned());
        let flight = self.inner.manifests.join(self.db().host(), &key, || proxy.look(here, origin, tag));
        let looked = if is_known { self.db().host().within(PATIENCE, flight).await } else { Some(flight.await) };
        match looked {
            Some(Ok(changed)) => Ok(Looked::Here { changed }),
            Some(Err(Failure::Absent)) => {
                self.note_absent(&key);
                Err(unknown())
            }
            Some(Err(failure)) if is_known => {
                self.note_trouble(&key, failure.text());
                Ok(Looked::Stale(Stale { since, why: failure.text().to_owned() }))
            }
            Some(Err(failure)) => Err(failure.refusal(name, unknown)),
            None => {
                let why = "the upstream takes long to answer";
                self.note_trouble(&key, why);
                Ok(Looked::Stale(Stale { since, why: why.to_owned() }))
            }
        }
    }

    /// What is known of a tag without asking.
    async fn known_tag(&self, client: &Client, there: &str, package: Option<&Package>, tag: &str) -> Result<KnownTag> {
        let upstream = &client.upstream;
        let check = checks::find(self.db(), upstream.id(), &tag_subject(there, tag)).await?;
        let known = match package {
            Some(package) => packages::by_pointer(self.db(), package.id, tag, MANIFEST).await?,
            None => None,
        };
        let reference = known.map(|version| version.reference);
        let is_fresh = check.as_ref().is_some_and(|check| {
            reference.as_ref() == Some(&check.validator) && self.now().since(check.checked_at) < upstream.source.every
        });
        Ok(KnownTag { reference, check, is_fresh })
    }

    /// Looks at a tag upstream. Gives whether something changed here.
    async fn look(self, name: String, origin: Origin, tag: String) -> Result<bool, Failure> {
        let Origin { client, there, .. } = origin;
        // A flight before this one may have landed since it was looked for.
        let package = packages::find(self.db(), ID, &name).await?;
        let KnownTag { reference: known, is_fresh, .. } =
            self.known_tag(&client, &there, package.as_ref(), &tag).await?;
        if is_fresh {
            return Ok(true);
        }
        if let (Some(known), Some(package)) = (&known, &package) {
            match client.manifest_digest(&there, &tag).await {
                Ok(Some(digest)) if digest.to_string() == *known => {
                    let check = Check { checked_at: self.now(), validator: known.clone() };
                    let put = checks::put(client.upstream.id(), &tag_subject(&there, &tag), &check);
                    self.db().commit(put.into()).await.map_err(larder_core::Error::from)?;
                    return Ok(false);
                }
                Ok(_) => {}
                Err(Failure::Absent) => {
                    self.tag_is_gone(&client, package, &there, &tag, known).await?;
                    return Err(Failure::Absent);
                }
                Err(failure) => return Err(failure),
            }
        }
        let fetched = client.manifest(&there, &tag).await?;
        self.keep(&client, &name, &there, Some(&tag), fetched).await
    }

    /// A tag is not there any more, and so not here. What it named stays as long as something else needs it.
    async fn tag_is_gone(
        &self,
        client: &Client,
        package: &Package,
        there: &str,
        tag: &str,
        known: &str,
    ) -> Result<(), Failure> {
        let host = self.db().host();
        let event = Event::new(&Actor::house(), "pointer.remove", pointer_subject(&package.name, tag))
            .with(json!({ "from": known, "source": client.upstream.source.name }));
        let batch = Batch::new()
            .with(packages::points_at(package.id, tag, known))
            .with(packages::remove_pointer(package.id, tag))
            .with(packages::changed(package.id, host.now()))
            .with(checks::remove(client.upstream.id(), &tag_subject(there, tag)))
            .with(events::record(host, &event))
            .with(changes::notify(host, &packages::topic(ID, &package.name)));
        match self.db().commit(batch).await {
            // Somebody else saw it too.
            Ok(_) | Err(CommitError::Guard(_)) => Ok(()),
            Err(error) => Err(larder_core::Error::from(error).into()),
        }
    }

    /// Keeps a manifest, and lets the tag name it. Gives whether anything is new.
    async fn keep(
        &self,
        client: &Arc<Client>,
        name: &str,
        there: &str,
        tag: Option<&str>,
        fetched: Fetched,
    ) -> Result<bool, Failure> {
        let Fetched { bytes, digest, content_type } = fetched;
        let manifest = match Manifest::parse(&bytes, content_type.as_deref()) {
            Ok(manifest) => manifest,
            Err(refusal) => {
                return Err(Failure::Failed(
                    Kind::Upstream,
                    format!("{} does not answer with a manifest: {}", client.host(), refusal.message()),
                ));
            }
        };
        let tags = tag.into_iter().collect();
        let push = Push {
            name,
            digest: Some(digest),
            tags,
            content_type: content_type.as_deref(),
            bytes,
            origin: &client.upstream.source.name,
        };
        let registry = &self.inner.registry;
        for _ in 0..ATTEMPTS {
            registry.store_manifest(&push, digest).await.map_err(|refusal| told(&refusal))?;
            if let Some(changed) = self.try_keep(client, there, &push, &manifest, digest).await? {
                return Ok(changed);
            }
        }
        Err(Failure::Failed(
            Kind::Unavailable,
            "too many others changed this repository just now: try again".to_owned(),
        ))
    }

    /// `None` if somebody else was faster, and it must be decided again.
    async fn try_keep(
        &self,
        client: &Client,
        there: &str,
        push: &Push<'_>,
        manifest: &Manifest,
        digest: Digest,
    ) -> Result<Option<bool>, Failure> {
        let (db, host, now) = (self.db(), self.db().host(), self.now());
        let source = &client.upstream.source;
        let registry = &self.inner.registry;
        let text = digest.to_string();
        let reservations = self.inner.reservations.latest().await?;
        let package = packages::find(db, ID, push.name).await?;
        if reservations.covers(ID, push.name)
            || package.as_ref().is_some_and(|package| package.source_id != Some(source.id))
        {
            // Somebody pushed it here meanwhile, or reserved it.
            return Err(Failure::Absent);
        }
        let mut batch = Batch::new().with(reservations.unchanged());
        let package_id = if let Some(package) = &package {
            batch.push(packages::exists(package.id));
            package.id
        } else {
            let new = Package {
                id: host.new_id(),
                format: ID.to_owned(),
                name: push.name.to_owned(),
                source_id: Some(source.id),
                summary: "{}".to_owned(),
                created_at: now,
                changed_at: now,
            };
            batch.push(packages::name_free(ID, push.name));
            batch.push(packages::insert(&new));
            new.id
        };
        let known = packages::by_reference(db, package_id, &text, MANIFEST).await?.pop();
        let mut changed = known.is_none();
        let version_id = if let Some(known) = known {
            batch.push(packages::version_exists(known.id));
            known.id
        } else {
            let inventory = self.inventory(client, push.name, manifest).await?;
            let id = host.new_id();
            batch.extend(registry.insert(id, package_id, push, manifest, digest, &inventory));
            let detail = json!({
                "digest": text, "mediaType": manifest.media_type, "size": push.bytes.len(), "source": source.name,
            });
            batch.push(events::record(
                host,
                &Event::new(&Actor::house(), "version.publish", subject(push.name)).with(detail),
            ));
            id
        };
        for tag in &push.tags {
            let before = packages::by_pointer(db, package_id, tag, MANIFEST).await?.map(|version| version.reference);
            let check = Check { checked_at: now, validator: text.clone() };
            batch.push(checks::put(source.id, &tag_subject(there, tag), &check));
            if before.as_deref() == Some(text.as_str()) {
                continue;
            }
            changed = true;
            batch.push(packages::points_at(package_id, tag, before.as_deref().unwrap_or("")));
            batch.push(packages::put_pointer(package_id, tag, version_id, now));
            let detail = json!({ "from": before, "to": text, "source": source.name });
            let event = Event::new(&Actor::house(), "pointer.set", pointer_subject(push.name, tag)).with(detail);
            batch.push(events::record(host, &event));
        }
        if changed {
            batch.push(packages::changed(package_id, now));
            batch.extend(edges::no_orphans(version_id, package_id, &text));
            batch.push(changes::notify(host, &packages::topic(ID, push.name)));
        }
        match db.commit(batch).await {
            Ok(_) => Ok(Some(changed)),
            Err(CommitError::Guard(_)) => Ok(None),
            Err(CommitError::Other(error)) if error.kind() == Kind::Conflict => Ok(None),
            Err(error) => Err(larder_core::Error::from(error).into()),
        }
    }

    /// What of a manifest is here. Nothing need be: the rest comes when somebody asks for it.
    async fn inventory(&self, client: &Client, name: &str, manifest: &Manifest) -> Result<Inventory, Failure> {
        let registry = &self.inner.registry;
        let mut inventory = Inventory { blobs: Vec::new(), absent_blobs: Vec::new(), parts: Vec::new() };
        for needed in &manifest.blobs {
            let seen = registry.visible(name, &needed.digest).await.map_err(|refusal| told(&refusal))?;
            let is_here = match seen {
                Some(seen) => seen.size == needed.size,
                None => self.is_at_a_sibling(client, name, needed).await?,
            };
            if is_here {
                inventory.blobs.push(needed.clone());
            } else {
                inventory.absent_blobs.push(needed.digest);
            }
        }
        Ok(inventory)
    }

    /// Whether another repository of the same upstream has a blob: what it gave for one it need not give again. Blobs of
    /// anybody else are not looked at: a manifest is no proof that its author has what it refers to.
    async fn is_at_a_sibling(&self, client: &Client, name: &str, needed: &Needed) -> Result<bool, Failure> {
        let db = self.db();
        let registry: &Registry = &self.inner.registry;
        let others = leases::packages_with(db, ID, &needed.digest, self.now(), SIBLINGS).await?;
        for other in others {
            let is_sibling = packages::find(db, ID, &other)
                .await?
                .is_some_and(|package| package.source_id == Some(client.upstream.id()));
            if !is_sibling {
                continue;
            }
            let seen = registry.visible(&other, &needed.digest).await.map_err(|refusal| told(&refusal))?;
            if seen.is_some_and(|seen| seen.size == needed.size) {
                return Ok(registry.blobs.lease(&needed.digest, registry.lease_of(name, &needed.digest)).await?);
            }
        }
        Ok(false)
    }
}

/// A refusal of our own operations, for many who wait.
fn told(refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::House(error) => Failure::Failed(error.kind(), error.message().to_owned()),
        Refusal::Said(_) => Failure::Failed(Kind::Internal, refusal.message().to_owned()),
    }
}
