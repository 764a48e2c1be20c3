//! Brokers: endpoints through which a guest reaches one server with a credential that it never has. Converts from and
//! to text, nothing else.

use std::fmt;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::secret::{SecretReference, SecretReferenceError, is_variable_name};

/// Most brokers of one guest.
pub const BROKERS_MAX: usize = 16;

/// Most `allow` patterns of one broker.
pub const ALLOWED_REQUESTS_MAX: usize = 64;

/// Most variables of one broker that hold its base URL.
pub const BROKER_ENV_MAX: usize = 16;

/// Longest name, in bytes.
const NAME_MAX: usize = 64;

/// Longest upstream, header name, format and pattern, in bytes.
const TEXT_MAX: usize = 1024;

/// The port of HTTPS.
const HTTPS_PORT: NonZeroU16 = NonZeroU16::new(443).expect("443 is not 0");

/// The header if none is given.
const AUTHORIZATION: &str = "Authorization";

/// Headers of one connection, which a broker does not pass on.
///
/// # Source
/// RFC 9110, 7.6.1.
pub const HOP_BY_HOP_HEADERS: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Further headers that cannot carry a credential: those of the message's framing, and those that the broker sets itself.
const RESERVED_HEADERS: [&str; 3] = ["content-length", "expect", "host"];

/// A broker. As text
/// `NAME=https://HOST[:PORT][/BASE],secret=SCHEME:REFERENCE[,header=H][,format=F][,allow=METHOD /PATH][,ca=FILE]
/// [,env=VARIABLE][,private]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broker {
    /// Its credential: a secret that has the broker's name, and where its value is found at each start.
    pub secret: SecretReference,
    /// The one server behind it.
    pub upstream: Upstream,
    /// The header that carries the credential.
    pub header: String,
    /// The header's value; `{}` is the credential.
    pub format: String,
    /// The requests that pass; all if there are none.
    #[serde(default)]
    pub allow: Vec<AllowedRequest>,
    /// Certificates that the upstream's is checked with, instead of the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Whether the upstream's name may resolve to addresses that are not public.
    #[serde(default)]
    pub private: bool,
    /// Variables of the guest that hold the base URL, in addition to `MICROAGENT_BROKER_NAME`.
    #[serde(default)]
    pub env: Vec<String>,
}

impl Broker {
    /// The broker's name.
    pub fn name(&self) -> &str {
        &self.secret.name
    }

    /// The variables of the guest that hold the base URL.
    pub fn variables(&self) -> Vec<String> {
        let own = format!("MICROAGENT_BROKER_{}", self.name());
        std::iter::once(own).chain(self.env.iter().cloned()).collect()
    }

    /// The same with other paths of files: what `change` makes of each.
    ///
    /// # Errors
    /// Fails as `change` does.
    pub fn with_paths<E>(&self, change: impl Fn(&Path) -> Result<PathBuf, E>) -> Result<Broker, E> {
        let secret = self.secret.with_path(&change)?;
        let ca = self.ca.as_deref().map(change).transpose()?;
        Ok(Broker { secret, ca, ..self.clone() })
    }

    /// Checks what the text form checks, for a broker that was put together from parts.
    ///
    /// # Errors
    /// Fails with the first part that is not valid.
    pub fn check(&self) -> Result<(), BrokerError> {
        let name = self.name().to_owned();
        let wrong = |what| Err(BrokerError::Value { name: name.clone(), what });
        if self.header.is_empty()
            || self.header.len() > TEXT_MAX
            || !self.header.bytes().all(is_token_byte)
            || HOP_BY_HOP_HEADERS
                .iter()
                .chain(&RESERVED_HEADERS)
                .any(|reserved| self.header.eq_ignore_ascii_case(reserved))
        {
            return wrong("`header` takes the name of a header that carries a credential");
        }
        let is_plain = self.format.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if self.format.matches("{}").count() != 1 || self.format.len() > TEXT_MAX || !is_plain {
            return wrong("`format` takes a text with `{}` in it once, where the credential belongs");
        }
        if self.allow.len() > ALLOWED_REQUESTS_MAX {
            return wrong("`allow` takes at most 64 patterns");
        }
        if self.env.len() > BROKER_ENV_MAX || !self.env.iter().all(|variable| is_variable_name(variable)) {
            return wrong("`env` takes the name of a variable, up to 16 of them");
        }
        Ok(())
    }
}

