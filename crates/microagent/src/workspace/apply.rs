//! Updates an existing workspace to match a spec file.
//!
//! Keys that are not in the file do not change. If a difference is not possible, the update is refused and nothing is
//! written. Restart policy and outputs can change in any state: no machine uses them. Everything else changes at rest, under
//! the workspace's lock.
//!
//! At rest disk, workload and record change, one after the other. Each is compared with the file separately, so a
//! repeated `apply` completes one that was killed.

mod plan;

use microagent_image::{Digest, PullOptions, PullPolicy};
use microagent_model::{Attachment, CommandLine, DiskSource, SetupStep, State, WorkspaceName};
use microagent_store::{SettingsLock, Workload, WorkspaceDir, WorkspaceRecord};
use microagent_vm::grow_overlay;
use serde::{Deserialize, Serialize};

use super::{Workspace, lock_patiently, lock_settings};
use crate::disks::arrange;
use crate::error::{Action, InvalidRequest};
use crate::limits::check_work;
use crate::provision::{FirstStart, check_options, fitting_mib, resolve_command};
use crate::spec::Service;
use crate::{Error, Lookup, Progress, RunCommand, SpecFile};
use plan::{Plan, Wanted, is_bundle};

/// Whether [`Workspace::apply`] makes the changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ApplyMode {
    /// The changes are made.
    #[default]
    Write,
    /// The changes are only listed.
    DryRun,
}

/// The result of [`Workspace::apply`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Applied {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Its state.
    pub state: State,
    /// The differences, in the order in which the reference of spec files lists the keys. Empty if the workspace matched
    /// the file.
    pub changes: Vec<Change>,
    /// Whether the changes were only listed.
    pub dry_run: bool,
    /// Notices for the user.
    pub notices: Vec<String>,
}

/// A difference between a workspace and its file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The key of the file; a list's entry is named in brackets.
    pub key: String,
    /// Kind of the change.
    pub change: ChangeKind,
    /// The old value; `None` for values that are not shown: variables and setup steps.
    pub old: Option<String>,
    /// The new value.
    pub new: Option<String>,
    /// Whether it can change only while the workspace is resting.
    pub needs_rest: bool,
}

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Added.
    Added,
    /// Changed.
    Changed,
    /// Removed.
    Removed,
}

