//! The image configuration: how to run what is on the disk. Pure.
//!
//! Decoded with tolerance, because builders disagree on what may be `null`, missing or a bare string;
//! only a field whose meaning would be lost is refused.
//!
//! # Source
//! OCI image specification 1.1, `config.md`; Docker image specification 1.2.

use std::collections::BTreeMap;

use microagent_model::signal_number;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::digest::{Digest, DigestError};
use crate::manifest::{Platform, printable};

/// Largest configuration that is read; real ones have a few kilobytes.
pub(crate) const CONFIG_LIMIT: u64 = 2 * 1024 * 1024;

/// How an image is run: its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The entrypoint: the words before the command.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// The command that is run if the caller gives none (Cmd).
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `NAME=value` lines, in the image's order.
    #[serde(default)]
    pub env: Vec<String>,
    /// User and group as the image spells them; empty is root.
    #[serde(default)]
    pub user: String,
    /// Working directory; empty is `/`.
    #[serde(default)]
    pub working_dir: String,
    /// The signal that asks the program to end (StopSignal).
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Ports on which the program listens, such as `80/tcp`.
    #[serde(default)]
    pub exposed_ports: Vec<String>,
    /// Paths of its volumes. They are directories of the base disk.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// The health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// `HEALTHCHECK` of a Dockerfile. Times are in nanoseconds; 0 and `None` stand for Docker's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The command with its first word as the image has it: `CMD` before arguments, `CMD-SHELL` before a line for the
    /// image's shell, `NONE` where an image takes back what the one below it had. Never empty.
    pub test: Vec<String>,
    /// Time between the end of a check and the start of the next.
    #[serde(default)]
    pub interval_ns: u64,
    /// Time limit of a check.
    #[serde(default)]
    pub timeout_ns: u64,
    /// Time after the start in which failed checks do not count.
    #[serde(default)]
    pub start_period_ns: u64,
    /// Time between checks in the start period.
    #[serde(default)]
    pub start_interval_ns: u64,
    /// Number of failed checks in a row after which the program is unhealthy.
    #[serde(default)]
    pub retries: Option<u32>,
}

/// Changes of an image's configuration, as lines of a Dockerfile make them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigChanges {
    /// Replaces the command (CMD).
    pub cmd: Option<Vec<String>>,
    /// Replaces the entry point; the image's command goes with the old one, unless there is a new one here.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value` lines; each replaces the line of that name.
    pub env: Vec<String>,
    /// Replaces user and group.
    pub user: Option<String>,
    /// Replaces the working directory.
    pub working_dir: Option<String>,
    /// Replaces the signal that asks the program to end.
    pub stop_signal: Option<String>,
    /// Labels; each replaces the one of that name.
    pub labels: BTreeMap<String, String>,
    /// Ports to add, such as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths of volumes to add.
    pub volumes: Vec<String>,
}

/// What a commit says about itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct History<'a> {
    pub(crate) created: &'a str,
    pub(crate) created_by: &'a str,
    pub(crate) author: Option<&'a str>,
    pub(crate) message: Option<&'a str>,
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
    /// It is not JSON.
    #[error("the image configuration cannot be decoded")]
    Decode {
        /// What the decoder said.
        source: serde_json::Error,
    },
    /// A field has the wrong type.
    #[error("field `{field}` of the image configuration has the wrong kind")]
    Field {
        /// The field.
        field: &'static str,
    },
    /// Linux does not have the stop signal.
    #[error("the image's stop signal `{signal}` is not a signal")]
    StopSignal {
        /// What it says, made printable.
        signal: String,
    },
    /// The digest of a layer is not valid.
    #[error("the image configuration lists a layer that is not named by a digest")]
    DiffId {
        /// What is wrong with it.
        source: DigestError,
    },
    /// Manifest and configuration have different numbers of layers.
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
        stop_signal: stop_signal(run)?,
        labels: labels(run),
        exposed_ports: keys(run, "ExposedPorts"),
        volumes: keys(run, "Volumes"),
        health_check: health_check(run)?,
    };
    Ok(Parsed { config, platform: platform(&document)?, diff_ids: diff_ids(&document)? })
}

/// The configuration of an imported root file system; the same bytes for the same input, so no date.
pub(crate) fn encode_import(platform: &Platform, changes: &ConfigChanges, diff_id: &Digest) -> Vec<u8> {
    let mut run = Map::new();
    changes.apply(&mut run);
    let mut document = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "microagent: a root file system tar"}],
    });
    if let Some(variant) = &platform.variant {
        document["variant"] = json!(variant);
    }
    serde_json::to_vec(&document).expect("a document of strings has a JSON form")
}

