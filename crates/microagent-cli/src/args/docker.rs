//! Flags of `docker run` (and podman's) that do not map to a microVM: recognised, never translated, each refused
//! with the reason and the way that works here.
//!
//! All knowledge is in [`FLAGS`]; the flags are hidden from help and completions.

use clap::error::Error as ClapError;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use microagent::AttachmentError;

use crate::failure::Failure;
use crate::hints;

/// A flag that is refused.
pub(crate) struct DockerFlag {
    /// Name without the dashes.
    long: &'static str,
    short: Option<char>,
    value: Value,
    why: &'static str,
    instead: &'static str,
}

/// Whether a flag takes a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    /// Alone, or `--flag=true`.
    None,
    /// With a value.
    Taken,
    /// With a value; this one says what happens here anyway, so it is accepted.
    TakenExcept(&'static str),
}

const fn switch(long: &'static str, why: &'static str, instead: &'static str) -> DockerFlag {
    DockerFlag { long, short: None, value: Value::None, why, instead }
}

const fn valued(long: &'static str, why: &'static str, instead: &'static str) -> DockerFlag {
    DockerFlag { long, short: None, value: Value::Taken, why, instead }
}

const fn except(
    long: &'static str,
    harmless: &'static str,
    why: &'static str,
    instead: &'static str,
) -> DockerFlag {
    DockerFlag { long, short: None, value: Value::TakenExcept(harmless), why, instead }
}

impl DockerFlag {
    const fn short(mut self, short: char) -> DockerFlag {
        self.short = Some(short);
        self
    }
}

const OWN_KERNEL: &str =
    "the guest has its own kernel and is root on it; there are no host privileges to grant or drop";
const LEAVE_OUT: &str = "omit it";
const LEAVE_OUT_ROOT: &str = "omit it: inside the microVM root can do everything already";
const NAMESPACES: &str = "a microVM shares no namespace with the host or with another microVM";
const ISOLATED: &str = "omit it: the microVM is isolated from the host by its own kernel";
const DEVICES: &str = "no device of the host is visible in a microVM";
const CGROUP: &str = "a microVM has a fixed size instead of cgroup limits";
const DISK_RATE: &str = "limit all disks together: --disk-bps BYTES";
const DISK_REQUESTS: &str = "limit all disks together: --disk-iops N";
const SIZE: &str = "set the size of the machine: --memory, --cpus or --profile";
const ADDRESSING: &str =
    "each microVM has a private network with fixed addresses; it uses the host's name servers";
const NETWORK_CHOICE: &str =
    "choose --network user (outbound NAT, published ports) or --network isolated (no network device)";
const NETWORK_CHOICE_OR_JOIN: &str =
    "use --network user or --network isolated; a private network is joined with --join NETWORK";
const PORTS: &str = "ports that an image exposes are not published automatically";
const PORTS_NOW: &str = "publish each port: -p HOST_PORT:PORT; HOST_PORT 0 picks a free port";
const FOREGROUND: &str = "run stays in the foreground until the command ends";
const NO_MOUNTS: &str = "nothing of the host is mounted into a microVM";
const ATTACH: &str = "attach a named volume, a tar file or an ext4 image: -v SOURCE:/guest/path[:ro]";
const LOGS: &str = "output is the command's, and `microagent logs` reads the console log of a workspace";
const NO_LABELS: &str = "labels are given one by one";
const KEPT: &str = "make a workspace that is started again: microagent create NAME --image IMAGE --restart always, microagent supervise NAME";

