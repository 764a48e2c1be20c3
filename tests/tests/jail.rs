//! Code that has escaped into QEMU's process, on hosts with all walls of the jail and on hosts that lack one each.
//!
//! A test program takes QEMU's place (`src/bin/jail-probe.rs`), behind the jail that the product makes, and
//! tries everything that must be denied. Where a wall is missing the others must hold, but for what
//! [`LOST`] names. QEMU's own filter is not there in any of these runs.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::Duration;

use microagent_tests::{Home, User, host, listing, user, wait_for};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use serde_json::json;

/// What a host lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Full,
    WithoutFilter,
    WithoutLandlock,
    WithoutUser,
}

impl Host {
    fn wall(self) -> Option<&'static str> {
        match self {
            Host::Full => None,
            Host::WithoutFilter => Some("filter"),
            Host::WithoutLandlock => Some("landlock"),
            Host::WithoutUser => Some("user"),
        }
    }
}

/// Attempts that succeed on no host whatever it lacks are not listed; these are lost without one wall.
const LOST: &[(Host, &[&str])] = &[
    (Host::Full, &[]),
    // Capabilities are missing all the same, and Landlock has no rule for these.
    (
        Host::WithoutFilter,
        &[
            "connect_bus",
            "connect_control_socket",
            "connect_mptcp",
            "tcp_fast_open",
            "send_udp",
            "listen_tcp",
            "socket_inet6",
            "socket_netlink",
            "socket_vsock",
            "socket_alg",
            "socketpair",
            "open_process",
            "owner_of_signals",
            "outlive_supervisor",
            "io_uring",
            "userfaultfd",
            "add_key",
            "keyring",
            "perf_event_open",
            "shared_memory",
            "message_queue",
            "semaphores",
            "posix_queue",
            "name_to_handle",
            "fanotify",
            "inotify",
            "user_namespace",
            "memory_file",
            "secret_memory",
            "personality",
            "fork",
            "clone_process",
            "clone_namespace",
            "signal_everybody",
            "filter_of_a_socket",
            "join_namespace",
            "mount",
            "set_clock",
            "host_name",
            "bpf",
            "type_at_terminal",
            "chroot",
            "execute_highest_descriptor",
            "become_root",
            // Where Landlock does not know truncation (before Linux 6.2).
            "empty_home_file_without_right",
            "empty_home_file_without_right_by_open",
        ],
    ),
    // Files that the user can open are open then; nothing else is.
    (
        Host::WithoutLandlock,
        &[
            "read_key_of_the_user",
            "read_control_key",
            "read_record",
            "read_other_disk",
            "read_home_file",
            "list_home",
            "list_state",
            "read_etc_passwd",
            "read_init_command_line",
            "read_supervisor_environment",
            "list_processes",
            "write_home_file",
            "write_own_program",
            "open_overlay_anew",
            // What is executed stays behind the filter; QEMU's own ends it.
            "execute_true_by_the_armed_descriptor",
        ],
    ),
    (Host::WithoutUser, &[]),
];

/// No capability, in a process's status.
const NONE: &str = "0000000000000000";

/// Results of attempts by their names, and what else the probe printed.
struct Probed {
    results: BTreeMap<String, String>,
    lines: Vec<String>,
}

impl Probed {
    fn reached(&self) -> Vec<&str> {
        let known = ["status", "end"];
        let reached = self.results.iter().filter(|(_, result)| *result == "reached");
        reached.map(|(name, _)| name.as_str()).filter(|name| !known.contains(name)).collect()
    }

    fn status(&self, field: &str) -> &str {
        let line = self.lines.iter().find_map(|line| line.strip_prefix(&format!("STATUS {field}: ")));
        line.unwrap_or_else(|| panic!("no {field} in {:?}", self.lines))
    }

    fn after(&self, word: &str) -> &str {
        self.lines.iter().find_map(|line| line.strip_prefix(word)).unwrap_or_else(|| panic!("no {word}"))
    }
}

/// Listeners and files that the probe aims at; they live until the probe has ended.
struct Aims {
    _bus: UnixListener,
    _abstract: UnixListener,
    _tcp: TcpListener,
    _udp: UdpSocket,
    left_open: fs::File,
}

