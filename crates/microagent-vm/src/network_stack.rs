//! The process of a network stack: its instructions, and its `main`.
//!
//! The process executes this program, started by a supervisor with a socket as standard input. It receives
//! instructions and descriptors over that socket: the link to QEMU, and a [`channel`] to the supervisor for published
//! ports and decisions.

mod channel;
mod jail;

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use microagent_model::Forward;
use microagent_model::egress::EgressPolicy;
use microagent_net::{Channels, HostAddresses, NameOptions, StackOptions, run_stack};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

pub(crate) use channel::StackChannel;
use channel::SupervisorChannel;

use crate::core_dump::never_dump_core;
use crate::jail::give_up_capabilities;

/// Second argument of the process, after [`SUPERVISE_ARGUMENT`](crate::SUPERVISE_ARGUMENT). No workspace has such a
/// name.
pub(crate) const NETWORK_STACK_ARGUMENT: &str = "__net";

/// Longest instructions in bytes: a thousand rules, each with a name.
const INSTRUCTIONS_LIMIT: usize = 1024 * 1024;

/// Deadline of both sides for sending and receiving the instructions.
const INSTRUCT_DEADLINE: Duration = Duration::from_secs(10);

/// Most descriptors of one message; the kernel's limit.
const DESCRIPTORS_MAX: usize = 253;

/// Allocations of this size or more get a mapping of their own, so that buffers of connections return their memory to
/// the host, and use only the pages that contain data.
const OWN_MEMORY: libc::c_int = 16 * 1024;

/// The instructions of a stack.
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
}

/// Sends a stack its instructions. `descriptors` are the link and the stack's end of its channel.
pub(crate) fn instruct(
    control: &UnixStream,
    instructions: &Instructions,
    descriptors: [BorrowedFd<'_>; 2],
) -> io::Result<()> {
    control.set_write_timeout(Some(INSTRUCT_DEADLINE))?;
    let text = serde_json::to_vec(instructions)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_be_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(control, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut control = control;
    control.write_all(&text)
}

/// Receives what [`instruct`] sent.
fn take_instructions(control: &UnixStream) -> io::Result<(Instructions, Vec<OwnedFd>)> {
    control.set_read_timeout(Some(INSTRUCT_DEADLINE))?;
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
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

/// Runs this process as a network stack. Returns the exit code.
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
    let channel = descriptors.next().ok_or(io::ErrorKind::InvalidData)?;
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
    let mut supervisor = SupervisorChannel::new(channel.try_clone()?);
    run_stack(options, Channels { qemu, control: channel, rate }, &mut supervisor)
}

/// Raises the limit of open files to the maximum, because every connection has a descriptor.
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
