//! Messages between a caller and its supervisor, which are sent over a socket. They contain environment and scripts,
//! and are never written to disk.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::{EgressPolicy, Forward, HealthTiming, Layer, Publish, VolumeName, WorkspaceFailure};
use microagent_net::{Membership, NameOptions};
use microagent_proto::{Configure, Exec, SecretValue};
use microagent_store::{OneStart, RecordedResult};
use serde::{Deserialize, Serialize};

use crate::lifecycle::MachineTraits;

/// Largest [`SupervisorSpec`] in bytes: setup scripts and environment.
pub const SPEC_LIMIT: usize = 16 * 1024 * 1024;

/// Version of the protocol between a supervisor, its caller and its clients: [`SupervisorSpec`], [`Report`] and the
/// messages of the control socket. It changes with each change of one of these types; a test checks that. The
/// protocol between supervisor and agent has a number of its own ([`microagent_proto::GENERATION`]): a client of
/// another generation can end a machine, but cannot communicate with its guest.
pub const SUPERVISOR_PROTOCOL: u16 = 18;

/// Largest [`Report`] in bytes.
pub(crate) const REPORT_LIMIT: usize = 128 * 1024;

/// Everything a supervisor needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SupervisorSpec {
    /// [`SUPERVISOR_PROTOCOL`] of the caller: a supervisor of another build refuses.
    pub protocol: u16,
    /// [`microagent_proto::GENERATION`] of the caller: the spec carries messages for the agent.
    pub generation: u16,
    /// State directory.
    pub state_dir: PathBuf,
    /// Directory for logs, and of the workspace whose disk is used: its record exists already.
    pub dir: PathBuf,
    /// How the process is called in lists of processes.
    pub name: String,
    /// Name of the backend for the record.
    pub backend: String,
    /// The machine.
    pub machine: MachineSpec,
    /// How the machine is connected, if it has a network device.
    pub network: Option<NetworkSpec>,
    /// Configuration of the guest; the supervisor sets clock and entropy.
    pub configure: Configure,
    /// What the guest runs.
    pub work: Work,
    /// Time limit of the work, from the start of the machine.
    pub timeout: Option<Duration>,
    /// Time to live: how long the machine may run, from the moment that it is running. Clients can renew it.
    pub ttl: Option<Duration>,
    /// Most machines of runs and workspaces that the state directory may have at a time.
    pub max_running: u32,
    /// Deadline of the guest's first answer.
    pub boot_deadline: Duration,
    /// Whether templates are used and made; the reason if not.
    pub warm: Result<(), String>,
    /// Walls of the jail that this host lacks, if machines are started without them.
    pub weak_jail: Vec<String>,
    /// The machine's size for the record, if it differs from the workspace's.
    pub one_start: Option<OneStart>,
    /// The memory of a captured machine, with which this one begins in place of a boot.
    pub restore: Option<CapturedMemory>,
}

/// The memory of a machine that was captured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CapturedMemory {
    /// The file: QEMU's migration stream.
    pub path: PathBuf,
    /// What begins a new session with its guest.
    pub token: [u8; 16],
    /// The disk that was made for it. If another disk is found, or it was used, nothing is done.
    pub disk: DiskStamp,
}

/// The virtual hardware and its files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineSpec {
    /// QEMU.
    pub qemu: PathBuf,
    /// Hardware virtualisation or translation.
    pub kvm: bool,
    /// Uncompressed guest kernel.
    pub kernel: PathBuf,
    /// Initramfs with the agent.
    pub initramfs: PathBuf,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// The root disk; a machine without one can only be frozen.
    pub disk: Option<DiskSpec>,
    /// Further disks, which the guest finds at the SCSI targets from
    /// [`EXTRA_SCSI_TARGET`](crate::machine::EXTRA_SCSI_TARGET) on, in this order. No template contains them.
    pub extra_disks: Vec<ExtraDisk>,
    /// How fast its disks may be used, in bytes and requests per second.
    pub disk_limits: DiskLimits,
    /// Whether the guest kernel prints all of its messages to the console. It always prints warnings and errors.
    pub verbose_boot: bool,
}

/// Rate limits of all disks of a machine together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimits {
    /// Bytes per second.
    pub bps: Option<u64>,
    /// Reads and writes per second.
    pub iops: Option<u64>,
}

/// A further disk: a raw image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExtraDisk {
    /// The image.
    pub path: PathBuf,
    /// Whether it is read-only. QEMU opens it read-only, and its jail enforces that.
    pub read_only: bool,
    /// How use by two machines at once is prevented.
    pub claim: Claim,
}

/// How use of a disk by two machines at once is prevented.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Claim {
    /// Not at all: the disk never changes, or the workspace's lock covers it.
    None,
    /// By the lock of the volume whose disk it is.
    Volume(VolumeName),
    /// By a lock on the file, which readers share. It must be a regular file and not a link.
    File,
}

