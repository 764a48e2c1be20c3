//! Writes OCI layouts, file by file, so that a test can have any image it needs.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use microagent_image::Digest;
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer as it is stored.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) diff_id: Digest,
    pub(crate) media_type: String,
}

impl Layer {
    /// A plain layer with these files.
    pub(crate) fn plain(files: &[(&str, &[u8])]) -> Layer {
        let bytes = tar(files);
        Layer { diff_id: Digest::of(&bytes), bytes, media_type: LAYER.to_owned() }
    }

    pub(crate) fn gzip(files: &[(&str, &[u8])]) -> Layer {
        let plain = Self::plain(files);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&plain.bytes).unwrap();
        Layer { bytes: encoder.finish().unwrap(), media_type: format!("{LAYER}+gzip"), ..plain }
    }

    pub(crate) fn zstd(files: &[(&str, &[u8])]) -> Layer {
        let plain = Self::plain(files);
        let bytes = zstd::encode_all(&plain.bytes[..], 1).unwrap();
        Layer { bytes, media_type: format!("{LAYER}+zstd"), ..plain }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }
}

/// A tar with these files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A layout directory.
pub(crate) struct Layout {
    dir: PathBuf,
    entries: Vec<Value>,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Layout {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout { dir: dir.to_owned(), entries: Vec::new() }
    }

    /// A layout with one image, tagged `latest`, that has one file.
    pub(crate) fn simple(dir: &Path, content: &str) -> Layout {
        let mut layout = Layout::new(dir);
        let image = layout.image("linux/amd64", &[Layer::gzip(&[("etc/content", content.as_bytes())])]);
        layout.tag("latest", image);
        layout
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Adds the blobs of an image and gives its descriptor.
    pub(crate) fn image(&self, platform: &str, layers: &[Layer]) -> Value {
        let (os, architecture) = platform.split_once('/').unwrap();
        let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = json!({
            "os": os, "architecture": architecture,
            "config": {"Cmd": ["/bin/cmd"], "Env": ["PATH=/bin"], "User": "7:8", "WorkingDir": "/w"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let layers: Vec<Value> =
            layers.iter().map(|layer| self.blob(&layer.media_type, &layer.bytes)).collect();
        let config = self.blob(CONFIG, &serde_json::to_vec(&config).unwrap());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut descriptor = self.blob(MANIFEST, &serde_json::to_vec(&manifest).unwrap());
        descriptor["platform"] = json!({"os": os, "architecture": architecture});
        descriptor
    }

    /// Adds an index over images and gives its descriptor.
    pub(crate) fn index(&self, images: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": images});
        self.blob(INDEX, &serde_json::to_vec(&index).unwrap())
    }

    /// Gives an image or index a name.
    pub(crate) fn tag(&mut self, name: &str, mut descriptor: Value) -> Digest {
        self.entries.retain(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] != name);
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let digest = digest_of(&descriptor);
        self.entries.push(descriptor);
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.entries});
        fs::write(self.dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        digest
    }

    /// The reference of an image in it.
    pub(crate) fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }
}

pub(crate) fn digest_of(descriptor: &Value) -> Digest {
    descriptor["digest"].as_str().unwrap().parse().unwrap()
}
