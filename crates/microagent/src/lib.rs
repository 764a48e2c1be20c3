//! Runs OCI images as Linux microVMs: the library under the `microagent` command.
//!
//! Two things are needed before the first machine starts:
//!
//! - **A supervisor binary.** Each machine belongs to a process of its own, which outlives the caller. The library
//!   starts [`EngineOptions::supervisor`] for it with [`SUPERVISE_ARGUMENT`] as the first argument, and that program
//!   hands over to [`supervise`] before it does anything else. The `microagent` command is such a program, and any
//!   program that embeds the library can be its own (`std::env::current_exe()`, as in `examples/`). The binary that
//!   `cargo test` builds is **not** one: its `main` is the harness's. A test names a real program, such as a small
//!   binary of its own package by `env!("CARGO_BIN_EXE_supervisor")`.
//! - **A tokio runtime** with I/O, time and process drivers (`enable_all`), of either kind. Nothing here blocks its
//!   threads; every future is `Send`.
//!
//! QEMU has to be installed; [`Engine::doctor`] says what is missing.
//!
//! ```no_run
//! use microagent::{Engine, EngineOptions, Progress, RunOptions};
//!
//! # async fn example() -> Result<(), microagent::Error> {
//! let engine = Engine::new(EngineOptions::new("/home/me/.microagent", "/usr/local/bin/microagent"));
//! let report = engine.run(RunOptions::new("busybox").argv(["uname", "-r"]), &Progress::new()).await?;
//! println!("{} exited with {}", report.workspace, report.result.exit_code);
//! # Ok(())
//! # }
//! ```
//!
//! A workspace that is kept between its starts is a handle, [`Workspace`]: [`Engine::create`] makes it,
//! [`Engine::workspace`] finds it by name. It is started with [`Workspace::start`], used with [`Workspace::exec`],
//! [`Workspace::start_job`], [`Workspace::copy_in`] and [`Workspace::copy_out`], and ended with [`Workspace::halt`] or [`Workspace::delete`]; a
//! started one keeps running without the program that started it (`examples/workspace.rs`).
//!
//! Images, volumes and templates are handles too ([`Engine::images`], [`Engine::volumes`], [`Engine::templates`]), each
//! with `create`, `list`, `get` and `delete`. Long work takes a [`Progress`]: an observer of its [`Event`]s and a
//! [`CancellationToken`]. What comes over time is a `Stream`: the output of commands ([`Exec`]), logs, events,
//! measurements, tar streams ([`Streaming`]).
//!
//! The library never touches the terminal, the home directory or the environment: the caller hands in what it wants
//! read ([`EngineOptions`]). What to do about an [`Error`] is data, [`Hint`]; its words are the caller's.

// Users can name every type of a public signature.
#![warn(unnameable_types)]

mod attachment;
mod disks;
pub mod doctor;
mod engine;
pub mod error;
mod event;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guest;
mod hint;
mod images;
mod invalid;
mod limits;
mod options;
mod profile;
mod progress;
mod provision;
mod refusals;
mod report;
mod run;
pub mod secret;
pub mod spec;
mod streaming;
mod supervisor_events;
mod supervisor_spec;
mod tar_stream;
pub mod template;
#[cfg(test)]
mod test_tar;
pub mod volume;
mod workspace;

pub use attachment::{AttachmentError, AttachmentForm};
pub use engine::{AccelChoice, Engine, EngineOptions, WeakJail};
pub use error::{Error, ErrorKind};
pub use event::{Event, Observer};
pub use hint::{Hint, OptionHint};
pub use images::Images;
pub use options::{AttachOptions, AttachedOutput, CreateOptions, RunCommand, RunOptions, WorkspaceOptions};
pub use profile::{PROFILES, Profile};
pub use progress::Progress;
pub use report::{ImageReport, RunReport, RunResult, SetupFailure};
pub use run::AttachedRun;
pub use secret::{Lookup, SecretCheck, SecretEnvironment, SecretError, SecretFault};
pub use spec::{SpecError, SpecFile};
pub use streaming::Streaming;
pub use template::Templates;
pub use volume::Volumes;
pub use workspace::{
    CommitOptions, CommitReport, Console, CopySource, CopyTarget, DeleteMode, Deletion, Exec, ExecControl,
    ExecEnded, ExecOptions, ExecOutput, ExecStdin, Execution, FileContent, FileRange, GuestAddresses,
    HostForward, Inspection, Job, JobDetails, JobOutput, JobOutputOptions, JobStdin, LogOptions,
    NetworkDetails, PortForward, REASON_LIMIT, StartOptions, Stats, StdinMode, SuperviseOptions, SymlinkMode,
    Terminal, Workspace, WorkspaceDetails, WorkspaceSummary, last_lines,
};

pub use jiff::Timestamp;
pub use microagent_model::{
    AddedAddress, AddedHost, Artifact, Attachment, CommandLine, DiskSource, DnsError, DnsSettings,
    FailureKind, Forward, ForwardError, GuestInit, GuestSettings, ImageIdentity, JobId, JobIdError, JobState,
    LabelError, Labels, LinkState, NameError, NameServer, NetworkMode, PORTS_MAX, PortProtocol, PortSelector,
    Publish, PublishError, PublishRange, RateLimits, Resources, RestartPolicy, RootAccess, SearchDomain,
    SecretReference, SecretReferenceError, SecretSource, SettingError, SetupStep, State, Tmpfs, Ulimit,
    VolumeName, VolumeNameError, WorkspaceFailure, WorkspaceName, parse_label, parse_sysctl, signal_name,
    signal_number,
};
pub use microagent_net::HOST_NAME;
pub use microagent_proto::chain;
pub use microagent_store::{ProcessId, StateEvent};
pub use microagent_vm::{
    JOB_OUTPUT_LIMIT, JobOutputPiece, OutputFrame, OutputReader, OutputStream, SUPERVISE_ARGUMENT, StartMode,
    Timeline, never_dump_core, supervise,
};
pub use tokio_util::sync::CancellationToken;
pub use zeroize::Zeroizing;

/// What an existing workspace and a changed spec file differ in.
pub mod apply {
    pub use crate::workspace::{Applied, ApplyMode, Change, ChangeKind};
}

/// What a guest may reach, and what the filter decided.
pub mod egress {
    pub use microagent_model::egress::*;
}

/// Images: references, options and results of [`Images`].
pub mod image {
    pub use crate::images::Prune;
    pub use microagent_image::{
        Commit, CommitOptions, Committed, ConfigChanges, ConfigError, DamagedImage, Deletion, Digest,
        DigestError, Environment, HealthCheck, Image, ImageConfig, ImageError, ImageEvent, ImageHint,
        ImageList, ImageReference, ImageSummary, ImportSource, LoadOptions, LocalReference, ManifestError,
        NetworkOptions, Origin, Platform, PlatformError, Pruned, PullOptions, PullPolicy, Pushed,
        ReferenceError, RegistryReference, SaveTarget, Saved, SavedImage, StandardInput, Tagged, Transport,
    };
}
