//! How registries are reached: certificates, proxies, timeouts. Builds HTTP clients and sends nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{NoProxy, Proxy, Url, redirect};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

use crate::environment::Environment;
use crate::error::ImageError;

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

/// Patience with the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkOptions {
    /// For name lookup, connection and TLS together.
    pub connect_timeout: Duration,
    /// For each wait for more bytes.
    pub read_timeout: Duration,
    /// How often something is tried that fails without getting any further.
    pub attempts: u32,
    /// Pause before the second attempt; doubles each time up to [`NetworkOptions::LONGEST_PAUSE`].
    pub first_pause: Duration,
}

impl NetworkOptions {
    /// Longest pause between attempts, also when the registry asks for more.
    pub const LONGEST_PAUSE: Duration = Duration::from_secs(10);

    /// The pause after the given number of failures.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(Self::LONGEST_PAUSE)
    }
}

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

/// Makes the HTTP client for a registry, or for another server that is reached like one. To loopback no proxy is used,
/// whatever is set.
///
/// # Errors
/// Fails when a proxy's address is none, or a file of certificates has none.
pub fn client(
    environment: &Environment,
    options: &NetworkOptions,
    loopback: bool,
) -> Result<reqwest::Client, ImageError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(environment)?)
        .user_agent(concat!("microagent/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .no_proxy()
        .redirect(redirect::Policy::custom(follow))
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.read_timeout);
    if !loopback {
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

fn tls(environment: &Environment) -> Result<ClientConfig, ImageError> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring serves the default protocol versions")
        .with_root_certificates(roots(environment)?)
        .with_no_client_auth();
    Ok(config)
}

/// The trusted certificates. With none at all every HTTPS registry fails by its certificate, which is the
/// truth; an explicit file or directory without any is an error at once.
fn roots(environment: &Environment) -> Result<RootCertStore, ImageError> {
    let explicit = (environment.ssl_cert_file.as_deref(), environment.ssl_cert_dir.as_deref());
    let system = SYSTEM_CERTIFICATES.iter().map(Path::new).find(|file| file.is_file());
    let (file, dir) = if explicit == (None, None) { (system, None) } else { explicit };
    let loaded = rustls_native_certs::load_certs_from_paths(file, dir);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty()
        && let Some(path) = explicit.0.or(explicit.1)
    {
        let source = match loaded.errors.into_iter().next() {
            Some(error) => error.into(),
            None => "no certificate in it".into(),
        };
        return Err(ImageError::Certificates { path: PathBuf::from(path), source });
    }
    Ok(roots)
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
    fn wrong_settings_are_named_without_passwords() {
        for wrong in
            ["ftp://user:secret@host", "socks5://user:secret@host", "http://user:secret@", "user:secret@x y"]
        {
            let environment = Environment { https_proxy: Some(wrong.into()), ..Environment::default() };
            let error = client(&environment, &NetworkOptions::default(), false).unwrap_err();
            assert!(matches!(error, ImageError::Proxy { .. }), "{wrong}: {error:?}");
            assert!(!error.to_string().contains("secret"), "{error}");
            client(&environment, &NetworkOptions::default(), true).unwrap();
        }
        for right in ["proxy:3128", "http://user:secret@proxy.example.org", "https://[::1]:3128/"] {
            let environment = Environment { all_proxy: Some(right.into()), ..Environment::default() };
            client(&environment, &NetworkOptions::default(), false).unwrap();
        }
        let environment =
            Environment { ssl_cert_file: Some("/nonexistent/ca.pem".into()), ..Environment::default() };
        let error = client(&environment, &NetworkOptions::default(), false).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
    }
}