/// Every refused flag. `--network`, `--memory`, `--cpus`, `--publish` and `--volume` have checks of their own.
const FLAGS: &[DockerFlag] = &[
    // Privileges
    switch("privileged", OWN_KERNEL, LEAVE_OUT_ROOT),
    valued("cap-add", OWN_KERNEL, LEAVE_OUT_ROOT),
    valued("cap-drop", OWN_KERNEL, "omit it, or run the command as another user with --user"),
    valued("security-opt", OWN_KERNEL, ISOLATED),
    valued(
        "group-add",
        "the groups of a user come from the image's /etc/group",
        "add the user there in a --setup step, or name a group: --user USER:GROUP",
    ),
    // Namespaces
    valued("pid", NAMESPACES, ISOLATED),
    valued("ipc", NAMESPACES, ISOLATED),
    valued("uts", NAMESPACES, "omit it; --hostname sets the guest's host name"),
    valued("userns", NAMESPACES, ISOLATED),
    valued("cgroupns", NAMESPACES, ISOLATED),
    valued("cgroup-parent", NAMESPACES, ISOLATED),
    valued("pod", NAMESPACES, "there are no pods: run each image in its own microVM"),
    // Devices
    valued("device", DEVICES, "omit it; the guest has its own disk, network and random number device"),
    valued("device-cgroup-rule", DEVICES, LEAVE_OUT),
    valued("device-read-bps", CGROUP, DISK_RATE),
    valued("device-write-bps", CGROUP, DISK_RATE),
    valued("device-read-iops", CGROUP, DISK_REQUESTS),
    valued("device-write-iops", CGROUP, DISK_REQUESTS),
    valued("gpus", DEVICES, "omit it; GPUs cannot be passed to a microVM here"),
    // Resources
    valued("memory-swap", CGROUP, SIZE),
    valued("memory-swappiness", CGROUP, SIZE),
    valued("memory-reservation", CGROUP, SIZE),
    valued("kernel-memory", CGROUP, SIZE),
    valued("cpu-shares", CGROUP, SIZE).short('c'),
    valued("cpu-quota", CGROUP, SIZE),
    valued("cpu-period", CGROUP, SIZE),
    valued("cpu-rt-period", CGROUP, SIZE),
    valued("cpu-rt-runtime", CGROUP, SIZE),
    valued("cpuset-cpus", CGROUP, SIZE),
    valued("cpu-count", CGROUP, SIZE),
    valued("cpu-percent", CGROUP, SIZE),
    valued("cpuset-mems", CGROUP, SIZE),
    valued("io-maxbandwidth", CGROUP, DISK_RATE),
    valued("io-maxiops", CGROUP, DISK_REQUESTS),
    valued("blkio-weight", CGROUP, LEAVE_OUT),
    valued("blkio-weight-device", CGROUP, LEAVE_OUT),
    valued("pids-limit", CGROUP, LEAVE_OUT),
    switch("oom-kill-disable", CGROUP, SIZE),
    valued("oom-score-adj", CGROUP, SIZE),
    valued("storage-opt", "a microVM has its own disk", "set its size: --size-mib"),
    // Files
    valued("mount", NO_MOUNTS, ATTACH),
    valued("volumes-from", "a volume has one user at a time", ATTACH),
    valued("volume-driver", "volumes are always ext4 disks on this host", LEAVE_OUT),
    valued(
        "cidfile",
        "a workspace is identified by its name",
        "choose the name with --name NAME, or read `workspace` from the JSON document (--json)",
    ),
    valued(
        "rootfs",
        "run starts images only",
        "import the directory as an image: `tar -C DIR -c . | microagent image import - REF`",
    ),
    // Network
    valued("link", NAMESPACES, NETWORK_CHOICE),
    valued("network-alias", ADDRESSING, NETWORK_CHOICE),
    valued("ip", ADDRESSING, NETWORK_CHOICE),
    valued("ip6", ADDRESSING, NETWORK_CHOICE),
    valued("link-local-ip", ADDRESSING, NETWORK_CHOICE),
    valued("mac-address", ADDRESSING, NETWORK_CHOICE),
    valued(
        "dns-option",
        ADDRESSING,
        "write it in the guest: --setup 'echo options OPTION >> /etc/resolv.conf'",
    ),
    valued("dns-opt", ADDRESSING, "write it in the guest: --setup 'echo options OPTION >> /etc/resolv.conf'"),
    valued("domainname", "guests have a host name and no domain name", "set the host name: --hostname NAME"),
    switch("publish-all", PORTS, PORTS_NOW).short('P'),
    valued("expose", PORTS, PORTS_NOW),
    // Lifecycle
    valued(
        "detach-keys",
        "an attached run ends with its command and has no key to detach with",
        "omit it; -d starts the command in the background, and `microagent connect NAME` can be left with Ctrl-]",
    ),
    switch(
        "sig-proxy",
        "signals go to the command with -i, -t and --stream, and end the run without them",
        LEAVE_OUT,
    ),
    except("restart", "no", FOREGROUND, KEPT),
    // Records
    valued("log-driver", LOGS, LEAVE_OUT),
    valued("log-opt", LOGS, LEAVE_OUT),
    valued("label-file", NO_LABELS, "--label NAME=VALUE, repeated"),
    valued("annotation", "a workspace has labels only", "--label NAME=VALUE"),
    // Choice of runtime and platform
    valued("runtime", "microVMs are the only runtime", "omit it; --accel chooses KVM or emulation"),
    valued("isolation", "microVMs are the only isolation", LEAVE_OUT),
    except(
        "platform",
        HOST_PLATFORM,
        "guests have the architecture of the host",
        "use an image for this architecture, or run microagent on a machine of that architecture",
    ),
    switch("disable-content-trust", "images are verified by their digests", LEAVE_OUT),
    switch("use-api-socket", "microagent has no daemon and no socket", LEAVE_OUT),
    valued("systemd", "the guest's first process is microagent's agent", "omit it"),
    switch(
        "replace",
        "an existing workspace is never replaced",
        "delete the existing workspace first: microagent delete NAME --yes",
    ),
];

