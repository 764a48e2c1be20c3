//! The image configuration: how to run what is on the disk. Pure.
//!
//! Decoded with tolerance, because builders disagree on what may be `null`, missing or a bare string;
//! only a field whose meaning would be lost is refused.
//!
//! # Source
//! OCI image specification 1.1, `config.md`; Docker image specification 1.2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::digest::{Digest, DigestError};
use crate::manifest::Platform;

/// Largest configuration that is read; real ones have a few kilobytes.
pub(crate) const CONFIG_LIMIT: u64 = 2 * 1024 * 1024;

/// How to run an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Words that go before the command.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// The command when none is given.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `NAME=value` lines, in the image's order.
    #[serde(default)]
    pub env: Vec<String>,
    /// User and group as the image spells them; empty is root.
    #[serde(default)]
    pub user: String,
    /// Where commands start; empty is `/`.
    #[serde(default)]
    pub working_dir: String,
    /// The signal that asks the workload to end.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Ports that the image says it listens on, such as `80/tcp`.
    #[serde(default)]
    pub exposed_ports: Vec<String>,
    /// Paths that the image wants on volumes.
    #[serde(default)]
    pub volumes: Vec<String>,
}

/// Changes to the configuration of an imported root file system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportChanges {
    /// Replaces the command.
    pub cmd: Option<Vec<String>>,
    /// Replaces the entry point.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// User and group.
    pub user: Option<String>,
    /// Where commands start.
    pub working_dir: Option<String>,
}

/// Everything that is taken from a configuration blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) config: ImageConfig,
    pub(crate) platform: Option<Platform>,
    /// Digests of the uncompressed layers, bottom first.
    pub(crate) diff_ids: Vec<Digest>,
}

/// Why an image configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON.
    #[error("the image configuration cannot be decoded")]
    Decode {
        /// What the decoder said.
        source: serde_json::Error,
    },
    /// A field of the wrong kind.
    #[error("field `{field}` of the image configuration has the wrong kind")]
    Field {
        /// The field.
        field: &'static str,
    },
    /// A layer digest that is none.
    #[error("the image configuration lists a layer that is not named by a digest")]
    DiffId {
        /// What is wrong with it.
        source: DigestError,
    },
    /// Manifest and configuration disagree.
    #[error("the image configuration lists {found} layers, the manifest {expected}")]
    LayerCount {
        /// Layers in the manifest.
        expected: usize,
        /// Layers in the configuration.
        found: usize,
    },
}

/// Decodes a configuration blob.
pub(crate) fn decode(bytes: &[u8]) -> Result<Parsed, ConfigError> {
    let document: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|source| ConfigError::Decode { source })?;
    let empty = Map::new();
    let run = match document.get("config") {
        Some(Value::Object(run)) => run,
        Some(Value::Null) | None => &empty,
        Some(_) => return Err(ConfigError::Field { field: "config" }),
    };
    let config = ImageConfig {
        entrypoint: words(run, "Entrypoint")?,
        cmd: words(run, "Cmd")?,
        env: words(run, "Env")?,
        user: text(run, "User")?.unwrap_or_default(),
        working_dir: text(run, "WorkingDir")?.unwrap_or_default(),
        stop_signal: text(run, "StopSignal")?.filter(|signal| !signal.is_empty()),
        labels: labels(run),
        exposed_ports: keys(run, "ExposedPorts"),
        volumes: keys(run, "Volumes"),
    };
    Ok(Parsed { config, platform: platform(&document)?, diff_ids: diff_ids(&document)? })
}

/// The configuration of an imported root file system; the same bytes for the same input, so no date.
pub(crate) fn encode_import(platform: &Platform, changes: &ImportChanges, diff_id: &Digest) -> Vec<u8> {
    let mut run = Map::new();
    let mut set = |key: &str, value: Value| run.insert(key.to_owned(), value);
    if let Some(cmd) = &changes.cmd {
        set("Cmd", json!(cmd));
    }
    if let Some(entrypoint) = &changes.entrypoint {
        set("Entrypoint", json!(entrypoint));
    }
    if !changes.env.is_empty() {
        set("Env", json!(changes.env));
    }
    if let Some(user) = &changes.user {
        set("User", json!(user));
    }
    if let Some(working_dir) = &changes.working_dir {
        set("WorkingDir", json!(working_dir));
    }
    let mut document = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "microagent image import"}],
    });
    if let Some(variant) = &platform.variant {
        document["variant"] = json!(variant);
    }
    serde_json::to_vec(&document).expect("a document of strings has a JSON form")
}

