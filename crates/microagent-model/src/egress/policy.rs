//! What a guest on network `user` may reach, as the user sets it. Converts from and to text; the filter decides what a
//! policy means for an address.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;
use std::str::FromStr;

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Connections that one guest may have open at once, unless the user says otherwise.
pub const CONNECTIONS_DEFAULT: u32 = 4096;

/// Default of the bytes that one machine may transfer over the network, in both directions together.
pub const BYTES_DEFAULT: u64 = 50 << 30;

/// Most rules of one policy; each is looked at when a connection is opened.
pub const RULES_MAX: usize = 1024;

/// Longest name in DNS, in bytes, as text without the last dot.
const NAME_MAX: usize = 253;

/// Longest part of a name between two dots, in bytes.
const LABEL_MAX: usize = 63;

/// What a guest may reach without a rule. The default is [`EgressMode::Public`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EgressMode {
    /// Public addresses. The host and private networks need a rule.
    #[default]
    Public,
    /// Nothing: every destination needs a rule.
    Allowlist,
    /// Public and private addresses. The host's loopback, link-local and metadata addresses cannot be reached in any
    /// mode, and no rule opens them.
    Open,
}

/// A rule that allows what the mode does not allow. As text `example.org`, `.example.org`, `ADDRESS[/BITS][:PORT]`; an
/// IPv6 address with a port is in brackets, `[ADDRESS][/BITS]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AllowRule {
    /// This name, in lower case.
    Name(String),
    /// This name, in lower case and without the dot before it, and every name below it.
    Suffix(String),
    /// An address or network.
    Net {
        /// The addresses.
        net: IpNet,
        /// Only this port of theirs.
        port: Option<NonZeroU16>,
    },
}

/// Which destinations a guest may reach, and how much it may transfer. Create with [`EgressPolicy::new`] and change with
/// its methods. The default is mode [`EgressMode::Public`] without rules, 4096 connections and 50 GiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EgressPolicy {
    /// What is allowed without a rule.
    pub mode: EgressMode,
    /// Rules: what is allowed in addition to the mode.
    pub allow: Vec<AllowRule>,
    /// Most connections that may be open at a time.
    pub max_connections: u32,
    /// Most bytes that one machine may transfer, in both directions together.
    pub max_bytes: u64,
}

/// Why a text is not a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllowRuleError {
    /// It is not a valid address.
    #[error("`{text}` is not an IP address or network; one of IPv6 with a port is `[ADDRESS]:PORT`")]
    Net {
        /// The text.
        text: String,
    },
    /// It is neither an address nor a name.
    #[error("`{text}` is not a host name")]
    Name {
        /// The text.
        text: String,
    },
    /// It has a port, which only addresses can have.
    #[error("`{text}` has a port; only addresses and networks can have one")]
    PortOfName {
        /// The text.
        text: String,
    },
    /// It is a pattern, and there are no patterns.
    #[error("`{text}` is a pattern; a leading dot stands for a name and all names below it")]
    Pattern {
        /// The text.
        text: String,
    },
}

/// Why a text is not an egress mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown egress mode `{text}` (expected public, allowlist or open)")]
pub struct EgressModeError {
    text: String,
}

impl Default for EgressPolicy {
    fn default() -> EgressPolicy {
        EgressPolicy {
            mode: EgressMode::default(),
            allow: Vec::new(),
            max_connections: CONNECTIONS_DEFAULT,
            max_bytes: BYTES_DEFAULT,
        }
    }
}

impl EgressPolicy {
    /// Creates a policy without rules and with the default limits.
    pub fn new(mode: EgressMode) -> EgressPolicy {
        EgressPolicy { mode, ..EgressPolicy::default() }
    }

    /// Adds a rule.
    #[must_use]
    pub fn allow(mut self, rule: AllowRule) -> EgressPolicy {
        self.allow.push(rule);
        self
    }

    /// Sets how many connections may be open at a time.
    #[must_use]
    pub fn max_connections(self, max_connections: u32) -> EgressPolicy {
        EgressPolicy { max_connections, ..self }
    }

    /// Sets how many bytes one machine may transfer, in both directions together.
    #[must_use]
    pub fn max_bytes(self, max_bytes: u64) -> EgressPolicy {
        EgressPolicy { max_bytes, ..self }
    }
}

