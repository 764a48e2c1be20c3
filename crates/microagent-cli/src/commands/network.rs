//! `microagent network`: how a workspace is connected.

use clap::Args;
use microagent::WorkspaceName;

use crate::context::Context;
use crate::documents::network::{EgressPolicyDocument, GuestAddressesDocument, NetworkDocument};
use crate::failure::Failure;
use crate::output::{Format, brokered, forwarded, name_lines, print_json, print_text, published, size};

/// What people who know networks of their own may put before the name.
const VERBS: [&str; 2] = ["inspect", "status"];

const EXAMPLES: &str = "\
Examples:
  Show which host ports are published:
    microagent network web

  Print one host port, for a script:
    microagent network web --json | jq '.network.port_forwards[0].host_port'";

/// Show the network of a workspace
///
/// Shows mode, addresses, link state, published ports with their host ports, and the egress policy. Changes nothing. Each
/// workspace has its own network; there are no networks to create or remove.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, override_usage = "microagent network [OPTIONS] NAME")]
pub(crate) struct NetworkArgs {
    /// Workspace
    #[arg(value_name = "NAME", num_args = 1..=2, required = true)]
    words: Vec<String>,
}

/// Shows.
pub(crate) fn execute(context: &Context, args: NetworkArgs) -> Result<(), Failure> {
    let document = NetworkDocument::from(context.engine().workspace(&args.name()?).network()?);
    match context.format {
        Format::Json => print_json(&document),
        Format::Text => print_text(&document.text()),
    }
}

impl NetworkArgs {
    fn name(&self) -> Result<WorkspaceName, Failure> {
        let name = match &self.words[..] {
            [verb, name] if VERBS.contains(&verb.as_str()) => name,
            [name] => name,
            words => {
                let message = format!("`network {}` is not possible here", words.join(" "));
                let hint = "each workspace has a network of its own: microagent network NAME shows it, \
                            `create --network MODE` chooses it";
                return Err(Failure::usage(message, hint));
            }
        };
        name.parse().map_err(|e: microagent::NameError| {
            Failure::usage(e.to_string(), "`microagent list` shows the names")
        })
    }
}

