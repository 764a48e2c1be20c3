//! Adds and removes published ports of an existing workspace, also for its later starts.
//!
//! The settings have the ports of the next start, and commands write them. While there is a machine, its supervisor is told as
//! well, and its state has the ports that are listened at. A port that is added is opened first, one that is removed leaves the
//! settings first: a command that is killed in between leaves a port for this machine only.

use microagent_model::{
    NetworkMode, PORTS_MAX, PortSelector, Publish, State, WorkspaceName, published_twice,
};
use microagent_store::{Lock, SettingsLock, WorkspaceDir, WorkspaceRecord};
use microagent_vm::control::{close_port, open_port};
use microagent_vm::{BoundPort, PortError, bind_published};

use super::{Workspace, lock_patiently, lock_settings};
use crate::error::Action;
use crate::invalid::InvalidRequest;
use crate::{Engine, Error};

impl Engine {
    /// The error of a port, with the workspace that has it if one of this state directory does.
    pub(crate) fn port_error(&self, error: PortError) -> Error {
        let wanted = error.publish;
        let has_it =
            |publish: &Publish| (publish.host_port, publish.protocol) == (wanted.host_port, wanted.protocol);
        let publishes = |name: &WorkspaceName| {
            let record = WorkspaceRecord::observe(&self.state().workspace(name));
            record.is_ok_and(|record| record.has_machine() && record.observed_publish().iter().any(has_it))
        };
        let is_taken = error.source.kind() == std::io::ErrorKind::AddrInUse;
        let names = if is_taken { self.state().workspace_names().unwrap_or_default() } else { Vec::new() };
        match names.into_iter().find(publishes) {
            Some(holder) => Error::PortHeld { publish: wanted, holder },
            None => error.into(),
        }
    }
}

impl Workspace {
    /// Publishes more ports: at once if it has a machine, and at each later start. Either all of them or none.
    /// Returns them with their ports of the host; 0 is a port that is picked at each start.
    ///
    /// # Errors
    /// Fails if there is no network, a port is taken, or its machine cannot be reached.
    pub async fn publish(&self, ports: &[Publish]) -> Result<Vec<Publish>, Error> {
        let dir = self.existing()?;
        if self.observe()?.has_machine() {
            let settings = lock_settings(&self.name, &dir).await?;
            return self.publish_live(&dir, ports, &settings).await;
        }
        let (_lock, settings, mut record) = self.take_resting(&dir).await?;
        check_ports(&record, &record.publish, ports)?;
        record.publish.extend(ports);
        record.save(&dir, &settings)?;
        Ok(ports.to_vec())
    }

    /// Stops publishing a port: at once if it has a machine, and at each later start. Open connections stay open.
    /// Returns the port.
    ///
    /// # Errors
    /// Fails if no port or several ports match, or its machine cannot be reached.
    pub async fn unpublish(&self, selector: PortSelector) -> Result<Publish, Error> {
        let dir = self.existing()?;
        if self.observe()?.has_machine() {
            let settings = lock_settings(&self.name, &dir).await?;
            return self.unpublish_live(&dir, selector, &settings).await;
        }
        let (_lock, settings, mut record) = self.take_resting(&dir).await?;
        let at = self.select(&record.publish, selector)?;
        let removed = record.publish.remove(at);
        record.save(&dir, &settings)?;
        Ok(removed)
    }

    /// Locks the workspace and its settings, if it is resting.
    async fn take_resting(&self, dir: &WorkspaceDir) -> Result<(Lock, SettingsLock, WorkspaceRecord), Error> {
        self.check_rests(&self.observe()?)?;
        let lock = lock_patiently(&self.name, dir).await?;
        let settings = lock_settings(&self.name, dir).await?;
        let record = WorkspaceRecord::load(dir)?;
        self.check_rests(&record)?;
        Ok((lock, settings, record))
    }

    async fn unpublish_live(
        &self,
        dir: &WorkspaceDir,
        selector: PortSelector,
        settings: &SettingsLock,
    ) -> Result<Publish, Error> {
        let mut record = WorkspaceRecord::observe(dir)?;
        let at = self.select(record.observed_publish(), selector)?;
        let bound = record.observed_publish()[at];
        // A disposable run has no next start.
        let kept = record.publish.iter().position(|asked| is_bound_as(asked, &bound));
        if let Some(at) = kept.filter(|_| !record.disposable) {
            record.publish.remove(at);
            record.save(dir, settings)?;
        }
        self.changed(close_port(dir, bound).await, Action::Publish)?;
        Ok(bound)
    }

    async fn publish_live(
        &self,
        dir: &WorkspaceDir,
        ports: &[Publish],
        settings: &SettingsLock,
    ) -> Result<Vec<Publish>, Error> {
        let mut record = WorkspaceRecord::observe(dir)?;
        check_ports(&record, record.observed_publish(), ports)?;
        check_ports(&record, &record.publish, ports)?;
        // All are bound before the first is given away, so that mostly none has to be taken back.
        let bound: Vec<BoundPort> = ports
            .iter()
            .map(|port| bind_published(*port))
            .collect::<Result<_, _>>()
            .map_err(|error| self.engine.port_error(error))?;
        for (done, port) in bound.iter().enumerate() {
            if let Err(error) = self.changed(open_port(dir, port).await, Action::Publish) {
                take_back(dir, &bound[..done]).await;
                return Err(error);
            }
        }
        if !record.disposable {
            record.publish.extend(ports);
            if let Err(error) = record.save(dir, settings) {
                take_back(dir, &bound).await;
                return Err(error.into());
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

/// Closes ports that were just opened.
async fn take_back(dir: &WorkspaceDir, ports: &[BoundPort]) {
    for port in ports {
        // The machine may have ended; what led here says more.
        let _ = close_port(dir, port.publish).await;
    }
}

/// Whether this is how the host listens for a port of the settings, which may have no port of the host.
fn is_bound_as(asked: &Publish, bound: &Publish) -> bool {
    let host_port = if asked.host_port == 0 { 0 } else { bound.host_port };
    *asked == Publish { host_port, ..*bound }
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