/// A list of strings; `null` and absence are empty, one bare string is one word.
fn words(run: &Map<String, Value>, field: &'static str) -> Result<Vec<String>, ConfigError> {
    match run.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(word)) => Ok(vec![word.clone()]),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or(ConfigError::Field { field }))
            .collect(),
        Some(_) => Err(ConfigError::Field { field }),
    }
}

fn text(document: &Map<String, Value>, field: &'static str) -> Result<Option<String>, ConfigError> {
    match document.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ConfigError::Field { field }),
    }
}

/// Labels inform and decide nothing: what is no text is left out.
fn labels(run: &Map<String, Value>) -> BTreeMap<String, String> {
    let labels = run.get("Labels").and_then(Value::as_object);
    let pairs = labels.into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn keys(run: &Map<String, Value>, field: &str) -> Vec<String> {
    run.get(field).and_then(Value::as_object).map(|set| set.keys().cloned().collect()).unwrap_or_default()
}

fn platform(document: &Map<String, Value>) -> Result<Option<Platform>, ConfigError> {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (os, architecture) = (filled(text(document, "os")?), filled(text(document, "architecture")?));
    let variant = filled(text(document, "variant")?);
    Ok(os.zip(architecture).map(|(os, architecture)| Platform { os, architecture, variant }))
}

fn diff_ids(document: &Map<String, Value>) -> Result<Vec<Digest>, ConfigError> {
    const FIELD: ConfigError = ConfigError::Field { field: "rootfs.diff_ids" };
    match document.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids")) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().ok_or(FIELD)?.parse().map_err(|source| ConfigError::DiffId { source }))
            .collect(),
        Some(_) => Err(FIELD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_with_tolerance() {
        let full = json!({
            "os": "linux", "architecture": "amd64", "unknown": [1, 2],
            "config": {
                "Entrypoint": "/entry", "Cmd": ["a", "b"], "Env": ["PATH=/bin"], "User": "1:2",
                "WorkingDir": "/w", "StopSignal": "SIGINT", "Labels": {"a": "b", "n": 1},
                "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}, "Healthcheck": {"Test": []},
            },
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"x")]},
        });
        let parsed = decode(&serde_json::to_vec(&full).unwrap()).unwrap();
        assert_eq!(parsed.config.entrypoint, ["/entry"]);
        assert_eq!(parsed.config.cmd, ["a", "b"]);
        assert_eq!(parsed.config.labels.len(), 1);
        assert_eq!(parsed.config.exposed_ports, ["80/tcp"]);
        assert_eq!(parsed.config.volumes, ["/data"]);
        assert_eq!(parsed.platform, Some(Platform::default()));
        assert_eq!(parsed.diff_ids, [Digest::of(b"x")]);

        for sparse in [
            json!({}),
            json!({"config": null}),
            json!({"config": {"Cmd": null, "Env": null, "Entrypoint": null, "Labels": null, "Volumes": []}}),
        ] {
            let parsed = decode(&serde_json::to_vec(&sparse).unwrap()).unwrap();
            assert_eq!(parsed.config, ImageConfig::default(), "{sparse}");
            assert_eq!(parsed.platform, None);
        }
    }

    #[test]
    fn refuses_what_would_lose_its_meaning() {
        for bad in [
            json!({"config": 1}),
            json!({"config": {"Cmd": 5}}),
            json!({"config": {"Env": [1]}}),
            json!({"config": {"User": []}}),
            json!({"rootfs": {"diff_ids": "x"}}),
            json!({"rootfs": {"diff_ids": ["sha256:x"]}}),
        ] {
            assert!(decode(&serde_json::to_vec(&bad).unwrap()).is_err(), "{bad}");
        }
        assert!(decode(b"{").is_err());
    }

    #[test]
    fn an_import_reads_back_and_is_stable() {
        let changes = ImportChanges {
            cmd: Some(vec!["sh".into()]),
            env: vec!["A=b".into()],
            user: Some("1".into()),
            working_dir: Some("/w".into()),
            entrypoint: Some(vec!["/e".into()]),
        };
        let encode = || encode_import(&Platform::default(), &changes, &Digest::of(b"layer"));
        assert_eq!(encode(), encode());
        let parsed = decode(&encode()).unwrap();
        assert_eq!(parsed.config.cmd, ["sh"]);
        assert_eq!(parsed.config.working_dir, "/w");
        assert_eq!(parsed.diff_ids, [Digest::of(b"layer")]);
    }
}
