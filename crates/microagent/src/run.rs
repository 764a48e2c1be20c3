//! One-shot runs: image, machine, work, result, and nothing left.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use microagent_image::{ImageConfig, PullOptions};
use microagent_store::{
    FailureKind, RecordedResult, State, Workload, WorkspaceDir, WorkspaceName, WorkspaceRecord,
};
use microagent_vm::{Ended, Outcome, OutputReader, SuperviseError, SupervisorSpec, Work, choose_ports};
use tokio_util::sync::CancellationToken;

use crate::limits::check_work;
use crate::provision::{
    check_options, invalid, main_request, new_record, new_workload, resolve_command, resolve_resources,
    setup_steps,
};
use crate::supervisor_events::{Forward, NoticeCollector, SupervisorProgress};
use crate::supervisor_spec::MachineRequest;
use crate::workspace::lock_error;
use crate::{Engine, Error, Event, Observer, RunOptions, RunReport, SetupFailure, WorkspaceOptions};

impl Engine {
    /// Runs one command in a machine of its own and gives what came of it. A disposable run leaves nothing;
    /// a failed one leaves its record in state `failed`, so that its logs can be read.
    ///
    /// # Errors
    /// Fails when the image cannot be had, the machine cannot be started or fails, a setup step fails, the
    /// time is up, or `cancel` says so. Not when the command returns something else than 0.
    pub async fn run(
        &self,
        options: &RunOptions,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<RunReport, Error> {
        check_run(options)?;
        self.prepare()?;
        let name = options.name.clone().map_or_else(generated_name, Ok)?;
        if options.name.is_some() && self.state().workspace(&name).path().exists() {
            return Err(Error::NameTaken { name });
        }
        // Before the image is fetched; the supervisor looks again.
        choose_ports(&options.workspace.publish)?;
        let disks = self.check_disks(&options.workspace.disks, true)?;
        let programs = self.host_programs(options.workspace.network)?;
        // What is missing is better said before an image is fetched.
        let secrets = self.resolve_secrets(&options.workspace.secrets, cancel).await?;
        let pull = PullOptions { policy: options.workspace.pull, ..PullOptions::default() };
        let mut image =
            self.images().ensure(&options.workspace.image, &pull, &Forward(observer), cancel).await?;
        let command = resolve_command(&options.command, &image.config)?;

        let (resources, mut notices) = resolve_resources(&options.workspace, &image);
        notices.iter().for_each(|notice| observer.event(Event::Notice(notice.clone())));
        let record = new_record(&options.workspace, &name, &image, resources, &disks)?;
        let record = WorkspaceRecord { disposable: !options.keep, ..record };
        let workload = new_workload(&options.workspace, &image.config, &record.hostname);
        check_work(&workload, Some(&command))?;
        let kept = options.keep.then(|| kept_workload(options, &image.config, &record.hostname));
        let bundles = self.make_bundles(&disks, cancel).await?;
        notices.extend(self.make_missing_volumes(&disks, observer)?);
        let dir = self.create_from_image(&record, &image, kept.as_ref(), bundles)?;
        // The record names the disk from here on, which keeps it from being pruned.
        image.release();
        let work = Work::Run { setup: setup_steps(&workload), command: main_request(&workload, &command) };
        let spec = self.spec(&programs, &MachineRequest::of(&record, &dir, &image.disk)?.first(), work)?;
        let spec = secrets.deliver(SupervisorSpec { timeout: options.timeout, ..spec }, &workload.user);

        let backend = programs.decision.backend();
        observer.event(Event::Booting { workspace: name.to_string(), backend: backend.to_owned() });
        let noting = NoticeCollector::new(observer);
        let ended = self.follow(spec, &noting, cancel).await.and_then(|followed| match followed {
            SupervisorProgress::Ended(ended) => Ok(*ended),
            SupervisorProgress::Serving => Err(SuperviseError::Vanished { log: dir.supervisor_log() }),
        });
        let output = OutputReader::open(&dir.output()).map_err(|source| Error::File {
            action: "read",
            path: dir.output(),
            source,
        })?;
        let (noted, published) = noting.into_noted();
        notices.extend(noted);
        let (recorded, ended) = match self.judge(ended, &record, options, backend) {
            Ok(judged) => judged,
            Err(Judged::Setup(failure)) => {
                return Err(Error::SetupFailed { workspace: name, failure, output: Box::new(output) });
            }
            Err(Judged::Error(error)) => {
                if record.disposable && matches!(error, Error::Cancelled | Error::DiskBusy { .. }) {
                    self.remove(&name, &dir)?;
                }
                return Err(error);
            }
        };
        if record.disposable {
            self.remove(&name, &dir)?;
        }
        if recorded.dropped_bytes > 0 {
            notices.push(format!(
                "{} bytes of output were dropped: it was over the bound",
                recorded.dropped_bytes
            ));
        }
        Ok(RunReport {
            workspace: name,
            final_state: State::Stopped,
            profile: record.profile,
            resources,
            network: options.workspace.network,
            published,
            hostname: record.hostname,
            image: (&image).into(),
            backend: backend.to_owned(),
            kept: !record.disposable,
            start: ended.start,
            result: recorded.into(),
            output,
            timeline: ended.timeline,
            notices,
        })
    }

    /// Tells a completed run from a failed one.
    fn judge(
        &self,
        ended: Result<Ended, SuperviseError>,
        record: &WorkspaceRecord,
        options: &RunOptions,
        backend: &str,
    ) -> Result<(RecordedResult, Ended), Judged> {
        let failed = |kind, message, console_tail| {
            Judged::Error(Error::RunFailed {
                workspace: record.name.clone(),
                backend: backend.to_owned(),
                kind,
                message,
                console_tail,
            })
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(SuperviseError::Vanished { .. }) => {
                return Err(failed(
                    FailureKind::SupervisorDied,
                    "its supervisor was killed".to_owned(),
                    None,
                ));
            }
            Err(error) => return Err(Judged::Error(error.into())),
        };
        match &ended.outcome {
            Outcome::Completed(recorded) => Ok((recorded.clone(), ended)),
            Outcome::SetupFailed { step, exit_code, start_error } => Err(Judged::Setup(SetupFailure {
                step: step + 1,
                label: options
                    .workspace
                    .setup
                    .get(*step)
                    .map_or_else(String::new, microagent_store::SetupStep::label),
                exit_code: *exit_code,
                start_error: start_error.clone(),
            })),
            Outcome::Failed(failure) if failure.kind == FailureKind::Cancelled => {
                Err(Judged::Error(Error::Cancelled))
            }
            Outcome::Failed(failure) => {
                let tail = Some(ended.console_tail.clone()).filter(|tail| !tail.is_empty());
                Err(failed(failure.kind, failure.message.clone(), tail))
            }
            Outcome::Busy => Err(Judged::Error(Error::Busy { name: record.name.clone(), source: None })),
            Outcome::DiskBusy { disk, holder } => {
                Err(Judged::Error(Error::DiskBusy { disk: disk.clone(), holder: holder.clone() }))
            }
            Outcome::PoweredOff => Err(failed(
                FailureKind::GuestDied,
                "the guest turned itself off before its work was done".to_owned(),
                None,
            )),
            Outcome::Prepared
            | Outcome::Halted
            | Outcome::Stopped
            | Outcome::ServiceEnded(_)
            | Outcome::Quarantined(_)
            | Outcome::Frozen => Err(failed(
                FailureKind::Protocol,
                "its supervisor did other work than asked".to_owned(),
                None,
            )),
        }
    }

    pub(crate) fn remove(&self, name: &WorkspaceName, dir: &WorkspaceDir) -> Result<(), Error> {
        let _lock = dir.lock().map_err(|error| lock_error(name, error))?;
        dir.remove(self.state()).map_err(|source| Error::File {
            action: "remove",
            path: dir.path().to_owned(),
            source,
        })
    }
}

/// What a run that did not complete came to.
enum Judged {
    Setup(SetupFailure),
    Error(Error),
}

/// Refuses what cannot work before anything is done.
fn check_run(options: &RunOptions) -> Result<(), Error> {
    check_options(&options.workspace)?;
    if options.timeout == Some(Duration::ZERO) {
        let hint = "give at least 1, or leave --timeout out";
        return Err(invalid("a timeout of 0 seconds leaves no time to run", hint));
    }
    Ok(())
}

/// What later starts of a kept run find: the image's own settings. What this one run was given is its own.
fn kept_workload(options: &RunOptions, config: &ImageConfig, hostname: &str) -> Workload {
    let settings = WorkspaceOptions { env: Vec::new(), setup: Vec::new(), ..options.workspace.clone() };
    new_workload(&settings, config, hostname)
}

/// `run-` and the Unix time in nanoseconds.
fn generated_name() -> Result<WorkspaceName, Error> {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("run-{nanoseconds:019}")
        .parse()
        .map_err(|e: crate::NameError| invalid(e.to_string(), "set the host's clock, or give --name"))
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
