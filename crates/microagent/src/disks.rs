//! The further disks of a workspace: checks them before anything is created, creates the disks of bundles, and passes
//! all of them to the machine.
//! The host checks names, kinds and sizes. Only the guest reads the content of a disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use microagent_image::bundle::{self, BUNDLE_LIMITS};
use microagent_image::{ImageError, StandardInput};
use microagent_model::{Attachment, DiskSource, VolumeName};
use microagent_proto::Mount;
use microagent_store::{Scratch, UnplacedVolume, VolumeRecord, WorkspaceDir};
use microagent_vm::machine::EXTRA_SCSI_TARGET;
use microagent_vm::{Claim, ExtraDisk};
use rustix::fs::OFlags;
use tokio_util::sync::CancellationToken;

use crate::attachment::{STANDARD_INPUT, described};
use crate::error::InvalidRequest;
use crate::provision::{FirstStart, MIB, fitting_mib};
use crate::supervisor_spec::absolute;
use crate::volume::SIZE_MIB;
use crate::{Engine, Error, Event, Progress};

/// Longest tar stream on standard input, in bytes: what a bundle may unpack to, and its headers.
const STREAM_MAX: u64 = 34 << 30;
const _: () = assert!(STREAM_MAX > BUNDLE_LIMITS.max_unpacked_bytes);

/// Bytes that are copied at once.
const STREAM_PIECE: usize = 256 * 1024;

/// Bytes of a disk that are copied between two looks for a cancellation.
const COPY_PIECE: u64 = 8 << 20;

/// Smallest size of a writable bundle's disk, in MiB.
const BUNDLE_SIZE_MIB: u64 = 1024;

/// The further disks of one machine.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    pub(crate) extra: Vec<ExtraDisk>,
    pub(crate) mounts: Vec<Mount>,
}

/// Disks of bundles that are not moved to their workspace yet.
pub(crate) struct Bundles {
    /// With their numbers among the workspace's bundles.
    made: Vec<(usize, PathBuf)>,
    _scratch: Option<Scratch>,
}

impl Engine {
    /// Checks that every disk to attach exists, and is free where the first start is now: what is missing
    /// is reported before an image is fetched. Gives the disks as they are recorded.
    pub(crate) fn check_disks(
        &self,
        disks: &[Attachment],
        first_start: FirstStart,
    ) -> Result<Vec<Attachment>, Error> {
        let disks = arrange(disks)?;
        let real = |disk: &Attachment| {
            let source = match &disk.source {
                DiskSource::Volume(name) => {
                    self.check_volume(name, disk, first_start)?;
                    disk.source.clone()
                }
                DiskSource::Image(path) => DiskSource::Image(self.check_image(path, disk.read_only)?),
                DiskSource::Bundle(path) if is_standard_input(path) => disk.source.clone(),
                DiskSource::Bundle(path) => DiskSource::Bundle(check_bundle(path)?),
            };
            Ok(Attachment { source, ..disk.clone() })
        };
        let disks: Vec<Attachment> = disks.iter().map(real).collect::<Result<_, Error>>()?;
        // Links on the way may lead two of them to one file.
        arrange(&disks)
    }

    /// One that does not exist yet is made later, unless there is nothing that it could be read for.
    fn check_volume(
        &self,
        name: &VolumeName,
        disk: &Attachment,
        first_start: FirstStart,
    ) -> Result<(), Error> {
        let dir = self.state().volume(name);
        if let Err(error) = VolumeRecord::load(&dir)
            && (disk.read_only || !error.is_not_found())
        {
            return Err(Error::from_volume(name, error));
        }
        let in_the_way = if disk.read_only { dir.writer() } else { dir.holder() };
        match in_the_way.filter(|_| first_start == FirstStart::Now) {
            Some(holder) => Err(Error::DiskBusy {
                disk: described(&DiskSource::Volume(name.clone())),
                holder: Some(holder.workspace),
            }),
            None => Ok(()),
        }
    }

