//! What a keeper reports to its supervisor: messages over a socket pair with message boundaries, a new stack with the
//! supervisor's end of its channel.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use microagent_store::ProcessId;
use rustix::net::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::messages::{message_pair, receive_message, send_message};

/// Longest report in bytes.
const REPORT_LIMIT: usize = 4096;

/// What became of a stack.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum KeeperReport {
    /// One runs. It comes with the supervisor's end of its channel, except for the first, whose channel the supervisor
    /// has made.
    Started {
        /// Its process; none of one that has ended already.
        process: Option<ProcessId>,
    },
    /// It has ended.
    Ended {
        /// How.
        reason: String,
        /// Whether another one is started.
        is_replaced: bool,
    },
}

/// The supervisor's end.
pub(crate) struct KeeperReports(UnixDatagram);

impl KeeperReports {
    /// A channel, and the keeper's end of it.
    pub(crate) fn pair() -> io::Result<(KeeperReports, OwnedFd)> {
        let (ours, theirs) = message_pair()?;
        Ok((KeeperReports(UnixDatagram::from_std(ours.into())?), theirs))
    }

    /// Tells the keeper to end.
    pub(crate) fn end(&self) {
        // Fails when the keeper is gone already.
        let _ = shutdown(&self.0, Shutdown::Write);
    }

    /// Waits for the next report; `None` when the keeper is gone. Cancel-safe.
    pub(crate) async fn next(&self) -> io::Result<Option<(KeeperReport, Option<OwnedFd>)>> {
        self.0.async_io(Interest::READABLE, || receive(&self.0)).await
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<Option<(KeeperReport, Option<OwnedFd>)>> {
    let mut text = [0; REPORT_LIMIT];
    let (len, descriptors) = receive_message(socket, &mut text)?;
    if len == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&text[..len])?, descriptors.into_iter().next())))
}

/// Sends a report. A supervisor that is gone, or does not read, misses it.
pub(super) fn report(socket: BorrowedFd<'_>, report: &KeeperReport, channel: Option<BorrowedFd<'_>>) {
    if let Ok(text) = serde_json::to_vec(report) {
        let _ = send_message(socket, &text, channel.as_slice());
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{RecvFlags, SendFlags};

    use super::*;

    #[tokio::test]
    async fn a_channel_comes_with_its_report_and_the_end_of_a_keeper_is_seen() {
        let (reports, keeper) = KeeperReports::pair().unwrap();
        let (ours, theirs) = message_pair().unwrap();
        report(keeper.as_fd(), &KeeperReport::Started { process: None }, Some(theirs.as_fd()));
        let ended = KeeperReport::Ended { reason: "signal: 9".into(), is_replaced: true };
        report(keeper.as_fd(), &ended, None);
        drop((keeper, theirs));
        let (started, channel) = reports.next().await.unwrap().unwrap();
        assert_eq!(started, KeeperReport::Started { process: None });
        rustix::net::send(&ours, b"x", SendFlags::empty()).unwrap();
        let mut byte = [0; 8];
        assert_eq!(rustix::net::recv(channel.unwrap(), &mut byte, RecvFlags::empty()).unwrap().0, 1);
        let (report, channel) = reports.next().await.unwrap().unwrap();
        assert_eq!((report, channel.is_none()), (ended, true));
        assert!(reports.next().await.unwrap().is_none());
    }
}
