//! Our terminal: its size, and its raw mode for as long as a guest's session has it.

use std::io;
use std::os::fd::AsFd;

use microagent::Terminal;
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::environment;
use crate::failure::Failure;

/// Our terminal as a session in a guest gets it.
pub(crate) fn ours() -> Result<Terminal, Failure> {
    if !isatty(io::stdin()) || !isatty(io::stdout()) {
        return Err(Failure::usage(
            "--tty needs a terminal, but standard input or output is not a terminal",
            "omit -t; -i alone passes standard input",
        ));
    }
    let (rows, cols) = size().unwrap_or((24, 80));
    Ok(Terminal::new(rows, cols, environment::terminal_kind()))
}

/// Lines and columns of our terminal.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Our terminal in raw mode; as it was before when dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Enters raw mode: every key goes to the guest, which echoes and interprets it.
    pub(crate) fn enter() -> io::Result<Raw> {
        Raw::enter_with(OutputModes::empty())
    }

    /// The same for a console, whose lines end as they are written: some with a carriage return, some without.
    pub(crate) fn enter_for_console() -> io::Result<Raw> {
        Raw::enter_with(OutputModes::OPOST | OutputModes::ONLCR)
    }

    fn enter_with(output: OutputModes) -> io::Result<Raw> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes |= output;
        tcsetattr(stdin.as_fd(), OptionalActions::Drain, &raw)?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &self.before);
    }
}
