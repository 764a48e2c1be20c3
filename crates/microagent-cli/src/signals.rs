//! Ctrl-C, SIGTERM and SIGHUP: the first one asks the work to end and clean up, the second one ends at once.
//!
//! A signal that our parent had us ignore stays ignored: `nohup` means it, and so does a shell that starts a
//! background job. Only long work listens; short commands keep the system's default and simply die, having nothing to undo.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::Poll;
use std::{io, thread};

use microagent::CancellationToken;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::EXIT_CANCELLED;
use crate::terminal;

/// The number of the newest listener. A command may do several pieces of long work, one after the other, and a signal
/// belongs to the one that is under way.
static NEWEST: AtomicUsize = AtomicUsize::new(0);

/// Listening to signals on behalf of long work. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Listening(Arc<AtomicU8>);

/// The next signal cancels the work.
const CANCEL: u8 = 0;
/// Signals are somebody else's.
const LENT: u8 = 1;
/// The next signal ends this process.
const EXIT: u8 = 2;

impl Listening {
    /// The work has ended: the next signal ends this process.
    pub(crate) fn exit_at_next(&self) {
        self.0.store(EXIT, Ordering::SeqCst);
    }

    /// Somebody else takes the signals from here on, until [`Listening::exit_at_next`].
    pub(crate) fn lend(&self) {
        // A signal that has arrived before counts.
        let _ = self.0.compare_exchange(CANCEL, LENT, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// Cancels `token` at the first signal and exits with 130 at the second, or at the first after the work has ended
/// and before other work begins.
///
/// Listens on a thread of its own, so that a signal counts even while the work keeps its own thread busy.
pub(crate) fn listen(token: CancellationToken) -> io::Result<Listening> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::of(&[SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()])?
    };
    // From here on the listeners of earlier work leave signals to this one.
    let number = NEWEST.fetch_add(1, Ordering::SeqCst) + 1;
    let mode = Arc::new(AtomicU8::new(CANCEL));
    let listening = Listening(Arc::clone(&mode));
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let is_newest = runtime.block_on(async {
            loop {
                signals.next().await;
                if NEWEST.load(Ordering::SeqCst) != number {
                    break false;
                }
                match mode.load(Ordering::SeqCst) {
                    LENT => {}
                    CANCEL => {
                        mode.store(EXIT, Ordering::SeqCst);
                        token.cancel();
                    }
                    _ => break true,
                }
            }
        });
        if is_newest {
            terminal::restore();
            std::process::exit(EXIT_CANCELLED.into());
        }
    })?;
    Ok(listening)
}

/// Signals of this process, but for those that our parent had us ignore.
pub(crate) struct Signals(Vec<(SignalKind, Signal)>);

impl Signals {
    /// Takes these signals from here on. Needs a running event loop.
    pub(crate) fn of(kinds: &[SignalKind]) -> io::Result<Signals> {
        let ignored = ignored_signals(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        let wanted = kinds.iter().filter(|kind| !is_in(ignored, **kind));
        let taken: io::Result<Vec<_>> = wanted.map(|kind| Ok((*kind, signal(*kind)?))).collect();
        Ok(Signals(taken?))
    }

    /// Waits for any of them; forever when there is none.
    pub(crate) async fn next(&mut self) -> SignalKind {
        poll_fn(|context| {
            let mut arrived = self
                .0
                .iter_mut()
                .filter_map(|(kind, signal)| signal.poll_recv(context).is_ready().then_some(*kind));
            arrived.next().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// The mask of ignored signals in `/proc/PID/status`.
///
/// # Source
/// `proc_pid_status(5)`: bit N-1 stands for signal N.
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn is_in(mask: u64, kind: SignalKind) -> bool {
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_read() {
        // As under nohup: SIGHUP and, as always in Rust programs, SIGPIPE.
        let mask = ignored_signals("Name:\tmicroagent\nSigIgn:\t0000000000001001\nSigCgt:\t0\n");
        assert!(is_in(mask, SignalKind::hangup()));
        assert!(!is_in(mask, SignalKind::interrupt()));
        assert_eq!(ignored_signals(""), 0);
    }
}
