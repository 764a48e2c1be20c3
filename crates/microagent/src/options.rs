//! Options of a run and of a new workspace.

use std::time::Duration;

use microagent_image::PullPolicy;
use microagent_model::{
    Artifact, Attachment, Broker, DnsSettings, EgressPolicy, Forward, GuestInit, GuestSettings, Labels,
    NetworkMode, NetworkName, Publish, RateLimits, RestartPolicy, SecretReference, SetupStep, WorkspaceName,
};

use crate::{Profile, StdinMode, Terminal};

/// Options that a run and a created workspace share. Create with [`WorkspaceOptions::new`] and change with its methods;
/// [`RunOptions::workspace`] and [`CreateOptions::workspace`] change them in place.
///
/// Some options need network mode `user`; with [`NetworkMode::Isolated`] the guest has no network device, except for
/// [`forwards`](WorkspaceOptions::forwards), [`brokers`](WorkspaceOptions::brokers) and
/// [`networks`](WorkspaceOptions::networks), which then are all that it reaches.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WorkspaceOptions {
    /// Reference of the image: a name such as `busybox` or `ghcr.io/owner/app:1`, completed as Docker does, or a path with
    /// its format, such as `oci-archive:app.tar`. [`ImageReference`](crate::image::ImageReference) lists the forms.
    pub image: String,
    /// Setup steps. The first one that fails ends the setup.
    pub setup: Vec<SetupStep>,
    /// Environment variables, in addition to the image's. A later entry replaces an earlier one.
    pub env: Vec<(String, String)>,
    /// User instead of the image's: `user`, `uid`, `user:group`.
    pub user: Option<String>,
    /// Working directory instead of the image's.
    pub working_dir: Option<String>,
    /// Which program is process 1 of the guest.
    pub init: GuestInit,
    /// Further disks, in the order in which they are mounted.
    pub disks: Vec<Attachment>,
    /// Published ports. Needs network mode `user`.
    pub publish: Vec<Publish>,
    /// The egress policy. Needs network mode `user`.
    pub egress: EgressPolicy,
    /// Name servers and names. Needs network mode `user`.
    pub dns: DnsSettings,
    /// Forwarded ports of `host.microagent.internal`. In network mode `isolated` they are all that the guest reaches.
    pub forwards: Vec<Forward>,
    /// Brokers: servers that the guest reaches with a credential that it does not have, in every network mode.
    pub brokers: Vec<Broker>,
    /// Private networks to join, in every network mode.
    pub networks: Vec<NetworkName>,
    /// Rate limits of disk and network.
    pub limits: RateLimits,
    /// Secrets that each start delivers.
    pub secrets: Vec<SecretReference>,
    /// Labels by which the workspace can be found.
    pub labels: Labels,
    /// Settings of the guest's system.
    pub settings: GuestSettings,
    /// Artifacts: paths of the guest that can be fetched later.
    pub outputs: Vec<Artifact>,
    /// Profile: memory, CPUs and disk size, which the next three fields can replace.
    pub profile: Profile,
    /// Memory in MiB instead of the profile's.
    pub memory_mib: Option<u32>,
    /// Number of virtual CPUs instead of the profile's.
    pub cpu_count: Option<u32>,
    /// Size of the root disk in MiB instead of the profile's.
    pub size_mib: Option<u64>,
    /// Host name of the guest. If absent, it is made from the workspace's name.
    pub hostname: Option<String>,
    /// Network mode.
    pub network: NetworkMode,
    /// When the image is fetched from its registry.
    pub pull: PullPolicy,
}

/// Options of a one-shot run. Create with [`RunOptions::new`] and change with its methods.
///
/// ```no_run
/// use std::time::Duration;
///
/// use microagent::{Engine, NetworkMode, OutputStream, Progress, RunOptions};
///
/// # async fn example(engine: &Engine) -> Result<(), Box<dyn std::error::Error>> {
/// let options = RunOptions::new("oci-archive:tools.tar")
///     .shell("make test")
///     .timeout(Duration::from_secs(600))
///     .workspace(|workspace| workspace.env("CI", "1").memory_mib(1024).network(NetworkMode::Isolated));
/// let report = engine.run(options, &Progress::new()).await?;
/// for frame in report.output {
///     let frame = frame?;
///     match frame.stream {
///         OutputStream::Stdout => print!("{}", String::from_utf8_lossy(&frame.bytes)),
///         OutputStream::Stderr => eprint!("{}", String::from_utf8_lossy(&frame.bytes)),
///     }
/// }
/// std::process::exit(report.result.exit_code);
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunOptions {
    /// Options of its workspace. Setup runs in the same boot as the command.
    pub workspace: WorkspaceOptions,
    /// The command.
    pub command: RunCommand,
    /// Whether the workspace is kept after the run. By default it is removed, except if its machine failed or a setup step
    /// failed or the time limit was reached: then it stays in state `failed`.
    pub keep: bool,
    /// Name of the workspace. If absent, a name is generated.
    pub name: Option<WorkspaceName>,
    /// Time limit: the machine is killed after this time. It begins with the start of the machine, so boot and setup count,
    /// and fetching the image does not.
    pub timeout: Option<Duration>,
}

