//! A machine that was cut off and stopped for good. It can be captured, which runs none of its instructions.

use microagent_model::{FailureKind, WorkspaceFailure};

use super::{ChangeRequest, ClientId, Event, Lifecycle, MachineTraits, Next, Phase, end};
use crate::control::Answer;
use crate::lifecycle::Effect;
use crate::spec::Outcome;

impl Lifecycle {
    pub(super) fn in_quarantine(&mut self, phase: Phase, event: Event) -> Next {
        match (phase, event) {
            (Phase::Containing, Event::Contained(None)) => {
                (Phase::Quarantined, self.answer_all(ChangeRequest::Quarantine, &Answer::Done))
            }
            (Phase::Containing, Event::Contained(Some(reason))) => {
                let message = format!("it is cut off and paused, but that could not be recorded: {reason}");
                let answer = Answer::Failed(WorkspaceFailure { kind: FailureKind::HostFull, message });
                (Phase::Quarantined, self.answer_all(ChangeRequest::Quarantine, &answer))
            }
            // Containing it comes before keeping its memory.
            (Phase::Containing, Event::ContainFailed(message)) => {
                end(Outcome::Quarantined(memory_lost(&format!("{message}, so it was killed"))))
            }
            (Phase::Quarantined, Event::Captured(captured)) => {
                let answer =
                    captured.map_or_else(Answer::Failed, |capture| Answer::Captured(Box::new(capture)));
                (Phase::Quarantined, self.answer_capture(&answer))
            }
            (_, Event::MachineGone(exit)) => end(Outcome::Quarantined(memory_lost(&exit.to_string()))),
            (phase, _) => (phase, Vec::new()),
        }
    }

    /// Captures the guest as it stands, one client at a time.
    pub(super) fn capture_evidence(
        &mut self,
        client: ClientId,
        request: ChangeRequest,
        traits: MachineTraits,
    ) -> Next {
        if self.is_captured_for_a_client() {
            return self.refuse(Phase::Quarantined, client, traits);
        }
        self.await_change(Phase::Quarantined, client, request, vec![Effect::Capture(client)])
    }
}

/// Handles the end of a quarantined machine that was not released.
fn memory_lost(message: &str) -> WorkspaceFailure {
    WorkspaceFailure { kind: FailureKind::GuestDied, message: format!("its memory is lost: {message}") }
}
