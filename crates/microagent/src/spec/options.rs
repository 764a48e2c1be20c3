//! From what a spec file says to the options of a run or of a new workspace.

use std::path::{Path, PathBuf};

use microagent_model::{
    Attachment, Broker, BrokerError, BrokerKeys, CommandLine, DiskSource, DnsSettings, EgressPolicy, Forward,
    GuestInit, GuestSettings, HealthCommand, HealthSettings, Publish, PublishRange, RateLimits, RootAccess,
    SecretSource, SetupStep, SnapshotName, WorkspaceName,
};

use super::forms::{Form, Short};
use super::{
    Access, Service, SpecBroker, SpecError, SpecFile, SpecFileDisk, SpecForward, SpecHealthCheck,
    SpecHostForward, SpecVolume, value,
};
use crate::attachment::{AttachmentForm, is_bundle};
use crate::{CreateOptions, Error, Hint, Lookup, RunCommand, RunOptions, WorkspaceOptions};

/// Images in the local file system are named with one of these before the path.
const LOCAL_TRANSPORTS: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

impl Short for PublishRange {
    const SHAPE: &str = "[[HOST:]HOST_PORT:]GUEST_PORT[/tcp|/udp]";

    fn short(text: &str) -> Result<PublishRange, String> {
        text.parse().map_err(|error: microagent_model::PublishError| error.to_string())
    }
}

impl Short for Forward {
    const SHAPE: &str = "GUEST_PORT=HOST:PORT";

    fn short(text: &str) -> Result<Forward, String> {
        text.parse().map_err(|error: microagent_model::ForwardError| error.to_string())
    }
}

impl Short for Broker {
    const SHAPE: &str = "NAME=https://HOST[/BASE],secret=SCHEME:REFERENCE";

    fn short(text: &str) -> Result<Broker, String> {
        text.parse().map_err(|error: BrokerError| error.to_string())
    }
}

impl Short for Attachment {
    const SHAPE: &str = "SOURCE:/GUEST/PATH[:ro|rw]";

    fn short(text: &str) -> Result<Attachment, String> {
        // Paths are resolved later, when it is known where the file lies.
        AttachmentForm::Volume
            .parse(text, Path::new(""))
            .map_err(|error| format!("`{text}`: {error}; it is written {}: {}", Self::SHAPE, error.advice()))
    }
}

impl SpecForward {
    fn publish(&self) -> Result<PublishRange, String> {
        let host = match self.host.as_deref() {
            Some(host) if host.contains(':') => format!("[{host}]:"),
            Some(host) => format!("{host}:"),
            None => String::new(),
        };
        let protocol = self.protocol.as_deref().unwrap_or("tcp");
        PublishRange::short(&format!("{host}{}:{}/{protocol}", self.host_port, self.guest_port))
    }
}

impl SpecHostForward {
    fn forward(&self) -> Result<Forward, String> {
        Forward::short(&format!("{}={}:{}", self.guest_port, self.host, self.host_port))
    }
}

impl SpecBroker {
    fn broker(&self) -> Result<Broker, String> {
        let keys = BrokerKeys {
            secret: Some(&self.secret),
            header: self.header.as_deref(),
            format: self.format.as_deref(),
            allow: self.allow.iter().flatten().map(String::as_str).collect(),
            ca: self.ca.as_deref(),
            env: self.env.iter().flatten().map(String::as_str).collect(),
            private: self.private.unwrap_or_default(),
        };
        keys.broker(&self.name, &self.upstream).map_err(|error| error.to_string())
    }
}

impl SpecVolume {
    fn attachment(&self) -> Result<Attachment, String> {
        let source = match (&self.name, &self.path) {
            (Some(name), None) => name
                .parse()
                .map(DiskSource::Volume)
                .map_err(|error: microagent_model::VolumeNameError| error.to_string())?,
            (None, Some(path)) if is_bundle(path) => DiskSource::Bundle(path.into()),
            (None, Some(path)) => DiskSource::Image(path.into()),
            _ => {
                let what = format!("the volume at `{}`", self.mountpoint);
                return Err(format!("{what} has either a `name` or a `path`"));
            }
        };
        Ok(attachment(source, &self.mountpoint, self.mode))
    }
}

