//! Who waits for a change of a machine's state, and what they are told.

use microagent_model::{FailureKind, WorkspaceFailure};

use super::{ChangeRequest, ClientId, Effect, Lifecycle, Next, Phase};
use crate::control::Answer;
use crate::spec::Outcome;

/// A client whose request is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    client: ClientId,
    request: ChangeRequest,
    /// Whether the request is handled when the capture that is under way has ended.
    waits: bool,
}

impl Lifecycle {
    /// The client has its answer when the change has come about, or the machine has ended.
    pub(super) fn await_change(
        &mut self,
        next: Phase,
        client: ClientId,
        request: ChangeRequest,
        effects: Vec<Effect>,
    ) -> Next {
        self.waiters.push(Waiter { client, request, waits: false });
        (next, effects)
    }

    /// The request is handled later, or the machine has ended by then.
    pub(super) fn wait_for_capture(
        &mut self,
        phase: Phase,
        client: ClientId,
        request: ChangeRequest,
    ) -> Next {
        self.waiters.push(Waiter { client, request, waits: true });
        (phase, Vec::new())
    }

    /// The requests that have waited for the end of a capture.
    pub(super) fn take_waiting(&mut self) -> Vec<(ClientId, ChangeRequest)> {
        let (waiting, others) = self.waiters.iter().partition::<Vec<Waiter>, _>(|waiter| waiter.waits);
        self.waiters = others;
        waiting.into_iter().map(|waiter| (waiter.client, waiter.request)).collect()
    }

    /// Answers all whose requests have waited for the end of a capture.
    pub(super) fn interrupt_waiting(&mut self, reason: &str) -> Vec<Effect> {
        self.answer_where(|waiter| waiter.waits, &cancelled(reason))
    }

    /// Answers the one whose capture has ended.
    pub(super) fn answer_capture(&mut self, answer: &Answer) -> Vec<Effect> {
        let is_its =
            |waiter: &Waiter| !waiter.waits && matches!(waiter.request, ChangeRequest::Capture { .. });
        self.answer_where(is_its, answer)
    }

    /// Whether a client waits for the end of its capture.
    pub(super) fn is_captured_for_a_client(&self) -> bool {
        let is_capture =
            |waiter: &Waiter| !waiter.waits && matches!(waiter.request, ChangeRequest::Capture { .. });
        self.waiters.iter().any(is_capture)
    }

    /// Answers all that wait for this.
    pub(super) fn answer_all(&mut self, request: ChangeRequest, answer: &Answer) -> Vec<Effect> {
        self.answer_where(|waiter| waiter.request == request, answer)
    }

    /// The service did not end: whoever stopped it is told.
    pub(super) fn service_continues(&mut self, seconds: u64) -> Vec<Effect> {
        let message = format!("its service did not end within {seconds} s");
        self.answer_all(
            ChangeRequest::Stop,
            &Answer::Failed(WorkspaceFailure { kind: FailureKind::Service, message }),
        )
    }

    /// Answers all whose change will not come about, because the machine is being shut down.
    pub(super) fn interrupt(&mut self, reason: &str) -> Vec<Effect> {
        use ChangeRequest as R;
        let overtaken = |waiter: &Waiter| matches!(waiter.request, R::Pause | R::Resume | R::Capture { .. });
        self.answer_where(overtaken, &cancelled(reason))
    }

    /// Answers all.
    pub(super) fn interrupt_all(&mut self, reason: &str) -> Vec<Effect> {
        self.answer_where(|_| true, &cancelled(reason))
    }

    /// What is left to say once the machine is gone and the workspace free.
    pub fn last_answers(&mut self, outcome: &Outcome) -> Vec<(ClientId, Answer)> {
        std::mem::take(&mut self.waiters)
            .into_iter()
            .map(|waiter| (waiter.client, last_answer(waiter.request, outcome)))
            .collect()
    }

    fn answer_where(&mut self, who: impl Fn(&Waiter) -> bool, answer: &Answer) -> Vec<Effect> {
        let (answered, waiting) = self.waiters.iter().partition::<Vec<Waiter>, _>(|waiter| who(waiter));
        self.waiters = waiting;
        answered.into_iter().map(|waiter| Effect::Answer(waiter.client, answer.clone())).collect()
    }
}

fn last_answer(request: ChangeRequest, outcome: &Outcome) -> Answer {
    use ChangeRequest as R;
    match (request, outcome) {
        // However it ended, it has.
        (R::Kill, _) => Answer::Done,
        (R::EndUnhealthy, Outcome::Failed(failure)) if failure.kind == FailureKind::Unhealthy => Answer::Done,
        (
            R::Halt | R::Stop | R::Quarantine | R::EndUnhealthy,
            Outcome::Failed(failure) | Outcome::Quarantined(failure),
        ) => Answer::Failed(failure.clone()),
        (R::Halt | R::Stop | R::EndUnhealthy, _) => Answer::Done,
        (R::Pause | R::Resume | R::Quarantine | R::Capture { .. }, _) => {
            cancelled("its machine ended meanwhile")
        }
    }
}

fn cancelled(reason: &str) -> Answer {
    Answer::Failed(WorkspaceFailure { kind: FailureKind::Cancelled, message: reason.to_owned() })
}
