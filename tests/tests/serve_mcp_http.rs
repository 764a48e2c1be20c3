//! `serve mcp --listen` with real clients and real guests: both eras of the protocol, who is refused, and what is bounded.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use microagent_tests::mcp::{Era, McpServer};
use microagent_tests::{Home, User, wait_for};
use serde_json::{Value, json};

/// How long a guest may take to come so far, or a server to give a connection up.
const DEADLINE: Duration = Duration::from_secs(120);

fn home() -> Home {
    Home::new(User::unprivileged())
}

fn server(home: &Home, options: &[&str]) -> McpServer {
    let image = home.image("busybox");
    McpServer::start(home, &[&["--allow-image", &image, "--profile", "tiny"], options].concat())
}

/// A connection whose reads end.
fn connection(server: &McpServer) -> TcpStream {
    let connection = TcpStream::connect(server.address()).unwrap();
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    connection
}

/// The answer to a request, written byte for byte.
fn ask(server: &McpServer, head: &str, body: &[u8]) -> String {
    let mut connection = connection(server);
    connection.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
    // A server that refuses may close before everything is sent.
    let _ = connection.write_all(body);
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A request with these headers instead of the usual ones of the same names; gives the answer's first line and the rest.
fn post(server: &McpServer, body: &Value, changed: &[(&str, &str)]) -> String {
    let body = body.to_string();
    let length = body.len().to_string();
    let bearer = format!("Bearer {}", server.token);
    let mut headers = vec![
        ("Host", server.address()),
        ("Authorization", &bearer),
        ("Content-Type", "application/json"),
        ("Accept", "application/json, text/event-stream"),
        ("Content-Length", &length),
    ];
    for (name, value) in changed {
        headers.retain(|(usual, _)| usual != name);
        headers.push((name, value));
    }
    headers.retain(|(_, value)| !value.is_empty());
    let head: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    ask(server, &format!("POST /mcp HTTP/1.1\r\n{head}"), body.as_bytes())
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}})
}

#[test]
fn clients_of_both_eras_share_a_server_that_outlives_them() {
    let home = home();
    let image = home.image("busybox");
    let server = server(&home, &[]);
    let first = server.connect(Era::Initialize);
    first.done("create", json!({"image": image, "name": "w"}));
    first.done("write_file", json!({"name": "w", "path": "/f", "content": "grün\n"}));
    first.disconnect();

    let second = server.connect(Era::Discover);
    let ran = second.done("exec", json!({"name": "w", "shell": "cat /f; exit 3"}));
    assert_eq!((&ran["stdout"], &ran["exit_code"]), (&json!("grün\n"), &json!(3)), "{ran}");
    let ran = second.done("run", json!({"image": image, "command": ["cat"], "stdin": "in"}));
    assert_eq!(ran["stdout"], "in", "{ran}");
    second.fails("run", json!({"image": "registry.example.org/evil", "shell": "id"}), "refused");
    second.disconnect();

    assert!(server.close().success());
    home.nothing_is_left();
}

#[test]
fn a_call_that_is_given_up_ends_its_command_and_a_long_one_reports() {
    let home = home();
    let image = home.image("busybox");
    let server = server(&home, &[]);
    for (era, name) in [(Era::Initialize, "a"), (Era::Discover, "b")] {
        let client = server.connect(era);
        client.done("create", json!({"image": image, "name": name}));
        let holds = |line: &str| {
            wait_for(line, DEADLINE, || {
                let result = client.call("exec", json!({"name": name, "shell": line}));
                match &result {
                    Ok(result) if result["exit_code"] == 0 => Ok(()),
                    _ => Err(result),
                }
            });
        };
        let call = client.begin(
            "exec",
            json!({"name": name, "shell": "touch /begun; exec sleep 4242", "timeout_s": 3000}),
        );
        holds("test -e /begun");
        wait_for("a note of progress", DEADLINE, || {
            let notes = client.notes();
            if notes.iter().any(|note| note.contains("the command runs")) { Ok(()) } else { Err(notes) }
        });
        call.give_up();
        holds("! pidof sleep");

        // The end of the client ends nothing but its calls.
        let call = client.begin("exec", json!({"name": name, "shell": "exec sleep 4343", "timeout_s": 3000}));
        holds("pidof sleep");
        drop(call);
        client.disconnect();
        let next = server.connect(Era::Discover);
        wait_for("the command to end with its client", DEADLINE, || {
            let result = next.done("exec", json!({"name": name, "shell": "! pidof sleep"}));
            if result["exit_code"] == 0 { Ok(()) } else { Err(result) }
        });
        next.disconnect();
    }
    assert!(server.close().success());
    home.nothing_is_left();
}

