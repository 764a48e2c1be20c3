//! Where a workspace's supervisor listens: a socket in the directory that is the supervisor's.
//!
//! A socket's path has at most 107 bytes and a state directory any length, so the socket is bound and
//! connected through an open directory (`/proc/self/fd/N/control`). It goes away with the workspace.
//!
//! The directory has mode 0700, and a client must also know the content of a file beside the socket: QEMU runs
//! as the same user, but its jail keeps it from reading files that are not its own, so a guest that broke out
//! into QEMU cannot command supervisors.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::WorkspaceDir;
use crate::atomic::{Durability, ReadError, read_limited, write_atomic_as};

/// File name of the socket.
const SOCKET: &str = "control";

/// Length of a key in bytes.
pub const CONTROL_KEY_LEN: usize = 32;

/// What a client must know.
pub type ControlKey = [u8; CONTROL_KEY_LEN];

impl WorkspaceDir {
    /// Listens for clients that know `key`. The caller holds the workspace's lock, so whatever socket lies there
    /// is a dead supervisor's.
    ///
    /// # Errors
    /// Fails when the key cannot be written or the socket not be bound.
    pub fn listen(&self, key: &ControlKey) -> io::Result<UnixListener> {
        self.make_machine_dir()?;
        // Without its supervisor, the key opens nothing.
        write_atomic_as(&self.control_key(), key, Durability::Cached)?;
        self.stop_listening();
        let (_dir, path) = self.short_socket_path()?;
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// Removes the socket; one that is not there does not matter.
    pub fn stop_listening(&self) {
        let _ = fs::remove_file(self.machine().join(SOCKET));
    }

    /// Connects to the workspace's supervisor, and gives the key that it asks for.
    ///
    /// # Errors
    /// Fails with `NotFound` or `ConnectionRefused` when nobody listens.
    pub fn connect(&self) -> io::Result<(UnixStream, ControlKey)> {
        let key = read_limited(&self.control_key(), CONTROL_KEY_LEN as u64).map_err(|error| match error {
            ReadError::Read { source, .. } => source,
            other => io::Error::other(other),
        })?;
        let key = key.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let (_dir, path) = self.short_socket_path()?;
        Ok((UnixStream::connect(path)?, key))
    }

    /// The socket's path, short whatever the directory is called; good while the descriptor is open.
    fn short_socket_path(&self) -> io::Result<(OwnedFd, PathBuf)> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, self.machine(), flags, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_fd().as_raw_fd()));
        Ok((dir, path))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_socket_works_in_a_directory_of_any_length() {
        let base = tempfile::tempdir().unwrap();
        let long = base.path().join("a-rather-long-directory-name/".repeat(20));
        fs::create_dir_all(&long).unwrap();
        let dir = WorkspaceDir::at(&long);
        assert_eq!(dir.connect().unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = dir.listen(&[7; CONTROL_KEY_LEN]).unwrap();
        let (mut client, key) = dir.connect().unwrap();
        assert_eq!(key, [7; CONTROL_KEY_LEN]);
        client.write_all(b"x").unwrap();
        drop(client);
        let mut read = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"x");

        drop(listener);
        assert_eq!(dir.connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        // What a killed supervisor left is in nobody's way.
        dir.listen(&[8; CONTROL_KEY_LEN]).unwrap();
        dir.stop_listening();
        assert_eq!(dir.connect().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
