//! `microagent status`, in JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use microagent::{
    Attachment, DiskSource, GuestInit, GuestSettings, Inspection, Labels, LinkState, NetworkMode,
    NetworkName, RateLimits, RestartPolicy, RootAccess, SecretReference, State, WorkspaceDetails,
    WorkspaceName,
};
use serde::Serialize;

use crate::documents::health::{HealthCheckDocument, HealthDocument};
use crate::documents::network::EgressPolicyDocument;
use crate::documents::result::ResultDocument;
#[cfg(test)]
use crate::documents::schema::Words;
use crate::documents::shared::{
    ArtifactDocument, BrokerDocument, DnsSettingsDocument, HostForwardDocument, PortForwardDocument,
    ResourcesDocument, words,
};

/// `microagent status`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct StatusDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    #[cfg_attr(test, schemars(with = "Words<microagent::State>"))]
    pub(crate) state: State,
    pub(crate) problem: Option<String>,
    pub(crate) created_at: String,
    pub(crate) changed_at: String,
    pub(crate) image: StatusImageDocument,
    pub(crate) profile: String,
    pub(crate) resources: ResourcesDocument,
    pub(crate) limits: LimitsDocument,
    #[cfg_attr(test, schemars(with = "Words<microagent::NetworkMode>"))]
    pub(crate) network: NetworkMode,
    #[cfg_attr(test, schemars(with = "Option<Words<microagent::LinkState>>"))]
    pub(crate) link: Option<LinkState>,
    pub(crate) port_forwards: Vec<PortForwardDocument>,
    pub(crate) host_forwards: Vec<HostForwardDocument>,
    /// Private networks that it joins.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub(crate) joined: Vec<NetworkName>,
    pub(crate) brokers: Vec<BrokerDocument>,
    pub(crate) dns: DnsSettingsDocument,
    pub(crate) hostname: String,
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) restart: RestartPolicy,
    /// How often `supervise` has restarted it since it began.
    pub(crate) restarts: u32,
    pub(crate) has_service: bool,
    /// Program and arguments that every start runs.
    pub(crate) service: Option<Vec<String>>,
    pub(crate) user: String,
    pub(crate) workdir: String,
    pub(crate) shell: Option<String>,
    pub(crate) init: bool,
    pub(crate) env_names: Vec<String>,
    /// The health check; `null` without one.
    pub(crate) health_check: Option<HealthCheckDocument>,
    /// What the checks say; `null` for a workspace that rests and did not fail, or without a health check.
    pub(crate) health: Option<HealthDocument>,
    pub(crate) stop_signal: Option<String>,
    /// `null` for the usual 10 seconds.
    pub(crate) stop_timeout_seconds: Option<u32>,
    /// How long each machine may run; `null` without a limit.
    pub(crate) ttl_seconds: Option<u32>,
    /// When the machine is halted because its time to live has passed; `null` without one.
    pub(crate) expires_at: Option<String>,
    pub(crate) settings: SettingsDocument,
    pub(crate) egress: EgressPolicyDocument,
    pub(crate) setup_pending: bool,
    pub(crate) backend: Option<String>,
    pub(crate) weak_jail: Vec<String>,
    pub(crate) supervisor_pid: Option<i32>,
    pub(crate) vmm_pid: Option<i32>,
    pub(crate) disk_bytes: u64,
    /// Memory of the host that its machine uses, with its supervisor and network stack; `null` without a machine.
    pub(crate) host_memory_bytes: Option<u64>,
    /// Number of its snapshots.
    pub(crate) snapshots: usize,
    pub(crate) disks: Vec<AttachmentDocument>,
    #[cfg_attr(test, schemars(with = "std::collections::BTreeMap<String, String>"))]
    pub(crate) labels: Labels,
    pub(crate) outputs: Vec<ArtifactDocument>,
    pub(crate) secrets: Vec<SecretDocument>,
    pub(crate) result: Option<ResultDocument>,
}

document! {
    /// How fast the machine may use the host's disk and network; `null` is no limit.
    LimitsDocument of RateLimits {
        /// Bytes per second of all disks together.
        disk_bps: Option<u64>,
        /// Reads and writes per second of all disks together.
        disk_iops: Option<u64>,
        /// Bytes per second on the network in each direction.
        net_bps: Option<u64>,
    }
}

document! {
    /// A disk that the guest finds mounted.
    AttachmentDocument of Attachment {
        source: DiskSourceDocument,
        mount_point: String,
        read_only: bool,
    }
}

