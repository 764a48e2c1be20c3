//! The process of a network stack: its instructions, and its `main`.
//!
//! It is this program again, started by a supervisor with a socket as its standard input. Over that come its instructions
//! and its descriptors: the link to QEMU, and the listening sockets of published ports. Its decisions go back over it, as
//! lines of JSON. It ends when the socket closes.

mod jail;

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use microagent_model::Forward;
use microagent_model::egress::{Decision, EgressPolicy};
use microagent_model::{PORTS_MAX, PortProtocol};
use microagent_net::{Channels, DecisionLog, HostAddresses, Listener, NameOptions, StackOptions, run_stack};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, send, sendmsg,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::core_dump::never_dump_core;
use crate::jail::give_up_capabilities;

/// Second argument of the process, after [`SUPERVISE_ARGUMENT`](crate::SUPERVISE_ARGUMENT). No workspace has such a name.
pub(crate) const NETWORK_STACK_ARGUMENT: &str = "__net";

/// Longest instructions in bytes: a thousand rules, each with a name.
const INSTRUCTIONS_LIMIT: usize = 1024 * 1024;

/// How long either side waits for the other to take or to give the instructions.
const INSTRUCT_DEADLINE: Duration = Duration::from_secs(10);

/// Descriptors that come with one message; the kernel takes no more.
const DESCRIPTORS_MAX: usize = 253;

// The link, and a socket for each published port.
const _: () = assert!(PORTS_MAX < DESCRIPTORS_MAX);

/// Bytes of decisions that wait for the supervisor. What comes when they are full is not recorded.
const DECISIONS_MAX: usize = 256 * 1024;

/// Buffers of connections have memory of their own from this size on, so that it is given back with them, and used only as
/// far as data fills it.
const OWN_MEMORY: libc::c_int = 16 * 1024;

/// What a stack is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Instructions {
    pub(crate) egress: EgressPolicy,
    pub(crate) guest_mac: [u8; 6],
    pub(crate) mtu: u16,
    pub(crate) host_addresses: HostAddresses,
    pub(crate) name_servers: Vec<SocketAddr>,
    pub(crate) names: NameOptions,
    pub(crate) forwards: Vec<Forward>,
    /// Most bytes per second in each direction.
    pub(crate) bytes_per_second: Option<NonZeroU64>,
    /// Ports of the guest, one for each socket of a published port.
    pub(crate) published: Vec<(PortProtocol, u16)>,
}

/// Tells a stack what it is to do. `descriptors` are the link, then the listening sockets.
pub(crate) fn instruct(
    control: &UnixStream,
    instructions: &Instructions,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    control.set_write_timeout(Some(INSTRUCT_DEADLINE))?;
    let text = serde_json::to_vec(instructions)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_be_bytes();
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::other("too many published ports"));
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    sendmsg(control, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut control = control;
    control.write_all(&text)
}

/// Takes what [`instruct`] said.
fn take_instructions(control: &UnixStream) -> io::Result<(Instructions, Vec<OwnedFd>)> {
    control.set_read_timeout(Some(INSTRUCT_DEADLINE))?;
    let mut length = [0; 4];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let read =
        recvmsg(control, &mut [IoSliceMut::new(&mut length)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let length = u32::from_be_bytes(length) as usize;
    if read.bytes != 4 || length > INSTRUCTIONS_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let mut text = vec![0; length];
    let mut control = control;
    control.read_exact(&mut text)?;
    Ok((serde_json::from_slice(&text)?, descriptors))
}

/// Runs this process as a network stack. Gives the exit code.
pub(crate) fn network_stack() -> i32 {
    never_dump_core();
    match run() {
        Ok(()) => 0,
        Err(error) => {
            // The supervisor keeps what is said here.
            let _ = writeln!(io::stderr(), "microagent: network stack: {}", microagent_proto::chain(&error));
            1
        }
    }
}

fn run() -> io::Result<()> {
    let control = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let (instructions, descriptors) = take_instructions(&control)?;
    use_descriptors();
    give_memory_back();
    // Where root starts it, its sockets could be raw ones otherwise.
    give_up_capabilities()?;
    jail::enter()?;
    let mut descriptors = descriptors.into_iter();
    let qemu = descriptors.next().ok_or(io::ErrorKind::InvalidData)?;
    let published = descriptors.zip(instructions.published);
    let listeners =
        published.map(|(socket, (protocol, guest_port))| Listener { socket, protocol, guest_port }).collect();
    let options = StackOptions {
        policy: instructions.egress,
        guest_mac: instructions.guest_mac,
        mtu: instructions.mtu,
        host_addresses: instructions.host_addresses,
        name_servers: instructions.name_servers,
        names: instructions.names,
        forwards: instructions.forwards,
    };
    let rate = instructions.bytes_per_second;
    let mut log = ControlLog { control: control.try_clone()?, waiting: Vec::new() };
    run_stack(options, Channels { qemu, control: control.into(), listeners, rate }, &mut log)
}

/// Every connection has a descriptor: as many as may be.
fn use_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Refused in no case: it stays below the hard limit.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

#[allow(unsafe_code)]
fn give_memory_back() {
    // SAFETY: sets a number of the C library's allocator; no other thread runs yet.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MEMORY) };
}

/// Decisions on their way to the supervisor. They never hold the stack up.
struct ControlLog {
    control: UnixStream,
    waiting: Vec<u8>,
}

impl DecisionLog for ControlLog {
    fn record(&mut self, decision: &Decision) {
        let line = serde_json::to_vec(decision).expect("a decision is plain data");
        if self.waiting.len() + line.len() < DECISIONS_MAX {
            self.waiting.extend_from_slice(&line);
            self.waiting.push(b'\n');
        }
        self.flush();
    }

    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            match send(self.control.as_fd(), &self.waiting, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::INTR) => {}
                // What is left goes with the next decision, or when there is time.
                Err(_) => return,
            }
        }
    }
}
