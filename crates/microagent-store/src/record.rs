//! `workspace.json` and `result.json`: what a workspace is and how its run ended.
//!
//! `workspace.json` has the settings. Only commands write it, under the lock of the settings ([`SettingsLock`]); the
//! supervisor of a machine cannot. What the supervisor tells of the machine is in [`MachineState`], and nothing in it says what
//! the next start does. Reading changes nothing: a state that says `running` while its supervisor is gone is reported as
//! `failed` ([`WorkspaceRecord::observed_state`]) and left as it is.

use std::path::PathBuf;

use jiff::Timestamp;
use microagent_model::{
    Artifact, Attachment, Broker, DnsSettings, EgressPolicy, FailureKind, Forward, GuestSettings,
    ImageIdentity, Labels, Layer, LinkState, NetworkMode, NetworkName, Publish, RateLimits, Resources,
    RestartPolicy, SecretReference, SnapshotName, State, WorkspaceFailure, WorkspaceName,
};
use serde::{Deserialize, Serialize};

use crate::atomic::{Durability, ReadError, WriteError, read_json, write_json};
use crate::{MachineProcesses, MachineState, OneStart, ProcessId, SettingsLock, WorkspaceDir};

/// Format of the records that this build writes.
///
/// 1: one-shot runs only. 2: identity and restart policy. 3: attached disks, published ports, egress policy, secrets.
/// 4: `workload.json` has scripts as text. 5: published ports of UDP and of IPv6 addresses, rate limits.
/// 6: layers of the root disk. 7: settings only; the state of the machine is in a file of its own.
/// 8: private networks, health checks, layers that a running machine may still write.
/// What an older record lacks it is read without.
pub const WORKSPACE_FORMAT: u32 = 8;

/// First format whose record has no state of a machine, and whose directory has `machine/`.
pub(crate) const SETTINGS_FORMAT: u32 = 7;

/// What makes a machine the same one at every start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `/etc/machine-id`: 32 lower-case hexadecimal digits.
    pub machine_id: String,
    /// Hardware address of its network device.
    pub mac: [u8; 6],
}

/// `workspace.json`, and the state of the workspace's machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkspaceRecord {
    /// Format of this record.
    pub format: u32,
    /// The workspace's name, also the name of its directory.
    pub name: WorkspaceName,
    /// When the workspace was made.
    pub created_at: Timestamp,
    /// Where its disk came from.
    pub image: ImageIdentity,
    /// Name of the profile that the sizes started from.
    pub profile: String,
    /// Size of the machine.
    pub resources: Resources,
    /// How the guest reaches the network.
    pub network: NetworkMode,
    /// Host name in the guest.
    pub hostname: String,
    /// The same at every start; a workspace of format 1 gets one at its next.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// When `supervise` starts it again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Further disks, in the order in which they are mounted.
    #[serde(default)]
    pub disks: Vec<Attachment>,
    /// Ports of the host that lead into the guest.
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// What the guest may reach, on network `user`.
    #[serde(default)]
    pub egress: EgressPolicy,
    /// How it looks names up.
    #[serde(default)]
    pub dns: DnsSettings,
    /// Servers of the host that it reaches by ports of `host.microagent.internal`.
    #[serde(default)]
    pub forwards: Vec<Forward>,
    /// Its brokers; where their secrets are, never what they are.
    #[serde(default)]
    pub brokers: Vec<Broker>,
    /// Private networks that it joins, in their order.
    #[serde(default)]
    pub networks: Vec<NetworkName>,
    /// How fast it may use the host's disk and network.
    #[serde(default)]
    pub limits: RateLimits,
    /// Secrets that each start delivers; where they are, never what they are.
    #[serde(default)]
    pub secrets: Vec<SecretReference>,
    /// Names and values that the user gave it.
    #[serde(default)]
    pub labels: Labels,
    /// Settings of the guest's system.
    #[serde(default)]
    pub settings: GuestSettings,
    /// Declared outputs.
    pub outputs: Vec<Artifact>,
    /// Whether the workspace goes away when its run ends well.
    pub disposable: bool,
    /// Layers of the root disk between base disk and overlay, the lowest one first.
    #[serde(default)]
    pub layers: Vec<Layer>,
    /// The snapshot that it was created from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_snapshot: Option<SnapshotName>,
    /// State of the current or last machine, from a file of its own: [`MachineState::save`] writes it.
    #[serde(skip, default = "unknown")]
    pub machine: MachineState,
}

