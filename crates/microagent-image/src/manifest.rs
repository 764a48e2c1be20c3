//! Manifests and indexes, OCI's and Docker's, decoded and judged. Pure.
//!
//! Everything here comes from strangers: counts are bounded, unknown kinds are refused by name.
//!
//! # Source
//! OCI image specification 1.1 (`manifest.md`, `image-index.md`), Docker image manifest version 2
//! schema 2.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Largest manifest or index that is read; the distribution specification asks registries for 4 MiB.
pub(crate) const MANIFEST_LIMIT: u64 = 4 * 1024 * 1024;
/// Most layers of one image. Docker stops at 127.
const LAYERS_MAX: usize = 512;
/// Most entries of one index that are looked at.
const INDEX_ENTRIES_MAX: usize = 1024;
/// How many indexes may lie inside each other.
pub(crate) const INDEX_DEPTH_MAX: usize = 3;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What to say in `Accept`.
pub(crate) const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// Annotation under which a layout's index names its images.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation that Docker, podman and containerd keep an image's full name in.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";

const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Media type of a layer without compression.
pub(crate) const LAYER_TAR: &str = LAYER_TYPES[0];
/// Media type of a gzip layer.
pub(crate) const LAYER_GZIP: &str = LAYER_TYPES[1];
/// Media type of a zstd layer.
pub(crate) const LAYER_ZSTD: &str = LAYER_TYPES[2];

/// Operating system and processor of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, as Go's `GOOS` names it.
    pub os: String,
    /// Processor, as Go's `GOARCH` names it.
    pub architecture: String,
    /// Variant of the processor, such as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Default for Platform {
    /// `linux/amd64`, what the guest kernel runs.
    fn default() -> Platform {
        Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a platform: expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT")]
pub struct PlatformError {
    text: String,
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let is_word = |word: &&str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric());
        let words: Vec<&str> = text.split('/').collect();
        match words[..] {
            [os, architecture, ref variant @ ..] if variant.len() < 2 && words.iter().all(is_word) => {
                let variant = variant.first().map(|&variant| variant.to_owned());
                Ok(Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant })
            }
            _ => Err(PlatformError { text: text.chars().take(80).collect() }),
        }
    }
}

/// Points at content by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn of(media_type: &str, content: &[u8]) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(content),
            size: content.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    fn is_index(&self) -> bool {
        self.media_type == OCI_INDEX || self.media_type == DOCKER_LIST
    }

    /// The name under which a layout lists the image.
    pub(crate) fn ref_name(&self) -> Option<&str> {
        self.annotations.get(REF_NAME).map(String::as_str)
    }
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    schema_version: u32,
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    /// An OCI manifest of our own making.
    pub(crate) fn new(config: &[u8], layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: Descriptor::of(OCI_CONFIG, config),
            layers,
        }
    }

    /// The layers, each once: an image may list a layer twice.
    pub(crate) fn distinct_layers(&self) -> Vec<Descriptor> {
        let mut seen = HashSet::new();
        self.layers.iter().filter(|layer| seen.insert(&layer.digest)).cloned().collect()
    }

    /// Configuration and layers, each once.
    pub(crate) fn blobs(&self) -> Vec<Descriptor> {
        let mut blobs = self.distinct_layers();
        blobs.push(self.config.clone());
        blobs
    }

    /// The same image with OCI's names for the kinds of its parts; `None` when it has them already.
    pub(crate) fn to_oci(&self) -> Option<Manifest> {
        if self.media_type == OCI_MANIFEST {
            return None;
        }
        let mut oci = Manifest { media_type: OCI_MANIFEST.to_owned(), ..self.clone() };
        OCI_CONFIG.clone_into(&mut oci.config.media_type);
        for layer in &mut oci.layers {
            if let Some(kind) = LAYER_TYPES.iter().position(|known| *known == layer.media_type) {
                LAYER_TYPES[kind % 3].clone_into(&mut layer.media_type);
            }
        }
        Some(oci)
    }

    /// Its bytes; the same for the same content.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest of strings and numbers has a JSON form")
    }
}

/// A list of images, one per platform or name.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// Either of the two.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    Image(Manifest),
    Index(Index),
}

