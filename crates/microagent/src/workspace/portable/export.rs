//! Writes a snapshot to one file.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use microagent_model::{EgressPolicy, SnapshotTag};
use microagent_store::{Access, Lock, Workload, WorkspaceRecord, open_file};
use microagent_vm::{DiskPart, LayerFile, read_layers};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, SeekFrom, linkat, open, seek};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::snapshot::{SnapshotContents, Snapshots};
use super::extents::PartWriter;
use super::stream::PieceWriter;
use super::{BASE, DISK, FORMAT, HEADER, Header, MEMORY};
use crate::blocking::blocking;
use crate::error::{Action, SnapshotError};
use crate::streaming::Streaming;
use crate::supervisor_spec::layer_files;
use crate::{Error, Event, Progress};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// How a file begins that has its name in a moment.
const EXPORT_PREFIX: &str = ".microagent-export-";

/// How many pieces of the stream wait for a slow reader.
const QUEUE: usize = 4;

/// What the parts have beside the bytes on disk of what they are of: where ranges lie.
const PARTS_SLACK: u64 = 64 << 20;

/// A snapshot that is being written. Its files are open, and no layers are removed.
struct Exporting {
    header: Header,
    base: File,
    base_path: PathBuf,
    layers: Vec<LayerFile>,
    memory: Option<(File, PathBuf)>,
    _held: Lock,
}

impl Snapshots {
    /// Writes a snapshot to a file that [`Engine::import_snapshot`](crate::Engine::import_snapshot) takes on another host, and
    /// returns its size. A regular file is replaced when the new one is complete. The base disk of the image is part of it.
    /// What names things of this host is not: ports, volumes and other disks, secrets, brokers, networks, policies.
    ///
    /// # Errors
    /// Fails if the snapshot does not exist or is damaged, the workspace is quarantined, the file cannot be written, or the
    /// memory is to be written and needs disks that are not part of it. Then no regular file is created or changed.
    pub async fn export_to(
        &self,
        tag: &SnapshotTag,
        contents: SnapshotContents,
        path: &Path,
        progress: &Progress,
    ) -> Result<u64, Error> {
        let exporting = self.prepare_export(tag, contents, progress).await?;
        let (path, cancel) = (path.to_owned(), progress.token().clone());
        blocking(move || exporting.write_file(&path, &cancel)).await
    }

    /// Writes a snapshot to a stream, as [`Snapshots::export_to`] does to a file.
    ///
    /// # Errors
    /// As [`Snapshots::export_to`].
    pub async fn export(
        &self,
        tag: &SnapshotTag,
        contents: SnapshotContents,
        progress: &Progress,
    ) -> Result<Streaming<Vec<u8>>, Error> {
        let exporting = self.prepare_export(tag, contents, progress).await?;
        let cancel = progress.token().clone();
        Ok(Streaming::start(QUEUE, |sender| async move {
            blocking(move || {
                exporting.write(Cancellable { to: Sender(sender), cancel: &cancel }, &cancel).map(drop)
            })
            .await
        }))
    }

    async fn prepare_export(
        &self,
        tag: &SnapshotTag,
        contents: SnapshotContents,
        progress: &Progress,
    ) -> Result<Exporting, Error> {
        progress.check()?;
        let (snapshots, tag) = (self.clone(), tag.clone());
        let exporting = blocking(move || snapshots.open_for_export(&tag, contents)).await?;
        if !exporting.header.left_out.is_empty() {
            let left_out = exporting.header.left_out.join(", ");
            progress.event(Event::Notice(format!("the file does not contain: {left_out}")));
        }
        Ok(exporting)
    }

