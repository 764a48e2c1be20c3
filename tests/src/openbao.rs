//! A server that speaks as Vault does: OpenBao in development mode, over HTTPS, on a loopback port of this process.
//!
//! Everything lies in a temporary directory. The server ends when the value is dropped, and with the thread that started
//! it, however that ends.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::{fixtures, host, wait_for};

/// How long the server may take to serve.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// A running server with the key-value engine, version 2, at `secret/`.
#[derive(Debug)]
pub struct OpenBao {
    child: Child,
    dir: TempDir,
    address: String,
}

impl OpenBao {
    /// A token that may do everything.
    pub const ROOT_TOKEN: &'static str = "root-token-of-this-test";

    /// Starts one.
    #[track_caller]
    pub fn start() -> OpenBao {
        let dir = tempfile::Builder::new().prefix("openbao-").tempdir().expect("a directory can be made");
        let certificates = dir.path().join("certificates");
        fs::create_dir(&certificates).expect("the directory is writable");
        let log = fs::File::create(dir.path().join("log")).expect("the directory is writable");
        let address = format!("127.0.0.1:{}", host::own_ports());
        // `setpriv` makes the kernel end the server when a test is killed and drops nothing.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program())
            .args(["server", "-dev", "-dev-no-store-token", "-dev-tls"])
            .arg(format!("-dev-root-token-id={}", OpenBao::ROOT_TOKEN))
            .arg(format!("-dev-listen-address={address}"))
            .arg(format!("-dev-tls-cert-dir={}", certificates.display()))
            .env_clear()
            .env("HOME", dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor can be copied"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start OpenBao through setpriv: {e}"));
        let server = OpenBao { child, dir, address };
        wait_for("OpenBao to serve", START_DEADLINE, || {
            let listening = TcpStream::connect(&server.address).is_ok();
            let ready = listening && server.run(&["kv", "list", "secret"]).1.contains("No value found");
            if ready { Ok(()) } else { Err(fs::read_to_string(server.dir.path().join("log"))) }
        });
        server
    }

    /// For `VAULT_ADDR`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// For `VAULT_CACERT`.
    pub fn ca_certificate(&self) -> PathBuf {
        self.dir.path().join("certificates/vault-ca.pem")
    }

    /// Runs its own command with the root token; gives standard output. Fails the test when it fails.
    #[track_caller]
    pub fn bao(&self, words: &[&str]) -> String {
        let (succeeded, told, output) = self.run(words);
        assert!(succeeded, "bao {words:?}: {told}");
        output
    }

    fn run(&self, words: &[&str]) -> (bool, String, String) {
        let output = Command::new(program())
            .args(words)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("BAO_ADDR", self.url())
            .env("BAO_CACERT", self.ca_certificate())
            .env("BAO_TOKEN", OpenBao::ROOT_TOKEN)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("cannot start bao: {e}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        (output.status.success(), format!("{stdout}{stderr}"), stdout)
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn program() -> PathBuf {
    fixtures::path("openbao/bao")
}
