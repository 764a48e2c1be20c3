//! The keeper of a network stack: it starts the stack as a process of its own, and starts another one when it ends before
//! its time.
//!
//! The keeper holds the link to QEMU, so that a stack that ends does not close it. It looks for changes of the host once a
//! second, and tells the stack of them, and of new members of its private networks. It reads nothing that a guest has
//! written; all that it notices of a stack is how it ended, and which member of a private network it wants to be connected to. A stack is forked and not executed: it begins with what the keeper knows, and shares its memory
//! until it writes to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::{Duration, Instant};

use landlock::{
    Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError, Scope,
};
use microagent_store::{NetworkDir, ProcessId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::process::{Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, waitpid};

use super::changes::{Follower, tell};
use super::jail::restrict_keeper;
use super::member_connections::serve_requests;
use super::messages::message_pair;
use super::reports::{KeeperReport, report};
use super::{Instructions, Join, serve};
use crate::descriptors::close_all_but;
use crate::handover::exit_code;
use crate::jail::{NEWEST, allow, die_with, give_up_capabilities};
use crate::mapped::SharedNumber;
use crate::replacements::{REPLACEMENTS_MAX, Replacements};

/// Bytes that the kernel keeps for QEMU, if the host allows as much: the usual size where it is smaller.
const LINK_BUFFER: usize = 208 * 1024;

/// How long a stack may take to end when its supervisor wants that.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// What a keeper is connected to.
pub(super) struct Connections {
    /// QEMU.
    pub(super) link: OwnedFd,
    /// The supervisor: reports go there, and its end means that the stack has to end.
    pub(super) supervisor: OwnedFd,
    /// Listening sockets for other members, one for each private network.
    pub(super) members: Vec<OwnedFd>,
    /// The process of the brokers, if there are any.
    pub(super) brokers: Option<OwnedFd>,
}

/// Keeps a stack running until QEMU or the supervisor ends it. `channel` is the first stack's to the supervisor.
///
/// # Errors
/// When no stack can be started, or too many have ended.
pub(super) fn keep(instructions: Instructions, connections: Connections, channel: OwnedFd) -> io::Result<()> {
    // Fails when the host allows less, which the stack can use as well.
    let _ = set_socket_send_buffer_size(&connections.link, LINK_BUFFER);
    give_up_capabilities()?;
    confine(&instructions.joins).map_err(io::Error::other)?;
    restrict_keeper()?;
    let moved = Rc::new(SharedNumber::new()?);
    let follower = Follower::new(&instructions);
    let mut keeper = Keeper { instructions, connections, moved, follower, is_owed: false };
    let mut replacements = Replacements::default();
    let mut next = (channel, None);
    let mut is_resumed = false;
    loop {
        let (channel, supervisors) = next;
        let begun = Instant::now();
        let stack = keeper.fork(channel, is_resumed)?;
        let started = KeeperReport::Started { process: ProcessId::of(stack.pid.as_raw_nonzero().get()) };
        keeper.report(&started, supervisors);
        let Some(status) = keeper.wait(&stack)? else { return Ok(()) };
        drop(stack);
        if status.success() {
            return Ok(());
        }
        let pause = replacements.next(begun.elapsed());
        let ended = KeeperReport::Ended { reason: status.to_string(), is_replaced: pause.is_some() };
        keeper.report(&ended, None);
        let Some(pause) = pause else {
            return Err(io::Error::other(format!("{REPLACEMENTS_MAX} stacks in a row have ended")));
        };
        if keeper.is_told_to_end(None, Some(pause))? {
            return Ok(());
        }
        let (ours, theirs) = message_pair()?;
        next = (ours, Some(theirs));
        is_resumed = true;
    }
}

/// Lets this process and its stacks read files and do nothing else with them, but for connecting to other members of
/// private networks.
fn confine(joins: &[Join]) -> Result<(), RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    rules = allow(rules, "/".as_ref(), AccessFs::ReadFile | AccessFs::ReadDir)?;
    for join in joins {
        rules = allow(rules, &NetworkDir::at(&join.dir).sockets(), AccessFs::ResolveUnix.into())?;
    }
    rules.restrict_self().map(drop)
}

/// A forked stack.
struct Stack {
    pid: Pid,
    process: OwnedFd,
    /// Where it hears of changes of the host.
    changes: OwnedFd,
}

