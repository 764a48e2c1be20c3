//! Failures of connections to guests.

use std::io;

use microagent_proto::FrameError;

/// How the connection to a guest failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionFault {
    /// The connection was closed.
    #[error("its machine has ended")]
    Ended,
    /// The guest sent something that is not a message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The guest sent nothing in time.
    #[error("it sent nothing for {seconds} s")]
    Silent {
        /// For how long.
        seconds: u64,
    },
    /// The guest read nothing in time.
    #[error("it read nothing for {seconds} s")]
    Stalled {
        /// For how long.
        seconds: u64,
    },
    /// The guest did not finish in time.
    #[error("it did not finish within {seconds} s")]
    Late {
        /// How long it had.
        seconds: u64,
    },
    /// The guest sent more data than its disks can contain.
    #[error("the guest sends more than its disk can hold")]
    TooMuch,
    /// The guest lists more processes than a kernel can have.
    #[error("it lists too many processes")]
    TooManyProcesses,
    /// The guest sent a tar stream that cannot be read.
    #[error("what it sent is not a complete file")]
    Tar(#[source] io::Error),
    /// The guest sent a listing of files that is not one.
    #[error("its listing of files is not valid: {what}")]
    Listing {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The thread of the host that reads or writes files ended early.
    #[error("the transfer was interrupted on the host")]
    Interrupted,
}