/// The first name that two brokers have, or variable that two brokers set.
pub fn brokered_twice(brokers: &[Broker]) -> Option<String> {
    let mut seen = Vec::new();
    for broker in brokers {
        let own = std::iter::once(broker.name().to_owned()).chain(broker.variables());
        for name in own {
            if seen.contains(&name) {
                return Some(name);
            }
            seen.push(name);
        }
    }
    None
}

/// The server behind a broker. As text `https://HOST[:PORT][/BASE]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upstream {
    /// A name, or an address (of IPv6 without brackets).
    pub host: String,
    /// The port.
    pub port: NonZeroU16,
    /// The path that every request's path is appended to; empty, or `/` and more without a `/` at the end.
    pub base: String,
}

impl Upstream {
    /// Host and port as a `Host` header has them.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == HTTPS_PORT { host } else { format!("{host}:{}", self.port) }
    }
}

/// Why a text is not an [`Upstream`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an upstream is written https://HOST[:PORT][/BASE]")]
pub struct UpstreamError;

/// Why a text is not an [`AllowedRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pattern is written METHOD /PATH")]
pub struct AllowedRequestError;

/// A request that a broker lets pass. As text `METHOD /PATH`; a method `*` is any method, a segment `*` any segment, and
/// a last segment `*` at least one more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AllowedRequest {
    /// The method, in capitals; `*` for any.
    pub method: String,
    /// The pattern of the path, below the upstream's base.
    pub path: String,
}

/// Why a text is not a broker. Values of secrets that were typed by mistake are not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The name or the upstream is missing.
    #[error("a broker is written NAME=https://HOST[/BASE],secret=SCHEME:REFERENCE")]
    Shape,
    /// The name is not valid. It is not repeated.
    #[error("the name of a broker has letters, digits and `_`, no digit first, at most {NAME_MAX}")]
    Name,
    /// The upstream is not a URL that a broker can have.
    #[error(
        "broker `{name}`: an upstream is written https://HOST[:PORT][/BASE], without login, query and `..`"
    )]
    Upstream {
        /// The broker's name.
        name: String,
    },
    /// A key is not known.
    #[error("broker `{name}`: the keys are secret, header, format, allow, ca, env and private")]
    Key {
        /// The broker's name.
        name: String,
    },
    /// A key is given twice.
    #[error("broker `{name}`: `{key}` is given twice")]
    Twice {
        /// The broker's name.
        name: String,
        /// The key.
        key: &'static str,
    },
    /// It has no secret.
    #[error("broker `{name}` has no `secret=SCHEME:REFERENCE`")]
    NoSecret {
        /// The broker's name.
        name: String,
    },
    /// The reference to the secret is not valid.
    #[error(transparent)]
    Secret(#[from] SecretReferenceError),
    /// A pattern is not `METHOD /PATH`.
    #[error("broker `{name}`: `allow` takes `METHOD /PATH`, such as `GET /v1/*`")]
    Allow {
        /// The broker's name.
        name: String,
    },
    /// A value is not valid.
    #[error("broker `{name}`: {what}")]
    Value {
        /// The broker's name.
        name: String,
        /// What it takes.
        what: &'static str,
    },
}

impl FromStr for Broker {
    type Err = BrokerError;

    fn from_str(text: &str) -> Result<Broker, BrokerError> {
        let mut parts = text.split(',');
        let (name, upstream) =
            parts.next().and_then(|first| first.split_once('=')).ok_or(BrokerError::Shape)?;
        if !is_variable_name(name) {
            return Err(BrokerError::Shape);
        }
        let mut given = BrokerKeys::default();
        for part in parts {
            given.take(name, part)?;
        }
        given.broker(name, upstream)
    }
}

/// The given keys of a broker.
#[derive(Debug, Default)]
pub struct BrokerKeys<'a> {
    /// `secret`: scheme and reference.
    pub secret: Option<&'a str>,
    /// `header`.
    pub header: Option<&'a str>,
    /// `format`.
    pub format: Option<&'a str>,
    /// `allow`.
    pub allow: Vec<&'a str>,
    /// `ca`.
    pub ca: Option<&'a str>,
    /// `env`.
    pub env: Vec<&'a str>,
    /// `private`.
    pub private: bool,
}

