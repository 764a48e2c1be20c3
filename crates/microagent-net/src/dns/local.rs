//! Names that the stack answers itself: those of the guest's own network, `localhost`, those that the user or the host's
//! `/etc/hosts` has added, and members of private networks.
//!
//! # Source
//! RFC 6761 6.3 (`localhost`), `hosts(5)`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::Rtype;
use domain::base::iana::Rcode;
use microagent_model::egress::AllowRule;

use super::message::{Answer, Name, Query, as_text};
use crate::address::is_of_guest;
use crate::membership::Memberships;
use crate::{GATEWAY, GATEWAY_V6, GUEST_ADDRESS, GUEST_ADDRESS_V6, HOST_NAME, NAME_SERVER};

/// How long an answer may be kept: entries can change while the guest runs.
const TTL_SECS: u32 = 10;

/// What others call the host; programs that know containers try these.
const HOST_ALIASES: [&str; 2] = ["host.docker.internal", "host.containers.internal"];

/// The name of the name server.
const NAME_SERVER_NAME: &str = "dns.microagent.internal";

const LOCALHOST: &str = "localhost";

/// Below this are the names of IPv4 addresses.
const REVERSE: &str = ".in-addr.arpa";

/// Below this are those of IPv6 addresses.
const REVERSE_V6: &str = ".ip6.arpa";

/// An entry: a name with an address.
pub type HostEntry = (String, IpAddr);

/// Names that the stack answers itself.
#[derive(Debug, Default)]
pub(crate) struct LocalNames {
    /// The user's entries; they win.
    added: BTreeMap<String, Vec<IpAddr>>,
    /// Entries of the host's `/etc/hosts`.
    of_host: BTreeMap<String, Vec<IpAddr>>,
    /// The guest's own name.
    hostname: String,
    /// Addresses of names that a rule covers. The user has written down both, so they are open, private ones too.
    open: BTreeSet<IpAddr>,
}

/// An answer of the stack's own.
#[derive(Debug)]
pub(crate) struct LocalAnswer {
    pub(crate) answer: Answer,
    /// Whether the user or the host's file has added the name; others are not recorded.
    pub(crate) is_added: bool,
}

impl LocalNames {
    pub(crate) fn new(hostname: String, added: Vec<HostEntry>, rules: &[AllowRule]) -> LocalNames {
        let mut names = LocalNames {
            added: by_name(added),
            hostname: hostname.to_ascii_lowercase(),
            ..LocalNames::default()
        };
        names.open = names.covered(rules);
        names
    }

    /// Takes the entries of the host's `/etc/hosts`, in place of those before.
    pub(crate) fn use_host_file(&mut self, entries: Vec<HostEntry>, rules: &[AllowRule]) {
        self.of_host = by_name(entries);
        self.open = self.covered(rules);
    }

    fn covered(&self, rules: &[AllowRule]) -> BTreeSet<IpAddr> {
        let covers = |name: &str| rules.iter().any(|rule| rule.covers_name(name));
        let entries = self.added.iter().chain(&self.of_host).filter(|(name, _)| covers(name));
        entries.flat_map(|(_, addresses)| addresses.iter().copied()).collect()
    }

    /// Whether a name that a rule covers leads to the address because somebody has written that down.
    pub(crate) fn opens(&self, address: IpAddr) -> bool {
        self.open.contains(&address)
    }

    /// The answer to a query that no name server is asked.
    pub(crate) fn answer(&self, query: &Query, networks: &Memberships) -> Option<LocalAnswer> {
        let text = as_text(query.name());
        if let Some(address) = reversed(&text) {
            return self.pointer(query, address, networks);
        }
        // Who names a workspace does not choose where these lead in others.
        let members = match fixed(&text) {
            Some(_) => None,
            None => Some(networks.addresses(&text)).filter(|addresses| !addresses.is_empty()),
        };
        let added = self.added.get(&text).cloned().or(members).or_else(|| self.of_host.get(&text).cloned());
        let is_added = added.is_some();
        let addresses = match added {
            Some(addresses) => addresses,
            None => match fixed(&text) {
                Some(addresses) => addresses,
                None if text == self.hostname && !text.is_empty() => {
                    vec![GUEST_ADDRESS.into(), GUEST_ADDRESS_V6.into()]
                }
                None => return None,
            },
        };
        let asked = query.question.qtype();
        // The name is there, with addresses only.
        let addresses = addresses.into_iter().filter(|address| match address {
            IpAddr::V4(_) => asked == Rtype::A,
            IpAddr::V6(_) => asked == Rtype::AAAA,
        });
        let answer = Answer::addresses(query.name(), addresses, TTL_SECS);
        Some(LocalAnswer { answer, is_added })
    }

