//! `microagent stats`: what running workspaces use.

use std::io;
use std::time::Duration;

use clap::Args;
use microagent::{CancellationToken, Engine, Error, OutputStream, State, Stats, WorkspaceName};
use rustix::termios::isatty;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::context::Context;
use crate::documents::stats::{StatsDocument, StatsListDocument};
use crate::documents::stream::StreamLine;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};
use crate::stream::print_line;
use crate::table::table;
use crate::writer::{self, Writer};

/// Bytes in a MiB.
const MIB: u64 = 1024 * 1024;

/// Time from one table to the next.
const INTERVAL: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  Watch all running workspaces; Ctrl-C ends it:
    microagent stats

  Print one table of two:
    microagent stats --no-stream web api

  Show what one uses now:
    microagent stats web

  Repeat until its machine ends:
    microagent stats web -f";

/// Show the CPU time, memory and I/O of running workspaces
///
/// With one name prints one line. With several names, or with none for all running workspaces, shows a table, which is
/// repeated every second on a terminal. CPU time is measured over a quarter of a second; memory is resident memory of the
/// host; bytes read and written count since the start. Machines that were restored from one template share part of their
/// memory.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct StatsArgs {
    /// Workspaces [default: all running ones]
    #[arg(value_name = "NAME")]
    names: Vec<WorkspaceName>,

    /// Repeat until no machine is left
    #[arg(short, long)]
    follow: bool,

    /// Print one table, even on a terminal
    #[arg(long, conflicts_with = "follow")]
    no_stream: bool,
}

impl StatsArgs {
    /// Whether it repeats until the user ends it.
    pub(crate) fn follows(&self, format: Format) -> bool {
        let redraws = self.names.len() != 1 && format == Format::Text && isatty(io::stdout());
        self.follow || (redraws && !self.no_stream)
    }
}

/// Shows.
pub(crate) fn execute(context: &Context, args: &StatsArgs) -> Result<(), Failure> {
    if args.follow && context.format == Format::Json && !context.streams() {
        return Err(Failure::followed_as_json());
    }
    let engine = context.engine();
    context.block_on(async |token| match args.names.as_slice() {
        [name] if args.follow => follow_one(context, &engine, name, &token).await,
        [name] => show_one(context, &engine, name, &token).await,
        names if args.follows(context.format) => follow_all(context, &engine, names, &token).await,
        names => show_all(context, &engine, names, &token).await,
    })
}

async fn show_one(
    context: &Context,
    engine: &Engine,
    name: &WorkspaceName,
    token: &CancellationToken,
) -> Result<(), Failure> {
    let workspace = engine.workspace(name);
    let stats = tokio::select! {
        stats = workspace.stats() => stats?,
        () = token.cancelled() => return Err(Error::Cancelled.into()),
    };
    match context.format {
        Format::Json if context.streams() => print_line(&StreamLine::Stats(stats.into())),
        Format::Json => print_json(&StatsDocument::from(stats)),
        Format::Text => print_text(&line(&stats)),
    }
}

async fn follow_one(
    context: &Context,
    engine: &Engine,
    name: &WorkspaceName,
    token: &CancellationToken,
) -> Result<(), Failure> {
    let mut stats = engine.workspace(name).follow_stats().await?;
    if context.streams() {
        return writer::pass_on_lines(&mut stats, |stats| StreamLine::Stats(stats.into()), token).await;
    }
    writer::pass_on(&mut stats, |stats| line(&stats).into_bytes(), token).await
}

async fn show_all(
    context: &Context,
    engine: &Engine,
    names: &[WorkspaceName],
    token: &CancellationToken,
) -> Result<(), Failure> {
    let stats = tokio::select! {
        stats = measure(engine, names, Missing::IsAnError) => stats?,
        () = token.cancelled() => return Err(Error::Cancelled.into()),
    };
    match context.format {
        Format::Json if context.streams() => {
            stats.into_iter().try_for_each(|stats| print_line(&StreamLine::Stats(stats.into())))
        }
        Format::Json => {
            print_json(&StatsListDocument { workspaces: stats.into_iter().map(Into::into).collect() })
        }
        Format::Text => print_text(&stats_table(&stats)),
    }
}

