//! The messages themselves. Shapes only: nothing here does anything.

mod inspection;
mod network;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

pub use self::inspection::{
    FsUsage, PROCESS_COMMAND_LIMIT, PROCESS_USER_LIMIT, PROCESSES_IN_REPLY, PROCESSES_MAX, PathInfo,
    PathKind, ProcessInfo, Stat,
};
pub use self::network::{Network, NetworkV6, PrivateAddress};
use crate::listing::{List, PackListed, Remove};
use crate::session::STREAM_WINDOW;

/// Bytes, encoded as such (and not element by element).
pub type Chunk = serde_bytes::ByteBuf;

/// Longest message of the host, in bytes: a command line with its environment, of which a kernel takes up to 2 MiB
/// with the guest's limits, and 6 MiB with any.
pub const REQUEST_LIMIT: usize = 8 * 1024 * 1024;

/// Longest message of the guest, in bytes.
pub const REPLY_LIMIT: usize = 72 * 1024;

/// Most output in one message, in bytes.
pub const OUTPUT_CHUNK_LIMIT: usize = 64 * 1024;

/// Longest message of the host after its request ([`ExecInput`], [`UnpackInput`]), in bytes.
pub const INPUT_LIMIT: usize = 72 * 1024;

/// Most input in one message, in bytes.
pub const INPUT_CHUNK_LIMIT: usize = 64 * 1024;

/// Bytes of [`ExecInput::Stdin`] that may be on their way at once: sent by the host and not yet reported
/// as [`ExecEvent::StdinTaken`]. The guest holds so many for a command that does not read, so that signals
/// and sizes behind them always arrive.
pub const STDIN_WINDOW: usize = 192 * 1024;

// With its headers it fits what yamux lets a stream have in flight, so that a host that keeps to it never waits to
// send, not even to a command that has ended meanwhile.
const _: () = assert!(STDIN_WINDOW + 32 * 1024 <= STREAM_WINDOW);

// A full chunk and what surrounds it fit one message.
const _: () = assert!(OUTPUT_CHUNK_LIMIT + 1024 <= REPLY_LIMIT);
const _: () = assert!(INPUT_CHUNK_LIMIT + 1024 <= INPUT_LIMIT);
// A window of less would make every chunk wait for the one before.
const _: () = assert!(STDIN_WINDOW >= 2 * INPUT_CHUNK_LIMIT);

/// First message of every stream, from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Makes a fresh (booted or restored) guest into this workspace's machine: entropy, clock, names,
    /// network, root disk. Exactly once, before anything else. Answer: `Result<Configured, GuestError>`.
    Configure(Box<Configure>),
    /// Runs a command. Answer: [`ExecEvent`]s up to and including `Exited` or `NotStarted`. Meanwhile the
    /// host may send [`ExecInput`]s. When it closes its direction of the stream (there is no half-close) or
    /// resets the stream before the last event, the command is killed with everything that it started.
    Exec(Exec),
    /// Packs a file or directory as a tar stream. Answer: [`PackEvent`]s up to and including `End` or `Failed`.
    Pack(Pack),
    /// Unpacks a tar stream: [`UnpackInput`]s follow up to and including `End`. Answer:
    /// `Result<Unpacked, GuestError>`, after `End` or as soon as something fails. A stream that the host
    /// closes without `End` is given up; the file that was being written then is not left half-written.
    Unpack(Unpack),
    /// Asks what stands at a path. Answer: `Result<PathInfo, GuestError>`, `NotFound` when nothing does.
    Stat(Stat),
    /// Asks for what happens to the machine as a whole. Answer: [`GuestEvent`]s until the host closes the stream, up
    /// to and including `PoweredOff` or `Restarted`.
    Watch,
    /// Asks how full the root file system is. Answer: `Result<FsUsage, GuestError>`.
    FsUsage,
    /// Ends all processes, flushes the disk and makes it read-only. Answer: `Result<(), GuestError>`,
    /// after which the host turns the machine off.
    ShutDown(ShutDown),
    /// Tells what the root disk has that its image's base disk has not. Answer: [`PackEvent`]s up to and including
    /// `End` or `Failed`. For a layer, nothing should run meanwhile.
    Diff(Diff),
    /// Packs the root disk as a tar stream, without what is mounted over its directories. Answer: [`PackEvent`]s up
    /// to and including `End` or `Failed`.
    PackRoot,
    /// Asks for the processes of the guest's programs. Answer: `Result<Vec<ProcessInfo>, GuestError>`s of at most
    /// [`PROCESSES_IN_REPLY`] each, in the order of their numbers, up to and including an empty one.
    Processes,
    /// Sets the wall clock, which stops while the machine is paused. Answer: `Result<(), GuestError>`.
    SetClock(SetClock),
    /// Lists files below a directory. Answer: [`crate::ListEvent`]s up to and including `End` or `Failed`.
    List(List),
    /// Packs some of the files below a directory as a tar stream. Answer: as to [`Request::Pack`].
    PackListed(PackListed),
    /// Removes some of the files below a directory. Answer: `Result<Removed, GuestError>`.
    Remove(Remove),
    /// Stops the guest's programs and flushes its disks, for a capture. Answer: `Result<(), GuestError>`.
    Hold(Hold),
    /// Lets the programs continue that [`Request::Hold`] has stopped. Answer: `Result<(), GuestError>`.
    Release,
    /// Makes the copy of a captured machine a machine of its own, and lets its programs continue: entropy, clock, names,
    /// hardware address, connections, secrets. Once, first thing after [`PreambleKind::Renew`](crate::PreambleKind::Renew).
    /// Answer: `Result<Configured, GuestError>`.
    Renew(Box<Configure>),
    /// The stream of the main program, which the session before had. Answer: as to [`Request::Exec`].
    Adopt,
}

