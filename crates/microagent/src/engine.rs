//! The entry point: one state directory, one way to start supervisors.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use microagent_image::{Environment, ImageStore};
use microagent_store::StateDir;
pub use microagent_vm::AccelChoice;

use crate::{Error, SecretEnvironment};

/// Where an [`Engine`] keeps its state and what it starts machines with. Start from [`EngineOptions::new`] and set what
/// differs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EngineOptions {
    /// State directory; made on the first write.
    pub state_dir: PathBuf,
    /// Program that calls [`crate::supervise`] when its first argument is [`crate::SUPERVISE_ARGUMENT`]: the
    /// `microagent` command, or the embedding program itself (not a test harness; see [the crate](crate)).
    pub supervisor: PathBuf,
    /// Accelerator.
    pub accel: AccelChoice,
    /// Guest kernel in place of the one carried inside (an uncompressed `vmlinux` with a PVH note).
    pub kernel: Option<PathBuf>,
    /// QEMU; looked up in `search_path` when absent.
    pub qemu: Option<PathBuf>,
    /// File that names the host's name servers, as `resolv.conf(5)` says.
    pub resolv_conf: PathBuf,
    /// File with the host's own names, as `hosts(5)` says; read when a guest is to have them.
    pub hosts_file: PathBuf,
    /// Directories where programs are looked for, as in `PATH`.
    pub search_path: String,
    /// Whether machines start from templates and make them; the reason, when they do not.
    pub warm: Result<(), String>,
    /// What to do on a host that lacks walls of QEMU's jail.
    pub weak_jail: WeakJail,
    /// How long a guest may take to answer for the first time. Generous: many guests may start at once on
    /// few cores without hardware virtualisation.
    pub boot_deadline: Duration,
    /// What the image store may know of the user's environment (login files, proxies).
    pub environment: Environment,
    /// What values of secrets are looked up with.
    pub secrets: SecretEnvironment,
}

impl EngineOptions {
    /// Everything automatic: accelerator by the host, QEMU from the usual places.
    pub fn new(state_dir: impl Into<PathBuf>, supervisor: impl Into<PathBuf>) -> EngineOptions {
        EngineOptions {
            state_dir: state_dir.into(),
            supervisor: supervisor.into(),
            accel: AccelChoice::Auto,
            kernel: None,
            qemu: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            hosts_file: PathBuf::from("/etc/hosts"),
            search_path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            warm: Ok(()),
            weak_jail: WeakJail::Refuse,
            boot_deadline: Duration::from_secs(120),
            environment: Environment::default(),
            secrets: SecretEnvironment::default(),
        }
    }

    /// Sets the accelerator.
    #[must_use]
    pub fn accel(self, accel: AccelChoice) -> EngineOptions {
        EngineOptions { accel, ..self }
    }

    /// Boots this kernel in place of the one carried inside.
    #[must_use]
    pub fn kernel(self, kernel: impl Into<PathBuf>) -> EngineOptions {
        EngineOptions { kernel: Some(kernel.into()), ..self }
    }

    /// Starts this QEMU.
    #[must_use]
    pub fn qemu(self, qemu: impl Into<PathBuf>) -> EngineOptions {
        EngineOptions { qemu: Some(qemu.into()), ..self }
    }

    /// Says what to do on a host that lacks walls of QEMU's jail.
    #[must_use]
    pub fn weak_jail(self, weak_jail: WeakJail) -> EngineOptions {
        EngineOptions { weak_jail, ..self }
    }

    /// Looks for programs in these directories, written as `PATH` is.
    #[must_use]
    pub fn search_path(self, search_path: impl Into<String>) -> EngineOptions {
        EngineOptions { search_path: search_path.into(), ..self }
    }

    /// Starts no machine from a template, for this reason.
    #[must_use]
    pub fn cold(self, reason: impl Into<String>) -> EngineOptions {
        EngineOptions { warm: Err(reason.into()), ..self }
    }

    /// Sets how long a guest may take to answer for the first time.
    #[must_use]
    pub fn boot_deadline(self, boot_deadline: Duration) -> EngineOptions {
        EngineOptions { boot_deadline, ..self }
    }

    /// Sets what the image store may know of the user's environment.
    #[must_use]
    pub fn environment(self, environment: Environment) -> EngineOptions {
        EngineOptions { environment, ..self }
    }

    /// Sets what values of secrets are looked up with.
    #[must_use]
    pub fn secrets(self, secrets: SecretEnvironment) -> EngineOptions {
        EngineOptions { secrets, ..self }
    }
}

/// What to do on a host whose kernel lacks seccomp filters or Landlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeakJail {
    /// Starts no machine.
    #[default]
    Refuse,
    /// Starts machines; what is missing is in the record and the events.
    Allow,
}

/// Runs and keeps workspaces. Cheap to make and to clone; holds no lock and no process.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: EngineOptions,
    state: StateDir,
}

impl Engine {
    /// Names the parts; touches nothing yet.
    pub fn new(options: EngineOptions) -> Engine {
        let state = StateDir::at(&options.state_dir);
        Engine { shared: Arc::new(Shared { options, state }) }
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.options().state_dir
    }

    /// Refuses a state directory that another user can change. Changes nothing; one that does not exist passes.
    ///
    /// [`Engine::prepare`] and what writes does this by itself; a program that only reads calls it once.
    ///
    /// # Errors
    /// Fails when the directory belongs to another user or is writable by others.
    pub fn check_access(&self) -> Result<(), Error> {
        Ok(self.state().check_access()?)
    }

    /// Makes the state directory ready for writing.
    ///
    /// # Errors
    /// Fails when it cannot be made, is not writable, or was written by a newer release.
    pub fn prepare(&self) -> Result<(), Error> {
        Ok(self.state().prepare()?)
    }

    pub(crate) fn image_store(&self) -> ImageStore {
        ImageStore::new(self.state().clone()).with_environment(self.options().environment.clone())
    }

    pub(crate) fn options(&self) -> &EngineOptions {
        &self.shared.options
    }

    pub(crate) fn state(&self) -> &StateDir {
        &self.shared.state
    }
}
