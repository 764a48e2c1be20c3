//! What every command is given: the engine, the output format, how to show progress, how to be cancelled.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use microagent::{AccelChoice, CancellationToken, Engine, EngineOptions, TemplateUse, WeakJail};

use crate::args::boot::BootModeArgs;
use crate::args::global::{Accel, GlobalArgs, JsonForm, ProgressChoice};
use crate::config::Config;
use crate::failure::Failure;
use crate::output::Format;
use crate::progress::Progress;
use crate::signals::Listening;
use crate::{environment, signals};

/// Name of the state directory in the home directory.
const DEFAULT_STATE_DIR: &str = ".microagent";

/// What a command is given. Making one reads the environment and touches no file.
pub(crate) struct Context {
    /// How to answer.
    pub(crate) format: Format,
    form: Option<JsonForm>,
    options: EngineOptions,
    config: Config,
    progress: ProgressChoice,
}

impl Context {
    /// Resolves the global options.
    pub(crate) fn new(global: &GlobalArgs, format: Format) -> Result<Context, Failure> {
        let state_dir = match &global.state_dir {
            Some(dir) => absolute(dir.clone())?,
            None => default_state_dir()?,
        };
        let supervisor = std::env::current_exe().map_err(|e| Failure::Other {
            message: format!("cannot find the path of this program: {e}"),
            hint: Some("check that /proc is mounted".to_owned()),
        })?;
        let mut options = EngineOptions::new(state_dir, supervisor);
        options.accel = match global.accel {
            Accel::Auto => AccelChoice::Auto,
            Accel::Kvm => AccelChoice::Kvm,
            Accel::Tcg => AccelChoice::Tcg,
        };
        if global.allow_weak_jail {
            options.weak_jail = WeakJail::Allow;
        }
        if let Some(path) = environment::search_path() {
            options.search_path = path;
        }
        if let Some(deadline) = environment::boot_timeout()? {
            options.boot_deadline = deadline;
        }
        options.max_running = environment::max_running()?;
        options.templates = environment::templates()?;
        let config = Config::load()?;
        options.environment = environment::for_images(&config);
        options.secrets = environment::for_secrets();
        Ok(Context { format, form: global.json, options, config, progress: global.progress })
    }

    /// Whether lines are printed as things happen, instead of one document.
    pub(crate) fn streams(&self) -> bool {
        self.form == Some(JsonForm::Stream)
    }

    /// Defaults of options.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The engine, with the kernel that it carries.
    pub(crate) fn engine(&self) -> Engine {
        Engine::new(self.options.clone())
    }

    /// The engine with another guest kernel, or one that boots machines in another way.
    pub(crate) fn engine_for_run(&self, kernel: Option<PathBuf>, boot: BootModeArgs) -> Engine {
        let mut options = self.options.clone();
        options.kernel = kernel;
        options.verbose_boot = boot.verbose_boot;
        match boot {
            BootModeArgs { verbose_boot: true, .. } => {
                options.templates = TemplateUse::disabled("requested with --verbose-boot");
            }
            BootModeArgs { cold: true, .. } => {
                options.templates = TemplateUse::disabled("requested with --cold");
            }
            BootModeArgs { .. } => {}
        }
        Engine::new(options)
    }

    /// The state directory.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.options.state_dir
    }

    /// How to show long work; `quiet` leaves only notes.
    pub(crate) fn progress(&self, quiet: bool) -> Arc<Progress> {
        let choice = if quiet { ProgressChoice::Off } else { self.progress };
        Arc::new(match self.streams() {
            true => Progress::stream(),
            false => Progress::new(choice, self.format),
        })
    }

    /// Runs long work on this thread until it ends; signals cancel the token that it is given.
    pub(crate) fn block_on<T, F>(&self, work: impl FnOnce(CancellationToken) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        self.block_on_lending(|token, _listening| work(token))
    }

    /// The same for work that lends the signals to a command in a guest while that runs.
    pub(crate) fn block_on_lending<T, F>(
        &self,
        work: impl FnOnce(CancellationToken, Listening) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let token = CancellationToken::new();
        let listening = signals::listen(token.clone()).map_err(cannot_start)?;
        let done = self.block_on_unlistening(work(token, listening.clone()));
        // Only the answer is left to be printed, which nothing but its reader holds up.
        listening.exit_at_next();
        done
    }

    /// Runs a call of the library that reads or changes files of the state directory. A signal ends this process.
    pub(crate) fn call<T>(
        &self,
        work: impl Future<Output = Result<T, microagent::Error>>,
    ) -> Result<T, Failure> {
        self.block_on_unlistening(async { Ok(work.await?) })
    }

    /// Runs long work that handles signals itself.
    pub(crate) fn block_on_unlistening<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
        let done = runtime.block_on(work);
        // Blocking work that outlives its caller (a name lookup, say) must not hold up the exit.
        runtime.shutdown_background();
        done
    }
}

fn cannot_start(error: std::io::Error) -> Failure {
    Failure::Other {
        message: format!("cannot start the event loop: {error}"),
        hint: Some("`ulimit -n` and `ulimit -u` may be too low".to_owned()),
    }
}

/// The supervisor runs in another directory, so paths must not depend on this one.
fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).map_err(|source| Failure::File { action: "resolve", path, source })
}

fn default_state_dir() -> Result<PathBuf, Failure> {
    match etcetera::home_dir() {
        Ok(home) if home.is_absolute() => Ok(home.join(DEFAULT_STATE_DIR)),
        _ => Err(Failure::usage(
            "no home directory for the state directory",
            "set --state-dir or MICROAGENT_STATE_DIR",
        )),
    }
}
