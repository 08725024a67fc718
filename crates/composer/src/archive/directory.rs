//! The directory at the end of a zip: which entries there are, and where.
//!
//! Programs find and read it in different ways, and what one of them shows need not be what another unpacks. So only such
//! files pass about which there is one opinion: the directory lies right before its end record, that right before the end
//! of the file (but for a comment), and nowhere near is a second one. PKWARE's APPNOTE 6.3.10, sections 4.3.12 to 4.3.16.

use larder_core::{Error, Kind, Result, tree::EntryKind};

use super::{
    Limits, Source,
    bytes::{Numbers, Reader},
    names, refused, refused_entry,
};

const END: [u8; 4] = *b"PK\x05\x06";
const END_LENGTH: usize = 22;
const END_64: [u8; 4] = *b"PK\x06\x06";
const END_64_LENGTH: usize = 56;
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
const LOCATOR_64_LENGTH: usize = 20;
const ENTRY: [u8; 4] = *b"PK\x01\x02";
const ENTRY_LENGTH: usize = 46;

/// So far from the end of the file the end records can begin: behind them is a comment of at most 65,535 bytes.
const TAIL: u64 = (END_64_LENGTH + LOCATOR_64_LENGTH + END_LENGTH + 65_535) as u64;

/// How many bytes that look like a second end record are looked into.
const MOST_LOOKALIKES: usize = 16;

/// The longest target of a link, in bytes.
const LONGEST_TARGET: u64 = 4_096;

/// An extra field with another name for the entry, which some programs prefer.
const OTHER_NAME: u16 = 0x7075;
/// The extra field of sizes that have no room elsewhere.
pub(super) const WIDE: u16 = 0x0001;

/// What is compressed, and how.
pub(super) const STORED: u16 = 0;
pub(super) const DEFLATED: u16 = 8;

/// Its sizes follow its data.
pub(super) const DESCRIBED: u16 = 1 << 3;
/// Encrypted in one way or another, or a patch for another file.
pub(super) const UNREADABLE: u16 = 1 | 1 << 5 | 1 << 6 | 1 << 13;

/// An entry as the directory describes it; its own header must say the same.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Without a slash at its end.
    pub(super) path: String,
    pub(super) kind: EntryKind,
    pub(super) flags: u16,
    pub(super) method: u16,
    /// When it was changed, as MS-DOS writes it: time and date.
    pub(super) changed: (u16, u16),
    pub(super) crc: u32,
    pub(super) compressed: u64,
    pub(super) size: u64,
    /// Where its own header is.
    pub(super) offset: u64,
}

/// All entries, in the order in which they lie.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    pub(super) entries: Vec<Entry>,
    /// Where it begins, which is where the last entry ends.
    pub(super) start: u64,
}

/// What the end record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    count: u64,
    size: u64,
    start: u64,
}

/// Reads the directory, and refuses what can be refused without reading the files.
pub(super) async fn read(source: &Source, limits: &Limits) -> Result<Directory> {
    let end = end(source).await?;
    if end.count == 0 {
        return Err(refused("there is nothing in it"));
    }
    if end.count > limits.entries {
        return Err(refused(format!("it has {} entries, and {} are the limit", end.count, limits.entries)));
    }
    if end.size > limits.directory {
        return Err(refused(format!(
            "its list of names has {} bytes, and {} are the limit",
            end.size, limits.directory
        )));
    }
    let stop = end.start + end.size;
    let mut reader = Reader::new(source.open(end.start..stop), end.start);
    let mut entries = Vec::with_capacity(usize::try_from(end.count).unwrap_or(0));
    for _ in 0..end.count {
        entries.push(entry(&mut reader, stop).await?);
    }
    if reader.at() != stop {
        return Err(refused("its list of names is longer than the end of the file says"));
    }
    entries.sort_by_key(|entry| entry.offset);
    names::refuse_clashes(&entries)?;
    refuse_bombs(&entries, source.size, limits)?;
    Ok(Directory { entries, start: end.start })
}

