//! One-shot runs: image, machine, work, result, and nothing left.

use std::fs;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use microagent_image::{Image, ImageConfig, ImageEvent, Progress, PullOptions};
use microagent_proto::{Chunk, Command, Exec};
use microagent_store::{
    FailureKind, ImageIdentity, RecordedResult, Resources, State, WORKSPACE_FORMAT, WorkspaceDir,
    WorkspaceName, WorkspaceRecord,
};
use microagent_vm::{
    Ended, Outcome, OutputReader, Report, Spec, Step, SuperviseError, Work, create_overlay, launch,
};
use tokio_util::sync::CancellationToken;

use crate::machinery::Life;
use crate::workspace::lock_error;
use crate::{
    Engine, Error, Event, ImageReport, Observer, RunCommand, RunOptions, RunReport, RunResult, SetupFailure,
    SetupStep,
};

/// Free space that an image's disk has beyond its content, in MiB.
const HEADROOM_MIB: u64 = 512;

/// Least guest memory in MiB that the kernel and the agent start with.
const MEMORY_MIN_MIB: u32 = 64;

/// Most virtual CPUs that the guest kernel knows.
const CPU_MAX: u32 = 64;

const MIB: u64 = 1024 * 1024;

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
        check(options)?;
        self.prepare()?;
        let name = options.name.clone().map_or_else(generated_name, Ok)?;
        if options.name.is_some() && self.state().workspace(&name).path().exists() {
            return Err(Error::NameTaken { name });
        }
        let machinery = self.machinery(options.network)?;
        let pull = PullOptions { policy: options.pull, ..PullOptions::default() };
        let mut image = self.images().ensure(&options.image, &pull, &Forward(observer), cancel).await?;
        let command = resolve_command(&options.command, &image.config)?;

        let (resources, mut notices) = size(options, &image);
        for notice in &notices {
            observer.event(Event::Notice(notice.clone()));
        }
        let record = new_record(options, &name, &image, resources);
        let dir = self.settle_in(&record, &image)?;
        // The record names the disk from here on, which keeps it from being pruned.
        image.release();
        let work = work(options, &image.config, &record, command);
        let spec = self.spec(&machinery, &Life::of(&record, &dir, &image.disk), work)?;
        let spec = Spec { timeout: options.timeout, ..spec };

        let backend = machinery.decision.backend();
        observer.event(Event::Booting { workspace: name.to_string(), backend: backend.to_owned() });
        let ended = self.follow(&spec, options, observer, cancel).await;
        let output = OutputReader::open(&dir.output()).map_err(|source| Error::File {
            action: "read",
            path: dir.output(),
            source,
        })?;
        let result = match self.judge(ended, &record, options, backend) {
            Ok((recorded, ended)) => (recorded, ended),
            Err(Judged::Setup(failure)) => {
                return Err(Error::SetupFailed { workspace: name, failure, output: Box::new(output) });
            }
            Err(Judged::Error(error)) => {
                if record.disposable && matches!(error, Error::Cancelled) {
                    self.remove(&name, &dir)?;
                }
                return Err(error);
            }
        };
        if record.disposable {
            self.remove(&name, &dir)?;
        }
        let (recorded, ended) = result;
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
            network: options.network,
            hostname: record.hostname,
            image: ImageReport {
                reference: image.reference.clone(),
                resolved_reference: image.resolved_reference.clone(),
                digest: image.digest.clone(),
                origin: image.origin,
            },
            backend: backend.to_owned(),
            kept: !record.disposable,
            start: ended.start,
            result: RunResult {
                started_at: recorded.started_at,
                exited_at: recorded.exited_at,
                exit_code: recorded.exit_code,
                signal: recorded.signal,
                start_error: recorded.start_error,
                dropped_bytes: recorded.dropped_bytes,
            },
            output,
            timeline: ended.timeline,
            notices,
        })
    }

    /// Takes the name, writes the record, makes the disk. Leaves nothing when it fails.
    fn settle_in(&self, record: &WorkspaceRecord, image: &Image) -> Result<WorkspaceDir, Error> {
        let dir = self.state().workspace(&record.name);
        dir.create().map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::NameTaken { name: record.name.clone() },
            _ => Error::File { action: "create", path: dir.path().to_owned(), source },
        })?;
        let filled = create_overlay(&dir.disk(), &image.disk, record.resources.size_mib * MIB)
            .map_err(|e| Error::File { action: "create", path: e.path, source: e.source })
            .and_then(|()| Ok(record.save(&dir)?));
        match filled {
            Ok(()) => Ok(dir),
            Err(error) => {
                // The directory was made by this very call and holds nothing of value.
                let _ = fs::remove_dir_all(dir.path());
                Err(error)
            }
        }
    }

    /// Starts the supervisor and passes on what it reports until the machine is gone.
    async fn follow(
        &self,
        spec: &Spec,
        options: &RunOptions,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<Ended, SuperviseError> {
        let begun = SystemTime::now();
        let mut launched = launch(&self.options().supervisor, spec).await?;
        let ended = loop {
            match launched.next(cancel).await {
                Ok(Report::Booted) => {
                    let elapsed_ms = begun
                        .elapsed()
                        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
                    observer.event(Event::Booted { elapsed_ms });
                }
                Ok(Report::Notice(notice)) => observer.event(Event::Notice(notice)),
                Ok(Report::Setup(step)) => observer.event(Event::Setup {
                    step: step + 1,
                    total: options.setup.len(),
                    label: options.setup.get(step).map_or_else(String::new, SetupStep::label),
                }),
                Ok(Report::Command) => observer.event(Event::Command),
                Ok(Report::Data(_)) => {}
                Ok(Report::Ended(ended)) => break Ok(*ended),
                Err(error) => break Err(error),
            }
        };
        launched.join().await;
        ended
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
                label: options.setup.get(*step).map_or_else(String::new, SetupStep::label),
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
            Outcome::Fetched | Outcome::Unreadable { .. } | Outcome::Frozen => Err(failed(
                FailureKind::Protocol,
                "its supervisor did other work than asked".to_owned(),
                None,
            )),
        }
    }

    fn remove(&self, name: &WorkspaceName, dir: &WorkspaceDir) -> Result<(), Error> {
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

/// Passes image events on as events.
pub(crate) struct Forward<'a>(pub(crate) &'a dyn Observer);

