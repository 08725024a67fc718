//! The dist: the same bytes whenever, wherever and however its files arrive.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use larder_composer::dist;
use larder_core::{
    Digest, Result, Time,
    tree::{ByteSink, EntryHead, EntryKind, TreeEvent},
};

#[derive(Default)]
struct Collected(Vec<u8>);

#[async_trait]
impl ByteSink for Collected {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.0.extend_from_slice(&bytes);
        Ok(())
    }
}

/// A tree with everything in it, its data cut into pieces of `piece` bytes.
fn tree(piece: usize) -> Vec<Result<TreeEvent>> {
    let text: Vec<u8> = (0..200_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 20).to_le_bytes()).collect();
    let files = [
        ("bin/", EntryKind::Directory, Vec::new()),
        ("bin/run", EntryKind::File { executable: true }, b"#!/bin/sh\n".to_vec()),
        ("composer.json", EntryKind::File { executable: false }, b"{}".to_vec()),
        ("empty", EntryKind::File { executable: false }, Vec::new()),
        ("link", EntryKind::Symlink, b"composer.json".to_vec()),
        ("src/Größe.php", EntryKind::File { executable: false }, text),
    ];
    let events = files.into_iter().flat_map(|(path, kind, data)| {
        let head = EntryHead { path: path.to_owned(), kind, size: data.len() as u64 };
        let pieces: Vec<_> = data.chunks(piece).map(|piece| TreeEvent::Data(Bytes::copy_from_slice(piece))).collect();
        std::iter::once(TreeEvent::Entry(head)).chain(pieces)
    });
    events.map(Ok).collect()
}

fn packed(piece: usize) -> Vec<u8> {
    let mut out = Collected::default();
    let files = stream::iter(tree(piece)).boxed();
    futures_util::FutureExt::now_or_never(dist::pack(Time::from_seconds(1_790_000_000), files, &mut out))
        .expect("nothing in it waits")
        .unwrap();
    out.0
}

#[test]
fn the_bytes_are_these_on_every_machine() {
    // Another digest here means that dists which are not built yet will differ from those of other servers.
    insta::assert_snapshot!(Digest::of(&packed(1_000_000)).to_string());
}

#[test]
fn where_the_data_is_cut_does_not_matter() {
    let whole = packed(1_000_000);
    for piece in [1_000, 4_096, 65_535, 65_536, 65_537] {
        assert!(packed(piece) == whole, "pieces of {piece} bytes");
    }
}
