//! `microagent network create`, `list`, `inspect`, `delete`: networks between workspaces.

use clap::Args;
use microagent::private_network::{NetworkDeleteMode, PrivateNetwork};
use microagent::{Error, NetworkName, Subnet, WorkspaceName};

use crate::args::listing::{Entries, ListingArgs};
use crate::context::Context;
use crate::documents::network::NetworkDocument;
use crate::documents::private_network::{
    DeletedNetwork, JoinedNetworkDocument, PrivateNetworkDeleteDocument, PrivateNetworkDocument,
    PrivateNetworkListDocument,
};
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, unstartable};
use crate::prompt::confirm;
use crate::table::table;

const CREATE_EXAMPLES: &str = "\
Examples:
  A web server that reaches a database by its name, `db`:
    microagent network create backend
    microagent create db postgres:17 --image-command --join backend -e POSTGRES_PASSWORD=secret
    microagent create web nginx --image-command --join backend -p 8080:80

  Choose the addresses:
    microagent network create backend --subnet 10.77.0.0/24";

const LIST_EXAMPLES: &str = "\
Examples:
  List private networks:
    microagent network list

  Only the names:
    microagent network list -q";

const INSPECT_EXAMPLES: &str = "\
Examples:
  Show members with their addresses:
    microagent network inspect backend

  Print the names and addresses of the members:
    microagent network inspect backend --json | jq -r '.members[] | .workspace, .address'";

const DELETE_EXAMPLES: &str = "\
Examples:
  Delete a network that no workspace joins:
    microagent network delete backend

  Delete one that workspaces join; they cannot start without it:
    microagent network delete --force backend";

/// Create a private network
///
/// Workspaces with `--join NETWORK` reach each other by name and address, with TCP, UDP and ping. Nobody else reaches
/// them there. What they reach outside of the network does not change. A network needs no process of its own.
#[derive(Debug, Args)]
#[command(after_long_help = CREATE_EXAMPLES)]
pub(crate) struct CreateArgs {
    /// Name: lower-case letters, digits and `-`
    name: NetworkName,

    /// Addresses of the network; default: a free one of 10.210.0.0/24 to 10.210.255.0/24
    #[arg(long, value_name = "ADDRESS/BITS")]
    subnet: Option<Subnet>,
}

/// List the private networks
///
/// MEMBERS are the workspaces that join the network, whether they run or not.
#[derive(Debug, Args)]
#[command(after_long_help = LIST_EXAMPLES)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    listing: ListingArgs,
}

/// Show a private network and its members
///
/// If there is no private network of this name, the network of the workspace of this name is shown.
#[derive(Debug, Args)]
#[command(after_long_help = INSPECT_EXAMPLES)]
pub(crate) struct InspectArgs {
    /// Private network
    name: String,
}

/// Delete private networks
///
/// Asks for confirmation on a terminal. Refuses a network that a workspace joins; --force deletes it anyway: connections
/// that are open stay open, and workspaces that join it cannot start until a network of that name exists again.
#[derive(Debug, Args)]
#[command(after_long_help = DELETE_EXAMPLES)]
pub(crate) struct DeleteArgs {
    /// Private networks
    #[arg(required = true, value_name = "NAME")]
    names: Vec<NetworkName>,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,

    /// As --yes, and delete networks that workspaces join
    #[arg(short, long)]
    force: bool,
}

/// Creates.
pub(super) fn create(context: &Context, args: &CreateArgs) -> Result<(), Failure> {
    let network = context.call(context.engine().networks().create(&args.name, args.subnet))?;
    let document = PrivateNetworkDocument::from(network);
    match context.format {
        Format::Json => print_json(&document),
        Format::Text => {
            let subnet = document.subnet.as_deref().unwrap_or_default();
            print_text(&format!("Created network \"{}\" ({subnet})\n", document.name))
        }
    }
}

