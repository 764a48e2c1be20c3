//! A guest agent that lies: the first process of a guest that wants to do its host harm, for the tests.
//!
//! Its way is a word at the end of its own file, `LIE=…`. It begins on the control port itself, or holds an honest
//! session in which one kind of request (`exec`, `stat`, …) is answered by one kind of lie (`huge`, `endless`, …), as in
//! `exec-huge`. Everything that is not lied about is answered as the real agent would, with nothing behind it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use microagent_proto::{
    Chunk, Configured, ExecEvent, Exit, FsUsage, GuestError, ListEvent, ListedItem, ListedKind,
    OUTPUT_CHUNK_LIMIT, PREAMBLE_LEN, PackEvent, PathInfo, PathKind, PreambleScanner, ProcessInfo,
    REPLY_LIMIT, REQUEST_LIMIT, Removed, Request, Stream, Timings, UnpackInput, Unpacked, guest_session,
    read_message, write_message,
};
use rustix::mount::{MountFlags, mount};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// What stands before the name of the lie, at the end of this program's file.
const MARK: &str = "LIE=";

fn main() {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        // What is mounted already is fine; what is not shows below.
        let _ = mount(kind, place, kind, MountFlags::empty(), None);
    }
    let lie = lie();
    let mut port = port();
    match lie.as_str() {
        "mute" => sleep(),
        "rubbish" => flood(&mut port),
        _ => {}
    }
    greet(&mut port);
    match lie.as_str() {
        "greeted-mute" => drain(&mut port),
        "greeted-rubbish" => flood(&mut port),
        "greeted-dead" => return,
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("there is memory for a runtime").block_on(session(port, lie));
}

/// The word at the end of this program.
fn lie() -> String {
    let me = fs::read("/init").expect("the first process lies at /init");
    let end = String::from_utf8_lossy(&me[me.len().saturating_sub(64)..]).into_owned();
    end.rsplit_once(MARK).map_or_else(|| "none".to_owned(), |(_, lie)| lie.trim().to_owned())
}