/// A layer of a root disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerFile {
    /// The layer.
    pub layer: Layer,
    /// Its file.
    pub path: PathBuf,
}

/// A root disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The overlay.
    pub overlay: PathBuf,
    /// Layers under it, the lowest one first.
    pub layers: Vec<LayerFile>,
    /// The base disk under all of them.
    pub base: PathBuf,
    /// Size of the disk in bytes. An overlay whose header has a larger one is refused.
    pub size_bytes: u64,
    /// Whether the disk outlives the machine.
    pub keep: bool,
    /// Whether no guest has used the overlay yet. Then its content is the image's, and the machine may be restored
    /// from a template that has the image mounted.
    pub fresh: bool,
}

impl MachineSpec {
    /// Whether the machine has a disk that outlives it, and that its guest can write to.
    pub fn keeps_disk(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.keep)
            || self.extra_disks.iter().any(|disk| !disk.read_only)
    }
}

/// The settings of a network stack.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Published ports.
    pub publish: Vec<Publish>,
    /// The egress policy.
    pub egress: EgressPolicy,
    /// The name servers.
    pub name_servers: Vec<SocketAddr>,
    /// Names that the stack answers itself.
    pub names: NameOptions,
    /// Forwarded ports of the gateway.
    pub forwards: Vec<Forward>,
    /// Brokers, if there are any.
    pub brokers: Option<BrokersSpec>,
    /// Private networks that the guest joins.
    pub joins: Vec<Join>,
    /// Most bytes per second in each direction.
    pub bps: Option<u64>,
    /// The files that name servers and names come from.
    pub host_files: HostFiles,
}

/// A private network that a guest joins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Join {
    /// The network, with the guest's address in it.
    pub membership: Membership,
    /// Its directory.
    pub dir: PathBuf,
    /// When it was created: another one of its name is another network.
    pub created_at: Timestamp,
}

/// The brokers of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BrokersSpec {
    /// How many there are.
    pub count: u8,
    /// The [`Instructions`](microagent_broker::Instructions) of their process, encoded. They have the values of
    /// secrets.
    pub instructions: SecretValue,
}

/// Files of the host that are read again while a network stack runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFiles {
    /// The one with the name servers, if they come from there.
    pub resolv_conf: Option<PathBuf>,
    /// The one with names, if they are served.
    pub hosts: Option<PathBuf>,
}

/// What the guest does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Work {
    /// Setup steps, then one command; its output and result are recorded.
    Run {
        /// Steps before the command; the first that fails ends the run.
        setup: Vec<Step>,
        /// The command.
        command: Exec,
        /// Whether the caller is attached to the command, and what it is shown then. The stream is the supervisor's
        /// standard output: [`microagent_proto::ExecEvent`]s to the caller, [`microagent_proto::ExecInput`]s from it.
        relay: Option<RelayedOutput>,
    },
    /// Setup steps of a workspace that is being created.
    Prepare {
        /// The steps; the first that fails ends it.
        setup: Vec<Step>,
        /// The disk that was made for them. If another disk is found, or it was used, nothing is done.
        disk: DiskStamp,
    },
    /// The machine serves clients of the control socket, until one of them or the service ends it.
    Serve {
        /// The service.
        service: Option<Exec>,
        /// The stop signal, 1 to 64.
        stop_signal: u8,
        /// The health check.
        health: Option<HealthSpec>,
        /// Whether the machine outlives its caller, as after `start`. Otherwise the disk of a resting workspace is
        /// booted offline: the record is not changed, and the machine ends with its caller.
        detached: bool,
    },
    /// No disk and no command: the guest is frozen to a template of its shape.
    Freeze,
}

/// The output that an attached caller receives. It is not recorded for the caller in addition; the console log has all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayedOutput {
    /// None; all output is recorded.
    None,
    /// Output of the command; that of setup steps is recorded.
    Command,
    /// Output of setup steps and command.
    All,
}

/// The health check of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HealthSpec {
    /// The command.
    pub exec: Exec,
    /// When it is run, and what its results mean.
    pub timing: HealthTiming,
}

/// Identifies a disk that was not used since its creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStamp {
    inode: u64,
    modified: (i64, i64),
}

impl DiskStamp {
    /// Returns the mark of the disk.
    ///
    /// # Errors
    /// Fails if it cannot be inspected.
    pub fn of(path: &Path) -> io::Result<DiskStamp> {
        let found = std::fs::metadata(path)?;
        Ok(DiskStamp { inode: found.ino(), modified: (found.mtime(), found.mtime_nsec()) })
    }
}

/// One setup step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// Its label in messages.
    pub label: String,
    /// What runs.
    pub exec: Exec,
}

impl SupervisorSpec {
    /// What is true of its machine from start to end.
    pub(crate) fn traits(&self) -> MachineTraits {
        MachineTraits {
            keep: self.machine.keeps_disk(),
            serves: self.work.is_serving(),
            service: self.work.has_service(),
            detached: self.work.is_detached(),
        }
    }
}

