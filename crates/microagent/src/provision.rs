//! Creates workspaces, for runs and for `create`: checks the options, chooses sizes, fetches the image, and writes
//! record, workload and disk. A name belongs to exactly one command, and a directory gets its name when it is
//! complete.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use microagent_image::{Image, ImageConfig, PullOptions};
use microagent_model::egress::RULES_MAX;
use microagent_model::{
    ADDED_HOSTS_MAX, Attachment, CommandLine, DISK_BPS_MIN, DISK_IOPS_MIN, DISK_MIB_MAX, DnsSettings,
    EgressPolicy, FORWARDS_MAX, GuestInit, GuestSettings, ImageIdentity, JOINS_MAX, LABELS_MAX, Labels,
    NAME_SERVERS_MAX, NET_BPS_MIN, NetworkMode, NetworkName, PORTS_MAX, RATE_MAX, RateLimits, Resources,
    RestartPolicy, SEARCH_MAX, SETTINGS_MAX, STOP_TIMEOUT_MAX, SettingError, SetupStep, State, Tmpfs,
    WorkspaceName, check_label, check_sysctl, forwarded_twice, published_twice, signal_number,
};
use microagent_proto::{Chunk, Command, Exec, ExecRole};
use microagent_store::{MachineState, WORKSPACE_FORMAT, Workload, WorkspaceDir, WorkspaceRecord};
use microagent_vm::Step;

use crate::broker::{check_brokers, stored_broker};
use crate::error::InvalidRequest;
use crate::host_memory::check_host_memory;
use crate::secret::{Resolved, check_references, stored};
use crate::supervisor_spec::{HostPrograms, new_identity};
use crate::workspace::{check_health, health_of_image, setup_digest, unused_health};
use crate::{Engine, Error, Event, Progress, RunCommand, WorkspaceOptions};

/// Free space that an image's disk has beyond its content, in MiB.
const HEADROOM_MIB: u64 = 512;

/// Least guest memory in MiB that kernel and agent need.
pub(crate) const MEMORY_MIN_MIB: u32 = 64;

/// Largest `/dev/shm` in bytes: 1 TiB. The kernel takes a size that is not far from 2⁶⁴ for a small one.
const SHARED_MEMORY_MAX: u64 = 1 << 40;

/// Most virtual CPUs that the guest kernel supports.
pub(crate) const CPU_MAX: u32 = 64;

pub(crate) const MIB: u64 = 1024 * 1024;

/// A workspace that is about to be created, for one run or to be kept.
pub(crate) struct Provision {
    /// Programs and files of the host that its machines need.
    pub(crate) programs: HostPrograms,
    /// Values of its secrets; none where no machine is started now.
    pub(crate) secrets: Resolved,
    pub(crate) image: Image,
    pub(crate) record: WorkspaceRecord,
    /// What runs in it; service and shell are the caller's to add.
    pub(crate) workload: Workload,
    pub(crate) notices: Vec<String>,
}

/// When a workspace's first machine is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstStart {
    /// As a part of its creation.
    Now,
    /// By a later command.
    Later,
}

impl Engine {
    /// Checks the options, looks up the files that they name, fetches the image, and prepares the record. Nothing of
    /// the workspace is written yet.
    pub(crate) async fn provision(
        &self,
        name: &WorkspaceName,
        options: &WorkspaceOptions,
        first_start: FirstStart,
        progress: &Progress,
    ) -> Result<Provision, Error> {
        if self.state().workspace(name).path().exists() {
            return Err(Error::NameTaken { name: name.clone() });
        }
        let disks = self.check_disks(&options.disks, first_start)?;
        // What is missing is reported before an image is fetched.
        self.check_networks(&options.networks)?;
        let programs = self.host_programs(options.network)?;
        let secrets = match first_start {
            FirstStart::Now => {
                self.resolve_secrets(&options.secrets, &options.brokers, progress.token()).await?
            }
            FirstStart::Later => Resolved::default(),
        };
        let pull = PullOptions::default().policy(options.pull);
        let image =
            self.image_store().ensure(&options.image, &pull, &progress.images(), progress.token()).await?;
        progress.event(Event::ImageReady((&image).into()));
        let (resources, notices) = resolve_resources(options, &image);
        for notice in &notices {
            progress.event(Event::Notice(notice.clone()));
        }
        let record = new_record(options, name, &image, resources, &disks)?;
        let workload = new_workload(options, &image.config, &record.hostname);
        Ok(Provision { programs, secrets, image, record, workload, notices })
    }