impl Progress for Forward<'_> {
    fn event(&self, event: ImageEvent) {
        self.0.event(Event::Image(event));
    }
}

impl SetupStep {
    /// How messages call the step.
    pub fn label(&self) -> String {
        match self {
            SetupStep::Shell(line) => line.clone(),
            SetupStep::Script { name, .. } => name.clone(),
        }
    }
}

fn invalid(message: impl Into<String>, hint: &str) -> Error {
    Error::Invalid { message: message.into(), hint: Some(hint.to_owned()) }
}

/// Refuses what cannot work before anything is done.
fn check(options: &RunOptions) -> Result<(), Error> {
    let resources = requested(options);
    if resources.memory_mib < MEMORY_MIN_MIB {
        let message = format!("{} MiB of memory are too little for a guest", resources.memory_mib);
        return Err(invalid(message, &format!("give at least {MEMORY_MIN_MIB} MiB")));
    }
    if resources.cpu_count == 0 || resources.cpu_count > CPU_MAX {
        let message = format!("a guest cannot have {} CPUs", resources.cpu_count);
        return Err(invalid(message, &format!("give 1 to {CPU_MAX}")));
    }
    if options.timeout == Some(Duration::ZERO) {
        return Err(invalid(
            "a timeout of 0 seconds leaves no time to run",
            "give at least 1, or leave --timeout out",
        ));
    }
    if let Some((name, _)) =
        options.env.iter().find(|(name, _)| name.is_empty() || name.contains(['=', '\0']))
    {
        return Err(invalid(
            format!("`{name}` is not the name of an environment variable"),
            "write -e NAME=VALUE",
        ));
    }
    for (number, output) in options.outputs.iter().enumerate() {
        if !output.path.starts_with('/') {
            let message = format!("the path of output `{}` is not absolute: `{}`", output.name, output.path);
            return Err(invalid(message, "write --output NAME=/path/in/the/guest"));
        }
        if options.outputs[..number].iter().any(|earlier| earlier.name == output.name) {
            return Err(invalid(
                format!("output `{}` is declared twice", output.name),
                "give each output its own name",
            ));
        }
    }
    Ok(())
}

