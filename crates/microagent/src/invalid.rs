//! Requests that are not valid, regardless of the state of the host. They are refused before anything is done.

use std::path::PathBuf;

use microagent_image::{DigestError, ReferenceError};
use microagent_model::egress::RULES_MAX;
use microagent_model::{
    AllowRuleError, BROKERS_MAX, BrokerError, DISK_MIB_MAX, DnsError, EgressModeError, ForwardError,
    HEALTH_RETRIES_MAX, JobIdError, LABELS_MAX, LabelError, NameError, NetworkName, NetworkNameError,
    PORTS_MAX, PortSelector, Publish, PublishError, RATE_MAX, RestartPolicyError, SETTINGS_MAX,
    SecretReferenceError, SettingError, SnapshotTagError, SubnetError, VolumeName, VolumeNameError,
    WorkspaceName,
};
use microagent_proto::SECRETS_MAX;

use crate::hint::OptionHint;
use crate::provision::{CPU_MAX, MEMORY_MIN_MIB};
use crate::spec::value::VariableError;
use crate::volume::SIZE_RANGE_MIB;
use crate::workspace::REASON_LIMIT;
use crate::{AttachmentError, Hint};

/// Why a request is not valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRequest {
    /// The name of a variable is empty, or contains `=`, a space or a zero byte.
    #[error("`{name}` is not the name of an environment variable")]
    EnvironmentName {
        /// The name.
        name: String,
    },
    /// A line of an environment file is not a variable.
    #[error("environment file `{}`, line {line} is not a variable", path.display())]
    EnvironmentLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it. Never repeats the line, which may hold a secret.
        source: VariableError,
    },
    /// Several templates have keys with this beginning.
    #[error("several templates have keys that begin with `{key}`")]
    AmbiguousTemplate {
        /// The shortened key.
        key: String,
    },
    /// The path of an artifact is not absolute.
    #[error("the path of output `{name}` is not absolute: `{path}`")]
    ArtifactPath {
        /// The artifact.
        name: String,
        /// Its path.
        path: String,
    },
    /// The tar stream on standard input is longer than a bundle may be.
    #[error("the tar stream on standard input is longer than {limit_gib} GiB")]
    LargeStream {
        /// Its limit in GiB.
        limit_gib: u64,
    },
    /// The workspace has no health check that could be waited for.
    #[error("workspace `{name}` has no health check")]
    NoHealthCheck {
        /// The workspace.
        name: WorkspaceName,
    },
    /// A time of the health check is too short or too long.
    #[error("the {what} of the health check is too short or too long")]
    HealthTime {
        /// The time.
        what: &'static str,
    },
    /// A health check must fail at least once, and not too often.
    #[error("a health check has 1 to {HEALTH_RETRIES_MAX} retries")]
    HealthRetries,
    /// The health check is empty.
    #[error("the health check is not a command")]
    HealthCommand,
    /// Two artifacts have the same name.
    #[error("output `{name}` is declared twice")]
    ArtifactTwice {
        /// The artifact.
        name: String,
    },
    /// A label is not valid.
    #[error("label `{}` is not valid", name.escape_debug())]
    Label {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: LabelError,
    },
    /// A setting of the guest's system is not valid.
    #[error("setting `{}` is not valid", setting.escape_debug())]
    Setting {
        /// What it is for.
        setting: String,
        /// What is wrong with it.
        source: SettingError,
    },
    /// There are too many settings of one kind.
    #[error("{count} settings of one kind are more than {SETTINGS_MAX}")]
    TooManySettings {
        /// How many.
        count: usize,
    },
    /// The size of the shared memory is 0.
    #[error("shared memory of 0 bytes is not possible")]
    NoSharedMemory,
    /// The shared memory is larger than any guest's memory.
    #[error("shared memory of {bytes} bytes is too large: at most 1 TiB")]
    LargeSharedMemory {
        /// The size.
        bytes: u64,
    },
    /// The stop signal is not a signal.
    #[error("`{}` is not a signal", signal.escape_debug())]
    StopSignal {
        /// The text.
        signal: String,
    },
    /// The stop timeout is too long.
    #[error("a stop timeout of {seconds} s is longer than a day")]
    LongStopTimeout {
        /// The time.
        seconds: u64,
    },
    /// The machine has no time to live that could be renewed.
    #[error("workspace `{name}` has no time to live that could be renewed")]
    NothingToRenew {
        /// The workspace.
        name: WorkspaceName,
    },
    /// A run with a read-only root disk has setup steps.
    #[error("setup steps of a run cannot write to a read-only root disk")]
    ReadOnlySetup,
    /// There are too many labels.
    #[error("{count} labels are more than {LABELS_MAX}")]
    TooManyLabels {
        /// How many.
        count: usize,
    },
    /// A port is published without network.
    #[error("port {guest_port} cannot be published: the network is isolated")]
    PublishIsolated {
        /// The guest's port.
        guest_port: u16,
    },
    /// The network rate is limited without network.
    #[error("a network rate cannot be limited: the network is isolated")]
    RateIsolated,
    /// A rate is too low for the start of a guest, or too high.
    #[error("the limit `{limit}` is less than {least} or more than {RATE_MAX}")]
    Rate {
        /// The limit.
        limit: &'static str,
        /// Its least value.
        least: u64,
    },
    /// An egress policy is set without network.
    #[error("an egress policy cannot be set: the network is isolated")]
    EgressIsolated,
    /// Name servers or names are set without network.
    #[error("DNS settings cannot be set: the network is isolated")]
    DnsIsolated,
    /// There are too many settings of one kind.
    #[error("{count} {what} are more than {most}")]
    TooManyNetworkSettings {
        /// The kind of setting.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// There are too many brokers.
    #[error("{count} brokers are too many")]
    TooManyBrokers {
        /// How many.
        count: usize,
    },
    /// A broker is not valid.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The certificates by which a broker trusts its server cannot be used.
    #[error("broker `{name}` cannot use its certificates")]
    BrokerCertificates {
        /// The broker.
        name: String,
        /// Which file, and why.
        source: Box<microagent_image::ImageError>,
    },
    /// Two brokers have one name, or set one variable.
    #[error("two brokers have the name, or set the variable, `{name}`")]
    BrokeredTwice {
        /// The name.
        name: String,
    },
    /// The same port is forwarded to two servers.
    #[error("port {port} of host.microagent.internal is forwarded twice")]
    ForwardedTwice {
        /// The guest's port.
        port: u16,
    },
    /// The same port of the host is published for two ports of the guest.
    #[error("port {} of the host is published twice", publish.host_port)]
    PublishedTwice {
        /// The second one.
        publish: Publish,
    },
    /// The workspace does not publish this port.
    #[error("workspace `{name}` does not publish port {selector}")]
    PortUnknown {
        /// The workspace.
        name: WorkspaceName,
        /// The port.
        selector: PortSelector,
    },
    /// Several published ports match.
    #[error("workspace `{name}` publishes port {selector} {count} times")]
    PortAmbiguous {
        /// The workspace.
        name: WorkspaceName,
        /// The port.
        selector: PortSelector,
        /// How often.
        count: usize,
    },
    /// There are too many published ports.
    #[error("{count} published ports are more than {PORTS_MAX}")]
    TooManyPorts {
        /// How many.
        count: usize,
    },
    /// There are too many egress rules.
    #[error("{count} egress rules are more than {RULES_MAX}")]
    TooManyRules {
        /// How many.
        count: usize,
    },
    /// The egress policy allows no connection at all.
    #[error("a limit of 0 connections allows nothing")]
    NoConnections,
    /// Too little guest memory.
    #[error("{memory_mib} MiB of memory are too little for a guest")]
    Memory {
        /// The memory.
        memory_mib: u32,
    },
    /// The host has less memory than the guest would have.
    #[error("the guest would have {memory_mib} MiB of memory, and this host has {host_mib} MiB")]
    HostMemory {
        /// The memory.
        memory_mib: u32,
        /// That of the host.
        host_mib: u64,
    },
    /// The number of CPUs is not possible.
    #[error("a guest cannot have {cpu_count} CPUs")]
    Cpus {
        /// The number.
        cpu_count: u32,
    },
    /// The root disk is too large.
    #[error("a disk of {size_mib} MiB is too large")]
    DiskSize {
        /// The size.
        size_mib: u64,
    },
    /// Setup steps, or a command with its environment, are too large to be sent or stored.
    #[error("{what} larger than {limit_mib} MiB")]
    TooLarge {
        /// What is too large, with its verb.
        what: &'static str,
        /// The limit in MiB.
        limit_mib: usize,
    },
    /// Neither image nor request names a program.
    #[error("the image has neither Entrypoint nor Cmd, and no command was given")]
    NoCommand,
    /// The image that names the program is no longer in the cache.
    #[error("`imageCommand`: the image that the workspace was made from is not in the cache any more")]
    ImageCommandGone,
    /// The time limit of a run or command is 0.
    #[error("a timeout of 0 seconds is not possible")]
    NoTime,
    /// The name is not valid for a workspace.
    #[error(transparent)]
    WorkspaceName(NameError),
    /// The name is not valid for a volume.
    #[error(transparent)]
    VolumeName(VolumeNameError),
    /// The name of a private network is not valid.
    #[error(transparent)]
    NetworkName(NetworkNameError),
    /// The tag is not valid for a snapshot.
    #[error(transparent)]
    SnapshotTag(SnapshotTagError),
    /// The text is not the number of a job.
    #[error(transparent)]
    JobId(JobIdError),
    /// The text is not an egress rule.
    #[error(transparent)]
    AllowRule(AllowRuleError),
    /// The text is not an egress mode.
    #[error(transparent)]
    EgressMode(EgressModeError),
    /// The text is not a published port.
    #[error(transparent)]
    Publish(PublishError),
    /// The text is not a forwarded port.
    #[error(transparent)]
    Forward(ForwardError),
    /// The text is not a name server, a domain or an added host name.
    #[error(transparent)]
    Dns(DnsError),
    /// The text is not a subnet for a private network.
    #[error(transparent)]
    Subnet(SubnetError),
    /// The text is not a restart policy.
    #[error(transparent)]
    RestartPolicy(RestartPolicyError),
    /// The text is not a reference of a secret.
    #[error(transparent)]
    SecretReference(SecretReferenceError),
    /// The text is not an image reference.
    #[error("the image reference is not valid")]
    ImageReference(#[source] ReferenceError),
    /// The text is not a digest.
    #[error(transparent)]
    Digest(DigestError),
    /// The text is not a label.
    #[error("the label is not valid")]
    LabelText(#[source] LabelError),
    /// The text is not a kernel setting, a tmpfs or a limit.
    #[error("the setting is not valid")]
    SettingText(#[source] SettingError),
    /// A private network is joined twice.
    #[error("private network `{name}` is joined twice")]
    JoinedTwice {
        /// The network.
        name: NetworkName,
    },
    /// Two forks are given one name.
    #[error("the name `{name}` is given twice")]
    ForkedTwice {
        /// The name.
        name: WorkspaceName,
    },
    /// No name could be generated.
    #[error(transparent)]
    GeneratedName(NameError),
    /// The workspace was left by a disposable run.
    #[error("workspace `{name}` was left by a disposable run, for its logs only; it cannot be {verb}")]
    Leftover {
        /// The workspace.
        name: WorkspaceName,
        /// `started`, `captured` or `changed`.
        verb: &'static str,
    },
    /// The reason of a quarantine is too long.
    #[error("a reason has at most {REASON_LIMIT} bytes")]
    LongReason,
    /// A file has a variable whose name is not valid for a secret.
    #[error(transparent)]
    SecretName(SecretReferenceError),
    /// There are too many secrets.
    #[error("{count} secrets are too many")]
    TooManySecrets {
        /// How many.
        count: usize,
    },
    /// Two secrets have the same name.
    #[error("secret `{name}` is given twice")]
    SecretTwice {
        /// The secret.
        name: String,
    },
    /// The disks cannot be attached, or not together.
    #[error(transparent)]
    Attachment(#[from] AttachmentError),
    /// The attachment is a directory of the host.
    #[error("`{}`: {}", path.display(), AttachmentError::HostDirectory)]
    HostDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The file is not a disk image.
    #[error("`{}` is not a disk image: not a regular file, or empty", path.display())]
    NotADiskImage {
        /// The file.
        path: PathBuf,
    },
    /// The disk image is in the state directory.
    #[error("`{}` belongs to microagent's own state", path.display())]
    OwnState {
        /// The file.
        path: PathBuf,
    },
    /// The size is not valid for a volume.
    #[error("a volume cannot have {size_mib} MiB")]
    VolumeSize {
        /// The size.
        size_mib: u64,
    },
    /// The new size of a volume is smaller than its size.
    #[error("volume `{name}` has {size_mib} MiB, and a volume cannot shrink")]
    VolumeShrinks {
        /// The volume.
        name: VolumeName,
        /// Its size.
        size_mib: u64,
    },
    /// The lock of a volume names a holder that is not a workspace.
    #[error(transparent)]
    VolumeHolder(NameError),
    /// A directory, or the content of a tar stream, cannot replace something else.
    #[error("a directory or tar stream cannot be copied to `{path}`, which is not a directory")]
    CopyOntoFile {
        /// The destination.
        path: String,
    },
    /// The destination's directory does not exist.
    #[error("there is no directory `{path}`")]
    CopyToNowhere {
        /// The destination.
        path: String,
    },
    /// Links at the destination of a copy form a loop.
    #[error("the links at `{path}` form a loop")]
    LinkLoop {
        /// The last of them.
        path: String,
    },
    /// The path does not name a file.
    #[error("`{}` does not name a file", path.escape_debug())]
    FilePath {
        /// The path.
        path: String,
    },
    /// What the guest has at a path is no regular file, or no directory.
    #[error("`{}` is not {wanted}", path.escape_debug())]
    FileKind {
        /// The path.
        path: String,
        /// What it should be, with its article.
        wanted: &'static str,
    },
    /// The source has no file name.
    #[error("the copy to `{path}` needs a file name")]
    CopyWithoutName {
        /// The destination.
        path: String,
    },
}

impl InvalidRequest {
    /// Returns a hint.
    pub fn hint(&self) -> Hint {
        match self {
            InvalidRequest::JoinedTwice { .. } => Hint::advice("join it once"),
            InvalidRequest::ForkedTwice { .. } => Hint::advice("give each fork its own name"),
            InvalidRequest::NetworkName(_) => Hint::advice("choose another name"),
            InvalidRequest::EnvironmentName { .. } => Hint::Option(OptionHint::Environment),
            InvalidRequest::ArtifactPath { .. } => Hint::Option(OptionHint::ArtifactPath),
            InvalidRequest::PublishIsolated { .. } => Hint::Option(OptionHint::Publish),
            InvalidRequest::EgressIsolated => Hint::Option(OptionHint::Egress),
            InvalidRequest::DnsIsolated => Hint::Option(OptionHint::Dns),
            InvalidRequest::RateIsolated => Hint::Option(OptionHint::NetworkRate),
            InvalidRequest::NoConnections => Hint::Option(OptionHint::Connections),
            InvalidRequest::NoTime => Hint::Option(OptionHint::Timeout),
            InvalidRequest::VolumeSize { .. } => Hint::Option(OptionHint::VolumeSize {
                least: *SIZE_RANGE_MIB.start(),
                most: *SIZE_RANGE_MIB.end(),
            }),
            InvalidRequest::Leftover { verb: "started" | "captured", .. } => Hint::CreateWorkspace,
            InvalidRequest::Leftover { .. } => Hint::CreateFromSpec,
            InvalidRequest::GeneratedName(_) => Hint::ChooseName,
            InvalidRequest::PortUnknown { name, .. } => Hint::ListPorts { name: name.clone() },
            InvalidRequest::Attachment(error) => error.hint(),
            InvalidRequest::HostDirectory { .. } => AttachmentError::HostDirectory.hint(),
            InvalidRequest::OwnState { .. } => Hint::AttachVolume,
            InvalidRequest::ImageReference(error) => Hint::Advice(error.hint()),
            other => Hint::Advice(other.advice()),
        }
    }

    /// Returns advice that applies in any program.
    fn advice(&self) -> String {
        let text = match self {
            InvalidRequest::EnvironmentLine { .. } => "write each line as NAME=VALUE or NAME",
            InvalidRequest::Label { .. } => "write it as NAME=VALUE",
            InvalidRequest::Setting { .. } | InvalidRequest::TooManySettings { .. } => {
                "see the reference of spec files for how each is written"
            }
            InvalidRequest::NoSharedMemory | InvalidRequest::LargeSharedMemory { .. } => {
                "give a size such as 64m, or omit it for half of the memory"
            }
            InvalidRequest::StopSignal { .. } => "name one, such as SIGINT or 2",
            InvalidRequest::LongStopTimeout { .. } => "give a number of seconds up to 86400",
            InvalidRequest::NoHealthCheck { .. } => "give it a health check, or wait for something else",
            InvalidRequest::HealthTime { .. } => {
                "a time is 500 milliseconds to a day; a start period may be 0"
            }
            InvalidRequest::HealthRetries | InvalidRequest::HealthCommand => "give another one, or omit it",
            InvalidRequest::NothingToRenew { .. } => "give one, such as 1h",
            InvalidRequest::ReadOnlySetup => "run setup when a workspace is created, or omit one of them",
            InvalidRequest::TooManyLabels { .. } => "keep data in files; labels are for finding workspaces",
            InvalidRequest::AmbiguousTemplate { .. } => "give more digits of the key",
            InvalidRequest::ArtifactTwice { .. } => "give each output its own name",
            InvalidRequest::PublishedTwice { .. } => {
                "at one address, a port of the host leads to one port of the guest; 0.0.0.0 and [::] are all addresses"
            }
            InvalidRequest::PortAmbiguous { .. } => "name it as HOST:HOST_PORT or HOST_PORT:GUEST_PORT",
            InvalidRequest::TooManyPorts { .. } => "publish only those that clients of the host use",
            InvalidRequest::TooManyNetworkSettings { .. } => "omit some of them",
            InvalidRequest::ForwardedTwice { .. } => "give each server a port of its own",
            InvalidRequest::TooManyBrokers { .. } => return format!("a workspace has at most {BROKERS_MAX}"),
            InvalidRequest::BrokeredTwice { .. } => "give each broker a name and variables of its own",
            InvalidRequest::TooManyRules { .. } => {
                "name networks, or a suffix as `.example.org` for all names below it"
            }
            InvalidRequest::Memory { .. } => return format!("give at least {MEMORY_MIN_MIB} MiB"),
            InvalidRequest::HostMemory { .. } => "give less memory, or choose another profile",
            InvalidRequest::Cpus { .. } => return format!("give 1 to {CPU_MAX}"),
            InvalidRequest::DiskSize { .. } => return format!("give at most {DISK_MIB_MAX} MiB (8 TiB)"),
            InvalidRequest::Rate { .. } => "give another rate, or omit it for no limit",
            InvalidRequest::TooLarge { .. } | InvalidRequest::LargeStream { .. } => {
                "put large data into a file: add it to the image, or copy it in when the workspace is running"
            }
            InvalidRequest::ImageCommandGone => "write its command as `service`",
            InvalidRequest::LongReason => "shorten the reason to one line",
            InvalidRequest::SecretName(_) => "remove the variable from the file, or rename it",
            InvalidRequest::TooManySecrets { .. } => {
                return format!("a workspace has at most {SECRETS_MAX}");
            }
            InvalidRequest::SecretTwice { .. } => "give each secret its own name",
            InvalidRequest::NotADiskImage { .. } => {
                "make one: truncate -s 1G data.ext4 && mkfs.ext4 data.ext4"
            }
            InvalidRequest::VolumeShrinks { .. } => {
                "make a smaller one and copy the files: attach both to one workspace and use cp -a there"
            }
            InvalidRequest::VolumeHolder(_) => "end the command that uses the volume",
            InvalidRequest::CopyOntoFile { .. } => "name a directory, or a path that does not exist",
            InvalidRequest::CopyToNowhere { path } if path.ends_with('/') => {
                "create the directory first, or name the file without a slash"
            }
            InvalidRequest::CopyToNowhere { .. } => "create the directory first",
            InvalidRequest::LinkLoop { .. } => "remove one of them, or name another destination",
            InvalidRequest::FilePath { .. } => "write a path such as /srv/file, without `..`",
            InvalidRequest::CopyWithoutName { .. } => {
                "write a name at the end of the source, or /. for the content of a directory"
            }
            other => other.form(),
        };
        text.to_owned()
    }

    /// Returns how a value that is given as text is written.
    fn form(&self) -> &'static str {
        match self {
            InvalidRequest::WorkspaceName(_) | InvalidRequest::VolumeName(_) => "choose another name",
            InvalidRequest::Broker(_) => "a broker is API=https://api.example.org/v1,secret=env:API_KEY",
            InvalidRequest::BrokerCertificates { .. } => {
                "`ca` is a file with certificates in PEM form; without it those of the system count"
            }
            InvalidRequest::SnapshotTag(_) => "choose another tag, such as `before-upgrade`",
            InvalidRequest::JobId(_) => "give its number, such as 1",
            InvalidRequest::AllowRule(_) | InvalidRequest::EgressMode(_) => {
                "a rule is `example.org`, `.example.org`, `192.0.2.7:443` or `192.0.2.0/24`"
            }
            InvalidRequest::Publish(_) => "a port is written as 8080:80 or 127.0.0.1:8443:443/tcp",
            InvalidRequest::Forward(_) => "a forwarded port is written as 5432=127.0.0.1:5432",
            InvalidRequest::Dns(_) => "name an IPv4 address, such as 192.0.2.53; a host is `db:192.0.2.7`",
            InvalidRequest::Subnet(_) => "a subnet is written as 10.210.7.0/24",
            InvalidRequest::RestartPolicy(_) => "choose never, on-failure, always or unless-stopped",
            InvalidRequest::LabelText(_) => "write it as NAME=VALUE",
            InvalidRequest::SettingText(_) => "see the reference of spec files for how each is written",
            InvalidRequest::Digest(_) => "a digest is `sha256:` and 64 hexadecimal digits",
            InvalidRequest::SecretReference(_) => "a secret is NAME=env:VARIABLE or NAME=file:PATH",
            _ => "name one",
        }
    }
}
