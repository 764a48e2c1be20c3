//! How a guest looks names up, and which servers of the host it reaches by ports.

use clap::Args;
use microagent::{AddedHost, Forward, NameServer, NetworkName, SearchDomain, WorkspaceOptions};

use super::workspace::lay_list_over;

/// Names and forwarded ports.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// Name server instead of the host's; with a port if it is not 53 (repeatable, up to 3)
    #[arg(long, value_name = "ADDR[:PORT]", help_heading = "Network")]
    dns: Vec<NameServer>,

    /// Search domain instead of the host's; `.` for none (repeatable)
    #[arg(long, value_name = "DOMAIN", help_heading = "Network")]
    dns_search: Vec<SearchDomain>,

    /// Answer the names of the host's /etc/hosts as well
    #[arg(long, help_heading = "Network")]
    dns_host: bool,

    /// Add a name with its address, or with `host-gateway` for the host (repeatable)
    #[arg(long, value_name = "NAME:ADDR", help_heading = "Network")]
    add_host: Vec<AddedHost>,

    /// Let the guest reach a TCP server, on the host or reachable from it, as host.microagent.internal:PORT
    /// (repeatable)
    #[arg(long, value_name = "PORT=HOST:PORT", help_heading = "Network")]
    forward: Vec<Forward>,

    /// Join a private network: reach its other workspaces by name, and be reached by them (repeatable, up to 8)
    #[arg(long, value_name = "NETWORK", help_heading = "Network")]
    join: Vec<NetworkName>,
}

impl NameArgs {
    /// The flags that have a meaning only with network `user`, each with whether it is given.
    pub(super) fn given(&self) -> [(&'static str, bool); 4] {
        [
            ("--dns", !self.dns.is_empty()),
            ("--dns-search", !self.dns_search.is_empty()),
            ("--dns-host", self.dns_host),
            ("--add-host", !self.add_host.is_empty()),
        ]
    }

    /// Lays the flags over what a spec file says: servers and domains take the place of the file's, an added name and a
    /// forwarded port the place of the file's same one; networks are joined besides the file's.
    pub(super) fn lay_over(&self, options: &mut WorkspaceOptions) {
        let WorkspaceOptions { dns, forwards, networks, .. } = options;
        if !self.dns.is_empty() {
            dns.servers.clone_from(&self.dns);
        }
        if !self.dns_search.is_empty() {
            dns.search.clone_from(&self.dns_search);
        }
        dns.host_file |= self.dns_host;
        // One name may have several addresses, so those of the file give way together.
        dns.hosts.retain(|of_file| self.add_host.iter().all(|flag| flag.name != of_file.name));
        dns.hosts.extend(self.add_host.iter().cloned());
        lay_list_over(networks, &self.join, |network| network);
        lay_list_over(forwards, &self.forward, |forward| &forward.guest_port);
    }
}
