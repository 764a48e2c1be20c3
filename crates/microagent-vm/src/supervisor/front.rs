//! The supervisor's socket: takes clients in, passes their wishes to the driver, and lends them streams of the
//! guest's agent and, to one at a time, the console.
//!
//! Clients are processes of the same user that know the workspace's key. They are not trusted to be quick or to
//! be well: each has a deadline for its wish, they are bounded in number, and one that does not read only holds up
//! its own stream.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use microagent_proto::{GENERATION, SESSION_STREAM_LIMIT, SessionHandle, read_message, write_message};
use microagent_store::{CONTROL_KEY_LEN, ControlKey, State, WorkspaceDir};
use rustix::process::geteuid;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::console::Console;
use crate::control::{Amendment, Answer, CONTROL_LIMIT, Hello, Refusal, Wish};
use crate::lifecycle::Ask;

/// How long a client may take to say what it wants.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// How long clients may take to read the last answers.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// Most clients at a time; further ones wait in the socket's queue.
const CLIENT_LIMIT: usize = 128;

/// Most streams that are lent at a time. The rest is the supervisor's own: service and shutdown.
const LENT_LIMIT: usize = SESSION_STREAM_LIMIT - 8;

/// Bytes that are copied at once, in each direction of a stream.
const COPY_BYTES: usize = 64 * 1024;

/// A wish of a client, to be answered by the driver.
pub(super) struct Asked {
    pub(super) ask: Ask,
    /// Why, for the workspace's events.
    pub(super) reason: Option<String>,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// A client's change of the record, to be answered by the driver.
pub(super) struct Amending {
    pub(super) amendment: Amendment,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// What clients wish for, as the driver takes it.
pub(super) struct Wishes {
    pub(super) asked: mpsc::Receiver<Asked>,
    pub(super) amending: mpsc::Receiver<Amending>,
}

/// What clients can have now.
enum Gate {
    /// The guest does not listen; why.
    Closed(State),
    /// Streams of this session.
    Open(SessionHandle),
}

/// The listening socket. Dropped, it is gone; streams that were lent end with the machine.
pub(super) struct Front {
    dir: WorkspaceDir,
    gate: Shared<Gate>,
    session: RefCell<Option<SessionHandle>>,
    cut_off: CancellationToken,
    console: Shared<Option<Console>>,
    answers: Rc<Semaphore>,
    task: JoinHandle<()>,
}

/// Answers that are still to be written after the socket is gone.
pub(super) struct LastAnswers(Rc<Semaphore>);

impl LastAnswers {
    /// Waits until every client has its answer, for a moment.
    pub(super) async fn written(self) {
        let all = u32::try_from(CLIENT_LIMIT).expect("the limit is small");
        // Who does not read its answer does without.
        let _ = timeout(ANSWER_PATIENCE, self.0.acquire_many(all)).await;
    }
}

impl Front {
    /// Listens; wishes come out of the receivers.
    pub(super) fn open(dir: &WorkspaceDir) -> io::Result<(Front, Wishes)> {
        let mut key = [0; CONTROL_KEY_LEN];
        if getrandom(&mut key, GetRandomFlags::empty())? != key.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let listener = dir.listen(&key)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let gate: Shared<Gate> = Rc::new(RefCell::new(Gate::Closed(State::Starting)));
        let (wishes, asked) = mpsc::channel(super::QUEUE);
        let (amendments, amending) = mpsc::channel(super::QUEUE);
        let answers = Rc::new(Semaphore::new(CLIENT_LIMIT));
        let cut_off = CancellationToken::new();
        let desk = Desk {
            key,
            gate: Rc::clone(&gate),
            wishes,
            amendments,
            answers: Rc::clone(&answers),
            lent: Rc::default(),
            cut_off: cut_off.clone(),
            console: Rc::default(),
        };
        let console = Rc::clone(&desk.console);
        let task = spawn_local(accept(listener, desk));
        let front =
            Front { dir: dir.clone(), gate, session: RefCell::default(), cut_off, console, answers, task };
        Ok((front, Wishes { asked, amending }))
    }

    /// Clients can have streams of this session while the machine runs.
    pub(super) fn lend_from(&self, session: SessionHandle) {
        *self.session.borrow_mut() = Some(session);
    }

    /// Clients can have this console from now on.
    pub(super) fn show(&self, console: Console) {
        *self.console.borrow_mut() = Some(console);
    }

    /// Ends all streams that are lent, and lends no more: for good.
    pub(super) fn cut_off(&self) {
        self.session.borrow_mut().take();
        self.follow(State::Quarantined);
        self.cut_off.cancel();
    }

    /// The session, once there is one.
    pub(super) fn session(&self) -> Option<SessionHandle> {
        self.session.borrow().clone()
    }

