//! `microagent profiles`, in JSON.

use microagent::{PROFILES, Profile};
use serde::Serialize;

/// `microagent profiles`.
#[derive(Debug, Serialize)]
pub(crate) struct ProfilesDocument {
    pub(crate) profiles: [Profile; PROFILES.len()],
    pub(crate) default: &'static str,
}
