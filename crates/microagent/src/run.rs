//! One-shot runs: image, machine, work, result, and nothing left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use microagent_guest::Guest;
use microagent_image::{Image, ImageConfig, ImageEvent, Progress, PullOptions};
use microagent_net::{GATEWAY, GUEST_ADDRESS, NAME_SERVER, PREFIX_LEN, RESOLVED_CONF, upstream_name_server};
use microagent_proto::{Chunk, Command, Configure, Entropy, Exec, GENERATION, MacAddress, Network, Root};
use microagent_store::{
    FailureKind, ImageIdentity, NetworkMode, RecordedResult, Resources, State, WORKSPACE_FORMAT,
    WorkspaceDir, WorkspaceName, WorkspaceRecord,
};
use microagent_vm::machine::ROOT_SCSI_TARGET;
use microagent_vm::spec::PasstSpec;
use microagent_vm::{
    AccelDecision, Ended, KvmFacts, MachineSpec, Outcome, OutputReader, Report, Spec, Step, SuperviseError,
    Work, accel, create_overlay, launch,
};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio_util::sync::CancellationToken;

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

/// A machine that is ready to be started, before it is known what it does.
pub(crate) struct Machinery {
    pub(crate) decision: AccelDecision,
    qemu: PathBuf,
    passt: Option<PasstSpec>,
    kernel: PathBuf,
    initramfs: PathBuf,
}

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
        let spec = self.spec(
            &record,
            &machinery,
            &dir,
            &image.disk,
            work(options, &image.config, &record, command),
        )?;
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

    /// Finds programs and files of a machine.
    pub(crate) fn machinery(&self, network: NetworkMode) -> Result<Machinery, Error> {
        let options = self.options();
        let qemu = self.find_program(options.qemu.as_deref(), "qemu-system-x86_64", "qemu-system-x86")?;
        let passt = match network {
            NetworkMode::Isolated => None,
            NetworkMode::User => Some(PasstSpec {
                program: self.find_program(options.passt.as_deref(), "passt", "passt")?,
                upstream: upstream(),
            }),
        };
        let guest = Guest::embedded();
        let files = match &options.kernel {
            None => guest.unpack(self.state()),
            Some(kernel) => guest.unpack_with_kernel(self.state(), kernel),
        }?;
        let decision = accel::decide(options.accel, &KvmFacts::gather());
        Ok(Machinery { decision, qemu, passt, kernel: files.kernel, initramfs: files.initramfs })
    }

    /// Looks a program up as a shell would.
    pub(crate) fn find_program(
        &self,
        given: Option<&Path>,
        program: &'static str,
        package: &'static str,
    ) -> Result<PathBuf, Error> {
        let found = match given {
            Some(path) => Some(path.to_owned()).filter(|path| path.is_file()),
            None => std::env::split_paths(&self.options().search_path)
                .map(|dir| dir.join(program))
                .find(|path| path.is_file()),
        };
        found.ok_or(Error::Supervise(SuperviseError::MissingProgram { program, package }))
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

    /// Everything that the supervisor must know.
    pub(crate) fn spec(
        &self,
        record: &WorkspaceRecord,
        machinery: &Machinery,
        dir: &WorkspaceDir,
        base: &Path,
        work: Work,
    ) -> Result<Spec, Error> {
        let seed = random::<22>()?;
        let (machine_id, mac) = seed.split_at(16);
        let network = machinery.passt.is_some().then(|| Network {
            // Locally administered, unicast.
            mac: MacAddress([0x02, mac[1], mac[2], mac[3], mac[4], mac[5]]),
            address: GUEST_ADDRESS,
            prefix_len: PREFIX_LEN,
            gateway: GATEWAY,
            dns: vec![NAME_SERVER.into()],
        });
        Ok(Spec {
            generation: GENERATION,
            state_dir: absolute(self.state().root())?,
            workspace: record.name.clone(),
            backend: machinery.decision.backend().to_owned(),
            machine: MachineSpec {
                qemu: machinery.qemu.clone(),
                kvm: machinery.decision.backend() == "linux-kvm",
                kernel: absolute(&machinery.kernel)?,
                initramfs: absolute(&machinery.initramfs)?,
                memory_mib: record.resources.memory_mib,
                cpu_count: record.resources.cpu_count,
                disk: absolute(&dir.disk())?,
                base: absolute(base)?,
                keep_disk: !record.disposable,
            },
            passt: machinery.passt.clone(),
            configure: Configure {
                clock_unix_ns: 0,
                entropy: Entropy([0; 32]),
                machine_id: machine_id.iter().map(|byte| format!("{byte:02x}")).collect(),
                hostname: record.hostname.clone(),
                network,
                root: Root { scsi_target: ROOT_SCSI_TARGET, grow: true },
            },
            work,
            timeout: None,
            boot_deadline: self.options().boot_deadline,
            warm: self.options().warm.clone(),
        })
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
                Ok(Report::Fallback(reason)) => {
                    let notice =
                        format!("the template did not come back to life, so the machine boots: {reason}");
                    observer.event(Event::Notice(notice));
                }
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
            Outcome::Fetched | Outcome::Unreadable { .. } => Err(failed(
                FailureKind::Protocol,
                "its supervisor did other work than asked".to_owned(),
                None,
            )),
        }
    }

    fn remove(&self, name: &WorkspaceName, dir: &WorkspaceDir) -> Result<(), Error> {
        let _lock = dir.lock().map_err(|source| Error::Busy { name: name.clone(), source })?;
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

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(filled) if filled == N => Ok(bytes),
        outcome => Err(Error::File {
            action: "read",
            path: "/dev/urandom".into(),
            source: outcome.err().map_or(io::ErrorKind::UnexpectedEof.into(), io::Error::from),
        }),
    }
}

/// QEMU and the supervisor have the caller's working directory, but a record must not depend on it.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| Error::File { action: "find", path: path.to_owned(), source })
}

/// The name server that passt forwards to; its own choice when nothing better is known.
fn upstream() -> Option<std::net::Ipv4Addr> {
    let files = ["/etc/resolv.conf", RESOLVED_CONF].map(|path| fs::read_to_string(path).unwrap_or_default());
    upstream_name_server(&[&files[0], &files[1]])
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
