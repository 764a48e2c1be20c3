//! The answer of every command that brings a workspace into a state: its name, the state, its published ports.

use jiff::Timestamp;
use microagent::{Attachment, DiskSource, WorkspaceDetails};

use crate::context::Context;
use crate::documents::state::StateDocument;
use crate::documents::stream::StreamLine;
use crate::failure::Failure;
use crate::output::{Format, expiry, print_json, print_text, published};
use crate::stream::print_line;

/// Says in which state a workspace is now.
pub(crate) fn print(context: &Context, details: WorkspaceDetails) -> Result<(), Failure> {
    print_started(context, details, Vec::new())
}

/// The same after a start, of which these notices were shown.
pub(crate) fn print_started(
    context: &Context,
    details: WorkspaceDetails,
    notices: Vec<String>,
) -> Result<(), Failure> {
    let document = StateDocument { notices, ..StateDocument::from(details) };
    match context.format {
        Format::Json if context.streams() => print_line(&StreamLine::Start(document)),
        Format::Json => print_json(&document),
        Format::Text => {
            let mut text = format!("Workspace: {}\nState: {}\n", document.workspace, document.state);
            // The ports of one that rests lead nowhere.
            for forward in document.port_forwards.iter().filter(|_| document.state.is_live()) {
                text += &format!("Published: {}\n", published(forward));
            }
            if let Some(at) = document.expires_at {
                text += &format!("Expires: {}\n", expiry(at, Timestamp::now()));
            }
            print_text(&text)
        }
    }
}

/// What a disk is called that a copy of its workspace does not have for itself, so that only one of them can run.
pub(crate) fn shared_disk(disk: &Attachment) -> Option<String> {
    match &disk.source {
        DiskSource::Volume(name) if !disk.read_only => Some(format!("volume {name}")),
        DiskSource::Image(path) if !disk.read_only => Some(path.display().to_string()),
        _ => None,
    }
}
