//! Connections of a guest are what they are on the host: the same scenarios over loopback and through the stack, and all
//! that both ends have seen is compared.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod guest;
mod play;
mod scenario;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use microagent_model::egress::{Decision, EgressPolicy};
use microagent_model::{Forward, PortProtocol};
use microagent_net::{
    Channels, Controller, HostAddresses, Listener, NameOptions, Order, StackOptions, run_stack,
};

use guest::{Guest, MAC};
use play::{HostEnd, play};
use scenario::{Scenario, Step};

/// Scenarios of each direction and size of frames, unless `MICROAGENT_SCENARIOS` says how many.
const SCENARIOS: u64 = 125;

/// The guest's port that is published, and the gateway's that is forwarded.
const GUEST_PORT: u16 = 7001;
const FORWARDED_PORT: u16 = 7002;

/// Sizes of a guest's receive buffers. Each takes all that an end may leave where it is.
const RECEIVE_BUFFERS: [usize; 4] = [16_384, 20_000, 65_536, 262_144];
const _: () = assert!(RECEIVE_BUFFERS[0] > scenario::LAST_WORDS_MAX);

/// What both ends have seen: the client, the server.
type Seen = [Vec<String>; 2];

/// Plays scenarios with a client and a server, each on a thread of its own.
fn both(
    scenarios: &[Scenario],
    mut client: impl FnMut(usize, &[Step]) -> Vec<String>,
    mut server: impl FnMut(usize, &[Step]) -> Vec<String> + Send,
) -> Vec<Seen> {
    std::thread::scope(|scope| {
        let served = scope.spawn(move || {
            let each = scenarios.iter().enumerate();
            each.map(|(number, scenario)| server(number, &scenario.server)).collect::<Vec<_>>()
        });
        let each = scenarios.iter().enumerate();
        let called: Vec<_> = each.map(|(number, scenario)| client(number, &scenario.client)).collect();
        called.into_iter().zip(served.join().unwrap()).map(|(client, server)| [client, server]).collect()
    })
}

fn call(address: SocketAddr, steps: &[Step]) -> Vec<String> {
    play(steps, &mut HostEnd::new(TcpStream::connect(address).unwrap()))
}

fn answer(listener: &TcpListener, steps: &[Step]) -> Vec<String> {
    play(steps, &mut HostEnd::new(listener.accept().unwrap().0))
}

fn listener() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

fn on_the_host(scenarios: &[Scenario]) -> Vec<Seen> {
    let (listener, address) = listener();
    both(scenarios, |_, steps| call(address.into(), steps), move |_, steps| answer(&listener, steps))
}

fn from_the_guest(scenarios: &[Scenario], mtu: u16) -> Vec<Seen> {
    let (listener, address) = listener();
    let stack = RunningStack::start(mtu, &[(FORWARDED_PORT, address)], None);
    let mut guest = Guest::new(stack.link(), mtu);
    both(
        scenarios,
        |number, steps| {
            let end = guest.connect(FORWARDED_PORT, RECEIVE_BUFFERS[number % RECEIVE_BUFFERS.len()]);
            let seen = play(steps, &mut end.expect("the server listens"));
            guest.end_with(number + 1 == scenarios.len());
            seen
        },
        move |_, steps| answer(&listener, steps),
    )
}

fn to_the_guest(scenarios: &[Scenario], mtu: u16) -> Vec<Seen> {
    let (listener, address) = listener();
    let stack = RunningStack::start(mtu, &[], Some(listener));
    let mut guest = Guest::new(stack.link(), mtu);
    let buffer = |number: usize| RECEIVE_BUFFERS[number % RECEIVE_BUFFERS.len()];
    // The next client may come while the last one is still served.
    let mut listening = guest.listen(GUEST_PORT, buffer(0));
    both(
        scenarios,
        |_, steps| call(address.into(), steps),
        move |number, steps| {
            let seen = play(steps, &mut guest.accept(&mut listening, GUEST_PORT, buffer(number + 1)));
            guest.end_with(number + 1 == scenarios.len());
            seen
        },
    )
}

