//! The network stack of a machine, as the supervisor sees it: a process of its own, which is this program again.
//!
//! The supervisor listens at the published ports and starts the stack before QEMU, so a machine whose port is taken
//! does not boot. It writes down what the stack decides, and believes nothing of it beyond its shape.

use std::cell::RefCell;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::Publish;
use microagent_model::egress::{Decision, Reason, Subject};
use microagent_model::{FailureKind, WorkspaceFailure};
use microagent_net::{HostAddresses, PortNumber};
use microagent_store::{Link, ProcessId, SUPERVISE_ARGUMENT, WorkspaceDir};
use tokio::process::{Child, ChildStderr};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use super::machine::{REAP_DEADLINE, start_failure};
use super::{Shared, full_or_boot};
use crate::bounded_log::BoundedLog;
use crate::machine::LINK_MTU;
use crate::network_stack::{Instructions, NETWORK_STACK_ARGUMENT, StackChannel, instruct};
use crate::ports::{PortError, listen_at};
use crate::spawn::{Program, spawn};
use crate::spec::NetworkSpec;

/// This program, even if its file was replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// How long a stack may take to end when its control socket closes.
const END_PATIENCE: Duration = Duration::from_secs(4);

/// How long QEMU may take to end when it has closed the link.
const QEMU_PATIENCE: Duration = Duration::from_millis(500);

/// Limit of the log of decisions in bytes (twice that on disk): some ten thousand decisions.
const EGRESS_LOG_LIMIT: u64 = 4 * 1024 * 1024;

/// Longest decision in bytes as a line: a name of 253 characters, each of which may be written as four.
const LINE_LIMIT: usize = 4096;

/// A running network stack.
pub(super) struct Network {
    stack: Child,
    process: Option<ProcessId>,
    ports: Vec<PublishedPort>,
    last_number: PortNumber,
    log: Shared<BoundedLog>,
    /// Ends when the stack's last decision was written down.
    logger: JoinHandle<()>,
    channel: Rc<StackChannel>,
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
        };
        let cannot_start = |error: &io::Error| start_failure(Path::new("microagent"), error);
        let (stack, control) = spawn_stack().map_err(|e| cannot_start(&e))?;
        let (channel, theirs) = StackChannel::pair().map_err(|e| cannot_start(&e))?;
        instruct(&control, &instructions, [device.as_fd(), theirs.as_fd()]).map_err(|e| cannot_start(&e))?;
        let (channel, log) = (Rc::new(channel), Rc::new(RefCell::new(log)));
        let logger = spawn_local(log_decisions(Rc::clone(&channel), Rc::clone(&log)));
        let process = stack.id().and_then(|pid| ProcessId::of(i32::try_from(pid).ok()?));
        let ports: Vec<PublishedPort> = (1..)
            .zip(listeners)
            .map(|(number, (socket, publish))| PublishedPort { number, publish, socket: Some(socket) })
            .collect();
        let last_number = ports.len() as PortNumber;
        let network = Network { stack, process, ports, last_number, log, logger, channel, is_lost: false };
        network.open_all().map_err(|e| cannot_start(&e))?;
        Ok(network)
    }

    /// Gives the stack the sockets of all published ports.
    fn open_all(&self) -> io::Result<()> {
        let ports: Vec<_> = self
            .ports
            .iter()
            .filter_map(|port| Some((port.number, port.publish, port.socket.as_ref()?.as_fd())))
            .collect();
        if ports.is_empty() { Ok(()) } else { self.channel.open_ports(&ports) }
    }

    /// The published ports, in the order in which they came.
    pub(super) fn published(&self) -> impl Iterator<Item = Publish> {
        self.ports.iter().map(|port| port.publish)
    }

    /// Publishes one more port, by a socket that is bound and listens.
    pub(super) fn open_port(&mut self, publish: Publish, socket: OwnedFd) -> io::Result<()> {
        let number = self.last_number + 1;
        self.channel.open_ports(&[(number, publish, socket.as_fd())])?;
        self.last_number = number;
        self.ports.push(PublishedPort { number, publish, socket: Some(socket) });
        Ok(())
    }

    /// Stops publishing a port. Open connections stay open.
    pub(super) fn close_port(&mut self, at: usize) -> io::Result<()> {
        let port = self.ports.remove(at);
        self.channel.close_port(port.number)?;
        // It is free at once, though the stack has the socket for a moment. One of UDP cannot be shut down.
        if let Some(socket) = port.socket {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        Ok(())
    }

    /// What the stack says on its standard error, once.
    pub(super) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.stack.stderr.take()
    }

    /// For the record; none of a stack that has ended already.
    pub(super) fn link(&self) -> Option<Link> {
        let stack = self.process.clone()?;
        Some(Link { stack, published: self.published().collect() })
    }

    /// Waits for the stack's end and returns how it ended, once. Cancel-safe.
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
        for port in &mut self.ports {
            // Nobody takes clients at it any more: they are refused.
            port.socket = None;
        }
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
        self.channel.end();
        if timeout(END_PATIENCE, self.stack.wait()).await.is_err() {
            let _ = self.stack.start_kill();
            let _ = timeout(REAP_DEADLINE, self.stack.wait()).await;
        }
        let _ = timeout(END_PATIENCE, &mut self.logger).await;
    }
}

/// A published port.
struct PublishedPort {
    number: PortNumber,
    publish: Publish,
    /// Kept for as long as it is published; none without a stack that serves it.
    socket: Option<OwnedFd>,
}

/// Starts the process; gives the socket for its instructions.
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
async fn log_decisions(channel: Rc<StackChannel>, log: Shared<BoundedLog>) {
    while let Ok(lines) = channel.decisions().await {
        if lines.is_empty() {
            return;
        }
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let decision = serde_json::from_slice::<Decision>(line);
            let Some(decision) = decision.ok().filter(|_| line.len() <= LINE_LIMIT) else { return };
            record(&log, &decision);
        }
    }
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
