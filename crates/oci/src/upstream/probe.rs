//! Asks an upstream for the root of its API now, and says what came of that. Keeps nothing.

use larder_core::Result;
use larder_sources::{
    fetch::shown,
    probe::Probed,
    registry::{Upstream, secret},
};

use super::{
    Failure, Proxy,
    client::{Client, Door},
};

impl Proxy {
    /// Asks an upstream what it is, with its credential.
    pub async fn probe(&self, source: &larder_db::sources::Source) -> Result<Probed> {
        let upstream = Upstream::read(source.clone())?;
        let inner = &self.inner;
        // One that belongs to another host fails here, before anything is sent.
        let has_credential = secret(self.db(), &inner.vault, &upstream).await?.is_some();
        let (vault, fetch) = (inner.vault.clone(), std::sync::Arc::clone(&inner.fetch));
        let at = shown(&upstream.url);
        let client = Client::new(upstream, self.db().clone(), vault, fetch, inner.allow_local);
        let name = &source.name;
        Ok(match client.knock().await {
            Ok(Door::Open) => Probed::Works { layout: None, names: None },
            Ok(Door::Guarded) | Err(Failure::Refused(_)) if !has_credential => {
                Probed::Works { layout: Some("shows strangers only what is public".to_owned()), names: None }
            }
            Ok(Door::Closed) if !has_credential => {
                Probed::Refused(format!("{at} lets nobody in: give the source `{name}` a credential"))
            }
            Ok(Door::Guarded | Door::Closed) => Probed::Refused(format!(
                "{at} does not take the credential of the source `{name}`: it may have expired"
            )),
            Err(Failure::Refused(why)) => {
                Probed::Refused(format!("{why}: check the credential of the source `{name}`"))
            }
            Err(Failure::Absent) => Probed::NoRegistry(format!("what answers at {at} has no /v2/: check the address")),
            Err(Failure::Busy(why, seconds)) => Probed::Unreachable(format!("{why}; try again in {seconds} s")),
            Err(Failure::Failed(_, why)) => Probed::Unreachable(why),
        })
    }
}
