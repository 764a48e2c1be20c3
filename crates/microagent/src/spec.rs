//! `microagent.yaml`: the options of a workspace or a run in a file. Read strictly: an unknown key is an error with its
//! line and column.
//!
//! Types, their texts and the schema for editors are defined here. A file is only read when the caller names it; its
//! relative paths start at its own directory. [`SpecFile::run_options`] and [`SpecFile::create_options`] convert a
//! file to the options that a program would set; callers apply flags on top. [`crate::Workspace::apply`] updates an
//! existing workspace to match a file.
//!
//! Keys are spelled as in the files that people have: `memoryMiB`, `setupFiles`. There are no aliases; `memory_mib`
//! is an error with a hint.

mod error;
mod forms;
mod hints;
mod options;
#[cfg(test)]
mod reference;
pub mod value;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_image::PullPolicy;
use microagent_model::{
    AddedHost, AllowRule, Artifact, Attachment, Broker, EgressMode, Forward, Labels, NameServer, NetworkMode,
    NetworkName, PublishRange, RestartPolicy, SearchDomain, SecretReference, SnapshotName, Tmpfs, Ulimit,
    WorkspaceName,
};
use microagent_store::open_named;
use serde::Deserialize;

pub use error::SpecError;
pub use forms::Form;
use forms::Words;

use crate::Profile;

/// Largest file that is read, in bytes; one that a person wrote has a few thousand.
const FILE_LIMIT: u64 = 1024 * 1024;

/// Most values of a file after its aliases are expanded.
const NODES_MAX: usize = 100_000;

/// Most aliases, and most bytes that one of them may stand for: together they stay below what a run takes anyway.
const ALIASES_MAX: usize = 256;
const ANCHORED_MAX: usize = 64 * 1024;

/// Deepest nesting; today's keys need five.
const DEPTH_MAX: usize = 32;

