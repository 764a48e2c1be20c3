//! One TCP flow: a socket of smoltcp towards the guest, a socket of the host towards the remote end, and nothing between.
//!
//! Data goes from one socket straight into the buffer of the other, so that a side that does not take holds back the one
//! that sends. A connection that the guest begins is answered when the host's socket is connected: until then its first
//! segment is kept.
//!
//! # What smoltcp 0.14 is kept from
//! - It forgets a retransmission that the device does not take: [`Wire`] takes everything.
//! - It stops the retransmission timer when the guest closes its window while data is on its way, and need not start it
//!   again; and its shortest timeout is a second. So a flow whose data is not acknowledged is made to send again
//!   ([`TcpFlow::provoke`]).
//! - It ignores the window in the last segments of a connection: its side is closed only when all data is acknowledged.
//! - It does not answer a guest that begins a connection which is open here: [`TcpFlow::challenge`] does.
//! - It throws away what the host has not taken, ten seconds after both sides have closed: it is not asked any more then.

use std::net::IpAddr;
use std::time::Duration;

use rustix::io::Errno;
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::IpListenEndpoint;

use super::wire::{Sent, Wire};
use crate::egress::EgressFilter;
use crate::flows::{Key, OPENING};
use crate::frame::{IPV4_LEN, IPV6_LEN, Mac, PROTOCOL_TCP, Segment, TCP_LEN, flags};
use crate::outbox::{Link, Outbox, write_packet};
use crate::sockets::{Readiness, StreamSocket};

/// Segments that one flow sends before others have their turn.
const BURST: usize = 64;

/// Time without an acknowledgement after which the first data is sent again. Linux acknowledges within 200 ms; an
/// emulated guest may be slow.
const UNACKNOWLEDGED: Duration = Duration::from_millis(300);

/// How often that time is doubled.
const DOUBLINGS: u32 = 6;

/// Time in which the guest must take what the host received before its connection was reset.
const LAST_DATA: Duration = Duration::from_secs(30);

/// Time after which a socket that smoltcp wants to be polled, and that has nothing to send, is polled again.
const IDLE_POLL: Duration = Duration::from_millis(10);

/// What a flow works with.
pub(super) struct Surroundings<'a> {
    pub(super) interface: &'a mut Interface,
    pub(super) outbox: &'a mut Outbox,
    pub(super) egress: &'a mut EgressFilter,
    pub(super) guest_mac: Mac,
    pub(super) our_mac: Mac,
    pub(super) mtu: usize,
    pub(super) now: Duration,
}

impl Surroundings<'_> {
    fn instant(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.now.as_micros()).unwrap_or(i64::MAX))
    }

    fn wire<'b>(&'b mut self, packet: Option<&'b [u8]>) -> (Wire<'b>, &'b mut Interface) {
        let wire = Wire {
            packet,
            outbox: self.outbox,
            guest_mac: self.guest_mac,
            our_mac: self.our_mac,
            mtu: self.mtu,
            sent: None,
        };
        (wire, self.interface)
    }
}

/// What is next for a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing, until something happens.
    Waiting,
    /// More can be sent when others had their turn.
    More,
    /// It has ended.
    Ended,
}

/// What a side has done with its half of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Open,
    /// The host's socket has come to its end; the guest is told when it has what came.
    Ending,
    Closed,
}

/// A connection that was answered, or that is made to the guest.
pub(super) struct TcpFlow<S> {
    key: Key,
    /// The guest's address in it.
    guest: IpAddr,
    stream: S,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    is_readable: bool,
    is_writable: bool,
    /// What comes from the host.
    inbound: Half,
    /// What goes to the host.
    outbound: Half,
    /// The host's socket has failed: the guest gets what came, until this time, and a reset.
    failed: Option<Duration>,
    /// The guest has reset the connection.
    guest_reset: bool,
    /// A connection to the guest of which the other side does not know yet what came.
    is_unanswered: bool,
    begun: Duration,
    /// Both sides have closed, and the guest was told that we know.
    has_said_last: bool,
    /// The guest's last acknowledgement, and the window with it as the header has it.
    acknowledged: Option<(u32, u16)>,
    /// What was acknowledged to the guest.
    acknowledging: u32,
    /// The number behind the last data that was sent to the guest.
    end: Option<u32>,
    /// When the guest acknowledged something new, or data was sent when nothing was on its way.
    progress: Duration,
    /// How often data was sent again without an acknowledgement of something new.
    repeats: u32,
    /// Up to where data is sent again piece by piece.
    repair: Option<u32>,
}

