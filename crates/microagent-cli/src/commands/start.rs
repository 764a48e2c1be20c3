//! `microagent start`: boots a resting workspace.

use clap::Args;
use microagent::{Event, Observer, Profile, StartOptions, WorkspaceName};

use crate::args::values::{cpus, memory_mib};
use crate::args::workspace::profile;
use crate::context::Context;
use crate::failure::Failure;
use crate::{run_output, state_output};

const EXAMPLES: &str = "\
Examples:
  Start, use, park:
    microagent start web
    microagent exec web -- uname -r
    microagent halt web

  With more memory, this time:
    microagent start web --memory 2g

  Without a template, for instance to see the kernel's messages in the log:
    microagent start web --cold && microagent logs web";

/// Start a workspace
///
/// Boots its disk and returns when the guest answers and its service, if it has one, runs. The machine then goes on
/// by itself. A workspace that is prepared, halted, stopped or failed can be started. A size given here holds until the
/// machine ends; `microagent status` and `ps` show it meanwhile.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct StartArgs {
    /// Workspace
    name: WorkspaceName,

    /// Take memory and CPUs of this profile, for this start only
    #[arg(long, value_name = "NAME", value_parser = profile)]
    profile: Option<Profile>,

    /// Memory in MiB, or with a unit such as 512m or 2g, for this start only
    #[arg(short, long, value_name = "MIB", value_parser = memory_mib)]
    memory: Option<u32>,

    /// Virtual CPUs, for this start only
    #[arg(long, value_name = "N", value_parser = cpus)]
    cpus: Option<u32>,

    /// Boot the kernel instead of starting from a template, and make none
    #[arg(long)]
    cold: bool,

    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Starts.
pub(crate) fn execute(context: &Context, args: StartArgs) -> Result<(), Failure> {
    let engine = context.engine_for_run(None, args.cold);
    let progress = context.progress(args.quiet);
    // The ports are in the answer.
    let observer = |event| {
        if !matches!(event, Event::Published(_)) {
            progress.event(event);
        }
    };
    let options = StartOptions { profile: args.profile, memory_mib: args.memory, cpu_count: args.cpus };
    let started =
        context.block_on(async |token| Ok(engine.start_with(&args.name, &options, &observer, &token).await));
    progress.end();
    match started? {
        Ok(started) => state_output::print(context, started.details),
        Err(error) => Err(run_output::failed(context, error)?),
    }
}
