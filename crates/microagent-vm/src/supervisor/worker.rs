//! Communicates with the guest: greets it, configures it, runs the work, flushes its disk.
//! Messages of the guest are not trusted: the protocol checks lengths, text is written to logs of limited size, and
//! codes are small integers. The driver enforces the deadline of the whole; the deadlines here are for single
//! answers.

mod exec;

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use microagent_proto::{
    Configure, Configured, Entropy, Exec, FrameError, GuestError, GuestErrorKind, PreambleKind, REPLY_LIMIT,
    REQUEST_LIMIT, Request, SessionError, SessionHandle, SetClock, ShutDown, Stream, greet, host_session,
    read_message, write_message, write_secret_message,
};
use microagent_store::{RecordedResult, StateDir, WorkspaceDir, printable, write_json};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;

use self::exec::{Attached, Conversation};
use super::answer_budget::{AnswerBudget, Exhausted};
use super::control_server::ControlServer;
use super::guest_end::GuestEnd;
use super::liveness::{StateWatch, unresponsive};
use super::monitor::Monitor;
use super::relay::Relay;
use super::{Shared, elapsed_us};
use crate::bounded_log::BoundedLog;
use crate::confinement::{Needs, leave_templates};
use crate::lifecycle::Event;
use crate::output::OutputWriter;
use crate::spec::{Outcome, Report, Step, SupervisorSpec, Timeline, Work};
use crate::template::Freezer;

/// Own time of the guest ([`AnswerBudget`]) to find, mount and grow its disk and to set up its network.
const CONFIGURE_TIME: Duration = Duration::from_secs(60);

/// A run has no service, so there is nothing to ask before everything else is.
const FLUSH: ShutDown = ShutDown { signal: SIGTERM, grace_ms: 0 };

/// How long a service may take to end when its machine is halted; then it is killed.
pub(super) const HALT_GRACE: Duration = Duration::from_secs(10);

/// How many notices of a guest are passed on, and how many characters of each.
const NOTICES_MAX: usize = 32;
const NOTICE_LEN: usize = 500;

/// `SIGTERM`, as every Linux numbers it.
const SIGTERM: u8 = 15;

/// Deadline for the guest to accept a request.
const ASK_DEADLINE: Duration = Duration::from_secs(60);

/// How long is waited for the guest to set its clock. A guest that has too little of the host's processors sets it later.
const CLOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Own time of the machine for a freeze. Alone it takes tens of milliseconds.
const FREEZE_TIME: Duration = Duration::from_secs(2);

/// Wall time after which a freeze is given up though the host did not give the machine its time: a start waits for it.
const FREEZE_PATIENCE: Duration = Duration::from_secs(30);

/// Why the work failed.
pub(super) enum Trouble {
    /// The guest failed.
    Guest(String),
    /// The control channel failed, because of the guest or the end of its machine.
    Channel(String),
    /// A disk of the user's.
    Disk(String),
    /// A setting of the user's.
    Setting(String),
    /// The host cannot store what the guest printed.
    Host(String),
    /// The host is overloaded, so the guest could not answer.
    HostTooSlow(String),
}

impl From<FrameError> for Trouble {
    fn from(error: FrameError) -> Trouble {
        let message = microagent_proto::chain(&error);
        match error {
            FrameError::Transport(_) => Trouble::Channel(message),
            _ => Trouble::Guest(message),
        }
    }
}

impl From<SessionError> for Trouble {
    fn from(error: SessionError) -> Trouble {
        Trouble::Channel(microagent_proto::chain(&error))
    }
}

impl From<Trouble> for Event {
    fn from(trouble: Trouble) -> Event {
        match trouble {
            Trouble::Guest(message) => Event::GuestFailed(message),
            Trouble::Channel(message) => Event::ChannelBroken(message),
            Trouble::Disk(message) => Event::DiskUnfit(message),
            Trouble::Setting(message) => Event::SettingRefused(message),
            Trouble::Host(message) => Event::HostFull(message),
            Trouble::HostTooSlow(message) => Event::HostTooSlow(message),
        }
    }
}