/// A stack of its own thread, which ends when its link closes.
struct RunningStack {
    link: UnixStream,
    _orders: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl RunningStack {
    fn start(mtu: u16, forwards: &[(u16, SocketAddrV4)], published: Option<TcpListener>) -> RunningStack {
        let forwards = forwards
            .iter()
            .map(|(port, target)| Forward { guest_port: NonZeroU16::new(*port).unwrap(), target: *target });
        let options = StackOptions {
            policy: EgressPolicy::default(),
            guest_mac: MAC,
            mtu,
            host_addresses: HostAddresses::default(),
            name_servers: Vec::new(),
            names: NameOptions::default(),
            forwards: forwards.collect(),
            brokers: 0,
            memberships: Vec::new(),
            moved_bytes: 0,
        };
        let (link, qemu) = UnixStream::pair().unwrap();
        let (control, mut orders) = UnixStream::pair().unwrap();
        orders.write_all(b"!").unwrap();
        let controls = vec![control.try_clone().unwrap().into()];
        let mut controller = Publisher { listener: published, control };
        let channels = Channels {
            qemu: qemu.into(),
            controls,
            brokers: None,
            members: Vec::new(),
            rate: None,
            is_resumed: false,
        };
        let thread = std::thread::spawn(move || run_stack(options, channels, &mut controller).unwrap());
        RunningStack { link, _orders: orders, thread: Some(thread) }
    }

    /// The guest's end.
    fn link(&self) -> UnixStream {
        self.link.try_clone().unwrap()
    }
}

impl Drop for RunningStack {
    fn drop(&mut self) {
        // The guest's end may be open in another place.
        let _ = self.link.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}

/// Gives the stack its published port, and has nothing else to say.
struct Publisher {
    listener: Option<TcpListener>,
    control: UnixStream,
}

impl Controller for Publisher {
    fn record(&mut self, _decision: &Decision) {}

    fn flush(&mut self) {}

    fn moved(&mut self, _bytes: u64) {}

    fn connect(&mut self, _network: u8, _address: Ipv4Addr) {}

    fn order(&mut self) -> Order {
        let Some(listener) = self.listener.take() else {
            self.control.set_nonblocking(true).unwrap();
            let _ = self.control.read(&mut [0]);
            return Order::Nothing;
        };
        listener.set_nonblocking(true).unwrap();
        let (socket, protocol) = (OwnedFd::from(listener), PortProtocol::Tcp);
        Order::Open(1, Listener { socket, protocol, guest_port: GUEST_PORT })
    }
}

/// Compares what the ends of all scenarios see on the host with what they see by way of a guest.
fn compare(through: fn(&[Scenario], u16) -> Vec<Seen>, mtu: u16, first: u64) {
    let count = std::env::var("MICROAGENT_SCENARIOS").map_or(SCENARIOS, |text| text.parse().unwrap());
    let scenarios: Vec<Scenario> = (first..first + count).map(Scenario::draw).collect();
    let expected = on_the_host(&scenarios);
    let seen = through(&scenarios, mtu);
    for (number, ((scenario, expected), seen)) in scenarios.iter().zip(expected).zip(seen).enumerate() {
        assert_eq!(seen, expected, "seed {}: {scenario:?}", first + number as u64);
    }
}

#[test]
fn what_the_guest_begins_is_as_on_the_host() {
    compare(from_the_guest, 1500, 1);
}

#[test]
fn what_the_guest_begins_with_large_frames_is_as_on_the_host() {
    compare(from_the_guest, 65_520, 100_001);
}

#[test]
fn what_clients_of_the_guest_begin_is_as_on_the_host() {
    compare(to_the_guest, 1500, 200_001);
}

#[test]
fn what_clients_of_the_guest_begin_with_large_frames_is_as_on_the_host() {
    compare(to_the_guest, 65_520, 300_001);
}
