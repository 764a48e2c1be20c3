//! The guest's own PID namespace, and its process 1.
//!
//! The agent is the kernel's process 1 and stays outside and above: programs of the image see a machine whose process 1 is
//! one of theirs. Mounts are shared, so that the agent sees what they see; only `/proc` is the namespace's own, and the
//! agent keeps its own `/proc` where no path leads to it.
//!
//! Process 1 exists from the boot on, so that a restored machine finds it made. It waits for the plan of the machine's main
//! program, and becomes it. A machine without one keeps it waiting: it reaps orphans, and what programs tell an init by
//! signals (busybox, systemd) to turn the machine off or to restart it, it does.
//!
//! `reboot(2)` in a PID namespace ends the namespace: its process 1 dies by a signal that tells what was asked for
//! (`pid_namespaces(7)`, `reboot(2)`), and the agent, its parent, learns of it.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::console;
use crate::spawn::{self, ChildStreams, Plan, Spawned};

/// Longest plan that process 1 is given, in bytes: a request and what is added to it.
const PLAN_LIMIT: usize = microagent_proto::REQUEST_LIMIT + 64 * 1024;

/// Most descriptors that come with a plan: the note and three streams.
const DESCRIPTORS_MAX: usize = 4;

/// Length of what comes before a plan: its length, and which streams come with it.
const HEADER_LEN: usize = 8;

/// Signals that mean "turn the machine off" to one init or another: busybox, systemd (`SIGRTMIN` is 34 in C libraries),
/// a power supply that fails.
const POWER_OFF_SIGNALS: [i32; 5] = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGPWR, 34 + 3, 34 + 4];

/// Signals that mean "restart the machine".
const RESTART_SIGNALS: [i32; 2] = [libc::SIGTERM, 34 + 5];

static AGENT_PROC: OnceLock<OwnedFd> = OnceLock::new();

/// The agent's own `/proc`, of all processes, which a guest can neither unmount nor cover.
///
/// # Panics
/// Before [`Init::start`].
pub(crate) fn agent_proc() -> BorrowedFd<'static> {
    AGENT_PROC.get().expect("the agent's proc is opened before anything else").as_fd()
}

/// Lets this thread reach its open descriptors by path, which needs a `/proc` that knows the agent: it becomes the working
/// directory of this thread alone.
pub(crate) fn make_descriptors_reachable() {
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if DONE.replace(true) {
        return;
    }
    microagent_tree::pack::descriptors_are_in("self/fd");
    // SAFETY: the call changes only what this thread shares with others.
    let unshared = unsafe { libc::unshare(libc::CLONE_FS) };
    if unshared < 0 || rustix::process::fchdir(agent_proc()).is_err() {
        // Nothing can be packed then, and each try reports that.
        console::say("files cannot be reached through /proc");
    }
}

/// Why the guest has no process 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error("cannot {what}")]
    Step { what: &'static str, source: io::Error },
    #[error("process 1 of the guest cannot mount /proc")]
    Proc,
}

/// A PID namespace, as a place for children.
#[derive(Debug)]
pub(crate) struct Namespace {
    guests: OwnedFd,
    agents: OwnedFd,
}

impl Namespace {
    /// Makes processes that this thread makes members of the guest's namespace. No thread can be made before
    /// [`Namespace::leave`].
    pub(crate) fn enter(&self) -> io::Result<()> {
        set_children_namespace(self.guests.as_fd())
    }

    /// Ends what [`Namespace::enter`] began.
    pub(crate) fn leave(&self) {
        // The agent's own namespace is the one that it can always have.
        set_children_namespace(self.agents.as_fd()).expect("a process may return to its own namespace");
    }
}

fn set_children_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::ProcessID))?)
}

/// What process 1 does about a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// It has a handler, or it blocks the signal to take it in its own time.
    Takes,
    /// It wants nothing of it, or the signal ends nobody.
    Ignores,
    /// Nothing was said, so any other process would end. The kernel spares a process 1.
    Ends,
}

/// The guest's process 1, seen from the agent.
#[derive(Debug)]
pub(crate) struct Init {
    pid: Pid,
    namespace: Namespace,
    /// `/proc` of the guest.
    proc: OwnedFd,
    /// To the process that waits for its plan.
    orders: std::sync::Mutex<Option<UnixStream>>,
}

