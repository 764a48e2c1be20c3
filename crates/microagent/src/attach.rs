//! Streams to the agent of a guest: of a running workspace, or of a resting one whose disk is booted without its
//! workload to look at it.
//!
//! What comes out of a stream is the guest's word: every message has a limit, every wait a deadline or a
//! cancellation, and nothing of it is believed beyond its shape.

use std::time::{Duration, Instant};

use microagent_model::SIGTERM;
use microagent_proto::{REPLY_LIMIT, REQUEST_LIMIT, Request, read_message, write_message};
use microagent_store::{NetworkMode, State, WorkspaceDir, WorkspaceName, WorkspaceRecord};
use microagent_vm::control::{attach, change};
use microagent_vm::{
    Answer, ChangeRequest, ExtraDisk, Launched, MachineSpec, Outcome, Refusal, Report, SuperviseError,
    SupervisorSpec, Work, launch,
};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::with_cause;
use crate::lifecycle::refused;
use crate::supervisor_spec::MachineRequest;
use crate::{Engine, Error, Event, Observer};

/// How long a workspace that is just being started is waited for.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// How often it is tried meanwhile.
const START_INTERVAL: Duration = Duration::from_millis(50);

/// How long a guest may take for one answer. Emulated and under load it is slow, and a disk may be slower; one that
/// says nothing for so long stands still.
pub(crate) const REPLY_PATIENCE: Duration = Duration::from_secs(120);

/// How long a look into a resting workspace may take.
const OFFLINE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Which disks a resting workspace is looked into with, beside its root disk.
enum OfflineDisks {
    /// Those that it has when it runs, so that a path means the same.
    ItsOwn,
    /// None of its own, and these, unmounted.
    Only(Vec<ExtraDisk>),
}

/// A guest that can be asked for something.
pub(crate) struct GuestConnection {
    name: WorkspaceName,
    dir: WorkspaceDir,
    /// The supervisor that was started only to look into a resting workspace.
    look: Option<Launched>,
}

/// A conversation with the agent.
pub(crate) struct AgentStream {
    pub(crate) name: WorkspaceName,
    pub(crate) stream: UnixStream,
}

impl Engine {
    /// The guest of a workspace: the running one, or, where it rests, one that is booted for this and ended by
    /// [`GuestConnection::leave`].
    pub(crate) async fn guest(
        &self,
        name: &WorkspaceName,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<GuestConnection, Error> {
        let record = self.observe(name)?;
        let dir = self.existing(name)?;
        let state = record.observed_state();
        let look = match state {
            State::Running | State::Starting => None,
            state if state.is_resting() => {
                Some(self.boot_offline(&record, &dir, OfflineDisks::ItsOwn, observer, cancel).await?)
            }
            state => return Err(Error::WrongState { name: name.clone(), state, action: "reach its files" }),
        };
        Ok(GuestConnection { name: name.clone(), dir, look })
    }

    /// The guest of a resting workspace, booted for this with these disks in place of its own, and ended by [`GuestConnection::leave`].
    pub(crate) async fn resting_guest(
        &self,
        name: &WorkspaceName,
        extra_disks: Vec<ExtraDisk>,
        action: &'static str,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<GuestConnection, Error> {
        let record = self.observe(name)?;
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(Error::WrongState { name: name.clone(), state, action });
        }
        let dir = self.existing(name)?;
        let look =
            Some(self.boot_offline(&record, &dir, OfflineDisks::Only(extra_disks), observer, cancel).await?);
        Ok(GuestConnection { name: name.clone(), dir, look })
    }

    /// The guest of a running workspace.
    pub(crate) fn running_guest(
        &self,
        name: &WorkspaceName,
        action: &'static str,
    ) -> Result<GuestConnection, Error> {
        let state = self.observe(name)?.observed_state();
        if !matches!(state, State::Running | State::Starting) {
            return Err(Error::WrongState { name: name.clone(), state, action });
        }
        Ok(GuestConnection { name: name.clone(), dir: self.existing(name)?, look: None })
    }

