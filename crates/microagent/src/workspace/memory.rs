//! Machines that begin with the memory of a snapshot: rolled back, or as another machine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;

use microagent_model::{Resources, SIGTERM, SnapshotTag, WorkspaceName};
use microagent_proto::chain;
use microagent_store::{OneStart, SnapshotDir, WorkspaceRecord, read_json, write_json};
use microagent_vm::template::MachineShape;
use microagent_vm::{Capture, CapturedMemory, DiskStamp, MachineSpec, SupervisorSpec, Work};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::fork_volumes::CopiedVolume;
use super::from_spec::SpecChanges;
use super::lifecycle::StartOptions;
use super::origin::Origin;
use super::snapshot::Snapshots;
use super::{DeleteMode, Workspace, WorkspaceDetails};
use crate::blocking::blocking;
use crate::digest::sha256;
use crate::error::{Action, SnapshotError};
use crate::supervisor_spec::{HostPrograms, MachineRequest};
use crate::{Error, Event, Progress};

/// `memory.json` of a snapshot: what its memory can be restored in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MemoryRecord {
    bytes: u64,
    token: [u8; 16],
    resources: Resources,
    shape: MachineShape,
    /// SHA-256 of the memory, in hexadecimal digits. Missing in what only one command uses, and of earlier releases.
    #[serde(default)]
    sha256: Option<String>,
}

impl MemoryRecord {
    /// Describes a memory that was written to this file.
    pub(super) fn new(
        file: &File,
        token: [u8; 16],
        capture: &Capture,
        resources: Resources,
    ) -> io::Result<MemoryRecord> {
        let bytes = file.metadata()?.len();
        Ok(MemoryRecord { bytes, token, resources, shape: capture.shape.clone(), sha256: None })
    }

    /// The same, so that changes of the memory's file are noticed.
    pub(super) fn with_digest(self, memory: &Path) -> io::Result<MemoryRecord> {
        Ok(MemoryRecord { sha256: Some(sha256(memory)?), ..self })
    }

    /// Length of the memory.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Size of the machine.
    pub(super) fn resources(&self) -> Resources {
        self.resources
    }

    /// Writes it.
    pub(super) fn save(&self, place: &SnapshotDir) -> Result<(), Error> {
        Ok(write_json(&place.memory_record(), self)?)
    }
}

/// Whatever such a file says, it is read again as it is written, and fits the machine that it describes.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_for_fuzzing(bytes: &[u8]) {
    let Ok(record) = serde_json::from_slice::<MemoryRecord>(bytes) else { return };
    let written = serde_json::to_vec(&record).expect("a record is plain data");
    let again: MemoryRecord = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!((again.bytes, again.token, again.sha256), (record.bytes, record.token, record.sha256));
    assert_eq!((again.resources, again.shape.difference(&record.shape)), (record.resources, None));
}

/// The memory of a snapshot, for one start.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotMemory {
    snapshot: String,
    path: PathBuf,
    record: MemoryRecord,
}

impl SnapshotMemory {
    /// A memory in this file.
    pub(super) fn new(snapshot: String, path: PathBuf, record: MemoryRecord) -> SnapshotMemory {
        SnapshotMemory { snapshot, path, record }
    }

    /// What it can be restored in.
    pub(super) fn into_record(self) -> MemoryRecord {
        self.record
    }

    /// The size of the machine, if it differs from the workspace's.
    pub(super) fn size(&self, record: &WorkspaceRecord) -> Option<OneStart> {
        let size_mib = record.resources.size_mib;
        let resources = Resources { size_mib, ..self.record.resources };
        (resources != record.resources).then(|| OneStart { profile: record.profile.clone(), resources })
    }

