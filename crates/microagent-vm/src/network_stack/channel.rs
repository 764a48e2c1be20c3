//! The channel between a supervisor and its network stack: a socket pair with message boundaries, so that a stack
//! that ends leaves no incomplete message. The supervisor sends commands about published ports with their sockets;
//! the stack sends decisions as lines of JSON.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use microagent_model::egress::Decision;
use microagent_model::{PORTS_MAX, PortProtocol, Publish};
use microagent_net::{Controller, Listener, Order, PortNumber};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::changes::{Heard, hear};
use super::member_connections::request;
use super::messages::{DESCRIPTORS_MAX, message_pair, receive_message, send_message};
use crate::mapped::SharedNumber;

/// Longest message in bytes, either way.
const MESSAGE_LIMIT: usize = 32 * 1024;

/// Bytes of a port in an order: two numbers and a protocol.
const PORT_TEXT_MAX: usize = 64;

/// Bytes of decisions that wait for the supervisor. What comes when they are full is not recorded.
const DECISIONS_MAX: usize = 256 * 1024;

// All ports of a workspace are opened by one message.
const _: () = assert!(PORTS_MAX * PORT_TEXT_MAX < MESSAGE_LIMIT && PORTS_MAX <= DESCRIPTORS_MAX);

/// What a stack is told about published ports.
#[derive(Debug, Default, Serialize, Deserialize)]
struct PortOrder {
    close: Vec<PortNumber>,
    /// Each with a descriptor.
    open: Vec<(PortNumber, PortProtocol, u16)>,
}

/// The supervisor's end. A socket of messages in order; the type, which has none of its own, only waits for it.
pub(crate) struct StackChannel(UnixDatagram);

impl StackChannel {
    /// A channel, and the stack's end of it.
    pub(crate) fn pair() -> io::Result<(StackChannel, OwnedFd)> {
        let (ours, theirs) = message_pair()?;
        Ok((StackChannel::of(ours)?, theirs))
    }

    /// The supervisor's end of a channel that was made by [`message_pair`].
    pub(crate) fn of(socket: OwnedFd) -> io::Result<StackChannel> {
        Ok(StackChannel(UnixDatagram::from_std(socket.into())?))
    }

