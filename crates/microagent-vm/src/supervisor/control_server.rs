//! The control socket: accepts clients, passes their requests to the driver, and lends them streams of the guest's
//! agent, and the console to one client at a time.
//! Clients are processes of the same user that know the workspace's key. They may be slow or hang: each has a
//! deadline for its request, their number is limited, and a client that does not read blocks only its own stream.

mod jobs;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use microagent_model::{Publish, STOP_TIMEOUT_MAX, State};
use microagent_proto::{SESSION_STREAM_LIMIT, SessionHandle, read_message, write_message};
use microagent_store::{CONTROL_KEY_LEN, ControlKey, WorkspaceDir};
use rustix::process::geteuid;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::base_disk::BaseDisk;
use super::console::Console;
use super::copies::{Stop, Stopping, stop};
use super::jobs::Jobs;
use crate::control::{Answer, CONTROL_LIMIT, ControlRequest, Hello, Refusal, take_descriptors};
use crate::lifecycle::ChangeRequest;

/// How long a client may take to send its request.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);

/// Most clients at a time that have not sent their request yet.
const KEYLESS_LIMIT: usize = 32;

/// How long clients may take to read the last answers.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// Most clients at a time that wait for an answer.
const CLIENT_LIMIT: usize = 128;

/// Most streams that are lent at a time. The rest is the supervisor's own: service and shutdown.
const LENT_STREAM_LIMIT: usize = SESSION_STREAM_LIMIT - 8;

/// How long a client may compare the root disk of a guest with its base disk.
const COMPARISON_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Bytes that are copied at once, in each direction of a stream.
const COPY_BYTES: usize = 64 * 1024;

/// A requested change of the state, which the driver answers.
pub(super) struct PendingChange {
    pub(super) request: ChangeRequest,
    /// How long the guest's processes have to end, in place of the usual time.
    pub(super) grace: Option<Duration>,
    /// Why, for the workspace's events.
    pub(super) reason: Option<String>,
    /// What the machine is captured into.
    pub(super) files: Option<CaptureFiles>,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// What a machine is captured into: the next overlay, and the file of its memory.
pub(super) struct CaptureFiles {
    pub(super) overlay: OwnedFd,
    pub(super) memory: Option<OwnedFd>,
    /// How the client is told when it can copy the machine's further disks, if it does.
    pub(super) stop: Option<Stop>,
}

/// A requested time to live, which the driver answers.
pub(super) struct PendingTtl {
    pub(super) limit: Option<Duration>,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// A requested change of the published ports, which the driver answers.
pub(super) struct PendingPort {
    pub(super) change: PortChange,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// A change of the published ports.
pub(super) enum PortChange {
    Open { bound: Publish, socket: OwnedFd },
    Close(Publish),
}

/// Requests of clients, as the driver receives them.
pub(super) struct ClientRequests {
    pub(super) changes: mpsc::Receiver<PendingChange>,
    pub(super) renewals: mpsc::Receiver<PendingTtl>,
    pub(super) ports: mpsc::Receiver<PendingPort>,
}

/// What clients can request now.
enum StreamAccess {
    /// The guest does not listen; why.
    Closed(State),
    /// Streams of this session.
    Open(SessionHandle),
}

/// The listening socket. Dropping it removes the socket; lent streams end with the machine.
pub(super) struct ControlServer {
    dir: WorkspaceDir,
    access: Shared<StreamAccess>,
    session: RefCell<Option<SessionHandle>>,
    cut_off: CancellationToken,
    console: Shared<Option<Console>>,
    base: Shared<Option<BaseDisk>>,
    jobs: Rc<Jobs>,
    answers: Rc<Semaphore>,
    task: JoinHandle<()>,
}

/// Answers that are still to be written after the socket is gone.
pub(super) struct UnwrittenAnswers(Rc<Semaphore>);

impl UnwrittenAnswers {
    /// Waits until every client has its answer, for a moment.
    pub(super) async fn written(self) {
        let all = u32::try_from(CLIENT_LIMIT).expect("the limit is small");
        // Who does not read its answer does without.
        let _ = timeout(ANSWER_PATIENCE, self.0.acquire_many(all)).await;
    }
}

impl ControlServer {
    /// Listens; requests come out of the receivers.
    pub(super) fn open(dir: &WorkspaceDir) -> io::Result<(ControlServer, ClientRequests)> {
        let mut key = [0; CONTROL_KEY_LEN];
        if getrandom(&mut key, GetRandomFlags::empty())? != key.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let listener = dir.listen(&key)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let access: Shared<StreamAccess> = Rc::new(RefCell::new(StreamAccess::Closed(State::Starting)));
        let (changes, pending_changes) = mpsc::channel(super::QUEUE);
        let (renewals, pending_renewals) = mpsc::channel(super::QUEUE);
        let (ports, pending_ports) = mpsc::channel(super::QUEUE);
        let answers = Rc::new(Semaphore::new(CLIENT_LIMIT));
        let cut_off = CancellationToken::new();
        let jobs = Jobs::of(dir);
        let connection = ControlConnection {
            key,
            access: Rc::clone(&access),
            changes,
            renewals,
            ports,
            answers: Rc::clone(&answers),
            lent: Rc::default(),
            cut_off: cut_off.clone(),
            console: Rc::default(),
            base: Rc::default(),
            jobs: Rc::clone(&jobs),
        };
        let console = Rc::clone(&connection.console);
        let base = Rc::clone(&connection.base);
        let task = spawn_local(accept(listener, connection));
        let control = ControlServer {
            dir: dir.clone(),
            access,
            session: RefCell::default(),
            cut_off,
            console,
            base,
            jobs,
            answers,
            task,
        };
        let requests =
            ClientRequests { changes: pending_changes, renewals: pending_renewals, ports: pending_ports };
        Ok((control, requests))
    }