impl<'a> BrokerKeys<'a> {
    fn take(&mut self, name: &str, part: &'a str) -> Result<(), BrokerError> {
        let name = || name.to_owned();
        let once = |slot: &mut Option<&'a str>, key, value| match slot.replace(value) {
            Some(_) => Err(BrokerError::Twice { name: name(), key }),
            None => Ok(()),
        };
        match part.split_once('=') {
            Some(("secret", value)) => once(&mut self.secret, "secret", value),
            Some(("header", value)) => once(&mut self.header, "header", value),
            Some(("format", value)) => once(&mut self.format, "format", value),
            Some(("ca", value)) => once(&mut self.ca, "ca", value),
            Some(("allow", value)) => {
                self.allow.push(value);
                Ok(())
            }
            Some(("env", value)) => {
                self.env.push(value);
                Ok(())
            }
            None if part == "private" => {
                self.private = true;
                Ok(())
            }
            _ => Err(BrokerError::Key { name: name() }),
        }
    }

    /// The broker of this name, with the defaults of keys that are not given.
    ///
    /// # Errors
    /// Fails with the first part that is not valid.
    pub fn broker(self, name: &str, upstream: &str) -> Result<Broker, BrokerError> {
        if !is_variable_name(name) || name.len() > NAME_MAX {
            return Err(BrokerError::Name);
        }
        let upstream = upstream.parse().map_err(|_| BrokerError::Upstream { name: name.to_owned() })?;
        let secret = self.secret.ok_or_else(|| BrokerError::NoSecret { name: name.to_owned() })?;
        let header = self.header.unwrap_or(AUTHORIZATION);
        let usual = if header.eq_ignore_ascii_case(AUTHORIZATION) { "Bearer {}" } else { "{}" };
        let allow = self
            .allow
            .into_iter()
            .map(|text| text.parse().map_err(|_| BrokerError::Allow { name: name.to_owned() }));
        let broker = Broker {
            secret: format!("{name}={secret}").parse()?,
            upstream,
            header: header.to_owned(),
            format: self.format.unwrap_or(usual).to_owned(),
            allow: allow.collect::<Result<_, _>>()?,
            ca: self.ca.map(PathBuf::from),
            private: self.private,
            env: self.env.into_iter().map(str::to_owned).collect(),
        };
        broker.check()?;
        Ok(broker)
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={},secret={}", self.name(), self.upstream, self.secret.source)?;
        write!(f, ",header={},format={}", self.header, self.format)?;
        for allow in &self.allow {
            write!(f, ",allow={allow}")?;
        }
        if let Some(ca) = &self.ca {
            write!(f, ",ca={}", ca.display())?;
        }
        for variable in &self.env {
            write!(f, ",env={variable}")?;
        }
        if self.private { f.write_str(",private") } else { Ok(()) }
    }
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Upstream, UpstreamError> {
        let rest =
            text.strip_prefix("https://").filter(|rest| rest.len() <= TEXT_MAX).ok_or(UpstreamError)?;
        let (authority, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port),
            Some(_) => return Err(UpstreamError),
            None => {
                let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
                (Some(host).filter(|host| is_host(host)).ok_or(UpstreamError)?, port)
            }
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| UpstreamError)?,
            None if port.is_empty() => HTTPS_PORT,
            None => return Err(UpstreamError),
        };
        let base = base.strip_suffix('/').unwrap_or(base);
        if !base.is_empty() && !is_plain_path(base) {
            return Err(UpstreamError);
        }
        Ok(Upstream { host: host.to_ascii_lowercase(), port, base: base.to_owned() })
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.base)
    }
}

impl FromStr for AllowedRequest {
    type Err = AllowedRequestError;

    fn from_str(text: &str) -> Result<AllowedRequest, AllowedRequestError> {
        let (method, path) =
            text.split_once(' ').filter(|_| text.len() <= TEXT_MAX).ok_or(AllowedRequestError)?;
        let is_method = method == "*"
            || !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        // A `*` is a segment of its own: `/v1*` would mean something else to everybody.
        let is_clear = |segment: &str| segment == "*" || !segment.contains('*');
        if !is_method || !(path == "/" || is_plain_path(path)) || !path.split('/').all(is_clear) {
            return Err(AllowedRequestError);
        }
        Ok(AllowedRequest { method: method.to_owned(), path: path.to_owned() })
    }
}

impl fmt::Display for AllowedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

crate::text::as_text!(Upstream, AllowedRequest);

