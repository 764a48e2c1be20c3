//! Private networks: create, list, get, delete, and the addresses of their members.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use microagent_model::{NetworkName, State, Subnet, WorkspaceName};
use microagent_net::{HostAddresses, Membership};
use microagent_proto::chain;
use microagent_store::{NETWORK_FORMAT, NetworkRecord, WorkspaceRecord};
use microagent_vm::member_entries;
use microagent_vm::spec::Join;

use crate::blocking::blocking;
use crate::error::NetworkError;
use crate::supervisor_spec::absolute;
use crate::{Engine, Error};

/// A private network: workspaces of one user that reach each other by name and address.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrivateNetwork {
    /// Name.
    pub name: NetworkName,
    /// Its addresses; `None` if its record is damaged.
    pub subnet: Option<Subnet>,
    /// When it was created.
    pub created_at: Option<Timestamp>,
    /// Workspaces that join it, by name.
    pub members: Vec<NetworkMember>,
    /// The error of its record, if it is damaged.
    pub problem: Option<String>,
}

/// A workspace that joins a private network.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkMember {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Its address, from its first start on.
    pub address: Option<Ipv4Addr>,
    /// Its state.
    pub state: State,
}

/// A private network that a workspace joins.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JoinedNetwork {
    /// The network.
    pub name: NetworkName,
    /// Its addresses; `None` if it does not exist any more.
    pub subnet: Option<Subnet>,
    /// The workspace's address, from its first start on.
    pub address: Option<Ipv4Addr>,
}

/// Which networks [`PrivateNetworks::delete`] may delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkDeleteMode {
    /// Only a network that no workspace joins.
    Unused,
    /// Any network. Machines that run in it stay connected as far as they are; new connections are refused. Workspaces that
    /// join it cannot start until a network of this name exists.
    Force,
}

/// The result of [`PrivateNetworks::delete`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkDeletion {
    /// Whether the network existed.
    pub deleted: bool,
    /// Workspaces that join the network and cannot start without it.
    pub missed_by: Vec<WorkspaceName>,
}

/// The private networks of a state directory. Made by [`Engine::networks`].
#[derive(Debug, Clone)]
pub struct PrivateNetworks {
    engine: Engine,
}

impl Engine {
    /// Returns the private networks of this state directory.
    pub fn networks(&self) -> PrivateNetworks {
        PrivateNetworks { engine: self.clone() }
    }
}

impl PrivateNetworks {
    /// Creates a network. Without a subnet it gets one that neither another network nor the host has.
    ///
    /// # Errors
    /// Fails if the name is taken ([`AlreadyExists`](crate::ErrorKind::AlreadyExists)), or the subnet overlaps that of
    /// another network ([`Invalid`](crate::ErrorKind::Invalid)). Then nothing is created.
    pub async fn create(&self, name: &NetworkName, subnet: Option<Subnet>) -> Result<PrivateNetwork, Error> {
        let (networks, name) = (self.clone(), name.clone());
        blocking(move || networks.write(&name, subnet)).await
    }