    /// Clients can have streams of this session while the machine runs.
    pub(super) fn lend_from(&self, session: SessionHandle) {
        *self.session.borrow_mut() = Some(session);
    }

    /// Clients can have this console from now on.
    pub(super) fn show_console(&self, console: Console) {
        *self.console.borrow_mut() = Some(console);
    }

    /// Clients can have this base disk shown to the guest from now on.
    pub(super) fn lend_base(&self, base: Option<BaseDisk>) {
        *self.base.borrow_mut() = base;
    }

    /// The base disk that can be shown to the guest, if there is one.
    pub(super) fn base_disk(&self) -> Option<BaseDisk> {
        self.base.borrow().clone()
    }

    /// Ends all lent streams and all jobs, and lends no more, permanently.
    pub(super) fn cut_off(&self) {
        self.session.borrow_mut().take();
        self.show_state(State::Quarantined);
        self.cut_off.cancel();
        self.jobs.end_all();
    }

    /// Lends no more streams of this session, and ends its jobs: its guest is gone. Another one may follow.
    pub(super) fn take_back(&self) {
        self.session.borrow_mut().take();
        self.jobs.end_all();
    }

    /// The session, once there is one.
    pub(super) fn session(&self) -> Option<SessionHandle> {
        self.session.borrow().clone()
    }

    /// The machine is in another state, and so is what clients can have.
    pub(super) fn show_state(&self, state: State) {
        self.jobs.show_state(state);
        *self.access.borrow_mut() = match (state, &*self.session.borrow()) {
            (State::Running, Some(session)) => StreamAccess::Open(session.clone()),
            (state, _) => StreamAccess::Closed(state),
        };
    }

    /// What is left when it is closed.
    pub(super) fn last_answers(&self) -> UnwrittenAnswers {
        UnwrittenAnswers(Rc::clone(&self.answers))
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.dir.stop_listening();
        self.task.abort();
    }
}

/// One client of the control socket.
#[derive(Clone)]
struct ControlConnection {
    key: ControlKey,
    access: Shared<StreamAccess>,
    changes: mpsc::Sender<PendingChange>,
    renewals: mpsc::Sender<PendingTtl>,
    ports: mpsc::Sender<PendingPort>,
    /// One permit for each answer that is not written yet.
    answers: Rc<Semaphore>,
    lent: Rc<Cell<usize>>,
    /// When all that is lent ends at once.
    cut_off: CancellationToken,
    console: Shared<Option<Console>>,
    base: Shared<Option<BaseDisk>>,
    jobs: Rc<Jobs>,
}

/// Takes clients in, without ever waiting for one. Who has not shown the key yet has a place among [`KEYLESS_LIMIT`]
/// for [`HELLO_DEADLINE`], and loses it to who comes later: a client that knows the key has written it by the time it
/// is taken in, so those that only connect push out each other.
async fn accept(listener: UnixListener, connection: ControlConnection) {
    let mut keyless: VecDeque<AbortOnDrop> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                keyless.retain(|entrance| !entrance.0.is_finished());
                if keyless.len() >= KEYLESS_LIMIT {
                    keyless.pop_front();
                }
                keyless.push_back(AbortOnDrop(spawn_local(connection.clone().admit(client))));
                // However many come, others have their turn.
                tokio::task::yield_now().await;
            }
            // Out of descriptors, most likely: some come back when clients leave.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A task that ends with its owner.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ControlConnection {
    /// Reads what a client requests, and serves it in a task of its own if it knows the key.
    async fn admit(self, mut client: UnixStream) {
        if !client.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw()) {
            return;
        }
        match timeout(HELLO_DEADLINE, read_message::<Hello, _>(&mut client, CONTROL_LIMIT)).await {
            Ok(Ok(Some(hello))) if hello.is_understood() => {
                if hello.key == self.key {
                    spawn_local(async move { self.serve(client, hello.request, hello.reason).await });
                }
            }
            Ok(Ok(Some(_)) | Err(_)) => {
                let answer = Answer::Refused(Refusal::OtherBuild);
                let _ = timeout(HELLO_DEADLINE, write_message(&mut client, &answer, CONTROL_LIMIT)).await;
            }
            Ok(Ok(None)) | Err(_) => {}
        }
    }

