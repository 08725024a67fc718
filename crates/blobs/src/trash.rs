//! The second step of every deletion: bytes that the database has put into the trash go, and then their note. Until both
//! are gone, the database knows of the bytes; a crash in between leaves what the next run finishes.

use larder_core::Result;
use larder_db::{Batch, CommitError, Statement, uploads};

use crate::Blobs;

impl Blobs {
    /// Commits a batch, and takes out at once what it has put into the trash: bytes that nobody can be reading. All
    /// statements in `batch` that give rows give locations; those in `extra` may give what they like.
    pub(crate) async fn commit_and_take_out(&self, mut batch: Batch, extra: &[Statement]) -> Result<(), CommitError> {
        let ours = batch.len();
        batch.extend(extra.iter().cloned());
        let done = self.inner.db.commit(batch).await?;
        for row in done.into_iter().take(ours).flat_map(|done| done.rows) {
            let location = row.cells().text().map_err(CommitError::Other)?;
            if let Err(error) = self.take_out(&location).await {
                tracing::warn!(location, error = error.chain(), "bytes stay in the trash for now");
            }
        }
        Ok(())
    }

    /// Deletes bytes that are in the trash, and their note.
    pub(crate) async fn take_out(&self, location: &str) -> Result<()> {
        self.inner.store.delete(location).await?;
        self.inner.db.commit(uploads::forget(location).into()).await?;
        Ok(())
    }
}
