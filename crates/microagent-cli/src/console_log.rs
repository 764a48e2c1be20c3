//! The console's log as it grows: for `logs -f` and `connect --console`.

use std::io::{self, Write};

use jiff::Timestamp;
use microagent::{Error, WorkspaceName};

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Format;

/// Lines of the past that `connect --console` begins with.
pub(crate) const CONSOLE_LINES: usize = 20;

/// The last lines of the console and what comes, for `connect --console`.
pub(crate) fn show_console(context: &Context, name: &WorkspaceName) -> Result<(), Failure> {
    follow(context, name, None, Some(CONSOLE_LINES))
}

/// Prints the log from a moment or line on, and what is added, until the workspace rests.
pub(crate) fn follow(
    context: &Context,
    name: &WorkspaceName,
    since: Option<Timestamp>,
    tail: Option<usize>,
) -> Result<(), Failure> {
    if context.format == Format::Json {
        return Err(Failure::followed_as_json());
    }
    let engine = context.engine();
    let mut sink = |bytes: &[u8]| {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    };
    let followed =
        context.block_on(async |token| Ok(engine.follow_logs(name, since, tail, &mut sink, &token).await))?;
    match followed {
        Err(Error::File { source, action: "write", .. }) => Err(source.into()),
        followed => Ok(followed?),
    }
}
