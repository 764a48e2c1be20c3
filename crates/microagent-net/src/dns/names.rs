//! Which address belongs to which name, as the guest was told, and until when that opens it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::message::TTL_MAX_SECS;

/// Shortest time that an address stays open after an answer, whatever its TTL. Programs look a name up once and
/// connect a little later and several times; emulated guests are slow; TTLs of zero are in use.
const FLOOR: Duration = Duration::from_secs(60);

/// Longest time. What the guest is told is cut to the same, so that a cache of its own does not outlive it.
const CEILING: Duration = Duration::from_secs(TTL_MAX_SECS as u64);

const _: () = assert!(FLOOR.as_secs() <= CEILING.as_secs());

/// Addresses that are remembered. The one that ends first makes room.
pub(crate) const ADDRESSES_MAX: usize = 4096;

/// What is known of an address.
#[derive(Debug, Clone)]
struct Known {
    name: Arc<str>,
    until: Duration,
    /// Until when it is open because a rule covers a name of it.
    open_until: Option<Duration>,
}

/// Addresses by the names that led to them.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: HashMap<IpAddr, Known>,
}

impl Names {
    /// Notes that `name` led to `address`. `open` says that a rule covers the name.
    pub(crate) fn learn(
        &mut self,
        address: IpAddr,
        name: &Arc<str>,
        ttl_secs: u32,
        open: bool,
        now: Duration,
    ) {
        if self.known.len() >= ADDRESSES_MAX && !self.known.contains_key(&address) {
            self.make_room(now);
        }
        let until = now + Duration::from_secs(ttl_secs.into()).clamp(FLOOR, CEILING);
        let known = self.known.entry(address).or_insert_with(|| Known {
            name: name.clone(),
            until,
            open_until: None,
        });
        // The newest name is shown, unless it is not what keeps the address open.
        if open || known.open_until.is_none_or(|open_until| open_until <= now) {
            known.name = name.clone();
        }
        known.until = known.until.max(until);
        if open {
            known.open_until = known.open_until.max(Some(until));
        }
    }

    /// Whether a name that a rule covers keeps the address open.
    pub(crate) fn is_open(&self, address: IpAddr, now: Duration) -> bool {
        self.known.get(&address).and_then(|known| known.open_until).is_some_and(|until| now < until)
    }

    /// The name that led to the address, for the log.
    pub(crate) fn name_of(&self, address: IpAddr, now: Duration) -> Option<Arc<str>> {
        self.known.get(&address).filter(|known| now < known.until).map(|known| known.name.clone())
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    fn make_room(&mut self, now: Duration) {
        self.known.retain(|_, known| now < known.until);
        if self.known.len() >= ADDRESSES_MAX {
            let first = self.known.iter().min_by_key(|(_, known)| known.until).map(|(address, _)| *address);
            first.map(|address| self.known.remove(&address));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn an_address_is_open_for_its_ttl_within_bounds() {
        for (ttl, last_open) in [(0, 59), (60, 59), (300, 299), (u32::MAX, 3599)] {
            let mut names = Names::default();
            names.learn(ADDRESS, &"a.example".into(), ttl, true, secs(1000));
            assert!(names.is_open(ADDRESS, secs(1000 + last_open)), "{ttl}");
            assert!(!names.is_open(ADDRESS, secs(1001 + last_open)), "{ttl}");
        }
    }

    #[test]
    fn a_name_that_no_rule_covers_opens_and_closes_nothing() {
        let mut names = Names::default();
        names.learn(ADDRESS, &"a.example".into(), 60, false, secs(0));
        assert!(!names.is_open(ADDRESS, secs(1)));
        assert_eq!(names.name_of(ADDRESS, secs(1)).as_deref(), Some("a.example"));
        names.learn(ADDRESS, &"good.example".into(), 60, true, secs(2));
        names.learn(ADDRESS, &"b.example".into(), 600, false, secs(3));
        assert!(names.is_open(ADDRESS, secs(61)));
        assert_eq!(names.name_of(ADDRESS, secs(61)).as_deref(), Some("good.example"));
        assert!(!names.is_open(ADDRESS, secs(62)), "the other name's TTL is not the rule's");
    }

    #[test]
    fn the_table_is_bounded_and_the_first_to_end_goes() {
        let mut names = Names::default();
        let address = |n: usize| IpAddr::from(Ipv4Addr::from_bits(0x0100_0000 + n as u32));
        for n in 0..ADDRESSES_MAX + 100 {
            names.learn(address(n), &"a.example".into(), 100 + n as u32 % 50, true, secs(0));
        }
        assert_eq!(names.len(), ADDRESSES_MAX);
        assert!(names.is_open(address(ADDRESSES_MAX + 99), secs(1)));
        names.learn(address(999_999), &"a.example".into(), 60, true, secs(5000));
        assert_eq!(names.len(), 1, "what has ended goes first");
    }
}