impl<S: StreamSocket> TcpFlow<S> {
    /// A connection of the guest that the host's socket has answered; `syn` is its first packet.
    pub(super) fn answering(
        key: Key,
        stream: S,
        syn: &[u8],
        buffer: usize,
        around: &mut Surroundings<'_>,
    ) -> TcpFlow<S> {
        let mut flow = TcpFlow::new(key, stream, buffer, around);
        let local = IpListenEndpoint { addr: Some(key.remote.into()), port: key.remote_port };
        // Fails only for port 0, to which nobody can connect.
        let _ = flow.socket().listen(local);
        flow.feed(syn, around);
        flow
    }

    /// A connection to a port of the guest.
    pub(super) fn connecting(
        key: Key,
        stream: S,
        buffer: usize,
        around: &mut Surroundings<'_>,
    ) -> TcpFlow<S> {
        let mut flow = TcpFlow::new(key, stream, buffer, around);
        flow.is_unanswered = true;
        let context = around.interface.context();
        let remote = (flow.guest, key.guest_port);
        let local = (key.remote, key.remote_port);
        let socket = flow.sockets.get_mut::<Socket<'_>>(flow.handle);
        // Fails only for port 0, which is neither published nor a client's.
        let _ = socket.connect(context, remote, local);
        flow
    }

    fn new(key: Key, stream: S, buffer: usize, around: &Surroundings<'_>) -> TcpFlow<S> {
        let (guest, now) = (around.egress.memberships().guest_address(key.remote), around.now);
        let mut socket = Socket::new(SocketBuffer::new(vec![0; buffer]), SocketBuffer::new(vec![0; buffer]));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        TcpFlow {
            key,
            guest,
            stream,
            sockets,
            handle,
            is_readable: true,
            is_writable: true,
            inbound: Half::Open,
            outbound: Half::Open,
            failed: None,
            guest_reset: false,
            is_unanswered: false,
            begun: now,
            acknowledged: None,
            acknowledging: 0,
            end: None,
            has_said_last: false,
            progress: now,
            repeats: 0,
            repair: None,
        }
    }

