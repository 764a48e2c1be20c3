//! The monitor of a machine's QEMU: one task holds it, and carries out what it is commanded.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use microagent_qemu::argv::FdSet;
use microagent_qemu::features::Features;
use microagent_qemu::qmp::{Qmp, QmpError};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::answer_budget::AnswerBudget;
use super::guest_end::GuestEnd;
use super::qemu::Incoming;
use crate::lifecycle::Event;
use crate::machine::FREEZE_SET;
use crate::template::Freezer;

/// How often a freeze looks whether it is done, and how many times: a state has some 60 KB.
const FREEZE_POLL_INTERVAL: Duration = Duration::from_millis(1);
const FREEZE_POLLS: usize = 1000;

/// The same for a state with the memory in it, of which the host stores some hundred MB per second.
const CAPTURE_POLLS: usize = 20_000;

/// Bytes per second at which a state may be written: no brake at all.
const FREEZE_BANDWIDTH: u64 = 1 << 40;

/// A command to the one task that holds the monitor.
pub(super) enum MonitorCommand {
    /// Make QEMU quit.
    Quit,
    /// Stop the guest and write the state of its devices to the file.
    Freeze(OwnedFd, oneshot::Sender<Result<(), QmpError>>),
    /// Give the running guest another overlay, and write its state with its memory.
    Capture(Box<CaptureOrder>, oneshot::Sender<Captured>),
    /// Carry out commands, one after the other, each with its arguments.
    Execute(Vec<(&'static str, Value)>, oneshot::Sender<Result<(), QmpError>>),
    /// Resume the guest.
    Continue(oneshot::Sender<Result<(), QmpError>>),
}

/// What a machine is captured into.
pub(super) struct CaptureOrder {
    /// The overlay that the guest writes to afterwards, and its descriptor set.
    pub(super) overlay: (FdSet, OwnedFd),
    /// The same as a block node, and its name.
    pub(super) node: (Value, String),
    /// The name of the node that becomes a layer.
    pub(super) under: String,
    /// Where memory and devices go.
    pub(super) state: Option<OwnedFd>,
    /// Whether the guest continues afterwards.
    pub(super) continues: bool,
}

/// What came of a capture. Whatever it is, a guest that is to continue does.
pub(super) struct Captured {
    /// Whether the guest writes to the new overlay.
    pub(super) switched: bool,
    /// Whether all was done.
    pub(super) done: Result<(), QmpError>,
    /// How long the processors were stopped.
    pub(super) standstill: Duration,
}

/// Commands the QEMU of one machine.
#[derive(Clone)]
pub(super) struct Monitor {
    commands: mpsc::Sender<MonitorCommand>,
}

impl Monitor {
    /// A monitor, and where its commands come out.
    pub(super) fn new() -> (Monitor, mpsc::Receiver<MonitorCommand>) {
        let (commands, commanded) = mpsc::channel(1);
        (Monitor { commands }, commanded)
    }

    /// Makes QEMU quit; `false` if nobody takes the command now.
    pub(super) fn quit(&self) -> bool {
        self.commands.try_send(MonitorCommand::Quit).is_ok()
    }

    /// Captures the guest.
    ///
    /// # Errors
    /// Fails if the monitor has ended.
    pub(super) async fn capture(&self, order: CaptureOrder) -> Result<Captured, QmpError> {
        let (reply, answer) = oneshot::channel();
        let command = MonitorCommand::Capture(Box::new(order), reply);
        self.commands.send(command).await.map_err(|_| QmpError::Closed)?;
        answer.await.map_err(|_| QmpError::Closed)
    }

    /// Writes state, memory and disk of a guest, which is paused afterwards, whether that worked or not.
    pub(super) async fn freeze_into(&self, freezer: &Freezer, budget: &AnswerBudget) -> Result<(), String> {
        let state = freezer.state_file().map_err(|e| format!("the state cannot be stored: {e}"))?;
        tokio::select! {
            biased;
            frozen = self.freeze(state) => frozen.map_err(|e| e.to_string())?,
            _ = budget.exhausted() => return Err("it took too long".to_owned()),
        }
        freezer.copy().map_err(|e| format!("the memory cannot be stored: {e}"))
    }

    /// Stops the guest and writes the state of its devices to the file.
    async fn freeze(&self, state: OwnedFd) -> Result<(), QmpError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(MonitorCommand::Freeze(state, reply)).await.map_err(|_| QmpError::Closed)?;
        answer.await.map_err(|_| QmpError::Closed)?
    }

    /// Carries out commands, one after the other, up to the first that is refused.
    pub(super) async fn execute(&self, commands: Vec<(&'static str, Value)>) -> Result<(), QmpError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(MonitorCommand::Execute(commands, reply)).await.map_err(|_| QmpError::Closed)?;
        answer.await.map_err(|_| QmpError::Closed)?
    }

    /// Resumes the guest.
    pub(super) async fn go_on(&self) -> Result<(), QmpError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(MonitorCommand::Continue(reply)).await.map_err(|_| QmpError::Closed)?;
        answer.await.map_err(|_| QmpError::Closed)?
    }
}

/// Holds the monitor: restores the guest from a frozen state, if there is one, carries out commands, and
/// watches for the one event that the guest cannot tell of itself, a full disk of the host.
pub(super) async fn hold_monitor(
    monitor: UnixStream,
    (first, state, features): (Vec<(&'static str, Value)>, Option<Incoming>, Features),
    events: mpsc::Sender<Event>,
    mut commands: mpsc::Receiver<MonitorCommand>,
    guest_end: GuestEnd,
) {
    let Ok(mut qmp) = Qmp::negotiate(monitor).await else { return };
    if let Err(error) = execute(&mut qmp, first).await {
        let _ = events.send(Event::GuestFailed(error.to_string())).await;
    }
    match state {
        Some(state) => {
            if let Err(error) = restore(&mut qmp, &state).await {
                let _ = events.send(Event::GuestFailed(error.to_string())).await;
            }
        }
        // A guest that boots may have ended its machine before there was a monitor to say so.
        None => match qmp.execute("query-status", json!({})).await {
            Ok(status) if status["status"] == "shutdown" => {
                let exit = guest_end.exit().await;
                let _ = events.send(Event::MachineGone(exit)).await;
            }
            _ => {}
        },
    }
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(MonitorCommand::Quit) => {
                    let _ = qmp.execute("quit", json!({})).await;
                    return;
                }
                // Whoever commanded may have given up meanwhile.
                Some(MonitorCommand::Freeze(state, reply)) => drop(reply.send(freeze(&mut qmp, state, features).await)),
                Some(MonitorCommand::Capture(order, reply)) => drop(reply.send(capture(&mut qmp, *order, features).await)),
                Some(MonitorCommand::Execute(commands, reply)) => drop(reply.send(execute(&mut qmp, commands).await)),
                Some(MonitorCommand::Continue(reply)) => drop(reply.send(qmp.execute("cont", json!({})).await.map(drop))),
                None => return,
            },
            event = qmp.next_event() => match event {
                Ok(event) if event.name == "BLOCK_IO_ERROR" && event.data["nospace"] == true => {
                    let message = "the host's disk is full; the guest's write could not be stored".to_owned();
                    let _ = events.send(Event::HostFull(message)).await;
                }
                // Whatever else ends it, a command of the supervisor or a signal, shows by QEMU's exit.
                Ok(event) if event.name == "SHUTDOWN" && event.data["guest"] == true => {
                    let exit = guest_end.exit().await;
                    let _ = events.send(Event::MachineGone(exit)).await;
                }
                Ok(_) => {}
                Err(_) => return,
            },
        }
    }
}

