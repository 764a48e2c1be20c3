//! The result of a run.

use jiff::Timestamp;
use microagent_image::{Image, Origin};
use microagent_model::{NetworkMode, Publish, Resources, State, WorkspaceName};
use microagent_vm::{OutputReader, StartMode, Timeline};
use serde::Serialize;

/// A completed run: the command ended, whatever it returned.
#[derive(Debug)]
#[non_exhaustive]
pub struct RunReport {
    /// The workspace; gone already when the run was disposable.
    pub workspace: WorkspaceName,
    /// State after the run: `stopped`.
    pub final_state: State,
    /// Name of the profile that the sizes started from.
    pub profile: String,
    /// Size of the machine that ran.
    pub resources: Resources,
    /// How the guest reached the network.
    pub network: NetworkMode,
    /// Ports of the host that led into the guest.
    pub published: Vec<Publish>,
    /// Host name in the guest.
    pub hostname: String,
    /// Which image ran.
    pub image: ImageReport,
    /// `linux-kvm` or `linux-tcg`.
    pub backend: String,
    /// Whether the workspace was kept.
    pub kept: bool,
    /// How the machine was started, and why so.
    pub start: StartMode,
    /// How the command ended.
    pub result: RunResult,
    /// Output of setup steps and command, in the order of arrival.
    pub output: OutputReader,
    /// Where the time went.
    pub timeline: Timeline,
    /// Things the user should know.
    pub notices: Vec<String>,
}

/// Which image ran.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ImageReport {
    /// As the user gave it.
    pub reference: String,
    /// The full reference that it stood for.
    pub resolved_reference: String,
    /// Digest of the platform's manifest.
    pub digest: String,
    /// Where it came from this time.
    pub origin: Origin,
    /// Its Entrypoint and Cmd.
    pub command: Vec<String>,
}

impl From<&Image> for ImageReport {
    fn from(image: &Image) -> ImageReport {
        ImageReport {
            reference: image.reference.clone(),
            resolved_reference: image.resolved_reference.clone(),
            digest: image.digest.clone(),
            origin: image.origin,
            command: image.config.entrypoint.iter().chain(&image.config.cmd).cloned().collect(),
        }
    }
}

/// How the command ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunResult {
    /// When the command was started (host's clock).
    pub started_at: Timestamp,
    /// When it ended.
    pub exited_at: Timestamp,
    /// Exit code; 128 + number for a signal, 127 not found, 126 not executable.
    pub exit_code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Why the command could not be started, if it could not.
    pub start_error: Option<String>,
    /// Bytes of output that were dropped because the bound was reached.
    pub dropped_bytes: u64,
    /// The program that the guest's kernel killed meanwhile, because memory ran out.
    pub out_of_memory: Option<String>,
    /// Mount point of a disk of the guest that was full when the command failed.
    pub disk_full: Option<String>,
}

/// Which setup step failed a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetupFailure {
    /// Its number, from 1.
    pub step: usize,
    /// Its text or file name.
    pub label: String,
    /// Its exit code; 127 not found, 126 not executable.
    pub exit_code: i32,
    /// Why it could not be started, if it could not.
    pub start_error: Option<String>,
}
