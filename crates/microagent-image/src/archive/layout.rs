//! The files of an OCI layout directory, which somebody else may have made.
//!
//! Names are resolved within the directory: a link that leads out of it is not followed, and nothing that is not a
//! regular file is waited for.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::ArchiveError;

/// How often a name is resolved anew when somebody renames parts of the directory meanwhile.
const RESOLVE_TRIES: usize = 100;

/// An open layout.
pub(super) struct Layout(OwnedFd);

impl Layout {
    /// Opens the directory.
    pub(super) fn open(path: &Path) -> Result<Layout, ArchiveError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(CWD, path, flags, Mode::empty()) {
            Ok(dir) => Ok(Layout(dir)),
            Err(Errno::NOTDIR) => Err(ArchiveError::WrongKind {
                kind: "an OCI layout directory",
                missing: "a directory".to_owned(),
            }),
            Err(errno) => Err(ArchiveError::Open { source: errno.into() }),
        }
    }

    /// Opens a file and gives its size.
    pub(super) fn file(&self, name: &str) -> io::Result<(File, u64)> {
        let file = File::from(self.resolve(name)?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok((file, metadata.len()))
    }

    fn resolve(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RESOLVE_TRIES {
            match openat2(&self.0, name, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::XDEV) => {
                    return Err(io::Error::other("a link leads out of the layout"));
                }
                Err(Errno::NXIO) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
                }
                opened => return opened.map_err(io::Error::from),
            }
        }
        Err(Errno::AGAIN.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{FileType, mknodat};

    use super::*;

    #[test]
    fn only_regular_files_within_the_directory_are_opened() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("layout");
        fs::create_dir_all(dir.join("blobs")).unwrap();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        fs::write(dir.join("file"), "content").unwrap();
        symlink("../file", dir.join("blobs/inside")).unwrap();
        symlink("../secret", dir.join("out")).unwrap();
        symlink(dir.join("file"), dir.join("absolute")).unwrap();
        symlink("..", dir.join("up")).unwrap();
        mknodat(CWD, dir.join("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _socket = UnixListener::bind(dir.join("socket")).unwrap();

        let layout = Layout::open(&dir).unwrap();
        for name in ["file", "blobs/inside"] {
            assert_eq!(layout.file(name).unwrap().1, 7, "{name}");
        }
        for (name, text) in [
            ("out", "a link leads out of the layout"),
            ("absolute", "a link leads out of the layout"),
            ("up/secret", "a link leads out of the layout"),
            ("../secret", "a link leads out of the layout"),
            ("fifo", "it is not a regular file"),
            ("socket", "it is not a regular file"),
            ("blobs", "it is not a regular file"),
        ] {
            assert_eq!(layout.file(name).unwrap_err().to_string(), text, "{name}");
        }
        assert_eq!(layout.file("none").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(matches!(Layout::open(&dir.join("file")), Err(ArchiveError::WrongKind { .. })));
        assert!(matches!(Layout::open(&dir.join("none")), Err(ArchiveError::Open { .. })));
    }
}
