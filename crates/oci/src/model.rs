//! Manifests as clients write them, read leniently: what Larder needs to know is checked, and everything else passes
//! through, because the bytes that are stored are the bytes that came.

use std::collections::{BTreeMap, HashSet};

use larder_core::Digest;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Code, Refusal};

/// The largest manifest, in bytes. Clients refuse larger ones themselves.
pub const LARGEST: usize = 4 * 1024 * 1024;

/// An image index, which referrers are answered with.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What is written in place of a media type that nobody gave.
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

/// How many things one manifest may refer to.
const MOST_DESCRIPTORS: usize = 10_000;

/// How many bytes the annotations of a manifest about another one may have: they are in every list of what is about that.
const LONGEST_ANNOTATIONS: usize = 512 * 1024;

/// The longest media type (RFC 6838, 4.2).
const LONGEST_TYPE: usize = 255;

/// What refers to content.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    digest: String,
    size: i64,
    /// Where else the content can be had.
    #[serde(default)]
    urls: Option<Vec<String>>,
}

/// What a manifest says, as JSON. Twice the same key is an error: two readers could understand two things.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: Option<i64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    /// Of the artifact manifest, which the specification has given up.
    blobs: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

/// A blob that a manifest needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// The blob.
    pub digest: Digest,
    /// Its size, as the manifest says.
    pub size: u64,
    /// Whether it may be had elsewhere, and so be missing here.
    pub elsewhere: bool,
}

/// What a manifest means to a registry.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its media type, without parameters.
    pub media_type: String,
    /// Its blobs, each once, in order.
    pub blobs: Vec<Needed>,
    /// The manifests that it consists of, each once.
    pub parts: Vec<Digest>,
    /// The manifest that it is about.
    pub subject: Option<Digest>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Manifest {
    /// Reads the bytes of a manifest that was sent with this `Content-Type`.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, Refusal> {
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| wrong(format!("it cannot be read: {error}")))?;
        if wire.schema_version.is_some_and(|version| version != 2) {
            return Err(wrong("only schema version 2 is stored: push with a client that is not from before 2017"));
        }
        let sent =
            content_type.map(|text| text.split(';').next().unwrap_or(text).trim()).filter(|text| !text.is_empty());
        let media_type = match (&wire.media_type, sent) {
            (Some(own), Some(sent)) if own != sent => {
                return Err(wrong(format!("its mediaType is {own}, but it was sent as {sent}")));
            }
            (Some(own), _) => own.clone(),
            (None, Some(sent)) => sent.to_owned(),
            (None, None) if wire.manifests.is_some() => INDEX.to_owned(),
            (None, None) => IMAGE.to_owned(),
        };
        if media_type.len() > LONGEST_TYPE || !media_type.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("its media type is not one"));
        }
        if wire.manifests.is_some() && (wire.layers.is_some() || wire.config.is_some()) {
            return Err(wrong("it is an image and an index at once"));
        }
        let (mut blobs, mut parts, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let config_type = wire.config.as_ref().map(|config| config.media_type.clone());
        let layers = wire.layers.into_iter().chain(wire.blobs).flatten();
        for descriptor in wire.config.into_iter().chain(layers) {
            let needed = descriptor.needed()?;
            if seen.insert(needed.digest) {
                blobs.push(needed);
            }
            if blobs.len() > MOST_DESCRIPTORS {
                return Err(wrong(format!("it refers to more than {MOST_DESCRIPTORS} blobs")));
            }
        }
        for descriptor in wire.manifests.unwrap_or_default() {
            parts.push(descriptor.needed()?.digest);
            if parts.len() > MOST_DESCRIPTORS {
                return Err(wrong(format!("it refers to more than {MOST_DESCRIPTORS} manifests")));
            }
        }
        parts.sort_unstable();
        parts.dedup();
        let subject = wire.subject.map(|subject| subject.needed()).transpose()?.map(|subject| subject.digest);
        // An index says itself what it is; an image without a word for it is what its config is.
        let artifact_type =
            wire.artifact_type.filter(|text| !text.is_empty()).or(config_type.filter(|text| !text.is_empty()));
        if artifact_type.as_ref().is_some_and(|text| text.len() > LONGEST_TYPE) {
            return Err(wrong(format!("its artifact type is longer than {LONGEST_TYPE} bytes")));
        }
        let annotated: usize = wire.annotations.iter().flatten().map(|(name, text)| name.len() + text.len()).sum();
        if subject.is_some() && annotated > LONGEST_ANNOTATIONS {
            return Err(wrong(format!(
                "it is about another manifest, and its annotations have more than {LONGEST_ANNOTATIONS} bytes: put them \
                 into a blob"
            )));
        }
        Ok(Self { media_type, blobs, parts, subject, artifact_type, annotations: wire.annotations })
    }

    /// The descriptor of this manifest, as lists of referrers show it. Only what is about something is ever shown there,
    /// so others are kept short.
    pub fn descriptor(&self, digest: &Digest, size: usize) -> serde_json::Value {
        let mut descriptor = json!({ "mediaType": self.media_type, "digest": digest.to_string(), "size": size });
        if let Some(artifact_type) = &self.artifact_type {
            descriptor["artifactType"] = artifact_type.as_str().into();
        }
        if let (Some(annotations), Some(_)) = (&self.annotations, self.subject) {
            descriptor["annotations"] = json!(annotations);
        }
        descriptor
    }
}

