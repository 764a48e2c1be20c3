//! Connections to the agent of a guest: of a running workspace, or of a resting one whose disk is booted offline,
//! without network and workload.
//! Data of a stream comes from the guest and is not trusted: every message has a limit, and every wait a deadline or
//! a cancellation.

use std::time::Duration;

use microagent_model::{GuestSettings, NetworkMode, SIGTERM, State, WorkspaceName};
use microagent_proto::{
    FsUsage, GuestError, PackEvent, REPLY_LIMIT, REQUEST_LIMIT, Request, read_message, write_message,
};
use microagent_store::{WorkspaceDir, WorkspaceRecord};
use microagent_vm::control::{ControlError, attach, attach_with_base, change};
use microagent_vm::{Answer, ChangeRequest, ExtraDisk, Launched, MachineSpec, Refusal, SupervisorSpec, Work};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::{Action, ConnectionFault};
use crate::supervisor_events::SupervisorProgress;
use crate::supervisor_spec::MachineRequest;
use crate::tar_stream::TarReader;
use crate::workspace::refused;
use crate::{Error, Event, Progress, Workspace};

/// Deadline for a workspace that is being started.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// Interval of the attempts.
const START_INTERVAL: Duration = Duration::from_millis(50);

/// Deadline of one answer of a guest. An emulated guest on a loaded host is slow.
pub(crate) const REPLY_PATIENCE: Duration = Duration::from_secs(120);

/// Deadline between two pieces of a tar stream, in which the guest may read many directory entries.
pub(crate) const SILENCE: Duration = Duration::from_secs(5 * 60);

/// How long a guest that was booted offline may take to flush its disk after a cancellation.
const CANCELLED_PATIENCE: Duration = Duration::from_millis(700);

/// Deadline of an offline boot of a resting workspace.
const OFFLINE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Pieces of a tar stream that wait between the guest and the thread that reads them.
const QUEUE: usize = 16;

/// Which further disks an offline boot of a resting workspace has.
enum OfflineDisks {
    /// Those that it has when it runs, so that a path means the same.
    ItsOwn,
    /// Only these, unmounted.
    Only(Vec<ExtraDisk>),
}

/// A connection to a guest.
pub(crate) struct GuestConnection {
    workspace: Workspace,
    dir: WorkspaceDir,
    /// The supervisor that was started only to reach a resting workspace.
    offline: Option<Box<Launched>>,
    /// Whether the running guest sees the base disk of its image while a stream is open.
    with_base_disk: bool,
    /// Ends every wait for the guest.
    cancel: CancellationToken,
}

/// One stream of the agent.
pub(crate) struct AgentStream {
    pub(crate) name: WorkspaceName,
    pub(crate) stream: UnixStream,
    pub(crate) cancel: CancellationToken,
}

/// What a tar stream of a guest may have.
pub(crate) struct TarLimits {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Time from its request to its end.
    pub(crate) time: Duration,
}

impl Workspace {
    /// The guest: the running one, or, where the workspace rests, one that is booted offline and ended by
    /// [`GuestConnection::leave`].
    pub(crate) async fn guest(&self, progress: &Progress) -> Result<GuestConnection, Error> {
        progress.check()?;
        let record = self.observe()?;
        let state = record.observed_state();
        let offline = match state {
            State::Running | State::Starting => None,
            state if state.is_resting() => {
                Some(self.boot_offline(&record, OfflineDisks::ItsOwn, progress).await?)
            }
            state => return Err(self.wrong_state(state, Action::ReachFiles)),
        };
        Ok(self.connection(offline).cancelled_by(progress.token()))
    }

