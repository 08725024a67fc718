//! The OCI image layout (image-spec, image-layout.md): the folder in which clients keep images outside of a registry.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Image;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const NAME: &str = "org.opencontainers.image.ref.name";

/// See the file.
#[derive(Debug)]
pub struct Layout {
    folder: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Layout {
    /// One with an image under the tag `made`.
    pub fn of_image(image: &Image) -> Self {
        let layout = Self::empty();
        let descriptor = layout.put_image(image);
        layout.tag(descriptor, "made");
        layout
    }

    /// One with an index of images under the tag `made`.
    pub fn of_index(images: &[Image]) -> Self {
        let layout = Self::empty();
        let manifests = images.iter().map(|image| {
            let mut descriptor = layout.put_image(image);
            descriptor["platform"] = image.platform();
            descriptor
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests.collect::<Vec<_>>()});
        let descriptor = layout.put(INDEX, index.to_string().as_bytes());
        layout.tag(descriptor, "made");
        layout
    }

    /// One that a client wrote.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder, _temporary: None }
    }

    fn empty() -> Self {
        let temporary = tempfile::tempdir().expect("a test needs a place for temporary files");
        let folder = temporary.path().to_owned();
        std::fs::create_dir_all(folder.join("blobs/sha256")).expect("a folder can be made");
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file can be written");
        Self { folder, _temporary: Some(temporary) }
    }

    fn tag(&self, mut descriptor: Value, name: &str) {
        descriptor["annotations"] = json!({NAME: name});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]});
        std::fs::write(self.folder.join("index.json"), index.to_string()).expect("a file can be written");
    }

    fn put(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        std::fs::write(self.blob(&digest), bytes).expect("a file can be written");
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn put_image(&self, image: &Image) -> Value {
        let layers: Vec<_> = image.layers().collect();
        let config = self.put(CONFIG, image.config(&layers).to_string().as_bytes());
        let layers: Vec<_> = layers.iter().map(|layer| self.put(LAYER, &layer.packed)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.put(MANIFEST, manifest.to_string().as_bytes())
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs").join(digest.replace(':', "/"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The digest of what it holds.
    ///
    /// # Panics
    /// If it is not clear which manifest or index that is.
    pub fn digest(&self) -> String {
        let index = std::fs::read(self.folder.join("index.json")).expect("a layout has an index");
        let index: Value = serde_json::from_slice(&index).expect("an index is JSON");
        let mut held = index["manifests"].as_array().cloned().unwrap_or_default();
        // Oras also lists the parts of an index, and crane names nothing.
        if held.len() > 1 {
            held.retain(|one| one["annotations"][NAME].is_string());
        }
        assert_eq!(held.len(), 1, "it holds one thing: {index}");
        held[0]["digest"].as_str().expect("a descriptor has a digest").to_owned()
    }

    /// Every byte of what it holds: manifests, configurations and layers, by digest.
    ///
    /// # Panics
    /// If one is missing, or is not what its digest says.
    pub fn bytes(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.digest()];
        while let Some(name) = open.pop() {
            let bytes = std::fs::read(self.blob(&name)).unwrap_or_else(|error| panic!("{name} is missing: {error}"));
            assert_eq!(digest(&bytes), name, "its bytes are those of its digest");
            // Layers and configurations name no descriptors, and most are not even JSON.
            let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let lists = ["manifests", "layers"].iter().filter_map(|list| document[list].as_array()).flatten();
            let named = lists.chain(document.get("config")).filter_map(|one| one["digest"].as_str());
            open.extend(named.filter(|name| !found.contains_key(*name)).map(str::to_owned));
            found.insert(name, bytes);
        }
        found
    }
}

/// `sha256:` and the digest of `bytes`.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |digest, byte| format!("{digest}{byte:02x}"))
}
