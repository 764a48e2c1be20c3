//! Adds and removes published ports of an existing workspace, also for its later starts.

use microagent_model::{NetworkMode, PORTS_MAX, PortSelector, Publish, State, published_twice};
use microagent_store::{WorkspaceDir, WorkspaceRecord};
use microagent_vm::control::{close_port, open_port};
use microagent_vm::{BoundPort, bind_published};

use super::{Workspace, lock_patiently};
use crate::Error;
use crate::error::Action;
use crate::invalid::InvalidRequest;

impl Workspace {
    /// Publishes more ports: at once if it has a machine, and at each later start. Either all of them or none.
    /// Returns them with their ports of the host; 0 is a port that is picked at each start.
    ///
    /// # Errors
    /// Fails if there is no network, a port is taken, or its machine cannot be reached.
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

    /// Stops publishing a port: at once if it has a machine, and at each later start. Open connections stay open.
    /// Returns the port.
    ///
    /// # Errors
    /// Fails if no port or several ports match, or its machine cannot be reached.
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

    /// Finds the port.
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

/// Checks new ports against the published ones.
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
