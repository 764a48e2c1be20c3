//! Jobs: commands in the background of a running workspace.
//!
//! The workspace's supervisor has a job started, follows it to its end, and keeps its output and its exit code in the
//! workspace's directory. They are read from there, so that reading needs nobody, and works when the machine has ended.

mod output;

use std::time::Duration;

use jiff::Timestamp;
use microagent_model::{CommandLine, JobId, JobState, State};
use microagent_store::{JOB_COMMAND_LIMIT, JobDir, JobEnd, JobRecord};
use microagent_vm::control::{job_stdin, start_job, tell_job};
use microagent_vm::{Answer, ControlError, JobOrder, JobRequest, JobStdinStream, Refusal};
use tokio::time::{Instant, sleep, timeout};

pub use self::output::{JobOutput, JobOutputOptions};
use super::logs::FOLLOW_INTERVAL;
use super::{ExecOptions, Workspace, refused};
use crate::Error;
use crate::error::{Action, JobError};

/// How long a workspace that is just being started is waited for.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// How often it is tried meanwhile.
const START_INTERVAL: Duration = Duration::from_millis(50);

/// How long a job that was killed may take to end. Its supervisor gives it up after 10 seconds.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// A job by its number. Cheap: a workspace and a number, and no promise that the job exists.
///
/// A job is a command that runs in the background of a workspace. It needs no client: it ends by itself, by
/// [`Job::kill`], at its time limit, or with its guest. What it printed and how it ended are kept until the workspace is
/// deleted or many later jobs have taken its place.
#[derive(Debug, Clone)]
pub struct Job {
    workspace: Workspace,
    id: JobId,
}

/// A job as recorded, with the state that is true now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobDetails {
    /// Its number.
    pub id: JobId,
    /// Its command line as a shell takes it, cut to 4 KiB.
    pub command: String,
    /// What it is doing, or how it ended.
    pub state: JobState,
    /// When it was started (host's clock).
    pub started_at: Timestamp,
    /// When it ended; `None` while it runs, and where it ended with its machine and nobody saw when.
    pub ended_at: Option<Timestamp>,
    /// Exit code; 128 + number for a signal, 124 time limit. `None` while it runs, and where it ended with its machine
    /// and nobody saw how.
    pub exit_code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether it was started with a standard input.
    pub stdin: bool,
    /// Bytes that it printed, whether they are kept or not; `None` while it runs, and where nobody saw how it ended.
    pub printed_bytes: Option<u64>,
    /// The program that the guest's kernel killed meanwhile, because memory ran out.
    pub out_of_memory: Option<String>,
    /// Mount point of a disk of the guest that was full when the command failed.
    pub disk_full: Option<String>,
}

/// The standard input of a running job. Dropped, what was written is passed on all the same, and the input stays open.
#[derive(Debug)]
pub struct JobStdin {
    job: Job,
    stream: JobStdinStream,
}

impl Workspace {
    /// Starts a command in the background of the running workspace, and waits until it has started. At most 32 run at a
    /// time.
    ///
    /// # Errors
    /// Fails when the workspace is not running, its guest cannot start the command, or as many jobs run as can. Nothing is
    /// left then. Dropping the future after the request was sent does not end the job.
    pub async fn start_job(&self, options: ExecOptions) -> Result<Job, Error> {
        self.running_guest(Action::StartJob)?;
        let (timeout, command) = (options.timeout, command_text(&options.command));
        let request = JobRequest { exec: self.exec_request(options)?, command, timeout };
        let dir = self.dir();
        let end = Instant::now() + START_PATIENCE;
        let answer = loop {
            match start_job(&dir, &request).await {
                Ok(Answer::Refused(Refusal::State(State::Starting))) if Instant::now() < end => {
                    sleep(START_INTERVAL).await;
                }
                answer => break answer,
            }
        };
        let workspace = self.name.clone();
        match answer {
            Ok(Answer::JobStarted(id)) => Ok(self.job(id)),
            Ok(Answer::JobNotStarted { exit_code, message }) => {
                Err(JobError::NotStarted { workspace, exit_code, message }.into())
            }
            Ok(Answer::Failed(failure)) => {
                Err(JobError::Failed { workspace, kind: failure.kind, message: failure.message }.into())
            }
            Ok(Answer::Refused(refusal)) => Err(refused(&self.name, refusal, Action::StartJob)),
            Ok(_) => Err(Error::Unreachable { workspace, source: ControlError::Closed }),
            Err(source) => Err(self.unreachable(Action::StartJob, source)),
        }
    }

