//! A registry of our own: Debian's `docker-registry` on a free loopback port, filled by `skopeo`.
//!
//! Storage, password file and certificates lie in a temporary directory. The registry ends when the value is
//! dropped, and with the thread that started it, however that ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::listing::listing;

/// How long the registry may take to listen; it needs some 50 ms.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How often its log is looked at meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What kind of registry to start.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// User name and password that every request needs.
    pub login: Option<(String, String)>,
    /// Serve HTTPS, with a certificate of a throw-away CA.
    pub tls: bool,
    /// Serve clients only that show a certificate of that CA; needs `tls`.
    pub client_certificates: bool,
}

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    dir: TempDir,
    address: String,
    options: RegistryOptions,
}

impl Registry {
    /// Starts an open registry that speaks plain HTTP.
    ///
    /// # Errors
    /// Fails when a program is missing or the registry does not listen in time.
    pub fn start() -> Result<Registry> {
        Self::start_with(RegistryOptions::default())
    }

    /// Starts a registry.
    ///
    /// # Errors
    /// Fails when a program is missing or the registry does not listen in time.
    pub fn start_with(options: RegistryOptions) -> Result<Registry> {
        let dir = tempfile::Builder::new().prefix("registry-").tempdir()?;
        let config = dir.path().join("config.json");
        // YAML takes JSON, which needs no quoting here.
        fs::write(&config, serde_json::to_vec(&configuration(dir.path(), &options)?)?)?;
        let log = dir.path().join("log");
        // `setpriv` makes the kernel end the registry when a test is killed and drops nothing.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(append(&log)?)
            .stderr(append(&log)?)
            .spawn()
            .context("cannot start docker-registry through setpriv")?;
        let mut registry = Registry { child, dir, address: String::new(), options };
        registry.address = registry.wait_until_listening(&log)?;
        Ok(registry)
    }

    /// Host and port, such as `127.0.0.1:40689`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Just the port.
    pub fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap_or_default()
    }

    /// The certificate of the throw-away CA, if the registry speaks HTTPS.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// The server's certificate and its key, which do for a client as well.
    pub fn certificate(&self) -> (PathBuf, PathBuf) {
        (self.dir.path().join("server.crt"), self.dir.path().join("server.key"))
    }

    /// The registry's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Copies an image into the registry. `source` is skopeo's way to name it, such as `oci:DIR:TAG`;
    /// `name` is repository and tag. All platforms of an index are copied, and digests stay as they are.
    ///
    /// # Errors
    /// Fails when skopeo does.
    pub fn push(&self, source: &str, name: &str) -> Result<()> {
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--all",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ]);
        if let Some((user, password)) = &self.options.login {
            skopeo.args(["--dest-creds", &format!("{user}:{password}")]);
        }
        if self.options.client_certificates {
            let dir = self.dir.path().join("shown");
            fs::create_dir_all(&dir)?;
            let (certificate, key) = self.certificate();
            fs::copy(certificate, dir.join("client.cert"))?;
            fs::copy(key, dir.join("client.key"))?;
            skopeo.arg("--dest-cert-dir").arg(dir);
        }
        run(skopeo.arg(source).arg(format!("docker://{}/{name}", self.address)))
    }

    /// Takes all configurations and layers away, so that only manifests can be fetched. Gives how many they were.
    ///
    /// # Panics
    /// When the storage cannot be read or changed.
    pub fn remove_layers(&self) -> usize {
        let is_manifest = |path: &Path| {
            let content: Option<serde_json::Value> =
                fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            content.is_some_and(|content| !content["layers"].is_null() || !content["manifests"].is_null())
        };
        let blobs = listing(&self.dir.path().join("data/docker/registry/v2/blobs")).into_keys();
        let layers: Vec<_> = blobs.filter(|path| path.is_file() && !is_manifest(path)).collect();
        layers.iter().for_each(|layer| fs::remove_file(layer).expect("the storage is this process's"));
        layers.len()
    }

    fn wait_until_listening(&mut self, log: &Path) -> Result<String> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let text = fs::read_to_string(log).unwrap_or_default();
            let address = text.split("listening on ").nth(1).and_then(|rest| rest.split([',', '"']).next());
            if let Some(address) = address {
                return Ok(address.to_owned());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("docker-registry ended with {status}: {text}");
            }
            if Instant::now() > deadline {
                bail!("docker-registry does not listen: {text}");
            }
            sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both streams go to one file, each line at its end.
fn append(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

fn configuration(dir: &Path, options: &RegistryOptions) -> Result<serde_json::Value> {
    let mut config = serde_json::json!({
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": false}},
        "storage": {
            "filesystem": {"rootdirectory": dir.join("data")},
            "maintenance": {"uploadpurging": {"enabled": false}},
        },
        "http": {"addr": "127.0.0.1:0", "secret": "throw-away"},
    });
    if let Some((user, password)) = &options.login {
        let file = dir.join("htpasswd");
        run(Command::new("htpasswd").args(["-B", "-b", "-C", "4", "-c"]).arg(&file).args([user, password]))?;
        config["auth"] = serde_json::json!({"htpasswd": {"realm": "test", "path": file}});
    }
    if options.tls {
        make_certificates(dir)?;
        config["http"]["tls"] =
            serde_json::json!({"certificate": dir.join("server.crt"), "key": dir.join("server.key")});
    }
    if options.client_certificates {
        config["http"]["tls"]["clientcas"] = serde_json::json!([dir.join("ca.crt")]);
    }
    Ok(config)
}

/// Makes a CA and a certificate for loopback, both good for a day.
pub(crate) fn make_certificates(dir: &Path) -> Result<()> {
    const CURVE: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let openssl = || {
        let mut command = Command::new("openssl");
        command.current_dir(dir);
        command
    };
    fs::write(dir.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n")?;
    run(openssl().args(["req", "-x509", "-days", "1", "-subj", "/CN=throw-away CA"]).args(CURVE).args([
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
    ]))?;
    run(openssl().args(["req", "-subj", "/CN=localhost"]).args(CURVE).args([
        "-keyout",
        "server.key",
        "-out",
        "server.csr",
    ]))?;
    run(openssl()
        .args(["x509", "-req", "-days", "1", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key"])
        .args(["-CAcreateserial", "-extfile", "names", "-out", "server.crt"]))
}

fn run(command: &mut Command) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr))
}
