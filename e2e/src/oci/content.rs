//! What is pushed and pulled, down to the byte: blobs and manifests that tests put together themselves.

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use super::{image, layout};

/// An image.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An image for each of several platforms.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The configuration of an image.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer of an image.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Bytes and their digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:…`, or of another algorithm.
    pub digest: String,
    /// The bytes.
    pub bytes: Bytes,
}

impl Blob {
    /// Of these bytes, by SHA-256.
    pub fn of(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { digest: layout::digest(&bytes), bytes }
    }

    /// Of these bytes, by SHA-512.
    pub fn of_sha512(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let hex = |digest: String, byte: &u8| format!("{digest}{byte:02x}");
        Self { digest: Sha512::digest(&bytes).iter().fold("sha512:".to_owned(), hex), bytes }
    }

    /// So many bytes in which there is no order, the same for the same seed.
    pub fn noise(seed: u64, length: usize) -> Self {
        Self::of(image::noise(seed, 0, length))
    }

    /// Refers to it.
    pub fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.bytes.len()})
    }

    /// Whether these are its bytes.
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.bytes == bytes
    }
}

/// A manifest with all that it refers to.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its `Content-Type`.
    pub media_type: String,
    /// Its digest and bytes.
    pub blob: Blob,
    /// The blobs that it needs, the configuration first.
    pub blobs: Vec<Blob>,
    /// The manifests that it consists of.
    pub parts: Vec<Manifest>,
}

impl Manifest {
    /// An image whose configuration says `config`.
    pub fn image(config: &str, layers: &[Blob]) -> Self {
        let config = Blob::of(json!({"architecture": "amd64", "os": "linux", "author": config}).to_string());
        let blobs: Vec<Blob> = std::iter::once(config).chain(layers.iter().cloned()).collect();
        let layers: Vec<Value> = layers.iter().map(|layer| layer.descriptor(LAYER)).collect();
        let document = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": blobs[0].descriptor(CONFIG), "layers": layers,
        });
        Self { blobs, ..Self::of(&document) }
    }

    /// An index of images.
    pub fn index(parts: &[Self]) -> Self {
        let manifests: Vec<Value> = parts.iter().map(Self::descriptor).collect();
        let document = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        Self { parts: parts.to_vec(), ..Self::of(&document) }
    }

    /// Something of type `artifact_type` about another manifest. `number` tells it from others.
    pub fn about(subject: &Value, artifact_type: &str, number: u64) -> Self {
        let empty = Blob::of("{}");
        let document = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact_type,
            "config": empty.descriptor("application/vnd.oci.empty.v1+json"),
            "layers": [empty.descriptor("application/vnd.oci.empty.v1+json")],
            "subject": subject, "annotations": {"org.example.number": number.to_string()},
        });
        Self { blobs: vec![empty], ..Self::of(&document) }
    }

    /// What a document says, byte for byte; whatever it refers to is not in `blobs`.
    pub fn of(document: &Value) -> Self {
        let media_type = document["mediaType"].as_str().unwrap_or(MANIFEST).to_owned();
        Self { media_type, blob: Blob::of(document.to_string()), blobs: Vec::new(), parts: Vec::new() }
    }

    /// Its digest.
    pub fn digest(&self) -> &str {
        &self.blob.digest
    }

    /// Refers to it.
    pub fn descriptor(&self) -> Value {
        self.blob.descriptor(&self.media_type)
    }

    /// The document.
    ///
    /// # Panics
    /// If it is not JSON.
    pub fn document(&self) -> Value {
        serde_json::from_slice(&self.blob.bytes).expect("a manifest is JSON")
    }
}