fn unknown() -> MachineState {
    MachineState::resting(State::Prepared, Timestamp::UNIX_EPOCH)
}

/// `result.json`: how the last workload ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RecordedResult {
    /// When the command was started in the guest (host clock).
    pub started_at: Timestamp,
    /// When it ended.
    pub exited_at: Timestamp,
    /// Exit code; 128 + number for a signal, 127 not found, 126 not executable.
    pub exit_code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Why the command could not be started, if it could not.
    pub start_error: Option<String>,
    /// Bytes of output that were dropped because the bound was reached.
    pub dropped_bytes: u64,
    /// The program that the kernel killed while the command ran, because memory ran out.
    pub out_of_memory: Option<String>,
    /// Mount point of a disk that was full when the command failed.
    pub disk_full: Option<String>,
}

/// Why a workspace record could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The record is missing, unreadable or damaged.
    #[error("cannot load workspace `{name}`")]
    Read {
        /// The workspace.
        name: String,
        /// What is wrong with the file.
        source: ReadError,
    },
    /// Written by a newer release; refusing beats guessing.
    #[error("record `{}` has format {found}, this build reads up to {newest}", path.display())]
    TooNew {
        /// The record.
        path: PathBuf,
        /// The format found there.
        found: u32,
        /// The newest that this build reads of such records.
        newest: u32,
    },
}

