//! What a command does to each of several workspaces.

use microagent::{ErrorKind, WorkspaceName};

use crate::context::Context;
use crate::failure::Failure;

/// Does it to one after the other. A failure does not keep it from the rest and is reported at the end; a signal does.
pub(crate) fn each(
    context: &Context,
    names: &[WorkspaceName],
    mut act: impl FnMut(&WorkspaceName) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut first, mut failed) = (None, 0_usize);
    for name in names {
        match act(name) {
            Ok(()) => {}
            Err(Failure::Engine(error)) if error.kind() == ErrorKind::Cancelled => return Err(error.into()),
            Err(Failure::ClosedOutput) => return Err(Failure::ClosedOutput),
            Err(failure) => {
                failed += 1;
                first = first.or(Some(failure));
            }
        }
    }
    match first {
        None => Ok(()),
        Some(failure) if failed > 1 => {
            failure.report(context.format);
            Err(Failure::Other {
                message: format!("{failed} of {} workspaces failed", names.len()),
                hint: None,
            })
        }
        Some(failure) => Err(failure),
    }
}