impl AllowRule {
    /// Whether the rule names this host. `name` is in lower case and has no dot at its end.
    pub fn covers_name(&self, name: &str) -> bool {
        match self {
            AllowRule::Name(rule) => rule == name,
            AllowRule::Suffix(rule) => {
                let below = name.strip_suffix(rule.as_str());
                below.is_some_and(|below| below.is_empty() || below.ends_with('.'))
            }
            AllowRule::Net { .. } => false,
        }
    }

    /// Whether the rule names this address, at this port. Protocols without ports are covered by rules without one.
    pub fn covers_address(&self, address: IpAddr, port: Option<u16>) -> bool {
        match self {
            AllowRule::Net { net, port: only } => {
                net.contains(&address) && only.is_none_or(|only| Some(only.get()) == port)
            }
            AllowRule::Name(_) | AllowRule::Suffix(_) => false,
        }
    }
}

impl FromStr for EgressMode {
    type Err = EgressModeError;

    fn from_str(text: &str) -> Result<EgressMode, EgressModeError> {
        match text {
            "public" => Ok(EgressMode::Public),
            "allowlist" => Ok(EgressMode::Allowlist),
            "open" => Ok(EgressMode::Open),
            _ => Err(EgressModeError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for EgressMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            EgressMode::Public => "public",
            EgressMode::Allowlist => "allowlist",
            EgressMode::Open => "open",
        })
    }
}

impl FromStr for AllowRule {
    type Err = AllowRuleError;

    fn from_str(text: &str) -> Result<AllowRule, AllowRuleError> {
        let owned = || text.to_owned();
        if text.contains('*') {
            return Err(AllowRuleError::Pattern { text: owned() });
        }
        if text.starts_with('[') || text.matches(':').count() > 1 {
            return net_v6(text).ok_or_else(|| AllowRuleError::Net { text: owned() });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        // Names may begin with digits; one whose last part is a number would be taken for an address by everybody.
        let last = host.rsplit('.').next().unwrap_or_default();
        if host.contains('/') || last.starts_with(|c: char| c.is_ascii_digit()) {
            let wrong = || AllowRuleError::Net { text: owned() };
            let net = match host.contains('/') {
                true => host.parse::<IpNet>().map_err(|_| wrong())?.trunc(),
                false => IpNet::from(host.parse::<IpAddr>().map_err(|_| wrong())?),
            };
            let port = port.map(str::parse).transpose().map_err(|_| wrong())?;
            return Ok(AllowRule::Net { net, port });
        }
        if port.is_some() {
            return Err(AllowRuleError::PortOfName { text: owned() });
        }
        let name = host.strip_prefix('.').unwrap_or(host);
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if !is_host_name(&name) {
            return Err(AllowRuleError::Name { text: owned() });
        }
        Ok(if host.starts_with('.') { AllowRule::Suffix(name) } else { AllowRule::Name(name) })
    }
}

/// The rule of an address or network of IPv6: `ADDRESS[/BITS]` or `[ADDRESS][/BITS][:PORT]`. An address that stands for one
/// of IPv4 reaches no guest, so a rule with it would allow nothing.
fn net_v6(text: &str) -> Option<AllowRule> {
    let (address, bits, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((address, rest)) => {
            let (bits, port) = match rest.split_once(':') {
                Some((bits, port)) => (bits, Some(port.parse().ok()?)),
                None => (rest, None),
            };
            (address, if bits.is_empty() { None } else { Some(bits.strip_prefix('/')?) }, port)
        }
        None => match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits), None),
            None => (text, None, None),
        },
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let net = Ipv6Net::new(address, bits.map_or(Ok(128), str::parse).ok()?).ok()?;
    address.to_ipv4_mapped().is_none().then(|| AllowRule::Net { net: IpNet::V6(net.trunc()), port })
}

/// Whether a text is a host name, of at most 253 characters.
pub(crate) fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= LABEL_MAX
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= NAME_MAX && name.split('.').all(is_label)
}

impl fmt::Display for AllowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllowRule::Name(name) => f.write_str(name),
            AllowRule::Suffix(name) => write!(f, ".{name}"),
            AllowRule::Net { net, port: None } => write!(f, "{net}"),
            AllowRule::Net { net: IpNet::V4(net), port: Some(port) } => write!(f, "{net}:{port}"),
            AllowRule::Net { net: IpNet::V6(net), port: Some(port) } => {
                write!(f, "[{}]/{}:{port}", net.addr(), net.prefix_len())
            }
        }
    }
}