impl Work {
    /// Whether the supervisor writes the workspace's record.
    pub(crate) fn is_recorded(&self) -> bool {
        match self {
            Work::Run { .. } | Work::Prepare { .. } => true,
            Work::Serve { detached, .. } => *detached,
            Work::Freeze => false,
        }
    }

    /// Whether there is a service to which a stop signal can be sent.
    pub(crate) fn has_service(&self) -> bool {
        matches!(self, Work::Serve { service: Some(_), .. })
    }

    /// The health check, if there is one.
    pub(crate) fn health(&self) -> Option<&HealthSpec> {
        match self {
            Work::Serve { health, .. } => health.as_ref(),
            _ => None,
        }
    }

    /// Whether the machine outlives its caller after the start is complete.
    pub(crate) fn is_detached(&self) -> bool {
        matches!(self, Work::Serve { detached: true, .. })
    }

    /// Whether the caller of a run is attached to its command.
    pub(crate) fn is_relayed(&self) -> bool {
        matches!(self, Work::Run { relay: Some(_), .. })
    }

    /// Whether there is a control socket. A run has one, too, while its command runs.
    pub(crate) fn has_clients(&self) -> bool {
        matches!(self, Work::Serve { .. } | Work::Run { .. })
    }

    /// Whether the machine serves clients.
    pub(crate) fn is_serving(&self) -> bool {
        matches!(self, Work::Serve { .. })
    }
}

/// A report of a supervisor to its caller; `Instructed` is the first, `Ended` the last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Report {
    /// The program is a supervisor of this build and has read its instructions.
    Instructed,
    /// Something that the user should know and that is not an error.
    Notice(String),
    /// The supervisor listens on these ports of the host.
    Published(Vec<Publish>),
    /// The guest answered and is configured.
    Booted,
    /// A setup step begins (number from 0).
    Setup(usize),
    /// The command begins.
    Command,
    /// The service runs, and the control socket accepts clients. A detached supervisor reports nothing after this,
    /// and no longer needs its caller.
    Serving,
    /// The machine has ended.
    Ended(Box<Ended>),
}

/// How it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    /// Outcome of the work.
    pub outcome: Outcome,
    /// How the machine was started.
    pub start: StartMode,
    /// Times of the phases.
    pub timeline: Timeline,
    /// Last lines of the console, after a failure.
    pub console_tail: String,
}

/// The outcome of the work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Outcome {
    /// The command ended, with any exit code.
    Completed(RecordedResult),
    /// A setup step failed; the command was not run.
    SetupFailed {
        /// Its number, from 0.
        step: usize,
        /// Its exit code, as in [`RecordedResult`].
        exit_code: i32,
        /// Why it could not be started, if it could not.
        start_error: Option<String>,
    },
    /// All setup steps are done.
    Prepared,
    /// A client requested a halt.
    Halted,
    /// A client requested a stop or a kill.
    Stopped,
    /// The service ended, with any exit code.
    ServiceEnded(RecordedResult),
    /// The guest turned itself off.
    PoweredOff,
    /// The guest of a run restarted itself.
    Rebooted,
    /// The machine was quarantined, and ended without being released.
    Quarantined(WorkspaceFailure),
    /// The template is made.
    Frozen,
    /// Another process holds the workspace; nothing was done.
    Busy,
    /// Another machine uses one of the disks; nothing was done.
    DiskBusy {
        /// The disk: `volume `NAME`` or its path.
        disk: String,
        /// The workspace that uses it, if known.
        holder: Option<String>,
    },
    /// So many machines run already, and no more may; nothing was done.
    TooManyRunning(u32),
    /// The machine failed.
    Failed(WorkspaceFailure),
}

/// How a machine was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartMode {
    /// The kernel was booted.
    Cold {
        /// Why no template was restored.
        reason: String,
    },
    /// A frozen guest was restored.
    Warm {
        /// Whether the template had the image mounted.
        mounted: bool,
    },
}

/// Times of a machine's phases, in microseconds from the start of its supervisor; 0 for a phase that was not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// QEMU and the network stack are started.
    pub spawned_us: u64,
    /// The agent answered.
    pub ready_us: u64,
    /// How long the guest was paused for the freeze of a template.
    pub freeze_us: u64,
    /// Clock, network and disk are set up.
    pub configured_us: u64,
    /// Setup is done, the command begins.
    pub command_us: u64,
    /// The command ended.
    pub exited_us: u64,
    /// QEMU has ended.
    pub gone_us: u64,
    /// In the guest: kernel's first instruction to the agent's readiness.
    pub guest_boot_us: u64,
    /// In the guest: disk found, mounted, grown.
    pub guest_disk_us: u64,
    /// In the guest: network set up.
    pub guest_network_us: u64,
}
