//! Names that the stack answers itself: those of the guest's own network, `localhost`, those that the user or the host's
//! `/etc/hosts` has added, and members of private networks.
//!
//! # Source
//! RFC 6761 6.3 (`localhost`), `hosts(5)`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use domain::base::Rtype;
use domain::base::iana::Rcode;
use microagent_model::egress::AllowRule;

use super::message::{Answer, Name, Query, as_text};
use crate::address::contains;
use crate::membership::Memberships;
use crate::{GATEWAY, GUEST_ADDRESS, HOST_NAME, NAME_SERVER, PREFIX_LEN};

/// How long an answer may be kept: entries can change while the guest runs.
const TTL_SECS: u32 = 10;

/// What others call the host; programs that know containers try these.
const HOST_ALIASES: [&str; 2] = ["host.docker.internal", "host.containers.internal"];

/// The name of the name server.
const NAME_SERVER_NAME: &str = "dns.microagent.internal";

const LOCALHOST: &str = "localhost";

/// Below this are the names of IPv4 addresses.
const REVERSE: &str = ".in-addr.arpa";

/// An entry: a name with an address.
pub type HostEntry = (String, Ipv4Addr);

/// Names that the stack answers itself.
#[derive(Debug, Default)]
pub(crate) struct LocalNames {
    /// The user's entries; they win.
    added: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Entries of the host's `/etc/hosts`.
    of_host: BTreeMap<String, Vec<Ipv4Addr>>,
    /// The guest's own name.
    hostname: String,
    /// Addresses of names that a rule covers. The user has written down both, so they are open, private ones too.
    open: BTreeSet<Ipv4Addr>,
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

    fn covered(&self, rules: &[AllowRule]) -> BTreeSet<Ipv4Addr> {
        let covers = |name: &str| rules.iter().any(|rule| rule.covers_name(name));
        let entries = self.added.iter().chain(&self.of_host).filter(|(name, _)| covers(name));
        entries.flat_map(|(_, addresses)| addresses.iter().copied()).collect()
    }

    /// Whether a name that a rule covers leads to the address because somebody has written that down.
    pub(crate) fn opens(&self, address: Ipv4Addr) -> bool {
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
                Some(address) => vec![address],
                None if text == self.hostname && !text.is_empty() => vec![GUEST_ADDRESS],
                None => return None,
            },
        };
        let answer = match query.question.qtype() {
            Rtype::A => Answer::addresses(query.name(), &addresses, TTL_SECS),
            // The name is there, with addresses only.
            _ => Answer::empty(Rcode::NOERROR),
        };
        Some(LocalAnswer { answer, is_added })
    }

    /// The name of an address: of the guest's networks, of its loopback, or of an entry.
    fn pointer(&self, query: &Query, address: Ipv4Addr, networks: &Memberships) -> Option<LocalAnswer> {
        let entries = self.added.iter().chain(&self.of_host);
        let added = entries.clone().find(|(_, addresses)| addresses.contains(&address));
        let member = networks.name_of(address);
        let name = match (address, added) {
            (GATEWAY, _) => HOST_NAME,
            (NAME_SERVER, _) => NAME_SERVER_NAME,
            (GUEST_ADDRESS, _) if !self.hostname.is_empty() => &self.hostname,
            (_, Some((name, _))) => name,
            (_, None) if member.is_some() => member.as_deref().unwrap_or_default(),
            (address, None) if address.is_loopback() => LOCALHOST,
            // Nobody outside knows these networks.
            (address, None) if contains(GATEWAY, PREFIX_LEN, address) || networks.of(address).is_some() => {
                return Some(LocalAnswer { answer: Answer::empty(Rcode::NXDOMAIN), is_added: false });
            }
            _ => return None,
        };
        let target = Name::vec_from_str(name).ok()?;
        let answer = match query.question.qtype() {
            Rtype::PTR => Answer::pointer(query.name(), target, TTL_SECS),
            _ => Answer::empty(Rcode::NOERROR),
        };
        Some(LocalAnswer { answer, is_added: added.is_some() })
    }
}

/// The address of a name that is the same in every guest.
fn fixed(name: &str) -> Option<Ipv4Addr> {
    match name {
        LOCALHOST => Some(Ipv4Addr::LOCALHOST),
        HOST_NAME => Some(GATEWAY),
        NAME_SERVER_NAME => Some(NAME_SERVER),
        name if name.ends_with(".localhost") => Some(Ipv4Addr::LOCALHOST),
        name if HOST_ALIASES.contains(&name) => Some(GATEWAY),
        _ => None,
    }
}

fn by_name(entries: Vec<HostEntry>) -> BTreeMap<String, Vec<Ipv4Addr>> {
    let mut names: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    for (name, address) in entries {
        let addresses = names.entry(name.to_ascii_lowercase()).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    names
}

/// The address whose name is asked for.
fn reversed(name: &str) -> Option<Ipv4Addr> {
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
        let entries =
            [("db.corp", [10, 1, 2, 3]), ("db.corp", [10, 1, 2, 4]), ("Blocked.test", [0, 0, 0, 0])];
        let entries = entries.map(|(name, address)| (name.to_owned(), address.into())).to_vec();
        let rules: Vec<AllowRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let mut names = LocalNames::new("box".to_owned(), entries, &rules);
        let of_host = vec![
            ("printer".to_owned(), [192, 168, 1, 9].into()),
            ("db.corp".to_owned(), [192, 168, 1, 8].into()),
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

    #[test]
    fn what_the_stack_knows_is_answered_and_nothing_else() {
        let names = names(&[]);
        for (name, kind, expected) in [
            ("localhost", Rtype::A, Some(&["127.0.0.1"][..])),
            ("a.b.LOCALHOST", Rtype::A, Some(&["127.0.0.1"])),
            ("localhost", Rtype::AAAA, Some(&[])),
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
        ] {
            let got = answer(&names, name, kind);
            let expected =
                expected.map(|all| (Rcode::NOERROR, all.iter().map(ToString::to_string).collect()));
            assert_eq!(got, expected, "{name} {kind}");
        }
        let nobody = answer(&names, "77.2.0.10.in-addr.arpa", Rtype::PTR);
        assert_eq!(nobody, Some((Rcode::NXDOMAIN, Vec::new())));
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