    /// Where the connection leads.
    pub(super) fn peer(&self) -> &S {
        &self.stream
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.handle).state()
    }

    /// Notes what the host's socket is ready for.
    pub(super) fn ready(&mut self, readiness: Readiness) {
        self.is_readable |= readiness.is_readable;
        self.is_writable |= readiness.is_writable;
    }

    /// Takes a segment of the guest; `packet` is what it came in.
    pub(super) fn take(&mut self, packet: &[u8], segment: &Segment, around: &mut Surroundings<'_>) {
        let is_open = !matches!(self.state(), State::Listen | State::SynSent | State::SynReceived);
        if segment.opens() && is_open {
            return self.challenge(segment, around);
        }
        self.feed(packet, around);
        if segment.has(flags::RST) {
            self.guest_reset |= matches!(self.state(), State::Closed | State::Listen);
            return;
        }
        if !segment.has(flags::ACK) {
            return;
        }
        let before = self.acknowledged.map(|(number, _)| number);
        if before.is_some_and(|before| is_before(segment.acknowledged, before)) {
            return;
        }
        self.acknowledged = Some((segment.acknowledged, segment.window));
        if before != Some(segment.acknowledged) {
            self.progress = around.now;
            self.repeats = 0;
            match self.repair {
                Some(end) if is_before(segment.acknowledged, end) => self.provoke(around),
                _ => self.repair = None,
            }
        }
    }

    /// Answers a guest that begins a connection anew which is open here: its kernel, or its memory, is another one than the
    /// one that opened it. It resets the old one when it hears of it, and tries again. smoltcp would say nothing.
    ///
    /// # Source
    /// RFC 5961 4.2.
    fn challenge(&self, segment: &Segment, around: &mut Surroundings<'_>) {
        let link = Link {
            source_mac: around.our_mac,
            destination_mac: around.guest_mac,
            source: self.key.remote,
            destination: self.guest,
        };
        let sequence = self.acknowledged.map_or(0, |(number, _)| number);
        around.outbox.acknowledge(link, segment, sequence, self.acknowledging);
    }

    /// Hands a packet to smoltcp.
    fn feed(&mut self, packet: &[u8], around: &mut Surroundings<'_>) {
        let now = around.instant();
        let (mut wire, interface) = around.wire(Some(packet));
        let _ = interface.poll_ingress_single(now, &mut wire, &mut self.sockets);
        let sent = wire.sent;
        self.note(sent, around.now);
    }

    fn note(&mut self, sent: Option<Sent>, now: Duration) {
        let Some(sent) = sent else { return };
        self.acknowledging = sent.acknowledged;
        if sent.data_len == 0 {
            return;
        }
        if self.outstanding().is_none() {
            self.progress = now;
            self.end = Some(sent.end);
        } else if self.end.is_none_or(|end| is_before(end, sent.end)) {
            self.end = Some(sent.end);
        }
    }

    /// The number behind the last data that was sent, if it was not acknowledged.
    fn outstanding(&self) -> Option<u32> {
        let (acknowledged, _) = self.acknowledged?;
        self.end.filter(|end| is_before(acknowledged, *end))
    }

    /// Moves what can be moved.
    pub(super) fn advance(&mut self, around: &mut Surroundings<'_>) -> Progress {
        self.tell_outcome(around.now);
        self.stream.flush();
        self.send_to_host(around.egress);
        if self.guest_reset {
            self.stream.reset();
            return Progress::Ended;
        }
        self.send_to_guest(around);
        if self.is_due(around.now) {
            self.provoke(around);
        }
        let more = !self.has_said_last && self.emit(around);
        self.has_said_last = self.state() == State::TimeWait && !more;
        match self.state() {
            State::Closed | State::TimeWait if self.failed.is_some() || self.is_delivered() => {
                if self.failed.is_some() {
                    self.stream.reset();
                }
                if more && self.socket().remote_endpoint().is_some() && self.state() == State::Closed {
                    // The reset is still to be sent.
                    return Progress::More;
                }
                Progress::Ended
            }
            State::SynSent | State::SynReceived if around.now >= self.begun + OPENING => {
                self.stream.reset();
                Progress::Ended
            }
            _ if more => Progress::More,
            _ => Progress::Waiting,
        }
    }

    /// Says what came of a connection to the guest, as soon as that is known.
    fn tell_outcome(&mut self, now: Duration) {
        if !self.is_unanswered {
            return;
        }
        let outcome = match self.state() {
            State::SynSent | State::SynReceived if now < self.begun + OPENING => return,
            State::SynSent | State::SynReceived => Err(Errno::TIMEDOUT),
            State::Closed => Err(Errno::CONNREFUSED),
            _ => Ok(()),
        };
        self.is_unanswered = false;
        self.stream.answer(outcome);
    }

    /// Whether the host has all that the guest sent, and its end.
    fn is_delivered(&self) -> bool {
        self.outbound == Half::Closed && self.stream.flush()
    }

    fn send_to_host(&mut self, egress: &mut EgressFilter) {
        let TcpFlow { sockets, handle, stream, .. } = self;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        while socket.can_recv() {
            // What a guest sends behind its end is nobody's.
            if self.failed.is_some() || self.outbound == Half::Closed {
                let _ = socket.recv(|bytes| (bytes.len(), ()));
                continue;
            }
            if !self.is_writable {
                return;
            }
            let sent = socket.recv(|bytes| match egress.allowance(bytes.len()) {
                0 => (0, Err(Errno::NOSPC)),
                allowed => match stream.send(&bytes[..allowed]) {
                    Ok(count) => (count, Ok(count)),
                    Err(error) => (0, Err(error)),
                },
            });
            match sent {
                Ok(Ok(count)) => drop(egress.spend(count)),
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(Errno::AGAIN)) => self.is_writable = false,
                // Nothing may pass any more: the stack ends all flows.
                Ok(Err(Errno::NOSPC)) => {
                    egress.spend(1);
                    return;
                }
                Ok(Err(_)) => self.failed = Some(Duration::MAX),
                Err(_) => return,
            }
        }
        let has_ended = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
        );
        if has_ended && self.outbound == Half::Open && !self.guest_reset {
            stream.shut_down();
            self.outbound = Half::Closed;
            // The name service has its last word then.
            self.is_readable = true;
        }
    }

    fn send_to_guest(&mut self, around: &mut Surroundings<'_>) {
        let TcpFlow { sockets, handle, stream, .. } = self;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        while self.inbound == Half::Open && self.is_readable && socket.can_send() {
            let received = socket.send(|room| match around.egress.allowance(room.len()) {
                0 => (0, Err(Errno::NOSPC)),
                allowed => match stream.receive(&mut room[..allowed]) {
                    Ok(count) => (count, Ok(count)),
                    Err(error) => (0, Err(error)),
                },
            });
            match received {
                Ok(Ok(0)) => self.inbound = Half::Ending,
                Ok(Ok(count)) => drop(around.egress.spend(count)),
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(Errno::AGAIN)) => self.is_readable = false,
                Ok(Err(Errno::NOSPC)) => {
                    around.egress.spend(1);
                    return;
                }
                Ok(Err(_)) => {
                    self.failed = Some(Duration::MAX);
                    self.inbound = Half::Closed;
                }
                Err(_) => break,
            }
        }
        // A reset behind the end concerns a guest that still sends.
        if self.inbound != Half::Open
            && self.outbound == Half::Open
            && self.failed.is_none()
            && self.is_readable
        {
            self.is_readable = false;
            self.failed = stream.failure().map(|_| Duration::MAX);
        }
        if self.failed == Some(Duration::MAX) {
            self.failed = Some(around.now + LAST_DATA);
        }
        let is_taken = socket.send_queue() == 0;
        let is_ending = matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck);
        match self.failed {
            Some(until) if around.now >= until => {
                socket.abort();
                self.inbound = Half::Closed;
            }
            // An end that came before the reset is told before it.
            _ if self.inbound == Half::Ending && is_taken => {
                socket.close();
                self.inbound = Half::Closed;
            }
            Some(_) if is_taken && !is_ending => {
                if self.inbound == Half::Open && self.is_readable {
                    return;
                }
                socket.abort();
                self.inbound = Half::Closed;
            }
            _ => {}
        }
    }

    /// Sends what smoltcp has to send. True: there may be more.
    fn emit(&mut self, around: &mut Surroundings<'_>) -> bool {
        let now = around.instant();
        for _ in 0..BURST {
            if !around.outbox.has_room() {
                return true;
            }
            let (mut wire, interface) = around.wire(None);
            let polled = interface.poll_egress(now, &mut wire, &mut self.sockets);
            let sent = wire.sent;
            self.note(sent, around.now);
            if polled == PollResult::None {
                return false;
            }
        }
        true
    }

    /// When the flow is to be advanced at the latest.
    pub(super) fn deadline(&mut self, around: &mut Surroundings<'_>) -> Option<Duration> {
        let state = self.state();
        let polled = match state {
            State::TimeWait | State::Closed => None,
            _ => {
                let now = around.instant();
                let at = around.interface.poll_at(now, &self.sockets);
                let micros = |at: Instant| u64::try_from(at.total_micros()).unwrap_or(0);
                at.map(|at| Duration::from_micros(micros(at)).max(around.now + IDLE_POLL))
            }
        };
        let opening = matches!(state, State::SynSent | State::SynReceived).then(|| self.begun + OPENING);
        [polled, opening, self.failed, self.repeat_at()].into_iter().flatten().min()
    }

    /// When data is sent again, if nothing more is acknowledged.
    fn repeat_at(&self) -> Option<Duration> {
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        let (_, window) = self.acknowledged?;
        // With a closed window smoltcp asks for the guest's window, now and then.
        let waits = matches!(socket.state(), State::Established | State::CloseWait) && window > 0;
        let time = UNACKNOWLEDGED * 2_u32.pow(self.repeats.min(DOUBLINGS));
        (waits && socket.send_queue() > 0).then(|| self.progress + time)
    }

    fn is_due(&self, now: Duration) -> bool {
        let time = UNACKNOWLEDGED * 2_u32.pow(self.repeats.min(DOUBLINGS));
        now >= self.progress + time && self.repeat_at().is_some_and(|at| at <= now)
    }

    /// Has smoltcp send the first data that is not acknowledged again, by what makes it do so at once: three
    /// acknowledgements that repeat the guest's last. Two before them, with another window and with the last one, have it
    /// count from the beginning.
    fn provoke(&mut self, around: &mut Surroundings<'_>) {
        let (Some((acknowledged, window)), Some(end)) = (self.acknowledged, self.outstanding()) else {
            self.repair = None;
            return;
        };
        self.repeats += 1;
        self.progress = around.now;
        self.repair.get_or_insert(end);
        let other = if window == u16::MAX { window - 1 } else { window + 1 };
        for window in [other, window, window, window, window] {
            let packet = self.acknowledgement(acknowledged, window);
            self.feed(&packet, around);
        }
    }

    /// A segment as the guest would send it to acknowledge.
    fn acknowledgement(&self, acknowledged: u32, window: u16) -> Vec<u8> {
        let header_len = if self.guest.is_ipv6() { IPV6_LEN } else { IPV4_LEN };
        let mut packet = vec![0; header_len + TCP_LEN];
        let tcp = write_packet(&mut packet, self.guest, self.key.remote, PROTOCOL_TCP);
        tcp[0..2].copy_from_slice(&self.key.guest_port.to_be_bytes());
        tcp[2..4].copy_from_slice(&self.key.remote_port.to_be_bytes());
        tcp[4..8].copy_from_slice(&self.acknowledging.to_be_bytes());
        tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        tcp[12] = (TCP_LEN as u8 / 4) << 4;
        tcp[13] = flags::ACK;
        tcp[14..16].copy_from_slice(&window.to_be_bytes());
        packet
    }

    /// Ends the flow at once on both sides. The guest is told when it is advanced.
    pub(super) fn abort(&mut self, around: &mut Surroundings<'_>) {
        self.stream.reset();
        self.socket().abort();
        let now = around.instant();
        let (mut wire, interface) = around.wire(None);
        let _ = interface.poll_egress(now, &mut wire, &mut self.sockets);
    }
}

/// Whether a sequence number is before another.
fn is_before(number: u32, other: u32) -> bool {
    (number.wrapping_sub(other) as i32) < 0
}
