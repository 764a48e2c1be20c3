//! Receives the reports of a supervisor until the start is complete or its machine has ended, and converts that end
//! to an error.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use microagent_model::{FailureKind, Publish, WorkspaceName};
use microagent_store::WorkspaceDir;
use microagent_vm::{
    Ended, Launched, Outcome, OutputReader, Report, SuperviseError, SupervisorSpec, Work, launch,
};
use tokio::net::UnixStream;

use crate::{Engine, Error, Event, Observer, Progress, SetupFailure};

/// Progress of a supervisor.
pub(crate) enum SupervisorProgress {
    /// The start is complete. A detached supervisor does not need its caller any more.
    Serving(Box<Launched>),
    /// Its machine has ended.
    Ended(Box<Ended>),
}

/// A supervisor that was started, and what its events are translated with.
pub(crate) struct SupervisorEvents {
    launched: Launched,
    /// Labels of the setup steps.
    labels: Vec<String>,
    started: SystemTime,
}

impl Engine {
    /// Starts a supervisor.
    pub(crate) async fn launch(
        &self,
        mut spec: SupervisorSpec,
        progress: &Progress,
    ) -> Result<SupervisorEvents, SuperviseError> {
        let started = SystemTime::now();
        let launched = launch(&self.options().supervisor, &spec, progress.token()).await?;
        // They are the supervisor's now.
        spec.configure.secrets.clear();
        let labels = match spec.work {
            Work::Run { setup, .. } | Work::Prepare { setup, .. } => {
                setup.into_iter().map(|step| step.label).collect()
            }
            Work::Serve { .. } | Work::Freeze => Vec::new(),
        };
        Ok(SupervisorEvents { launched, labels, started })
    }
}

impl SupervisorEvents {
    /// Takes the stream to the command of a run, where it has one.
    pub(crate) fn take_relay(&mut self) -> Option<UnixStream> {
        self.launched.take_relay()
    }

    /// Passes reports on until the start is complete or the machine has ended.
    pub(crate) async fn follow(mut self, progress: &Progress) -> Result<SupervisorProgress, SuperviseError> {
        let ended = loop {
            match self.launched.next(progress.token()).await {
                Ok(Report::Serving) => return Ok(SupervisorProgress::Serving(Box::new(self.launched))),
                Ok(Report::Ended(ended)) => break Ok(SupervisorProgress::Ended(ended)),
                Ok(report) => self.report(report, progress),
                // It ends its machine, and removes what is not kept, without anybody who waits for it.
                Err(error @ SuperviseError::StillEnding) => return Err(error),
                Err(error) => break Err(error),
            }
        };
        self.launched.join().await;
        ended
    }

    fn report(&self, report: Report, progress: &Progress) {
        let event = match report {
            Report::Booted => {
                let elapsed = self.started.elapsed().unwrap_or_default();
                Event::Booted { elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX) }
            }
            Report::Published(published) => Event::Published(published),
            Report::Notice(notice) => Event::Notice(notice),
            Report::Setup(step) => Event::Setup {
                step: step + 1,
                total: self.labels.len(),
                label: self.labels.get(step).cloned().unwrap_or_default(),
            },
            Report::Command => Event::Command,
            Report::Instructed | Report::Serving | Report::Ended(_) => return,
        };
        progress.event(event);
    }
}

/// The purpose of a supervisor, which determines the meaning of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To run one command.
    Run,
    /// To bring a workspace up: for its service, its setup steps, or to reach its disk.
    Start,
    /// To freeze a template.
    Template,
}

/// Translates the end of a supervisor into an error.
pub(crate) struct EndTranslator<'a> {
    pub(crate) purpose: Purpose,
    pub(crate) workspace: &'a WorkspaceName,
    pub(crate) backend: &'a str,
    /// Where its output is.
    pub(crate) dir: &'a WorkspaceDir,
    /// Labels of its setup steps.
    pub(crate) labels: &'a [String],
    /// Its output, where it was opened while it ran: who ended it may have removed the directory.
    pub(crate) opened: RefCell<Option<OutputReader>>,
}