    /// Gives the path without links.
    fn check_image(&self, path: &Path, read_only: bool) -> Result<PathBuf, Error> {
        let failed = |source| Error::File { action: "use the disk", path: path.to_owned(), source };
        let real = path.canonicalize().map_err(failed)?;
        let found = fs::metadata(&real).map_err(failed)?;
        if found.is_dir() {
            return Err(host_directory(path));
        }
        if !found.is_file() || found.len() == 0 {
            return Err(InvalidRequest::NotADiskImage { path: path.to_owned() }.into());
        }
        let ours = self.state().root().canonicalize().is_ok_and(|state| real.starts_with(state));
        if ours {
            return Err(InvalidRequest::OwnState { path: path.to_owned() }.into());
        }
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        File::options()
            .read(true)
            .write(!read_only)
            .custom_flags(flags.bits() as i32)
            .open(&real)
            .map_err(failed)?;
        Ok(real)
    }

    /// Creates named volumes that do not exist, as Docker does.
    pub(crate) fn make_missing_volumes(
        &self,
        disks: &[Attachment],
        progress: &Progress,
    ) -> Result<Vec<String>, Error> {
        let mut notices = Vec::new();
        for disk in disks {
            let DiskSource::Volume(name) = &disk.source else { continue };
            if disk.read_only || self.state().volume(name).path().exists() {
                continue;
            }
            match self.volumes().write(name, SIZE_MIB) {
                // Another command has just made it.
                Err(Error::VolumeExists { .. }) => {}
                made => {
                    made?;
                    let notice = format!("volume `{name}` did not exist and was created ({SIZE_MIB} MiB)");
                    progress.event(Event::Notice(notice.clone()));
                    notices.push(notice);
                }
            }
        }
        Ok(notices)
    }

    /// Creates the disks of bundles in a temporary directory.
    pub(crate) async fn make_bundles(
        &self,
        disks: &[Attachment],
        cancel: &CancellationToken,
    ) -> Result<Bundles, Error> {
        let wanted: Vec<(usize, PathBuf, bool)> = disks
            .iter()
            .filter_map(|disk| match &disk.source {
                DiskSource::Bundle(path) => Some((path.clone(), disk.read_only)),
                _ => None,
            })
            .enumerate()
            .map(|(number, (path, read_only))| (number, path, read_only))
            .collect();
        if wanted.is_empty() {
            return Ok(Bundles { made: Vec::new(), _scratch: None });
        }
        let tmp = || self.state().tmp();
        let failed = |source| Error::File { action: "create a directory in", path: tmp(), source };
        let scratch = self.state().scratch().map_err(failed)?;
        let input = self.options().environment.standard_input.clone();
        let (dir, stop) = (scratch.path().to_owned(), cancel.clone());
        let making = tokio::task::spawn_blocking(move || {
            let make = |(number, mut tar, read_only): (usize, PathBuf, bool)| {
                let is_stream = is_standard_input(&tar);
                if is_stream {
                    tar = dir.join("standard input");
                    spool(input.as_ref(), &tar, &stop)?;
                }
                let out = dir.join(format!("{number}.ext4"));
                make_bundle(&tar, &out, &dir, read_only, &stop).map(|()| (number, out)).map_err(|error| {
                    match error {
                        // The copy's path says nothing to users.
                        Error::Bundle(error) if is_stream => Error::Bundle(error.of_standard_input()),
                        error => error,
                    }
                })
            };
            wanted.into_iter().map(make).collect::<Result<Vec<_>, Error>>()
        });
        // A thread that waits for standard input is not waited for, and leaves nothing: the directory is removed here.
        let made = cancel.run_until_cancelled(making).await.ok_or(Error::Cancelled)?;
        let made = made.map_err(|e| failed(io::Error::other(e)))??;
        Ok(Bundles { made, _scratch: Some(scratch) })
    }