impl Workspace {
    /// Changes the workspace to match a spec file. Keys that are not in the file do not change. `host` looks up the
    /// environment variables that the file names without a value.
    ///
    /// # Errors
    /// Fails if a difference cannot change ([`Invalid`](crate::ErrorKind::Invalid)), or not in the workspace's state
    /// ([`WrongState`](crate::ErrorKind::WrongState)). Then nothing is written.
    pub async fn apply(&self, spec: &SpecFile, host: &Lookup, mode: ApplyMode) -> Result<Applied, Error> {
        let dry_run = mode == ApplyMode::DryRun;
        let dir = self.existing()?;
        let record = self.observe()?;
        if record.disposable {
            return Err(InvalidRequest::Leftover { name: self.name.clone(), verb: "changed" }.into());
        }
        let wanted = self.wanted(&record, spec, host).await?;
        let state = record.observed_state();
        if state.is_live() {
            return self.apply_live(&dir, &wanted, mode).await;
        }
        if !state.is_resting() {
            return Err(self.wrong_state(state, Action::Apply));
        }
        let _lock = match dry_run {
            true => None,
            false => Some(lock_patiently(&self.name, &dir).await?),
        };
        let settings = self.settings_to_write(&dir, mode).await?;
        // It may have been started, and ended, since it was looked at.
        let record = WorkspaceRecord::load(&dir)?;
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(self.wrong_state(state, Action::Apply));
        }
        let plan = self.plan(&dir, &record, &wanted)?;
        let mut notices = Vec::new();
        if let Some(settings) = &settings {
            notices = self.engine.make_missing_volumes(&plan.record.disks, &Progress::new())?;
            write(&dir, &record, &plan, settings)?;
        }
        Ok(Applied { workspace: self.name.clone(), state, changes: plan.changes, dry_run, notices })
    }

    async fn apply_live(
        &self,
        dir: &WorkspaceDir,
        wanted: &Wanted<'_>,
        mode: ApplyMode,
    ) -> Result<Applied, Error> {
        let dry_run = mode == ApplyMode::DryRun;
        let settings = self.settings_to_write(dir, mode).await?;
        let record = WorkspaceRecord::observe(dir)?;
        let (name, state) = (record.name.clone(), record.observed_state());
        let plan = self.plan(dir, &record, wanted)?;
        if !dry_run {
            let resting: Vec<String> = plan
                .changes
                .iter()
                .filter(|change| change.needs_rest)
                .map(|change| change.key.clone())
                .collect();
            if !resting.is_empty() {
                return Err(Error::NeedsRest { name, state, keys: resting });
            }
        }
        if let Some(settings) = settings.filter(|_| !plan.changes.is_empty()) {
            plan.record.save(dir, &settings)?;
        }
        Ok(Applied { workspace: name, state, changes: plan.changes, dry_run, notices: Vec::new() })
    }

    async fn settings_to_write(
        &self,
        dir: &WorkspaceDir,
        mode: ApplyMode,
    ) -> Result<Option<SettingsLock>, Error> {
        match mode {
            ApplyMode::DryRun => Ok(None),
            ApplyMode::Write => lock_settings(&self.name, dir).await.map(Some),
        }
    }

    fn plan(&self, dir: &WorkspaceDir, record: &WorkspaceRecord, wanted: &Wanted<'_>) -> Result<Plan, Error> {
        let workload = Workload::load(dir).map_err(|e| self.damaged(e))?;
        let mut plan = Plan::of(record, &workload, wanted);
        if !plan.impossible.is_empty() {
            return Err(Error::Unchangeable { name: record.name.clone(), differences: plan.impossible });
        }
        if plan.record.disks != record.disks {
            // A bundle's tar file may be gone: its disk has been made.
            let others: Vec<_> = plan.record.disks.iter().filter(|disk| !is_bundle(disk)).cloned().collect();
            self.engine.check_disks(&others, FirstStart::Later)?;
            plan.record.disks = arrange(&plan.record.disks)?;
        }
        check_options(&plan.options())?;
        Ok(plan)
    }

    /// What the file says, with all that must be read to know it.
    async fn wanted<'a>(
        &self,
        record: &WorkspaceRecord,
        spec: &'a SpecFile,
        host: &Lookup,
    ) -> Result<Wanted<'a>, Error> {
        let service = match &spec.service {
            _ if spec.image_command == Some(true) => Some(self.command_of_image(record).await?),
            Some(Service::Shell(line)) => Some(CommandLine::Shell(line.clone())),
            Some(Service::Argv(words)) => Some(CommandLine::Argv(words.clone())),
            None => None,
        };
        let base = self.engine.image_store().disk_path(&record.image.disk);
        let base_bytes = std::fs::metadata(&base).map_or(0, |metadata| metadata.len());
        let size_mib = spec.resources.size_mib.map(|asked| fitting_mib(asked, base_bytes));
        Ok(Wanted {
            spec,
            setup: spec.setup_steps()?,
            env: spec.variables(host)?,
            publish: spec.published()?,
            forwards: spec.forwarded()?,
            brokers: spec.brokered()?,
            disks: arrange(&spec.attachments()?.concat())?.into_iter().map(as_recorded).collect(),
            service,
            size_mib,
        })
    }

    /// The image's own command, while the cache still knows it.
    async fn command_of_image(&self, record: &WorkspaceRecord) -> Result<CommandLine, Error> {
        let pull = PullOptions::default().policy(PullPolicy::Never);
        let (images, silent) = (self.engine.image_store(), Progress::new());
        let image =
            images.ensure(&record.image.resolved_reference, &pull, &silent.images(), silent.token()).await;
        match image {
            Ok(image) if image.digest == record.image.digest => {
                Ok(resolve_command(&RunCommand::Image, &image.config)?)
            }
            _ => Err(InvalidRequest::ImageCommandGone.into()),
        }
    }
}

/// With its path as a record has it, where there is something at the path.
fn as_recorded(mut disk: Attachment) -> Attachment {
    if let DiskSource::Image(path) | DiskSource::Bundle(path) = &mut disk.source
        && let Ok(real) = path.canonicalize()
    {
        *path = real;
    }
    disk
}

/// Disk, workload, record: see the module.
fn write(
    dir: &WorkspaceDir,
    record: &WorkspaceRecord,
    plan: &Plan,
    settings: &SettingsLock,
) -> Result<(), Error> {
    if plan.changes.is_empty() {
        return Ok(());
    }
    check_work(&plan.workload, plan.workload.service.as_ref())?;
    if plan.record.resources.size_mib > record.resources.size_mib {
        grow_overlay(&record.disk(dir), plan.record.resources.disk_bytes()).map_err(|e| Error::File {
            action: "grow",
            path: e.path,
            source: e.source,
        })?;
    }
    plan.workload.save(dir)?;
    plan.record.save(dir, settings)?;
    Ok(())
}

/// What tells one list of setup steps from another.
pub(crate) fn setup_digest(steps: &[SetupStep]) -> String {
    let text = serde_json::to_vec(steps).expect("setup steps have a JSON form");
    Digest::of(&text).as_str().to_owned()
}
