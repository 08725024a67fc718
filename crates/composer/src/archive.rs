//! Looking into a zip that somebody sent: what is in it, and that every program which unpacks it gets just that.
//!
//! Nothing of it is believed. The file is in the store already, and is read from there in pieces: first the directory at its
//! end (`directory.rs`), whose names must be harmless on every system (`names.rs`), then everything from its first byte on
//! (`walk.rs`). Memory holds the names, and a piece of one file.
//!
//! A zip may have bytes in front of its first file, behind its end, and between its files: that makes it a program that
//! unpacks itself, or two zips in one. `unzip` warns and goes on, PHP's `ZipArchive` fails or reads something else. What
//! programs do not agree about is refused.

mod bytes;
mod directory;
mod names;
#[cfg(test)]
mod tests;
mod walk;

use std::{ops::Range, sync::Arc};

use ::bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use larder_blobs::store::ByteStream;
use larder_core::{
    Error, Result, Time,
    tree::{EntryHead, EntryKind, TreeEvent, TreeStream},
};
use rawzip::time::UtcDateTime;

use self::{
    directory::{Directory, Entry},
    walk::Walk,
};
use crate::ingest::MANIFEST;

/// The largest manifest that is read, in bytes.
pub(crate) const LARGEST_MANIFEST: u64 = 1024 * 1024;

/// How many folders a manifest may be below.
const DEEPEST_MANIFEST: usize = 2;

/// A file that a client leaves aside when it looks whether a zip has one folder and nothing else.
const LEFT_ASIDE: &str = ".DS_Store";

/// How much there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Entries.
    pub(crate) entries: u64,
    /// Bytes of the directory.
    pub(crate) directory: u64,
    /// Bytes of all files together.
    pub(crate) unpacked: u64,
}

impl Limits {
    /// Where a zip may have `size` bytes.
    pub(crate) fn for_size(size: u64) -> Self {
        Self { entries: 100_000, directory: 32 * 1024 * 1024, unpacked: size.saturating_mul(4) }
    }
}

/// A file that can be read from anywhere.
pub(crate) struct Source {
    size: u64,
    open: Box<dyn Fn(Range<u64>) -> ByteStream + Send + Sync>,
}

impl Source {
    /// Of so many bytes, of which `open` gives any part.
    pub(crate) fn new(size: u64, open: impl Fn(Range<u64>) -> ByteStream + Send + Sync + 'static) -> Self {
        Self { size, open: Box::new(open) }
    }

    fn open(&self, range: Range<u64>) -> ByteStream {
        (self.open)(range)
    }
}

/// A zip in which everything is as it should be.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    directory: Arc<Directory>,
    /// The folder that is the package; empty for all of it.
    folder: String,
    /// The manifest in it, if there is one.
    pub(crate) manifest: Option<Bytes>,
    /// Whether a client that unpacks it has the package at its top, as it must be. A client takes away a folder that
    /// everything is in, and no more (`ArchiveDownloader::install`, Composer 2.10).
    pub(crate) is_plain: bool,
    changed: Time,
}

/// Looks at everything in a zip. If its manifest is `wanted`, one without is refused; else it is taken for the package as it is.
pub(crate) async fn look(source: &Source, limits: &Limits, wanted: bool) -> Result<Archive> {
    let directory = Arc::new(directory::read(source, limits).await?);
    let top = top(&directory);
    let manifest = if wanted { Some(place_of_manifest(&directory)?) } else { None };
    let folder = manifest.map_or(top.unwrap_or_default(), |entry| folder_of(&entry.path)).to_owned();
    let is_plain = folder.is_empty() || top == Some(folder.as_str());
    let changed = manifest.or(directory.entries.first()).map_or(Time::from_seconds(0), changed);
    let path = manifest.map(|entry| entry.path.clone());
    let bytes = proven(source, &directory, &folder, path.as_deref()).await?;
    let manifest = path.is_some().then_some(bytes);
    Ok(Archive { directory, folder, manifest, is_plain, changed })
}

/// Reads all files, and gives the bytes of the one at `path`.
async fn proven(source: &Source, directory: &Arc<Directory>, folder: &str, path: Option<&str>) -> Result<Bytes> {
    let mut walk = Walk::new(source, Arc::clone(directory), folder.to_owned());
    let (mut bytes, mut is_it) = (BytesMut::new(), false);
    while let Some(event) = walk.event().await? {
        match event {
            TreeEvent::Entry(head) => is_it = Some(head.path.as_str()) == path,
            TreeEvent::Data(piece) if is_it => bytes.extend_from_slice(&piece),
            TreeEvent::Data(_) => {}
        }
    }
    Ok(bytes.freeze())
}