impl LoadError {
    /// Whether there simply is no such workspace.
    pub fn is_not_found(&self) -> bool {
        matches!(self, LoadError::Read { source, .. } if source.is_not_found())
    }
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl WorkspaceRecord {
    /// Loads the record of a workspace.
    ///
    /// # Errors
    /// Fails when there is none, it is damaged, or a newer release wrote it.
    pub fn load(dir: &WorkspaceDir) -> Result<WorkspaceRecord, LoadError> {
        let path = dir.record();
        let name = || dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let read = |source| LoadError::Read { name: name(), source };
        // The format first: a newer record may lack or add fields, and "too new" is the true answer then.
        let FormatOnly { format: found } = read_json(&path).map_err(read)?;
        if found > WORKSPACE_FORMAT {
            return Err(LoadError::TooNew { path, found, newest: WORKSPACE_FORMAT });
        }
        let record: WorkspaceRecord = read_json(&path).map_err(read)?;
        let machine = match found < SETTINGS_FORMAT {
            true => MachineState::of_older_record(&path).map_err(read)?,
            false => MachineState::load(dir, record.created_at),
        };
        // A workspace is called as its directory, also when it was renamed after its record was written.
        let called = name().parse().unwrap_or(record.name);
        // The format is what it is written as from here on.
        Ok(WorkspaceRecord { format: WORKSPACE_FORMAT, name: called, machine, ..record }
            .without_strangers(dir))
    }

    /// Writes the settings, atomically.
    ///
    /// # Errors
    /// Fails when the file cannot be replaced; the old settings are then still there.
    pub fn save(&self, dir: &WorkspaceDir, _lock: &SettingsLock) -> Result<(), WriteError> {
        write_json(&dir.record(), self)
    }

    /// Writes settings and state of a workspace or snapshot that is being made, which nobody else knows yet.
    ///
    /// # Errors
    /// Fails when a file cannot be written.
    pub fn save_new(&self, dir: &WorkspaceDir) -> Result<(), WriteError> {
        self.machine.save(dir)?;
        dir.write_json(&dir.record(), self)
    }

    /// What its files survive. A disposable run ends with its host, so nothing of it has to survive a loss of power:
    /// what is left then is found as a damaged or failed workspace, and can be deleted.
    pub fn durability(&self) -> Durability {
        if self.disposable { Durability::Cached } else { Durability::Flushed }
    }

    /// Loads the record with the state that is true now. A supervisor that ends between the two looks has
    /// written its last word by the second.
    ///
    /// # Errors
    /// As [`WorkspaceRecord::load`].
    pub fn observe(dir: &WorkspaceDir) -> Result<WorkspaceRecord, LoadError> {
        let record = WorkspaceRecord::load(dir)?;
        if record.observed_state() == record.machine.state { Ok(record) } else { WorkspaceRecord::load(dir) }
    }

    /// The root disk: a qcow2 overlay on the topmost layer, or on the image's base disk.
    pub fn disk(&self, dir: &WorkspaceDir) -> PathBuf {
        dir.disk_on(self.layers.last())
    }

    /// The current state: a state with a machine whose supervisor has ended is `failed`, and one without its VMM is on
    /// its way down, because the supervisor is about to say so.
    pub fn observed_state(&self) -> State {
        if !self.machine.state.is_live() {
            self.machine.state
        } else if !is_alive(self.machine.supervisor.as_ref()) {
            State::Failed
        } else if matches!(self.machine.state, State::Running | State::Paused)
            && !is_alive(self.machine.vmm.as_ref())
        {
            State::Stopping
        } else {
            self.machine.state
        }
    }

    /// The processes of the current or last machine.
    pub fn processes<'a>(&'a self, dir: &'a WorkspaceDir) -> MachineProcesses<'a> {
        MachineProcesses::of(dir.path(), self.machine.supervisor.as_ref(), self.machine.vmm.as_ref())
    }

    /// Without the processes that run and are no processes of this workspace.
    fn without_strangers(mut self, dir: &WorkspaceDir) -> WorkspaceRecord {
        let processes = self.processes(dir);
        let is_stranger = |named: &Option<ProcessId>, is_ours: bool| is_alive(named.as_ref()) && !is_ours;
        let vmm = is_stranger(&self.machine.vmm, processes.vmm().is_some());
        let supervisor = is_stranger(&self.machine.supervisor, processes.supervisor().is_some());
        self.machine.vmm = self.machine.vmm.filter(|_| !vmm);
        self.machine.supervisor = self.machine.supervisor.filter(|_| !supervisor);
        self
    }

    /// Whether its machines have a network device: an isolated one has it only for its forwarded ports, brokers and
    /// private networks.
    pub fn has_network_device(&self) -> bool {
        self.network == NetworkMode::User
            || !self.forwards.is_empty()
            || !self.brokers.is_empty()
            || !self.networks.is_empty()
    }

    /// The current state of the machine's network; `None` without network or machine.
    pub fn observed_link(&self) -> Option<LinkState> {
        if !self.has_network_device() || !self.observed_state().is_live() {
            return None;
        }
        let is_up = self.machine.link.as_ref().is_some_and(|link| link.stack.is_alive());
        Some(if is_up { LinkState::Up } else { LinkState::Down })
    }

    /// The published ports: while there is a machine, with the ports of the host that are listened at, else as they were
    /// asked for.
    pub fn observed_publish(&self) -> &[Publish] {
        match &self.machine.link {
            Some(link) if self.observed_state().is_live() => &link.published,
            _ => &self.publish,
        }
    }

    /// When the machine ends by itself, if it has a time to live.
    pub fn observed_expiry(&self) -> Option<Timestamp> {
        self.machine.expires_at.filter(|_| self.observed_state().is_live())
    }

    /// Whether a machine of this workspace exists now, in whatever state.
    pub fn has_machine(&self) -> bool {
        match self.observed_state() {
            State::Quarantined => is_alive(self.machine.supervisor.as_ref()),
            state => state.is_live(),
        }
    }

    /// The profile that is true now: that of the machine, else that of the workspace.
    pub fn observed_profile(&self) -> &str {
        self.observed_size().map_or(&self.profile, |size| &size.profile)
    }

    /// The size that is true now: that of the machine, else that of the workspace.
    pub fn observed_resources(&self) -> Resources {
        self.observed_size().map_or(self.resources, |size| size.resources)
    }

    fn observed_size(&self) -> Option<&OneStart> {
        self.machine.one_start.as_ref().filter(|_| self.has_machine())
    }

    /// Why the workspace is `failed`, or has lost what it was quarantined with, also if no process recorded it.
    pub fn observed_failure(&self) -> Option<WorkspaceFailure> {
        match self.observed_state() {
            State::Failed if self.machine.state != State::Failed => {
                let rebooted =
                    self.machine.supervisor.as_ref().is_some_and(|process| !process.is_of_this_boot());
                let message = if rebooted { "the host was restarted" } else { "its supervisor was killed" };
                Some(WorkspaceFailure { kind: FailureKind::SupervisorDied, message: message.to_owned() })
            }
            State::Quarantined if self.machine.failure.is_none() && !self.has_machine() => {
                let message =
                    "its memory is lost: its supervisor was killed, or the host restarted".to_owned();
                Some(WorkspaceFailure { kind: FailureKind::SupervisorDied, message })
            }
            State::Failed | State::Quarantined => self.machine.failure.clone(),
            _ => None,
        }
    }
}

fn is_alive(process: Option<&ProcessId>) -> bool {
    process.is_some_and(ProcessId::is_alive)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Link, StateDir};

