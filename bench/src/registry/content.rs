//! What is pushed and pulled: blobs that do not compress, with their digests and ready for the wire, and images of them. The
//! same bytes in every run.

use larder_core::Digest;
use serde_json::{Value, json};

use crate::fixture::noise;

/// The type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What clients written in Go send as one chunk: the buffer of their `io.Copy`.
const CHUNK: usize = 32 * 1024;

/// Bytes to push, so prepared that the client has nothing to compute while it is measured.
#[derive(Debug)]
pub struct Blob {
    /// Its digest, as it stands in addresses.
    pub digest: String,
    /// Bytes.
    pub size: usize,
    /// A body of chunked transfer coding (RFC 9112, 7.1).
    pub wire: Vec<u8>,
}

impl Blob {
    /// Of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut wire = Vec::with_capacity(bytes.len() + bytes.len().div_ceil(CHUNK) * 10 + 16);
        for chunk in bytes.chunks(CHUNK) {
            wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        Self { digest: Digest::of(bytes).to_string(), size: bytes.len(), wire }
    }

    fn described(&self, kind: &str) -> Value {
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": self.digest, "size": self.size })
    }
}

/// An image: its blobs and its manifest.
#[derive(Debug)]
pub struct Image {
    /// The layers, and the configuration as the last one.
    pub blobs: Vec<Blob>,
    /// As it is pushed.
    pub manifest: Vec<u8>,
}

impl Image {
    /// Of layers of these bytes.
    pub fn new<'a>(name: &str, layers: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut blobs: Vec<_> = layers.map(Blob::new).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Labels": { "name": name } },
            "rootfs": { "type": "layers", "diff_ids": blobs.iter().map(|blob| &blob.digest).collect::<Vec<_>>() },
        });
        let config = Blob::new(config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.described("config.v1+json"),
            "layers": blobs.iter().map(|blob| blob.described("layer.v1.tar")).collect::<Vec<_>>(),
        });
        blobs.push(config);
        Self { blobs, manifest: manifest.to_string().into_bytes() }
    }

    /// With `layers` layers of `size` bytes each, which no image of another seed has.
    pub fn noise(seed: u64, layers: usize, size: usize) -> Self {
        let bytes = noise(seed, layers * size);
        Self::new(&format!("image {seed}"), bytes.chunks(size))
    }

    /// How many bytes its blobs have together.
    pub fn size(&self) -> usize {
        self.blobs.iter().map(|blob| blob.size).sum()
    }
}
