//! One-shot runs.

mod attached;
mod detached;

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use microagent_image::ImageConfig;
use microagent_model::{FailureKind, RootAccess, SetupStep, State, WorkspaceFailure, WorkspaceName};
use microagent_store::{MachineState, RecordedResult, Workload, WorkspaceDir, WorkspaceRecord};
use microagent_vm::{Ended, Outcome, SuperviseError, SupervisorSpec, Work, choose_ports};

pub use self::attached::AttachedRun;
use crate::broker::with_brokers;
use crate::error::InvalidRequest;
use crate::limits::check_work;
use crate::provision::{
    FirstStart, Provision, check_options, main_request, new_workload, resolve_command, setup_steps,
};
use crate::refusals::refusals;
use crate::supervisor_events::{
    EndTranslator, NoticeCollector, Purpose, SupervisorEvents, SupervisorProgress,
};
use crate::supervisor_spec::MachineRequest;
use crate::workspace::{decisions_in, kill_orphan, lock_patiently, lock_settings};
use crate::{
    AttachOptions, Engine, Error, Event, Progress, RunNotice, RunOptions, RunReport, RunResult,
    WorkspaceOptions,
};

impl Engine {
    /// Runs one command in a machine of its own and returns its result. A disposable run is removed at its end. If the
    /// machine or a setup step failed, or the time limit was reached, the workspace is kept in state `failed`, so that
    /// its logs can be read. Cancelling `progress` or dropping the future ends the machine and removes a disposable run;
    /// after a cancellation it has been removed when this method returns, after a drop within about a second. On a host that
    /// is too busy to end a machine within seconds, both happen later, and the error of the cancellation tells.
    ///
    /// # Errors
    /// Fails if the options are not valid ([`Invalid`](crate::ErrorKind::Invalid)), the image cannot be used
    /// ([`Image`](crate::ErrorKind::Image), [`NotFound`](crate::ErrorKind::NotFound)), the machine cannot be started or
    /// fails ([`RunFailed`](crate::ErrorKind::RunFailed)), a setup step fails
    /// ([`SetupFailed`](crate::ErrorKind::SetupFailed)), the time limit is reached
    /// ([`Timeout`](crate::ErrorKind::Timeout)), as many machines run as may
    /// ([`Busy`](crate::ErrorKind::Busy), see [`EngineOptions::max_running`](crate::EngineOptions::max_running)), or
    /// `progress` is cancelled ([`Cancelled`](crate::ErrorKind::Cancelled)). A supervisor that is missing or is another
    /// program is [`Host`](crate::ErrorKind::Host); then nothing is left. An exit code other than 0 is not an error.
    pub async fn run(&self, options: RunOptions, progress: &Progress) -> Result<RunReport, Error> {
        self.begin_run(options, None, progress).await?.finish(progress).await
    }

    /// Starts a machine for one command, brings the image in before.
    async fn begin_run(
        &self,
        options: RunOptions,
        attach: Option<&AttachOptions>,
        progress: &Progress,
    ) -> Result<BegunRun, Error> {
        check_run(&options)?;
        progress.check()?;
        self.prepare()?;
        let name = options.name.clone().map_or_else(generated_name, Ok)?;
        // Before the image is fetched; the supervisor looks again.
        choose_ports(&options.workspace.publish).map_err(|error| self.port_error(error))?;
        let mut provision = self.provision(&name, &options.workspace, FirstStart::Now, progress).await?;
        provision.record.disposable = !options.keep;
        if options.workspace.settings.root == RootAccess::ReadOnly && !options.workspace.setup.is_empty() {
            return Err(InvalidRequest::ReadOnlySetup.into());
        }
        let config = &provision.image.config;
        let command = resolve_command(&options.command, config)?;
        check_work(&provision.workload, Some(&command))?;
        let workload = with_brokers(&provision.workload, &provision.record.brokers);
        let command = main_request(&workload, &command);
        let work = Work::Run {
            setup: setup_steps(&workload),
            command: attach.map_or(command.clone(), |attach| attach.of(command)),
            relay: attach.map(|attach| attach.output.relayed()),
        };
        let kept = options.keep.then(|| kept_workload(&options, config, &provision.record.hostname));
        let dir = self.create_provisioned(&mut provision, kept.as_ref(), progress).await?;
        let supervisor = match self.launch_run(&mut provision, &options, &dir, work, progress).await {
            Ok(supervisor) => supervisor,
            Err(error) => {
                // Nothing has run, so there is nothing to be read.
                self.remove(&name, &dir).await?;
                return Err(error);
            }
        };
        let backend = provision.programs.backend().to_owned();
        progress.event(Event::Booting { workspace: name.to_string(), backend });
        Ok(BegunRun { engine: self.clone(), provision, dir, supervisor })
    }

