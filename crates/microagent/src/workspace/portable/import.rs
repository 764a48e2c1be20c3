//! Makes a workspace of the file of a snapshot, which may come from anybody.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use microagent_image::ImportSource;
use microagent_model::{
    DnsSettings, EgressPolicy, ImageIdentity, Labels, Layer, LayerId, RateLimits, RestartPolicy, State,
    WorkspaceName,
};
use microagent_store::{
    Access, MachineState, SNAPSHOT_FORMAT, Scratch, SnapshotDir, SnapshotManifest, WORKSPACE_FORMAT,
    WorkspaceDir, WorkspaceRecord, fsync_dir, open_file, open_named, printable,
};
use microagent_vm::{DiskPart, LayerWriter, OverlayError};
use rustix::fs::statvfs;
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::super::Workspace;
use super::super::memory::SnapshotMemory;
use super::super::snapshot::{Snapshot, SnapshotContents};
use super::extents::Ranges;
use super::stream::{Piece, PieceReader};
use super::{BASE, DEVICE_STATE_MAX, DISK, FORMAT, HEADER, HEADER_MAX, Header, MEMORY, PART_MAX, unusable};
use crate::blocking::blocking;
use crate::digest::hex;
use crate::error::SnapshotError;
use crate::provision::{check_size, fitting_mib};
use crate::supervisor_spec::{new_identity, random};
use crate::{Engine, Error, Event, Progress};

/// Longest text of a header that is shown.
const TEXT_MAX: usize = 500;

/// Most notices of a header that are shown.
const NOTICES_MAX: usize = 32;

/// The result of [`Engine::import_snapshot`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SnapshotImport {
    /// The new workspace.
    pub workspace: Workspace,
    /// Its snapshot.
    pub snapshot: Snapshot,
}

impl Engine {
    /// Makes a workspace with the disk of a snapshot that [`Snapshots::export_to`](crate::snapshot::Snapshots::export_to) has
    /// written, here or on another host, and with this snapshot. [`Snapshots::start`](crate::snapshot::Snapshots::start)
    /// starts it with the processes of that time, if the memory is part of it. It has the size, the service and the network
    /// mode of its source; ports, disks, secrets, policies and networks are those of a new workspace.
    ///
    /// QEMU reads the memory in its jail. Take one only from people whose programs you would run.
    ///
    /// # Errors
    /// Fails if the name is taken, the file is damaged, changed or of a newer release
    /// ([`Damaged`](crate::ErrorKind::Damaged)), the memory does not fit this host ([`Host`](crate::ErrorKind::Host)), or
    /// there is no room. Then nothing is created.
    pub async fn import_snapshot(
        &self,
        source: ImportSource,
        name: &WorkspaceName,
        contents: SnapshotContents,
        progress: &Progress,
    ) -> Result<SnapshotImport, Error> {
        progress.check()?;
        self.prepare()?;
        let workspace = self.workspace(name);
        if workspace.dir().path().exists() {
            return Err(Error::NameTaken { name: name.clone() });
        }
        let (work, importer) = (progress.clone(), workspace.clone());
        let tag = blocking(move || {
            let source: Box<dyn Read + Send> = match source {
                ImportSource::Path(path) => {
                    let file = open_named(&path);
                    Box::new(file.map_err(|source| Error::File { action: "read", path, source })?)
                }
                ImportSource::Reader(reader) => reader,
            };
            importer.import(source, contents, &work)
        })
        .await?;
        let snapshot = workspace.snapshots().get(&tag).await?;
        Ok(SnapshotImport { workspace, snapshot })
    }
}

/// A file that is being read, with what has been made of it.
struct Importing<'a> {
    workspace: &'a Workspace,
    header: Header,
    pieces: PieceReader<Cancellable<'a>>,
    scratch: Scratch,
    /// The base disk, and whether it is in the cache.
    base: PathBuf,
    base_is_here: bool,
    /// What the parts may have in all from here on.
    left: u64,
    progress: &'a Progress,
}

impl Workspace {
    fn import(
        &self,
        source: Box<dyn Read + Send>,
        contents: SnapshotContents,
        progress: &Progress,
    ) -> Result<microagent_model::SnapshotTag, Error> {
        let imported = self.read_snapshot(source, contents, progress);
        // What was made for a workspace that there is none of is not needed.
        if imported.is_err() {
            let _ = self.engine.remove_unneeded_layers();
        }
        if progress.token().is_cancelled() && imported.is_err() { Err(Error::Cancelled) } else { imported }
    }