    /// The machine is in another state, and so is what clients can have.
    pub(super) fn follow(&self, state: State) {
        *self.gate.borrow_mut() = match (state, &*self.session.borrow()) {
            (State::Running, Some(session)) => Gate::Open(session.clone()),
            (state, _) => Gate::Closed(state),
        };
    }

    /// What is left when it is closed.
    pub(super) fn last_answers(&self) -> LastAnswers {
        LastAnswers(Rc::clone(&self.answers))
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.dir.stop_listening();
        self.task.abort();
    }
}

/// What every client's conversation needs.
#[derive(Clone)]
struct Desk {
    key: ControlKey,
    gate: Shared<Gate>,
    wishes: mpsc::Sender<Asked>,
    amendments: mpsc::Sender<Amending>,
    /// One permit for each answer that is not written yet.
    answers: Rc<Semaphore>,
    lent: Rc<Cell<usize>>,
    /// When all that is lent ends at once.
    cut_off: CancellationToken,
    console: Shared<Option<Console>>,
}

async fn accept(listener: UnixListener, desk: Desk) {
    let room = Rc::new(Semaphore::new(CLIENT_LIMIT));
    loop {
        let permit = Rc::clone(&room);
        let Ok(()) = permit.acquire().await.map(tokio::sync::SemaphorePermit::forget) else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                let (desk, room) = (desk.clone(), Rc::clone(&room));
                spawn_local(async move {
                    desk.talk(client).await;
                    room.add_permits(1);
                });
            }
            Err(_) => {
                room.add_permits(1);
                // Out of descriptors, most likely: some come back when clients leave.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Desk {
    async fn talk(&self, mut client: UnixStream) {
        if !client.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw()) {
            return;
        }
        let Ok(unanswered) = self.answers.acquire().await else { return };
        let hello = timeout(HELLO_DEADLINE, read_message::<Hello, _>(&mut client, CONTROL_LIMIT)).await;
        let answer = match hello {
            Ok(Ok(Some(hello))) if hello.generation == GENERATION => {
                if hello.key != self.key {
                    return;
                }
                match hello.wish {
                    Wish::Attach => {
                        drop(unanswered);
                        return self.lend(client).await;
                    }
                    Wish::Console => {
                        drop(unanswered);
                        return self.show_console(client).await;
                    }
                    Wish::Change(ask) => self.pass_on(ask, hello.reason).await,
                    Wish::Amend(amendment) => self.amend(amendment).await,
                }
            }
            Ok(Ok(Some(_)) | Err(_)) => Answer::Refused(Refusal::OtherBuild),
            Ok(Ok(None)) | Err(_) => return,
        };
        // A client that is gone misses nothing.
        let _ = write_message(&mut client, &answer, CONTROL_LIMIT).await;
    }

    /// Has the driver answer. One that is gone has ended the machine.
    async fn pass_on(&self, ask: Ask, reason: Option<String>) -> Answer {
        let (reply, answer) = oneshot::channel();
        let refused = Answer::Refused(Refusal::State(State::Stopping));
        if self.wishes.send(Asked { ask, reason, reply }).await.is_err() {
            return refused;
        }
        answer.await.unwrap_or(refused)
    }

    /// Has the driver write the record. One that is gone has written it for the last time.
    async fn amend(&self, amendment: Amendment) -> Answer {
        let (reply, answer) = oneshot::channel();
        let refused = Answer::Refused(Refusal::State(State::Stopping));
        if self.amendments.send(Amending { amendment, reply }).await.is_err() {
            return refused;
        }
        answer.await.unwrap_or(refused)
    }

    /// Makes the connection a stream of the agent, until either side has enough of it.
    async fn lend(&self, mut client: UnixStream) {
        let session = match &*self.gate.borrow() {
            Gate::Closed(state) => Err(Refusal::State(*state)),
            Gate::Open(_) if self.lent.get() >= LENT_LIMIT => Err(Refusal::Crowded),
            Gate::Open(session) => Ok(session.clone()),
        };
        let _lent = Lent::count(&self.lent);
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

impl Desk {
    /// Makes the connection a session at the console, until the client has enough of it.
    async fn show_console(&self, mut client: UnixStream) {
        let console = match (&*self.console.borrow(), &*self.gate.borrow()) {
            (None, Gate::Closed(state)) | (_, Gate::Closed(state @ State::Quarantined)) => {
                Err(Refusal::State(*state))
            }
            (None, Gate::Open(_)) => Err(Refusal::State(State::Starting)),
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

/// One stream that is lent, as long as it is.
struct Lent(Rc<Cell<usize>>);

impl Lent {
    fn count(lent: &Rc<Cell<usize>>) -> Lent {
        lent.set(lent.get() + 1);
        Lent(Rc::clone(lent))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
