//! The arguments that every command has which makes a workspace, for one run or to be kept.

use std::path::PathBuf;

use clap::error::Error as ClapError;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use microagent::egress::{AllowRule, EgressMode, EgressPolicy};
use microagent::image::PullPolicy;
use microagent::spec::value::setup_script;
use microagent::{
    Artifact, Attachment, AttachmentForm, DiskSource, Error, GuestInit, NetworkMode, PROFILES, Profile,
    Publish, PublishRange, SetupStep, SpecFile, WorkspaceOptions, parse_label,
};

use crate::args::broker::BrokerArgs;
use crate::args::docker::{refusal, refuse_attachment, refuse_network};
use crate::args::names::NameArgs;
use crate::args::secret::SecretArgs;
use crate::args::settings::SettingsArgs;
use crate::args::values::{bytes, cpus, disk_mib, env_file, env_variable, memory_mib};
use crate::failure::Failure;

/// What a workspace is made from, but for its image.
#[derive(Debug, Args)]
pub(crate) struct WorkspaceArgs {
    /// Read settings from a spec file such as `microagent.yaml`; options override it. No file is read without this
    #[arg(long, value_name = "SPEC", help_heading = "What to run")]
    file: Option<PathBuf>,

    #[command(flatten)]
    setup: SetupArgs,

    /// Set an environment variable; without a value, pass the host's (repeatable)
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "What to run")]
    env: Vec<String>,

    /// Read variables from a file of NAME=VALUE lines; --env overrides it (repeatable)
    #[arg(long, value_name = "FILE", help_heading = "What to run")]
    env_file: Vec<PathBuf>,

    #[command(flatten)]
    secrets: SecretArgs,

    #[command(flatten)]
    settings: SettingsArgs,

    /// User, or user and group, instead of the image's
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "What to run")]
    user: Option<String>,

    /// Working directory instead of the image's
    #[arg(short, long, value_name = "DIR", help_heading = "What to run")]
    workdir: Option<String>,

    /// Run an init that reaps orphans as process 1 of the guest; without this, the program is process 1
    #[arg(long, help_heading = "What to run")]
    init: bool,

    /// When to pull: missing (if the image is not in the cache), always, or never [default: missing]
    #[arg(long, value_name = "WHEN", hide_possible_values = true, help_heading = "What to run")]
    pull: Option<Pull>,

    /// Machine size to start from: tiny, small, medium or large (see `microagent profiles`) [default:
    /// small]
    #[arg(long, value_name = "NAME", value_parser = profile, help_heading = "Machine")]
    profile: Option<Profile>,

    /// Memory in MiB, or with a unit such as 512m or 2g
    #[arg(short, long, value_name = "MIB", value_parser = memory_mib, help_heading = "Machine")]
    memory: Option<u32>,

    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = cpus, help_heading = "Machine")]
    cpus: Option<u32>,

    /// Size of the disk in MiB, or with a unit such as 8g; raised if the image needs more
    #[arg(long, alias = "size", value_name = "MIB", value_parser = disk_mib, help_heading = "Machine")]
    size_mib: Option<u64>,

    /// Bytes per second that all disks together read and write, such as 50m
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Machine")]
    disk_bps: Option<u64>,

    /// Reads and writes per second of all disks together
    #[arg(long, value_name = "N", help_heading = "Machine")]
    disk_iops: Option<u64>,

    /// Bytes per second on the network in each direction, such as 10m
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Network")]
    net_bps: Option<u64>,

    /// Network: user (outbound NAT) or isolated (no network device, or --forward and --broker alone) [default: user]
    #[arg(long, alias = "net", value_name = "MODE", help_heading = "Network")]
    network: Option<String>,

    /// Publish a port of the guest, or a range; HOST defaults to 127.0.0.1, without HOST_PORT a free one is picked (repeatable)
    #[arg(short, long, value_name = "[[HOST:]HOST_PORT:]PORT[/udp]", help_heading = "Network")]
    publish: Vec<PublishRange>,

    /// What the guest may reach: public (not the host and its networks), allowlist (only --egress-allow), or open [default: public]
    #[arg(long, value_name = "MODE", help_heading = "Network")]
    egress: Option<EgressMode>,

    /// Allow a name, .NAME (with all names below it), or ADDRESS[/BITS][:PORT] in addition to the mode (repeatable)
    #[arg(long, value_name = "RULE", help_heading = "Network")]
    egress_allow: Vec<AllowRule>,

    /// Maximum number of open connections [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Network")]
    egress_max_connections: Option<u32>,

    /// Maximum number of bytes from start to end of the machine, both directions together, such as 512m or 50g [default: 50g]
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Network")]
    egress_max_bytes: Option<u64>,

    #[command(flatten)]
    names: NameArgs,

    #[command(flatten)]
    brokers: BrokerArgs,

    /// Host name of the guest [default: derived from the workspace's name]
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    hostname: Option<String>,

    /// Label by which the workspace can be found: `ps --filter label=NAME=VALUE` (repeatable)
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = parse_label, help_heading = "What to run")]
    label: Vec<(String, String)>,

    /// Attach a named volume, a tar file, `-` (a tar stream on standard input) or an ext4 image (repeatable)
    #[arg(short, long, value_name = "SRC:DST[:ro|rw]", allow_hyphen_values = true, help_heading = "Disks")]
    volume: Vec<String>,

    /// Attach an ext4 image file, whatever its name (repeatable)
    #[arg(long, value_name = "FILE:DST[:ro|rw]", help_heading = "Disks")]
    disk: Vec<String>,

    /// Make a disk from a tar file, whatever its name, and attach it (repeatable)
    #[arg(long, value_name = "FILE:DST[:ro|rw]", allow_hyphen_values = true, help_heading = "Disks")]
    bundle: Vec<String>,
}