    fn open_for_export(&self, tag: &SnapshotTag, contents: SnapshotContents) -> Result<Exporting, Error> {
        self.check_free(Action::UseSnapshot)?;
        let (workspace, origin) = (self.workspace(), self.origin(tag)?);
        let engine = &workspace.engine;
        let held = engine.hold_layers()?;
        let record = workspace.load_snapshot(&origin)?;
        let workload = Workload::load(origin.files.files()).map_err(|e| workspace.damaged(e))?;
        let memory = match contents {
            SnapshotContents::MemoryAndDisk => self.load_memory(&origin)?,
            _ => None,
        };
        if memory.is_some() && !record.disks.is_empty() {
            return Err(SnapshotError::MemoryOfDisks { snapshot: origin.shown(&workspace.name) }.into());
        }
        let open = |path: &Path| {
            let file = open_file(path, Access::Read);
            file.map_err(|source| Error::File { action: "read", path: path.to_owned(), source })
        };
        let base_path = engine.image_store().disk_path(&record.image.disk);
        let base = open(&base_path)?;
        let layers = layer_files(engine.state(), &record.layers)?;
        let memory_path = origin.files.memory();
        let opened = memory.as_ref().map(|_| open(&memory_path)).transpose()?;
        let blocks = |path: &Path| path.metadata().map_or(0, |found| found.blocks() * 512);
        let stored = layers.iter().map(|layer| blocks(&layer.path)).sum::<u64>() + blocks(&base_path);
        let memory_bytes =
            opened.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |found| found.len());
        let created_at = origin.files.load().map(|manifest| manifest.created_at).unwrap_or(record.created_at);
        let base_bytes = base.metadata().map_or(0, |found| found.len());
        let header = Header {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            created_at,
            workspace: workspace.name.clone(),
            tag: tag.clone(),
            base_bytes,
            parts_bytes: stored + memory_bytes + PARTS_SLACK,
            memory: memory.map(|memory| memory.into_record()),
            left_out: left_out(&record),
            workload,
            image: record.image,
            profile: record.profile,
            resources: record.resources,
            network: record.network,
            settings: record.settings,
        };
        let memory = opened.map(|file| (file, memory_path));
        Ok(Exporting { header, base, base_path, layers, memory, _held: held })
    }
}

/// What of a workspace an export does not contain.
fn left_out(record: &WorkspaceRecord) -> Vec<String> {
    let disks = record.disks.iter().map(|disk| format!("the disk at {}", disk.mount_point));
    let settings = [
        (!record.publish.is_empty(), "published ports"),
        (!record.secrets.is_empty(), "secrets"),
        (!record.brokers.is_empty(), "brokers"),
        (!record.forwards.is_empty(), "forwarded ports"),
        (!record.networks.is_empty(), "private networks"),
        (record.egress != EgressPolicy::default(), "the egress policy"),
        (!record.outputs.is_empty(), "artifacts"),
        (!record.labels.is_empty(), "labels"),
    ];
    let settings = settings.into_iter().filter(|(has, _)| *has).map(|(_, what)| what.to_owned());
    disks.chain(settings).collect()
}

