//! `microagent logs`: what the guest's console showed.

use std::io::Write;

use clap::Args;
use jiff::Timestamp;
use microagent::spec::value::duration;
use microagent::{LogOptions, WorkspaceName};

use crate::console_log::{self, NamedLines, name_width};
use crate::context::Context;
use crate::documents::logs::LogsDocument;
use crate::documents::output::json_bytes;
use crate::failure::Failure;
use crate::output::{Format, finish, print_json, stdout};
use crate::several::each;
use crate::stream::print_line;

const EXAMPLES: &str = "\
Examples:
  Show why a run failed:
    microagent logs run-1781167843059951259

  Show the last lines and follow:
    microagent logs web --tail 20 -f

  Follow two at once:
    microagent logs -f web api

  Show the last ten minutes:
    microagent logs web --since 10m";

/// Show the console logs of workspaces
///
/// Prints the guest's console since the last start, oldest first: kernel messages, and the output of setup and command,
/// byte for byte. The log is bounded; its oldest part is removed first. With several workspaces each line begins with the
/// name of its workspace.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct LogsArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,

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
    match args.names.as_slice() {
        [name] if args.follow => console_log::follow(context, name, options),
        names if args.follow => console_log::follow_several(context, names, options),
        names => {
            let widest = name_width(names);
            each(context, names, |name| show(context, &args, name, (names.len() > 1).then_some(widest)))
        }
    }
}

/// Prints one log; with a width the name of that width before each line.
fn show(
    context: &Context,
    args: &LogsArgs,
    name: &WorkspaceName,
    width: Option<usize>,
) -> Result<(), Failure> {
    let mut options = LogOptions::new();
    (options.since, options.tail) = (args.since, args.tail);
    let bytes = context.call(context.engine().workspace(name).logs(options))?;
    match context.format {
        Format::Json if context.streams() => print_line(&console_log::log_line(bytes)),
        Format::Json => {
            let (logs, logs_encoding) = json_bytes(bytes);
            print_json(&LogsDocument { workspace: name.clone(), logs, logs_encoding })
        }
        Format::Text => {
            if bytes.is_empty() && args.since.is_none() {
                context.progress(true).note(&match width {
                    None => "the guest has printed nothing".to_owned(),
                    Some(_) => format!("the guest of {name} has printed nothing"),
                });
            }
            let mut out = stdout();
            match width {
                None => out.write_all(&bytes)?,
                Some(width) => {
                    let mut lines = NamedLines::new(name, width);
                    out.write_all(&lines.add(&bytes))?;
                    out.write_all(&lines.end())?;
                }
            }
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