/// `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pull {
    Missing,
    Always,
    Never,
    Local,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> PullPolicy {
        match pull {
            Pull::Missing => PullPolicy::Missing,
            Pull::Always => PullPolicy::Always,
            Pull::Never => PullPolicy::Never,
            Pull::Local => PullPolicy::Local,
        }
    }
}

/// The profile of this name.
pub(crate) fn profile(name: &str) -> Result<Profile, String> {
    Profile::named(name)
        .ok_or_else(|| format!("expected one of: {}", PROFILES.map(|profile| profile.name).join(", ")))
}

impl WorkspaceArgs {
    /// What the spec file says, or nothing where there is none.
    pub(crate) fn spec(&self) -> Result<SpecFile, Failure> {
        match &self.file {
            Some(path) => Ok(SpecFile::read(path).map_err(Error::from)?),
            None => Ok(SpecFile::default()),
        }
    }

    /// The network that a flag names.
    pub(crate) fn network(&self) -> Option<&str> {
        match self.network.as_deref() {
            // Docker's word for it.
            Some("none") => Some("isolated"),
            mode => mode,
        }
    }

    /// The first flag that asks for a health check.
    pub(crate) fn health_flag(&self) -> Option<&'static str> {
        self.settings.health_flag()
    }

    /// Whether a spec file is named.
    pub(crate) fn has_spec(&self) -> bool {
        self.file.is_some()
    }

    /// Lays the flags over what a spec file says. A value takes the place of the file's; of a list, an entry takes the
    /// place of the file's with the same name, and others are added behind the file's.
    pub(crate) fn lay_over(
        &self,
        options: &mut WorkspaceOptions,
        outputs: &[Artifact],
    ) -> Result<(), Failure> {
        let disks = self.disks()?;
        let is_covered =
            |of_file: &Attachment| disks.iter().any(|flag| flag.mount_point == of_file.mount_point);
        options.disks.retain(|of_file| !is_covered(of_file));
        options.disks.extend(disks);
        if reads_standard_input(options) && options.image.ends_with(":-") {
            return Err(Failure::usage(
                "standard input is both the image and a volume",
                "load the image first: microagent image load < FILE",
            ));
        }
        if let Some(mode) = self.network() {
            options.network = network_mode(mode)?;
        }
        self.lay_network_over(options)?;
        distinct(outputs)?;
        options.setup.extend(self.setup.read()?);
        options.env.extend(self.environment()?);
        self.settings.lay_over(&mut options.settings);
        options.labels.extend(self.label.iter().cloned());
        lay_list_over(&mut options.outputs, outputs, |output| &output.name);
        lay_list_over(&mut options.secrets, &self.secrets.references()?, |secret| &secret.name);
        lay_value_over(&mut options.user, &self.user);
        lay_value_over(&mut options.working_dir, &self.workdir);
        if self.init {
            options.init = GuestInit::Agent;
        }
        lay_value_over(&mut options.memory_mib, &self.memory);
        lay_value_over(&mut options.cpu_count, &self.cpus);
        lay_value_over(&mut options.size_mib, &self.size_mib);
        lay_value_over(&mut options.hostname, &self.hostname);
        lay_value_over(&mut options.limits.disk_bps, &self.disk_bps);
        lay_value_over(&mut options.limits.disk_iops, &self.disk_iops);
        lay_value_over(&mut options.limits.net_bps, &self.net_bps);
        options.profile = self.profile.unwrap_or(options.profile);
        options.pull = self.pull.map_or(options.pull, PullPolicy::from);
        Ok(())
    }

    /// What is said of the network in particular has a meaning only where there is one.
    fn lay_network_over(&self, options: &mut WorkspaceOptions) -> Result<(), Failure> {
        let given = [
            ("--publish (-p)", !self.publish.is_empty()),
            ("--egress", self.egress.is_some()),
            ("--egress-allow", !self.egress_allow.is_empty()),
            ("--egress-max-connections", self.egress_max_connections.is_some()),
            ("--egress-max-bytes", self.egress_max_bytes.is_some()),
            ("--net-bps", self.net_bps.is_some()),
        ];
        let given = given.into_iter().chain(self.names.given());
        if options.network == NetworkMode::Isolated
            && let Some((flag, _)) = given.into_iter().find(|(_, given)| *given)
        {
            return Err(refusal(
                flag,
                "with --network isolated the guest has no network device",
                "use --network user, or omit the option",
            ));
        }
        // A port of the guest is published where the flags say, if they do.
        let flags: Vec<Publish> = self.publish.iter().flat_map(PublishRange::ports).copied().collect();
        let is_named = |of_file: &Publish| {
            let port = (of_file.guest_port, of_file.protocol);
            flags.iter().any(|flag| (flag.guest_port, flag.protocol) == port)
        };
        options.publish.retain(|of_file| !is_named(of_file));
        options.publish.extend(flags);
        self.names.lay_over(options);
        self.brokers.lay_over(options)?;
        let EgressPolicy { mode, allow, max_connections, max_bytes, .. } = &mut options.egress;
        *mode = self.egress.unwrap_or(*mode);
        allow.extend(self.egress_allow.iter().cloned());
        *max_connections = self.egress_max_connections.unwrap_or(*max_connections);
        *max_bytes = self.egress_max_bytes.unwrap_or(*max_bytes);
        Ok(())
    }

    fn disks(&self) -> Result<Vec<Attachment>, Failure> {
        use AttachmentForm::{Bundle, Disk, Volume};
        let mut disks = Vec::new();
        let flags =
            [("volume", Volume, &self.volume), ("disk", Disk, &self.disk), ("bundle", Bundle, &self.bundle)];
        for (flag, form, values) in flags {
            for value in values {
                let here = std::env::current_dir().map_err(|source| Failure::File {
                    action: "find",
                    path: ".".into(),
                    source,
                })?;
                disks.push(form.parse(value, &here).map_err(|e| refuse_attachment(flag, value, &e))?);
            }
        }
        Ok(disks)
    }

    fn environment(&self) -> Result<Vec<(String, String)>, Failure> {
        let mut variables = Vec::new();
        for path in &self.env_file {
            variables.extend(env_file(path)?);
        }
        for text in &self.env {
            variables.extend(env_variable(text)?);
        }
        Ok(variables)
    }
}