/// The configuration of an image that has one layer more than the one of this configuration. What is not known
/// here is carried on.
pub(crate) fn encode_commit(
    base: &[u8],
    changes: &ConfigChanges,
    diff_id: &Digest,
    history: History<'_>,
) -> Result<Vec<u8>, ConfigError> {
    let layers = decode(base)?.diff_ids;
    let mut document: Map<String, Value> =
        serde_json::from_slice(base).map_err(|source| ConfigError::Decode { source })?;
    // Docker's own memory of the container that an image was made in.
    for past in ["container", "container_config", "docker_version", "id", "parent"] {
        document.remove(past);
    }
    let run = document.entry("config").or_insert(Value::Null);
    if !run.is_object() {
        *run = json!({});
    }
    changes.apply(run.as_object_mut().expect("it was just made one"));
    let diff_ids: Vec<&Digest> = layers.iter().chain([diff_id]).collect();
    document.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": diff_ids}));
    document.insert("created".to_owned(), json!(history.created));
    if let Some(author) = history.author {
        document.insert("author".to_owned(), json!(author));
    }
    let past = document.entry("history").or_insert(Value::Null);
    if !past.is_array() {
        *past = json!([]);
    }
    let past = past.as_array_mut().expect("it was just made one");
    // Some readers count: a layer without history would give its place to the next.
    let told = past.iter().filter(|entry| entry["empty_layer"] != true).count();
    past.extend((told..layers.len()).map(|_| json!({"created_by": "unknown"})));
    let mut entry = json!({"created": history.created, "created_by": history.created_by});
    for (field, text) in [("author", history.author), ("comment", history.message)] {
        if let Some(text) = text {
            entry[field] = json!(text);
        }
    }
    past.push(entry);
    Ok(serde_json::to_vec(&document).expect("a document that was decoded has a JSON form"))
}

impl ConfigChanges {
    /// Makes the changes in the `config` object of a configuration.
    fn apply(&self, run: &mut Map<String, Value>) {
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                run.insert(key.to_owned(), value);
            }
        };
        let forgotten = self.entrypoint.is_some().then_some(Value::Null);
        set("Entrypoint", self.entrypoint.as_ref().map(|words| json!(words)));
        set("Cmd", self.cmd.as_ref().map(|words| json!(words)).or(forgotten));
        set("User", self.user.as_ref().map(|user| json!(user)));
        set("WorkingDir", self.working_dir.as_ref().map(|dir| json!(dir)));
        set("StopSignal", self.stop_signal.as_ref().map(|signal| json!(signal)));
        if !self.env.is_empty() {
            let mut lines = words(run, "Env").unwrap_or_default();
            for line in &self.env {
                let name = |line: &str| line.split_once('=').map_or(line, |(name, _)| name).to_owned();
                match lines.iter_mut().find(|old| name(old) == name(line)) {
                    Some(old) => old.clone_from(line),
                    None => lines.push(line.clone()),
                }
            }
            run.insert("Env".to_owned(), json!(lines));
        }
        let labels = self.labels.iter().map(|(name, value)| (name, json!(value)));
        add_to_object(run, "Labels", labels);
        add_to_object(run, "ExposedPorts", self.exposed_ports.iter().map(|port| (port, json!({}))));
        add_to_object(run, "Volumes", self.volumes.iter().map(|path| (path, json!({}))));
    }
}

fn add_to_object<'a>(
    run: &mut Map<String, Value>,
    field: &str,
    entries: impl Iterator<Item = (&'a String, Value)>,
) {
    let mut entries = entries.peekable();
    if entries.peek().is_none() {
        return;
    }
    let object = run.entry(field).or_insert(Value::Null);
    if !object.is_object() {
        *object = json!({});
    }
    let object = object.as_object_mut().expect("it was just made one");
    object.extend(entries.map(|(name, value)| (name.clone(), value)));
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

fn stop_signal(run: &Map<String, Value>) -> Result<Option<String>, ConfigError> {
    match text(run, "StopSignal")?.filter(|signal| !signal.is_empty()) {
        Some(signal) if signal_number(&signal).is_none() => {
            Err(ConfigError::StopSignal { signal: printable(&signal) })
        }
        signal => Ok(signal),
    }
}

/// A check without a command inherits everything, which an image below has done already.
fn health_check(run: &Map<String, Value>) -> Result<Option<HealthCheck>, ConfigError> {
    const FIELD: ConfigError = ConfigError::Field { field: "Healthcheck" };
    let check = match run.get("Healthcheck") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(check)) => check,
        Some(_) => return Err(FIELD),
    };
    let number = |field: &str| match check.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(FIELD),
    };
    let time = |field: &str| Ok(number(field)?.unwrap_or_default());
    let test = words(check, "Test")?;
    if test.is_empty() {
        return Ok(None);
    }
    Ok(Some(HealthCheck {
        test,
        interval_ns: time("Interval")?,
        timeout_ns: time("Timeout")?,
        start_period_ns: time("StartPeriod")?,
        start_interval_ns: time("StartInterval")?,
        retries: number("Retries")?.map(u32::try_from).transpose().map_err(|_| FIELD)?.filter(|n| *n > 0),
    }))
}

