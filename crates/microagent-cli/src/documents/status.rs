//! `microagent status`, in JSON.

use microagent::{
    Artifact, Attachment, Inspection, LinkState, NetworkMode, PortForward, Resources, RestartPolicy,
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
        let WorkspaceDetails { record, state, failure } = details;
        let link = record.observed_link();
        let port_forwards = record.observed_publish().iter().map(PortForward::from).collect();
        let has_machine = record.has_machine();
        let (profile, resources) = (record.observed_profile().to_owned(), record.observed_resources());
        let pid = |process: Option<microagent::ProcessId>| {
            process.filter(|_| has_machine).map(|process| process.pid)
        };
        StatusDocument {
            workspace: record.name,
            state,
            problem: failure.map(|failure| failure.message),
            created_at: record.created_at.to_string(),
            changed_at: record.changed_at.to_string(),
            image: StatusImageDocument {
                reference: record.image.reference,
                resolved_reference: record.image.resolved_reference,
                digest: record.image.digest,
            },
            profile,
            resources,
            network: record.network,
            link,
            port_forwards,
            hostname: record.hostname,
            restart: record.restart,
            has_service: inspection.has_service,
            setup_pending: inspection.setup_pending,
            backend: record.backend,
            weak_jail: record.weak_jail,
            supervisor_pid: pid(record.supervisor),
            vmm_pid: pid(record.vmm),
            disk_bytes: inspection.disk_bytes,
            disks: record.disks,
            outputs: record.outputs,
            secrets: record.secrets.into_iter().map(SecretDocument::from).collect(),
            result: inspection.result.map(ResultDocument::from),
        }
    }
}