/// Stops the guest's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The nonce of a [`PreambleKind::Renew`](crate::PreambleKind::Renew) that begins a new session until
    /// [`Request::Release`]. It is random, so that nothing that programs are sent begins one.
    pub token: [u8; 16],
}

/// Everything that makes one guest differ from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// Wall clock in nanoseconds since 1970, taken right before sending.
    pub clock_unix_ns: u64,
    /// Fresh random bytes of the host; credited and mixed in before anything of the user's runs.
    pub entropy: Entropy,
    /// Content of `/etc/machine-id`: 32 lower-case hex digits.
    pub machine_id: String,
    /// Host name.
    pub hostname: String,
    /// The network device's settings; `None` leaves the guest with loopback only.
    pub network: Option<Network>,
    /// The root disk.
    pub root: Root,
    /// Disks beside it, mounted in this order once the root is.
    pub mounts: Vec<Mount>,
    /// Settings of the system that the user gave.
    pub settings: Settings,
    /// Files that appear in `/run/secrets`, in memory.
    pub secrets: Vec<Secret>,
    /// OCI user whose they are; empty means root.
    pub secrets_owner: String,
}

/// Settings of the guest's system. The default changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Kernel settings and their values, by the name that `sysctl` has for them.
    pub sysctls: Vec<(String, String)>,
    /// File systems in memory, mounted in this order after the disks.
    pub tmpfs: Vec<Tmpfs>,
    /// Size of `/dev/shm` in bytes.
    pub shm_bytes: Option<u64>,
    /// Resource limits of every command.
    pub limits: Vec<Limit>,
    /// Whether no program can write to the root disk.
    pub read_only: bool,
}

/// A file system in the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path in the guest; made if it is missing.
    pub path: Chunk,
    /// Size in bytes, in place of half the guest's memory.
    pub size_bytes: Option<u64>,
    /// Permissions of its root directory.
    pub mode: u32,
    /// Owner of its root directory.
    pub uid: u32,
    /// Group of its root directory.
    pub gid: u32,
    /// Whether programs on it can be executed.
    pub exec: bool,
}

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The number of what is limited, as `getrlimit(2)` has it: 0 to 15.
    pub resource: u8,
    /// The limit that holds; `u64::MAX` for none.
    pub soft: u64,
    /// What a program may raise it to.
    pub hard: u64,
}

/// A further disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// SCSI target of the disk (channel 0, logical unit 0).
    pub scsi_target: u8,
    /// Absolute path in the guest; made if it is missing. An unused volume takes over owner and mode of what it covers
    /// ([`UNUSED_SINCE`]).
    pub path: Chunk,
    /// Whether it is mounted for reading only, as the disk is then.
    pub read_only: bool,
    /// Whether the file system is grown to the size of the disk.
    pub grow: bool,
}

/// The times of the root directory of a volume that nobody has used: seconds since 1970, and nanoseconds. Whatever is
/// done to it, if only a change of its owner, gives it others.
pub const UNUSED_SINCE: (i64, u32) = (1_704_067_200, 600_613_000);

/// A file in `/run/secrets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its name: letters, digits and `_`.
    pub name: String,
    /// Its content.
    pub value: SecretValue,
}

/// Content that no log or panic shows, and that is overwritten in memory when it is dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretValue(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl Drop for SecretValue {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretValue({} bytes)", self.0.len())
    }
}

/// Most bytes that the secrets of one guest have together. They travel in one message.
pub const SECRETS_LIMIT: usize = 512 * 1024;

/// Most bytes of one secret.
pub const SECRET_LIMIT: usize = 64 * 1024;

/// Most secrets of one guest.
pub const SECRETS_MAX: usize = 256;