/// Why a manifest or index cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It is not a manifest in JSON.
    #[error("the manifest cannot be decoded")]
    Decode {
        /// What the decoder said.
        source: serde_json::Error,
    },
    /// It has Docker's manifest format from before 2016, which is not supported.
    #[error("the image is in Docker's old manifest format (schema 1)")]
    Schema1,
    /// It is not an image but something else that registries store: a chart, a signature, a WebAssembly module.
    #[error("`{media_type}` is not a container image")]
    NotAnImage {
        /// What it says that it is.
        media_type: String,
    },
    /// The media type of a layer is not supported.
    #[error("layer {digest} has the unknown type `{media_type}`")]
    UnknownLayer {
        /// The layer.
        digest: Digest,
        /// What it says that it is.
        media_type: String,
    },
    /// The registry does not have a layer (Windows base layers).
    #[error("layer {digest} is a foreign layer, which only its vendor may distribute")]
    ForeignLayer {
        /// The layer.
        digest: Digest,
    },
    /// It has too many layers or entries.
    #[error("the manifest lists {found} {what}, the limit is {limit}")]
    TooMany {
        /// Layers or entries.
        what: &'static str,
        /// How many.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// The index has no image for the platform.
    #[error("no image for platform {wanted}; there is {}", or_nothing(found))]
    NoPlatform {
        /// The platform that is wanted.
        wanted: Platform,
        /// The platforms that are there.
        found: Vec<String>,
    },
    /// The only image is for another platform.
    #[error("the image is for platform {found}, not {wanted}")]
    WrongPlatform {
        /// The platform that is wanted.
        wanted: Platform,
        /// The platform of the image.
        found: Platform,
    },
    /// Indexes are nested too deeply.
    #[error("indexes are nested more than {INDEX_DEPTH_MAX} levels deep")]
    TooDeep,
}

fn or_nothing(found: &[String]) -> String {
    if found.is_empty() { "none at all".to_owned() } else { found.join(", ") }
}

/// The fields that tell what a document is, and all that both kinds hold.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Loose {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<serde_json::Value>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Decodes a manifest or index. `content_type` counts only where the document does not say what it is.
pub(crate) fn decode(bytes: &[u8], content_type: Option<&str>) -> Result<Document, ManifestError> {
    let loose: Loose = serde_json::from_slice(bytes).map_err(|source| ManifestError::Decode { source })?;
    if loose.schema_version == 1 || loose.fs_layers.is_some() {
        return Err(ManifestError::Schema1);
    }
    let stated = loose.media_type.as_deref().or(content_type);
    match (loose.manifests, loose.config, loose.layers) {
        (Some(manifests), None, None) => decode_index(manifests),
        (None, Some(config), Some(layers)) => {
            let manifest = Manifest {
                schema_version: 2,
                media_type: stated.unwrap_or(OCI_MANIFEST).to_owned(),
                config,
                layers,
            };
            check_image(&manifest)?;
            Ok(Document::Image(manifest))
        }
        _ => Err(ManifestError::NotAnImage { media_type: printable(stated.unwrap_or("unknown type")) }),
    }
}

/// Entries that cannot be decoded (another digest algorithm, say) are not ours to run: left out.
fn decode_index(manifests: Vec<serde_json::Value>) -> Result<Document, ManifestError> {
    if manifests.len() > INDEX_ENTRIES_MAX {
        let found = manifests.len();
        return Err(ManifestError::TooMany { what: "entries", found, limit: INDEX_ENTRIES_MAX });
    }
    let manifests = manifests.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect();
    Ok(Document::Index(Index { manifests }))
}

fn check_image(manifest: &Manifest) -> Result<(), ManifestError> {
    let config_type = &manifest.config.media_type;
    if ![OCI_CONFIG, DOCKER_CONFIG, ""].contains(&config_type.as_str()) {
        return Err(ManifestError::NotAnImage { media_type: printable(config_type) });
    }
    if manifest.layers.len() > LAYERS_MAX {
        let found = manifest.layers.len();
        return Err(ManifestError::TooMany { what: "layers", found, limit: LAYERS_MAX });
    }
    for layer in &manifest.layers {
        let digest = || layer.digest.clone();
        match layer.media_type.as_str() {
            known if LAYER_TYPES.contains(&known) => {}
            foreign if foreign.contains("nondistributable") || foreign.contains(".foreign.") => {
                return Err(ManifestError::ForeignLayer { digest: digest() });
            }
            unknown => {
                return Err(ManifestError::UnknownLayer { digest: digest(), media_type: printable(unknown) });
            }
        }
    }
    Ok(())
}

