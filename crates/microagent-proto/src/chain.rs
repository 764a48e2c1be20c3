//! Errors as the one line that messages, logs and people get.

use std::error::Error;

/// An error and all its causes on one line, from the outermost to the innermost.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FrameError;

    #[test]
    fn every_cause_is_on_the_line() {
        let innermost = std::io::Error::other("the innermost cause");
        let error = FrameError::Transport(innermost);
        assert_eq!(chain(&error), "the control channel broke: the innermost cause");
    }
}
