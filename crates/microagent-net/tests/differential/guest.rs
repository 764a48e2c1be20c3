//! A guest: the TCP of smoltcp behind a link of frames, with the manners of Linux where these are seen from outside.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use microagent_net::{GATEWAY, GUEST_ADDRESS, LENGTH_LEN, PREFIX_LEN};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::play::{End, Failed};

/// The guest's hardware address.
pub(crate) const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

const ETHERNET_LEN: usize = 14;

/// How long a connection may take to come about or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The guest's end of the link.
struct Link {
    stream: UnixStream,
    /// What came and is no whole frame yet.
    came: Vec<u8>,
    packets: VecDeque<Vec<u8>>,
    unsent: Vec<u8>,
    mtu: usize,
}

impl Link {
    /// Reads what has come and writes what is to be sent, without waiting.
    fn attend(&mut self) {
        let mut piece = [0; 65_536];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => panic!("the stack has closed the link"),
                Ok(count) => self.came.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the link has failed: {error}"),
            }
        }
        let mut at = 0;
        while let Some(length) = self.came[at..].first_chunk::<LENGTH_LEN>() {
            let end = at + LENGTH_LEN + u32::from_be_bytes(*length) as usize;
            let Some(frame) = self.came.get(at + LENGTH_LEN..end) else { break };
            if frame[12..ETHERNET_LEN] == [8, 0] {
                self.packets.push_back(frame[ETHERNET_LEN..].to_vec());
            }
            at = end;
        }
        self.came.drain(..at);
        self.write();
    }

    fn write(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the link has failed: {error}"),
            }
        }
    }
}

struct Arrived(Vec<u8>);
struct Leaving<'a>(&'a mut Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        self.0.extend(((ETHERNET_LEN + len) as u32).to_be_bytes());
        self.0.extend([0x52, 0x55, 10, 0, 2, 2]);
        self.0.extend(MAC);
        self.0.extend([8, 0]);
        let begin = self.0.len();
        self.0.resize(begin + len, 0);
        write(&mut self.0[begin..])
    }
}

impl Device for Link {
    type RxToken<'b> = Arrived;
    type TxToken<'b> = Leaving<'b>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Arrived, Leaving<'_>)> {
        Some((Arrived(self.packets.pop_front()?), Leaving(&mut self.unsent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.unsent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.ipv4 = Checksum::Both;
        capabilities.checksum.tcp = Checksum::Both;
        capabilities
    }
}

/// A guest with many connections, one after the other.
pub(crate) struct Guest {
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    begun: Instant,
    next_port: u16,
    /// Those whose side ends when all that was sent is acknowledged: smoltcp does not heed a window after that.
    ending: Vec<SocketHandle>,
    /// Those that nobody receives from any more.
    closed: Vec<SocketHandle>,
}

impl Guest {
    pub(crate) fn new(stream: UnixStream, mtu: u16) -> Guest {
        stream.set_nonblocking(true).unwrap();
        let mut link =
            Link { stream, came: Vec::new(), packets: VecDeque::new(), unsent: Vec::new(), mtu: mtu.into() };
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut link, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST_ADDRESS.into(), PREFIX_LEN)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        Guest {
            link,
            interface,
            sockets: SocketSet::new(Vec::new()),
            begun: Instant::now(),
            next_port: 20_000,
            ending: Vec::new(),
            closed: Vec::new(),
        }
    }

    fn add_socket(&mut self, receive_buffer: usize) -> SocketHandle {
        let buffers = (SocketBuffer::new(vec![0; receive_buffer]), SocketBuffer::new(vec![0; 65_536]));
        let mut socket = Socket::new(buffers.0, buffers.1);
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(self.begun.elapsed().as_micros() as i64)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn poll(&mut self) {
        self.link.attend();
        let now = self.now();
        self.interface.poll(now, &mut self.link, &mut self.sockets);
        let sockets = &mut self.sockets;
        self.ending.retain(|handle| {
            let socket = sockets.get_mut::<Socket<'_>>(*handle);
            let is_sent = socket.send_queue() == 0;
            if is_sent {
                socket.close();
            }
            !is_sent
        });
        let mut ended = Vec::new();
        self.closed.retain(|handle| {
            let socket = sockets.get_mut::<Socket<'_>>(*handle);
            // What comes after a close is answered with a reset.
            if socket.can_recv() {
                socket.abort();
            }
            let is_over = matches!(socket.state(), State::Closed | State::TimeWait);
            if is_over && socket.remote_endpoint().is_none() || socket.state() == State::TimeWait {
                ended.push(*handle);
            }
            !ended.contains(handle)
        });
        // What was reset meanwhile sends nothing more.
        self.ending.retain(|handle| !ended.contains(handle));
        self.interface.poll(now, &mut self.link, &mut self.sockets);
        for handle in ended {
            self.sockets.remove(handle);
        }
        self.link.write();
    }

    fn pass_time(&mut self) {
        let now = self.now();
        let delay = self.interface.poll_delay(now, &self.sockets).map_or(1000, |delay| delay.total_micros());
        let time = Timespec { tv_sec: 0, tv_nsec: delay.clamp(100, 1000) as i64 * 1000 };
        let wanted = if self.link.unsent.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let _ = poll(&mut [PollFd::new(&self.link.stream, wanted)], Some(&time));
        self.poll();
    }

    /// Connects to a port of the gateway. `None` if that is refused.
    pub(crate) fn connect(&mut self, port: u16, receive_buffer: usize) -> Option<GuestEnd<'_>> {
        let handle = self.add_socket(receive_buffer);
        self.next_port += 1;
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        let remote: (Ipv4Addr, u16) = (GATEWAY, port);
        socket.connect(self.interface.context(), remote, self.next_port).unwrap();
        self.await_end_of_handshake(handle).then_some(GuestEnd { guest: self, handle })
    }

    /// Takes connections to a port.
    pub(crate) fn listen(&mut self, port: u16, receive_buffer: usize) -> SocketHandle {
        let handle = self.add_socket(receive_buffer);
        self.socket(handle).listen(port).unwrap();
        handle
    }

    /// Waits for the connection that a socket listens for, and has another socket listen then.
    pub(crate) fn accept(
        &mut self,
        listening: &mut SocketHandle,
        port: u16,
        receive_buffer: usize,
    ) -> GuestEnd<'_> {
        assert!(self.await_end_of_handshake(*listening), "nobody connects");
        let next = self.listen(port, receive_buffer);
        let handle = std::mem::replace(listening, next);
        GuestEnd { guest: self, handle }
    }

