//! The network stack of a machine, as the supervisor sees it: a process of its own, whose keeper is this program again.
//!
//! The supervisor listens at the published ports and starts the keeper before QEMU, so a machine whose port is taken
//! does not boot. The keeper starts the stack, and another one when it ends. The supervisor writes down what a stack
//! decides, and believes nothing of it beyond its shape.

use std::cell::RefCell;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::Publish;
use microagent_model::decisions;
use microagent_model::egress::{Decision, Subject};
use microagent_model::{FailureKind, WorkspaceFailure};
use microagent_net::{HostAddresses, PortNumber};
use microagent_store::{Link, NetworkDir, ProcessId, WorkspaceDir};
use tokio::process::ChildStderr;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use super::brokers::Brokers;
use super::machine::{REAP_DEADLINE, start_failure};
use super::{Shared, full_or_boot};
use crate::bounded_log::BoundedLog;
use crate::handover::spawn_server;
use crate::machine::LINK_MTU;
use crate::network_stack::{
    Instructions, KeeperReport, KeeperReports, NETWORK_STACK_ARGUMENT, StackChannel, instruct,
};
use crate::ports::{PortError, listen_at};
use crate::spawn::{Numbers, Process};
use crate::spec::{Join, NetworkSpec};

/// How long a stack may take to end when its control socket closes.
const END_PATIENCE: Duration = Duration::from_secs(4);

/// How long QEMU may take to end when it has closed the link.
const QEMU_PATIENCE: Duration = Duration::from_millis(500);

/// Limit of the log of decisions in bytes (twice that on disk): some ten thousand decisions.
const EGRESS_LOG_LIMIT: u64 = 4 * 1024 * 1024;

/// Longest decision in bytes as a line: a name of 253 characters, each of which may be written as four.
pub(super) const LINE_LIMIT: usize = 4096;

/// What became of the link.
pub(super) enum LinkChange {
    /// A stack runs; not the first one.
    Restored,
    /// The first stack runs.
    Begun,
    /// The stack has ended, and another one is started; how it ended.
    Interrupted(String),
    /// There is no stack any more; why.
    Lost(String),
}

