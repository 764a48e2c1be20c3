//! Standard error at the end of a command that the user has ended.

use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long the end of the command waits for the reader of standard error. Long, because a slow machine must not lose
/// the message.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes a text. A terminal or pipe that stays full does not keep the command from ending.
pub(crate) fn write_at_the_end(text: Vec<u8>) {
    let (done, wait) = mpsc::channel();
    let started = thread::Builder::new().name("end".to_owned()).spawn(move || {
        // An error of standard error cannot be reported.
        let _ = anstream::stderr().lock().write_all(&text);
        let _ = done.send(());
    });
    if started.is_ok() {
        let _ = wait.recv_timeout(PATIENCE);
    }
}
