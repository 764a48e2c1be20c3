//! The agent in a real guest, spoken to as the host does.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod harness;

use std::io::Read;
use std::time::{Duration, Instant};

use harness::{Machine, Session, Template, Vm, argv, exec, settings, shell};
use microagent_proto::{
    Command, Entropy, ExecEvent, Exit, GuestErrorKind, MacAddress, Network, NetworkV6, PreambleKind, Request,
    StartErrorKind,
};
use tokio::time::sleep;

/// A configured guest.
async fn configured<'a>(vm: &'a Vm) -> Session<'a> {
    let session = vm.session().await;
    let configured = session.configure(settings()).await;
    configured.unwrap_or_else(|e| panic!("{e:?}; console:\n{}", vm.console()));
    session
}

/// As `sha256sum` prints it.
fn sha256(bytes: &[u8]) -> String {
    use std::io::Write;
    let mut child = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim_end().to_owned()
}

/// Polls a shell condition.
async fn eventually(session: &Session<'_>, condition: &str) {
    let start = Instant::now();
    while session.run(shell(condition)).await.exit != Some(Exit::Code(0)) {
        assert!(
            start.elapsed() < harness::STEP_DEADLINE,
            "never true: {condition}\n{}",
            session.vm.console()
        );
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn commands_run_as_asked() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;

    let output = session.run(shell("echo out; echo err >&2; exit 7")).await;
    assert_eq!(
        (output.text(), &output.stderr[..], output.exit),
        ("out\n", &b"err\n"[..], Some(Exit::Code(7)))
    );
    assert_eq!(session.run(argv(&["true"])).await.exit, Some(Exit::Code(0)));
    assert_eq!(session.run(shell("kill -9 $$")).await.exit, Some(Exit::Signal(9)));
    assert_eq!(session.run(shell("exec cat")).await.exit, Some(Exit::Code(0)), "standard input is empty");

    let mut asked = shell(
        "pwd; id -u; id -g; id -G; echo $HOME; echo $GREETING; touch /home/user/made; ls -ld . | head -c 10",
    );
    asked.user = "user".to_owned();
    asked.working_dir = b"/srv/new/dir".to_vec().into();
    asked.env = vec![(b"GREETING".to_vec().into(), b"hello world".to_vec().into())];
    let output = session.run(asked).await;
    assert_eq!(
        output.text(),
        "/srv/new/dir\n1000\n1000\n1000 44\n/home/user\nhello world\ndrwxr-xr-x",
        "{output:?}"
    );

    let mut asked = shell("id -u; id -g; id -G; echo $HOME; echo again >/dev/stdout");
    asked.user = "4321:8765".to_owned();
    assert_eq!(session.run(asked).await.text(), "4321\n8765\n8765\n/\nagain\n");

    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(session.run(argv(&["env"])).await.text(), format!("PATH={path}\nHOME=/root\n"));
    let limits = session.sh("ulimit -c; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; umask").await;
    assert_eq!(limits, "0\n65536\n1048576\n0\n0022");
    // Neither signals nor descriptors of the agent reach a command.
    assert_eq!(
        session.sh("grep -E 'Sig(Blk|Ign)' /proc/self/status | tr -d '\\t'").await,
        "SigBlk:0000000000000000\nSigIgn:0000000000000000"
    );
    assert_eq!(session.sh("ls /proc/self/fd").await, "0\n1\n2\n3");

    let script = |text: &[u8]| exec(Command::Script(text.to_vec().into()));
    assert_eq!(session.run(script(b"echo plain $0\n")).await.text(), "plain /dev/.microagent/script-1\n");
    let mut asked = script(b"#!/bin/cat\nits own text\n");
    asked.user = "user".to_owned();
    assert_eq!(session.run(asked).await.text(), "#!/bin/cat\nits own text\n");
    assert_eq!(session.sh("ls /dev/.microagent").await, "");
    assert_eq!(
        session.sh("ls -d /sys/fs/cgroup/microagent/exec-* | wc -l").await,
        "1",
        "only that of `ls` is left"
    );
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    for (asked, kind, part) in [
        (argv(&["no-such-program"]), StartErrorKind::NotFound, "`no-such-program` was not found in PATH"),
        (argv(&["/no/such/program"]), StartErrorKind::NotFound, "`/no/such/program` was not found"),
        (argv(&["/srv/no-interpreter"]), StartErrorKind::NotFound, "the interpreter or loader that it names"),
        (
            argv(&["/srv/plain"]),
            StartErrorKind::NotExecutable,
            "`/srv/plain` is not executable: Permission denied",
        ),
        (argv(&["/srv"]), StartErrorKind::NotExecutable, "`/srv` is not executable"),
        (argv(&["/srv/no-format"]), StartErrorKind::NotExecutable, "not a program"),
        (argv(&[]), StartErrorKind::Other, "the command is empty"),
        (argv(&[""]), StartErrorKind::Other, "the command is empty"),
    ] {
        let output = session.run(asked.clone()).await;
        let error = output.not_started.unwrap_or_else(|| panic!("{asked:?} ran"));
        assert_eq!(error.kind, kind, "{error:?}");
        assert!(error.message.contains(part), "{error:?}");
    }
    for (user, kind) in [("nobody", StartErrorKind::NoSuchUser), ("root:wheel", StartErrorKind::NoSuchUser)] {
        let mut asked = argv(&["true"]);
        asked.user = user.to_owned();
        assert_eq!(session.run(asked).await.not_started.unwrap().kind, kind);
    }
    let mut asked = argv(&["true"]);
    asked.working_dir = b"/srv/plain/below".to_vec().into();
    assert_eq!(session.run(asked).await.not_started.unwrap().kind, StartErrorKind::WorkingDir);

    session.sh("rm /bin/sh").await;
    let output = session.run(shell("true")).await.not_started.unwrap();
    assert_eq!(
        (output.kind, &output.message[..]),
        (StartErrorKind::NotFound, "the image has no shell (/bin/sh)")
    );
}

#[tokio::test]
async fn much_output_and_many_at_once() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    // 12 MB in both streams at once; the sums are taken in the guest.
    session
        .sh("seq 1 25000 >/dev/shm/part; for i in $(seq 1 80); do cat /dev/shm/part; done >/dev/shm/all")
        .await;
    let output =
        session.run(shell("cat /dev/shm/all; tee /dev/stderr </dev/shm/all | sha256sum >/srv/sum")).await;
    assert_eq!(output.exit, Some(Exit::Code(0)));
    assert!(output.stdout.len() > 10_000_000 && output.stdout == output.stderr);
    assert_eq!(sha256(&output.stdout), session.sh("cat /srv/sum").await);
    // What is still in the pipes when the command ends is not lost.
    for _ in 0..20 {
        assert_eq!(
            session.sh("head -c 60000 /dev/shm/all | wc -c; head -c 60000 /dev/shm/all").await.len(),
            6 + 59_999
        );
    }

    // A background child that holds the pipes delays nothing and lives on.
    let output =
        session.run(shell("(sleep 5; echo late; echo alive >/srv/late; sleep 1000) & echo now")).await;
    assert_eq!((output.text(), output.exit), ("now\n", Some(Exit::Code(0))));
    eventually(&session, "grep -q alive /srv/late && ps -o args | grep -q '^sleep 1000'").await;

    // When memory runs out, the command goes and not the machine.
    let output = session.run(shell("dd if=/dev/zero of=/dev/null bs=600M count=1; exit $?")).await;
    assert!(matches!(output.exit, Some(Exit::Code(1 | 137) | Exit::Signal(9))), "{output:?}");

    let all = (0..40).map(|number| {
        let session = &session;
        async move { session.sh(&format!("seq 1 20000 | wc -l; echo {number}")).await }
    });
    for (number, text) in futures::future::join_all(all).await.into_iter().enumerate() {
        assert_eq!(text, format!("20000\n{number}"));
    }
}

