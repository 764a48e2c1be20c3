//! What the driver does about an event: [`crate::lifecycle::step`] has decided, here it is carried out.

use microagent_store::{Failure, FailureKind, State};
use serde_json::json;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};

use super::control_server::{PendingAmendment, PendingChange};
use super::{Driver, FLUSH_DEADLINE, PAUSE_DEADLINE, RunningMachine, STOP_WINDOW, worker, write_failure};
use crate::control::{Amendment, Answer, Refusal};
use crate::lifecycle::{Effect, Phase, memory_lost};
use crate::spec::{Outcome, Report, Work};

impl Driver {
    /// Carries an effect out, and answers the client that requested it, now or at the end. Gives the phase that was
    /// reached where that depends on QEMU.
    pub(super) async fn carry_out(
        &mut self,
        effect: Effect,
        running: &mut RunningMachine,
        client: Option<PendingChange>,
    ) -> Result<Option<Phase>, Failure> {
        match effect {
            // A cold start is a new life, and the caller's; a loss was told where its reason was known.
            Effect::None | Effect::StartCold | Effect::NoteLinkLost => {}
            Effect::Publish => {
                // What serves runs when its service does.
                if !self.spec.work.is_serving() {
                    self.publish(State::Running).map_err(|e| write_failure(&e))?;
                }
                let _ = self.reports.send(Report::Booted).await;
            }
            Effect::PublishServing => {
                self.publish(State::Running).map_err(|e| write_failure(&e))?;
                self.detached = matches!(self.spec.work, Work::Serve { detached: true, .. });
                let _ = self.reports.send(Report::Serving).await;
            }
            Effect::Flush => self.flush(running, client),
            Effect::ResumeToFlush => {
                // One that does not go on does not flush, which is then said.
                let _ = self.set_paused(running, "cont").await;
                self.flush(running, client);
            }
            Effect::SignalService => self.signal_service(running, client),
            Effect::KeepServiceRunning => self.keep_service_running(),
            Effect::Pause => return Ok(Some(self.change(running, client, State::Paused).await)),
            Effect::Resume => return Ok(Some(self.change(running, client, State::Running).await)),
            Effect::AwaitEnd => self.end_waiters.clients.extend(client),
            Effect::Refuse => answer(client, Answer::Refused(Refusal::State(self.at))),
            Effect::Quarantine => return Ok(Some(self.quarantine(running, client).await)),
            Effect::Quit => {
                self.end_waiters.clients.extend(client);
                running.machine.quit().await;
            }
            Effect::Kill => {
                self.end_waiters.clients.extend(client);
                running.machine.kill().await;
            }
        }
        Ok(None)
    }

    /// Tells whoever looks. The record needs nothing: that the process which it names is gone says it.
    pub(super) async fn note_link_lost(&mut self, reason: &str) {
        let message = format!("the network is gone until the next start: {reason}");
        if self.record.is_some() {
            self.dir.note_event(self.at, Some(&message));
        }
        let _ = self.reports.send(Report::Notice(message)).await;
    }

    /// Writes a record that the machine does not notice. One that cannot be written stays as it was.
    pub(super) fn amend(&mut self, PendingAmendment { amendment, reply }: PendingAmendment) {
        let Some(record) = &mut self.record else { return };
        let Amendment { restart, outputs } = amendment;
        let before = Amendment {
            restart: std::mem::replace(&mut record.restart, restart),
            outputs: std::mem::replace(&mut record.outputs, outputs),
        };
        let answer = match record.save(&self.dir) {
            Ok(()) => Answer::Done,
            Err(error) => {
                (record.restart, record.outputs) = (before.restart, before.outputs);
                Answer::Failed(write_failure(&error))
            }
        };
        // A client that is gone misses nothing.
        let _ = reply.send(answer);
    }

    fn flush(&mut self, running: &mut RunningMachine, client: Option<PendingChange>) {
        self.end_waiters.clients.extend(client);
        // A host whose disk is full must not keep the guest from flushing what it has; the record that counts is the
        // last one.
        let _ = self.publish(State::Stopping);
        running.flush_deadline = Some(Instant::now() + FLUSH_DEADLINE);
        // The worker may have died of the guest's doing; the deadline speaks then.
        let _ = running.flush.take().map(|flush| flush.send(()));
    }

