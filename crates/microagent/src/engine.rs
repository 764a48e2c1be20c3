//! The entry point: a state directory, and the settings with which machines start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use microagent_image::{Environment, ImageStore};
use microagent_store::StateDir;
pub use microagent_vm::AccelChoice;

use crate::{Error, SecretEnvironment};

/// Settings of an [`Engine`]: its state directory, and how it starts machines. Create with [`EngineOptions::new`] and
/// change with its methods; each field has one.
///
/// By default the engine uses no login and no proxy for registries and has no sources of secrets, because the library
/// reads no environment variables. [`Environment::from_lookup`] and [`EngineOptions::environment`] pass the usual
/// variables on:
///
/// ```
/// use microagent::{EngineOptions, image::Environment};
///
/// # let (state_dir, supervisor) = ("/home/me/.microagent", "/usr/bin/microagent");
/// let options = EngineOptions::new(state_dir, supervisor)
///     .environment(Environment::from_lookup(|name| std::env::var_os(name)));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EngineOptions {
    /// State directory. The first method that writes creates it.
    pub state_dir: PathBuf,
    /// Path of the program that calls [`supervise`](crate::supervise) when its first argument is
    /// [`SUPERVISE_ARGUMENT`](crate::SUPERVISE_ARGUMENT): the `microagent` command of the same build, or the embedding
    /// program itself (not a test harness; see [the crate](crate)). A name without `/` is not looked up in
    /// [`search_path`](EngineOptions::search_path). With another program, methods that start a machine fail with
    /// [`SuperviseError::NotASupervisor`](crate::error::SuperviseError::NotASupervisor).
    pub supervisor: PathBuf,
    /// Which accelerator runs guests.
    pub accel: AccelChoice,
    /// Guest kernel instead of the embedded one: an uncompressed `vmlinux` with a PVH note.
    pub kernel: Option<PathBuf>,
    /// Path of QEMU. If absent, `qemu-system-x86_64` is looked up in `search_path`.
    pub qemu: Option<PathBuf>,
    /// File with the host's name servers, in the format of `resolv.conf(5)`.
    pub resolv_conf: PathBuf,
    /// File with the host's names, in the format of `hosts(5)`. It is read if a workspace adds these names to its guest.
    pub hosts_file: PathBuf,
    /// Directories in which programs are looked up, in the format of `PATH`.
    pub search_path: String,
    /// Whether machines start from templates. They do by default.
    pub templates: TemplateUse,
    /// Whether guest kernels print all of their messages to the console, which a boot has and a restored template has not.
    /// Warnings and errors are always printed.
    pub verbose_boot: bool,
    /// Whether to start machines on a host that lacks walls of QEMU's jail.
    pub weak_jail: WeakJail,
    /// Deadline of a guest's first answer. It is long, because many guests may start at once on few cores without
    /// hardware virtualisation.
    pub boot_deadline: Duration,
    /// Most machines of runs and workspaces that may run at a time in this state directory. The default is one for each
    /// 128 MiB of the host's memory, and at least 8. A method that would start one more does not wait: it fails with
    /// [`Error::TooManyRunning`], which is [retryable](Error::is_retryable).
    pub max_running: Option<u32>,
    /// Values of the user's environment for the image store (login files, proxies).
    pub environment: Environment,
    /// Sources in which secrets are looked up.
    pub secrets: SecretEnvironment,
}

