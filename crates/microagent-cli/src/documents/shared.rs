//! What several documents contain.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::path::PathBuf;

use microagent::{
    Artifact, Broker, BrokerDetails, CommandLine, DnsSettings, HostForward, PortForward, PortProtocol,
    Publish, Resources, Timeline,
};

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
    /// A server that a guest reaches by a port of `host.microagent.internal`.
    HostForwardDocument of HostForward {
        /// `tcp`.
        protocol: String,
        /// The port that the guest connects to.
        guest_port: NonZeroU16,
        /// The server's address, as the host sees it.
        host: Ipv4Addr,
        host_port: u16,
    }
}

/// A server that a guest reaches with a credential that it does not have.
#[derive(Debug, Clone, serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct BrokerDocument {
    pub(crate) name: String,
    /// The base URL for the guest.
    pub(crate) url: String,
    /// The server's URL.
    pub(crate) upstream: String,
    /// Where the credential is, as `--secret` takes it.
    pub(crate) secret: String,
    /// The header that carries it.
    pub(crate) header: String,
    /// The header's value, with `{}` for the credential.
    pub(crate) format: String,
    /// The requests that pass, `METHOD /PATH`; all if there are none.
    pub(crate) allow: Vec<String>,
    /// File of certificates to trust for the server, in place of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// Whether the server's name may resolve to addresses that are not public.
    pub(crate) private: bool,
    /// Variables of the guest that hold the base URL.
    pub(crate) variables: Vec<String>,
}

impl From<BrokerDetails> for BrokerDocument {
    fn from(details: BrokerDetails) -> BrokerDocument {
        let (url, variables) = (details.url(), details.broker.variables());
        let Broker { secret, upstream, header, format, allow, ca, private, env: _ } = details.broker;
        BrokerDocument {
            url,
            upstream: upstream.to_string(),
            secret: secret.source.to_string(),
            name: secret.name,
            header,
            format,
            allow: allow.iter().map(ToString::to_string).collect(),
            ca,
            private,
            variables,
        }
    }
}

/// How a guest looks names up, where that is not as on the host.
#[derive(Debug, Clone, serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DnsSettingsDocument {
    /// Name servers, as `--dns` takes them.
    pub(crate) servers: Vec<String>,
    /// Search domains, as `--dns-search` takes them.
    pub(crate) search: Vec<String>,
    /// Names with addresses, as `--add-host` takes them.
    pub(crate) hosts: Vec<String>,
    /// Whether the names of the host's `/etc/hosts` are answered as well.
    pub(crate) host_file: bool,
}

impl From<DnsSettings> for DnsSettingsDocument {
    fn from(settings: DnsSettings) -> DnsSettingsDocument {
        let DnsSettings { servers, search, hosts, host_file } = settings;
        DnsSettingsDocument {
            servers: servers.iter().map(ToString::to_string).collect(),
            search: search.iter().map(ToString::to_string).collect(),
            hosts: hosts.iter().map(ToString::to_string).collect(),
            host_file,
        }
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

/// The program that a command line starts, with its arguments.
pub(crate) fn words(command: CommandLine) -> Vec<String> {
    match command {
        CommandLine::Argv(words) => words,
        CommandLine::Shell(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line],
    }
}
