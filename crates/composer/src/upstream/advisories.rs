//! What upstreams know to be wrong with packages: asked for as a whole, so that no name leaves the house.

use std::sync::Arc;

use bytes::Bytes;
use larder_core::{Result, Time};
use larder_sources::registry::Upstream;

use super::{Failure, Proxy};

impl Proxy {
    /// Every upstream.
    pub(crate) async fn upstreams(&self) -> Result<Vec<Arc<Upstream>>> {
        Ok(self.clients().await?.iter().map(|client| Arc::clone(&client.upstream)).collect())
    }

    /// All advisories that an upstream changed since then, as it answers; `None` if it tells none, or is gone.
    pub(crate) async fn advisories(&self, upstream: &Upstream, since: Time) -> Result<Option<Bytes>> {
        let clients = self.clients().await?;
        let Some(client) = clients.iter().find(|client| client.upstream.id() == upstream.id()) else { return Ok(None) };
        match client.advisories(since).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Failure::Absent) => Ok(None),
            Err(failure) => Err(failure.error(&format!("the list of advisories of `{}`", upstream.source.name))),
        }
    }
}
