//! The network stack: every connection of a guest ends here, and continues as a socket of the host.
//!
//! Without clock and without sockets of its own: [`Stack::set_time`] sets the time, [`Sockets`] gives the sockets, frames
//! come in by [`Stack::receive`] and go out by [`Stack::outbox`]. Everything is bounded: flows, what waits for the guest,
//! what waits for the log.
//!
//! # What is understood
//! From the guest: ARP and neighbour solicitations in its own network, and TCP, UDP and ICMP echo from its own address, in
//! packets that are whole and plain ([`frame`]). A flow begins with a packet that the [`EgressFilter`] allows; what belongs to no flow is
//! refused. Only what a packet carries is passed on: no header of the guest reaches the host.

/// What a flow works with, apart from the table of flows.
macro_rules! surroundings {
    ($stack:expr) => {
        Surroundings {
            interface: &mut $stack.interface,
            outbox: &mut $stack.outbox,
            egress: &mut $stack.egress,
            guest_mac: $stack.guest_mac,
            our_mac: OUR_MAC,
            mtu: $stack.mtu,
            now: $stack.now.running,
        }
    };
}

mod datagrams;
mod members;
mod name_service;
mod neighbours;
mod options;
mod published;
mod tcp;
mod wire;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use microagent_model::egress::Decision;
use rustix::io::Errno;
use smoltcp::iface::{Config, Interface};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::dns::local::LocalNames;
use crate::dns::resolver::{Asker, DnsRequestId};
use crate::egress::{EgressFilter, FilterOptions, Now};
use crate::flows::{Key, Kind, OPENING};
use crate::frame::{self, ETHERNET_LEN, Frame, Mac, Packet, Segment, Transport, flags};
use crate::membership::MemberProtocol;
use crate::outbox::{Link, Outbox, Unreachable};
use crate::sockets::{PortNumber, Readiness, Sockets, StreamSocket, Token};
use crate::{GATEWAY, GATEWAY_V6, NAME_SERVER, PREFIX_LEN, PREFIX_LEN_V6, gateway};
pub use options::{HostChange, NameOptions, StackOptions};

use datagrams::{ClientFlow, DatagramFlow};
use members::ASKED;
use name_service::Peer;
use tcp::{Progress, Surroundings, TcpFlow};
use wire::Wire;

/// Hardware address of everybody but the guest.
const OUR_MAC: Mac = [0x52, 0x55, 10, 0, 2, 2];

/// Port of name servers.
const DNS_PORT: u16 = 53;

/// Buffer of a TCP flow in each direction in bytes; memory is used as far as data fills it.
const BUFFER: usize = 128 * 1024;

/// Buffer of a TCP flow while the others have [`BUFFERS_MAX`] together.
const SMALL_BUFFER: usize = 32 * 1024;

/// Bytes of buffers after which new flows get small ones.
const BUFFERS_MAX: usize = 64 * 1024 * 1024;

/// Flows that are advanced before frames and sockets are looked at again.
const TURN: usize = 256;

/// Timers beyond those of flows that are kept before the stale ones are thrown away.
const STALE_MAX: usize = 1024;

/// A flow of any kind.
enum Flow<S: Sockets> {
    /// A connection of the guest that the host's socket has not answered; the packet that began it.
    Opening {
        stream: S::Stream,
        syn: Box<[u8]>,
        /// Until when a member must have answered; the host's kernel has a time of its own.
        until: Option<Duration>,
    },
    Tcp(Box<TcpFlow<Peer<S::Stream>>>),
    Datagrams(DatagramFlow<S::Datagram>),
    Client(ClientFlow),
}

struct Entry<S: Sockets> {
    flow: Flow<S>,
    token: Token,
    /// Whether it waits for its turn.
    is_queued: bool,
    /// The timer that counts for it.
    deadline: Option<Duration>,
    /// Bytes of its buffers.
    buffers: usize,
    /// The member that has begun it.
    begun_by: Option<IpAddr>,
}