/// How a program is attached to the command of a run. Create with [`AttachOptions::new`] and change with its methods.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct AttachOptions {
    /// Whether the command has a standard input.
    pub stdin: StdinMode,
    /// A terminal as its standard input, output and error.
    pub terminal: Option<Terminal>,
    /// Which output is passed on.
    pub output: AttachedOutput,
}

/// The output of a run that an attached program receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachedOutput {
    /// Output of setup steps and command is passed on when it arrives.
    #[default]
    All,
    /// Output of the command is passed on when it arrives. If a setup step fails, the error has the output of the steps.
    Command,
    /// No output is passed on; the report has all of it.
    Recorded,
}

/// Options of a new workspace. Create with [`CreateOptions::new`] and change with its methods.
///
/// ```
/// use microagent::{CreateOptions, NetworkMode, RunCommand};
///
/// let options = CreateOptions::new("db".parse()?, "postgres:16")
///     .service(RunCommand::Image)
///     .setup("mkdir -p /srv/backups")
///     .workspace(|workspace| {
///         workspace.env("POSTGRES_PASSWORD", "secret").memory_mib(1024).network(NetworkMode::Isolated)
///     });
/// # Ok::<(), microagent::NameError>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CreateOptions {
    /// Name.
    pub name: WorkspaceName,
    /// Options of every workspace. Setup runs once, in a boot of its own.
    pub workspace: WorkspaceOptions,
    /// The service, which every start runs; the machine ends with it. Without a service the machine runs until it is
    /// halted.
    pub service: Option<RunCommand>,
    /// Program of interactive sessions instead of the guest's shell.
    pub shell: Option<String>,
    /// When [`Workspace::supervise`](crate::Workspace::supervise) restarts it.
    pub restart: RestartPolicy,
}

/// The command of a run, or the service of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunCommand {
    /// The image's entrypoint and command.
    Image,
    /// The image's entrypoint, if it has one, with these arguments instead of its command.
    Argv(Vec<String>),
    /// A shell line for the guest's `/bin/sh`.
    Shell(String),
    /// This program with these arguments; the image's entrypoint is not used.
    Entrypoint(Vec<String>),
}

impl WorkspaceOptions {
    /// Creates options for a `small` machine with network `user`.
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
            networks: Vec::new(),
            brokers: Vec::new(),
            limits: RateLimits::default(),
            secrets: Vec::new(),
            labels: Labels::new(),
            settings: GuestSettings::default(),
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

    /// Sets the user, which replaces the image's.
    #[must_use]
    pub fn user(self, user: impl Into<String>) -> WorkspaceOptions {
        WorkspaceOptions { user: Some(user.into()), ..self }
    }

    /// Sets the working directory, which replaces the image's.
    #[must_use]
    pub fn working_dir(self, dir: impl Into<String>) -> WorkspaceOptions {
        WorkspaceOptions { working_dir: Some(dir.into()), ..self }
    }

    /// Attaches a disk.
    ///
    /// ```
    /// use microagent::{Attachment, DiskSource, WorkspaceOptions};
    ///
    /// let options = WorkspaceOptions::new("postgres:16").disk(Attachment {
    ///     source: DiskSource::Volume("data".parse()?),
    ///     mount_point: "/var/lib/postgresql".to_owned(),
    ///     read_only: false,
    /// });
    /// # Ok::<(), microagent::Error>(())
    /// ```
    #[must_use]
    pub fn disk(mut self, disk: Attachment) -> WorkspaceOptions {
        self.disks.push(disk);
        self
    }

    /// Publishes a port.
    ///
    /// ```
    /// use microagent::{Publish, WorkspaceOptions};
    ///
    /// // Port 8080 of the host's loopback address leads to port 80 of the guest.
    /// let web: Publish = "8080:80".parse()?;
    /// // A free port of all addresses of the host, picked at each start; `Workspace::network` returns it.
    /// let dns: Publish = "0.0.0.0:0:53/udp".parse()?;
    /// let options = WorkspaceOptions::new("app").publish(web).publish(dns);
    /// # Ok::<(), microagent::Error>(())
    /// ```
    #[must_use]
    pub fn publish(mut self, port: Publish) -> WorkspaceOptions {
        self.publish.push(port);
        self
    }

    /// Sets the egress policy. [`egress`](crate::egress) has an example.
    #[must_use]
    pub fn egress(self, egress: EgressPolicy) -> WorkspaceOptions {
        WorkspaceOptions { egress, ..self }
    }

    /// Sets the rate limits of disk and network.
    #[must_use]
    pub fn limits(self, limits: RateLimits) -> WorkspaceOptions {
        WorkspaceOptions { limits, ..self }
    }

    /// Sets name servers and names.
    #[must_use]
    pub fn dns(self, dns: DnsSettings) -> WorkspaceOptions {
        WorkspaceOptions { dns, ..self }
    }