fn requested(options: &RunOptions) -> Resources {
    let profile = options.profile.resources;
    Resources {
        memory_mib: options.memory_mib.unwrap_or(profile.memory_mib),
        cpu_count: options.cpu_count.unwrap_or(profile.cpu_count),
        size_mib: options.size_mib.unwrap_or(profile.size_mib),
    }
}

/// The size that is used: a disk too small for its image grows, and a notice says so.
fn size(options: &RunOptions, image: &Image) -> (Resources, Vec<String>) {
    let mut resources = requested(options);
    let size_mib = fitting_mib(resources.size_mib, image.content_bytes.max(image.disk_bytes));
    let mut notices = Vec::new();
    if size_mib != resources.size_mib {
        let content_mib = image.content_bytes.div_ceil(MIB);
        notices.push(format!(
            "disk grown from {} MiB to {size_mib} MiB: the image has {content_mib} MiB, and {HEADROOM_MIB} MiB stay free",
            resources.size_mib,
        ));
        resources.size_mib = size_mib;
    }
    (resources, notices)
}

/// The asked size where the image and some headroom fit, else the next whole GiB that they fit in.
fn fitting_mib(asked_mib: u64, image_bytes: u64) -> u64 {
    let needed = image_bytes.div_ceil(MIB) + HEADROOM_MIB;
    if asked_mib >= needed { asked_mib } else { needed.div_ceil(1024) * 1024 }
}

/// `run-` and the Unix time in nanoseconds.
fn generated_name() -> Result<WorkspaceName, Error> {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("run-{nanoseconds:019}")
        .parse()
        .map_err(|e: crate::NameError| invalid(e.to_string(), "set the host's clock, or give --name"))
}

fn new_record(
    options: &RunOptions,
    name: &WorkspaceName,
    image: &Image,
    resources: Resources,
) -> WorkspaceRecord {
    let now = Timestamp::now();
    WorkspaceRecord {
        format: WORKSPACE_FORMAT,
        name: name.clone(),
        state: State::Prepared,
        created_at: now,
        changed_at: now,
        image: ImageIdentity {
            reference: image.reference.clone(),
            resolved_reference: image.resolved_reference.clone(),
            digest: image.digest.clone(),
            disk: image.disk_id.clone(),
        },
        profile: options.profile.name.to_owned(),
        resources,
        network: options.network,
        hostname: options.hostname.clone().unwrap_or_else(|| name.to_hostname()),
        outputs: options.outputs.clone(),
        disposable: !options.keep,
        backend: None,
        supervisor: None,
        vmm: None,
        failure: None,
    }
}

/// The words that run, or the shell line.
fn resolve_command(command: &RunCommand, config: &ImageConfig) -> Result<Command, Error> {
    let words: Vec<&String> = match command {
        RunCommand::Shell(line) => return Ok(Command::Shell(chunk(line))),
        RunCommand::Image => config.entrypoint.iter().chain(&config.cmd).collect(),
        RunCommand::Argv(words) => config.entrypoint.iter().chain(words).collect(),
        RunCommand::Entrypoint(words) => words.iter().collect(),
    };
    if words.is_empty() {
        return Err(invalid(
            "the image has neither Entrypoint nor Cmd, and no command was given",
            "name one: microagent run IMAGE COMMAND",
        ));
    }
    Ok(Command::Argv(words.into_iter().map(|word| chunk(word)).collect()))
}