/// What a spec file says. `None` where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(test, schemars(title = "microagent.yaml"))]
#[non_exhaustive]
pub struct SpecFile {
    /// Name of the workspace.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub name: Option<WorkspaceName>,
    /// Image: a registry reference, `oci:DIR[:TAG]`, `oci-archive:FILE` or `docker-archive:FILE`.
    pub image: Option<String>,
    /// Snapshot to create the workspace from, `WORKSPACE:TAG`, in place of an image. Not for `run`.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub from_snapshot: Option<SnapshotName>,
    /// When the registry is contacted.
    #[cfg_attr(test, schemars(with = "Option<reference::Pull>"))]
    pub pull: Option<PullPolicy>,
    /// Machine size to start from.
    #[serde(deserialize_with = "forms::profile")]
    #[cfg_attr(test, schemars(with = "Option<reference::ProfileName>"))]
    pub profile: Option<Profile>,
    /// When it is restarted. Not for `run`.
    #[cfg_attr(test, schemars(with = "Option<reference::Restart>"))]
    pub restart: Option<RestartPolicy>,
    /// Replaces the image's Entrypoint: a program, or with arguments. Only for `run`.
    #[serde(deserialize_with = "forms::entrypoint")]
    #[cfg_attr(test, schemars(with = "Option<reference::TextOrWords>"))]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's Cmd. Only for `run`.
    pub command: Option<Vec<String>>,
    /// Shell line to run in place of a command, with the guest's `/bin/sh -c`. Only for `run`.
    pub exec: Option<String>,
    /// What every start runs: a shell line, or a program and its arguments. Not for `run`.
    #[serde(deserialize_with = "forms::service")]
    #[cfg_attr(test, schemars(with = "Option<reference::TextOrWords>"))]
    pub service: Option<Service>,
    /// Run the image's Entrypoint and Cmd as the service. Not for `run`.
    pub image_command: Option<bool>,
    /// Program of interactive sessions. Not for `run`.
    pub shell: Option<String>,
    /// Host name in the guest.
    pub hostname: Option<String>,
    /// User, or user and group; replaces the image's.
    pub user: Option<String>,
    /// Working directory; replaces the image's.
    pub workdir: Option<String>,
    /// Shell lines to run before anything else.
    pub setup: Option<Vec<String>>,
    /// Script files of the host to run after `setup`.
    pub setup_files: Option<Vec<PathBuf>>,
    /// Environment variables of the guest.
    #[serde(deserialize_with = "forms::env")]
    #[cfg_attr(test, schemars(with = "Option<BTreeMap<String, reference::Scalar>>"))]
    pub env: Option<BTreeMap<String, String>>,
    /// Files of NAME=VALUE lines; `env` wins.
    pub env_files: Option<Vec<PathBuf>>,
    /// Labels: names and values by which the workspace can be found.
    #[serde(deserialize_with = "forms::labels")]
    #[cfg_attr(test, schemars(with = "Option<BTreeMap<String, String>>"))]
    pub labels: Option<Labels>,
    /// Size of the machine.
    #[serde(deserialize_with = "forms::or_default")]
    pub resources: SpecResources,
    /// Network mode, published ports, name servers.
    #[serde(deserialize_with = "forms::or_default")]
    pub network: SpecNetwork,
    /// What the guest may reach, on network `user`.
    #[serde(deserialize_with = "forms::or_default")]
    pub egress: SpecEgress,
    /// Limits of disk and network throughput.
    #[serde(deserialize_with = "forms::or_default")]
    pub limits: SpecLimits,
    /// Run an init that reaps orphans as process 1 of the guest.
    pub init: Option<bool>,
    /// Kernel settings of the guest: `net.core.somaxconn: 1024`.
    #[serde(deserialize_with = "forms::sysctls")]
    #[cfg_attr(test, schemars(with = "Option<BTreeMap<String, reference::Scalar>>"))]
    pub sysctls: Option<BTreeMap<String, String>>,
    /// File systems in memory: each `/PATH[:size=64m,mode=1777,uid=N,gid=N,exec]`.
    #[serde(deserialize_with = "forms::tmpfs")]
    #[cfg_attr(test, schemars(with = "Option<Vec<String>>"))]
    pub tmpfs: Option<Vec<Tmpfs>>,
    /// Size of `/dev/shm` in MiB; default half of the memory.
    #[serde(rename = "shmSizeMiB")]
    pub shm_size_mib: Option<u32>,
    /// Resource limits of every command: `nofile: 1024:4096`.
    #[serde(deserialize_with = "forms::ulimits")]
    #[cfg_attr(test, schemars(with = "Option<BTreeMap<String, reference::Scalar>>"))]
    pub ulimits: Option<Vec<Ulimit>>,
    /// Whether programs can only read the root disk.
    pub read_only: Option<bool>,
    /// The health check; replaces the image's. Not for `run`.
    #[serde(deserialize_with = "forms::or_default")]
    pub health_check: SpecHealthCheck,
    /// Signal that asks the service to end, in place of the image's.
    pub stop_signal: Option<String>,
    /// Time for processes to end at a halt or stop: seconds, or units as in 1m30s.
    #[serde(deserialize_with = "forms::timeout")]
    #[cfg_attr(test, schemars(with = "Option<reference::Seconds>"))]
    pub stop_timeout: Option<Duration>,
    /// Time to live of the machine after a start: seconds, or as in 1m30s.
    #[serde(deserialize_with = "forms::timeout")]
    #[cfg_attr(test, schemars(with = "Option<reference::Seconds>"))]
    pub ttl: Option<Duration>,
    /// Disks to mount: in the form of `-v`, or as keys.
    #[cfg_attr(test, schemars(with = "Option<Vec<reference::Volume>>"))]
    pub volumes: Option<Vec<Form<Attachment, SpecVolume>>>,
    /// ext4 image files of the host to mount.
    pub disks: Option<Vec<SpecFileDisk>>,
    /// Tar files of the host; each is unpacked to a disk that belongs to the workspace.
    pub bundles: Option<Vec<SpecFileDisk>>,
    /// Servers to use with a credential of the host, as `--broker` or as keys.
    #[cfg_attr(test, schemars(with = "Option<Vec<reference::Broker>>"))]
    pub brokers: Option<Vec<Form<Broker, SpecBroker>>>,
    /// `env:VAR`, `file:PATH`, `dotenv:PATH#KEY`, `vault:MOUNT/data/PATH#FIELD`, `helper:REF`.
    #[serde(deserialize_with = "forms::secrets")]
    #[cfg_attr(test, schemars(with = "Option<BTreeMap<String, String>>"))]
    pub secrets: Option<Vec<SecretReference>>,
    /// Files and directories of the guest that `artifact get` can fetch.
    #[serde(deserialize_with = "forms::outputs")]
    #[cfg_attr(test, schemars(with = "Option<Vec<forms::Output>>"))]
    pub outputs: Option<Vec<Artifact>>,
    /// Kill the machine after this time: seconds, or units as in 1m30s. Only for `run`.
    #[serde(deserialize_with = "forms::timeout")]
    #[cfg_attr(test, schemars(with = "Option<reference::Seconds>"))]
    pub timeout: Option<Duration>,
    /// Keep the workspace after the run. Only for `run`.
    pub keep: Option<bool>,
    /// The file's path, for errors.
    #[serde(skip)]
    path: PathBuf,
}

