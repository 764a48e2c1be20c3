//! How calls fail, as a model is told, and why a server ends early.

use std::io;
use std::net::SocketAddr;

use microagent::{Error, ErrorKind, chain};
use serde::Serialize;

use crate::hints;
use crate::output;

/// Most bytes of a console or of setup steps that an error carries: enough for the reason, which comes last.
const TAIL_LIMIT: usize = 4 * 1024;

/// Why a call failed.
#[derive(Debug, Serialize)]
pub(crate) struct ToolError {
    kind: ToolErrorKind,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    retryable: bool,
    /// What setup steps printed, or the end of the guest's console, where that may say why.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
}

/// Class of a failed call: that of the library's error, or a refusal by the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum ToolErrorKind {
    Library(ErrorKind),
    Policy(PolicyKind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum PolicyKind {
    Refused,
}

impl ToolError {
    fn new(kind: ToolErrorKind, message: impl Into<String>) -> ToolError {
        ToolError { kind, message: message.into(), hint: None, retryable: false, output: None }
    }

    /// The policy does not allow it.
    pub(crate) fn refused(message: impl Into<String>) -> ToolError {
        ToolError::new(ToolErrorKind::Policy(PolicyKind::Refused), message)
    }

    /// The arguments are wrong.
    pub(crate) fn invalid(message: impl Into<String>) -> ToolError {
        ToolError::new(ToolErrorKind::Library(ErrorKind::Invalid), message)
    }

    /// What is to be made is there.
    pub(crate) fn exists(message: impl Into<String>) -> ToolError {
        ToolError::new(ToolErrorKind::Library(ErrorKind::AlreadyExists), message)
    }

    /// Too much at a time; later it can succeed.
    pub(crate) fn busy(message: impl Into<String>) -> ToolError {
        ToolError { retryable: true, ..ToolError::new(ToolErrorKind::Library(ErrorKind::Busy), message) }
    }

    /// The client gave the call up, or the server ends.
    pub(crate) fn cancelled() -> ToolError {
        ToolError::new(ToolErrorKind::Library(ErrorKind::Cancelled), "the call was cancelled")
    }

    /// What went wrong, where that is part of a result.
    pub(crate) fn into_message(self) -> String {
        self.message
    }

    /// Says what to do about it.
    pub(crate) fn hint(self, hint: impl Into<String>) -> ToolError {
        ToolError { hint: Some(hint.into()), ..self }
    }
}

impl From<Error> for ToolError {
    fn from(mut error: Error) -> ToolError {
        // It may be the name of a workspace that is not the server's, of which a model learns nothing.
        if let Error::NameTaken { name } = &error {
            return ToolError::invalid(format!("the name `{name}` cannot be used"))
                .hint("choose another name, or omit it to have one made up");
        }
        let output = match &mut error {
            Error::RunFailed { console_tail, .. } | Error::StartFailed { console_tail, .. } => {
                console_tail.take().map(String::into_bytes)
            }
            Error::SetupFailed { output, .. } => {
                // What cannot be read of it is left out; the error is about something else.
                Some(output.flatten().flat_map(|frame| frame.bytes).collect())
            }
            _ => None,
        };
        ToolError {
            kind: ToolErrorKind::Library(error.kind()),
            message: chain(&error),
            hint: hints::of(&error),
            retryable: error.is_retryable(),
            output: output.filter(|bytes| !bytes.is_empty()).map(|bytes| output::tail(&bytes, TAIL_LIMIT)),
        }
    }
}

/// Why a server ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The client does not speak the protocol.
    #[error("the client does not speak the Model Context Protocol: {reason}")]
    Protocol {
        /// What it sent, in short.
        reason: String,
    },
    /// The name of the server cannot be the value of a label.
    #[error("`{}` cannot be the name of a server", name.escape_debug())]
    Name {
        /// The name.
        name: String,
    },
    /// Others could reach the server, and no name for that is given.
    #[error("others can reach {address}, and the connection is not encrypted")]
    Exposed {
        /// Where the server was to listen.
        address: SocketAddr,
    },
    /// The server cannot listen.
    #[error("cannot listen at {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Workspaces of the server could not be listed or deleted when it ended.
    #[error("workspaces of the server were not deleted: {}", names.join(", "))]
    Left {
        /// Their names.
        names: Vec<String>,
        /// What went wrong with one of them.
        source: Error,
    },
}
