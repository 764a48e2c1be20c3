//! `microagent port`: lists, adds and removes the published ports of a workspace.

use clap::{Args, Subcommand};
use microagent::{PortForward, PortSelector, Publish, PublishRange, Workspace, WorkspaceName};

use crate::context::Context;
use crate::documents::state::StateDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, published};

const EXAMPLES: &str = "\
Examples:
  List the published ports of a workspace:
    microagent port web

  Publish one more port; the workspace may be running or resting:
    microagent port add web 8080:80

  Stop publishing it:
    microagent port remove web 8080";

const ADD_EXAMPLES: &str = "\
Examples:
  Publish a port of the guest on a free port of the host, which is printed:
    microagent port add web 80

  Publish a range, and a UDP port:
    microagent port add web 8000-8010:8000-8010 53:53/udp";

const REMOVE_EXAMPLES: &str = "\
Examples:
  Stop publishing port 8080 of the host:
    microagent port remove web 8080

  The same for a UDP port that is published on several addresses:
    microagent port remove web 127.0.0.1:53/udp";

/// List, add and remove the published ports of a workspace
///
/// Changes take effect at once if the workspace is running, and apply to its later starts.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = EXAMPLES,
    override_usage = "microagent port NAME\n       microagent port add NAME PORT...\n       microagent port remove NAME PORT"
)]
pub(crate) struct PortArgs {
    #[command(subcommand)]
    pub(crate) command: Option<PortCommand>,

    /// Workspace whose ports are listed
    pub(crate) name: Option<WorkspaceName>,
}

/// What is done with ports.
#[derive(Debug, Subcommand)]
pub(crate) enum PortCommand {
    Add(AddArgs),
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
}

/// Publish more ports of a workspace
///
/// Either all ports are published or none. A running service is not restarted.
#[derive(Debug, Args)]
#[command(after_long_help = ADD_EXAMPLES)]
pub(crate) struct AddArgs {
    /// Workspace
    name: WorkspaceName,
    /// Port or range of the guest, as with `run -p`; without HOST_PORT a free port is picked
    #[arg(value_name = "[[HOST:]HOST_PORT:]PORT[/udp]", required = true)]
    ports: Vec<PublishRange>,
}

/// Stop publishing a port of a workspace
///
/// New connections are refused. Open connections stay open.
#[derive(Debug, Args)]
#[command(after_long_help = REMOVE_EXAMPLES)]
pub(crate) struct RemoveArgs {
    /// Workspace
    name: WorkspaceName,
    /// Port of the host
    #[arg(value_name = "[HOST:]HOST_PORT[/udp]")]
    port: PortSelector,
}

/// Lists, adds or removes.
pub(crate) fn execute(context: &Context, args: PortArgs) -> Result<(), Failure> {
    match (args.command, args.name) {
        (Some(PortCommand::Add(args)), _) => {
            let workspace = context.engine().workspace(&args.name);
            let ports: Vec<Publish> = args.ports.iter().flat_map(PublishRange::ports).copied().collect();
            let added = context.block_on(async |_| Ok(workspace.publish(&ports).await?))?;
            answer(context, &workspace, &lines("Published: ", added.iter().map(PortForward::from)))
        }
        (Some(PortCommand::Remove(args)), _) => {
            let workspace = context.engine().workspace(&args.name);
            let removed = context.block_on(async |_| Ok(workspace.unpublish(args.port).await?))?;
            answer(context, &workspace, &lines("Removed: ", [PortForward::from(&removed)]))
        }
        (None, Some(name)) => {
            let workspace = context.engine().workspace(&name);
            let text = lines("", workspace.details()?.port_forwards);
            answer(context, &workspace, &text)
        }
        (None, None) => unreachable!("a group without a subcommand was answered with its help page"),
    }
}

fn answer(context: &Context, workspace: &Workspace, text: &str) -> Result<(), Failure> {
    match context.format {
        Format::Json => print_json(&StateDocument::from(workspace.details()?)),
        Format::Text => print_text(text),
    }
}

fn lines(word: &str, forwards: impl IntoIterator<Item = PortForward>) -> String {
    forwards.into_iter().map(|forward| format!("{word}{}\n", published(&forward.into()))).collect()
}
