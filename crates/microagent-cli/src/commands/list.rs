//! `microagent list` and `microagent ps`: the saved workspaces, and those that live.

use clap::Args;
use microagent::WorkspaceSummary;

use crate::context::Context;
use crate::documents::list::{WorkspaceDocument, WorkspaceListDocument};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::table::table;

const EXAMPLES: &str = "\
Examples:
  List all workspaces:
    microagent list

  Print the names of all failed workspaces:
    microagent list --json | jq -r '.workspaces[] | select(.state == \"failed\").name'";

const PS_EXAMPLES: &str = "\
Examples:
  List running workspaces:
    microagent ps

  Halt all running workspaces:
    microagent ps --json | jq -r '.workspaces[].name' | xargs -r -n 1 microagent halt";

/// List running workspaces
///
/// Shows every workspace that has a machine now (starting, running, paused, stopping or quarantined), checked against its
/// processes. `microagent list` also shows the others. Changes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = PS_EXAMPLES)]
pub(crate) struct PsArgs {
    /// Show all workspaces, as `microagent list` does
    #[arg(short, long)]
    all: bool,
}

/// List saved workspaces
///
/// Shows every workspace that has a record: created workspaces, runs with --keep, and failed runs, each with its current
/// state. A record that cannot be read is shown as `damaged`. Changes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ListArgs {}

/// Lists those that live.
pub(crate) fn execute_ps(context: &Context, args: PsArgs) -> Result<(), Failure> {
    let mut workspaces = context.engine().list()?;
    workspaces.retain(|workspace| args.all || workspace.has_machine);
    print(context, workspaces)
}

/// Lists all.
pub(crate) fn execute(context: &Context, _args: ListArgs) -> Result<(), Failure> {
    print(context, context.engine().list()?)
}

fn print(context: &Context, workspaces: Vec<WorkspaceSummary>) -> Result<(), Failure> {
    let workspaces: Vec<_> = workspaces.into_iter().map(WorkspaceDocument::from).collect();
    match context.format {
        Format::Json => print_json(&WorkspaceListDocument { workspaces }),
        Format::Text => {
            let progress = context.progress(true);
            for workspace in workspaces.iter().filter(|workspace| workspace.state.is_none()) {
                let problem = workspace.problem.as_deref().unwrap_or("its record is damaged");
                progress.note(&format!("{}: {problem}", workspace.name));
            }
            print_text(&listing(&workspaces))
        }
    }
}

fn listing(workspaces: &[WorkspaceDocument]) -> String {
    if workspaces.is_empty() {
        return "No workspaces.\n".to_owned();
    }
    let rows: Vec<_> = workspaces.iter().map(row).collect();
    let columns =
        [("NAME", 24), ("STATE", 12), ("BACKEND", 12), ("PROFILE", 12), ("NETWORK", 10), ("RESTART", 0)];
    table(columns, &rows)
}

fn row(workspace: &WorkspaceDocument) -> [String; 6] {
    let damaged = workspace.state.is_none();
    [
        workspace.name.to_string(),
        workspace.state.map_or_else(|| "damaged".to_owned(), |state| state.to_string()),
        workspace.backend.clone().unwrap_or_default(),
        workspace.profile.clone().unwrap_or_default(),
        workspace.network.map(|network| network.to_string()).unwrap_or_default(),
        if damaged { String::new() } else { workspace.restart.to_string() },
    ]
}

#[cfg(test)]
mod tests {
    use microagent::{NetworkMode, RestartPolicy, State};

    use super::*;

    #[test]
    fn the_listing_has_the_documented_columns() {
        let whole = WorkspaceDocument {
            name: "report-run".parse().unwrap(),
            state: Some(State::Stopped),
            backend: Some("linux-tcg".into()),
            profile: Some("small".into()),
            network: Some(NetworkMode::User),
            port_forwards: Vec::new(),
            restart: RestartPolicy::Never,
            observed_at: jiff::Timestamp::UNIX_EPOCH,
            problem: None,
        };
        let damaged = WorkspaceDocument {
            name: "run-1781167843059951259".parse().unwrap(),
            state: None,
            backend: None,
            profile: None,
            network: None,
            problem: Some("damaged".into()),
            ..whole.clone()
        };
        assert_eq!(
            listing(&[whole, damaged]),
            "\
NAME                     STATE        BACKEND      PROFILE      NETWORK    RESTART
report-run               stopped      linux-tcg    small        user       never
run-1781167843059951259  damaged      -            -            -          -
"
        );
    }

    #[test]
    fn nothing_is_said_as_documented() {
        assert_eq!(listing(&[]), "No workspaces.\n");
    }
}
