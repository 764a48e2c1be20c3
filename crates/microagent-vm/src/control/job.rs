//! Jobs, as clients speak about them to a supervisor.

use std::time::Duration;

use microagent_model::JobId;
use microagent_proto::{
    Chunk, Exec, FrameError, INPUT_CHUNK_LIMIT, INPUT_LIMIT, MessageReader, REQUEST_LIMIT, read_message,
    write_message,
};
use microagent_store::{JOB_COMMAND_LIMIT, WorkspaceDir};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::{
    ANSWER_DEADLINE, Answer, CONTROL_LIMIT, ControlError, ControlRequest, Refusal, exchange, stream,
};
use crate::supervisor::JOB_START_DEADLINE;

/// Largest [`JobRequest`] in bytes: what the agent takes, the command line for people, and what surrounds them.
pub(crate) const JOB_REQUEST_LIMIT: usize = REQUEST_LIMIT + JOB_COMMAND_LIMIT + 1024;

/// How long a client waits for a job to start; outlasts the guest's time for it.
const START_PATIENCE: Duration = Duration::from_secs(90);
const _: () = assert!(JOB_START_DEADLINE.as_secs() + ANSWER_DEADLINE.as_secs() <= START_PATIENCE.as_secs());

/// A command that is to run in the background.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobRequest {
    /// What runs. It is not written down.
    pub exec: Exec,
    /// The command line for people, of at most [`JOB_COMMAND_LIMIT`] bytes.
    pub command: String,
    /// How long it may run; then it is killed with everything that it started.
    pub timeout: Option<Duration>,
}

/// What a running job is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobOrder {
    /// A signal, 1 to 64, for its process group.
    Signal(u8),
    /// It is killed with everything that it started.
    Kill,
}

/// A part of a job's standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobInput {
    /// Bytes, at most [`INPUT_CHUNK_LIMIT`].
    Bytes(Chunk),
    /// The end of the standard input. Without it, it stays open for the next client.
    End,
}

/// Has a job started, and waits until it has.
///
/// # Errors
/// Fails when nobody listens or no answer comes in time.
pub async fn start_job(dir: &WorkspaceDir, request: &JobRequest) -> Result<Answer, ControlError> {
    let mut stream = match stream(dir, ControlRequest::StartJob).await? {
        Ok(stream) => stream,
        Err(refusal) => return Ok(Answer::Refused(refusal)),
    };
    let started = async {
        write_message(&mut stream, request, JOB_REQUEST_LIMIT).await?;
        read_message(&mut stream, CONTROL_LIMIT).await
    };
    last_answer(timeout(START_PATIENCE, started).await.map_err(|_| late(START_PATIENCE))?)
}

/// Tells a running job something, and waits until the guest was told.
///
/// # Errors
/// As [`start_job`].
pub async fn tell_job(dir: &WorkspaceDir, job: JobId, order: JobOrder) -> Result<Answer, ControlError> {
    Ok(exchange(dir, ControlRequest::TellJob(job, order), None, ANSWER_DEADLINE).await?.1)
}

/// Opens the standard input of a running job.
///
/// # Errors
/// As [`start_job`].
pub async fn job_stdin(
    dir: &WorkspaceDir,
    job: JobId,
) -> Result<Result<JobStdinStream, Refusal>, ControlError> {
    let stream = stream(dir, ControlRequest::JobStdin(job)).await?;
    Ok(stream.map(JobStdinStream::new))
}

/// The standard input of a running job. Dropped, what was written is passed on all the same, and the input stays open.
#[derive(Debug)]
pub struct JobStdinStream {
    answers: MessageReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl JobStdinStream {
    fn new(stream: UnixStream) -> JobStdinStream {
        let (from, to) = stream.into_split();
        JobStdinStream { answers: MessageReader::new(from, CONTROL_LIMIT), to }
    }

    /// Writes; waits while the command does not read. Nothing is lost when the future is not dropped.
    ///
    /// # Errors
    /// Fails when the supervisor takes nothing any more; [`JobStdinStream::finish`] says why.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        for chunk in bytes.chunks(INPUT_CHUNK_LIMIT) {
            self.send(&JobInput::Bytes(Chunk::from(chunk))).await?;
        }
        Ok(())
    }

    /// Ends the standard input after what was written.
    ///
    /// # Errors
    /// As [`JobStdinStream::write`].
    pub async fn end(&mut self) -> Result<(), ControlError> {
        self.send(&JobInput::End).await
    }

    /// Waits until what was written is passed on to the guest: [`Answer::Done`], or why it is not.
    ///
    /// # Errors
    /// Fails when the supervisor went away.
    pub async fn finish(mut self) -> Result<Answer, ControlError> {
        // A supervisor that has answered already may have closed the connection.
        let _ = self.to.shutdown().await;
        self.refused().await
    }

    /// Waits for an answer that comes before the end: the job has ended. Cancel-safe.
    ///
    /// # Errors
    /// As [`JobStdinStream::finish`].
    pub async fn refused(&mut self) -> Result<Answer, ControlError> {
        last_answer(self.answers.next().await)
    }

    async fn send(&mut self, input: &JobInput) -> Result<(), ControlError> {
        write_message(&mut self.to, input, INPUT_LIMIT).await.map_err(ControlError::Exchange)
    }
}

fn last_answer(answer: Result<Option<Answer>, FrameError>) -> Result<Answer, ControlError> {
    answer.map_err(ControlError::Exchange)?.ok_or(ControlError::Closed)
}

fn late(patience: Duration) -> ControlError {
    ControlError::Late { seconds: patience.as_secs() }
}