/// A running network stack with its keeper.
pub(super) struct Network {
    keeper: Process,
    reports: KeeperReports,
    /// The stack; before it is known, its keeper.
    process: Option<ProcessId>,
    has_begun: bool,
    /// Why the last stack has ended.
    last_end: Option<String>,
    ports: Vec<PublishedPort>,
    last_number: PortNumber,
    log: Shared<BoundedLog>,
    /// Each ends when a stack's last decision was written down; the last one is that of the newest stack.
    loggers: Vec<JoinHandle<()>>,
    channel: Rc<StackChannel>,
    brokers: Option<Brokers>,
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
            brokers: spec.brokers.as_ref().map_or(0, |brokers| brokers.count),
            joins: spec.joins.clone(),
            bytes_per_second: spec.bps.and_then(NonZeroU64::new),
            host_files: spec.host_files.clone(),
        };
        let cannot_start = |error: &io::Error| start_failure(Path::new("microagent"), error);
        let log = Rc::new(RefCell::new(log));
        let brokers = spec.brokers.as_ref().map(|brokers| Brokers::start(brokers, &log));
        let (brokers, stacks) = brokers.transpose().map_err(|e| cannot_start(&e))?.unzip();
        let (keeper, control) = spawn_server(NETWORK_STACK_ARGUMENT).map_err(|e| cannot_start(&e))?;
        let (channel, theirs) = StackChannel::pair().map_err(|e| cannot_start(&e))?;
        let (reports, keepers) = KeeperReports::pair().map_err(|e| cannot_start(&e))?;
        let mut descriptors = vec![device.as_fd(), theirs.as_fd(), keepers.as_fd()];
        let member_listeners = listen_for_members(&spec.joins)?;
        descriptors.extend(member_listeners.iter().map(AsFd::as_fd));
        descriptors.extend(stacks.as_ref().map(AsFd::as_fd));
        instruct(&control, &instructions, &descriptors).map_err(|e| cannot_start(&e))?;
        let channel = Rc::new(channel);
        let loggers = vec![spawn_local(log_decisions(Rc::clone(&channel), Rc::clone(&log)))];
        let process = keeper.id().and_then(ProcessId::of);
        let ports: Vec<PublishedPort> = (1..)
            .zip(listeners)
            .map(|(number, (socket, publish))| PublishedPort { number, publish, socket: Some(socket) })
            .collect();
        let last_number = ports.len() as PortNumber;
        let (has_begun, last_end, is_lost) = (false, None, false);
        let network = Network {
            keeper,
            reports,
            process,
            has_begun,
            last_end,
            ports,
            last_number,
            log,
            loggers,
            channel,
            brokers,
            is_lost,
        };
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
        self.while_connected(|channel| channel.open_ports(&[(number, publish, socket.as_fd())]))?;
        self.last_number = number;
        self.ports.push(PublishedPort { number, publish, socket: Some(socket) });
        Ok(())
    }

    /// Stops publishing a port. Open connections stay open.
    pub(super) fn close_port(&mut self, at: usize) -> io::Result<()> {
        let port = self.ports.remove(at);
        self.while_connected(|channel| channel.close_port(port.number))?;
        // It is free at once, though the stack has the socket for a moment. One of UDP cannot be shut down.
        if let Some(socket) = port.socket {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        Ok(())
    }

    /// Orders something of the stack. One that has ended needs no order: the next one gets all ports.
    fn while_connected(&self, order: impl FnOnce(&StackChannel) -> io::Result<()>) -> io::Result<()> {
        match order(&self.channel) {
            Err(error) if !self.is_lost && is_of_ended(&error) => Ok(()),
            ordered => ordered,
        }
    }

    /// The numbers of all that was started for it.
    pub(super) fn children(&self) -> impl Iterator<Item = Numbers> {
        [self.keeper.numbers()].into_iter().chain(self.brokers.as_ref().map(Brokers::numbers))
    }

    /// What its processes say on their standard error, once.
    pub(super) fn take_stderr(&mut self) -> impl Iterator<Item = ChildStderr> {
        let brokers = self.brokers.as_mut().and_then(Brokers::take_stderr);
        self.keeper.take_stderr().into_iter().chain(brokers)
    }

    /// For the record; none of a keeper that has ended already.
    pub(super) fn link(&self) -> Option<Link> {
        let stack = self.process.clone()?;
        Some(Link { stack, published: self.published().collect() })
    }

    /// Waits for the next change. Cancel-safe.
    pub(super) async fn change(&mut self) -> LinkChange {
        if self.is_lost {
            std::future::pending::<()>().await;
        }
        while let Ok(Some((report, channel))) = self.reports.next().await {
            match report {
                KeeperReport::Started { process } => {
                    if let Some(change) = self.take_stack(process, channel) {
                        return change;
                    }
                }
                KeeperReport::Ended { reason, is_replaced } => {
                    record(&self.log, &network_change(false));
                    self.last_end = Some(format!("the network stack ended ({reason})"));
                    if is_replaced {
                        return LinkChange::Interrupted(format!("the network stack ended ({reason})"));
                    }
                }
            }
        }
        LinkChange::Lost(self.lost().await)
    }

    /// Connects to a stack that was started.
    fn take_stack(&mut self, process: Option<ProcessId>, channel: Option<OwnedFd>) -> Option<LinkChange> {
        self.process = process;
        if !std::mem::replace(&mut self.has_begun, true) {
            return Some(LinkChange::Begun);
        }
        // One that has ended meanwhile is reported next.
        self.channel = Rc::new(StackChannel::of(channel?).ok()?);
        self.loggers.retain(|logger| !logger.is_finished());
        self.loggers.push(spawn_local(log_decisions(Rc::clone(&self.channel), Rc::clone(&self.log))));
        let opened = self.open_all();
        opened.is_ok().then(|| {
            record(&self.log, &network_change(true));
            LinkChange::Restored
        })
    }

    /// Waits for the keeper's end, and returns why there is no stack any more. Cancel-safe.
    async fn lost(&mut self) -> String {
        let status = self.keeper.wait().await;
        if status.as_ref().is_ok_and(ExitStatus::success) {
            // QEMU has closed the link, mostly because it ends.
            sleep(QEMU_PATIENCE).await;
        }
        self.is_lost = true;
        for port in &mut self.ports {
            // Nobody takes clients at it any more: they are refused.
            port.socket = None;
        }
        match (status, self.last_end.take()) {
            (Ok(status), None) => {
                record(&self.log, &network_change(false));
                format!("the keeper of the network stack ended ({status})")
            }
            (Ok(_), Some(last_end)) => format!("{last_end}, as all before it that were started again"),
            (Err(error), _) => format!("the keeper of the network stack cannot be waited for: {error}"),
        }
    }

    /// Ends it without waiting for anything that is still on its way.
    pub(super) async fn sever(mut self) {
        // The kernel kills its stack with it.
        self.keeper.kill();
        if let Some(brokers) = self.brokers.take() {
            brokers.sever().await;
        }
        self.end().await;
    }

    /// Ends keeper and stack, and waits until the decisions are written down.
    pub(super) async fn end(self) {
        self.channel.end();
        // This is what the keeper notices.
        let Network { mut keeper, reports, mut loggers, log, brokers, .. } = self;
        if let Some(brokers) = &brokers {
            brokers.expect_end();
        }
        let ending = async {
            // A stack that was started a moment ago ends with its channel.
            while let Ok(Some((_, channel))) = reports.next().await {
                if let Some(channel) = channel.and_then(|channel| StackChannel::of(channel).ok()) {
                    channel.end();
                    loggers.push(spawn_local(log_decisions(Rc::new(channel), Rc::clone(&log))));
                }
            }
        };
        reports.end();
        if timeout(END_PATIENCE, async { (ending.await, keeper.wait().await) }).await.is_err() {
            keeper.kill();
            let _ = timeout(REAP_DEADLINE, keeper.wait()).await;
        }
        if let Some(brokers) = brokers {
            brokers.end().await;
        }
        // Each ends with the last descriptor of a stack.
        for logger in loggers {
            let _ = timeout(END_PATIENCE, logger).await;
        }
    }
}

