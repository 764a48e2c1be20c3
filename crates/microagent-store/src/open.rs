//! How files of the state directory are opened: what lies there must be a regular file.
//!
//! The directory is private, but whoever can write to it (a backup that was restored badly, another program of the
//! user, QEMU after an escape) can leave something else under the name of a file. A FIFO would make every command
//! wait for a writer, a symbolic link would lead a log to any other file. So a file is opened without following a
//! link in its last component and without waiting, and its type is looked at before it is used.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What a file is opened for. Files are created with mode 0600.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading a file that the user named: symbolic links lead to it as usual.
    ReadFollowing,
    /// Reading and writing what is there already.
    Modify,
    /// Reading and writing; created when it is missing.
    ModifyOrCreate,
    /// Reading, and writing at the end; created when it is missing.
    Append,
    /// Writing from nothing: created when it is missing, emptied when it is there.
    Replace,
}

/// Opens a regular file.
///
/// # Errors
/// Fails as opening does, and when the name is that of a symbolic link, FIFO, socket, device or directory. Nothing is
/// changed then.
pub fn open_file(path: &Path, access: Access) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = match access {
        Access::Read | Access::ReadFollowing => options.read(true),
        Access::Modify => options.read(true).write(true),
        // Reading as well, because a FIFO that is opened for both never waits and never fails.
        Access::ModifyOrCreate | Access::Replace => {
            options.read(true).write(true).create(true).truncate(false)
        }
        Access::Append => options.read(true).append(true).create(true),
    };
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    if access != Access::ReadFollowing {
        flags |= OFlags::NOFOLLOW;
    }
    // Flags of open(2) are all positive.
    let opened = options.mode(0o600).custom_flags(flags.bits() as i32).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) if path.is_symlink() => not_regular("a symbolic link"),
        Some(Errno::NXIO) => not_regular("a socket or a device"),
        _ => error,
    })?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    if !metadata.is_file() {
        return Err(not_regular("a FIFO or a device"));
    }
    if access == Access::Replace {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Opens a file that the user named, for reading: a regular file, or a stream that the caller's shell has opened for it,
/// which is called `/dev/stdin` or, for `<(...)`, `/dev/fd/N`, or `/dev/null`. Whoever names another FIFO would wait
/// without knowing why.
///
/// # Errors
/// As [`open_file`] with [`Access::ReadFollowing`], but for such streams.
pub fn open_named(path: &Path) -> io::Result<File> {
    let is_stream = ["/dev/stdin", "/dev/null"].iter().any(|name| path == Path::new(name))
        || ["/dev/fd", "/proc/self/fd"].iter().any(|streams| path.parent() == Some(Path::new(streams)));
    if is_stream { File::open(path) } else { open_file(path, Access::ReadFollowing) }
}

fn not_regular(kind: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {kind}, not a regular file"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    const ALL: [Access; 6] = [
        Access::Read,
        Access::ReadFollowing,
        Access::Modify,
        Access::ModifyOrCreate,
        Access::Append,
        Access::Replace,
    ];

    fn refusal(path: &Path, access: Access) -> String {
        open_file(path, access).unwrap_err().to_string()
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        for access in ALL {
            assert!(refusal(&at("fifo"), access).contains("not a regular file"), "{access:?}");
            assert!(refusal(&at("socket"), access).contains("not a regular file"), "{access:?}");
            assert!(open_file(dir.path(), access).unwrap_err().kind() == io::ErrorKind::IsADirectory);
        }
    }

    #[test]
    fn links_are_followed_only_where_the_user_named_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("other"), "precious").unwrap();
        symlink(at("other"), at("link")).unwrap();
        symlink(at("missing"), at("dangling")).unwrap();
        for access in ALL.into_iter().filter(|access| *access != Access::ReadFollowing) {
            assert_eq!(refusal(&at("link"), access), "it is a symbolic link, not a regular file");
            open_file(&at("dangling"), access).unwrap_err();
        }
        assert!(!at("missing").exists());
        let mut content = String::new();
        open_file(&at("link"), Access::ReadFollowing).unwrap().read_to_string(&mut content).unwrap();
        assert_eq!(content, "precious");
    }

    #[test]
    fn a_stream_is_read_only_where_the_shell_has_opened_it() {
        use std::os::fd::AsRawFd;

        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        symlink(&fifo, dir.path().join("link")).unwrap();
        for refused in [fifo, dir.path().join("link"), "/dev/zero".into()] {
            let error = open_named(&refused).unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{error}");
        }
        assert_eq!(open_named(Path::new("/dev/null")).unwrap().read(&mut [0]).unwrap(), 0);
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"A=1").unwrap();
        drop(writer);
        for streams in ["/dev/fd", "/proc/self/fd"] {
            open_named(&Path::new(streams).join(reader.as_raw_fd().to_string())).unwrap();
        }
        let mut content = String::new();
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        open_named(Path::new(&path)).unwrap().read_to_string(&mut content).unwrap();
        assert_eq!(content, "A=1");
    }

    #[test]
    fn each_access_does_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for access in [Access::Read, Access::ReadFollowing, Access::Modify] {
            assert_eq!(open_file(&path, access).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        open_file(&path, Access::Append).unwrap().write_all(b"one").unwrap();
        open_file(&path, Access::Append).unwrap().write_all(b" two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one two");
        open_file(&path, Access::Modify).unwrap().write_all(b"ONE").unwrap();
        open_file(&path, Access::ModifyOrCreate).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"ONE two");
        open_file(&path, Access::Replace).unwrap().write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
