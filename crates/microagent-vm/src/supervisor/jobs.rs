//! Jobs: commands that clients start and nobody has to wait for.
//!
//! A job belongs to the supervisor from its first moment on: clients may die at any time. Its record and its output lie in the
//! workspace's directory, where everybody reads them without the supervisor. A job ends with its guest at the latest.

mod conversation;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::{FailureKind, JobId, JobState, State, WorkspaceFailure};
use microagent_proto::{Chunk, SessionHandle};
use microagent_store::{JobDir, JobEnd, JobRecord, ProcessId, WorkspaceDir};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep};

pub(crate) use self::conversation::JOB_START_DEADLINE;
use self::conversation::{Conversation, Ended, Inputs};
use super::worker::Trouble;
use super::{full_or_boot, write_failure};
use crate::control::{Answer, JobOrder, JobRequest, Refusal};
use crate::job_output::JobOutputWriter;

/// Most jobs that run at a time.
pub(crate) const RUNNING_JOBS_MAX: usize = 32;

/// Most jobs that are kept, with those that have ended.
const JOBS_MAX: usize = 64;
const _: () = assert!(RUNNING_JOBS_MAX < JOBS_MAX);

/// How long the end of the machine may take to show after a job was killed that nobody killed: with process 1 of a guest
/// the kernel ends all others.
const REASON_PATIENCE: Duration = Duration::from_millis(500);

/// How often that is looked at.
const REASON_INTERVAL: Duration = Duration::from_millis(20);

/// Pause before it is tried again to write down how a job ended.
const RECORD_INTERVAL: Duration = Duration::from_secs(1);

/// Orders and pieces of input that wait for a job.
const QUEUE: usize = 2;

/// `SIGKILL`, as every Linux numbers it.
const SIGKILL: i32 = 9;

/// The jobs of one workspace.
pub(super) struct Jobs {
    dir: WorkspaceDir,
    running: RefCell<BTreeMap<JobId, RunningJob>>,
    /// With those that are being started.
    count: Rc<Cell<usize>>,
    newest: Cell<Option<JobId>>,
    /// State of the machine.
    state: Cell<State>,
}

/// A job that has started and whose end is not written down yet.
struct RunningJob {
    dir: JobDir,
    record: JobRecord,
    orders: mpsc::Sender<Order>,
    stdin: Option<mpsc::Sender<Input>>,
    printed: Rc<Cell<u64>>,
    /// What is written down when the machine ends now, where that is known.
    seen: Option<JobEnd>,
    task: JoinHandle<()>,
}

/// Something that a job is told, and who waits until it was told.
struct Order {
    order: JobOrder,
    told: oneshot::Sender<()>,
}

/// A part of a job's standard input.
enum Input {
    Bytes(Chunk),
    End,
    /// Everything before it was passed on.
    Passed(oneshot::Sender<()>),
}

/// The standard input of a running job, for one client.
pub(super) struct JobStdin {
    inputs: mpsc::Sender<Input>,
}

/// One of the jobs that may run, as long as it exists.
pub(super) struct JobPlace(Rc<Cell<usize>>);

impl Drop for JobPlace {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Jobs {
    /// Of a workspace whose lock this process holds.
    pub(super) fn of(dir: &WorkspaceDir) -> Rc<Jobs> {
        dir.sweep_jobs();
        Rc::new(Jobs {
            dir: dir.clone(),
            running: RefCell::default(),
            count: Rc::default(),
            newest: Cell::default(),
            state: Cell::new(State::Starting),
        })
    }

    /// The machine is in another state.
    pub(super) fn show_state(&self, state: State) {
        self.state.set(state);
    }

    /// A place for one more job, if there is one.
    pub(super) fn place(&self) -> Option<JobPlace> {
        let count = self.count.get();
        (count < RUNNING_JOBS_MAX).then(|| {
            self.count.set(count + 1);
            JobPlace(Rc::clone(&self.count))
        })
    }

    /// Starts a job. `held` is what it takes of the supervisor, until it has ended.
    pub(super) async fn start<T: 'static>(
        self: &Rc<Jobs>,
        session: &SessionHandle,
        request: JobRequest,
        held: T,
    ) -> Answer {
        self.try_start(session, request, held).await.unwrap_or_else(Answer::Failed)
    }