    /// Returns all further disks of a workspace's machine, in the order in which they are mounted.
    pub(crate) fn disks(&self, disks: &[Attachment], dir: &WorkspaceDir) -> Result<Disks, Error> {
        // A command that was killed while it made this workspace may have left it to others.
        self.state().place_volumes(dir).map_err(|unplaced| unplaced_volume(self, unplaced))?;
        let mut all = Disks::default();
        for ((target, disk), bundle) in (EXTRA_SCSI_TARGET..=u8::MAX).zip(disks).zip(bundle_numbers(disks)) {
            let read_only = disk.read_only;
            let (path, claim, grow) = match &disk.source {
                DiskSource::Volume(name) => {
                    let volume = self.state().volume(name);
                    VolumeRecord::load(&volume).map_err(|e| Error::from_volume(name, e))?;
                    (volume.disk(), Claim::Volume(name.clone()), !read_only)
                }
                DiskSource::Image(path) => (self.check_image(path, read_only)?, Claim::File, false),
                DiskSource::Bundle(_) => (dir.bundle(bundle), Claim::None, !read_only),
            };
            let path = absolute(&path)?;
            // QEMU would say it less well.
            fs::metadata(&path).map_err(|source| Error::File {
                action: "use the disk",
                path: path.clone(),
                source,
            })?;
            all.extra.push(ExtraDisk { path, read_only, claim });
            let path = disk.mount_point.as_bytes().to_vec().into();
            all.mounts.push(Mount { scsi_target: target, path, read_only, grow });
        }
        Ok(all)
    }

    /// Bytes that the disks of a workspace hold together at most, its root disk included.
    pub(crate) fn disk_bytes(&self, size_mib: u64, disks: &[Attachment], dir: &WorkspaceDir) -> u64 {
        let len = |(disk, bundle): (&Attachment, usize)| {
            let path = match &disk.source {
                DiskSource::Volume(name) => self.state().volume(name).disk(),
                DiskSource::Image(path) => path.clone(),
                DiskSource::Bundle(_) => dir.bundle(bundle),
            };
            // One that is missing is missed when the machine is started.
            fs::metadata(path).map_or(0, |found| found.len())
        };
        disks
            .iter()
            .zip(bundle_numbers(disks))
            .map(len)
            .fold(size_mib.saturating_mul(MIB), u64::saturating_add)
    }
}

impl Bundles {
    /// Moves the disks to the workspace's directory.
    pub(crate) fn move_into(self, dir: &WorkspaceDir) -> Result<(), Error> {
        for (number, made) in &self.made {
            let to = dir.bundle(*number);
            fs::rename(made, &to).map_err(|source| Error::File { action: "create", path: to, source })?;
        }
        Ok(())
    }
}

/// For each disk how many bundles stand before it: the number of a bundle.
fn bundle_numbers(disks: &[Attachment]) -> impl Iterator<Item = usize> {
    disks.iter().scan(0, |bundles, disk| {
        let before = *bundles;
        *bundles += usize::from(matches!(disk.source, DiskSource::Bundle(_)));
        Some(before)
    })
}

/// The error that a volume of a new workspace has no place.
pub(crate) fn unplaced_volume(engine: &Engine, unplaced: UnplacedVolume) -> Error {
    let UnplacedVolume { name, source, .. } = unplaced;
    match source.kind() {
        io::ErrorKind::AlreadyExists => Error::VolumeExists { name },
        _ => {
            let path = engine.state().volume(&name).path().to_owned();
            Error::File { action: "create volume", path, source }
        }
    }
}

pub(crate) fn arrange(disks: &[Attachment]) -> Result<Vec<Attachment>, Error> {
    crate::attachment::arrange(disks).map_err(|error| InvalidRequest::from(error).into())
}

fn host_directory(path: &Path) -> Error {
    InvalidRequest::HostDirectory { path: path.to_owned() }.into()
}

/// Whether a bundle is the tar stream on standard input.
fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == STANDARD_INPUT
}

