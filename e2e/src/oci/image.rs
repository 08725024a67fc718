//! Images that every client takes for real ones, made from a seed: the same bytes on every machine.

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use super::layout::digest;

/// What an image is made of. Nothing in it can be run.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    seed: u64,
    layers: usize,
    bytes: usize,
    architecture: &'static str,
}

/// A layer as it is stored.
pub(super) struct Layer {
    /// A gzipped tar archive.
    pub(super) packed: Vec<u8>,
    /// The digest of the archive before it was gzipped.
    unpacked: String,
}

impl Image {
    /// One with `layers` layers, each with a file of `bytes` bytes that cannot be compressed. Two seeds share no layer.
    pub fn new(seed: u64, layers: usize, bytes: usize) -> Self {
        Self { seed, layers, bytes, architecture: "amd64" }
    }

    /// The same for another processor, by the name that Go gives it.
    #[must_use]
    pub fn for_architecture(self, architecture: &'static str) -> Self {
        Self { architecture, ..self }
    }

    /// Its platform, as an index names it.
    pub(super) fn platform(&self) -> Value {
        json!({"architecture": self.architecture, "os": "linux"})
    }

    /// Its layers, the lowest first.
    pub(super) fn layers(&self) -> impl Iterator<Item = Layer> {
        (0..self.layers).map(|number| layer(self.seed, number, self.bytes))
    }

    /// Its configuration.
    pub(super) fn config(&self, layers: &[Layer]) -> Value {
        let unpacked: Vec<_> = layers.iter().map(|layer| &layer.unpacked).collect();
        let history: Vec<_> = layers.iter().map(|_| json!({"created_by": "a test"})).collect();
        json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": {"Labels": {"seed": self.seed.to_string()}},
            "rootfs": {"type": "layers", "diff_ids": unpacked},
            "history": history,
        })
    }
}

fn layer(seed: u64, number: usize, bytes: usize) -> Layer {
    let contents = noise(seed, number, bytes);
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, format!("layer-{number}"), &*contents).expect("an archive grows in memory");
    let archive = archive.into_inner().expect("an archive ends in memory");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut gzip, &archive).expect("bytes are compressed in memory");
    Layer { packed: gzip.finish().expect("bytes are compressed in memory"), unpacked: digest(&archive) }
}

/// Bytes without any order in them (`SplitMix64`).
pub(super) fn noise(seed: u64, number: usize, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
    let words = std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)).to_le_bytes()
    });
    words.flatten().take(bytes).collect()
}
