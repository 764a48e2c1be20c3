//! The result of a run.

use std::fmt;

use jiff::Timestamp;
use microagent_image::{Image, Origin};
use microagent_model::{NetworkMode, Publish, Resources, State, WorkspaceName};
use microagent_vm::{OutputReader, StartMode, Timeline};
use serde::Serialize;

/// A completed run, from [`Engine::run`](crate::Engine::run): the command ended, with any exit code.
///
/// ```no_run
/// # async fn example(report: microagent::RunReport) -> std::io::Result<()> {
/// println!("{} exited with {}", report.workspace, report.result.exit_code);
/// let (stdout, stderr) = report.output.into_streams()?;
/// println!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct RunReport {
    /// Name of the workspace, which is removed if the run was disposable.
    pub workspace: WorkspaceName,
    /// State after the run: `stopped`.
    pub final_state: State,
    /// Name of the profile that the sizes started from.
    pub profile: String,
    /// Size of the machine that ran.
    pub resources: Resources,
    /// Network mode.
    pub network: NetworkMode,
    /// Published ports.
    pub published: Vec<Publish>,
    /// Host name in the guest.
    pub hostname: String,
    /// The image.
    pub image: ImageReport,
    /// `linux-kvm` or `linux-tcg`.
    pub backend: String,
    /// Whether the workspace was kept.
    pub kept: bool,
    /// How the machine was started, with the reason.
    pub start: StartMode,
    /// How the command ended.
    pub result: RunResult,
    /// Output of setup steps and command, in the order of arrival. [`OutputReader::into_streams`] returns all of it.
    pub output: OutputReader,
    /// Times of the phases.
    pub timeline: Timeline,
    /// Notices for the user.
    pub notices: Vec<RunNotice>,
}

/// Something about a run that its user should know, and that is not an error. `Display` has all of it in words.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RunNotice {
    /// What there is to say.
    pub text: String,
    /// What the egress policy would have to allow, if this is about something that it refused and a rule can allow.
    pub rule: Option<String>,
}

impl From<String> for RunNotice {
    fn from(text: String) -> RunNotice {
        RunNotice { text, rule: None }
    }
}

impl fmt::Display for RunNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.rule {
            Some(rule) => write!(f, "; the egress rule `{rule}` opens it"),
            None => Ok(()),
        }
    }
}

/// The image of a run.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ImageReport {
    /// The reference that the user gave.
    pub reference: String,
    /// The full reference.
    pub resolved_reference: String,
    /// Digest of the platform's manifest.
    pub digest: String,
    /// Where the image came from in this run.
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
    /// The signal that ended it, if any.
    pub signal: Option<i32>,
    /// Why the command could not be started, or `None`.
    pub start_error: Option<String>,
    /// Bytes of output beyond the limit of 256 MiB, which were dropped. The last 64 KiB of standard error are kept.
    pub dropped_bytes: u64,
    /// The program that the guest's kernel killed during the command, because memory ran out.
    pub out_of_memory: Option<String>,
    /// Mount point of a disk of the guest that was full when the command failed.
    pub disk_full: Option<String>,
}

/// The setup step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetupFailure {
    /// Its number, from 1.
    pub step: usize,
    /// Its text or file name.
    pub label: String,
    /// Its exit code; 127 not found, 126 not executable.
    pub exit_code: i32,
    /// Why it could not be started, or `None`.
    pub start_error: Option<String>,
}

impl fmt::Display for SetupFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SetupFailure { step, label, exit_code, start_error } = self;
        match start_error {
            Some(error) => write!(f, "setup step {step} could not be started ({error}): {label}"),
            None => write!(f, "setup step {step} failed with exit code {exit_code}: {label}"),
        }
    }
}
