//! The one list of formats. A new format is one new crate and a line or two in each of these functions.

use std::sync::Arc;

use anyhow::Result;
use larder_composer::{Composer, ComposerRoom, Repository, publish::Publisher};
use larder_core::format::Format;
use larder_db::{changes::Change, sources::Source};
use larder_http::Room;
use larder_native::fetch::{FetchSettings, HttpFetch};
use larder_oci::{Gate, Oci, OciRoom, Proxy, Registry};
use larder_sources::{fetch::Fetch, probe::Probed};

use crate::house::House;

/// Every format.
pub fn formats() -> Arc<[Arc<dyn Format>]> {
    [Arc::new(Composer) as Arc<dyn Format>, Arc::new(Oci)].into()
}

/// A room, and how it hears of changes.
pub struct Furnished {
    /// What answers requests.
    pub room: Arc<dyn Room>,
    /// What forgets stale documents.
    pub listener: Box<dyn Fn(&Change) + Send + Sync>,
}

/// The operations on image repositories.
pub fn registry(house: &House) -> Registry {
    Registry::new(house.db.clone(), house.blobs.clone())
}

/// What asks hosts on the outside.
pub fn fetch(house: &House) -> Result<Arc<dyn Fetch>> {
    Ok(Arc::new(HttpFetch::new(FetchSettings::new(house.config.allow_local_sources))?))
}

/// The operations on Composer packages, for clients that reach this server at `public_url`, and what takes new ones in.
pub fn repository(house: &House, fetch: Arc<dyn Fetch>, public_url: &str) -> (Repository, Publisher) {
    let (db, blobs, limits) = (house.db.clone(), house.blobs.clone(), house.config.limits);
    let proxy = house.upstreams.clone();
    let repository = Repository::new(db, blobs, house.sources.clone(), proxy, public_url.to_owned());
    (repository.clone(), Publisher::new(repository, fetch, limits))
}

/// What asks other registries what they are. Cheap to clone.
#[derive(Clone)]
pub struct Registries {
    composer: larder_composer::Proxy,
    oci: Proxy,
}

/// What asks other registries what they are.
pub fn registries(house: &House) -> Result<Registries> {
    let (vault, allow_local) = (house.vault.clone(), house.config.allow_local_sources);
    let oci = Proxy::new(registry(house), vault, fetch(house)?, allow_local);
    Ok(Registries { composer: house.upstreams.clone(), oci })
}

impl Registries {
    /// Asks a registry what it is, in the way of its format.
    pub async fn probe(&self, source: &Source) -> Probed {
        let asked = match source.kind.as_str() {
            larder_composer::ID => self.composer.probe(source).await,
            larder_oci::ID => self.oci.probe(source).await,
            other => Ok(Probed::NoRegistry(format!("this version does not know the format `{other}`"))),
        };
        // What keeps us from asking is trouble of the same sort for whoever waits for an answer.
        asked.unwrap_or_else(|error| Probed::Unreachable(error.message().to_owned()))
    }
}

/// The rooms of all formats, for a server that clients reach at `public_url`.
pub fn rooms(house: &House, public_url: &str) -> Result<Vec<Furnished>> {
    let fetch = fetch(house)?;
    let (repository, publisher) = repository(house, Arc::clone(&fetch), public_url);
    let composer = Arc::new(ComposerRoom::new(repository, publisher, house.recorder.clone()));
    let gate = Gate::new(house.authenticator.clone(), house.host.clone(), house.config.public_url.clone());
    let registry = registry(house);
    let proxy = Proxy::new(registry.clone(), house.vault.clone(), fetch, house.config.allow_local_sources);
    let oci = Arc::new(OciRoom::new(registry, gate).with_proxy(proxy));
    let (composer_hears, oci_hears) = (Arc::clone(&composer), Arc::clone(&oci));
    Ok(vec![
        Furnished { room: composer, listener: Box::new(move |change| composer_hears.on_change(change)) },
        Furnished { room: oci, listener: Box::new(move |change| oci_hears.on_change(change)) },
    ])
}
