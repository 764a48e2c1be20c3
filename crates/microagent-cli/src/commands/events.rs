//! `microagent events`: what happened to a workspace.

use clap::Args;
use microagent::{StateEvent, WorkspaceName};

use crate::context::Context;
use crate::documents::events::{EventsDocument, StateEventDocument};
use crate::documents::stream::StreamLine;
use crate::escape;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::stream::print_line;
use crate::writer;

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
    pub(crate) follow: bool,
}

/// Prints the events.
pub(crate) fn execute(context: &Context, args: EventsArgs) -> Result<(), Failure> {
    let workspace = context.engine().workspace(&args.name);
    if context.streams() {
        return context.block_on(async |token| {
            if args.follow {
                let mut events = workspace.follow_events().await?;
                return writer::pass_on_lines(&mut events, StreamLine::of_state, &token).await;
            }
            workspace
                .events()
                .await?
                .into_iter()
                .try_for_each(|event| print_line(&StreamLine::of_state(event)))
        });
    }
    match (context.format, args.follow) {
        (Format::Json, true) => Err(Failure::followed_as_json()),
        (Format::Json, false) => {
            let events =
                context.call(workspace.events())?.into_iter().map(StateEventDocument::from).collect();
            print_json(&EventsDocument { workspace: args.name, events })
        }
        (Format::Text, false) => {
            print_text(&context.call(workspace.events())?.iter().map(line).collect::<String>())
        }
        (Format::Text, true) => context.block_on(async |token| {
            let mut events = workspace.follow_events().await?;
            writer::pass_on(&mut events, |event| line(&event).into_bytes(), &token).await
        }),
    }
}

fn line(event: &StateEvent) -> String {
    let detail = escape::one_line(event.detail.as_deref().unwrap_or_default());
    let line = format!("{:.3}  {:<11}  {detail}", event.at, event.state);
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
        assert_eq!(line(&event), "2026-11-22T10:00:00.000Z  failed       its \\u{1b} service\n");
        let event = StateEvent { at, state: State::Running, detail: None };
        assert_eq!(line(&event), "2026-11-22T10:00:00.000Z  running\n");
    }
}
