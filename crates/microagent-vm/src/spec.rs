//! What a supervisor is told, and what it tells. Travels over the socket between caller and supervisor;
//! nothing of it (environment, scripts) is ever written to disk.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_model::{EgressPolicy, Forward, Publish};
use microagent_model::{VolumeName, WorkspaceFailure};
use microagent_net::NameOptions;
use microagent_proto::{Configure, Exec};
use microagent_store::{OneStart, RecordedResult};
use serde::{Deserialize, Serialize};

use crate::lifecycle::MachineTraits;

/// Largest [`SupervisorSpec`] in bytes: setup scripts and environment.
pub const SPEC_LIMIT: usize = 16 * 1024 * 1024;

/// Version of what a supervisor, its caller and its clients say to each other: [`SupervisorSpec`], [`Report`] and the
/// messages of the control socket. It changes with each change of one of these types, which a test holds. What is between
/// supervisor and agent has a number of its own ([`microagent_proto::GENERATION`]): a client of another generation can still
/// end a machine, but not speak to its guest.
pub const SUPERVISOR_PROTOCOL: u16 = 11;

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
    /// What makes the guest this workspace's; clock and entropy are filled in by the supervisor.
    pub configure: Configure,
    /// What it does then.
    pub work: Work,
    /// How long the work may take, from the start of the machine.
    pub timeout: Option<Duration>,
    /// How long the guest may take to answer for the first time.
    pub boot_deadline: Duration,
    /// Whether templates are used and made; the reason, when they are not.
    pub warm: Result<(), String>,
    /// Walls of the jail that this host lacks, where machines are started all the same.
    pub weak_jail: Vec<String>,
    /// The machine's size for the record, where it is not the workspace's own.
    pub one_start: Option<OneStart>,
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
    /// The root disk; a machine without one is good only for being frozen.
    pub disk: Option<DiskSpec>,
    /// Further disks, which the guest finds at the SCSI targets from
    /// [`EXTRA_SCSI_TARGET`](crate::machine::EXTRA_SCSI_TARGET) on, in this order. No template contains them.
    pub extra_disks: Vec<ExtraDisk>,
    /// How fast its disks may be used, in bytes and requests per second.
    pub disk_limits: DiskLimits,
}

/// How fast all disks of a machine together may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimits {
    /// Bytes per second.
    pub bps: Option<u64>,
    /// Reads and writes per second.
    pub iops: Option<u64>,
}

/// A disk beside the root disk: a raw image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExtraDisk {
    /// The image.
    pub path: PathBuf,
    /// Whether the guest can only read it. QEMU opens it so, and may not open it otherwise.
    pub read_only: bool,
    /// How it is kept from being used by two machines at once.
    pub claim: Claim,
}

/// How a disk is kept from being used by two machines at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Claim {
    /// Not at all: it never changes, or the workspace's own lock covers it.
    None,
    /// By the lock of the volume whose disk it is.
    Volume(VolumeName),
    /// By a lock on the file itself, shared by those that only read. It must be a regular file, and no link.
    File,
}

/// A root disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The overlay.
    pub overlay: PathBuf,
    /// The base disk under it.
    pub base: PathBuf,
    /// Whether the disk outlives the machine.
    pub keep: bool,
    /// Whether no guest has used the overlay yet. Its content is the image's then, and a machine may be restored
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

/// What a network stack serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Ports of the host that lead into the guest.
    pub publish: Vec<Publish>,
    /// What the guest may reach.
    pub egress: EgressPolicy,
    /// The name servers that are asked.
    pub name_servers: Vec<SocketAddr>,
    /// Names that the stack answers itself.
    pub names: NameOptions,
    /// Servers of the host that the guest reaches by ports of its gateway.
    pub forwards: Vec<Forward>,
    /// Most bytes per second in each direction.
    pub bps: Option<u64>,
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
    /// Setup steps of a workspace that is being made.
    Prepare {
        /// The steps; the first that fails ends it.
        setup: Vec<Step>,
        /// The disk that was made for them. On any other, or once used, nothing is done.
        disk: DiskStamp,
    },
    /// The machine is there for clients of the supervisor's socket, until one of them or its service ends it.
    Serve {
        /// What runs from start to end.
        service: Option<Exec>,
        /// The signal, 1 to 64, that asks it to end.
        stop_signal: u8,
        /// Whether it continues without its caller and is the workspace's life. Otherwise it is only a look into
        /// a resting workspace, leaves no trace in the record, and ends with its caller.
        detached: bool,
    },
    /// No disk and no workload: the guest is frozen into a template of its shape.
    Freeze,
}

