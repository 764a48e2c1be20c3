//! The messages themselves. Shapes only: nothing here does anything.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// Bytes, encoded as such (and not element by element).
pub type Chunk = serde_bytes::ByteBuf;

/// Longest message of the host, in bytes: a command line with its environment.
pub const REQUEST_LIMIT: usize = 1024 * 1024;

/// Longest message of the guest, in bytes.
pub const REPLY_LIMIT: usize = 72 * 1024;

/// Most output in one message, in bytes.
pub const OUTPUT_CHUNK_LIMIT: usize = 64 * 1024;

// A full chunk and what surrounds it fit one reply.
const _: () = assert!(OUTPUT_CHUNK_LIMIT + 1024 <= REPLY_LIMIT);

/// First message of every stream, from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Makes a fresh (booted or restored) guest into this workspace's machine: entropy, clock, names,
    /// network, root disk. Exactly once, before anything else. Answer: `Result<Configured, GuestError>`.
    Configure(Configure),
    /// Runs a command. Answer: [`ExecEvent`]s up to and including `Exited` or `NotStarted`.
    Exec(Exec),
    /// Packs a file or directory as a tar stream. Answer: [`PackEvent`]s up to and including `End` or
    /// `Failed`.
    Pack(Pack),
    /// Ends all processes, flushes the disk and makes it read-only. Answer: `Result<(), GuestError>`,
    /// after which the host turns the machine off.
    ShutDown(ShutDown),
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
}

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

/// Settings of the one network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Hardware address.
    pub mac: MacAddress,
    /// Own address.
    pub address: Ipv4Addr,
    /// Length of the network prefix in bits.
    pub prefix_len: u8,
    /// Default route.
    pub gateway: Ipv4Addr,
    /// Name servers for `/etc/resolv.conf`.
    pub dns: Vec<IpAddr>,
}

/// The root disk on the SCSI controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// SCSI target of the disk (channel 0, logical unit 0).
    pub scsi_target: u8,
    /// Whether the file system is grown to the size of the disk.
    pub grow: bool,
}

/// Answer to [`Configure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// Where the time went.
    pub timings: Timings,
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
    /// Working directory, created if missing; empty means `/`.
    pub working_dir: Chunk,
    /// OCI user: `USER`, `UID`, `USER:GROUP`, …; empty means root.
    pub user: String,
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
    Started {
        /// Process id in the guest.
        pid: u32,
    },
    /// Bytes from its standard output, at most [`OUTPUT_CHUNK_LIMIT`].
    Stdout(Chunk),
    /// Bytes from its standard error, at most [`OUTPUT_CHUNK_LIMIT`].
    Stderr(Chunk),
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

/// Asks for a tar stream of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Absolute path in the guest. A symbolic link as its last part is followed, inside the guest's root.
    pub path: Chunk,
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

/// Ends the guest's work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutDown {}

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
    /// The disk could not be found, mounted, grown or flushed.
    Disk,
    /// The network could not be set up.
    Network,
    /// The request does not fit the state (second `Configure`, `Exec` before it, …).
    OutOfOrder,
    /// Anything else.
    Other,
}
