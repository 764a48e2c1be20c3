//! What `umoci unpack` makes of an image, and what the kernel finds on our disk.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use microagent_image::rootfs::{Compression, LayerFile};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{run, tool};

/// Blob of an OCI layout.
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap();
    layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The layers of a layout with one image.
pub(crate) fn layers(layout: &Path) -> Vec<LayerFile> {
    let manifest = read_json(&blob(layout, &read_json(&layout.join("index.json"))["manifests"][0]));
    let config = read_json(&blob(layout, &manifest["config"]));
    let layers = manifest["layers"].as_array().unwrap();
    let layer = |(layer, diff_id): (&Value, &Value)| LayerFile {
        path: blob(layout, layer),
        compression: match layer["mediaType"].as_str().unwrap().rsplit_once('.').unwrap().1 {
            "tar+gzip" => Compression::Gzip,
            "tar+zstd" => Compression::Zstd,
            "tar" => Compression::None,
            other => panic!("unknown media type {other}"),
        },
        diff_id: Some(diff_id.as_str().unwrap().to_owned()),
    };
    layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()).map(layer).collect()
}

/// Unpacks layers with umoci into `bundle` and returns the root file system. umoci reads no zstd, so it
/// gets the same archives uncompressed.
pub(crate) fn unpack(layers: &[LayerFile], bundle: &Path) -> Result<PathBuf, String> {
    let layout = bundle.with_extension("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let add = |bytes: &[u8], media_type: &str| -> Value {
        let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        fs::write(layout.join("blobs/sha256").join(&hex), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    };
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| add(&uncompressed(layer), "application/vnd.oci.image.layer.v1.tar"))
        .collect();
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = add(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut manifest = add(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();

    let image = format!("{}:latest", layout.display());
    let output =
        Command::new(tool("umoci")).args(["unpack", "--image", &image]).arg(bundle).output().unwrap();
    fs::remove_dir_all(&layout).unwrap();
    if output.status.success() {
        Ok(bundle.join("rootfs"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Unpacks a layer without whiteouts with GNU tar.
pub(crate) fn untar(layer: &LayerFile, root: &Path) {
    let archive = root.with_extension("tar");
    fs::write(&archive, uncompressed(layer)).unwrap();
    run(Command::new("tar")
        .args(["--extract", "--preserve-permissions", "--numeric-owner", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(root));
}

fn uncompressed(layer: &LayerFile) -> Vec<u8> {
    let file = fs::File::open(&layer.path).unwrap();
    let mut bytes = Vec::new();
    match layer.compression {
        Compression::None => { file }.read_to_end(&mut bytes),
        Compression::Gzip => flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes),
        Compression::Zstd => zstd::Decoder::new(file).unwrap().read_to_end(&mut bytes),
    }
    .unwrap();
    bytes
}

/// A disk mounted read-only by the kernel, as long as this lives.
pub(crate) struct Mounted {
    pub(crate) root: PathBuf,
}

impl Mounted {
    pub(crate) fn new(disk: &Path, at: PathBuf) -> Mounted {
        fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(["-o", "loop,ro"]).arg(disk).arg(&at));
        Mounted { root: at }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A busy mount would be a fault of the test, and shows in the removal of its directory.
        let _ = Command::new("umount").arg(&self.root).status();
    }
}
