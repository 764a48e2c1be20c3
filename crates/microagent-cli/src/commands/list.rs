//! `microagent list`: the saved workspaces.

use clap::Args;
use microagent::WorkspaceSummary;
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::progress::Progress;
use crate::table::table;

const EXAMPLES: &str = "\
Examples:
  What was kept, or failed and left its logs:
    microagent list

  Names of all failed workspaces:
    microagent list --json | jq -r '.workspaces[] | select(.state == \"failed\").name'";

/// List saved workspaces
///
/// Shows every workspace that has a record: runs with --keep, and runs that failed. The state is the one that
/// is true now. A record that cannot be read shows as `damaged`. Changes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ListArgs {}

#[derive(Debug, Serialize)]
struct Document {
    workspaces: Vec<WorkspaceSummary>,
}

/// Lists.
pub(crate) fn execute(context: &Context, _args: ListArgs) -> Result<(), Failure> {
    let workspaces = context.engine().list()?;
    match context.format {
        Format::Json => print_json(&Document { workspaces }),
        Format::Text => {
            let progress: Progress = context.progress(true);
            for workspace in workspaces.iter().filter(|workspace| workspace.state.is_none()) {
                let problem = workspace.problem.as_deref().unwrap_or("its record is damaged");
                progress.note(&format!("{}: {problem}", workspace.name));
            }
            print_text(&listing(&workspaces))
        }
    }
}

fn listing(workspaces: &[WorkspaceSummary]) -> String {
    if workspaces.is_empty() {
        return "No workspaces.\n".to_owned();
    }
    let rows: Vec<_> = workspaces.iter().map(row).collect();
    let columns =
        [("NAME", 24), ("STATE", 12), ("BACKEND", 12), ("PROFILE", 12), ("NETWORK", 10), ("RESTART", 0)];
    table(columns, &rows)
}

fn row(workspace: &WorkspaceSummary) -> [String; 6] {
    let damaged = workspace.state.is_none();
    [
        workspace.name.to_string(),
        workspace.state.map_or_else(|| "damaged".to_owned(), |state| state.to_string()),
        workspace.backend.clone().unwrap_or_default(),
        workspace.profile.clone().unwrap_or_default(),
        workspace.network.map(|network| network.to_string()).unwrap_or_default(),
        if damaged { String::new() } else { workspace.restart.to_owned() },
    ]
}

#[cfg(test)]
mod tests {
    use microagent::{NetworkMode, State};

    use super::*;

    #[test]
    fn the_listing_has_the_documented_columns() {
        let whole = WorkspaceSummary {
            name: "report-run".parse().unwrap(),
            state: Some(State::Stopped),
            backend: Some("linux-tcg".into()),
            profile: Some("small".into()),
            network: Some(NetworkMode::User),
            restart: "never",
            observed_at: jiff::Timestamp::UNIX_EPOCH,
            problem: None,
        };
        let damaged = WorkspaceSummary {
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