impl EngineOptions {
    /// Creates options with defaults: the fastest accelerator of the host, QEMU from the usual directories, starts from
    /// templates.
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
            templates: TemplateUse::Enabled,
            verbose_boot: false,
            weak_jail: WeakJail::Refuse,
            boot_deadline: Duration::from_secs(120),
            max_running: None,
            environment: Environment::default(),
            secrets: SecretEnvironment::default(),
        }
    }

    /// Sets the accelerator.
    #[must_use]
    pub fn accel(self, accel: AccelChoice) -> EngineOptions {
        EngineOptions { accel, ..self }
    }

    /// Sets the guest kernel, which is used instead of the embedded one.
    #[must_use]
    pub fn kernel(self, kernel: impl Into<PathBuf>) -> EngineOptions {
        EngineOptions { kernel: Some(kernel.into()), ..self }
    }

    /// Sets the path of QEMU.
    #[must_use]
    pub fn qemu(self, qemu: impl Into<PathBuf>) -> EngineOptions {
        EngineOptions { qemu: Some(qemu.into()), ..self }
    }

    /// Sets whether to start machines on a host that lacks walls of QEMU's jail.
    #[must_use]
    pub fn weak_jail(self, weak_jail: WeakJail) -> EngineOptions {
        EngineOptions { weak_jail, ..self }
    }

    /// Sets the directories in which programs are looked up, in the format of `PATH`.
    #[must_use]
    pub fn search_path(self, search_path: impl Into<String>) -> EngineOptions {
        EngineOptions { search_path: search_path.into(), ..self }
    }

    /// Sets the file with the host's name servers.
    #[must_use]
    pub fn resolv_conf(self, file: impl Into<PathBuf>) -> EngineOptions {
        EngineOptions { resolv_conf: file.into(), ..self }
    }

    /// Sets the file with the host's names.
    #[must_use]
    pub fn hosts_file(self, file: impl Into<PathBuf>) -> EngineOptions {
        EngineOptions { hosts_file: file.into(), ..self }
    }

    /// Sets whether machines start from templates.
    #[must_use]
    pub fn templates(self, templates: TemplateUse) -> EngineOptions {
        EngineOptions { templates, ..self }
    }

    /// Sets whether guest kernels print all of their messages to the console.
    #[must_use]
    pub fn verbose_boot(self, verbose_boot: bool) -> EngineOptions {
        EngineOptions { verbose_boot, ..self }
    }

    /// Sets the deadline of a guest's first answer.
    #[must_use]
    pub fn boot_deadline(self, boot_deadline: Duration) -> EngineOptions {
        EngineOptions { boot_deadline, ..self }
    }

    /// Sets how many machines may run at a time. One more fails with [`Error::TooManyRunning`].
    #[must_use]
    pub fn max_running(self, max_running: u32) -> EngineOptions {
        EngineOptions { max_running: Some(max_running), ..self }
    }

    /// Sets the values of the user's environment for registries and archives; usually
    /// [`Environment::from_lookup`].
    #[must_use]
    pub fn environment(self, environment: Environment) -> EngineOptions {
        EngineOptions { environment, ..self }
    }

    /// Sets the sources in which secrets are looked up.
    #[must_use]
    pub fn secrets(self, secrets: SecretEnvironment) -> EngineOptions {
        EngineOptions { secrets, ..self }
    }
}

/// Whether machines start from templates, and make the templates that are missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TemplateUse {
    /// Machines start from templates, which saves most of the boot time.
    #[default]
    Enabled,
    /// Each machine boots its kernel.
    Disabled {
        /// The reason, as [`RunReport::start`](crate::RunReport::start) and [`Engine::doctor`] report it.
        reason: String,
    },
}

impl TemplateUse {
    /// Disables templates, with the reason that reports show.
    pub fn disabled(reason: impl Into<String>) -> TemplateUse {
        TemplateUse::Disabled { reason: reason.into() }
    }

    /// As the supervisor takes it.
    pub(crate) fn warm(&self) -> Result<(), String> {
        match self {
            TemplateUse::Enabled => Ok(()),
            TemplateUse::Disabled { reason } => Err(reason.clone()),
        }
    }
}

/// Whether to start machines on a host whose kernel lacks seccomp filters or Landlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeakJail {
    /// No machine starts.
    #[default]
    Refuse,
    /// Machines start; record and events name the missing walls.
    Allow,
}

/// Runs commands and manages workspaces. Cheap to create and to clone; holds no lock and no process.
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
    /// Creates an engine. Does no I/O.
    pub fn new(options: EngineOptions) -> Engine {
        let state = StateDir::at(&options.state_dir);
        Engine { shared: Arc::new(Shared { options, state }) }
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.options().state_dir
    }

    /// Checks that no other user can change the state directory. Changes nothing; a missing directory is accepted.
    ///
    /// [`Engine::prepare`] and methods that write do this themselves; a program that only reads should call it once.
    ///
    /// # Errors
    /// Fails if the directory belongs to another user or is writable by others.
    pub fn check_access(&self) -> Result<(), Error> {
        Ok(self.state().check_access()?)
    }

    /// Creates the state directory if needed, and checks that it is writable.
    ///
    /// # Errors
    /// Fails if it cannot be created, is not writable, or was written by a newer release.
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