#[tokio::test]
async fn a_dropped_stream_ends_the_whole_tree() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    let line = "trap '' TERM HUP; (setsid sh -c 'while :; do sleep 777; done' &) ; mkdir -p /sys/fs/cgroup/microagent/exec-1/own; yes";
    let mut stream = session.open(&Request::Exec(shell(line))).await;
    loop {
        if let ExecEvent::Stdout(_) = session.event(&mut stream).await {
            break;
        }
    }
    assert_eq!(session.sh("ps -o args | grep -c '^sleep [7]77'").await, "1");
    // Nobody reads, so the command is held back and memory is not filled with its output.
    let before = session.sh("grep MemAvailable /proc/meminfo | tr -dc 0-9").await;
    sleep(Duration::from_millis(300)).await;
    let after = session.sh("grep MemAvailable /proc/meminfo | tr -dc 0-9").await;
    let lost = before.parse::<i64>().unwrap() - after.parse::<i64>().unwrap();
    assert!(lost < 20_000, "{lost} KiB of memory went");
    drop(stream);
    eventually(&session, "! ps -o args | grep -qE '^(sleep [7]77|yes)'").await;
    eventually(&session, "test $(ls -d /sys/fs/cgroup/microagent/exec-* | wc -l) = 1").await;
}

fn network_v6() -> NetworkV6 {
    let address = |text: &str| text.parse().unwrap();
    NetworkV6 { address: address("fd00::15"), prefix_len: 64, gateway: address("fd00::2") }
}