    /// The name of an address: of the guest's networks, of its loopback, or of an entry.
    fn pointer(&self, query: &Query, address: IpAddr, networks: &Memberships) -> Option<LocalAnswer> {
        let entries = self.added.iter().chain(&self.of_host);
        let added = entries.clone().find(|(_, addresses)| addresses.contains(&address));
        let member = networks.name_of(address);
        let is_guests = address == GUEST_ADDRESS || address == GUEST_ADDRESS_V6;
        let name = match added {
            _ if address == GATEWAY || address == GATEWAY_V6 => HOST_NAME,
            _ if address == NAME_SERVER => NAME_SERVER_NAME,
            _ if is_guests && !self.hostname.is_empty() => &self.hostname,
            Some((name, _)) => name,
            None if member.is_some() => member.as_deref().unwrap_or_default(),
            None if address.is_loopback() => LOCALHOST,
            // Nobody outside knows these networks.
            None if is_of_guest(address) || networks.of(address).is_some() => {
                return Some(LocalAnswer { answer: Answer::empty(Rcode::NXDOMAIN), is_added: false });
            }
            None => return None,
        };
        let target = Name::vec_from_str(name).ok()?;
        let answer = match query.question.qtype() {
            Rtype::PTR => Answer::pointer(query.name(), target, TTL_SECS),
            _ => Answer::empty(Rcode::NOERROR),
        };
        Some(LocalAnswer { answer, is_added: added.is_some() })
    }
}

/// The addresses of a name that is the same in every guest.
fn fixed(name: &str) -> Option<Vec<IpAddr>> {
    let is_host = name == HOST_NAME || HOST_ALIASES.contains(&name);
    match name {
        NAME_SERVER_NAME => Some(vec![NAME_SERVER.into()]),
        _ if is_host => Some(vec![GATEWAY.into(), GATEWAY_V6.into()]),
        _ if name == LOCALHOST || name.ends_with(".localhost") => {
            Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
        }
        _ => None,
    }
}

