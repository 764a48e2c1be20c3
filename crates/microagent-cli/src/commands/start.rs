//! `microagent start`: boots resting workspaces.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use microagent::{Event, Observer, Profile, SnapshotTag, StartOptions, WorkspaceName};

use crate::args::boot::BootModeArgs;
use crate::args::values::{cpus, memory_mib, ttl};
use crate::args::workspace::profile;
use crate::context::Context;
use crate::failure::Failure;
use crate::notices::Notices;
use crate::several::each;
use crate::{run_output, state_output};

const EXAMPLES: &str = "\
Examples:
  Start a workspace, use it, halt it:
    microagent start web
    microagent exec web -- uname -r
    microagent halt web

  Start all workspaces that were halted:
    microagent list -q --filter state=halted | xargs -r microagent start

  Start with more memory, and for two hours at most, this time only:
    microagent start web --memory 2g --ttl 2h

  See all messages of the guest kernel in the log:
    microagent start web --verbose-boot && microagent logs web";

/// Start workspaces
///
/// Starts each machine and returns when the guest answers and the service, if there is one, runs. The machine then runs in
/// the background. A workspace that is prepared, halted, stopped or failed can be started. A size given here applies until
/// the machine ends; `microagent status` shows it.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct StartArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,

    /// Restore this snapshot of the workspace first; with the processes of that time if the snapshot has the memory
    #[arg(long, value_name = "TAG", conflicts_with_all = ["profile", "memory", "cpus", "ttl"])]
    from_snapshot: Option<SnapshotTag>,

    /// Use memory and CPUs of this profile, for this start only
    #[arg(long, value_name = "NAME", value_parser = profile)]
    profile: Option<Profile>,

    /// Memory in MiB, or with a unit such as 512m or 2g, for this start only
    #[arg(short, long, value_name = "MIB", value_parser = memory_mib)]
    memory: Option<u32>,

    /// Virtual CPUs, for this start only
    #[arg(long, value_name = "N", value_parser = cpus)]
    cpus: Option<u32>,

    /// Time to live of this start: halt the machine after this time; seconds, or units as in 1h30m, or `none`
    #[arg(long, value_name = "SECONDS", value_parser = ttl)]
    ttl: Option<Duration>,

    #[command(flatten)]
    boot: BootModeArgs,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Starts one after the other; the first failure is reported after the last.
pub(crate) fn execute(context: &Context, args: StartArgs) -> Result<(), Failure> {
    each(context, &args.names, |name| start(context, &args, name))
}

fn start(context: &Context, args: &StartArgs, name: &WorkspaceName) -> Result<(), Failure> {
    let engine = context.engine_for_run(None, args.boot);
    let progress = context.progress(args.quiet);
    let mut options = StartOptions::new();
    (options.profile, options.memory_mib, options.cpu_count) = (args.profile, args.memory, args.cpus);
    options.ttl = args.ttl;
    let workspace = engine.workspace(name);
    let notices = Arc::new(Notices::default());
    let started = context.block_on(async |token| {
        let (shown, notices) = (Arc::clone(&progress), Arc::clone(&notices));
        // The ports are in the answer.
        let work = microagent::Progress::new().cancel(token).observer(move |event: Event| {
            notices.take(&event);
            if !matches!(event, Event::Published(_)) {
                shown.event(event);
            }
        });
        Ok(match &args.from_snapshot {
            Some(tag) => workspace.snapshots().start(tag, &work).await,
            None => workspace.start(options, &work).await,
        })
    });
    progress.end();
    match started? {
        Ok(details) => state_output::print_started(context, details, notices.taken()),
        Err(error) => Err(run_output::failed(context, error)?),
    }
}
