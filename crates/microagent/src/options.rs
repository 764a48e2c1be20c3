//! What a run or a new workspace is asked to be.

use std::time::Duration;

use microagent_image::PullPolicy;
use microagent_net::{EgressPolicy, Publish};
use microagent_store::{
    Artifact, Attachment, NetworkMode, RestartPolicy, SecretReference, SetupStep, WorkspaceName,
};

use crate::Profile;

/// What every workspace is made from. Start from [`WorkspaceOptions::new`] and set what differs.
#[derive(Debug, Clone)]
pub struct WorkspaceOptions {
    /// Image reference, as a user writes it.
    pub image: String,
    /// Steps before anything else; the first that fails ends it.
    pub setup: Vec<SetupStep>,
    /// Environment, over the image's; later entries win.
    pub env: Vec<(String, String)>,
    /// OCI user in place of the image's.
    pub user: Option<String>,
    /// Working directory in place of the image's.
    pub working_dir: Option<String>,
    /// Disks beside the root disk, in the order in which they are mounted.
    pub disks: Vec<Attachment>,
    /// Ports of the host that lead into the guest; with network `user`.
    pub publish: Vec<Publish>,
    /// What the guest may reach; with network `user`.
    pub egress: EgressPolicy,
    /// Secrets that each start delivers.
    pub secrets: Vec<SecretReference>,
    /// Paths that `artifact` can fetch.
    pub outputs: Vec<Artifact>,
    /// Machine size to start from.
    pub profile: Profile,
    /// Memory in MiB in place of the profile's.
    pub memory_mib: Option<u32>,
    /// Virtual CPUs in place of the profile's.
    pub cpu_count: Option<u32>,
    /// Root disk size in MiB in place of the profile's.
    pub size_mib: Option<u64>,
    /// Host name; made from the workspace's name when absent.
    pub hostname: Option<String>,
    /// How the guest reaches the network.
    pub network: NetworkMode,
    /// When the registry is asked.
    pub pull: PullPolicy,
}

/// What a one-shot run is asked to do. Start from [`RunOptions::new`] and set what differs.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// What its workspace is made from. Setup runs in the same boot as the command.
    pub workspace: WorkspaceOptions,
    /// What to run in it.
    pub command: RunCommand,
    /// Keep the workspace after the run.
    pub keep: bool,
    /// Name; generated when absent.
    pub name: Option<WorkspaceName>,
    /// Wall clock from the start of the machine until it is killed.
    pub timeout: Option<Duration>,
}

/// What a workspace that is kept between its starts is to be. Start from [`CreateOptions::new`] and set what
/// differs.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Name.
    pub name: WorkspaceName,
    /// What it is made from. Setup runs once, in a boot of its own.
    pub workspace: WorkspaceOptions,
    /// What every start runs; the machine ends with it. Without it the machine waits to be used.
    pub service: Option<RunCommand>,
    /// Program of interactive sessions in place of the guest's shell.
    pub shell: Option<String>,
    /// When `supervise` starts it again.
    pub restart: RestartPolicy,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunCommand {
    /// The image's entrypoint and command.
    Image,
    /// The image's entrypoint, if it has one, with these words in place of its command.
    Argv(Vec<String>),
    /// A shell command line, evaluated by the guest's `/bin/sh`.
    Shell(String),
    /// Exactly this program with these arguments; the image's entrypoint is not used.
    Entrypoint(Vec<String>),
}

impl WorkspaceOptions {
    /// A `small` machine with network `user`.
    pub fn new(image: impl Into<String>) -> WorkspaceOptions {
        WorkspaceOptions {
            image: image.into(),
            setup: Vec::new(),
            env: Vec::new(),
            user: None,
            working_dir: None,
            disks: Vec::new(),
            publish: Vec::new(),
            egress: EgressPolicy::default(),
            secrets: Vec::new(),
            outputs: Vec::new(),
            profile: Profile::default(),
            memory_mib: None,
            cpu_count: None,
            size_mib: None,
            hostname: None,
            network: NetworkMode::default(),
            pull: PullPolicy::default(),
        }
    }
}

impl CreateOptions {
    /// A workspace on a `small` machine with network `user` that runs nothing by itself.
    pub fn new(name: WorkspaceName, image: impl Into<String>) -> CreateOptions {
        CreateOptions {
            name,
            workspace: WorkspaceOptions::new(image),
            service: None,
            shell: None,
            restart: RestartPolicy::default(),
        }
    }
}

impl RunOptions {
    /// A disposable run of the image's own command on a `small` machine with network `user`.
    pub fn new(image: impl Into<String>) -> RunOptions {
        RunOptions {
            workspace: WorkspaceOptions::new(image),
            command: RunCommand::Image,
            keep: false,
            name: None,
            timeout: None,
        }
    }

    /// Runs these words (after the image's entrypoint, if it has one).
    #[must_use]
    pub fn argv<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> RunOptions {
        self.command = RunCommand::Argv(words.into_iter().map(Into::into).collect());
        self
    }

    /// Runs a shell command line.
    #[must_use]
    pub fn shell(mut self, line: impl Into<String>) -> RunOptions {
        self.command = RunCommand::Shell(line.into());
        self
    }
}
