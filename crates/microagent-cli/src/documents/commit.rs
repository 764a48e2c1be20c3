//! `microagent commit`, in JSON.

use microagent::{CommitReport, WorkspaceName};
use serde::Serialize;

use crate::documents::image::PushDocument;

/// `microagent commit`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CommitDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    workspace: WorkspaceName,
    reference: String,
    resolved_reference: String,
    digest: String,
    /// Digest of the new layer, uncompressed.
    diff_id: String,
    layer_digest: String,
    layer_bytes: u64,
    content_bytes: u64,
    /// `null` without `--push`.
    pushed: Option<PushDocument>,
}

impl From<CommitReport> for CommitDocument {
    fn from(report: CommitReport) -> CommitDocument {
        CommitDocument {
            workspace: report.workspace,
            reference: report.image.reference,
            resolved_reference: report.image.resolved_reference,
            digest: report.image.digest,
            diff_id: report.image.diff_id,
            layer_digest: report.image.layer_digest,
            layer_bytes: report.image.layer_bytes,
            content_bytes: report.image.content_bytes,
            pushed: report.pushed.map(PushDocument::from),
        }
    }
}