#[cfg(target_arch = "x86_64")]
const HOST_PLATFORM: &str = "linux/amd64";
#[cfg(target_arch = "aarch64")]
const HOST_PLATFORM: &str = "linux/arm64";

/// The refused flags that were given, as clap finds them.
#[derive(Debug, Default)]
pub(crate) struct DockerFlags {
    given: Option<Refusal>,
}

#[derive(Debug, Clone)]
struct Refusal {
    flag: String,
    why: &'static str,
    instead: &'static str,
}

impl DockerFlags {
    /// Refuses the first of them.
    pub(crate) fn refuse(&self) -> Result<(), Failure> {
        match &self.given {
            Some(Refusal { flag, why, instead }) => Err(refusal(flag, why, instead)),
            None => Ok(()),
        }
    }
}

/// The flags that `create` refuses: those of `run` that are about neither its terminal nor its only start.
#[derive(Debug, Default)]
pub(crate) struct CreateDockerFlags(DockerFlags);

/// Flags of `run` that mean something for a workspace, or are no flags of `docker create`.
const OF_RUN_ALONE: [&str; 3] = ["restart", "detach-keys", "sig-proxy"];

fn of_create(flag: &&DockerFlag) -> bool {
    !OF_RUN_ALONE.contains(&flag.long)
}

impl CreateDockerFlags {
    /// Refuses the first of them.
    pub(crate) fn refuse(&self) -> Result<(), Failure> {
        self.0.refuse()
    }
}

impl clap::Args for CreateDockerFlags {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().filter(of_create).fold(command, add)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for CreateDockerFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, ClapError> {
        let given = FLAGS.iter().filter(of_create).find_map(|flag| flag.refused_in(matches));
        Ok(CreateDockerFlags(DockerFlags { given }))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), ClapError> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The one form that all refusals have.
pub(crate) fn refusal(flag: &str, why: &str, instead: &str) -> Failure {
    Failure::usage(format!("{flag} is not possible here: {why}"), instead)
}

/// Has clap recognise a flag.
fn add(command: Command, flag: &DockerFlag) -> Command {
    let arg = Arg::new(flag.long).long(flag.long).short(flag.short).hide(true);
    command.arg(match flag.value {
        // Repeated flags are refused once, so nothing is counted.
        Value::None => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").action(ArgAction::Append)
        }
        Value::Taken | Value::TakenExcept(_) => {
            arg.num_args(1).allow_hyphen_values(true).action(ArgAction::Append)
        }
    })
}