impl Init {
    /// Makes process 1 and gives the guest its `/proc`. The calling process must have one thread, and its `/proc` be mounted.
    pub(crate) fn start() -> Result<Init, InitError> {
        let step = |what| move |source: io::Error| InitError::Step { what, source };
        let own = open_dir(CWD, "/proc").map_err(step("open /proc"))?;
        let own = AGENT_PROC.get_or_init(|| own).as_fd();
        let agents = open_namespace(own, "self").map_err(step("open the agent's namespace"))?;
        unmount(c"/proc", UnmountFlags::DETACH).map_err(|e| step("take /proc away")(e.into()))?;
        let (orders, mut child_orders) = UnixStream::pair().map_err(step("make a channel"))?;
        let Some(pid) = spawn::clone_init().map_err(step("make process 1 of the guest"))? else {
            drop(orders);
            wait_for_orders(&mut child_orders)
        };
        drop(child_orders);
        let mut ready = [0];
        (&orders).read_exact(&mut ready).map_err(|_| InitError::Proc)?;
        let guests = open_namespace(own, &pid.as_raw_nonzero().to_string())
            .map_err(step("open the guest's namespace"))?;
        let proc = open_dir(CWD, "/proc").map_err(step("open the guest's /proc"))?;
        let namespace = Namespace { guests, agents };
        Ok(Init { pid, namespace, proc, orders: std::sync::Mutex::new(Some(orders)) })
    }

    /// Its number among the agent's processes.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Where its siblings are made.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Has process 1 become the program of this plan.
    pub(crate) fn become_main(&self, plan: &Plan, streams: ChildStreams) -> io::Result<Spawned> {
        let orders = self.orders().take();
        let mut orders = orders.ok_or_else(|| io::Error::other("the guest has had its main program"))?;
        let (note, child_note) = pipe_with(PipeFlags::CLOEXEC)?;
        let bytes = postcard::to_stdvec(plan).map_err(io::Error::other)?;
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let (kind, streams) = encode(&streams);
        let [a, b, c, d] = len.to_le_bytes();
        send_with(&orders, &[a, b, c, d, kind, 0, 0, 0], &child_note, &streams)?;
        orders.write_all(&bytes)?;
        Ok(Spawned { pid: self.pid, note })
    }

    /// Whether no other process is left in the guest. What has ended and was not taken in counts as gone.
    pub(crate) fn is_alone(&self) -> bool {
        let Ok(entries) = Dir::read_from(&self.proc) else { return true };
        let others = entries.flatten().filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str().ok()?.parse().ok()?;
            (pid != 1).then_some(pid)
        });
        !others.into_iter().any(|pid| self.lives(pid))
    }

    fn lives(&self, pid: u32) -> bool {
        let Ok(stat) = read(self.proc.as_fd(), &format!("{pid}/stat")) else { return false };
        // The state comes after the name, which may hold anything but is followed by the last `)`.
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        !matches!(state, Some('Z' | 'X') | None)
    }

    /// What process 1 does about a signal.
    pub(crate) fn disposition(&self, signal: u8) -> Disposition {
        let status = read(agent_proc(), &format!("{}/status", self.pid.as_raw_nonzero()));
        status.map_or(Disposition::Ends, |status| disposition(&status, signal))
    }

    fn orders(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.orders.lock().expect("no holder of the lock panics")
    }
}

/// Reads it from `/proc/PID/status` (`proc_pid_status(5)`): masks of signals in hex, signal 1 the lowest bit.
fn disposition(status: &str, signal: u8) -> Disposition {
    let is_in = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap_or(0);
        signal.checked_sub(1).is_some_and(|bit| mask.checked_shr(bit.into()).unwrap_or(0) & 1 == 1)
    };
    let ends_nobody = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
    ];
    if is_in("SigCgt:") || is_in("SigBlk:") || is_in("ShdPnd:") {
        Disposition::Takes
    } else if is_in("SigIgn:") || ends_nobody.contains(&signal.into()) {
        Disposition::Ignores
    } else {
        Disposition::Ends
    }
}

