//! Options of a run and of a new workspace.

use std::time::Duration;

use microagent_image::PullPolicy;
use microagent_model::{
    Artifact, Attachment, DnsSettings, EgressPolicy, Forward, GuestInit, Labels, NetworkMode, Publish,
    RateLimits, RestartPolicy, SecretReference, SetupStep, WorkspaceName,
};

use crate::{Profile, StdinMode, Terminal};

/// What every workspace is made from. Start from [`WorkspaceOptions::new`] and set what differs.
#[derive(Debug, Clone)]
#[non_exhaustive]
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
    /// Which process of the guest is process 1.
    pub init: GuestInit,
    /// Disks beside the root disk, in the order in which they are mounted.
    pub disks: Vec<Attachment>,
    /// Ports of the host that lead into the guest; with network `user`.
    pub publish: Vec<Publish>,
    /// What the guest may reach; with network `user`.
    pub egress: EgressPolicy,
    /// How the guest looks names up; with network `user`.
    pub dns: DnsSettings,
    /// Servers that the guest reaches by ports of `host.microagent.internal`. With network `isolated` it reaches nothing else.
    pub forwards: Vec<Forward>,
    /// How fast it may use the host's disk and network.
    pub limits: RateLimits,
    /// Secrets that each start delivers.
    pub secrets: Vec<SecretReference>,
    /// Names and values by which the workspace can be found.
    pub labels: Labels,
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

/// A one-shot run. Start from [`RunOptions::new`] and set what differs.
#[derive(Debug, Clone)]
#[non_exhaustive]
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

/// How a program is attached to the command of a run. Start from [`AttachOptions::new`] and set what differs.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct AttachOptions {
    /// Whether the command has a standard input.
    pub stdin: StdinMode,
    /// A terminal as its standard input, output and error.
    pub terminal: Option<Terminal>,
    /// What is passed on of what is printed.
    pub output: AttachedOutput,
}

/// What an attached program gets of a run's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachedOutput {
    /// That of setup steps and command, as it comes.
    #[default]
    All,
    /// That of the command, as it comes. What setup steps print is in the error if one of them fails.
    Command,
    /// Nothing; all of it is in the report.
    Recorded,
}

