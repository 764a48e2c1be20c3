//! What the surroundings say: proxies, certificates, login files, helper programs.
//!
//! Collected in one struct that the caller may fill in as it likes. Nothing else in this crate looks at
//! environment variables or the home directory, so a test or a service sees only what it is given.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use crate::reference::host_of;

/// Registries that may be reached over plain HTTP, separated by commas.
const INSECURE_REGISTRIES: &str = "MICROAGENT_INSECURE_REGISTRIES";
/// Where podman and rootless Docker keep certificates of registries, under the user's configuration.
const OWN_CERTIFICATES: [&str; 2] = ["containers/certs.d", "docker/certs.d"];
/// Where the system keeps them.
const SYSTEM_CERTIFICATES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// Where to look for credentials, certificates and proxies.
///
/// `Default` is empty: no credentials, no proxy, the system's certificates.
#[derive(Clone, Default)]
pub struct Environment {
    /// `REGISTRY_AUTH_FILE`: the one login file to use.
    pub registry_auth_file: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`, for podman's login file of this session.
    pub runtime_dir: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`, else `~/.config`, for podman's lasting login file.
    pub config_home: Option<PathBuf>,
    /// `DOCKER_CONFIG`, else `~/.docker`, for Docker's `config.json`.
    pub docker_config: Option<PathBuf>,
    /// `PATH`, to find `docker-credential-*` programs. They run in the environment of this process.
    pub path: Option<OsString>,
    /// `SSL_CERT_FILE`: certificates to trust instead of the system's.
    pub ssl_cert_file: Option<PathBuf>,
    /// `SSL_CERT_DIR`: the same as a directory.
    pub ssl_cert_dir: Option<PathBuf>,
    /// Directories of certificates per registry (`HOST[:PORT]/*.crt`, `*.cert` with `*.key`), as podman and Docker
    /// have them; the first that knows a registry counts.
    pub registry_certificate_dirs: Vec<PathBuf>,
    /// `MICROAGENT_INSECURE_REGISTRIES`: registries (`HOST` or `HOST:PORT`) that may be reached over plain HTTP,
    /// logins included, when they do not answer in HTTPS.
    pub insecure_registries: Vec<String>,
    /// `DOCKER_HOST`: the one daemon to ask for images, as `unix://SOCKET`.
    pub docker_host: Option<String>,
    /// What `-` in place of an archive's file reads.
    pub standard_input: Option<StandardInput>,
    /// `HTTP_PROXY` or `http_proxy`.
    pub http_proxy: Option<String>,
    /// `HTTPS_PROXY` or `https_proxy`.
    pub https_proxy: Option<String>,
    /// `ALL_PROXY` or `all_proxy`, for what the other two leave open.
    pub all_proxy: Option<String>,
    /// `NO_PROXY` or `no_proxy`: hosts to reach directly. Loopback always is.
    pub no_proxy: Option<String>,
}

/// The stream from which an archive is read if its path is `-`: the standard input of a program, or another one.
#[derive(Clone)]
pub struct StandardInput(Arc<dyn Fn() -> Box<dyn Read + Send> + Send + Sync>);

impl StandardInput {
    /// Opens the stream with `open` when an archive is read from it.
    pub fn new(open: impl Fn() -> Box<dyn Read + Send> + Send + Sync + 'static) -> StandardInput {
        StandardInput(Arc::new(open))
    }

    /// Opens the stream.
    pub fn open(&self) -> Box<dyn Read + Send> {
        (self.0)()
    }
}

/// Without proxies, whose URLs may hold passwords.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("registry_auth_file", &self.registry_auth_file)
            .field("runtime_dir", &self.runtime_dir)
            .field("config_home", &self.config_home)
            .field("docker_config", &self.docker_config)
            .field("path", &self.path)
            .field("ssl_cert_file", &self.ssl_cert_file)
            .field("ssl_cert_dir", &self.ssl_cert_dir)
            .field("registry_certificate_dirs", &self.registry_certificate_dirs)
            .field("insecure_registries", &self.insecure_registries)
            .field("docker_host", &self.docker_host)
            .field("no_proxy", &self.no_proxy)
            .finish_non_exhaustive()
    }
}