    fn write(&self, name: &NetworkName, subnet: Option<Subnet>) -> Result<PrivateNetwork, Error> {
        self.engine.prepare()?;
        let state = self.engine.state();
        let _lock = state.lock_networks().map_err(|source| NetworkError::Busy { source })?;
        if state.network(name).path().exists() {
            return Err(NetworkError::Exists { name: name.clone() }.into());
        }
        let record = NetworkRecord {
            format: NETWORK_FORMAT,
            name: name.clone(),
            created_at: Timestamp::now(),
            subnet: self.choose_subnet(subnet)?,
            members: BTreeMap::new(),
        };
        state.create_network(&record).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Network(NetworkError::Exists { name: name.clone() }),
            _ => {
                Error::File { action: "create network", path: state.network(name).path().to_owned(), source }
            }
        })?;
        self.read(name)
    }

    fn choose_subnet(&self, asked: Option<Subnet>) -> Result<Subnet, Error> {
        let others: Vec<PrivateNetwork> = self.read_all()?;
        let taken = |subnet: Subnet| {
            let overlaps = |other: &&PrivateNetwork| other.subnet.is_some_and(|other| subnet.overlaps(other));
            others.iter().find(overlaps)
        };
        if let Some(subnet) = asked {
            return match taken(subnet) {
                Some(other) => {
                    let other = format!("private network `{}`", other.name);
                    Err(NetworkError::Overlap { subnet, other }.into())
                }
                None => Ok(subnet),
            };
        }
        // What the host reaches stays reachable for guests. A host that does not say it has nothing in the way.
        let host = HostAddresses::now().unwrap_or_default();
        let networks: Vec<_> = host.own.iter().chain(&host.loopback).chain(&host.neighbours).collect();
        let is_hosts = |subnet: Subnet| {
            networks.iter().any(|network| match network.base() {
                IpAddr::V4(base) => subnet.overlaps_network(base, network.prefix_len()),
                IpAddr::V6(_) => false,
            })
        };
        let free = Subnet::choices().find(|subnet| taken(*subnet).is_none() && !is_hosts(*subnet));
        free.ok_or_else(|| NetworkError::NoSubnet.into())
    }

    /// Lists networks by name, including damaged ones. Changes nothing.
    ///
    /// # Errors
    /// Fails if the directory of networks exists and cannot be read.
    pub async fn list(&self) -> Result<Vec<PrivateNetwork>, Error> {
        let networks = self.clone();
        blocking(move || networks.read_all()).await
    }

    fn read_all(&self) -> Result<Vec<PrivateNetwork>, Error> {
        let state = self.engine.state();
        let unreadable = |source| Error::File { action: "read", path: state.networks(), source };
        let names = state.network_names().map_err(unreadable)?;
        let workspaces = self.workspaces()?;
        Ok(names.iter().filter_map(|name| self.observe(name, &workspaces)).collect())
    }

    /// Returns a network. Changes nothing.
    ///
    /// # Errors
    /// Fails if the network does not exist ([`NotFound`](crate::ErrorKind::NotFound)).
    pub async fn get(&self, name: &NetworkName) -> Result<PrivateNetwork, Error> {
        let (networks, name) = (self.clone(), name.clone());
        blocking(move || networks.read(&name)).await
    }

    fn read(&self, name: &NetworkName) -> Result<PrivateNetwork, Error> {
        let workspaces = self.workspaces()?;
        let network = self.observe(name, &workspaces);
        network.ok_or_else(|| NetworkError::NoSuch { name: name.clone() }.into())
    }

    fn observe(&self, name: &NetworkName, workspaces: &[WorkspaceRecord]) -> Option<PrivateNetwork> {
        let dir = self.engine.state().network(name);
        let (record, problem) = match NetworkRecord::load(&dir) {
            Ok(record) => (Some(record), None),
            Err(_) if !dir.path().is_dir() => return None,
            Err(error) => (None, Some(chain(&error))),
        };
        let joins = workspaces.iter().filter(|workspace| workspace.networks.contains(name));
        let members = joins.map(|workspace| NetworkMember {
            workspace: workspace.name.clone(),
            address: record.as_ref().and_then(|record| record.members.get(&workspace.name).copied()),
            state: workspace.observed_state(),
        });
        Some(PrivateNetwork {
            name: name.clone(),
            subnet: record.as_ref().map(|record| record.subnet),
            created_at: record.as_ref().map(|record| record.created_at),
            members: members.collect(),
            problem,
        })
    }

    /// The workspaces that join networks, by name; those with a damaged record join none.
    fn workspaces(&self) -> Result<Vec<WorkspaceRecord>, Error> {
        let state = self.engine.state();
        let unreadable = |source| Error::File { action: "read", path: state.workspaces(), source };
        let names = state.workspace_names().map_err(unreadable)?;
        let records = names.iter().filter_map(|name| WorkspaceRecord::observe(&state.workspace(name)).ok());
        Ok(records.filter(joins_at_a_start).collect())
    }

    /// Deletes a network. A missing network is not an error.
    ///
    /// # Errors
    /// Fails if a workspace joins it ([`WrongState`](crate::ErrorKind::WrongState)) and `mode` is
    /// [`NetworkDeleteMode::Unused`], or its files cannot be removed.
    pub async fn delete(
        &self,
        name: &NetworkName,
        mode: NetworkDeleteMode,
    ) -> Result<NetworkDeletion, Error> {
        let (networks, name) = (self.clone(), name.clone());
        blocking(move || networks.remove(&name, mode)).await
    }

    fn remove(&self, name: &NetworkName, mode: NetworkDeleteMode) -> Result<NetworkDeletion, Error> {
        let state = self.engine.state();
        let dir = state.network(name);
        if !dir.path().is_dir() {
            return Ok(NetworkDeletion { deleted: false, missed_by: Vec::new() });
        }
        // Who is about to start in it has its address first.
        let _lock = dir.lock().map_err(|source| NetworkError::Busy { source })?;
        let joined = self.workspaces()?.into_iter().filter(|workspace| workspace.networks.contains(name));
        let missed_by: Vec<WorkspaceName> = joined.map(|workspace| workspace.name).collect();
        if mode == NetworkDeleteMode::Unused && !missed_by.is_empty() {
            return Err(NetworkError::Joined { name: name.clone(), workspaces: missed_by }.into());
        }
        state.take_out(dir.path()).map_err(|source| Error::File {
            action: "remove",
            path: dir.path().to_owned(),
            source,
        })?;
        Ok(NetworkDeletion { deleted: true, missed_by })
    }
}

