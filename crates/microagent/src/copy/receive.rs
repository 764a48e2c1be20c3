//! The host's side of a copy out of a workspace: a guest's tar stream becomes files.
//!
//! The stream is unpacked into a fresh directory beside its destination and moved from there when it is complete.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use microagent_tar::read::ReadSource;
use microagent_tree::{Rules, SymlinkRule, Unpacked};
use tempfile::TempDir;

use crate::Error;
use crate::error::deepest_io;

/// The guest's tar stream as a reader. It ends with an empty chunk; one that ends without is torn.
pub(crate) struct Stream {
    chunks: Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
    ended: bool,
    /// How much more of it is taken.
    left: u64,
}

/// What is said of a guest that sends without an end.
pub(super) const TOO_MUCH: &str = "the guest sends more than its disk can hold";

impl Stream {
    /// The chunks in their order.
    pub(crate) fn new(chunks: Receiver<Vec<u8>>) -> Stream {
        Stream { chunks, current: io::Cursor::default(), ended: false, left: u64::MAX }
    }

    /// The same, up to so many bytes; what has more is an error.
    pub(crate) fn up_to(self, limit: u64) -> Stream {
        Stream { left: limit, ..self }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.current.read(buffer)? {
                0 if !buffer.is_empty() && !self.ended => match self.chunks.recv() {
                    Ok(chunk) => {
                        let left = self.left.checked_sub(chunk.len() as u64);
                        self.left = left.ok_or_else(|| io::Error::other(TOO_MUCH))?;
                        self.ended = chunk.is_empty();
                        self.current = io::Cursor::new(chunk);
                    }
                    Err(_) => return Err(io::Error::other("the guest's stream broke off")),
                },
                read => return Ok(read),
            }
        }
    }
}

/// Unpacks a stream into a fresh directory in `beside`. Only files, directories and links come out: nothing that is
/// special on the host, no foreign owner, no set-id bit; nothing lands outside. `links` says which links are made.
pub(crate) fn unpack(
    stream: impl Read,
    beside: &Path,
    links: SymlinkRule,
) -> io::Result<(TempDir, Unpacked)> {
    let dir = tempfile::Builder::new().prefix(".microagent-").tempdir_in(beside)?;
    let root = File::open(dir.path())?;
    let rules = Rules { links, ..Rules::HARMLESS };
    let unpacked =
        microagent_tree::unpack(&root.into(), ReadSource::new(stream), rules).map_err(|error| {
            // What the system said decides whether it is worth trying again.
            let kind = deepest_io(&error).map_or(io::ErrorKind::Other, io::Error::kind);
            io::Error::new(kind, error)
        })?;
    Ok((dir, unpacked))
}

/// Receives a stream into the directory `dir`: its one item under `name`, or, where the stream is the `content` of a
/// directory, all of them in a directory of that name or, without one, in `dir`.
pub(super) fn receive(stream: impl Read, dir: &Path, name: Option<&str>, content: bool) -> Result<(), Error> {
    let failed = |path: &Path, source| Error::File { action: "write", path: path.to_owned(), source };
    let (unpacked, _) = unpack(stream, dir, SymlinkRule::All).map_err(|e| failed(dir, e))?;
    let mut items = Vec::new();
    for item in fs::read_dir(unpacked.path()).map_err(|e| failed(dir, e))? {
        items.push(item.map_err(|e| failed(dir, e))?.path());
    }
    let dest = name.map_or_else(|| dir.to_owned(), |name| dir.join(name));
    let merged = match items.as_slice() {
        items if content => make_dir(&dest).and_then(|()| merge_all(items, &dest)),
        [item] => merge(item, &dest),
        _ => Err(io::Error::other("the guest did not send exactly one file or directory")),
    };
    merged.map_err(|e| failed(&dest, e))
}

fn merge_all(items: &[PathBuf], dir: &Path) -> io::Result<()> {
    for item in items {
        merge(item, &dir.join(item.file_name().expect("an item has a name")))?;
    }
    Ok(())
}

/// Moves an item to its place. Directories are merged, files replaced; neither takes the other's place, and no link is
/// followed.
fn merge(item: &Path, dest: &Path) -> io::Result<()> {
    let is_dir = fs::symlink_metadata(item)?.is_dir();
    match fs::symlink_metadata(dest) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => move_to(item, dest, is_dir),
        Err(error) => Err(error),
        Ok(there) if there.is_dir() && is_dir => {
            let mode = fs::metadata(item)?.permissions();
            fs::set_permissions(item, Permissions::from_mode(0o700))?;
            let mut items = Vec::new();
            for inner in fs::read_dir(item)? {
                items.push(inner?.path());
            }
            merge_all(&items, dest)?;
            fs::set_permissions(dest, mode)
        }
        Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) if is_dir => Err(io::ErrorKind::NotADirectory.into()),
        Ok(_) => move_to(item, dest, is_dir),
    }
}