async fn follow_all(
    context: &Context,
    engine: &Engine,
    names: &[WorkspaceName],
    token: &CancellationToken,
) -> Result<(), Failure> {
    let mut writer = Writer::start()?;
    let redraws = context.format == Format::Text && isatty(io::stdout());
    let following = async {
        let mut missing = Missing::IsAnError;
        loop {
            let next = Instant::now() + INTERVAL;
            let stats = measure(engine, names, missing).await?;
            missing = Missing::IsLeftOut;
            let ended = stats.is_empty() && !names.is_empty();
            if ended {
                return writer.finish().await;
            }
            let shown = match context.format {
                Format::Json => lines_of(stats)?,
                Format::Text if redraws => redrawn(&stats_table(&stats)),
                Format::Text => stats_table(&stats).into_bytes(),
            };
            writer.write(OutputStream::Stdout, shown).await?;
            sleep_until(next).await;
        }
    };
    tokio::select! {
        followed = following => followed,
        () = token.cancelled() => Err(Error::Cancelled.into()),
    }
}

fn lines_of(stats: Vec<Stats>) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    for stats in stats {
        bytes.extend(StreamLine::Stats(stats.into()).to_bytes()?);
    }
    Ok(bytes)
}

/// What a workspace is that has been named and does not run.
#[derive(Debug, Clone, Copy)]
enum Missing {
    IsAnError,
    IsLeftOut,
}

/// Measures these workspaces, or all that run, at once; in the order of the names.
async fn measure(engine: &Engine, names: &[WorkspaceName], missing: Missing) -> Result<Vec<Stats>, Failure> {
    let (names, missing) = match names {
        [] => (running(engine).await?, Missing::IsLeftOut),
        names => (names.to_vec(), missing),
    };
    let mut measuring = JoinSet::new();
    for (place, name) in names.iter().enumerate() {
        let workspace = engine.workspace(name);
        measuring.spawn(async move { (place, workspace.stats().await) });
    }
    let mut all = Vec::new();
    while let Some(measured) = measuring.join_next().await {
        match measured {
            Ok((place, Ok(stats))) => all.push((place, stats)),
            Ok((_, Err(Error::WrongState { .. } | Error::NoSuchWorkspace { .. })))
                if matches!(missing, Missing::IsLeftOut) => {}
            Ok((_, Err(error))) => return Err(error.into()),
            Err(_) => return Err(Error::Cancelled.into()),
        }
    }
    all.sort_by_key(|(place, _)| *place);
    Ok(all.into_iter().map(|(_, stats)| stats).collect())
}

async fn running(engine: &Engine) -> Result<Vec<WorkspaceName>, Failure> {
    let mut workspaces = engine.list().await?;
    workspaces.retain(|workspace| workspace.state == Some(State::Running));
    Ok(workspaces.into_iter().map(|workspace| workspace.name).collect())
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

fn stats_table(all: &[Stats]) -> String {
    let rows: Vec<_> = all.iter().map(row).collect();
    let columns = [("NAME", 24), ("CPU", 8), ("MEMORY / LIMIT", 24), ("READ / WRITTEN", 24), ("PID", 0)];
    table(columns, &rows)
}

fn row(stats: &Stats) -> [String; 5] {
    [
        stats.workspace.to_string(),
        format!("{:.1}%", stats.cpu_percent),
        format!("{} / {}", size(stats.memory_bytes), size(stats.memory_limit_bytes)),
        format!("{} / {}", size(stats.io_read_bytes), size(stats.io_write_bytes)),
        stats.pid.to_string(),
    ]
}

/// The table in place of the one before: from the upper left corner, each line and the rest of the screen cleared.
fn redrawn(table: &str) -> Vec<u8> {
    format!("\x1b[H{}\x1b[J", table.replace('\n', "\x1b[K\r\n")).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_drawn_over_the_one_before() {
        assert_eq!(redrawn("A\nb\n"), b"\x1b[HA\x1b[K\r\nb\x1b[K\r\n\x1b[J");
    }
}
