//! `microagent list` and `microagent ps`: all workspaces, and those that have a machine.

use clap::Args;
use microagent::WorkspaceSummary;

use crate::args::listing::{Entries, ListingArgs};
use crate::context::Context;
use crate::documents::list::{WorkspaceDocument, WorkspaceListDocument};
use crate::documents::shared::PortForwardDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, published, span};
use crate::table::table;

/// What is printed when there is nothing to list.
const NONE_SAVED: &str = "No workspaces.\n";
const NONE_RUNNING: &str = "No running workspaces.\n";

/// Docker's keys for templates and filters.
const DOCKER_KEYS: &[(&str, &str)] =
    &[("names", "name"), ("status", "state"), ("ports", "port_forwards"), ("label", "labels")];

const EXAMPLES: &str = "\
Examples:
  List all workspaces:
    microagent list

  Print the names of all failed workspaces:
    microagent list -q --filter state=failed";

const PS_EXAMPLES: &str = "\
Examples:
  List running workspaces:
    microagent ps

  Halt all running workspaces:
    microagent ps -q | xargs -r microagent halt

  Print name and state only:
    microagent ps --format '{{.name}} {{.state}}'";

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

    #[command(flatten)]
    listing: ListingArgs,
}

/// List saved workspaces
///
/// Shows every workspace that has a record: created workspaces, runs with --keep, and failed runs, each with its current
/// state. A record that cannot be read is shown as `damaged`. Changes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    listing: ListingArgs,
}

/// Lists workspaces that have a machine.
pub(crate) fn execute_ps(context: &Context, args: PsArgs) -> Result<(), Failure> {
    let mut workspaces = context.call(context.engine().list())?;
    workspaces.retain(|workspace| args.all || workspace.has_machine);
    let none = if args.all { NONE_SAVED } else { NONE_RUNNING };
    print(context, &args.listing, workspaces, none)
}

/// Lists all.
pub(crate) fn execute(context: &Context, args: ListArgs) -> Result<(), Failure> {
    print(context, &args.listing, context.call(context.engine().list())?, NONE_SAVED)
}

fn print(
    context: &Context,
    listing_args: &ListingArgs,
    workspaces: Vec<WorkspaceSummary>,
    none: &str,
) -> Result<(), Failure> {
    let mut workspaces: Vec<_> = workspaces.into_iter().map(WorkspaceDocument::from).collect();
    let values = workspaces.iter().map(|workspace| serde_json::json!(workspace));
    let entries = Entries::new(values, DOCKER_KEYS, "name");
    let selected = listing_args.select(&entries)?;
    if listing_args.is_custom() && context.format == Format::Text {
        return print_text(&listing_args.lines(&entries, &selected)?);
    }
    let mut index = 0..;
    workspaces.retain(|_| index.next().is_some_and(|index| selected.contains(&index)));
    match context.format {
        Format::Json => print_json(&WorkspaceListDocument { workspaces }),
        Format::Text => {
            let progress = context.progress(true);
            for workspace in workspaces.iter().filter(|workspace| workspace.state.is_none()) {
                let problem = workspace.problem.as_deref().unwrap_or("its record is damaged");
                progress.note(&format!("{}: {problem}", workspace.name));
            }
            print_text(&listing(&workspaces, none))
        }
    }
}

fn listing(workspaces: &[WorkspaceDocument], none: &str) -> String {
    if workspaces.is_empty() {
        return none.to_owned();
    }
    let rows: Vec<_> = workspaces.iter().map(row).collect();
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let columns = [
        ("NAME", 24),
        ("STATE", widest(1).max(12)),
        ("BACKEND", 12),
        ("PROFILE", 12),
        ("NETWORK", 10),
        ("RESTART", 14),
        ("AGE", 5),
        ("TTL", 5),
        ("PORTS", widest(8).max("PORTS".len())),
        ("IMAGE", 0),
    ];
    table(columns, &rows)
}

