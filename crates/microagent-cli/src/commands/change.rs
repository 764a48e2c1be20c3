//! `microagent halt`, `stop`, `kill`, `pause`, `resume` and `quarantine`: a running workspace is brought to another
//! state.

use clap::Args;
use microagent::snapshot::SnapshotContents;
use microagent::{Error, Workspace, WorkspaceDetails, WorkspaceName};

use crate::args::stop_timeout::StopTimeout;
use crate::context::Context;
use crate::failure::Failure;
use crate::several::each;
use crate::state_output;

const HALT_EXAMPLES: &str = "\
Examples:
  Halt a workspace and start it again later with the same disk:
    microagent halt web
    microagent start web

  Halt all running workspaces:
    microagent ps -q | xargs -r microagent halt";

const STOP_EXAMPLES: &str = "\
Examples:
  Ask a workspace to shut down:
    microagent stop web

  Force it if it does not shut down in time:
    microagent stop web || microagent kill web

  Give its service a minute:
    microagent stop -t 60 web";

const KILL_EXAMPLES: &str = "\
Examples:
  End a machine at once:
    microagent kill web

  See what it printed before:
    microagent logs web";

const PAUSE_EXAMPLES: &str = "\
Examples:
  Pause a workspace for a while:
    microagent pause web
    microagent resume web

  List the paused workspaces:
    microagent ps --filter state=paused";

const RESUME_EXAMPLES: &str = "\
Examples:
  Resume a workspace:
    microagent resume web

  Resume all paused workspaces:
    microagent ps -q --filter state=paused | xargs -r microagent resume";

const QUARANTINE_EXAMPLES: &str = "\
Examples:
  Isolate a workspace that misbehaves:
    microagent quarantine web --reason 'scans its network'

  See what was recorded, and which process holds its memory:
    microagent events web
    microagent status web

  Release it and start it again with its disk:
    microagent halt web
    microagent start web";

/// Shut a workspace down cleanly and keep its disk
///
/// Ends its processes with the image's stop signal, and kills those that are left after 10 seconds or the time of --timeout
/// or `--stop-timeout`. Then flushes its disk and turns the machine off. The disk stays;
/// `microagent start` boots it again. Does nothing if the workspace has no machine. A quarantined machine is not resumed:
/// it ends as with `microagent kill`.
#[derive(Debug, Args)]
#[command(after_long_help = HALT_EXAMPLES)]
pub(crate) struct HaltArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,

    #[command(flatten)]
    timeout: StopTimeout,
}

/// Ask a workspace to shut down
///
/// Sends the stop signal to its processes, then flushes the disk and ends the machine. If its service does not end within
/// 10 seconds, or the time of --timeout or `--stop-timeout`, this command fails and the machine keeps running; use
/// `microagent kill`. The disk stays.
#[derive(Debug, Args)]
#[command(after_long_help = STOP_EXAMPLES)]
pub(crate) struct StopArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,

    #[command(flatten)]
    timeout: StopTimeout,
}

/// End a workspace's machine now
///
/// The guest gets no signal and flushes nothing, as after a power cut. The disk stays; data that the guest had not yet
/// written to it is lost. Works in any state, even if the workspace does not answer.
#[derive(Debug, Args)]
#[command(after_long_help = KILL_EXAMPLES)]
pub(crate) struct KillArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,
}

/// Pause a running workspace
///
/// Its CPUs stop; its memory is kept. `microagent resume` resumes it.
#[derive(Debug, Args)]
#[command(after_long_help = PAUSE_EXAMPLES)]
pub(crate) struct PauseArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,
}

/// Resume a paused workspace
#[derive(Debug, Args)]
#[command(after_long_help = RESUME_EXAMPLES)]
pub(crate) struct ResumeArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,
}

/// Isolate a workspace and stop its CPUs for good
///
/// Disconnects its network, ends its commands and sessions and stops its CPUs. Memory and disk are kept for examination
/// until `microagent halt`, `stop` or `kill` releases the workspace. Each of these ends the machine without resuming the
/// guest, so data that it had not yet written is lost, as after a power cut; `microagent start` then boots its disk again.
/// Until then the workspace cannot be started, read, copied or deleted, except with `delete --force`. If the CPUs cannot
/// be stopped, the machine is killed; the workspace is still quarantined, without its memory.
#[derive(Debug, Args)]
#[command(after_long_help = QUARANTINE_EXAMPLES)]
pub(crate) struct QuarantineArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,

    /// Reason to record in the workspace's events
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Also write memory and disk to a snapshot that is kept as evidence, and that nothing starts, restores or exports
    #[arg(long)]
    capture: bool,

    /// Accepted and ignored: this command never asks
    #[arg(short, long, hide = true)]
    yes: bool,
}

/// Halts.
pub(crate) fn halt(context: &Context, args: HaltArgs) -> Result<(), Failure> {
    change(context, &args.names, async |workspace| args.timeout.halt(&workspace).await)
}

/// Stops.
pub(crate) fn stop(context: &Context, args: StopArgs) -> Result<(), Failure> {
    change(context, &args.names, async |workspace| args.timeout.stop(&workspace).await)
}

/// Kills.
pub(crate) fn kill(context: &Context, args: KillArgs) -> Result<(), Failure> {
    change(context, &args.names, async |workspace| workspace.kill().await)
}

/// Pauses.
pub(crate) fn pause(context: &Context, args: PauseArgs) -> Result<(), Failure> {
    change(context, &args.names, async |workspace| workspace.pause().await)
}

/// Resumes.
pub(crate) fn resume(context: &Context, args: ResumeArgs) -> Result<(), Failure> {
    change(context, &args.names, async |workspace| workspace.resume().await)
}

/// Quarantines.
pub(crate) fn quarantine(context: &Context, args: QuarantineArgs) -> Result<(), Failure> {
    change(context, &args.names, async |workspace| {
        let details = workspace.quarantine(args.reason.as_deref()).await?;
        if args.capture {
            let made = workspace.snapshots().create(None, SnapshotContents::Evidence).await?;
            context
                .progress(false)
                .note(&format!("snapshot {} has memory and disk of {}", made.tag, details.name));
        }
        Ok(details)
    })
}

/// Changes one after the other; the first failure is reported after the last.
fn change(
    context: &Context,
    names: &[WorkspaceName],
    mut change: impl AsyncFnMut(Workspace) -> Result<WorkspaceDetails, Error>,
) -> Result<(), Failure> {
    let engine = context.engine();
    each(context, names, |name| {
        let details = context.block_on(async |token| {
            tokio::select! {
                changed = change(engine.workspace(name)) => Ok(changed?),
                // The change continues; only this command stops waiting for it.
                () = token.cancelled() => Err(Error::Cancelled.into()),
            }
        })?;
        state_output::print(context, details)
    })
}