/// A path that a spec file names, absolute: a relative one starts at the file's directory.
fn beside(file: &Path, path: &Path) -> PathBuf {
    let path = file.parent().unwrap_or(Path::new("")).join(path);
    std::path::absolute(&path).unwrap_or(path)
}

fn attachment(source: DiskSource, mount_point: &str, mode: Option<Access>) -> Attachment {
    Attachment { source, mount_point: mount_point.to_owned(), read_only: mode == Some(Access::Ro) }
}

impl SpecFile {
    /// What a run is to be.
    ///
    /// # Errors
    /// Fails when no image is named, keys contradict each other, or a file that is named cannot be read.
    pub fn run_options(&self, host: &Lookup) -> Result<RunOptions, Error> {
        let mut options = RunOptions::new(self.named_image()?);
        options.workspace = self.workspace_options(host)?;
        options.command = self.run_command();
        options.keep = self.keep.unwrap_or(false);
        options.name.clone_from(&self.name);
        options.timeout = self.timeout;
        Ok(options)
    }

    /// What a new workspace is to be.
    ///
    /// # Errors
    /// As [`SpecFile::run_options`], and when it has no name.
    pub fn create_options(&self, host: &Lookup) -> Result<CreateOptions, Error> {
        let Some(name) = &self.name else {
            return Err(self.meaning("no name is given", "add `name`, or give one to the command").into());
        };
        let mut options = CreateOptions::new(name.clone(), self.named_image()?);
        options.workspace = self.workspace_options(host)?;
        options.service = match &self.service {
            _ if self.image_command == Some(true) => Some(RunCommand::Image),
            Some(Service::Shell(line)) => Some(RunCommand::Shell(line.clone())),
            Some(Service::Argv(words)) => Some(RunCommand::Entrypoint(words.clone())),
            None => None,
        };
        options.shell.clone_from(&self.shell);
        options.restart = self.restart.unwrap_or_default();
        Ok(options)
    }

    /// The snapshot that a workspace is created from, and the name of that workspace.
    pub(crate) fn snapshot_and_name(&self) -> Result<(&SnapshotName, &WorkspaceName), SpecError> {
        let hint = "add `name`, or give one to the command";
        let name = self.name.as_ref().ok_or_else(|| self.meaning("no name is given", hint))?;
        let hint = "add `fromSnapshot: WORKSPACE:TAG`";
        let snapshot =
            self.from_snapshot.as_ref().ok_or_else(|| self.meaning("no snapshot is named", hint))?;
        Ok((snapshot, name))
    }

    /// Which process is process 1, if the file sets it.
    pub(crate) fn guest_init(&self) -> Option<GuestInit> {
        self.init.map(|wanted| if wanted { GuestInit::Agent } else { GuestInit::Program })
    }

