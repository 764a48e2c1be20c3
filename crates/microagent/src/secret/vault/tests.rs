//! Against a small server that plays Vault's documented answers and does wrong what a test asks it to. The real thing
//! (OpenBao) is asked in `tests/tests/secrets.rs`.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

use super::*;

const TOKEN: &str = "hvs.a-token-that-is-shown-nowhere";
const GOOD: &str = r#"{"request_id":"1","data":{"data":{"password":"p@ss \"w\"\n","port":5432,"on":true,
    "ratio":1.5,"list":[1],"nothing":null,"empty":""},"metadata":{"version":3}},"warnings":null}"#;

/// What the server does with a request, which it is given as head.
type Act = dyn Fn(&str, &mut TcpStream) + Send;

/// Serves until the process ends; gives its address, and the heads of the requests that came.
fn serve(act: Box<Act>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, heads) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let head = head.join("\n");
            // The test may have seen enough.
            let _ = sender.send(head.clone());
            act(&head, &mut stream);
        }
    });
    (address, heads)
}

fn answer(status: u16, body: &'static str) -> Box<Act> {
    Box::new(move |_, stream| respond(stream, status, "", body))
}

/// A client that has hung up is no failure of the server's.
fn respond(stream: &mut TcpStream, status: u16, headers: &str, body: &str) {
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
}

fn settings(address: &str) -> SecretEnvironment {
    SecretEnvironment {
        vault_address: Some(address.to_owned()),
        vault_token: Some(Zeroizing::new(TOKEN.to_owned())),
        ..SecretEnvironment::default()
    }
}

async fn ask(secrets: &SecretEnvironment, field: &str) -> Result<SecretValue, SecretFault> {
    let deadline = Duration::from_secs(60);
    let read = read_within(secrets, &Environment::default(), "secret/data/app db", field, deadline).await;
    if let Err(fault) = &read {
        assert!(!format!("{fault} {fault:?} {:?}", fault.hint()).contains(TOKEN), "{fault:?}");
    }
    read
}

#[tokio::test]
async fn fields_are_read_as_they_are() {
    let (address, heads) = serve(answer(200, GOOD));
    for (field, value) in [("password", "p@ss \"w\"\n"), ("port", "5432"), ("on", "true"), ("empty", "")] {
        assert_eq!(ask(&settings(&address), field).await.unwrap().0, value.as_bytes(), "{field}");
    }
    let head = heads.recv().unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /v1/secret/data/app%20db http/1.1"), "{head}");
    assert!(head.contains(&format!("x-vault-token: {TOKEN}")) && head.contains("x-vault-request: true"));
    assert!(!head.contains("namespace"), "{head}");
    for field in ["none", "nothing"] {
        let missing = ask(&settings(&address), field).await.unwrap_err();
        assert!(matches!(missing, SecretFault::VaultField { .. }), "{missing}");
    }
    for field in ["ratio", "list"] {
        let odd = ask(&settings(&address), field).await.unwrap_err();
        assert!(matches!(odd, SecretFault::VaultKind { .. }), "{odd}");
    }
}

#[tokio::test]
async fn a_namespace_and_a_path_in_the_address_are_sent_along() {
    let (address, heads) = serve(answer(200, GOOD));
    let settings = SecretEnvironment {
        vault_namespace: Some("team/a".to_owned()),
        ..settings(&format!("{address}/behind/proxy/"))
    };
    ask(&settings, "port").await.unwrap();
    let head = heads.recv().unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /behind/proxy/v1/secret/data/app%20db "), "{head}");
    assert!(head.contains("x-vault-namespace: team/a"), "{head}");
}