    /// A job by its number.
    pub fn job(&self, id: JobId) -> Job {
        Job { workspace: self.clone(), id }
    }

    /// The jobs of the workspace, oldest first: those that run, and those that have ended, 64 in all.
    ///
    /// # Errors
    /// Fails when there is no such workspace or a record cannot be read.
    pub fn jobs(&self) -> Result<Vec<JobDetails>, Error> {
        let dir = self.existing()?;
        let ids = dir.job_ids().map_err(|source| Error::File {
            action: "list the jobs in",
            path: dir.path().to_owned(),
            source,
        })?;
        let details = ids.into_iter().map(|id| self.job(id).details());
        // One that was removed meanwhile makes room for a later one.
        details.filter(|details| !matches!(details, Err(Error::Job(JobError::NoSuch { .. })))).collect()
    }
}

impl Job {
    /// Its number.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Its workspace.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// What is recorded of it, with the state that is true now.
    ///
    /// # Errors
    /// Fails when there is no such workspace or job, or its record cannot be read.
    pub fn details(&self) -> Result<JobDetails, Error> {
        let dir = self.workspace.existing()?.job(self.id);
        let (workspace, job) = (self.workspace.name.clone(), self.id);
        match dir.observe() {
            Ok(record) => Ok(record.into()),
            Err(error) if error.is_not_found() => Err(JobError::NoSuch { workspace, job }.into()),
            Err(source) => Err(JobError::Record { workspace, job, source }.into()),
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// As [`Job::details`].
    pub async fn wait(&self) -> Result<JobDetails, Error> {
        loop {
            let details = self.details()?;
            if details.state != JobState::Running {
                return Ok(details);
            }
            sleep(FOLLOW_INTERVAL).await;
        }
    }

    /// Sends a signal, 1 to 64, to the command's process group.
    ///
    /// # Errors
    /// Fails when the job has ended or the workspace is not running.
    pub async fn signal(&self, signal: u8) -> Result<(), Error> {
        self.tell(JobOrder::Signal(signal)).await
    }

    /// Kills the command with everything that it started, and waits until it has ended.
    ///
    /// # Errors
    /// As [`Job::signal`], and when it does not end within 30 seconds.
    pub async fn kill(&self) -> Result<JobDetails, Error> {
        self.tell(JobOrder::Kill).await?;
        timeout(KILL_PATIENCE, self.wait()).await.unwrap_or_else(|_| {
            Err(JobError::NotKilled {
                workspace: self.workspace.name.clone(),
                job: self.id,
                seconds: KILL_PATIENCE.as_secs(),
            }
            .into())
        })
    }

    /// Opens the standard input, which stays open for others afterwards.
    ///
    /// # Errors
    /// Fails when the job has ended, was started without standard input or has had its end, or the workspace is not
    /// running.
    pub async fn stdin(&self) -> Result<JobStdin, Error> {
        self.running()?;
        match job_stdin(&self.workspace.dir(), self.id).await {
            Ok(Ok(stream)) => Ok(JobStdin { job: self.clone(), stream }),
            Ok(Err(refusal)) => Err(self.refused(refusal)),
            Err(source) => Err(self.workspace.unreachable(Action::ReachJob, source)),
        }
    }

    async fn tell(&self, order: JobOrder) -> Result<(), Error> {
        self.running()?;
        self.done(tell_job(&self.workspace.dir(), self.id, order).await)
    }

    /// Fails where there is no such job or it has ended, which is known without its supervisor.
    fn running(&self) -> Result<(), Error> {
        match self.details()?.state {
            JobState::Running => Ok(()),
            _ => Err(self.refused(Refusal::JobEnded)),
        }
    }

    fn done(&self, answer: Result<Answer, ControlError>) -> Result<(), Error> {
        match answer {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Refused(refusal)) => Err(self.refused(refusal)),
            Ok(_) => Err(Error::Unreachable {
                workspace: self.workspace.name.clone(),
                source: ControlError::Closed,
            }),
            Err(source) => Err(self.workspace.unreachable(Action::ReachJob, source)),
        }
    }

    fn refused(&self, refusal: Refusal) -> Error {
        let (workspace, job) = (self.workspace.name.clone(), self.id);
        match refusal {
            Refusal::NoSuchJob => JobError::NoSuch { workspace, job }.into(),
            Refusal::JobEnded => JobError::Ended { workspace, job }.into(),
            Refusal::NoStdin => JobError::NoStdin { workspace, job }.into(),
            refusal => refused(&self.workspace.name, refusal, Action::ReachJob),
        }
    }

    fn dir(&self) -> JobDir {
        self.workspace.dir().job(self.id)
    }
}

impl JobStdin {
    /// Writes; waits while the command does not read.
    ///
    /// # Errors
    /// Fails when the job has ended.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self.stream.write(bytes).await {
            Ok(()) => Ok(()),
            Err(_) => self.refusal().await,
        }
    }

    /// Ends the standard input after what was written.
    ///
    /// # Errors
    /// As [`JobStdin::write`].
    pub async fn close(mut self) -> Result<(), Error> {
        if self.stream.end().await.is_err() {
            return self.refusal().await;
        }
        self.finish().await
    }

    /// Waits until everything was passed on to the guest. The input stays open.
    ///
    /// # Errors
    /// As [`JobStdin::write`].
    pub async fn finish(self) -> Result<(), Error> {
        self.job.done(self.stream.finish().await)
    }

    /// Waits until the command takes nothing any more, and gives the reason.
    pub async fn ended(&mut self) -> Error {
        match self.refusal().await {
            Ok(()) => self.job.refused(Refusal::JobEnded),
            Err(error) => error,
        }
    }

    async fn refusal(&mut self) -> Result<(), Error> {
        let answer = self.stream.refused().await;
        self.job.done(answer)
    }
}