impl Exporting {
    fn write_file(self, path: &Path, cancel: &CancellationToken) -> Result<u64, Error> {
        let failed = |source| Error::File { action: "write", path: path.to_owned(), source };
        if path.exists() && !path.is_file() {
            let file = File::options().write(true).open(path).map_err(failed)?;
            let (_, bytes) =
                self.write(Counter { to: Cancellable { to: file, cancel }, bytes: 0 }, cancel)?.parts();
            return Ok(bytes);
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = NewFile::create_in(dir).map_err(failed)?;
        let counter = Counter { to: Cancellable { to: file, cancel }, bytes: 0 };
        let (file, bytes) = self.write(counter, cancel)?.parts();
        file.publish(dir, path).map_err(failed)?;
        Ok(bytes)
    }

    fn write<W: Write>(self, to: W, cancel: &CancellationToken) -> Result<W, Error> {
        let written = self.write_pieces(to);
        if cancel.is_cancelled() { Err(Error::Cancelled) } else { written }
    }

    fn write_pieces<W: Write>(self, to: W) -> Result<W, Error> {
        let sink = |source| Error::Sink(source);
        let header = serde_json::to_vec(&self.header).map_err(|error| sink(error.into()))?;
        let mut pieces = PieceWriter::new(to).map_err(sink)?;
        pieces.write(HEADER, &header).map_err(sink)?;
        let mut parts = PartWriter::new(&mut pieces, BASE);
        let copied = data_of(&self.base, self.header.base_bytes, |part| parts.range(&part));
        copied.and_then(|()| parts.finish()).map_err(sink)?;
        let mut parts = PartWriter::new(&mut pieces, DISK);
        let size = self.header.resources.disk_bytes();
        read_layers(&self.layers, size, |part| parts.range(&part)).map_err(|error| Error::File {
            action: "read",
            path: error.path,
            source: error.source,
        })?;
        parts.finish().map_err(sink)?;
        if let Some((memory, path)) = &self.memory {
            let mut parts = PartWriter::new(&mut pieces, MEMORY);
            let copied = copy_all(memory, |bytes| parts.bytes(bytes));
            copied.map_err(|source| Error::File { action: "read", path: path.clone(), source })?;
            parts.finish().map_err(sink)?;
        }
        let changed = self.base.metadata().is_ok_and(|now| now.len() != self.header.base_bytes);
        if changed {
            let source = io::Error::other("it has changed meanwhile");
            return Err(Error::File { action: "read", path: self.base_path, source });
        }
        pieces.finish().map_err(sink)
    }
}

/// The ranges of a sparse file that have data other than zeros.
fn data_of(file: &File, size: u64, mut each: impl FnMut(DiskPart<'_>) -> io::Result<()>) -> io::Result<()> {
    let (mut chunk, mut end) = (vec![0; CHUNK], 0);
    loop {
        let start = match seek(file, SeekFrom::Data(end)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        end = seek(file, SeekFrom::Hole(start))?.min(size);
        let mut offset = start;
        while offset < end {
            let length = (end - offset).min(CHUNK as u64);
            let bytes = &mut chunk[..length as usize];
            file.read_exact_at(bytes, offset)?;
            if bytes.iter().any(|byte| *byte != 0) {
                each(DiskPart::Data { offset, bytes })?;
            }
            offset += length;
        }
    }
}

fn copy_all(file: &File, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let (mut chunk, mut offset) = (vec![0; CHUNK], 0);
    loop {
        match file.read_at(&mut chunk, offset)? {
            0 => return Ok(()),
            count => {
                each(&chunk[..count])?;
                offset += count as u64;
            }
        }
    }
}

/// A file that is being written, which a command that is killed does not leave.
enum NewFile {
    /// It has no name yet.
    Unnamed(File),
    /// The file system has only files with names: a killed command leaves this one.
    Named(tempfile::NamedTempFile),
}

impl NewFile {
    fn create_in(dir: &Path) -> io::Result<NewFile> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match open(dir, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(NewFile::Unnamed(file.into())),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let named = tempfile::Builder::new().prefix(EXPORT_PREFIX).tempfile_in(dir)?;
                Ok(NewFile::Named(named))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Flushes it, and gives it its name in place of a file that has it.
    fn publish(self, dir: &Path, path: &Path) -> io::Result<()> {
        match self {
            NewFile::Named(file) => {
                file.as_file().sync_all()?;
                file.persist(path).map(drop).map_err(|error| error.error)
            }
            NewFile::Unnamed(file) => {
                file.sync_all()?;
                let source = format!("/proc/self/fd/{}", file.as_raw_fd());
                // A link replaces no file, and a rename does.
                let named = tempfile::Builder::new().prefix(EXPORT_PREFIX).make_in(dir, |name| {
                    Ok(linkat(CWD, source.as_str(), CWD, name, AtFlags::SYMLINK_FOLLOW)?)
                })?;
                named.persist(path).map(drop).map_err(|error| error.error)
            }
        }
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            NewFile::Unnamed(file) => file.write(bytes),
            NewFile::Named(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The queue of a stream as a writer.
struct Sender(mpsc::Sender<Result<Vec<u8>, Error>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Who has dropped the stream wants no more of it.
        self.0.blocking_send(Ok(bytes.to_vec())).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that fails when the work is cancelled.
struct Cancellable<'a, W> {
    to: W,
    cancel: &'a CancellationToken,
}

impl<W: Write> Write for Cancellable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A writer that counts.
struct Counter<'a, W> {
    to: Cancellable<'a, W>,
    bytes: u64,
}

impl<W> Counter<'_, W> {
    fn parts(self) -> (W, u64) {
        (self.to.to, self.bytes)
    }
}

impl<W: Write> Write for Counter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_replaces_another_when_it_is_complete_and_leaves_none_when_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "before").unwrap();
        let named = tempfile::Builder::new().prefix(EXPORT_PREFIX).tempfile_in(dir.path()).unwrap();
        for mut file in [NewFile::create_in(dir.path()).unwrap(), NewFile::Named(named)] {
            file.write_all(b"after").unwrap();
            file.publish(dir.path(), &path).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "after");
        }
        drop(NewFile::create_in(dir.path()).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn holes_and_zeros_are_not_part_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(16 << 20).unwrap();
        file.write_all_at(&[1; 4096], 4 << 20).unwrap();
        file.write_all_at(&[0; 4096], 8 << 20).unwrap();
        let (mut bytes, mut first) = (0, None);
        data_of(&file, 16 << 20, |part| {
            let DiskPart::Data { offset, bytes: found } = part else { unreachable!("there is data only") };
            first.get_or_insert(offset);
            bytes += found.iter().filter(|byte| **byte == 1).count();
            Ok(())
        })
        .unwrap();
        assert_eq!(bytes, 4096);
        assert!(first.unwrap() <= 4 << 20);
    }
}
