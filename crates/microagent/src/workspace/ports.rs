//! Published ports of a workspace that exists: more of them, or fewer. They stay for its next starts.

use microagent_model::{NetworkMode, PORTS_MAX, PortSelector, Publish, State, published_twice};
use microagent_store::{WorkspaceDir, WorkspaceRecord};
use microagent_vm::control::{close_port, open_port};
use microagent_vm::{BoundPort, bind_published};

use super::{Workspace, lock_patiently};
use crate::Error;
use crate::error::Action;
use crate::invalid::InvalidRequest;

impl Workspace {
    /// Publishes more ports: at once when it has a machine, and at each of its next starts. All of them or none. Gives them
    /// with the ports of the host that they have now; 0 stands for one that is picked at each start.
    ///
    /// # Errors
    /// Fails when there is no network, a port is taken, or the workspace is neither resting nor has a machine that can be
    /// reached.
    pub async fn publish(&self, ports: &[Publish]) -> Result<Vec<Publish>, Error> {
        let dir = self.existing()?;
        let record = self.observe()?;
        if record.has_machine() {
            check_ports(&record, record.observed_publish(), ports)?;
            return self.publish_live(&dir, ports).await;
        }
        self.check_rests(&record)?;
        let _lock = lock_patiently(&self.name, &dir).await?;
        let mut record = WorkspaceRecord::load(&dir)?;
        self.check_rests(&record)?;
        check_ports(&record, &record.publish, ports)?;
        record.publish.extend(ports);
        record.save(&dir)?;
        Ok(ports.to_vec())
    }

    /// Publishes a port no more: at once when it has a machine, whose open connections stay open, and at each of its next
    /// starts. Gives the port.
    ///
    /// # Errors
    /// Fails when not exactly one port is the one that is named, or the workspace is neither resting nor has a machine that
    /// can be reached.
    pub async fn unpublish(&self, selector: PortSelector) -> Result<Publish, Error> {
        let dir = self.existing()?;
        let record = self.observe()?;
        if record.has_machine() {
            let at = self.select(record.observed_publish(), selector)?;
            let bound = record.observed_publish()[at];
            self.changed(close_port(&dir, bound).await, Action::Publish)?;
            return Ok(bound);
        }
        self.check_rests(&record)?;
        let _lock = lock_patiently(&self.name, &dir).await?;
        let mut record = WorkspaceRecord::load(&dir)?;
        self.check_rests(&record)?;
        let at = self.select(&record.publish, selector)?;
        let removed = record.publish.remove(at);
        record.save(&dir)?;
        Ok(removed)
    }

    async fn publish_live(&self, dir: &WorkspaceDir, ports: &[Publish]) -> Result<Vec<Publish>, Error> {
        // All are bound before the first is given away, so that mostly none has to be taken back.
        let bound: Vec<BoundPort> =
            ports.iter().map(|port| bind_published(*port)).collect::<Result<_, _>>()?;
        for (done, (asked, port)) in ports.iter().zip(&bound).enumerate() {
            let opened = self.changed(open_port(dir, *asked, port).await, Action::Publish);
            if let Err(error) = opened {
                for earlier in &bound[..done] {
                    // The machine may have ended; the first error says more.
                    let _ = close_port(dir, earlier.publish).await;
                }
                return Err(error);
            }
        }
        Ok(bound.iter().map(|port| port.publish).collect())
    }

    fn check_rests(&self, record: &WorkspaceRecord) -> Result<(), Error> {
        let state: State = record.observed_state();
        if record.disposable {
            return Err(InvalidRequest::Leftover { name: self.name.clone(), verb: "changed" }.into());
        }
        if state.is_resting() { Ok(()) } else { Err(self.wrong_state(state, Action::Publish)) }
    }

    /// Which port is named.
    fn select(&self, publish: &[Publish], selector: PortSelector) -> Result<usize, InvalidRequest> {
        let all: Vec<usize> = (0..publish.len()).filter(|at| selector.covers(&publish[*at])).collect();
        let name = self.name.clone();
        match all[..] {
            [at] => Ok(at),
            [] => Err(InvalidRequest::PortUnknown { name, selector }),
            _ => Err(InvalidRequest::PortAmbiguous { name, selector, count: all.len() }),
        }
    }
}

/// Refuses what cannot be published in addition to what is.
fn check_ports(
    record: &WorkspaceRecord,
    published: &[Publish],
    more: &[Publish],
) -> Result<(), InvalidRequest> {
    if let (NetworkMode::Isolated, Some(port)) = (record.network, more.first()) {
        return Err(InvalidRequest::PublishIsolated { guest_port: port.guest_port.get() });
    }
    let all = [published, more].concat();
    if all.len() > PORTS_MAX {
        return Err(InvalidRequest::TooManyPorts { count: all.len() });
    }
    match published_twice(&all) {
        Some(publish) => Err(InvalidRequest::PublishedTwice { publish }),
        None => Ok(()),
    }
}
