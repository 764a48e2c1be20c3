//! The protocol between clients and the supervisor of a started workspace: one connection per request.
//!
//! A client sends a `Hello` with its request and gets one [`Answer`]. After [`Answer::Attached`] the connection is a
//! stream of the guest's agent: the supervisor only copies bytes, and the client decodes what the guest sends and
//! does not trust it. All messages have a limit, and clients have a deadline.

mod job;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use microagent_model::{JobId, Publish, WorkspaceFailure};
use microagent_proto::{FrameError, GENERATION, read_message, write_message};
use microagent_store::{ControlKey, WorkspaceDir};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

pub(crate) use self::job::JOB_REQUEST_LIMIT;
pub use self::job::{JobInput, JobOrder, JobRequest, JobStdinStream, job_stdin, start_job, tell_job};
use crate::lifecycle::ChangeRequest;
use crate::ports::BoundPort;
use crate::spec::SUPERVISOR_PROTOCOL;
use crate::supervisor::{CAPTURE_DEADLINE, END_DEADLINE, QUARANTINE_DEADLINE};
use crate::template::MachineShape;

/// Largest message of either side, in bytes.
pub(crate) const CONTROL_LIMIT: usize = 64 * 1024;

/// Deadline for the answer to a request that does not end the machine.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How often a request is sent to a supervisor that closes the connection without an answer.
const ATTEMPTS: usize = 5;

/// Pause before the next attempt.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A client's first and only message.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// [`SUPERVISOR_PROTOCOL`] of the client.
    pub(crate) protocol: u16,
    /// [`GENERATION`] of the client, which is used only for a stream of the agent.
    pub(crate) generation: u16,
    /// The key from the file `control.key`.
    pub(crate) key: ControlKey,
    /// The request.
    pub(crate) request: ControlRequest,
    /// The reason, for the workspace's events.
    pub(crate) reason: Option<String>,
}

impl Hello {
    /// Whether the client's version of the protocol is supported.
    pub(crate) fn is_understood(&self) -> bool {
        let speaks_to_agent = matches!(
            self.request,
            ControlRequest::Attach | ControlRequest::AttachWithBase | ControlRequest::StartJob
        );
        let same_agent = self.generation == GENERATION || !speaks_to_agent;
        self.protocol == SUPERVISOR_PROTOCOL && same_agent
    }
}

/// The request of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ControlRequest {
    /// A stream to the guest's agent.
    Attach,
    /// A stream to the guest's agent. As long as it is open, the guest sees the base disk of its image at
    /// [`BASE_SCSI_TARGET`](crate::machine::BASE_SCSI_TARGET). One at a time.
    AttachWithBase,
    /// A change of the machine's state. The guest's processes have `grace` to end, in place of the usual time.
    Change {
        /// The change.
        request: ChangeRequest,
        /// Only for `Halt`, `Stop` and `EndUnhealthy`; at most [`STOP_TIMEOUT_MAX`](microagent_model::STOP_TIMEOUT_MAX) counts.
        grace: Option<Duration>,
    },
    /// A time to live from now on; without a time, the one that the machine has. 0 removes it.
    RenewTtl(Option<Duration>),
    /// The serial console.
    Console,
    /// Publish one more port, given as it is bound. Its socket follows with one byte, because a confined supervisor cannot
    /// create it.
    OpenPort(Publish),
    /// Stop publishing this port, given as it is bound.
    ClosePort(Publish),
    /// A job: [`JobRequest`] follows on the connection after [`Answer::Attached`], and has an answer of its own.
    StartJob,
    /// Something that a running job is told.
    TellJob(JobId, JobOrder),
    /// The standard input of a running job: after [`Answer::Attached`] come [`JobInput`]s, then the end of the client's
    /// direction, then an answer.
    JobStdin(JobId),
}

/// A supervisor's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// From here on the connection is a stream of the agent.
    Attached,
    /// The request is done.
    Done,
    /// The machine is captured.
    Captured(Box<Capture>),
    /// The machine is captured and stopped, so that the client can copy its further disks. It continues when the client
    /// sends a byte or is gone; another answer follows.
    Stopped,
    /// The machine has ended, but not as requested.
    Failed(WorkspaceFailure),
    /// The request is refused; nothing was done.
    Refused(Refusal),
    /// The job has started.
    JobStarted(JobId),
    /// The guest could not start the job's command, and nothing is left of it.
    JobNotStarted {
        /// 127 for a command that was not found, else 126.
        exit_code: i32,
        /// One line, of the guest.
        message: String,
    },
}