impl EndTranslator<'_> {
    /// The supervisor could not be started, or was lost.
    pub(crate) fn lost(&self, error: SuperviseError) -> Error {
        match error {
            SuperviseError::Vanished { .. } => {
                self.failed(FailureKind::SupervisorDied, "its supervisor was killed".to_owned(), None)
            }
            error => error.into(),
        }
    }

    /// It serves, and should have ended.
    pub(crate) fn still_serving(&self) -> Error {
        self.other_work()
    }

    /// The machine ended before it did what it was started for.
    pub(crate) fn ended(&self, ended: Ended) -> Error {
        match ended.outcome {
            Outcome::Busy => Error::Busy { name: self.workspace.clone(), source: None },
            Outcome::DiskBusy { disk, holder } => Error::DiskBusy { disk, holder },
            Outcome::TooManyRunning(max) => Error::TooManyRunning { max },
            Outcome::Failed(failure) if failure.kind == FailureKind::Cancelled => match self.purpose {
                Purpose::Run => {
                    Error::RunCancelled { workspace: self.workspace.clone(), output: self.recorded() }
                }
                Purpose::Start | Purpose::Template => Error::Cancelled,
            },
            Outcome::Failed(failure) => {
                // What programs that read the line look for; the hint and the record say that time was up.
                let message = match (self.purpose, failure.kind) {
                    (Purpose::Run, FailureKind::Timeout) => "signal: killed".to_owned(),
                    _ => failure.message,
                };
                let tail = Some(ended.console_tail).filter(|tail| !tail.is_empty());
                self.failed(failure.kind, message, tail)
            }
            Outcome::SetupFailed { step, exit_code, start_error } => {
                self.setup_failed(step, exit_code, start_error)
            }
            Outcome::ServiceEnded(result) if self.purpose == Purpose::Start => {
                let why = result.start_error.unwrap_or_else(|| format!("exit code {}", result.exit_code));
                self.failed(FailureKind::Service, format!("its service could not be started: {why}"), None)
            }
            Outcome::PoweredOff => {
                let message = match self.purpose {
                    Purpose::Run => "the guest turned itself off before its work was done",
                    _ => "the guest turned itself off",
                };
                self.failed(FailureKind::GuestDied, message.to_owned(), None)
            }
            Outcome::Rebooted => {
                let message = match self.purpose {
                    Purpose::Run => "the guest restarted itself before its work was done",
                    _ => "the guest restarted itself before it was up",
                };
                self.failed(FailureKind::GuestDied, message.to_owned(), None)
            }
            Outcome::Stopped | Outcome::Halted => {
                self.failed(FailureKind::Cancelled, "another command ended it".to_owned(), None)
            }
            _ => self.other_work(),
        }
    }

    fn other_work(&self) -> Error {
        self.failed(FailureKind::Protocol, "its supervisor did other work than requested".to_owned(), None)
    }

    fn setup_failed(&self, step: usize, exit_code: i32, start_error: Option<String>) -> Error {
        let label = self.labels.get(step).cloned().unwrap_or_default();
        let failure = SetupFailure { step: step + 1, label, exit_code, start_error };
        match self.output() {
            Ok(output) => {
                Error::SetupFailed { workspace: self.workspace.clone(), failure, output: Box::new(output) }
            }
            Err(error) => error,
        }
    }

    /// What the workload printed.
    pub(crate) fn output(&self) -> Result<OutputReader, Error> {
        if let Some(opened) = self.opened.take() {
            return Ok(opened);
        }
        let path = self.dir.output();
        OutputReader::open(&path).map_err(|source| Error::File { action: "read", path, source })
    }

    /// Returns the output of a run. An error of reading it must not hide why the run failed.
    fn recorded(&self) -> Option<Box<OutputReader>> {
        self.output().ok().map(Box::new)
    }

    fn failed(&self, kind: FailureKind, message: String, console_tail: Option<String>) -> Error {
        let (workspace, backend) = (self.workspace.clone(), self.backend.to_owned());
        match self.purpose {
            Purpose::Run => {
                Error::RunFailed { workspace, backend, kind, message, console_tail, output: self.recorded() }
            }
            Purpose::Start => Error::StartFailed { workspace, backend, kind, message, console_tail },
            Purpose::Template => Error::TemplateFailed { kind, message },
        }
    }
}

/// Passes events on, and keeps for the report what belongs there.
pub(crate) struct NoticeCollector {
    progress: Progress,
    /// Where the output of the run is.
    output: PathBuf,
    opened: Mutex<Option<OutputReader>>,
    notices: Mutex<Vec<String>>,
    published: Mutex<Vec<Publish>>,
}

impl NoticeCollector {
    /// A collector before an observer, and the progress that leads to it.
    pub(crate) fn before(progress: &Progress, dir: &WorkspaceDir) -> (Arc<NoticeCollector>, Progress) {
        let collector = Arc::new(NoticeCollector {
            progress: progress.clone(),
            output: dir.output(),
            opened: Mutex::default(),
            notices: Mutex::default(),
            published: Mutex::default(),
        });
        let before = progress.clone().observer(Arc::clone(&collector));
        (collector, before)
    }

    /// The output that was opened while the run was in progress.
    pub(crate) fn opened(&self) -> Option<OutputReader> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The notices, and the published ports with the numbers that were picked last.
    pub(crate) fn collected(&self) -> (Vec<String>, Vec<Publish>) {
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (notices, self.published.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Observer for NoticeCollector {
    fn event(&self, event: Event) {
        match &event {
            // The supervisor has made the file before it listened to the guest.
            Event::Booted { .. } => {
                *self.opened.lock().unwrap_or_else(PoisonError::into_inner) =
                    OutputReader::open(&self.output).ok();
            }
            Event::Notice(notice) => {
                self.notices.lock().unwrap_or_else(PoisonError::into_inner).push(notice.clone());
            }
            Event::Published(published) => {
                self.published.lock().unwrap_or_else(PoisonError::into_inner).clone_from(published);
            }
            _ => {}
        }
        self.progress.event(event);
    }
}