    async fn launch_run(
        &self,
        provision: &mut Provision,
        options: &RunOptions,
        dir: &WorkspaceDir,
        work: Work,
        progress: &Progress,
    ) -> Result<SupervisorEvents, Error> {
        let machine = MachineRequest::of(&provision.record, dir, &provision.image.disk)?.first();
        let spec = self.spec(&provision.programs, &machine, work)?;
        let spec = SupervisorSpec { timeout: options.timeout, ttl: provision.record.settings.ttl(), ..spec };
        let secrets = std::mem::take(&mut provision.secrets);
        Ok(self.launch(secrets.deliver(spec, &provision.workload.user), progress).await?)
    }

    /// What a run that did not complete leaves.
    async fn run_failed(&self, record: &WorkspaceRecord, dir: &WorkspaceDir, error: Error) -> Error {
        let left = match &error {
            // Somebody requested the end, or nothing has run.
            Error::Cancelled
            | Error::RunCancelled { .. }
            | Error::RunFailed { kind: FailureKind::Cancelled, .. }
            | Error::DiskBusy { .. }
            | Error::TooManyRunning { .. }
            | Error::Supervise(SuperviseError::NotASupervisor { .. })
                if record.disposable =>
            {
                self.remove(&record.name, dir).await.map(drop)
            }
            Error::RunFailed { kind: FailureKind::SupervisorDied, message, .. } => {
                self.record_failure(&record.name, dir, FailureKind::SupervisorDied, message).await
            }
            _ => Ok(()),
        };
        left.err().unwrap_or(error)
    }

    /// Writes down that a supervisor died before it wrote anything.
    pub(crate) async fn record_failure(
        &self,
        name: &WorkspaceName,
        dir: &WorkspaceDir,
        kind: FailureKind,
        message: &str,
    ) -> Result<(), Error> {
        let _lock = lock_patiently(name, dir).await?;
        let record = WorkspaceRecord::load(dir)?;
        if record.machine.state != State::Prepared {
            return Ok(());
        }
        let failure = Some(WorkspaceFailure { kind, message: message.to_owned() });
        MachineState { state: State::Failed, changed_at: Timestamp::now(), failure, ..record.machine }
            .save(dir)?;
        dir.note_event(State::Failed, Some(message));
        Ok(())
    }

    /// Removes a workspace that rests. Gives whether it was there: another command may have deleted or renamed it.
    pub(crate) async fn remove(&self, name: &WorkspaceName, dir: &WorkspaceDir) -> Result<bool, Error> {
        let lock = match lock_patiently(name, dir).await {
            Err(Error::NoSuchWorkspace { .. }) => return Ok(false),
            lock => lock?,
        };
        // Nobody is to write settings into a workspace that gets this name next.
        let _settings = lock_settings(name, dir).await?;
        let record = WorkspaceRecord::load(dir);
        if let Ok(record) = &record {
            kill_orphan(record, dir).await;
        }
        // A run has no layers, and is not to read the records of all workspaces. One that cannot be read may have some.
        let may_have_layers =
            record.as_ref().map_or(true, |record| !record.layers.is_empty()) || dir.snapshots().is_dir();
        let networks = record.map(|record| record.networks).unwrap_or_default();
        let (state, path) = (self.state().clone(), dir.path().to_owned());
        let (engine, leaving) = (self.clone(), name.clone());
        let removing = tokio::task::spawn_blocking(move || {
            let removed = WorkspaceDir::at(&path).remove(&state);
            drop(lock);
            engine.leave_networks(&leaving, &networks);
            removed
        });
        let removed = removing.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        removed.map_err(|source| Error::File { action: "remove", path: dir.path().to_owned(), source })?;
        // The workspace is gone either way; layers that cannot be freed now are freed by a prune.
        if may_have_layers {
            let _ = self.remove_unneeded_layers();
        }
        Ok(true)
    }
}

