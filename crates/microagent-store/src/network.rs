//! Private networks: which workspaces reach each other, and at which addresses.
//!
//! A network is a directory with a record, a lock, and one socket for each member whose machine runs. The record has the
//! address of each workspace that was started in the network; it is written by commands only, which hold the lock. The
//! networks that a workspace joins are in its own record. An address of a workspace that is gone is free.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::{NetworkName, Subnet, WorkspaceName};
use rustix::fs::{CWD, Mode, OFlags, openat, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use serde::{Deserialize, Serialize};

use crate::state_dir::{create_private_dir, names_in};
use crate::{Durability, Lock, LockError, ReadError, StateDir, WriteError, read_json, write_json};

/// Newest format of a network's record that this build reads and the one that it writes.
pub const NETWORK_FORMAT: u32 = 1;

/// How long a command waits for another one that gives out addresses.
const PATIENCE: Duration = Duration::from_secs(10);

/// Members that connect to one member at the same moment.
const BACKLOG: i32 = 256;

/// Access to sockets of members: the user's own processes.
const SOCKET_FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// `network.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Format of this record.
    pub format: u32,
    /// The network's name, also the name of its directory.
    pub name: NetworkName,
    /// When it was created.
    pub created_at: Timestamp,
    /// Its addresses.
    pub subnet: Subnet,
    /// The address of each workspace that was started in it.
    pub members: BTreeMap<WorkspaceName, Ipv4Addr>,
}

/// Why the record of a network could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkLoadError {
    /// The record is missing, unreadable or damaged.
    #[error("cannot load network `{name}`")]
    Read {
        /// The network.
        name: String,
        /// What is wrong with the file.
        source: ReadError,
    },
    /// Written by a newer release; refusing beats guessing.
    #[error("record `{}` has format {found}, this build reads up to {NETWORK_FORMAT}", path.display())]
    TooNew {
        /// The record.
        path: PathBuf,
        /// The format found there.
        found: u32,
    },
}

/// Why a workspace got no address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The record cannot be loaded.
    #[error(transparent)]
    Load(#[from] NetworkLoadError),
    /// All addresses are in use.
    #[error("network `{name}` ({subnet}) has no free address")]
    Full {
        /// The network.
        name: NetworkName,
        /// Its subnet.
        subnet: Subnet,
    },
    /// The record cannot be locked.
    #[error("cannot lock network `{name}`")]
    Lock {
        /// The network.
        name: String,
        /// What is wrong with the lock.
        source: LockError,
    },
    /// The record cannot be written.
    #[error("cannot write the record of network `{name}`")]
    Write {
        /// The network.
        name: String,
        /// What the system said.
        source: WriteError,
    },
}

