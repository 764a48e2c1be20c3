//! The caller's side: starts a supervisor and receives its reports.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use microagent_proto::{FrameError, read_message, write_secret_message};
use microagent_store::{Access, SUPERVISE_ARGUMENT, WorkspaceDir, open_file};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::cgroup;
use crate::spec::{REPORT_LIMIT, Report, SPEC_LIMIT, SupervisorSpec};

/// Deadline for the first report of a supervisor, which has only to read its instructions.
const INSTRUCT_PATIENCE: Duration = Duration::from_secs(60);

/// Deadline for the end of the supervisor's process after its last report.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// Deadline for the end of a program that has not read its instructions, before it is killed.
const SILENT_PATIENCE: Duration = Duration::from_secs(1);

/// Deadline for the last report after a cancellation, and for the end of the process after that. The supervisor kills its
/// processes and waits for their end, which takes a host that swaps long; it does so without its caller, too.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

/// How long a killed supervisor is waited for.
const REAP_PATIENCE: Duration = Duration::from_secs(1);

/// Why a supervisor could not be started, or its reports could not be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuperviseError {
    /// The supervisor's program could not be started.
    #[error("cannot start supervisor `{}`", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The supervisor's log could not be opened.
    #[error("cannot open `{}`", log.display())]
    Log {
        /// Its log.
        log: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The spec could not be sent.
    #[error("cannot send the supervisor its instructions")]
    Instruct(#[source] FrameError),
    /// The program ran, but ended or stayed silent instead of reading its instructions: it does not call
    /// [`supervise`](crate::supervise) before it does anything else, or it is of another build. Nothing was started.
    #[error("`{}` did not start as a supervisor of this build of microagent", program.display())]
    NotASupervisor {
        /// The program.
        program: PathBuf,
    },
    /// The supervisor ended without a result: it was killed.
    #[error("the supervisor ended without reporting a result; its log is `{}`", log.display())]
    Vanished {
        /// Its log.
        log: PathBuf,
    },
    /// The caller cancelled before the supervisor had its instructions. Nothing was started.
    #[error("cancelled")]
    Cancelled,
    /// The caller cancelled, and the supervisor has not ended its machine yet. It will, without its caller.
    #[error("cancelled; the machine has not ended yet")]
    StillEnding,
    /// The host lacks walls of the jail; machines start without them only on request.
    #[error("QEMU's jail would be too weak on this host: {}", missing.join("; "))]
    WeakJail {
        /// What is missing.
        missing: Vec<String>,
    },
    /// A required program is not installed.
    #[error("`{program}` is not installed")]
    MissingProgram {
        /// The program.
        program: &'static str,
        /// Debian's package of it.
        package: &'static str,
    },
}

/// A running supervisor. Its machine ends if this is dropped or the process dies, unless the supervisor has reported
/// that it is detached ([`Report::Serving`]).
#[derive(Debug)]
pub struct Launched {
    program: PathBuf,
    child: Child,
    reports: OwnedReadHalf,
    tether: OwnedWriteHalf,
    /// Whether it has read its instructions.
    instructed: bool,
    /// Whether it was told that its caller has cancelled.
    is_cancelled: bool,
    /// Deadline for the first report, and for the last one after a cancellation.
    deadline: Option<Instant>,
    cancel_patience: Duration,
    log: PathBuf,
    /// The stream of the command that the caller is attached to.
    relay: Option<UnixStream>,
}

/// Starts `program` as the supervisor of a workspace whose record exists.
///
/// # Errors
/// Fails when the program cannot be started, the spec is too large for a message, or `cancel` is triggered before the
/// program has taken it.
pub async fn launch(
    program: &Path,
    spec: &SupervisorSpec,
    cancel: &CancellationToken,
) -> Result<Launched, SuperviseError> {
    let start = |source| SuperviseError::Start { program: program.to_owned(), source };
    let dir = WorkspaceDir::at(&spec.dir);
    let log = dir.supervisor_log();
    // A program that is its own supervisor and does not call `supervise` would start itself again and again.
    if std::env::args_os().nth(1).is_some_and(|first| first == SUPERVISE_ARGUMENT) {
        return Err(SuperviseError::NotASupervisor { program: program.to_owned() });
    }
    let (ours, theirs) = StdUnixStream::pair().map_err(start)?;
    ours.set_nonblocking(true).map_err(start)?;
    let stderr = dir.make_machine_dir().and_then(|()| open_file(&log, Access::Append));
    let stderr = stderr.map_err(|source| SuperviseError::Log { log: log.clone(), source })?;
    let (relay, stdout) = match spec.work.is_relayed() {
        true => {
            let (ours, theirs) = StdUnixStream::pair().map_err(start)?;
            ours.set_nonblocking(true).map_err(start)?;
            (Some(UnixStream::from_std(ours).map_err(start)?), Stdio::from(OwnedFd::from(theirs)))
        }
        false => (None, Stdio::null()),
    };
    let mut command = Command::new(program);
    in_own_session(&mut command);
    let child = command
        .arg(SUPERVISE_ARGUMENT)
        .arg(&spec.name)
        .arg(&spec.dir)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(stdout)
        .stderr(Stdio::from(stderr))
        .spawn()
        .map_err(start)?;
    let (reports, mut tether) = UnixStream::from_std(ours).map_err(start)?.into_split();
    // That it could not be sent shows in what the program reports.
    let sending = timeout(INSTRUCT_PATIENCE, write_secret_message(&mut tether, spec, SPEC_LIMIT));
    match cancel.run_until_cancelled(sending).await {
        Some(Ok(Err(error))) if !matches!(error, FrameError::Transport(_)) => {
            return Err(SuperviseError::Instruct(error));
        }
        Some(_) => {}
        None => return Err(SuperviseError::Cancelled),
    }
    Ok(Launched {
        program: program.to_owned(),
        child,
        reports,
        tether,
        instructed: false,
        is_cancelled: false,
        deadline: Some(Instant::now() + INSTRUCT_PATIENCE),
        cancel_patience: CANCEL_PATIENCE,
        log,
        relay,
    })
}

/// Ctrl-C at the caller's terminal is the caller's to handle, from the first moment on: a supervisor that is killed by it
/// cannot end its machine as it is told to, or complete what cannot be cancelled any more.
///
/// # Source
/// `setsid(2)`, `signal-safety(7)`.
#[allow(unsafe_code)]
fn in_own_session(command: &mut Command) {
    // SAFETY: setsid(2) is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
}

impl Launched {
    /// Takes the stream of the command that the caller is attached to; `None` if [`Work::Run`](crate::Work::Run) does
    /// not request one or it was taken before.
    pub fn take_relay(&mut self) -> Option<UnixStream> {
        self.relay.take()
    }

    /// Waits for the next report. If `cancel` is triggered, the supervisor is told to end its machine; its last
    /// report is `Ended` in any case.
    ///
    /// # Errors
    /// Fails if the program is not a supervisor of this build, ends without `Ended`, or does not end its machine soon
    /// after a cancellation ([`SuperviseError::StillEnding`]).
    pub async fn next(&mut self, cancel: &CancellationToken) -> Result<Report, SuperviseError> {
        loop {
            match self.read(cancel).await {
                Some(Report::Instructed) => {
                    self.instructed = true;
                    self.deadline = self.deadline.filter(|_| self.is_cancelled);
                }
                Some(report) if self.instructed => return Ok(report),
                None if self.is_overdue() => return Err(SuperviseError::StillEnding),
                None if self.instructed => return Err(SuperviseError::Vanished { log: self.log.clone() }),
                _ => return Err(self.not_instructed().await),
            }
        }
    }

    /// Whether it was cancelled, and has not ended within the time for that.
    fn is_overdue(&self) -> bool {
        self.is_cancelled && self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Reads one report; `None` at the end, or after the deadline.
    async fn read(&mut self, cancel: &CancellationToken) -> Option<Report> {
        let mut read = pin!(read_message(&mut self.reports, REPORT_LIMIT));
        loop {
            let deadline = self.deadline;
            tokio::select! {
                biased;
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => return None,
                report = &mut read => return report.ok().flatten(),
                () = cancel.cancelled(), if !self.is_cancelled => {
                    // For all reports from here on, however many come before the last one.
                    self.is_cancelled = true;
                    self.deadline = Some(Instant::now() + self.cancel_patience);
                    // A supervisor that is gone already needs no telling.
                    let _ = self.tether.shutdown().await;
                }
            }
        }
    }

    /// Why the program has not read its instructions. One that still runs is killed.
    async fn not_instructed(&mut self) -> SuperviseError {
        let status = timeout(SILENT_PATIENCE, self.child.wait()).await;
        if status.is_err() {
            self.kill().await;
        }
        match status {
            Ok(Ok(status)) if status.signal().is_some() => SuperviseError::Vanished { log: self.log.clone() },
            _ => SuperviseError::NotASupervisor { program: self.program.clone() },
        }
    }

    async fn kill(&mut self) {
        // A failure to kill a child of this process is neither expected nor mended here.
        let _ = self.child.start_kill();
        let _ = timeout(REAP_PATIENCE, self.child.wait()).await;
    }

    /// Waits for the end of the supervisor's process; kills it after a deadline.
    pub async fn join(mut self) {
        let supervisor = self.child.id();
        let patience = if self.is_cancelled { self.cancel_patience } else { EXIT_PATIENCE };
        if timeout(patience, self.child.wait()).await.is_err() {
            self.kill().await;
        }
        if let Some(supervisor) = supervisor {
            cgroup::remove(supervisor);
        }
    }
}

#[cfg(test)]
mod tests {
    use microagent_proto::write_message;

    use super::*;

    /// A supervisor that reports only notices, without end.
    #[tokio::test]
    async fn the_wait_for_the_end_is_bounded_as_a_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let talker = tokio::spawn(async move {
            let mut theirs = theirs;
            let notice = Report::Notice("x".to_owned());
            while write_message(&mut theirs, &notice, REPORT_LIMIT).await.is_ok() {}
        });
        let child = Command::new("/bin/sleep").arg("600").kill_on_drop(true).spawn().unwrap();
        let (reports, tether) = ours.into_split();
        let cancel_patience = Duration::from_millis(20);
        let mut launched = Launched {
            program: "sleep".into(),
            child,
            reports,
            tether,
            instructed: true,
            is_cancelled: false,
            deadline: None,
            cancel_patience,
            log: "supervisor.log".into(),
            relay: None,
        };
        let cancel = CancellationToken::new();
        cancel.cancel();
        let vanished = async {
            loop {
                if let Err(error) = launched.next(&cancel).await {
                    break error;
                }
            }
        };
        let error = timeout(Duration::from_secs(60), vanished).await.expect("the wait is bounded");
        assert!(matches!(error, SuperviseError::StillEnding), "{error}");
        assert!(launched.child.try_wait().unwrap().is_none(), "it ends by itself");
        talker.abort();
    }

    /// What is said of a program that was started in place of a supervisor, and whose end of the socket is `theirs`.
    async fn first_report(program: &str, words: &[&str]) -> SuperviseError {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let child = Command::new(program)
            .args(words)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (reports, tether) = UnixStream::from_std(ours).unwrap().into_split();
        let mut launched = Launched {
            program: program.into(),
            child,
            reports,
            tether,
            instructed: false,
            is_cancelled: false,
            deadline: None,
            cancel_patience: CANCEL_PATIENCE,
            log: "supervisor.log".into(),
            relay: None,
        };
        let error = launched.next(&CancellationToken::new()).await.unwrap_err();
        assert!(launched.child.try_wait().unwrap().is_some(), "it has ended");
        error
    }

    #[tokio::test]
    async fn a_program_that_is_no_supervisor_is_told_from_one_that_was_killed() {
        for words in [&["-c", "exit 0"][..], &["-c", "exit 1"], &["-c", "exec 0<&-; exec sleep 600"]] {
            let error = first_report("/bin/sh", words).await;
            assert!(matches!(error, SuperviseError::NotASupervisor { .. }), "{words:?}: {error}");
            assert!(error.to_string().starts_with("`/bin/sh` did not start as a supervisor"), "{error}");
        }
        let killed = first_report("/bin/sh", &["-c", "kill -KILL $$"]).await;
        assert!(matches!(killed, SuperviseError::Vanished { .. }), "{killed}");
    }
}