    async fn serve(&self, mut client: UnixStream, request: ControlRequest, reason: Option<String>) {
        // Kept until the answer is written; streams are counted apart.
        let unanswered = self.answers.acquire();
        let answer = match request {
            ControlRequest::StartJob => {
                let _unanswered = unanswered.await;
                return self.start_job(client).await;
            }
            ControlRequest::JobStdin(job) => {
                let _unanswered = unanswered.await;
                return self.job_stdin(client, job).await;
            }
            ControlRequest::TellJob(job, order) => (unanswered.await, self.tell_job(job, order).await),
            ControlRequest::Attach => return self.lend(client).await,
            ControlRequest::AttachWithBase => return self.lend_with_base(client).await,
            ControlRequest::Console => return self.lend_console(client).await,
            ControlRequest::Change { request, grace } => {
                let Ok(mut files) = capture_files(&client, request).await else { return };
                let stopping = files.as_mut().and_then(|files| files.stopping(request));
                let unanswered = unanswered.await;
                let changed = self.change(request, grace, reason, files);
                let answer = match stopping {
                    Some(stopping) => stopping.during(changed, &mut client).await,
                    None => changed.await,
                };
                (unanswered, answer)
            }
            ControlRequest::RenewTtl(limit) => (unanswered.await, self.renew_ttl(limit).await),
            ControlRequest::OpenPort(bound) => {
                let Ok(Ok([socket])) = timeout(HELLO_DEADLINE, take_descriptors(&client)).await else {
                    return;
                };
                (unanswered.await, self.change_port(PortChange::Open { bound, socket }).await)
            }
            ControlRequest::ClosePort(bound) => {
                (unanswered.await, self.change_port(PortChange::Close(bound)).await)
            }
        };
        // A client that is gone misses nothing.
        let _ = write_message(&mut client, &answer.1, CONTROL_LIMIT).await;
    }

    /// Passes the request to the driver, which answers. If the driver has ended, so has the machine.
    async fn change(
        &self,
        request: ChangeRequest,
        grace: Option<Duration>,
        reason: Option<String>,
        files: Option<CaptureFiles>,
    ) -> Answer {
        let grace = grace.map(|grace| grace.min(STOP_TIMEOUT_MAX));
        let (reply, answer) = oneshot::channel();
        let refused = Answer::Refused(Refusal::State(State::Stopping));
        if self.changes.send(PendingChange { request, grace, reason, files, reply }).await.is_err() {
            return refused;
        }
        answer.await.unwrap_or(refused)
    }

    /// Has the driver change the time to live. One that is gone has ended the machine.
    async fn renew_ttl(&self, limit: Option<Duration>) -> Answer {
        let (reply, answer) = oneshot::channel();
        let refused = Answer::Refused(Refusal::State(State::Stopping));
        if self.renewals.send(PendingTtl { limit, reply }).await.is_err() {
            return refused;
        }
        answer.await.unwrap_or(refused)
    }

    /// Has the driver change the published ports. One that is gone has ended the machine.
    async fn change_port(&self, change: PortChange) -> Answer {
        let (reply, answer) = oneshot::channel();
        let refused = Answer::Refused(Refusal::State(State::Stopping));
        if self.ports.send(PendingPort { change, reply }).await.is_err() {
            return refused;
        }
        answer.await.unwrap_or(refused)
    }

