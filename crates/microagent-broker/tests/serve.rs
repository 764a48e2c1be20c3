//! The broker against a TLS server of this process and against guests that send what they like.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use microagent_broker::{Endpoint, Instructions, serve};
use microagent_model::egress::{Decision, Reason};
use microagent_proto::SecretValue;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    recv, sendmsg, socketpair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_bytes::ByteBuf;

const AUTHORITY: &[u8] = include_bytes!("certificates/authority.der");
const SERVER: &[u8] = include_bytes!("certificates/server.der");
const SERVER_KEY: &[u8] = include_bytes!("certificates/server-key.der");

/// How long anything may take: others work on this host.
const PATIENCE: Duration = Duration::from_secs(60);

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";

type Tls = StreamOwned<ServerConnection, TcpStream>;

/// A server that hands each request to a function, which writes the answer.
struct Upstream {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    fn start(answer: impl Fn(&str, &mut Tls) + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let chain = vec![CertificateDer::from(SERVER)];
        let key = PrivateKeyDer::try_from(SERVER_KEY).unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                std::thread::spawn(move || answer_all(tls, &seen, &*answer));
            }
        });
        Upstream { port, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer_all(mut tls: Tls, seen: &Mutex<Vec<String>>, answer: &(dyn Fn(&str, &mut Tls) + Send + Sync)) {
    while let Some(request) = read_request(&mut tls) {
        seen.lock().unwrap().push(request.clone());
        answer(&request, &mut tls);
        if tls.flush().is_err() {
            return;
        }
    }
}

/// Head and body of a request, as they came.
fn read_request(tls: &mut Tls) -> Option<String> {
    let mut text = String::new();
    let mut read = |text: &mut String| {
        let mut byte = [0];
        (tls.read(&mut byte).ok()? == 1).then(|| text.push(char::from(byte[0])))
    };
    while !text.ends_with("\r\n\r\n") {
        read(&mut text)?;
    }
    let head = text.clone();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    if head.contains("transfer-encoding: chunked") {
        while !text[head.len()..].ends_with("0\r\n\r\n") {
            read(&mut text)?;
        }
    }
    for _ in 0..length.unwrap_or(0) {
        read(&mut text)?;
    }
    Some(text)
}

/// Running brokers with one endpoint, which is number 0.
struct Bench {
    connections: OwnedFd,
    audit: OwnedFd,
    served: JoinHandle<()>,
}

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

impl Bench {
    fn start(port: u16, more: &str) -> Bench {
        Bench::trusting(port, more, AUTHORITY)
    }

    fn trusting(port: u16, more: &str, authority: &[u8]) -> Bench {
        let broker = format!("API=https://localhost:{port}/base,secret=env:K{more}").parse().unwrap();
        let certificates = Some(vec![ByteBuf::from(authority)]);
        let endpoint = Endpoint { broker, value: SecretValue(b"s3cr3t".to_vec()), certificates };
        let instructions = Instructions { endpoints: vec![endpoint], certificates: Vec::new() };
        let (connections, theirs) = pair(SocketType::SEQPACKET);
        let (audit, reports) = pair(SocketType::SEQPACKET);
        let served = std::thread::spawn(move || serve(instructions, theirs, reports).unwrap());
        Bench { connections, audit, served }
    }

    fn connect(&self) -> UnixStream {
        let (ours, theirs) = pair(SocketType::STREAM);
        let rights = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&rights));
        sendmsg(&self.connections, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty()).unwrap();
        let stream = UnixStream::from(ours);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// All that a guest is told which sends this and nothing else.
    fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        // What is refused early is not read to its end.
        let _ = stream.write_all(request.as_ref());
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Ends the brokers; gives what they have reported.
    fn end(self) -> Vec<Decision> {
        drop(self.connections);
        self.served.join().unwrap();
        let mut decisions = Vec::new();
        let mut line = vec![0; 64 * 1024];
        while let Ok((len @ 1.., _)) = recv(&self.audit, &mut line[..], RecvFlags::DONTWAIT) {
            decisions.push(serde_json::from_slice(&line[..len]).unwrap());
        }
        decisions
    }
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

#[test]
fn a_request_is_written_anew_with_the_credential() {
    let upstream = Upstream::start(|_, tls| drop(tls.write_all(OK.as_bytes())));
    let bench = Bench::start(upstream.port, "");
    let request = "POST /v1/x?a=%2e%2e&b HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer guest\r\n\
        authorization: Bearer guest2\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-Kept: yes\r\nUpgrade: h2c\r\n\
        Transfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n0\r\nAuthorization: trailer\r\n\r\n";
    let answer = bench.ask(request);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
    let expected = format!(
        "POST /base/v1/x?a=%2e%2e&b HTTP/1.1\r\nhost: localhost:{}\r\nx-kept: yes\r\nauthorization: Bearer s3cr3t\r\n\
         transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        upstream.port
    );
    assert_eq!(upstream.requests(), [expected]);
    let [decision] = &bench.end()[..] else { panic!("one line") };
    let line = decision.request.as_deref().unwrap();
    assert_eq!((decision.reason, decision.allowed, line.status), (Reason::Broker, true, Some(200)));
    assert_eq!((line.method.as_str(), line.path.as_str(), line.broker.as_str()), ("POST", "/v1/x", "API"));
    assert_eq!((line.sent_bytes, line.received_bytes), (5, 3));
}

#[test]
fn what_is_hostile_does_not_reach_the_upstream() {
    let upstream = Upstream::start(|_, tls| drop(tls.write_all(OK.as_bytes())));
    let bench = Bench::start(upstream.port, ",allow=GET /v1/*,allow=POST /v1/*");
    let with = |line: &str, headers: &str| {
        format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")
    };
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(200_000));
    for (request, expected) in [
        (with("GET http://evil.example/v1/x", ""), "400"),
        (with("GET https://localhost/v1/x", ""), "400"),
        (with("OPTIONS *", ""), "400"),
        (with("GET /v1/../admin", ""), "400"),
        (with("GET /v1/%2e%2e/admin", ""), "400"),
        (with("GET /v1//x", ""), "400"),
        (with("GET //evil.example/v1/x", ""), "400"),
        (with("GET /v1/..%2fadmin", ""), "400"),
        (with("GET /v1/..;/admin", ""), "400"),
        (with("GET /v1\\..\\admin", ""), "400"),
        (with("GET /v1/%252e%252e/admin", ""), "400"),
        (with("GET /v2/x", ""), "403"),
        (with("DELETE /v1/x", ""), "403"),
        (with("TRACE /v1/x", ""), "405"),
        (with("CONNECT evil.example:443", ""), "405"),
        (with("GET /v1/x", "Upgrade: websocket\r\nConnection: Upgrade\r\n"), "501"),
        (with("POST /v1/x", "Content-Length: 3\r\nContent-Length: 4\r\n"), "400"),
        (with("POST /v1/x", "Content-Length: +3\r\n"), "400"),
        (with("POST /v1/x", "Transfer-Encoding: xchunked\r\n"), "400"),
        (with("POST /v1/x", "Transfer-Encoding: chunked, identity\r\n"), "400"),
        (with("GET /v1/x", "Authorization : x\r\n"), "400"),
        (with("GET /v1/x", "X: a\r\n folded\r\n"), "400"),
        (with("GET /v1/x", "X: a\0b\r\n"), "400"),
        (with("GET /v1/x", &many), "431"),
        (with("GET /v1/x", &long), "431"),
        ("GET /v1/x HTTP/3.7\r\n\r\n".to_owned(), "400"),
        ("\u{16}\u{3}\u{1}\u{2}".to_owned(), "400"),
    ] {
        let answer = bench.ask(&request);
        let shown = &request[..request.len().min(100)];
        assert_eq!(status(&answer), expected, "{shown:?}: {answer}");
        assert!(!answer.contains("s3cr3t"), "{shown:?}");
        assert_eq!(upstream.requests(), Vec::<String>::new(), "{shown:?}");
    }
    // An HTTP/2 client is told nothing that it understands, and the broker serves on.
    bench.ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(status(&bench.ask(with("GET /v1/x", ""))), "200");
    assert!(bench.end().iter().filter(|decision| !decision.allowed).count() >= 16);
}

