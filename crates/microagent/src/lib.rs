//! Runs OCI images as Linux microVMs. This is the library under the `microagent` command.
//!
//! - [`Engine::run`] runs one command in a machine of its own and removes the machine.
//! - [`Engine::create`] makes a [`Workspace`]: a named machine that is kept, with a disk, settings and logs.
//! - [`Engine::images`], [`Engine::volumes`] and [`Engine::templates`] manage what machines use.
//!
//! # Requirements
//!
//! - **QEMU** is installed. [`Engine::doctor`] reports what is missing on this host.
//! - **A supervisor binary** of the same build. Each machine belongs to a supervisor process, which can outlive the caller. The library
//!   starts the program [`EngineOptions::supervisor`] with the first argument [`SUPERVISE_ARGUMENT`], and this program
//!   must call [`supervise`] before it does anything else. The `microagent` command is such a program. A program that
//!   embeds the library can be its own supervisor, as below.
//! - **A tokio runtime** with all drivers (`enable_all`), multi-threaded or not. Every future is `Send`. Methods that
//!   read or write more than a few small files are `async` and do this on tokio's threads for blocking work. Methods
//!   that are not `async` read a few small files at most, each of a few KiB, on the calling thread; the exception is
//!   [`OutputReader`], which reads the whole output of a run.
//!
//! # A run
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use microagent::{Engine, EngineOptions, Progress, RunOptions, SUPERVISE_ARGUMENT};
//!
//! fn main() -> ExitCode {
//!     // This program is its own supervisor.
//!     if std::env::args().nth(1).as_deref() == Some(SUPERVISE_ARGUMENT) {
//!         return ExitCode::from(u8::try_from(microagent::supervise()).unwrap_or(1));
//!     }
//!     let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
//!     match runtime.block_on(run()) {
//!         Ok(()) => ExitCode::SUCCESS,
//!         Err(error) => {
//!             eprintln!("{}", microagent::chain(error.as_ref()));
//!             ExitCode::FAILURE
//!         }
//!     }
//! }
//!
//! async fn run() -> Result<(), Box<dyn std::error::Error>> {
//!     let engine = Engine::new(EngineOptions::new("/home/me/.microagent", std::env::current_exe()?));
//!     let report = engine.run(RunOptions::new("busybox").argv(["uname", "-r"]), &Progress::new()).await?;
//!     println!("{} exited with {}", report.workspace, report.result.exit_code);
//!     // The recorded output; `Engine::run_attached` passes it on while the command runs.
//!     let (stdout, stderr) = report.output.into_streams()?;
//!     print!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
//!     Ok(())
//! }
//! ```
//!
//! # A workspace
//!
//! ```no_run
//! use microagent::{
//!     CommitOptions, CopySource, CopyTarget, CreateOptions, DeleteMode, Engine, ExecOptions, Progress, StartOptions,
//! };
//!
//! async fn build(engine: &Engine, progress: &Progress) -> Result<(), Box<dyn std::error::Error>> {
//!     let web = engine.create(CreateOptions::new("web".parse()?, "debian:12"), progress).await?;
//!     web.start(StartOptions::new(), progress).await?;
//!
//!     web.copy_in(CopySource::path("site"), "/srv", progress).await?;
//!     let output = web.exec(ExecOptions::new(["ls", "/srv/site"])).await?.collect_output(64 * 1024).await?;
//!     println!("{}", String::from_utf8_lossy(&output.stdout));
//!     web.copy_out("/etc/hostname", CopyTarget::path("hostname"), progress).await?;
//!
//!     web.halt().await?;
//!     web.commit(CommitOptions::new("example.com/web:1"), progress).await?;
//!     web.delete(DeleteMode::Resting).await?;
//!     Ok(())
//! }
//! ```
//!
//! A started workspace keeps running after the program that started it has ended; [`Engine::workspace`] finds it again
//! by name. [`Progress`] has an example of many runs at once and their cancellation, [`Error`] one of errors. The source
//! of this crate has these as complete programs, in the directory `examples/`.
//!
//! # In tests
//!
//! The binary that `cargo test` builds is **not** a supervisor, because the test harness has its `main`. Give the
//! package a small binary and name it in tests:
//!
//! ```ignore
//! // src/bin/supervisor.rs
//! fn main() {
//!     std::process::exit(microagent::supervise());
//! }
//!
//! // tests/machines.rs
//! let engine = Engine::new(EngineOptions::new(state_dir, env!("CARGO_BIN_EXE_supervisor")));
//! ```
//!
//! Tests and processes can share a state directory. In a new one, the first use of an image imports it and boots a
//! machine; later ones start from a template. Nothing is deleted when a value is dropped: a test deletes its workspace
//! with [`DeleteMode::Kill`] at its end, and a previous one of that name at its beginning, which may be missing. A test
//! that panics leaves its machine running, unless [`StartOptions::ttl`] limits its time. A machine whose directory is
//! removed ends within seconds.
//!
//! # Index
//!
//! | To | See |
//! |---|---|
//! | configure | [`EngineOptions`], [`TemplateUse`], [`WeakJail`], [`doctor`] |
//! | run one command | [`RunOptions`], [`RunReport`], [`OutputReader`], [`AttachedRun`] |
//! | keep a workspace | [`Workspace`], [`CreateOptions`], [`StartOptions`], [`State`], [`WorkspaceDetails`] |
//! | run commands in it | [`ExecOptions`], [`Exec`], [`ExecStdin`], [`ExecControl`], [`Job`], [`Console`] |
//! | move files | [`Workspace::write_file`], [`Workspace::read_file`], [`CopySource`], [`CopyTarget`], [`SyncOptions`], [`SyncReport`], [`FileRange`], [`Artifact`], [`CommitOptions`] |
//! | manage images, volumes and templates | [`Images`], [`image`], [`Volumes`], [`volume`], [`Templates`], [`template`] |
//! | connect workspaces with each other | [`PrivateNetworks`], [`private_network`] |
//! | connect | [`NetworkMode`], [`Publish`], [`Forward`], [`DnsSettings`], [`egress`], [`NetworkDetails`] |
//! | set sizes and limits | [`Profile`], [`Resources`], [`RateLimits`], [`GuestSettings`] |
//! | attach disks and secrets | [`Attachment`], [`DiskSource`], [`SecretReference`], [`SecretEnvironment`], [`secret`] |
//! | read spec files | [`SpecFile`], [`spec`], [`apply`] |
//! | observe | [`Progress`], [`Event`], [`Streaming`], [`StateEvent`], [`Stats`], [`LogOptions`] |
//! | handle errors | [`Error`], [`ErrorKind`], [`Hint`], [`error`] |
//!
//! # Cancellation
//!
//! - Cancelling the token of a [`Progress`] ends the operation. What the operation had created is removed, unless its
//!   method says otherwise. If the token is cancelled before the call, nothing changes.
//! - A command of [`Workspace::exec`] is ended by dropping its [`Exec`] or by [`ExecControl::kill`]. Its time limit
//!   ([`ExecOptions::timeout`]) holds in any case.
//! - The other futures can be dropped at any time. A disposable run whose future is dropped is ended and removed. A
//!   request that a supervisor has received is carried out: a halt
//!   whose future was dropped still halts. A machine whose start was not complete is ended.
//! - Supervisors have a session of their own, so Ctrl-C in a terminal reaches only this program. A program that ends
//!   without cancellation ends its runs and incomplete starts too; started workspaces keep running.
//!
//! # Conventions
//!
//! - Long operations take a [`Progress`]: an observer of [`Event`]s and a [`CancellationToken`].
//! - Data that arrives over time is a [`Stream`]: output of commands ([`Exec`]), logs, events, statistics, tar streams
//!   ([`Streaming`]).
//! - An [`Error`] has a class ([`Error::kind`]) and a [`Hint`]. A hint is data with English words (`Display`); a program
//!   with words of its own matches its variants.
//! - The library reads no environment variable, no home directory and no terminal. The caller passes what it should
//!   know in [`EngineOptions`].