    /// Makes the connection a stream of the agent, until either side closes it.
    async fn lend(&self, mut client: UnixStream) {
        let session = match &*self.access.borrow() {
            StreamAccess::Closed(state) => Err(Refusal::State(*state)),
            StreamAccess::Open(_) if self.lent.get() >= LENT_STREAM_LIMIT => Err(Refusal::Crowded),
            StreamAccess::Open(session) => Ok(session.clone()),
        };
        let _lent = LentStream::count(&self.lent);
        let opened = match session {
            Ok(session) => session.open().await.map_err(|_| Refusal::State(State::Stopping)),
            Err(refusal) => Err(refusal),
        };
        let answer = if let Err(refusal) = &opened { Answer::Refused(*refusal) } else { Answer::Attached };
        if write_message(&mut client, &answer, CONTROL_LIMIT).await.is_err() {
            return;
        }
        if let Ok(mut stream) = opened {
            let copied = copy_bidirectional_with_sizes(&mut client, &mut stream, COPY_BYTES, COPY_BYTES);
            // Whoever broke it off knows why; the other side sees the end of its stream.
            tokio::select! {
                _ = copied => {}
                () = self.cut_off.cancelled() => {}
            }
        }
    }
}

impl ControlConnection {
    /// Makes the connection a stream of the agent, and shows the guest its base disk as long as it is one.
    async fn lend_with_base(&self, mut client: UnixStream) {
        let base = match (&*self.access.borrow(), &*self.base.borrow()) {
            (StreamAccess::Closed(state), _) => Err(Answer::Refused(Refusal::State(*state))),
            (StreamAccess::Open(_), None) => Err(Answer::Refused(Refusal::State(State::Starting))),
            (StreamAccess::Open(_), Some(base)) => Ok(base.clone()),
        };
        let shown = match base {
            Ok(base) => base.show().await,
            Err(answer) => Err(answer),
        };
        match shown {
            Ok(shown) => {
                // A guest that keeps its end of the stream open keeps the disk no longer than this.
                let _ = timeout(COMPARISON_LIMIT, self.lend(client)).await;
                shown.hide().await;
            }
            Err(answer) => drop(write_message(&mut client, &answer, CONTROL_LIMIT).await),
        }
    }

    /// Makes the connection a session at the console, until the client closes it.
    async fn lend_console(&self, mut client: UnixStream) {
        let console = match (&*self.console.borrow(), &*self.access.borrow()) {
            (None, StreamAccess::Closed(state)) | (_, StreamAccess::Closed(state @ State::Quarantined)) => {
                Err(Refusal::State(*state))
            }
            (None, StreamAccess::Open(_)) => Err(Refusal::State(State::Starting)),
            (Some(console), _) => Ok(console.clone()),
        };
        let session = console.and_then(|console| console.open().ok_or(Refusal::ConsoleTaken));
        let answer = if let Err(refusal) = &session { Answer::Refused(*refusal) } else { Answer::Attached };
        if write_message(&mut client, &answer, CONTROL_LIMIT).await.is_err() {
            return;
        }
        if let Ok(session) = session {
            tokio::select! {
                () = session.hold(client) => {}
                () = self.cut_off.cancelled() => {}
            }
        }
    }
}

impl CaptureFiles {
    /// What tells the client that the machine is stopped, if that was requested.
    fn stopping(&mut self, request: ChangeRequest) -> Option<Stopping> {
        let ChangeRequest::Capture { copies: true, .. } = request else { return None };
        let (stop, stopping) = stop();
        self.stop = Some(stop);
        Some(stopping)
    }
}

/// Receives the files that a request comes with.
async fn capture_files(client: &UnixStream, request: ChangeRequest) -> io::Result<Option<CaptureFiles>> {
    let ChangeRequest::Capture { memory, .. } = request else { return Ok(None) };
    let received = async {
        Ok(match memory {
            false => {
                let [overlay] = take_descriptors(client).await?;
                CaptureFiles { overlay, memory: None, stop: None }
            }
            true => {
                let [overlay, memory] = take_descriptors(client).await?;
                CaptureFiles { overlay, memory: Some(memory), stop: None }
            }
        })
    };
    timeout(HELLO_DEADLINE, received).await.map_err(|_| io::ErrorKind::TimedOut)?.map(Some)
}

/// One stream that is lent, as long as it is.
struct LentStream(Rc<Cell<usize>>);

impl LentStream {
    fn count(lent: &Rc<Cell<usize>>) -> LentStream {
        lent.set(lent.get() + 1);
        LentStream(Rc::clone(lent))
    }
}

impl Drop for LentStream {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