/// Lists.
pub(super) fn list(context: &Context, args: &ListArgs) -> Result<(), Failure> {
    let networks = context.call(context.engine().networks().list())?;
    let mut networks: Vec<_> = networks.into_iter().map(PrivateNetworkDocument::from).collect();
    let values = networks.iter().map(|network| serde_json::json!(network));
    let entries = Entries::new(values, &[], "name");
    let selected = args.listing.select(&entries)?;
    if args.listing.is_custom() && context.format == Format::Text {
        return print_text(&args.listing.lines(&entries, &selected)?);
    }
    let mut index = 0..;
    networks.retain(|_| index.next().is_some_and(|index| selected.contains(&index)));
    match context.format {
        Format::Json => print_json(&PrivateNetworkListDocument { networks }),
        Format::Text => print_text(&listing(&networks)),
    }
}

/// Shows a private network, or else the network of a workspace.
pub(super) fn inspect(context: &Context, args: &InspectArgs) -> Result<(), Failure> {
    let network = match args.name.parse::<NetworkName>() {
        Ok(name) => found(context.call(context.engine().networks().get(&name)))?,
        Err(_) => None,
    };
    if let Some(network) = network {
        let document = PrivateNetworkDocument::from(network);
        return match context.format {
            Format::Json => print_json(&document),
            Format::Text => print_text(&text(&document)),
        };
    }
    let is_workspace =
        args.name.parse::<WorkspaceName>().map(|name| context.engine().workspace(&name).network());
    match is_workspace {
        Ok(Ok(details)) => NetworkDocument::from(details).print(context.format),
        Ok(Err(error)) if !matches!(error, Error::NoSuchWorkspace { .. }) => Err(error.into()),
        _ => Err(Failure::usage(
            format!("there is no private network and no workspace `{}`", one_line(&args.name)),
            "`microagent network list` shows the private networks, `microagent list` the workspaces",
        )),
    }
}

/// What is said of a name that is no workspace's, but a private network's.
pub(super) fn meant(context: &Context, name: &WorkspaceName) -> Option<Failure> {
    let is_workspace =
        !matches!(context.engine().workspace(name).state(), Err(Error::NoSuchWorkspace { .. }));
    let network: NetworkName = name.as_str().parse().ok()?;
    if is_workspace || context.call(context.engine().networks().get(&network)).is_err() {
        return None;
    }
    Some(Failure::Other {
        message: format!("`{name}` is a private network, not a workspace"),
        hint: Some(format!("show it: microagent network inspect {name}")),
    })
}

