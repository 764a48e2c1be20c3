//! Which paths are not part of a sync: patterns of the caller, and those of `.gitignore` files of the host.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::fs::{Mode, OFlags, openat};

use super::plan::TreePath;
use crate::error::SyncError;

/// Most bytes of a file of patterns that are read.
const PATTERNS_LIMIT: u64 = 1024 * 1024;

/// Most directories above the synced one that are searched for a repository.
const PARENTS_MAX: usize = 64;

/// Name of the files of patterns.
const GITIGNORE: &str = ".gitignore";

/// Directory of a repository, whose files are git's own.
const REPOSITORY: &[u8] = b".git";

/// File without which git takes no directory for a repository. A bare repository has its settings, which name programs,
/// beside it in a directory of any name.
const HEAD: &[u8] = b"HEAD";

/// What names of files begin with that are not complete yet.
const UNFINISHED: &[u8] = b".microagent-";

/// Decides which paths are part of a sync.
#[derive(Debug)]
pub(super) struct Ignore {
    /// The synced directory of the host.
    dir: PathBuf,
    /// Patterns of the caller. They come first.
    patterns: Gitignore,
    /// Patterns of the directories above the synced one, innermost first; `None` if none are honoured.
    above: Option<Vec<Gitignore>>,
    /// Patterns of directories below the synced one, by their path.
    below: HashMap<Vec<u8>, Gitignore>,
}

impl Ignore {
    /// Reads the patterns of the caller, and those that directories above the synced one have for it.
    pub(super) fn new(dir: &Path, patterns: &[String], gitignore: bool) -> Result<Ignore, SyncError> {
        let mut builder = GitignoreBuilder::new(dir);
        for pattern in patterns {
            builder.add_line(None, pattern).map_err(|error| invalid(pattern, error))?;
        }
        let patterns = builder.build().map_err(|error| invalid(&patterns.join(" "), error))?;
        let above = gitignore.then(|| above(dir));
        Ok(Ignore { dir: dir.to_owned(), patterns, above, below: HashMap::new() })
    }

    /// Reads the patterns of a directory that is entered. A `.gitignore` that is a link is not followed, as in git.
    pub(super) fn enter(&mut self, path: &[u8], dir: BorrowedFd<'_>) {
        if self.above.is_none() {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let Ok(file) = openat(dir, GITIGNORE, flags, Mode::empty()) else { return };
        let root = self.dir.join(OsStr::from_bytes(path));
        self.below.extend(patterns_of(&root, File::from(file)).map(|patterns| (path.to_vec(), patterns)));
    }

    /// Whether a path is not part of the sync, given that the directory it is in is.
    pub(super) fn leaves_out(&self, path: &[u8], is_directory: bool) -> bool {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        if name.starts_with(UNFINISHED) {
            return true;
        }
        let whole = self.dir.join(OsStr::from_bytes(path));
        match self.patterns.matched(&whole, is_directory) {
            Match::Ignore(_) => return true,
            Match::Whitelist(_) => return false,
            Match::None => {}
        }
        let Some(above) = &self.above else { return false };
        if name.eq_ignore_ascii_case(REPOSITORY) || (name == HEAD && !is_directory) {
            return true;
        }
        let dirs = std::iter::successors(Some(parent(path)), |dir| (!dir.is_empty()).then(|| parent(dir)));
        for patterns in dirs.filter_map(|dir| self.below.get(dir)).chain(above) {
            match patterns.matched(&whole, is_directory) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => {}
            }
        }
        false
    }

    /// Whether a path, or a directory that it is in, is not part of the sync.
    pub(super) fn leaves_out_anywhere(&self, path: &TreePath, is_directory: bool) -> bool {
        let slashes = path.0.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        slashes.into_iter().any(|end| self.leaves_out(&path.0[..end], true))
            || self.leaves_out(&path.0, is_directory)
    }
}