/// A workspace that is kept between its starts. Start from [`CreateOptions::new`] and set what differs.
#[derive(Debug, Clone)]
#[non_exhaustive]
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
            init: GuestInit::default(),
            disks: Vec::new(),
            publish: Vec::new(),
            egress: EgressPolicy::default(),
            dns: DnsSettings::default(),
            forwards: Vec::new(),
            limits: RateLimits::default(),
            secrets: Vec::new(),
            labels: Labels::new(),
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

    /// Adds a shell line to the setup steps.
    #[must_use]
    pub fn setup(mut self, line: impl Into<String>) -> WorkspaceOptions {
        self.setup.push(SetupStep::Shell(line.into()));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> WorkspaceOptions {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the user in place of the image's.
    #[must_use]
    pub fn user(self, user: impl Into<String>) -> WorkspaceOptions {
        WorkspaceOptions { user: Some(user.into()), ..self }
    }

    /// Sets the working directory in place of the image's.
    #[must_use]
    pub fn working_dir(self, dir: impl Into<String>) -> WorkspaceOptions {
        WorkspaceOptions { working_dir: Some(dir.into()), ..self }
    }

    /// Attaches a disk.
    #[must_use]
    pub fn disk(mut self, disk: Attachment) -> WorkspaceOptions {
        self.disks.push(disk);
        self
    }

    /// Publishes a port.
    #[must_use]
    pub fn publish(mut self, port: Publish) -> WorkspaceOptions {
        self.publish.push(port);
        self
    }

    /// Sets what the guest may reach.
    #[must_use]
    pub fn egress(self, egress: EgressPolicy) -> WorkspaceOptions {
        WorkspaceOptions { egress, ..self }
    }

    /// Sets how fast it may use the host's disk and network.
    #[must_use]
    pub fn limits(self, limits: RateLimits) -> WorkspaceOptions {
        WorkspaceOptions { limits, ..self }
    }

    /// Sets how the guest looks names up.
    #[must_use]
    pub fn dns(self, dns: DnsSettings) -> WorkspaceOptions {
        WorkspaceOptions { dns, ..self }
    }

    /// Lets the guest reach a server by a port of `host.microagent.internal`.
    #[must_use]
    pub fn forward(mut self, forward: Forward) -> WorkspaceOptions {
        self.forwards.push(forward);
        self
    }

    /// Delivers a secret at each start.
    #[must_use]
    pub fn secret(mut self, secret: SecretReference) -> WorkspaceOptions {
        self.secrets.push(secret);
        self
    }

    /// Gives it a label.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> WorkspaceOptions {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Declares an artifact.
    #[must_use]
    pub fn artifact(mut self, name: impl Into<String>, guest_path: impl Into<String>) -> WorkspaceOptions {
        self.outputs.push(Artifact { name: name.into(), path: guest_path.into() });
        self
    }

    /// Sets the machine size to start from.
    #[must_use]
    pub fn profile(self, profile: Profile) -> WorkspaceOptions {
        WorkspaceOptions { profile, ..self }
    }

    /// Sets guest memory in MiB.
    #[must_use]
    pub fn memory_mib(self, memory_mib: u32) -> WorkspaceOptions {
        WorkspaceOptions { memory_mib: Some(memory_mib), ..self }
    }

    /// Sets the number of virtual CPUs.
    #[must_use]
    pub fn cpu_count(self, cpu_count: u32) -> WorkspaceOptions {
        WorkspaceOptions { cpu_count: Some(cpu_count), ..self }
    }

    /// Sets the root disk's size in MiB.
    #[must_use]
    pub fn size_mib(self, size_mib: u64) -> WorkspaceOptions {
        WorkspaceOptions { size_mib: Some(size_mib), ..self }
    }

    /// Sets the host name.
    #[must_use]
    pub fn hostname(self, hostname: impl Into<String>) -> WorkspaceOptions {
        WorkspaceOptions { hostname: Some(hostname.into()), ..self }
    }

    /// Sets how the guest reaches the network.
    #[must_use]
    pub fn network(self, network: NetworkMode) -> WorkspaceOptions {
        WorkspaceOptions { network, ..self }
    }

    /// Sets when the registry is asked.
    #[must_use]
    pub fn pull(self, pull: PullPolicy) -> WorkspaceOptions {
        WorkspaceOptions { pull, ..self }
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

    /// Adds a shell line to the setup steps.
    #[must_use]
    pub fn setup(self, line: impl Into<String>) -> CreateOptions {
        self.workspace(|workspace| workspace.setup(line))
    }

    /// Sets what every start runs.
    #[must_use]
    pub fn service(self, command: RunCommand) -> CreateOptions {
        CreateOptions { service: Some(command), ..self }
    }

    /// Sets the program of interactive sessions.
    #[must_use]
    pub fn shell(self, program: impl Into<String>) -> CreateOptions {
        CreateOptions { shell: Some(program.into()), ..self }
    }

    /// Sets when it is restarted.
    #[must_use]
    pub fn restart(self, restart: RestartPolicy) -> CreateOptions {
        CreateOptions { restart, ..self }
    }

    /// Changes what the workspace is made from.
    #[must_use]
    pub fn workspace(self, change: impl FnOnce(WorkspaceOptions) -> WorkspaceOptions) -> CreateOptions {
        CreateOptions { workspace: change(self.workspace), ..self }
    }
}

impl AttachOptions {
    /// All output, without standard input and without a terminal.
    pub fn new() -> AttachOptions {
        AttachOptions::default()
    }

    /// Gives the command a standard input, or none.
    #[must_use]
    pub fn stdin(self, stdin: StdinMode) -> AttachOptions {
        AttachOptions { stdin, ..self }
    }

    /// Gives the command a terminal.
    #[must_use]
    pub fn terminal(self, terminal: Terminal) -> AttachOptions {
        AttachOptions { terminal: Some(terminal), ..self }
    }

    /// Sets what is passed on of what is printed.
    #[must_use]
    pub fn output(self, output: AttachedOutput) -> AttachOptions {
        AttachOptions { output, ..self }
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
    /// Keeps the workspace after the run.
    #[must_use]
    pub fn keep(self) -> RunOptions {
        RunOptions { keep: true, ..self }
    }

    /// Names the workspace.
    #[must_use]
    pub fn name(self, name: WorkspaceName) -> RunOptions {
        RunOptions { name: Some(name), ..self }
    }

    /// Kills the machine after this time.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> RunOptions {
        RunOptions { timeout: Some(timeout), ..self }
    }

    /// Changes what the workspace is made from.
    #[must_use]
    pub fn workspace(self, change: impl FnOnce(WorkspaceOptions) -> WorkspaceOptions) -> RunOptions {
        RunOptions { workspace: change(self.workspace), ..self }
    }
}
