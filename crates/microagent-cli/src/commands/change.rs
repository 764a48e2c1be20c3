//! `microagent halt`, `stop`, `kill`, `pause`, `resume` and `quarantine`: a running workspace is brought to another
//! state.

use clap::Args;
use microagent::{Engine, Error, WorkspaceDetails, WorkspaceName};

use crate::context::Context;
use crate::failure::Failure;
use crate::state_output;

const HALT_EXAMPLES: &str = "\
Examples:
  Park it, and go on later with the same disk:
    microagent halt web
    microagent start web

  Everything that runs:
    microagent ps --json | jq -r '.workspaces[].name' | xargs -r -n 1 microagent halt";

const STOP_EXAMPLES: &str = "\
Examples:
  Ask it to end:
    microagent stop web

  End it in any case:
    microagent stop web || microagent kill web";

const KILL_EXAMPLES: &str = "\
Examples:
  End it now:
    microagent kill web

  See what it said before:
    microagent logs web";

const PAUSE_EXAMPLES: &str = "\
Examples:
  Have it stand still for a while:
    microagent pause web
    microagent resume web

  What is paused:
    microagent ps --json | jq -r '.workspaces[] | select(.state == \"paused\").name'";

const RESUME_EXAMPLES: &str = "\
Examples:
  Have it go on:
    microagent resume web

  Everything that is paused:
    microagent ps --json | jq -r '.workspaces[] | select(.state == \"paused\").name' |
      xargs -r -n 1 microagent resume";

const QUARANTINE_EXAMPLES: &str = "\
Examples:
  Something in it does what it should not:
    microagent quarantine web --reason 'scans its network'

  What is known, and which process holds its memory:
    microagent events web
    microagent status web

  Release it, and go on with its disk:
    microagent halt web
    microagent start web";

/// Shut a workspace down cleanly, to be started again
///
/// Ends its processes with the image's stop signal, then flushes its disk and turns the machine off. The disk stays;
/// `microagent start` boots it again. A workspace that rests already stays as it is. One that is quarantined ends without
/// going on, as by `microagent kill`.
#[derive(Debug, Args)]
#[command(after_long_help = HALT_EXAMPLES)]
pub(crate) struct HaltArgs {
    /// Workspace
    name: WorkspaceName,
}

/// Ask a workspace to shut down
///
/// A graceful request: its processes are asked to end, the disk is flushed, the machine turned off. When it does not
/// follow, that is said, and `microagent kill` ends it. The disk stays.
#[derive(Debug, Args)]
#[command(after_long_help = STOP_EXAMPLES)]
pub(crate) struct StopArgs {
    /// Workspace
    name: WorkspaceName,
}

/// End a workspace's machine now
///
/// Nothing is asked and nothing flushed, as if its power were cut. The disk stays; what the guest had not written yet
/// is lost. Works in any state, also when the workspace does not answer.
#[derive(Debug, Args)]
#[command(after_long_help = KILL_EXAMPLES)]
pub(crate) struct KillArgs {
    /// Workspace
    name: WorkspaceName,
}

/// Have a running workspace stand still
///
/// Its processors stop and its memory stays, until `microagent resume`.
#[derive(Debug, Args)]
#[command(after_long_help = PAUSE_EXAMPLES)]
pub(crate) struct PauseArgs {
    /// Workspace
    name: WorkspaceName,
}

/// Have a paused workspace go on
#[derive(Debug, Args)]
#[command(after_long_help = RESUME_EXAMPLES)]
pub(crate) struct ResumeArgs {
    /// Workspace
    name: WorkspaceName,
}

/// Cut a workspace off and stop it for good
///
/// Its network is taken away, its commands and sessions end, its processors stop: nothing of it acts any more. Memory and
/// disk stay as they are, to be examined, until `microagent halt`, `stop` or `kill` releases it, each without letting the
/// guest go on: what it had not written yet is then lost, as after a power cut. `microagent start` boots its disk again
/// after that. Nothing starts, reads, copies or deletes it before; only `delete --force` does. A machine that cannot be
/// stopped is killed; the workspace is quarantined all the same, without its memory.
#[derive(Debug, Args)]
#[command(after_long_help = QUARANTINE_EXAMPLES)]
pub(crate) struct QuarantineArgs {
    /// Workspace
    name: WorkspaceName,

    /// Why, for its events
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Accepted for those who are used to it: nothing is asked
    #[arg(short, long, hide = true)]
    yes: bool,
}

/// Halts.
pub(crate) fn halt(context: &Context, args: HaltArgs) -> Result<(), Failure> {
    change(context, async |engine| engine.halt(&args.name).await)
}

/// Stops.
pub(crate) fn stop(context: &Context, args: StopArgs) -> Result<(), Failure> {
    change(context, async |engine| engine.stop(&args.name).await)
}

/// Kills.
pub(crate) fn kill(context: &Context, args: KillArgs) -> Result<(), Failure> {
    change(context, async |engine| engine.kill(&args.name).await)
}

/// Pauses.
pub(crate) fn pause(context: &Context, args: PauseArgs) -> Result<(), Failure> {
    change(context, async |engine| engine.pause(&args.name).await)
}

/// Resumes.
pub(crate) fn resume(context: &Context, args: ResumeArgs) -> Result<(), Failure> {
    change(context, async |engine| engine.resume(&args.name).await)
}

/// Quarantines.
pub(crate) fn quarantine(context: &Context, args: QuarantineArgs) -> Result<(), Failure> {
    change(context, async |engine| engine.quarantine(&args.name, args.reason.as_deref()).await)
}

fn change(
    context: &Context,
    change: impl AsyncFnOnce(Engine) -> Result<WorkspaceDetails, Error>,
) -> Result<(), Failure> {
    let engine = context.engine();
    let details = context.block_on(async |token| {
        tokio::select! {
            changed = change(engine) => Ok(changed?),
            // What was asked for goes on; only nobody waits for it any more.
            () = token.cancelled() => Err(Error::Cancelled.into()),
        }
    })?;
    state_output::print(context, details)
}
