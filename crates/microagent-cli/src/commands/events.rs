//! `microagent events`: what happened to a workspace.

use std::time::Duration;

use clap::Args;
use microagent::{Error, StateEvent, WorkspaceName};
use tokio::time::sleep;

use crate::context::Context;
use crate::documents::events::EventsDocument;
use crate::escape;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

/// How often events are looked for.
const INTERVAL: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  Show when it started and why it failed:
    microagent events web

  Follow changes of state until the machine ends:
    microagent events web -f";

/// Show what happened to a workspace
///
/// One line per change of state: time, state, and a reason where there is one. About the last 2000 events are kept.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct EventsArgs {
    /// Workspace
    name: WorkspaceName,

    /// Follow: print new lines until the machine ends
    #[arg(short, long)]
    follow: bool,
}

/// Prints the events.
pub(crate) fn execute(context: &Context, args: EventsArgs) -> Result<(), Failure> {
    let engine = context.engine();
    let events = engine.events(&args.name)?;
    if context.format == Format::Json {
        if args.follow {
            return Err(Failure::followed_as_json());
        }
        return print_json(&EventsDocument { workspace: args.name, events });
    }
    print_text(&events.iter().map(line).collect::<String>())?;
    if !args.follow {
        return Ok(());
    }
    context.block_on(async |token| {
        let mut last = events.last().map(|event| event.at);
        loop {
            let rests = engine.workspace(&args.name).map_or(true, |details| !details.state.is_live());
            let fresh = engine.events(&args.name).unwrap_or_default();
            for event in fresh.iter().filter(|event| last.is_none_or(|last| event.at > last)) {
                print_text(&line(event))?;
            }
            last = fresh.last().map(|event| event.at).max(last);
            if rests {
                return Ok(());
            }
            tokio::select! {
                () = token.cancelled() => return Err(Error::Cancelled.into()),
                () = sleep(INTERVAL) => {}
            }
        }
    })
}

fn line(event: &StateEvent) -> String {
    let detail = escape::one_line(event.detail.as_deref().unwrap_or_default());
    let line = format!("{}  {:<11}  {detail}", event.at, event.state);
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use microagent::State;

    use super::*;

    #[test]
    fn a_line_has_time_state_and_reason() {
        let at = "2026-11-22T10:00:00Z".parse().unwrap();
        let event = StateEvent { at, state: State::Failed, detail: Some("its \x1b service".into()) };
        assert_eq!(line(&event), "2026-11-22T10:00:00Z  failed       its \\u{1b} service\n");
        let event = StateEvent { at, state: State::Running, detail: None };
        assert_eq!(line(&event), "2026-11-22T10:00:00Z  running\n");
    }
}
