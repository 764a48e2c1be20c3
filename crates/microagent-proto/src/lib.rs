//! What host and guest say to each other, and the limits within which they say it.
//!
//! One virtio-serial port named [`PORT_NAME`] carries everything. On it:
//!
//! 1. **Preamble.** The host writes a [`Preamble`], the guest answers with one that carries the same
//!    nonce. A `Ping` asks only "are you there?" (so a guest can be frozen right after its answer); a
//!    `Session` opens a session. The port has no notion of a connection, so the guest, while idle, skips
//!    bytes until it sees the magic.
//! 2. **Session.** yamux, the host as client. Every stream is opened by the host.
//! 3. **Stream.** One [`Request`], then what the request's documentation says. Messages are postcard,
//!    each after its length as four little-endian bytes.
//!
//! The guest is hostile: a length is checked before anything is allocated, a stream that the guest opens
//! is dropped, and no message of the guest can make a decoder here panic. Deadlines are the caller's.
//! [`GENERATION`] changes with every change of a message; host and agent are built together, so a
//! difference means a stale template or a foreign initramfs, and the session is refused.

mod batch;
mod chain;
mod frame;
mod listing;
mod message;
mod preamble;
mod session;

pub use chain::chain;
pub use frame::{
    FrameError, MessageReader, read_message, read_secret_message, write_message, write_secret_message,
};
pub use listing::{
    LISTED_BYTES, LISTED_ITEM_BYTES, LISTED_PATH_LIMIT, List, ListEvent, ListScope, ListedItem, ListedKind,
    PackListed, Remove, Removed, RemovedPath,
};
pub use message::{
    Chunk, Command, Configure, Configured, Diff, DiffForm, Entropy, Exec, ExecEvent, ExecInput, ExecRole,
    Exit, FsUsage, GuestError, GuestErrorKind, GuestEvent, Hold, INPUT_CHUNK_LIMIT, INPUT_LIMIT, Limit,
    MacAddress, Mount, Network, NetworkV6, OUTPUT_CHUNK_LIMIT, PROCESS_COMMAND_LIMIT, PROCESS_USER_LIMIT,
    PROCESSES_IN_REPLY, PROCESSES_MAX, Pack, PackEvent, PathInfo, PathKind, PrivateAddress, ProcessInfo,
    REPLY_LIMIT, REQUEST_LIMIT, Request, Root, SECRET_LIMIT, SECRETS_LIMIT, SECRETS_MAX, SHUT_DOWN_REST,
    STDIN_WINDOW, Secret, SecretValue, SetClock, Settings, ShutDown, StartError, StartErrorKind, Stat,
    Terminal, Timings, Tmpfs, UNUSED_SINCE, Unpack, UnpackInput, Unpacked,
};
pub use preamble::{PREAMBLE_LEN, Preamble, PreambleKind, PreambleScanner, answer, greet};
pub use session::{
    Incoming, SESSION_STREAM_LIMIT, SessionError, SessionHandle, Stream, guest_session, host_session,
};

/// Version of everything in this crate.
pub const GENERATION: u16 = 11;

/// Name of the virtio-serial port, found in `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "microagent.control";