    /// The guest of the resting workspace, booted offline with these disks in place of its own, and ended by
    /// [`GuestConnection::leave`].
    pub(crate) async fn resting_guest(
        &self,
        extra_disks: Vec<ExtraDisk>,
        action: Action,
        progress: &Progress,
    ) -> Result<GuestConnection, Error> {
        let record = self.observe()?;
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(self.wrong_state(state, action));
        }
        let offline = self.boot_offline(&record, OfflineDisks::Only(extra_disks), progress).await?;
        Ok(self.connection(Some(offline)).cancelled_by(progress.token()))
    }

    /// Whether the agent of the running guest answers within this time. A paused or hanging guest does not.
    pub async fn is_responsive(&self, within: Duration) -> bool {
        let answer = async {
            let guest = self.running_guest(Action::ReachGuest)?;
            guest.request(&Request::FsUsage).await?.reply::<Result<FsUsage, GuestError>>().await
        };
        // One that has too many streams to take another one is not silent.
        matches!(timeout(within, answer).await, Ok(Ok(_) | Err(Error::Crowded { .. })))
    }

    /// The guest of the running workspace.
    pub(crate) fn running_guest(&self, action: Action) -> Result<GuestConnection, Error> {
        let state = self.state()?;
        if !matches!(state, State::Running | State::Starting) {
            return Err(self.wrong_state(state, action));
        }
        Ok(self.connection(None))
    }

    fn connection(&self, offline: Option<Box<Launched>>) -> GuestConnection {
        GuestConnection {
            workspace: self.clone(),
            dir: self.dir(),
            offline,
            with_base_disk: false,
            cancel: CancellationToken::new(),
        }
    }

    /// Boots the disk of the resting workspace without network and workload.
    async fn boot_offline(
        &self,
        record: &WorkspaceRecord,
        extra: OfflineDisks,
        progress: &Progress,
    ) -> Result<Box<Launched>, Error> {
        let engine = self.engine();
        engine.prepare()?;
        let programs = engine.host_programs(NetworkMode::Isolated)?;
        let base = engine.image_store().disk_path(&record.image.disk);
        let disks = match &extra {
            OfflineDisks::ItsOwn => record.disks.clone(),
            OfflineDisks::Only(_) => Vec::new(),
        };
        let dir = self.dir();
        // What lies under a file system in memory can be reached, and everything written.
        let settings = GuestSettings::default();
        // Only its disk is used: it needs no network device, which forwarded ports, brokers and private networks would
        // give it.
        let (forwards, brokers, networks) = (Vec::new(), Vec::new(), Vec::new());
        let disposable = false;
        let kept =
            WorkspaceRecord { disposable, disks, settings, forwards, brokers, networks, ..record.clone() };
        let work = Work::Serve { service: None, stop_signal: SIGTERM, health: None, detached: false };
        let spec = engine.spec(&programs, &MachineRequest::of(&kept, &dir, &base)?, work)?;
        let machine = match extra {
            OfflineDisks::ItsOwn => spec.machine,
            OfflineDisks::Only(extra_disks) => MachineSpec { extra_disks, ..spec.machine },
        };
        let spec = SupervisorSpec { timeout: Some(OFFLINE_TIMEOUT), machine, ..spec };
        self.booting(&programs, progress);
        let end = self.end_of_start(&programs, &dir, &[]);
        let supervisor = engine.launch(spec, progress).await?;
        match supervisor.follow(progress).await.map_err(|error| end.lost(error))? {
            SupervisorProgress::Serving(launched) => Ok(launched),
            SupervisorProgress::Ended(ended) => Err(end.ended(*ended)),
        }
    }
}

impl GuestConnection {
    /// Whose guest it is.
    pub(crate) fn name(&self) -> &WorkspaceName {
        self.workspace.name()
    }

    /// The connection is lost.
    pub(crate) fn gone(&self, source: ConnectionFault) -> Error {
        Error::GuestGone { workspace: self.name().clone(), source }
    }

    /// The same guest, for which nothing waits once this is cancelled.
    pub(crate) fn cancelled_by(self, cancel: &CancellationToken) -> GuestConnection {
        GuestConnection { cancel: cancel.clone(), ..self }
    }

    /// The same guest, which sees the base disk of its image while a stream is open. One stream at a time can be.
    pub(crate) fn with_base_disk(self) -> GuestConnection {
        GuestConnection { with_base_disk: true, ..self }
    }

    async fn attach(&self) -> Result<(UnixStream, Answer), ControlError> {
        match self.with_base_disk {
            true => attach_with_base(&self.dir).await,
            false => attach(&self.dir).await,
        }
    }

    /// Why there is no stream.
    fn unattached(&self, answer: Answer) -> Error {
        match answer {
            Answer::Refused(refusal) => refused(self.name(), refusal, Action::ReachGuest),
            Answer::Failed(failure) => Error::ChangeFailed {
                workspace: self.name().clone(),
                action: Action::Compare,
                message: failure.message,
            },
            _ => Error::Unreachable { workspace: self.name().clone(), source: ControlError::Closed },
        }
    }

    /// Opens a stream to the agent and sends a request on it.
    pub(crate) async fn request(&self, request: &Request) -> Result<AgentStream, Error> {
        self.cancel.run_until_cancelled(self.open(request)).await.ok_or(Error::Cancelled)?
    }

    async fn open(&self, request: &Request) -> Result<AgentStream, Error> {
        let end = Instant::now() + START_PATIENCE;
        let stream = loop {
            match self.attach().await {
                Ok((stream, Answer::Attached)) => break stream,
                Ok((_, Answer::Refused(Refusal::State(State::Starting)))) if Instant::now() < end => {
                    sleep(START_INTERVAL).await;
                }
                Ok((_, answer)) => return Err(self.unattached(answer)),
                Err(source) => return Err(self.workspace.unreachable(Action::ReachGuest, source)),
            }
        };
        let mut stream = AgentStream { name: self.name().clone(), stream, cancel: self.cancel.clone() };
        // A guest that does not read holds up what is longer than the buffers on the way.
        match timeout(REPLY_PATIENCE, write_message(&mut stream.stream, request, REQUEST_LIMIT)).await {
            Ok(written) => written.map_err(|e| stream.gone(e.into()))?,
            Err(_) => {
                return Err(stream.gone(ConnectionFault::Stalled { seconds: REPLY_PATIENCE.as_secs() }));
            }
        }
        Ok(stream)
    }