    async fn try_start<T: 'static>(
        self: &Rc<Jobs>,
        session: &SessionHandle,
        JobRequest { exec, command, timeout }: JobRequest,
        held: T,
    ) -> Result<Answer, WorkspaceFailure> {
        let id = self.next_id()?;
        let record = JobRecord {
            id,
            command,
            started_at: Timestamp::now(),
            stdin: exec.stdin,
            supervisor: ProcessId::current(),
            end: None,
        };
        let starting = self.dir.begin_job(&record).map_err(|error| write_failure(&error))?;
        let printed = Rc::default();
        let output = JobOutputWriter::new(starting.clone());
        let started = Conversation::start(session, exec, output, Rc::clone(&printed)).await;
        let mut conversation = match started {
            Ok(Ok(conversation)) => conversation,
            not_started => {
                starting.remove();
                return match not_started {
                    Ok(Err((exit_code, message))) => Ok(Answer::JobNotStarted { exit_code, message }),
                    Err(trouble) => Err(failure(trouble)),
                    Ok(Ok(_)) => unreachable!("that it has started was the other case"),
                };
            }
        };
        if self.machine_ends() {
            starting.remove();
            let message = "the machine ends".to_owned();
            return Err(WorkspaceFailure { kind: FailureKind::GuestDied, message });
        }
        // From here on there is no await until it is in the list.
        let dir = match starting.clone().publish(&self.dir, id) {
            Ok(dir) => dir,
            Err(error) => {
                // Its command is killed with its stream.
                starting.remove();
                return Err(full_or_boot(&error, "the job cannot be recorded"));
            }
        };
        conversation.moved(dir.clone());
        let (orders, ordered) = mpsc::channel(QUEUE);
        let (stdin, input) = if record.stdin {
            let (sender, receiver) = mpsc::channel(QUEUE);
            (Some(sender), Some(receiver))
        } else {
            (None, None)
        };
        let inputs = Inputs { orders: ordered, stdin: input, timeout };
        let jobs = Rc::clone(self);
        let task = spawn_local(async move {
            let _held = held;
            jobs.follow(id, conversation, inputs).await;
        });
        let running = RunningJob { dir, record, orders, stdin, printed, seen: None, task };
        self.running.borrow_mut().insert(id, running);
        Ok(Answer::JobStarted(id))
    }

    /// The number of the next job, for which there is room in the list.
    fn next_id(&self) -> Result<JobId, WorkspaceFailure> {
        let unreadable = |error: io::Error| full_or_boot(&error, "the list of jobs");
        let mut ids = self.dir.job_ids().map_err(unreadable)?;
        let newest = self.newest.get().max(ids.last().copied());
        let id = match newest {
            None => JobId::FIRST,
            Some(newest) => newest.next().ok_or_else(|| WorkspaceFailure {
                kind: FailureKind::Boot,
                message: "the workspace has had all the jobs that have a number".to_owned(),
            })?,
        };
        self.newest.set(Some(id));
        ids.retain(|id| !self.running.borrow().contains_key(id));
        // Those that are being started are not in the list yet, and have their place in it.
        let kept = JOBS_MAX - self.count.get();
        for id in &ids[..ids.len().saturating_sub(kept)] {
            self.dir.job(*id).remove();
        }
        Ok(id)
    }

    /// Follows a job to its end and writes that down.
    async fn follow(&self, id: JobId, mut conversation: Conversation, inputs: Inputs) {
        let ended = conversation.hold(inputs).await;
        let end = conversation.end_of(ended.as_ref());
        // With the machine on its way down nobody can tell which ended which.
        let with_machine = JobEnd { state: JobState::MachineEnded, ..end.clone() };
        self.see(id, &with_machine);
        let end = match ended {
            Some(ended) if !self.ends_with_machine(&ended).await => end,
            _ => with_machine,
        };
        self.see(id, &end);
        self.record_end(id, &mut conversation).await;
        // This ends the task as well.
        self.running.borrow_mut().remove(&id);
    }

    /// Whether a job ended because its machine ends.
    async fn ends_with_machine(&self, ended: &Ended) -> bool {
        let deadline = Instant::now() + REASON_PATIENCE;
        let is_unexplained = ended.signal == Some(SIGKILL) && !ended.was_killed;
        while is_unexplained && !self.machine_ends() && Instant::now() < deadline {
            sleep(REASON_INTERVAL).await;
        }
        self.machine_ends()
    }

    fn machine_ends(&self) -> bool {
        !matches!(self.state.get(), State::Running | State::Paused)
    }

    fn see(&self, id: JobId, end: &JobEnd) {
        if let Some(job) = self.running.borrow_mut().get_mut(&id) {
            job.seen = Some(end.clone());
        }
    }

    /// Writes down what was seen of a job's end. A full disk gets room by what the job itself has there, or is waited for.
    async fn record_end(&self, id: JobId, conversation: &mut Conversation) {
        loop {
            if self.running.borrow().get(&id).is_none_or(|job| job.record_end()) {
                return;
            }
            if !conversation.drop_oldest_output() {
                sleep(RECORD_INTERVAL).await;
            }
        }
    }

    /// Ends all jobs: their guest is gone or stopped for good. Their ends are written down when this returns.
    pub(super) fn end_all(&self) {
        for (_, mut job) in std::mem::take(&mut *self.running.borrow_mut()) {
            job.task.abort();
            job.seen.get_or_insert_with(|| JobEnd {
                at: Some(Timestamp::now()),
                printed_bytes: Some(job.printed.get()),
                ..JobEnd::unseen(JobState::MachineEnded)
            });
            // Where that fails, the end of this process says the same.
            job.record_end();
        }
    }

    /// Tells a running job something.
    pub(super) async fn tell(&self, id: JobId, order: JobOrder) -> Answer {
        let orders = self.running.borrow().get(&id).map(|job| job.orders.clone());
        let Some(orders) = orders else { return Answer::Refused(self.missing(id)) };
        let (told, is_told) = oneshot::channel();
        let sent = orders.send(Order { order, told }).await;
        match sent.is_ok() && is_told.await.is_ok() {
            true => Answer::Done,
            false => Answer::Refused(Refusal::JobEnded),
        }
    }

    /// The standard input of a running job.
    pub(super) fn stdin(&self, id: JobId) -> Result<JobStdin, Refusal> {
        let running = self.running.borrow();
        let job = running.get(&id).ok_or_else(|| self.missing(id))?;
        if job.orders.is_closed() {
            return Err(Refusal::JobEnded);
        }
        let inputs = job.stdin.clone().filter(|inputs| !inputs.is_closed()).ok_or(Refusal::NoStdin)?;
        Ok(JobStdin { inputs })
    }

    /// Why a job is not running.
    fn missing(&self, id: JobId) -> Refusal {
        match self.dir.job(id).load() {
            Ok(_) => Refusal::JobEnded,
            Err(_) => Refusal::NoSuchJob,
        }
    }
}