#[test]
fn a_body_is_no_second_request_and_each_request_has_one_length() {
    let upstream = Upstream::start(|_, tls| drop(tls.write_all(OK.as_bytes())));
    let bench = Bench::start(upstream.port, "");
    let inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    bench.ask(format!(
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{inner}GET /b HTTP/1.1\r\nHost: x\r\n\r\n",
        inner.len()
    ));
    let requests = upstream.requests();
    let lines: Vec<&str> = requests.iter().map(|request| request.lines().next().unwrap()).collect();
    assert_eq!(lines, ["POST /base/a HTTP/1.1", "GET /base/b HTTP/1.1"]);
    assert!(requests[0].ends_with(inner));
    // Two lengths: refused, whichever of them would hold.
    let both = "POST /c HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
        0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    bench.ask(both);
    let smuggled = upstream.requests().iter().any(|request| request.starts_with("GET /base/smuggled"));
    assert!(!smuggled, "{:?}", upstream.requests());
    bench.end();
}

#[test]
fn redirects_are_the_guests() {
    let elsewhere = Upstream::start(|_, tls| drop(tls.write_all(OK.as_bytes())));
    let location = format!("https://localhost:{}/x", elsewhere.port);
    let answer = format!("HTTP/1.1 307 Go\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    let upstream = Upstream::start(move |_, tls| drop(tls.write_all(answer.as_bytes())));
    let bench = Bench::start(upstream.port, "");
    let told = bench.ask("GET /x HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(told.starts_with("HTTP/1.1 307") && told.contains(&location), "{told}");
    assert_eq!((upstream.requests().len(), elsewhere.requests().len()), (1, 0));
    bench.end();
}

/// Reads until the text has come.
fn read_until(stream: &mut UnixStream, wanted: &str) -> String {
    let mut text = String::new();
    let mut piece = [0; 4096];
    while !text.contains(wanted) {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "{text}");
        text += std::str::from_utf8(&piece[..count]).unwrap();
    }
    text
}

/// A channel whose ends threads can share.
fn shared<T>() -> (Sender<T>, Mutex<Receiver<T>>) {
    let (sender, receiver) = channel();
    (sender, Mutex::new(receiver))
}

#[test]
fn an_answer_is_passed_on_as_it_comes() {
    let (next, wait) = shared();
    let upstream = Upstream::start(move |_, tls| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        tls.write_all(head.as_bytes()).unwrap();
        for event in ["data: 1", "data: 2"] {
            // In one piece: what comes in several is passed on in several.
            tls.write_all(format!("9\r\n{event}\n\n\r\n").as_bytes()).unwrap();
            tls.flush().unwrap();
            // The next one comes when the guest has this one.
            wait.lock().unwrap().recv().unwrap();
        }
        tls.write_all(b"0\r\n\r\n").unwrap();
    });
    let bench = Bench::start(upstream.port, "");
    let mut stream = bench.connect();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        read_until(&mut stream, event);
        next.send(()).unwrap();
    }
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "{rest:?}");
    assert_eq!(bench.end()[0].request.as_deref().unwrap().received_bytes, 18);
}

