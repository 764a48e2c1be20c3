//! The network: loopback always, and the one Ethernet device if the workspace has one.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use microagent_proto::{MacAddress, Network, NetworkV6};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::{rtnetlink, sys};

const INTERFACES: &str = "/sys/class/net";

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("the machine has no network device")]
    NoDevice,
    #[error("cannot look for network devices in {INTERFACES}")]
    Look(#[source] io::Error),
    #[error("a network prefix of {0} bits does not exist")]
    Prefix(u8),
    #[error("cannot set the {what} of {interface}")]
    Set { what: &'static str, interface: String, source: io::Error },
}

fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// Starts the loopback interface; the kernel gives it its addresses.
pub(crate) fn loopback_up() -> io::Result<()> {
    sys::interface_up(control_socket()?, "lo")
}

/// A device that was started before the machine was frozen.
#[derive(Debug)]
pub(crate) struct Started {
    interface: String,
}

/// Starts the network device, if there is one, without anything that could tell machines apart: no IPv6, whose addresses
/// are made from the hardware address, and no address of IPv4. Starting it is most of what its configuration takes.
pub(crate) fn start() -> Result<Option<Started>, NetworkError> {
    let Some(interface) = find_device().map_err(NetworkError::Look)? else { return Ok(None) };
    let failed = |what| {
        let interface = interface.clone();
        move |source| NetworkError::Set { what, interface, source }
    };
    set_ipv6(&interface, false).map_err(failed("use of IPv6"))?;
    let socket = control_socket().map_err(failed("state"))?;
    sys::interface_up(&socket, &interface).map_err(failed("state"))?;
    Ok(Some(Started { interface }))
}

/// Whether a device has addresses of IPv6.
fn set_ipv6(interface: &str, wanted: bool) -> io::Result<()> {
    set_ipv6_option(interface, "disable_ipv6", if wanted { "0" } else { "1" })
}

fn set_ipv6_option(interface: &str, option: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{option}"), value)
}

/// Gives a device that is up its address and default route of IPv6.
fn configure_ipv6(interface: &str, network: &NetworkV6) -> io::Result<()> {
    let number = fs::read_to_string(Path::new(INTERFACES).join(interface).join("ifindex"))?;
    let number = number.trim_end().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    rtnetlink::add_address(number, network.address, network.prefix_len)?;
    rtnetlink::add_default_route(number, network.gateway)
}

/// Gives the network device its hardware address, addresses and default route.
pub(crate) fn configure(network: &Network, started: Option<&Started>) -> Result<(), NetworkError> {
    let interface = match started {
        Some(started) => started.interface.clone(),
        None => find_device().map_err(NetworkError::Look)?.ok_or(NetworkError::NoDevice)?,
    };
    let netmask = netmask(network.prefix_len).ok_or(NetworkError::Prefix(network.prefix_len))?;
    let failed = |what| {
        let interface = interface.clone();
        move |source| NetworkError::Set { what, interface, source }
    };
    let socket = control_socket().map_err(failed("address"))?;
    if hardware_address(&interface).as_deref() != Some(&colon_form(network.mac)) {
        sys::set_hardware_address(&socket, &interface, network.mac.0).map_err(failed("hardware address"))?;
    }
    sys::set_address(&socket, &interface, network.address, netmask).map_err(failed("address"))?;
    // There is no router that could tell more.
    set_ipv6_option(&interface, "accept_ra", "0").map_err(failed("use of IPv6"))?;
    match started {
        Some(_) => set_ipv6(&interface, true).map_err(failed("use of IPv6"))?,
        None => sys::interface_up(&socket, &interface).map_err(failed("state"))?,
    }
    set_private(&socket, &interface, network)?;
    configure_ipv6(&interface, &network.ipv6).map_err(failed("address of IPv6"))?;
    sys::add_default_route(&socket, network.gateway).map_err(failed("default route"))
}

/// Gives the device its addresses in private networks.
fn set_private(socket: &OwnedFd, interface: &str, network: &Network) -> Result<(), NetworkError> {
    for (number, private) in (1..).zip(&network.private) {
        let netmask = netmask(private.prefix_len).ok_or(NetworkError::Prefix(private.prefix_len))?;
        sys::set_address(socket, &alias(interface, number), private.address, netmask).map_err(|source| {
            NetworkError::Set { what: "address", interface: interface.to_owned(), source }
        })?;
    }
    Ok(())
}

/// The name of an address that stands beside the others.
fn alias(interface: &str, number: u32) -> String {
    format!("{interface}:{number}")
}

/// Gives the device of a machine that was another one before its own hardware address, and its own addresses in private
/// networks. The kernel changes both while the device is in use.
pub(crate) fn renew(network: &Network) -> Result<(), NetworkError> {
    let interface = find_device().map_err(NetworkError::Look)?.ok_or(NetworkError::NoDevice)?;
    let failed = |what| {
        let interface = interface.clone();
        move |source| NetworkError::Set { what, interface, source }
    };
    let socket = control_socket().map_err(failed("address"))?;
    if hardware_address(&interface).as_deref() != Some(&colon_form(network.mac)) {
        sys::set_hardware_address(&socket, &interface, network.mac.0).map_err(failed("hardware address"))?;
    }
    // All go first: the other machine may have been in other networks, or in the same ones in another order.
    for number in 1.. {
        match sys::remove_alias(&socket, &alias(&interface, number)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => break,
            Err(error) => return Err(failed("address")(error)),
        }
    }
    set_private(&socket, &interface, network)
}

/// The first interface that stands for a device (loopback and tunnels do not).
fn find_device() -> io::Result<Option<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(INTERFACES)? {
        let entry = entry?;
        if entry.path().join("device").exists() {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    names.sort();
    Ok(names.into_iter().next())
}

fn hardware_address(interface: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new(INTERFACES).join(interface).join("address")).ok()?;
    Some(text.trim_end().to_owned())
}

fn colon_form(mac: MacAddress) -> String {
    mac.0.map(|byte| format!("{byte:02x}")).join(":")
}

/// The netmask with so many leading ones.
fn netmask(prefix_len: u8) -> Option<Ipv4Addr> {
    let zeros = 32u32.checked_sub(u32::from(prefix_len))?;
    Some(Ipv4Addr::from_bits(u32::MAX.checked_shl(zeros).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmasks() {
        assert_eq!(netmask(0), Some(Ipv4Addr::new(0, 0, 0, 0)));
        assert_eq!(netmask(24), Some(Ipv4Addr::new(255, 255, 255, 0)));
        assert_eq!(netmask(32), Some(Ipv4Addr::new(255, 255, 255, 255)));
        assert_eq!(netmask(33), None);
    }

    #[test]
    fn hardware_addresses_are_written_as_the_kernel_writes_them() {
        assert_eq!(colon_form(MacAddress([0x52, 0x54, 0, 0xab, 1, 0xf])), "52:54:00:ab:01:0f");
    }
}
