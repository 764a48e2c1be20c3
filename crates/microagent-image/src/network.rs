//! How registries are reached: certificates, proxies, timeouts. Builds HTTP clients and sends nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{NoProxy, Proxy, Url, redirect};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::environment::Environment;
use crate::error::ImageError;
use crate::reference::RegistryReference;

use self::host_certificates::HostCertificates;

mod host_certificates;

/// Where distributions keep the system's trusted certificates, in one file.
const SYSTEM_CERTIFICATES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Most redirects that are followed: registry to storage is one, some take two.
const REDIRECTS_MAX: usize = 5;

/// Time limits and attempts for connections to registries.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkOptions {
    /// Time limit of name lookup, connection and TLS handshake together.
    pub connect_timeout: Duration,
    /// Time limit of each wait for more bytes.
    pub read_timeout: Duration,
    /// Most attempts of a request that fails without progress.
    pub attempts: u32,
    /// Pause before the second attempt; doubles each time up to [`NetworkOptions::LONGEST_PAUSE`].
    pub first_pause: Duration,
}

impl NetworkOptions {
    /// Longest pause between attempts that the registry does not ask for.
    pub const LONGEST_PAUSE: Duration = Duration::from_secs(10);
    /// Longest pause that a registry can ask for with `Retry-After`. One that asks for more is not asked again.
    pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

    /// The pause after the given number of failures.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(Self::LONGEST_PAUSE)
    }

    /// The pause after the given number of failures when the registry asked for one; `None` when it asked for
    /// more than anybody waits for.
    pub(crate) fn pause_asked(&self, failures: u32, asked: Option<Duration>) -> Option<Duration> {
        let asked = asked.unwrap_or_default();
        (asked <= Self::LONGEST_RETRY_AFTER).then(|| asked.max(self.pause(failures)))
    }
}

const _: () = assert!(
    NetworkOptions::LONGEST_PAUSE.as_secs() <= NetworkOptions::LONGEST_RETRY_AFTER.as_secs(),
    "a registry can ask for at least the pause that is made anyway"
);

impl Default for NetworkOptions {
    fn default() -> NetworkOptions {
        NetworkOptions {
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_secs(30),
            attempts: 5,
            first_pause: Duration::from_millis(250),
        }
    }
}

/// Which proxies an HTTP client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// Those of the environment.
    Environment,
    /// No proxy: the server listens on the loopback interface.
    Direct,
}

impl ProxyMode {
    fn to_registry(registry: &RegistryReference) -> ProxyMode {
        if registry.is_loopback() { ProxyMode::Direct } else { ProxyMode::Environment }
    }
}

/// Creates the HTTP client for a server that is reached like a registry.
///
/// # Errors
/// Fails when a proxy's address is not valid, or a file of certificates has none.
pub fn client(
    environment: &Environment,
    options: &NetworkOptions,
    proxy_mode: ProxyMode,
) -> Result<reqwest::Client, ImageError> {
    build(environment, options, proxy_mode, tls(environment, &HostCertificates::default())?, follow)
}

/// Makes the HTTP client for a server that listens on a socket of this machine. It follows no redirect.
pub(crate) fn socket_client(
    socket: &Path,
    options: &NetworkOptions,
    read_timeout: Duration,
) -> reqwest::Client {
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring serves the default protocol versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .unix_socket(socket)
        .user_agent(concat!("microagent/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .connect_timeout(options.connect_timeout)
        .read_timeout(read_timeout)
        .build()
        .expect("a client of checked parts can be built")
}

/// The two clients of one registry.
pub(crate) struct RegistryClients {
    /// For the registry: follows redirects to storage on other hosts.
    pub(crate) content: reqwest::Client,
    /// For its token server, which is sent logins in the address and the body: follows no redirect to another
    /// origin.
    pub(crate) login: reqwest::Client,
}

/// Makes the HTTP clients for a registry, with the certificates that are kept for its host.
///
/// # Errors
/// As [`client`], and when a file in the host's directory of certificates cannot be used.
pub(crate) fn registry_clients(
    environment: &Environment,
    options: &NetworkOptions,
    registry: &RegistryReference,
) -> Result<RegistryClients, ImageError> {
    let tls = tls(environment, &HostCertificates::find(environment, &registry.registry)?)?;
    let proxy_mode = ProxyMode::to_registry(registry);
    Ok(RegistryClients {
        content: build(environment, options, proxy_mode, tls.clone(), follow)?,
        login: build(environment, options, proxy_mode, tls, follow_within_origin)?,
    })
}

fn build(
    environment: &Environment,
    options: &NetworkOptions,
    proxy_mode: ProxyMode,
    tls: ClientConfig,
    follow: fn(redirect::Attempt<'_>) -> redirect::Action,
) -> Result<reqwest::Client, ImageError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("microagent/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .no_proxy()
        .redirect(redirect::Policy::custom(follow))
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.read_timeout);
    if proxy_mode == ProxyMode::Environment {
        for proxy in proxies(environment)? {
            builder = builder.proxy(proxy);
        }
    }
    Ok(builder.build().expect("a client of checked parts can be built"))
}

/// Follows redirects to storage, but never from HTTPS down to plain HTTP.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let was_secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if was_secure && attempt.url().scheme() != "https" {
        return attempt.error("redirected from https to plain http");
    }
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error("too many redirects");
    }
    attempt.follow()
}