/// The stack of one guest.
pub struct Stack<S: Sockets> {
    sockets: S,
    interface: Interface,
    egress: EgressFilter,
    outbox: Outbox,
    guest_mac: Mac,
    mtu: usize,
    now: Now,
    flows: HashMap<Key, Entry<S>>,
    keys: HashMap<Token, Key>,
    /// Flows of clients of published UDP ports.
    clients: HashMap<(PortNumber, SocketAddr), Key>,
    /// How many flows each member has begun.
    begun: HashMap<IpAddr, usize>,
    last_token: Token,
    queue: VecDeque<Key>,
    timers: BinaryHeap<Reverse<(Duration, Token)>>,
    buffers: usize,
    is_spent: bool,
    scratch: Box<[u8]>,
}

impl<S: Sockets> Stack<S> {
    /// A stack without flows.
    pub fn new(options: StackOptions, sockets: S, now: Now) -> Stack<S> {
        let mut outbox = Outbox::default();
        let mtu = usize::from(options.mtu);
        let mut config = Config::new(HardwareAddress::Ip);
        // A keyed hash: sequence numbers that nobody outside can foretell.
        config.random_seed = RandomState::new().hash_one(options.guest_mac);
        let mut wire =
            Wire { packet: None, outbox: &mut outbox, guest_mac: [0; 6], our_mac: OUR_MAC, mtu, sent: None };
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        // It answers for every address that a flow has.
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(GATEWAY.into(), PREFIX_LEN));
            let _ = addresses.push(IpCidr::new(GATEWAY_V6.into(), PREFIX_LEN_V6));
        });
        // The guest's addresses in private networks are behind the same link. There is room for one route.
        let _ = interface.routes_mut().add_default_ipv4_route(GATEWAY);
        let NameOptions { hostname, added, of_host } = options.names;
        let rules = &options.policy.allow;
        let mut local = LocalNames::new(hostname, added, rules);
        local.use_host_file(of_host, rules);
        let filter = FilterOptions {
            local,
            forwards: options.forwards,
            brokers: options.brokers,
            memberships: options.memberships,
            policy: options.policy,
            host_addresses: options.host_addresses,
            name_servers: options.name_servers,
            moved_bytes: options.moved_bytes,
        };
        Stack {
            sockets,
            interface,
            egress: EgressFilter::new(filter, now),
            outbox,
            guest_mac: options.guest_mac,
            mtu,
            now,
            flows: HashMap::new(),
            keys: HashMap::new(),
            clients: HashMap::new(),
            begun: HashMap::new(),
            last_token: 0,
            queue: VecDeque::new(),
            timers: BinaryHeap::new(),
            buffers: 0,
            is_spent: false,
            scratch: vec![0; usize::from(u16::MAX)].into_boxed_slice(),
        }
    }

    /// Sets the time, before frames and readiness of that time.
    pub fn set_time(&mut self, now: Now) {
        self.now = now;
        self.egress.set_time(now);
    }

    /// Frames for the guest.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// The sockets that it works with.
    pub fn sockets(&mut self) -> &mut S {
        &mut self.sockets
    }

    /// What is to be logged.
    pub fn take_decisions(&mut self) -> Vec<Decision> {
        self.egress.take_decisions()
    }

    /// Bytes that were moved, as the policy counts them, with those before it started.
    pub fn moved_bytes(&self) -> u64 {
        self.egress.moved_bytes()
    }

    /// Takes what has changed on the host. What is open stays open.
    pub fn follow(&mut self, change: HostChange) {
        if let Some(addresses) = change.addresses {
            self.egress.use_host_addresses(addresses);
        }
        if let Some(servers) = change.name_servers {
            self.egress.use_name_servers(servers);
        }
        if let Some(entries) = change.hosts {
            self.egress.use_host_file(entries);
        }
        if let Some(members) = change.members {
            self.egress.use_members(members);
        }
    }

    /// Takes what came of a question to a name server: a message, or nothing when there will be none.
    pub fn resolved(&mut self, request_id: DnsRequestId, message: Option<&[u8]>) {
        match message {
            Some(message) => self.egress.receive_answer(request_id, message),
            None => self.egress.fail_answer(request_id),
        }
    }

    /// Takes a frame of the guest.
    pub fn receive(&mut self, bytes: &[u8]) {
        match frame::read(bytes) {
            Ok(Frame::Arp(arp)) => self.arp(&arp),
            Ok(Frame::Solicitation(solicitation)) => self.solicited(&solicitation),
            Ok(Frame::Ip(packet))
                if packet.source == self.egress.memberships().guest_address(packet.destination) =>
            {
                let ip = &bytes[ETHERNET_LEN..][..packet.len];
                self.packet(ip, &packet);
            }
            // What is not understood, or not from the guest's address in that network, goes nowhere.
            Ok(Frame::Ip(_)) | Err(_) => {}
        }
    }

    fn packet(&mut self, ip: &[u8], packet: &Packet<'_>) {
        let remote = packet.destination;
        match packet.transport {
            Transport::Udp { source, destination: DNS_PORT, payload } if remote == NAME_SERVER => {
                self.egress.query(Asker::Udp(source), payload);
            }
            Transport::Tcp(segment) => self.segment(ip, remote, &segment),
            Transport::Udp { source, destination, payload } => {
                let key = Key { kind: Kind::Udp, remote, remote_port: destination, guest_port: source };
                self.datagram(key, ip, payload);
            }
            // The gateway is the stack itself.
            Transport::Echo { request: true, id, sequence, payload }
                if remote == gateway(remote) && !self.egress.is_spent() =>
            {
                if self.egress.spend(2 * ip.len()) {
                    let back = link(self.guest_mac, &self.egress, remote);
                    self.outbox.echo(back, false, (id, sequence), payload, self.mtu);
                }
            }
            Transport::Echo { request: true, id, .. } => {
                let key = Key { kind: Kind::Echo, remote, remote_port: 0, guest_port: id };
                self.datagram(key, ip, &ip[frame::header_len(ip)..]);
            }
            // Only members ask the guest.
            Transport::Echo { request: false, id, .. } => {
                let key = Key { kind: Kind::Echo, remote, remote_port: ASKED, guest_port: id };
                if self.flows.contains_key(&key) {
                    self.datagram(key, ip, &ip[frame::header_len(ip)..]);
                }
            }
        }
    }

    fn segment(&mut self, ip: &[u8], remote: IpAddr, segment: &Segment) {
        let key =
            Key { kind: Kind::Tcp, remote, remote_port: segment.destination, guest_port: segment.source };
        match self.flows.get_mut(&key).map(|entry| &mut entry.flow) {
            // The guest repeats its first segment, begins anew, or gives up.
            Some(Flow::Opening { syn, .. }) => {
                if segment.has(flags::RST) {
                    self.end(&key);
                } else if segment.opens() {
                    *syn = ip.into();
                }
            }
            Some(Flow::Tcp(flow)) => {
                let mut around = surroundings!(self);
                flow.take(ip, segment, &mut around);
                self.enqueue(key);
            }
            _ if segment.opens() && remote == NAME_SERVER && key.remote_port == DNS_PORT => {
                self.serve_names(key, ip, segment);
            }
            _ if segment.opens() => self.open(key, ip, segment),
            _ => self.outbox.reset(link(self.guest_mac, &self.egress, remote), segment),
        }
    }

    /// Begins a connection of the guest, if it may be.
    fn open(&mut self, key: Key, syn: &[u8], segment: &Segment) {
        let back = link(self.guest_mac, &self.egress, key.remote);
        if key.remote_port == 0 || key.guest_port == 0 {
            return self.outbox.reset(back, segment);
        }
        if self.egress.admit(key, self.flows.len()).is_err() {
            return self.outbox.reset(back, segment);
        }
        let token = self.token();
        let member = self.egress.member(key);
        let stream = match (member, self.egress.broker(key)) {
            (Some(member), _) => {
                self.sockets.connect_member(token, members::port_of(member, MemberProtocol::Tcp, key))
            }
            (None, Some(number)) => self.sockets.connect_broker(token, number),
            (None, None) => {
                let named = SocketAddr::new(key.remote, key.remote_port);
                self.sockets.connect(token, self.egress.forwarded(key).map_or(named, SocketAddr::from))
            }
        };
        let until = member.map(|_| self.now.running + OPENING);
        match stream {
            Ok(stream) => self.insert(key, token, Flow::Opening { stream, syn: syn.into(), until }, 0),
            Err(error) => self.refuse(key, syn, error),
        }
    }

    /// Tells the guest why its connection or datagram went nowhere, as the host was told.
    fn refuse(&mut self, key: Key, ip: &[u8], error: Errno) {
        let gateway = link(self.guest_mac, &self.egress, gateway(key.remote));
        let code = match error {
            Errno::NETUNREACH | Errno::NETDOWN => Unreachable::Net,
            Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT => Unreachable::Host,
            Errno::ACCESS | Errno::PERM => Unreachable::Prohibited,
            Errno::CONNREFUSED if key.kind != Kind::Tcp => {
                let back = link(self.guest_mac, &self.egress, key.remote);
                return self.outbox.unreachable(back, Unreachable::Port, ip);
            }
            Errno::CONNREFUSED | Errno::CONNRESET => return self.reset(key, ip),
            // The host has no descriptor, no port or no memory for it.
            _ => {
                self.egress.note_exhausted(key);
                return match key.kind {
                    Kind::Tcp => self.reset(key, ip),
                    _ => self.outbox.unreachable(gateway, Unreachable::Host, ip),
                };
            }
        };
        self.outbox.unreachable(gateway, code, ip);
    }

    /// Resets the connection that a packet of the guest would begin.
    fn reset(&mut self, key: Key, ip: &[u8]) {
        if let Some(segment) = frame::read_segment(ip) {
            self.outbox.reset(link(self.guest_mac, &self.egress, key.remote), &segment);
        }
    }

    /// Notes what a socket is ready for.
    pub fn ready(&mut self, token: Token, readiness: Readiness) {
        let Some(&key) = self.keys.get(&token) else { return };
        let Some(entry) = self.flows.get_mut(&key) else { return };
        match &mut entry.flow {
            Flow::Opening { .. } if readiness.is_writable => self.answer(key),
            Flow::Opening { .. } => {}
            Flow::Tcp(flow) => flow.ready(readiness),
            Flow::Datagrams(flow) => flow.ready(readiness),
            Flow::Client(_) => {}
        }
        self.enqueue(key);
    }

    /// Answers the guest what came of its connection.
    fn answer(&mut self, key: Key) {
        let Some(Entry { flow: Flow::Opening { stream, .. }, .. }) = self.flows.get(&key) else { return };
        let outcome = stream.connected();
        if outcome == Err(Errno::AGAIN) {
            return;
        }
        let Some(entry) = self.take(&key) else { return };
        let Flow::Opening { stream, syn, .. } = entry.flow else { return };
        match outcome {
            Ok(()) => {
                let buffer = self.buffer();
                let mut around = surroundings!(self);
                let flow = TcpFlow::answering(key, Peer::Host(stream), &syn, buffer, &mut around);
                self.insert(key, entry.token, Flow::Tcp(Box::new(flow)), 2 * buffer);
            }
            Err(error) => self.refuse(key, &syn, error),
        }
    }

    /// Does what can be done now. True: there is more, when frames and sockets were looked at.
    pub fn advance(&mut self) -> bool {
        self.wake();
        for _ in 0..TURN {
            if !self.outbox.has_room() {
                break;
            }
            let Some(key) = self.queue.pop_front() else { break };
            self.advance_flow(key);
        }
        self.egress.tick();
        self.resolve();
        for answer in self.egress.take_answers() {
            self.give_answer(answer);
        }
        if self.egress.is_spent() && !self.is_spent {
            self.is_spent = true;
            self.end_all();
        }
        !self.queue.is_empty() && self.outbox.has_room()
    }

    fn advance_flow(&mut self, key: Key) {
        let Some(entry) = self.flows.get_mut(&key) else { return };
        entry.is_queued = false;
        let mut around = surroundings!(self);
        let (progress, deadline) = match &mut entry.flow {
            Flow::Opening { until, .. } => match *until {
                Some(until) if until <= around.now => return self.give_up(key),
                until => (Progress::Waiting, until),
            },
            Flow::Tcp(flow) => (flow.advance(&mut around), flow.deadline(&mut around)),
            Flow::Datagrams(flow) => flow.advance(&mut around, &mut self.scratch),
            Flow::Client(flow) => flow.advance(around.now),
        };
        match progress {
            Progress::Ended => self.end(&key),
            Progress::More => self.enqueue(key),
            Progress::Waiting => {}
        }
        self.set_timer(&key, deadline);
        if key.remote == NAME_SERVER {
            self.ask(&key);
        }
    }

    /// Asks name servers. A failure may have the next one asked at once; attempts are counted, so this ends.
    fn resolve(&mut self) {
        loop {
            let dns_requests = self.egress.take_dns_requests();
            if dns_requests.is_empty() {
                return;
            }
            for request in dns_requests {
                if let Err(request_id) = self.sockets.resolve(request) {
                    self.egress.fail_answer(request_id);
                }
            }
        }
    }

    /// When [`Stack::advance`] is to be called at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        [timer, self.egress.deadline()].into_iter().flatten().min()
    }

    /// Whether flows wait for their turn.
    pub fn is_busy(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Queues the flows whose time has come.
    fn wake(&mut self) {
        while let Some(Reverse((at, token))) = self.timers.peek().copied() {
            if at > self.now.running {
                return;
            }
            self.timers.pop();
            let Some(&key) = self.keys.get(&token) else { continue };
            let Some(entry) = self.flows.get_mut(&key) else { continue };
            if entry.deadline == Some(at) {
                entry.deadline = None;
                self.enqueue(key);
            }
        }
    }

    fn set_timer(&mut self, key: &Key, deadline: Option<Duration>) {
        let Some(entry) = self.flows.get_mut(key) else { return };
        if entry.deadline == deadline {
            return;
        }
        entry.deadline = deadline;
        if let Some(at) = deadline {
            self.timers.push(Reverse((at, entry.token)));
        }
        if self.timers.len() > 2 * self.flows.len() + STALE_MAX {
            let entries = self.flows.values();
            self.timers = entries.filter_map(|entry| Some(Reverse((entry.deadline?, entry.token)))).collect();
        }
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(entry) = self.flows.get_mut(&key)
            && !entry.is_queued
        {
            entry.is_queued = true;
            self.queue.push_back(key);
        }
    }

    fn token(&mut self) -> Token {
        self.last_token += 1;
        self.last_token
    }

    /// The size of a new flow's buffers.
    fn buffer(&self) -> usize {
        if self.buffers < BUFFERS_MAX { BUFFER } else { SMALL_BUFFER }
    }

    fn insert(&mut self, key: Key, token: Token, flow: Flow<S>, buffers: usize) {
        self.buffers += buffers;
        self.keys.insert(token, key);
        let entry = Entry { flow, token, is_queued: false, deadline: None, buffers, begun_by: None };
        self.flows.insert(key, entry);
        self.enqueue(key);
    }

    fn take(&mut self, key: &Key) -> Option<Entry<S>> {
        let entry = self.flows.remove(key)?;
        self.keys.remove(&entry.token);
        if let Flow::Client(flow) = &entry.flow {
            self.clients.remove(&flow.client());
        }
        if let Some(member) = entry.begun_by {
            self.count_begun(member, -1);
        }
        self.buffers -= entry.buffers;
        Some(entry)
    }

    fn end(&mut self, key: &Key) {
        drop(self.take(key));
    }

    /// Ends every flow. A guest that only waits for data would not notice otherwise, so its connections are reset.
    fn end_all(&mut self) {
        let keys: Vec<Key> = self.flows.keys().copied().collect();
        for key in keys {
            let Some(mut entry) = self.take(&key) else { continue };
            match &mut entry.flow {
                Flow::Opening { syn, .. } => {
                    let syn = std::mem::take(syn);
                    self.reset(key, &syn);
                }
                Flow::Tcp(flow) => flow.abort(&mut surroundings!(self)),
                Flow::Datagrams(_) | Flow::Client(_) => {}
            }
        }
        self.queue.clear();
    }

    /// Sizes of what grows: flows, timers, addresses with names, refusals that are remembered.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn sizes(&self) -> [usize; 4] {
        let [names, refusals] = self.egress.sizes();
        [self.flows.len(), self.timers.len(), names, refusals]
    }
}

/// The way of a packet to the guest that comes from `source`.
fn link(guest_mac: Mac, egress: &EgressFilter, source: IpAddr) -> Link {
    let destination = egress.memberships().guest_address(source);
    Link { source_mac: OUR_MAC, destination_mac: guest_mac, source, destination }
}

#[cfg(test)]
mod tests;