/// A run whose machine is being started.
struct BegunRun {
    engine: Engine,
    provision: Provision,
    dir: WorkspaceDir,
    supervisor: SupervisorEvents,
}

impl BegunRun {
    /// Waits for the end of a run, and removes what a disposable one does not leave.
    async fn finish(self, progress: &Progress) -> Result<RunReport, Error> {
        let BegunRun { engine, provision, dir, supervisor } = self;
        let Provision { record, workload, image, notices, programs, .. } = provision;
        let labels: Vec<String> = workload.setup.iter().map(SetupStep::label).collect();
        let (collector, progress) = NoticeCollector::before(progress, &dir);
        let ended = supervisor.follow(&progress).await;
        let end = EndTranslator {
            purpose: Purpose::Run,
            workspace: &record.name,
            backend: programs.backend(),
            dir: &dir,
            labels: &labels,
            opened: RefCell::new(collector.opened()),
        };
        let (noted, published) = collector.collected();
        let mut notices: Vec<RunNotice> = notices.into_iter().chain(noted).map(RunNotice::from).collect();
        let (recorded, ended) = match completed(ended, &end) {
            Ok(completed) => completed,
            Err(error) => return Err(engine.run_failed(&record, &dir, error).await),
        };
        let output = end.output()?;
        if record.has_network_device() {
            notices.extend(refusals(&decisions_in(&dir)?, record.network));
        }
        if record.disposable {
            engine.remove(&record.name, &dir).await?;
        }
        if recorded.dropped_bytes > 0 {
            let bytes = recorded.dropped_bytes;
            notices.push(format!("{bytes} bytes of output were dropped: it was over the bound").into());
        }
        Ok(RunReport {
            workspace: record.name,
            final_state: State::Stopped,
            profile: record.profile,
            resources: record.resources,
            network: record.network,
            published,
            hostname: record.hostname,
            image: (&image).into(),
            backend: programs.backend().to_owned(),
            kept: !record.disposable,
            start: ended.start,
            result: RunResult::of(recorded),
            output,
            timeline: ended.timeline,
            notices,
        })
    }
}

/// Tells a completed run from a failed one.
fn completed(
    ended: Result<SupervisorProgress, SuperviseError>,
    end: &EndTranslator<'_>,
) -> Result<(RecordedResult, Box<Ended>), Error> {
    match ended.map_err(|error| end.lost(error))? {
        SupervisorProgress::Serving(_) => Err(end.still_serving()),
        SupervisorProgress::Ended(ended) => match &ended.outcome {
            Outcome::Completed(recorded) => Ok((recorded.clone(), ended)),
            _ => Err(end.ended(*ended)),
        },
    }
}

/// Refuses what cannot work before anything is done.
fn check_run(options: &RunOptions) -> Result<(), InvalidRequest> {
    check_options(&options.workspace)?;
    if options.timeout == Some(Duration::ZERO) {
        return Err(InvalidRequest::NoTime);
    }
    Ok(())
}

/// What later starts of a kept run find: the image's own settings. Variables and setup steps belong to this run alone.
fn kept_workload(options: &RunOptions, config: &ImageConfig, hostname: &str) -> Workload {
    let settings = WorkspaceOptions { env: Vec::new(), setup: Vec::new(), ..options.workspace.clone() };
    new_workload(&settings, config, hostname)
}

/// `run-` and the Unix time in nanoseconds.
fn generated_name() -> Result<WorkspaceName, InvalidRequest> {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("run-{nanoseconds:019}").parse().map_err(InvalidRequest::GeneratedName)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_have_nineteen_digits() {
        let name = generated_name().unwrap();
        let digits = name.as_str().strip_prefix("run-").unwrap();
        assert_eq!(digits.len(), 19);
        assert!(digits.bytes().all(|byte| byte.is_ascii_digit()));
    }
}
