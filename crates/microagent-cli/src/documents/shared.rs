//! What several documents contain.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use microagent::{Artifact, PortForward, PortProtocol, Publish, Resources, Timeline};

#[cfg(test)]
use crate::documents::schema::Words;

document! {
    /// Size of a machine.
    ResourcesDocument of Resources {
        memory_mib: u32,
        cpu_count: u32,
        size_mib: u64,
    }
}

document! {
    /// A published port.
    PortForwardDocument of PortForward {
        #[cfg_attr(test, schemars(with = "Words<microagent::PortProtocol>"))]
        protocol: PortProtocol,
        host: IpAddr,
        /// 0 for one that is picked at the next start.
        host_port: u16,
        guest_port: NonZeroU16,
    }
}

document! {
    /// Moments of a machine, in microseconds from the start of its supervisor; 0 for one that was not reached.
    TimelineDocument of Timeline {
        spawned_us: u64,
        ready_us: u64,
        freeze_us: u64,
        configured_us: u64,
        command_us: u64,
        exited_us: u64,
        gone_us: u64,
        guest_boot_us: u64,
        guest_disk_us: u64,
        guest_network_us: u64,
    }
}

document! {
    /// A path of the guest that `microagent artifact get` fetches.
    ArtifactDocument of Artifact {
        name: String,
        path: PathBuf,
    }
}

impl From<&Publish> for PortForwardDocument {
    fn from(publish: &Publish) -> PortForwardDocument {
        PortForward::from(publish).into()
    }
}
