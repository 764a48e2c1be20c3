//! A machine whose work is done and whose disk is being flushed.

use microagent_model::FailureKind;

use super::{Effect, Event, MachineTraits, Next, Phase, fail};
use crate::spec::Outcome;

/// Handles events while the disk is being flushed; the outcome of the work is known.
pub(super) fn while_stopping(outcome: Outcome, event: Event, traits: MachineTraits) -> Next {
    use Event as E;
    let not_flushed = |message: String| {
        let message = match outcome {
            Outcome::Halted | Outcome::Stopped | Outcome::Failed(_) => {
                format!("it did not shut down cleanly: {message}")
            }
            _ => format!("the command ended, but its disk was not flushed: {message}"),
        };
        fail(FailureKind::GuestDied, message)
    };
    match event {
        E::Flushed => (Phase::Ended(outcome), vec![Effect::Quit]),
        E::FlushFailed(message) => not_flushed(message),
        E::MachineGone(exit) => not_flushed(exit.to_string()),
        E::HostFull(message) => fail(FailureKind::HostFull, message),
        // A caller that does not wait for an end that a client requested; the flush has a deadline of its own.
        E::Cancelled if !traits.detached => fail(FailureKind::Cancelled, "cancelled".to_owned()),
        // The command has ended in time; only its flush is under way. What else is late changes nothing.
        _ => (Phase::Stopping(outcome), Vec::new()),
    }
}
