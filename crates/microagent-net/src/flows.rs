//! Which connections there are: the table that says whether a packet belongs to something that was let through.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::frame::{Segment, flags};

/// Time for a connection to be answered, from its first segment on: Linux repeats a SYN for 127 s.
const OPENING: Duration = Duration::from_secs(130);
/// Time that a connection may be silent. passt ends it after two hours by itself.
///
/// # Source
/// RFC 5382, requirement 5.
const ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// Time for what is still under way when both ends have closed.
const CLOSING: Duration = Duration::from_secs(60);
/// Time after the guest's last datagram; passt's own is the same.
const DATAGRAMS: Duration = Duration::from_secs(180);
/// Time after the guest's last echo request.
///
/// # Source
/// RFC 5508, requirement 2.
const ECHO: Duration = Duration::from_secs(60);
/// Flows that a table holds at most, whatever the policy says: passt's own table has no more places.
const FLOWS_MAX: usize = 128 * 1024;
/// A full table is searched for what has ended at most this often: a flood of new flows must not make each of them dear.
const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// Protocols whose flows are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Echo,
}

/// One flow. The guest has one address, so it needs no place here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) far: Ipv4Addr,
    /// Zero with echoes.
    pub(crate) far_port: u16,
    /// The id with echoes.
    pub(crate) guest_port: u16,
}

/// Where a flow stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A connection that the other side has not answered.
    Opening,
    /// Anything that goes on.
    Established,
    /// A connection that both ends have closed.
    Closing,
}

/// Who sent a packet, or began a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Guest,
    Passt,
}

/// What is known of a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) begun_by: Side,
    pub(crate) stage: Stage,
    /// When it began or was last used.
    used: Duration,
    /// Up to where the guest has what was sent to it: what a reset must say to be believed.
    pub(crate) guest_acknowledged: u32,
    guest_closed: bool,
    far_closed: bool,
}

impl Flow {
    fn ends(&self, kind: Kind) -> Duration {
        let time = match (kind, self.stage) {
            (Kind::Udp, _) => DATAGRAMS,
            (Kind::Echo, _) => ECHO,
            (Kind::Tcp, Stage::Opening) => OPENING,
            (Kind::Tcp, Stage::Established) => ESTABLISHED,
            (Kind::Tcp, Stage::Closing) => CLOSING,
        };
        self.used + time
    }

    /// Follows a segment of the connection. False: it was the last.
    pub(crate) fn follow(&mut self, from: Side, segment: &Segment, now: Duration) -> bool {
        if segment.has(flags::RST) {
            return false;
        }
        match self.stage {
            // Answered: by the other side than the one that began.
            Stage::Opening if from != self.begun_by && segment.has(flags::ACK) => {
                self.stage = Stage::Established
            }
            // Repeating a SYN does not make the wait longer.
            Stage::Opening => return true,
            Stage::Established | Stage::Closing => {}
        }
        self.used = now;
        if from == Side::Guest {
            self.guest_acknowledged = segment.acknowledged;
        }
        if segment.has(flags::FIN) {
            match from {
                Side::Guest => self.guest_closed = true,
                Side::Passt => self.far_closed = true,
            }
            if self.guest_closed && self.far_closed {
                self.stage = Stage::Closing;
            }
        }
        true
    }

    /// Follows a datagram. Only the guest's keep a flow alive: nobody outside can hold it open.
    pub(crate) fn touch(&mut self, from: Side, now: Duration) {
        if from == Side::Guest {
            self.used = now;
        }
    }
}

/// The table. Its hash is keyed: the guest chooses what is in it.
#[derive(Debug)]
pub(crate) struct Flows {
    flows: HashMap<Key, Flow>,
    max: usize,
    swept: Option<Duration>,
}

impl Flows {
    pub(crate) fn new(max: u32) -> Flows {
        Flows { flows: HashMap::new(), max: FLOWS_MAX.min(max as usize), swept: None }
    }

    /// A flow that goes on. One whose time is over stays in its place until the place is needed.
    pub(crate) fn get(&mut self, key: &Key, now: Duration) -> Option<&mut Flow> {
        self.flows.get_mut(key).filter(|flow| now < flow.ends(key.kind))
    }

    /// Begins a flow, in place of one that may be there. False: there are too many.
    pub(crate) fn begin(&mut self, key: Key, begun_by: Side, now: Duration) -> bool {
        if self.flows.len() >= self.max && !self.flows.contains_key(&key) {
            self.sweep(now);
            if self.flows.len() >= self.max {
                return false;
            }
        }
        let stage = if key.kind == Kind::Tcp { Stage::Opening } else { Stage::Established };
        let (guest_closed, far_closed) = (false, false);
        let flow = Flow { begun_by, stage, used: now, guest_acknowledged: 0, guest_closed, far_closed };
        self.flows.insert(key, flow);
        true
    }