impl Environment {
    /// Whether a registry (`HOST[:PORT]`) may be reached over plain HTTP. A name without a port stands for all
    /// ports of its host.
    pub(crate) fn is_insecure(&self, registry: &str) -> bool {
        let mut named = self.insecure_registries.iter();
        named.any(|name| name == registry || (name == host_of(name) && name == host_of(registry)))
    }

    /// What a lookup of environment variables says; empty values count as unset.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Environment {
        let value = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let path = |name: &str| value(name).map(PathBuf::from);
        // Lower case first, as curl does: `HTTP_PROXY` can come from a request header in CGI programs.
        let proxy = |name: &str| {
            let value = value(&name.to_lowercase()).or_else(|| value(name))?;
            value.into_string().ok()
        };
        let home = path("HOME");
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let config_home = path("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
        let own = config_home.iter().flat_map(|dir| OWN_CERTIFICATES.map(|name| dir.join(name)));
        let registry_certificate_dirs = own.chain(SYSTEM_CERTIFICATES.map(PathBuf::from)).collect();
        let list = |name: &str| value(name).and_then(|value| value.into_string().ok()).unwrap_or_default();
        let insecure_registries = list(INSECURE_REGISTRIES);
        let insecure_registries = insecure_registries.split([',', ' ']).filter(|name| !name.is_empty());
        Environment {
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            runtime_dir: path("XDG_RUNTIME_DIR"),
            config_home,
            registry_certificate_dirs,
            docker_host: value("DOCKER_HOST").and_then(|value| value.into_string().ok()),
            standard_input: None,
            insecure_registries: insecure_registries.map(str::to_owned).collect(),
            docker_config: path("DOCKER_CONFIG").or_else(|| in_home(".docker")),
            path: value("PATH"),
            ssl_cert_file: path("SSL_CERT_FILE"),
            ssl_cert_dir: path("SSL_CERT_DIR"),
            http_proxy: proxy("HTTP_PROXY"),
            https_proxy: proxy("HTTPS_PROXY"),
            all_proxy: proxy("ALL_PROXY"),
            no_proxy: proxy("NO_PROXY"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Environment {
        Environment::from_lookup(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn falls_back_to_the_home_directory() {
        let environment = from(&[("HOME", "/home/a")]);
        assert_eq!(environment.docker_config.as_deref(), Some("/home/a/.docker".as_ref()));
        assert_eq!(environment.config_home.as_deref(), Some("/home/a/.config".as_ref()));
        let environment = from(&[("HOME", "/home/a"), ("DOCKER_CONFIG", "/d"), ("XDG_CONFIG_HOME", "")]);
        assert_eq!(environment.docker_config.as_deref(), Some("/d".as_ref()));
        assert_eq!(environment.config_home.as_deref(), Some("/home/a/.config".as_ref()));
        assert_eq!(from(&[]).docker_config, None);
    }

    #[test]
    fn a_registry_is_insecure_by_its_name_only() {
        let environment =
            from(&[("MICROAGENT_INSECURE_REGISTRIES", "lan.example:5000, 192.0.2.7,[2001:db8::1]:80")]);
        for (registry, insecure) in [
            ("lan.example:5000", true),
            ("lan.example:5001", false),
            ("lan.example", false),
            ("192.0.2.7", true),
            ("192.0.2.7:5000", true),
            ("192.0.2.70:5000", false),
            ("[2001:db8::1]:80", true),
            ("[2001:db8::1]", false),
            ("docker.io", false),
        ] {
            assert_eq!(environment.is_insecure(registry), insecure, "{registry}");
        }
        assert!(!from(&[]).is_insecure("docker.io"));
    }

    #[test]
    fn lower_case_proxies_win() {
        let environment =
            from(&[("HTTPS_PROXY", "http://a"), ("https_proxy", "http://b"), ("NO_PROXY", "x")]);
        assert_eq!(environment.https_proxy.as_deref(), Some("http://b"));
        assert_eq!(environment.no_proxy.as_deref(), Some("x"));
        assert_eq!(environment.http_proxy, None);
    }
}
