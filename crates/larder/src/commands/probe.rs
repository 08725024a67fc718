//! Asking another registry what it is, where somebody adds or changes it, syncs it, or tests its credential.

use std::time::Duration;

use anyhow::Result;
use larder_db::sources::Source;
use larder_sources::probe::Probed;

use super::Desk;
use crate::{formats, output::complain};

/// How long somebody who does not ask for it waits for a registry to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks a registry that was added or changed just now.
pub async fn quickly(desk: &Desk, source: &Source) -> Result<Probed> {
    let registries = formats::registries(&desk.house)?;
    let probed = desk.house.host.within(PATIENCE, registries.probe(source)).await;
    Ok(probed
        .unwrap_or_else(|| Probed::Unreachable(format!("it does not answer within {} seconds", PATIENCE.as_secs()))))
}

/// Says on standard error what is wrong with a registry that was added or changed just now.
pub fn warn(source: &Source, probed: &Probed) {
    if probed.problem().is_some() {
        complain(format!("Warning: {} (to ask again: larder source sync {})", probed.sentence(), source.name));
    }
}
