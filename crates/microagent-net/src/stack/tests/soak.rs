//! Transfers over a link that loses frames, to a guest with little memory: none hangs, and all data is right.
//!
//! A guest's kernel throws data away for which it had offered room when its memory is short, so the link that loses nothing
//! loses something all the same.

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};

use super::*;

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// The guest's end of the link.
#[derive(Default)]
struct GuestDevice {
    arrived: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct Arrived(Vec<u8>);
struct Leaving<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let done = write(&mut packet);
        self.0.push_back(packet);
        done
    }
}

impl Device for GuestDevice {
    type RxToken<'b> = Arrived;
    type TxToken<'b> = Leaving<'b>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Leaving<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Leaving(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        wire::capabilities(self.mtu)
    }
}

/// A guest with one connection.
pub(super) struct Guest {
    device: GuestDevice,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Guest {
    pub(super) fn new(seed: u64, mtu: usize, receive_buffer: usize) -> Guest {
        let mut device = GuestDevice { mtu, ..GuestDevice::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST_ADDRESS.into(), PREFIX_LEN)).unwrap();
            addresses.push(IpCidr::new(GUEST_ADDRESS_V6.into(), PREFIX_LEN_V6)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        interface.routes_mut().add_default_ipv6_route(GATEWAY_V6).unwrap();
        let buffers = (SocketBuffer::new(vec![0; receive_buffer]), SocketBuffer::new(vec![0; 64 * 1024]));
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(Socket::new(buffers.0, buffers.1));
        Guest { device, interface, sockets, handle }
    }

    fn connect(&mut self, far: IpAddr) {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        socket.connect(self.interface.context(), (far, 443), 40_000).unwrap();
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn poll(&mut self, now: Duration) {
        let now = Instant::from_micros(now.as_micros() as i64);
        self.interface.poll(now, &mut self.device, &mut self.sockets);
    }

    fn wants(&mut self, now: Duration) -> Option<Duration> {
        let at = self.interface.poll_at(Instant::from_micros(now.as_micros() as i64), &self.sockets)?;
        Some(Duration::from_micros(at.total_micros() as u64))
    }
}

/// One transfer to the guest; gives how long it took.
fn transfer(seed: u64, lost_per_thousand: u64) -> Duration {
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let len = 1 + numbers.below(400_000) as usize;
    let receive_buffer = [2_000, 4_096, 16_384, 65_536, 262_144][numbers.below(5) as usize];
    let mtu = [1500, 1500, 9000, 65_520][numbers.below(4) as usize];
    let mut bench = Bench::with_mtu(policy(EgressMode::Public, &[]), mtu);
    let mut guest = Guest::new(seed, mtu.into(), receive_buffer);
    guest.connect(if (seed / 4).is_multiple_of(2) { FAR.into() } else { FAR_V6.into() });
    let data: Vec<u8> = (0..len).map(|n| ((n as u64 * seed) >> 3) as u8).collect();
    let mut got = Vec::new();
    let mut time = Duration::ZERO;
    let mut is_connected = false;
    let reads = 1 + numbers.below(20_000) as usize;
    while got.len() < len || guest.socket().may_recv() {
        assert!(time < Duration::from_secs(300), "seed {seed} hangs: {} of {len} bytes came", got.len());
        bench.stack.set_time(Now { running: time, ..at(0) });
        guest.poll(time);
        let mut moved = false;
        while let Some(packet) = guest.device.sent.pop_front() {
            moved = true;
            if numbers.below(1000) >= lost_per_thousand {
                bench.stack.receive(&testing::framed(&packet));
            }
        }
        if !is_connected && let Some((token, _)) = bench.newest() {
            let (_, stream) = bench.stream();
            stream.borrow_mut().incoming.extend(&data);
            stream.borrow_mut().has_ended = true;
            bench.stack.ready(token, Readiness::BOTH);
            is_connected = true;
        }
        for frame in bench.run() {
            moved = true;
            if numbers.below(1000) >= lost_per_thousand {
                guest.device.arrived.push_back(frame[ETHERNET_LEN..].to_vec());
            }
        }
        // A program that reads now and then, and little at a time.
        if guest.socket().can_recv() && numbers.below(3) > 0 {
            guest
                .socket()
                .recv(|bytes| {
                    let count = bytes.len().min(reads);
                    got.extend_from_slice(&bytes[..count]);
                    (count, ())
                })
                .unwrap();
            moved = true;
        }
        time = match moved || guest.socket().can_recv() {
            true => time + Duration::from_micros(100),
            false => {
                let next = [bench.stack.deadline(), guest.wants(time)].into_iter().flatten().min();
                next.expect("somebody wants something").max(time + Duration::from_micros(100))
            }
        };
    }
    assert!(got == data, "seed {seed}: other data came");
    time
}

/// Most transfers are undisturbed; one that hangs would never end.
#[test]
fn two_thousand_transfers_over_a_link_that_loses_frames_come_to_an_end() {
    let transfers: u64 = std::env::var("MICROAGENT_SOAK").map_or(2_000, |text| text.parse().unwrap());
    let mut slowest = (Duration::ZERO, 0);
    for seed in 1..=transfers {
        let lost = [0, 1, 10, 50][(seed % 4) as usize];
        slowest = slowest.max((transfer(seed, lost), seed));
    }
    println!("slowest: {slowest:?}");
}
