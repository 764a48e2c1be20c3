//! What a restart checks before it ends the machine that runs.

use microagent_store::{Workload, processes_are_hidden};
use microagent_vm::choose_ports;

use super::Workspace;
#[cfg(doc)]
use crate::ErrorKind;
use crate::error::{Action, InvalidRequest};
use crate::host_memory::check_host_memory;
use crate::provision::check_size;
use crate::{Error, Progress};

impl Workspace {
    /// Checks what can be known of the next [`start`](Workspace::start) before it: size, private networks, disks, programs of
    /// the host, secrets, and, of a resting workspace, ports. A running one holds its ports itself. Changes nothing.
    ///
    /// # Errors
    /// Fails as the start would: if a private network or volume does not exist ([`NotFound`](ErrorKind::NotFound)), the size
    /// is not valid ([`Invalid`](ErrorKind::Invalid)), a port is taken ([`PortUnavailable`](ErrorKind::PortUnavailable)), or
    /// a secret has no value ([`Secret`](ErrorKind::Secret)). Also if the workspace is quarantined
    /// ([`WrongState`](ErrorKind::WrongState)): what follows this check would end its machine.
    pub async fn check_start(&self, progress: &Progress) -> Result<(), Error> {
        progress.check()?;
        let engine = &self.engine;
        let record = self.observe()?;
        self.check_free(Action::Start)?;
        if record.disposable {
            return Err(InvalidRequest::Leftover { name: self.name.clone(), verb: "started" }.into());
        }
        check_size(record.resources)?;
        check_host_memory(record.resources.memory_mib)?;
        if processes_are_hidden() {
            return Err(Error::ProcessesHidden);
        }
        engine.check_networks(&record.networks)?;
        if record.observed_state().is_resting() {
            choose_ports(&record.publish).map_err(|error| engine.port_error(error))?;
        }
        let dir = self.dir();
        Workload::load(&dir).map_err(|e| self.damaged(e))?;
        engine.disks(&record.disks, &dir)?;
        engine.host_programs(record.network)?;
        engine.resolve_secrets(&record.secrets, &record.brokers, progress.token()).await?;
        // That took its time.
        self.check_free(Action::Start)
    }
}
