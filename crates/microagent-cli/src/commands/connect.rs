//! `microagent connect`: an interactive session in a running workspace.

use std::io::Write;

use clap::Args;
use microagent::{CommandLine, ExecOptions, LogOptions, WorkspaceName};

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Format;
use crate::session::{self, Ended, Session, Stdin};
use crate::stream::Passing;
use crate::{console_log, terminal};

/// Ctrl-], as telnet has it.
const DETACH_KEY: u8 = 0x1d;

/// Code of a shell that was left by the key: nothing went wrong.
const DETACHED: u8 = 0;

const EXAMPLES: &str = "\
Examples:
  Open a shell; leave it with `exit` or Ctrl-]; the machine keeps running:
    microagent connect web

  Open another shell as another user:
    microagent connect web --user nobody --shell /bin/ash

  Start a shell on the serial console, then attach to the console:
    microagent exec web -- setsid sh -c 'exec sh -i < /dev/ttyS0 > /dev/ttyS0 2>&1'
    microagent connect web --console

  Run one shell line, for a script:
    microagent connect web --send 'cd /srv && ls'";

/// Open an interactive session in a running workspace
///
/// Starts a shell on a terminal in the guest, connected to this terminal: job control, colours and editors work. The shell
/// is the workspace's (`create --shell`), else bash if the image has it, else sh. Ctrl-] ends the session and its
/// processes; the machine keeps running. Exits with the shell's exit code.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ConnectArgs {
    /// Workspace
    name: WorkspaceName,

    /// Run this line in the shell, without a terminal, and exit
    #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
    send: Option<String>,

    /// Attach to the serial console instead of starting a shell: show its output as it comes, and send keys to the
    /// program that reads them in the guest. Ctrl-] detaches. Without a terminal, only show the output
    #[arg(long, conflicts_with_all = ["send", "user", "shell"])]
    console: bool,

    /// User, or user and group, instead of the workspace's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// Shell to use instead of the workspace's
    #[arg(long, value_name = "PROGRAM")]
    shell: Option<String>,
}

/// Runs the session; gives its shell's exit code.
pub(crate) fn execute(context: &Context, args: ConnectArgs) -> Result<u8, Failure> {
    if context.format == Format::Json {
        return Err(Failure::usage(
            "an interactive session cannot print JSON",
            "use microagent exec NAME --json -- COMMAND",
        ));
    }
    if args.console {
        return console(context, &args.name).map(|()| 0);
    }
    let workspace = context.engine().workspace(&args.name);
    let shell = match args.shell {
        Some(shell) => Some(shell),
        None => workspace.shell()?,
    };
    let mut options = ExecOptions::of(command(shell, args.send.as_deref()));
    options.user = args.user;
    let session = match args.send {
        Some(_) => Session { stdin: None, raw: false, detach: None },
        None => {
            options.terminal = Some(terminal::ours().map_err(|_| {
                Failure::usage(
                    "an interactive session needs a terminal as standard input and output",
                    "run one line with --send LINE, or one command with microagent exec NAME -- COMMAND",
                )
            })?);
            // Not before an error.
            if !workspace.details()?.state.is_resting() {
                context.progress(false).note("Ctrl-] ends the session; the machine keeps running");
            }
            Session { stdin: Some(Stdin::Ours), raw: true, detach: Some(DETACH_KEY) }
        }
    };
    let ended = session.run(context, &workspace, options, Passing::Bytes)?;
    let progress = context.progress(true);
    match ended {
        Ended::Detached => {
            progress.note_at_the_end("detached");
            Ok(DETACHED)
        }
        Ended::Command(execution) => {
            if let Some(error) = &execution.start_error {
                progress.note(&format!("the shell could not be started: {error}"));
            }
            Ok(u8::try_from(execution.exit_code).unwrap_or(1))
        }
    }
}

/// The console: with keys where there is a terminal to type them on.
fn console(context: &Context, name: &WorkspaceName) -> Result<(), Failure> {
    if terminal::ours().is_err() {
        return console_log::show_console(context, name);
    }
    let workspace = context.engine().workspace(name);
    let progress = context.progress(false);
    progress
        .note("Ctrl-] detaches from the console; keys reach a program in the guest that reads /dev/ttyS0");
    let past = context.call(workspace.logs(LogOptions::new().tail(console_log::CONSOLE_LINES)))?;
    let mut out = std::io::stdout().lock();
    out.write_all(&past)?;
    out.flush()?;
    drop(out);
    let left = session::at_console(context, &workspace, DETACH_KEY)?;
    progress.note_at_the_end(if left { "detached" } else { "the machine has ended" });
    Ok(())
}

/// A named shell is run as it is; otherwise the guest's own `sh` looks for a better one.
fn command(shell: Option<String>, line: Option<&str>) -> CommandLine {
    match (shell, line) {
        (Some(shell), None) => CommandLine::Argv(vec![shell]),
        (Some(shell), Some(line)) => CommandLine::Argv(vec![shell, "-c".to_owned(), line.to_owned()]),
        (None, None) => CommandLine::Shell("exec \"$(command -v bash || echo sh)\"".to_owned()),
        (None, Some(line)) => CommandLine::Shell(line.to_owned()),
    }
}
