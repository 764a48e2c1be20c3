//! Servers of the host that connections of guests lead to, and what these connections must be like.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Finished;

/// Serves each connection with `answer` on a thread of its own; gives the port.
pub fn serve(listener: TcpListener, answer: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

/// Bytes in which a piece that is lost, doubled or moved shows.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8).collect()
}

/// The sum that `sha256sum` prints.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Answers the length that is asked for, when the client has ended its side.
pub fn after_the_end(mut stream: TcpStream) {
    let mut question = String::new();
    // A client that is gone is told of by its own side.
    if stream.read_to_string(&mut question).is_ok() {
        let _ = stream.write_all(&pattern(question.trim().parse().expect("a length")));
    }
}

/// Says how much came, and what it was.
fn count(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    if stream.read_to_end(&mut bytes).is_ok() {
        let _ = stream.write_all(format!("{} {}\n", bytes.len(), sha256(&bytes)).as_bytes());
    }
}

/// Says something to a client that has said nothing.
pub fn greet(mut stream: TcpStream) {
    let _ = stream.write_all(b"220 ready\n");
}

/// Checks that connections of a guest are what they are on the host. `guest` runs a line of busybox's shell in it, `listen`
/// makes a listener at `address`, which the guest may reach; nobody listens at its port `closed`.
#[track_caller]
pub fn check_connections(
    address: IpAddr,
    closed: u16,
    guest: impl Fn(&str) -> Finished,
    listen: impl Fn() -> TcpListener,
) {
    let port = serve(listen(), after_the_end);
    for len in [0, 1, 10, 1003, 50_115, 3_000_117] {
        let got = guest(&format!("echo {len} | nc {address} {port} | sha256sum"));
        let sum = got.text().split(' ').next().expect("a line has words");
        assert_eq!(sum, sha256(&pattern(len)), "{len} bytes of {address}");
    }
    let port = serve(listen(), count);
    let sent = guest(&format!("head -c 5000000 /dev/zero | nc {address} {port}"));
    assert_eq!(sent.text(), format!("5000000 {}\n", sha256(&[0; 5_000_000])), "to {address}");
    let port = serve(listen(), greet);
    assert_eq!(guest(&format!("nc {address} {port} < /dev/null")).text(), "220 ready\n", "from {address}");
    // Refused is said at once, and as what it is.
    let refused = guest(&format!("nc -w 60 {address} {closed} < /dev/null 2>&1 || true"));
    assert!(refused.text().contains("Connection refused"), "{}", refused.told());
}

/// Answers requests of HTTP for the files below a directory, with as many on a connection as the client wants.
pub fn serve_files(listener: TcpListener, root: &Path) -> u16 {
    let root = root.to_owned();
    serve(listener, move |stream| {
        // A client that closes in the middle has what it wants.
        let _ = answer_requests(&stream, &root);
    })
}

fn answer_requests(stream: &TcpStream, root: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if lines.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let file = requested(&head, root).and_then(|path| fs::File::open(path).ok());
        let mut writer = stream;
        match file {
            Some(mut file) => {
                write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", file.metadata()?.len())?;
                std::io::copy(&mut file, &mut writer)?;
            }
            None => writer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
}

/// The file that a request asks for; of a directory its `index.html`.
fn requested(head: &str, root: &Path) -> Option<PathBuf> {
    let target = head.strip_prefix("GET /")?.split([' ', '?']).next()?;
    let path = Path::new(target);
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)).then_some(())?;
    let path = root.join(path);
    Some(if path.is_dir() { path.join("index.html") } else { path })
}