impl clap::Args for DockerFlags {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, add)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DockerFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, ClapError> {
        Ok(DockerFlags { given: FLAGS.iter().find_map(|flag| flag.refused_in(matches)) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), ClapError> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl DockerFlag {
    fn refused_in(&self, matches: &ArgMatches) -> Option<Refusal> {
        let mut values = matches.get_many::<String>(self.long)?;
        let harmless = |value: &String| match self.value {
            // `--privileged=false` asks for what is the case.
            Value::None => value == "false",
            Value::Taken => false,
            Value::TakenExcept(harmless) => value == harmless,
        };
        let refused = values.any(|value| !harmless(value));
        refused.then(|| Refusal { flag: self.spelled(), why: self.why, instead: self.instead })
    }

    fn spelled(&self) -> String {
        match self.short {
            Some(short) => format!("--{} (-{short})", self.long),
            None => format!("--{}", self.long),
        }
    }
}

/// Says why something cannot be attached.
pub(crate) fn refuse_attachment(flag: &str, value: &str, error: &AttachmentError) -> Failure {
    refusal(&format!("--{flag} {value}"), &error.to_string(), &hints::text(&error.hint()))
}

/// Refuses what Docker's `--network` takes beyond our two modes.
pub(crate) fn refuse_network(value: &str) -> Failure {
    let flag = format!("--network {value}");
    let (why, instead) = match value.split(':').next().unwrap_or_default() {
        "bridge" | "default" | "slirp4netns" | "pasta" | "private" | "nat" => (
            "there is no bridge network",
            "use --network user: outbound NAT, and the ports that -p publishes",
        ),
        "host" => (
            "the guest has its own kernel and cannot share the host's network",
            "use --network user: outbound NAT, and the ports that -p publishes",
        ),
        "container" | "ns" => (NAMESPACES, NETWORK_CHOICE),
        _ => ("unknown mode", NETWORK_CHOICE_OR_JOIN),
    };
    refusal(&flag, why, instead)
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;

    fn given(words: &[&str]) -> Result<(), Failure> {
        let command = DockerFlags::augment_args(Command::new("run").no_binary_name(true));
        let matches = command.try_get_matches_from(words).unwrap();
        DockerFlags::from_arg_matches(&matches).unwrap().refuse()
    }

    #[track_caller]
    fn assert_refused(words: &[&str], flag: &str) {
        match given(words) {
            Err(Failure::Usage { message, hint }) => {
                assert!(message.starts_with(flag), "{message}");
                assert!(message.contains(" is not possible here: "), "{message}");
                assert!(hint.is_some_and(|hint| hint.len() >= LEAVE_OUT.len()));
            }
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn every_flag_is_refused_with_a_reason_and_a_way() {
        for flag in FLAGS {
            let long = format!("--{}", flag.long);
            let short = flag.short.map(|short| format!("-{short}"));
            let text = format!("{}: {} {}", flag.long, flag.why, flag.instead);
            assert!(!flag.why.ends_with('.') && !flag.instead.ends_with('.'), "{text}");
            for name in [Some(long.clone()), short].into_iter().flatten() {
                match flag.value {
                    Value::None => {
                        assert_refused(&[&name], &long);
                        assert!(given(&[&format!("{long}=false")]).is_ok(), "{long}");
                    }
                    Value::Taken => assert_refused(&[&name, "-x"], &long),
                    Value::TakenExcept(harmless) => {
                        assert_refused(&[&name, "something"], &long);
                        assert!(given(&[&name, harmless]).is_ok(), "{long}");
                    }
                }
            }
        }
    }
}
