//! How clients speak to a supervisor that serves: one connection per request.
//!
//! A client sends a `Hello` with its request and gets one [`Answer`]. After [`Answer::Attached`] the connection is a
//! stream of the guest's agent: the supervisor only copies bytes, and what the guest sends is decoded (and
//! distrusted) by the client. Everything has a limit and, on the client's side, a deadline.

use std::io;
use std::time::Duration;

use microagent_model::{Artifact, RestartPolicy, WorkspaceFailure};
use microagent_proto::{FrameError, GENERATION, read_message, write_message};
use microagent_store::{ControlKey, WorkspaceDir};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::lifecycle::ChangeRequest;
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

async fn exchange(
    dir: &WorkspaceDir,
    request: ControlRequest,
    reason: Option<String>,
    deadline: Duration,
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
        let sent = timeout_at(deadline_at, write_message(&mut stream, &hello, CONTROL_LIMIT)).await;
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