#[tokio::test]
async fn the_machine_is_this_workspaces() {
    let vm = Vm::start(&Machine { disk_len: 20 << 30, network: true, ..Machine::default() });
    let session = vm.session().await;
    let mut wanted = settings();
    wanted.clock_unix_ns = 2_000_000_000_000_000_000;
    wanted.network = Some(Network {
        mac: MacAddress([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]),
        address: "10.0.2.15".parse().unwrap(),
        prefix_len: 24,
        gateway: "10.0.2.2".parse().unwrap(),
        ipv6: network_v6(),
        private: Vec::new(),
        dns: vec!["10.0.2.3".parse().unwrap()],
        search: Vec::new(),
        options: Vec::new(),
    });
    let timings =
        session.configure(wanted).await.unwrap_or_else(|e| panic!("{e:?}\n{}", vm.console())).timings;
    println!("{timings:?}");
    assert_eq!(
        session.sh("hostname; cat /etc/hostname /etc/machine-id").await,
        "tested\ntested\n0123456789abcdef0123456789abcdef"
    );
    assert_eq!(
        session.sh("cat /etc/resolv.conf; test -L /etc/resolv.conf || echo file").await,
        "nameserver 10.0.2.3\nfile"
    );
    assert!(session.sh("cat /etc/hosts").await.contains("10.0.2.15\ttested"));
    // At once, without a look whether somebody else has the address.
    let addresses = session.sh("ip -6 address show dev eth0 scope global; ip -6 route").await;
    assert!(addresses.contains("inet6 fd00::15/64") && !addresses.contains("tentative"), "{addresses}");
    assert!(addresses.contains("default via fd00::2 dev eth0"), "{addresses}");
    assert!(session.sh("date +%s").await.starts_with("20000000"));
    assert!(session.sh("ip addr show eth0").await.contains("link/ether 52:54:00:aa:bb:cc"));
    assert!(session.sh("ip addr show eth0").await.contains("inet 10.0.2.15/24"));
    assert!(session.sh("ip addr show lo").await.contains("inet 127.0.0.1/8"));
    assert!(session.sh("ip route").await.contains("default via 10.0.2.2 dev eth0"));
    let blocks: u64 = session.sh("df -k / | awk 'NR==2 { print $2 }'").await.parse().unwrap();
    assert!(blocks > 19 << 20, "the file system has {blocks} KiB");
    // The controllers are there for whoever makes groups, and mounts can be made and pivoted.
    let controllers = session.sh("cat /sys/fs/cgroup/cgroup.controllers").await;
    for name in ["cpu", "cpuset", "io", "memory", "pids"] {
        assert!(controllers.split(' ').any(|found| found == name), "{controllers}");
    }
    let limited = "cd /sys/fs/cgroup && echo +pids >cgroup.subtree_control && mkdir own && echo 9 >own/pids.max && \
                   echo $$ >own/cgroup.procs && cat own/pids.max /proc/self/cgroup";
    assert_eq!(session.sh(limited).await, "9\n0::/own");
    let pivot = "unshare -m sh -c 'mount --bind /srv /srv && cp -a /bin /srv/ && mkdir -p /srv/old && cd /srv && pivot_root . old && test -e /old/etc/passwd && echo pivoted'";
    assert_eq!(session.sh(pivot).await, "pivoted");
    assert_eq!(
        session
            .sh("cat /proc/sys/kernel/random/boot_id | wc -c; stat -c %a /dev/ptmx /dev/shm /dev/fuse")
            .await,
        "37\n666\n1777\n666"
    );
}