#[tokio::test]
async fn refusals_are_told_as_vault_tells_them() {
    for (status, body, wanted) in [
        (403, r#"{"errors":["permission denied"]}"#, "HTTP 403: permission denied"),
        (503, r#"{"errors":["Vault is sealed"]}"#, "HTTP 503: Vault is sealed"),
        (404, r#"{"errors":[]}"#, "no secret there"),
        (404, r#"{"data":{"data":null,"metadata":{"deletion_time":"2026"}}}"#, "no secret there"),
        (404, r#"{"errors":["no handler for route \"x\""]}"#, "there: no handler for route"),
        (400, r#"{"errors":["hvs.a-token-that-is-shown-nowhere is bad"]}"#, "HTTP 400"),
        (500, "<html>", "HTTP 500"),
        (200, r#"{"data":{"password":"of version 1"}}"#, "version 2"),
        (200, "<html>", "version 2"),
    ] {
        let (address, _heads) = serve(answer(status, body));
        let fault = ask(&settings(&address), "password").await.unwrap_err();
        assert!(fault.to_string().contains(wanted), "{status} {body}: {fault}");
        assert!(status == 500 || fault.hint().is_some(), "{status}");
        assert!(!fault.to_string().contains("of version 1"), "{fault}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_with_the_token_and_not_for_ever() {
    let (active, heads) = serve(answer(200, GOOD));
    let (standby, _) = serve(Box::new(move |head, stream| {
        let path = head.split_whitespace().nth(1).unwrap();
        respond(stream, 307, &format!("Location: {active}{path}\r\n"), "");
    }));
    assert_eq!(ask(&settings(&standby), "port").await.unwrap().0, b"5432");
    assert!(heads.recv().unwrap().contains(TOKEN));
    let (circle, _) = serve(Box::new(|head, stream| {
        let path = head.split_whitespace().nth(1).unwrap();
        respond(stream, 307, &format!("Location: {path}\r\n"), "");
    }));
    let fault = ask(&settings(&circle), "port").await.unwrap_err();
    assert!(fault.to_string().contains("too many redirects"), "{fault}");
}

#[tokio::test]
async fn silence_and_floods_end_at_their_bounds() {
    let (deaf, _) = serve(Box::new(|_, stream| {
        // Says nothing until the client hangs up.
        let _ = std::io::Read::read(stream, &mut [0]);
    }));
    let settings_of = settings(&deaf);
    let short = Duration::from_millis(200);
    let asked = read_within(&settings_of, &Environment::default(), "a/data/b", "c", short).await;
    assert!(matches!(asked, Err(SecretFault::VaultSilent { .. })), "{asked:?}");
    let (endless, _) = serve(Box::new(|_, stream| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n");
        while stream.write_all(&[b' '; 65536]).is_ok() {}
    }));
    let fault = ask(&settings(&endless), "c").await.unwrap_err();
    assert!(fault.to_string().contains("more than"), "{fault}");
    let (broken, _) = serve(Box::new(|_, stream| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{{");
    }));
    assert!(matches!(ask(&settings(&broken), "c").await, Err(SecretFault::VaultSilent { .. })));
    // Nobody listens there, and nobody else is given the port as long as it is bound.
    let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&bound, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let closed = SocketAddr::try_from(getsockname(&bound).unwrap()).unwrap();
    let fault = ask(&settings(&format!("http://{closed}")), "c").await.unwrap_err();
    assert!(
        fault.to_string().contains(&format!("Vault at {closed} does not answer: Connection refused")),
        "{fault}"
    );
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named_and_not_shown() {
    for (address, wanted) in [
        ("vault:8200", "no URL of http"),
        ("nonsense", "no URL"),
        ("ftp://x", "no URL of http"),
        ("https://user:hunter2@vault", "a login"),
    ] {
        let fault = ask(&settings(address), "x").await.unwrap_err().to_string();
        assert!(fault.starts_with("VAULT_ADDR is") && fault.contains(wanted), "{address}: {fault}");
        assert!(!fault.contains("hunter2"), "{fault}");
    }
    let without = SecretEnvironment { vault_token: None, ..settings("http://127.0.0.1:9") };
    assert!(ask(&without, "x").await.unwrap_err().to_string().contains("VAULT_TOKEN is not set"));
    let token = Some(Zeroizing::new("two\nlines".to_owned()));
    let odd = SecretEnvironment { vault_token: token, ..settings("http://127.0.0.1:9") };
    let fault = ask(&odd, "x").await.unwrap_err().to_string();
    assert!(fault.contains("VAULT_TOKEN is not a text") && !fault.contains("lines"), "{fault}");
    let ca = Some("/nonexistent/ca.pem".into());
    let odd = SecretEnvironment { vault_ca_cert: ca, ..settings("https://127.0.0.1:9") };
    let fault = ask(&odd, "x").await.unwrap_err();
    assert!(microagent_proto::chain(&fault).contains("/nonexistent/ca.pem"), "{fault:?}");
    assert!(!format!("{:?}", settings("http://x")).contains(TOKEN));
}