/// Size of the machine, in place of the profile's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SpecResources {
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: Option<u32>,
    /// Virtual CPUs.
    #[serde(rename = "cpuCount")]
    pub cpu_count: Option<u32>,
    /// Size of the root disk in MiB; it grows to fit the image.
    #[serde(rename = "sizeMiB")]
    pub size_mib: Option<u64>,
}

/// Network mode, published ports, name servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SpecNetwork {
    /// `user` (outbound NAT) or `isolated` (no network device but loopback).
    #[cfg_attr(test, schemars(with = "Option<reference::Mode>"))]
    pub mode: Option<NetworkMode>,
    /// Ports to publish on the host: in the form of `-p`, or as keys.
    #[cfg_attr(test, schemars(with = "Option<Vec<reference::Forward>>"))]
    pub forwards: Option<Vec<Form<PublishRange, SpecForward>>>,
    /// Up to three name servers, `ADDRESS[:PORT]`; replace the host's.
    #[cfg_attr(test, schemars(with = "Option<Vec<String>>"))]
    pub dns: Option<Vec<NameServer>>,
    /// Search domains; replace the host's. `.` alone: none.
    #[cfg_attr(test, schemars(with = "Option<Vec<String>>"))]
    pub dns_search: Option<Vec<SearchDomain>>,
    /// Also answer names from the host's `/etc/hosts`.
    pub dns_host: Option<bool>,
    /// Names with addresses: `NAME:ADDRESS` or `NAME:host-gateway`.
    #[cfg_attr(test, schemars(with = "Option<Vec<String>>"))]
    pub add_hosts: Option<Vec<AddedHost>>,
    /// Servers to reach at ports of `host.microagent.internal`.
    #[cfg_attr(test, schemars(with = "Option<Vec<reference::HostForward>>"))]
    pub host_forwards: Option<Vec<Form<Forward, SpecHostForward>>>,
    /// Private networks to join, by name.
    #[cfg_attr(test, schemars(with = "Option<Vec<String>>"))]
    pub join: Option<Vec<NetworkName>>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct SpecForward {
    /// `tcp` (the default) or `udp`.
    pub protocol: Option<String>,
    /// Address of the host to listen on, IPv4 or IPv6; default `127.0.0.1`.
    pub host: Option<String>,
    /// Port of the host; 0: a free port is picked at each start.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

/// A forwarded port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct SpecHostForward {
    /// The port that the guest connects to.
    pub guest_port: u16,
    /// The server's IPv4 address, as the host sees it, or `localhost`.
    pub host: String,
    /// The server's port.
    pub host_port: u16,
}

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct SpecBroker {
    /// Its name; the guest finds its base URL in `MICROAGENT_BROKER_NAME`.
    pub name: String,
    /// The server: `https://HOST[:PORT][/BASE]`.
    pub upstream: String,
    /// The credential: `env:VAR`, `file:PATH` and so on, as in `secrets`.
    pub secret: String,
    /// The header that carries it; default `Authorization`.
    pub header: Option<String>,
    /// The header's value, with `{}` for the credential; default `Bearer {}` for `Authorization`, else `{}`.
    pub format: Option<String>,
    /// Requests that pass, each `METHOD /PATH` with `*` for any; all if omitted.
    pub allow: Option<Vec<String>>,
    /// File of certificates to trust for the server, in place of the system's.
    pub ca: Option<String>,
    /// Whether the server's name may resolve to addresses that are not public.
    pub private: Option<bool>,
    /// Further variables of the guest for the base URL.
    pub env: Option<Vec<String>>,
}

/// What the guest may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SpecEgress {
    /// `public`, `allowlist` or `open`.
    #[cfg_attr(test, schemars(with = "Option<reference::Egress>"))]
    pub mode: Option<EgressMode>,
    /// Names (`example.org`, `.example.org`) and networks (`ADDRESS[/BITS][:PORT]`) to allow.
    #[cfg_attr(test, schemars(with = "Option<Vec<String>>"))]
    pub allow: Option<Vec<AllowRule>>,
    /// Most connections that are open at once.
    pub max_connections: Option<u32>,
    /// Most bytes that are transferred after each start, both directions together.
    pub max_bytes: Option<u64>,
}