    /// Makes the disks and the directory of a provisioned workspace. Leaves nothing when it fails, but volumes that
    /// did not exist before.
    pub(crate) async fn create_provisioned(
        &self,
        provision: &mut Provision,
        kept: Option<&Workload>,
        progress: &Progress,
    ) -> Result<WorkspaceDir, Error> {
        let record = &provision.record;
        let unused = kept.and_then(|workload| unused_health(record, workload));
        if let Some(notice) = &unused {
            progress.event(Event::Notice(notice.clone()));
        }
        provision.notices.extend(unused);
        let bundles = self.make_bundles(&record.disks, progress.token()).await?;
        provision.notices.extend(self.make_missing_volumes(&record.disks, progress)?);
        let dir = self.create_dir_with(record, kept, |dir| {
            bundles.move_into(dir)?;
            self.create_disk(&record.disk(dir), record)
        })?;
        // The record names the base disk from here on, which keeps it from being pruned.
        provision.image.release();
        Ok(dir)
    }

    /// Makes a workspace's directory: disk, record and, for one that will start again, its workload. Leaves nothing
    /// when it fails.
    pub(crate) fn create_dir_with(
        &self,
        record: &WorkspaceRecord,
        workload: Option<&Workload>,
        make_disk: impl FnOnce(&WorkspaceDir) -> Result<(), Error>,
    ) -> Result<WorkspaceDir, Error> {
        // Other members find its name from now on.
        self.join_networks(&record.name, &record.networks)?;
        let created = self.state().create_workspace(&record.name, record.durability(), |dir| {
            make_disk(dir)?;
            if let Some(workload) = workload {
                workload.save(dir).map_err(Error::from)?;
            }
            record.save_new(dir).map_err(Error::from)?;
            dir.note_event(record.machine.state, None);
            Ok(())
        });
        created.map_err(|error| match error {
            NotCreated::Name(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                Error::NameTaken { name: record.name.clone() }
            }
            NotCreated::Name(source) => {
                let path = self.state().workspace(&record.name).path().to_owned();
                Error::File { action: "create", path, source }
            }
            NotCreated::Filling(error) => error,
        })
    }
}

/// Why a workspace's directory could not be made.
enum NotCreated {
    Name(io::Error),
    Filling(Error),
}

impl From<io::Error> for NotCreated {
    fn from(error: io::Error) -> NotCreated {
        NotCreated::Name(error)
    }
}

impl From<Error> for NotCreated {
    fn from(error: Error) -> NotCreated {
        NotCreated::Filling(error)
    }
}

/// Refuses what no shell could use as a variable, or what would be another one.
pub(crate) fn check_variables<'a>(
    env: impl IntoIterator<Item = &'a (String, String)>,
) -> Result<(), InvalidRequest> {
    let is_wrong =
        |name: &str| name.is_empty() || name.contains(|c: char| "=\0".contains(c) || c.is_whitespace());
    match env.into_iter().find(|(name, _)| is_wrong(name)) {
        Some((name, _)) => Err(InvalidRequest::EnvironmentName { name: name.clone() }),
        None => Ok(()),
    }
}

/// Checks the options before anything is done.
pub(crate) fn check_options(options: &WorkspaceOptions) -> Result<(), InvalidRequest> {
    check_size(requested(options))?;
    check_host_memory(requested(options).memory_mib)?;
    check_variables(&options.env)?;
    check_network(options)?;
    check_labels(&options.labels)?;
    check_limits(options)?;
    check_settings(&options.settings)?;
    check_references(&options.secrets)?;
    check_brokers(&options.brokers)?;
    for (number, output) in options.outputs.iter().enumerate() {
        let name = output.name.clone();
        if !output.path.starts_with('/') {
            return Err(InvalidRequest::ArtifactPath { name, path: output.path.clone() });
        }
        if options.outputs[..number].iter().any(|earlier| earlier.name == output.name) {
            return Err(InvalidRequest::ArtifactTwice { name });
        }
    }
    Ok(())
}

/// Refuses labels that cannot be shown or found, and too many.
fn check_labels(labels: &Labels) -> Result<(), InvalidRequest> {
    if labels.len() > LABELS_MAX {
        return Err(InvalidRequest::TooManyLabels { count: labels.len() });
    }
    for (name, value) in labels {
        check_label(name, value).map_err(|source| InvalidRequest::Label { name: name.clone(), source })?;
    }
    Ok(())
}