fn work(options: &RunOptions, config: &ImageConfig, record: &WorkspaceRecord, command: Command) -> Work {
    let exec = |command| Exec {
        command,
        env: environment(options, config, &record.hostname),
        working_dir: chunk(options.working_dir.as_ref().unwrap_or(&config.working_dir)),
        user: options.user.clone().unwrap_or_else(|| config.user.clone()),
        stdin: false,
        terminal: None,
        service: false,
    };
    let setup = options.setup.iter().map(|step| Step {
        label: step.label(),
        exec: exec(match step {
            SetupStep::Shell(line) => Command::Shell(chunk(line)),
            SetupStep::Script { content, .. } => Command::Script(content.clone().into()),
        }),
    });
    Work::Run { setup: setup.collect(), command: exec(command) }
}

/// Host name first, so that image and user may set their own; then the image's, then the user's.
fn environment(options: &RunOptions, config: &ImageConfig, hostname: &str) -> Vec<(Chunk, Chunk)> {
    let image = config.env.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    let user = options.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    std::iter::once(("HOSTNAME", hostname))
        .chain(image)
        .chain(user)
        .map(|(name, value)| (chunk(name), chunk(value)))
        .collect()
}

fn chunk(text: &str) -> Chunk {
    Chunk::from(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        ImageConfig {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            env: vec!["PATH=/bin".into(), "A=image".into()],
            ..ImageConfig::default()
        }
    }

    fn words(command: Command) -> Vec<String> {
        match command {
            Command::Argv(words) => {
                words.iter().map(|word| String::from_utf8(word.to_vec()).unwrap()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commands_resolve_as_in_docker() {
        let argv = RunCommand::Argv(vec!["x".into(), "-y".into()]);
        let both = config(&["/entry"], &["default"]);
        assert_eq!(words(resolve_command(&RunCommand::Image, &both).unwrap()), ["/entry", "default"]);
        assert_eq!(words(resolve_command(&argv, &both).unwrap()), ["/entry", "x", "-y"]);
        assert_eq!(words(resolve_command(&argv, &config(&[], &["default"])).unwrap()), ["x", "-y"]);
        let entry = RunCommand::Entrypoint(vec!["/other".into()]);
        assert_eq!(words(resolve_command(&entry, &both).unwrap()), ["/other"]);
        assert!(resolve_command(&RunCommand::Image, &config(&[], &[])).is_err());
    }

    #[test]
    fn later_environment_wins_by_coming_later() {
        let mut options = RunOptions::new("x");
        options.env = vec![("A".into(), "user".into())];
        let names: Vec<_> = environment(&options, &config(&[], &[]), "box")
            .into_iter()
            .map(|(name, value)| {
                format!("{}={}", String::from_utf8_lossy(&name), String::from_utf8_lossy(&value))
            })
            .collect();
        assert_eq!(names, ["HOSTNAME=box", "PATH=/bin", "A=image", "A=user"]);
    }

    #[test]
    fn a_disk_grows_to_whole_gibibytes_only_when_it_must() {
        assert_eq!(fitting_mib(1024, 5 * MIB), 1024);
        assert_eq!(fitting_mib(1024, 512 * MIB), 1024);
        assert_eq!(fitting_mib(1024, 513 * MIB), 2048);
        assert_eq!(fitting_mib(16384, 1024 * MIB), 16384);
    }

    #[test]
    fn generated_names_have_nineteen_digits() {
        let name = generated_name().unwrap();
        let digits = name.as_str().strip_prefix("run-").unwrap();
        assert_eq!(digits.len(), 19);
        assert!(digits.bytes().all(|byte| byte.is_ascii_digit()));
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        let broken: [fn(&mut RunOptions); 5] = [
            |options| options.memory_mib = Some(1),
            |options| options.cpu_count = Some(0),
            |options| options.timeout = Some(Duration::ZERO),
            |options| options.env = vec![("A=B".into(), String::new())],
            |options| options.outputs = vec![crate::Artifact { name: "a".into(), path: "relative".into() }],
        ];
        for change in broken {
            let mut options = RunOptions::new("x");
            change(&mut options);
            assert!(check(&options).unwrap_err().hint().is_some());
        }
        assert!(check(&RunOptions::new("x")).is_ok());
    }
}