fn invalid(pattern: &str, error: ignore::Error) -> SyncError {
    SyncError::Pattern { pattern: pattern.to_owned(), source: error.into() }
}

/// The directory of a path; empty for one at the top.
fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |slash| &path[..slash])
}

/// The patterns of the directories from above this one to the top of its repository; none outside of a repository.
fn above(dir: &Path) -> Vec<Gitignore> {
    let is_repository = |dir: &Path| dir.join(OsStr::from_bytes(REPOSITORY)).symlink_metadata().is_ok();
    if is_repository(dir) {
        return Vec::new();
    }
    let mut all = Vec::new();
    for parent in dir.ancestors().skip(1).take(PARENTS_MAX) {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(parent.join(GITIGNORE), flags, Mode::empty()) {
            all.extend(patterns_of(parent, File::from(file)));
        }
        if is_repository(parent) {
            return all;
        }
    }
    Vec::new()
}

/// The patterns of a file; lines that are no patterns are ignored, as git does.
fn patterns_of(root: &Path, file: File) -> Option<Gitignore> {
    let is_file = file.metadata().is_ok_and(|found| found.is_file());
    let mut content = Vec::new();
    if !is_file || file.take(PATTERNS_LIMIT).read_to_end(&mut content).is_err() {
        return None;
    }
    let mut builder = GitignoreBuilder::new(root);
    for line in content.split(|byte| *byte == b'\n') {
        let _ = builder.add_line(None, &String::from_utf8_lossy(line));
    }
    builder.build().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(path: &Path) -> std::os::fd::OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn gitignore_files_hold_below_and_above_in_gits_order() {
        use std::os::fd::AsFd;
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("app");
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::create_dir(outer.path().join(".git")).unwrap();
        fs::write(outer.path().join(".gitignore"), "*.log\nnode_modules/\n").unwrap();
        fs::write(dir.join(".gitignore"), "# comment\n/target\n[\n*.tmp\n").unwrap();
        fs::write(dir.join("sub/.gitignore"), "!keep.tmp\n").unwrap();
        let mut ignore = Ignore::new(&dir, &["*.o".to_owned(), "!main.o".to_owned()], true).unwrap();
        ignore.enter(b"", open(&dir).as_fd());
        ignore.enter(b"sub", open(&dir.join("sub")).as_fd());
        for (path, is_directory, wanted) in [
            (&b"a.log"[..], false, true),
            (b"sub/a.log", false, true),
            (b"node_modules", true, true),
            (b"node_modules", false, false),
            (b"target", true, true),
            (b"sub/target", true, false),
            (b"a.tmp", false, true),
            (b"sub/a.tmp", false, true),
            (b"sub/keep.tmp", false, false),
            (b"x.o", false, true),
            (b"main.o", false, false),
            (b".git", true, true),
            (b"HEAD", false, true),
            (b"docs/HEAD", false, true),
            (b"docs/HEAD", true, false),
            (b"docs/head", false, false),
            (b".microagent-12", false, true),
            (b".gitignore", false, false),
            (b"\xff\n.log", false, true),
        ] {
            assert_eq!(ignore.leaves_out(path, is_directory), wanted, "{}", path.escape_ascii());
        }
        assert!(ignore.leaves_out_anywhere(&TreePath(b"target/x/y".to_vec()), false));
        let all = Ignore::new(&dir, &[], false).unwrap();
        assert!(!all.leaves_out(b".git", true) && !all.leaves_out(b"a.log", false));
        assert!(Ignore::new(&dir, &["a{b".to_owned()], true).is_err());
    }

    #[test]
    fn outside_of_a_repository_nothing_above_holds() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("app");
        fs::create_dir(&dir).unwrap();
        fs::write(outer.path().join(".gitignore"), "*.log\n").unwrap();
        assert!(!Ignore::new(&dir, &[], true).unwrap().leaves_out(b"a.log", false));
    }
}
