//! `microagent jobs`: the jobs of a workspace.

use clap::Args;
use microagent::WorkspaceName;

use crate::args::listing::{Entries, ListingArgs};
use crate::context::Context;
use crate::documents::job::{JobDocument, JobListDocument};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::table::table;

const EXAMPLES: &str = "\
Examples:
  List the jobs of a workspace:
    microagent jobs web

  Kill all that run:
    microagent jobs web -q --filter state=running | xargs -r -n 1 microagent job kill web";

/// List the jobs of a workspace
///
/// A job is a command that `microagent exec --detach` started. Shows those that run and those that have ended, oldest
/// first. Works in any state of the workspace, and changes nothing. 64 jobs are kept: a new one replaces the oldest one
/// that has ended.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct JobsArgs {
    /// Workspace
    name: WorkspaceName,

    #[command(flatten)]
    listing: ListingArgs,
}

/// Lists them.
pub(crate) fn execute(context: &Context, args: JobsArgs) -> Result<(), Failure> {
    let jobs = context.engine().workspace(&args.name).jobs()?;
    let mut jobs: Vec<_> = jobs.into_iter().map(|job| JobDocument::new(&args.name, job)).collect();
    let values = jobs.iter().map(|job| serde_json::json!(job));
    let entries = Entries::new(values, &[("id", "job"), ("status", "state")], "job");
    let selected = args.listing.select(&entries)?;
    if args.listing.is_custom() && context.format == Format::Text {
        return print_text(&args.listing.lines(&entries, &selected)?);
    }
    let mut index = 0..;
    jobs.retain(|_| index.next().is_some_and(|index| selected.contains(&index)));
    match context.format {
        Format::Json => print_json(&JobListDocument { workspace: args.name, jobs }),
        Format::Text => print_text(&listing(&jobs)),
    }
}

fn listing(jobs: &[JobDocument]) -> String {
    if jobs.is_empty() {
        return "No jobs.\n".to_owned();
    }
    let row = |job: &JobDocument| {
        let exit_code = job.exit_code.map(|code| code.to_string()).unwrap_or_default();
        [
            job.job.to_string(),
            job.state.to_string(),
            exit_code,
            format!("{:.0}", job.started_at),
            job.command.clone(),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    table([("JOB", 5), ("STATE", 13), ("EXIT", 4), ("STARTED", 20), ("COMMAND", 0)], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_has_the_documented_columns() {
        let ended = JobDocument {
            workspace: "web".parse().unwrap(),
            job: "1".parse().unwrap(),
            state: microagent::JobState::Exited,
            command: "make\ntest".to_owned(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            ended_at: None,
            exit_code: Some(2),
            signal: None,
            stdin: false,
            printed_bytes: None,
            out_of_memory: None,
            disk_full: None,
        };
        let running = JobDocument { state: microagent::JobState::Running, exit_code: None, ..ended.clone() };
        assert_eq!(
            listing(&[ended, running]),
            "\
JOB   STATE         EXIT STARTED              COMMAND
1     exited        2    1970-01-01T00:00:00Z make\\ntest
1     running       -    1970-01-01T00:00:00Z make\\ntest
"
        );
        assert_eq!(listing(&[]), "No jobs.\n");
    }
}