    /// Adds a broker.
    #[must_use]
    pub fn broker(mut self, broker: Broker) -> WorkspaceOptions {
        self.brokers.push(broker);
        self
    }

    /// Forwards a port of `host.microagent.internal` to a server.
    #[must_use]
    pub fn forward(mut self, forward: Forward) -> WorkspaceOptions {
        self.forwards.push(forward);
        self
    }

    /// Joins a private network.
    #[must_use]
    pub fn join(mut self, network: NetworkName) -> WorkspaceOptions {
        self.networks.push(network);
        self
    }

    /// Delivers a secret at each start.
    #[must_use]
    pub fn secret(mut self, secret: SecretReference) -> WorkspaceOptions {
        self.secrets.push(secret);
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> WorkspaceOptions {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Sets what holds for the guest's system at every start.
    #[must_use]
    pub fn settings(self, settings: GuestSettings) -> WorkspaceOptions {
        WorkspaceOptions { settings, ..self }
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

    /// Sets the network mode.
    #[must_use]
    pub fn network(self, network: NetworkMode) -> WorkspaceOptions {
        WorkspaceOptions { network, ..self }
    }

    /// Sets when the image is fetched from its registry.
    #[must_use]
    pub fn pull(self, pull: PullPolicy) -> WorkspaceOptions {
        WorkspaceOptions { pull, ..self }
    }
}

impl CreateOptions {
    /// Creates options for a workspace without a service, on a `small` machine with network `user`. `image` is a name such
    /// as `busybox`, or a path with its format, such as `oci-archive:app.tar`.
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

    /// Sets the service.
    #[must_use]
    pub fn service(self, command: RunCommand) -> CreateOptions {
        CreateOptions { service: Some(command), ..self }
    }

    /// Sets the program of interactive sessions.
    #[must_use]
    pub fn shell(self, program: impl Into<String>) -> CreateOptions {
        CreateOptions { shell: Some(program.into()), ..self }
    }

    /// Sets the restart policy.
    #[must_use]
    pub fn restart(self, restart: RestartPolicy) -> CreateOptions {
        CreateOptions { restart, ..self }
    }

    /// Changes the options that runs and workspaces share: environment, size, network, disks and so on.
    #[must_use]
    pub fn workspace(self, change: impl FnOnce(WorkspaceOptions) -> WorkspaceOptions) -> CreateOptions {
        CreateOptions { workspace: change(self.workspace), ..self }
    }
}

impl AttachOptions {
    /// Creates options for all output, without standard input and without a terminal.
    pub fn new() -> AttachOptions {
        AttachOptions::default()
    }

    /// Sets whether the command has a standard input.
    #[must_use]
    pub fn stdin(self, stdin: StdinMode) -> AttachOptions {
        AttachOptions { stdin, ..self }
    }

    /// Sets a terminal for the command.
    #[must_use]
    pub fn terminal(self, terminal: Terminal) -> AttachOptions {
        AttachOptions { terminal: Some(terminal), ..self }
    }

    /// Sets which output is passed on.
    #[must_use]
    pub fn output(self, output: AttachedOutput) -> AttachOptions {
        AttachOptions { output, ..self }
    }
}

impl RunOptions {
    /// Creates options for a disposable run of the image's command on a `small` machine with network `user`. `image` is a
    /// name such as `busybox`, or a path with its format, such as `oci-archive:app.tar`.
    pub fn new(image: impl Into<String>) -> RunOptions {
        RunOptions {
            workspace: WorkspaceOptions::new(image),
            command: RunCommand::Image,
            keep: false,
            name: None,
            timeout: None,
        }
    }

    /// Sets the arguments of the image's entrypoint, or the command if the image has no entrypoint: they replace its Cmd,
    /// as the arguments of `docker run` do. [`RunOptions::entrypoint`] replaces the entrypoint as well.
    #[must_use]
    pub fn argv<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> RunOptions {
        self.command = RunCommand::Argv(words.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the program and its arguments. Entrypoint and Cmd of the image are not used.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> RunOptions {
        self.command = RunCommand::Entrypoint(words.into_iter().map(Into::into).collect());
        self
    }

    /// Sets a shell line as the command. Entrypoint and Cmd of the image are not used.
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

    /// Sets the name of the workspace.
    #[must_use]
    pub fn name(self, name: WorkspaceName) -> RunOptions {
        RunOptions { name: Some(name), ..self }
    }

    /// Sets the time limit, from the start of the machine; 0 is not valid. The machine is killed then, the run fails with
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout), and its workspace stays in state `failed`.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> RunOptions {
        RunOptions { timeout: Some(timeout), ..self }
    }

    /// Changes the options that runs and workspaces share: environment, size, network, disks and so on.
    #[must_use]
    pub fn workspace(self, change: impl FnOnce(WorkspaceOptions) -> WorkspaceOptions) -> RunOptions {
        RunOptions { workspace: change(self.workspace), ..self }
    }
}