#[test]
fn nobody_is_served_without_the_token_or_from_elsewhere() {
    let home = home();
    let server = server(&home, &[]);
    let port = server.address().rsplit(':').next().unwrap().to_owned();
    // Of a client that never finishes its request nothing is left after a while; others are served meanwhile.
    let mut slow: Vec<TcpStream> = (0..40).map(|_| connection(&server)).collect();
    for connection in &mut slow {
        connection.write_all(b"POST /mcp HTTP/1.1\r\nHost: local").unwrap();
    }

    let good = post(&server, &initialize(), &[]);
    assert_eq!(status(&good), "200", "{good}");
    assert!(good.contains(r#""name":"microagent""#), "{good}");
    let wrong = "Bearer 0000000000000000000000000000000000000000000000000000000000000000";
    for headers in [
        &[("Authorization", "")][..],
        &[("Authorization", wrong)],
        &[("Authorization", "Bearer ")],
        &[("Authorization", "Basic dXNlcjpwYXNz")],
        &[("Authorization", &server.token)],
    ] {
        let refused = post(&server, &initialize(), headers);
        assert_eq!(status(&refused), "401", "{headers:?} {refused}");
        assert!(refused.to_lowercase().contains("www-authenticate: bearer"), "{refused}");
    }
    let same = format!("http://localhost:{port}");
    for headers in [&[("Host", "localhost")][..], &[("Host", "127.0.0.1:9")], &[("Origin", &same)]] {
        assert_eq!(status(&post(&server, &initialize(), headers)), "200", "{headers:?}");
    }
    for headers in [
        &[("Host", "evil.example.org")][..],
        &[("Host", &format!("evil.example.org:{port}"))],
        &[("Origin", "http://evil.example.org")],
        &[("Origin", "http://localhost:9")],
        &[("Origin", "null")],
    ] {
        assert_eq!(status(&post(&server, &initialize(), headers)), "403", "{headers:?}");
    }
    let head = format!("Host: localhost\r\nAuthorization: Bearer {}\r\n", server.token);
    for (line, wanted) in [
        ("GET / HTTP/1.1", "404"),
        ("PUT /mcp HTTP/1.1", "405"),
        ("GET /mcp HTTP/1.1", "406"),
        ("POST /mcp HTTP/1.1", "406"),
        ("nonsense", "400"),
    ] {
        let answer = ask(&server, &format!("{line}\r\n{head}"), b"");
        assert_eq!(status(&answer), wanted, "{line} {answer}");
    }
    for connection in &mut slow {
        let mut rest = Vec::new();
        // The server closes, with an answer or without.
        let _ = connection.read_to_end(&mut rest).expect("it is closed in time");
    }
    assert!(server.close().success());
    home.nothing_is_left();
}

#[test]
fn requests_and_sessions_are_bounded() {
    let home = home();
    let image = home.image("busybox");
    let server = server(&home, &["--max-workspaces", "2"]);
    let client = server.connect(Era::Discover);
    client.done("create", json!({"image": image, "name": "w"}));
    // More connections that say nothing than there are places: they make room for a client with the token.
    let silent: Vec<TcpStream> = (0..300).map(|_| connection(&server)).collect();
    assert_eq!(status(&post(&server, &initialize(), &[])), "200");
    drop(silent);
    let huge = json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "x".repeat(9 << 20)}});
    assert_eq!(status(&post(&server, &huge, &[])), "413");
    assert_eq!(status(&post(&server, &json!("not a message"), &[])), "415");
    // A client that goes away in the middle of a body has asked nothing.
    let mut gone = connection(&server);
    let head = format!("Host: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 99", server.token);
    gone.write_all(format!("POST /mcp HTTP/1.1\r\n{head}\r\n\r\n{{").as_bytes()).unwrap();
    gone.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = gone.read_to_string(&mut answer);
    assert_ne!(status(&answer), "200", "{answer}");

    // Fifty at once: each is done, or told to come again.
    let calls: Vec<_> =
        (0..50).map(|n| client.begin("exec", json!({"name": "w", "shell": format!("echo {n}")}))).collect();
    for (n, call) in calls.into_iter().enumerate() {
        match call.finish() {
            Ok(result) => assert_eq!(result["stdout"], format!("{n}\n"), "{result}"),
            Err(error) => {
                assert_eq!((&error["kind"], &error["retryable"]), (&json!("busy"), &json!(true)), "{error}");
            }
        }
    }
    assert_eq!(client.done("exec", json!({"name": "w", "shell": "echo still"}))["stdout"], "still\n");

    let opened: Vec<String> = (0..64).map(|_| post(&server, &initialize(), &[])).collect();
    assert!(opened[..63].iter().all(|answer| status(answer) == "200"));
    let full = &opened[63];
    assert!(status(full) == "500" && full.contains("64 sessions are open"), "{full}");
    // Clients without a session are served all the same.
    client.done("list", json!({}));
    let id = opened[0].lines().find_map(|line| line.strip_prefix("mcp-session-id: ")).unwrap();
    let head = format!(
        "DELETE /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nMcp-Session-Id: {id}\r\n",
        server.token
    );
    assert_eq!(status(&ask(&server, &head, b"")), "202");
    assert_eq!(status(&post(&server, &initialize(), &[])), "200");
    client.disconnect();
    assert!(server.close().success());
    home.nothing_is_left();
}

#[test]
fn a_server_is_not_exposed_by_mistake() {
    let home = home();
    let serve = |options: &[&str]| home.microagent(["serve", "mcp"]).args(options).run();
    serve(&["--listen", "0.0.0.0:0"]).code(1).says("not encrypted").says("--allow-host");
    serve(&["--listen", "localhost"]).code(2);
    serve(&["--token-file", "token"]).code(2);
    serve(&["--listen", "127.0.0.1:0", "--allow-host", "http://x"]).code(2);
    home.write("token", "a-token-that-others-can-read");
    serve(&["--listen", "127.0.0.1:0", "--token-file", "token"]).code(2).says("chmod 600 token");
    let server = server(&home, &[]);
    serve(&["--listen", server.address()]).code(1).says("cannot listen");
    assert!(server.close().success());
    home.nothing_is_left();
}

#[test]
fn a_proxy_reaches_the_server_by_the_name_that_is_allowed() {
    let home = home();
    let server = server(&home, &["--allow-host", "agents.example.org"]);
    for (host, answer) in [("agents.example.org", "200"), ("localhost", "200"), ("evil.example.org", "403")] {
        assert_eq!(status(&post(&server, &initialize(), &[("Host", host)])), answer, "{host}");
    }
    assert!(server.close().success());
    home.nothing_is_left();
}
