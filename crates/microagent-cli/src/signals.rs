//! Ctrl-C, SIGTERM and SIGHUP: the first one asks the work to end and clean up, the second one ends at once.
//!
//! Only long work listens; short commands keep the system's default and simply die, having nothing to undo.

use std::io;
use std::thread;

use microagent::CancellationToken;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::EXIT_CANCELLED;

/// Cancels `token` at the first signal and exits with 130 at the second.
///
/// Listens on a thread of its own, so that a signal counts even while the work keeps its own thread busy.
pub(crate) fn listen(token: CancellationToken) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            signals.next().await;
            token.cancel();
            signals.next().await;
        });
        std::process::exit(EXIT_CANCELLED.into());
    })?;
    Ok(())
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
