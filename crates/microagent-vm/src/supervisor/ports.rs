//! Published ports of a machine that has started: clients add and remove some. A client brings the socket, as a
//! confined supervisor opens none, and writes the ports of the next start into the settings.

use std::os::fd::OwnedFd;

use microagent_model::{FailureKind, PORTS_MAX, Publish, WorkspaceFailure};

use super::control_server::{PendingPort, PortChange};
use super::machine::Machine;
use super::{Driver, write_failure};
use crate::control::{Answer, Refusal};
use crate::spec::Work;

impl Driver {
    /// Publishes one port more or less.
    pub(super) fn change_port(&mut self, PendingPort { change, reply }: PendingPort, machine: &mut Machine) {
        let changed = match change {
            PortChange::Open { bound, socket } => self.open_port(machine, bound, socket),
            PortChange::Close(bound) => self.close_port(machine, bound),
        };
        // A client that is gone misses nothing.
        let _ = reply.send(changed.map_or_else(|answer| answer, |()| Answer::Done));
    }

    fn open_port(&mut self, machine: &mut Machine, bound: Publish, socket: OwnedFd) -> Result<(), Answer> {
        let (Some(network), Some(record)) = (machine.network(), &mut self.record) else {
            return Err(self.has_no_network());
        };
        if matches!(self.spec.work, Work::Prepare { .. }) {
            return Err(failed("the machine publishes no ports: it only prepares the workspace".to_owned()));
        }
        let count = network.published().count();
        if count >= PORTS_MAX {
            return Err(failed(format!("{PORTS_MAX} ports are published, which is the limit")));
        }
        network.open_port(bound, socket).map_err(|error| failed(format!("the network stack: {error}")))?;
        record.machine.link = network.link();
        record.machine.save(&self.dir).map_err(|error| {
            // A stack that took the order a moment ago takes this one.
            let _ = network.close_port(count);
            record.machine.link = network.link();
            Answer::Failed(write_failure(&error))
        })
    }

    fn close_port(&mut self, machine: &mut Machine, bound: Publish) -> Result<(), Answer> {
        let (Some(network), Some(record)) = (machine.network(), &mut self.record) else {
            return Err(self.has_no_network());
        };
        let Some(at) = network.published().position(|publish| publish == bound) else {
            return Err(failed(format!("`{bound}` is not published")));
        };
        let closed = network.close_port(at);
        record.machine.link = network.link();
        let written = record.machine.save(&self.dir);
        closed.map_err(|error| failed(format!("the network stack: {error}")))?;
        written.map_err(|error| Answer::Failed(write_failure(&error)))
    }

    fn has_no_network(&self) -> Answer {
        Answer::Refused(Refusal::State(self.published.get()))
    }
}

fn failed(message: String) -> Answer {
    Answer::Failed(WorkspaceFailure { kind: FailureKind::PortUnavailable, message })
}
