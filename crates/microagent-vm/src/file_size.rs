//! Writes beyond the limit of the size of a file (`ulimit -f`).

use std::io;

/// Makes such a write fail, as one to a full disk does, instead of ending the process. Programs that this process executes
/// inherit it.
///
/// # Errors
/// Fails when the kernel refuses.
///
/// # Source
/// `setrlimit(2)`, `RLIMIT_FSIZE`.
#[allow(unsafe_code)]
pub fn fail_oversized_writes() -> io::Result<()> {
    // SAFETY: ignoring a signal touches no memory.
    match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
