//! Requests of clients about jobs.

use std::time::Duration;

use microagent_model::{JobId, State};
use microagent_proto::{INPUT_LIMIT, MessageReader, read_message, write_message};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::time::timeout;

use super::{ControlConnection, LENT_STREAM_LIMIT, LentStream, StreamAccess};
use crate::control::{Answer, CONTROL_LIMIT, JOB_REQUEST_LIMIT, JobInput, JobOrder, JobRequest, Refusal};
use crate::supervisor::jobs::{JobStdin, RUNNING_JOBS_MAX};

/// How long a client may take to send what runs.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

// Commands have streams left when as many jobs run as may.
const _: () = assert!(RUNNING_JOBS_MAX + 16 <= LENT_STREAM_LIMIT);

impl ControlConnection {
    /// Starts a job, which needs the client no more once its request is read.
    pub(super) async fn start_job(&self, mut client: UnixStream) {
        let session = match &*self.access.borrow() {
            StreamAccess::Closed(state) => Err(Refusal::State(*state)),
            StreamAccess::Open(_) if self.lent.get() >= LENT_STREAM_LIMIT => Err(Refusal::Crowded),
            StreamAccess::Open(session) => Ok(session.clone()),
        };
        let placed = session.and_then(|session| {
            Ok((session, self.jobs.place().ok_or(Refusal::JobsFull(RUNNING_JOBS_MAX as u32))?))
        });
        let (session, place) = match placed {
            Ok(placed) => placed,
            Err(refusal) => return answer(&mut client, Answer::Refused(refusal)).await,
        };
        let held = (place, LentStream::count(&self.lent));
        if write_message(&mut client, &Answer::Attached, CONTROL_LIMIT).await.is_err() {
            return;
        }
        let request =
            timeout(REQUEST_DEADLINE, read_message::<JobRequest, _>(&mut client, JOB_REQUEST_LIMIT));
        // A client that is gone, or breaks the protocol, gets no job.
        let Ok(Ok(Some(request))) = request.await else { return };
        let started = self.jobs.start(&session, request, held).await;
        answer(&mut client, started).await;
    }

    /// Tells a job something, unless the machine does not run.
    pub(super) async fn tell_job(&self, job: JobId, order: JobOrder) -> Answer {
        match self.closed() {
            Some(state) => Answer::Refused(Refusal::State(state)),
            None => self.jobs.tell(job, order).await,
        }
    }

    /// Passes a client's bytes on as the standard input of a job.
    pub(super) async fn job_stdin(&self, mut client: UnixStream, job: JobId) {
        let stdin = match self.closed() {
            Some(state) => Err(Refusal::State(state)),
            None => self.jobs.stdin(job),
        };
        let stdin = match stdin {
            Ok(stdin) => stdin,
            Err(refusal) => return answer(&mut client, Answer::Refused(refusal)).await,
        };
        if write_message(&mut client, &Answer::Attached, CONTROL_LIMIT).await.is_err() {
            return;
        }
        let (from, mut to) = client.into_split();
        let passed = tokio::select! {
            passed = pass_on(from, &stdin) => passed,
            () = stdin.closed() => Err(Refusal::JobEnded),
        };
        let passed = passed.map_or_else(Answer::Refused, |()| Answer::Done);
        // A client that is gone misses nothing.
        let _ = write_message(&mut to, &passed, CONTROL_LIMIT).await;
    }

    /// The state of a machine whose guest cannot be told anything now.
    fn closed(&self) -> Option<State> {
        match &*self.access.borrow() {
            StreamAccess::Closed(state) => Some(*state),
            StreamAccess::Open(_) => None,
        }
    }
}

/// Passes on what a client sends, until it has sent its last.
async fn pass_on(from: OwnedReadHalf, stdin: &JobStdin) -> Result<(), Refusal> {
    let mut inputs = MessageReader::new(from, INPUT_LIMIT);
    // A client that breaks off has sent what it has sent.
    while let Ok(Some(input)) = inputs.next().await {
        match input {
            JobInput::Bytes(bytes) => stdin.write(bytes).await?,
            JobInput::End => return stdin.end().await,
        }
    }
    stdin.passed().await
}

async fn answer(client: &mut UnixStream, answer: Answer) {
    // A client that is gone misses nothing.
    let _ = write_message(client, &answer, CONTROL_LIMIT).await;
}
