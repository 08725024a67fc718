//! The dist: a zip of a release's files with the same bytes whenever and wherever it is made.
//!
//! Entries come in the order of the tree, with the commit's time (so that opcode caches notice a new version), modes
//! reduced to what Git knows, and no extra fields of the machine that packs. Data reaches the compressor in pieces of
//! a fixed size, because where a piece ends may show in its output.

use std::{
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use flate2::{Compression, write::DeflateEncoder};
use futures_util::StreamExt as _;
use larder_core::{
    Error, Result, Time,
    tree::{ByteSink, EntryHead, EntryKind, TreeEvent, TreeStream},
};
use rawzip::{CompressionMethod, ZipArchiveWriter, time::UtcDateTime};

/// How much data the compressor is given at once, in bytes.
const PIECE: usize = 64 * 1024;

/// Part of every dist's bytes: changing it changes the checksum of every dist that is not built yet.
const LEVEL: Compression = Compression::new(6);

/// What the zip writer has written and the sink has not taken yet.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Packs `files` into a zip and writes it to `out` as it grows.
pub async fn pack(committed: Time, mut files: TreeStream<'_>, out: &mut dyn ByteSink) -> Result<()> {
    let written = Written::default();
    let mut archive = ZipArchiveWriter::new(written.clone());
    let modified = UtcDateTime::from_unix(committed.seconds());
    let mut next = files.next().await.transpose()?;
    while let Some(event) = next.take() {
        let TreeEvent::Entry(head) = event else {
            return Err(Error::internal("packing a dist", "data without a file"));
        };
        next = pack_entry(&mut archive, &head, modified, &mut files, &written, out).await?;
    }
    archive.finish().map_err(failed)?;
    out.write(written.take()).await
}

/// Packs one file and returns the event after its data.
async fn pack_entry(
    archive: &mut ZipArchiveWriter<Written>,
    head: &EntryHead,
    modified: UtcDateTime,
    files: &mut TreeStream<'_>,
    written: &Written,
    out: &mut dyn ByteSink,
) -> Result<Option<TreeEvent>> {
    let mode = match head.kind {
        EntryKind::Directory => {
            let path = format!("{}/", head.path.trim_end_matches('/'));
            archive.new_dir(&path).last_modified(modified).unix_permissions(0o040_755).create().map_err(failed)?;
            return files.next().await.transpose();
        }
        EntryKind::File { executable: true } => 0o100_755,
        EntryKind::File { executable: false } => 0o100_644,
        EntryKind::Symlink => 0o120_777,
    };
    let (mut entry, config) = archive
        .new_file(&head.path)
        .compression_method(CompressionMethod::DEFLATE)
        .last_modified(modified)
        .unix_permissions(mode)
        .start()
        .map_err(failed)?;
    let mut data = config.wrap(DeflateEncoder::new(&mut entry, LEVEL));
    let mut piece = Vec::with_capacity(PIECE.min(usize::try_from(head.size).unwrap_or(PIECE)));
    let next = loop {
        match files.next().await.transpose()? {
            Some(TreeEvent::Data(bytes)) => {
                let mut rest = bytes.as_ref();
                while piece.len() + rest.len() >= PIECE {
                    let (head, tail) = rest.split_at(PIECE - piece.len());
                    piece.extend_from_slice(head);
                    data.write_all(&piece).map_err(failed)?;
                    piece.clear();
                    rest = tail;
                }
                piece.extend_from_slice(rest);
                out.write(written.take()).await?;
            }
            other => break other,
        }
    };
    data.write_all(&piece).map_err(failed)?;
    let (encoder, descriptor) = data.finish().map_err(failed)?;
    encoder.finish().map_err(failed)?;
    entry.finish(descriptor).map_err(failed)?;
    out.write(written.take()).await?;
    Ok(next)
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::internal("packing a dist", error)
}
