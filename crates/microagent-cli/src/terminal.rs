//! Our terminal: its size, and its raw mode for as long as a guest's session has it.

use std::io;
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Mutex, Once, PoisonError};

use microagent::Terminal;
use rustix::fs::{FileType, fstat, tell};
use rustix::io::ioctl_fionread;
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

/// A terminal that nobody sits at.
pub(crate) fn detached() -> Terminal {
    Terminal::new(24, 80, environment::terminal_kind())
}

/// Lines and columns of our terminal.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Our terminal as it was before raw mode, while it is in raw mode.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Our terminal in raw mode; as it was before when dropped.
pub(crate) struct Raw(());

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
        static HOOK: Once = Once::new();
        // A release build aborts at a panic and drops nothing.
        HOOK.call_once(|| {
            let report = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                report(info);
            }));
        });
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes |= output;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(stdin.as_fd(), OptionalActions::Drain, &raw)?;
        Ok(Raw(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Leaves raw mode, if our terminal is in it: for ends of this process that drop nothing.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Not after what was written is shown: a terminal that nobody reads would hold up our end. One that is gone needs
        // nothing.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &before);
    }
}

/// Whether something waits to be read at our standard input: of a pipe or socket, or of a file. A terminal or another
/// device is not looked at.
pub(crate) fn input_waits() -> bool {
    let stdin = io::stdin();
    let Ok(found) = fstat(&stdin) else { return false };
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => {
            let at = tell(&stdin).unwrap_or(0);
            u64::try_from(found.st_size).is_ok_and(|size| at < size)
        }
        FileType::Fifo | FileType::Socket => ioctl_fionread(&stdin).is_ok_and(|count| count > 0),
        _ => false,
    }
}
