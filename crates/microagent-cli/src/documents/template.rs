//! `microagent template`, in JSON.

use std::time::SystemTime;

use jiff::Timestamp;
use microagent::NetworkMode;
use microagent::template::Template;
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;
use crate::documents::shared::TimelineDocument;

/// One template.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct TemplateDocument {
    pub(crate) key: String,
    pub(crate) memory_mib: Option<u32>,
    pub(crate) cpu_count: Option<u32>,
    #[cfg_attr(test, schemars(with = "Option<Words<microagent::NetworkMode>>"))]
    pub(crate) network: Option<NetworkMode>,
    pub(crate) backend: Option<&'static str>,
    /// Base disk that it has mounted.
    pub(crate) disk: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) created_at: Option<Timestamp>,
    pub(crate) used_at: Option<Timestamp>,
    pub(crate) stale: bool,
}

/// `microagent template list`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct TemplateListDocument {
    pub(crate) templates: Vec<TemplateDocument>,
}

/// `microagent template build`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct TemplateBuildDocument {
    pub(crate) template: Option<TemplateDocument>,
    /// Microseconds from the start of the supervisor, as in `run`.
    pub(crate) timeline: TimelineDocument,
}

/// `microagent template delete` and `template prune`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct TemplatePruneDocument {
    pub(crate) removed: Vec<TemplateDocument>,
    pub(crate) bytes: u64,
}

impl From<Template> for TemplateDocument {
    fn from(template: Template) -> TemplateDocument {
        let Template { key, shape, disk, created_at, used_at, bytes, stale, .. } = template;
        TemplateDocument {
            key,
            memory_mib: shape.map(|shape| shape.memory_mib),
            cpu_count: shape.map(|shape| shape.cpu_count),
            network: shape.map(|shape| shape.network),
            backend: shape.map(|shape| if shape.kvm { "linux-kvm" } else { "linux-tcg" }),
            disk,
            bytes,
            created_at,
            used_at: Some(used_at).filter(|used| *used != SystemTime::UNIX_EPOCH).and_then(timestamp),
            stale,
        }
    }
}

fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}