/// Picks the entry for a platform; it may be a further index.
pub(crate) fn select<'a>(index: &'a Index, wanted: &Platform) -> Result<&'a Descriptor, ManifestError> {
    let images: Vec<&Descriptor> = index.manifests.iter().filter(|entry| is_image_entry(entry)).collect();
    let fitting = images.iter().filter(|entry| entry.platform.as_ref().is_some_and(|p| fits(p, wanted)));
    // The plainest variant runs on most processors.
    if let Some(best) = fitting.min_by_key(|entry| entry.platform.as_ref().and_then(|p| p.variant.clone())) {
        return Ok(best);
    }
    let unlabelled: Vec<&&Descriptor> = images.iter().filter(|entry| entry.platform.is_none()).collect();
    match unlabelled[..] {
        [only] => Ok(only),
        _ => {
            let mut found: Vec<String> =
                images.iter().filter_map(|entry| entry.platform.as_ref()).map(Platform::to_string).collect();
            found.sort();
            found.dedup();
            Err(ManifestError::NoPlatform {
                wanted: wanted.clone(),
                found: found.iter().map(|p| printable(p)).collect(),
            })
        }
    }
}

/// Attestations and signatures lie beside images in an index, under an unknown platform.
fn is_image_entry(entry: &Descriptor) -> bool {
    let kind_fits =
        entry.is_index() || [OCI_MANIFEST, DOCKER_MANIFEST, ""].contains(&entry.media_type.as_str());
    kind_fits
        && entry.platform.as_ref().is_none_or(|p| p.os != "unknown")
        && !entry.annotations.contains_key("vnd.docker.reference.type")
}

/// Whether an image for `offered` is what `wanted` asks for. Without a wanted variant any will do.
pub(crate) fn fits(offered: &Platform, wanted: &Platform) -> bool {
    offered.os == wanted.os
        && offered.architecture == wanted.architecture
        && (wanted.variant.is_none() || wanted.variant == offered.variant)
}