/// Listens for other members of private networks. The keeper has the sockets from then on: with it they are closed.
fn listen_for_members(joins: &[Join]) -> Result<Vec<OwnedFd>, WorkspaceFailure> {
    let listen = |join: &Join| {
        let listening = NetworkDir::at(&join.dir).listen(join.membership.address);
        listening.map_err(|e| full_or_boot(&e, &format!("network `{}`", join.membership.network)))
    };
    joins.iter().map(listen).collect()
}

/// Whether an error says that the other end of a channel is closed.
fn is_of_ended(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// A published port.
struct PublishedPort {
    number: PortNumber,
    publish: Publish,
    /// Kept for as long as it is published; none without a stack that serves it.
    socket: Option<OwnedFd>,
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

fn network_change(is_up: bool) -> Decision {
    decisions::process_change(Timestamp::now(), Subject::Network, is_up)
}

pub(super) fn record(log: &RefCell<BoundedLog>, decision: &Decision) {
    let mut line = serde_json::to_vec(decision).expect("a decision is plain data");
    line.push(b'\n');
    log.borrow_mut().append(&line);
}

fn port_failure(error: &PortError) -> WorkspaceFailure {
    WorkspaceFailure { kind: FailureKind::PortUnavailable, message: format!("{error}: {}", error.source) }
}