/// Whether a byte may be in a method or in the name of a header.
///
/// # Source
/// RFC 9110, 5.6.2, `tchar`.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.len() <= 253 && host.split('.').all(is_label)
}

/// Whether a path means the same to everybody: segments that are not empty, `.` or `..`, and nothing that is encoded.
fn is_plain_path(path: &str) -> bool {
    let is_plain = |segment: &str| {
        !segment.is_empty()
            && segment != "."
            && segment != ".."
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+=:@".contains(&byte))
    };
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(text: &str) -> Broker {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn is_read_and_written_alike() {
        for (text, whole) in [
            (
                "OPENAI=https://api.openai.com/v1,secret=env:KEY",
                "OPENAI=https://api.openai.com/v1,secret=env:KEY,header=Authorization,format=Bearer {}",
            ),
            (
                "A=https://API.anthropic.com:443/,secret=file:/k,header=x-api-key",
                "A=https://api.anthropic.com,secret=file:/k,header=x-api-key,format={}",
            ),
            (
                "GH=https://[::1]:8443,secret=env:T,format=token {},allow=GET /repos/*,allow=* /,ca=/ca.pem,env=GH_URL,\
                 private",
                "GH=https://[::1]:8443,secret=env:T,header=Authorization,format=token {},allow=GET /repos/*,allow=* /,\
                 ca=/ca.pem,env=GH_URL,private",
            ),
        ] {
            let read = broker(text);
            assert_eq!(read.to_string(), whole);
            assert_eq!(whole.parse(), Ok(read.clone()));
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<Broker>(&json).unwrap(), read);
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_no_value_is_repeated() {
        for (text, says) in [
            ("", "a broker is written"),
            ("https://a.example,secret=env:K", "a broker is written"),
            ("1A=https://a.example,secret=env:K", "a broker is written"),
            ("A=http://a.example,secret=env:K", "https://HOST"),
            ("A=https://user:hunter2@a.example,secret=env:K", "https://HOST"),
            ("A=https://a.example/x?y,secret=env:K", "https://HOST"),
            ("A=https://a.example/x/../y,secret=env:K", "https://HOST"),
            ("A=https://a.example/%2e%2e,secret=env:K", "https://HOST"),
            ("A=https://a.example//x,secret=env:K", "https://HOST"),
            ("A=https://a.example:0,secret=env:K", "https://HOST"),
            ("A=https://a_.example:x,secret=env:K", "https://HOST"),
            ("A=https://,secret=env:K", "https://HOST"),
            ("A=https://a.example", "no `secret="),
            ("A=https://a.example,secret=hunter2", "a secret is written"),
            ("A=https://a.example,secret=env:K,secret=env:L", "given twice"),
            ("A=https://a.example,secret=env:K,hunter2=1", "the keys are"),
            ("A=https://a.example,secret=env:K,private=hunter2", "the keys are"),
            ("A=https://a.example,secret=env:K,header=a b", "`header` takes"),
            ("A=https://a.example,secret=env:K,header=Content-Length", "`header` takes"),
            ("A=https://a.example,secret=env:K,format=x", "`format` takes"),
            ("A=https://a.example,secret=env:K,format={}{}", "`format` takes"),
            ("A=https://a.example,secret=env:K,format=\n{}", "`format` takes"),
            ("A=https://a.example,secret=env:K,allow=GET", "`allow` takes"),
            ("A=https://a.example,secret=env:K,allow=get /", "`allow` takes"),
            ("A=https://a.example,secret=env:K,allow=GET /a*", "`allow` takes"),
            ("A=https://a.example,secret=env:K,allow=GET /../x", "`allow` takes"),
            ("A=https://a.example,secret=env:K,env=A-B", "`env` takes"),
        ] {
            let error = text.parse::<Broker>().unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn names_and_variables_are_there_once() {
        let one = broker("A=https://a.example,secret=env:K,env=X_URL");
        let two = broker("B=https://b.example,secret=env:K,env=Y_URL");
        assert_eq!(brokered_twice(&[one.clone(), two.clone()]), None);
        assert_eq!(brokered_twice(&[one.clone(), one.clone()]).as_deref(), Some("A"));
        let same = Broker { env: vec!["X_URL".into()], ..two };
        assert_eq!(brokered_twice(&[one.clone(), same]).as_deref(), Some("X_URL"));
        assert_eq!(one.variables(), ["MICROAGENT_BROKER_A", "X_URL"]);
    }
}
