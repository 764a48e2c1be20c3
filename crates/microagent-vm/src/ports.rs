//! Which ports of the host are free to be published.
//!
//! A port is tried by binding it, as passt will, and let go at once: passt takes no sockets that others have bound.
//! Somebody else may take it in between, so whoever starts passt looks whether it got its ports, and chooses anew.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use microagent_net::Publish;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

/// How often a port is picked that another published one has already, on another address.
const PICKS: usize = 16;

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
    let mut held: Vec<OwnedFd> = Vec::new();
    let mut chosen: Vec<Publish> = publish.to_vec();
    for at in 0..chosen.len() {
        let Publish { host, host_port, .. } = publish[at];
        for _ in 0..PICKS {
            let failed = |source: io::Error| PortError { host, port: host_port, source };
            let (socket, port) = try_port(host, host_port).map_err(failed)?;
            held.push(socket);
            chosen[at].host_port = port;
            // passt knows each port once, whatever the address.
            let taken = chosen.iter().enumerate().any(|(other, one)| other != at && one.host_port == port);
            if host_port != 0 || !taken {
                break;
            }
        }
    }
    Ok(chosen)
}

/// Binds a socket that does not listen; gives the port that it has.
fn try_port(host: Ipv4Addr, port: u16) -> io::Result<(OwnedFd, u16)> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // As passt does: what only lingers of an earlier life is not in the way.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(host, port))?;
    let bound = SocketAddrV4::try_from(getsockname(&socket)?)?;
    Ok((socket, bound.port()))
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
    fn an_address_that_is_not_the_hosts_is_named() {
        let error = choose_ports(&[publish("203.0.113.1:0:80")]).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.hint().contains("203.0.113.1"));
    }
}
