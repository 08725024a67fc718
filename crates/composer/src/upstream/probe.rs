//! Asks an upstream for its root file now, whatever is known of it, and says what came of that. Keeps nothing but how the
//! upstream is, where lists of sources show it.

use std::sync::Arc;

use larder_core::Result;
use larder_db::{
    Batch, changes,
    sources::{self, Source, SourceState},
};
use larder_sources::{
    fetch::shown,
    probe::Probed,
    registry::{self, Upstream},
};

use super::{
    Failure, Proxy,
    address::Place,
    ask::{Asked, Asker, ROOT},
    package::pairs,
    root::{File, Layout, MOST_NAMES},
};

impl Proxy {
    /// Asks an upstream what it is, with its credential.
    pub async fn probe(&self, source: &Source) -> Result<Probed> {
        let upstream = Upstream::read(source.clone())?;
        let inner = &self.inner;
        let place = Place::new(&upstream.url, inner.allow_local);
        let (vault, fetch) = (inner.vault.clone(), Arc::clone(&inner.fetch));
        let asker = Asker::new(Arc::new(upstream), self.db().clone(), vault, fetch);
        // Written below, before this returns: the program may end then.
        asker.health.hush();
        let at = shown(&place.root);
        let probed = match asker.document(&place.root, ROOT, None).await {
            Ok(Asked::Document { bytes, .. }) => match File::read(&bytes) {
                Ok(file) => told(&file),
                Err(wrong) => Probed::NoRegistry(asker.wrong(&place.root, &bytes, &wrong).text().to_owned()),
            },
            Ok(Asked::Same) => Probed::NoRegistry(format!("{at} says that nothing has changed, and was told nothing")),
            Err(Failure::Absent) => Probed::NoRegistry(format!("{at} is not there: check the address")),
            Err(Failure::Refused(why)) => Probed::Refused(why),
            Err(Failure::Busy(why, seconds)) => Probed::Unreachable(format!("{why}; try again in {seconds} s")),
            Err(Failure::Failed(_, why) | Failure::Elsewhere(why)) => Probed::Unreachable(why),
        };
        self.note(source, &probed).await?;
        Ok(probed)
    }

    /// Writes how an upstream is, if that is not how it was. Its clients learn it too: they write only what they think is new.
    async fn note(&self, source: &Source, probed: &Probed) -> Result<()> {
        let report = source.report.as_deref().unwrap_or("{}");
        let statement = match probed.problem() {
            Some(why) if source.state == SourceState::Failed && source.problem.as_deref() == Some(why) => return Ok(()),
            Some(why) => sources::troubled(source.id, SourceState::Failed, why),
            None if source.state == SourceState::Failed => sources::reported(source.id, report),
            None => return Ok(()),
        };
        let batch = Batch::new().with(statement).with(changes::notify(self.db().host(), registry::TOPIC));
        self.db().commit(batch).await?;
        Ok(())
    }
}

fn told(file: &File<'_>) -> Probed {
    let layout = match &file.facts.layout {
        Layout::Files(_) => "metadata-url",
        Layout::Lazy(_) => "providers-lazy-url",
        Layout::Hashed(_) => "providers-url",
        Layout::Whole => "all packages in one file",
    };
    let names = match &file.facts.layout {
        Layout::Files(_) if file.facts.patterns.is_none() => file.facts.available.as_ref().map(Vec::len),
        Layout::Whole if file.includes.is_empty() => {
            let packages = file.packages.map(|packages| pairs(packages, MOST_NAMES, "packages"));
            packages.and_then(Result::ok).map(|packages| packages.len())
        }
        _ => None,
    };
    Probed::Works { layout: Some(layout.to_owned()), names }
}
