//! Templates by hand: make one before it is needed, look at them, remove them.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::time::SystemTime;

use microagent_net::EgressPolicy;
use microagent_store::{FailureKind, NetworkMode, Resources, WorkspaceDir};
use microagent_vm::template::{self, TemplateInfo};
use microagent_vm::{Outcome, Report, SuperviseError, Timeline, Work, launch};
use tokio_util::sync::CancellationToken;

use crate::supervisor_spec::{MachineRequest, new_identity};
use crate::{Engine, Error};

/// How the supervisor of a freeze is called in lists of processes.
const NAME: &str = "template-build";

/// What a template was made for.
#[derive(Debug, Clone)]
pub struct Template {
    /// Its key: a digest of everything that it depends on.
    pub key: String,
    /// What runs it, memory in MiB, CPUs, network; `None` when its manifest is damaged.
    pub shape: Option<TemplateShape>,
    /// Name of the base disk that it has mounted; `None` for one that every image of its shape starts from.
    pub disk: Option<String>,
    /// When it was frozen.
    pub created_at: Option<jiff::Timestamp>,
    /// When a machine last started from it.
    pub used_at: SystemTime,
    /// Bytes on disk.
    pub bytes: u64,
    /// Whether it is of no use: the host was booted anew, or its image is gone.
    pub stale: bool,
}

/// The part of a shape that a user chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateShape {
    /// Hardware virtualisation or emulation.
    pub kvm: bool,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Network mode.
    pub network: NetworkMode,
}

impl From<TemplateInfo> for Template {
    fn from(info: TemplateInfo) -> Template {
        let disk = info.shape.as_ref().and_then(|shape| {
            let name = shape.image.as_ref()?.base.file_stem()?;
            Some(name.to_string_lossy().into_owned())
        });
        let shape = info.shape.map(|shape| TemplateShape {
            kvm: shape.kvm,
            memory_mib: shape.memory_mib,
            cpu_count: shape.cpu_count,
            network: if shape.network { NetworkMode::User } else { NetworkMode::Isolated },
        });
        let TemplateInfo { key, created_at, used_at, bytes, stale, .. } = info;
        Template { key, shape, disk, created_at, used_at, bytes, stale }
    }
}

impl Engine {
    /// Looks at all templates, most recently used first. Changes nothing.
    ///
    /// # Errors
    /// Fails when the state directory exists and cannot be read.
    pub fn templates(&self) -> Result<Vec<Template>, Error> {
        let found = template::list(self.state()).map_err(|source| self.unreadable(source))?;
        Ok(found.into_iter().map(Template::from).collect())
    }

    /// Removes templates that are of no use, or all; gives those that went. Machines that run from one keep
    /// running.
    ///
    /// # Errors
    /// Fails when the state directory exists and cannot be read.
    pub fn template_prune(&self, all: bool) -> Result<Vec<Template>, Error> {
        let gone = template::prune(self.state(), all).map_err(|source| self.unreadable(source))?;
        Ok(gone.into_iter().map(Template::from).collect())
    }

    /// Boots a machine of this size and freezes it, in place of a template of the same shape. Gives where
    /// the time went.
    ///
    /// # Errors
    /// Fails when the machine does not come up or cannot be frozen, or `cancel` says so. Nothing is left then.
    pub async fn template_build(
        &self,
        resources: Resources,
        network: NetworkMode,
        cancel: &CancellationToken,
    ) -> Result<Timeline, Error> {
        self.prepare()?;
        let programs = self.host_programs(network)?;
        let tmp = self.state().tmp();
        let failed = |source| Error::File { action: "create a directory in", path: tmp, source };
        // The supervisor locks its directory, and the scratch directory is locked already.
        let made = self.state().scratch().and_then(|scratch| {
            let dir = WorkspaceDir::at(scratch.path().join("machine"));
            DirBuilder::new().mode(0o700).create(dir.path()).map(|()| (scratch, dir))
        });
        let (_scratch, dir) = made.map_err(failed)?;
        let identity = new_identity()?;
        let request = MachineRequest {
            name: NAME,
            hostname: NAME,
            identity,
            resources,
            dir: &dir,
            disk: None,
            publish: &[],
            egress: EgressPolicy::default(),
            disks: &[],
        };
        let mut spec = self.spec(&programs, &request, Work::Freeze)?;
        // Asked for by name, whatever the default is.
        spec.warm = Ok(());
        let failed = |kind, message| Error::TemplateFailed { kind, message };
        let mut launched = launch(&self.options().supervisor, &spec).await?;
        let ended = loop {
            match launched.next(cancel).await {
                Ok(Report::Ended(ended)) => break Ok(*ended),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        launched.join().await;
        match ended {
            Ok(ended) => match ended.outcome {
                Outcome::Frozen => Ok(ended.timeline),
                Outcome::Failed(failure) if failure.kind == FailureKind::Cancelled => Err(Error::Cancelled),
                Outcome::Failed(failure) => Err(failed(failure.kind, failure.message)),
                _ => {
                    Err(failed(FailureKind::Protocol, "its supervisor did other work than asked".to_owned()))
                }
            },
            Err(SuperviseError::Vanished { .. }) => {
                Err(failed(FailureKind::SupervisorDied, "its supervisor was killed".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn unreadable(&self, source: std::io::Error) -> Error {
        Error::File { action: "read", path: self.state().templates(), source }
    }
}
