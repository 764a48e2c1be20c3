//! `microagent network`: how a workspace is connected, and networks between workspaces.

mod private;

use clap::{Args, Subcommand};
use microagent::{Error, WorkspaceName};

use crate::context::Context;
use crate::documents::network::{EgressPolicyDocument, NetworkDocument};
use crate::failure::Failure;
use crate::output::{Format, brokered, forwarded, name_lines, print_json, print_text, published, size};

/// What people who know networks of their own may put before the name.
const VERBS: [&str; 1] = ["status"];

const EXAMPLES: &str = "\
Examples:
  Show which host ports are published:
    microagent network web

  Print one host port, for a script:
    microagent network web --json | jq '.network.port_forwards[0].host_port'

  Let two workspaces reach each other by name:
    microagent network create backend
    microagent create db postgres:17 --image-command --join backend -e POSTGRES_PASSWORD=secret";

/// Show the network of a workspace, and manage networks between workspaces
///
/// `network NAME` shows mode, addresses, link state, published ports with their host ports, the egress policy, and the
/// private networks that the workspace joins. It changes nothing.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = EXAMPLES,
    override_usage = "microagent network [OPTIONS] NAME\n       microagent network <COMMAND>"
)]
pub(crate) struct NetworkArgs {
    #[command(subcommand)]
    pub(crate) command: Option<NetworkCommand>,

    /// Workspace whose network is shown
    #[arg(value_name = "NAME")]
    word: Option<String>,

    /// More words, which only Docker's verbs have.
    #[arg(hide = true)]
    more: Vec<String>,
}

/// What is done with networks between workspaces.
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    Create(private::CreateArgs),
    #[command(visible_alias = "ls")]
    List(private::ListArgs),
    Inspect(private::InspectArgs),
    #[command(visible_alias = "rm")]
    Delete(private::DeleteArgs),
}

/// Shows, or does what the subcommand says.
pub(crate) fn execute(context: &Context, args: NetworkArgs) -> Result<(), Failure> {
    match args.command {
        Some(NetworkCommand::Create(args)) => private::create(context, &args),
        Some(NetworkCommand::List(args)) => private::list(context, &args),
        Some(NetworkCommand::Inspect(args)) => private::inspect(context, &args),
        Some(NetworkCommand::Delete(args)) => private::delete(context, args),
        None => {
            let name = args.name()?;
            match context.engine().workspace(&name).network() {
                Ok(details) => NetworkDocument::from(details).print(context.format),
                Err(Error::NoSuchWorkspace { .. }) if name.as_str() == "prune" => Err(Failure::usage(
                    "`network prune` is not possible here: a private network is kept until it is deleted",
                    "microagent network list -q shows them; microagent network delete NAME",
                )),
                Err(error) => Err(private::meant(context, &name).unwrap_or(Failure::Engine(error))),
            }
        }
    }
}

impl NetworkArgs {
    fn name(&self) -> Result<WorkspaceName, Failure> {
        let words: Vec<&str> = self.word.iter().chain(&self.more).map(String::as_str).collect();
        let name = match &words[..] {
            [verb, name] if VERBS.contains(verb) => name,
            [name] => name,
            ["connect" | "disconnect", ..] => {
                let message = format!(
                    "`network {}` is not possible here: a workspace joins networks at a start",
                    words[0]
                );
                let hint = "create it with --join NETWORK, or change `network.join` of its spec file: microagent apply";
                return Err(Failure::usage(message, hint));
            }
            words => {
                let message = format!("`network {}` is not possible here", words.join(" "));
                let hint = "microagent network NAME shows the network of a workspace; `microagent network --help` shows \
                            what can be done with networks between workspaces";
                return Err(Failure::usage(message, hint));
            }
        };
        name.parse().map_err(|e: microagent::NameError| {
            Failure::usage(e.to_string(), "`microagent list` shows the names")
        })
    }
}

impl NetworkDocument {
    fn print(&self, format: Format) -> Result<(), Failure> {
        match format {
            Format::Json => print_json(self),
            Format::Text => print_text(&self.text()),
        }
    }

    fn text(&self) -> String {
        let mut lines = vec![
            ("Workspace", self.workspace.to_string()),
            ("State", self.state.to_string()),
            ("Network", self.network.mode.to_string()),
        ];
        if let Some(link) = self.network.link {
            lines.push(("Link", link.to_string()));
        }
        if let Some(runtime) = &self.runtime {
            let dns: Vec<_> = runtime.dns.iter().map(ToString::to_string).collect();
            lines.extend([
                ("Address", format!("{}/{}", runtime.ip, runtime.prefix_len)),
                ("Gateway", runtime.gateway.to_string()),
                ("IPv6 address", format!("{}/{}", runtime.ipv6, runtime.ipv6_prefix_len)),
                ("IPv6 gateway", runtime.ipv6_gateway.to_string()),
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
        lines.extend(self.network.joined.iter().map(|joined| ("Private network", private::joined(joined))));
        lines.extend(self.network.port_forwards.iter().map(|forward| ("Published", published(forward))));
        lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use microagent::egress::EgressPolicy;
    use microagent::{LinkState, NetworkMode, PortProtocol, State};

    use super::*;
    use crate::documents::network::{ConnectionDocument, GuestAddressesDocument};
    use crate::documents::private_network::JoinedNetworkDocument;
    use crate::documents::shared::{
        BrokerDocument, DnsSettingsDocument, HostForwardDocument, PortForwardDocument,
    };

    fn name(words: &[&str]) -> Result<WorkspaceName, Failure> {
        let mut words = words.iter().map(|&word| word.to_owned());
        NetworkArgs { command: None, word: words.next(), more: words.collect() }.name()
    }

    #[test]
    fn a_verb_may_stand_before_the_name() {
        for words in [&["web"][..], &["status", "web"]] {
            assert_eq!(name(words).unwrap().as_str(), "web");
        }
        for words in [&["connect", "net", "web"][..], &["connect", "web"], &["prune", "web"], &["-x"]] {
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
                joined: vec![JoinedNetworkDocument {
                    name: "backend".parse().unwrap(),
                    subnet: Some("10.210.0.0/24".to_owned()),
                    address: Some([10, 210, 0, 2].into()),
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
                ipv6: "fd00::15".parse().unwrap(),
                ipv6_prefix_len: 64,
                ipv6_gateway: "fd00::2".parse().unwrap(),
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
                joined: Vec::new(),
                dns: None,
                egress: None,
            },
            runtime: None,
        };
        assert_eq!(
            connected.text(),
            "Workspace: web\nState: running\nNetwork: user\nLink: up\nAddress: 10.0.2.15/24\nGateway: 10.0.2.2\n\
             IPv6 address: fd00::15/64\nIPv6 gateway: fd00::2\n\
             DNS: 10.0.2.3\nEgress: public\nAllowed: .example.org\nLimits: 4096 connections, 50.00 GiB\n\
             Name server: 192.0.2.53\nSearch domain: corp.example\nAdded host: db:10.1.2.3\n\
             Host names: those of the host's /etc/hosts\n\
             Forwarded: host.microagent.internal:11434/tcp -> 127.0.0.1:8000\n\
             Broker: API: http://10.0.2.4:8001 -> https://api.example.org with Authorization from env:KEY, only GET /v1/*\n\
             Private network: backend: 10.210.0.2 of 10.210.0.0/24\n\
             Published: 127.0.0.1:8080 -> 80/tcp\n"
        );
        assert_eq!(isolated.text(), "Workspace: web\nState: running\nNetwork: isolated\n");
    }
}
