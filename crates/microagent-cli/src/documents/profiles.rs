//! `microagent profiles`, in JSON.

use microagent::{PROFILES, Profile};
use serde::Serialize;

use crate::documents::shared::ResourcesDocument;

/// `microagent profiles`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ProfilesDocument {
    pub(crate) profiles: [ProfileDocument; PROFILES.len()],
    pub(crate) default: &'static str,
}

/// A named machine size.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ProfileDocument {
    name: &'static str,
    #[serde(flatten)]
    resources: ResourcesDocument,
}

impl From<Profile> for ProfileDocument {
    fn from(profile: Profile) -> ProfileDocument {
        ProfileDocument { name: profile.name, resources: profile.resources.into() }
    }
}