struct Keeper {
    /// What the next stack is told.
    instructions: Instructions,
    connections: Connections,
    moved: Rc<SharedNumber>,
    follower: Follower,
    /// Whether the running stack has not been told of a change.
    is_owed: bool,
}

impl Keeper {
    fn report(&self, message: &KeeperReport, channel: Option<OwnedFd>) {
        report(self.connections.supervisor.as_fd(), message, channel.as_ref().map(AsFd::as_fd));
    }

    /// Starts a stack, which is told all that is known of the host.
    #[allow(unsafe_code)]
    fn fork(&mut self, channel: OwnedFd, is_resumed: bool) -> io::Result<Stack> {
        let keeper = getpid();
        let link = self.connections.link.try_clone()?;
        let brokers = self.connections.brokers.as_ref().map(OwnedFd::try_clone).transpose()?;
        let members: Vec<OwnedFd> =
            self.connections.members.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>()?;
        let (changes, theirs) = message_pair()?;
        self.is_owed = false;
        // SAFETY: this process has one thread, so that its child can continue as it would. The child does not return.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                let descriptors = [link, channel, theirs];
                let kept =
                    descriptors.iter().chain(&members).chain(&brokers).map(AsRawFd::as_raw_fd).collect();
                let served = die_with(keeper).and_then(|()| close_all_but(kept)).and_then(|()| {
                    serve(&self.instructions, descriptors, members, brokers, &self.moved, is_resumed)
                });
                let code = exit_code("network stack", served);
                // SAFETY: ends the child without what its parent has registered for its own end.
                unsafe { libc::_exit(code) }
            }
            pid => Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?,
        };
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Stack { pid, process, changes })
    }

    /// Waits for the end of a stack and says how it ended; nothing if the supervisor has ended it.
    fn wait(&mut self, stack: &Stack) -> io::Result<Option<ExitStatus>> {
        if self.is_told_to_end(Some(stack), None)? {
            let mut watched = [PollFd::new(&stack.process, PollFlags::IN)];
            let patience = Timespec { tv_sec: END_PATIENCE.as_secs() as i64, tv_nsec: 0 };
            // One that takes longer is killed by the kernel, as this process ends now.
            let _ = poll(&mut watched, Some(&patience));
            return Ok(None);
        }
        let (_, status) =
            waitpid(Some(stack.pid), WaitOptions::empty())?.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(ExitStatus::from_raw(status.as_raw())))
    }

    /// Waits until a stack has ended, the time is over, or the supervisor is gone, and follows the host meanwhile. True if
    /// it is the supervisor.
    fn is_told_to_end(&mut self, stack: Option<&Stack>, patience: Option<Duration>) -> io::Result<bool> {
        let until = patience.map(|patience| Instant::now() + patience);
        // A stack that says what no stack says, or nothing more, is not heard any more.
        let mut asking = stack;
        loop {
            self.is_owed |= self.follower.refresh(&mut self.instructions);
            if self.is_owed
                && let Some(stack) = stack
            {
                self.is_owed = tell(stack.changes.as_fd(), &self.instructions).is_err();
            }
            // It sends nothing: its socket is readable at its end.
            let mut watched = vec![PollFd::new(&self.connections.supervisor, PollFlags::IN)];
            watched.extend(stack.map(|stack| PollFd::new(&stack.process, PollFlags::IN)));
            let of_process = watched.len();
            watched
                .extend(self.follower.members().map(|watch| PollFd::from_borrowed_fd(watch, PollFlags::IN)));
            watched.extend(asking.map(|stack| PollFd::new(&stack.changes, PollFlags::IN)));
            let next = until.map_or(self.follower.next_look(), |until| until.min(self.follower.next_look()));
            let left = next.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut watched, Some(&timeout)) {
                Ok(0) if until.is_some_and(|until| until <= Instant::now()) => return Ok(false),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => {
                    let is_ready =
                        |watched: &[PollFd<'_>]| watched.iter().any(|one| !one.revents().is_empty());
                    if is_ready(&watched[..of_process]) {
                        return Ok(!watched[0].revents().is_empty());
                    }
                    drop(watched);
                    self.follower.look_at_members();
                    let joins = &self.instructions.joins;
                    asking = asking.filter(|stack| serve_requests(stack.changes.as_fd(), joins));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