    fn read_snapshot(
        &self,
        source: Box<dyn Read + Send>,
        contents: SnapshotContents,
        progress: &Progress,
    ) -> Result<microagent_model::SnapshotTag, Error> {
        let mut pieces = PieceReader::new(Cancellable { source, cancel: progress.token() })?;
        let mut header = read_header(&mut pieces)?;
        check_size(header.resources)?;
        let state = self.engine.state();
        let scratch =
            state.scratch().map_err(|source| Error::File { action: "make", path: state.tmp(), source })?;
        if contents == SnapshotContents::Disk {
            header.memory = None;
        }
        check_room(scratch.path(), header.parts_bytes)?;
        let cached = self.engine.image_store().disk_path(&header.image.disk);
        let base_is_here = fs::metadata(&cached).is_ok_and(|found| found.len() == header.base_bytes);
        let base = if base_is_here { cached } else { scratch.path().join("base.ext4") };
        let (left, workspace) = (header.parts_bytes, self);
        let mut importing =
            Importing { workspace, header, pieces, scratch, base, base_is_here, left, progress };
        importing.check_memory()?;
        importing.read_parts()?;
        importing.finish()
    }
}

fn read_header<R: Read>(pieces: &mut PieceReader<R>) -> Result<Header, Error> {
    #[derive(serde::Deserialize)]
    struct FormatOnly {
        format: u32,
        #[serde(default)]
        version: Option<String>,
    }
    let piece = pieces.next(HEADER_MAX)?.filter(|piece| piece.name == HEADER);
    let piece = piece.ok_or_else(|| unusable("it does not begin as an export of a snapshot"))?;
    let bad = |error: serde_json::Error| unusable(format!("`{HEADER}` in it: {error}"));
    let FormatOnly { format, version } = serde_json::from_slice(&piece.content).map_err(bad)?;
    if format > FORMAT {
        let release =
            version.map_or_else(|| "another release".to_owned(), |it| printable(&it, TEXT_MAX, &[]));
        return Err(SnapshotError::NewerFile { format, newest: FORMAT, release }.into());
    }
    let mut header: Header = serde_json::from_slice(&piece.content).map_err(bad)?;
    let is_digest = |text: &str| {
        let digits = text.strip_prefix("sha256:").unwrap_or_default();
        digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    // They become names of files.
    if !is_digest(&header.image.disk) || !is_digest(&header.image.digest) {
        return Err(unusable("its image has no digest"));
    }
    let shown = |text: &str| printable(text, TEXT_MAX, &[]);
    header.image = ImageIdentity {
        reference: shown(&header.image.reference),
        resolved_reference: shown(&header.image.resolved_reference),
        ..header.image
    };
    header.profile = shown(&header.profile);
    header.left_out.truncate(NOTICES_MAX);
    header.left_out.iter_mut().for_each(|text| *text = shown(text));
    if !header.workload.setup.is_empty() {
        return Err(unusable("its setup has not run"));
    }
    Ok(header)
}

/// Fails if the host has less free room than this.
fn check_room(dir: &Path, bytes: u64) -> Result<(), Error> {
    let failed = |source| Error::File { action: "write", path: dir.to_owned(), source };
    let found = statvfs(dir).map_err(|errno| failed(errno.into()))?;
    match found.f_bavail.saturating_mul(found.f_frsize) < bytes {
        true => Err(failed(Errno::NOSPC.into())),
        false => Ok(()),
    }
}

impl Importing<'_> {
    /// Refuses a memory that does not fit before anything is written.
    fn check_memory(&mut self) -> Result<(), Error> {
        let resources = self.header.resources;
        if self.header.base_bytes > resources.disk_bytes()
            || fitting_mib(resources.size_mib, self.header.base_bytes)
                > resources.size_mib.next_multiple_of(1024)
        {
            return Err(unusable("its base disk is larger than its disk"));
        }
        let Some(memory) = self.header.memory.clone() else { return Ok(()) };
        check_size(memory.resources())?;
        let most = u64::from(memory.resources().memory_mib).saturating_mul(1 << 20).saturating_mul(2);
        if memory.bytes() > most.saturating_add(DEVICE_STATE_MAX) {
            return Err(unusable("its memory is larger than its machine"));
        }
        let snapshot = format!("{}:{}", self.workspace.name, self.header.tag);
        let record = self.record(Vec::new())?;
        SnapshotMemory::new(snapshot, PathBuf::new(), memory).check_record(self.workspace, &record).map_err(
            |error| match error {
                Error::Snapshot(SnapshotError::OtherMachine { what, .. }) => {
                    SnapshotError::ImportedMachine { what }.into()
                }
                error => error,
            },
        )
    }

    fn read_parts(&mut self) -> Result<(), Error> {
        let mut piece = self.next()?;
        piece = self.read_base(piece)?;
        piece = self.read_disk(piece)?;
        piece = self.read_memory(piece)?;
        match piece {
            None => Ok(()),
            Some(piece) => {
                Err(unusable(format!("`{}` in it does not belong there", printable(&piece.name, 80, &[]))))
            }
        }
    }

    fn next(&mut self) -> Result<Option<Piece>, Error> {
        let piece = self.pieces.next(PART_MAX.min(self.left))?;
        self.left -= piece.as_ref().map_or(0, |piece| piece.content.len() as u64);
        Ok(piece)
    }

    /// Passes the parts of this name on, and returns the piece after them.
    fn each_part(
        &mut self,
        mut piece: Option<Piece>,
        name: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<Option<Piece>, Error> {
        for number in 0_u64.. {
            match piece {
                Some(part) if part.name == format!("{name}/{number}") => take(&part.content)?,
                other => return Ok(other),
            }
            piece = self.next()?;
        }
        Ok(piece)
    }

    /// A base disk that the cache has not is written. Its name follows from what it contains: nobody else's disk has it.
    fn read_base(&mut self, piece: Option<Piece>) -> Result<Option<Piece>, Error> {
        let mut ranges = Ranges::new(self.header.base_bytes);
        if self.base_is_here {
            return self.each_part(piece, BASE, |part| ranges.take(part, |_| Ok(())));
        }
        let path = self.base.clone();
        let failed = |source| Error::File { action: "write", path: path.clone(), source };
        let file = create(&path).map_err(failed)?;
        let mut sum = Sha256::new_with_prefix(b"microagent imported base disk 1");
        sum.update(self.header.base_bytes.to_le_bytes());
        let piece = self.each_part(piece, BASE, |part| {
            sum.update(part);
            ranges.take(part, |part| match part {
                DiskPart::Data { offset, bytes } => file.write_all_at(bytes, offset).map_err(failed),
                DiskPart::Zeros { .. } => Ok(()),
            })
        })?;
        file.set_len(self.header.base_bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        self.header.image.disk = format!("sha256:{}", hex(&sum.finalize()));
        Ok(piece)
    }

    fn layer(&self) -> PathBuf {
        self.scratch.path().join("layer.qcow2")
    }

    fn read_disk(&mut self, piece: Option<Piece>) -> Result<Option<Piece>, Error> {
        let size = self.header.resources.disk_bytes();
        let failed =
            |error: OverlayError| Error::File { action: "write", path: error.path, source: error.source };
        let base = self.engine_base();
        let writer = LayerWriter::create(&self.layer(), &base, size).map_err(failed)?;
        let mut ranges = Ranges::new(size);
        let piece = self
            .each_part(piece, DISK, |part| ranges.take(part, |part| writer.write(&part).map_err(failed)))?;
        writer.finish().map_err(failed)?;
        Ok(piece)
    }

    /// Where the base disk is in the end.
    fn engine_base(&self) -> PathBuf {
        self.workspace.engine.image_store().disk_path(&self.header.image.disk)
    }

    fn read_memory(&mut self, piece: Option<Piece>) -> Result<Option<Piece>, Error> {
        let Some(memory) = self.header.memory.clone() else {
            return self.each_part(piece, MEMORY, |_| Ok(()));
        };
        let path = SnapshotDir::at(self.scratch.path()).memory();
        let failed = |source| Error::File { action: "write", path: path.clone(), source };
        let mut file = create(&path).map_err(failed)?;
        let mut bytes = 0;
        let piece = self.each_part(piece, MEMORY, |part| {
            bytes += part.len() as u64;
            if bytes > memory.bytes() {
                return Err(unusable("its memory is longer than it says"));
            }
            file.write_all(part).map_err(failed)
        })?;
        if bytes != memory.bytes() {
            return Err(unusable("its memory is shorter than it says"));
        }
        file.sync_all().map_err(failed)?;
        Ok(piece)
    }

    /// The settings of the new workspace: those of a new one, but for what concerns the guest alone.
    fn record(&self, layers: Vec<Layer>) -> Result<WorkspaceRecord, Error> {
        let (header, now) = (&self.header, Timestamp::now());
        Ok(WorkspaceRecord {
            format: WORKSPACE_FORMAT,
            name: self.workspace.name.clone(),
            created_at: now,
            image: header.image.clone(),
            profile: header.profile.clone(),
            resources: header.resources,
            network: header.network,
            hostname: self.workspace.name.to_hostname(),
            identity: Some(new_identity()?),
            restart: RestartPolicy::default(),
            disks: Vec::new(),
            publish: Vec::new(),
            egress: EgressPolicy::default(),
            dns: DnsSettings::default(),
            forwards: Vec::new(),
            networks: Vec::new(),
            brokers: Vec::new(),
            limits: RateLimits::default(),
            secrets: Vec::new(),
            labels: Labels::new(),
            settings: header.settings.clone(),
            outputs: Vec::new(),
            disposable: false,
            layers,
            from_snapshot: None,
            machine: MachineState::resting(State::Stopped, now),
        })
    }

    /// Gives everything its place: the base disk, the layer, and the workspace with its snapshot in one step.
    fn finish(mut self) -> Result<microagent_model::SnapshotTag, Error> {
        let engine = self.workspace.engine.clone();
        let _kept = match self.base_is_here {
            true => engine.image_store().keep_disks()?,
            false => engine.image_store().adopt_disk(&self.base, &self.header.image.disk)?,
        };
        let _held = engine.hold_layers()?;
        let layer = self.place_layer()?;
        let tag = self.header.tag.clone();
        let record = self.record(vec![layer])?;
        let workload = std::mem::take(&mut self.header.workload);
        engine.create_dir_with(&record, Some(&workload), |dir| {
            engine.create_disk(&record.disk(dir), &record)?;
            self.fill_snapshot(&dir.snapshot(&tag), &record, &workload)
        })?;
        if !self.header.left_out.is_empty() {
            let left_out = self.header.left_out.join(", ");
            self.progress.event(Event::Notice(format!("the file does not contain: {left_out}")));
        }
        Ok(tag)
    }

    fn place_layer(&self) -> Result<Layer, Error> {
        let (state, path) = (self.workspace.engine.state(), self.layer());
        let id = LayerId::of(random::<16>()?);
        let to = state.layer(&id);
        let placed = open_file(&path, Access::Read).and_then(|file| {
            file.set_permissions(Permissions::from_mode(0o400))?;
            file.sync_all()?;
            fs::rename(&path, &to)?;
            fsync_dir(&state.layers())?;
            Ok(file.metadata()?.len())
        });
        let bytes = placed.map_err(|source| Error::File { action: "store", path: to, source })?;
        Ok(Layer { id, bytes })
    }

    fn fill_snapshot(
        &self,
        place: &SnapshotDir,
        record: &WorkspaceRecord,
        workload: &microagent_store::Workload,
    ) -> Result<(), Error> {
        let failed = |source| Error::File { action: "make", path: place.path().to_owned(), source };
        fs::create_dir_all(place.path()).map_err(failed)?;
        let files: &WorkspaceDir = place.files();
        record.save_new(files)?;
        workload.save(files)?;
        let memory = SnapshotDir::at(self.scratch.path()).memory();
        if let Some(described) = &self.header.memory {
            fs::rename(&memory, place.memory()).map_err(failed)?;
            let path = place.memory();
            let digested = described.clone().with_digest(&path);
            digested.map_err(|source| Error::File { action: "read", path, source })?.save(place)?;
        }
        let (created_at, has_memory) = (self.header.created_at, self.header.memory.is_some());
        place.save(&SnapshotManifest { format: SNAPSHOT_FORMAT, created_at, has_memory, forensic: false })?;
        fsync_dir(place.path()).map_err(failed)
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A reader that fails when the work is cancelled.
struct Cancellable<'a> {
    source: Box<dyn Read + Send>,
    cancel: &'a CancellationToken,
}

impl Read for Cancellable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.source.read(buffer)
    }
}

/// Reads bytes as an import reads a file, without making anything: as the file, as what is compressed in it, and as header
/// and ranges in its tar, with a zero between them. Else few inputs would come that far.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_for_fuzzing(bytes: &[u8]) {
    read_pieces_for_fuzzing(bytes);
    let compressed = zstd::encode_all(bytes, 1).expect("memory is written to");
    read_pieces_for_fuzzing(&compressed);
    let mut contents = bytes.splitn(2, |byte| *byte == 0);
    let (header, part) = (contents.next().unwrap_or_default(), contents.next().unwrap_or_default());
    let mut writer = super::stream::PieceWriter::new(Vec::new()).expect("memory is written to");
    for (name, content) in [(HEADER, header), (BASE, part)] {
        writer.write(name, content).expect("memory is written to");
    }
    read_pieces_for_fuzzing(&writer.finish().expect("memory is written to"));
    let _ = Ranges::new(1 << 20).take(part, |_| Ok(()));
}

#[cfg(feature = "fuzzing")]
fn read_pieces_for_fuzzing(bytes: &[u8]) {
    let Ok(mut pieces) = PieceReader::new(bytes) else { return };
    let Ok(header) = read_header(&mut pieces) else { return };
    let mut ranges = Ranges::new(header.base_bytes);
    while let Ok(Some(piece)) = pieces.next(PART_MAX) {
        if ranges.take(&piece.content, |_| Ok(())).is_err() {
            return;
        }
    }
}
