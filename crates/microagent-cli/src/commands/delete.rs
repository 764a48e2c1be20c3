//! `microagent delete`: removes workspaces.

use clap::Args;
use microagent::{DeleteMode, Engine, Error, State, WorkspaceName, chain};

use crate::context::Context;
use crate::documents::delete::{DeleteDocument, DeletedWorkspace};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::prompt::confirmed;
use crate::unit::remove_unit_of;

const EXAMPLES: &str = "\
Examples:
  Delete one without confirmation:
    microagent delete report-run --yes

  Delete several; kill those that run:
    microagent delete --force web worker

  Delete all failed workspaces:
    microagent list -q --filter state=failed | xargs -r microagent delete --yes";

/// Delete workspaces: record, disk and logs
///
/// Asks for confirmation unless --yes or --force is given; without a terminal one of them is required. A running workspace
/// is shut down first; --force kills it instead. A quarantined workspace is deleted only with --force. With either option
/// a name that does not exist is not an error.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct DeleteArgs {
    /// Workspaces
    #[arg(required = true, value_name = "NAME")]
    names: Vec<WorkspaceName>,

    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,

    /// Do not ask, and kill running workspaces instead of shutting them down
    #[arg(short, long)]
    force: bool,
}

/// Deletes all that can be deleted; the first failure is reported after that.
pub(crate) fn execute(context: &Context, args: DeleteArgs) -> Result<(), Failure> {
    let engine = context.engine();
    let Some(mode) = mode(&engine, &args)? else {
        return print_text("Nothing was deleted.\n");
    };
    let mut done = Vec::new();
    let mut failures = Vec::new();
    let mut units = Vec::new();
    context.block_on(async |token| {
        for name in args.names {
            let workspace = engine.workspace(&name);
            // The first signal ends the waiting, not what was asked of a supervisor.
            let deleted = tokio::select! {
                deleted = workspace.delete(mode) => deleted,
                () = token.cancelled() => return Err(Error::Cancelled.into()),
            };
            match deleted {
                Ok(deletion) => {
                    units.extend(remove_unit_of(context.state_dir(), &name));
                    done.push(DeletedWorkspace {
                        workspace: name,
                        deleted: deletion.deleted,
                        stopped: deletion.ended && mode == DeleteMode::Stop,
                        killed: deletion.ended && mode == DeleteMode::Kill,
                    });
                }
                Err(error) => failures.push(error),
            }
        }
        Ok(())
    })?;
    let progress = context.progress(true);
    for unit in units {
        progress.note(&format!("removed its unit of systemd, {}", unit.display()));
    }
    match context.format {
        Format::Json => print_json(&DeleteDocument { workspaces: done })?,
        Format::Text => print_text(&done.iter().map(line).collect::<String>())?,
    }
    let more = failures.len().saturating_sub(1);
    match failures.into_iter().next() {
        None => Ok(()),
        Some(error) if mode == DeleteMode::Stop && could_be_killed(&error) => Err(Failure::Other {
            message: format!("{}{}", chain(&error), and_more(more)),
            hint: Some("microagent delete --force kills it first".to_owned()),
        }),
        Some(error) => Err(error.into()),
    }
}

/// How far to go; `None` when the user said no.
fn mode(engine: &Engine, args: &DeleteArgs) -> Result<Option<DeleteMode>, Failure> {
    if args.force {
        return Ok(Some(DeleteMode::Kill));
    }
    if args.yes {
        return Ok(Some(DeleteMode::Stop));
    }
    let live = live_ones(engine, &args.names)?;
    let hint = "add --yes, or --force to kill running workspaces";
    if !confirmed(&question(&args.names, &live), "deleting", hint)? {
        return Ok(None);
    }
    Ok(Some(if live.is_empty() { DeleteMode::Resting } else { DeleteMode::Stop }))
}

/// Which of them run; asking about one that does not exist makes no sense.
fn live_ones(engine: &Engine, names: &[WorkspaceName]) -> Result<Vec<WorkspaceName>, Failure> {
    let mut live = Vec::new();
    for name in names {
        match engine.workspace(name).state() {
            Ok(state) if state.is_live() => live.push(name.clone()),
            // A damaged one can be deleted, too.
            Ok(_) | Err(Error::Record(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(live)
}

fn question(names: &[WorkspaceName], live: &[WorkspaceName]) -> String {
    let what = join(names);
    match live {
        [] => format!("Delete {what}?"),
        live => format!("{} is {}. Stop and delete {what}?", join(live), State::Running),
    }
}

fn join(names: &[WorkspaceName]) -> String {
    names.iter().map(WorkspaceName::as_str).collect::<Vec<_>>().join(", ")
}

fn line(deleted: &DeletedWorkspace) -> String {
    match deleted {
        DeletedWorkspace { workspace, deleted: false, .. } => format!("Nothing to delete: {workspace}\n"),
        DeletedWorkspace { workspace, stopped: true, .. } => format!("Stopped and deleted: {workspace}\n"),
        DeletedWorkspace { workspace, killed: true, .. } => format!("Killed and deleted: {workspace}\n"),
        DeletedWorkspace { workspace, .. } => format!("Deleted: {workspace}\n"),
    }
}

/// Whether it is the machine that stands in the way.
fn could_be_killed(error: &Error) -> bool {
    matches!(error, Error::WrongState { .. } | Error::ChangeFailed { .. } | Error::Unreachable { .. })
}

fn and_more(more: usize) -> String {
    if more == 0 { String::new() } else { format!(" (and {more} more failed)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_says_what_will_happen() {
        let names: Vec<WorkspaceName> = ["a", "b"].map(|name| name.parse().unwrap()).to_vec();
        assert_eq!(question(&names, &[]), "Delete a, b?");
        assert_eq!(question(&names, &names[1..]), "b is running. Stop and delete a, b?");
    }
}
