//! Asks a yes-or-no question, where somebody can answer it.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use crate::failure::Failure;

/// Longest answer that is read.
const ANSWER_LIMIT: u64 = 1024;

/// Asks on standard error and reads the answer from standard input; `None` when either is not a terminal, so
/// nobody could answer. Anything but `y` or `yes` is a no.
pub(crate) fn confirm(question: &str) -> Option<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return None;
    }
    let mut terminal = io::stderr().lock();
    write!(terminal, "{question} [y/N] ").and_then(|()| terminal.flush()).ok()?;
    let mut answer = String::new();
    io::stdin().lock().take(ANSWER_LIMIT).read_line(&mut answer).ok()?;
    Some(is_yes(&answer))
}

/// Asks, and refuses to do `action` unasked: `hint` says how a script confirms it.
pub(crate) fn confirmed(question: &str, action: &str, hint: &str) -> Result<bool, Failure> {
    confirm(question).ok_or_else(|| {
        let message = format!("{action} needs a confirmation, but standard input is not a terminal");
        Failure::usage(message, hint)
    })
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::is_yes;

    #[test]
    fn only_a_yes_is_a_yes() {
        assert!(["y\n", "Y", " yes "].into_iter().all(is_yes));
        assert!(!["", "\n", "n", "no", "yeah", "yy"].into_iter().any(is_yes));
    }
}
