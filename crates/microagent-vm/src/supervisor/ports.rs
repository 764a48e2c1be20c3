//! Published ports of a machine that has started: clients add and remove some. A client brings the socket, as a
//! confined supervisor opens none; the record has the ports for the next start.

use std::os::fd::OwnedFd;

use microagent_model::{FailureKind, PORTS_MAX, Publish, WorkspaceFailure};

use super::control_server::{PendingPort, PortChange};
use super::machine::Machine;
use super::{Driver, write_failure};
use crate::control::{Answer, Refusal};

impl Driver {
    /// Publishes one port more or less, in the machine and in the record.
    pub(super) fn change_port(&mut self, PendingPort { change, reply }: PendingPort, machine: &mut Machine) {
        let changed = match change {
            PortChange::Open { asked, bound, socket } => self.open_port(machine, (asked, bound), socket),
            PortChange::Close(bound) => self.close_port(machine, bound),
        };
        // A client that is gone misses nothing.
        let _ = reply.send(changed.map_or_else(|answer| answer, |()| Answer::Done));
    }

    fn open_port(
        &mut self,
        machine: &mut Machine,
        (asked, bound): (Publish, Publish),
        socket: OwnedFd,
    ) -> Result<(), Answer> {
        let (Some(network), Some(record)) = (machine.network(), &mut self.record) else {
            return Err(self.has_no_network());
        };
        if network.published().count() != record.publish.len() {
            return Err(failed("the machine publishes no ports: it only prepares the workspace".to_owned()));
        }
        if record.publish.len() >= PORTS_MAX {
            return Err(failed(format!("{PORTS_MAX} ports are published, which is the limit")));
        }
        network.open_port(bound, socket).map_err(|error| failed(format!("the network stack: {error}")))?;
        record.publish.push(asked);
        record.link = network.link();
        if let Err(error) = record.save(&self.dir) {
            let at = record.publish.len() - 1;
            record.publish.pop();
            // A stack that took the order a moment ago takes this one.
            let _ = network.close_port(at);
            record.link = network.link();
            return Err(Answer::Failed(write_failure(&error)));
        }
        self.publish_from_now_on();
        Ok(())
    }

    fn close_port(&mut self, machine: &mut Machine, bound: Publish) -> Result<(), Answer> {
        let (Some(network), Some(record)) = (machine.network(), &mut self.record) else {
            return Err(self.has_no_network());
        };
        let Some(at) = network.published().position(|publish| publish == bound) else {
            return Err(failed(format!("`{bound}` is not published")));
        };
        // The record first: a port that is closed does not come back at the next start.
        // Its ports and those of the network are in one order.
        let removed = record.publish.remove(at);
        if let Err(error) = record.save(&self.dir) {
            record.publish.insert(at, removed);
            return Err(Answer::Failed(write_failure(&error)));
        }
        let closed = network.close_port(at);
        record.link = network.link();
        let written = record.save(&self.dir);
        self.publish_from_now_on();
        closed.map_err(|error| failed(format!("the network stack: {error}")))?;
        written.map_err(|error| Answer::Failed(write_failure(&error)))
    }

    fn has_no_network(&self) -> Answer {
        Answer::Refused(Refusal::State(self.published.get()))
    }

    /// A machine that boots in the place of one that cannot be restored has the same ports.
    fn publish_from_now_on(&mut self) {
        if let (Some(network), Some(record)) = (&mut self.spec.network, &self.record) {
            network.publish.clone_from(&record.publish);
        }
    }
}

fn failed(message: String) -> Answer {
    Answer::Failed(WorkspaceFailure { kind: FailureKind::PortUnavailable, message })
}
