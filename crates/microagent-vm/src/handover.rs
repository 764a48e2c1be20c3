//! How this program starts itself as another process of a supervisor, and gives that process its instructions: bytes
//! with descriptors, over its standard input.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use microagent_model::JOINS_MAX;
use microagent_store::SUPERVISE_ARGUMENT;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use zeroize::Zeroizing;

use crate::spawn::{Process, Program, spawn};

/// This program, even if its file was replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Most descriptors that are handed over: those of a keeper, with a listening socket for each private network.
const DESCRIPTORS_MAX: usize = 4 + JOINS_MAX;

/// Deadline of both sides.
const DEADLINE: Duration = Duration::from_secs(10);

/// Starts this program with an argument that says what it serves; gives the socket for its instructions.
///
/// # Errors
/// Fails when it cannot be started.
pub(crate) fn spawn_server(argument: &str) -> io::Result<(Process, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let args = [SUPERVISE_ARGUMENT.into(), argument.into()];
    let server = spawn(Program {
        path: Path::new(THIS_PROGRAM),
        args: &args,
        inherit: &[],
        stdin: Some(theirs.into()),
        jail: None,
    })?;
    Ok((server, ours))
}

/// The exit code of such a process.
pub(crate) fn exit_code(what: &str, result: io::Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            // The supervisor keeps what is said here.
            let _ = writeln!(io::stderr(), "microagent: {what}: {}", microagent_proto::chain(&error));
            1
        }
    }
}

/// Sends bytes and descriptors.
///
/// # Errors
/// When the other side does not take them in time.
pub(crate) fn hand_over(
    control: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    control.set_write_timeout(Some(DEADLINE))?;
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?.to_be_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(control, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut control = control;
    control.write_all(bytes)
}

/// Receives what [`hand_over`] sent, at most `limit` bytes. They are overwritten when they are dropped.
///
/// # Errors
/// When nothing comes in time, or too much.
pub(crate) fn take_over(
    control: &UnixStream,
    limit: usize,
) -> io::Result<(Zeroizing<Vec<u8>>, Vec<OwnedFd>)> {
    control.set_read_timeout(Some(DEADLINE))?;
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let read =
        recvmsg(control, &mut [IoSliceMut::new(&mut length)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let length = u32::from_be_bytes(length) as usize;
    if read.bytes != 4 || length > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
    let mut control = control;
    control.read_exact(&mut bytes)?;
    Ok((bytes, descriptors))
}
