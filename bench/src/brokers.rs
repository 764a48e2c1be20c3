//! Brokers: a request through one against the same without it, and a download against a published port.
//!
//! The server is nginx on this host. The guest reaches it without a broker as a forwarded port, and sends it the same
//! requests by the same programs (busybox's).

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use microagent_net::{BROKER_ADDRESS, BROKER_PORT, GATEWAY};

use crate::Bench;
use crate::fixture::SMALL;
use crate::program::run;
use crate::sample::{Peer, Samples, Table, interleave, time};
use crate::serving::ServingWorkspace;

const NAME: &str = "bench-brokers";

/// Bytes of one download.
const BYTES: usize = 100_000_000;

/// Requests of one sample, on one connection.
const REQUESTS: u32 = 100;

/// What the small page has.
const PAGE: &[u8] = b"hello\n";

/// Ports of the guest: one takes bytes, two load the page that they are named, two connect whoever connects to them.
const SINK: usize = 0;
const LOAD: [usize; 2] = [1, 2];
const RELAY: [usize; 2] = [3, 4];
const PORTS: [u16; 5] = [9001, 9002, 9003, 9004, 9005];

/// What the guest connects to: the broker, and the server as a forwarded port.
const PLACES: [(Ipv4Addr, u16); 2] = [(BROKER_ADDRESS, BROKER_PORT), (GATEWAY, 80)];

/// How long a guest may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(300);

/// How long the server may take to listen.
const LISTEN_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    bench.import(&bench.small_tar()?, SMALL)?;
    let server = Server::start(bench)?;
    let workspace = Workspace::start(bench, &server)?;
    latency(&workspace, table)?;
    downloads(&workspace, table)
}

fn latency(workspace: &Workspace<'_>, table: &mut Table) -> Result<()> {
    let names = ["to the server, by a forwarded port", "by a broker"];
    let mut peers: Vec<Peer<'_>> = Vec::new();
    for (name, relay) in names.iter().zip([RELAY[1], RELAY[0]]) {
        let port = workspace.ports[relay];
        peers.push((name, Box::new(move || ask(port))));
    }
    let samples = interleave(workspace.bench.runs, &mut peers)?;
    table.add_times("a request on a connection that is open", &names, &samples);
    let [direct, brokered] = [0, 1].map(|at: usize| samples[at].median().as_secs_f64() * 1000.0);
    table.add("a request: what the broker adds", format!("{:.2} ms", brokered - direct));
    Ok(())
}

fn downloads(workspace: &Workspace<'_>, table: &mut Table) -> Result<()> {
    let (broker, port) = PLACES[0];
    let got = workspace
        .workspace
        .exec(&format!("/bin/busybox wget -qO - http://{broker}:{port}/data | /bin/busybox wc -c"))?;
    ensure!(got.trim() == BYTES.to_string(), "the guest got {got}");
    let names = ["by a published port", "by a broker", "by a forwarded port"];
    let ports = workspace.ports;
    let mut peers: Vec<Peer<'_>> = vec![
        (names[0], Box::new(move || send(ports[SINK]))),
        (names[1], Box::new(move || pull(ports[LOAD[0]]))),
        (names[2], Box::new(move || pull(ports[LOAD[1]]))),
    ];
    let samples = interleave(workspace.bench.runs, &mut peers)?;
    table.add_times("100 MB into the guest", &names, &samples);
    let of = |samples: &Samples| samples.median().as_secs_f64();
    table.add(
        "100 MB: the broker's rate to that of a published port",
        format!("{:.2}", of(&samples[0]) / of(&samples[1])),
    );
    Ok(())
}