/// Starts the probe in QEMU's place on such a host.
fn probe(home: &Home, host: Host, every_call: bool) -> Probed {
    let prefix = home.make_dir("prefix");
    for dir in ["bin", "share", "share/qemu"] {
        home.make_dir(&format!("prefix/{dir}"));
    }
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let qemu = prefix.join("bin/qemu-system-x86_64");
    fs::copy(env!("CARGO_BIN_EXE_jail-probe"), &qemu).unwrap();
    let without = home.published(Path::new(env!("CARGO_BIN_EXE_without-wall")));
    let aims = aims(home, every_call);
    // As a shell's `exec 9<file` leaves it.
    fcntl_setfd(&aims.left_open, FdFlags::empty()).unwrap();

    let path = format!("{}:{}", prefix.join("bin").display(), std::env::var("PATH").unwrap());
    let program = home.program().to_str().unwrap().to_owned();
    let image = home.image("busybox");
    let words = [
        "--allow-weak-jail",
        "run",
        "--cold",
        "--network",
        "isolated",
        "--profile",
        "tiny",
        "--name",
        "probe",
        &image,
        "true",
    ];
    let call = match host.wall() {
        None => home.microagent(words),
        Some(wall) => home.other(without.to_str().unwrap()).arg(wall).arg(&program).args(words),
    };
    call.env("PATH", &path).run().code(1);
    drop(aims);
    let log = fs::read_to_string(home.workspace("probe").join("machine/vmm.log")).unwrap();
    let lines: Vec<String> = log.lines().map(str::to_owned).collect();
    let results = lines.iter().filter_map(|line| line.strip_prefix("PROBE ")?.split_once(' '));
    let results: BTreeMap<_, _> =
        results.map(|(name, result)| (name.to_owned(), result.to_owned())).collect();
    assert_eq!(results.get("end").map(String::as_str), Some("reached"), "{log}");
    home.microagent(["delete", "probe", "--yes"]).success();
    Probed { results, lines }
}

fn aims(home: &Home, every_call: bool) -> Aims {
    let bus = home.path().join("bus");
    let left_open = home.write("left-open", "secret");
    home.write("key", "PRIVATE KEY");
    fs::set_permissions(home.path().join("key"), fs::Permissions::from_mode(0o600)).unwrap();
    // Another workspace, as its files are.
    home.microagent(["create", "victim", "--network", "isolated", "--profile", "tiny", "--image"])
        .arg(home.image("busybox"))
        .success();
    let victim = home.workspace("victim");
    let key = victim.join("machine/control.key");
    home.write(key.strip_prefix(home.path()).unwrap().to_str().unwrap(), "key");
    let name = format!("microagent-jail-{}", std::process::id());
    let aims = Aims {
        _bus: UnixListener::bind(&bus).unwrap(),
        _abstract: UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
        _tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
        _udp: UdpSocket::bind("127.0.0.1:0").unwrap(),
        left_open: fs::File::open(&left_open).unwrap(),
    };
    fs::set_permissions(&bus, fs::Permissions::from_mode(0o777)).unwrap();
    let targets = json!({
        "every_call": every_call,
        "key_of_the_user": home.path().join("key"),
        "control_key": victim.join("machine/control.key"),
        "record": victim.join("workspace.json"),
        "other_disk": victim.join("disk.qcow2"),
        "home_file": left_open,
        "home": home.path(),
        "state": home.state(),
        "bus": bus,
        "control_socket": bus,
        "abstract": name,
        "tcp_port": aims._tcp.local_addr().unwrap().port(),
        "udp_port": aims._udp.local_addr().unwrap().port(),
        "left_open": fs::metadata(&left_open).unwrap().ino(),
    });
    home.write("prefix/share/qemu/targets.json", targets.to_string());
    aims
}

fn users() -> Vec<User> {
    if user::is_root() { vec![User::Caller, User::Ordinary] } else { vec![User::Caller] }
}