    /// Keys that say nothing to a run.
    pub fn not_for_run(&self) -> Vec<&'static str> {
        present([
            ("fromSnapshot", self.from_snapshot.is_some()),
            ("restart", self.restart.is_some()),
            ("service", self.service.is_some()),
            ("imageCommand", self.image_command.is_some()),
            ("shell", self.shell.is_some()),
            ("healthCheck", self.health_check != SpecHealthCheck::default()),
        ])
    }

    /// Keys that say nothing to a workspace that is kept.
    pub fn only_for_run(&self) -> Vec<&'static str> {
        present([
            ("entrypoint", self.entrypoint.is_some()),
            ("command", self.command.is_some()),
            ("exec", self.exec.is_some()),
            ("timeout", self.timeout.is_some()),
            ("keep", self.keep.is_some()),
        ])
    }

    fn named_image(&self) -> Result<&str, SpecError> {
        self.image.as_deref().ok_or_else(|| self.meaning_with("no image is named", Hint::NameImage))
    }

    fn run_command(&self) -> RunCommand {
        let words = || self.command.clone().unwrap_or_default();
        match (&self.exec, &self.entrypoint) {
            (Some(line), _) => RunCommand::Shell(line.clone()),
            // An empty program is Docker's way to say that the words alone are the command.
            (None, Some(program)) => {
                let program = program.iter().filter(|word| !word.is_empty()).cloned();
                RunCommand::Entrypoint(program.chain(words()).collect())
            }
            (None, None) if words().is_empty() => RunCommand::Image,
            (None, None) => RunCommand::Argv(words()),
        }
    }

    fn workspace_options(&self, host: &Lookup) -> Result<WorkspaceOptions, Error> {
        let mut options = WorkspaceOptions::new(self.named_image()?);
        options.setup = self.setup_steps()?.unwrap_or_default();
        options.env = self.variables(host)?.unwrap_or_default();
        options.user.clone_from(&self.user);
        options.working_dir.clone_from(&self.workdir);
        options.init = self.guest_init().unwrap_or_default();
        options.disks = self.attachments()?.into_iter().flatten().collect();
        options.publish = self.published()?.unwrap_or_default();
        self.lay_egress_over(&mut options.egress);
        options.dns = self.dns_settings();
        options.forwards = self.forwarded()?.unwrap_or_default();
        options.networks = self.network.join.clone().unwrap_or_default();
        options.brokers = self.brokered()?.unwrap_or_default();
        self.lay_limits_over(&mut options.limits);
        options.secrets = self.secrets.clone().unwrap_or_default();
        self.lay_settings_over(&mut options.settings);
        options.labels = self.labels.clone().unwrap_or_default();
        options.outputs = self.outputs.clone().unwrap_or_default();
        options.profile = self.profile.unwrap_or_default();
        options.memory_mib = self.resources.memory_mib;
        options.cpu_count = self.resources.cpu_count;
        options.size_mib = self.resources.size_mib;
        options.hostname.clone_from(&self.hostname);
        options.network = self.network.mode.unwrap_or_default();
        options.pull = self.pull.unwrap_or_default();
        Ok(options)
    }

    /// Setup steps, where the file speaks of them.
    pub(crate) fn setup_steps(&self) -> Result<Option<Vec<SetupStep>>, Error> {
        if self.setup.is_none() && self.setup_files.is_none() {
            return Ok(None);
        }
        let lines = self.setup.iter().flatten().cloned().map(SetupStep::Shell).map(Ok);
        let scripts = self.setup_files.iter().flatten().map(|path| value::setup_script(path));
        lines.chain(scripts).collect::<Result<_, _>>().map(Some)
    }

    /// Variables, where the file speaks of them; later ones win.
    pub(crate) fn variables(&self, host: &Lookup) -> Result<Option<Vec<(String, String)>>, Error> {
        if self.env.is_none() && self.env_files.is_none() {
            return Ok(None);
        }
        let mut variables = Vec::new();
        for path in self.env_files.iter().flatten() {
            variables.extend(value::env_file(path, host)?);
        }
        variables.extend(self.env.clone().into_iter().flatten());
        Ok(Some(variables))
    }

    /// Ports, where the file speaks of them.
    pub(crate) fn published(&self) -> Result<Option<Vec<Publish>>, SpecError> {
        let Some(forwards) = &self.network.forwards else { return Ok(None) };
        let mut all = Vec::new();
        for forward in forwards {
            match forward {
                Form::Short(publish) => all.extend(publish.ports()),
                Form::Long(long) => all.extend(
                    long.publish()
                        .map_err(|why| {
                            self.meaning(
                                format!("network.forwards: {why}"),
                                "`host` is an address of this host, `protocol` is tcp or udp, ports are 1 to 65535",
                            )
                        })?
                        .ports(),
                ),
            }
        }
        Ok(Some(all))
    }

    /// Volumes, images and bundles, each where the file speaks of them.
    pub(crate) fn attachments(&self) -> Result<[Vec<Attachment>; 3], SpecError> {
        let volume = |volume: &Form<Attachment, SpecVolume>| match volume {
            Form::Short(attachment) => Ok(attachment.clone()),
            Form::Long(long) => long.attachment().map_err(|why| {
                self.meaning(
                    format!("volumes: {why}"),
                    "`name` is a volume's, `path` an image's or a tar file's",
                )
            }),
        };
        let volumes = self.volumes.iter().flatten().map(volume).collect::<Result<_, _>>()?;
        let files = |disks: &Option<Vec<SpecFileDisk>>, source: fn(PathBuf) -> DiskSource| {
            let disk =
                |disk: &SpecFileDisk| attachment(source(disk.path.clone()), &disk.mountpoint, disk.mode);
            disks.iter().flatten().map(disk).collect()
        };
        Ok([volumes, files(&self.disks, DiskSource::Image), files(&self.bundles, DiskSource::Bundle)])
    }

    /// Forwarded ports, where the file speaks of them.
    pub(crate) fn forwarded(&self) -> Result<Option<Vec<Forward>>, SpecError> {
        let Some(forwards) = &self.network.host_forwards else { return Ok(None) };
        let read = |forward: &Form<Forward, SpecHostForward>| match forward {
            Form::Short(forward) => Ok(*forward),
            Form::Long(long) => long.forward().map_err(|why| {
                self.meaning(
                    format!("network.hostForwards: {why}"),
                    "`host` is an IPv4 address or `localhost`; ports are from 1 to 65535",
                )
            }),
        };
        forwards.iter().map(read).collect::<Result<_, _>>().map(Some)
    }

    /// Brokers, where the file speaks of them, with paths from the file's directory.
    pub(crate) fn brokered(&self) -> Result<Option<Vec<Broker>>, SpecError> {
        let Some(brokers) = &self.brokers else { return Ok(None) };
        let read = |broker: &Form<Broker, SpecBroker>| {
            let broker = match broker {
                Form::Short(broker) => broker.clone(),
                Form::Long(long) => long.broker().map_err(|why| {
                    let advice = "`upstream` is https://HOST[:PORT][/BASE], `secret` is SCHEME:REFERENCE";
                    self.meaning(format!("brokers: {why}"), advice)
                })?,
            };
            let here = |path: &Path| Ok::<_, SpecError>(beside(&self.path, path));
            broker.with_paths(here)
        };
        brokers.iter().map(read).collect::<Result<_, _>>().map(Some)
    }

    fn dns_settings(&self) -> DnsSettings {
        let network = &self.network;
        DnsSettings {
            servers: network.dns.clone().unwrap_or_default(),
            search: network.dns_search.clone().unwrap_or_default(),
            hosts: network.add_hosts.clone().unwrap_or_default(),
            host_file: network.dns_host.unwrap_or_default(),
        }
    }

    /// Changes settings of the guest's system to what the file says of them.
    pub(crate) fn lay_settings_over(&self, settings: &mut GuestSettings) {
        if let Some(sysctls) = &self.sysctls {
            settings.sysctls.clone_from(sysctls);
        }
        if let Some(tmpfs) = &self.tmpfs {
            settings.tmpfs.clone_from(tmpfs);
        }
        if let Some(mib) = self.shm_size_mib {
            settings.shm_bytes = Some(u64::from(mib) << 20);
        }
        if let Some(ulimits) = &self.ulimits {
            settings.ulimits.clone_from(ulimits);
        }
        if let Some(read_only) = self.read_only {
            settings.root = if read_only { RootAccess::ReadOnly } else { RootAccess::ReadWrite };
        }
        if let Some(signal) = &self.stop_signal {
            settings.stop_signal = Some(signal.clone());
        }
        if let Some(timeout) = self.stop_timeout {
            settings.stop_timeout_s = Some(u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX));
        }
        if let Some(ttl) = self.ttl {
            settings.set_ttl(ttl);
        }
        self.lay_health_over(&mut settings.health);
    }

    fn lay_health_over(&self, health: &mut HealthSettings) {
        let SpecHealthCheck { command, disable, interval, timeout, start_period, start_interval, retries } =
            &self.health_check;
        let command = command.clone().map(|command| match command {
            Service::Shell(line) => CommandLine::Shell(line),
            Service::Argv(words) => CommandLine::Argv(words),
        });
        let disabled = (*disable == Some(true)).then_some(HealthCommand::Disabled);
        let check = disabled.or(command.map(HealthCommand::Run));
        health.check = check.or(health.check.take());
        health.interval = interval.or(health.interval);
        health.timeout = timeout.or(health.timeout);
        health.start_period = start_period.or(health.start_period);
        health.start_interval = start_interval.or(health.start_interval);
        health.retries = retries.or(health.retries);
    }

    /// Changes a policy to what the file says of it.
    pub(crate) fn lay_egress_over(&self, policy: &mut EgressPolicy) {
        let egress = &self.egress;
        policy.mode = egress.mode.unwrap_or(policy.mode);
        if let Some(allow) = &egress.allow {
            policy.allow.clone_from(allow);
        }
        policy.max_connections = egress.max_connections.unwrap_or(policy.max_connections);
        policy.max_bytes = egress.max_bytes.unwrap_or(policy.max_bytes);
    }

    /// Changes limits to what the file says of them.
    pub(crate) fn lay_limits_over(&self, limits: &mut RateLimits) {
        limits.disk_bps = self.limits.disk_bps.or(limits.disk_bps);
        limits.disk_iops = self.limits.disk_iops.or(limits.disk_iops);
        limits.net_bps = self.limits.net_bps.or(limits.net_bps);
    }

    /// Refuses keys that contradict each other.
    pub(super) fn check(&self) -> Result<(), SpecError> {
        let refuse = |message: &str, hint| Err(self.meaning(message, hint));
        if self.exec.is_some() && (self.command.is_some() || self.entrypoint.is_some()) {
            return refuse(
                "the command is given twice: `exec`, and `command` or `entrypoint`",
                "keep one of them",
            );
        }
        if self.image.is_some() && self.from_snapshot.is_some() {
            return refuse(
                "what the disk is made from is given twice: `image` and `fromSnapshot`",
                "keep one of them",
            );
        }
        if self.service.is_some() && self.image_command == Some(true) {
            return refuse(
                "what starts run is given twice: `service` and `imageCommand`",
                "keep one of them",
            );
        }
        if self.health_check.command.is_some() && self.health_check.disable == Some(true) {
            return refuse("the health check is given and disabled", "keep one of `command` and `disable`");
        }
        if self.service == Some(Service::Argv(Vec::new())) || self.entrypoint == Some(Vec::new()) {
            return refuse("an empty list names no program", "remove it, or name a program");
        }
        self.published()?;
        self.forwarded()?;
        self.brokered()?;
        self.attachments()?;
        Ok(())
    }

    /// Has relative paths start at the directory of the file.
    pub(super) fn resolve_paths(&mut self) {
        let file = self.path.clone();
        // Absolute, because a supervisor works in another directory; in the form in which records have paths.
        let resolved = |path: &Path| beside(&file, path);
        let resolve = |path: &mut PathBuf| *path = resolved(path);
        for path in [&mut self.setup_files, &mut self.env_files].into_iter().flatten().flatten() {
            resolve(path);
        }
        for disk in [&mut self.disks, &mut self.bundles].into_iter().flatten().flatten() {
            resolve(&mut disk.path);
        }
        for volume in self.volumes.iter_mut().flatten() {
            match volume {
                Form::Short(Attachment {
                    source: DiskSource::Image(path) | DiskSource::Bundle(path),
                    ..
                }) => {
                    resolve(path);
                }
                Form::Long(SpecVolume { path: Some(path), .. }) => {
                    *path = resolved(Path::new(path)).to_string_lossy().into_owned();
                }
                Form::Short(_) | Form::Long(_) => {}
            }
        }
        for secret in self.secrets.iter_mut().flatten() {
            if let SecretSource::File(path) | SecretSource::Dotenv { path, .. } = &mut secret.source {
                resolve(path);
            }
        }
        if let Some(image) = &mut self.image {
            let local = LOCAL_TRANSPORTS.iter().find_map(|name| Some((name, image.strip_prefix(name)?)));
            if let Some((transport, path)) = local {
                // The rest may have a tag behind it, which stays there.
                *image = format!("{transport}{}", resolved(Path::new(path)).display());
            }
        }
    }

    pub(super) fn meaning(&self, message: impl Into<String>, hint: &str) -> SpecError {
        self.meaning_with(message, Hint::advice(hint))
    }

    fn meaning_with(&self, message: impl Into<String>, hint: Hint) -> SpecError {
        SpecError::Meaning { path: self.path.clone(), message: message.into(), hint }
    }
}

fn present<const N: usize>(keys: [(&'static str, bool); N]) -> Vec<&'static str> {
    keys.into_iter().filter_map(|(key, is_present)| is_present.then_some(key)).collect()
}
