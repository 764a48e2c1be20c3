//! The agent's own words, for the serial console. Few: each byte is slow under emulation.

use std::error::Error;

use microagent_proto::chain;

/// Longest line; what is longer is cut.
const LINE_LIMIT: usize = 500;

/// Prints one line. A console that takes nothing is nobody's problem.
pub(crate) fn say(text: &str) {
    let mut line = format!("microagent: {text}");
    if line.len() > LINE_LIMIT {
        let cut = (0..=LINE_LIMIT).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(cut);
    }
    line.push('\n');
    // Standard error is the console that the kernel opened for its first process.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

/// Prints what was attempted, and the error with all its causes.
pub(crate) fn say_error(attempt: &str, error: &dyn Error) {
    say(&format!("{attempt}: {}", chain(error)));
}
