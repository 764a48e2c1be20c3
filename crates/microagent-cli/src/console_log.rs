//! The console's log as it grows: for `logs -f` and `connect --console`.

use microagent::{CancellationToken, Error, LogOptions, OutputStream, Streaming, WorkspaceName};
use tokio::sync::mpsc;

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

/// Prints the logs of several workspaces as [`follow`] does, each line with the name of its workspace.
pub(crate) fn follow_several(
    context: &Context,
    names: &[WorkspaceName],
    options: LogOptions,
) -> Result<(), Failure> {
    if context.format == Format::Json {
        return Err(Failure::usage(
            "the logs of several workspaces cannot be followed as JSON",
            "follow one workspace with --json=stream, or omit --follow",
        ));
    }
    let engine = context.engine();
    context.block_on(async |token| {
        let (pieces, mut received) = mpsc::channel(names.len());
        for name in names {
            let mut log = engine.workspace(name).follow_logs(options).await?;
            let mut lines = NamedLines::new(name, name_width(names));
            let pieces = pieces.clone();
            tokio::spawn(async move {
                // Nobody is left to be told when the receiver is gone.
                while let Some(bytes) = log.next().await {
                    if pieces.send(bytes.map(|bytes| lines.add(&bytes))).await.is_err() {
                        return;
                    }
                }
                let _ = pieces.send(Ok(lines.end())).await;
            });
        }
        drop(pieces);
        let mut writer = Writer::start()?;
        let passing = async {
            while let Some(bytes) = received.recv().await {
                writer.write(OutputStream::Stdout, bytes?).await?;
            }
            writer.finish().await
        };
        tokio::select! {
            passed = passing => passed,
            () = token.cancelled() => Err(Error::Cancelled.into()),
        }
    })
}

/// Width of the longest of these names.
pub(crate) fn name_width(names: &[WorkspaceName]) -> usize {
    names.iter().map(|name| name.as_str().len()).max().unwrap_or_default()
}

/// Longest beginning of a line that waits for its end.
const LINE_MAX: usize = 64 * 1024;

/// Puts the name of a workspace before each line of its log.
pub(crate) struct NamedLines {
    name: String,
    /// A line without its end.
    rest: Vec<u8>,
}

impl NamedLines {
    /// For a workspace whose name is shown this wide.
    pub(crate) fn new(name: &WorkspaceName, width: usize) -> NamedLines {
        NamedLines { name: format!("{:<width$} | ", name.as_str()), rest: Vec::new() }
    }

    /// The lines that are complete with these bytes.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut named = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.rest.len() >= LINE_MAX {
                named.extend(self.end());
            }
        }
        named
    }

    /// What is left, as a line.
    pub(crate) fn end(&mut self) -> Vec<u8> {
        if self.rest.is_empty() {
            return Vec::new();
        }
        let mut line = self.name.clone().into_bytes();
        line.append(&mut self.rest);
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        line
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_begins_with_the_name_of_its_workspace() {
        let mut lines = NamedLines::new(&"web".parse().unwrap(), 5);
        assert_eq!(lines.add(b"a\nb"), b"web   | a\n");
        assert_eq!(lines.add(b"c\n\nd"), b"web   | bc\nweb   | \n");
        assert_eq!(lines.end(), b"web   | d\n");
        assert_eq!(lines.end(), b"");
        let long = vec![b'x'; LINE_MAX];
        assert_eq!(lines.add(&long).len(), b"web   | \n".len() + LINE_MAX);
    }
}