/// Refuses settings that no guest takes, and too many.
fn check_settings(settings: &GuestSettings) -> Result<(), InvalidRequest> {
    let GuestSettings {
        sysctls,
        tmpfs,
        shm_bytes,
        ulimits,
        root: _,
        stop_signal,
        stop_timeout_s,
        ttl_s: _,
        health,
    } = settings;
    check_health(health)?;
    if let Some(count) = [sysctls.len(), tmpfs.len(), ulimits.len()].into_iter().find(|n| *n > SETTINGS_MAX) {
        return Err(InvalidRequest::TooManySettings { count });
    }
    let bad = |setting: &str, source| InvalidRequest::Setting { setting: setting.to_owned(), source };
    for (name, value) in sysctls {
        check_sysctl(name, value).map_err(|source| bad(name, source))?;
    }
    for tmpfs in tmpfs {
        tmpfs.to_string().parse::<Tmpfs>().map_err(|source| bad(&tmpfs.path, source))?;
    }
    if let Some(limit) = ulimits.iter().find(|limit| limit.number().is_none()) {
        return Err(bad(&limit.name, SettingError::UlimitName));
    }
    if *shm_bytes == Some(0) {
        return Err(InvalidRequest::NoSharedMemory);
    }
    if let Some(bytes) = shm_bytes.filter(|bytes| *bytes > SHARED_MEMORY_MAX) {
        return Err(InvalidRequest::LargeSharedMemory { bytes });
    }
    check_stop_timeout(stop_timeout_s.map(|seconds| Duration::from_secs(seconds.into())))?;
    match stop_signal {
        Some(signal) if signal_number(signal).is_none() => {
            Err(InvalidRequest::StopSignal { signal: signal.clone() })
        }
        _ => Ok(()),
    }
}

/// Refuses a longer time than a machine may take to end.
pub(crate) fn check_stop_timeout(timeout: Option<Duration>) -> Result<(), InvalidRequest> {
    match timeout {
        Some(timeout) if timeout > STOP_TIMEOUT_MAX => {
            Err(InvalidRequest::LongStopTimeout { seconds: timeout.as_secs() })
        }
        _ => Ok(()),
    }
}

/// Refuses what a machine without network cannot have, and what the network stack cannot do.
fn check_network(options: &WorkspaceOptions) -> Result<(), InvalidRequest> {
    if options.network == NetworkMode::Isolated {
        if let Some(publish) = options.publish.first() {
            return Err(InvalidRequest::PublishIsolated { guest_port: publish.guest_port.get() });
        }
        if options.egress != EgressPolicy::default() {
            return Err(InvalidRequest::EgressIsolated);
        }
        if options.dns != DnsSettings::default() {
            return Err(InvalidRequest::DnsIsolated);
        }
    }
    check_names(options)?;
    if options.publish.len() > PORTS_MAX {
        return Err(InvalidRequest::TooManyPorts { count: options.publish.len() });
    }
    if let Some(publish) = published_twice(&options.publish) {
        return Err(InvalidRequest::PublishedTwice { publish });
    }
    let count = options.egress.allow.len();
    if count > RULES_MAX {
        return Err(InvalidRequest::TooManyRules { count });
    }
    if options.egress.max_connections == 0 {
        return Err(InvalidRequest::NoConnections);
    }
    Ok(())
}

/// Refuses more names and forwarded ports than a network stack serves.
fn check_names(options: &WorkspaceOptions) -> Result<(), InvalidRequest> {
    let DnsSettings { servers, search, hosts, .. } = &options.dns;
    let limits = [
        ("name servers", servers.len(), NAME_SERVERS_MAX),
        ("search domains", search.len(), SEARCH_MAX),
        ("added hosts", hosts.len(), ADDED_HOSTS_MAX),
        ("forwarded ports", options.forwards.len(), FORWARDS_MAX),
        ("private networks", options.networks.len(), JOINS_MAX),
    ];
    if let Some((what, count, most)) = limits.into_iter().find(|(_, count, most)| count > most) {
        return Err(InvalidRequest::TooManyNetworkSettings { what, count, most });
    }
    let repeats = |(number, name): &(usize, &NetworkName)| options.networks[..*number].contains(name);
    if let Some((_, name)) = options.networks.iter().enumerate().find(repeats) {
        return Err(InvalidRequest::JoinedTwice { name: name.clone() });
    }
    match forwarded_twice(&options.forwards) {
        Some(port) => Err(InvalidRequest::ForwardedTwice { port: port.get() }),
        None => Ok(()),
    }
}

