//! `microagent create`, in JSON.

use microagent::{
    ImageReport, NetworkMode, NetworkName, RestartPolicy, State, WorkspaceDetails, WorkspaceName,
};
use serde::Serialize;

use crate::documents::image::ImageDocument;
#[cfg(test)]
use crate::documents::schema::Words;
use crate::documents::shared::ResourcesDocument;

/// `microagent create`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CreateDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    #[cfg_attr(test, schemars(with = "Words<microagent::State>"))]
    pub(crate) state: State,
    pub(crate) profile: String,
    #[cfg_attr(test, schemars(with = "Words<microagent::NetworkMode>"))]
    pub(crate) network: NetworkMode,
    /// Private networks that it joins.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub(crate) joined: Vec<NetworkName>,
    pub(crate) hostname: String,
    pub(crate) resources: ResourcesDocument,
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) restart: RestartPolicy,
    /// `null` for a workspace that is created from a snapshot.
    pub(crate) image: Option<ImageDocument>,
    pub(crate) notices: Vec<String>,
}

impl CreateDocument {
    /// Puts together what the library tells.
    pub(crate) fn new(
        details: WorkspaceDetails,
        image: Option<ImageReport>,
        notices: Vec<String>,
    ) -> CreateDocument {
        CreateDocument {
            workspace: details.name,
            state: details.state,
            profile: details.profile,
            network: details.network,
            joined: details.networks,
            hostname: details.hostname,
            resources: details.resources.into(),
            restart: details.restart,
            image: image.map(ImageDocument::from),
            notices,
        }
    }
}