/// What an attached caller is sent of a run's output. What it is sent is not recorded for it, too; the console log has
/// all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayedOutput {
    /// Nothing: it is recorded.
    None,
    /// That of the command; that of setup steps is recorded.
    Command,
    /// That of setup steps and command.
    All,
}

/// Tells a disk that nobody has used since it was made from every other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStamp {
    inode: u64,
    modified: (i64, i64),
}

impl DiskStamp {
    /// The disk as it is now.
    ///
    /// # Errors
    /// Fails when it cannot be looked at.
    pub fn of(path: &Path) -> io::Result<DiskStamp> {
        let found = std::fs::metadata(path)?;
        Ok(DiskStamp { inode: found.ino(), modified: (found.mtime(), found.mtime_nsec()) })
    }
}

/// One setup step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// How messages call it.
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
    /// Whether the workspace's record follows this life.
    pub(crate) fn is_recorded(&self) -> bool {
        match self {
            Work::Run { .. } | Work::Prepare { .. } => true,
            Work::Serve { detached, .. } => *detached,
            Work::Freeze => false,
        }
    }

    /// Whether something runs that can be asked to end.
    pub(crate) fn has_service(&self) -> bool {
        matches!(self, Work::Serve { service: Some(_), .. })
    }

    /// Whether the machine outlives its caller once it serves.
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

    /// Whether the machine is there for clients.
    pub(crate) fn is_serving(&self) -> bool {
        matches!(self, Work::Serve { .. })
    }
}

/// What a supervisor tells while it works; `Ended` is the last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Report {
    /// Something that the user should know and that is not an error.
    Notice(String),
    /// These ports of the host are listened at, and lead to the guest as soon as something there listens.
    Published(Vec<Publish>),
    /// The guest answered and is configured.
    Booted,
    /// A setup step begins (number from 0).
    Setup(usize),
    /// The command begins.
    Command,
    /// The service runs, the socket listens. A detached supervisor reports nothing after this, and needs its
    /// caller no more.
    Serving,
    /// The machine is gone.
    Ended(Box<Ended>),
}

/// How it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    /// What came of the work.
    pub outcome: Outcome,
    /// How the machine was started.
    pub start: StartMode,
    /// Where the time went.
    pub timeline: Timeline,
    /// Last lines of the console, when something went wrong.
    pub console_tail: String,
}

/// What came of the work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Outcome {
    /// The command ended, whatever it returned.
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
    /// A client had it shut down, to be started again.
    Halted,
    /// A client had it shut down or killed.
    Stopped,
    /// Its service ended, whatever it returned.
    ServiceEnded(RecordedResult),
    /// The guest turned itself off.
    PoweredOff,
    /// The guest restarted itself, where nothing boots it again.
    Rebooted,
    /// It was quarantined, and its machine is gone although nobody released it.
    Quarantined(WorkspaceFailure),
    /// The template is there.
    Frozen,
    /// Another process has the workspace; nothing was done.
    Busy,
    /// Another machine has one of its disks; nothing was done.
    DiskBusy {
        /// The disk: `volume `NAME`` or its path.
        disk: String,
        /// The workspace that has it, if that is known.
        holder: Option<String>,
    },
    /// The machine failed.
    Failed(WorkspaceFailure),
}

/// How a machine was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartMode {
    /// The kernel was booted.
    Cold {
        /// Why not from a template.
        reason: String,
    },
    /// A frozen guest was restored.
    Warm {
        /// Whether it had the image mounted already.
        mounted: bool,
    },
}

/// Moments in the life of a machine, in microseconds from the start of its supervisor; 0 for one that was
/// not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// QEMU and the network stack are started.
    pub spawned_us: u64,
    /// The agent answered.
    pub ready_us: u64,
    /// The guest was frozen into a template on the way; how long it stood still for that.
    pub freeze_us: u64,
    /// Clock, network and disk are set up.
    pub configured_us: u64,
    /// Setup is done, the command begins.
    pub command_us: u64,
    /// The command ended.
    pub exited_us: u64,
    /// QEMU is gone.
    pub gone_us: u64,
    /// In the guest: kernel's first instruction to the agent's readiness.
    pub guest_boot_us: u64,
    /// In the guest: disk found, mounted, grown.
    pub guest_disk_us: u64,
    /// In the guest: network set up.
    pub guest_network_us: u64,
}