/// The health check. What is not given is the image's, or a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SpecHealthCheck {
    /// Shell line, or program and arguments; exit code 0 means healthy.
    #[serde(deserialize_with = "forms::service")]
    #[cfg_attr(test, schemars(with = "Option<reference::TextOrWords>"))]
    pub command: Option<Service>,
    /// Whether there is no health check, even if the image has one.
    pub disable: Option<bool>,
    /// Time between checks: seconds, or as in 1m30s; default 30.
    #[serde(deserialize_with = "forms::timeout")]
    #[cfg_attr(test, schemars(with = "Option<reference::Seconds>"))]
    pub interval: Option<Duration>,
    /// Longest time of one check; default 30.
    #[serde(deserialize_with = "forms::timeout")]
    #[cfg_attr(test, schemars(with = "Option<reference::Seconds>"))]
    pub timeout: Option<Duration>,
    /// Time after the start in which failures do not count.
    #[serde(deserialize_with = "forms::timeout")]
    #[cfg_attr(test, schemars(with = "Option<reference::Seconds>"))]
    pub start_period: Option<Duration>,
    /// Time between checks in the start period; default 5.
    #[serde(deserialize_with = "forms::timeout")]
    #[cfg_attr(test, schemars(with = "Option<reference::Seconds>"))]
    pub start_interval: Option<Duration>,
    /// Failed checks in a row after which it is unhealthy; default 3.
    pub retries: Option<u32>,
}

/// Limits of disk and network throughput.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SpecLimits {
    /// Bytes per second that all disks together read and write.
    pub disk_bps: Option<u64>,
    /// Reads and writes per second of all disks together.
    pub disk_iops: Option<u64>,
    /// Bytes per second on the network in each direction.
    pub net_bps: Option<u64>,
}

/// A disk as keys: a named volume, or a file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SpecVolume {
    /// A named volume.
    pub name: Option<String>,
    /// In place of `name`: an ext4 image or a tar file of the host.
    pub path: Option<String>,
    /// Absolute path in the guest.
    pub mountpoint: String,
    /// `rw`, or `ro` for read-only.
    #[cfg_attr(test, schemars(with = "Option<reference::Access>"))]
    pub mode: Option<Access>,
}

/// A file of the host as a disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SpecFileDisk {
    /// The file.
    pub path: PathBuf,
    /// Absolute path in the guest.
    pub mountpoint: String,
    /// `rw`, or `ro` for read-only.
    #[cfg_attr(test, schemars(with = "Option<reference::Access>"))]
    pub mode: Option<Access>,
}

/// What a guest can do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read and write.
    Rw,
    /// Only read.
    Ro,
}

/// What every start runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    /// A shell line.
    Shell(String),
    /// A program and its arguments.
    Argv(Vec<String>),
}

impl From<Words> for Service {
    fn from(words: Words) -> Service {
        match words {
            Words::Text(line) => Service::Shell(line),
            Words::List(words) => Service::Argv(words),
        }
    }
}

impl SpecFile {
    /// Reads a spec file. Its relative paths become absolute ones.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is larger than 1 MiB or is not a valid spec file.
    pub fn read(path: &Path) -> Result<SpecFile, SpecError> {
        let failed = |source| SpecError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        open_named(path).map_err(failed)?.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(SpecError::TooLarge { path: path.to_owned(), limit: FILE_LIMIT });
        }
        let text = String::from_utf8(bytes).map_err(|error| SpecError::NotText {
            path: path.to_owned(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        SpecFile::parse(path, &text)
    }

    /// Parses the text of a spec file. `path` is used for relative paths and errors; it is not opened.
    ///
    /// # Errors
    /// Fails if the text is not a valid spec file.
    pub fn parse(path: &Path, text: &str) -> Result<SpecFile, SpecError> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_nodes: NODES_MAX,
                max_events: 4 * NODES_MAX,
                max_aliases: ALIASES_MAX,
                max_anchors: ALIASES_MAX,
                max_recorded_anchor_bytes: ANCHORED_MAX,
                max_depth: DEPTH_MAX,
                flow_nesting_limit: DEPTH_MAX,
                max_documents: 1,
            },
            alias_limits: serde_saphyr::alias_limits! {
                max_total_replayed_events: NODES_MAX,
            },
            strict_booleans: true,
            reject_unsupported_tags: true,
            with_snippet: false,
        };
        let said: Option<SpecFile> = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| SpecError::wrong(path, text, &error))?;
        let mut file = said.unwrap_or_default();
        path.clone_into(&mut file.path);
        file.resolve_paths();
        file.check()?;
        Ok(file)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests;
