//! The brokers of a machine, as the supervisor sees them: processes of their own, whose guard is this program again.
//!
//! The supervisor starts the guard before QEMU, hands it the values of the credentials, and writes down what it reports
//! of requests. It believes nothing of a report beyond its shape.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use microagent_model::egress::{Decision, Subject};
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::process::ChildStderr;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;

use super::Shared;
use super::machine::REAP_DEADLINE;
use super::network::{LINE_LIMIT, record};
use crate::bounded_log::BoundedLog;
use crate::brokers::{BROKERS_ARGUMENT, brokers_change, instruct};
use crate::handover::spawn_server;
use crate::network_stack::messages::message_pair;
use crate::spawn::{Numbers, Process};
use crate::spec::BrokersSpec;

/// How long they may take to end when the network stack has ended.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// How long the guard may take to end when nothing can be heard of it any more.
const GUARD_PATIENCE: Duration = Duration::from_secs(1);

/// How long what a killed process has said may take.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Running brokers.
pub(super) struct Brokers {
    numbers: Numbers,
    stderr: Option<ChildStderr>,
    /// Ends when the guard is gone and all that was reported is written down.
    watch: JoinHandle<()>,
    kill: Rc<Notify>,
    is_ending: Rc<Cell<bool>>,
}

impl Brokers {
    /// Starts them; gives what network stacks send connections to.
    pub(super) fn start(spec: &BrokersSpec, log: &Shared<BoundedLog>) -> io::Result<(Brokers, OwnedFd)> {
        let (mut guard, control) = spawn_server(BROKERS_ARGUMENT)?;
        let (stacks, connections) = message_pair()?;
        let (reports, audit) = message_pair()?;
        instruct(&control, &spec.instructions.0, [connections.as_fd(), audit.as_fd()])?;
        let (kill, is_ending) = (Rc::new(Notify::new()), Rc::new(Cell::new(false)));
        let (numbers, stderr) = (guard.numbers(), guard.take_stderr());
        let watch = Watch {
            guard,
            reports: UnixDatagram::from_std(reports.into())?,
            log: Rc::clone(log),
            kill: Rc::clone(&kill),
            is_ending: Rc::clone(&is_ending),
        };
        Ok((Brokers { numbers, stderr, watch: spawn_local(watch.until_ended()), kill, is_ending }, stacks))
    }

    /// The guard's numbers.
    pub(super) fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// What guard and brokers say on their standard error, once.
    pub(super) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.stderr.take()
    }

    /// Notes that their end is wanted.
    pub(super) fn expect_end(&self) {
        self.is_ending.set(true);
    }

    /// Waits until they have ended, as they do when the last network stack has; kills them if they do not.
    pub(super) async fn end(mut self) {
        self.expect_end();
        if timeout(END_PATIENCE, &mut self.watch).await.is_err() {
            self.sever().await;
        }
    }

    /// Kills them.
    pub(super) async fn sever(mut self) {
        self.expect_end();
        self.kill.notify_one();
        let _ = timeout(REAP_DEADLINE, &mut self.watch).await;
    }
}

/// Attends to the guard.
struct Watch {
    guard: Process,
    reports: UnixDatagram,
    log: Shared<BoundedLog>,
    kill: Rc<Notify>,
    is_ending: Rc<Cell<bool>>,
}

impl Watch {
    async fn until_ended(mut self) {
        let is_killed = tokio::select! {
            biased;
            () = self.kill.notified() => true,
            // Ends when guard and brokers are gone, or one of them says what no broker says.
            () = log_requests(&self.reports, &self.log) => false,
        };
        if is_killed || timeout(GUARD_PATIENCE, self.guard.wait()).await.is_err() {
            // The kernel kills the process that serves with it.
            self.guard.kill();
            let _ = timeout(DRAIN_PATIENCE, log_requests(&self.reports, &self.log)).await;
        }
        let status = self.guard.wait().await;
        // A guard that gives up has said so.
        if !self.is_ending.get() && status.is_ok_and(|status| status.code().is_none()) {
            record(&self.log, &brokers_change(false));
        }
    }
}

/// Writes down what brokers report. Brokers that say anything else were taken over: they are not listened to any more.
async fn log_requests(reports: &UnixDatagram, log: &RefCell<BoundedLog>) {
    let mut line = vec![0; LINE_LIMIT + 1];
    loop {
        let receive = || Ok(recv(reports, &mut *line, RecvFlags::DONTWAIT)?.0);
        let received = reports.async_io(Interest::READABLE, receive).await;
        let Ok(len @ 1..=LINE_LIMIT) = received else { return };
        let Ok(decision) = serde_json::from_slice::<Decision>(&line[..len]) else { return };
        if !matches!(decision.record, Subject::Request | Subject::Brokers | Subject::Suppressed) {
            return;
        }
        record(log, &decision);
    }
}