fn open_dir(at: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    Ok(openat(at, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn open_namespace(proc: BorrowedFd<'_>, process: &str) -> io::Result<OwnedFd> {
    Ok(openat(proc, format!("{process}/ns/pid"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A file of a `/proc` as text.
pub(crate) fn read(proc: BorrowedFd<'_>, path: &str) -> io::Result<String> {
    read_bytes(proc, path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A file of a `/proc`.
pub(crate) fn read_bytes(proc: BorrowedFd<'_>, path: &str) -> io::Result<Vec<u8>> {
    let file = openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Which streams go with a plan, in the order in which they are sent.
fn encode(streams: &ChildStreams) -> (u8, Vec<BorrowedFd<'_>>) {
    match streams {
        ChildStreams::Pipes { stdin: None, stdout, stderr } => (0, vec![stdout.as_fd(), stderr.as_fd()]),
        ChildStreams::Pipes { stdin: Some(stdin), stdout, stderr } => {
            (1, vec![stdout.as_fd(), stderr.as_fd(), stdin.as_fd()])
        }
        ChildStreams::Terminal(terminal) => (2, vec![terminal.as_fd()]),
    }
}

fn decode(kind: u8, mut streams: std::vec::IntoIter<OwnedFd>) -> Option<ChildStreams> {
    if kind == 2 {
        return streams.next().map(ChildStreams::Terminal);
    }
    let (stdout, stderr) = (streams.next()?, streams.next()?);
    let stdin = if kind == 1 { Some(streams.next()?) } else { None };
    Some(ChildStreams::Pipes { stdin, stdout, stderr })
}

fn send_with(
    to: &UnixStream,
    header: &[u8; HEADER_LEN],
    note: &OwnedFd,
    streams: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> =
        [note.as_fd()].into_iter().chain(streams.iter().copied()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("more descriptors than a plan has"));
    }
    let sent = sendmsg(to, &[io::IoSlice::new(header)], &mut ancillary, SendFlags::empty())?;
    if sent == HEADER_LEN { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// What process 1 does before it executes a program.
fn wait_for_orders(orders: &mut UnixStream) -> ! {
    ignore_children();
    handle_power_signals();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if mount("proc", "/proc", "proc", flags, c"").is_err() || orders.write_all(&[1]).is_err() {
        spawn::exit(1);
    }
    match receive(orders) {
        Ok((plan, streams, note)) => {
            // SAFETY: the calls change only this process.
            unsafe {
                libc::unshare(libc::CLONE_FS);
                // What is handled is reset by the kernel, what is ignored is not.
                libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            }
            spawn::follow(&plan, &streams, &note)
        }
        // Nobody needs us, or nobody could say what for.
        Err(_) => spawn::exit(0),
    }
}

fn receive(orders: &mut UnixStream) -> io::Result<(Plan, ChildStreams, OwnedFd)> {
    let mut header = [0; HEADER_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut into = [io::IoSliceMut::new(&mut header)];
        match recvmsg(&*orders, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?.bytes,
        }
    };
    if received != HEADER_LEN {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    let mut descriptors = descriptors.collect::<Vec<OwnedFd>>().into_iter();
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let note = descriptors.next().ok_or_else(malformed)?;
    let streams = decode(header[4], descriptors).ok_or_else(malformed)?;
    let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if len > PLAN_LIMIT {
        return Err(malformed());
    }
    let mut bytes = vec![0; len];
    orders.read_exact(&mut bytes)?;
    let plan = postcard::from_bytes(&bytes).map_err(|_| malformed())?;
    Ok((plan, streams, note))
}

/// The kernel reaps the children of a process that ignores their end.
fn ignore_children() {
    // SAFETY: a call with valid arguments, in a process of one thread.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

fn handle_power_signals() {
    for signal in POWER_OFF_SIGNALS.into_iter().chain(RESTART_SIGNALS) {
        // SAFETY: the handler only makes system calls, and the structure is valid when all zero but for it.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_power_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Ends the namespace, if a process of it requests that: the agent's signals come from number 0 and mean something else.
extern "C" fn on_power_signal(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid structure.
    if unsafe { (*info).si_pid() } == 0 {
        return;
    }
    let command = if RESTART_SIGNALS.contains(&signal) { libc::RB_AUTOBOOT } else { libc::RB_POWER_OFF };
    // SAFETY: a system call that touches no memory.
    unsafe { libc::reboot(command) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_ignored_or_the_end() {
        let status = "Name:\tsh\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000010000\nSigIgn:\t0000000000000004\n\
                      SigCgt:\t0000000400004002\n";
        for (signal, wanted) in [
            (2, Disposition::Takes),   // caught
            (15, Disposition::Takes),  // caught
            (35, Disposition::Takes),  // caught, real-time
            (17, Disposition::Takes),  // blocked
            (3, Disposition::Ignores), // ignored
            (28, Disposition::Ignores),
            (1, Disposition::Ends),
            (10, Disposition::Ends),
            (0, Disposition::Ends),
        ] {
            assert_eq!(disposition(status, signal), wanted, "{signal}");
        }
        assert_eq!(disposition("", 15), Disposition::Ends);
    }

    #[test]
    fn a_plan_travels_with_its_streams() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ((_, stdout), (_, stderr), (stdin, _)) = (pipe(), pipe(), pipe());
        let streams = ChildStreams::Pipes { stdin: Some(stdin), stdout, stderr };
        let plan = Plan {
            candidates: vec![c"/bin/true".to_owned()],
            arguments: vec![c"true".to_owned()],
            environment: Vec::new(),
            working_dir: c"/".to_owned(),
            directories: Vec::new(),
            uid: 1,
            gid: 2,
            groups: vec![3],
            limits: Vec::new(),
        };
        let bytes = postcard::to_stdvec(&plan).unwrap();
        let (kind, descriptors) = encode(&streams);
        let [a, b, c, d] = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        let (_, note) = pipe();
        send_with(&ours, &[a, b, c, d, kind, 0, 0, 0], &note, &descriptors).unwrap();
        (&ours).write_all(&bytes).unwrap();
        let (received, streams, _) = receive(&mut theirs).unwrap();
        assert_eq!((received.candidates, received.groups), (plan.candidates, plan.groups));
        assert!(matches!(streams, ChildStreams::Pipes { stdin: Some(_), .. }));
        drop(ours);
        assert!(receive(&mut theirs).is_err());
    }
}