/// To move a directory, its entry `..` must be writable.
fn move_to(item: &Path, dest: &Path, is_dir: bool) -> io::Result<()> {
    if !is_dir {
        return fs::rename(item, dest);
    }
    let mode = fs::metadata(item)?.permissions();
    fs::set_permissions(item, Permissions::from_mode(mode.mode() & 0o777 | 0o700))?;
    fs::rename(item, dest)?;
    fs::set_permissions(dest, mode)
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use tar::EntryType;

    use super::*;

    fn tar_of(entries: &[(&str, EntryType, u32, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, mode, content) in entries {
            let mut header = tar::Header::new_gnu();
            let bytes = header.as_old_mut();
            bytes.name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_uid(1234);
            let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
            header.set_size(if is_link { 0 } else { content.len() as u64 });
            if is_link {
                header.set_link_name_literal(content).unwrap();
            }
            header.set_cksum();
            let body = if is_link { &[][..] } else { content.as_bytes() };
            builder.append(&header, body).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_tree_lands_with_its_modes_and_a_second_one_is_merged_into_it() {
        let dir = tempfile::tempdir().unwrap();
        let tree = [
            ("t/", EntryType::Directory, 0o500, ""),
            ("t/inner/", EntryType::Directory, 0o555, ""),
            ("t/inner/file", EntryType::Regular, 0o4750, "one"),
            ("t/pipe", EntryType::Fifo, 0o644, ""),
        ];
        receive(&tar_of(&tree)[..], dir.path(), Some("new"), false).unwrap();
        let file = dir.path().join("new/inner/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "one");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&dir.path().join("new")), mode(&file)), (0o500, 0o750));
        assert!(!dir.path().join("new/pipe").exists());

        fs::set_permissions(dir.path().join("new"), Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(dir.path().join("new/inner"), Permissions::from_mode(0o700)).unwrap();
        fs::write(dir.path().join("new/own"), "own").unwrap();
        let again = [
            ("t/", EntryType::Directory, 0o700, ""),
            ("t/inner/", EntryType::Directory, 0o700, ""),
            ("t/inner/file", EntryType::Regular, 0o600, "two"),
        ];
        receive(&tar_of(&again)[..], dir.path(), Some("new"), false).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        assert_eq!(fs::read_to_string(dir.path().join("new/own")).unwrap(), "own");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_that_was_copied_before_is_not_written_through() {
        let outer = tempfile::tempdir().unwrap();
        let dest = outer.path().join("dest");
        fs::create_dir(&dest).unwrap();
        fs::create_dir(outer.path().join("secret")).unwrap();
        let link =
            [("t/", EntryType::Directory, 0o755, ""), ("t/l", EntryType::Symlink, 0o777, "../../secret")];
        receive(&tar_of(&link)[..], &dest, Some("t"), false).unwrap();
        let through = [
            ("t/", EntryType::Directory, 0o755, ""),
            ("t/l/", EntryType::Directory, 0o755, ""),
            ("t/l/evil", EntryType::Regular, 0o644, "x"),
        ];
        receive(&tar_of(&through)[..], &dest, Some("t"), false).unwrap_err();
        assert_eq!(fs::read_dir(outer.path().join("secret")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&dest).unwrap().count(), 1);
    }

    #[test]
    fn a_stream_without_its_end_is_torn() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut tar = tar_of(&[("file", EntryType::Regular, 0o644, "whole")]);
        // Between two members, where a stream looks as if it had ended.
        tar.truncate(2 * 512);
        sender.send(tar).unwrap();
        drop(sender);
        let dir = tempfile::tempdir().unwrap();
        receive(Stream::new(receiver), dir.path(), Some("file"), false).unwrap_err();

        let (sender, receiver) = std::sync::mpsc::sync_channel(4);
        sender.send(vec![0; 100]).unwrap();
        sender.send(vec![0; 100]).unwrap();
        let mut read = Vec::new();
        let error = Stream::new(receiver).up_to(150).read_to_end(&mut read).unwrap_err();
        assert_eq!((error.to_string().as_str(), read.len()), (TOO_MUCH, 100));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
