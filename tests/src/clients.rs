//! Clients of the Model Context Protocol that others wrote, as `cargo xtask fixtures` fetched them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::mcp::McpServer;
use crate::{Home, fixtures, host};

/// How long a client may take for all that it does, in seconds; guests are started in it.
const DEADLINE: &str = "400";

/// The fixture.
const FIXTURE: &str = "mcp-clients";

/// Where clients come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The Python package index.
    Python,
    /// The npm registry.
    Node,
}

/// The clients of one origin.
#[derive(Debug)]
pub struct Clients {
    origin: Origin,
    dir: PathBuf,
}

impl Clients {
    /// Those of an origin; none, with a printed reason, where they could not be fetched.
    pub fn of(origin: Origin) -> Option<Clients> {
        let name = match origin {
            Origin::Python => "python",
            Origin::Node => "node",
        };
        let dir = fixtures::path(FIXTURE).join(name);
        let missing = fs::read_to_string(dir.join("missing")).ok();
        if let Some(reason) = &missing {
            host::skip(&format!("clients for {name} could not be fetched: {}", reason.trim()));
        }
        missing.is_none().then_some(Clients { origin, dir })
    }

    /// Has a script of `tests/clients` drive a server of its own, which is started with these options.
    #[track_caller]
    pub fn drive(&self, home: &Home, script: &str, arguments: &[&str], options: &[&str]) {
        let mut command = match self.origin {
            Origin::Python => self.program("/usr/bin/python3"),
            Origin::Node => self.program(self.bin("node")),
        };
        command.arg(scripts().join(script)).args(arguments);
        let (line, environment) = home.server_line(&[&["serve", "mcp"], options].concat());
        let server = json!({"command": line[0], "args": line[1..], "env": environment, "cwd": home.path()});
        command.env("MCP_SERVER", server.to_string()).env("MCP_IMAGE", home.image("busybox"));
        finish(command, script);
    }

    /// Runs the inspector's command line on a server of its own; gives what it prints.
    #[track_caller]
    pub fn inspect(&self, home: &Home, options: &[&str], method: &[&str]) -> String {
        let (line, environment) = home.server_line(&[&["serve", "mcp"], options].concat());
        let mut command = self.program(self.bin("node"));
        command.arg(self.bin("mcp-inspector")).args(["--cli", "--cwd"]).arg(home.path());
        for (name, value) in &environment {
            command.arg("-e").arg(format!("{name}={value}"));
        }
        command.args(method).arg("--").args(line);
        finish(command, "the inspector")
    }

    /// Runs a scenario of the conformance suite against a server; gives whether it passed, and what was printed.
    #[track_caller]
    pub fn conforms(&self, server: &McpServer, scenario: &str) -> (bool, String) {
        let proxy = Proxy::start(self, server);
        let mut command = self.program(self.bin("node"));
        command.arg(self.bin("conformance")).args(["server", "--url", &proxy.url, "--scenario", scenario]);
        let output = command.output().expect("node runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.dir.join("node_modules/.bin").join(name)
    }

    /// A call that ends by itself, with nothing of this process's environment but `PATH`.
    fn program(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after", "5", DEADLINE]).arg(program.as_ref());
        command.env_clear().env("PATH", "/usr/bin:/bin").env("PYTHONPATH", &self.dir);
        command.env("NODE_PATH", self.dir.join("node_modules")).stdin(Stdio::null());
        // Whatever they write for themselves.
        let scratch = std::env::temp_dir();
        command.env("HOME", &scratch).current_dir(&scratch).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

#[track_caller]
fn finish(mut command: Command, what: &str) -> String {
    let output = command.output().expect("`timeout` runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{what}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// Passes requests on with the token, for a suite that cannot send one.
struct Proxy {
    child: Child,
    url: String,
}

impl Proxy {
    #[track_caller]
    fn start(clients: &Clients, server: &McpServer) -> Proxy {
        let mut command = clients.program(clients.bin("node"));
        command.arg(scripts().join("proxy.mjs")).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.env("MCP_URL", &server.url).env("MCP_TOKEN", &server.token);
        let mut child = command.spawn().expect("`timeout` runs");
        let mut url = String::new();
        let mut lines = BufReader::new(child.stdout.take().expect("it is a pipe"));
        lines.read_line(&mut url).expect("its output is text");
        Proxy { child, url: url.trim().to_owned() }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The end of its standard input ends it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