    pub(crate) fn end(&mut self, key: &Key) {
        self.flows.remove(key);
    }

    /// Takes all flows out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Key, Flow)> + '_ {
        self.flows.drain()
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    fn sweep(&mut self, now: Duration) {
        if self.swept.is_some_and(|swept| now < swept + SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        self.flows.retain(|key, flow| now < flow.ends(key.kind));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key =
        Key { kind: Kind::Tcp, far: Ipv4Addr::new(192, 0, 2, 1), far_port: 443, guest_port: 40_000 };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn segment(flags: u8) -> Segment {
        Segment { source: 0, destination: 0, sequence: 0, acknowledged: 7, flags, data_len: 0 }
    }

    fn step(flows: &mut Flows, from: Side, flags: u8, now: u64) -> Option<Stage> {
        let flow = flows.get(&KEY, secs(now))?;
        let goes_on = flow.follow(from, &segment(flags), secs(now));
        let stage = flow.stage;
        if !goes_on {
            flows.end(&KEY);
        }
        goes_on.then_some(stage)
    }

    #[test]
    fn a_connection_lives_from_syn_to_the_second_fin() {
        let mut flows = Flows::new(10);
        assert!(flows.begin(KEY, Side::Guest, secs(0)));
        use flags::{ACK, FIN, SYN};
        for (from, set, now, stage) in [
            (Side::Guest, SYN, 100, Some(Stage::Opening)),
            (Side::Passt, SYN | ACK, 129, Some(Stage::Established)),
            (Side::Guest, ACK, 7000, Some(Stage::Established)),
            (Side::Guest, ACK | FIN, 14_000, Some(Stage::Established)),
            (Side::Passt, ACK, 21_000, Some(Stage::Established)),
            (Side::Passt, ACK | FIN, 28_000, Some(Stage::Closing)),
            (Side::Guest, ACK, 28_059, Some(Stage::Closing)),
            (Side::Guest, ACK, 28_120, None),
        ] {
            assert_eq!(step(&mut flows, from, set, now), stage, "at {now}");
        }
    }

    #[test]
    fn repeating_a_syn_does_not_keep_a_connection_open() {
        let mut flows = Flows::new(10);
        flows.begin(KEY, Side::Guest, secs(0));
        for now in [1, 50, 100, 129] {
            assert_eq!(step(&mut flows, Side::Guest, flags::SYN, now), Some(Stage::Opening));
            // Nor does it count as an answer that the one who began goes on.
            assert_eq!(step(&mut flows, Side::Guest, flags::ACK, now), Some(Stage::Opening));
        }
        assert_eq!(step(&mut flows, Side::Guest, flags::SYN, 130), None);
    }

    #[test]
    fn a_reset_ends_a_connection() {
        for from in [Side::Guest, Side::Passt] {
            let mut flows = Flows::new(10);
            flows.begin(KEY, Side::Passt, secs(0));
            assert_eq!(step(&mut flows, from, flags::RST, 1), None);
            assert_eq!(flows.len(), 0);
        }
    }

    #[test]
    fn only_the_guest_keeps_datagrams_flowing() {
        let key = Key { kind: Kind::Udp, ..KEY };
        let mut flows = Flows::new(10);
        flows.begin(key, Side::Guest, secs(0));
        flows.get(&key, secs(170)).unwrap().touch(Side::Passt, secs(170));
        assert!(flows.get(&key, secs(180)).is_none());
        flows.begin(key, Side::Guest, secs(200));
        flows.get(&key, secs(370)).unwrap().touch(Side::Guest, secs(370));
        assert!(flows.get(&key, secs(549)).is_some());
        assert!(flows.get(&key, secs(550)).is_none());
    }

    #[test]
    fn the_table_is_full_until_something_ends() {
        let mut flows = Flows::new(3);
        let key = |guest_port| Key { guest_port, ..KEY };
        for port in 1..=3 {
            assert!(flows.begin(key(port), Side::Guest, secs(u64::from(port))));
        }
        assert!(!flows.begin(key(4), Side::Guest, secs(10)));
        assert!(flows.begin(key(3), Side::Guest, secs(10)), "one that is there may begin anew");
        assert!(flows.begin(key(4), Side::Guest, secs(131)), "the first was never answered");
        assert_eq!(flows.len(), 3);
        assert!(!Flows::new(0).begin(KEY, Side::Guest, secs(0)));
    }
}
