//! Executes the effects of [`crate::lifecycle::Lifecycle::step`]. Their results are events.

use std::rc::Rc;
use std::time::Duration;

use microagent_model::State;
use serde_json::json;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};

use super::control_server::PendingTtl;
use super::drive::RunningMachine;
use super::health::HealthWatch;
use super::machine::Machine;
use super::monitor::Monitor;
use super::network::LinkChange;
use super::{Driver, FLUSH_DEADLINE, OUT_OF_MEMORY_MAX, PAUSE_DEADLINE, STOP_WINDOW, worker, write_failure};
use crate::control::{Answer, Refusal};
use crate::lifecycle::{ClientId, Effect, Event};
use crate::spec::{Outcome, Report, Work};

impl Driver {
    /// Carries one effect out, or starts what reports an event when it is done.
    pub(super) async fn carry_out(&mut self, effect: Effect, running: &mut RunningMachine) {
        match effect {
            // The machine is worth more than its record, which the next change brings up to date.
            Effect::Publish => drop(self.publish(self.lifecycle.state(self.traits))),
            Effect::PublishStart => {
                self.begin_health(running);
                if let Some(record) = &mut self.record {
                    record.machine.expires_at = self.ttl.start();
                }
                if let Err(error) = self.publish(State::Running) {
                    self.carried_out.push_back(Event::StartNotRecorded(write_failure(&error)));
                }
            }
            Effect::ReportBooted => drop(self.reports.send(Report::Booted).await),
            Effect::ReportServing => drop(self.reports.send(Report::Serving).await),
            Effect::NoteLinkLost(reason) => self.note_link_lost(&reason).await,
            Effect::NoteOutOfMemory(program) => self.note_out_of_memory(&program).await,
            Effect::NoteExpired => self.tell("the time to live has ended".to_owned()).await,
            Effect::Flush => {
                let limit = FLUSH_DEADLINE + self.grace.unwrap_or_default();
                running.conversation.flush_deadline = Some(Instant::now() + limit);
                // The guest may have made the worker fail; then the deadline applies.
                let _ = running.conversation.flush.take().map(|flush| flush.send(self.grace));
            }
            Effect::SignalService => {
                running.conversation.service_deadline = Some(Instant::now() + self.stop_window());
                if let Work::Serve { stop_signal, .. } = self.spec.work {
                    // One that does not take signals any more does not end either, which is then said.
                    let _ = running.conversation.signals.try_send(stop_signal);
                }
            }
            Effect::Pause => pause(running),
            Effect::Resume => self.resume(running),
            Effect::Reboot => self.reboot(running),
            Effect::Capture(client) => self.capture(running, client),
            Effect::Contain(client) => self.contain(running, client),
            Effect::Quit => running.machine.quit().await,
            // The driver boots another guest itself, and never hands this on.
            Effect::Kill | Effect::StartCold(_) => running.machine.kill().await,
            Effect::Answer(client, answer) => self.clients.answer(client, answer),
        }
    }

    /// Runs the health check from now on, if there is one.
    fn begin_health(&self, running: &mut RunningMachine) {
        let (Some(spec), Some(server)) = (self.spec.work.health(), self.clients.server()) else { return };
        let state = Rc::clone(&self.published);
        let watch = HealthWatch::start(spec.clone(), self.dir.clone(), server, state);
        running.conversation.health = Some(watch);
    }

    /// How long the service has to end after its stop signal.
    pub(super) fn stop_window(&self) -> Duration {
        self.grace.unwrap_or(STOP_WINDOW)
    }

    /// Reports it. The record is not changed: its process has ended, which shows it.
    async fn note_link_lost(&mut self, reason: &str) {
        let message = format!("the network is gone until the next start: {reason}");
        if self.record.is_some() {
            self.dir.note_event(self.published.get(), Some(&message));
        }
        let _ = self.reports.send(Report::Notice(message)).await;
    }

    /// Reports that the network is interrupted or back, and records the new stack.
    pub(super) async fn note_link_change(&mut self, change: LinkChange, machine: &Machine) {
        let message = match change {
            LinkChange::Begun => None,
            LinkChange::Restored => Some("the network is back; its connections were reset".to_owned()),
            LinkChange::Interrupted(reason) | LinkChange::Lost(reason) => {
                Some(format!("the network is interrupted and starts again: {reason}"))
            }
        };
        if let Some(record) = &mut self.record
            && let Some(link) = machine.link()
            && record.machine.link.as_ref() != Some(&link)
        {
            record.machine.link = Some(link);
            // Without it `network` shows the link as down. The machine continues.
            let _ = record.machine.save(&self.dir);
        }
        let Some(message) = message else { return };
        if self.record.is_some() {
            self.dir.note_event(self.published.get(), Some(&message));
        }
        let _ = self.reports.send(Report::Notice(message)).await;
    }

