//! Programs that people run in a guest, and the servers that they speak with. Those that need larger images are in
//! `programs/clients.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use microagent_tests::far_end::{self, pattern, sha256};
use microagent_tests::{Finished, Home, User, host, wait_for};

const DEADLINE: Duration = Duration::from_secs(280);

/// Bytes of a download.
const LARGE: usize = 64 << 20;

fn home() -> Home {
    Home::new(User::unprivileged())
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn guest(home: &Home, name: &str, script: &str) -> Finished {
    home.microagent(["exec", name, "--", "sh", "-ec", script]).deadline(DEADLINE).success()
}

/// Makes a Debian package with one file in `repository`; gives its entry of the index.
fn package(repository: &Path, name: &str, depends: &str, content: &[u8]) -> String {
    let tree = tempfile::tempdir().unwrap();
    let share = tree.path().join("usr/share").join(name);
    fs::create_dir_all(&share).unwrap();
    fs::write(share.join("content"), content).unwrap();
    fs::create_dir(tree.path().join("DEBIAN")).unwrap();
    let control = format!(
        "Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: A Test <test@example.org>\n{depends}\
         Description: some bytes\n"
    );
    fs::write(tree.path().join("DEBIAN/control"), &control).unwrap();
    let file = repository.join(format!("{name}.deb"));
    let [tree, path] = [tree.path(), &file].map(|path| path.to_str().unwrap());
    host::must("dpkg-deb", &["--root-owner-group", "-Zgzip", "-z1", "--build", tree, path]);
    let built = fs::read(&file).unwrap();
    format!("{control}Filename: ./{name}.deb\nSize: {}\nSHA256: {}\n\n", built.len(), sha256(&built))
}

#[test]
fn apt_get_installs_from_a_repository_of_the_host() {
    if !host::has_program("dpkg-deb") {
        return host::skip("only a Debian host has `dpkg-deb`");
    }
    let repository = tempfile::tempdir().unwrap();
    let content = pattern(6_000_000);
    let mut index = package(repository.path(), "far-tools", "Depends: far-data, far-more\n", b"tools\n");
    index += &package(repository.path(), "far-data", "", &content);
    index += &package(repository.path(), "far-more", "", &pattern(70_000));
    fs::write(repository.path().join("Packages"), index).unwrap();
    let port = far_end::serve_files(listener(), repository.path());

    let home = home();
    let forward = format!("8000=localhost:{port}");
    let create = ["create", "box", "--network", "isolated", "--image", &home.image("debian")];
    home.microagent(create).args(["--forward", &forward]).success();
    home.microagent(["start", "box"]).success();
    let install = "rm -f /etc/apt/sources.list.d/*; \
        echo 'deb [trusted=yes] http://host.microagent.internal:8000 ./' > /etc/apt/sources.list; \
        apt-get update -qq; apt-get install -y -qq far-tools > /dev/null; \
        sha256sum < /usr/share/far-data/content; dpkg-query -W -f '${Status}\\n' far-more";
    let installed = guest(&home, "box", install);
    let expected = format!("{}  -\ninstall ok installed\n", sha256(&content));
    assert_eq!(installed.text(), expected, "{}", installed.told());
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn curl_loads_much_from_the_host_and_all_of_it_is_right() {
    let files = tempfile::tempdir().unwrap();
    let content = pattern(LARGE);
    fs::write(files.path().join("large"), &content).unwrap();
    let port = far_end::serve_files(listener(), files.path());
    let home = home();
    let forward = format!("8000=localhost:{port}");
    let create = ["create", "box", "--network", "isolated", "--image", &home.image("openai")];
    home.microagent(create).args(["--forward", &forward]).success();
    home.microagent(["start", "box"]).success();
    let url = "http://host.microagent.internal:8000/large";
    let sum = format!("{}  -\n", sha256(&content));
    assert_eq!(guest(&home, "box", &format!("curl -sSf {url} | sha256sum")).text(), sum);
    // Several at once, of which one is given up in the middle.
    let some = format!(
        "for n in 1 2 3; do curl -sSf {url} | sha256sum & done; curl -sSf {url} | head -c 1000000 > /dev/null; wait"
    );
    let some = home.microagent(["exec", "box", "--", "sh", "-c", &some]).deadline(DEADLINE).success();
    assert_eq!(some.text(), sum.repeat(3), "{}", some.told());
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}

/// What nginx serves: files, with HTTP/2 inside of TLS.
const NGINX: &str = "events {} http { server { listen 80; listen 443 ssl http2; root /srv/www; \
    ssl_certificate /etc/ssl/certs/ssl-cert-snakeoil.pem; ssl_certificate_key /etc/ssl/private/ssl-cert-snakeoil.key; } }";

const POSTGRES: &str = "/usr/lib/postgresql/15/bin";

#[test]
fn nginx_and_postgresql_serve_the_other_members_of_a_private_network() {
    let home = home();
    home.microagent(["network", "create", "backend"]).success();
    let setup = format!(
        "mkdir -p /srv/www /srv/rows; for n in $(seq 60); do echo page $n > /srv/www/$n; done; \
         head -c 8000000 /dev/urandom > /srv/www/large; echo '{NGINX}' > /etc/nginx/nginx.conf; chown postgres /srv/rows; \
         setpriv --reuid postgres --regid postgres --clear-groups {POSTGRES}/initdb -D /srv/rows --auth=trust \
         --no-locale -E UTF8 > /dev/null; echo 'host all all all trust' >> /srv/rows/pg_hba.conf"
    );
    let service = format!(
        "nginx -g 'daemon off;' & exec setpriv --reuid postgres --regid postgres --clear-groups {POSTGRES}/postgres \
         -D /srv/rows -k /tmp -c listen_addresses=*"
    );
    let create = |name: &str, image: &str| {
        let create = ["create", name, "--network", "isolated", "--join", "backend", "--image", image];
        home.microagent(create).deadline(Duration::from_secs(400))
    };
    let (services, curl) = (home.image("services"), home.image("openai"));
    create("server", &services)
        .args(["--memory", "1g", "--setup", &setup, "--service-command", &service])
        .success();
    create("app", &services).success();
    create("web", &curl).success();
    for name in ["server", "app", "web"] {
        home.microagent(["start", name]).success();
    }
    home.log_has("server", "console.log", "ready to accept connections");

    let sql = "create table t as select n, repeat(md5(n::text), 50) as text from generate_series(1, 5000) n; \
        select count(*), sum(length(text)), md5(string_agg(text, '' order by n)) from t";
    let psql = |name: &str, host: &str, sql: &str| {
        guest(&home, name, &format!("psql -qAt -h {host} -U postgres -c \"{sql}\" postgres"))
            .text()
            .to_owned()
    };
    let counted = psql("app", "server.backend", sql);
    assert!(counted.starts_with("5000|8000000|"), "{counted}");
    // All rows go through the network, in both directions.
    let copied = "psql -q -h server -U postgres -c 'copy t to stdout' postgres > /tmp/rows; \
        psql -q -h server -U postgres -c 'create table u (like t)' -c 'copy u from stdin' postgres < /tmp/rows; \
        psql -qAt -h server -U postgres -c \"select md5(string_agg(text, '' order by n)) from u\" postgres";
    assert_eq!(guest(&home, "app", copied).text().trim(), counted.trim().rsplit('|').next().unwrap());
    assert_eq!(psql("server", "/tmp", "select count(*) from u"), "5000\n");

    let version = "curl -sSfk -o /dev/null -w '%{http_version}\\n' https://server/1";
    wait_for("nginx", DEADLINE, || {
        let asked = home.microagent(["exec", "web", "--", "sh", "-c", version]).run();
        if asked.text() == "2\n" { Ok(()) } else { Err(asked.told()) }
    });
    let pages = "cd /tmp; curl -sSfk --parallel --parallel-max 60 'https://server/[1-60]' -o 'page-#1'; \
        for n in $(seq 60); do cat page-$n; done; curl -sSfk https://server/large | sha256sum";
    let loaded = guest(&home, "web", pages);
    let expected: String = (1..=60).map(|n| format!("page {n}\n")).collect();
    let large = guest(&home, "server", "sha256sum < /srv/www/large");
    assert_eq!(loaded.text(), expected + large.text(), "{}", loaded.told());
    home.microagent(["delete", "server", "app", "web", "--force", "--yes"]).success();
    home.microagent(["network", "delete", "backend", "--yes"]).success();
    home.nothing_is_left();
}