/// Asks for the small page, again and again; gives the time of one answer.
fn ask(port: u16) -> Result<Duration> {
    let mut stream = open(port)?;
    let mut request = || -> Result<()> {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")?;
        let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
        while !answer.ends_with(PAGE) {
            let count = stream.read(&mut chunk)?;
            ensure!(count > 0, "the server closed the connection: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&chunk[..count]);
        }
        Ok(())
    };
    // The first one connects.
    request()?;
    Ok(time(|| (0..REQUESTS).try_for_each(|_| request()))? / REQUESTS)
}

/// Sends the guest all bytes.
fn send(port: u16) -> Result<Duration> {
    let mut stream = open(port)?;
    time(|| {
        let chunk = [0; 64 << 10];
        let mut left = BYTES;
        while left > 0 {
            let count = left.min(chunk.len());
            stream.write_all(&chunk[..count])?;
            left -= count;
        }
        stream.shutdown(Shutdown::Write)?;
        ensure!(stream.read(&mut [0])? == 0, "the sink answers");
        Ok(())
    })
}

/// Has the guest load the large file; what the same takes with the small page does not count.
fn pull(port: u16) -> Result<Duration> {
    let load = |path: &str| -> Result<Duration> {
        let mut stream = open(port)?;
        time(|| {
            stream.write_all(format!("{path}\n").as_bytes())?;
            ensure!(stream.read(&mut [0])? == 0, "the guest answers");
            Ok(())
        })
    };
    let overhead = load("/")?;
    Ok(load("/data")?.saturating_sub(overhead))
}

fn open(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    Ok(stream)
}

/// nginx with a small page and a large file, with and without TLS; killed when dropped.
struct Server {
    child: Child,
    plain: u16,
    tls: u16,
}

impl Server {
    fn start(bench: &Bench) -> Result<Server> {
        let dir = bench.dir.join("nginx");
        fs::create_dir_all(dir.join("www"))?;
        fs::File::create(dir.join("www/data"))?.set_len(BYTES as u64)?;
        fs::write(dir.join("www/index.html"), PAGE)?;
        certify(&dir)?;
        let [plain, tls] = [free_port()?, free_port()?];
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("{what}_temp_path {what};\n"))
            .collect();
        let settings = format!(
            "daemon off; master_process off; pid nginx.pid; error_log error.log;\nevents {{}}\n\
             http {{ access_log off; sendfile on; tcp_nopush on;\n{temporary}\
             server {{ listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; root www;\n\
             ssl_certificate server.crt; ssl_certificate_key server.key; }} }}\n"
        );
        fs::write(dir.join("nginx.conf"), settings)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&dir).args(["-e", "error.log", "-c", "nginx.conf"]).stdin(Stdio::null());
        let child = command.spawn().context("cannot start nginx (package nginx-light)")?;
        let mut server = Server { child, plain, tls };
        let end = Instant::now() + LISTEN_DEADLINE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, tls)).is_err() {
            if Instant::now() > end || server.child.try_wait()?.is_some() {
                bail!("nginx does not listen: {}", fs::read_to_string(dir.join("error.log"))?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate for loopback, which is its own authority.
fn certify(dir: &Path) -> Result<()> {
    let words =
        ["req", "-x509", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    // A server's certificate that is one of an authority as well is refused.
    let names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-addext"];
    let names = [&names[..], &["basicConstraints=critical,CA:FALSE"]].concat();
    let files = ["-keyout", "server.key", "-out", "server.crt"];
    run(Command::new("openssl").current_dir(dir).args(words).args(names).args(files)).map(drop)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A workspace with a broker for the server.
struct Workspace<'a> {
    bench: &'a Bench,
    workspace: ServingWorkspace<'a>,
    ports: [u16; 5],
}

impl<'a> Workspace<'a> {
    fn start(bench: &'a Bench, server: &Server) -> Result<Workspace<'a>> {
        let ca = bench.dir.join("nginx/server.crt");
        let broker = format!("API=https://localhost:{},secret=env:BENCH_KEY,ca={}", server.tls, ca.display());
        let forward = format!("80=127.0.0.1:{}", server.plain);
        // A line of the host names the page; the guest asks for it, and throws it away. The shell keeps the host's connection
        // open meanwhile.
        let load = "#!/bin/sh\\nread path\\nexport path\\n/bin/busybox nc $1 $2 -e /ask\\n";
        let ask = "#!/bin/sh\\nprintf \"GET $path HTTP/1.0\\\\r\\\\n\\\\r\\\\n\"\\nexec /bin/busybox dd of=/dev/null bs=64k\\n";
        let setup =
            format!("printf '{load}' > /load; printf '{ask}' > /ask; /bin/busybox chmod +x /load /ask");
        let mut service =
            format!("B=/bin/busybox; $B nc -ll -p {} -e $B dd of=/dev/null bs=64k & ", PORTS[SINK]);
        for (place, (address, port)) in PLACES.into_iter().enumerate() {
            let [load, relay] = [PORTS[LOAD[place]], PORTS[RELAY[place]]];
            service += &format!(
                "$B nc -ll -p {load} -e /load {address} {port} & $B nc -ll -p {relay} -e $B nc {address} {port} & "
            );
        }
        let service = format!("exec 2>/dev/null; {service} exec $B sleep 100000");
        let publish = PORTS.map(|port| format!("0:{port}"));
        let mut flags = vec!["--broker", &broker, "--forward", &forward, "--setup", &setup];
        flags.extend(["--service-command", &service]);
        flags.extend(publish.iter().flat_map(|port| ["-p", port]));
        let workspace = ServingWorkspace::create(bench, NAME, &[("BENCH_KEY", "key")], &flags)?;
        let ports = workspace.start()?.try_into();
        let ports = ports.map_err(|ports| anyhow!("other ports are published: {ports:?}"))?;
        // The service runs before its programs listen.
        let listening = PORTS.map(|port| port.to_string()).join(" ");
        let wait = "i=0; until $B nc -z 127.0.0.1 $p || [ $i = 100 ]; do i=$((i+1)); $B sleep 0.1; done";
        workspace.exec(&format!("B=/bin/busybox; for p in {listening}; do {wait}; done"))?;
        Ok(Workspace { bench, workspace, ports })
    }
}
