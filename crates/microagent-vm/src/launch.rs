//! The caller's side: starts a supervisor and listens to it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use microagent_proto::{FrameError, read_message, write_message};
use microagent_store::StateDir;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::spec::{REPORT_LIMIT, Report, SPEC_LIMIT, Spec};
use crate::supervisor::SUPERVISE_ARGUMENT;

/// How long a supervisor that has said its last word may take to be gone.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// Why a supervisor could not be started or listened to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuperviseError {
    /// The supervisor's program could not be started.
    #[error("cannot start supervisor `{}`", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It could not be told what to do.
    #[error("cannot hand the supervisor its work")]
    Instruct(#[source] FrameError),
    /// It went away without a last word: it was killed, or it is another program.
    #[error("the supervisor ended without a word; its log is `{}`", log.display())]
    Vanished {
        /// Its log.
        log: PathBuf,
    },
    /// A program that is needed is not installed.
    #[error("`{program}` is not installed")]
    MissingProgram {
        /// The program.
        program: &'static str,
        /// Debian's package with it.
        package: &'static str,
    },
}

impl SuperviseError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            SuperviseError::MissingProgram { package, .. } => Some(format!(
                "install it (Debian: apt-get install {package}), then check with `microagent doctor`"
            )),
            _ => None,
        }
    }
}

/// A running supervisor. Dropping it (or dying) ends its machine.
#[derive(Debug)]
pub struct Launched {
    child: Child,
    tether: UnixStream,
    log: PathBuf,
}

/// Starts `program` as the supervisor of a workspace whose record exists.
///
/// # Errors
/// Fails when the program cannot be started or does not take the spec.
pub async fn launch(program: &Path, spec: &Spec) -> Result<Launched, SuperviseError> {
    let start = |source| SuperviseError::Start { program: program.to_owned(), source };
    let log = StateDir::at(&spec.state_dir).workspace(&spec.workspace).supervisor_log();
    let (ours, theirs) = StdUnixStream::pair().map_err(start)?;
    ours.set_nonblocking(true).map_err(start)?;
    let stderr = OpenOptions::new().append(true).create(true).mode(0o600).open(&log).map_err(start)?;
    let child = Command::new(program)
        .arg(SUPERVISE_ARGUMENT)
        .arg(spec.workspace.as_str())
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(stderr))
        .spawn()
        .map_err(start)?;
    let mut tether = UnixStream::from_std(ours).map_err(start)?;
    write_message(&mut tether, spec, SPEC_LIMIT).await.map_err(SuperviseError::Instruct)?;
    Ok(Launched { child, tether, log })
}

impl Launched {
    /// Waits for the next report. After `Ended` comes nothing.
    ///
    /// # Errors
    /// Fails when the supervisor is gone without `Ended`.
    pub async fn next(&mut self) -> Result<Report, SuperviseError> {
        match read_message(&mut self.tether, REPORT_LIMIT).await {
            Ok(Some(report)) => Ok(report),
            Ok(None) | Err(_) => Err(SuperviseError::Vanished { log: self.log.clone() }),
        }
    }

    /// Asks for the end; `Ended` still comes. Asking twice is asking once.
    pub async fn cancel(&mut self) {
        // A supervisor that is gone already needs no asking.
        let _ = self.tether.shutdown().await;
    }

    /// Waits until the supervisor's process is gone; kills it if it lingers.
    pub async fn join(mut self) {
        if timeout(EXIT_PATIENCE, self.child.wait()).await.is_err() {
            // It is ours to reap; that it cannot be killed is not to be expected and not to be helped.
            let _ = self.child.kill().await;
        }
    }
}