    pub(crate) fn record() -> WorkspaceRecord {
        WorkspaceRecord {
            format: WORKSPACE_FORMAT,
            name: "web".parse().unwrap(),
            created_at: Timestamp::UNIX_EPOCH,
            image: ImageIdentity {
                reference: "busybox".into(),
                resolved_reference: "docker.io/library/busybox:latest".into(),
                digest: "sha256:0".into(),
                disk: "sha256:1".into(),
            },
            profile: "small".into(),
            resources: Resources { memory_mib: 512, cpu_count: 2, size_mib: 1024 },
            network: NetworkMode::User,
            hostname: "web".into(),
            identity: None,
            restart: RestartPolicy::default(),
            disks: Vec::new(),
            publish: Vec::new(),
            dns: DnsSettings::default(),
            forwards: Vec::new(),
            networks: Vec::new(),
            brokers: Vec::new(),
            egress: EgressPolicy::default(),
            limits: RateLimits::default(),
            secrets: Vec::new(),
            labels: Labels::new(),
            settings: GuestSettings::default(),
            outputs: Vec::new(),
            disposable: false,
            layers: Vec::new(),
            from_snapshot: None,
            machine: MachineState::resting(State::Running, Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn a_link_is_that_of_live_processes() {
        let me = ProcessId::current();
        let publish = |port| Publish { host_port: port, ..("0:80".parse::<Publish>().unwrap()) };
        let mut record = WorkspaceRecord { publish: vec![publish(0)], ..record() };
        record.machine.supervisor = me.clone();
        record.machine.vmm = me.clone();
        assert_eq!(record.observed_link(), Some(LinkState::Down));
        assert_eq!(record.observed_publish(), [publish(0)]);
        record.machine.link = Some(Link { stack: me.clone().unwrap(), published: vec![publish(8080)] });
        assert_eq!(record.observed_link(), Some(LinkState::Up));
        assert_eq!(record.observed_publish(), [publish(8080)]);
        let gone = ProcessId { start_time: 0, ..me.unwrap() };
        record.machine.link.as_mut().unwrap().stack = gone;
        assert_eq!(record.observed_link(), Some(LinkState::Down));
        record.network = NetworkMode::Isolated;
        assert_eq!(record.observed_link(), None);
        record.network = NetworkMode::User;
        record.machine.supervisor = None;
        assert_eq!((record.observed_link(), record.observed_publish()), (None, &[publish(0)][..]));
    }

    #[test]
    fn another_size_is_true_as_long_as_its_machine_lives() {
        let resources = Resources { memory_mib: 1024, cpu_count: 1, size_mib: 1024 };
        let mut record = record();
        record.machine.one_start = Some(OneStart { profile: "medium".into(), resources });
        assert_eq!((record.observed_profile(), record.observed_resources()), ("small", record.resources));
        record.machine.supervisor = ProcessId::current();
        record.machine.vmm = ProcessId::current();
        assert_eq!((record.observed_profile(), record.observed_resources()), ("medium", resources));
        record.machine.state = State::Halted;
        assert_eq!((record.observed_profile(), record.observed_resources()), ("small", record.resources));
    }

    #[test]
    fn running_without_a_supervisor_is_failed() {
        let mut record = record();
        assert_eq!(record.observed_state(), State::Failed);
        assert_eq!(record.observed_failure().unwrap().kind, FailureKind::SupervisorDied);
        record.machine.supervisor = ProcessId::current();
        assert_eq!((record.observed_state(), record.observed_failure()), (State::Stopping, None));
        record.machine.vmm = ProcessId::current();
        assert_eq!(record.observed_state(), State::Running);
        let earlier = ProcessId { boot_id: "earlier".into(), ..ProcessId::current().unwrap() };
        record.machine.supervisor = Some(earlier);
        assert_eq!(record.observed_failure().unwrap().message, "the host was restarted");
    }

    #[test]
    fn no_end_of_a_process_lifts_a_quarantine() {
        let mut record = record();
        record.machine.state = State::Quarantined;
        record.machine.supervisor = ProcessId::current();
        assert!(record.has_machine());
        assert_eq!((record.observed_state(), record.observed_failure()), (State::Quarantined, None));
        record.machine.supervisor = None;
        assert!(!record.has_machine());
        assert_eq!(record.observed_state(), State::Quarantined);
        assert!(record.observed_failure().unwrap().message.contains("its memory is lost"));
    }

    #[test]
    fn a_newer_record_is_refused_and_a_torn_one_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        state.prepare().unwrap();
        let workspace = state.workspace(&"web".parse().unwrap());
        std::fs::create_dir(workspace.path()).unwrap();
        assert!(WorkspaceRecord::load(&workspace).unwrap_err().is_not_found());

        record().save_new(&workspace).unwrap();
        assert_eq!(WorkspaceRecord::load(&workspace).unwrap().hostname, "web");

        let mut older: serde_json::Value = crate::read_json(&workspace.record()).unwrap();
        for field in [
            "identity", "restart", "disks", "publish", "egress", "dns", "forwards", "brokers", "networks",
            "limits", "secrets",
        ] {
            older.as_object_mut().unwrap().remove(field);
        }
        older["format"] = 1.into();
        older["state"] = "halted".into();
        older["changed_at"] = older["created_at"].clone();
        write_json(&workspace.record(), &older).unwrap();
        assert_eq!(WorkspaceRecord::load(&workspace).unwrap().restart, RestartPolicy::Never);

        let newer = WORKSPACE_FORMAT + 1;
        std::fs::write(workspace.record(), format!("{{\"format\": {newer}}}")).unwrap();
        assert!(
            matches!(WorkspaceRecord::load(&workspace), Err(LoadError::TooNew { found, .. }) if found == newer)
        );

        std::fs::write(workspace.record(), br#"{"format": 1, "na"#).unwrap();
        assert!(matches!(
            WorkspaceRecord::load(&workspace),
            Err(LoadError::Read { source: ReadError::Decode { .. }, .. })
        ));
    }
}
