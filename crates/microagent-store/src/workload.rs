//! `workload.json`: what the starts of a workspace run, and in which environment.
//!
//! It holds what the user gave with `--env` and `--setup`, so it is as private as the disk (mode 0600) and
//! never printed. A disposable run has none.

use microagent_model::{CommandLine, GuestInit, HealthSettings, SetupStep};
use serde::{Deserialize, Serialize};

use crate::WorkspaceDir;
use crate::atomic::{ReadError, WriteError, read_json_limited, write_json_limited};

/// Largest `workload.json` that is written and read back, in bytes. An environment and scripts of the largest size that
/// the library accepts fit, however many of their bytes JSON escapes.
pub const WORKLOAD_LIMIT: u64 = 64 * 1024 * 1024;

/// What the starts of a workspace run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Whole environment of everything that runs, in order; later entries win.
    pub env: Vec<(String, String)>,
    /// How many of the last ones the user gave; an older release did not say.
    #[serde(default)]
    pub given_env: usize,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// OCI user; empty means root.
    pub user: String,
    /// What runs from start to end; without it the machine just waits.
    pub service: Option<CommandLine>,
    /// Program of an interactive session, in place of the guest's shell.
    pub shell: Option<String>,
    /// Which process of the guest is process 1.
    #[serde(default)]
    pub init: GuestInit,
    /// The image's stop signal, by name or number.
    pub stop_signal: Option<String>,
    /// The image's health check.
    #[serde(default)]
    pub health: HealthSettings,
    /// Setup steps that have not run yet; the next start begins with them, on a fresh disk.
    #[serde(with = "steps")]
    pub setup: Vec<SetupStep>,
    /// What tells the steps that the workspace was made with from others, when they have run, too; an older release did
    /// not say.
    #[serde(default)]
    pub setup_digest: Option<String>,
}

impl Workload {
    /// Loads it; a workspace of an older release has none, and gets an empty one.
    ///
    /// # Errors
    /// Fails when the file is unreadable or damaged.
    pub fn load(dir: &WorkspaceDir) -> Result<Workload, ReadError> {
        match read_json_limited(&dir.workload(), WORKLOAD_LIMIT) {
            Err(error) if error.is_not_found() => Ok(Workload::default()),
            loaded => loaded,
        }
    }

    /// Writes it, atomically. The caller holds the workspace's lock, or makes the workspace.
    ///
    /// # Errors
    /// Fails when the file cannot be replaced; the old one is then still there.
    pub fn save(&self, dir: &WorkspaceDir) -> Result<(), WriteError> {
        write_json_limited(&dir.workload(), self, WORKLOAD_LIMIT, dir.durability())
    }
}

/// Setup steps as they are stored: a script as text where it is text, else in base64. Releases up to format 3 stored its
/// bytes as a list of numbers, which is still read.
mod steps {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use microagent_model::SetupStep;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Stored {
        Shell(String),
        Script {
            name: String,
            #[serde(flatten)]
            content: Content,
        },
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Content {
        Text(String),
        Base64(String),
        #[serde(rename = "content")]
        Bytes(Vec<u8>),
    }

    /// Whether JSON holds the text in at most twice its bytes; escapes of other control characters have six.
    fn is_plain(text: &str) -> bool {
        text.bytes().all(|byte| byte >= b' ' || matches!(byte, b'\n' | b'\r' | b'\t'))
    }

    fn stored(step: &SetupStep) -> Stored {
        match step {
            SetupStep::Shell(line) => Stored::Shell(line.clone()),
            SetupStep::Script { name, content } => {
                let content = match str::from_utf8(content) {
                    Ok(text) if is_plain(text) => Content::Text(text.to_owned()),
                    _ => Content::Base64(STANDARD.encode(content)),
                };
                Stored::Script { name: name.clone(), content }
            }
        }
    }

    pub(super) fn serialize<S: Serializer>(steps: &[SetupStep], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(steps.iter().map(stored))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<SetupStep>, D::Error> {
        let step = |stored| {
            Ok(match stored {
                Stored::Shell(line) => SetupStep::Shell(line),
                Stored::Script { name, content } => {
                    let content = match content {
                        Content::Text(text) => text.into_bytes(),
                        Content::Base64(text) => STANDARD.decode(text).map_err(D::Error::custom)?,
                        Content::Bytes(bytes) => bytes,
                    };
                    SetupStep::Script { name, content }
                }
            })
        };
        Vec::<Stored>::deserialize(deserializer)?.into_iter().map(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(content: &[u8]) -> SetupStep {
        SetupStep::Script { name: "setup.sh".into(), content: content.to_vec() }
    }

    #[test]
    fn what_is_saved_is_loaded_again_whatever_a_script_contains() {
        let dir = tempfile::tempdir().unwrap();
        let dir = WorkspaceDir::at(dir.path());
        assert_eq!(Workload::load(&dir).unwrap(), Workload::default());
        let quotes = "\"\n".repeat(512 * 1024);
        let binary: Vec<u8> = (0..=255).cycle().take(1024 * 1024).collect();
        let setup = vec![
            SetupStep::Shell("apt-get update".into()),
            script(b"#!/bin/sh\n\techo \"hello\"\n"),
            script(b"\xff\0"),
            script(b"\x1b[1m"),
            script(quotes.as_bytes()),
            script(&binary),
        ];
        let workload = Workload { setup, ..Workload::default() };
        workload.save(&dir).unwrap();
        assert_eq!(Workload::load(&dir).unwrap(), workload);
        // No byte takes more than two.
        assert!(std::fs::metadata(dir.workload()).unwrap().len() < 5 * 1024 * 1024);
    }

    #[test]
    fn a_script_of_an_older_release_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let dir = WorkspaceDir::at(dir.path());
        let older = r#"{"env": [], "working_dir": "", "user": "", "service": null, "shell": null, "stop_signal": null,
            "setup": [{"shell": "true"}, {"script": {"name": "setup.sh", "content": [108, 115]}}]}"#;
        std::fs::write(dir.workload(), older).unwrap();
        assert_eq!(Workload::load(&dir).unwrap().setup, [SetupStep::Shell("true".into()), script(b"ls")]);
    }

    #[test]
    fn one_that_would_not_be_read_back_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let dir = WorkspaceDir::at(dir.path());
        let workload =
            Workload { env: vec![("A".into(), "x".repeat(64 * 1024 * 1024))], ..Workload::default() };
        assert!(matches!(workload.save(&dir), Err(WriteError::TooLarge { limit: WORKLOAD_LIMIT, .. })));
        assert!(!dir.workload().exists());
    }
}