    /// Waits until a connection has come about or failed.
    fn await_end_of_handshake(&mut self, handle: SocketHandle) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.socket(handle).state() {
                State::Listen | State::SynSent | State::SynReceived if Instant::now() < until => {
                    self.pass_time()
                }
                State::Listen | State::SynSent | State::SynReceived | State::Closed => return false,
                _ => return true,
            }
        }
    }

    /// After the last connection: waits until all have ended. Before it, they end while others last.
    pub(crate) fn end_with(&mut self, is_last: bool) {
        if !is_last {
            return;
        }
        let until = Instant::now() + PATIENCE;
        while !self.closed.is_empty() && Instant::now() < until {
            self.pass_time();
        }
        assert!(self.closed.is_empty(), "{} connections do not end", self.closed.len());
    }
}

/// An end of a connection in the guest.
pub(crate) struct GuestEnd<'a> {
    guest: &'a mut Guest,
    handle: SocketHandle,
}

impl GuestEnd<'_> {
    fn socket(&mut self) -> &mut Socket<'static> {
        self.guest.socket(self.handle)
    }

    /// Waits until all is acknowledged that was sent: Linux would have sent it by now.
    fn flush(&mut self) {
        let until = Instant::now() + Duration::from_secs(1);
        while self.socket().send_queue() > 0 && self.socket().is_active() && Instant::now() < until {
            self.guest.pass_time();
        }
    }
}

impl End for GuestEnd<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, Failed> {
        let count = self.socket().send_slice(bytes).map_err(|_| Failed)?;
        self.guest.poll();
        Ok(count)
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<Option<usize>, Failed> {
        let received = self.socket().recv_slice(bytes);
        if received.is_ok_and(|count| count > 0) {
            // The window has opened.
            self.guest.poll();
        }
        match received {
            Ok(0) => Ok(None),
            Ok(count) => Ok(Some(count)),
            Err(RecvError::Finished) => Ok(Some(0)),
            Err(RecvError::InvalidState) => Err(Failed),
        }
    }

    fn waiting(&mut self) -> usize {
        self.socket().recv_queue()
    }

    fn has_failed(&mut self) -> bool {
        self.socket().state() == State::Closed
    }

    fn half_close(&mut self) {
        self.guest.ending.push(self.handle);
        self.guest.poll();
    }

    fn reset(&mut self) {
        self.flush();
        self.socket().abort();
        self.guest.closed.push(self.handle);
        self.guest.poll();
    }

    fn close(&mut self) {
        self.guest.ending.push(self.handle);
        self.guest.closed.push(self.handle);
        self.guest.poll();
    }

    fn pass_time(&mut self, _sends: bool) {
        self.guest.pass_time();
    }
}
