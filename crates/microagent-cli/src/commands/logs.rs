//! `microagent logs`: what the guest's console showed.

use std::io::{self, Write};

use clap::Args;
use microagent::{Error, WorkspaceName, last_lines};
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Format, finish, json_bytes, print_json, stdout};

const EXAMPLES: &str = "\
Examples:
  Why did it fail?
    microagent logs run-1781167843059951259

  The last lines, and what comes:
    microagent logs web --tail 20 -f";

/// Show the console log of a workspace
///
/// Prints what the guest's console showed during the workspace's last life, oldest first: kernel messages, and
/// what setup and command printed. The bytes are the guest's own. The log is bounded; its oldest part goes first.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct LogsArgs {
    /// Workspace
    name: WorkspaceName,

    /// Go on with what comes, until the workspace rests
    #[arg(short, long)]
    follow: bool,

    /// Only the last lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Document {
    workspace: WorkspaceName,
    logs: String,
    logs_encoding: &'static str,
}

/// Prints the log.
pub(crate) fn execute(context: &Context, args: LogsArgs) -> Result<(), Failure> {
    if args.follow {
        return follow(context, &args);
    }
    let mut bytes = context.engine().logs(&args.name)?;
    if let Some(lines) = args.tail {
        bytes = last_lines(&bytes, lines).to_vec();
    }
    match context.format {
        Format::Json => {
            let (logs, logs_encoding) = json_bytes(bytes);
            print_json(&Document { workspace: args.name, logs, logs_encoding })
        }
        Format::Text => {
            if bytes.is_empty() {
                context.progress(true).note("the guest printed nothing");
            }
            let mut out = stdout();
            out.write_all(&bytes)?;
            finish(out)
        }
    }
}

fn follow(context: &Context, args: &LogsArgs) -> Result<(), Failure> {
    if context.format == Format::Json {
        return Err(Failure::usage(
            "what is followed has no one JSON document",
            "leave --follow or --json out",
        ));
    }
    let engine = context.engine();
    let mut sink = |bytes: &[u8]| {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    };
    let followed = context
        .block_on(async |token| Ok(engine.follow_logs(&args.name, args.tail, &mut sink, &token).await))?;
    match followed {
        Err(Error::File { source, action: "write", .. }) => Err(source.into()),
        followed => Ok(followed?),
    }
}