/// Loads the state from a descriptor that QEMU inherited; the guest runs when it is loaded.
async fn restore(qmp: &mut Qmp, state: &Incoming) -> Result<(), QmpError> {
    include_memory(qmp, state.has_memory).await?;
    qmp.execute("migrate-incoming", json!({ "uri": state.uri })).await?;
    // A template that is not restored is found by the guest's silence, and a boot takes its place.
    if state.has_memory { restored(qmp).await } else { Ok(()) }
}

/// Waits until a guest with its memory runs.
async fn restored(qmp: &mut Qmp) -> Result<(), QmpError> {
    let failed = |description| Err(QmpError::Refused { command: "migrate-incoming".to_owned(), description });
    for _ in 0..CAPTURE_POLLS {
        let status = qmp.execute("query-status", json!({})).await?;
        match status["status"].as_str() {
            Some("running") => return Ok(()),
            Some("inmigrate") => sleep(FREEZE_POLL_INTERVAL).await,
            other => return failed(format!("the guest is {}", other.unwrap_or("in no state"))),
        }
    }
    failed("it took too long".to_owned())
}

async fn execute(qmp: &mut Qmp, commands: Vec<(&'static str, Value)>) -> Result<(), QmpError> {
    for (name, arguments) in commands {
        qmp.execute(name, arguments).await?;
    }
    Ok(())
}

/// Whether memory that is shared with a file is part of the state. Other memory always is.
async fn include_memory(qmp: &mut Qmp, included: bool) -> Result<(), QmpError> {
    let capabilities = json!([{ "capability": "x-ignore-shared", "state": !included }]);
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).await.map(drop)
}