/// Refuses rates at which a guest does not start.
fn check_limits(options: &WorkspaceOptions) -> Result<(), InvalidRequest> {
    let RateLimits { disk_bps, disk_iops, net_bps } = options.limits;
    if net_bps.is_some()
        && options.network == NetworkMode::Isolated
        && options.forwards.is_empty()
        && options.brokers.is_empty()
        && options.networks.is_empty()
    {
        return Err(InvalidRequest::RateIsolated);
    }
    let limits = [
        ("disk_bps", disk_bps, DISK_BPS_MIN),
        ("disk_iops", disk_iops, DISK_IOPS_MIN),
        ("net_bps", net_bps, NET_BPS_MIN),
    ];
    match limits
        .into_iter()
        .find(|(_, asked, least)| asked.is_some_and(|asked| !(*least..=RATE_MAX).contains(&asked)))
    {
        Some((limit, _, least)) => Err(InvalidRequest::Rate { limit, least }),
        None => Ok(()),
    }
}

/// Refuses sizes that no guest can have.
pub(crate) fn check_size(resources: Resources) -> Result<(), InvalidRequest> {
    if resources.memory_mib < MEMORY_MIN_MIB {
        return Err(InvalidRequest::Memory { memory_mib: resources.memory_mib });
    }
    if resources.cpu_count == 0 || resources.cpu_count > CPU_MAX {
        return Err(InvalidRequest::Cpus { cpu_count: resources.cpu_count });
    }
    if resources.size_mib > DISK_MIB_MAX {
        return Err(InvalidRequest::DiskSize { size_mib: resources.size_mib });
    }
    Ok(())
}

fn requested(options: &WorkspaceOptions) -> Resources {
    let profile = options.profile.resources;
    Resources {
        memory_mib: options.memory_mib.unwrap_or(profile.memory_mib),
        cpu_count: options.cpu_count.unwrap_or(profile.cpu_count),
        size_mib: options.size_mib.unwrap_or(profile.size_mib),
    }
}

/// Returns the size of the machine. A disk that is too small for its image is enlarged, with a notice.
pub(crate) fn resolve_resources(options: &WorkspaceOptions, image: &Image) -> (Resources, Vec<String>) {
    let mut resources = requested(options);
    // Many small files take more of the disk than they have bytes.
    let image_bytes = image.content_bytes.max(image.disk_bytes);
    let size_mib = fitting_mib(resources.size_mib, image_bytes);
    let mut notices = Vec::new();
    if size_mib != resources.size_mib {
        let content_mib = image_bytes.div_ceil(MIB);
        notices.push(format!(
            "disk size raised from {} to {size_mib} MiB, so that {HEADROOM_MIB} MiB stay free in addition to the image's \
             {content_mib} MiB",
            resources.size_mib,
        ));
        resources.size_mib = size_mib;
    }
    (resources, notices)
}

/// Returns the requested size if the image and some free space fit, else the next whole GiB that is large enough.
pub(crate) fn fitting_mib(asked_mib: u64, image_bytes: u64) -> u64 {
    let needed = image_bytes.div_ceil(MIB) + HEADROOM_MIB;
    if asked_mib >= needed { asked_mib } else { needed.div_ceil(1024) * 1024 }
}

/// The record of a workspace that is being made, with its disks as they were checked.
pub(crate) fn new_record(
    options: &WorkspaceOptions,
    name: &WorkspaceName,
    image: &Image,
    resources: Resources,
    disks: &[Attachment],
) -> Result<WorkspaceRecord, Error> {
    let now = Timestamp::now();
    Ok(WorkspaceRecord {
        format: WORKSPACE_FORMAT,
        name: name.clone(),
        created_at: now,
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
        identity: Some(new_identity()?),
        restart: RestartPolicy::default(),
        disks: disks.to_vec(),
        publish: options.publish.clone(),
        egress: options.egress.clone(),
        dns: options.dns.clone(),
        forwards: options.forwards.clone(),
        networks: options.networks.clone(),
        brokers: options.brokers.iter().map(stored_broker).collect::<Result<_, _>>()?,
        limits: options.limits,
        secrets: options.secrets.iter().map(stored).collect::<Result<_, _>>()?,
        labels: options.labels.clone(),
        settings: options.settings.clone(),
        outputs: options.outputs.clone(),
        disposable: false,
        layers: Vec::new(),
        from_snapshot: None,
        machine: MachineState::resting(State::Prepared, now),
    })
}

/// The words that run, or the shell line.
pub(crate) fn resolve_command(
    command: &RunCommand,
    config: &ImageConfig,
) -> Result<CommandLine, InvalidRequest> {
    let words: Vec<&String> = match command {
        RunCommand::Shell(line) => return Ok(CommandLine::Shell(line.clone())),
        RunCommand::Image => config.entrypoint.iter().chain(&config.cmd).collect(),
        RunCommand::Argv(words) => config.entrypoint.iter().chain(words).collect(),
        RunCommand::Entrypoint(words) => words.iter().collect(),
    };
    if words.is_empty() {
        return Err(InvalidRequest::NoCommand);
    }
    Ok(CommandLine::Argv(words.into_iter().cloned().collect()))
}