/// The state, with the health behind it as Docker has it.
fn state(workspace: &WorkspaceDocument) -> String {
    match (workspace.state, workspace.health) {
        (None, _) => "damaged".to_owned(),
        (Some(state), None) => state.to_string(),
        (Some(state), Some(health)) => format!("{state} ({health})"),
    }
}

fn row(workspace: &WorkspaceDocument) -> [String; 10] {
    let damaged = workspace.state.is_none();
    [
        workspace.name.to_string(),
        state(workspace),
        workspace.backend.clone().unwrap_or_default(),
        workspace.profile.clone().unwrap_or_default(),
        workspace.network.map(|network| network.to_string()).unwrap_or_default(),
        if damaged { String::new() } else { workspace.restart.to_string() },
        workspace.created_at.map(|created| span(created, workspace.observed_at)).unwrap_or_default(),
        workspace.expires_at.map(|at| span(workspace.observed_at, at)).unwrap_or_default(),
        workspace.port_forwards.iter().map(port).collect::<Vec<_>>().join(","),
        workspace.image.clone().unwrap_or_default(),
    ]
}

/// `127.0.0.1:8080->80/tcp`, without spaces.
fn port(forward: &PortForwardDocument) -> String {
    published(forward).replace(' ', "")
}

#[cfg(test)]
mod tests {
    use microagent::{HealthState, NetworkMode, RestartPolicy, State};

    use super::*;

    fn whole() -> WorkspaceDocument {
        WorkspaceDocument {
            name: "report-run".parse().unwrap(),
            state: Some(State::Stopped),
            backend: Some("linux-tcg".into()),
            image: Some("alpine:3.20".into()),
            created_at: Some(jiff::Timestamp::UNIX_EPOCH),
            expires_at: Some(jiff::Timestamp::from_second(7400).unwrap()),
            profile: Some("small".into()),
            network: Some(NetworkMode::User),
            port_forwards: vec![PortForwardDocument {
                protocol: microagent::PortProtocol::Tcp,
                host: std::net::Ipv4Addr::LOCALHOST.into(),
                host_port: 8080,
                guest_port: 80.try_into().unwrap(),
            }],
            health: None,
            restart: RestartPolicy::Never,
            labels: microagent::Labels::new(),
            observed_at: jiff::Timestamp::from_second(7300).unwrap(),
            problem: None,
        }
    }

    #[test]
    fn the_listing_has_the_documented_columns() {
        let whole = whole();
        let damaged = WorkspaceDocument {
            name: "run-1781167843059951259".parse().unwrap(),
            state: None,
            image: None,
            created_at: None,
            expires_at: None,
            port_forwards: Vec::new(),
            backend: None,
            profile: None,
            network: None,
            problem: Some("damaged".into()),
            ..whole.clone()
        };
        assert_eq!(
            listing(&[whole, damaged], NONE_SAVED),
            "\
NAME                     STATE        BACKEND      PROFILE      NETWORK    RESTART        AGE   TTL   PORTS                  IMAGE
report-run               stopped      linux-tcg    small        user       never          2h    100s  127.0.0.1:8080->80/tcp alpine:3.20
run-1781167843059951259  damaged      -            -            -          -              -     -     -                      -
"
        );
    }

    #[test]
    fn health_stands_behind_the_state() {
        let web = WorkspaceDocument {
            health: Some(HealthState::Unhealthy),
            state: Some(State::Running),
            ..whole()
        };
        let db = WorkspaceDocument { state: Some(State::Halted), ..whole() };
        let text = listing(&[web, db], NONE_SAVED);
        let columns: Vec<_> = text.lines().map(|line| &line[25..48]).collect();
        assert_eq!(
            columns,
            ["STATE               BAC", "running (unhealthy) lin", "halted              lin"]
        );
    }

    #[test]
    fn nothing_is_said_as_documented() {
        assert_eq!(listing(&[], NONE_SAVED), "No workspaces.\n");
    }
}
