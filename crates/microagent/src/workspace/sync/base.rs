//! What the last sync left on both sides: a file for each pair of directories, in the directory of the workspace.
//!
//! The file is a line with its format, and then frames, each with the paths that one sync has changed. A sync appends a
//! frame; when the frames have become much longer than their content, the file is written anew. A frame that is not
//! complete, because a process or the host ended, is ignored with everything after it: what it would have said then
//! looks like a change.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use microagent_model::WorkspaceName;
use microagent_store::{Lock, LockError, WorkspaceDir};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::plan::{Base, Pair, TreePath};
use crate::Error;
use crate::error::SyncError;

/// First line of the file.
const FORMAT: &[u8] = b"microagent sync 1\n";

/// Most bytes of the file that are read.
const FILE_LIMIT: u64 = 512 * 1024 * 1024;

/// Most paths of one frame.
const FRAME_PATHS: usize = 4096;

/// Most bytes of one frame: paths and targets have 4096 bytes each.
const FRAME_LIMIT: usize = FRAME_PATHS * 4 * 4096;

/// Length of what comes before a frame: its length, and the beginning of its SHA-256.
const HEADER_LEN: usize = 4 + 8;

/// Bytes that a pair takes in the file besides its path, about.
const PAIR_BYTES: u64 = 32;

/// Bytes that are appended before the file is written anew, at least.
const APPENDED_MIN: u64 = 256 * 1024;

/// A path with what a sync has left of it; `None` if nothing.
#[derive(Debug, Serialize, Deserialize)]
struct Change {
    path: TreePath,
    pair: Option<Pair>,
}

/// Where the base of two directories is.
#[derive(Debug, Clone)]
pub(super) struct BaseFile {
    path: PathBuf,
    workspace: WorkspaceName,
    host_dir: PathBuf,
}

/// A base that was read, and the file that it was read from.
#[derive(Debug, Default)]
pub(super) struct LoadedBase {
    /// The pairs: `from` is the host, `to` the guest.
    pub(super) base: Base,
    /// Inode and length of the file.
    seen: Option<(u64, u64)>,
    /// Length that the file would have if it was written anew, about.
    compact: u64,
}

impl BaseFile {
    /// The file for these two directories.
    pub(super) fn of(
        dir: &WorkspaceDir,
        workspace: &WorkspaceName,
        host_dir: &Path,
        guest_path: &str,
    ) -> BaseFile {
        let mut hash = Sha256::new();
        hash.update(host_dir.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(guest_path.as_bytes());
        let name: String = hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let path = dir.syncs().join(name);
        BaseFile { path, workspace: workspace.clone(), host_dir: host_dir.to_owned() }
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> Error {
        let path = self.path.clone();
        move |source| SyncError::Base { action, path: path.clone(), source }.into()
    }

    /// Keeps other syncs of the two directories away.
    pub(super) fn lock(&self) -> Result<Lock, Error> {
        let dir = self.path.parent().expect("the file is in a directory");
        match std::fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(self.failed("write")(error));
            }
            _ => {}
        }
        Lock::try_exclusive(&self.path.with_extension("lock")).map_err(|error| match error {
            LockError::Open { source, .. } => self.failed("lock")(source),
            _ => SyncError::Busy { workspace: self.workspace.clone(), path: self.host_dir.clone() }.into(),
        })
    }

