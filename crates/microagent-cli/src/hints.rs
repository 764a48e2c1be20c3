//! What to do about an error, in words of the command.

use microagent::Error;

/// One line that says what to do, where something can be done.
pub(crate) fn of(error: &Error) -> Option<String> {
    error.hint()
}