// Users can name every type of a public signature.
#![warn(unnameable_types)]

mod attachment;
mod blocking;
mod broker;
mod digest;
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
mod host_memory;
mod images;
mod invalid;
mod limits;
mod options;
pub mod private_network;
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
pub use broker::BrokerDetails;
pub use engine::{AccelChoice, Engine, EngineOptions, TemplateUse, WeakJail};
pub use error::{Error, ErrorKind};
pub use event::{Event, Observer};
pub use futures_core::Stream;
pub use hint::{Hint, OptionHint};
pub use images::Images;
pub use options::{AttachOptions, AttachedOutput, CreateOptions, RunCommand, RunOptions, WorkspaceOptions};
pub use private_network::PrivateNetworks;
pub use profile::{PROFILES, Profile};
pub use progress::Progress;
pub use report::{ImageReport, RunNotice, RunReport, RunResult, SetupFailure};
pub use run::AttachedRun;
pub use secret::{Lookup, SecretCheck, SecretEnvironment, SecretError, SecretFault};
pub use spec::{SpecError, SpecFile};
pub use streaming::Streaming;
pub use template::Templates;
pub use volume::Volumes;
pub use workspace::{
    CommitOptions, CommitReport, ConflictReason, Console, CopySource, CopyTarget, DeleteMode, Deletion,
    DiskChanges, Exec, ExecControl, ExecEnded, ExecOptions, ExecOutput, ExecStdin, Execution, FileContent,
    FileEntry, FileKind, FileList, FileListOptions, FileRange, GuestAddresses, GuestProcess, HealthReport,
    HealthResult, HostForward, Inspection, Job, JobDetails, JobOutput, JobOutputOptions, JobStdin,
    LogOptions, NetworkDetails, PathChange, PathChangeKind, PortForward, ProcessList, REASON_LIMIT,
    Snapshots, StartOptions, Stats, StdinMode, SuperviseOptions, SymlinkMode, SyncConflict, SyncOptions,
    SyncReport, SyncUnreadable, Terminal, Workspace, WorkspaceDetails, WorkspaceSummary, last_lines,
};

