//! The ports of the host that are published.
//!
//! The command tries them before anything is made ([`choose_ports`]); the supervisor listens at them before QEMU is started
//! ([`listen_at`]), and hands the listening sockets to the network stack.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use microagent_model::Publish;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt};

/// Connections that wait to be accepted at one port.
const BACKLOG: i32 = 1024;

/// A port that cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish {host}:{port}")]
pub struct PortError {
    /// The address of the host.
    pub host: Ipv4Addr,
    /// Its port; 0 for any.
    pub port: u16,
    /// What the system said.
    pub source: io::Error,
}

impl PortError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let PortError { host, port, source } = self;
        match source.kind() {
            io::ErrorKind::AddrInUse => format!(
                "another program has it (`ss -ltnp 'sport = :{port}'` shows which); choose another port of the host, or 0 \
                 for any free one"
            ),
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 are root's (sysctl net.ipv4.ip_unprivileged_port_start); \
                                                choose one from 1024 on, or 0 for any free one"
                    .to_owned()
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("this host has no address {host}; 127.0.0.1 is its own, 0.0.0.0 are all that it has")
            }
            _ => "choose another port of the host, or 0 for any free one".to_owned(),
        }
    }
}

/// The ports as they can be listened at now: free ones as they are, and a free one in the place of each 0.
///
/// # Errors
/// Fails with the first that cannot be listened at.
pub fn choose_ports(publish: &[Publish]) -> Result<Vec<Publish>, PortError> {
    // All are held until all are chosen, so that none is picked twice.
    let held: Vec<(OwnedFd, Publish)> = publish.iter().map(bind_port).collect::<Result<_, _>>()?;
    Ok(held.into_iter().map(|(_, publish)| publish).collect())
}

/// Listens at the ports; gives each socket with its port, which is a free one in the place of 0.
///
/// # Errors
/// Fails with the first that cannot be listened at.
pub(crate) fn listen_at(publish: &[Publish]) -> Result<Vec<(OwnedFd, Publish)>, PortError> {
    let sockets: Vec<(OwnedFd, Publish)> = publish.iter().map(bind_port).collect::<Result<_, _>>()?;
    for (socket, publish) in &sockets {
        listen(socket, BACKLOG).map_err(|source| port_error(publish, source.into()))?;
    }
    Ok(sockets)
}

/// Binds a socket that does not listen yet; gives it with the port that it has.
fn bind_port(publish: &Publish) -> Result<(OwnedFd, Publish), PortError> {
    let bound = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        // What only lingers of an earlier machine is not in the way.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddrV4::new(publish.host, publish.host_port))?;
        let host_port = SocketAddrV4::try_from(getsockname(&socket)?)?.port();
        Ok((socket, Publish { host_port, ..*publish }))
    };
    bound().map_err(|source| port_error(publish, source))
}

fn port_error(publish: &Publish, source: io::Error) -> PortError {
    PortError { host: publish.host, port: publish.host_port, source }
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
            let address = SocketAddrV4::new(one.host, one.host_port);
            std::net::TcpStream::connect(address).unwrap();
            let error = listen_at(&[*one]).unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn an_address_that_is_not_the_hosts_is_named() {
        let error = choose_ports(&[publish("203.0.113.1:0:80")]).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.hint().contains("203.0.113.1"));
    }
}
