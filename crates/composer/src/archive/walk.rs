//! The files in a zip, read from its first byte to its directory, and proven: the headers say what the directory says,
//! everything unpacks to exactly the bytes that are promised, and between two entries there is nothing.
//!
//! So no two entries share bytes (which is how small bombs become large), nothing hides in a gap, and a program that reads
//! only the headers finds the same files as one that reads only the directory.

use std::sync::Arc;

use bytes::Bytes;
use flate2::{Crc, Decompress, FlushDecompress, Status};
use larder_core::{
    Result,
    tree::{EntryHead, EntryKind, TreeEvent},
};

use super::{
    Source,
    bytes::{Numbers, Reader},
    directory::{DEFLATED, DESCRIBED, Directory, Entry, UNREADABLE, WIDE, field, refuse_other_name},
    names, refused, refused_entry,
};

const HEADER: [u8; 4] = *b"PK\x03\x04";
const HEADER_LENGTH: usize = 30;
const DESCRIPTOR: [u8; 4] = *b"PK\x07\x08";

/// How much is unpacked at once, in bytes.
const PIECE: u64 = 64 * 1024;

/// The files, one event after the other.
pub(super) struct Walk {
    directory: Arc<Directory>,
    /// Links may lead to nowhere outside of it.
    folder: String,
    reader: Reader,
    next: usize,
    open: Option<Open>,
}

/// An entry whose data is being read.
struct Open {
    entry: Entry,
    /// How many compressed bytes were not read from the file yet.
    left: u64,
    /// Those that were, and were not unpacked yet.
    input: Bytes,
    /// `None` where nothing is compressed.
    inflate: Option<Decompress>,
    ended: bool,
    given: u64,
    crc: Crc,
    /// Of a link.
    target: Vec<u8>,
}

impl Walk {
    /// Over a file with this directory.
    pub(super) fn new(source: &Source, directory: Arc<Directory>, folder: String) -> Self {
        let reader = Reader::new(source.open(0..directory.start), 0);
        Self { directory, folder, reader, next: 0, open: None }
    }

    /// What comes next; `None` once everything is proven.
    pub(super) async fn event(&mut self) -> Result<Option<TreeEvent>> {
        loop {
            if let Some(open) = &mut self.open {
                if let Some(bytes) = open.some(&mut self.reader).await? {
                    return Ok(Some(TreeEvent::Data(bytes)));
                }
                self.close().await?;
            } else if let Some(entry) = self.directory.entries.get(self.next).cloned() {
                self.next += 1;
                self.header(&entry).await?;
                let head = EntryHead { path: entry.path.clone(), kind: entry.kind, size: entry.size };
                self.open = Some(Open::new(entry));
                return Ok(Some(TreeEvent::Entry(head)));
            } else if self.reader.at() == self.directory.start {
                return Ok(None);
            } else {
                return Err(refused("there is something between its files and its list of names"));
            }
        }
    }

    /// Reads the header of an entry, which says the same as the directory.
    async fn header(&mut self, entry: &Entry) -> Result<()> {
        if entry.offset != self.reader.at() {
            return Err(refused_entry(
                &entry.path,
                "it shares bytes with another entry, or there is something in front of it",
            ));
        }
        let fixed = self.reader.exactly(HEADER_LENGTH).await?;
        let mut numbers = Numbers::of(&fixed);
        let (signature, _needed) = (numbers.take(4), numbers.u16());
        let (flags, method) = (numbers.u16(), numbers.u16());
        let _changed = (numbers.u16(), numbers.u16());
        let (crc, compressed, size) = (numbers.u32(), numbers.u32(), numbers.u32());
        let lengths = (numbers.u16(), numbers.u16());
        let name = self.reader.exactly(lengths.0.into()).await?;
        let extra = self.reader.exactly(lengths.1.into()).await?;
        refuse_other_name(&extra, &name, &entry.path)?;
        let mut wide = Numbers::of(field(&extra, WIDE).unwrap_or_default());
        let wide = (wide.u64(), wide.u64());
        let is_described = flags & DESCRIBED != 0;
        let widened = |short: u32, long: u64| if short == u32::MAX && long != 0 { long } else { short.into() };
        // What follows the data need not be known before it.
        let fits = |told: u64, known: u64| told == known || is_described && (told == 0 || told == u64::from(u32::MAX));
        let plain_name = name.strip_suffix(b"/").filter(|_| entry.kind == EntryKind::Directory).unwrap_or(&name);
        let agrees = signature == HEADER
            && plain_name == entry.path.as_bytes()
            && (name.len() > plain_name.len()) == (entry.kind == EntryKind::Directory)
            && method == entry.method
            && flags & (DESCRIBED | UNREADABLE) == entry.flags & (DESCRIBED | UNREADABLE)
            && fits(crc.into(), entry.crc.into())
            && fits(widened(compressed, wide.1), entry.compressed)
            && fits(widened(size, wide.0), entry.size);
        if agrees {
            Ok(())
        } else {
            Err(refused_entry(&entry.path, "its own header says something else than the list of names"))
        }
    }

