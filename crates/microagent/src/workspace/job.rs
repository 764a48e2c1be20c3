//! Jobs: commands in the background of a running workspace.
//!
//! The supervisor of the workspace starts a job, and writes its output and exit code to the directory of the workspace.
//! Clients read these files, also after the machine has ended.

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

/// Deadline for a workspace that is being started.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// Interval of the attempts until then.
const START_INTERVAL: Duration = Duration::from_millis(50);

/// Deadline for the end of a killed job. The supervisor gives it up after 10 seconds.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// The handle of a job: a workspace and a number. It is cheap, and the job may not exist.
///
/// A job is a command that runs in the background of a workspace, without a client. It ends by itself, by
/// [`Job::kill`], at its time limit, or with its guest. Its output and exit code are kept until the workspace is deleted
/// or 64 newer jobs exist.
///
/// Made by [`Workspace::start_job`] and [`Workspace::job`].
///
/// ```no_run
/// # use microagent::{ExecOptions, JobOutputOptions, Workspace};
/// # async fn example(workspace: &Workspace) -> Result<(), microagent::Error> {
/// let job = workspace.start_job(ExecOptions::shell("make test")).await?;
/// println!("started job {}", job.id());
/// // This program may end now; another one gets the job by its number with `Workspace::job`.
/// let ended = job.wait().await?;
/// println!("{:?}, exit code {:?}", ended.state, ended.exit_code);
/// let output = job.output(JobOutputOptions::new()).await?;
/// # let _ = output;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Job {
    workspace: Workspace,
    id: JobId,
}

/// The record of a job, with its current state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobDetails {
    /// Its number.
    pub id: JobId,
    /// Its command line as a shell takes it, cut to 4 KiB.
    pub command: String,
    /// Whether it runs, or how it ended.
    pub state: JobState,
    /// When it was started (host's clock).
    pub started_at: Timestamp,
    /// When it ended. `None` while it runs, and if the supervisor ended before it could record the end.
    pub ended_at: Option<Timestamp>,
    /// Exit code; 128 + number for a signal, 124 time limit. `None` in the same cases.
    pub exit_code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether it was started with a standard input.
    pub stdin: bool,
    /// Number of bytes that it printed, including those that are not kept. `None` in the same cases.
    pub printed_bytes: Option<u64>,
    /// The program that the guest's kernel killed while it ran, because memory ran out.
    pub out_of_memory: Option<String>,
    /// Mount point of a disk of the guest that was full when the command failed.
    pub disk_full: Option<String>,
}

/// The standard input of a running job, from [`Job::stdin`]. If this value is dropped, written bytes are still delivered
/// and the standard input stays open; [`JobStdin::close`] closes it.
#[derive(Debug)]
pub struct JobStdin {
    job: Job,
    stream: JobStdinStream,
}

impl Workspace {
    /// Starts a job in the running workspace. Returns when the command has started. At most 32 jobs run at a time.
    /// Dropping the future after the request was sent does not end the job.
    ///
    /// # Errors
    /// Fails if the workspace is not running ([`WrongState`](crate::ErrorKind::WrongState)), the time limit is 0
    /// ([`Invalid`](crate::ErrorKind::Invalid)), its guest cannot start the command, or 32 jobs run
    /// ([`Busy`](crate::ErrorKind::Busy)). Then no job is recorded.
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

    /// Returns the job with this number, which may not exist.
    pub fn job(&self, id: JobId) -> Job {
        Job { workspace: self.clone(), id }
    }

    /// Lists the jobs of the workspace, oldest first: at most 64, running and ended.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or a record cannot be read.
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
    /// Returns the number of the job.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Returns the workspace of the job.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Returns the record of the job, with its current state.
    ///
    /// # Errors
    /// Fails if workspace or job does not exist, or the record cannot be read.
    pub fn details(&self) -> Result<JobDetails, Error> {
        let dir = self.workspace.existing()?.job(self.id);
        let (workspace, job) = (self.workspace.name.clone(), self.id);
        match dir.observe() {
            Ok(record) => Ok(JobDetails::of(record)),
            Err(error) if error.is_not_found() => Err(JobError::NoSuch { workspace, job }.into()),
            Err(source) => Err(JobError::Record { workspace, job, source }.into()),
        }
    }

    /// Waits until the job has ended.
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
    /// Fails if the job has ended or the workspace is not running.
    pub async fn signal(&self, signal: u8) -> Result<(), Error> {
        self.tell(JobOrder::Signal(signal)).await
    }

    /// Kills the command and its child processes, and waits until the job has ended.
    ///
    /// # Errors
    /// As [`Job::signal`], and if the job does not end within 30 seconds.
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

    /// Connects to the standard input of the job. It stays open for later clients.
    ///
    /// # Errors
    /// Fails if the job has ended, was started without standard input, its standard input was closed, or the workspace
    /// is not running.
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

    /// Fails if there is no such job or it has ended. The supervisor is not needed for that.
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
    /// Writes bytes. Waits while the command does not read.
    ///
    /// # Errors
    /// Fails if the job has ended.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self.stream.write(bytes).await {
            Ok(()) => Ok(()),
            Err(_) => self.refusal().await,
        }
    }

    /// Closes the standard input after the written bytes.
    ///
    /// # Errors
    /// As [`JobStdin::write`].
    pub async fn close(mut self) -> Result<(), Error> {
        if self.stream.end().await.is_err() {
            return self.refusal().await;
        }
        self.finish().await
    }

    /// Waits until the written bytes were delivered to the guest. The standard input stays open.
    ///
    /// # Errors
    /// As [`JobStdin::write`].
    pub async fn finish(self) -> Result<(), Error> {
        self.job.done(self.stream.finish().await)
    }

    /// Waits until the command accepts no more input, and returns the reason.
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

impl JobDetails {
    fn of(record: JobRecord) -> JobDetails {
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