    /// Reads the base again if another sync has written it since; there is none before the first sync.
    pub(super) fn refresh(&self, loaded: &mut LoadedBase) -> Result<(), Error> {
        let failed = self.failed("read");
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *loaded = LoadedBase::default();
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        };
        let found = file.metadata().map_err(&failed)?;
        if loaded.seen == Some((found.ino(), found.len())) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        (&mut file).take(FILE_LIMIT).read_to_end(&mut bytes).map_err(&failed)?;
        let (base, whole) = decode(&bytes);
        // What is not whole is written anew at the end of this sync.
        let seen = (whole == found.len()).then(|| (found.ino(), found.len()));
        let compact = length(&base);
        *loaded = LoadedBase { base, seen, compact };
        Ok(())
    }

    /// Records what a sync has left, in the base and in its file. The caller has the lock.
    pub(super) fn record(
        &self,
        loaded: &mut LoadedBase,
        changes: Vec<(TreePath, Option<Pair>)>,
    ) -> Result<(), Error> {
        let mut frames = Vec::new();
        let changes: Vec<Change> = changes.into_iter().map(|(path, pair)| Change { path, pair }).collect();
        for some in changes.chunks(FRAME_PATHS) {
            encode(&mut frames, some);
        }
        for Change { path, pair } in changes {
            match pair {
                Some(pair) => loaded.base.insert(path, pair),
                None => loaded.base.remove(&path),
            };
        }
        if frames.is_empty() && loaded.seen.is_some() {
            return Ok(());
        }
        let written = match loaded.seen {
            Some((_, len)) if len + frames.len() as u64 <= 2 * loaded.compact + APPENDED_MIN => {
                self.append(len, &frames).map(|seen| (seen, loaded.compact))
            }
            _ => self.replace(&loaded.base).map(|seen| (seen, seen.1)),
        };
        let (seen, compact) = written.map_err(self.failed("write"))?;
        loaded.seen = Some(seen);
        loaded.compact = compact;
        Ok(())
    }

    fn append(&self, len: u64, frames: &[u8]) -> io::Result<(u64, u64)> {
        let mut file = OpenOptions::new().write(true).custom_flags(libc_nofollow()).open(&self.path)?;
        file.seek(SeekFrom::Start(len))?;
        file.write_all(frames)?;
        Ok((file.metadata()?.ino(), len + frames.len() as u64))
    }

    fn replace(&self, base: &Base) -> io::Result<(u64, u64)> {
        let dir = self.path.parent().expect("the file is in a directory");
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        let mut bytes = FORMAT.to_vec();
        let mut some = Vec::new();
        for (path, pair) in base {
            some.push(Change { path: path.clone(), pair: Some(pair.clone()) });
            if some.len() == FRAME_PATHS {
                encode(&mut bytes, &some);
                some.clear();
            }
        }
        if !some.is_empty() {
            encode(&mut bytes, &some);
        }
        file.write_all(&bytes)?;
        file.as_file().sync_data()?;
        let file = file.persist(&self.path).map_err(|error| error.error)?;
        Ok((file.metadata()?.ino(), bytes.len() as u64))
    }
}

/// Length of a file with this base, about.
fn length(base: &Base) -> u64 {
    base.keys().map(|path| path.0.len() as u64 + PAIR_BYTES).sum()
}

/// `O_NOFOLLOW`: nobody but this user can put a link here, and nothing is written through one.
fn libc_nofollow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).expect("a flag of open(2) is an int")
}

fn encode(bytes: &mut Vec<u8>, changes: &[Change]) {
    let frame = postcard::to_stdvec(changes).expect("every change has an encoding");
    let len = u32::try_from(frame.len()).expect("a frame is shorter than its limit");
    bytes.extend(len.to_le_bytes());
    bytes.extend(&Sha256::digest(&frame)[..8]);
    bytes.extend(frame);
}

/// The base of all frames up to the first that is not whole, and how many bytes they have.
fn decode(bytes: &[u8]) -> (Base, u64) {
    let mut base = Base::new();
    let Some(mut rest) = bytes.strip_prefix(FORMAT) else { return (base, 0) };
    while let Some((frame, after)) = split_frame(rest) {
        let Ok(changes) = postcard::from_bytes::<Vec<Change>>(frame) else { break };
        for Change { path, pair } in changes {
            match pair {
                Some(pair) => base.insert(path, pair),
                None => base.remove(&path),
            };
        }
        rest = after;
    }
    (base, (bytes.len() - rest.len()) as u64)
}

fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER_LEN)?;
    let len = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    let (frame, rest) = rest.split_at_checked(len).filter(|_| len <= FRAME_LIMIT)?;
    (Sha256::digest(frame)[..8] == header[4..]).then_some((frame, rest))
}

#[cfg(test)]
mod tests {
    use super::super::plan::Found;
    use super::*;

    fn base_file(dir: &Path) -> BaseFile {
        BaseFile::of(&WorkspaceDir::at(dir), &"web".parse().unwrap(), Path::new("/src"), "/srv")
    }

    fn pair(number: u64) -> Pair {
        let found = Found::File { len: number, mode: 0o644, mtime: (-1, 999_999_999) };
        Pair { from: found, to: Found::Symlink { target: b"\xff".to_vec() } }
    }

    fn path(number: usize) -> TreePath {
        TreePath(format!("dir/\n{number}").into_bytes())
    }

    fn read(file: &BaseFile) -> Base {
        let mut loaded = LoadedBase::default();
        file.refresh(&mut loaded).unwrap();
        loaded.base
    }

    #[test]
    fn what_is_recorded_is_read_again_and_a_torn_end_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let file = base_file(dir.path());
        let lock = file.lock().unwrap();
        assert!(matches!(file.lock(), Err(Error::Sync(SyncError::Busy { .. }))));
        let mut loaded = LoadedBase::default();
        file.refresh(&mut loaded).unwrap();
        let all = (0..10_000).map(|number| (path(number), Some(pair(number as u64)))).collect();
        file.record(&mut loaded, all).unwrap();
        file.record(&mut loaded, vec![(path(1), None), (path(2), Some(pair(7)))]).unwrap();
        assert_eq!(read(&file), loaded.base);
        assert_eq!((loaded.base.len(), &loaded.base[&path(2)]), (9_999, &pair(7)));

        // The last frame is cut off, or damaged: what was before it holds, and the next sync repairs the file.
        let bytes = std::fs::read(&file.path).unwrap();
        for damage in [&bytes[..bytes.len() - 1], &[&bytes[..bytes.len() - 1], &[0xfe]].concat()] {
            std::fs::write(&file.path, damage).unwrap();
            let mut loaded = LoadedBase::default();
            file.refresh(&mut loaded).unwrap();
            assert_eq!((loaded.base.len(), &loaded.base[&path(2)]), (10_000, &pair(2)));
            file.record(&mut loaded, vec![(path(3), None)]).unwrap();
            assert_eq!(read(&file), loaded.base);
        }
        std::fs::write(&file.path, "something else").unwrap();
        assert!(read(&file).is_empty());
        drop(lock);
        file.lock().unwrap();
    }

    #[test]
    fn a_file_that_many_syncs_append_to_stays_short() {
        let dir = tempfile::tempdir().unwrap();
        let file = base_file(dir.path());
        let _lock = file.lock().unwrap();
        let mut loaded = LoadedBase::default();
        for number in 0..200 {
            let some = (0..500).map(|place| (path(place), Some(pair(number)))).collect();
            file.record(&mut loaded, some).unwrap();
        }
        let len = std::fs::metadata(&file.path).unwrap().len();
        assert!(len <= 2 * APPENDED_MIN + FORMAT.len() as u64, "{len}");
        assert_eq!(read(&file), loaded.base);
    }

    #[test]
    fn what_another_sync_has_written_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = base_file(dir.path());
        let _lock = file.lock().unwrap();
        let (mut one, mut other) = (LoadedBase::default(), LoadedBase::default());
        file.record(&mut one, vec![(path(1), Some(pair(1)))]).unwrap();
        file.refresh(&mut other).unwrap();
        file.record(&mut other, vec![(path(2), Some(pair(2)))]).unwrap();
        file.refresh(&mut one).unwrap();
        assert_eq!(one.base, other.base);
        assert_ne!(
            file.path,
            BaseFile::of(&WorkspaceDir::at(dir.path()), &"web".parse().unwrap(), Path::new("/src"), "/x")
                .path
        );
    }
}
