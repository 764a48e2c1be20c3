//! Removes directories of any depth, with constant memory.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Removes a file, or a directory with everything in it. No link is followed.
///
/// `std::fs::remove_dir_all` calls itself for every level. A supervisor that a guest has taken over can make some ten
/// thousand levels, which overflow the stack. Here directories are moved up, so that none is entered below the second level.
///
/// # Errors
/// Fails if something cannot be removed or moved, for example because a directory cannot be written to.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    let root = open_dir(CWD, path)?;
    let mut moved = 0_u64;
    while clear(&root, &mut moved)? {}
    fs::remove_dir(path)
}

/// Empties the directories of `root`, and removes them and its files. Returns whether `root` may have something left.
fn clear(root: &OwnedFd, moved: &mut u64) -> io::Result<bool> {
    let mut is_left = false;
    for name in names(root)? {
        let name = name?;
        if remove(root, &name)? {
            continue;
        }
        is_left = true;
        let dir = open_dir(root, name.as_c_str())?;
        for inner in names(&dir)? {
            let inner = inner?;
            if !remove(&dir, &inner)? {
                move_up(&dir, &inner, root, moved)?;
            }
        }
    }
    Ok(is_left)
}

/// Removes what is not a directory, or an empty one. Returns false for a directory that is not empty.
fn remove(dir: &OwnedFd, name: &CString) -> io::Result<bool> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Moves a directory to `root`, under a name that is free there.
fn move_up(dir: &OwnedFd, name: &CString, root: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        match renameat(dir, name, root, format!("moved-{moved}")) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_dir(at: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

fn names(dir: &OwnedFd) -> io::Result<impl Iterator<Item = io::Result<CString>>> {
    let entries = Dir::read_from(dir)?.map(|entry| Ok(entry?.file_name().to_owned()));
    Ok(entries.filter(|name: &io::Result<CString>| {
        !name.as_ref().is_ok_and(|name| matches!(name.to_bytes(), b"." | b".."))
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_tree_is_removed_whatever_its_depth_and_no_link_is_followed() {
        let outer = tempfile::tempdir().unwrap();
        let (kept, tree) = (outer.path().join("kept"), outer.path().join("tree"));
        fs::create_dir_all(kept.join("inner")).unwrap();
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir(tree.join("moved-1")).unwrap();
        fs::write(tree.join("moved-2"), "").unwrap();
        for dir in ["", "a", "a/b", "a/b/c", "moved-1"] {
            fs::write(tree.join(dir).join("file"), "").unwrap();
            symlink(&kept, tree.join(dir).join("link")).unwrap();
        }
        let mut dir = open_dir(CWD, tree.join("a")).unwrap();
        for _ in 0..20_000 {
            mkdirat(&dir, "deep", Mode::RWXU).unwrap();
            dir = open_dir(&dir, "deep").unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && kept.join("inner").exists());

        symlink(&kept, &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && kept.join("inner").exists());
        assert!(remove_tree(&tree).is_err());
    }
}