/// Copies the stream on standard input to a file, which a bundle is made of.
fn spool(input: Option<&StandardInput>, to: &Path, cancel: &CancellationToken) -> Result<(), Error> {
    let input = input.ok_or(ImageError::NoStandardInput)?;
    let failed = |action, source| Error::File { action, path: to.to_owned(), source };
    let unread = |source| Error::File { action: "read", path: "standard input".into(), source };
    let mut from = input.open().take(STREAM_MAX + 1);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|source| failed("create", source))?;
    let mut buffer = vec![0; STREAM_PIECE];
    let mut bytes = 0;
    while !cancel.is_cancelled() {
        let count = from.read(&mut buffer).map_err(unread)?;
        if count == 0 && bytes == 0 {
            return Err(unread(io::Error::other("it is empty; pipe a tar stream into this command")));
        }
        if count == 0 {
            return Ok(());
        }
        bytes += count as u64;
        if bytes > STREAM_MAX {
            return Err(InvalidRequest::LargeStream { limit_gib: STREAM_MAX >> 30 }.into());
        }
        file.write_all(&buffer[..count]).map_err(|source| failed("write", source))?;
    }
    Err(Error::Cancelled)
}

fn check_bundle(path: &Path) -> Result<PathBuf, Error> {
    let failed = |source| Error::File { action: "read bundle", path: path.to_owned(), source };
    let real = path.canonicalize().map_err(failed)?;
    let found = fs::metadata(&real).map_err(failed)?;
    if found.is_dir() {
        return Err(host_directory(path));
    }
    if !found.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    File::open(&real).map_err(failed)?;
    Ok(real)
}

fn make_bundle(
    tar: &Path,
    out: &Path,
    scratch: &Path,
    read_only: bool,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let built = bundle::build(tar, out, scratch, &BUNDLE_LIMITS, &|| cancel.is_cancelled())?;
    if read_only {
        return Ok(());
    }
    let size = fitting_mib(BUNDLE_SIZE_MIB, built.content_bytes) * MIB;
    let grown = File::options().write(true).open(out).and_then(|file| {
        file.set_len(size.max(built.disk_bytes))?;
        file.sync_all()
    });
    grown.map_err(|source| Error::File { action: "write", path: out.to_owned(), source })
}

/// Whether a copy is on the host's disk when it is made, so that it survives a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    AtEnd,
    Never,
}

/// Copies a disk without its holes; shares its blocks if the file system can.
pub(crate) fn copy_disk(from: &Path, to: &Path) -> io::Result<()> {
    copy_disk_unless_cancelled(from, to, Flush::AtEnd, &CancellationToken::new())
}

/// The same, up to a cancellation, which is an error.
pub(crate) fn copy_disk_unless_cancelled(
    from: &Path,
    to: &Path,
    flush: Flush,
    cancel: &CancellationToken,
) -> io::Result<()> {
    use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
    use rustix::io::Errno;
    let source = File::open(from)?;
    let target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    if ioctl_ficlone(&target, &source).is_err() {
        let len = source.metadata()?.len();
        target.set_len(len)?;
        let mut at = 0;
        loop {
            let start = match seek(&source, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => break,
                start => start?,
            };
            let end = seek(&source, SeekFrom::Hole(start))?;
            copy_range(&source, &target, start..end, cancel)?;
            at = end;
        }
    }
    match flush {
        Flush::AtEnd => target.sync_all(),
        Flush::Never => Ok(()),
    }
}

fn copy_range(
    source: &File,
    target: &File,
    range: std::ops::Range<u64>,
    cancel: &CancellationToken,
) -> io::Result<()> {
    use std::io::{Seek, SeekFrom};
    let (mut source, mut target) = (source, target);
    source.seek(SeekFrom::Start(range.start))?;
    target.seek(SeekFrom::Start(range.start))?;
    let mut left = range.end - range.start;
    while left > 0 {
        if cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let piece = left.min(COPY_PIECE);
        if io::copy(&mut source.take(piece), &mut target)? != piece {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= piece;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copied_disk_has_the_same_bytes_and_keeps_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 8192], 1 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        copy_disk(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        assert!(copy_disk(&from, &to).is_err(), "nothing is written over");
        // Where blocks are shared, there is nothing to cancel.
        let (cancel, other) = (CancellationToken::new(), dir.path().join("other"));
        cancel.cancel();
        let cancelled = copy_disk_unless_cancelled(&from, &other, Flush::Never, &cancel);
        assert!(cancelled.is_ok() == (fs::read(&from).unwrap() == fs::read(&other).unwrap()));
    }
}
