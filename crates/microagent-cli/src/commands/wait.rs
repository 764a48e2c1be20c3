//! `microagent wait`: until workspaces rest.

use std::time::{Duration, Instant};

use clap::Args;
use microagent::spec::value::duration;
use microagent::{HealthState, State, WorkspaceName};
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

  Wait until a service answers, at most a minute:
    microagent wait --healthy --timeout 1m web";

/// Wait until the machines of workspaces have ended
///
/// Exits with 0 if each workspace is then prepared, halted or stopped (with --healthy: healthy), with 1 if one failed or the
/// time limit is reached.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct WaitArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,

    /// Wait until they are healthy instead; one that becomes unhealthy, or has no machine any more, is a failure
    #[arg(long)]
    healthy: bool,

    /// Give up after this time: seconds, or with units such as 1m30s
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    timeout: Option<Duration>,
}

/// Waits for one after the other, all within the time.
pub(crate) fn execute(context: &Context, args: &WaitArgs) -> Result<(), Failure> {
    let end = args.timeout.map(|limit| (Instant::now() + limit, limit));
    each(context, &args.names, |name| {
        let (state, health) = wait(context, name, args.healthy, end)?;
        let ok = match args.healthy {
            true => health == Some(HealthState::Healthy),
            false => !matches!(state, State::Failed | State::Quarantined),
        };
        let health_line = health.map_or_else(String::new, |health| format!("Health: {health}\n"));
        match context.format {
            Format::Json => print_json(&WaitDocument { workspace: name.clone(), state, health, ok })?,
            Format::Text => print_text(&format!("Workspace: {name}\nState: {state}\n{health_line}"))?,
        }
        if ok { Ok(()) } else { Err(not_ok(name, state, health)) }
    })
}

/// Why the wait was in vain.
fn not_ok(name: &WorkspaceName, state: State, health: Option<HealthState>) -> Failure {
    let (what, hint) = match (state, health) {
        (State::Failed, _) => ("has failed".to_owned(), format!("microagent status {name} shows why")),
        (_, Some(health)) => {
            (format!("is {health}"), format!("microagent status {name} shows what its checks printed"))
        }
        (state, None) => {
            (format!("is {state}"), format!("microagent events {name} shows what happened to it"))
        }
    };
    Failure::Other { message: format!("workspace `{name}` {what}"), hint: Some(hint) }
}

fn wait(
    context: &Context,
    name: &WorkspaceName,
    healthy: bool,
    end: Option<(Instant, Duration)>,
) -> Result<(State, Option<HealthState>), Failure> {
    let workspace = context.engine().workspace(name);
    context.block_on(async |token| {
        let work = microagent::Progress::new().cancel(token);
        let rests = async {
            match healthy {
                true => workspace.wait_healthy(&work).await,
                false => workspace.wait(&work).await.map(|details| (details.state, None)),
            }
        };
        let not_yet = if healthy { "is not healthy" } else { "still has a machine" };
        let waited = match end {
            None => Ok(rests.await),
            Some((end, limit)) => timeout_at(end.into(), rests).await.map_err(|_| limit),
        };
        match waited {
            Ok(waited) => Ok(waited?),
            Err(limit) => Err(Failure::Other {
                message: format!(
                    "the time limit of {} s was reached; workspace `{name}` {not_yet}",
                    limit.as_secs()
                ),
                hint: Some(format!("show its state: microagent status {name}")),
            }),
        }
    })
}