/// The control port: this guest has no other.
fn port() -> File {
    loop {
        let ports = fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
        for port in ports {
            let path = format!("/dev/{}", port.file_name().to_string_lossy());
            if let Ok(port) = File::options().read(true).write(true).open(path) {
                return port;
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn sleep() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// Writes what is nothing, for ever.
fn flood(port: &mut File) -> ! {
    let rubbish: Vec<u8> = (0..u16::MAX).map(|number| (number % 251).to_be_bytes()[1]).collect();
    loop {
        // A host that has had enough does not read it any more.
        if port.write_all(&rubbish).is_err() {
            sleep();
        }
    }
}

/// Takes everything and says nothing.
fn drain(port: &mut File) -> ! {
    let mut buffer = [0; 4096];
    loop {
        if !matches!(port.read(&mut buffer), Ok(1..)) {
            sleep();
        }
    }
}

/// Answers the first preamble as it should be.
fn greet(port: &mut File) {
    let mut scanner = PreambleScanner::default();
    let mut byte = [0];
    loop {
        if matches!(port.read(&mut byte), Ok(1))
            && let Some(asked) = scanner.push(byte[0])
        {
            let answer: [u8; PREAMBLE_LEN] = asked.encode();
            return port.write_all(&answer).expect("the host listens");
        }
    }
}

/// Holds a session in which everything but the lie is honest. The port has no event loop; threads copy it.
async fn session(port: File, lie: String) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
    for (mut from, mut to) in [
        (copy_of(&port), File::from(std::os::fd::OwnedFd::from(theirs.try_clone().expect("a descriptor")))),
        (File::from(std::os::fd::OwnedFd::from(theirs)), copy_of(&port)),
    ] {
        thread::spawn(move || std::io::copy(&mut from, &mut to));
    }
    let (provoke, provoked) = mpsc::channel();
    let mut spoiled = copy_of(&port);
    thread::spawn(move || {
        if provoked.recv().is_ok() {
            flood(&mut spoiled)
        }
    });
    ours.set_nonblocking(true).expect("a socket");
    let (mut incoming, driver) = guest_session(UnixStream::from_std(ours).expect("a socket"));
    tokio::spawn(driver);
    while let Some(stream) = incoming.recv().await {
        tokio::spawn(serve(stream, lie.clone(), provoke.clone()));
    }
    // The host has hung up; only a lie ends this guest.
    std::future::pending().await
}

fn copy_of(port: &File) -> File {
    port.try_clone().expect("a descriptor more")
}

async fn serve(mut stream: Stream, lie: String, provoke: mpsc::Sender<()>) {
    let Ok(Some(request)) = read_message::<Request, _>(&mut stream, REQUEST_LIMIT).await else { return };
    let kind = kind(&request);
    if let Some((about, way)) = lie.split_once('-')
        && about == kind
    {
        return tell_a_lie(stream, kind, way).await;
    }
    if lie == "channel-rubbish" && kind == "exec" {
        let _ = provoke.send(());
        return std::future::pending().await;
    }
    match request {
        Request::Configure(_) | Request::Renew(_) => {
            let timings = Timings { boot_us: 1, disk_us: 1, network_us: 1, total_us: 1 };
            tell(&mut stream, &Ok::<_, GuestError>(Configured { timings, notices: Vec::new() })).await;
        }
        Request::Exec(_) | Request::Adopt => {
            tell(&mut stream, &ExecEvent::Started).await;
            tell(&mut stream, &ExecEvent::Stdout(Chunk::from(b"honest\n".to_vec()))).await;
            tell(&mut stream, &ExecEvent::Exited(Exit::Code(0))).await;
        }
        Request::Stat(_) => {
            let info = PathInfo { kind: PathKind::Directory, mode: 0o755, uid: 0, gid: 0, len: 0 };
            tell(&mut stream, &Ok::<_, GuestError>(info)).await;
        }
        Request::Pack(_) | Request::Diff(_) | Request::PackRoot => {
            tell(&mut stream, &PackEvent::Data(Chunk::from(vec![0; 1024]))).await;
            tell(&mut stream, &PackEvent::End).await;
        }
        Request::PackListed(_) => {
            tell(&mut stream, &PackEvent::Data(Chunk::from(vec![0; 1024]))).await;
            tell(&mut stream, &PackEvent::End).await;
        }
        Request::List(_) => tell(&mut stream, &ListEvent::End).await,
        Request::Remove(_) => {
            tell(&mut stream, &Ok::<_, GuestError>(Removed { gone: 0, kept: 0 })).await;
        }
        Request::Unpack(_) => {
            while let Ok(Some(UnpackInput::Data(_))) = read_message(&mut stream, REQUEST_LIMIT).await {}
            tell(&mut stream, &Ok::<_, GuestError>(Unpacked { entries: 1, attributes_dropped: 0 })).await;
        }
        Request::Processes => tell(&mut stream, &Ok::<_, GuestError>(Vec::<ProcessInfo>::new())).await,
        // Nothing ever happens.
        Request::Watch => std::future::pending().await,
        Request::FsUsage => {
            tell(&mut stream, &Ok::<_, GuestError>(FsUsage { total: 1, used: 1, available: 1 })).await;
        }
        Request::ShutDown(_) | Request::SetClock(_) | Request::Hold(_) | Request::Release => {
            tell(&mut stream, &Ok::<_, GuestError>(())).await;
        }
    }
    // The host closes what it has read.
    tokio::time::sleep(Duration::from_secs(5)).await;
}

fn kind(request: &Request) -> &'static str {
    match request {
        Request::Configure(_) => "configure",
        Request::Exec(_) => "exec",
        Request::Pack(_) => "pack",
        Request::Unpack(_) => "unpack",
        Request::Stat(_) => "stat",
        Request::Watch => "watch",
        Request::FsUsage => "usage",
        Request::ShutDown(_) => "shutdown",
        Request::Diff(_) => "diff",
        Request::PackRoot => "root",
        Request::Processes => "processes",
        Request::SetClock(_) => "clock",
        Request::List(_) => "list",
        Request::PackListed(_) => "listed",
        Request::Remove(_) => "remove",
        Request::Hold(_) => "hold",
        Request::Release => "release",
        Request::Renew(_) => "renew",
        Request::Adopt => "adopt",
    }
}

async fn tell_a_lie(mut stream: Stream, kind: &str, way: &str) {
    match way {
        "mute" => {}
        "huge" => raw(&mut stream, &u32::MAX.to_le_bytes()).await,
        // A message of the length that it says, of no kind that there is.
        "wrong" => raw(&mut stream, &[&8_u32.to_le_bytes()[..], &[0xfe; 8]].concat()).await,
        "half" => raw(&mut stream, &[&1000_u32.to_le_bytes()[..], &[0; 10]].concat()).await,
        "closed" => return,
        // The first process of a guest ends only once.
        "dead" => std::process::exit(1),
        "started-dead" => {
            tell(&mut stream, &ExecEvent::Started).await;
            std::process::exit(1);
        }
        "endless" if kind == "exec" => {
            tell(&mut stream, &ExecEvent::Started).await;
            loop {
                let bytes = Chunk::from(vec![b'x'; OUTPUT_CHUNK_LIMIT]);
                tell(&mut stream, &ExecEvent::Stdout(bytes)).await;
            }
        }
        "endless" if kind == "processes" => {
            let process = ProcessInfo {
                pid: 1,
                parent: 0,
                uid: 0,
                user: String::new(),
                cpu_us: 0,
                age_us: 0,
                memory_bytes: 0,
                command: Chunk::new(),
            };
            loop {
                tell(&mut stream, &Ok::<_, GuestError>(vec![process.clone(); 32])).await;
            }
        }
        // A name that leads out.
        "climbing" if kind == "list" => list(&mut stream, b"../climbed".to_vec()).await,
        "endless" => {
            // A file of 8 GiB less one byte, all that the field has room for, and then on.
            let mut bytes = tar_header("endless", "77777777777");
            loop {
                tell(&mut stream, &PackEvent::Data(Chunk::from(bytes))).await;
                bytes = vec![b'x'; OUTPUT_CHUNK_LIMIT];
            }
        }
        "climbing" => {
            let mut bytes = tar_header("../climbed", "00000000000");
            bytes.resize(512 * 3, 0);
            tell(&mut stream, &PackEvent::Data(Chunk::from(bytes))).await;
            tell(&mut stream, &PackEvent::End).await;
        }
        other => panic!("no such lie: {other}"),
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
}

/// A listing of one file.
async fn list(stream: &mut Stream, path: Vec<u8>) {
    tell(stream, &ListEvent::Items(vec![listed(path)])).await;
    tell(stream, &ListEvent::End).await;
}

fn listed(path: Vec<u8>) -> ListedItem {
    let kind = ListedKind::File { len: 5 };
    ListedItem { path: path.into(), kind, mode: 0o755, mtime: (0, 0), sha256: None }
}

/// A header of the old tar format for a file of this size, in octal digits.
fn tar_header(name: &str, size: &str) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, size);
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

async fn raw(stream: &mut Stream, bytes: &[u8]) {
    if stream.write_all(bytes).await.is_err() || stream.flush().await.is_err() {
        // The host has given it up.
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

async fn tell<T: Serialize>(stream: &mut Stream, message: &T) {
    if write_message(stream, message, REPLY_LIMIT).await.is_err() {
        // The host has given it up.
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}
