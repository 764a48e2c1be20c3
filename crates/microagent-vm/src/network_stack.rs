//! The processes of a network stack: its keeper, which starts it, and the stack itself.
//!
//! The keeper executes this program, started by a supervisor with a socket as standard input. It receives instructions
//! and descriptors over that socket: the link to QEMU, the first stack's [`channel`] to the supervisor for published
//! ports and decisions, and one for its own [`reports`].

mod changes;
mod channel;
mod jail;
mod keeper;
mod member_connections;
pub(crate) mod messages;
mod reports;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use microagent_model::Forward;
use microagent_model::egress::EgressPolicy;
use microagent_net::{Channels, HostAddresses, NameOptions, StackOptions, run_stack};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

pub use changes::member_entries;
pub(crate) use channel::StackChannel;
use channel::SupervisorChannel;
use keeper::Connections;
pub(crate) use reports::{KeeperReport, KeeperReports};

use crate::core_dump::never_dump_core;
use crate::handover::{exit_code, hand_over, take_over};
use crate::jail::sockets::leave_files;
use crate::mapped::SharedNumber;
use crate::spec::{HostFiles, Join};

/// Second argument of both processes, after [`SUPERVISE_ARGUMENT`](crate::SUPERVISE_ARGUMENT). No workspace has such a
/// name.
pub(crate) const NETWORK_STACK_ARGUMENT: &str = "__net";

/// Longest instructions in bytes: a thousand rules, each with a name.
const INSTRUCTIONS_LIMIT: usize = 1024 * 1024;

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
    /// How many brokers there are. Nothing else of them is known here.
    pub(crate) brokers: u8,
    /// The private networks that the guest has joined.
    pub(crate) joins: Vec<Join>,
    /// Most bytes per second in each direction.
    pub(crate) bytes_per_second: Option<NonZeroU64>,
    /// What is read again while stacks run.
    pub(crate) host_files: HostFiles,
}

/// Descriptors that come with every instructions, before the listening sockets of private networks and that of the brokers.
const INSTRUCTED_WITH: usize = 3;

/// Sends a keeper its instructions. `descriptors` are the link, the first stack's end of its channel, the keeper's end of
/// that for reports, a listening socket for each private network, and with brokers the stacks' end of that to their process.
pub(crate) fn instruct(
    control: &UnixStream,
    instructions: &Instructions,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    hand_over(control, &serde_json::to_vec(instructions)?, descriptors)
}

/// Receives what [`instruct`] sent.
fn take_instructions(control: &UnixStream) -> io::Result<(Instructions, Vec<OwnedFd>)> {
    let (text, descriptors) = take_over(control, INSTRUCTIONS_LIMIT)?;
    Ok((serde_json::from_slice(&text)?, descriptors))
}

/// Runs this process as the keeper of a network stack. Returns the exit code.
pub(crate) fn network_stack() -> i32 {
    never_dump_core();
    exit_code("network stack", run())
}

fn run() -> io::Result<()> {
    let control = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let (instructions, mut descriptors) = take_instructions(&control)?;
    let mut further = descriptors.split_off(INSTRUCTED_WITH.min(descriptors.len())).into_iter();
    let members = further.by_ref().take(instructions.joins.len()).collect();
    let brokers = further.next();
    let descriptors: [OwnedFd; INSTRUCTED_WITH] =
        descriptors.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let [link, channel, supervisor] = descriptors;
    drop(control);
    keeper::keep(instructions, Connections { link, supervisor, members, brokers }, channel)
}

/// Serves a guest as its stack until the link closes or the supervisor ends it.
fn serve(
    instructions: &Instructions,
    [qemu, channel, keeper]: [OwnedFd; 3],
    members: Vec<OwnedFd>,
    brokers: Option<OwnedFd>,
    moved: &Rc<SharedNumber>,
    is_resumed: bool,
) -> io::Result<()> {
    give_memory_back();
    let passing = match brokers.is_some() || !instructions.joins.is_empty() {
        true => jail::Passing::Ends,
        false => jail::Passing::Nothing,
    };
    match passing {
        jail::Passing::Ends => leave_files()?,
        jail::Passing::Nothing => use_descriptors(),
    }
    jail::enter(passing)?;
    let instructions = instructions.clone();
    let options = StackOptions {
        policy: instructions.egress,
        guest_mac: instructions.guest_mac,
        mtu: instructions.mtu,
        host_addresses: instructions.host_addresses,
        name_servers: instructions.name_servers,
        names: instructions.names,
        forwards: instructions.forwards,
        brokers: instructions.brokers,
        memberships: instructions.joins.into_iter().map(|join| join.membership).collect(),
        moved_bytes: moved.get(),
    };
    let rate = instructions.bytes_per_second;
    let mut supervisor = SupervisorChannel::new(channel.try_clone()?, keeper.try_clone()?, Rc::clone(moved));
    let channels = Channels { qemu, controls: vec![channel, keeper], brokers, members, rate, is_resumed };
    run_stack(options, channels, &mut supervisor)
}

/// Raises the limit of open files to the maximum, because every connection has a descriptor.
pub(crate) fn use_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Refused in no case: it stays below the hard limit.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

#[allow(unsafe_code)]
fn give_memory_back() {
    // SAFETY: sets a number of the C library's allocator; no other thread runs yet.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MEMORY) };
}
