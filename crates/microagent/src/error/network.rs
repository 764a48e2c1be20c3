//! Why a private network cannot be made or used.

use microagent_model::{MEMBERS_MAX, NetworkName, Subnet, WorkspaceName};
use microagent_store::{LeaseError, LockError, NetworkLoadError};

use super::kind::io_kind;
use super::{ErrorKind, deepest_io, listed};
use crate::Hint;

/// Why a private network cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// No network of this name.
    #[error("no private network `{name}`")]
    NoSuch {
        /// The requested name.
        name: NetworkName,
    },
    /// The network's name is taken.
    #[error("private network `{name}` exists already")]
    Exists {
        /// The requested name.
        name: NetworkName,
    },
    /// Another network, or the host's, has some of the addresses.
    #[error("{subnet} overlaps {other}")]
    Overlap {
        /// The requested subnet.
        subnet: Subnet,
        /// What has the addresses.
        other: String,
    },
    /// Every subnet that is chosen without a request is in use.
    #[error("no subnet is free for a private network")]
    NoSubnet,
    /// Workspaces join the network.
    #[error("private network `{name}` is joined by {}", listed(workspaces))]
    Joined {
        /// The network.
        name: NetworkName,
        /// The workspaces.
        workspaces: Vec<WorkspaceName>,
    },
    /// The network's record is damaged.
    #[error(transparent)]
    Record(NetworkLoadError),
    /// A workspace got no address.
    #[error(transparent)]
    Lease(LeaseError),
    /// Another command changes networks.
    #[error("another command works on private networks")]
    Busy {
        /// The lock.
        source: LockError,
    },
}

impl NetworkError {
    /// Converts the error of a network's record. A missing record means that there is no network.
    pub(crate) fn of_record(name: &NetworkName, error: NetworkLoadError) -> NetworkError {
        match error.is_not_found() {
            true => NetworkError::NoSuch { name: name.clone() },
            false => NetworkError::Record(error),
        }
    }

    /// Converts the error of a lease.
    pub(crate) fn of_lease(name: &NetworkName, error: LeaseError) -> NetworkError {
        match error {
            LeaseError::Load(error) => NetworkError::of_record(name, error),
            LeaseError::Lock { source: source @ LockError::Held { .. }, .. } => NetworkError::Busy { source },
            error => NetworkError::Lease(error),
        }
    }

    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            NetworkError::NoSuch { .. } => ErrorKind::NotFound,
            NetworkError::Exists { .. } => ErrorKind::AlreadyExists,
            NetworkError::Overlap { .. } => ErrorKind::Invalid,
            NetworkError::NoSubnet
            | NetworkError::Joined { .. }
            | NetworkError::Lease(LeaseError::Full { .. }) => ErrorKind::WrongState,
            NetworkError::Record(_) => ErrorKind::Damaged,
            NetworkError::Busy { .. } => ErrorKind::Busy,
            NetworkError::Lease(error) => io_kind(deepest_io(error)),
        }
    }

    pub(super) fn hint(&self) -> Option<Hint> {
        Some(match self {
            NetworkError::NoSuch { name } => Hint::CreateNetwork { name: name.clone() },
            NetworkError::Exists { .. } => Hint::advice("join it, delete it first, or choose another name"),
            NetworkError::Overlap { .. } => Hint::advice("choose another subnet, or none"),
            NetworkError::NoSubnet => Hint::advice("choose a subnet yourself, or delete a network"),
            NetworkError::Joined { name, .. } => Hint::LeaveNetwork { name: name.clone() },
            NetworkError::Record(_) => Hint::advice("delete the network and create it again"),
            NetworkError::Lease(LeaseError::Full { .. }) => Hint::Advice(format!(
                "delete a workspace of the network, or create one with a larger subnet; {MEMBERS_MAX} members are possible"
            )),
            NetworkError::Busy { .. } => Hint::advice("try again when the other command has ended"),
            NetworkError::Lease(_) => return None,
        })
    }
}
