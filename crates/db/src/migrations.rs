//! The steps that bring an empty database, or that of an older Larder, to the tables that this program knows. A step
//! that was released is never edited: the next one changes what it did.

use larder_core::{Error, Host, Kind, Result};

use crate::executor::Executor;

/// Version by version, without gaps: the first is 1.
const STEPS: &[&str] = &[
    include_str!("../migrations/0001_foundation.sql"),
    include_str!("../migrations/0002_uploads.sql"),
    include_str!("../migrations/0003_webhooks.sql"),
    include_str!("../migrations/0004_upstreams.sql"),
];

/// Applies what is missing.
pub(crate) async fn apply(executor: &dyn Executor, host: &Host) -> Result<()> {
    let mut newest = 0;
    for (version, sql) in (1..).zip(STEPS) {
        if version > newest {
            newest = executor.migrate(version, sql, host.now()).await?;
        }
    }
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    if newest > known {
        return Err(Error::new(
            Kind::Invalid,
            format!(
                "the database is of a newer Larder (its tables are version {newest}, this program knows {known}): \
                 run that newer Larder, or restore a backup made before it"
            ),
        ));
    }
    Ok(())
}