impl From<JobRecord> for JobDetails {
    fn from(record: JobRecord) -> JobDetails {
        let JobRecord { id, command, started_at, stdin, end, .. } = record;
        let JobEnd { state, at, exit_code, signal, printed_bytes, out_of_memory, disk_full } =
            end.unwrap_or_else(|| JobEnd::unseen(JobState::Running));
        JobDetails {
            id,
            command,
            state,
            started_at,
            ended_at: at,
            exit_code,
            signal,
            stdin,
            printed_bytes,
            out_of_memory,
            disk_full,
        }
    }
}

/// A command line as a shell takes it, cut to what is recorded.
fn command_text(command: &CommandLine) -> String {
    let mut text = match command {
        CommandLine::Shell(line) => line.clone(),
        CommandLine::Argv(words) => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    };
    if text.len() > JOB_COMMAND_LIMIT {
        text.truncate(text.floor_char_boundary(JOB_COMMAND_LIMIT - '…'.len_utf8()));
        text.push('…');
    }
    text
}

/// A word, in quotes where a shell would take it for something else.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let words = ["sh", "-c", "echo \"it's\"", ""].map(str::to_owned).to_vec();
        assert_eq!(command_text(&CommandLine::Argv(words)), r#"sh -c 'echo "it'\''s"' ''"#);
        assert_eq!(command_text(&CommandLine::Shell("a | b".to_owned())), "a | b");
        let long = command_text(&CommandLine::Shell("ü".repeat(JOB_COMMAND_LIMIT)));
        assert!(long.len() <= JOB_COMMAND_LIMIT && long.ends_with("ü…"), "{}", long.len());
    }
}
