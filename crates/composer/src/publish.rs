//! Publishing: a zip that somebody sends becomes a version, or is refused and leaves nothing.
//!
//! The bytes are a blob first, looked into second ([`archive`]), and a version last, in one batch with everything that makes
//! it one. What is served is the zip as it was sent, but where clients would not find the package in it: then it is packed
//! anew. A version that stays never changes; one that moves (`dev-main`) is a pointer, as a branch is.
//!
//! What an upload costs in memory is the list of its names; how many are looked into at once is for [`Host::heavy`] to say.
//!
//! [`Host::heavy`]: larder_core::Host::heavy

mod request;
mod settle;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream::BoxStream};
use larder_blobs::StoredBlob;
use larder_core::{Error, Kind, Result, digest::unhex};
use larder_db::{
    events::Actor,
    packages::{self, Package},
    sources,
};
use larder_sources::{
    Limits,
    fetch::{self, Fetch, FetchRequest},
};
use serde::Deserialize;

pub use self::request::MOUNT;
use crate::{
    ID,
    offers::{Repository, ZIP},
};

/// The origin of what was sent here.
pub const UPLOAD: &str = "upload";

/// How long the dist of a package that is described elsewhere may take.
const FETCH_LIMIT: Duration = Duration::from_secs(900);

/// Takes versions in. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    repository: Repository,
    fetch: Arc<dyn Fetch>,
    limits: Limits,
}

/// What is to be published.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// The name that it must have.
    pub name: Option<String>,
    /// Its version, as a tag would say it, or that of a branch (`dev-main`, `2.x-dev`); without it the manifest's.
    pub version: Option<String>,
    /// What stands for the manifest in the zip, as JSON.
    pub manifest: Option<Bytes>,
    /// Where the zip was fetched, as it may be shown.
    pub from: Option<String>,
    /// The SHA-1 that it must have, in small hex digits.
    pub shasum: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The package.
    pub name: String,
    /// The version as its author wrote it.
    pub version: String,
    /// The version in its normal form.
    pub normalized: String,
    /// SHA-1 of the zip that was sent, in hex.
    pub reference: String,
    /// SHA-1 of the zip that is served, in hex.
    pub shasum: String,
    /// How many bytes that has.
    pub size: u64,
    /// Where it is served.
    pub url: String,
    /// Whether anything changed: not if the same was published before.
    pub is_new: bool,
    /// What is odd but not wrong, for people.
    pub warnings: Vec<String>,
}

impl Publisher {
    /// Publishes what it fetches by `fetch`, within `limits`.
    pub fn new(repository: Repository, fetch: Arc<dyn Fetch>, limits: Limits) -> Self {
        Self { repository, fetch, limits }
    }

    /// Publishes a zip, of which `announced` bytes are to come if anybody knows.
    ///
    /// Errors: [`Kind::Invalid`] for a zip or a manifest with something wrong, [`Kind::TooLarge`], [`Kind::Conflict`] for a name
    /// that belongs to a source, and for a version that is here with other bytes.
    pub async fn publish(
        &self,
        actor: &Actor,
        order: Order,
        zip: BoxStream<'_, Result<Bytes>>,
        announced: Option<u64>,
    ) -> Result<Published> {
        self.refuse_too_large(announced.unwrap_or(0))?;
        if let Some(name) = &order.name {
            self.owned(name).await?;
        }
        let since = self.host().now();
        let stored = self.receive(zip, &order).await?;
        let (publisher, actor) = (self.clone(), actor.clone());
        // It goes on without whoever waits for it: nothing half done is left when they leave.
        let settled = async move {
            let settled = publisher.settle(&actor, &order, &stored, since).await;
            if !settled.as_ref().is_ok_and(|published| published.reference == published.shasum) {
                publisher.take_back(&stored, since).await;
            }
            settled
        };
        self.host().heavy(settled).await
    }

