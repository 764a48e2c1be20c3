//! Listens on the host's published ports.
//!
//! The library checks them before anything is created ([`choose_ports`]). The supervisor listens on them before it
//! starts QEMU ([`listen_at`]), and passes the listening sockets to the network stack.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use microagent_model::{PortProtocol, Publish};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt};

/// Length of the queue of connections to accept, per port.
const BACKLOG: i32 = 1024;

/// Why the process cannot listen on a port.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish {}{}", SocketAddr::new(publish.host, publish.host_port), suffix(*publish))]
pub struct PortError {
    /// The port; host port 0 is any free port.
    pub publish: Publish,
    /// The system's error.
    pub source: io::Error,
}

impl PortError {
    /// Returns advice for the user.
    pub fn hint(&self) -> String {
        let PortError { publish: Publish { host, host_port: port, protocol, .. }, source } = self;
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                let kind = if *protocol == PortProtocol::Udp { 'u' } else { 't' };
                format!(
                    "another program has it (`ss -l{kind}np 'sport = :{port}'` shows which); choose another port of the \
                     host, or 0 for any free one"
                )
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 are root's (sysctl net.ipv4.ip_unprivileged_port_start); choose one from 1024 on, or 0 \
                 for any free one"
                    .to_owned()
            }
            io::ErrorKind::AddrNotAvailable if host.is_ipv6() => {
                format!("this host has no address {host}; [::1] is its own, [::] are all that it has")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("this host has no address {host}; 127.0.0.1 is its own, 0.0.0.0 are all that it has")
            }
            _ if host.is_ipv6() && source.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
                "this host has no IPv6; choose an IPv4 address".to_owned()
            }
            _ => "choose another port of the host, or 0 for any free one".to_owned(),
        }
    }
}

/// Suffix of UDP ports in messages.
fn suffix(publish: Publish) -> &'static str {
    match publish.protocol {
        PortProtocol::Tcp => "",
        PortProtocol::Udp => "/udp",
    }
}

/// Checks that the ports are free now, and replaces each host port 0 by a free port.
///
/// # Errors
/// Fails with the first port that cannot be used.
pub fn choose_ports(publish: &[Publish]) -> Result<Vec<Publish>, PortError> {
    // All are held until all are chosen, so that none is picked twice.
    let held: Vec<(OwnedFd, Publish)> = publish.iter().map(bind_port).collect::<Result<_, _>>()?;
    Ok(held.into_iter().map(|(_, publish)| publish).collect())
}

/// Listens on the ports. Returns each socket with its port; a free port replaces 0.
///
/// # Errors
/// Fails with the first port that cannot be used.
pub(crate) fn listen_at(publish: &[Publish]) -> Result<Vec<(OwnedFd, Publish)>, PortError> {
    let sockets: Vec<(OwnedFd, Publish)> = publish.iter().map(bind_port).collect::<Result<_, _>>()?;
    for (socket, publish) in sockets.iter().filter(|(_, publish)| publish.protocol == PortProtocol::Tcp) {
        listen(socket, BACKLOG).map_err(|source| port_error(publish, source.into()))?;
    }
    Ok(sockets)
}

/// A listening socket of a published port.
#[derive(Debug)]
pub struct BoundPort {
    /// The port, with the host port that was picked.
    pub publish: Publish,
    pub(crate) socket: OwnedFd,
}

/// Listens on one port.
///
/// # Errors
/// Fails if the port cannot be used.
pub fn bind_published(publish: Publish) -> Result<BoundPort, PortError> {
    let mut bound = listen_at(&[publish])?;
    let (socket, publish) = bound.pop().expect("one port was bound");
    Ok(BoundPort { publish, socket })
}

/// Binds a socket that does not listen yet. Returns it with its port.
fn bind_port(publish: &Publish) -> Result<(OwnedFd, Publish), PortError> {
    let bound = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (family, kind) = match (publish.host, publish.protocol) {
            (IpAddr::V4(_), PortProtocol::Tcp) => (AddressFamily::INET, SocketType::STREAM),
            (IpAddr::V4(_), PortProtocol::Udp) => (AddressFamily::INET, SocketType::DGRAM),
            (IpAddr::V6(_), PortProtocol::Tcp) => (AddressFamily::INET6, SocketType::STREAM),
            (IpAddr::V6(_), PortProtocol::Udp) => (AddressFamily::INET6, SocketType::DGRAM),
        };
        let socket = socket_with(family, kind, flags, None)?;
        if publish.protocol == PortProtocol::Tcp {
            // What only lingers of an earlier machine is not in the way. With UDP it would let two have one port.
            sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        if publish.host.is_ipv6() {
            // `[::]` are the addresses of IPv6; those of IPv4 are published by themselves.
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        bind(&socket, &SocketAddr::new(publish.host, publish.host_port))?;
        let host_port = SocketAddr::try_from(getsockname(&socket)?)?.port();
        Ok((socket, Publish { host_port, ..*publish }))
    };
    bound().map_err(|source| port_error(publish, source))
}

fn port_error(publish: &Publish, source: io::Error) -> PortError {
    PortError { publish: *publish, source }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn publish(text: &str) -> Publish {
        text.parse().unwrap()
    }

    #[test]
    fn a_free_port_is_found_and_a_taken_one_is_named() {
        let chosen = choose_ports(&[publish("0:80"), publish("0.0.0.0:0:81"), publish("0:82")]).unwrap();
        let mut ports: Vec<u16> = chosen.iter().map(|one| one.host_port).collect();
        assert!(ports.iter().all(|port| *port != 0), "{ports:?}");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 3);

        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        for host in ["127.0.0.1", "0.0.0.0"] {
            let error = choose_ports(&[publish(&format!("{host}:{port}:80"))]).unwrap_err();
            assert_eq!(error.to_string(), format!("cannot publish {host}:{port}"));
            assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
            assert!(error.hint().contains(&format!("sport = :{port}")));
        }
        drop(holder);
        assert_eq!(choose_ports(&[publish(&format!("{port}:80"))]).unwrap()[0].host_port, port);
    }

    #[test]
    fn a_port_that_is_listened_at_is_taken_for_everybody_else() {
        let held = listen_at(&[publish("0:80"), publish("0:81")]).unwrap();
        for (_, one) in &held {
            let address = SocketAddr::new(one.host, one.host_port);
            std::net::TcpStream::connect(address).unwrap();
            let error = listen_at(&[*one]).unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn a_port_is_had_once_for_each_protocol_and_family() {
        let held = listen_at(&[publish("0:80")]).unwrap();
        let port = held[0].1.host_port;
        let others = [format!("{port}:80/udp"), format!("127.0.0.2:{port}:80")];
        let others: Vec<Publish> = others.iter().map(|text| publish(text)).collect();
        let others = listen_at(&others).unwrap();
        let error = listen_at(&[others[0].1]).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot publish 127.0.0.1:{port}/udp"));
        assert!(error.hint().contains("ss -lunp"), "{}", error.hint());
    }

    #[test]
    fn ports_of_ipv6_are_no_ports_of_ipv4() {
        let Ok(held) = listen_at(&[publish("[::]:0:80")]) else { return };
        let port = held[0].1.host_port;
        let other = listen_at(&[publish(&format!("0.0.0.0:{port}:80"))]).unwrap();
        drop(other);
        let error = listen_at(&[publish(&format!("[::1]:{port}:80"))]).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot publish [::1]:{port}"));
    }

    #[test]
    fn an_address_that_is_not_the_hosts_is_named() {
        let error = choose_ports(&[publish("203.0.113.1:0:80")]).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.hint().contains("203.0.113.1"));
    }
}
