//! What a workspace's disk has that its image has not, and the disk as a tar stream.
//!
//! The guest compares its disks, as for a commit ([`Workspace::commit`]), and sends paths in place of a layer. A running
//! guest is shown the base disk of its image meanwhile; the disk of a resting workspace is booted together with it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use microagent_model::{State, WorkspaceName};
use microagent_proto::{Diff, DiffForm, Request};
use microagent_vm::machine::{BASE_SCSI_TARGET, EXTRA_SCSI_TARGET, ROOT_SCSI_TARGET};
use microagent_vm::{Claim, ExtraDisk};

use super::Workspace;
use super::copy::{COPY_TIMEOUT, QUEUE, STREAM_SLACK, pass_on};
use crate::error::{Action, ConnectionFault};
use crate::guest::{GuestConnection, TarLimits};
use crate::provision::MIB;
use crate::streaming::Streaming;
use crate::{Error, Event, Progress};

/// Deadline for the comparison of two disks.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Most bytes of paths that are listed.
const PATHS_LIMIT: usize = 64 * 1024 * 1024;

/// What a workspace's disk has that its image has not, from [`Workspace::changes`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DiskChanges {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// The changed paths, in their order.
    pub changes: Vec<PathChange>,
    /// Whether there were more: 64 MiB of paths are listed at most.
    pub is_cut: bool,
}

/// A changed path.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathChange {
    /// What happened to it.
    pub kind: PathChangeKind,
    /// Absolute path in the guest. Bytes that are not UTF-8 are replaced.
    pub path: String,
}

/// What happened to a path since the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathChangeKind {
    /// The image does not have it.
    Added,
    /// It is another file, has other content or attributes, or is a directory with changes in it.
    Changed,
    /// The image has it, and the workspace does not.
    Deleted,
}

impl Workspace {
    /// Lists the paths that were added, changed and deleted since the image. The workspace is running or
    /// [resting](microagent_model::State::is_resting); the disk of a resting one is booted without its service. What is
    /// mounted (volumes, file systems in memory) and the files that name the machine are left out, as in a commit. What
    /// a running guest changes meanwhile may be listed or not.
    ///
    /// # Errors
    /// Fails if the workspace is in another state ([`WrongState`](crate::ErrorKind::WrongState)), another command
    /// compares its disk ([`Busy`](crate::ErrorKind::Busy)), the guest cannot compare its disks
    /// ([`RunFailed`](crate::ErrorKind::RunFailed)), or `progress` is cancelled.
    pub async fn changes(&self, progress: &Progress) -> Result<DiskChanges, Error> {
        progress.check()?;
        let record = self.observe()?;
        let (guest, base_scsi_target) = match record.observed_state() {
            State::Running | State::Starting => {
                let guest = self.running_guest(Action::Compare)?.cancelled_by(progress.token());
                (guest.with_base_disk(), BASE_SCSI_TARGET)
            }
            _ => {
                let path = self.engine.image_store().disk_path(&record.image.disk);
                let base = ExtraDisk { path, read_only: true, claim: Claim::None };
                (self.resting_guest(vec![base], Action::Compare, progress).await?, EXTRA_SCSI_TARGET)
            }
        };
        progress.event(Event::Comparing { workspace: self.name.to_string() });
        let request = Request::Diff(Diff {
            root_scsi_target: ROOT_SCSI_TARGET,
            base_scsi_target,
            form: DiffForm::Paths,
        });
        // The reader ends before this limit does.
        let limits = TarLimits { bytes: u64::MAX, time: COMPARE_TIMEOUT };
        let workspace = self.name.clone();
        let list = move |stream| {
            let gone = |source| Error::GuestGone {
                workspace: workspace.clone(),
                source: ConnectionFault::Tar(source),
            };
            let (changes, is_cut) = listed(stream, PATHS_LIMIT).map_err(gone)?;
            Ok(DiskChanges { workspace, changes, is_cut })
        };
        guest.fetch_tar(&request, limits, list, progress).await
    }

    /// Copies the root disk to a tar file, and returns its size. A regular file is replaced when the new one is complete.
    ///
    /// # Errors
    /// As [`Workspace::export`], or if the file cannot be written. Then no regular file is created or changed.
    pub async fn export_to(&self, path: &Path, progress: &Progress) -> Result<u64, Error> {
        let (guest, limits) = self.root_disk(progress).await?;
        let path = path.to_owned();
        let failed =
            move |path: &Path, source| Error::File { action: "write", path: path.to_owned(), source };
        let write = move |stream| write_file(stream, &path).map_err(|e| failed(&path, e));
        guest.fetch_tar(&Request::PackRoot, limits, write, progress).await
    }

