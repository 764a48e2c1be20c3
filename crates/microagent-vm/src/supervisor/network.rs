//! The network stack of a machine, as the supervisor sees it: a process of its own, which is this program again.
//!
//! The supervisor listens at the published ports and starts the stack before QEMU, so a machine whose port is taken does
//! not boot. It writes down what the stack decides, and believes nothing of it beyond its shape.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::Publish;
use microagent_model::egress::{Decision, Reason, Subject};
use microagent_model::{FailureKind, WorkspaceFailure};
use microagent_net::HostAddresses;
use microagent_store::{Link, ProcessId, WorkspaceDir};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use super::machine::{REAP_DEADLINE, start_failure};
use super::{Shared, full_or_boot};
use crate::bounded_log::BoundedLog;
use crate::machine::LINK_MTU;
use crate::network_stack::{Instructions, NETWORK_STACK_ARGUMENT, instruct};
use crate::ports::{PortError, listen_at};
use crate::spawn::{Program, spawn};
use crate::spec::NetworkSpec;
use crate::supervisor::SUPERVISE_ARGUMENT;

/// This program, also when its file was replaced meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// How long a stack may take to end when its control socket closes.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// How long QEMU may take to end when it has closed the link.
const QEMU_PATIENCE: Duration = Duration::from_millis(500);

/// Bound of the log of decisions in bytes (twice that on disk): some ten thousand of them.
const EGRESS_LOG_LIMIT: u64 = 4 * 1024 * 1024;

/// Longest decision in bytes as a line: a name of 253 characters, each of which may be written as four.
const LINE_LIMIT: u64 = 4096;

/// A network stack that runs.
pub(super) struct Network {
    stack: Child,
    process: Option<ProcessId>,
    published: Vec<Publish>,
    log: Shared<BoundedLog>,
    /// Ends when the stack's last decision was written down.
    logger: JoinHandle<()>,
    /// Shutting it down ends the stack.
    control: StdUnixStream,
    /// Whether its end was told already.
    is_lost: bool,
}

impl Network {
    /// Listens at the published ports and starts a stack. `mac` is the guest's, `device` the other end of QEMU's link.
    pub(super) fn start(
        spec: &NetworkSpec,
        mac: [u8; 6],
        device: OwnedFd,
        dir: &WorkspaceDir,
    ) -> Result<Network, WorkspaceFailure> {
        let listeners = listen_at(&spec.publish).map_err(|e| port_failure(&e))?;
        let log = BoundedLog::append_to(&dir.egress_log(), EGRESS_LOG_LIMIT)
            .map_err(|e| full_or_boot(&e, "log of the network"))?;
        let instructions = Instructions {
            egress: spec.egress.clone(),
            guest_mac: mac,
            mtu: LINK_MTU,
            host_addresses: HostAddresses::now().map_err(|e| full_or_boot(&e, "the host's addresses"))?,
            name_servers: spec.name_servers.clone(),
            names: spec.names.clone(),
            forwards: spec.forwards.clone(),
            bytes_per_second: spec.bps.and_then(NonZeroU64::new),
            published: listeners
                .iter()
                .map(|(_, publish)| (publish.protocol, publish.guest_port.get()))
                .collect(),
        };
        let cannot_start = |error: &io::Error| start_failure(Path::new("microagent"), error);
        let (stack, control) = spawn_stack().map_err(|e| cannot_start(&e))?;
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(device.as_fd())
            .chain(listeners.iter().map(|(socket, _)| socket.as_fd()))
            .collect();
        instruct(&control, &instructions, &descriptors).map_err(|e| cannot_start(&e))?;
        let keep = control.try_clone().map_err(|e| cannot_start(&e))?;
        let log = Rc::new(RefCell::new(log));
        let logger = log_decisions(control, Rc::clone(&log)).map_err(|e| cannot_start(&e))?;
        let process = stack.id().and_then(|pid| ProcessId::of(i32::try_from(pid).ok()?));
        let published = listeners.iter().map(|(_, publish)| *publish).collect();
        Ok(Network { stack, process, published, log, logger, control: keep, is_lost: false })
    }

    /// What the stack says on its standard error, once.
    pub(super) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.stack.stderr.take()
    }

    /// For the record; none of a stack that has ended already.
    pub(super) fn link(&self) -> Option<Link> {
        let stack = self.process.clone()?;
        Some(Link { stack, published: self.published.clone() })
    }

    /// Waits for the stack's end and says how it came about, once. Cancel-safe.
    pub(super) async fn lost(&mut self) -> String {
        if self.is_lost {
            std::future::pending::<()>().await;
        }
        let status = self.stack.wait().await;
        if status.as_ref().is_ok_and(ExitStatus::success) {
            // QEMU has closed the link, mostly because it ends.
            sleep(QEMU_PATIENCE).await;
        }
        self.is_lost = true;
        record(&self.log, &network_down());
        match status {
            Ok(status) => format!("the network stack ended ({status})"),
            Err(error) => format!("the network stack cannot be waited for: {error}"),
        }
    }

    /// Ends it without waiting for anything that is still on its way.
    pub(super) async fn sever(mut self) {
        let _ = self.stack.start_kill();
        self.end().await;
    }

    /// Ends the stack, and waits until its decisions are written down.
    pub(super) async fn end(mut self) {
        // Fails when the stack is gone already.
        let _ = self.control.shutdown(Shutdown::Write);
        if timeout(END_PATIENCE, self.stack.wait()).await.is_err() {
            let _ = self.stack.start_kill();
            let _ = timeout(REAP_DEADLINE, self.stack.wait()).await;
        }
        let _ = timeout(END_PATIENCE, &mut self.logger).await;
    }
}

/// Starts the process; gives the control socket.
fn spawn_stack() -> io::Result<(Child, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    let args = [SUPERVISE_ARGUMENT.into(), NETWORK_STACK_ARGUMENT.into()];
    let stack = spawn(Program {
        path: Path::new(THIS_PROGRAM),
        args: &args,
        inherit: &[],
        stdin: Some(theirs.into()),
        jail: None,
    })?;
    Ok((stack, ours))
}

/// Writes down what the stack decides. A stack that says anything else was taken over: it is not listened to any more.
fn log_decisions(control: StdUnixStream, log: Shared<BoundedLog>) -> io::Result<JoinHandle<()>> {
    control.set_nonblocking(true)?;
    let mut reader = BufReader::new(UnixStream::from_std(control)?);
    Ok(spawn_local(async move {
        let mut line = Vec::new();
        while let Ok(1..) = (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line).await {
            let Ok(decision) = serde_json::from_slice::<Decision>(&line) else { break };
            record(&log, &decision);
            line.clear();
        }
    }))
}

fn network_down() -> Decision {
    Decision {
        at: Timestamp::now(),
        record: Subject::Network,
        protocol: None,
        name: None,
        address: None,
        port: None,
        target: None,
        allowed: false,
        reason: Reason::Down,
        count: None,
    }
}

fn record(log: &RefCell<BoundedLog>, decision: &Decision) {
    let mut line = serde_json::to_vec(decision).expect("a decision is plain data");
    line.push(b'\n');
    log.borrow_mut().append(&line);
}

fn port_failure(error: &PortError) -> WorkspaceFailure {
    WorkspaceFailure { kind: FailureKind::PortUnavailable, message: format!("{error}: {}", error.source) }
}