/// Writes everything but its shared memory.
async fn freeze(qmp: &mut Qmp, state: OwnedFd, features: Features) -> Result<(), QmpError> {
    include_memory(qmp, false).await?;
    migrate(qmp, state, features, FREEZE_POLLS).await
}

/// Writes the state to the file. QEMU stops the guest for the end of it; a guest that was stopped before would come back
/// stopped.
async fn migrate(qmp: &mut Qmp, state: OwnedFd, features: Features, polls: usize) -> Result<(), QmpError> {
    let uri = match features.file_migration {
        true => {
            qmp.add_fd(FREEZE_SET, state.as_fd()).await?;
            format!("file:{}", FREEZE_SET.filename())
        }
        false => {
            qmp.getfd("state", state.as_fd()).await?;
            "fd:state".to_owned()
        }
    };
    let done = write_state(qmp, uri, polls).await;
    if features.file_migration {
        // The set has one descriptor, and the next state another.
        qmp.remove_fd(FREEZE_SET).await?;
    }
    done
}

async fn write_state(qmp: &mut Qmp, uri: String, polls: usize) -> Result<(), QmpError> {
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": FREEZE_BANDWIDTH })).await?;
    qmp.execute("migrate", json!({ "uri": uri })).await?;
    for _ in 0..polls {
        let status = qmp.execute("query-migrate", json!({})).await?;
        match status["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") | None => {
                let description = status["error-desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(QmpError::Refused { command: "migrate".to_owned(), description });
            }
            Some(_) => sleep(FREEZE_POLL_INTERVAL).await,
        }
    }
    // Best effort: the guest is resumed whatever became of the state.
    let _ = qmp.execute("migrate_cancel", json!({})).await;
    Err(QmpError::Refused { command: "migrate".to_owned(), description: "it took too long".to_owned() })
}

/// Stops the guest, writes its state, and has it write to the new overlay from then on.
async fn capture(qmp: &mut Qmp, order: CaptureOrder, features: Features) -> Captured {
    let CaptureOrder { overlay: (set, overlay), node: (node, name), under, state, continues } = order;
    let added = async {
        qmp.add_fd(set, overlay.as_fd()).await?;
        qmp.execute("blockdev-add", node).await
    };
    if let Err(error) = added.await {
        let _ = qmp.remove_fd(set).await;
        return Captured { switched: false, done: Err(error), standstill: Duration::ZERO };
    }
    let stopped = Instant::now();
    let stood = match state {
        None => qmp.execute("stop", json!({})).await.map(drop),
        Some(state) => match include_memory(qmp, true).await {
            Ok(()) => migrate(qmp, state, features, CAPTURE_POLLS).await,
            error => error,
        },
    };
    let switch = json!({ "node": under, "overlay": name });
    let switched = match stood {
        Ok(()) => qmp.execute("blockdev-snapshot", switch).await.map(drop),
        error => error,
    };
    let resumed = match continues {
        true => qmp.execute("cont", json!({})).await.map(drop),
        false => Ok(()),
    };
    let standstill = stopped.elapsed();
    if switched.is_err() {
        let _ = qmp.execute("blockdev-del", json!({ "node-name": name })).await;
        let _ = qmp.remove_fd(set).await;
    }
    Captured { switched: switched.is_ok(), done: switched.and(resumed), standstill }
}
