//! How clients speak to a supervisor that serves: one connection per request.
//!
//! A client sends a `Hello` with its request and gets one [`Answer`]. After [`Answer::Attached`] the connection is a
//! stream of the guest's agent: the supervisor only copies bytes, and what the guest sends is decoded (and
//! distrusted) by the client. Everything has a limit and, on the client's side, a deadline.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use microagent_model::{Artifact, Publish, RestartPolicy, WorkspaceFailure};
use microagent_proto::{FrameError, GENERATION, read_message, write_message};
use microagent_store::{ControlKey, WorkspaceDir};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::lifecycle::ChangeRequest;
use crate::ports::BoundPort;
use crate::spec::SUPERVISOR_PROTOCOL;
use crate::supervisor::{END_DEADLINE, QUARANTINE_DEADLINE};

/// Largest message of either side, in bytes.
pub(crate) const CONTROL_LIMIT: usize = 64 * 1024;

/// How long a supervisor may take to answer something that does not end its machine.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How often a request is sent to a supervisor that closes the connection without an answer.
const ATTEMPTS: usize = 5;

/// Pause before the next attempt.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A client's first and only message.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// [`SUPERVISOR_PROTOCOL`] of the client.
    pub(crate) protocol: u16,
    /// [`GENERATION`] of the client, which only matters to a stream of the agent.
    pub(crate) generation: u16,
    /// The key that lies beside the socket.
    pub(crate) key: ControlKey,
    /// What it wants.
    pub(crate) request: ControlRequest,
    /// Why it wants that, for the workspace's events.
    pub(crate) reason: Option<String>,
}

impl Hello {
    /// Whether its client is of a build that can be served.
    pub(crate) fn is_understood(&self) -> bool {
        let same_agent = self.generation == GENERATION || self.request != ControlRequest::Attach;
        self.protocol == SUPERVISOR_PROTOCOL && same_agent
    }
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ControlRequest {
    /// A stream to the guest's agent.
    Attach,
    /// A change of the machine's state.
    Change(ChangeRequest),
    /// A change of the record that the machine does not notice.
    Amend(Amendment),
    /// The serial console.
    Console,
    /// One more published port: as it was asked for and as it is bound. Its socket follows, with one byte: a supervisor
    /// that is confined opens none.
    OpenPort {
        /// Port 0 of the host has one picked at each start.
        asked: Publish,
        /// With the port of the host that it has.
        bound: Publish,
    },
    /// One published port less, as it is bound.
    ClosePort(Publish),
}

/// What of a workspace's record can change while its machine lives. The supervisor writes the record then, so it is
/// asked to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amendment {
    /// When `supervise` starts it again.
    pub restart: RestartPolicy,
    /// Declared outputs, of at most [`AMENDMENT_LIMIT`] bytes of names and paths together.
    pub outputs: Vec<Artifact>,
}

/// Most bytes of names and paths that an [`Amendment`] has.
pub const AMENDMENT_LIMIT: usize = 32 * 1024;
const _: () = assert!(2 * AMENDMENT_LIMIT <= CONTROL_LIMIT);

/// A supervisor's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// From here on the connection is a stream of the agent.
    Attached,
    /// What was asked for is the case now.
    Done,
    /// The machine has ended, but not as was asked.
    Failed(WorkspaceFailure),
    /// Not now, or not at all; nothing was done.
    Refused(Refusal),
}

/// Why a supervisor does not do what it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The state does not allow it.
    State(microagent_model::State),
    /// As many streams as possible are in use.
    Crowded,
    /// Another client has the console.
    ConsoleTaken,
    /// The client is of another build.
    OtherBuild,
}

