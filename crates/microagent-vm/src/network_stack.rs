//! The processes of a network stack: its keeper, which starts it, and the stack itself.
//!
//! The keeper executes this program, started by a supervisor with a socket as standard input. It receives instructions
//! and descriptors over that socket: the link to QEMU, the first stack's [`channel`] to the supervisor for published
//! ports and decisions, and one for its own [`reports`].

mod changes;
mod channel;
mod jail;
mod keeper;
mod messages;
mod reports;

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
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
use keeper::Connections;
pub(crate) use reports::{KeeperReport, KeeperReports};

use crate::core_dump::never_dump_core;
use crate::mapped::SharedNumber;
use crate::spec::HostFiles;

/// Second argument of both processes, after [`SUPERVISE_ARGUMENT`](crate::SUPERVISE_ARGUMENT). No workspace has such a
/// name.
pub(crate) const NETWORK_STACK_ARGUMENT: &str = "__net";

/// Longest instructions in bytes: a thousand rules, each with a name.
const INSTRUCTIONS_LIMIT: usize = 1024 * 1024;

/// Deadline of both sides for sending and receiving the instructions.
const INSTRUCT_DEADLINE: Duration = Duration::from_secs(10);

/// Allocations of this size or more get a mapping of their own, so that buffers of connections return their memory to
/// the host, and use only the pages that contain data.
const OWN_MEMORY: libc::c_int = 16 * 1024;

/// The instructions of a stack.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// What is read again while stacks run.
    pub(crate) host_files: HostFiles,
}

/// Descriptors that come with the instructions.
const INSTRUCTED_WITH: usize = 3;

/// Sends a keeper its instructions. `descriptors` are the link, the first stack's end of its channel and the keeper's end of
/// that for reports.
pub(crate) fn instruct(
    control: &UnixStream,
    instructions: &Instructions,
    descriptors: [BorrowedFd<'_>; INSTRUCTED_WITH],
) -> io::Result<()> {
    control.set_write_timeout(Some(INSTRUCT_DEADLINE))?;
    let text = serde_json::to_vec(instructions)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_be_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(INSTRUCTED_WITH))];
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
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(INSTRUCTED_WITH))];
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

/// Runs this process as the keeper of a network stack. Returns the exit code.
pub(crate) fn network_stack() -> i32 {
    never_dump_core();
    exit_code(run())
}

/// The exit code of a process of this kind.
fn exit_code(result: io::Result<()>) -> i32 {
    match result {
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
    let descriptors: [OwnedFd; INSTRUCTED_WITH] =
        descriptors.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let [link, channel, supervisor] = descriptors;
    drop(control);
    keeper::keep(instructions, Connections { link, supervisor }, channel)
}

/// Serves a guest as its stack until the link closes or the supervisor ends it.
fn serve(
    instructions: &Instructions,
    [qemu, channel, keeper]: [OwnedFd; 3],
    moved: &Rc<SharedNumber>,
    is_resumed: bool,
) -> io::Result<()> {
    use_descriptors();
    give_memory_back();
    jail::enter()?;
    let instructions = instructions.clone();
    let options = StackOptions {
        policy: instructions.egress,
        guest_mac: instructions.guest_mac,
        mtu: instructions.mtu,
        host_addresses: instructions.host_addresses,
        name_servers: instructions.name_servers,
        names: instructions.names,
        forwards: instructions.forwards,
        moved_bytes: moved.get(),
    };
    let rate = instructions.bytes_per_second;
    let mut supervisor = SupervisorChannel::new(channel.try_clone()?, keeper.try_clone()?, Rc::clone(moved));
    let channels = Channels { qemu, controls: vec![channel, keeper], rate, is_resumed };
    run_stack(options, channels, &mut supervisor)
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
