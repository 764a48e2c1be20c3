//! File systems and tunnels over the network.

use std::fs;
use std::process::{Child, Command};

use microagent_tests::host;

use crate::support::Guests;

/// A server of NFS on loopback.
struct Ganesha {
    server: Child,
    dir: tempfile::TempDir,
}

impl Ganesha {
    fn start(port: u16) -> Ganesha {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("from-the-host"), "a line of the host\n").unwrap();
        let config = format!(
            "NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = {port}; Bind_addr = 127.0.0.1; Enable_NLM = false; \
             Enable_RQUOTA = false; Enable_UDP = false; }}\nNFSv4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = {}; }}\n\
             EXPORT {{ Export_Id = 1; Path = {data}; Pseudo = /data; Access_Type = RW; Squash = No_Root_Squash; \
             SecType = sys; FSAL {{ Name = VFS; }} }}\n",
            dir.path().display(),
            data = data.display(),
        );
        let file = dir.path().join("ganesha.conf");
        fs::write(&file, config).unwrap();
        let server = Command::new("ganesha.nfsd")
            .arg("-F")
            .arg("-f")
            .arg(file)
            .arg("-L")
            .arg(dir.path().join("log"))
            .arg("-p")
            .arg(dir.path().join("pid"))
            .spawn()
            .unwrap();
        Ganesha { server, dir }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Ganesha {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
#[ignore = "cargo xtask programs"]
fn nfs_of_a_server_on_the_host_is_mounted() {
    if !host::has_program("ganesha.nfsd") {
        return host::skip("there is no server of NFS: apt-get install nfs-ganesha nfs-ganesha-vfs");
    }
    let port = host::own_ports();
    let ganesha = Ganesha::start(port);
    let mut guests = Guests::of("tools");
    let forward = format!("2049=localhost:{port}");
    guests.start("box", 512, &["--network", "isolated", "--forward", &forward]);
    guests.wait_for(
        "box",
        &ganesha.log(),
        "mount -t nfs4 -o nfsvers=4.1 host.microagent.internal:/data /mnt",
    );
    assert_eq!(guests.sh("box", "cat /mnt/from-the-host"), "a line of the host\n");
    let work = "cd /mnt; dd if=/dev/urandom of=big bs=1M count=16 2> /dev/null; cp big /tmp; sync; \
        echo 3 > /proc/sys/vm/drop_caches; cmp big /tmp/big; mkdir many; for i in $(seq 200); do echo $i > many/$i; done; \
        ls many | wc -l; flock lock true; mv many moved; rm -r moved; cd /; umount /mnt";
    assert_eq!(guests.sh("box", work), "200\n");
    assert_eq!(fs::metadata(ganesha.dir.path().join("data/big")).unwrap().len(), 16 << 20);
    guests.end();
}

#[test]
#[ignore = "cargo xtask programs"]
fn wireguard_connects_two_workspaces() {
    let mut guests = Guests::of("tools");
    guests.home.microagent(["network", "create", "lab"]).success();
    let key = |guests: &Guests, name: &str| {
        guests.sh(name, "umask 077; wg genkey > /key; wg pubkey < /key").trim().to_owned()
    };
    for name in ["left", "right"] {
        guests.start(name, 256, &["--network", "isolated", "--join", "lab"]);
    }
    let keys = [key(&guests, "left"), key(&guests, "right")];
    for (name, address, peer, peer_key) in [("left", 1, "right", &keys[1]), ("right", 2, "left", &keys[0])] {
        let lines = format!(
            "ip link add wg0 type wireguard; wg set wg0 listen-port 51820 private-key /key peer {peer_key} \
             allowed-ips 10.99.0.0/24 endpoint {peer}:51820 persistent-keepalive 5; \
             ip address add 10.99.0.{address}/24 dev wg0; ip link set wg0 up"
        );
        guests.sh(name, &lines);
    }
    guests.wait_for("left", "the tunnel", "ping -c 1 -W 2 10.99.0.2");
    guests.sh(
        "right",
        "mkdir /srv/www; head -c 8M /dev/urandom > /srv/www/big; \
        setsid python3 -m http.server --directory /srv/www 8000 > /dev/null 2>&1 < /dev/null &",
    );
    guests.wait_for("left", "the server", "curl -sf -o /big http://10.99.0.2:8000/big");
    assert_eq!(guests.sh("left", "md5sum < /big"), guests.sh("right", "md5sum < /srv/www/big"));
    let handshakes = guests.sh("left", "wg show wg0 latest-handshakes");
    assert!(!handshakes.trim().ends_with("\t0"), "{handshakes}");
    guests.delete_all();
    guests.home.microagent(["network", "delete", "lab", "--yes"]).success();
    guests.end();
}
