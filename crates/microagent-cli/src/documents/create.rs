//! `microagent create`, in JSON.

use microagent::{
    ImageReport, NetworkMode, Resources, RestartPolicy, State, WorkspaceDetails, WorkspaceName,
};
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
    /// Puts together what the library tells.
    pub(crate) fn new(details: WorkspaceDetails, image: ImageReport, notices: Vec<String>) -> CreateDocument {
        CreateDocument {
            workspace: details.name,
            state: details.state,
            profile: details.profile,
            network: details.network,
            hostname: details.hostname,
            resources: details.resources,
            restart: details.restart,
            image: image.into(),
            notices,
        }
    }
}