    /// What there is to say where the disk was enlarged since: the guest learns its size when it boots.
    pub(super) fn smaller_disk(&self, record: &WorkspaceRecord) -> Option<String> {
        let (then, now) = (self.record.resources.size_mib, record.resources.size_mib);
        (then < now).then(|| {
            let name = &record.name;
            format!(
                "the disk of workspace {name} has {now} MiB; its guest, which is that of the snapshot, uses {then} MiB of \
                 them until it boots"
            )
        })
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
    /// The memory of a snapshot, if it has one. It is as it was written, which takes a read of all of it.
    pub(super) fn load_memory(&self, origin: &Origin) -> Result<Option<SnapshotMemory>, Error> {
        let (workspace, found) = (self.workspace(), &origin.files);
        workspace.load_snapshot(origin)?;
        let has_memory = found.load().is_ok_and(|manifest| manifest.has_memory);
        if !has_memory && !found.memory().exists() && !found.memory_record().exists() {
            return Ok(None);
        }
        let damaged = |reason: String| origin.damaged(&workspace.name, reason);
        let record: MemoryRecord =
            read_json(&found.memory_record()).map_err(|e| damaged(format!("its memory: {}", chain(&e))))?;
        let bytes = std::fs::metadata(found.memory()).map(|found| found.len());
        let bytes = bytes.map_err(|e| damaged(format!("its memory: {e}")))?;
        if bytes != record.bytes {
            return Err(damaged(format!("its memory has {bytes} bytes of {}", record.bytes)));
        }
        if let Some(expected) = &record.sha256 {
            let sum = sha256(&found.memory()).map_err(|e| damaged(format!("its memory: {e}")))?;
            if sum != *expected {
                return Err(damaged("its memory was changed".to_owned()));
            }
        }
        let path = std::path::absolute(found.memory());
        let path = path.map_err(|source| Error::File { action: "find", path: found.memory(), source })?;
        Ok(Some(SnapshotMemory { snapshot: origin.shown(&workspace.name), path, record }))
    }

    async fn memory(&self, origin: &Origin) -> Result<Option<SnapshotMemory>, Error> {
        let (snapshots, origin) = (self.clone(), origin.clone());
        blocking(move || snapshots.load_memory(&origin)).await
    }

    /// Restores the root disk of the resting workspace to the snapshot, and starts it: with the processes that it had
    /// then, if the snapshot has the memory.
    ///
    /// # Errors
    /// As [`Snapshots::restore`] and [`Workspace::start`]. If `progress` is cancelled after the disk was restored, the error
    /// is [`SnapshotError::OnlyRestored`].
    pub async fn start(&self, tag: &SnapshotTag, progress: &Progress) -> Result<WorkspaceDetails, Error> {
        let workspace = self.workspace();
        let record = workspace.observe()?;
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(workspace.wrong_state(state, Action::Start));
        }
        let origin = self.origin(tag)?;
        let memory = self.memory(&origin).await?;
        if let Some(memory) = &memory {
            workspace.check_memory(&record, &origin, memory)?;
        }
        progress.check()?;
        let restored = self.restore_disk(tag).await?;
        match workspace.start_with(restored, StartOptions::new(), memory, progress).await {
            Ok(()) => workspace.details(),
            Err(Error::Cancelled) => {
                let (workspace, tag) = (workspace.name.clone(), tag.clone());
                Err(SnapshotError::OnlyRestored { workspace, tag }.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a workspace as [`Snapshots::create_workspace`] does, and starts it: with the processes that this one had at the
    /// snapshot, if the snapshot has the memory. It is a machine of its own before any of them continues: entropy, clock, host
    /// name, machine id, hardware address. Its connections are reset, and commands of clients have ended. Published ports of
    /// the host are picked anew.
    ///
    /// # Errors
    /// Fails if the snapshot does not exist, is damaged, or its memory does not fit this host, if the workspace is
    /// quarantined, or if the name is taken: then nothing is created. Neither is anything kept if no machine could be
    /// started, for example because too many run, a secret has no value, or `progress` was cancelled. If the machine fails, the workspace is kept in
    /// state `failed`.
    pub async fn start_workspace(
        &self,
        tag: &SnapshotTag,
        name: &WorkspaceName,
        progress: &Progress,
    ) -> Result<Workspace, Error> {
        Ok(self.start_from(&self.origin(tag)?, name, None, progress).await?.0)
    }

    /// The same, also from a capture that is no snapshot, with the copies of volumes that it has.
    pub(super) async fn start_from(
        &self,
        origin: &Origin,
        name: &WorkspaceName,
        changes: Option<&SpecChanges<'_>>,
        progress: &Progress,
    ) -> Result<(Workspace, Vec<CopiedVolume>), Error> {
        self.check_free(Action::UseSnapshot)?;
        progress.check()?;
        let memory = self.memory(origin).await?;
        if let Some(memory) = &memory {
            let (snapshots, origin) = (self.clone(), origin.clone());
            let record = blocking(move || snapshots.workspace().load_snapshot(&origin)).await?;
            memory.check_record(self.workspace(), &record)?;
        }
        let (created, copies) = self.create_unpublished(origin, name, progress.token()).await?;
        let record = match changes {
            Some(changes) => changes.make(&created, memory.is_some()).await?,
            None => created.observe()?,
        };
        let (resting, began) = (record.machine.state, record.machine.changed_at);
        if let Err(error) = created.start_with(record, StartOptions::new(), memory, progress).await {
            let untouched = created.observe().is_ok_and(|now| {
                now.machine.state == resting && now.machine.changed_at == began && !now.has_machine()
            });
            if untouched || matches!(error, Error::Cancelled) {
                // It has done nothing that anybody wants. That it cannot be removed is not the error to report.
                let _ = created.delete(DeleteMode::Kill).await;
                created.engine.remove_copies(&copies).await;
            }
            return Err(error);
        }
        Ok((created, copies))
    }
}

impl SnapshotMemory {
    /// Fails if a machine of this record would not be like the one that was captured.
    pub(super) fn check_record(&self, workspace: &Workspace, record: &WorkspaceRecord) -> Result<(), Error> {
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
    /// Restores the running workspace to the snapshot.
    pub(super) async fn roll_back(&self, tag: &SnapshotTag, progress: &Progress) -> Result<(), Error> {
        let snapshots = self.snapshots();
        let record = self.observe()?;
        let origin = snapshots.origin(tag)?;
        let Some(memory) = snapshots.memory(&origin).await? else {
            let with_memory = snapshots.list().await?.into_iter();
            let with_memory =
                with_memory.filter(|snapshot| snapshot.memory_bytes.is_some()).map(|snapshot| snapshot.tag);
            let (workspace, tag, with_memory) = (self.name.clone(), tag.clone(), with_memory.collect());
            return Err(SnapshotError::NoMemory { workspace, tag, with_memory }.into());
        };
        self.check_memory(&record, &origin, &memory)?;
        progress.check()?;
        self.check_free(Action::Restore)?;
        // The machine that runs is lost from here on, so a cancellation does not leave the workspace without one.
        let completed = progress.clone().cancel(CancellationToken::new());
        let mut restoring = pin!(async {
            // What it has not written yet would be lost anyway.
            self.kill().await?;
            let restored = snapshots.restore_disk(tag).await?;
            self.start_with(restored, StartOptions::new(), Some(memory), &completed).await
        });
        tokio::select! {
            restored = &mut restoring => return restored,
            () = progress.token().cancelled() => {}
        }
        let (name, snapshot) = (&self.name, origin.shown(&self.name));
        progress.event(Event::Notice(format!(
            "it is too late to cancel: workspace {name} is being restored to {snapshot}, which is completed"
        )));
        restoring.await
    }

    /// Reports how a machine is being started.
    pub(super) fn announce(
        &self,
        programs: &HostPrograms,
        memory: Option<&SnapshotMemory>,
        progress: &Progress,
    ) {
        if memory.is_none() {
            return self.booting(programs, progress);
        }
        let (workspace, backend) = (self.name.to_string(), programs.backend().to_owned());
        progress.event(Event::Restoring { workspace, backend });
    }

    /// Fails if a machine of the workspace with its present settings would not be like the one that was captured.
    fn check_memory(
        &self,
        record: &WorkspaceRecord,
        origin: &Origin,
        memory: &SnapshotMemory,
    ) -> Result<(), Error> {
        let snapshot = self.load_snapshot(origin)?;
        if snapshot.disks != record.disks {
            let what = "disks of the workspace";
            return Err(SnapshotError::OtherMachine { snapshot: memory.snapshot.clone(), what }.into());
        }
        memory.check_record(self, record)
    }
}