#[tokio::test]
async fn files_are_packed_and_the_disk_is_left_clean() {
    let mut vm = Vm::start(&Machine { disk_len: 64 << 20, ..Machine::default() });
    {
        let session = configured(&vm).await;
        session.sh("mkdir -p /srv/out/sub; seq 1 300000 >/srv/out/numbers; ln /srv/out/numbers /srv/out/sub/same; ln -s numbers /srv/out/link; mknod /srv/out/null c 1 3; sync").await;
        let sum = session.sh("sha256sum </srv/out/numbers").await;
        let tar = session.pack(b"/srv/out").await.unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            if name == "out/numbers" {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                assert_eq!(sha256(&content), sum);
            }
            names.push((name, entry.header().entry_type()));
        }
        use tar::EntryType::{Char, Directory, Link, Regular, Symlink};
        let wanted = [
            ("out/", Directory),
            ("out/link", Symlink),
            ("out/null", Char),
            ("out/numbers", Regular),
            ("out/sub/", Directory),
            ("out/sub/same", Link),
        ];
        assert_eq!(names, wanted.map(|(name, kind)| (name.to_owned(), kind)));
        assert_eq!(session.pack(b"/srv/nothing").await.unwrap_err().kind, GuestErrorKind::NotFound);
        // The whole root without what the kernel makes.
        let tar = session.pack(b"/").await.unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let names: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert!(names.contains(&"./etc/passwd".to_owned()) && names.contains(&"./proc/".to_owned()));
        assert!(
            !names.iter().any(|name| name.starts_with("./proc/s") || name.starts_with("./dev/n")),
            "{names:?}"
        );

        // Things that stand in the way of a clean end.
        session.sh("mount -t tmpfs none /tmp; mkdir /tmp/in; mount -t tmpfs none '/tmp/in'").await;
        session
            .sh("dd if=/dev/zero of=/srv/swap bs=1M count=8 2>/dev/null; mount --bind /srv/out /home")
            .await;
        session.sh("(trap '' TERM; exec 3>/srv/held; while :; do echo x >&3; sleep 0.1; done) >/dev/null 2>&1 & true").await;
        session.shut_down(15, 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", vm.console()));
        assert_eq!(session.shut_down(15, 0).await.unwrap_err().kind, GuestErrorKind::OutOfOrder);
        let refused = session.run(argv(&["true"])).await.not_started.unwrap();
        assert_eq!(refused.message, "the guest is shutting down");
    }
    // Nobody turns it off, so it does so itself.
    vm.wait().await;
    harness::check_disk(&vm.disk());
}

#[tokio::test]
async fn a_full_disk_after_a_power_cut_is_usable() {
    let mut vm = Vm::start(&Machine::default());
    {
        let session = configured(&vm).await;
        session.sh("dd if=/dev/zero of=/srv/fill bs=64k 2>/dev/null; dd if=/dev/zero of=/srv/rest bs=1k 2>/dev/null; sync; dd if=/dev/zero of=/srv/last bs=1k 2>/dev/null; sync; true").await;
        assert_eq!(session.sh("echo x >/srv/more 2>/dev/null || echo full").await, "full");
    }
    vm.kill();
    let vm = Vm::start(&Machine { disk: Some(vm.disk()), ..Machine::default() });
    let session = vm.session().await;
    let mut wanted = settings();
    wanted.hostname = "another".to_owned();
    session.configure(wanted).await.unwrap_or_else(|e| panic!("{e:?}\n{}", vm.console()));
    assert_eq!(
        session
            .sh("cat /etc/hostname; cat /etc/machine-id | wc -c; rm /srv/fill /srv/rest; df / | wc -l")
            .await,
        "another\n33\n2"
    );
}