/// The directory of one private network.
#[derive(Debug, Clone)]
pub struct NetworkDir {
    path: PathBuf,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl StateDir {
    /// One directory per private network.
    pub fn networks(&self) -> PathBuf {
        self.root().join("networks")
    }

    /// The directory of one private network, existing or not.
    pub fn network(&self, name: &NetworkName) -> NetworkDir {
        NetworkDir { path: self.networks().join(name) }
    }

    /// Names of all directories that could be private networks, sorted.
    ///
    /// # Errors
    /// Fails when there are networks and their directory cannot be read.
    pub fn network_names(&self) -> io::Result<Vec<NetworkName>> {
        names_in(&self.networks())
    }

    /// Takes the lock under which networks are created, so that no two get the same addresses. Blocks the thread.
    ///
    /// # Errors
    /// Fails when another command holds it for long.
    pub fn lock_networks(&self) -> Result<Lock, LockError> {
        Lock::exclusive(&self.networks().join(".lock"), PATIENCE)
    }

    /// Creates a network, whose directory takes its name in one step.
    ///
    /// # Errors
    /// Fails with `AlreadyExists` when the name is taken, and when the directory cannot be made. Nothing is left then.
    pub fn create_network(&self, record: &NetworkRecord) -> io::Result<NetworkDir> {
        let dir = self.network(&record.name);
        self.bring_in(dir.path(), Durability::Flushed, |making| {
            create_private_dir(&NetworkDir::at(making).sockets())?;
            write_json(&making.join("network.json"), record).map_err(io::Error::from)
        })?;
        Ok(dir)
    }
}

impl NetworkDir {
    /// Names the directory of a network without touching it.
    pub fn at(path: impl Into<PathBuf>) -> NetworkDir {
        NetworkDir { path: path.into() }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `network.json`: what the network is.
    pub fn record(&self) -> PathBuf {
        self.path.join("network.json")
    }

    /// Where members whose machines run are connected to.
    pub fn sockets(&self) -> PathBuf {
        self.path.join("members")
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Takes the lock of the network's record. Blocks the thread.
    ///
    /// # Errors
    /// Fails when another command holds it for long, or there is no such network.
    pub fn lock(&self) -> Result<Lock, LockError> {
        Lock::exclusive(&self.path.join("lock"), PATIENCE)
    }

    /// Gives a workspace its address: the one that it has, or the first that no workspace has. Blocks the thread.
    ///
    /// # Errors
    /// Fails when there is no such network, it has no free address, or its record cannot be written.
    pub fn lease(
        &self,
        workspace: &WorkspaceName,
        exists: impl Fn(&WorkspaceName) -> bool,
    ) -> Result<(NetworkRecord, Ipv4Addr), LeaseError> {
        let known = NetworkRecord::load(self)?;
        if let Some(address) = known.members.get(workspace).copied() {
            return Ok((known, address));
        }
        let _lock = self.lock().map_err(|source| LeaseError::Lock { name: self.name(), source })?;
        let mut record = NetworkRecord::load(self)?;
        record.members.retain(|name, _| name == workspace || exists(name));
        let NetworkRecord { name, subnet, members, .. } = &mut record;
        let is_free = |address: &Ipv4Addr| !members.values().any(|taken| taken == address);
        let known = members.get(workspace).copied();
        let address = known
            .or_else(|| subnet.addresses().find(is_free))
            .ok_or(LeaseError::Full { name: name.clone(), subnet: *subnet })?;
        members.insert(workspace.clone(), address);
        self.save(&record)?;
        Ok((record, address))
    }

    /// Gives the address of a workspace to its new name. Blocks the thread.
    ///
    /// # Errors
    /// Fails when the record cannot be loaded, locked or written.
    pub fn rename_member(&self, old: &WorkspaceName, new: &WorkspaceName) -> Result<(), LeaseError> {
        let _lock = self.lock().map_err(|source| LeaseError::Lock { name: self.name(), source })?;
        let mut record = NetworkRecord::load(self)?;
        let Some(address) = record.members.remove(old) else { return Ok(()) };
        record.members.insert(new.clone(), address);
        self.save(&record)
    }

    /// Forgets the address of a workspace that is gone. Blocks the thread.
    ///
    /// # Errors
    /// Fails when the record cannot be loaded, locked or written.
    pub fn leave(
        &self,
        workspace: &WorkspaceName,
        exists: impl Fn(&WorkspaceName) -> bool,
    ) -> Result<(), LeaseError> {
        let _lock = self.lock().map_err(|source| LeaseError::Lock { name: self.name(), source })?;
        let mut record = NetworkRecord::load(self)?;
        // Another one may have its name already.
        if exists(workspace) || record.members.remove(workspace).is_none() {
            return Ok(());
        }
        self.save(&record)
    }

    fn save(&self, record: &NetworkRecord) -> Result<(), LeaseError> {
        write_json(&self.record(), record).map_err(|source| LeaseError::Write { name: self.name(), source })
    }

    /// Listens for members that connect to the one with this address. The caller is the only machine of its workspace,
    /// so whatever socket lies there is a dead one's.
    ///
    /// # Errors
    /// Fails when there is no such network, or the socket cannot be bound.
    pub fn listen(&self, address: Ipv4Addr) -> io::Result<OwnedFd> {
        let (_dir, path) = self.short_socket_path(address)?;
        match unlink(&path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SOCKET_FLAGS, None)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    /// Connects to the member with this address. Never waits.
    ///
    /// # Errors
    /// Fails when nobody listens there, or takes no more.
    pub fn connect(&self, address: Ipv4Addr) -> io::Result<OwnedFd> {
        let (_dir, path) = self.short_socket_path(address)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SOCKET_FLAGS, None)?;
        connect(&socket, &SocketAddrUnix::new(&path)?)?;
        Ok(socket)
    }

    /// The socket's path, short whatever the directory is called; good while the descriptor is open.
    fn short_socket_path(&self, address: Ipv4Addr) -> io::Result<(OwnedFd, PathBuf)> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(CWD, self.sockets(), flags, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{address}", dir.as_fd().as_raw_fd()));
        Ok((dir, path))
    }
}

impl NetworkRecord {
    /// Loads the record of a network.
    ///
    /// # Errors
    /// Fails when there is none, it is damaged, or a newer release wrote it.
    pub fn load(dir: &NetworkDir) -> Result<NetworkRecord, NetworkLoadError> {
        let path = dir.record();
        let read = |source| NetworkLoadError::Read { name: dir.name(), source };
        let FormatOnly { format: found } = read_json(&path).map_err(read)?;
        if found > NETWORK_FORMAT {
            return Err(NetworkLoadError::TooNew { path, found });
        }
        read_json(&path).map_err(read)
    }
}

impl NetworkLoadError {
    /// Whether there simply is no such network.
    pub fn is_not_found(&self) -> bool {
        matches!(self, NetworkLoadError::Read { source, .. } if source.is_not_found())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        state.prepare().unwrap();
        (dir, state)
    }

    fn created(state: &StateDir, subnet: &str) -> NetworkDir {
        let record = NetworkRecord {
            format: NETWORK_FORMAT,
            name: "backend".parse().unwrap(),
            created_at: Timestamp::UNIX_EPOCH,
            subnet: subnet.parse().unwrap(),
            members: BTreeMap::new(),
        };
        state.create_network(&record).unwrap()
    }

    fn name(text: &str) -> WorkspaceName {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_stays_a_workspaces_until_the_workspace_is_gone() {
        let (_dir, state) = state();
        let network = created(&state, "10.210.0.16/28");
        let lease = |workspace: &str, gone: &[&str]| {
            network.lease(&name(workspace), |name| !gone.contains(&name.as_str())).map(|(_, address)| address)
        };
        let first = lease("web", &[]).unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 210, 0, 18));
        let second = lease("db", &[]).unwrap();
        assert_ne!(first, second);
        assert_eq!(lease("web", &["db"]).unwrap(), first);
        network.rename_member(&name("web"), &name("www")).unwrap();
        assert_eq!(lease("www", &[]).unwrap(), first);
        assert_eq!(lease("cache", &["db"]).unwrap(), second);
        network.leave(&name("cache"), |_| true).unwrap();
        assert_eq!(lease("cache", &[]).unwrap(), second);
        network.leave(&name("cache"), |_| false).unwrap();
        assert_eq!(lease("queue", &[]).unwrap(), second);
        for number in 0..11 {
            lease(&format!("other-{number}"), &[]).unwrap();
        }
        assert!(matches!(lease("last", &[]), Err(LeaseError::Full { .. })));
        assert!(lease("last", &["other-3"]).is_ok());
    }

    #[test]
    fn only_a_member_that_listens_is_connected_to() {
        let (_dir, state) = state();
        let network = created(&state, "10.210.0.0/24");
        let address = Ipv4Addr::new(10, 210, 0, 2);
        assert_eq!(network.connect(address).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = network.listen(address).unwrap();
        network.connect(address).unwrap();
        drop(listener);
        assert_eq!(network.connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        // What a killed machine left is in nobody's way.
        let _listener = network.listen(address).unwrap();
        network.connect(address).unwrap();
        assert_eq!(state.network_names().unwrap(), ["backend".parse().unwrap()]);
    }
}
