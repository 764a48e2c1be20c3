//! How a run is connected to this process: its flags, and what they amount to.

use clap::{Args, ValueEnum};
use microagent::AttachedOutput;

use crate::failure::Failure;
use crate::output::Format;

const HEADING: &str = "Streams";

/// Flags about standard streams and terminal.
#[derive(Debug, Args)]
pub(super) struct StreamArgs {
    /// Pass standard input to the command, up to its end
    #[arg(short, long, help_heading = HEADING)]
    interactive: bool,

    /// Allocate a terminal connected to this one; with -i keys reach it
    #[arg(short, long, help_heading = HEADING)]
    tty: bool,

    /// Connect only this standard stream of the command (repeatable)
    #[arg(short, long, value_name = "STREAM", value_enum, ignore_case = true, help_heading = HEADING)]
    attach: Vec<StreamName>,

    /// Print output as it comes, and the summary to standard error at the end
    #[arg(long, help_heading = HEADING)]
    stream: bool,

    /// Print only the command's output, as it comes: no summary, no output of setup steps
    #[arg(long, help_heading = HEADING)]
    raw: bool,

    /// As --raw, and do not report progress
    #[arg(short, long, help_heading = HEADING)]
    pub(super) quiet: bool,

    /// Start a workspace with the command as its service, print its name and exit; with --rm it is removed when the
    /// command ends
    #[arg(
        short,
        long,
        help_heading = HEADING,
        conflicts_with_all = ["attach", "stream", "raw"]
    )]
    pub(super) detach: bool,
}

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StreamName {
    /// Standard input, as -i
    Stdin,
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
}

/// How a run is connected to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Its output is printed when it has ended, after the summary; or a document is.
    Collected,
    /// It is connected to this process's streams while it runs.
    Attached(Attachment),
    /// It runs in the background.
    Detached,
}

/// Which streams of an attached run are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attachment {
    /// This process's standard input goes to the command.
    pub(super) stdin: bool,
    /// The command has a terminal that is connected to this process's.
    pub(super) tty: bool,
    /// What it prints on standard output is shown.
    pub(super) stdout: bool,
    /// What it prints on standard error is shown.
    pub(super) stderr: bool,
    /// What is shown at all.
    pub(super) output: AttachedOutput,
    /// The summary is printed to standard error at the end.
    pub(super) summary: bool,
}

impl StreamArgs {
    /// What the flags amount to with `--json=stream`.
    pub(super) fn lines(&self) -> Result<Mode, Failure> {
        let refused = [
            (self.tty, "--tty"),
            (self.detach, "--detach"),
            (!self.attach.is_empty(), "--attach"),
            (self.stream, "--stream"),
            (self.raw, "--raw"),
        ];
        if let Some((_, flag)) = refused.iter().find(|(given, _)| *given) {
            return Err(Failure::usage(
                format!("{flag} and --json=stream cannot be combined"),
                "omit one of them; -i passes standard input with both",
            ));
        }
        Ok(Mode::Attached(Attachment {
            stdin: self.interactive,
            tty: false,
            stdout: true,
            stderr: true,
            output: AttachedOutput::All,
            summary: false,
        }))
    }

    /// What the flags amount to.
    pub(super) fn mode(&self, format: Format) -> Result<Mode, Failure> {
        if self.detach {
            return match (self.interactive, self.tty) {
                (false, false) => Ok(Mode::Detached),
                _ => Err(Failure::usage(
                    "-d cannot be combined with -i or -t: a command in the background has no terminal",
                    "omit -i and -t; for a shell in a machine that stays: microagent create NAME --image IMAGE, \
                     microagent start NAME, microagent connect NAME",
                )),
            };
        }
        if format == Format::Json {
            return self.with_document();
        }
        let named = |stream| self.attach.is_empty() || self.attach.contains(&stream);
        let stdin = self.interactive || self.attach.contains(&StreamName::Stdin);
        let bare = self.raw || self.quiet;
        if !(stdin || self.tty || self.stream || bare || !self.attach.is_empty()) {
            return Ok(Mode::Collected);
        }
        Ok(Mode::Attached(Attachment {
            stdin,
            tty: self.tty,
            stdout: named(StreamName::Stdout),
            stderr: named(StreamName::Stderr),
            output: if bare { AttachedOutput::Command } else { AttachedOutput::All },
            summary: !bare,
        }))
    }

    /// The document has all output; only standard input can be passed beside it.
    fn with_document(&self) -> Result<Mode, Failure> {
        let refused = [
            (self.tty, "--tty"),
            (!self.attach.is_empty(), "--attach"),
            (self.stream, "--stream"),
            (self.raw, "--raw"),
        ];
        if let Some((_, flag)) = refused.iter().find(|(given, _)| *given) {
            return Err(Failure::usage(
                format!("{flag} and --json cannot be combined: the document contains the output"),
                format!("omit {flag} or --json; -i passes standard input with both"),
            ));
        }
        let attachment = Attachment {
            stdin: true,
            tty: false,
            stdout: false,
            stderr: false,
            output: AttachedOutput::Recorded,
            summary: false,
        };
        Ok(if self.interactive { Mode::Attached(attachment) } else { Mode::Collected })
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn mode(words: &[&str], format: Format) -> Result<Mode, Failure> {
        let command = StreamArgs::augment_args(Command::new("run").no_binary_name(true));
        StreamArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap().mode(format)
    }

    fn attachment(words: &[&str]) -> Attachment {
        match mode(words, Format::Text) {
            Ok(Mode::Attached(attachment)) => attachment,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn flags_decide_what_is_connected() {
        assert_eq!(mode(&[], Format::Text).unwrap(), Mode::Collected);
        assert_eq!(mode(&["-q"], Format::Json).unwrap(), Mode::Collected);
        assert_eq!(mode(&["-dq"], Format::Text).unwrap(), Mode::Detached);
        let streams = |words: &[&str]| {
            let Attachment { stdin, tty, stdout, stderr, output, summary } = attachment(words);
            (stdin, tty, (stdout, stderr), output, summary)
        };
        let all = AttachedOutput::All;
        assert_eq!(streams(&["-it"]), (true, true, (true, true), all, true));
        assert_eq!(streams(&["--stream"]), (false, false, (true, true), all, true));
        assert_eq!(streams(&["-i", "--raw"]), (true, false, (true, true), AttachedOutput::Command, false));
        assert_eq!(streams(&["-q"]), (false, false, (true, true), AttachedOutput::Command, false));
        assert_eq!(streams(&["-a", "STDOUT"]), (false, false, (true, false), all, true));
        assert_eq!(streams(&["-a", "stdin", "-a", "stderr"]), (true, false, (false, true), all, true));
    }

    #[test]
    fn a_document_goes_with_standard_input_alone() {
        let Ok(Mode::Attached(attachment)) = mode(&["-i"], Format::Json) else { panic!("not attached") };
        assert_eq!((attachment.stdin, attachment.output), (true, AttachedOutput::Recorded));
        for words in [&["-t"][..], &["--stream"], &["--raw"], &["-i", "-a", "stdout"]] {
            assert!(matches!(mode(words, Format::Json), Err(Failure::Usage { .. })), "{words:?}");
        }
        assert!(matches!(mode(&["-dit"], Format::Text), Err(Failure::Usage { .. })));
    }
}
