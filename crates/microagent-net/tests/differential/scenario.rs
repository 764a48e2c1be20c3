//! What two ends of a connection do, drawn by a seed, so that all that each of them sees is the same on every network that
//! keeps TCP's promises: how much arrives does not depend on how fast it arrives.

use std::fmt;

/// Most bytes that an end sends right before it resets the connection: more than Linux sends without an acknowledgement
/// would be thrown away, or not, as the time permits.
pub(crate) const LAST_WORDS_MAX: usize = 12_000;

/// Sizes that are next to something: nothing, a segment, a window without scaling, a buffer.
const SIZES: [usize; 10] = [1, 7, 536, 1460, 1461, 16_384, 65_535, 65_536, 131_073, 400_000];

/// One thing that an end does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Sends this many bytes.
    Send(usize),
    /// The same, a byte at a time.
    Trickle(usize),
    /// Receives this many bytes.
    Receive(usize),
    /// Sends and receives at the same time.
    Exchange(usize, usize),
    /// Ends its side.
    HalfClose,
    /// Receives up to the end, whatever that is.
    ReceiveAll,
    /// Sends a byte now and then, until that fails.
    SendUntilFailure,
    /// Waits until this many bytes have come, and leaves them where they are.
    Await(usize),
    /// Waits for the system to tell of a failure, without sending or receiving.
    AwaitFailure,
    /// Does nothing for some milliseconds.
    Pause(usize),
    /// Ends the connection so that the other end sees a reset.
    Reset,
    /// Closes the connection.
    Close,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Send(count) => write!(f, "s{count}"),
            Step::Trickle(count) => write!(f, "t{count}"),
            Step::Receive(count) => write!(f, "r{count}"),
            Step::Exchange(send, receive) => write!(f, "d{send}/{receive}"),
            Step::HalfClose => f.write_str("h"),
            Step::ReceiveAll => f.write_str("e"),
            Step::SendUntilFailure => f.write_str("w"),
            Step::Await(count) => write!(f, "q{count}"),
            Step::AwaitFailure => f.write_str("z"),
            Step::Pause(time) => write!(f, "p{time}"),
            Step::Reset => f.write_str("x"),
            Step::Close => f.write_str("c"),
        }
    }
}

/// What both ends of one connection do.
#[derive(Debug, Default)]
pub(crate) struct Scenario {
    /// The end that connects.
    pub(crate) client: Vec<Step>,
    /// The end that accepts.
    pub(crate) server: Vec<Step>,
}

/// Numbers that look random and are the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn size(&mut self) -> usize {
        SIZES[self.below(SIZES.len())]
    }
}

impl Scenario {
    /// The scenario of a seed.
    pub(crate) fn draw(seed: u64) -> Scenario {
        let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut scenario = Scenario::default();
        for _ in 0..numbers.below(4) {
            let client_begins = numbers.below(2) == 0;
            scenario.of(client_begins, |one, other| exchange(&mut numbers, one, other));
        }
        let client_begins = numbers.below(2) == 0;
        scenario.of(client_begins, |one, other| end(&mut numbers, one, other));
        scenario
    }

    fn of(&mut self, client_begins: bool, write: impl FnOnce(&mut Vec<Step>, &mut Vec<Step>)) {
        match client_begins {
            true => write(&mut self.client, &mut self.server),
            false => write(&mut self.server, &mut self.client),
        }
    }
}

/// Data in one direction or both, all of which arrives.
fn exchange(numbers: &mut Numbers, one: &mut Vec<Step>, other: &mut Vec<Step>) {
    let (size, back) = (numbers.size(), numbers.size());
    match numbers.below(5) {
        0 => {
            one.extend([Step::Send(size), Step::Receive(back)]);
            other.extend([Step::Receive(size), Step::Send(back)]);
        }
        1 => {
            one.push(Step::Exchange(size, back));
            other.push(Step::Exchange(back, size));
        }
        // More than all buffers between them take: the sender is held up.
        2 => {
            let size = 1_500_000 + size;
            one.push(Step::Send(size));
            other.extend([Step::Pause(20 + numbers.below(60)), Step::Receive(size)]);
        }
        3 => {
            let count = 1 + numbers.below(200);
            one.push(Step::Trickle(count));
            other.push(Step::Receive(count));
        }
        _ => {
            one.extend([Step::Send(size), Step::Pause(numbers.below(30)), Step::Send(back)]);
            other.push(Step::Receive(size + back));
        }
    }
}

/// An end of the connection.
fn end(numbers: &mut Numbers, one: &mut Vec<Step>, other: &mut Vec<Step>) {
    // Each knows then that the other has all that was sent: what is still on its way at a reset may be lost.
    one.extend([Step::Send(1), Step::Receive(1)]);
    other.extend([Step::Receive(1), Step::Send(1)]);
    let size = numbers.size();
    match numbers.below(11) {
        // A question that ends, and its answer.
        0 => {
            one.extend([Step::Send(size), Step::HalfClose, Step::ReceiveAll]);
            other.extend([Step::ReceiveAll, Step::Send(numbers.size())]);
        }
        1 => {
            one.extend([Step::HalfClose, Step::ReceiveAll]);
            other.extend([Step::HalfClose, Step::ReceiveAll]);
        }
        2 => {
            one.push(Step::Reset);
            other.push(Step::ReceiveAll);
        }
        3 => {
            let size = 1 + numbers.below(LAST_WORDS_MAX);
            one.extend([Step::Send(size), Step::Reset]);
            other.push(Step::ReceiveAll);
        }
        // What closes with data that it has not received resets the connection.
        4 => {
            let size = 1 + numbers.below(LAST_WORDS_MAX);
            one.push(Step::Await(size));
            other.extend([Step::Send(size), Step::ReceiveAll]);
        }
        5 => other.extend([Step::ReceiveAll, Step::SendUntilFailure]),
        6 => other.extend([Step::ReceiveAll, Step::Send(1), Step::AwaitFailure]),
        7 => {
            one.extend([Step::HalfClose, Step::ReceiveAll]);
            other.extend([Step::ReceiveAll, Step::Reset]);
        }
        8 => {
            one.extend([Step::HalfClose, Step::Pause(50), Step::Reset]);
            other.extend([Step::ReceiveAll, Step::AwaitFailure]);
        }
        9 => {
            one.extend([Step::Send(1_500_000 + size), Step::HalfClose, Step::ReceiveAll]);
            other.extend([Step::Pause(20 + numbers.below(60)), Step::ReceiveAll]);
        }
        _ => other.push(Step::ReceiveAll),
    }
    for steps in [one, other] {
        if steps.last() != Some(&Step::Reset) {
            steps.push(Step::Close);
        }
    }
}
