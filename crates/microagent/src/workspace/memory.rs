//! Machines that begin with the memory of a snapshot: rolled back, or as another machine.

use std::fs::File;
use std::path::PathBuf;

use microagent_model::{Resources, SIGTERM, SnapshotTag, WorkspaceName};
use microagent_store::{OneStart, SnapshotDir, WorkspaceRecord, read_json, write_json};
use microagent_vm::template::MachineShape;
use microagent_vm::{Capture, CapturedMemory, DiskStamp, MachineSpec, SupervisorSpec, Work};
use serde::{Deserialize, Serialize};

use super::lifecycle::StartOptions;
use super::snapshot::Snapshots;
use super::{Workspace, WorkspaceDetails};
use crate::blocking::blocking;
use crate::error::{Action, SnapshotError};
use crate::supervisor_spec::MachineRequest;
use crate::{Error, Progress};

/// `memory.json` of a snapshot: what its memory can be restored in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MemoryRecord {
    bytes: u64,
    token: [u8; 16],
    resources: Resources,
    shape: MachineShape,
}

impl MemoryRecord {
    /// Describes a memory that was written to this file.
    pub(super) fn new(
        file: &File,
        token: [u8; 16],
        capture: &Capture,
        resources: Resources,
    ) -> Result<MemoryRecord, Error> {
        let bytes = file.metadata().map(|found| found.len());
        let bytes =
            bytes.map_err(|source| Error::File { action: "read", path: "the memory".into(), source })?;
        Ok(MemoryRecord { bytes, token, resources, shape: capture.shape.clone() })
    }

    /// Writes it.
    pub(super) fn save(&self, place: &SnapshotDir) -> Result<(), Error> {
        Ok(write_json(&place.memory_record(), self)?)
    }
}

/// The memory of a snapshot, for one start.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotMemory {
    snapshot: String,
    path: PathBuf,
    record: MemoryRecord,
}

impl SnapshotMemory {
    /// The size of the machine, if it differs from the workspace's.
    pub(super) fn size(&self, record: &WorkspaceRecord) -> Option<OneStart> {
        let size_mib = record.resources.size_mib;
        let resources = Resources { size_mib, ..self.record.resources };
        (resources != record.resources).then(|| OneStart { profile: record.profile.clone(), resources })
    }

    /// Fails if the machine is not like the one that was captured.
    fn check(&self, machine: &MachineSpec, network: bool) -> Result<(), Error> {
        let now = MachineShape::of(machine, network).map_err(|source| Error::File {
            action: "read",
            path: machine.qemu.clone(),
            source,
        })?;
        match self.record.shape.difference(&now) {
            None => Ok(()),
            Some(what) => Err(SnapshotError::OtherMachine { snapshot: self.snapshot.clone(), what }.into()),
        }
    }

    /// Has the supervisor restore the memory in place of a boot.
    pub(super) fn begin(&self, spec: SupervisorSpec) -> Result<SupervisorSpec, Error> {
        self.check(&spec.machine, spec.network.is_some())?;
        let Some(disk) = &spec.machine.disk else { return Ok(spec) };
        let stamp = DiskStamp::of(&disk.overlay);
        let disk =
            stamp.map_err(|source| Error::File { action: "read", path: disk.overlay.clone(), source })?;
        let restore = Some(CapturedMemory { path: self.path.clone(), token: self.record.token, disk });
        Ok(SupervisorSpec { restore, ..spec })
    }
}

impl Snapshots {
    /// The memory of a snapshot, if it has one.
    pub(super) fn load_memory(&self, tag: &SnapshotTag) -> Result<Option<SnapshotMemory>, Error> {
        let workspace = self.workspace();
        let (_, found) = workspace.load_snapshot(tag)?;
        if !found.memory_record().exists() {
            return Ok(None);
        }
        let damaged = |reason: String| {
            let (workspace, tag) = (workspace.name.clone(), tag.clone());
            Error::from(SnapshotError::Damaged { workspace, tag, reason })
        };
        let record: MemoryRecord = read_json(&found.memory_record()).map_err(|e| damaged(e.to_string()))?;
        let bytes = std::fs::metadata(found.memory()).map(|found| found.len());
        let bytes = bytes.map_err(|e| damaged(format!("its memory: {e}")))?;
        if bytes != record.bytes {
            return Err(damaged(format!("its memory has {bytes} bytes of {}", record.bytes)));
        }
        let path = std::path::absolute(found.memory());
        let path = path.map_err(|source| Error::File { action: "find", path: found.memory(), source })?;
        Ok(Some(SnapshotMemory { snapshot: format!("{}:{tag}", workspace.name), path, record }))
    }