/// Text from strangers, made safe to print.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Reads `null` as the empty value, as Go programs write it.
pub(crate) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn descriptor(media_type: &str, platform: Option<&str>) -> Value {
        let mut value =
            json!({"mediaType": media_type, "digest": Digest::of(media_type.as_bytes()), "size": 1});
        if let Some(platform) = platform {
            value["platform"] = serde_json::to_value(platform.parse::<Platform>().unwrap()).unwrap();
            value["digest"] = json!(Digest::of(platform.as_bytes()));
        }
        value
    }

    fn image(layer_type: &str) -> Value {
        json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG, None), "layers": [descriptor(layer_type, None)]})
    }

    fn decode_value(value: &Value) -> Result<Document, ManifestError> {
        decode(&serde_json::to_vec(value).unwrap(), None)
    }

    fn index(entries: &[(&str, Option<&str>)]) -> Index {
        let manifests: Vec<Value> =
            entries.iter().map(|(kind, platform)| descriptor(kind, *platform)).collect();
        match decode_value(&json!({"schemaVersion": 2, "manifests": manifests})) {
            Ok(Document::Index(index)) => index,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn takes_every_known_layer_type_and_names_the_others() {
        for known in LAYER_TYPES {
            assert!(matches!(decode_value(&image(known)), Ok(Document::Image(_))), "{known}");
        }
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert!(matches!(decode_value(&image(foreign)), Err(ManifestError::ForeignLayer { .. })));
        let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
        assert!(matches!(decode_value(&image(foreign)), Err(ManifestError::ForeignLayer { .. })));
        let chart = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
        assert!(matches!(decode_value(&image(chart)), Err(ManifestError::UnknownLayer { .. })));
    }

    #[test]
    fn refuses_what_is_not_an_image() {
        let mut chart = image(LAYER_GZIP);
        chart["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        let mut many = image(LAYER_GZIP);
        many["layers"] = Value::Array(vec![descriptor(LAYER_GZIP, None); LAYERS_MAX + 1]);
        let entries = vec![descriptor(OCI_MANIFEST, None); INDEX_ENTRIES_MAX + 1];
        type Is = fn(&ManifestError) -> bool;
        let cases: [(Value, Is); 8] = [
            (json!([]), |e| matches!(e, ManifestError::Decode { .. })),
            (json!({"schemaVersion": 2}), |e| matches!(e, ManifestError::NotAnImage { .. })),
            (json!({"schemaVersion": 1, "fsLayers": []}), |e| matches!(e, ManifestError::Schema1)),
            (chart, |e| matches!(e, ManifestError::NotAnImage { .. })),
            (many, |e| matches!(e, ManifestError::TooMany { what: "layers", .. })),
            (json!({"manifests": entries}), |e| matches!(e, ManifestError::TooMany { what: "entries", .. })),
            (json!({"config": {"digest": "sha256:x", "size": 1}, "layers": []}), |e| {
                matches!(e, ManifestError::Decode { .. })
            }),
            (json!({"config": {"digest": Digest::of(b""), "size": -1}, "layers": []}), |e| {
                matches!(e, ManifestError::Decode { .. })
            }),
        ];
        for (value, is_expected) in cases {
            let error = decode_value(&value).expect_err("must be refused");
            assert!(is_expected(&error), "{error:?}");
        }
    }

    #[test]
    fn picks_the_platform() {
        type Entries = &'static [(&'static str, Option<&'static str>)];
        let amd64 = Platform::default();
        let cases: [(Entries, Result<&str, &str>); 7] = [
            (&[(OCI_MANIFEST, Some("linux/arm64")), (OCI_MANIFEST, Some("linux/amd64"))], Ok("linux/amd64")),
            (
                &[(DOCKER_MANIFEST, Some("linux/amd64/v3")), (DOCKER_MANIFEST, Some("linux/amd64"))],
                Ok("linux/amd64"),
            ),
            (
                &[(OCI_MANIFEST, Some("linux/amd64/v3")), (OCI_MANIFEST, Some("linux/amd64/v2"))],
                Ok("linux/amd64/v2"),
            ),
            (
                &[(OCI_MANIFEST, Some("unknown/unknown")), (OCI_MANIFEST, Some("linux/amd64"))],
                Ok("linux/amd64"),
            ),
            (
                &[(OCI_MANIFEST, Some("windows/amd64")), (OCI_MANIFEST, Some("linux/arm64/v8"))],
                Err("no image for platform linux/amd64; there is linux/arm64/v8, windows/amd64"),
            ),
            (&[], Err("no image for platform linux/amd64; there is none at all")),
            (
                &[("application/x-signature", Some("linux/amd64"))],
                Err("no image for platform linux/amd64; there is none at all"),
            ),
        ];
        for (entries, expected) in cases {
            let index = index(entries);
            match (select(&index, &amd64), expected) {
                (Ok(entry), Ok(platform)) => {
                    assert_eq!(entry.digest, Digest::of(platform.as_bytes()), "{platform}")
                }
                (Err(error), Err(text)) => assert_eq!(error.to_string(), text),
                (outcome, _) => panic!("{entries:?}: {outcome:?}"),
            }
        }
        let lone = index(&[(OCI_MANIFEST, None)]);
        assert_eq!(select(&lone, &amd64).unwrap().digest, Digest::of(OCI_MANIFEST.as_bytes()));
        let nested = index(&[(OCI_INDEX, None)]);
        assert!(select(&nested, &amd64).unwrap().is_index());
    }

    #[test]
    fn parses_platforms() {
        assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().to_string(), "linux/arm/v7");
        for bad in ["", "linux", "linux/", "linux/amd64/v2/x", "linux/am d64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn our_own_manifest_reads_back() {
        let layer = Descriptor::of(LAYER_TAR, b"layer");
        let bytes = Manifest::new(b"{}", vec![layer]).encode();
        assert!(matches!(decode(&bytes, None), Ok(Document::Image(m)) if m.encode() == bytes));
    }
}