/// Whether a workspace needs its networks; a disposable one that has ended is only a log.
fn joins_at_a_start(record: &WorkspaceRecord) -> bool {
    let is_log = record.disposable && matches!(record.observed_state(), State::Failed | State::Stopped);
    !is_log && !record.networks.is_empty()
}

impl Engine {
    /// Gives a workspace its addresses in the networks that it joins, for the start of its machine.
    pub(crate) fn join_networks(
        &self,
        workspace: &WorkspaceName,
        networks: &[NetworkName],
    ) -> Result<Vec<Join>, Error> {
        let exists = |name: &WorkspaceName| self.state().workspace(name).path().exists();
        let join = |name: &NetworkName| {
            let dir = self.state().network(name);
            let (record, address) =
                dir.lease(workspace, exists).map_err(|error| NetworkError::of_lease(name, error))?;
            let membership = Membership {
                network: name.to_string(),
                subnet: record.subnet,
                address,
                members: member_entries(&record),
            };
            Ok(Join { membership, dir: absolute(dir.path())?, created_at: record.created_at })
        };
        networks.iter().map(join).collect()
    }

    /// Fails if one of the networks does not exist.
    pub(crate) fn check_networks(&self, networks: &[NetworkName]) -> Result<(), Error> {
        for name in networks {
            NetworkRecord::load(&self.state().network(name))
                .map_err(|error| NetworkError::of_record(name, error))?;
        }
        Ok(())
    }

    /// What the networks are that a workspace joins, as far as they exist.
    pub(crate) fn joined_networks(&self, record: &WorkspaceRecord) -> Vec<JoinedNetwork> {
        let joined = |name: &NetworkName| {
            let network = NetworkRecord::load(&self.state().network(name)).ok();
            JoinedNetwork {
                name: name.clone(),
                subnet: network.as_ref().map(|network| network.subnet),
                address: network.and_then(|network| network.members.get(&record.name).copied()),
            }
        };
        record.networks.iter().map(joined).collect()
    }

    /// Has other members forget a workspace that is gone. If that fails, its addresses are free all the same.
    pub(crate) fn leave_networks(&self, workspace: &WorkspaceName, networks: &[NetworkName]) {
        let exists = |name: &WorkspaceName| self.state().workspace(name).path().exists();
        for name in networks {
            let _ = self.state().network(name).leave(workspace, exists);
        }
    }

    /// Gives the addresses of a workspace that was renamed to its new name. If that fails, it gets others at its next start.
    pub(crate) fn rename_member(&self, networks: &[NetworkName], old: &WorkspaceName, new: &WorkspaceName) {
        for name in networks {
            let _ = self.state().network(name).rename_member(old, new);
        }
    }
}
