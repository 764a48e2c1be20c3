//! Captures a running machine: its guest's programs are held, its disk is flushed, its memory is written to a file if that
//! is wanted, and from then on it writes to another overlay. The client can copy the machine's further disks before it
//! continues. Whatever fails, the guest continues.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use microagent_model::{FailureKind, State, WorkspaceFailure};
use microagent_proto::{GuestError, Hold, Request, SessionHandle};
use microagent_qemu::qmp::QmpError;
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;
use tokio::task::spawn_local;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::control_server::CaptureFiles;
use super::copies::{COPY_LIMIT, Stop};
use super::drive::RunningMachine;
use super::monitor::{CaptureOrder, Captured, Monitor};
use super::{Driver, worker};
use crate::control::Capture;
use crate::lifecycle::{ClientId, Event, Phase};
use crate::machine::{CAPTURES_MAX, capture_node, capture_overlay, capture_set};
use crate::template::MachineShape;

/// How long the guest may take to stop its programs and flush its disks.
const HOLD_DEADLINE: Duration = Duration::from_secs(10);

/// How long QEMU may take.
const QEMU_DEADLINE: Duration = Duration::from_secs(25);

/// How long the guest may take to let its programs continue. One that takes longer does it later.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);

/// Everything together: the guest sets its clock, too.
pub(super) const MOST: Duration = Duration::from_secs(
    HOLD_DEADLINE.as_secs()
        + QEMU_DEADLINE.as_secs()
        + COPY_LIMIT.as_secs()
        + 2 * RELEASE_PATIENCE.as_secs()
        + 5,
);

/// What the machine can be captured with.
#[derive(Default)]
pub(super) struct Captures {
    /// What its memory can be restored in, if that is known.
    pub(super) shape: Option<MachineShape>,
    /// The node of the overlay that the guest writes to; `None` if that is not known any more.
    top: Rc<RefCell<Option<String>>>,
    /// How many overlays QEMU was given.
    count: u32,
    /// Whether programs of the paused guest are held.
    held: Rc<Cell<bool>>,
    /// Whether the memory of the quarantined guest was captured. QEMU writes it once unless the guest runs on.
    kept: Rc<Cell<bool>>,
}

impl Captures {
    /// A machine whose guest writes to the overlay of this node.
    pub(super) fn of(shape: Option<MachineShape>, top: &str) -> Captures {
        let top = Rc::new(RefCell::new(Some(top.to_owned())));
        Captures { shape, top, ..Captures::default() }
    }

    /// Lets the programs continue that the capture of a paused guest has held.
    pub(super) fn release(&self, session: Option<SessionHandle>) -> impl Future<Output = ()> + use<> {
        let held = self.held.replace(false);
        async move {
            if let Some(session) = session.filter(|_| held) {
                release(session).await;
            }
        }
    }
}

impl Driver {
    /// Captures the guest into the files of this client.
    pub(super) fn capture(&mut self, running: &RunningMachine, client: ClientId) {
        let captured = self.start_capture(running, client);
        if let Err(failure) = captured {
            self.carried_out.push_back(Event::Captured(Err(failure)));
        }
    }

    fn start_capture(&mut self, running: &RunningMachine, client: ClientId) -> Result<(), WorkspaceFailure> {
        let files = self.clients.take_files(client);
        let CaptureFiles { overlay, memory, stop } =
            files.ok_or_else(|| failure("it came without files".to_owned()))?;
        let Some(shape) = self.captures.shape.clone() else {
            return Err(failure("its machine cannot be described".to_owned()));
        };
        // What is captured as evidence is never restored.
        let is_evidence = matches!(self.lifecycle.phase(), Phase::Quarantined);
        if is_evidence && self.captures.kept.get() {
            return Err(failure("its memory was captured as evidence before".to_owned()));
        }
        if memory.is_some() && !is_evidence {
            self.check_memory(stop.is_some())?;
        }
        let base = self.clients.server().and_then(|server| server.base_disk()).filter(|_| memory.is_some());
        let hidden = base
            .map(|base| {
                base.keep_hidden().ok_or_else(|| {
                    failure(
                        "another command compares its disk with its image, and adds a disk for that"
                            .to_owned(),
                    )
                })
            })
            .transpose()?;
        if self.captures.count >= CAPTURES_MAX {
            return Err(failure(format!(
                "it had {CAPTURES_MAX} snapshots since its start, and no more are made before the next one"
            )));
        }
        let Some(under) = self.captures.top.borrow().clone() else {
            return Err(failure("QEMU has not answered to the last one".to_owned()));
        };
        self.captures.count += 1;
        let number = self.captures.count;
        let work = Capturing {
            monitor: running.machine.monitor(),
            session: self.clients.server().and_then(|server| server.session()).filter(|_| !is_evidence),
            paused: is_evidence || matches!(self.lifecycle.phase(), Phase::Capturing { paused: true }),
            order: CaptureOrder {
                overlay: (capture_set(number), overlay),
                node: (capture_overlay(&self.spec.machine, number), capture_node(number)),
                under,
                state: None,
                continues: true,
            },
            memory,
            stop,
            shape,
            top: Rc::clone(&self.captures.top),
            held: Rc::clone(&self.captures.held),
            kept: is_evidence.then(|| Rc::clone(&self.captures.kept)),
        };
        let events = running.events.clone();
        let dir = self.dir.clone();
        spawn_local(async move {
            let captured = work.run().await.map_err(failure);
            if is_evidence && captured.is_ok() {
                dir.note_event(State::Quarantined, Some("its memory and disk were captured as evidence"));
            }
            drop(hidden);
            // A driver that does not listen any more has ended the machine.
            let _ = events.send(Event::Captured(captured)).await;
        });
        Ok(())
    }

