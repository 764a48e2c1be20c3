//! Locks of a machine's further disks, held until this supervisor ends.

use std::fs::File;

use microagent_model::{FailureKind, WorkspaceFailure};
use microagent_store::{Access, HeldVolume, HoldError, ProcessId, StateDir, VolumeHolder, open_file};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{end_orphan, write_failure};
use crate::spec::{Claim, ExtraDisk, Outcome, SupervisorSpec};

/// The held locks. They are released when this is dropped or the process ends.
#[derive(Debug, Default)]
pub(super) struct Claims {
    volumes: Vec<HeldVolume>,
    /// In the order of the machine's disks.
    files: Vec<File>,
    workspace: String,
}

impl Claims {
    /// Locks all disks of the machine, or none.
    pub(super) fn take(spec: &SupervisorSpec, state: &StateDir) -> Result<Claims, Outcome> {
        let mut claims = Claims { workspace: spec.name.clone(), ..Claims::default() };
        for disk in &spec.machine.extra_disks {
            match &disk.claim {
                Claim::None => {}
                Claim::Volume(name) => claims.volumes.push(hold(state, name, disk.read_only)?),
                Claim::File => claims.files.push(lock(disk)?),
            }
        }
        claims.note(None).map_err(Outcome::Failed)?;
        Ok(claims)
    }

    /// The images that are no volumes, as they were opened.
    pub(super) fn files(&self) -> &[File] {
        &self.files
    }

    /// Records the holder of the volumes, because QEMU may outlive this process for a moment.
    pub(super) fn note(&mut self, vmm: Option<ProcessId>) -> Result<(), WorkspaceFailure> {
        let holder =
            VolumeHolder { workspace: self.workspace.clone(), supervisor: ProcessId::current(), vmm };
        self.volumes.iter_mut().try_for_each(|volume| volume.note(&holder).map_err(|e| write_failure(&e)))
    }
}

fn failed(message: String) -> Outcome {
    Outcome::Failed(WorkspaceFailure { kind: FailureKind::Disk, message })
}

fn hold(
    state: &StateDir,
    name: &microagent_model::VolumeName,
    read_only: bool,
) -> Result<HeldVolume, Outcome> {
    let volume = state.volume(name);
    let held = if read_only { volume.hold_for_reading() } else { volume.hold() };
    let held = held.map_err(|error| match error {
        HoldError::Held { holder, .. } => Outcome::DiskBusy { disk: format!("volume `{name}`"), holder },
        error => failed(error.to_string()),
    })?;
    for holder in held.dead_holders() {
        if let Ok(workspace) = holder.workspace.parse() {
            end_orphan(&holder.processes(&state.workspace(&workspace))).map_err(failed)?;
        }
    }
    Ok(held)
}

/// A lock on the image itself. What opens is what was named, whatever has become of that name meanwhile.
fn lock(disk: &ExtraDisk) -> Result<File, Outcome> {
    let shown = disk.path.display();
    let file = open_file(&disk.path, Access::Read)
        .map_err(|e| failed(format!("the disk `{shown}` cannot be used: {e}")))?;
    let operation = match disk.read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    match flock(&file, operation) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(Outcome::DiskBusy { disk: format!("disk `{shown}`"), holder: None }),
        Err(errno) => Err(failed(format!("the disk `{shown}` cannot be locked: {errno}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn disk(path: &Path, read_only: bool) -> ExtraDisk {
        ExtraDisk { path: path.to_owned(), read_only, claim: Claim::File }
    }

    #[test]
    fn a_file_has_one_writer_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.ext4");
        std::fs::write(&path, "x").unwrap();
        let readers = [lock(&disk(&path, true)).unwrap(), lock(&disk(&path, true)).unwrap()];
        assert!(matches!(lock(&disk(&path, false)), Err(Outcome::DiskBusy { holder: None, .. })));
        drop(readers);
        let _writer = lock(&disk(&path, false)).unwrap();
        assert!(matches!(lock(&disk(&path, true)), Err(Outcome::DiskBusy { .. })));
    }

    #[test]
    fn only_regular_files_are_disks() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::write(&target, "x").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        for path in [link.as_path(), &fifo, dir.path(), Path::new("/dev/null"), &dir.path().join("none")] {
            assert!(matches!(lock(&disk(path, false)), Err(Outcome::Failed(_))), "{}", path.display());
        }
    }
}