/// What to say of keys of a spec file that are not for the command that reads it.
pub(crate) fn idle_keys(keys: &[&str], command: &str) -> Option<String> {
    let have = if keys.len() == 1 { "has" } else { "have" };
    (!keys.is_empty())
        .then(|| format!("`{}` of the spec file {have} no effect on {command}", keys.join("`, `")))
}

fn lay_value_over<T: Clone>(of_file: &mut Option<T>, flag: &Option<T>) {
    if flag.is_some() {
        of_file.clone_from(flag);
    }
}

pub(super) fn lay_list_over<T: Clone, K: PartialEq + ?Sized>(
    of_file: &mut Vec<T>,
    flags: &[T],
    key: fn(&T) -> &K,
) {
    for flag in flags {
        match of_file.iter_mut().find(|entry| key(entry) == key(flag)) {
            Some(entry) => entry.clone_from(flag),
            None => of_file.push(flag.clone()),
        }
    }
}

fn network_mode(mode: &str) -> Result<NetworkMode, Failure> {
    match mode {
        "user" => Ok(NetworkMode::User),
        "isolated" => Ok(NetworkMode::Isolated),
        other => Err(refuse_network(other)),
    }
}

/// Whether a volume is made from a tar stream on standard input.
pub(crate) fn reads_standard_input(options: &WorkspaceOptions) -> bool {
    let is_stream =
        |disk: &Attachment| matches!(&disk.source, DiskSource::Bundle(path) if path.as_os_str() == "-");
    options.disks.iter().any(is_stream)
}