/// Labels inform and decide nothing: what is not text is left out.
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
                "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}},
                "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000u64, "Retries": 3},
            },
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"x")]},
        });
        let parsed = decode(&serde_json::to_vec(&full).unwrap()).unwrap();
        assert_eq!(parsed.config.entrypoint, ["/entry"]);
        assert_eq!(parsed.config.cmd, ["a", "b"]);
        assert_eq!(parsed.config.labels.len(), 1);
        assert_eq!(parsed.config.exposed_ports, ["80/tcp"]);
        assert_eq!(parsed.config.volumes, ["/data"]);
        let check = HealthCheck {
            test: vec!["CMD-SHELL".into(), "true".into()],
            interval_ns: 5_000_000_000,
            retries: Some(3),
            ..HealthCheck::default()
        };
        assert_eq!(parsed.config.health_check, Some(check));
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
        let changes = ConfigChanges {
            cmd: Some(vec!["sh".into()]),
            env: vec!["A=b".into()],
            user: Some("1".into()),
            working_dir: Some("/w".into()),
            entrypoint: Some(vec!["/e".into()]),
            ..ConfigChanges::default()
        };
        let encode = || encode_import(&Platform::default(), &changes, &Digest::of(b"layer"));
        assert_eq!(encode(), encode());
        let parsed = decode(&encode()).unwrap();
        assert_eq!(parsed.config.cmd, ["sh"]);
        assert_eq!(parsed.config.working_dir, "/w");
        assert_eq!(parsed.diff_ids, [Digest::of(b"layer")]);
    }

    #[test]
    fn a_commit_carries_on_what_it_does_not_change() {
        let base = json!({
            "os": "linux", "architecture": "amd64", "container": "abc", "unknown": 1,
            "config": {
                "Entrypoint": ["/entry"], "Cmd": ["a"], "Env": ["PATH=/bin", "A=1"], "Labels": {"a": "b"},
                "ExposedPorts": null, "Healthcheck": {"Test": ["NONE"]}, "OnBuild": ["RUN x"],
            },
            "history": [{"created_by": "one"}, {"created_by": "two", "empty_layer": true}],
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"1"), Digest::of(b"2")]},
        });
        let changes = ConfigChanges {
            entrypoint: Some(vec!["/new".into()]),
            env: vec!["A=2".into(), "B=3".into()],
            labels: [("c".to_owned(), "d".to_owned())].into(),
            exposed_ports: vec!["80/tcp".into()],
            ..ConfigChanges::default()
        };
        let history = History { created: "now", created_by: "us", author: Some("me"), message: Some("why") };
        let bytes = serde_json::to_vec(&base).unwrap();
        let bytes = encode_commit(&bytes, &changes, &Digest::of(b"3"), history).unwrap();
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        let run = &document["config"];
        assert_eq!((&run["Entrypoint"], &run["Cmd"]), (&json!(["/new"]), &Value::Null));
        assert_eq!(run["Env"], json!(["PATH=/bin", "A=2", "B=3"]));
        assert_eq!(run["Labels"], json!({"a": "b", "c": "d"}));
        assert_eq!(run["ExposedPorts"], json!({"80/tcp": {}}));
        assert_eq!((&run["Healthcheck"]["Test"], &run["OnBuild"]), (&json!(["NONE"]), &json!(["RUN x"])));
        assert_eq!((&document["unknown"], &document["container"]), (&json!(1), &Value::Null));
        let past = document["history"].as_array().unwrap();
        assert_eq!(past.len(), 4, "one entry was missing, one is new");
        assert_eq!(past[3], json!({"created": "now", "created_by": "us", "author": "me", "comment": "why"}));
        assert_eq!(decode(&bytes).unwrap().diff_ids.len(), 3);

        let none = ConfigChanges::default();
        let history = History { author: None, message: None, ..history };
        let bytes = encode_commit(b"{}", &none, &Digest::of(b"1"), history).unwrap();
        assert_eq!(decode(&bytes).unwrap().diff_ids, [Digest::of(b"1")]);
    }
}
