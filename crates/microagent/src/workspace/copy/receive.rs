//! The host's side of a copy out of a workspace: a guest's tar stream becomes files.
//!
//! The stream is unpacked into a fresh directory beside its destination and moved from there when it is complete.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use microagent_tree::SymlinkRule;

use crate::Error;
use crate::tar_stream::unpack;

/// Receives a stream into the directory `dir`: its one item under `name`, or, where the stream is the `content` of a
/// directory, all of them in a directory of that name or, without one, in `dir`. Gives the number of FIFOs and
/// devices, which are left out.
pub(super) fn receive(
    stream: impl Read,
    dir: &Path,
    name: Option<&str>,
    content: bool,
) -> Result<u64, Error> {
    let failed = |path: &Path, source| Error::File { action: "write", path: path.to_owned(), source };
    let (unpacked, done) = unpack(stream, dir, SymlinkRule::All).map_err(|e| failed(dir, e))?;
    let mut items = Vec::new();
    for item in fs::read_dir(unpacked.path()).map_err(|e| failed(dir, e))? {
        items.push(item.map_err(|e| failed(dir, e))?.path());
    }
    let dest = name.map_or_else(|| dir.to_owned(), |name| dir.join(name));
    let merged = match items.as_slice() {
        items if content => make_dir(&dest).and_then(|()| merge_all(items, &dest)),
        [item] => merge(item, &dest),
        // The one item was a FIFO or a device.
        [] if done.special_skipped > 0 => Ok(()),
        _ => Err(io::Error::other("the guest did not send exactly one file or directory")),
    };
    merged.map(|()| done.special_skipped).map_err(|e| failed(&dest, e))
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
    use crate::tar_stream::TarReader;
    use crate::test_tar::tar_of;

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
    fn a_stream_that_breaks_off_between_two_members_is_torn() {
        let mut tar = tar_of(&[("file", EntryType::Regular, 0o644, "whole")]);
        // Here a stream looks as if it had ended.
        tar.truncate(2 * 512);
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender.try_send(tar).unwrap();
        drop(sender);
        let dir = tempfile::tempdir().unwrap();
        receive(TarReader::new(receiver, u64::MAX), dir.path(), Some("file"), false).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