// With their names, of 128 bytes at most, they leave half of the message to the rest of it.
const _: () = assert!(2 * SECRETS_LIMIT <= REQUEST_LIMIT && SECRETS_MAX * 256 <= REQUEST_LIMIT / 4);
const _: () = assert!(SECRET_LIMIT <= SECRETS_LIMIT);

/// Seed for the guest's random pool.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy(pub [u8; 32]);

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy(…)")
    }
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

/// The root disk on the SCSI controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// SCSI target of the disk (channel 0, logical unit 0).
    pub scsi_target: u8,
    /// Whether the file system is grown to the size of the disk.
    pub grow: bool,
}

/// Answer to [`Configure`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// Where the time went.
    pub timings: Timings,
    /// Lines for the user about what is no reason to end the machine: hooks of a copy that failed.
    pub notices: Vec<String>,
}

/// Durations in the guest, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// From the guest's first instruction on (kernel's monotonic clock) to the agent's readiness.
    pub boot_us: u64,
    /// Disk found, mounted, grown.
    pub disk_us: u64,
    /// Network set up.
    pub network_us: u64,
    /// The whole of `Configure`.
    pub total_us: u64,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// What to run.
    pub command: Command,
    /// Whole environment, in order; later entries win. `HOME` is added from the user's entry when absent.
    pub env: Vec<(Chunk, Chunk)>,
    /// Working directory; empty means `/`.
    pub working_dir: Chunk,
    /// Whether a missing working directory is made, as the one that an image names is.
    pub make_working_dir: bool,
    /// OCI user: `USER`, `UID`, `USER:GROUP`, …; empty means root.
    pub user: String,
    /// Whether the host sends standard input; without it (and without a terminal) that is empty.
    pub stdin: bool,
    /// A terminal as standard input, output and error; what is written to it all comes as `Stdout`.
    pub terminal: Option<Terminal>,
    /// What the command is to the machine.
    pub role: ExecRole,
}

/// What a command is to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecRole {
    /// One command among others.
    Command,
    /// The program that the machine runs for: process 1 of the guest. When it ends, the kernel ends every other process.
    /// [`ShutDown`] asks it to end before everything else. At most one for each machine.
    Main,
    /// The same as the child of a process 1 that forwards nothing and reaps orphans (Docker's `--init`).
    MainUnderInit,
}

impl ExecRole {
    /// Whether the machine runs for this command.
    pub fn is_main(self) -> bool {
        self != ExecRole::Command
    }
}

/// A terminal as it is at the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Characters on a line.
    pub cols: u16,
    /// Value of `TERM`, unless the environment has one; empty sets none.
    pub term: String,
}

/// What the host tells a running command, after its [`Exec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecInput {
    /// Bytes for standard input or the terminal, at most [`INPUT_CHUNK_LIMIT`], within [`STDIN_WINDOW`].
    Stdin(Chunk),
    /// Standard input ends after what was sent; on a terminal, its end-of-file character is typed.
    End,
    /// The terminal has another size now.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters on a line.
        cols: u16,
    },
    /// A signal, 1 to 64, for the command's process group; on a terminal, for its foreground group.
    Signal(u8),
    /// Kills the command with everything that it started; `Exited` follows when all of it is gone.
    Kill,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Program and arguments; the program is looked for in `PATH` of the given environment.
    Argv(Vec<Chunk>),
    /// A command line for `/bin/sh -c`.
    Shell(Chunk),
    /// A script: run as a file by its `#!` line, or by `/bin/sh` if it has none.
    Script(Chunk),
}

/// Progress of an [`Exec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecEvent {
    /// The process exists.
    Started,
    /// Bytes from its standard output, at most [`OUTPUT_CHUNK_LIMIT`].
    Stdout(Chunk),
    /// Bytes from its standard error, at most [`OUTPUT_CHUNK_LIMIT`].
    Stderr(Chunk),
    /// So many more bytes of [`ExecInput::Stdin`] have been passed on: the host may send as many again. A
    /// command that has closed its standard input takes no more.
    StdinTaken(u32),
    /// The kernel killed a process of the guest while the command ran, because memory ran out.
    OutOfMemory {
        /// Name of the killed program, as the kernel cuts it: at most 15 bytes.
        program: String,
    },
    /// The command failed, and a disk is full.
    DiskFull {
        /// Where it is mounted.
        mount: String,
    },
    /// It ended; nothing follows.
    Exited(Exit),
    /// It never started; nothing follows.
    NotStarted(StartError),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// With this code, 0 to 255.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// With the machine, which a program turned off or halted ([`GuestEvent::PoweredOff`]). Only of a main program that is
    /// process 1.
    PoweredOff,
    /// With the machine, for which a program asked to be restarted. Only of a main program that is process 1.
    Restarted,
}

