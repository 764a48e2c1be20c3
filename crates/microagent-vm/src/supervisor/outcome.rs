//! The end of a machine: its record, and the answers to clients.

use microagent_model::{FailureKind, State, WorkspaceFailure, signal_name};
use microagent_store::RELEASED;

use super::clients::Clients;
use super::control_server::UnwrittenAnswers;
use super::{Driver, write_failure};
use crate::control::Answer;
use crate::lifecycle::{ClientId, Phase};
use crate::spec::{Outcome, Work};

/// What clients are told that waited for the machine's end. The socket is closed.
pub(super) struct LastAnswers {
    clients: Clients,
    answers: Vec<(ClientId, Answer)>,
    unwritten: Option<UnwrittenAnswers>,
}

impl LastAnswers {
    /// Closes the control socket of a driver whose machine has ended.
    pub(super) fn of(driver: &mut Driver, outcome: &Outcome) -> LastAnswers {
        let mut clients = std::mem::take(&mut driver.clients);
        let (late, unwritten) = clients.close();
        driver.lifecycle.enter(Phase::Ended(outcome.clone()));
        for event in late {
            // Nothing is done about them any more: they are answered with all others.
            let _ = driver.lifecycle.step(event, driver.traits);
        }
        LastAnswers { clients, answers: driver.lifecycle.last_answers(outcome), unwritten }
    }

    /// Answers. The workspace is free.
    pub(super) async fn give(mut self) {
        for (client, answer) in self.answers {
            self.clients.answer(client, answer);
        }
        if let Some(unwritten) = self.unwritten {
            unwritten.written().await;
        }
    }
}

impl Driver {
    /// Records how it ended.
    pub(super) fn record_outcome(&mut self, outcome: Outcome) -> Outcome {
        let (state, failure) = end_state(&self.spec.work, &outcome);
        let recorded = match &outcome {
            Outcome::Completed(result) => self.dir.write_json(&self.dir.result(), result),
            _ => Ok(()),
        };
        if let Some(record) = &mut self.record {
            record.machine.failure = failure;
            record.machine.expires_at = None;
            record.machine.asked_to_end =
                matches!(outcome, Outcome::Halted | Outcome::Stopped | Outcome::Quarantined(_));
        }
        // Nothing else lets a workspace out of its quarantine.
        let released = self.published.get() == State::Quarantined && state == State::Stopped;
        let why = released.then_some(RELEASED);
        let recorded = recorded.and_then(|()| self.publish_because(state, why));
        if recorded.is_ok() && self.record.is_some() {
            // Only a machine needs it, not a resting workspace.
            self.dir.give_room();
        }
        match (recorded, outcome) {
            (Ok(()), outcome) => outcome,
            (Err(_), outcome @ Outcome::Failed(_)) => {
                // The machine is gone and nobody asked to keep its disk: without it there is room for the truth.
                self.drop_scratch_disk();
                let _ = self.publish(state);
                outcome
            }
            // The caller hears the truth even when the disk cannot take it down.
            (Err(error), _) => Outcome::Failed(write_failure(&error)),
        }
    }

    fn drop_scratch_disk(&self) {
        if let Some(record) = self.record.as_ref().filter(|record| record.disposable) {
            // One that cannot be removed gives no room, and the record says less than it could.
            let _ = std::fs::remove_file(record.disk(&self.dir));
        }
    }
}

fn name(signal: i32) -> String {
    let name = u8::try_from(signal).ok().and_then(signal_name);
    name.map_or_else(|| format!("signal {signal}"), |name| format!("signal {signal} ({name})"))
}

/// The state of the workspace after this, and why it failed.
fn end_state(work: &Work, outcome: &Outcome) -> (State, Option<WorkspaceFailure>) {
    let failed = |kind, message| (State::Failed, Some(WorkspaceFailure { kind, message }));
    match outcome {
        // A start that nobody waited for.
        Outcome::Failed(failure) if failure.kind == FailureKind::Cancelled && work.is_serving() => {
            (State::Stopped, None)
        }
        Outcome::Failed(failure) => (State::Failed, Some(failure.clone())),
        Outcome::Quarantined(failure) => (State::Quarantined, Some(failure.clone())),
        Outcome::SetupFailed { step, exit_code, start_error } => {
            let how = match start_error {
                Some(error) => format!("could not be started: {error}"),
                None => format!("failed with exit code {exit_code}"),
            };
            failed(FailureKind::Setup, format!("setup step {} {how}", step + 1))
        }
        Outcome::ServiceEnded(result) if result.exit_code != 0 => {
            let message = match (&result.start_error, result.signal) {
                (Some(error), _) => format!("its service could not be started: {error}"),
                (None, Some(signal)) => format!("its service was ended by {}", name(signal)),
                (None, None) => format!("its service ended with exit code {}", result.exit_code),
            };
            failed(FailureKind::Service, message)
        }
        Outcome::PoweredOff if !work.is_serving() => {
            failed(FailureKind::GuestDied, "the guest turned itself off before its work was done".to_owned())
        }
        Outcome::Rebooted => {
            failed(FailureKind::GuestDied, "the guest restarted itself before its work was done".to_owned())
        }
        Outcome::Prepared => (State::Prepared, None),
        Outcome::Halted => (State::Halted, None),
        Outcome::Completed(_)
        | Outcome::Stopped
        | Outcome::PoweredOff
        | Outcome::ServiceEnded(_)
        | Outcome::Frozen
        | Outcome::Busy
        | Outcome::DiskBusy { .. }
        | Outcome::TooManyRunning(_) => (State::Stopped, None),
    }
}
