//! Manifests: published in one batch with everything that they refer to, served as the bytes that came, taken away.

use std::collections::HashSet;

use bytes::Bytes;
use larder_core::{Digest, Id, Kind, Result, grant::Principal};
use larder_db::{
    Batch, CommitError, Statement, blobs, changes,
    edges::{self, Edge},
    events::{self, Actor, Event},
    leases,
    packages::{self, Artifact, Package, Version},
};
use serde_json::json;

use crate::{
    ID, MANIFEST, Registry,
    error::{Code, Refusal},
    model::{self, Manifest, Needed},
    names::Reference,
    policy::Rules,
    served::Served,
};

/// How often a publication that lost a race is decided again.
const ATTEMPTS: usize = 10;

/// How many manifests that consist of one are looked at before it is taken away.
const MOST_WHOLES: i64 = 10_000;

/// The origin of what a client sent.
pub(crate) const PUSH: &str = "push";

/// A manifest that a client sent.
#[derive(Debug)]
pub(crate) struct Push<'a> {
    pub(crate) name: &'a str,
    /// The digest that it must have; `None` if the client only named a tag.
    pub(crate) digest: Option<Digest>,
    pub(crate) tags: Vec<&'a str>,
    pub(crate) content_type: Option<&'a str>,
    pub(crate) bytes: Bytes,
    /// Where it comes from: [`PUSH`], or a source.
    pub(crate) origin: &'a str,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub(crate) digest: Digest,
    pub(crate) subject: Option<Digest>,
}

/// What a manifest refers to that is here, and what is not.
pub(crate) struct Inventory {
    pub(crate) blobs: Vec<Needed>,
    pub(crate) absent_blobs: Vec<Digest>,
    pub(crate) parts: Vec<Digest>,
}

impl Registry {
    /// The manifest that a reference names.
    pub(crate) async fn manifest(&self, name: &str, reference: &Reference<'_>) -> Result<Served, Refusal> {
        let package = packages::find(&self.db, ID, name).await?.ok_or_else(|| Refusal::no_repository(name))?;
        let version = match reference {
            Reference::Tag(tag) => packages::by_pointer(&self.db, package.id, tag, MANIFEST).await?,
            Reference::Digest(digest) => {
                packages::by_reference(&self.db, package.id, &digest.to_string(), MANIFEST).await?.pop()
            }
        };
        let version = version.ok_or_else(|| no_manifest(name, reference))?;
        let digest: Digest = version.reference.parse()?;
        let kept: model::Kept = serde_json::from_str(&version.metadata)
            .map_err(|error| larder_core::Error::internal("reading a manifest's row", error))?;
        let bytes = self.read(&digest).await?;
        Ok(Served::new(name, digest, &kept.media_type, bytes))
    }