    /// Requests a tar stream and passes its pieces on, an empty one at its end. Ends early when nobody takes them.
    pub(crate) async fn send_tar(
        &self,
        request: &Request,
        pieces: mpsc::Sender<Vec<u8>>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let cancel = progress.token();
        let mut stream = self.request(request).await?;
        let mut bytes = 0_u64;
        loop {
            let event = tokio::select! {
                event = timeout(SILENCE, stream.reply()) => event,
                () = cancel.cancelled() => return Err(Error::Cancelled),
            };
            let piece = match event
                .map_err(|_| stream.gone(ConnectionFault::Silent { seconds: SILENCE.as_secs() }))??
            {
                PackEvent::Data(bytes) => bytes.into_vec(),
                // The mark of the end: without it a stream that breaks off could be taken for a whole one.
                PackEvent::End => Vec::new(),
                PackEvent::Failed(error) => return Err(self.refusal(error)),
            };
            let is_end = piece.is_empty();
            bytes = bytes.saturating_add(piece.len() as u64);
            progress.event(Event::Copying { bytes });
            let taken = tokio::select! {
                taken = pieces.send(piece) => taken,
                () = cancel.cancelled() => return Err(Error::Cancelled),
            };
            // A reader that failed takes no more; its own error is reported.
            if is_end || taken.is_err() {
                return Ok(());
            }
        }
    }

    /// Fetches a tar stream, has `consume` read it on a thread of its own, and leaves the guest.
    pub(crate) async fn fetch_tar<T: Send + 'static>(
        self,
        request: &Request,
        limits: TarLimits,
        consume: impl FnOnce(TarReader) -> Result<T, Error> + Send + 'static,
        progress: &Progress,
    ) -> Result<T, Error> {
        let (pieces, received) = mpsc::channel(QUEUE);
        let reader = TarReader::new(received, limits.bytes);
        let consuming = tokio::task::spawn_blocking(move || consume(reader));
        let late = || Err(self.gone(ConnectionFault::Late { seconds: limits.time.as_secs() }));
        let sent =
            timeout(limits.time, self.send_tar(request, pieces, progress)).await.unwrap_or_else(|_| late());
        let consumed = match sent {
            // A thread that waits for a full disk or a slow reader is not waited for.
            Err(Error::Cancelled) => Err(Error::Cancelled),
            _ => consuming.await.unwrap_or_else(|_| Err(self.gone(ConnectionFault::Interrupted))),
        };
        let left = self.leave().await;
        // The guest's reason comes first: the consumer only saw its stream end.
        sent?;
        let value = consumed?;
        left?;
        Ok(value)
    }

    /// A refusal of the guest as an error.
    pub(crate) fn refusal(&self, error: microagent_proto::GuestError) -> Error {
        Error::GuestRefused {
            workspace: self.name().clone(),
            not_found: error.kind == microagent_proto::GuestErrorKind::NotFound,
            message: error.message,
        }
    }

    /// Has a guest that was booted offline flush its disk and end; a running one stays as it is.
    pub(crate) async fn leave(self) -> Result<(), Error> {
        let Some(launched) = self.offline else { return Ok(()) };
        let workspace = self.workspace.name().clone();
        let failed = |message| Error::ChangeFailed {
            workspace: workspace.clone(),
            action: Action::FlushDisk,
            message,
        };
        let halted = change(&self.dir, ChangeRequest::Halt);
        let answer = match self.cancel.is_cancelled() {
            false => halted.await,
            // A guest that does not end at once is killed: its supervisor ends with the last socket to it.
            true => match timeout(CANCELLED_PATIENCE, halted).await {
                Ok(answer) => answer,
                Err(_) => return Ok(()),
            },
        };
        launched.join().await;
        match answer {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Failed(failure)) => Err(failed(failure.message)),
            Ok(_) => Err(failed("it was refused".to_owned())),
            Err(source) => Err(Error::Unreachable { workspace, source }),
        }
    }
}

impl AgentStream {
    /// Reads one answer; the end of the stream and a missed deadline are errors.
    pub(crate) async fn reply<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let reply = timeout(REPLY_PATIENCE, read_message(&mut self.stream, REPLY_LIMIT));
        let Ok(reply) = self.cancel.run_until_cancelled(reply).await.ok_or(Error::Cancelled)? else {
            return Err(self.gone(ConnectionFault::Silent { seconds: REPLY_PATIENCE.as_secs() }));
        };
        match reply {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(self.gone(ConnectionFault::Ended)),
            Err(error) => Err(self.gone(error.into())),
        }
    }

    pub(crate) fn gone(&self, source: ConnectionFault) -> Error {
        Error::GuestGone { workspace: self.name.clone(), source }
    }
}
