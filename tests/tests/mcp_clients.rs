//! `serve mcp` with clients that others wrote: what each of them does is in `tests/clients`.

use microagent_tests::clients::{Clients, Origin};
use microagent_tests::mcp::McpServer;
use microagent_tests::{Home, User};
use serde_json::{Value, json};

/// Scenarios of the conformance suite that are about what `serve mcp` has. The others want tools, resources and prompts of
/// the suite's own example server.
const SCENARIOS: [&str; 4] = ["server-initialize", "ping", "tools-list", "dns-rebinding-protection"];

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// Has a script drive a server of its own.
#[track_caller]
fn drive(origin: Origin, script: &str, arguments: &[&str]) {
    let Some(clients) = Clients::of(origin) else { return };
    let home = home();
    let image = home.image("busybox");
    clients.drive(&home, script, arguments, &["--allow-image", &image, "--profile", "tiny"]);
    home.nothing_is_left();
}

#[test]
fn the_official_python_client_speaks_the_newest_revision() {
    drive(Origin::Python, "client_mcp.py", &["2026-07-28"]);
}

#[test]
fn the_official_python_client_speaks_a_revision_with_a_handshake() {
    drive(Origin::Python, "client_mcp.py", &["legacy"]);
}

#[test]
fn fastmcp_uses_the_tools() {
    drive(Origin::Python, "client_fastmcp.py", &[]);
}

#[test]
fn the_official_typescript_client_uses_the_tools() {
    drive(Origin::Node, "client_sdk.mjs", &[]);
}

#[test]
fn the_inspector_finds_no_fault_in_the_schemas() {
    let Some(clients) = Clients::of(Origin::Node) else { return };
    let home = home();
    let image = home.image("busybox");
    let options = ["--allow-image", &image, "--profile", "tiny"];
    let listed = clients.inspect(&home, &options, &["--strict", "--method", "tools/list"]);
    let listed: Value = serde_json::from_str(&listed).unwrap_or_else(|e| panic!("{e}: {listed}"));
    assert!(listed["tools"].as_array().is_some_and(|tools| tools.len() > 15), "{listed}");
    let (image, command) = (format!("image={image}"), format!("command={}", json!(["echo", "hi"])));
    let method = ["--method", "tools/call", "--tool-name", "run", "--tool-arg", &image, &command];
    let called = clients.inspect(&home, &options, &method);
    let called: Value = serde_json::from_str(&called).unwrap_or_else(|e| panic!("{e}: {called}"));
    assert_eq!(called["structuredContent"]["stdout"], "hi\n", "{called}");
    home.nothing_is_left();
}

#[test]
fn the_conformance_suite_passes_where_it_applies() {
    let Some(clients) = Clients::of(Origin::Node) else { return };
    let home = home();
    let server = McpServer::start(&home, &[]);
    for scenario in SCENARIOS {
        let (passed, text) = clients.conforms(&server, scenario);
        assert!(passed, "{scenario}\n{text}");
    }
    assert!(server.close().success());
    home.nothing_is_left();
}