impl NetworkDocument {
    fn text(&self) -> String {
        let mut lines = vec![
            ("Workspace", self.workspace.to_string()),
            ("State", self.state.to_string()),
            ("Network", self.network.mode.to_string()),
        ];
        if let Some(link) = self.network.link {
            lines.push(("Link", link.to_string()));
        }
        if let Some(GuestAddressesDocument { ip, prefix_len, gateway, dns }) = &self.runtime {
            let dns: Vec<_> = dns.iter().map(ToString::to_string).collect();
            lines.extend([
                ("Address", format!("{ip}/{prefix_len}")),
                ("Gateway", gateway.to_string()),
                ("DNS", dns.join(", ")),
            ]);
        }
        if let Some(EgressPolicyDocument { mode, allow, max_connections, max_bytes }) = &self.network.egress {
            lines.push(("Egress", mode.to_string()));
            lines.extend(allow.iter().map(|rule| ("Allowed", rule.to_string())));
            lines.push(("Limits", format!("{max_connections} connections, {}", size(*max_bytes))));
        }
        if let Some(settings) = &self.network.dns {
            lines.extend(name_lines(settings));
        }
        lines.extend(self.network.host_forwards.iter().map(|forward| ("Forwarded", forwarded(forward))));
        lines.extend(self.network.brokers.iter().map(|broker| ("Broker", brokered(broker))));
        lines.extend(self.network.port_forwards.iter().map(|forward| ("Published", published(forward))));
        lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use microagent::egress::EgressPolicy;
    use microagent::{LinkState, NetworkMode, PortProtocol, State};

    use super::*;
    use crate::documents::network::ConnectionDocument;
    use crate::documents::shared::{
        BrokerDocument, DnsSettingsDocument, HostForwardDocument, PortForwardDocument,
    };

    fn name(words: &[&str]) -> Result<WorkspaceName, Failure> {
        NetworkArgs { words: words.iter().map(|&word| word.to_owned()).collect() }.name()
    }

    #[test]
    fn a_verb_may_stand_before_the_name() {
        for words in [&["web"][..], &["inspect", "web"], &["status", "web"]] {
            assert_eq!(name(words).unwrap().as_str(), "web");
        }
        for words in [&["create", "web"][..], &["rm", "web"], &["-x"]] {
            assert!(matches!(name(words), Err(Failure::Usage { hint: Some(_), .. })), "{words:?}");
        }
    }

    #[test]
    fn the_text_has_a_line_for_each_fact() {
        let forward = PortForwardDocument {
            protocol: PortProtocol::Tcp,
            host: [127, 0, 0, 1].into(),
            host_port: 8080,
            guest_port: 80.try_into().unwrap(),
        };
        let connected = NetworkDocument {
            workspace: "web".parse().unwrap(),
            state: State::Running,
            network: ConnectionDocument {
                mode: NetworkMode::User,
                link: Some(LinkState::Up),
                stack_pid: Some(7),
                port_forwards: vec![forward],
                host_forwards: vec![HostForwardDocument {
                    protocol: "tcp".to_owned(),
                    guest_port: 11_434.try_into().unwrap(),
                    host: [127, 0, 0, 1].into(),
                    host_port: 8000,
                }],
                brokers: vec![BrokerDocument {
                    name: "API".to_owned(),
                    url: "http://10.0.2.4:8001".to_owned(),
                    upstream: "https://api.example.org".to_owned(),
                    secret: "env:KEY".to_owned(),
                    header: "Authorization".to_owned(),
                    format: "Bearer {}".to_owned(),
                    allow: vec!["GET /v1/*".to_owned()],
                    ca: None,
                    private: false,
                    variables: vec!["MICROAGENT_BROKER_API".to_owned()],
                }],
                dns: Some(DnsSettingsDocument {
                    servers: vec!["192.0.2.53".to_owned()],
                    search: vec!["corp.example".to_owned()],
                    hosts: vec!["db:10.1.2.3".to_owned()],
                    host_file: true,
                }),
                egress: Some(EgressPolicyDocument {
                    allow: vec![".example.org".to_owned()],
                    ..EgressPolicy::default().into()
                }),
            },
            runtime: Some(GuestAddressesDocument {
                ip: [10, 0, 2, 15].into(),
                prefix_len: 24,
                gateway: [10, 0, 2, 2].into(),
                dns: vec![[10, 0, 2, 3].into()],
            }),
        };
        let isolated = NetworkDocument {
            workspace: "web".parse().unwrap(),
            state: State::Running,
            network: ConnectionDocument {
                mode: NetworkMode::Isolated,
                link: None,
                stack_pid: None,
                port_forwards: Vec::new(),
                host_forwards: Vec::new(),
                brokers: Vec::new(),
                dns: None,
                egress: None,
            },
            runtime: None,
        };
        assert_eq!(
            connected.text(),
            "Workspace: web\nState: running\nNetwork: user\nLink: up\nAddress: 10.0.2.15/24\nGateway: 10.0.2.2\n\
             DNS: 10.0.2.3\nEgress: public\nAllowed: .example.org\nLimits: 1024 connections, 50.00 GiB\n\
             Name server: 192.0.2.53\nSearch domain: corp.example\nAdded host: db:10.1.2.3\n\
             Host names: those of the host's /etc/hosts\n\
             Forwarded: host.microagent.internal:11434/tcp -> 127.0.0.1:8000\n\
             Broker: API: http://10.0.2.4:8001 -> https://api.example.org with Authorization from env:KEY, only GET /v1/*\n\
             Published: 127.0.0.1:8080 -> 80/tcp\n"
        );
        assert_eq!(isolated.text(), "Workspace: web\nState: running\nNetwork: isolated\n");
    }
}