fn by_name(entries: Vec<HostEntry>) -> BTreeMap<String, Vec<IpAddr>> {
    let mut names: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (name, address) in entries {
        let addresses = names.entry(name.to_ascii_lowercase()).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    names
}

/// The address whose name is asked for.
fn reversed(name: &str) -> Option<IpAddr> {
    reversed_v4(name).map(IpAddr::from).or_else(|| reversed_v6(name).map(IpAddr::from))
}

/// 32 hexadecimal digits, the last one first, each a label.
fn reversed_v6(name: &str) -> Option<Ipv6Addr> {
    let mut digits = name.strip_suffix(REVERSE_V6)?.split('.');
    let mut bits = 0;
    for place in 0..32 {
        let digit = digits.next().filter(|digit| digit.len() == 1)?;
        bits |= u128::from_str_radix(digit, 16).ok()? << (4 * place);
    }
    digits.next().is_none().then(|| Ipv6Addr::from_bits(bits))
}

fn reversed_v4(name: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = name.strip_suffix(REVERSE)?.split('.');
    for octet in octets.iter_mut().rev() {
        *octet = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::address;
    use crate::testing::dns_query;

    fn names(rules: &[&str]) -> LocalNames {
        let entries = [
            ("db.corp", "10.1.2.3"),
            ("db.corp", "10.1.2.4"),
            ("db.corp", "2001:db8::4"),
            ("Blocked.test", "0.0.0.0"),
        ];
        let entries = entries.map(|(name, address)| (name.to_owned(), address.parse().unwrap())).to_vec();
        let rules: Vec<AllowRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let mut names = LocalNames::new("box".to_owned(), entries, &rules);
        let of_host = vec![
            ("printer".to_owned(), "192.168.1.9".parse().unwrap()),
            ("db.corp".to_owned(), "192.168.1.8".parse().unwrap()),
        ];
        names.use_host_file(of_host, &rules);
        names
    }

    /// What is answered: the code, with addresses or the name that a pointer has.
    fn answer(names: &LocalNames, name: &str, kind: Rtype) -> Option<(Rcode, Vec<String>)> {
        let query = Query::read(&dns_query(1, name, kind.to_int(), None)).unwrap();
        let answer = names.answer(&query, &Memberships::default())?.answer;
        let text = |record| match address(record) {
            Some(address) => address.to_string(),
            None => record.data().to_string(),
        };
        Some((answer.code, answer.records.iter().map(text).collect()))
    }

    fn in_ip6_arpa(address: &str) -> String {
        let digits = format!("{:032x}", address.parse::<Ipv6Addr>().unwrap().to_bits());
        let labels: Vec<String> = digits.chars().rev().map(String::from).collect();
        format!("{}{REVERSE_V6}", labels.join("."))
    }

    #[test]
    fn what_the_stack_knows_is_answered_and_nothing_else() {
        let names = names(&[]);
        for (name, kind, expected) in [
            ("localhost", Rtype::A, Some(&["127.0.0.1"][..])),
            ("a.b.LOCALHOST", Rtype::A, Some(&["127.0.0.1"])),
            ("localhost", Rtype::AAAA, Some(&["::1"])),
            ("x.localhost", Rtype::AAAA, Some(&["::1"])),
            ("localhost", Rtype::MX, Some(&[])),
            ("host.docker.internal", Rtype::AAAA, Some(&["fd5c:8b21:46e7::2"])),
            ("dns.microagent.internal", Rtype::AAAA, Some(&[])),
            ("box", Rtype::AAAA, Some(&["fd5c:8b21:46e7::15"])),
            ("db.corp", Rtype::AAAA, Some(&["2001:db8::4"])),
            ("printer", Rtype::AAAA, Some(&[])),
            ("notlocalhost", Rtype::A, None),
            ("host.microagent.internal", Rtype::A, Some(&["10.0.2.2"])),
            ("host.docker.internal", Rtype::A, Some(&["10.0.2.2"])),
            ("box", Rtype::A, Some(&["10.0.2.15"])),
            ("DB.corp", Rtype::A, Some(&["10.1.2.3", "10.1.2.4"])),
            ("db.corp", Rtype::TXT, Some(&[])),
            ("other.corp", Rtype::A, None),
            ("blocked.test", Rtype::A, Some(&["0.0.0.0"])),
            ("printer", Rtype::A, Some(&["192.168.1.9"])),
            ("2.2.0.10.in-addr.arpa", Rtype::PTR, Some(&["host.microagent.internal."])),
            ("3.2.0.10.in-addr.arpa", Rtype::PTR, Some(&["dns.microagent.internal."])),
            ("15.2.0.10.in-addr.arpa", Rtype::PTR, Some(&["box."])),
            ("1.0.0.127.in-addr.arpa", Rtype::PTR, Some(&["localhost."])),
            ("3.2.1.10.in-addr.arpa", Rtype::PTR, Some(&["db.corp."])),
            ("9.1.168.192.in-addr.arpa", Rtype::PTR, Some(&["printer."])),
            ("7.2.0.192.in-addr.arpa", Rtype::PTR, None),
            ("2.0.10.in-addr.arpa", Rtype::PTR, None),
            (&in_ip6_arpa("fd5c:8b21:46e7::2"), Rtype::PTR, Some(&["host.microagent.internal."])),
            (&in_ip6_arpa("fd5c:8b21:46e7::15"), Rtype::PTR, Some(&["box."])),
            (&in_ip6_arpa("2001:db8::4"), Rtype::PTR, Some(&["db.corp."])),
            (&in_ip6_arpa("::1"), Rtype::PTR, Some(&["localhost."])),
            (&in_ip6_arpa("2001:db8::5"), Rtype::PTR, None),
            (&in_ip6_arpa("::1")[2..], Rtype::PTR, None),
            (&format!("0.{}", in_ip6_arpa("::1")), Rtype::PTR, None),
            (&in_ip6_arpa("::1").replacen('1', "01", 1), Rtype::PTR, None),
        ] {
            let got = answer(&names, name, kind);
            let expected =
                expected.map(|all| (Rcode::NOERROR, all.iter().map(ToString::to_string).collect()));
            assert_eq!(got, expected, "{name} {kind}");
        }
        for nobody in ["77.2.0.10.in-addr.arpa", &in_ip6_arpa("fd5c:8b21:46e7::77")] {
            assert_eq!(answer(&names, nobody, Rtype::PTR), Some((Rcode::NXDOMAIN, Vec::new())), "{nobody}");
        }
    }

    #[test]
    fn a_rule_of_an_added_name_opens_what_was_written_down() {
        let open = |rules: &[&str]| {
            let names = names(rules);
            ["10.1.2.3", "10.1.2.4", "192.168.1.9"].map(|address| names.opens(address.parse().unwrap()))
        };
        assert_eq!(open(&[]), [false; 3]);
        assert_eq!(open(&["db.corp"]), [true, true, false]);
        assert_eq!(open(&[".corp", "printer"]), [true; 3]);
    }
}