/// What a captured machine depends on, and what it cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// What memory and devices can be restored in.
    pub shape: MachineShape,
    /// What begins a new session with the guest, if its memory is captured.
    pub token: Option<[u8; 16]>,
    /// How long the guest's processors were stopped, in microseconds.
    pub standstill_us: u64,
}

/// Why a supervisor refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The state does not allow it.
    State(microagent_model::State),
    /// The maximum number of streams is in use.
    Crowded,
    /// Another client has the console.
    ConsoleTaken,
    /// Another client compares the root disk with the base disk.
    BaseTaken,
    /// The client belongs to another version.
    OtherBuild,
    /// So many jobs run already, and no more can.
    JobsFull(u32),
    /// There is no such job.
    NoSuchJob,
    /// The job has ended.
    JobEnded,
    /// The job has no standard input, or it is at its end.
    NoStdin,
    /// The machine has no time to live that could be renewed.
    NoTtl,
}

/// Why a supervisor gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The supervisor does not listen: it has ended, is ending, or does not listen yet.
    #[error("its supervisor does not listen")]
    Connect(#[source] io::Error),
    /// The connection failed, or the supervisor violated the protocol.
    #[error("the connection to its supervisor failed")]
    Exchange(#[source] FrameError),
    /// The supervisor closed the connection without an answer.
    #[error("its supervisor ended without an answer")]
    Closed,
    /// The supervisor did not answer in time: it is stopped, or the host is overloaded.
    #[error("its supervisor did not answer within {seconds} s")]
    Late {
        /// How long the client waited.
        seconds: u64,
    },
}

/// Opens a stream to the agent of a running machine. [`Answer::Attached`] comes with the stream.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time.
pub async fn attach(dir: &WorkspaceDir) -> Result<(UnixStream, Answer), ControlError> {
    exchange(dir, ControlRequest::Attach, None, ANSWER_DEADLINE).await
}

/// Opens a stream to the agent of a running machine that sees the base disk of its image as long as the stream is open.
/// [`Answer::Attached`] comes with the stream.
///
/// # Errors
/// As [`attach`].
pub async fn attach_with_base(dir: &WorkspaceDir) -> Result<(UnixStream, Answer), ControlError> {
    exchange(dir, ControlRequest::AttachWithBase, None, ANSWER_DEADLINE).await
}

/// Opens the serial console: bytes written to the stream are input, bytes read from it are output from now on.
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
        _ => Err(ControlError::Closed),
    }
}

/// Requests a change of the machine's state and waits until it is done.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time.
pub async fn change(dir: &WorkspaceDir, request: ChangeRequest) -> Result<Answer, ControlError> {
    change_with(dir, request, None, None).await
}

/// As [`change`], with a reason for the workspace's events, and the time that the guest's processes have to end.
///
/// # Errors
/// As [`change`].
pub async fn change_with(
    dir: &WorkspaceDir,
    request: ChangeRequest,
    reason: Option<String>,
    grace: Option<Duration>,
) -> Result<Answer, ControlError> {
    let deadline = match request {
        // The service has this time, and what is left of the guest's processes has it again.
        ChangeRequest::Halt | ChangeRequest::Stop | ChangeRequest::EndUnhealthy => {
            END_DEADLINE + 2 * grace.unwrap_or_default()
        }
        ChangeRequest::Quarantine => QUARANTINE_DEADLINE,
        ChangeRequest::Kill => ANSWER_DEADLINE,
        ChangeRequest::Pause | ChangeRequest::Resume | ChangeRequest::Capture { .. } => {
            CAPTURE_DEADLINE + ANSWER_DEADLINE
        }
    };
    Ok(exchange(dir, ControlRequest::Change { request, grace }, reason, deadline).await?.1)
}

/// Captures the machine: its guest writes to this overlay from then on, and its memory goes to the other file, if there
/// is one.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time. The guest may write to the overlay all the same.
pub async fn capture(
    dir: &WorkspaceDir,
    overlay: BorrowedFd<'_>,
    memory: Option<BorrowedFd<'_>>,
) -> Result<Answer, ControlError> {
    Ok(request_capture(dir, overlay, memory, false).await?.1)
}