    async fn memory(&self, tag: &SnapshotTag) -> Result<Option<SnapshotMemory>, Error> {
        let (snapshots, tag) = (self.clone(), tag.clone());
        blocking(move || snapshots.load_memory(&tag)).await
    }

    /// Makes the root disk of the resting workspace what it was at the snapshot, and starts it: with the processes that it had
    /// then, if the snapshot has the memory.
    ///
    /// # Errors
    /// As [`Snapshots::restore`] and [`Workspace::start`].
    pub async fn start(&self, tag: &SnapshotTag, progress: &Progress) -> Result<WorkspaceDetails, Error> {
        let workspace = self.workspace();
        let record = workspace.observe()?;
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(workspace.wrong_state(state, Action::Start));
        }
        let memory = self.memory(tag).await?;
        if let Some(memory) = &memory {
            workspace.check_memory(&record, tag, memory)?;
        }
        let restored = self.restore_disk(tag).await?;
        workspace.start_with(restored, StartOptions::new(), memory, progress).await?;
        workspace.details()
    }

    /// Creates a workspace as [`Snapshots::create_workspace`] does, and starts it: with the processes that this one had at the
    /// snapshot, if the snapshot has the memory. It is a machine of its own before any of them continues: entropy, clock, host
    /// name, machine id, hardware address. Its connections are reset, and commands of clients have ended. Published ports of
    /// the host are picked anew.
    ///
    /// # Errors
    /// Fails if the snapshot does not exist, is damaged, or its memory does not fit this host, or if the name is taken: then
    /// nothing is created. If the machine does not start, the workspace is kept in state `failed`.
    pub async fn start_workspace(
        &self,
        tag: &SnapshotTag,
        name: &WorkspaceName,
        progress: &Progress,
    ) -> Result<Workspace, Error> {
        let memory = self.memory(tag).await?;
        if let Some(memory) = &memory {
            let (snapshots, snapshot) = (self.clone(), tag.clone());
            let (record, _) = blocking(move || snapshots.workspace().load_snapshot(&snapshot)).await?;
            memory.check_record(self.workspace(), &record)?;
        }
        let created = self.create_unpublished(tag, name).await?;
        let record = created.observe()?;
        created.start_with(record, StartOptions::new(), memory, progress).await?;
        Ok(created)
    }
}

impl SnapshotMemory {
    /// Fails if a machine of this record would not be like the one that was captured.
    fn check_record(&self, workspace: &Workspace, record: &WorkspaceRecord) -> Result<(), Error> {
        let engine = &workspace.engine;
        let (programs, dir) = (engine.host_programs(record.network)?, workspace.dir());
        let base = engine.image_store().disk_path(&record.image.disk);
        let resources = self.size(record).map_or(record.resources, |size| size.resources);
        let machine = MachineRequest { resources, ..MachineRequest::of(record, &dir, &base)? };
        let work = Work::Serve { service: None, stop_signal: SIGTERM, detached: true, health: None };
        let spec = engine.spec(&programs, &machine, work)?;
        self.check(&spec.machine, spec.network.is_some())
    }
}

impl Workspace {
    /// Makes the running workspace what it was at the snapshot.
    pub(super) async fn roll_back(&self, tag: &SnapshotTag, progress: &Progress) -> Result<(), Error> {
        let snapshots = self.snapshots();
        let record = self.observe()?;
        let Some(memory) = snapshots.memory(tag).await? else {
            return Err(self.wrong_state(record.observed_state(), Action::Restore));
        };
        self.check_memory(&record, tag, &memory)?;
        // What it has not written yet would be lost anyway.
        self.kill().await?;
        let restored = snapshots.restore_disk(tag).await?;
        self.start_with(restored, StartOptions::new(), Some(memory), progress).await
    }

    /// Fails if a machine of the workspace with its present settings would not be like the one that was captured.
    fn check_memory(
        &self,
        record: &WorkspaceRecord,
        tag: &SnapshotTag,
        memory: &SnapshotMemory,
    ) -> Result<(), Error> {
        let (snapshot, _) = self.load_snapshot(tag)?;
        if snapshot.disks != record.disks {
            let what = "disks of the workspace";
            return Err(SnapshotError::OtherMachine { snapshot: memory.snapshot.clone(), what }.into());
        }
        memory.check_record(self, record)
    }
}
