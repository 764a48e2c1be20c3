//! `microagent logs`: what the guest's console showed.

use std::io::Write;

use clap::Args;
use jiff::Timestamp;
use microagent::spec::value::duration;
use microagent::{LogOptions, WorkspaceName};

use crate::console_log;
use crate::context::Context;
use crate::documents::logs::LogsDocument;
use crate::documents::output::json_bytes;
use crate::failure::Failure;
use crate::output::{Format, finish, print_json, stdout};
use crate::stream::print_line;

const EXAMPLES: &str = "\
Examples:
  Show why a run failed:
    microagent logs run-1781167843059951259

  Show the last lines and follow:
    microagent logs web --tail 20 -f

  Show the last ten minutes:
    microagent logs web --since 10m";

/// Show the console log of a workspace
///
/// Prints the guest's console since the last start, oldest first: kernel messages, and the output of setup and command,
/// byte for byte. The log is bounded; its oldest part is removed first.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct LogsArgs {
    /// Workspace
    name: WorkspaceName,

    /// Follow: print new lines until the machine ends
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Show only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,

    /// Show only what was printed since a time (2026-11-22T10:00:00Z) or a duration before now (10m, 1h30m, or seconds)
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<Timestamp>,
}

/// A moment, or how long it is ago.
fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let ago = duration(text)
        .map_err(|_| "expected a time such as 2026-11-22T10:00:00Z or a duration such as 10m".to_owned())?;
    Ok(Timestamp::now() - ago)
}

/// Prints the log.
pub(crate) fn execute(context: &Context, args: LogsArgs) -> Result<(), Failure> {
    let mut options = LogOptions::new();
    (options.since, options.tail) = (args.since, args.tail);
    if args.follow {
        return console_log::follow(context, &args.name, options);
    }
    let bytes = context.engine().workspace(&args.name).logs(options)?;
    match context.format {
        Format::Json if context.streams() => print_line(&console_log::log_line(bytes)),
        Format::Json => {
            let (logs, logs_encoding) = json_bytes(bytes);
            print_json(&LogsDocument { workspace: args.name, logs, logs_encoding })
        }
        Format::Text => {
            if bytes.is_empty() && args.since.is_none() {
                context.progress(true).note("the guest has printed nothing");
            }
            let mut out = stdout();
            out.write_all(&bytes)?;
            finish(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_so_long_ago() {
        assert_eq!(moment("1970-01-01T00:00:10Z"), Ok(Timestamp::from_second(10).unwrap()));
        let ago = Timestamp::now().as_second() - moment("1h30m").unwrap().as_second();
        assert!((5399..5402).contains(&ago), "{ago}");
        assert!(moment("yesterday").is_err());
    }
}
