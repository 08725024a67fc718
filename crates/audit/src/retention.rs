//! How long accesses are kept. Events and statistics are kept for ever.

use std::time::Duration;

use larder_core::Result;
use larder_db::{Batch, Db, access};

/// How long accesses are kept unless the configuration says otherwise.
pub const DEFAULT: Duration = Duration::from_secs(90 * 86_400);
/// How many are deleted in one batch, so that nobody else waits long.
const AT_ONCE: u32 = 1_000;
/// How many batches one sweep makes; the next one goes on.
const BATCHES: u32 = 1_000;

/// Deletes the accesses that are older than `keep`, in small batches, and gives how many they were.
pub async fn sweep(db: &Db, keep: Duration) -> Result<u64> {
    let before = db.host().now().minus(keep);
    let mut swept = 0;
    for _ in 0..BATCHES {
        let done = db.commit(Batch::from(access::sweep(before, AT_ONCE))).await?;
        let affected: u64 = done.iter().map(|done| done.affected).sum();
        swept += affected;
        if affected < u64::from(AT_ONCE) {
            break;
        }
    }
    Ok(swept)
}
