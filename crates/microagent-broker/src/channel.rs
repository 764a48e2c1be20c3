//! The channel by which connections of the guest come: messages of one byte, the endpoint's number, each with the other
//! end of a connection. The network stack sends them; it may be taken over, so nothing but that is believed.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketType, recvmsg};
use tokio::io::Interest;
use tokio::net::{UnixDatagram, UnixStream};

/// Most descriptors that are taken from one message; the kernel closes the rest.
const DESCRIPTORS_MAX: usize = 1;

/// The broker's end. A socket of messages in order; the type, which has none of its own, only waits for it.
pub(crate) struct Channel(UnixDatagram);

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Channel> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Channel(UnixDatagram::from_std(socket.into())?))
    }

    /// Waits for the next connection; `None` when there will be none. Cancel-safe.
    pub(crate) async fn next(&self) -> io::Result<Option<(usize, UnixStream)>> {
        loop {
            let (count, number, descriptor) =
                self.0.async_io(Interest::READABLE, || receive(&self.0)).await?;
            if count == 0 {
                return Ok(None);
            }
            if let Some(stream) = descriptor.and_then(connection) {
                return Ok(Some((number.into(), stream)));
            }
        }
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<(usize, u8, Option<OwnedFd>)> {
    let mut number = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut number)], &mut ancillary, flags)?;
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptor = rights.last();
        }
    }
    Ok((received.bytes, number[0], descriptor))
}

/// A connection, if the descriptor is one.
fn connection(descriptor: OwnedFd) -> Option<UnixStream> {
    let is_connection = socket_domain(&descriptor) == Ok(AddressFamily::UNIX)
        && socket_type(&descriptor) == Ok(SocketType::STREAM);
    if !is_connection {
        return None;
    }
    rustix::io::ioctl_fionbio(&descriptor, true).ok()?;
    UnixStream::from_std(descriptor.into()).ok()
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::{AsFd, BorrowedFd};

    use rustix::net::{
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, sendmsg, socketpair,
    };

    use super::*;

    fn send(to: &OwnedFd, text: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg(to, &[IoSlice::new(text)], &mut ancillary, SendFlags::empty()).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_connection_is_closed_and_the_rest_goes_on() {
        let pair = |kind| socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let (ours, theirs) = pair(SocketType::SEQPACKET);
        let channel = Channel::new(theirs).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let (datagram, _) = pair(SocketType::DGRAM);
        send(&ours, &[1], &[]);
        send(&ours, &[1], &[file.as_fd()]);
        send(&ours, &[1], &[datagram.as_fd()]);
        let (end, stream) = pair(SocketType::STREAM);
        send(&ours, &[3], &[stream.as_fd()]);
        drop(stream);
        let (number, stream) = channel.next().await.unwrap().unwrap();
        assert_eq!(number, 3);
        rustix::io::write(&end, b"x").unwrap();
        let mut byte = [0];
        stream.readable().await.unwrap();
        assert_eq!(stream.try_read(&mut byte).unwrap(), 1);
        drop(ours);
        assert!(channel.next().await.unwrap().is_none());
    }
}
