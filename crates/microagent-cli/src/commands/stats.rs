//! `microagent stats`: what a running workspace uses.

use clap::Args;
use microagent::{Error, Stats, WorkspaceName};

use crate::context::Context;
use crate::documents::stats::StatsDocument;
use crate::documents::stream::StreamLine;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::stream::print_line;
use crate::writer;

/// Bytes in a MiB.
const MIB: u64 = 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  Show what it uses now:
    microagent stats web

  Repeat until the machine ends:
    microagent stats web -f";

/// Show the CPU time, memory and I/O of a running workspace
///
/// CPU time over a quarter of a second, resident memory, and bytes read and written since the start. Machines that were
/// restored from one template share part of their memory.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct StatsArgs {
    /// Workspace
    name: WorkspaceName,

    /// Repeat until the machine ends
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// Shows.
pub(crate) fn execute(context: &Context, args: StatsArgs) -> Result<(), Failure> {
    if args.follow && context.format == Format::Json && !context.streams() {
        return Err(Failure::followed_as_json());
    }
    let workspace = context.engine().workspace(&args.name);
    context.block_on(async |token| {
        if args.follow {
            let mut stats = workspace.follow_stats().await?;
            if context.streams() {
                let line = |stats| StreamLine::Stats(StatsDocument::from(stats));
                return writer::pass_on_lines(&mut stats, line, &token).await;
            }
            return writer::pass_on(&mut stats, |stats| line(&stats).into_bytes(), &token).await;
        }
        let stats = tokio::select! {
            stats = workspace.stats() => stats?,
            () = token.cancelled() => return Err(Error::Cancelled.into()),
        };
        match context.format {
            Format::Json if context.streams() => print_line(&StreamLine::Stats(StatsDocument::from(stats))),
            Format::Json => print_json(&StatsDocument::from(stats)),
            Format::Text => print_text(&line(&stats)),
        }
    })
}

fn line(stats: &Stats) -> String {
    format!(
        "pid={} cpu={:.1}% mem={} MiB io_read={} MiB io_write={} MiB\n",
        stats.pid,
        stats.cpu_percent,
        stats.memory_bytes / MIB,
        stats.io_read_bytes / MIB,
        stats.io_write_bytes / MIB,
    )
}
