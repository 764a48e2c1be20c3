//! The caller's side: starts a supervisor and receives its reports.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
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

/// Deadline for the end of the supervisor's process after its last report.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// Deadline for the last report after a cancellation; the supervisor kills its processes and waits for their end.
const CANCEL_PATIENCE: Duration = Duration::from_secs(30);

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
    /// The supervisor ended without a result: it was killed, or it is another program.
    #[error("the supervisor ended without reporting a result; its log is `{}`", log.display())]
    Vanished {
        /// Its log.
        log: PathBuf,
    },
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
    child: Child,
    reports: OwnedReadHalf,
    tether: OwnedWriteHalf,
    /// Deadline for the last report after a cancellation.
    end_deadline: Option<Instant>,
    cancel_patience: Duration,
    log: PathBuf,
    /// The stream of the command that the caller is attached to.
    relay: Option<UnixStream>,
}

/// Starts `program` as the supervisor of a workspace whose record exists.
///
/// # Errors
/// Fails when the program cannot be started or does not take the spec.
pub async fn launch(program: &Path, spec: &SupervisorSpec) -> Result<Launched, SuperviseError> {
    let start = |source| SuperviseError::Start { program: program.to_owned(), source };
    let dir = WorkspaceDir::at(&spec.dir);
    let log = dir.supervisor_log();
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
    let child = Command::new(program)
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
    write_secret_message(&mut tether, spec, SPEC_LIMIT).await.map_err(SuperviseError::Instruct)?;
    Ok(Launched { child, reports, tether, end_deadline: None, cancel_patience: CANCEL_PATIENCE, log, relay })
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
    /// Fails if the supervisor ends without `Ended`, or does not end after a cancellation.
    pub async fn next(&mut self, cancel: &CancellationToken) -> Result<Report, SuperviseError> {
        let mut read = pin!(read_message(&mut self.reports, REPORT_LIMIT));
        let report = loop {
            let end_deadline = self.end_deadline;
            tokio::select! {
                biased;
                () = sleep_until(end_deadline.unwrap_or_else(Instant::now)), if end_deadline.is_some() => {
                    break Ok(None);
                }
                report = &mut read => break report,
                () = cancel.cancelled(), if end_deadline.is_none() => {
                    // For all reports from here on, however many come before the last one.
                    self.end_deadline = Some(Instant::now() + self.cancel_patience);
                    // A supervisor that is gone already needs no telling.
                    let _ = self.tether.shutdown().await;
                }
            }
        };
        match report {
            Ok(Some(report)) => Ok(report),
            Ok(None) | Err(_) => Err(SuperviseError::Vanished { log: self.log.clone() }),
        }
    }

    /// Waits for the end of the supervisor's process; kills it after a deadline.
    pub async fn join(mut self) {
        let supervisor = self.child.id();
        if timeout(EXIT_PATIENCE, self.child.wait()).await.is_err() {
            // It is a child of this process; a failure to kill it is neither expected nor mended here.
            let _ = self.child.kill().await;
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
            child,
            reports,
            tether,
            end_deadline: None,
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
        assert!(matches!(error, SuperviseError::Vanished { .. }), "{error}");
        talker.abort();
    }
}
