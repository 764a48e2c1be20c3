//! What a flow is called, and how long it lasts.

use std::net::IpAddr;
use std::time::Duration;

/// Flows of one guest at once, whatever the policy says. Each has a descriptor.
pub(crate) const FLOWS_MAX: usize = 64 * 1024;

/// Time for a connection to be answered: Linux repeats a SYN for 127 s.
pub(crate) const OPENING: Duration = Duration::from_secs(130);

/// Time after the guest's last datagram in which answers reach it.
///
/// # Source
/// RFC 4787, requirement 5: not less than two minutes.
pub(crate) const DATAGRAMS: Duration = Duration::from_secs(180);

/// Time in which the guest must answer a client of a published UDP port. Linux's connection tracking has the same.
pub(crate) const UNANSWERED: Duration = Duration::from_secs(30);

/// Time after the guest's last echo request in which answers reach it.
///
/// # Source
/// RFC 5508, requirement 2.
pub(crate) const ECHO: Duration = Duration::from_secs(60);

/// Protocols of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Echo,
    /// Datagrams of a member that has begun a flow while the guest began one between the same ports. The guest's answers
    /// go by its own.
    Crossed,
}

/// One flow. The guest has one address for each remote one, which is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) remote: IpAddr,
    /// With echoes zero, or one if a member asks the guest.
    pub(crate) remote_port: u16,
    /// The id with echoes.
    pub(crate) guest_port: u16,
}