/// Nothing in the place of a network that does not exist.
fn found(network: Result<PrivateNetwork, Failure>) -> Result<Option<PrivateNetwork>, Failure> {
    match network {
        Ok(network) => Ok(Some(network)),
        Err(Failure::Engine(error)) if error.kind() == microagent::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes all that can be deleted; the first failure is reported after that.
pub(super) fn delete(context: &Context, args: DeleteArgs) -> Result<(), Failure> {
    let networks = context.engine().networks();
    let mode = if args.force { NetworkDeleteMode::Force } else { NetworkDeleteMode::Unused };
    if !args.yes && !args.force {
        for name in &args.names {
            context.call(networks.get(name))?;
        }
        let names: Vec<_> = args.names.iter().map(NetworkName::as_str).collect();
        // Without a terminal there is nobody to ask; scripts name what they mean.
        if confirm(&format!("Delete {}?", names.join(", "))) == Some(false) {
            return print_text("Nothing was deleted.\n");
        }
    }
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for name in args.names {
        match context.call(networks.delete(&name, mode)) {
            Ok(deletion) => done.push(DeletedNetwork::new(name, deletion)),
            Err(error) => failures.push(error),
        }
    }
    match context.format {
        Format::Json => print_json(&PrivateNetworkDeleteDocument { networks: done })?,
        Format::Text => print_text(&done.iter().map(line).collect::<String>())?,
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// A private network that a workspace joins, as lines show it.
pub(super) fn joined(joined: &JoinedNetworkDocument) -> String {
    let JoinedNetworkDocument { name, subnet, address } = joined;
    match (address, subnet) {
        (Some(address), Some(subnet)) => format!("{name}: {address} of {subnet}"),
        (None, Some(subnet)) => format!("{name}: {subnet}"),
        (_, None) => format!("{name}: deleted"),
    }
}

fn line(deleted: &DeletedNetwork) -> String {
    let DeletedNetwork { name, deleted, missed_by } = deleted;
    if !deleted {
        return format!("Nothing to delete: {name}\n");
    }
    format!("Deleted network \"{name}\"\n{}", unstartable(missed_by))
}

fn listing(networks: &[PrivateNetworkDocument]) -> String {
    if networks.is_empty() {
        return "No private networks.\n".to_owned();
    }
    let row = |network: &PrivateNetworkDocument| {
        let members: Vec<_> = network.members.iter().map(|member| member.workspace.to_string()).collect();
        let subnet = match &network.problem {
            Some(_) => "damaged".to_owned(),
            None => network.subnet.clone().unwrap_or_default(),
        };
        [network.name.to_string(), subnet, members.join(",")]
    };
    let rows: Vec<_> = networks.iter().map(row).collect();
    table([("NAME", 20), ("SUBNET", 18), ("MEMBERS", 0)], &rows)
}

fn text(network: &PrivateNetworkDocument) -> String {
    let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let mut text = format!("Name: {}\n", network.name);
    if let Some(problem) = &network.problem {
        text += &format!("Problem: {}\n", one_line(problem));
    }
    text += &format!(
        "Subnet: {}\nCreated: {}\n",
        known(network.subnet.clone()),
        known(network.created_at.map(|at| at.to_string()))
    );
    for member in &network.members {
        let address = known(member.address.map(|address| address.to_string()));
        // It runs in a network of this name that was deleted.
        let is_late = member.address.is_none() && member.state.is_live();
        let joins = if is_late { ", joins at its next start" } else { "" };
        text += &format!("Member: {} {address} ({}{joins})\n", member.workspace, member.state);
    }
    text
}

#[cfg(test)]
mod tests {
    use microagent::State;

    use super::*;
    use crate::documents::private_network::NetworkMemberDocument;

    fn network() -> PrivateNetworkDocument {
        let member = |name: &str, address, state| NetworkMemberDocument {
            workspace: name.parse().unwrap(),
            address,
            state,
        };
        PrivateNetworkDocument {
            name: "backend".parse().unwrap(),
            subnet: Some("10.210.0.0/24".to_owned()),
            created_at: Some(jiff::Timestamp::UNIX_EPOCH),
            members: vec![
                member("db", Some([10, 210, 0, 2].into()), State::Running),
                member("web", None, State::Prepared),
                member("cache", None, State::Running),
            ],
            problem: None,
        }
    }

    #[test]
    fn members_are_listed_and_shown() {
        let damaged = PrivateNetworkDocument {
            name: "old".parse().unwrap(),
            subnet: None,
            members: Vec::new(),
            problem: Some("torn".into()),
            ..network()
        };
        assert_eq!(
            listing(&[network(), damaged]),
            "NAME                 SUBNET             MEMBERS\n\
             backend              10.210.0.0/24      db,web,cache\n\
             old                  damaged            -\n"
        );
        assert_eq!(listing(&[]), "No private networks.\n");
        assert_eq!(
            text(&network()),
            "Name: backend\nSubnet: 10.210.0.0/24\nCreated: 1970-01-01T00:00:00Z\n\
             Member: db 10.210.0.2 (running)\nMember: web - (prepared)\n\
             Member: cache - (running, joins at its next start)\n"
        );
    }

    #[test]
    fn deleting_says_who_misses_it() {
        let name: NetworkName = "backend".parse().unwrap();
        let nothing = DeletedNetwork { name, deleted: false, missed_by: Vec::new() };
        assert_eq!(line(&nothing), "Nothing to delete: backend\n");
        let missed = DeletedNetwork { deleted: true, missed_by: vec!["web".parse().unwrap()], ..nothing };
        assert_eq!(line(&missed), "Deleted network \"backend\"\nCannot start without it: web\n");
    }
}