    fn signal_service(&mut self, running: &mut RunningMachine, client: Option<PendingChange>) {
        self.end_waiters.clients.extend(client);
        let _ = self.publish(State::Stopping);
        running.service_deadline = Some(Instant::now() + STOP_WINDOW);
        if let Work::Serve { stop_signal, .. } = self.spec.work {
            // One that does not take signals any more does not end either, which is then said.
            let _ = running.signals.try_send(stop_signal);
        }
    }

    fn keep_service_running(&mut self) {
        let _ = self.publish(State::Running);
        let message = format!("its service did not end within {} s", STOP_WINDOW.as_secs());
        for client in self.end_waiters.clients.drain(..) {
            let failure = Failure { kind: FailureKind::Service, message: message.clone() };
            answer(Some(client), Answer::Failed(failure));
        }
    }

    /// Cuts the guest off from clients and network and stops it for good. The record comes first: whatever dies in the
    /// middle takes the machine with it, and a workspace that is quarantined is started by nobody. A QEMU that does
    /// not stop its guest is killed, because containing comes before keeping.
    async fn quarantine(&mut self, running: &mut RunningMachine, client: Option<PendingChange>) -> Phase {
        if !self.detached {
            // Its caller waits for a service that is not up yet, or only looks into a disk.
            answer(client, Answer::Refused(Refusal::State(self.at)));
            return Phase::Running;
        }
        if let Some((control, _)) = &self.control {
            control.cut_off();
        }
        running.flush_deadline = None;
        running.service_deadline = None;
        if let Some(record) = &mut self.record {
            record.asked_to_end = true;
        }
        let reason = client.as_ref().and_then(|client| client.reason.clone());
        let written = self.publish_because(State::Quarantined, reason.as_deref());
        let failure = |kind, message| Failure { kind, message };
        for client in self.end_waiters.clients.drain(..) {
            let message = "it was quarantined meanwhile".to_owned();
            answer(Some(client), Answer::Failed(failure(FailureKind::Cancelled, message)));
        }
        running.machine.sever().await;
        let stopped = self.set_paused(running, "stop").await;
        if let Err(message) = stopped {
            self.end_waiters.clients.extend(client);
            running.machine.kill().await;
            return Phase::Ended(Outcome::Quarantined(memory_lost(format!("{message}, so it was killed"))));
        }
        answer(
            client,
            match written {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Failed(failure(
                    FailureKind::HostFull,
                    format!("it is cut off and stands still, but that could not be written down: {error}"),
                )),
            },
        );
        Phase::Quarantined
    }

    /// Has the guest stand still or go on, publishes that, and tells the client. When QEMU does not do it,
    /// everything stays as it was.
    async fn change(&mut self, running: &RunningMachine, client: Option<PendingChange>, to: State) -> Phase {
        let command = if to == State::Paused { "stop" } else { "cont" };
        let done = self.set_paused(running, command).await;
        if done.is_err() && to == State::Paused {
            // A QEMU that was only late carries it out later; it must not end up paused unseen.
            let monitor = running.machine.monitor();
            spawn_local(async move { monitor.go_on().await });
        }
        if done.is_ok()
            && to == State::Running
            && let Some(session) = self.control.as_ref().and_then(|(control, _)| control.session())
        {
            worker::correct_clock(&session).await;
        }
        let reached = if done.is_ok() { to } else { self.at };
        if reached != self.at {
            // The machine is worth more than its record, which the next change brings up to date.
            let _ = self.publish(reached);
        }
        answer(
            client,
            match done {
                Ok(()) => Answer::Done,
                Err(message) => Answer::Failed(Failure { kind: FailureKind::GuestDied, message }),
            },
        );
        if reached == State::Paused { Phase::Paused } else { Phase::Running }
    }

    async fn set_paused(&self, running: &RunningMachine, command: &'static str) -> Result<(), String> {
        let monitor = running.machine.monitor();
        match timeout(PAUSE_DEADLINE, monitor.execute(vec![(command, json!({}))])).await {
            Ok(done) => done.map_err(|e| e.to_string()),
            Err(_) => Err(format!("QEMU did not answer within {} s", PAUSE_DEADLINE.as_secs())),
        }
    }
}

/// A client that is gone misses nothing.
fn answer(client: Option<PendingChange>, answer: Answer) {
    if let Some(PendingChange { reply, .. }) = client {
        let _ = reply.send(answer);
    }
}