#[tokio::test]
async fn requests_have_an_order() {
    let mut vm = Vm::start(&Machine::default());
    {
        // Rubbish and pings come before a session, and a host that goes away may come back.
        let mut first = vm.connect().await;
        vm.greet(&mut first, PreambleKind::Ping).await;
        drop(first);
        let mut second = vm.connect().await;
        tokio::io::AsyncWriteExt::write_all(&mut second, b"rubbish \xf5micro").await.unwrap();
        vm.greet(&mut second, PreambleKind::Ping).await;
        drop(second);
        let mut third = vm.connect().await;
        vm.greet(&mut third, PreambleKind::Ping).await;
        let session = vm.session_on(third).await;
        let refused = session.run(argv(&["true"])).await.not_started.unwrap();
        assert_eq!(refused.message, "the guest has not been configured yet");
        assert_eq!(session.pack(b"/").await.unwrap_err().kind, GuestErrorKind::OutOfOrder);
        session.configure(settings()).await.unwrap();
        assert_eq!(session.configure(settings()).await.unwrap_err().kind, GuestErrorKind::OutOfOrder);
        assert_eq!(session.sh("echo still here").await, "still here");
    }
    // The session's end is the machine's.
    vm.wait().await;
}

#[tokio::test]
async fn a_guest_frozen_with_a_placeholder_disk_becomes_several_that_differ() {
    freeze_and_restore(0).await;
}

#[tokio::test]
async fn a_guest_frozen_without_a_disk_becomes_several_that_differ() {
    freeze_and_restore(3).await;
}

async fn freeze_and_restore(scsi_target: u8) {
    let machine = |template| Machine { scsi_target, template, disk_len: 100 << 20, ..Machine::default() };
    let template = tempfile::tempdir().unwrap();
    let template = template.path();
    let vm = Vm::start(&machine(Template::Freeze(template.to_owned())));
    let mut channel = vm.connect().await;
    vm.greet(&mut channel, PreambleKind::Ping).await;
    vm.freeze(template).await;

    let mut seen = Vec::new();
    for number in 1..=3 {
        let vm = Vm::start(&machine(Template::Restore(template.to_owned())));
        let channel = vm.connect().await;
        vm.restore(template).await;
        let start = Instant::now();
        let session = vm.session_on(channel).await;
        let in_session = start.elapsed();
        let mut wanted = settings();
        wanted.entropy = Entropy([number; 32]);
        wanted.root.scsi_target = scsi_target;
        let configured =
            session.configure(wanted).await.unwrap_or_else(|e| panic!("{e:?}\n{}", vm.console()));
        let at_configured = start.elapsed();
        session.run(argv(&["true"])).await;
        let (at_true, timings) = (start.elapsed(), configured.timings);
        println!("session {in_session:?}, configured {at_configured:?}, `true` {at_true:?}, {timings:?}");
        let random = "head -c 16 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/boot_id";
        seen.push(session.sh(random).await);
        let clock: u64 = session.sh("date +%s").await.parse().unwrap();
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(now.abs_diff(clock) < 60, "the guest's clock says {clock}, not {now}");
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[tokio::test]
async fn a_missing_disk_and_a_missing_network_are_told() {
    let vm = Vm::start(&Machine::default());
    let session = vm.session().await;
    let mut wanted = settings();
    wanted.network = Some(Network {
        mac: MacAddress([2; 6]),
        address: "10.0.2.15".parse().unwrap(),
        prefix_len: 24,
        gateway: "10.0.2.2".parse().unwrap(),
        ipv6: network_v6(),
        private: Vec::new(),
        dns: Vec::new(),
        search: Vec::new(),
        options: Vec::new(),
    });
    let error = session.configure(wanted).await.unwrap_err();
    assert_eq!(
        (error.kind, &error.message[..]),
        (GuestErrorKind::Network, "the machine has no network device")
    );

    let vm = Vm::start(&Machine::default());
    let session = vm.session().await;
    let mut wanted = settings();
    wanted.root.scsi_target = 5;
    let error = session.configure(wanted).await.unwrap_err();
    assert_eq!((error.kind, &error.message[..]), (GuestErrorKind::Disk, "no disk answered at SCSI target 5"));
    let refused = session.run(argv(&["true"])).await.not_started.unwrap();
    assert_eq!(refused.message, "the guest could not be configured");
}