impl Descriptor {
    fn needed(&self) -> Result<Needed, Refusal> {
        let digest = crate::names::parse_digest(&self.digest)?;
        let size = u64::try_from(self.size).map_err(|_| wrong(format!("the size of {digest} is negative")))?;
        // The first is of the specification, the second of its ancestor.
        let elsewhere = self.urls.as_ref().is_some_and(|urls| !urls.is_empty())
            || self.media_type.contains(".nondistributable.")
            || self.media_type.contains(".foreign.");
        Ok(Needed { digest, size, elsewhere })
    }
}

/// What is kept of a manifest beside its bytes: its descriptor.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// Its media type.
    pub media_type: String,
    /// What it is, for filters.
    #[serde(default)]
    pub artifact_type: Option<String>,
}

/// Of an index, what a list of referrers in the old style has.
#[derive(Debug, Deserialize)]
pub struct Listing {
    /// The descriptors.
    #[serde(default)]
    pub manifests: Vec<serde_json::Value>,
}

fn wrong(what: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::ManifestInvalid, "this is not a manifest that can be stored", what.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}"#;

    fn parse(text: &str) -> Result<Manifest, Refusal> {
        Manifest::parse(text.as_bytes(), None)
    }

    #[test]
    fn an_image_needs_its_config_and_each_layer_once() {
        let manifest =
            parse(&format!(r#"{{"schemaVersion":2,"config":{CONFIG},"layers":[{CONFIG},{CONFIG}],"new":{{}}}}"#))
                .unwrap();
        assert_eq!(manifest.blobs.len(), 1);
        assert_eq!(manifest.media_type, IMAGE);
        let descriptor = manifest.descriptor(&Digest::of(b""), 7);
        assert_eq!(descriptor["artifactType"], "application/vnd.oci.image.config.v1+json");
        assert_eq!(descriptor["size"], 7);
    }

    #[test]
    fn an_index_is_of_its_parts_and_has_no_type_but_its_own() {
        let manifest = parse(&format!(
            r#"{{"schemaVersion":2,"manifests":[{CONFIG}],"subject":{CONFIG},"annotations":{{"a":"b"}}}}"#
        ));
        let manifest = manifest.unwrap();
        assert_eq!((manifest.media_type.as_str(), manifest.parts.len(), manifest.blobs.len()), (INDEX, 1, 0));
        let descriptor = manifest.descriptor(&Digest::of(b""), 7);
        assert_eq!(descriptor.get("artifactType"), None);
        assert_eq!(descriptor["annotations"]["a"], "b");
    }

    #[test]
    fn what_may_be_elsewhere_may_be_missing() {
        for layer in [
            CONFIG.replace("image.config", "image.layer.nondistributable"),
            CONFIG.replace("vnd.oci.image.config.v1+json", "vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            CONFIG.replace(r#""size":2"#, r#""size":2,"urls":["https://example.org/x"]"#),
        ] {
            let layer = layer.replace("44136fa3", "54136fa3");
            let manifest = parse(&format!(r#"{{"schemaVersion":2,"config":{CONFIG},"layers":[{layer}]}}"#)).unwrap();
            assert_eq!(
                manifest.blobs.iter().map(|needed| needed.elsewhere).collect::<Vec<_>>(),
                [false, true],
                "{layer}"
            );
        }
    }

    #[test]
    fn what_would_be_in_every_list_is_short() {
        let sized = |annotations: usize, artifact_type: usize, subject: &str| {
            let (text, kind) = ("x".repeat(annotations), "y".repeat(artifact_type));
            parse(&format!(
                r#"{{"schemaVersion":2,"config":{CONFIG},"layers":[]{subject},"artifactType":"{kind}","annotations":{{"a":"{text}"}}}}"#
            ))
        };
        let subject = format!(r#","subject":{CONFIG}"#);
        assert!(sized(LONGEST_ANNOTATIONS - 1, LONGEST_TYPE, &subject).is_ok());
        assert!(sized(LONGEST_ANNOTATIONS, 1, &subject).is_err());
        assert!(sized(LONGEST_ANNOTATIONS, 1, "").is_ok());
        assert!(sized(1, LONGEST_TYPE + 1, "").is_err());
    }

    #[test]
    fn what_two_readers_could_understand_differently_is_refused() {
        let wrong = [
            "",
            "[]",
            "null",
            "{",
            r#"{"schemaVersion":1}"#,
            r#"{"schemaVersion":2,"layers":[],"layers":[]}"#,
            r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
            r#"{"schemaVersion":2,"layers":[{"digest":"sha256:00","size":1}]}"#,
            r#"{"schemaVersion":2,"layers":[{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":-1}]}"#,
            r#"{"schemaVersion":2,"layers":[{"size":1}]}"#,
            r#"{"schemaVersion":2,"mediaType":"a b"}"#,
        ];
        for text in wrong {
            assert!(parse(text).is_err(), "{text}");
        }
        let text = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json"}"#;
        assert!(Manifest::parse(text, Some("application/vnd.oci.image.manifest.v1+json")).is_err());
        assert!(Manifest::parse(text, Some("application/vnd.oci.image.index.v1+json; charset=utf-8")).is_ok());
    }
}
