//! `microagent create`, in JSON.

use microagent::{Created, NetworkMode, Resources, RestartPolicy, State, WorkspaceName};
use serde::Serialize;

use crate::documents::image::ImageDocument;

/// `microagent create`.
#[derive(Debug, Serialize)]
pub(crate) struct CreateDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) state: State,
    pub(crate) profile: String,
    pub(crate) network: NetworkMode,
    pub(crate) hostname: String,
    pub(crate) resources: Resources,
    pub(crate) restart: RestartPolicy,
    pub(crate) image: ImageDocument,
    pub(crate) notices: Vec<String>,
}

impl CreateDocument {
    /// Takes the answer apart.
    pub(crate) fn new(created: Created) -> CreateDocument {
        let record = created.details.record;
        CreateDocument {
            workspace: record.name,
            state: created.details.state,
            profile: record.profile,
            network: record.network,
            hostname: record.hostname,
            resources: record.resources,
            restart: record.restart,
            image: created.image.into(),
            notices: created.notices,
        }
    }
}