    /// Tells whoever looks, as often as a guest may make us.
    async fn note_out_of_memory(&mut self, program: &str) {
        self.out_of_memory += 1;
        if self.out_of_memory > OUT_OF_MEMORY_MAX {
            return;
        }
        let mib = self.spec.machine.memory_mib;
        let program = program.escape_default();
        self.tell(format!("the guest ran out of its {mib} MiB of memory and killed `{program}`")).await;
    }

    /// Tells of what a command lacked that is over; not again what the guest has told while it ran.
    pub(super) async fn note_shortage(&mut self, outcome: &Outcome) {
        let (Outcome::Completed(result) | Outcome::ServiceEnded(result)) = outcome else { return };
        if let Some(program) = &result.out_of_memory
            && self.out_of_memory == 0
        {
            self.note_out_of_memory(program).await;
        }
        if let Some(mount) = &result.disk_full {
            self.tell(format!("the disk of the guest at `{}` is full", mount.escape_default())).await;
        }
    }

    async fn tell(&mut self, message: String) {
        if self.record.is_some() {
            self.dir.note_event(self.published.get(), Some(&message));
        }
        let _ = self.reports.send(Report::Notice(message)).await;
    }

    /// Gives the machine another time to live.
    pub(super) fn renew_ttl(&mut self, PendingTtl { limit, reply }: PendingTtl) {
        // A client that is gone misses nothing.
        let _ = reply.send(self.renewed_ttl(limit));
    }

    /// The file first: the machine must not end before or after the time that it shows.
    fn renewed_ttl(&mut self, limit: Option<Duration>) -> Answer {
        let state = self.lifecycle.state(self.traits);
        if !matches!(state, State::Running | State::Paused) {
            return Answer::Refused(Refusal::State(state));
        }
        let Some(record) = &mut self.record else { return unrecorded() };
        let Some(renewed) = self.ttl.renewed(limit) else { return Answer::Refused(Refusal::NoTtl) };
        let before = std::mem::replace(&mut record.machine.expires_at, renewed.expires_at());
        match record.machine.save(&self.dir) {
            Ok(()) => {
                self.ttl = renewed;
                Answer::Done
            }
            Err(error) => {
                record.machine.expires_at = before;
                Answer::Failed(write_failure(&error))
            }
        }
    }

    fn resume(&self, running: &RunningMachine) {
        let (monitor, events) = (running.machine.monitor(), running.events.clone());
        let session = self.clients.server().and_then(|server| server.session());
        let release = self.captures.release(session.clone());
        spawn_local(async move {
            let event = match run_processors(&monitor, Processors::Continue).await {
                Ok(()) => {
                    release.await;
                    if let Some(session) = session {
                        worker::correct_clock(session).await;
                    }
                    Event::Resumed
                }
                Err(message) => Event::ResumeFailed(message),
            };
            // A driver that does not listen any more has ended the machine.
            let _ = events.send(event).await;
        });
    }

    /// Cuts the guest off from clients and network and stops it for good. The record comes first: whatever dies in the
    /// middle takes the machine with it, and a workspace that is quarantined is started by nobody.
    fn contain(&mut self, running: &mut RunningMachine, client: ClientId) {
        if let Some(server) = self.clients.server() {
            server.cut_off();
        }
        running.conversation.health = None;
        running.conversation.flush_deadline = None;
        running.conversation.service_deadline = None;
        if let Some(record) = &mut self.record {
            record.machine.asked_to_end = true;
        }
        let reason = self.clients.reason(client);
        let written = self.publish_because(State::Quarantined, reason.as_deref());
        let (monitor, events) = (running.machine.monitor(), running.events.clone());
        let severed = running.machine.sever();
        spawn_local(async move {
            severed.await;
            let event = match run_processors(&monitor, Processors::Stop).await {
                Ok(()) => Event::Contained(written.err().map(|error| error.to_string())),
                Err(message) => Event::ContainFailed(message),
            };
            let _ = events.send(event).await;
        });
    }
}

/// A machine without a record is an offline boot, which a client may see for moments.
fn unrecorded() -> Answer {
    Answer::Refused(Refusal::State(State::Starting))
}

fn pause(running: &RunningMachine) {
    let (monitor, events) = (running.machine.monitor(), running.events.clone());
    spawn_local(async move {
        let event = run_processors(&monitor, Processors::Stop)
            .await
            .map_or_else(Event::PauseFailed, |()| Event::Paused);
        let _ = events.send(event).await;
    });
}

/// What the processors of a guest do.
enum Processors {
    Stop,
    Continue,
}

async fn run_processors(monitor: &Monitor, processors: Processors) -> Result<(), String> {
    let command = match processors {
        Processors::Stop => "stop",
        Processors::Continue => "cont",
    };
    match timeout(PAUSE_DEADLINE, monitor.execute(vec![(command, json!({}))])).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err(format!("QEMU did not answer within {} s", PAUSE_DEADLINE.as_secs())),
    }
}