/// Where an attached disk comes from: the name of a volume, or a path of the host.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(crate) enum DiskSourceDocument {
    Volume(String),
    Image(PathBuf),
    Bundle(PathBuf),
}

impl From<DiskSource> for DiskSourceDocument {
    fn from(source: DiskSource) -> DiskSourceDocument {
        match source {
            DiskSource::Volume(name) => DiskSourceDocument::Volume(name.to_string()),
            DiskSource::Image(path) => DiskSourceDocument::Image(path),
            DiskSource::Bundle(path) => DiskSourceDocument::Bundle(path),
        }
    }
}

/// Settings of a guest's system, each written as its option is.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SettingsDocument {
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) ulimits: Vec<String>,
    pub(crate) tmpfs: Vec<String>,
    pub(crate) shm_bytes: Option<u64>,
    pub(crate) read_only: bool,
}

impl From<GuestSettings> for SettingsDocument {
    fn from(settings: GuestSettings) -> SettingsDocument {
        SettingsDocument {
            sysctls: settings.sysctls,
            ulimits: settings.ulimits.iter().map(ToString::to_string).collect(),
            tmpfs: settings.tmpfs.iter().map(ToString::to_string).collect(),
            shm_bytes: settings.shm_bytes,
            read_only: settings.root == RootAccess::ReadOnly,
        }
    }
}

/// A secret's name and where its value is.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SecretDocument {
    pub(crate) name: String,
    pub(crate) source: &'static str,
    pub(crate) reference: String,
}

/// The image that a workspace was made from.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct StatusImageDocument {
    pub(crate) reference: String,
    pub(crate) resolved_reference: String,
    pub(crate) digest: String,
}

impl From<SecretReference> for SecretDocument {
    fn from(secret: SecretReference) -> SecretDocument {
        SecretDocument {
            source: secret.source.scheme(),
            reference: secret.source.to_string(),
            name: secret.name,
        }
    }
}

impl StatusDocument {
    /// Puts together what the library tells.
    pub(crate) fn new(details: WorkspaceDetails, inspection: Inspection) -> StatusDocument {
        StatusDocument {
            workspace: details.name,
            state: details.state,
            problem: details.failure.map(|failure| failure.message),
            created_at: details.created_at.to_string(),
            changed_at: details.changed_at.to_string(),
            image: StatusImageDocument {
                reference: details.image.reference,
                resolved_reference: details.image.resolved_reference,
                digest: details.image.digest,
            },
            profile: details.profile,
            resources: details.resources.into(),
            limits: details.limits.into(),
            network: details.network,
            link: details.link,
            port_forwards: details.port_forwards.into_iter().map(PortForwardDocument::from).collect(),
            host_forwards: details.host_forwards.into_iter().map(HostForwardDocument::from).collect(),
            joined: details.networks,
            brokers: details.brokers.into_iter().map(BrokerDocument::from).collect(),
            dns: details.dns.into(),
            hostname: details.hostname,
            restart: details.restart,
            restarts: inspection.restarts,
            has_service: inspection.service.is_some(),
            service: inspection.service.map(words),
            user: inspection.user,
            workdir: inspection.working_dir,
            shell: inspection.shell,
            init: inspection.init == GuestInit::Agent,
            env_names: inspection.env_names,
            health_check: inspection.health_check.map(HealthCheckDocument::from),
            health: inspection.health.map(HealthDocument::from),
            stop_signal: inspection.stop_signal,
            stop_timeout_seconds: details.settings.stop_timeout_s,
            ttl_seconds: details.settings.ttl_s,
            expires_at: details.expires_at.map(|at| at.to_string()),
            settings: details.settings.into(),
            egress: details.egress.into(),
            setup_pending: inspection.setup_pending,
            backend: details.backend,
            weak_jail: details.weak_jail,
            supervisor_pid: details.supervisor_pid,
            vmm_pid: details.vmm_pid,
            disk_bytes: inspection.disk_bytes,
            host_memory_bytes: inspection.host_memory_bytes,
            snapshots: inspection.snapshots,
            disks: details.disks.into_iter().map(AttachmentDocument::from).collect(),
            labels: details.labels,
            outputs: details.outputs.into_iter().map(ArtifactDocument::from).collect(),
            secrets: details.secrets.into_iter().map(SecretDocument::from).collect(),
            result: inspection.result.map(ResultDocument::from),
        }
    }
}
