//! A process in the jail that waits before it executes its program.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use super::program::Executable;
use crate::descriptors::close_all_but;

/// What a process waits for between entering its jail and executing its program.
#[derive(Debug)]
pub(crate) struct Wait {
    /// A byte from here makes it execute the program; the end of the stream makes it exit.
    pub(crate) until: File,
    /// Descriptors that the program inherits.
    pub(crate) keeps: Vec<RawFd>,
}

impl Wait {
    /// Closes what neither the program nor the wait needs: all that its parent has open, the lock of the workspace
    /// among it. The parent is told by this that the process is well, since the pipe is closed on which it would hear
    /// of a failure.
    pub(super) fn close_others(&self, program: RawFd) -> io::Result<()> {
        let mut kept = self.keeps.clone();
        kept.extend([program, self.until.as_raw_fd()]);
        close_all_but(kept)
    }

    /// Waits, and executes the program. Does not return, because a failure could not be reported.
    pub(super) fn then_execute(mut self, program: Executable) -> io::Error {
        let mut byte = [0];
        if self.until.read_exact(&mut byte).is_err() {
            exit(0);
        }
        let error = program.execute();
        // The supervisor keeps what is said here.
        let _ = writeln!(io::stderr(), "qemu: cannot be executed: {error}");
        exit(1);
    }
}

fn exit(code: i32) -> ! {
    // SAFETY: ends a forked process without what its parent has registered for its own end.
    unsafe { libc::_exit(code) }
}