/// Why a supervisor gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Nobody listens: it has ended, is ending, or does not listen yet.
    #[error("its supervisor does not listen")]
    Connect(#[source] io::Error),
    /// It went away or broke the protocol in the middle.
    #[error("its supervisor broke the conversation off")]
    Exchange(#[source] FrameError),
    /// It went away without an answer.
    #[error("its supervisor went away")]
    Closed,
    /// It did not answer in time: it is paused, or its host is overloaded.
    #[error("its supervisor did not answer within {seconds} s")]
    Late {
        /// How long was waited.
        seconds: u64,
    },
}

/// Opens a stream to the agent of a running machine.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time.
pub async fn attach(dir: &WorkspaceDir) -> Result<Result<UnixStream, Refusal>, ControlError> {
    stream(dir, ControlRequest::Attach).await
}

/// Opens the serial console: what is written to it is typed, what is read from it is shown, from now on.
///
/// # Errors
/// As [`attach`].
pub async fn console(dir: &WorkspaceDir) -> Result<Result<UnixStream, Refusal>, ControlError> {
    stream(dir, ControlRequest::Console).await
}

async fn stream(
    dir: &WorkspaceDir,
    request: ControlRequest,
) -> Result<Result<UnixStream, Refusal>, ControlError> {
    let (stream, answer) = exchange(dir, request, None, ANSWER_DEADLINE).await?;
    match answer {
        Answer::Attached => Ok(Ok(stream)),
        Answer::Refused(refusal) => Ok(Err(refusal)),
        Answer::Done | Answer::Failed(_) => Err(ControlError::Closed),
    }
}

/// Asks for a change of the machine's state and waits until it has come about.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time.
pub async fn change(dir: &WorkspaceDir, request: ChangeRequest) -> Result<Answer, ControlError> {
    change_because(dir, request, None).await
}

/// As [`change`], with a reason for the workspace's events.
///
/// # Errors
/// As [`change`].
pub async fn change_because(
    dir: &WorkspaceDir,
    request: ChangeRequest,
    reason: Option<String>,
) -> Result<Answer, ControlError> {
    let deadline = match request {
        ChangeRequest::Halt | ChangeRequest::Stop => END_DEADLINE,
        ChangeRequest::Quarantine => QUARANTINE_DEADLINE,
        ChangeRequest::Kill | ChangeRequest::Pause | ChangeRequest::Resume => ANSWER_DEADLINE,
    };
    Ok(exchange(dir, ControlRequest::Change(request), reason, deadline).await?.1)
}

/// Asks for another restart policy and other outputs in the record, and waits until they are written.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time.
pub async fn amend(dir: &WorkspaceDir, amendment: Amendment) -> Result<Answer, ControlError> {
    Ok(exchange(dir, ControlRequest::Amend(amendment), None, ANSWER_DEADLINE).await?.1)
}

/// Publishes one more port of a machine, whose socket is bound and listens, and waits until its network stack has it.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time.
pub async fn open_port(dir: &WorkspaceDir, asked: Publish, port: &BoundPort) -> Result<Answer, ControlError> {
    let request = ControlRequest::OpenPort { asked, bound: port.publish };
    Ok(exchange_with(dir, request, None, ANSWER_DEADLINE, Some(port.socket.as_fd())).await?.1)
}

/// Publishes a port of a machine no more; connections that are open stay open.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time.
pub async fn close_port(dir: &WorkspaceDir, bound: Publish) -> Result<Answer, ControlError> {
    Ok(exchange(dir, ControlRequest::ClosePort(bound), None, ANSWER_DEADLINE).await?.1)
}

async fn exchange(
    dir: &WorkspaceDir,
    request: ControlRequest,
    reason: Option<String>,
    deadline: Duration,
) -> Result<(UnixStream, Answer), ControlError> {
    exchange_with(dir, request, reason, deadline, None).await
}

/// Sends a descriptor behind a request, with one byte.
async fn send_descriptor(stream: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    stream
        .async_io(Interest::WRITABLE, || {
            let descriptors = [descriptor];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(stream, &[IoSlice::new(&[0])], &mut ancillary, flags).map(drop)?)
        })
        .await
}

/// Takes what [`send_descriptor`] sent.
pub(crate) async fn take_descriptor(stream: &UnixStream) -> io::Result<OwnedFd> {
    let received = stream.async_io(Interest::READABLE, || {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
        let mut messages = ancillary.drain();
        Ok(messages.find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        }))
    });
    received.await?.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

async fn exchange_with(
    dir: &WorkspaceDir,
    request: ControlRequest,
    reason: Option<String>,
    deadline: Duration,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(UnixStream, Answer), ControlError> {
    let deadline_at = Instant::now() + deadline;
    let late = || ControlError::Late { seconds: deadline.as_secs() };
    for attempt in 1.. {
        let (stream, key) = dir.connect().map_err(ControlError::Connect)?;
        stream.set_nonblocking(true).map_err(ControlError::Connect)?;
        let mut stream = UnixStream::from_std(stream).map_err(ControlError::Connect)?;
        let hello = Hello {
            protocol: SUPERVISOR_PROTOCOL,
            generation: GENERATION,
            key,
            request: request.clone(),
            reason: reason.clone(),
        };
        let send = async {
            write_message(&mut stream, &hello, CONTROL_LIMIT).await?;
            match descriptor {
                Some(descriptor) => send_descriptor(&stream, descriptor).await.map_err(FrameError::Transport),
                None => Ok(()),
            }
        };
        let sent = timeout_at(deadline_at, send).await;
        let answer = match sent.map_err(|_| late())? {
            Ok(()) => {
                timeout_at(deadline_at, read_message(&mut stream, CONTROL_LIMIT)).await.map_err(|_| late())?
            }
            Err(error) => Err(error),
        };
        match answer {
            Ok(Some(answer)) => return Ok((stream, answer)),
            // Others that connect without a key may have taken our place before the request was read; it was not carried out
            // then. The next attempt shows whether the supervisor has ended.
            Ok(None) | Err(FrameError::Transport(_)) if attempt < ATTEMPTS => sleep(RETRY_INTERVAL).await,
            Ok(None) => return Err(ControlError::Closed),
            Err(error) => return Err(ControlError::Exchange(error)),
        }
    }
    Err(ControlError::Closed)
}