    /// Has the stack serve clients of these ports, in the place of those with the same numbers.
    ///
    /// # Errors
    /// When the stack does not take it, as one that is stopped.
    pub(crate) fn open_ports(&self, ports: &[(PortNumber, Publish, BorrowedFd<'_>)]) -> io::Result<()> {
        let open =
            ports.iter().map(|(number, publish, _)| (*number, publish.protocol, publish.guest_port.get()));
        let order = PortOrder { open: open.collect(), close: Vec::new() };
        let sockets: Vec<BorrowedFd<'_>> = ports.iter().map(|(_, _, socket)| *socket).collect();
        self.send(&order, &sockets)
    }

    /// Has the stack take no more clients at a port.
    ///
    /// # Errors
    /// When the stack does not take it.
    pub(crate) fn close_port(&self, number: PortNumber) -> io::Result<()> {
        self.send(&PortOrder { close: vec![number], open: Vec::new() }, &[])
    }

    fn send(&self, order: &PortOrder, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        send_message(&self.0, &serde_json::to_vec(order)?, sockets)
    }

    /// Waits for decisions, each a line; nothing when the stack's end is closed. Cancel-safe.
    pub(crate) async fn decisions(&self) -> io::Result<Vec<u8>> {
        let mut message = vec![0; MESSAGE_LIMIT];
        let receive = || Ok(recv(&self.0, &mut *message, RecvFlags::DONTWAIT)?.0);
        let count = self.0.async_io(Interest::READABLE, receive).await?;
        message.truncate(count);
        Ok(message)
    }

    /// Ends the stack.
    pub(crate) fn end(&self) {
        // Fails when the stack is gone already.
        let _ = shutdown(&self.0, Shutdown::Write);
    }
}

/// The stack's end.
pub(super) struct SupervisorChannel {
    socket: OwnedFd,
    /// The keeper tells of changes of the host there.
    keeper: OwnedFd,
    /// Where the moved bytes are noted.
    moved: Rc<SharedNumber>,
    /// Decisions on their way to the supervisor. They never hold the stack up.
    waiting: Vec<u8>,
    orders: VecDeque<Order>,
}

impl SupervisorChannel {
    pub(super) fn new(socket: OwnedFd, keeper: OwnedFd, moved: Rc<SharedNumber>) -> SupervisorChannel {
        SupervisorChannel { socket, keeper, moved, waiting: Vec::new(), orders: VecDeque::new() }
    }

    /// Takes a message of the supervisor.
    fn receive(&self) -> Result<Vec<Order>, Errno> {
        let mut text = vec![0; MESSAGE_LIMIT];
        let (len, sockets) = receive_message(&self.socket, &mut text)?;
        if len == 0 {
            return Ok(vec![Order::End]);
        }
        let order: PortOrder = serde_json::from_slice(&text[..len]).unwrap_or_default();
        let open = order.open.into_iter().zip(sockets).map(|((number, protocol, guest_port), socket)| {
            Order::Open(number, Listener { socket, protocol, guest_port })
        });
        Ok(order.close.into_iter().map(Order::Close).chain(open).collect())
    }
}

impl Controller for SupervisorChannel {
    fn record(&mut self, decision: &Decision) {
        let line = serde_json::to_vec(decision).expect("a decision is plain data");
        if self.waiting.len() + line.len() < DECISIONS_MAX {
            self.waiting.extend_from_slice(&line);
            self.waiting.push(b'\n');
        }
    }

    fn flush(&mut self) {
        while let Some(end) = whole_lines(&self.waiting) {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(self.socket.as_fd(), &self.waiting[..end], flags) {
                Ok(_) => drop(self.waiting.drain(..end)),
                Err(Errno::INTR) => {}
                // What is left goes with the next decision, or when there is time.
                Err(_) => return,
            }
        }
    }

    fn connect(&mut self, network: u8, address: Ipv4Addr) {
        if request(&self.keeper, network, address).is_err() {
            self.orders.push_back(Order::ConnectMember(network, address, None));
        }
    }

    fn moved(&mut self, bytes: u64) {
        self.moved.set(bytes);
    }

    fn order(&mut self) -> Order {
        loop {
            if let Some(order) = self.orders.pop_front() {
                return order;
            }
            match self.receive() {
                Ok(orders) => self.orders.extend(orders),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    return match hear(&self.keeper) {
                        Some(Heard::Change(change)) => Order::Follow(Box::new(change)),
                        Some(Heard::MemberConnection((network, address, socket))) => {
                            Order::ConnectMember(network, address, socket)
                        }
                        None => Order::Nothing,
                    };
                }
                Err(_) => return Order::End,
            }
        }
    }
}

/// The end of the lines that fit into one message.
fn whole_lines(waiting: &[u8]) -> Option<usize> {
    let most = &waiting[..waiting.len().min(MESSAGE_LIMIT)];
    most.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use jiff::Timestamp;
    use microagent_model::decisions;
    use microagent_model::egress::{Reason, Subject};

    use super::*;

    fn stack_end(socket: OwnedFd) -> SupervisorChannel {
        let (keeper, _) = message_pair().unwrap();
        SupervisorChannel::new(socket, keeper, Rc::new(SharedNumber::new().unwrap()))
    }

    fn decision(name: String) -> Decision {
        Decision {
            name: Some(name),
            ..decisions::new(Timestamp::UNIX_EPOCH, Subject::Name, true, Reason::Mode)
        }
    }

    #[tokio::test]
    async fn every_port_of_a_workspace_is_opened_by_one_message() {
        let (ours, theirs) = StackChannel::pair().unwrap();
        let mut stack = stack_end(theirs);
        assert!(matches!(stack.order(), Order::Nothing));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let publish: Publish = "127.0.0.1:65535:65535/udp".parse().unwrap();
        let ports: Vec<_> =
            (0..PORTS_MAX as u64).map(|number| (u64::MAX >> 4 | number, publish, listener.as_fd())).collect();
        ours.open_ports(&ports).unwrap();
        ours.close_port(7).unwrap();
        for _ in 0..PORTS_MAX {
            let Order::Open(_, opened) = stack.order() else { panic!("an open port") };
            assert_eq!((opened.protocol, opened.guest_port), (PortProtocol::Udp, 65535));
        }
        assert!(matches!(stack.order(), Order::Close(7)));
        assert!(matches!(stack.order(), Order::Nothing));
        ours.end();
        assert!(matches!(stack.order(), Order::End));
    }

    #[tokio::test]
    async fn decisions_come_as_whole_lines() {
        let (ours, theirs) = StackChannel::pair().unwrap();
        let mut stack = stack_end(theirs);
        for number in 0..500 {
            stack.record(&decision(format!("{number}.{}", "x".repeat(200))));
        }
        let mut count = 0;
        while count < 500 {
            stack.flush();
            let lines = ours.decisions().await.unwrap();
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                let decision: Decision = serde_json::from_slice(line).unwrap();
                assert!(decision.name.unwrap().starts_with(&format!("{count}.")));
                count += 1;
            }
        }
        drop(stack);
        assert!(ours.decisions().await.unwrap().is_empty());
    }
}