/// A guest that is frozen as soon as it answers.
pub(super) struct Freeze {
    /// What it is frozen into.
    pub(super) freezer: Box<Freezer>,
    /// Its machine's monitor.
    pub(super) monitor: Monitor,
    /// What gives the machine its disks afterwards.
    pub(super) add_disks: Vec<(&'static str, Value)>,
    /// Where the template goes.
    pub(super) state: StateDir,
}

/// The conversation with one guest.
pub(super) struct Worker {
    work: Work,
    configure: Configure,
    freeze: Option<Freeze>,
    /// What the supervisor needs once templates are of no use any more, if it may change one until then.
    without_templates: Option<Needs>,
    output: OutputWriter,
    /// Where it is written down how a service ended.
    result: PathBuf,
    context: WorkerContext,
}

/// Where a conversation leaves its traces.
#[derive(Clone)]
pub(super) struct WorkerContext {
    /// What the workload prints is in the console log, too.
    pub(super) console: Shared<BoundedLog>,
    /// When what was reached.
    pub(super) timeline: Shared<Timeline>,
    /// To the caller.
    pub(super) reports: mpsc::Sender<Report>,
    /// Start of the supervisor.
    pub(super) started: Instant,
    /// The control socket, if there is one.
    pub(super) control: Option<Rc<ControlServer>>,
    /// How long the guest may take to answer for the first time.
    pub(super) budget: AnswerBudget,
    /// The machine's state.
    pub(super) state: Rc<StateWatch>,
    /// What is known of the guest's end.
    pub(super) guest_end: GuestEnd,
    /// What begins a new session with the guest of a captured machine.
    pub(super) renewal: Option<[u8; 16]>,
    /// The caller's stream to the command of a run, until the work takes it.
    pub(super) relay: Shared<Option<Relay>>,
}

/// A session with a guest, which ends when this is dropped.
struct Session {
    handle: SessionHandle,
    driver: JoinHandle<Result<(), SessionError>>,
}

impl Session {
    /// Waits for its end, and says how it came about.
    async fn ended(&mut self) -> String {
        match (&mut self.driver).await {
            Ok(Err(error)) => {
                format!("the guest broke the control channel: {}", microagent_proto::chain(&error))
            }
            Ok(Ok(())) | Err(_) => "the guest closed the control channel".to_owned(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Worker {
    /// Prepares the conversation; opens the file for the workload's output.
    pub(super) fn new(
        spec: &SupervisorSpec,
        dir: &WorkspaceDir,
        (freeze, without_templates): (Option<Freeze>, Option<Needs>),
        context: WorkerContext,
    ) -> io::Result<Worker> {
        let output = match spec.work {
            Work::Run { .. } | Work::Prepare { .. } => OutputWriter::create(&dir.output())?,
            Work::Serve { .. } | Work::Freeze => OutputWriter::none(),
        };
        Ok(Worker {
            work: spec.work.clone(),
            configure: spec.configure.clone(),
            freeze,
            without_templates,
            output,
            result: dir.result(),
            context,
        })
    }

    /// How the guest is shut down when that is asked for.
    fn shut_down(&self) -> ShutDown {
        match &self.work {
            Work::Serve { service: Some(_), stop_signal, .. } => {
                with_grace(ShutDown { signal: *stop_signal, ..FLUSH }, Some(HALT_GRACE))
            }
            _ => FLUSH,
        }
    }

    /// Holds the conversation; every event of it goes to the driver.
    pub(super) async fn run(
        mut self,
        mut control: UnixStream,
        events: mpsc::Sender<Event>,
        flush_requested: oneshot::Receiver<Option<Duration>>,
        signals: mpsc::Receiver<u8>,
    ) {
        // The driver outlives this task, so a failed send means that it is ending already.
        if let Some(freeze) = self.freeze.take() {
            match self.freeze(&mut control, freeze).await {
                Err(trouble) => return drop(events.send(trouble.into()).await),
                Ok(frozen) if matches!(self.work, Work::Freeze) => {
                    let failed =
                        |reason| Event::GuestFailed(format!("the guest could not be frozen: {reason}"));
                    let event = frozen.map_or_else(failed, |()| Event::WorkDone(Outcome::Frozen));
                    return drop(events.send(event).await);
                }
                // It costs the next run its warm start and this one nothing.
                Ok(Err(reason)) => {
                    let _ = self
                        .context
                        .reports
                        .send(Report::Notice(format!("no template was made: {reason}")))
                        .await;
                }
                Ok(Ok(())) => {}
            }
        }
        let mut session = match self.open(control).await {
            Ok(session) => session,
            Err(trouble) => return drop(events.send(trouble.into()).await),
        };
        let _ = events.send(Event::AgentReady).await;
        let (budget, watch) = (self.context.budget.clone(), Rc::clone(&self.context.state));
        let (handle, guest_end) = (session.handle.clone(), self.context.guest_end.clone());
        // What the conversation itself runs into is more precise than what its channel's end or a silence say.
        tokio::select! {
            biased;
            () = self.converse(&handle, &events, flush_requested, signals) => {}
            reason = session.ended() => drop(events.send(Event::ChannelBroken(reason)).await),
            () = guest_end.watch(&handle, &events) => {}
            message = unresponsive(&handle, &budget, &watch) => drop(events.send(Event::GuestHung(message)).await),
        }
    }

    /// Does the work, and flushes when that is requested: while the work runs, or after it.
    async fn converse(
        &mut self,
        session: &SessionHandle,
        events: &mpsc::Sender<Event>,
        mut flush_requested: oneshot::Receiver<Option<Duration>>,
        signals: mpsc::Receiver<u8>,
    ) {
        let shut_down = self.shut_down();
        let mut work = pin!(self.work(session, events, signals));
        // The request wins over the work only when the work is not done. A driver that drops the sender is ending, and
        // kills the machine: there is nothing left to say then.
        let requested = tokio::select! {
            biased;
            done = &mut work => {
                let _ = events.send(done.map_or_else(Event::from, Event::WorkDone)).await;
                return if let Ok(grace) = flush_requested.await {
                    flush(session, with_grace(shut_down, grace), events).await
                };
            }
            requested = &mut flush_requested => requested,
        };
        let Ok(grace) = requested else { return };
        let shut_down = with_grace(shut_down, grace);
        // The work is polled on: what the service says while it is being ended belongs into its log. That it ends is no
        // event any more, and must not end the flush, so its branch never completes.
        tokio::select! {
            () = flush(session, shut_down, events) => {}
            () = async { drop(work.await); std::future::pending().await } => {}
        }
    }

    /// Greets the guest and configures it.
    async fn open(&mut self, mut control: UnixStream) -> Result<Session, Trouble> {
        match self.context.renewal {
            None => self.greet(&mut control, PreambleKind::Session, &self.context.budget).await?,
            Some(token) => {
                greeted(&mut control, PreambleKind::Renew, token, &self.context.budget).await?;
            }
        }
        self.context.timeline.borrow_mut().ready_us = elapsed_us(self.context.started);
        let (handle, driver) = host_session(control);
        let session = Session { handle, driver: spawn_local(driver) };

        let mut entropy = [0; 32];
        fill_random(&mut entropy)?;
        self.configure.entropy = Entropy(entropy);
        self.configure.clock_unix_ns = unix_ns();
        let configure = Box::new(self.configure.clone());
        let request = match self.context.renewal {
            None => Request::Configure(configure),
            Some(_) => Request::Renew(configure),
        };
        self.configure.secrets.clear();
        let mut stream = session.handle.open().await?;
        write_secret_message(&mut stream, &request, REQUEST_LIMIT).await?;
        drop(request);
        let budget = self.context.budget.with_own_time(CONFIGURE_TIME);
        let answer: Result<Configured, GuestError> =
            within(&budget, reply(&mut stream), "the guest did not set up its disk").await??;
        let configured = answer.map_err(|error| match error.kind {
            GuestErrorKind::Mount => Trouble::Disk(error.message),
            GuestErrorKind::Setting => Trouble::Setting(error.message),
            _ => Trouble::Guest(format!("the guest could not be set up: {}", error.message)),
        })?;
        self.leave_templates()?;

        {
            let mut timeline = self.context.timeline.borrow_mut();
            timeline.configured_us = elapsed_us(self.context.started);
            timeline.guest_boot_us = configured.timings.boot_us;
            timeline.guest_disk_us = configured.timings.disk_us;
            timeline.guest_network_us = configured.timings.network_us;
        }
        for notice in configured.notices.iter().take(NOTICES_MAX) {
            let notice = printable(notice, NOTICE_LEN, &[]);
            let _ = self.context.reports.send(Report::Notice(notice)).await;
        }
        Ok(session)
    }

    async fn greet(
        &self,
        control: &mut UnixStream,
        kind: PreambleKind,
        budget: &AnswerBudget,
    ) -> Result<(), Trouble> {
        let mut nonce = [0; 16];
        fill_random(&mut nonce)?;
        greeted(control, kind, nonce, budget).await
    }

    /// Freezes the guest into a template as soon as it answers, and resumes it. The inner result says
    /// whether there is a template now.
    async fn freeze(
        &mut self,
        control: &mut UnixStream,
        freeze: Freeze,
    ) -> Result<Result<(), String>, Trouble> {
        let Freeze { freezer, monitor, add_disks, state } = freeze;
        self.greet(control, PreambleKind::Ping, &self.context.budget).await?;
        self.context.timeline.borrow_mut().ready_us = elapsed_us(self.context.started);
        if freezer.wants_mount() {
            self.greet(control, PreambleKind::Mount, &self.context.budget.with_own_time(CONFIGURE_TIME))
                .await?;
        }
        let stopped = Instant::now();
        let budget = self.context.budget.with_own_time(FREEZE_TIME).at_most(FREEZE_PATIENCE);
        let frozen = monitor.freeze_into(&freezer, &budget).await;
        monitor.execute(add_disks).await.map_err(|e| {
            Trouble::Guest(format!("the guest was not given its disks: {}", microagent_proto::chain(&e)))
        })?;
        monitor
            .go_on()
            .await
            .map_err(|e| Trouble::Guest(format!("the guest did not resume after a freeze: {e}")))?;
        self.context.timeline.borrow_mut().freeze_us = elapsed_us(stopped);
        let published = frozen.and_then(|()| freezer.publish(&state).map_err(|e| e.to_string()));
        self.leave_templates()?;
        Ok(published)
    }

    /// Gives up what the supervisor may do with templates. No program of the image has run.
    fn leave_templates(&mut self) -> Result<(), Trouble> {
        let left = self.without_templates.take().map_or(Ok(()), |needs| leave_templates(&needs));
        left.map_err(|e| Trouble::Guest(format!("the supervisor cannot be confined further: {e}")))
    }

    async fn work(
        &mut self,
        session: &SessionHandle,
        events: &mpsc::Sender<Event>,
        signals: mpsc::Receiver<u8>,
    ) -> Result<Outcome, Trouble> {
        match self.work.clone() {
            Work::Run { setup, command, relay } => {
                self.lend(session);
                let mut attached =
                    relay.and_then(|shown| Some(Attached { relay: self.context.relay.take()?, shown }));
                let outcome = match self.set_up(session, setup, attached.as_mut()).await? {
                    Some(failed) => failed,
                    None => self.command(session, command, attached.as_mut()).await?,
                };
                // The machine ends after this, and with it the chance to show what is still on its way.
                if let Some(Attached { relay, .. }) = attached {
                    relay.finish().await;
                }
                Ok(outcome)
            }
            Work::Prepare { setup, .. } => {
                Ok(self.set_up(session, setup, None).await?.unwrap_or(Outcome::Prepared))
            }
            Work::Serve { service, .. } => {
                self.lend(session);
                let Some(service) = service else {
                    let _ = events.send(Event::Serving).await;
                    return std::future::pending().await;
                };
                let conversation = Conversation::Service { events, signals };
                // The service of a captured machine runs already.
                let request = self.context.renewal.map_or(Request::Exec(service), |_| Request::Adopt);
                let result = self.exec(session, request, conversation).await?;
                write_json(&self.result, &result).map_err(|e| Trouble::Host(microagent_proto::chain(&e)))?;
                Ok(Outcome::ServiceEnded(result))
            }
            // Its conversation ends with the freeze; that it comes this far means that there was none.
            Work::Freeze => Err(Trouble::Guest("there was nothing to freeze the guest into".to_owned())),
        }
    }

    /// Runs the command of a run.
    async fn command(
        &mut self,
        session: &SessionHandle,
        command: Exec,
        attached: Option<&mut Attached>,
    ) -> Result<Outcome, Trouble> {
        let _ = self.context.reports.send(Report::Command).await;
        self.context.timeline.borrow_mut().command_us = elapsed_us(self.context.started);
        let result = self.exec(session, Request::Exec(command), Conversation::Command { attached }).await?;
        self.context.timeline.borrow_mut().exited_us = elapsed_us(self.context.started);
        Ok(Outcome::Completed(result))
    }

    /// Clients can have streams from now on, while the machine runs.
    fn lend(&self, session: &SessionHandle) {
        if let Some(server) = &self.context.control {
            server.lend_from(session.clone());
            server.show_state(self.context.state.get());
        }
    }

    /// Runs setup steps one after the other; gives the outcome of the first that fails.
    async fn set_up(
        &mut self,
        session: &SessionHandle,
        setup: Vec<Step>,
        mut attached: Option<&mut Attached>,
    ) -> Result<Option<Outcome>, Trouble> {
        for (number, step) in setup.into_iter().enumerate() {
            let _ = self.context.reports.send(Report::Setup(number)).await;
            let conversation = Conversation::Setup { attached: attached.as_deref_mut() };
            let result = self.exec(session, Request::Exec(step.exec), conversation).await?;
            if result.exit_code != 0 {
                let RecordedResult { exit_code, start_error, .. } = result;
                return Ok(Some(Outcome::SetupFailed { step: number, exit_code, start_error }));
            }
        }
        Ok(None)
    }
}

async fn greeted(
    control: &mut UnixStream,
    kind: PreambleKind,
    nonce: [u8; 16],
    budget: &AnswerBudget,
) -> Result<(), Trouble> {
    within(budget, greet(control, kind, nonce), "the guest did not answer").await?.map_err(|e| {
        let message = format!("the guest did not answer: {e}");
        match e.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::Other => Trouble::Guest(message),
            _ => Trouble::Channel(message),
        }
    })
}

/// Waits for an answer of a guest that is being started.
async fn within<T>(budget: &AnswerBudget, answer: impl Future<Output = T>, what: &str) -> Result<T, Trouble> {
    tokio::select! {
        biased;
        answer = answer => Ok(answer),
        exhausted = budget.exhausted() => {
            let message = format!("{what} {}", budget.describe(&exhausted));
            Err(match exhausted {
                Exhausted::Guest => Trouble::Guest(message),
                Exhausted::Host => Trouble::HostTooSlow(message),
            })
        }
    }
}

/// A shutdown with the time that a client gives the guest's processes.
fn with_grace(shut_down: ShutDown, grace: Option<Duration>) -> ShutDown {
    let ms = grace.map(|grace| u32::try_from(grace.as_millis()).unwrap_or(u32::MAX));
    ShutDown { grace_ms: ms.unwrap_or(shut_down.grace_ms), ..shut_down }
}

/// Makes the guest end all processes and flush its disk.
async fn flush(session: &SessionHandle, shut_down: ShutDown, events: &mpsc::Sender<Event>) {
    let flushed = async {
        let mut stream = ask(session, &Request::ShutDown(shut_down)).await?;
        let answer: Result<(), GuestError> = reply(&mut stream).await?;
        answer.map_err(|e| Trouble::Guest(e.message))
    };
    let event = match flushed.await {
        Ok(()) => Event::Flushed,
        Err(
            Trouble::Guest(message)
            | Trouble::Channel(message)
            | Trouble::Disk(message)
            | Trouble::Setting(message)
            | Trouble::Host(message)
            | Trouble::HostTooSlow(message),
        ) => Event::FlushFailed(message),
    };
    let _ = events.send(event).await;
}

/// Has a guest that was paused set its clock. If it fails, the guest continues with a wrong one.
pub(super) async fn correct_clock(session: SessionHandle) {
    let corrected = spawn_local(async move {
        let request = Request::SetClock(SetClock { unix_ns: unix_ns() });
        let _ = timeout(ASK_DEADLINE, async {
            reply::<Result<(), GuestError>>(&mut ask(&session, &request).await?).await
        })
        .await;
    });
    let _ = timeout(CLOCK_PATIENCE, corrected).await;
}

/// Sends a request and reads the one answer; `None` if the guest breaks off.
pub(super) async fn answer<T: DeserializeOwned>(session: &SessionHandle, request: &Request) -> Option<T> {
    reply(&mut ask(session, request).await.ok()?).await.ok()
}

/// The host's wall clock in nanoseconds since 1970.
fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Opens a stream with a request.
pub(super) async fn ask(session: &SessionHandle, request: &Request) -> Result<Stream, Trouble> {
    let asked = async {
        let mut stream = session.open().await?;
        write_message(&mut stream, request, REQUEST_LIMIT).await?;
        Ok(stream)
    };
    match timeout(ASK_DEADLINE, asked).await {
        Ok(asked) => asked,
        Err(_) => {
            let seconds = ASK_DEADLINE.as_secs();
            Err(Trouble::Guest(format!("the guest took no request for {seconds} s")))
        }
    }
}

/// Reads one answer; the end of the stream is an error.
async fn reply<T: DeserializeOwned>(stream: &mut Stream) -> Result<T, Trouble> {
    read_message(stream, REPLY_LIMIT).await?.ok_or_else(closed)
}

pub(super) fn closed() -> Trouble {
    Trouble::Channel("the guest closed the control channel".to_owned())
}

fn fill_random(buffer: &mut [u8]) -> Result<(), Trouble> {
    match getrandom(&mut *buffer, GetRandomFlags::empty()) {
        Ok(filled) if filled == buffer.len() => Ok(()),
        Ok(_) => Err(Trouble::Host("the host's random number source gave too little".to_owned())),
        Err(errno) => Err(Trouble::Host(format!("the host has no random numbers: {errno}"))),
    }
}