    /// The bytes of a manifest.
    async fn read(&self, digest: &Digest) -> Result<Bytes> {
        use futures_util::TryStreamExt as _;
        let open = self.blobs.open(digest, None).await?;
        if let Some(bytes) = open.whole {
            return Ok(bytes);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(open.size).unwrap_or(0).min(model::LARGEST));
        let mut stream = open.stream;
        while let Some(chunk) = stream.try_next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// Makes a manifest and its tags visible, in one batch with what it refers to.
    pub(crate) async fn publish(&self, principal: &Principal, push: &Push<'_>) -> Result<Pushed, Refusal> {
        let manifest = Manifest::parse(&push.bytes, push.content_type)?;
        let digest = match push.digest {
            Some(wanted) => {
                let found = Digest::of_as(wanted.algorithm(), &push.bytes);
                if found != wanted {
                    return Err(Refusal::new(
                        Code::DigestInvalid,
                        format!("the manifest that was sent has the digest {found}, not {wanted}"),
                        "it was changed on its way, or the wrong bytes were sent: push again",
                    ));
                }
                wanted
            }
            None => Digest::of(&push.bytes),
        };
        let rules = self.policies().await?.of(push.name);
        let _reserved = self.check_quota(push.name, Some(&digest), push.bytes.len() as u64).await?;
        self.store_manifest(push, digest).await?;
        let pushed = Pushed { digest, subject: manifest.subject };
        for _ in 0..ATTEMPTS {
            match self.try_publish(principal, push, &manifest, digest, &rules).await? {
                Attempt::Done => return Ok(pushed),
                Attempt::Again => {}
            }
        }
        Err(busy())
    }

    /// Puts the manifest's own bytes, with a lease, so that they are there when the batch refers to them.
    pub(crate) async fn store_manifest(&self, push: &Push<'_>, digest: Digest) -> Result<(), Refusal> {
        let lease = self.lease_of(push.name, &digest);
        if self.blobs.lease(&digest, lease.clone()).await? {
            return Ok(());
        }
        let mut writer = self.blobs.begin_as(digest.algorithm()).await?;
        writer.write(push.bytes.clone()).await?;
        writer.finish_with(Some(digest), None, |_| lease).await?;
        Ok(())
    }

    async fn try_publish(
        &self,
        principal: &Principal,
        push: &Push<'_>,
        manifest: &Manifest,
        digest: Digest,
        rules: &Rules,
    ) -> Result<Attempt, Refusal> {
        let (host, now) = (self.host().clone(), self.host().now());
        let package = packages::find(&self.db, ID, push.name).await?;
        let known = match &package {
            Some(package) => packages::by_reference(&self.db, package.id, &digest.to_string(), MANIFEST).await?.pop(),
            None => None,
        };
        let actor = Actor::from(principal);
        let mut batch = Batch::new();
        let package_id = self.stay_or_come(&mut batch, package.as_ref(), push.name);
        let version_id = if let Some(known) = known {
            batch.push(packages::version_exists(known.id));
            known.id
        } else {
            let inventory = self.inventory(push.name, package.as_ref(), manifest, rules).await?;
            let id = host.new_id();
            batch.extend(self.insert(id, package_id, push, manifest, digest, &inventory));
            let detail =
                json!({ "digest": digest.to_string(), "mediaType": manifest.media_type, "size": push.bytes.len() });
            let event = Event::new(&actor, "version.publish", subject(push.name)).with(detail);
            batch.push(events::record(&host, &event));
            id
        };
        for tag in &push.tags {
            let before = match &package {
                Some(package) => packages::by_pointer(&self.db, package.id, tag, MANIFEST).await?,
                None => None,
            };
            let before = before.map(|version| version.reference);
            if before.as_deref() == Some(&digest.to_string()) {
                continue;
            }
            if let Some(before) = &before
                && rules.is_immutable(tag)
            {
                return Err(immutable(push.name, tag, before));
            }
            batch.push(packages::points_at(package_id, tag, before.as_deref().unwrap_or("")));
            batch.push(packages::put_pointer(package_id, tag, version_id, now));
            let detail = json!({ "from": before, "to": digest.to_string() });
            let event = Event::new(&actor, "pointer.set", pointer_subject(push.name, tag)).with(detail);
            batch.push(events::record(&host, &event));
        }
        batch.extend(edges::no_orphans(version_id, package_id, &digest.to_string()));
        batch.push(changes::notify(&host, &packages::topic(ID, push.name)));
        match self.db.commit(batch).await {
            Ok(_) => Ok(Attempt::Done),
            // Somebody else pushed, moved, deleted or collected something meanwhile: look again, and decide again.
            Err(CommitError::Guard(_)) => Ok(Attempt::Again),
            Err(CommitError::Other(error)) if error.kind() == Kind::Conflict => Ok(Attempt::Again),
            Err(error) => Err(error.into()),
        }
    }

    /// Adds to a batch that a repository is still there, or that it appears. Gives its id.
    fn stay_or_come(&self, batch: &mut Batch, package: Option<&Package>, name: &str) -> Id {
        let now = self.host().now();
        if let Some(package) = package {
            batch.push(packages::exists(package.id));
            batch.push(packages::changed(package.id, now));
            return package.id;
        }
        let package = Package {
            id: self.host().new_id(),
            format: ID.to_owned(),
            name: name.to_owned(),
            source_id: None,
            summary: "{}".to_owned(),
            created_at: now,
            changed_at: now,
        };
        batch.push(packages::name_free(ID, name));
        batch.push(packages::insert(&package));
        package.id
    }

    /// The statements that add a version with its artifacts and edges, and the guards that all of them are still there.
    pub(crate) fn insert(
        &self,
        id: Id,
        package: Id,
        push: &Push<'_>,
        manifest: &Manifest,
        digest: Digest,
        inventory: &Inventory,
    ) -> Vec<Statement> {
        let (host, now) = (self.host(), self.host().now());
        let needed: Vec<Digest> = inventory.blobs.iter().map(|needed| needed.digest).collect();
        let mut statements = leases::all_seen(ID, push.name, Some(package), &needed, now);
        statements.push(blobs::is_live(&digest));
        statements.extend(edges::all_there(package, &inventory.parts));
        let text = digest.to_string();
        let version = Version {
            id,
            version: text.clone(),
            display: text.clone(),
            reference: text,
            stable: true,
            listed: true,
            origin: push.origin.to_owned(),
            folder: String::new(),
            released_at: now,
            metadata: manifest.descriptor(&digest, push.bytes.len()).to_string(),
            sha1: None,
        };
        statements.push(packages::insert_version(package, &version, now));
        let own = Needed { digest, size: push.bytes.len() as u64, elsewhere: false };
        let names = std::iter::once(MANIFEST.to_owned()).chain(needed.iter().map(Digest::to_string));
        for (name, needed) in names.zip(std::iter::once(&own).chain(&inventory.blobs)) {
            let artifact = Artifact { digest: needed.digest, size: needed.size, sha1: String::new() };
            statements.push(packages::insert_artifact(host.new_id(), id, &name, &artifact, now));
        }
        let absent = inventory.absent_blobs.iter().map(|digest| (Edge::Blob, digest));
        let parts = manifest.parts.iter().map(|digest| (Edge::Part, digest));
        let about = manifest.subject.iter().map(|digest| (Edge::Subject, digest));
        for (edge, digest) in absent.chain(parts).chain(about) {
            statements.push(edges::insert(id, package, edge, &digest.to_string()));
        }
        statements
    }

    /// Looks for everything that a manifest refers to, and says what is missing or of another size.
    async fn inventory(
        &self,
        name: &str,
        package: Option<&Package>,
        manifest: &Manifest,
        rules: &Rules,
    ) -> Result<Inventory, Refusal> {
        let now = self.host().now();
        let sparse = rules.sparse.unwrap_or(false);
        let (mut present, mut absent, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for (at, needed) in manifest.blobs.iter().enumerate() {
            let seen = leases::seen(&self.db, ID, name, &needed.digest).await?;
            match seen.filter(|seen| seen.live && (seen.used || seen.leased_until.is_some_and(|until| until > now))) {
                Some(seen) if seen.size != needed.size => {
                    return Err(Refusal::new(
                        Code::ManifestInvalid,
                        format!(
                            "the manifest says that {} has {} bytes, but it has {}",
                            needed.digest, needed.size, seen.size
                        ),
                        "correct the size in the manifest",
                    ));
                }
                Some(_) => present.push(needed.clone()),
                None if needed.elsewhere || sparse => absent.push(needed.digest),
                None => missing.push(format!("blob {} of {}: {}", at + 1, manifest.blobs.len(), needed.digest)),
            }
        }
        let mut parts = Vec::new();
        let there = match package {
            Some(package) => edges::there(&self.db, package.id, &manifest.parts).await?,
            None => HashSet::new(),
        };
        for (at, part) in manifest.parts.iter().enumerate() {
            if there.contains(&part.to_string()) {
                parts.push(*part);
            } else if !sparse {
                missing.push(format!("manifest {} of {}: {part}", at + 1, manifest.parts.len()));
            }
        }
        if missing.is_empty() {
            return Ok(Inventory { blobs: present, absent_blobs: absent, parts });
        }
        missing.truncate(10);
        Err(Refusal::new(
            Code::ManifestBlobUnknown,
            format!("`{name}` does not have what this manifest refers to ({})", missing.join(", ")),
            "push again, what is missing first; or allow it with `larder oci policy set PATTERN --sparse`",
        ))
    }

    /// Takes a manifest away, and with it every tag that names it. Gives the tags.
    pub(crate) async fn delete_manifest(
        &self,
        actor: &Actor,
        name: &str,
        digest: &Digest,
    ) -> Result<Vec<String>, Refusal> {
        let unknown = || no_manifest(name, &Reference::Digest(*digest));
        let package = packages::find(&self.db, ID, name).await?.ok_or_else(|| Refusal::no_repository(name))?;
        let reference = digest.to_string();
        let rules = self.policies().await?.of(name);
        for _ in 0..ATTEMPTS {
            let version =
                packages::by_reference(&self.db, package.id, &reference, MANIFEST).await?.pop().ok_or_else(unknown)?;
            // Read before it is judged: a tag that comes later makes the guards of the batch fail.
            let tags = packages::pointers_to(&self.db, version.id).await?;
            let above = self
                .immutable_over(package.id, &reference, &rules)
                .await?
                .map_err(|(tag, whole)| immutable(name, &tag, &whole))?;
            if self.try_delete(actor, name, &package, &version, &tags, above).await? {
                return Ok(tags);
            }
        }
        Err(busy())
    }

    /// A tag that never moves, and that names a manifest or something that consists of it, with what it names; or, without
    /// one, the guards that there is still none.
    async fn immutable_over(
        &self,
        package: Id,
        reference: &str,
        rules: &Rules,
    ) -> Result<std::result::Result<Vec<Statement>, (String, String)>> {
        let mut guards = Vec::new();
        if rules.immutable.is_none() {
            return Ok(Ok(guards));
        }
        let mut known = HashSet::from([reference.to_owned()]);
        let mut ahead = vec![reference.to_owned()];
        while let Some(reference) = ahead.pop() {
            for version in packages::by_reference(&self.db, package, &reference, MANIFEST).await? {
                let tags = packages::pointers_to(&self.db, version.id).await?;
                guards.push(packages::pointer_count_is(version.id, tags.len()));
                guards.extend(tags.iter().map(|tag| packages::points_at(package, tag, &reference)));
                if let Some(tag) = tags.into_iter().find(|tag| rules.is_immutable(tag)) {
                    return Ok(Err((tag, reference)));
                }
            }
            let wholes = edges::parents(&self.db, package, &reference, Edge::Part, MOST_WHOLES).await?;
            guards.push(edges::wholes_are(package, &reference, wholes.len()));
            ahead.extend(wholes.into_iter().filter(|whole| known.insert(whole.clone())));
        }
        Ok(Ok(guards))
    }

    /// Takes away a manifest with exactly these tags; `false` if they, or what must stay true `above` it, changed meanwhile.
    async fn try_delete(
        &self,
        actor: &Actor,
        name: &str,
        package: &Package,
        version: &Version,
        tags: &[String],
        above: Vec<Statement>,
    ) -> Result<bool, Refusal> {
        let (host, reference) = (self.host(), version.reference.as_str());
        let mut batch =
            Batch::new().with(packages::version_exists(version.id)).with(packages::changed(package.id, host.now()));
        batch.extend(above);
        batch.push(packages::pointer_count_is(version.id, tags.len()));
        batch.extend(tags.iter().map(|tag| packages::points_at(package.id, tag, reference)));
        batch.extend(edges::leave(version.id, package.id, reference, host.now()));
        batch.push(packages::remove_version(version.id));
        let event =
            Event::new(actor, "version.remove", subject(name)).with(json!({ "digest": reference, "tags": tags }));
        batch.push(events::record(host, &event));
        for tag in tags {
            let event =
                Event::new(actor, "pointer.remove", pointer_subject(name, tag)).with(json!({ "from": reference }));
            batch.push(events::record(host, &event));
        }
        batch.push(changes::notify(host, &packages::topic(ID, name)));
        match self.db.commit(batch).await {
            Ok(_) => Ok(true),
            // It is gone, or a tag came or went: look again, for one that never moves it may have got just now.
            Err(CommitError::Guard(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The statements that lease a blob to a repository, and give it to the manifests that wait for it.
    pub(crate) fn lease_of(&self, name: &str, digest: &Digest) -> Vec<Statement> {
        let now = self.host().now();
        vec![leases::put(ID, name, digest, now.plus(self.blobs.lease_time())), edges::adopt_blob(ID, name, digest, now)]
    }
}

fn busy() -> Refusal {
    larder_core::Error::new(Kind::Unavailable, "too many others changed this repository just now: try again").into()
}

enum Attempt {
    Done,
    Again,
}

/// The thing of an event about a repository.
pub(crate) fn subject(name: &str) -> String {
    packages::topic(ID, name)
}

/// The thing of an event about a tag.
pub(crate) fn pointer_subject(name: &str, tag: &str) -> String {
    format!("pointer:{ID}:{name}:{tag}")
}

pub(crate) fn immutable(name: &str, tag: &str, digest: &str) -> Refusal {
    Refusal::new(
        Code::Denied,
        format!("the tag `{tag}` of `{name}` never moves, and it names {digest}"),
        "push under another tag; `larder oci policy list` shows the rule",
    )
}

pub(crate) fn no_manifest(name: &str, reference: &Reference<'_>) -> Refusal {
    let (what, todo) = match reference {
        Reference::Tag(tag) => (format!("tag `{tag}`"), "see /v2/NAME/tags/list for those that there are"),
        Reference::Digest(digest) => (format!("manifest {digest}"), "it was deleted or never pushed: push it again"),
    };
    Refusal::new(Code::ManifestUnknown, format!("`{name}` has no {what}"), todo)
}