/// As [`capture`]. After the answer [`Answer::Stopped`] the guest does not write to its disks before
/// [`StoppedMachine::resume`], or until this is dropped.
///
/// # Errors
/// As [`capture`].
pub async fn capture_and_stop(
    dir: &WorkspaceDir,
    overlay: BorrowedFd<'_>,
    memory: Option<BorrowedFd<'_>>,
) -> Result<(StoppedMachine, Answer), ControlError> {
    let (stream, answer) = request_capture(dir, overlay, memory, true).await?;
    Ok((StoppedMachine { stream }, answer))
}

async fn request_capture(
    dir: &WorkspaceDir,
    overlay: BorrowedFd<'_>,
    memory: Option<BorrowedFd<'_>>,
    copies: bool,
) -> Result<(UnixStream, Answer), ControlError> {
    let request = ChangeRequest::Capture { memory: memory.is_some(), copies };
    let request = ControlRequest::Change { request, grace: None };
    let files: Vec<_> = std::iter::once(overlay).chain(memory).collect();
    exchange_with(dir, request, None, 2 * CAPTURE_DEADLINE, &files).await
}

/// A captured machine that is stopped while a client copies its further disks.
#[derive(Debug)]
pub struct StoppedMachine {
    stream: UnixStream,
}

impl StoppedMachine {
    /// Lets the machine continue. Only after the answer [`Answer::Captured`] it was stopped all the time.
    ///
    /// # Errors
    /// Fails when no answer comes in time.
    pub async fn resume(mut self) -> Result<Answer, ControlError> {
        let late = || ControlError::Late { seconds: CAPTURE_DEADLINE.as_secs() };
        let exchange = async {
            self.stream.write_all(&[0]).await.map_err(FrameError::Transport)?;
            read_message(&mut self.stream, CONTROL_LIMIT).await
        };
        let answer = timeout(CAPTURE_DEADLINE, exchange).await.map_err(|_| late())?;
        answer.map_err(ControlError::Exchange)?.ok_or(ControlError::Closed)
    }
}

/// Gives the machine a time to live from now on: this one, or the one that it has. 0 removes it.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time.
pub async fn renew_ttl(dir: &WorkspaceDir, ttl: Option<Duration>) -> Result<Answer, ControlError> {
    Ok(exchange(dir, ControlRequest::RenewTtl(ttl), None, ANSWER_DEADLINE).await?.1)
}

/// Publishes one more port of a machine, with a listening socket, and waits until the network stack has it.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time.
pub async fn open_port(dir: &WorkspaceDir, port: &BoundPort) -> Result<Answer, ControlError> {
    let request = ControlRequest::OpenPort(port.publish);
    Ok(exchange_with(dir, request, None, ANSWER_DEADLINE, &[port.socket.as_fd()]).await?.1)
}

/// Stops publishing a port of a machine; open connections stay open.
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
    exchange_with(dir, request, reason, deadline, &[]).await
}

/// Most descriptors that come with a request.
const DESCRIPTORS_MAX: usize = 2;

/// Sends descriptors after a request, with one byte.
async fn send_descriptors(stream: &UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(stream, &[IoSlice::new(&[0])], &mut ancillary, flags).map(drop)?)
        })
        .await
}

/// Receives what [`send_descriptors`] sent, if it is so many.
pub(crate) async fn take_descriptors<const COUNT: usize>(
    stream: &UnixStream,
) -> io::Result<[OwnedFd; COUNT]> {
    let received = stream.async_io(Interest::READABLE, || {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
        let mut found = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                found.extend(rights);
            }
        }
        Ok(found)
    });
    received.await?.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}

async fn exchange_with(
    dir: &WorkspaceDir,
    request: ControlRequest,
    reason: Option<String>,
    deadline: Duration,
    descriptors: &[BorrowedFd<'_>],
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
            match descriptors {
                [] => Ok(()),
                _ => send_descriptors(&stream, descriptors).await.map_err(FrameError::Transport),
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
            // Others that connect without a key may have taken our place before the request was read; it was not
            // carried out then. The next attempt shows whether the supervisor has ended.
            Ok(None) | Err(FrameError::Transport(_)) if attempt < ATTEMPTS => sleep(RETRY_INTERVAL).await,
            Ok(None) => return Err(ControlError::Closed),
            Err(error) => return Err(ControlError::Exchange(error)),
        }
    }
    Err(ControlError::Closed)
}