/// Follows redirects that stay with the host that was asked.
fn follow_within_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let origin = attempt.previous().first().map(Url::origin);
    if origin.is_some_and(|origin| origin != attempt.url().origin()) {
        return attempt.error("redirected to another host, which gets no login");
    }
    follow(attempt)
}

/// Whether this machine has a way to anywhere. What cannot be read counts as one: the question is asked to explain
/// a failure, and should not invent a reason.
pub(crate) fn has_default_route() -> bool {
    let tables = ["/proc/net/route", "/proc/net/ipv6_route"].map(fs::read_to_string);
    match &tables {
        [Ok(v4), v6] => routes_anywhere(v4, v6.as_deref().unwrap_or_default()),
        [Err(_), _] => true,
    }
}

/// Looks for a default route in the kernel's two tables.
///
/// # Source
/// `net/ipv4/fib_trie.c` (`fib_route_seq_show`) and `net/ipv6/route.c` (`rt6_info_route`) of Linux.
fn routes_anywhere(v4: &str, v6: &str) -> bool {
    let mut v4 = v4.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut v6 = v6.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Interface, destination, gateway, flags, …, mask at 7.
    let default_v4 =
        |fields: Vec<&str>| fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000");
    // Destination, its prefix length, …, interface at 9: the kernel keeps a refusing default on `lo`.
    let default_v6 = |fields: Vec<&str>| {
        fields.first().is_some_and(|destination| destination.bytes().all(|digit| digit == b'0'))
            && fields.get(1) == Some(&"00")
            && fields.get(9).is_some_and(|interface| *interface != "lo")
    };
    v4.any(default_v4) || v6.any(default_v6)
}

fn proxies(environment: &Environment) -> Result<Vec<Proxy>, ImageError> {
    type Make = fn(Url) -> reqwest::Result<Proxy>;
    let settings: [(&Option<String>, Make); 3] = [
        (&environment.http_proxy, |url| Proxy::http(url)),
        (&environment.https_proxy, |url| Proxy::https(url)),
        (&environment.all_proxy, |url| Proxy::all(url)),
    ];
    let mut proxies = Vec::new();
    for (setting, make) in settings {
        if let Some(setting) = setting {
            let refused = || ImageError::Proxy { proxy: without_login(setting) };
            let no_proxy = environment.no_proxy.as_deref().and_then(NoProxy::from_string);
            let url = proxy_url(setting).ok_or_else(refused)?;
            proxies.push(make(url).map_err(|_| refused())?.no_proxy(no_proxy));
        }
    }
    Ok(proxies)
}

/// Checked here, because the HTTP client takes nearly any text for some proxy. Without a scheme it is
/// plain HTTP, as with curl.
fn proxy_url(setting: &str) -> Option<Url> {
    let full = if setting.contains("://") { setting.to_owned() } else { format!("http://{setting}") };
    let url = Url::parse(full.trim()).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

/// A proxy URL may hold a password.
fn without_login(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => url.to_owned(),
    }
}

fn tls(environment: &Environment, host: &HostCertificates) -> Result<ClientConfig, ImageError> {
    let mut roots = roots(environment)?;
    roots.add_parsable_certificates(host.authorities.iter().cloned());
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring serves the default protocol versions")
        .with_root_certificates(roots);
    let Some(own) = &host.own else { return Ok(config.with_no_client_auth()) };
    config
        .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
        .map_err(|source| ImageError::Certificates { path: own.path.clone(), source: source.into() })
}

