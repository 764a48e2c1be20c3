//! What a machine is made of and how it behaves: size, network, restart policy, image.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Largest disk in MiB, root disk or volume: half of what ext4 counts in blocks of 4 KiB.
pub const DISK_MIB_MAX: u64 = 8 * 1024 * 1024;

/// Bytes of a MiB.
const MIB: u64 = 1024 * 1024;

const _: () = assert!(DISK_MIB_MAX <= u64::MAX / MIB);

/// Size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Size of the root disk in MiB.
    pub size_mib: u64,
}

impl Resources {
    /// Returns the size of the root disk in bytes; `u64::MAX` if it is larger. Disks of more than 8 TiB are not made.
    pub fn disk_bytes(&self) -> u64 {
        self.size_mib.saturating_mul(MIB)
    }
}

/// Least [`RateLimits::disk_bps`]: with less, a guest does not start in time.
pub const DISK_BPS_MIN: u64 = MIB;

/// Least [`RateLimits::disk_iops`], for the same reason.
pub const DISK_IOPS_MIN: u64 = 100;

/// Least [`RateLimits::net_bps`]: the largest packet takes a second.
pub const NET_BPS_MIN: u64 = 64 * 1024;

/// Largest rate: what QEMU takes for a disk.
pub const RATE_MAX: u64 = 1_000_000_000_000_000;

/// Rate limits of a machine's disks and network. The default has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Bytes per second that all disks together may read and write; at least 1 MiB.
    pub disk_bps: Option<u64>,
    /// Reads and writes per second of all disks together; at least 100.
    pub disk_iops: Option<u64>,
    /// Bytes per second on the network in each direction; at least 64 KiB.
    pub net_bps: Option<u64>,
}

impl RateLimits {
    /// Whether the rate of disks is limited.
    pub fn limits_disks(&self) -> bool {
        self.disk_bps.is_some() || self.disk_iops.is_some()
    }
}

/// How the guest reaches the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// A network device whose connections are sockets of the host, within the egress policy. The default.
    #[default]
    User,
    /// No network device.
    Isolated,
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NetworkMode::User => "user",
            NetworkMode::Isolated => "isolated",
        })
    }
}

/// Whether the network device of a machine is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It is connected.
    Up,
    /// The network stack has ended; nothing is received or sent until the next start.
    Down,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            LinkState::Up => "up",
            LinkState::Down => "down",
        })
    }
}

/// The image that a workspace was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// The reference as the user gave it.
    pub reference: String,
    /// The full reference.
    pub resolved_reference: String,
    /// Digest of the platform's manifest.
    pub digest: String,
    /// Digest that names the base disk under the workspace's overlay.
    pub disk: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_in_bytes_does_not_wrap_around() {
        let bytes = |size_mib| Resources { memory_mib: 64, cpu_count: 1, size_mib }.disk_bytes();
        assert_eq!(bytes(1024), 1 << 30);
        assert_eq!(bytes(DISK_MIB_MAX), 8 << 40);
        assert_eq!(bytes((1 << 44) + 1), u64::MAX);
    }
}
