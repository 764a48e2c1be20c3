//! The console's log as it grows: for `logs -f` and `connect --console`.

use microagent::{LogOptions, WorkspaceName};

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Format;
use crate::writer;

/// Lines of the past that `connect --console` begins with.
pub(crate) const CONSOLE_LINES: usize = 20;

/// The last lines of the console and what comes, for `connect --console`.
pub(crate) fn show_console(context: &Context, name: &WorkspaceName) -> Result<(), Failure> {
    follow(context, name, LogOptions::new().tail(CONSOLE_LINES))
}

/// Prints this part of the log, and what is added, until the workspace rests.
pub(crate) fn follow(context: &Context, name: &WorkspaceName, options: LogOptions) -> Result<(), Failure> {
    if context.format == Format::Json {
        return Err(Failure::followed_as_json());
    }
    let workspace = context.engine().workspace(name);
    context.block_on(async |token| {
        let mut log = workspace.follow_logs(options).await?;
        writer::pass_on(&mut log, |bytes| bytes, &token).await
    })
}