    /// Boots the disk of a resting workspace without network and workload.
    async fn boot_offline(
        &self,
        record: &WorkspaceRecord,
        dir: &WorkspaceDir,
        beside: OfflineDisks,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<Launched, Error> {
        self.prepare()?;
        let name = &record.name;
        let programs = self.host_programs(NetworkMode::Isolated)?;
        let base = self.images().disk_path(&record.image.disk);
        let disks = match &beside {
            OfflineDisks::ItsOwn => record.disks.clone(),
            OfflineDisks::Only(_) => Vec::new(),
        };
        let kept = WorkspaceRecord { disposable: false, disks, ..record.clone() };
        let work = Work::Serve { service: None, stop_signal: SIGTERM, detached: false };
        let spec = self.spec(&programs, &MachineRequest::of(&kept, dir, &base)?, work)?;
        let machine = match beside {
            OfflineDisks::ItsOwn => spec.machine,
            OfflineDisks::Only(extra_disks) => MachineSpec { extra_disks, ..spec.machine },
        };
        let spec = SupervisorSpec { timeout: Some(OFFLINE_TIMEOUT), machine, ..spec };
        let backend = programs.decision.backend().to_owned();
        observer.event(Event::Booting { workspace: name.to_string(), backend: backend.clone() });
        let failed = |kind, message| Error::StartFailed {
            workspace: name.clone(),
            backend: backend.clone(),
            kind,
            message,
            console_tail: None,
        };
        let mut launched = launch(&self.options().supervisor, &spec).await?;
        let ended = loop {
            match launched.next(cancel).await {
                Ok(Report::Serving) => return Ok(launched),
                Ok(Report::Notice(notice)) => observer.event(Event::Notice(notice)),
                Ok(Report::Ended(ended)) => break Ok(ended),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        launched.join().await;
        use microagent_store::FailureKind as Kind;
        Err(match ended {
            Ok(ended) => match ended.outcome {
                Outcome::Busy => Error::Busy { name: name.clone(), source: None },
                Outcome::DiskBusy { disk, holder } => Error::DiskBusy { disk, holder },
                Outcome::Failed(failure) if failure.kind == Kind::Cancelled => Error::Cancelled,
                Outcome::Failed(failure) => failed(failure.kind, failure.message),
                _ => failed(Kind::Protocol, "its supervisor did other work than asked".to_owned()),
            },
            Err(SuperviseError::Vanished { .. }) => {
                failed(Kind::SupervisorDied, "its supervisor was killed".to_owned())
            }
            Err(error) => error.into(),
        })
    }

    /// Opens a stream to a guest and asks for something on it.
    pub(crate) async fn ask(&self, guest: &GuestConnection, request: &Request) -> Result<AgentStream, Error> {
        let end = Instant::now() + START_PATIENCE;
        let stream = loop {
            match attach(&guest.dir).await {
                Ok(Ok(stream)) => break stream,
                Ok(Err(Refusal::State(State::Starting))) if Instant::now() < end => {
                    sleep(START_INTERVAL).await;
                }
                Ok(Err(refusal)) => return Err(refused(&guest.name, refusal, "reach its guest")),
                Err(source) => return Err(self.unreachable(&guest.name, "reach its guest", source)),
            }
        };
        let mut talk = AgentStream { name: guest.name.clone(), stream };
        // A guest that does not read holds up what is longer than the buffers on the way.
        match timeout(REPLY_PATIENCE, write_message(&mut talk.stream, request, REQUEST_LIMIT)).await {
            Ok(written) => written.map_err(|e| talk.broken(&e))?,
            Err(_) => {
                return Err(talk.gone(format!("it took nothing for {} s", REPLY_PATIENCE.as_secs())));
            }
        }
        Ok(talk)
    }
}

impl GuestConnection {
    /// Whose guest it is.
    pub(crate) fn name(&self) -> &WorkspaceName {
        &self.name
    }

    /// It took too long.
    pub(crate) fn late(&self, message: &str) -> Error {
        Error::GuestGone { workspace: self.name.clone(), message: message.to_owned() }
    }

    /// Has a guest that was booted only for this flush its disk and end; a running one stays as it is.
    pub(crate) async fn leave(self) -> Result<(), Error> {
        let Some(launched) = self.look else { return Ok(()) };
        let failed =
            |message| Error::ChangeFailed { workspace: self.name.clone(), action: "flush its disk", message };
        let answer = change(&self.dir, ChangeRequest::Halt).await;
        launched.join().await;
        match answer {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Failed(failure)) => Err(failed(failure.message)),
            Ok(Answer::Refused(_) | Answer::Attached) => Err(failed("it was refused".to_owned())),
            Err(source) => Err(Error::Unreachable { workspace: self.name, source }),
        }
    }
}

impl AgentStream {
    /// Reads one answer; an end in its place is an error, and so is a long silence.
    pub(crate) async fn reply<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let Ok(reply) = timeout(REPLY_PATIENCE, read_message(&mut self.stream, REPLY_LIMIT)).await else {
            return Err(self.gone(format!("it said nothing for {} s", REPLY_PATIENCE.as_secs())));
        };
        match reply {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(self.gone("its machine has ended".to_owned())),
            Err(error) => Err(self.broken(&error)),
        }
    }

    pub(crate) fn broken(&self, error: &dyn std::error::Error) -> Error {
        self.gone(with_cause(error))
    }

    pub(crate) fn gone(&self, message: String) -> Error {
        Error::GuestGone { workspace: self.name.clone(), message }
    }
}
