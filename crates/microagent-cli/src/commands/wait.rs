//! `microagent wait`: until workspaces rest.

use std::time::{Duration, Instant};

use clap::Args;
use microagent::spec::value::duration;
use microagent::{State, WorkspaceName};
use tokio::time::timeout_at;

use crate::context::Context;
use crate::documents::wait::WaitDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::several::each;

const EXAMPLES: &str = "\
Examples:
  Wait until its service has ended, at most an hour:
    microagent wait job --timeout 1h && microagent result job

  Wait until all of them have ended:
    microagent wait job-1 job-2 job-3

  Wait in the background:
    microagent wait job > job.state &";

/// Wait until the machines of workspaces have ended
///
/// Exits with 0 if each workspace is then prepared, halted or stopped, with 1 if one failed or the time limit is reached.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct WaitArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,

    /// Give up after this time: seconds, or with units such as 1m30s
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    timeout: Option<Duration>,
}

/// Waits for one after the other, all within the time; gives the exit code.
pub(crate) fn execute(context: &Context, args: &WaitArgs) -> Result<u8, Failure> {
    let end = args.timeout.map(|limit| (Instant::now() + limit, limit));
    let mut all_ok = true;
    each(context, &args.names, |name| {
        let state = wait(context, name, end)?;
        let ok = !matches!(state, State::Failed | State::Quarantined);
        all_ok &= ok;
        match context.format {
            Format::Json => print_json(&WaitDocument { workspace: name.clone(), state, ok }),
            Format::Text => print_text(&format!("Workspace: {name}\nState: {state}\n")),
        }
    })?;
    Ok(u8::from(!all_ok))
}

fn wait(context: &Context, name: &WorkspaceName, end: Option<(Instant, Duration)>) -> Result<State, Failure> {
    let workspace = context.engine().workspace(name);
    context.block_on(async |token| {
        let work = microagent::Progress::new().cancel(token);
        let rests = workspace.wait(&work);
        let waited = match end {
            None => Ok(rests.await),
            Some((end, limit)) => timeout_at(end.into(), rests).await.map_err(|_| limit),
        };
        match waited {
            Ok(details) => Ok(details?.state),
            Err(limit) => Err(Failure::Other {
                message: format!(
                    "the time limit of {} s was reached; workspace `{name}` still has a machine",
                    limit.as_secs()
                ),
                hint: Some(format!("show its state: microagent status {name}")),
            }),
        }
    })
}
