//! `larder package publish`: a zip on this machine, or one that a file describes, becomes a version.

use std::path::Path;

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use larder_composer::publish::{Order, Published};
use larder_core::Error;
use tokio::{fs::File, io::AsyncReadExt as _};

use super::Desk;
use crate::{
    cli::Publish,
    formats,
    output::{bytes, complain},
};

/// How much of a file is read at once, in bytes.
const PIECE: usize = 256 * 1024;

/// The largest description of a package that is read, in bytes.
const LARGEST_MANIFEST: u64 = 1024 * 1024;

pub async fn run(desk: &Desk, order: Publish) -> Result<()> {
    let manifest = match &order.manifest {
        Some(path) => Some(read(path).await?),
        None => None,
    };
    let name = order.name.map(|name| name.to_ascii_lowercase());
    let wanted = Order { name, version: order.version, manifest, ..Order::default() };
    let fetch = formats::fetch(&desk.house)?;
    let (_, publisher) = formats::repository(&desk.house, fetch, &desk.public_url());
    let outcome = match &order.file {
        Some(path) => {
            let (zip, size) = open(path).await?;
            publisher.publish(&desk.actor, wanted, zip, Some(size)).await?
        }
        None => publisher.publish_described(&desk.actor, wanted).await?,
    };
    for warning in &outcome.warnings {
        complain(format!("warning: {warning}"));
    }
    Ok(desk.out.either(&outcome.document(), words(&outcome))?)
}

fn words(outcome: &Published) -> String {
    let Published { name, version, shasum, size, is_new, .. } = outcome;
    let what = if *is_new { "is published" } else { "was here already, with the same contents" };
    format!("{name} {version} {what}: {}, SHA-1 {shasum}.", bytes(*size))
}

async fn read(path: &Path) -> Result<Bytes> {
    let unreadable = || format!("{} cannot be read", path.display());
    let file = File::open(path).await.with_context(unreadable)?;
    let mut text = Vec::new();
    file.take(LARGEST_MANIFEST + 1).read_to_end(&mut text).await.with_context(unreadable)?;
    anyhow::ensure!(text.len() as u64 <= LARGEST_MANIFEST, "{} is larger than 1 MiB", path.display());
    Ok(text.into())
}

/// A file as it is read, and how many bytes it has.
async fn open(path: &Path) -> Result<(BoxStream<'static, larder_core::Result<Bytes>>, u64)> {
    let unreadable = || format!("{} cannot be read", path.display());
    let file = File::open(path).await.with_context(unreadable)?;
    let size = file.metadata().await.with_context(unreadable)?.len();
    let pieces = stream::try_unfold(file, |mut file| async move {
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = file.read_buf(&mut piece).await;
        let read = read.map_err(|error| Error::invalid(format!("the file cannot be read: {error}")))?;
        Ok((read > 0).then(|| (piece.freeze(), file)))
    });
    Ok((pieces.boxed(), size))
}