    /// Publishes a package that `order.manifest` describes: the zip at its `dist.url` is fetched and stored, so that it stays
    /// when it is not there any more.
    pub async fn publish_described(&self, actor: &Actor, order: Order) -> Result<Published> {
        let manifest = order.manifest.as_deref().unwrap_or_default();
        let described: Described = serde_json::from_slice(manifest).map_err(|error| {
            Error::invalid(format!(
                "this describes no package: {error}: send {{\"name\": …, \"version\": …, \"dist\": {{\"type\": \"zip\", \"url\": …}}}}"
            ))
        })?;
        let Dist { kind, url, shasum } = described.dist;
        if kind != ZIP {
            return Err(Error::invalid(format!("the dist is of the type `{kind}`: only zip is published here")));
        }
        let shasum = shasum.filter(|sum| !sum.is_empty()).map(|sum| sum.to_ascii_lowercase());
        if shasum.as_ref().is_some_and(|sum| sum.len() != 40 || unhex(sum).is_none()) {
            return Err(Error::invalid("the shasum of the dist is no SHA-1: write 40 hex digits, or leave it out"));
        }
        if let Some(name) = &order.name {
            self.owned(name).await?;
        }
        let url = fetch::address(&url)?;
        let from = fetch::shown(&url);
        let request =
            FetchRequest { most: Some(self.limits.artifact), whole: Some(FETCH_LIMIT), ..FetchRequest::get(url) };
        let answer = self.fetch.fetch(request).await?;
        if answer.status != http::StatusCode::OK {
            return Err(Error::new(Kind::Upstream, format!("{from} answers {}: nothing was published", answer.status)));
        }
        self.publish(actor, Order { from: Some(from), shasum, ..order }, answer.body, answer.length).await
    }

    /// The package of this name, unless it comes from elsewhere.
    async fn owned(&self, name: &str) -> Result<Option<Package>> {
        let db = &self.repository.db;
        let Some(package) = packages::find(db, ID, name).await? else { return Ok(None) };
        let Some(source) = package.source_id else { return Ok(Some(package)) };
        let source = sources::find(db, &source.to_string()).await?.map_or_else(String::new, |source| source.name);
        Err(Error::conflict(format!(
            "{name} comes from the source `{source}`, and a name has one origin: publish there, or under another name, or take \
             the source away with `larder source remove {source}`"
        )))
    }

    /// Takes the bytes in, as far as the limit goes.
    async fn receive(&self, mut zip: BoxStream<'_, Result<Bytes>>, order: &Order) -> Result<StoredBlob> {
        let mut writer = self.repository.blobs.begin().await?;
        let taken = async {
            while let Some(bytes) = zip.try_next().await? {
                self.refuse_too_large(writer.written() + bytes.len() as u64)?;
                writer.write(bytes).await?;
            }
            match (&order.shasum, writer.sha1()) {
                (Some(wanted), Some(found)) if *wanted != found => Err(Error::invalid(format!(
                    "the zip has the SHA-1 {found}, and {wanted} was promised: send it again, or correct what was promised"
                ))),
                _ => Ok(()),
            }
        };
        match taken.await {
            Ok(()) => writer.finish().await,
            Err(error) => {
                writer.abort().await;
                Err(error)
            }
        }
    }

    fn refuse_too_large(&self, size: u64) -> Result<()> {
        let limit = self.limits.artifact;
        if size <= limit {
            return Ok(());
        }
        Err(Error::new(
            Kind::TooLarge,
            format!("the zip is larger than {limit} bytes: leave files out, or raise `limits.artifact` in larder.toml"),
        ))
    }

    fn host(&self) -> &larder_core::Host {
        self.repository.db.host()
    }
}

/// A package that is described rather than sent.
#[derive(Deserialize)]
struct Described {
    dist: Dist,
}

#[derive(Deserialize)]
struct Dist {
    #[serde(rename = "type")]
    kind: String,
    url: String,
    shasum: Option<String>,
}