crate::text::as_text!(AllowRule);

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> AllowRule {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn rules_are_read_and_written_alike() {
        for (text, whole) in [
            ("Example.ORG", "example.org"),
            ("example.org.", "example.org"),
            (".Example.org", ".example.org"),
            ("3com.example", "3com.example"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.0.0.0/8:5432", "10.0.0.0/8:5432"),
            ("192.0.2.7:443", "192.0.2.7/32:443"),
            ("2001:DB8::1", "2001:db8::1/128"),
            ("[2001:db8::1]", "2001:db8::1/128"),
            ("2001:db8:1::5/32", "2001:db8::/32"),
            ("[2001:db8::]/32", "2001:db8::/32"),
            ("[2001:db8::1]:443", "[2001:db8::1]/128:443"),
            ("[2001:db8::]/32:443", "[2001:db8::]/32:443"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(rule(text).to_string(), whole);
            assert_eq!(rule(whole), rule(text));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Is = fn(&AllowRuleError) -> bool;
        let cases: [(&str, Is); 20] = [
            ("*.example.org", |e| matches!(e, AllowRuleError::Pattern { .. })),
            ("2001:db8::/129", |e| matches!(e, AllowRuleError::Net { .. })),
            ("2001:db8::/", |e| matches!(e, AllowRuleError::Net { .. })),
            ("2001:db8::g", |e| matches!(e, AllowRuleError::Net { .. })),
            ("2001:db8::1/64:80", |e| matches!(e, AllowRuleError::Net { .. })),
            ("[2001:db8::1]:0", |e| matches!(e, AllowRuleError::Net { .. })),
            ("[2001:db8::1]80", |e| matches!(e, AllowRuleError::Net { .. })),
            ("[2001:db8::1", |e| matches!(e, AllowRuleError::Net { .. })),
            ("[192.0.2.1]:80", |e| matches!(e, AllowRuleError::Net { .. })),
            ("[example.org]:80", |e| matches!(e, AllowRuleError::Net { .. })),
            ("::ffff:192.0.2.1", |e| matches!(e, AllowRuleError::Net { .. })),
            ("fe80::1%eth0", |e| matches!(e, AllowRuleError::Net { .. })),
            ("10.0.0.0/33", |e| matches!(e, AllowRuleError::Net { .. })),
            ("10.0.0.1:0", |e| matches!(e, AllowRuleError::Net { .. })),
            ("10.0.0", |e| matches!(e, AllowRuleError::Net { .. })),
            ("example.org:443", |e| matches!(e, AllowRuleError::PortOfName { .. })),
            ("", |e| matches!(e, AllowRuleError::Name { .. })),
            (".", |e| matches!(e, AllowRuleError::Name { .. })),
            ("a..b", |e| matches!(e, AllowRuleError::Name { .. })),
            ("exämple.org", |e| matches!(e, AllowRuleError::Name { .. })),
        ];
        for (text, is) in cases {
            let error = text.parse::<AllowRule>().unwrap_err();
            assert!(is(&error), "{text}: {error:?}");
        }
    }

    #[test]
    fn a_suffix_covers_its_own_name_and_whole_parts_only() {
        let suffix = rule(".example.org");
        for name in ["example.org", "a.example.org", "a.b.example.org"] {
            assert!(suffix.covers_name(name), "{name}");
        }
        for name in ["badexample.org", "example.org.evil", "org"] {
            assert!(!suffix.covers_name(name), "{name}");
        }
        assert!(rule("example.org").covers_name("example.org"));
        assert!(!rule("example.org").covers_name("a.example.org"));
    }

    #[test]
    fn a_port_narrows_a_network() {
        let address: IpAddr = "10.1.2.3".parse().unwrap();
        assert!(rule("10.0.0.0/8").covers_address(address, None));
        assert!(rule("10.0.0.0/8:53").covers_address(address, Some(53)));
        assert!(!rule("10.0.0.0/8:53").covers_address(address, Some(80)));
        assert!(!rule("10.0.0.0/8:53").covers_address(address, None));
        assert!(!rule("10.2.0.0/16").covers_address(address, Some(53)));
        assert!(!rule("::/0").covers_address(address, Some(53)));
        let address: IpAddr = "2001:db8:1::5".parse().unwrap();
        assert!(rule("2001:db8::/32").covers_address(address, None));
        assert!(rule("[2001:db8:1::5]:53").covers_address(address, Some(53)));
        assert!(!rule("[2001:db8:1::5]:53").covers_address(address, Some(80)));
        assert!(!rule("0.0.0.0/0").covers_address(address, None));
    }
}