impl RunningJob {
    /// Writes down what was seen of its end; whether that worked.
    fn record_end(&self) -> bool {
        let record = JobRecord { end: self.seen.clone(), ..self.record.clone() };
        let write = || self.dir.write(&record);
        let is_written = write().is_ok() || self.dir.give_room() && write().is_ok();
        if is_written {
            // It is kept for this moment.
            self.dir.give_room();
        }
        is_written
    }
}

impl JobStdin {
    /// Passes bytes on; waits while the command does not read. An error means that it takes nothing any more.
    pub(super) async fn write(&self, bytes: Chunk) -> Result<(), Refusal> {
        self.send(Input::Bytes(bytes)).await
    }

    /// Ends the standard input.
    pub(super) async fn end(&self) -> Result<(), Refusal> {
        self.send(Input::End).await
    }

    /// Waits until everything was passed on.
    pub(super) async fn passed(&self) -> Result<(), Refusal> {
        let (passed, is_passed) = oneshot::channel();
        self.send(Input::Passed(passed)).await?;
        is_passed.await.map_err(|_| Refusal::JobEnded)
    }

    /// Waits until the command takes nothing any more.
    pub(super) async fn closed(&self) {
        self.inputs.closed().await;
    }

    async fn send(&self, input: Input) -> Result<(), Refusal> {
        self.inputs.send(input).await.map_err(|_| Refusal::JobEnded)
    }
}

/// Why a job could not be started, as a failure.
fn failure(trouble: Trouble) -> WorkspaceFailure {
    let (kind, message) = match trouble {
        Trouble::Guest(message) | Trouble::Setting(message) => (FailureKind::Protocol, message),
        Trouble::Channel(message) => (FailureKind::GuestDied, message),
        Trouble::Disk(message) => (FailureKind::Disk, message),
        Trouble::Host(message) | Trouble::HostTooSlow(message) => (FailureKind::HostFull, message),
    };
    WorkspaceFailure { kind, message }
}