#[test]
fn an_answer_that_is_cut_off_is_seen_to_be() {
    let upstream = Upstream::start(|_, tls| {
        let _ = tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart");
        let _ = tls.flush();
        let _ = tls.sock.shutdown(Shutdown::Both);
    });
    let bench = Bench::start(upstream.port, "");
    let told = bench.ask("GET /x HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(told.contains("content-length: 100") && told.ends_with("part"), "{told}");
    bench.end();
}

#[test]
fn an_upstream_that_cannot_be_used_is_a_status_with_a_reason() {
    let ask_for = |bench: Bench, reason| {
        let told = bench.ask("GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(bench.end()[0].reason, reason, "{told}");
        told
    };
    let ask = |bench| ask_for(bench, Reason::Upstream);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let told = ask(Bench::start(gone, ""));
    assert!(
        status(&told) == "502" && told.contains("broker API: the upstream: cannot connect to it"),
        "{told}"
    );
    let upstream = Upstream::start(|_, tls| drop(tls.write_all(OK.as_bytes())));
    // Its own certificate is not one that others are checked with.
    let told = ask_for(Bench::trusting(upstream.port, "", SERVER), Reason::Certificate);
    assert!(status(&told) == "502" && told.contains("TLS: invalid peer certificate"), "{told}");
    let garbage = Upstream::start(|_, tls| drop(tls.write_all(b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n")));
    assert_eq!(status(&ask(Bench::start(garbage.port, ""))), "502");
    let switching = Upstream::start(|_, tls| drop(tls.write_all(b"HTTP/1.1 101 Go\r\nupgrade: x\r\n\r\n")));
    assert_eq!(status(&ask(Bench::start(switching.port, ""))), "502");
    assert_eq!(upstream.requests(), Vec::<String>::new());
}

#[test]
fn more_requests_than_there_are_places_are_turned_away() {
    let (arrived, arrivals) = channel();
    let (go, wait) = shared::<()>();
    let upstream = Upstream::start(move |_, tls| {
        arrived.send(()).unwrap();
        let _ = wait.lock().unwrap().recv();
        let _ = tls.write_all(OK.as_bytes());
    });
    let bench = Bench::start(upstream.port, "");
    let request = "GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut waiting: Vec<UnixStream> = (0..64).map(|_| bench.connect()).collect();
    for stream in &mut waiting {
        stream.write_all(request.as_bytes()).unwrap();
    }
    for _ in 0..64 {
        arrivals.recv_timeout(PATIENCE).unwrap();
    }
    let told = bench.ask(request);
    assert!(status(&told) == "503" && told.contains("retry-after: 1"), "{told}");
    drop(go);
    for mut stream in waiting {
        let mut told = String::new();
        stream.read_to_string(&mut told).unwrap();
        assert_eq!(status(&told), "200");
    }
    let decisions = bench.end();
    assert_eq!(decisions.iter().filter(|decision| decision.reason == Reason::Connections).count(), 1);
    assert_eq!(decisions.len(), 65);
}
