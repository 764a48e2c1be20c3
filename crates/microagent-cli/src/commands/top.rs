//! `microagent top`: the processes of a running workspace.

use clap::Args;
use microagent::{Error, GuestProcess, WorkspaceName};

use crate::context::Context;
use crate::documents::top::ProcessListDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};
use crate::table::table;

const EXAMPLES: &str = "\
Examples:
  Show what runs in a workspace:
    microagent top web

  Those that use most memory first:
    microagent top web --json | jq '.processes | sort_by(-.memory_bytes)[].command'";

/// Show the processes of a running workspace
///
/// The guest lists them itself: the image needs no `ps`. Numbers are those that programs in the guest see. CPU is the
/// share of one processor since the start of the process; TIME is its time on processors.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct TopArgs {
    /// Workspace
    name: WorkspaceName,
}

/// Shows.
pub(crate) fn execute(context: &Context, args: &TopArgs) -> Result<(), Failure> {
    let workspace = context.engine().workspace(&args.name);
    let list = context.block_on(async |token| {
        tokio::select! {
            list = workspace.processes() => Ok(list?),
            () = token.cancelled() => Err(Error::Cancelled.into()),
        }
    })?;
    match context.format {
        Format::Json => print_json(&ProcessListDocument::from(list)),
        Format::Text => {
            let rows: Vec<_> = list.processes.iter().map(row).collect();
            let columns = [("PID", 7), ("USER", 10), ("CPU", 7), ("TIME", 9), ("MEMORY", 12), ("COMMAND", 0)];
            print_text(&table(columns, &rows))
        }
    }
}

fn row(process: &GuestProcess) -> [String; 6] {
    [
        process.pid.to_string(),
        process.user.clone(),
        format!("{:.1}%", process.cpu_percent()),
        time(process.cpu_time.as_secs()),
        size(process.memory_bytes),
        process.command.join(" "),
    ]
}

/// As `ps` shows it: hours, minutes and seconds.
fn time(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_hours_as_many_as_there_are() {
        assert_eq!([0, 61, 3599, 500_000].map(time), ["00:00:00", "00:01:01", "00:59:59", "138:53:20"]);
    }
}