    /// A guest knows the values of its secrets, and a copy of its memory would, too. Two machines cannot write to one disk,
    /// which the client therefore copies.
    fn check_memory(&self, copies: bool) -> Result<(), WorkspaceFailure> {
        if !self.spec.configure.secrets.is_empty() {
            return Err(failure("its memory has secrets, and a snapshot never has one".to_owned()));
        }
        if !copies && self.spec.machine.extra_disks.iter().any(|disk| !disk.read_only) {
            return Err(failure("it has a further disk that it can write to".to_owned()));
        }
        Ok(())
    }
}

fn failure(message: String) -> WorkspaceFailure {
    WorkspaceFailure { kind: FailureKind::Protocol, message }
}

/// A capture that is under way.
struct Capturing {
    monitor: Monitor,
    session: Option<SessionHandle>,
    paused: bool,
    order: CaptureOrder,
    memory: Option<OwnedFd>,
    stop: Option<Stop>,
    shape: MachineShape,
    top: Rc<RefCell<Option<String>>>,
    held: Rc<Cell<bool>>,
    kept: Option<Rc<Cell<bool>>>,
}

impl Capturing {
    async fn run(self) -> Result<Capture, String> {
        let Capturing { monitor, session, paused, mut order, memory, stop, shape, top, held, kept } = self;
        let with_memory = memory.is_some();
        order.state = memory;
        order.continues = !paused && stop.is_none();
        let name = order.node.1.clone();
        // The disk of a paused guest is as after a power failure. Its memory can be used only if its agent expects that.
        let holds = session.filter(|_| !paused || with_memory);
        let mut token = [0; 16];
        if getrandom(&mut token, GetRandomFlags::empty()).ok() != Some(token.len()) {
            return Err("the host has no random numbers".to_owned());
        }
        if let Some(session) = &holds {
            if paused {
                command(&monitor, "cont").await?;
            }
            if let Err(error) = hold(session, token).await {
                if paused {
                    command(&monitor, "stop").await?;
                }
                spawn_local(release(session.clone()));
                return Err(error);
            }
        }
        let captured = timeout(QEMU_DEADLINE, monitor.capture(order)).await;
        match &captured {
            Ok(Ok(Captured { switched: true, .. })) => {
                *top.borrow_mut() = Some(name);
                kept.inspect(|kept| kept.set(true));
            }
            Ok(Ok(_)) => {}
            // It may be late.
            Ok(Err(_)) | Err(_) => *top.borrow_mut() = None,
        }
        let copied = match stop {
            Some(stop) => let_copy(&monitor, stop, &captured, paused).await,
            None => Ok(Duration::ZERO),
        };
        match holds {
            Some(_) if paused => {
                held.set(true);
                // One whose state could not be written may run.
                command(&monitor, "stop").await?;
            }
            Some(session) => {
                worker::correct_clock(session.clone()).await;
                let _ = timeout(RELEASE_PATIENCE, spawn_local(release(session))).await;
            }
            None => {}
        }
        let Captured { done, standstill, .. } = captured
            .map_err(|_| format!("QEMU took longer than {} s", QEMU_DEADLINE.as_secs()))?
            .map_err(|e| e.to_string())?;
        done.map_err(|e| e.to_string())?;
        let standstill = standstill + copied?;
        let standstill_us = u64::try_from(standstill.as_micros()).unwrap_or(u64::MAX);
        Ok(Capture { shape, token: with_memory.then_some(token), standstill_us })
    }
}

/// Lets the client copy disks of the machine, if it was captured, and then lets the guest continue if it is not paused.
/// Returns how long that took.
async fn let_copy(
    monitor: &Monitor,
    stop: Stop,
    captured: &Result<Result<Captured, QmpError>, Elapsed>,
    paused: bool,
) -> Result<Duration, String> {
    let began = Instant::now();
    let copied = match captured {
        Ok(Ok(Captured { switched: true, .. })) => stop.pass().await,
        // The client gets the reason.
        _ => Ok(()),
    };
    let resumed = if paused { Ok(()) } else { command(monitor, "cont").await };
    copied.and(resumed).map(|()| began.elapsed())
}

async fn command(monitor: &Monitor, name: &'static str) -> Result<(), String> {
    match timeout(super::PAUSE_DEADLINE, monitor.execute(vec![(name, json!({}))])).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err(format!("QEMU did not answer within {} s", super::PAUSE_DEADLINE.as_secs())),
    }
}

async fn hold(session: &SessionHandle, token: [u8; 16]) -> Result<(), String> {
    match timeout(HOLD_DEADLINE, worker::answer(session, &Request::Hold(Hold { token }))).await {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(GuestError { message, .. }))) => Err(message.replace(char::is_control, "?")),
        Ok(None) => Err("the guest closed the control channel".to_owned()),
        Err(_) => Err(format!("the guest did not flush its disk within {} s", HOLD_DEADLINE.as_secs())),
    }
}

/// A guest that does not take it is found by other means.
async fn release(session: SessionHandle) {
    let _: Option<Result<(), GuestError>> = worker::answer(&session, &Request::Release).await;
}