/// Why a command was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartError {
    /// What kind of reason.
    pub kind: StartErrorKind,
    /// One line for a person.
    pub message: String,
}

/// What kind of reason kept a command from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartErrorKind {
    /// No such program (shells say 127).
    NotFound,
    /// There, but not executable (shells say 126).
    NotExecutable,
    /// The image has no such user or group.
    NoSuchUser,
    /// The working directory is not usable.
    WorkingDir,
    /// Anything else (out of memory, out of processes, …).
    Other,
}

/// Something that happened to the machine as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestEvent {
    /// The kernel killed a process, because memory ran out.
    OutOfMemory {
        /// Name of its program, as the kernel cuts it: at most 15 bytes.
        program: String,
    },
    /// A program turned the machine off or halted it: every process is gone, and [`ShutDown`] flushes the disk.
    /// Nothing follows.
    PoweredOff,
    /// A program asked for a restart; otherwise as `PoweredOff`.
    Restarted,
}

/// Asks for a tar stream of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Absolute path in the guest. The last part names the first entry of the stream; a path that ends in
    /// `/.` gives entries that begin with `./`.
    pub path: Chunk,
    /// Whether a symbolic link as the last part of the path is followed (inside the guest's root) or packed
    /// itself.
    pub follow: bool,
}

/// Progress of a [`Pack`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PackEvent {
    /// The next bytes of the tar stream, at most [`OUTPUT_CHUNK_LIMIT`].
    Data(Chunk),
    /// The stream is complete; nothing follows.
    End,
    /// It cannot be completed; nothing follows.
    Failed(GuestError),
}

/// Sets the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetClock {
    /// Nanoseconds since 1970, taken right before sending.
    pub unix_ns: u64,
}

/// Asks for the difference between the root disk and the disk that it began as a copy of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// SCSI target of the root disk.
    pub root_scsi_target: u8,
    /// SCSI target of the base disk (channel 0, logical unit 0); it is only read.
    pub base_scsi_target: u8,
    /// What is told of the difference.
    pub form: DiffForm,
}

/// What is told of the difference between two disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiffForm {
    /// An OCI layer: a tar stream with the changed files.
    Layer,
    /// The paths, in the order of a walk: for each `A` (added), `C` (changed) or `D` (deleted), the absolute path,
    /// and a zero byte.
    Paths,
}

/// Asks for a tar stream to be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpack {
    /// Absolute path of an existing directory; links on the way to it are followed, inside the guest's
    /// root. Nothing is written outside it, whatever the stream's names and the links below it say.
    pub dir: Chunk,
    /// Whether a link on the way to the directory is an error, and a missing directory is made.
    pub exact: bool,
}

/// The stream that an [`Unpack`] is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnpackInput {
    /// The next bytes of the tar stream, at most [`INPUT_CHUNK_LIMIT`].
    Data(Chunk),
    /// The stream is complete.
    End,
}

/// What came of an [`Unpack`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Entries of the stream.
    pub entries: u64,
    /// Extended attributes that the file system there does not take.
    pub attributes_dropped: u64,
}

/// Ends the guest's work: first the service is asked and waited for, then everything that still runs is
/// asked with `SIGTERM` and killed a short while later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutDown {
    /// The signal, 1 to 64, that asks the main process of the service to end (the image's `StopSignal`).
    pub signal: u8,
    /// How long it may take to do so, in milliseconds. Everything after that takes at most
    /// [`SHUT_DOWN_REST`], apart from the disk's own time.
    pub grace_ms: u32,
}

/// How long a [`ShutDown`] may take beyond its grace to end everything but the service.
pub const SHUT_DOWN_REST: Duration = Duration::from_secs(3);

/// Why the guest could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestError {
    /// What kind of reason.
    pub kind: GuestErrorKind,
    /// One line for a person, with the path or device concerned.
    pub message: String,
}

/// What kind of reason kept the guest from doing what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestErrorKind {
    /// The path does not exist.
    NotFound,
    /// A part of the path is not a directory, or a file stands where a directory should go or the other
    /// way round.
    Mismatch,
    /// What the host sent is not what it should be (a damaged tar stream, a name that leads out, …).
    Invalid,
    /// A disk could not be found or flushed: the machine is to blame.
    Disk,
    /// A disk could not be mounted or grown: what is on it is to blame. The machine works.
    Mount,
    /// The network could not be set up.
    Network,
    /// A setting that the user gave does not fit the guest: the setting is to blame. The machine works.
    Setting,
    /// The request does not fit the state (second `Configure`, `Exec` before it, …).
    OutOfOrder,
    /// Anything else.
    Other,
}