/// The trusted certificates of an environment, as DER.
///
/// # Errors
/// Fails when a file or directory that the environment names has none.
pub fn certificates(environment: &Environment) -> Result<Vec<Vec<u8>>, ImageError> {
    let (certificates, _) = trusted_certificates(environment)?;
    Ok(certificates.into_iter().map(|certificate| certificate.to_vec()).collect())
}

fn roots(environment: &Environment) -> Result<RootCertStore, ImageError> {
    trusted_certificates(environment).map(|(_, roots)| roots)
}

/// The trusted certificates. With none at all every HTTPS registry fails by its certificate, which is the
/// truth; an explicit file or directory without any is an error at once.
fn trusted_certificates(
    environment: &Environment,
) -> Result<(Vec<CertificateDer<'static>>, RootCertStore), ImageError> {
    let explicit = (environment.ssl_cert_file.as_deref(), environment.ssl_cert_dir.as_deref());
    let system = SYSTEM_CERTIFICATES.iter().map(Path::new).find(|file| file.is_file());
    let (file, dir) = if explicit == (None, None) { (system, None) } else { explicit };
    let loaded = rustls_native_certs::load_certs_from_paths(file, dir);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs.iter().cloned());
    if roots.is_empty()
        && let Some(path) = explicit.0.or(explicit.1)
    {
        let source = match loaded.errors.into_iter().next() {
            Some(error) => error.into(),
            None => "no certificate in it".into(),
        };
        return Err(ImageError::Certificates { path: PathBuf::from(path), source });
    }
    Ok((loaded.certs, roots))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let options = NetworkOptions::default();
        assert_eq!(options.pause(1), Duration::from_millis(250));
        assert_eq!(options.pause(3), Duration::from_millis(1000));
        assert_eq!(options.pause(u32::MAX), NetworkOptions::LONGEST_PAUSE);
    }

    #[test]
    fn a_registry_can_ask_for_a_longer_pause_and_not_for_any() {
        let options = NetworkOptions::default();
        let seconds = Duration::from_secs;
        for (failures, asked, pause) in [
            (1, None, Some(Duration::from_millis(250))),
            (1, Some(seconds(0)), Some(Duration::from_millis(250))),
            (1, Some(seconds(2)), Some(seconds(2))),
            (9, Some(seconds(2)), Some(NetworkOptions::LONGEST_PAUSE)),
            (1, Some(seconds(60)), Some(seconds(60))),
            (1, Some(seconds(61)), None),
        ] {
            assert_eq!(options.pause_asked(failures, asked), pause, "{failures} {asked:?}");
        }
    }

    #[test]
    fn a_default_route_is_seen_in_either_table() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let own = "eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let default = "eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let zeros = "0".repeat(32);
        let v6 = |interface: &str| {
            format!("{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 {interface}\n")
        };
        for (v4, v6, anywhere) in [
            (String::new(), String::new(), false),
            (format!("{head}{own}"), v6("lo"), false),
            (format!("{head}{own}{default}"), String::new(), true),
            (head.to_owned(), v6("eth0"), true),
        ] {
            assert_eq!(routes_anywhere(&v4, &v6), anywhere, "{v4} {v6}");
        }
    }

    #[test]
    fn wrong_settings_are_named_without_passwords() {
        for wrong in
            ["ftp://user:secret@host", "socks5://user:secret@host", "http://user:secret@", "user:secret@x y"]
        {
            let environment = Environment { https_proxy: Some(wrong.into()), ..Environment::default() };
            let error = client(&environment, &NetworkOptions::default(), ProxyMode::Environment).unwrap_err();
            assert!(matches!(error, ImageError::Proxy { .. }), "{wrong}: {error:?}");
            assert!(!error.to_string().contains("secret"), "{error}");
            client(&environment, &NetworkOptions::default(), ProxyMode::Direct).unwrap();
        }
        for right in ["proxy:3128", "http://user:secret@proxy.example.org", "https://[::1]:3128/"] {
            let environment = Environment { all_proxy: Some(right.into()), ..Environment::default() };
            client(&environment, &NetworkOptions::default(), ProxyMode::Environment).unwrap();
        }
        let environment =
            Environment { ssl_cert_file: Some("/nonexistent/ca.pem".into()), ..Environment::default() };
        let error = client(&environment, &NetworkOptions::default(), ProxyMode::Environment).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
    }
}