    /// Ends an entry: it was what was promised.
    async fn close(&mut self) -> Result<()> {
        let Some(Open { entry, given, crc, target, .. }) = self.open.take() else { return Ok(()) };
        if given != entry.size || crc.sum() != entry.crc {
            return Err(refused_entry(
                &entry.path,
                "it does not unpack to what is promised: the zip is damaged, send it again",
            ));
        }
        if entry.kind == EntryKind::Symlink {
            let target = String::from_utf8_lossy(&target);
            if !names::stays_inside(&self.folder, &entry.path, &target) {
                return Err(refused_entry(&entry.path, "it is a link that leads out of the package, or may"));
            }
        }
        if entry.flags & DESCRIBED != 0 { self.descriptor(&entry).await } else { Ok(()) }
    }

    /// The sizes behind the data, in one of the four forms in which programs write them: all that is between here and the
    /// next entry.
    async fn descriptor(&mut self, entry: &Entry) -> Result<()> {
        let next = self.directory.entries.get(self.next).map_or(self.directory.start, |next| next.offset);
        let length = next.checked_sub(self.reader.at()).filter(|length| [12, 16, 20, 24].contains(length));
        let wrong = || refused_entry(&entry.path, "what follows its data contradicts the list of names");
        let length = usize::try_from(length.ok_or_else(wrong)?).unwrap_or(0);
        let bytes = self.reader.exactly(length).await?;
        let mut numbers = Numbers::of(&bytes);
        if length % 8 == 0 && numbers.take(4) != DESCRIPTOR {
            return Err(wrong());
        }
        let crc = numbers.u32();
        let (compressed, size) =
            if length < 20 { (numbers.u32().into(), numbers.u32().into()) } else { (numbers.u64(), numbers.u64()) };
        if (crc, compressed, size) == (entry.crc, entry.compressed, entry.size) { Ok(()) } else { Err(wrong()) }
    }
}

impl Open {
    fn new(entry: Entry) -> Self {
        let inflate = (entry.method == DEFLATED).then(|| Decompress::new(false));
        let left = entry.compressed;
        Self { entry, left, input: Bytes::new(), inflate, ended: false, given: 0, crc: Crc::new(), target: Vec::new() }
    }

    /// Some of the data; `None` at its end.
    async fn some(&mut self, reader: &mut Reader) -> Result<Option<Bytes>> {
        let piece = match self.inflate {
            None if self.left == 0 => None,
            None => {
                let piece = reader.some(self.left).await?;
                self.left -= piece.len() as u64;
                Some(piece)
            }
            Some(_) => self.unpack(reader).await?,
        };
        if let Some(piece) = &piece {
            self.given += piece.len() as u64;
            if self.given > self.entry.size {
                return Err(refused_entry(&self.entry.path, "it unpacks to more than is promised"));
            }
            self.crc.update(piece);
            if self.entry.kind == EntryKind::Symlink {
                self.target.extend_from_slice(piece);
            }
        }
        Ok(piece)
    }

    async fn unpack(&mut self, reader: &mut Reader) -> Result<Option<Bytes>> {
        let damaged = || refused_entry(&self.entry.path, "its compressed data is damaged: send it again");
        let Some(inflate) = &mut self.inflate else { return Ok(None) };
        loop {
            if self.ended {
                let is_all = self.left == 0 && self.input.is_empty();
                return if is_all { Ok(None) } else { Err(damaged()) };
            }
            if self.input.is_empty() && self.left > 0 {
                self.input = reader.some(self.left).await?;
                self.left -= self.input.len() as u64;
            }
            // One more than is promised, so that more shows.
            let room = (self.entry.size - self.given + 1).min(PIECE);
            let mut out = Vec::with_capacity(usize::try_from(room).unwrap_or(0));
            let before = inflate.total_in();
            let status = inflate.decompress_vec(&self.input, &mut out, FlushDecompress::None).map_err(|_| damaged())?;
            let taken = usize::try_from(inflate.total_in() - before).unwrap_or(usize::MAX);
            let is_stuck = taken == 0 && out.is_empty() && self.left == 0;
            self.input = self.input.split_off(taken.min(self.input.len()));
            self.ended = status == Status::StreamEnd;
            if is_stuck && !self.ended {
                return Err(damaged());
            }
            if !out.is_empty() {
                return Ok(Some(out.into()));
            }
        }
    }
}