/// What runs in a workspace made from this image with these options; service and shell are the caller's to add.
pub(crate) fn new_workload(options: &WorkspaceOptions, config: &ImageConfig, hostname: &str) -> Workload {
    // Host name first, so that image and user may set their own; then the image's, then the user's.
    let image = config.env.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    let user = options.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let env = std::iter::once(("HOSTNAME", hostname)).chain(image).chain(user);
    Workload {
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        given_env: options.env.len(),
        working_dir: options.working_dir.clone().unwrap_or_else(|| config.working_dir.clone()),
        user: options.user.clone().unwrap_or_else(|| config.user.clone()),
        service: None,
        shell: None,
        init: options.init,
        stop_signal: config.stop_signal.clone(),
        health: health_of_image(config),
        setup: options.setup.clone(),
        setup_digest: Some(setup_digest(&options.setup)),
    }
}

/// The program that a machine runs for, a service or the command of a run, as the guest's agent takes it.
pub(crate) fn main_request(workload: &Workload, command: &CommandLine) -> Exec {
    let role = match workload.init {
        GuestInit::Program => ExecRole::Main,
        GuestInit::Agent => ExecRole::MainUnderInit,
    };
    Exec { role, ..exec_request(workload, command) }
}

/// A command as the guest's agent takes it.
pub(crate) fn exec_request(workload: &Workload, command: &CommandLine) -> Exec {
    let command = match command {
        CommandLine::Argv(words) => Command::Argv(words.iter().map(|word| chunk(word)).collect()),
        CommandLine::Shell(line) => Command::Shell(chunk(line)),
    };
    exec_of(workload, command)
}

/// Setup steps as the guest's agent takes them.
pub(crate) fn setup_steps(workload: &Workload) -> Vec<Step> {
    let step = |step: &SetupStep| Step {
        label: step.label(),
        exec: exec_of(
            workload,
            match step {
                SetupStep::Shell(line) => Command::Shell(chunk(line)),
                SetupStep::Script { content, .. } => Command::Script(content.clone().into()),
            },
        ),
    };
    workload.setup.iter().map(step).collect()
}

fn exec_of(workload: &Workload, command: Command) -> Exec {
    Exec {
        command,
        env: workload.env.iter().map(|(name, value)| (chunk(name), chunk(value))).collect(),
        working_dir: chunk(&workload.working_dir),
        user: workload.user.clone(),
        stdin: false,
        terminal: None,
        make_working_dir: true,
        role: ExecRole::Command,
    }
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

    fn words(command: CommandLine) -> Vec<String> {
        match command {
            CommandLine::Argv(words) => words,
            other @ CommandLine::Shell(_) => panic!("{other:?}"),
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
        let mut options = WorkspaceOptions::new("x");
        options.env = vec![("A".into(), "user".into())];
        let workload = new_workload(&options, &config(&[], &[]), "box");
        let names: Vec<_> = workload.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
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
    fn nonsense_is_refused() {
        let broken: [fn(&mut WorkspaceOptions); 13] = [
            |options| options.memory_mib = Some(1),
            |options| options.cpu_count = Some(0),
            |options| options.env = vec![("A=B".into(), String::new())],
            |options| options.outputs = vec![crate::Artifact { name: "a".into(), path: "relative".into() }],
            |options| {
                options.network = NetworkMode::Isolated;
                options.publish = vec!["8080:80".parse().unwrap()];
            },
            |options| {
                options.network = NetworkMode::Isolated;
                options.egress.mode = microagent_model::EgressMode::Open;
            },
            |options| options.publish = vec!["8080:80".parse().unwrap(), "0.0.0.0:8080:81".parse().unwrap()],
            |options| options.egress.allow = vec!["example.org".parse().unwrap(); RULES_MAX + 1],
            |options| options.egress.max_connections = 0,
            |options| options.limits.disk_bps = Some(DISK_BPS_MIN - 1),
            |options| options.limits.disk_iops = Some(0),
            |options| options.limits.net_bps = Some(RATE_MAX + 1),
            |options| {
                options.network = NetworkMode::Isolated;
                options.limits.net_bps = Some(NET_BPS_MIN);
            },
        ];
        for change in broken {
            let mut options = WorkspaceOptions::new("x");
            change(&mut options);
            assert!(check_options(&options).is_err());
        }
        assert!(check_options(&WorkspaceOptions::new("x")).is_ok());
    }
}