impl Archive {
    /// The folder in it that is the package; empty for all of it.
    pub(crate) fn folder(&self) -> &str {
        &self.folder
    }

    /// When the package was last changed, as the zip tells it.
    pub(crate) fn changed(&self) -> Time {
        self.changed
    }

    /// The files of the package alone, from its folder on, in the order in which they lie in the zip.
    pub(crate) fn files(&self, source: &Source) -> TreeStream<'static> {
        let walk = Walk::new(source, Arc::clone(&self.directory), self.folder.clone());
        let folder = self.folder.clone();
        let events = stream::try_unfold((walk, folder, false), |(mut walk, folder, mut is_inside)| async move {
            while let Some(event) = walk.event().await? {
                let event = match event {
                    TreeEvent::Entry(head) => {
                        let path = names::below(&folder, &head.path).map(str::to_owned);
                        is_inside = path.is_some();
                        path.map(|path| TreeEvent::Entry(EntryHead { path, ..head }))
                    }
                    data @ TreeEvent::Data(_) => Some(data).filter(|_| is_inside),
                };
                if let Some(event) = event {
                    return Ok(Some((event, (walk, folder, is_inside))));
                }
            }
            Ok(None)
        });
        events.boxed()
    }
}

/// The one folder that everything is in, if there is one.
fn top(directory: &Directory) -> Option<&str> {
    let mut tops = directory.entries.iter().filter(|entry| entry.path != LEFT_ASIDE).map(|entry| {
        let top = entry.path.split('/').next().unwrap_or_default();
        (top, entry.path.len() > top.len() || entry.kind == EntryKind::Directory)
    });
    let (first, is_folder) = tops.next()?;
    (is_folder && tops.all(|(top, _)| top == first)).then_some(first)
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The manifest that is nearest to the top.
fn place_of_manifest(directory: &Directory) -> Result<&Entry> {
    let depth = |entry: &&Entry| entry.path.matches('/').count();
    let is_manifest =
        |entry: &&Entry| entry.path.rsplit('/').next() == Some(MANIFEST) && depth(entry) <= DEEPEST_MANIFEST;
    let first = directory.entries.iter().filter(is_manifest).min_by_key(depth);
    let first =
        first.ok_or_else(|| refused(format!("there is no {MANIFEST} at its top, or below one or two folders")))?;
    let same = |entry: &&Entry| is_manifest(entry) && depth(entry) == depth(&first) && entry.path != first.path;
    if let Some(other) = directory.entries.iter().find(same) {
        return Err(refused(format!(
            "both {} and {} could be its manifest: send each package as a zip of its own",
            shown(&first.path),
            shown(&other.path)
        )));
    }
    if !matches!(first.kind, EntryKind::File { .. }) {
        return Err(refused_entry(&first.path, "it is not a file"));
    }
    if first.size > LARGEST_MANIFEST {
        return Err(refused_entry(&first.path, "it is larger than 1 MiB"));
    }
    Ok(first)
}

fn changed(entry: &Entry) -> Time {
    let (time, date) = entry.changed;
    let part = |value: u16, at: u32, bits: u32| u8::try_from(value >> at & ((1 << bits) - 1)).unwrap_or(0);
    let (year, month, day) = (1980 + (date >> 9), part(date, 5, 4), part(date, 0, 5));
    let clock = (part(time, 11, 5), part(time, 5, 6), part(time, 0, 5).saturating_mul(2));
    let written = UtcDateTime::from_components(year, month, day, clock.0, clock.1, clock.2, 0);
    // What is no date is the first one that a zip can have.
    Time::from_seconds(written.map_or(315_532_800, |written| written.to_unix()))
}

/// A zip that is not what it should be.
fn refused(why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the zip is refused: {why}"))
}

fn refused_entry(path: &str, why: &str) -> Error {
    refused(format!("`{}`: {why}", shown(path)))
}

/// A name that a stranger wrote, as it may be printed.
fn shown(path: &str) -> String {
    let start: String = path.chars().take(200).collect();
    start.escape_debug().to_string()
}
