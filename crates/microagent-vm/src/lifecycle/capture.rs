//! The end of a capture: the guest is what it was before, and requests that came meanwhile are handled.

use microagent_model::WorkspaceFailure;

use super::{ChangeRequest, ClientId, Effect, Lifecycle, MachineTraits, Next, Phase};
use crate::control::{Answer, Capture};

/// Whether a request is one for a capture, or comes while one is under way. A kill does not wait.
pub(super) fn concerns(phase: &Phase, request: ChangeRequest) -> bool {
    let is_capture = matches!(request, ChangeRequest::Capture { .. });
    is_capture || (matches!(phase, Phase::Capturing { .. }) && request != ChangeRequest::Kill)
}

impl Lifecycle {
    /// Begins a capture, or has a request wait for the end of one.
    pub(super) fn capture_requested(
        &mut self,
        phase: Phase,
        client: ClientId,
        request: ChangeRequest,
        traits: MachineTraits,
    ) -> Next {
        match phase {
            phase @ Phase::Capturing { .. } => self.wait_for_capture(phase, client, request),
            phase @ (Phase::Running | Phase::Paused) if self.serving => {
                let next = Phase::Capturing { paused: matches!(phase, Phase::Paused) };
                self.await_change(next, client, request, vec![Effect::Capture(client)])
            }
            Phase::Quarantined => self.capture_evidence(client, request, traits),
            phase @ Phase::Ended(_) => self.await_change(phase, client, request, Vec::new()),
            phase => self.refuse(phase, client, traits),
        }
    }

    pub(super) fn captured(
        &mut self,
        paused: bool,
        captured: Result<Capture, WorkspaceFailure>,
        traits: MachineTraits,
    ) -> Next {
        let mut phase = if paused { Phase::Paused } else { Phase::Running };
        let mut effects = Vec::new();
        if captured.is_err() && !paused {
            // Whatever became of the capture, the guest must not end up stopped while it counts as running.
            effects.push(Effect::Resume);
        }
        let answer = captured.map_or_else(Answer::Failed, |capture| Answer::Captured(Box::new(capture)));
        effects.extend(self.answer_capture(&answer));
        for (client, request) in self.take_waiting() {
            let (next, more) = match concerns(&phase, request) {
                true => self.capture_requested(phase, client, request, traits),
                false => self.requested(phase, client, request, traits),
            };
            phase = next;
            effects.extend(more);
        }
        (phase, effects)
    }

    /// The guest is the copy of a captured one. If that was restarting, the copy restarts.
    pub fn continue_copy(&mut self) {
        self.copied = true;
    }

    /// The machine is to boot again.
    pub(super) fn restarted(&mut self) -> Next {
        (self.serving, self.copied) = (false, false);
        let waiting = self.interrupt_waiting("the guest restarted meanwhile");
        let interrupted = self.interrupt("the guest restarted meanwhile");
        (Phase::Starting, [waiting, interrupted, vec![Effect::Publish, Effect::Reboot]].concat())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use microagent_model::FailureKind;

    use super::*;
    use crate::lifecycle::Event;
    use crate::template::MachineShape;

    const WORKSPACE: MachineTraits =
        MachineTraits { keep: true, serves: true, service: true, detached: true };
    const CAPTURE: ChangeRequest = ChangeRequest::Capture { memory: true, copies: false };

    pub(in crate::lifecycle) fn capture() -> Capture {
        Capture { shape: MachineShape::default(), token: None, standstill_us: 0 }
    }

    pub(in crate::lifecycle) fn failure() -> WorkspaceFailure {
        WorkspaceFailure { kind: FailureKind::Protocol, message: "x".to_owned() }
    }

    /// A machine that is being captured for client 1.
    fn capturing(paused: bool) -> Lifecycle {
        let mut lifecycle = Lifecycle::default();
        lifecycle.step(Event::AgentReady, WORKSPACE);
        lifecycle.step(Event::Serving, WORKSPACE);
        if paused {
            lifecycle.enter(Phase::Paused);
        }
        let effects = lifecycle.step(Event::ChangeRequested(ClientId(1), CAPTURE), WORKSPACE);
        assert!(matches!(effects[..], [Effect::Capture(ClientId(1))]), "{effects:?}");
        lifecycle
    }

    #[test]
    fn a_captured_guest_is_what_it_was() {
        for paused in [false, true] {
            let mut lifecycle = capturing(paused);
            let effects = lifecycle.step(Event::Captured(Ok(capture())), WORKSPACE);
            assert!(matches!(effects[..], [Effect::Answer(ClientId(1), Answer::Captured(_))]), "{effects:?}");
            assert_eq!(matches!(lifecycle.phase(), Phase::Paused), paused);
        }
    }

    #[test]
    fn a_guest_that_was_not_captured_continues() {
        let mut lifecycle = capturing(false);
        let effects = lifecycle.step(Event::Captured(Err(failure())), WORKSPACE);
        assert!(
            matches!(effects[..], [Effect::Resume, Effect::Answer(ClientId(1), Answer::Failed(_))]),
            "{effects:?}"
        );
        let effects = capturing(true).step(Event::Captured(Err(failure())), WORKSPACE);
        assert!(matches!(effects[..], [Effect::Answer(..)]), "{effects:?}");
    }

    #[test]
    fn requests_wait_for_the_end_of_a_capture_and_a_kill_does_not() {
        use ChangeRequest as R;
        for request in [R::Halt, R::Stop, R::Pause, R::Quarantine, CAPTURE] {
            let mut lifecycle = capturing(false);
            let effects = lifecycle.step(Event::ChangeRequested(ClientId(2), request), WORKSPACE);
            assert!(effects.is_empty(), "{effects:?}");
            let effects = lifecycle.step(Event::Captured(Ok(capture())), WORKSPACE);
            assert!(
                effects.len() > 1 && !matches!(lifecycle.phase(), Phase::Running),
                "{request:?}: {effects:?}"
            );
        }
        let mut lifecycle = capturing(false);
        lifecycle.step(Event::ChangeRequested(ClientId(2), R::Kill), WORKSPACE);
        assert!(matches!(lifecycle.phase(), Phase::Ended(_)));
    }

    #[test]
    fn a_machine_that_ends_meanwhile_answers_everybody() {
        use crate::lifecycle::MachineExit;
        let mut lifecycle = capturing(false);
        lifecycle.step(Event::ChangeRequested(ClientId(2), ChangeRequest::Halt), WORKSPACE);
        lifecycle.step(Event::MachineGone(MachineExit::PoweredOff), WORKSPACE);
        assert_eq!(lifecycle.last_answers(&crate::spec::Outcome::PoweredOff).len(), 2);

        let mut lifecycle = capturing(false);
        lifecycle.step(Event::ChangeRequested(ClientId(2), ChangeRequest::Halt), WORKSPACE);
        let effects = lifecycle.step(Event::MachineGone(MachineExit::Rebooted), WORKSPACE);
        let answers = effects.iter().filter(|effect| matches!(effect, Effect::Answer(..))).count();
        assert_eq!(answers, 2, "{effects:?}");
        assert!(lifecycle.step(Event::Captured(Ok(capture())), WORKSPACE).is_empty());
    }
}