    /// Copies the root disk to a stream of tar data: everything but what is mounted over its directories (volumes, file
    /// systems in memory). The data is what the guest sends: it is not checked. The disk of a resting workspace is booted
    /// without its service.
    ///
    /// # Errors
    /// As [`Workspace::copy_out_tar`].
    pub async fn export(&self, progress: &Progress) -> Result<Streaming<Vec<u8>>, Error> {
        let (guest, TarLimits { bytes: limit, .. }) = self.root_disk(progress).await?;
        let progress = progress.clone();
        Ok(Streaming::start(QUEUE, |sender| async move {
            let sent = tokio::time::timeout(
                COPY_TIMEOUT,
                pass_on(&guest, &Request::PackRoot, limit, &sender, &progress),
            )
            .await;
            let late = || Err(guest.gone(ConnectionFault::Late { seconds: COPY_TIMEOUT.as_secs() }));
            let sent = sent.unwrap_or_else(|_| late());
            let left = guest.leave().await;
            sent.and(left)
        }))
    }

    /// The guest with the root disk and no other disk, and what a stream of it may have.
    async fn root_disk(&self, progress: &Progress) -> Result<(GuestConnection, TarLimits), Error> {
        progress.check()?;
        let record = self.observe()?;
        let bytes = record.resources.size_mib.saturating_mul(MIB).saturating_mul(STREAM_SLACK);
        let guest = match record.observed_state() {
            State::Running | State::Starting => {
                self.running_guest(Action::ReadDisk)?.cancelled_by(progress.token())
            }
            _ => self.resting_guest(Vec::new(), Action::ReadDisk, progress).await?,
        };
        Ok((guest, TarLimits { bytes, time: COPY_TIMEOUT }))
    }
}

/// Writes a stream to a file: a regular one by another name first, anything else as it comes.
fn write_file(mut stream: impl Read, path: &Path) -> io::Result<u64> {
    if path.exists() && !path.is_file() {
        return io::copy(&mut stream, &mut File::options().write(true).open(path)?);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".microagent-export-").tempfile_in(dir)?;
    let bytes = io::copy(&mut stream, file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(bytes)
}

/// Reads what the guest lists: a letter, a path and a zero byte each. The second value is whether there was more.
fn listed(stream: impl Read, limit: usize) -> io::Result<(Vec<PathChange>, bool)> {
    let mut bytes = Vec::new();
    stream.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    let is_cut = bytes.len() > limit;
    let mut changes = Vec::new();
    let mut entries = bytes.split(|byte| *byte == 0).peekable();
    while let Some(entry) = entries.next() {
        // What comes after the last zero byte is nothing, or cut.
        if entries.peek().is_none() {
            if !is_cut && !entry.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            break;
        }
        let kind = match entry.first() {
            Some(b'A') => PathChangeKind::Added,
            Some(b'C') => PathChangeKind::Changed,
            Some(b'D') => PathChangeKind::Deleted,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        changes.push(PathChange { kind, path: String::from_utf8_lossy(&entry[1..]).into_owned() });
    }
    Ok((changes, is_cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(bytes: &[u8], limit: usize) -> Option<(Vec<String>, bool)> {
        let (changes, is_cut) = listed(bytes, limit).ok()?;
        let shown = changes.into_iter().map(|change| format!("{:?} {}", change.kind, change.path));
        Some((shown.collect(), is_cut))
    }

    #[test]
    fn what_the_guest_lists_is_read_up_to_a_limit() {
        let all = b"C/etc\0A/etc/a b\0D/x\xff\0";
        let wanted = ["Changed /etc", "Added /etc/a b", "Deleted /x\u{fffd}"].map(str::to_owned);
        assert_eq!(paths(all, 100), Some((wanted.to_vec(), false)));
        assert_eq!(paths(all, all.len()), Some((wanted.to_vec(), false)));
        assert_eq!(paths(all, 10), Some((wanted[..1].to_vec(), true)));
        assert_eq!(paths(b"", 10), Some((Vec::new(), false)));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for bad in [&b"X/etc\0"[..], b"\0", b"C/etc"] {
            assert_eq!(paths(bad, 100), None, "{bad:?}");
        }
    }

    #[test]
    fn a_file_is_replaced_when_the_new_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.tar");
        assert_eq!(write_file(&b"one"[..], &path).unwrap(), 3);
        struct Torn;
        impl Read for Torn {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("torn"))
            }
        }
        write_file(b"new".chain(Torn), &path).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(write_file(&b"x"[..], Path::new("/dev/null")).unwrap(), 1);
    }
}