/// Refuses what unpacks to more than anybody wants: more than the limit, or what a client takes for a bomb (more than 50 MiB
/// that are a hundred times as large as the zip, `ZipDownloader::extractWithZipArchive` in Composer 2.10).
fn refuse_bombs(entries: &[Entry], size: u64, limits: &Limits) -> Result<()> {
    let unpacked = entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size));
    if unpacked > limits.unpacked {
        return Err(Error::new(
            Kind::TooLarge,
            format!(
                "the zip is refused: it unpacks to {unpacked} bytes, and {} are the limit: `limits.artifact` in larder.toml, \
                 four times",
                limits.unpacked
            ),
        ));
    }
    if unpacked > 50 * 1024 * 1024 && unpacked / 100 >= size {
        return Err(refused(format!(
            "it unpacks to {unpacked} bytes, more than a hundred times its own size: clients take it for a bomb"
        )));
    }
    Ok(())
}

async fn end(source: &Source) -> Result<End> {
    let begin = source.size.saturating_sub(TAIL);
    let length = usize::try_from(source.size - begin).unwrap_or(0);
    let tail = Reader::new(source.open(begin..source.size), begin).exactly(length).await?;
    let is_end = |at: usize| tail[at..].starts_with(&END);
    let last = (0..=tail.len().saturating_sub(4)).rev().find(|at| is_end(*at));
    let last = last.filter(|at| at + END_LENGTH <= tail.len());
    let at = last.ok_or_else(|| refused("it is no zip, or its end is missing: send it again"))?;
    let position = begin + at as u64;
    let mut numbers = Numbers::of(&tail[at + 4..]);
    let disks = (numbers.u16(), numbers.u16());
    let counts = (numbers.u16(), numbers.u16());
    let (size, start, comment) = (numbers.u32(), numbers.u32(), numbers.u16());
    if numbers.rest().len() != usize::from(comment) {
        return Err(refused("there is something behind its end"));
    }
    if disks != (0, 0) || counts.0 != counts.1 {
        return Err(refused("it is one of several parts"));
    }
    let short = End { count: counts.0.into(), size: size.into(), start: start.into() };
    let locator = at.checked_sub(LOCATOR_64_LENGTH).filter(|at| tail[*at..].starts_with(&LOCATOR_64));
    let (end, end_position) = match locator {
        None => (short, position),
        Some(at) => wide_end(&tail, begin, at, short)?,
    };
    if end.start.checked_add(end.size) != Some(end_position) {
        return Err(refused("its list of names is not where its end says"));
    }
    refuse_lookalikes(source, &tail[..at], position).await?;
    Ok(end)
}

/// The end record for large files, which lies right before its locator at `at`, and agrees with the short one.
fn wide_end(tail: &[u8], begin: u64, at: usize, short: End) -> Result<(End, u64)> {
    let wrong = || refused("its two end records do not agree");
    let mut locator = Numbers::of(&tail[at + 4..]);
    let (disk, position, disks) = (locator.u32(), locator.u64(), locator.u32());
    let record_at = at.checked_sub(END_64_LENGTH).ok_or_else(wrong)?;
    let mut numbers = Numbers::of(&tail[record_at..]);
    let signature = numbers.take(4);
    let length = numbers.u64();
    let (_made_by, _needed) = (numbers.u16(), numbers.u16());
    let parts = (numbers.u32(), numbers.u32());
    let counts = (numbers.u64(), numbers.u64());
    let end = End { count: counts.0, size: numbers.u64(), start: numbers.u64() };
    let agrees = |short: u64, most: u64, long: u64| short == most || short == long;
    let holds = signature == END_64
        && position == begin + record_at as u64
        && length == (END_64_LENGTH - 12) as u64
        && disk == 0
        && disks <= 1
        && parts == (0, 0)
        && counts.0 == counts.1
        && agrees(short.count, u16::MAX.into(), end.count)
        && agrees(short.size, u32::MAX.into(), end.size)
        && agrees(short.start, u32::MAX.into(), end.start);
    if holds { Ok((end, position)) } else { Err(wrong()) }
}

/// Refuses a second end record in front of the last one: `libzip`, and so PHP, takes whichever it likes better. One inside a
/// zip that is a file of this one leads nowhere, and is none.
async fn refuse_lookalikes(source: &Source, before: &[u8], position: u64) -> Result<()> {
    let lookalikes: Vec<usize> =
        (0..before.len().saturating_sub(3)).filter(|at| before[*at..].starts_with(&END)).collect();
    if lookalikes.len() > MOST_LOOKALIKES {
        return Err(refused("it seems to have many ends"));
    }
    for at in lookalikes {
        let mut numbers = Numbers::of(&before[at + 4..]);
        let (_, count) = (numbers.take(6), numbers.u16());
        let (_size, start) = (numbers.u32(), u64::from(numbers.u32()));
        let leads_here = start + 4 <= position && {
            let found = Reader::new(source.open(start..start + 4), start).exactly(4).await?;
            found == ENTRY.as_slice()
        };
        if !numbers.is_over() && (count == 0 || leads_here) {
            return Err(refused("it has two ends, and programs do not agree which one counts"));
        }
    }
    Ok(())
}

