//! Runs OCI images as Linux microVMs: the library under the `microagent` command.
//!
//! ```no_run
//! # async fn example() -> Result<(), microagent::Error> {
//! use microagent::{CancellationToken, Engine, EngineOptions, RunOptions};
//!
//! let engine = Engine::new(EngineOptions::new("/home/me/.microagent", "/usr/local/bin/microagent"));
//! let options = RunOptions::new("busybox").argv(["uname", "-r"]);
//! let report = engine.run(&options, &|_event| {}, &CancellationToken::new()).await?;
//! println!("{} exited with {}", report.workspace, report.result.exit_code);
//! # Ok(())
//! # }
//! ```
//!
//! A workspace that is kept between its starts is made with [`Engine::create`], started with [`Engine::start`], used with
//! [`Engine::exec`], [`Engine::copy_in`] and [`Engine::copy_out`], and ended with [`Engine::halt`] or [`Engine::delete`]; a
//! started one goes on without the program that started it (`examples/workspace.rs`).
//!
//! Everything that the command can do a program can do with typed options and typed results. The library
//! never touches the terminal, the home directory or the environment: the caller hands in what it wants
//! looked at ([`EngineOptions`]). Long work reports through an [`Observer`] and stops when its
//! [`CancellationToken`] says so.

mod apply;
mod artifact;
mod attach;
mod attachment;
mod clone;
mod commit;
mod console;
mod copy;
mod disks;
mod doctor;
mod egress;
mod engine;
mod error;
mod event;
mod exec;
mod lifecycle;
mod limits;
mod network;
mod observe;
mod options;
mod profile;
mod provision;
mod report;
mod run;
mod secret;
pub mod spec;
mod supervise;
mod supervisor_events;
mod supervisor_spec;
mod template;
pub mod text;
mod volume;
mod workspace;

pub use apply::{Applied, Change, ChangeKind};
pub use attachment::{AttachmentError, AttachmentForm};
pub use commit::{CommitOptions, CommitReport};
pub use copy::{CopySource, CopyTarget};
pub use doctor::{Check, CheckStatus, DoctorReport, KernelReport};
pub use engine::{AccelChoice, Engine, EngineOptions, WeakJail};
pub use error::{Error, ErrorKind};
pub use event::{Event, Observer};
pub use exec::{ExecControl, ExecInput, ExecOptions, Execution, OutputSink, Terminal};
pub use lifecycle::{Created, REASON_LIMIT, StartOptions, Started};
pub use microagent_model::signal_number;
pub use network::{GuestAddresses, NetworkDetails, PortForward};
pub use observe::{Inspection, Stats, last_lines};
pub use options::{CreateOptions, RunCommand, RunOptions, WorkspaceOptions};
pub use profile::{PROFILES, Profile};
pub use report::{ImageReport, RunReport, RunResult, SetupFailure};
pub use secret::{Lookup, SecretCheck, SecretEnvironment, SecretError, SecretFault, secrets_of_env_file};
pub use spec::{SpecError, SpecFile};
pub use supervise::SuperviseOptions;
pub use template::{Template, TemplateShape};
pub use volume::{VOLUME_SIZE_MIB, Volume, VolumeDeleteMode, VolumeDeletion};
pub use workspace::{DeleteMode, Deletion, WorkspaceDetails, WorkspaceSummary};

pub use microagent_image as image;
pub use microagent_net::{
    AllowRule, BYTES_DEFAULT, CONNECTIONS_DEFAULT, Decision, EgressMode, EgressPolicy, Protocol, Publish,
    Reason, Record,
};
pub use microagent_store::{
    Artifact, Attachment, CommandLine, DiskSource, Failure, FailureKind, LinkState, NameError, NetworkMode,
    OneStart, ProcessId, Resources, RestartPolicy, SecretReference, SecretReferenceError, SecretSource,
    SetupStep, State, StateEvent, VolumeName, VolumeNameError, WorkspaceName,
};
pub use microagent_vm::{
    OutputFrame, OutputReader, OutputStream, SUPERVISE_ARGUMENT, StartMode, Timeline, never_dump_core,
    supervise,
};
pub use tokio_util::sync::CancellationToken;
