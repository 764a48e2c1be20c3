//! The entry point: one state directory, one way to start supervisors.

use std::path::PathBuf;
use std::time::Duration;

use microagent_image::{Environment, ImageStore};
use microagent_store::StateDir;
pub use microagent_vm::AccelChoice;

use crate::{Error, SecretEnvironment};

/// Where an [`Engine`] keeps its state and what it starts machines with.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// State directory; made on the first write.
    pub state_dir: PathBuf,
    /// Program that calls [`crate::supervise`] when its first argument is `__supervise`: the `microagent`
    /// command, or the embedding program itself.
    pub supervisor: PathBuf,
    /// Accelerator.
    pub accel: AccelChoice,
    /// Guest kernel in place of the one carried inside (an uncompressed `vmlinux` with a PVH note).
    pub kernel: Option<PathBuf>,
    /// QEMU; looked up in `search_path` when absent.
    pub qemu: Option<PathBuf>,
    /// File that names the host's name servers, as `resolv.conf(5)` says.
    pub resolv_conf: PathBuf,
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
            search_path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            warm: Ok(()),
            weak_jail: WeakJail::Refuse,
            boot_deadline: Duration::from_secs(120),
            environment: Environment::default(),
            secrets: SecretEnvironment::default(),
        }
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

/// Runs and keeps workspaces. Cheap to make; holds no lock and no process.
#[derive(Debug, Clone)]
pub struct Engine {
    options: EngineOptions,
    state: StateDir,
}

impl Engine {
    /// Names the parts; touches nothing yet.
    pub fn new(options: EngineOptions) -> Engine {
        let state = StateDir::at(&options.state_dir);
        Engine { options, state }
    }

    /// The images of this state directory.
    pub fn images(&self) -> ImageStore {
        ImageStore::new(self.state.clone()).with_environment(self.options.environment.clone())
    }

    /// Refuses a state directory that another user can change. Changes nothing; one that does not exist passes.
    ///
    /// [`Engine::prepare`] and what writes does this by itself; a program that only reads calls it once.
    ///
    /// # Errors
    /// Fails when the directory belongs to another user or is writable by others.
    pub fn check_access(&self) -> Result<(), Error> {
        Ok(self.state.check_access()?)
    }

    /// Makes the state directory ready for writing.
    ///
    /// # Errors
    /// Fails when it cannot be made, is not writable, or was written by a newer release.
    pub fn prepare(&self) -> Result<(), Error> {
        Ok(self.state.prepare()?)
    }

    pub(crate) fn options(&self) -> &EngineOptions {
        &self.options
    }

    pub(crate) fn state(&self) -> &StateDir {
        &self.state
    }
}