pub use jiff::Timestamp;
pub use microagent_model::{
    AddedAddress, AddedHost, AllowedRequest, AllowedRequestError, Artifact, Attachment, Broker, BrokerError,
    CommandLine, DiskSource, DnsError, DnsSettings, FailureKind, Forward, ForwardError, GuestInit,
    GuestSettings, HealthCommand, HealthPlan, HealthSettings, HealthState, HealthStateError, HealthTiming,
    ImageIdentity, JobId, JobIdError, JobState, LabelError, Labels, LinkState, NameError, NameServer,
    NetworkMode, NetworkName, NetworkNameError, PORTS_MAX, PortProtocol, PortSelector, Publish, PublishError,
    PublishRange, RateLimits, Resources, RestartPolicy, RestartPolicyError, RootAccess, SearchDomain,
    SecretReference, SecretReferenceError, SecretSource, SettingError, SetupStep, SnapshotName,
    SnapshotNameError, SnapshotTag, SnapshotTagError, State, Subnet, SubnetError, Tmpfs, Ulimit, Upstream,
    UpstreamError, VolumeName, VolumeNameError, WorkspaceFailure, WorkspaceName, parse_label, parse_sysctl,
    signal_name, signal_number,
};
pub use microagent_net::HOST_NAME;
pub use microagent_proto::chain;
pub use microagent_store::{ProcessId, StateEvent, UntrustedParent, check_parents};
pub use microagent_vm::{
    JOB_OUTPUT_LIMIT, JobOutputPiece, OutputFrame, OutputReader, OutputStream, SUPERVISE_ARGUMENT, StartMode,
    Timeline, supervise,
};
pub use tokio_util::sync::CancellationToken;
pub use zeroize::Zeroizing;

/// What an existing workspace and a changed spec file differ in.
pub mod apply {
    pub use crate::workspace::{Applied, ApplyMode, Change, ChangeKind};
}

/// Snapshots and forks of workspaces. [`Snapshots`] has an example.
pub mod snapshot {
    pub use crate::workspace::{
        CopiedVolume, Fork, ForkOptions, ForkVolumes, Snapshot, SnapshotContents, SnapshotDeleteMode,
        SnapshotDeletion, SnapshotImport, Snapshots,
    };
}

/// What a guest may reach, and what the filter decided.
///
/// By default a guest with network `user` reaches public addresses ([`EgressMode::Public`](egress::EgressMode::Public)).
///
/// ```
/// use microagent::WorkspaceOptions;
/// use microagent::egress::{EgressMode, EgressPolicy};
///
/// // Nothing but one domain with all names below it, and one network of the company.
/// let policy = EgressPolicy::new(EgressMode::Allowlist)
///     .allow(".example.org".parse()?)
///     .allow("10.20.0.0/16".parse()?)
///     .max_bytes(1 << 30);
/// let options = WorkspaceOptions::new("debian:12").egress(policy);
/// # Ok::<(), microagent::Error>(())
/// ```
///
/// [`Workspace::egress`] returns the decisions.
pub mod egress {
    pub use microagent_model::egress::*;
}

/// Images: references, options and results of [`Images`].
pub mod image {
    pub use microagent_image::rootfs::{Damage, Limits, RootfsError};
    pub use microagent_image::{
        ArchiveError, Committed, ConfigChanges, ConfigError, CredentialError, DaemonReference, DamagedImage,
        Digest, DigestError, Environment, HealthCheck, HistoryLayer, HistoryStep, Image, ImageConfig,
        ImageDeletion, ImageError, ImageEvent, ImageHint, ImageHistory, ImageList, ImagePrune,
        ImageReference, ImageSummary, ImportSource, LoadOptions, LocalReference, ManifestError,
        NetworkOptions, Origin, Platform, PlatformError, Pruned, PullOptions, PullPolicy, Pushed,
        ReferenceError, RegistryReference, SaveTarget, Saved, SavedImage, StandardInput, Tagged, Transport,
    };
}