#[test]
fn code_that_has_escaped_into_qemu_reaches_nothing() {
    for user in users() {
        let home = Home::new(user);
        let probed = probe(&home, Host::Full, false);
        assert_eq!(probed.reached(), Vec::<&str>::new(), "as {user:?}");
        assert!(probed.results.len() > 75, "only {} attempts were made", probed.results.len());
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(probed.status(set), "0000000000000000", "{set} as {user:?}");
        }
        assert_eq!((probed.status("NoNewPrivs"), probed.status("Seccomp")), ("1", "2"));
        if user == User::Caller && user::is_root() {
            assert_eq!(probed.status("CapBnd"), "0000000000000000");
            assert!(probed.status("Uid").starts_with("19000"), "{}", probed.status("Uid"));
            assert!(probed.lines.contains(&"STATUS Groups:".to_owned()), "it is in no group but its own");
        }
        home.nothing_but(&["victim"]);
    }
}

#[test]
fn each_wall_holds_without_the_others() {
    let mut table = String::new();
    for user in users() {
        let hosts = LOST.iter().filter(|(host, _)| *host != Host::WithoutUser || user::is_root());
        let probed: Vec<_> =
            hosts.map(|(host, lost)| (host, lost, probe(&Home::new(user), *host, false))).collect();
        table += &format!("as {user:?}\n");
        for name in probed[0].2.results.keys() {
            let row: Vec<_> = probed.iter().map(|(_, _, probed)| probed.results[name].as_str()).collect();
            table += &format!("  {name:32} {}\n", row.join("  "));
        }
        for (host, lost, probed) in &probed {
            let unexpected: Vec<_> =
                probed.reached().into_iter().filter(|name| !lost.contains(name)).collect();
            assert_eq!(unexpected, Vec::<&str>::new(), "as {user:?} on {host:?}\n{table}");
        }
    }
    println!("attempt, with all walls, without filter, without Landlock, without user\n{table}");
}

#[test]
fn no_system_call_passes_that_is_not_on_the_list() {
    let home = Home::new(User::unprivileged());
    let probed = probe(&home, Host::Full, true);
    let allowed: Vec<i64> =
        probed.after("CALLS ").split_whitespace().map(|number| number.parse().unwrap()).collect();
    let unexpected: Vec<_> = allowed.iter().filter(|number| !EXPECTED.contains(number)).collect();
    assert_eq!(unexpected, Vec::<&i64>::new());
    assert!(allowed.len() > 80, "{allowed:?}");
    assert_eq!(probed.after("X32 "), "0", "the x32 convention is another way to the same calls");
}

#[test]
fn a_machine_is_in_a_control_group_of_its_own_where_one_can_be_made() {
    let home = Home::new(User::Caller);
    let running = home.run("busybox", ["--network", "isolated"], &["sleep", "600"]).start();
    let qemu = running.qemu().pid;
    let groups = fs::read_to_string(format!("/proc/{qemu}/cgroup")).unwrap();
    running.signal(Signal::INT);
    running.finish();
    let machine = groups.lines().find(|line| line.contains("/microagent-machine-"));
    let Some(machine) = machine else {
        return host::skip("no control group can be made on this host");
    };
    let (_, path) = machine.rsplit_once(':').unwrap();
    let name = path.rsplit('/').next().unwrap();
    // Others come and go meanwhile, which `find` would complain of.
    wait_for("the group to be removed", Duration::from_secs(60), || {
        let mut left = listing::listing(Path::new("/sys/fs/cgroup")).into_keys();
        left.find(|group| group.ends_with(name)).map_or(Ok(()), Err)
    });
    home.processes_end();
}