async fn entry(reader: &mut Reader, stop: u64) -> Result<Entry> {
    let wrong = || refused("its list of names is damaged");
    if stop - reader.at() < ENTRY_LENGTH as u64 {
        return Err(wrong());
    }
    let fixed = reader.exactly(ENTRY_LENGTH).await?;
    let mut numbers = Numbers::of(&fixed);
    let signature = numbers.take(4);
    let (_made_by, _needed) = (numbers.u16(), numbers.u16());
    let (flags, method) = (numbers.u16(), numbers.u16());
    let changed = (numbers.u16(), numbers.u16());
    let (crc, compressed, size) = (numbers.u32(), numbers.u32(), numbers.u32());
    let lengths = [numbers.u16(), numbers.u16(), numbers.u16()].map(usize::from);
    let (disk, _internal, external, offset) = (numbers.u16(), numbers.u16(), numbers.u32(), numbers.u32());
    if signature != ENTRY || stop - reader.at() < lengths.iter().sum::<usize>() as u64 {
        return Err(wrong());
    }
    let name = reader.exactly(lengths[0]).await?;
    let extra = reader.exactly(lengths[1]).await?;
    reader.exactly(lengths[2]).await?;
    let (path, is_folder) = names::read(&name).map_err(|(name, why)| refused_entry(&name, why))?;
    let refuse = |why: &str| Err(refused_entry(&path, why));
    refuse_other_name(&extra, &name, &path)?;
    if flags & UNREADABLE != 0 {
        return refuse("it is encrypted, or a patch: leave the password out");
    }
    if method != STORED && method != DEFLATED {
        return refuse(&format!("it is compressed with method {method}: use deflate, or none"));
    }
    let mut wide = Numbers::of(field(&extra, WIDE).unwrap_or_default());
    let mut widened = |short: u32| if short == u32::MAX { wide.u64() } else { short.into() };
    let (size, compressed, offset) = (widened(size), widened(compressed), widened(offset));
    if wide.is_over() || disk != 0 || (method == STORED && size != compressed) {
        return refuse("its sizes contradict each other");
    }
    let kind = kind(external, is_folder).map_err(|why| refused_entry(&path, why))?;
    match kind {
        EntryKind::Directory if size != 0 => return refuse("it is a folder, and has data"),
        EntryKind::Symlink if size > LONGEST_TARGET => {
            return refuse("it is a link with a target of more than 4,096 bytes");
        }
        _ => {}
    }
    Ok(Entry { path, kind, flags, method, changed, crc, compressed, size, offset })
}

/// What the upper half of the attributes says, which is a mode of Unix where there is anything in it; programs read it
/// whichever system it says that it was made on.
fn kind(external: u32, is_folder: bool) -> Result<EntryKind, &'static str> {
    let mode = external >> 16;
    match (mode & 0o170_000, is_folder) {
        (0 | 0o100_000 | 0o040_000, true) => Ok(EntryKind::Directory),
        (0 | 0o100_000, false) => Ok(EntryKind::File { executable: mode & 0o100 != 0 }),
        (0o120_000, false) => Ok(EntryKind::Symlink),
        (0o040_000, false) => Err("it is a folder whose name does not end in a slash"),
        _ => Err("it is neither a file, nor a folder, nor a link"),
    }
}

/// An extra field.
pub(super) fn field(extra: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut numbers = Numbers::of(extra);
    loop {
        let (id, length) = (numbers.u16(), numbers.u16());
        let data = numbers.take(length.into());
        if numbers.is_over() {
            return None;
        }
        if id == wanted {
            return Some(data);
        }
    }
}

/// Refuses an extra field with another name than that of the entry.
pub(super) fn refuse_other_name(extra: &[u8], name: &[u8], path: &str) -> Result<()> {
    // Behind a version and a checksum.
    match field(extra, OTHER_NAME) {
        Some(other) if other.get(5..) != Some(name) => {
            Err(refused_entry(path, "it has a second name, and programs do not agree which one counts"))
        }
        _ => Ok(()),
    }
}
