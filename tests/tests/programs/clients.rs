//! Programs that load and send much over the network, and the servers that they speak with.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use microagent_tests::{far_end, host, wait_for};

use crate::support::Guests;

/// Blocks of a download, and the bytes of each: 1 GiB.
const BLOCKS: u64 = 64;
const BLOCK: usize = 16 << 20;

#[test]
#[ignore = "cargo xtask programs"]
fn curl_loads_a_gibibyte() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("large");
    let mut file = fs::File::create(&path).unwrap();
    let mut block = far_end::pattern(BLOCK);
    for number in 0..BLOCKS {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block).unwrap();
    }
    let port = far_end::serve_files(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), files.path());
    let mut guests = Guests::of("clients");
    let forward = format!("8000=localhost:{port}");
    guests.start("box", 256, &["--network", "isolated", "--forward", &forward]);
    let sum = guests.sh("box", "curl -sSf http://host.microagent.internal:8000/large | sha256sum");
    let expected = host::must("sha256sum", &[path.to_str().unwrap()]);
    assert_eq!(sum.split(' ').next(), expected.split(' ').next());
    guests.end();
}

/// Git's own server of a directory with a repository; it ends with the test.
struct GitServer(Child);

impl GitServer {
    fn start(base: &Path, port: u16) -> GitServer {
        let mut daemon = Command::new("git");
        daemon.args(["daemon", "--export-all", "--enable=receive-pack", "--reuseaddr", "--listen=127.0.0.1"]);
        daemon.arg(format!("--port={port}")).arg(format!("--base-path={}", base.display())).arg(base);
        let server = GitServer(daemon.stdin(Stdio::null()).spawn().unwrap());
        wait_for("the server of repositories", Duration::from_secs(60), || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        });
        server
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        // It has children, which end with it when it is asked to end.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        );
        let _ = self.0.wait();
    }
}

fn git(dir: &Path, words: &[&str]) -> String {
    let settings = ["-c", "user.name=A Test", "-c", "user.email=test@example.org"];
    host::must("git", &[&["-C", dir.to_str().unwrap()][..], &settings, words].concat())
}

#[test]
#[ignore = "cargo xtask programs"]
fn git_clones_and_pushes() {
    if !host::has_program("git") {
        return host::skip("there is no git: apt-get install git");
    }
    let base = tempfile::tempdir().unwrap();
    let (work, bare) = (base.path().join("work"), base.path().join("repository.git"));
    fs::create_dir(&work).unwrap();
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    for number in 0..20_u8 {
        let noise: Vec<u8> =
            far_end::pattern(1_000_000).iter().map(|byte| byte.wrapping_mul(number | 1)).collect();
        fs::write(work.join(format!("noise-{number}")), noise).unwrap();
        fs::write(work.join("count"), number.to_string()).unwrap();
        git(&work, &["add", "--all"]);
        git(&work, &["commit", "--quiet", "--message", "more"]);
    }
    git(base.path(), &["clone", "--quiet", "--bare", "work", "repository.git"]);
    let port = host::own_ports();
    let _server = GitServer::start(base.path(), port);

    let mut guests = Guests::of("clients");
    let forward = format!("9418=localhost:{port}");
    guests.start("box", 512, &["--network", "isolated", "--forward", &forward]);
    let clone = "git clone --quiet git://host.microagent.internal/repository.git /srv/clone; cd /srv/clone; git fsck --full; \
        git rev-parse HEAD";
    assert_eq!(guests.sh("box", clone), git(&work, &["rev-parse", "HEAD"]));
    let push = "cd /srv/clone; git config user.name Guest; git config user.email guest@example.org; \
        head -c 8000000 /dev/urandom > from-the-guest; git add --all; git commit --quiet --message guest; \
        git push --quiet origin main; git rev-parse HEAD";
    let pushed = guests.sh("box", push);
    assert_eq!(git(&bare, &["rev-parse", "main"]), pushed);
    git(&bare, &["fsck", "--full"]);
    guests.end();
}

/// nginx with HTTP/2 and the wheels of the image; a server of WebSockets that sends back what it gets.
const SERVERS: &str = r#"
mkdir -p /srv/www; for n in $(seq 50); do echo page $n > /srv/www/$n; done; ln -sfn /srv/wheels /srv/www/wheels
head -c 30000000 /dev/urandom > /srv/www/large
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=web -addext subjectAltName=DNS:web \
    -keyout /srv/key -out /srv/www/certificate 2> /dev/null
cat > /etc/nginx/nginx.conf <<END
events {} http { server { listen 80; listen 443 ssl http2; root /srv/www; autoindex on;
ssl_certificate /srv/www/certificate; ssl_certificate_key /srv/key; } }
END
nginx
cat > /srv/echo.py <<END
import asyncio, websockets
async def echo(socket):
    async for message in socket: await socket.send(message)
async def main():
    async with websockets.serve(echo, "", 8765, max_size=None): await asyncio.Future()
asyncio.run(main())
END
setsid python3 /srv/echo.py > /srv/echo.log 2>&1 < /dev/null &
"#;

/// Sends messages of many sizes, several under way at a time, and compares what comes back.
const WEBSOCKET: &str = r#"
import asyncio, os, websockets
async def main():
    async with websockets.connect("ws://web:8765", max_size=None) as socket:
        sizes = [0, 1, 125, 126, 65535, 65536, 1_000_000] * 8
        messages = [os.urandom(size) for size in sizes]
        async def send():
            for message in messages: await socket.send(message)
        sending = asyncio.create_task(send())
        for message in messages: assert await socket.recv() == message
        await sending
        await socket.send("text"); assert await socket.recv() == "text"
        await (await socket.ping())
    print(len(messages), socket.close_code)
asyncio.run(main())
"#;

#[test]
#[ignore = "cargo xtask programs"]
fn pip_nghttp_and_websockets_over_a_private_network() {
    let mut guests = Guests::of("clients");
    guests.home.microagent(["network", "create", "lab"]).success();
    for name in ["web", "app"] {
        guests.start(name, 512, &["--network", "isolated", "--join", "lab"]);
    }
    guests.sh("web", SERVERS);
    let install = "pip install --quiet --break-system-packages --no-cache-dir --disable-pip-version-check --no-index \
        --trusted-host web --find-links http://web/wheels/ numpy; python3 -c 'import numpy; print(numpy.arange(10).sum())'";
    guests.sh("app", "rm -r /srv/wheels");
    guests.wait_for("app", "nginx", "curl -sSf -o /srv/certificate http://web/certificate");
    assert_eq!(guests.sh("app", install).lines().last(), Some("45"));

    let large = guests.sh("web", "sha256sum < /srv/www/large");
    assert_eq!(guests.sh("app", "nghttp --no-verify-peer https://web/large | sha256sum"), large);
    let load =
        guests.sh("app", "h2load --requests 500 --clients 10 --max-concurrent-streams 20 https://web/7");
    assert!(load.contains("500 succeeded, 0 failed, 0 errored, 0 timeout"), "{load}");
    let version = "curl -sSf --cacert /srv/certificate -o /dev/null -w '%{http_version}' https://web/1";
    assert_eq!(guests.sh("app", version), "2");

    guests.home.microagent(["exec", "-i", "app", "--", "tee", "/srv/client.py"]).stdin(WEBSOCKET).success();
    guests.wait_for("app", "the server of WebSockets", "exec 3<>/dev/tcp/web/8765");
    assert_eq!(guests.sh("app", "python3 /srv/client.py"), "56 1000\n");
    guests.delete_all();
    guests.home.microagent(["network", "delete", "lab", "--yes"]).success();
    guests.end();
}
