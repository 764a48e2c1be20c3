//! The console's log as it grows: for `logs -f` and `connect --console`.

use microagent::{CancellationToken, Error, LogOptions, OutputStream, Streaming, WorkspaceName};

use crate::context::Context;
use crate::documents::output::json_bytes;
use crate::documents::stream::StreamLine;
use crate::failure::Failure;
use crate::output::Format;
use crate::stream::Characters;
use crate::writer::{self, Writer};

/// Lines of the past that `connect --console` begins with.
pub(crate) const CONSOLE_LINES: usize = 20;

/// The last lines of the console and what comes, for `connect --console`.
pub(crate) fn show_console(context: &Context, name: &WorkspaceName) -> Result<(), Failure> {
    follow(context, name, LogOptions::new().tail(CONSOLE_LINES))
}

/// Prints this part of the log, and what is added, until the workspace rests.
pub(crate) fn follow(context: &Context, name: &WorkspaceName, options: LogOptions) -> Result<(), Failure> {
    if context.format == Format::Json && !context.streams() {
        return Err(Failure::followed_as_json());
    }
    let workspace = context.engine().workspace(name);
    context.block_on(async |token| {
        let mut log = workspace.follow_logs(options).await?;
        if context.streams() {
            return pass_on_log(&mut log, &token).await;
        }
        writer::pass_on(&mut log, |bytes| bytes, &token).await
    })
}

/// A piece of the log as a line.
pub(crate) fn log_line(bytes: Vec<u8>) -> StreamLine {
    let (data, encoding) = json_bytes(bytes);
    StreamLine::Log { data, encoding }
}

/// Prints the log as lines, with whole characters where it is text.
async fn pass_on_log(log: &mut Streaming<Vec<u8>>, token: &CancellationToken) -> Result<(), Failure> {
    let mut writer = Writer::start()?;
    let mut characters = Characters::default();
    let passing = async {
        while let Some(bytes) = log.next().await {
            let whole = characters.whole(bytes?);
            if !whole.is_empty() {
                writer.write(OutputStream::Stdout, log_line(whole).to_bytes()?).await?;
            }
        }
        let rest = characters.rest();
        if !rest.is_empty() {
            writer.write(OutputStream::Stdout, log_line(rest).to_bytes()?).await?;
        }
        writer.finish().await
    };
    tokio::select! {
        passed = passing => passed,
        () = token.cancelled() => Err(Error::Cancelled.into()),
    }
}