/// No two outputs have one name.
fn distinct(outputs: &[Artifact]) -> Result<(), Failure> {
    for (index, output) in outputs.iter().enumerate() {
        if outputs[..index].iter().any(|earlier| earlier.name == output.name) {
            return Err(Failure::usage(
                format!("--output declares `{}` twice", output.name),
                "give each output a different name",
            ));
        }
    }
    Ok(())
}

/// `--setup` and `--setup-file`, in the order in which they were typed.
#[derive(Debug, Default)]
struct SetupArgs {
    steps: Vec<SetupArg>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SetupArg {
    Line(String),
    File(PathBuf),
}

impl SetupArgs {
    fn read(&self) -> Result<Vec<SetupStep>, Failure> {
        self.steps.iter().map(SetupArg::read).collect()
    }
}

impl SetupArg {
    fn read(&self) -> Result<SetupStep, Failure> {
        match self {
            SetupArg::Line(line) => Ok(SetupStep::Shell(line.clone())),
            SetupArg::File(path) => Ok(setup_script(path)?),
        }
    }
}

impl Args for SetupArgs {
    fn augment_args(command: Command) -> Command {
        command
            .arg(
                Arg::new("setup")
                    .long("setup")
                    .value_name("STRING")
                    .allow_hyphen_values(true)
                    .action(ArgAction::Append)
                    .help_heading("What to run")
                    .help("Setup step: a shell line to run before the command (repeatable)"),
            )
            .arg(
                Arg::new("setup_file")
                    .long("setup-file")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .action(ArgAction::Append)
                    .help_heading("What to run")
                    .help("Setup step: a script of the host, in order with --setup (repeatable)"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SetupArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, ClapError> {
        fn indexed<'a, T: Clone + Send + Sync + 'static>(
            matches: &'a ArgMatches,
            id: &'a str,
        ) -> impl Iterator<Item = (usize, T)> + 'a {
            let values = matches.get_many::<T>(id).unwrap_or_default().cloned();
            matches.indices_of(id).unwrap_or_default().zip(values)
        }
        let lines = indexed(matches, "setup").map(|(index, line)| (index, SetupArg::Line(line)));
        let files = indexed(matches, "setup_file").map(|(index, path)| (index, SetupArg::File(path)));
        let mut steps: Vec<_> = lines.chain(files).collect();
        steps.sort_by_key(|(index, _)| *index);
        Ok(SetupArgs { steps: steps.into_iter().map(|(_, step)| step).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), ClapError> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> WorkspaceArgs {
        let command = WorkspaceArgs::augment_args(Command::new("create").no_binary_name(true));
        WorkspaceArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
    }

    fn laid(words: &[&str]) -> Result<WorkspaceOptions, Failure> {
        let mut options = WorkspaceOptions::new("i");
        args(words).lay_over(&mut options, &[]).map(|()| options)
    }

    #[test]
    fn flags_of_the_network_go_over_a_spec_file() {
        let mut options = WorkspaceOptions::new("i");
        options.publish = ["8080:80", "2222:22"].map(|text| text.parse().unwrap()).into();
        options.egress.mode = EgressMode::Open;
        options.egress.allow = vec!["a.example".parse().unwrap()];
        let words =
            ["-p", "0:80", "-p", "0:80", "--egress-allow", "b.example", "--egress-max-connections", "3"];
        args(&words).lay_over(&mut options, &[]).unwrap();
        let published: Vec<_> = options.publish.iter().map(ToString::to_string).collect();
        assert_eq!(published, ["127.0.0.1:2222:22/tcp", "127.0.0.1:0:80/tcp", "127.0.0.1:0:80/tcp"]);
        let rules: Vec<_> = options.egress.allow.iter().map(ToString::to_string).collect();
        assert_eq!(rules, ["a.example", "b.example"]);
        assert_eq!((options.egress.mode, options.egress.max_connections), (EgressMode::Open, 3));
    }

    #[test]
    fn dockers_network_none_is_isolated() {
        assert_eq!(laid(&["--network", "none"]).unwrap().network, NetworkMode::Isolated);
        assert!(laid(&["--network", "bridge"]).is_err());
    }

    #[test]
    fn flags_of_the_network_become_options() {
        let words = [
            "-p",
            "8080:80",
            "--publish",
            "0.0.0.0:0:22/tcp",
            "--egress",
            "allowlist",
            "--egress-allow",
            ".example.org",
            "--egress-allow",
            "192.0.2.0/24:443",
            "--egress-max-connections",
            "7",
            "--egress-max-bytes",
            "2g",
        ];
        let options = laid(&words).unwrap();
        let published: Vec<_> = options.publish.iter().map(ToString::to_string).collect();
        assert_eq!(published, ["127.0.0.1:8080:80/tcp", "0.0.0.0:0:22/tcp"]);
        let EgressPolicy { mode, allow, max_connections, max_bytes, .. } = options.egress;
        assert_eq!((mode, max_connections, max_bytes), (EgressMode::Allowlist, 7, 2 << 30));
        let rules: Vec<_> = allow.iter().map(ToString::to_string).collect();
        assert_eq!(rules, [".example.org", "192.0.2.0/24:443"]);
        assert_eq!(laid(&[]).unwrap().egress, EgressPolicy::default());
    }

    #[test]
    fn names_and_forwarded_ports_go_over_a_spec_file() {
        let mut options = WorkspaceOptions::new("i");
        options.dns.servers = vec!["192.0.2.1".parse().unwrap()];
        options.dns.hosts =
            ["db:10.0.0.1", "db:10.0.0.2", "web:10.0.0.3"].map(|text| text.parse().unwrap()).into();
        options.forwards = ["80=127.0.0.1:1", "81=127.0.0.1:2"].map(|text| text.parse().unwrap()).into();
        let words = ["--add-host", "DB:10.0.0.9", "--forward", "80=localhost:9", "--dns-search", "."];
        args(&words).lay_over(&mut options, &[]).unwrap();
        let hosts: Vec<_> = options.dns.hosts.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, ["web:10.0.0.3", "db:10.0.0.9"]);
        let forwards: Vec<_> = options.forwards.iter().map(ToString::to_string).collect();
        assert_eq!(forwards, ["80=127.0.0.1:9", "81=127.0.0.1:2"]);
        assert_eq!((options.dns.servers.len(), options.dns.search.len()), (1, 1));
        args(&["--dns", "192.0.2.2:5353"]).lay_over(&mut options, &[]).unwrap();
        assert_eq!(options.dns.servers, ["192.0.2.2:5353".parse().unwrap()]);
        // A forwarded port is all that an isolated guest can have of a network.
        let isolated = laid(&["--network", "isolated", "--forward", "80=127.0.0.1:1"]).unwrap();
        assert_eq!(isolated.forwards.len(), 1);
    }

    #[test]
    fn an_isolated_guest_has_nothing_to_publish_or_to_allow() {
        for flag in [
            "-p=8080:80",
            "--egress=public",
            "--egress-allow=a",
            "--egress-max-connections=1",
            "--egress-max-bytes=1",
            "--dns=192.0.2.1",
            "--dns-search=a",
            "--dns-host",
            "--add-host=a:192.0.2.1",
        ] {
            let refused = laid(&["--network", "isolated", flag]).unwrap_err();
            match refused {
                Failure::Usage { message, hint: Some(hint) } => {
                    assert!(
                        message.contains("--network isolated") && hint.contains("--network user"),
                        "{message}"
                    );
                }
                other => panic!("{flag}: {other:?}"),
            }
        }
    }

    #[test]
    fn setup_steps_keep_their_order() {
        let command = WorkspaceArgs::augment_args(Command::new("create").no_binary_name(true));
        let words = ["--setup", "a", "--setup-file", "b", "--env", "X=1", "--setup", "c"];
        let args = WorkspaceArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap();
        let line = |text: &str| SetupArg::Line(text.to_owned());
        assert_eq!(args.setup.steps, [line("a"), SetupArg::File("b".into()), line("c")]);
    }
}
