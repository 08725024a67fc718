//! Zips that nobody should send, written byte by byte: each lie on its own, and noise.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, Crc, write::DeflateEncoder};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use larder_core::{Kind, Result, tree::TreeEvent};
use proptest::prelude::*;
use rawzip::{CompressionMethod, ZipArchiveWriter};

use super::{Archive, Limits, Source, look};

const MANIFEST: &str = r#"{"name":"acme/lib","version":"1.0.0"}"#;

/// An entry, with what its two headers say, each of which may be a lie.
#[derive(Clone)]
struct Entry {
    name: Vec<u8>,
    local_name: Vec<u8>,
    data: Vec<u8>,
    flags: u16,
    local_flags: u16,
    method: u16,
    crc: u32,
    size: u32,
    local_size: u32,
    compressed: u32,
    mode: u32,
    extra: Vec<u8>,
    /// Behind the data.
    behind: Vec<u8>,
    /// In the directory, in place of where it is.
    offset: Option<u32>,
}

fn crc(data: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(data);
    crc.sum()
}

fn deflated(data: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn stored(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
    let data = data.as_ref().to_vec();
    let size = u32::try_from(data.len()).unwrap();
    let name = name.as_ref().to_vec();
    Entry {
        local_name: name.clone(),
        name,
        crc: crc(&data),
        size,
        local_size: size,
        compressed: size,
        data,
        flags: 0,
        local_flags: 0,
        method: 0,
        mode: 0o100_644,
        extra: Vec::new(),
        behind: Vec::new(),
        offset: None,
    }
}

fn packed(name: &str, data: impl AsRef<[u8]>) -> Entry {
    let data = data.as_ref();
    let small = deflated(data);
    let entry = stored(name, data);
    Entry { method: 8, compressed: u32::try_from(small.len()).unwrap(), data: small, ..entry }
}

fn link(name: &str, target: &str) -> Entry {
    Entry { mode: 0o120_777, ..stored(name, target) }
}

fn manifest() -> Entry {
    packed("composer.json", MANIFEST)
}

/// With its sizes behind its data, as streams have them.
fn described(entry: Entry, signed: bool, wide: bool) -> Entry {
    let mut behind = if signed { b"PK\x07\x08".to_vec() } else { Vec::new() };
    behind.extend(entry.crc.to_le_bytes());
    for size in [entry.compressed, entry.size] {
        if wide { behind.extend(u64::from(size).to_le_bytes()) } else { behind.extend(size.to_le_bytes()) }
    }
    Entry { flags: 8, local_flags: 8, behind, ..entry }
}

/// What the end of the file says.
#[derive(Clone, Default)]
struct End {
    count: Option<u16>,
    comment: Vec<u8>,
    /// In front of the first entry, between the last one and the directory, behind the directory, behind the end.
    noise: [Vec<u8>; 4],
    wide: bool,
}

fn zip_with(entries: &[Entry], end: &End) -> Vec<u8> {
    let mut out = end.noise[0].clone();
    let mut directory = Vec::new();
    for entry in entries {
        let offset = entry.offset.unwrap_or_else(|| u32::try_from(out.len()).unwrap());
        let fields = |flags: u16, size: u32, name: &[u8]| {
            let described = flags & 8 != 0;
            let mut fields = Vec::new();
            fields.extend([20, flags, entry.method, 0x6000, 0x5a21].into_iter().flat_map(u16::to_le_bytes));
            let numbers = if described { [0; 3] } else { [entry.crc, entry.compressed, size] };
            fields.extend(numbers.into_iter().flat_map(u32::to_le_bytes));
            fields.extend(
                [name, &entry.extra].into_iter().flat_map(|part| u16::try_from(part.len()).unwrap().to_le_bytes()),
            );
            fields
        };
        out.extend(b"PK\x03\x04");
        out.extend(fields(entry.local_flags, entry.local_size, &entry.local_name));
        out.extend(&entry.local_name);
        out.extend(&entry.extra);
        out.extend(&entry.data);
        out.extend(&entry.behind);
        directory.extend(b"PK\x01\x02\x14\x03");
        let mut known = fields(entry.flags & !8, entry.size, &entry.name);
        known[2..4].copy_from_slice(&entry.flags.to_le_bytes());
        directory.extend(known);
        directory.extend([0; 6]);
        directory.extend((entry.mode << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(&entry.name);
        directory.extend(&entry.extra);
    }
    out.extend(&end.noise[1]);
    let start = out.len();
    out.extend(&directory);
    let count = end.count.unwrap_or_else(|| u16::try_from(entries.len()).unwrap());
    if end.wide {
        let record = out.len() as u64;
        out.extend(b"PK\x06\x06");
        out.extend(44_u64.to_le_bytes());
        out.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let numbers = [u64::from(count), u64::from(count), directory.len() as u64, start as u64];
        out.extend(numbers.into_iter().flat_map(u64::to_le_bytes));
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.extend(record.to_le_bytes());
        out.extend(1_u32.to_le_bytes());
    }
    out.extend(&end.noise[2]);
    out.extend(end_record(count, u32::try_from(directory.len()).unwrap(), u32::try_from(start).unwrap(), &end.comment));
    out.extend(&end.noise[3]);
    out
}

fn end_record(count: u16, size: u32, start: u32, comment: &[u8]) -> Vec<u8> {
    let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
    end.extend([count, count].into_iter().flat_map(u16::to_le_bytes));
    end.extend([size, start].into_iter().flat_map(u32::to_le_bytes));
    end.extend(u16::try_from(comment.len()).unwrap().to_le_bytes());
    end.extend(comment);
    end
}

fn zip(entries: &[Entry]) -> Vec<u8> {
    zip_with(entries, &End::default())
}

fn source(zip: &[u8], piece: usize) -> Source {
    let zip = Bytes::copy_from_slice(zip);
    Source::new(zip.len() as u64, move |range| {
        let part = zip.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap());
        let pieces: Vec<Result<Bytes>> = part.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces).boxed()
    })
}

fn looked(zip: &[u8]) -> Result<Archive> {
    look(&source(zip, 7), &Limits::for_size(1 << 20), true).now_or_never().unwrap()
}

fn refused(zip: &[u8], why: &str) {
    let error = looked(zip).map(drop).expect_err(why);
    assert!(matches!(error.kind(), Kind::Invalid | Kind::TooLarge), "{why}: {error}");
    assert!(error.message().contains(why), "{why:?} is not in: {error}");
    assert!(error.message().len() < 1_500 && !error.message().contains(char::is_control), "{error}");
}

#[test]
fn zips_of_every_honest_writer_pass() {
    let file = packed("src/Lib.php", "<?php\n".repeat(40_000));
    let folder = Entry { mode: 0o040_755, ..stored("src/", "") };
    for (signed, wide) in [(true, false), (true, true), (false, false), (false, true)] {
        let entries = [described(manifest(), signed, wide), described(stored("a", "b"), signed, wide)];
        looked(&zip(&entries)).unwrap_or_else(|error| panic!("{signed} {wide}: {error}"));
    }
    let dos = Entry { mode: 0, ..stored("readme.txt", "x") };
    let entries = [folder, file, manifest(), dos, link("src/link", "../readme.txt"), stored("empty", "")];
    let archive = looked(&zip(&entries)).unwrap();
    assert_eq!(archive.manifest.as_deref(), Some(MANIFEST.as_bytes()));
    assert!(archive.is_plain && archive.folder().is_empty());
    assert_eq!(archive.changed().rfc3339(), "2025-01-01T12:00:00+00:00");
    // `git archive` writes the commit there.
    looked(&zip_with(&entries, &End { comment: vec![b'a'; 40], ..End::default() })).unwrap();
    looked(&zip_with(&entries, &End { wide: true, ..End::default() })).unwrap();
    // In another order than they lie in, and one inside another.
    let inner = zip(&[manifest()]);
    looked(&zip(&[stored("inner.zip", inner), manifest()])).unwrap();
    let mut writer = ZipArchiveWriter::new(Vec::new());
    writer.new_dir("top/").create().unwrap();
    let (mut entry, config) =
        writer.new_file("top/composer.json").compression_method(CompressionMethod::DEFLATE).start().unwrap();
    let mut data = config.wrap(DeflateEncoder::new(&mut entry, Compression::default()));
    data.write_all(MANIFEST.as_bytes()).unwrap();
    let (encoder, descriptor) = data.finish().unwrap();
    encoder.finish().unwrap();
    entry.finish(descriptor).unwrap();
    let archive = looked(&writer.finish().unwrap()).unwrap();
    assert!(archive.is_plain && archive.folder() == "top");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in
        ["../evil", "a/../../evil", "/etc/cron.d/x", "C:\\x", "c:/x", "a\\b", "a//b", "./a", "a\0b", "a\nb", ".."]
    {
        refused(&zip(&[manifest(), stored(name, "x")]), "its name");
    }
    refused(&zip(&[manifest(), stored(b"\xff\xfe", "x")]), "not UTF-8");
    let other = Entry { local_name: b"../../evil".to_vec(), ..stored("good/bad/x", "x") };
    refused(&zip(&[manifest(), other]), "its own header");
    let mut extra = vec![0x75, 0x70, 12, 0, 1, 0, 0, 0, 0];
    extra.extend(b"../evil");
    refused(&zip(&[manifest(), Entry { extra, ..stored("good", "x") }]), "second name");
    for (name, target) in [("a", "../b"), ("a", "/etc/passwd"), ("a/b", "../../c"), ("x/a", "y/../../b"), ("a", "")] {
        refused(&zip(&[manifest(), link(name, target)]), "leads out");
    }
    // Inside the zip, but not inside what a client takes for the package.
    refused(&zip(&[stored("top/composer.json", MANIFEST), link("top/a", "../b")]), "leads out");
    refused(&zip(&[manifest(), link("a", &"x".repeat(5_000))]), "4,096");
    refused(&zip(&[manifest(), Entry { mode: 0o020_644, ..stored("device", "") }]), "neither a file");
}

#[test]
fn two_files_of_one_name_are_refused() {
    for (first, second) in [("a", "a"), ("README", "readme"), ("src/A.php", "SRC/a.php"), ("a", "a."), ("a", "a ")] {
        refused(&zip(&[manifest(), stored(first, "1"), stored(second, "2")]), "another entry");
    }
    refused(&zip(&[manifest(), manifest()]), "another entry");
    refused(&zip(&[manifest(), stored("a", "1"), stored("a/b", "2")]), "not a folder");
    refused(&zip(&[manifest(), link("a", "b"), stored("A/c", "2")]), "not a folder");
    refused(&zip(&[stored("a/composer.json", MANIFEST), stored("b/composer.json", MANIFEST)]), "could be its manifest");
    refused(&zip(&[stored("a", MANIFEST)]), "no composer.json");
    refused(&zip(&[stored("a/b/c/composer.json", MANIFEST)]), "no composer.json");
    refused(&zip(&[stored("x", MANIFEST), link("composer.json", "x")]), "not a file");
    refused(&zip(&[stored("composer.json", vec![b' '; 1_100_000])]), "1 MiB");
}

#[test]
fn what_cannot_be_read_is_refused() {
    for flags in [1, 1 << 5, 1 << 6, 1 << 13] {
        refused(&zip(&[manifest(), Entry { flags, local_flags: flags, ..stored("a", "x") }]), "encrypted");
    }
    refused(&zip(&[manifest(), Entry { local_flags: 1, ..stored("a", "x") }]), "its own header");
    for method in [1, 9, 12, 14, 93, 99] {
        refused(&zip(&[manifest(), Entry { method, ..stored("a", "x") }]), "method");
    }
    for file in [&b""[..], b"PK", b"PK\x05\x06", b"no zip at all", &[0; 4_000]] {
        refused(file, "no zip");
    }
    refused(&zip(&[]), "nothing in it");
    let whole = zip(&[manifest(), packed("a", "x".repeat(3_000))]);
    for end in 0..whole.len() {
        assert!(looked(&whole[..end]).is_err(), "cut off after {end} bytes");
    }
}

#[test]
fn bombs_are_refused_unread() {
    let limits = Limits { entries: 10, ..Limits::for_size(1 << 20) };
    let many: Vec<Entry> = (0..11).map(|number| stored(format!("{number}"), "")).collect();
    let error = look(&source(&zip(&many), 64), &limits, false).now_or_never().unwrap().unwrap_err();
    assert!(error.message().contains("11 entries"), "{error}");
    let few = End { count: Some(5), ..End::default() };
    refused(&zip_with(&many, &few), "longer than");
    refused(&zip_with(&many, &End { count: Some(12), ..End::default() }), "damaged");
    // Ten million, as the end says; nothing of them is read.
    let mut claims = zip_with(&[manifest()], &End { wide: true, ..End::default() });
    let record = claims.windows(4).position(|bytes| bytes == b"PK\x06\x06").unwrap();
    claims[record + 24..record + 32].copy_from_slice(&10_000_000_u64.to_le_bytes());
    claims[record + 32..record + 40].copy_from_slice(&10_000_000_u64.to_le_bytes());
    let end = claims.len() - 22;
    claims[end + 8..end + 12].fill(0xff);
    refused(&claims, "10000000 entries");
    let bomb = packed("zeros", vec![0; 60 << 20]);
    refused(&zip(&[manifest(), bomb.clone()]), "are the limit");
    let limits = Limits::for_size(512 << 20);
    let error = look(&source(&zip(&[manifest(), bomb]), 4_096), &limits, true).now_or_never().unwrap().unwrap_err();
    assert!(error.message().contains("bomb"), "{error}");
    // One that lies about its size, in both directions.
    let zeros = packed("zeros", vec![0; 3 << 20]);
    refused(&zip(&[manifest(), Entry { size: 5, local_size: 5, ..zeros.clone() }]), "more than is promised");
    refused(&zip(&[manifest(), Entry { size: 3 << 20 | 1, local_size: 3 << 20 | 1, ..zeros }]), "what is promised");
    // Two entries for the same bytes.
    refused(&zip(&[manifest(), packed("a", "x"), Entry { offset: Some(0), ..packed("b", "x") }]), "shares bytes");
}

#[test]
fn lies_are_refused() {
    let file = packed("a", "xyz".repeat(100));
    refused(&zip(&[manifest(), Entry { crc: 1, ..file.clone() }]), "what is promised");
    refused(&zip(&[manifest(), Entry { local_size: 7, ..file.clone() }]), "its own header");
    let mut broken = file.clone();
    broken.data[0] ^= 0x07;
    assert!(looked(&zip(&[manifest(), broken])).is_err());
    let longer = Entry { data: [&file.data[..], b"x"].concat(), compressed: file.compressed + 1, ..file.clone() };
    refused(&zip(&[manifest(), longer]), "damaged");
    let shorter = Entry { data: file.data[..5].to_vec(), compressed: 5, ..file.clone() };
    refused(&zip(&[manifest(), shorter]), "damaged");
    let mut wrong = described(file.clone(), true, false);
    wrong.behind[6] ^= 1;
    refused(&zip(&[manifest(), wrong]), "contradicts");
    refused(&zip(&[manifest(), Entry { behind: Vec::new(), ..described(file.clone(), true, false) }]), "contradicts");
    refused(&zip(&[manifest(), Entry { size: 9, ..stored("a", "x") }]), "contradict");
    refused(&zip(&[manifest(), Entry { mode: 0o040_755, ..stored("a/", "data") }]), "has data");
    for (at, why) in ["or there is something in front", "something between", "not where its end says", "behind its end"]
        .into_iter()
        .enumerate()
    {
        let mut end = End::default();
        end.noise[at] = b"noise".to_vec();
        let entry = if at == 0 { Entry { offset: Some(5), ..manifest() } } else { manifest() };
        refused(&zip_with(&[entry], &end), why);
    }
    refused(&zip(&[manifest(), Entry { behind: b"gap".to_vec(), ..file.clone() }, stored("b", "")]), "in front of it");
    // A second directory, in a file, and a second end, in another one or in the comment.
    let evil = zip(&[stored("composer.json", r#"{"name":"evil/lib"}"#)]);
    let start = 30 + "evil".len() + evil.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    let size = evil.len() - 22 - (start - 34);
    let second = end_record(1, u32::try_from(size).unwrap(), u32::try_from(start).unwrap(), b"");
    refused(&zip(&[stored("evil", &evil), stored("end", second.clone()), manifest()]), "two ends");
    let end = End { comment: second, ..End::default() };
    refused(&zip_with(&[stored("evil", &evil), manifest()], &end), "not where its end says");
}

#[test]
fn the_folder_of_a_package_can_be_had_alone() {
    let entries = [
        stored("__MACOSX/._x", "junk"),
        stored("a/lib/composer.json", MANIFEST),
        stored("a/library/x", "not this"),
        Entry { mode: 0o040_755, ..stored("a/lib/bin/", "") },
        Entry { mode: 0o100_755, ..packed("a/lib/bin/run", "#!") },
    ];
    let zip = zip(&entries);
    let archive = looked(&zip).unwrap();
    assert!(!archive.is_plain && archive.folder() == "a/lib");
    let events: Vec<TreeEvent> = archive.files(&source(&zip, 5)).try_collect().now_or_never().unwrap().unwrap();
    let (mut names, mut data) = (Vec::new(), Vec::new());
    for event in events {
        match event {
            TreeEvent::Entry(head) => names.push(format!("{} {:?}", head.path, head.kind)),
            TreeEvent::Data(bytes) => data.extend_from_slice(&bytes),
        }
    }
    assert_eq!(
        names,
        ["composer.json File { executable: false }", "bin Directory", "bin/run File { executable: true }"]
    );
    assert_eq!(data, [MANIFEST.as_bytes(), b"#!"].concat());
}

proptest! {
    /// Noise in a good zip is found, or changes nothing that matters; it never panics.
    #[test]
    fn noise_never_passes_for_something_else(at in 0_usize..600, with: u8, much in 1_usize..4) {
        let entries = [described(manifest(), true, false), packed("src/a.php", "<?php echo 1;".repeat(9)), stored("b", "bee")];
        let mut zip = zip(&entries);
        let at = at % zip.len();
        let stop = zip.len().min(at + much);
        zip[at..stop].fill(with);
        if let Ok(archive) = looked(&zip) {
            prop_assert_eq!(archive.manifest.as_deref(), Some(MANIFEST.as_bytes()));
        }
    }

    #[test]
    fn what_is_no_zip_never_passes(noise in prop::collection::vec(any::<u8>(), 0..200), wide: bool) {
        let mut file = noise.clone();
        file.extend(end_record(1, u32::try_from(noise.len()).unwrap(), 0, b""));
        prop_assert!(looked(&file).is_err());
        let end = End { wide, noise: [Vec::new(), noise, Vec::new(), Vec::new()], ..End::default() };
        prop_assert_eq!(looked(&zip_with(&[manifest()], &end)).is_ok(), end.noise[1].is_empty());
    }
}
