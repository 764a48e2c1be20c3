//! `microagent status`, in JSON.

use microagent::{
    Artifact, Attachment, Inspection, Labels, LinkState, NetworkMode, PortForward, Resources, RestartPolicy,
    SecretReference, State, WorkspaceDetails, WorkspaceName,
};
use serde::Serialize;

use crate::documents::result::ResultDocument;

/// `microagent status`.
#[derive(Debug, Serialize)]
pub(crate) struct StatusDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) state: State,
    pub(crate) problem: Option<String>,
    pub(crate) created_at: String,
    pub(crate) changed_at: String,
    pub(crate) image: StatusImageDocument,
    pub(crate) profile: String,
    pub(crate) resources: Resources,
    pub(crate) network: NetworkMode,
    pub(crate) link: Option<LinkState>,
    pub(crate) port_forwards: Vec<PortForward>,
    pub(crate) hostname: String,
    pub(crate) restart: RestartPolicy,
    pub(crate) has_service: bool,
    pub(crate) setup_pending: bool,
    pub(crate) backend: Option<String>,
    pub(crate) weak_jail: Vec<String>,
    pub(crate) supervisor_pid: Option<i32>,
    pub(crate) vmm_pid: Option<i32>,
    pub(crate) disk_bytes: u64,
    pub(crate) disks: Vec<Attachment>,
    pub(crate) labels: Labels,
    pub(crate) outputs: Vec<Artifact>,
    pub(crate) secrets: Vec<SecretDocument>,
    pub(crate) result: Option<ResultDocument>,
}

/// A secret's name and where its value is.
#[derive(Debug, Serialize)]
pub(crate) struct SecretDocument {
    pub(crate) name: String,
    pub(crate) source: &'static str,
    pub(crate) reference: String,
}

/// The image that a workspace was made from.
#[derive(Debug, Serialize)]
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
            resources: details.resources,
            network: details.network,
            link: details.link,
            port_forwards: details.port_forwards,
            hostname: details.hostname,
            restart: details.restart,
            has_service: inspection.has_service,
            setup_pending: inspection.setup_pending,
            backend: details.backend,
            weak_jail: details.weak_jail,
            supervisor_pid: details.supervisor_pid,
            vmm_pid: details.vmm_pid,
            disk_bytes: inspection.disk_bytes,
            disks: details.disks,
            labels: details.labels,
            outputs: details.outputs,
            secrets: details.secrets.into_iter().map(SecretDocument::from).collect(),
            result: inspection.result.map(ResultDocument::from),
        }
    }
}