#[test]
fn a_host_without_a_wall_is_told_of_and_starts_nothing_unless_asked_to() {
    let home = Home::new(User::unprivileged());
    let without = home.published(Path::new(env!("CARGO_BIN_EXE_without-wall")));
    let program = home.program().to_str().unwrap().to_owned();
    let call =
        |words: &[&str]| home.other(without.to_str().unwrap()).arg("landlock").arg(&program).args(words);
    let doctor = call(&["doctor", "--json"]).run().code(1).json();
    let checks = doctor["checks"].as_array().unwrap();
    let jail = checks.iter().find(|check| check["name"] == "jail").unwrap();
    assert_eq!(jail["status"], "failed");
    assert!(jail["detail"].as_str().unwrap().contains("no Landlock"), "{jail}");

    let image = home.image("busybox");
    let words =
        ["run", "--profile", "tiny", "--network", "isolated", "--keep", "--name", "weak", &image, "true"];
    call(&words).run().code(1).says("no Landlock").says("--allow-weak-jail");
    assert_eq!(home.workspaces(), Vec::<String>::new());
    call(&words).env("MICROAGENT_ALLOW_WEAK_JAIL", "1").success();
    let status = home.microagent(["status", "weak", "--json"]).success().json();
    assert!(status["weak_jail"][0].as_str().unwrap().contains("no Landlock"), "{status}");
    for (command, text) in [("status", "Weak jail: "), ("events", "weak jail: ")] {
        let shown = home.microagent([command, "weak"]).success();
        assert!(shown.text().contains(text), "{}", shown.told());
    }
    if host::has_landlock() {
        let doctor = home.microagent(["doctor"]).success();
        assert!(doctor.text().contains("jail: seccomp filter, Landlock "), "{}", doctor.told());
    }
    home.microagent(["delete", "weak", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_network_stack_has_no_capabilities() {
    let home = Home::new(User::Caller);
    let running = home.run("busybox", [], &["sleep", "600"]).start();
    let stack = running.descendant("a network stack", |process| process.is_network_stack());
    let status = || fs::read_to_string(format!("/proc/{}/status", stack.pid)).unwrap_or_default();
    // It enters its jail when it was told what to do.
    wait_for("the stack to be in its jail", Duration::from_secs(120), || {
        let status = status();
        if status.contains("Seccomp:\t2") { Ok(()) } else { Err(status) }
    });
    let status = status();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{set}\n{status}");
    }
    running.signal(Signal::INT);
    running.finish();
    home.processes_end();
}

/// Each way to start a machine; the supervisor of each ends QEMU, though that is of another user where root starts it.
#[test]
fn a_supervisor_keeps_no_capability_but_that_to_end_qemu() {
    for user in users() {
        let home = Home::new(user);
        for warm in ["off", "on", "on"] {
            let options = ["--profile", "tiny", "--network", "isolated"];
            let running =
                home.run("busybox", options, &["sleep", "600"]).env("MICROAGENT_WARM", warm).start();
            let qemu = running.qemu();
            let status = wait_for("the walls of the supervisor", Duration::from_secs(120), || {
                let status = fs::read_to_string(format!("/proc/{}/status", qemu.parent)).unwrap_or_default();
                if status.contains("Seccomp:\t2") { Ok(status) } else { Err(status) }
            });
            let is_root = user::is_root() && user == User::Caller;
            let kill = if is_root { "0000000000000020" } else { "0000000000000000" };
            for (set, held) in [("CapPrm", kill), ("CapEff", kill), ("CapInh", NONE), ("CapAmb", NONE)] {
                assert!(status.contains(&format!("{set}:\t{held}")), "{set} as {user:?}\n{status}");
            }
            assert!(!is_root || status.contains(&format!("CapBnd:\t{NONE}")), "{status}");
            assert!(status.contains("NoNewPrivs:\t1"), "{status}");
            running.signal(Signal::INT);
            running.finish();
            home.processes_end();
        }
    }
}

#[test]
fn every_test_that_a_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pages = ["SECURITY.md", "docs/reference/hosts.md"];
    let page = pages.map(|page| fs::read_to_string(root.join(page)).unwrap()).join("");
    let sources = host::must(
        "grep",
        &["-rhoE", "--include=*.rs", "fn [a-z0-9_]+", root.to_str().unwrap(), "--exclude-dir=target"],
    );
    let functions: std::collections::BTreeSet<_> =
        sources.lines().filter_map(|line| line.strip_prefix("fn ")).collect();
    // A name of a test is a sentence: three words at least.
    let is_test = |word: &&str| {
        word.matches('_').count() >= 3
            && word.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
    };
    let named: Vec<_> = page.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 20, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|name| !functions.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Numbers of the calls that a jailed QEMU may make, on x86-64: a second writing of the list.
#[rustfmt::skip]
const EXPECTED: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_eventfd2,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_get_mempolicy,
    libc::SYS_getcwd,
    libc::SYS_getdents,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_lstat,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_select,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_stat,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_sysinfo,
    libc::SYS_time,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];
