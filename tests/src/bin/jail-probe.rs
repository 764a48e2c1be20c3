//! Stands in QEMU's place and tries what code would try that has escaped into QEMU's process.
//!
//! It executes behind the jail that the product made, without QEMU's own filter. Each attempt becomes one line on
//! standard error, `PROBE name result`, where the result is `reached` or the error. What it aims at is described in a
//! file that a jailed QEMU may read: `share/qemu/targets.json` beside its directory.

#![allow(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what it prints is its result")]

use std::ffi::{CString, c_int, c_long, c_void};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use libc::sockaddr_un;

/// What there is to be reached, made by the test.
struct Targets {
    value: serde_json::Value,
}

impl Targets {
    fn load() -> Option<Targets> {
        let program = fs::read_link("/proc/self/exe").ok()?;
        let path = program.parent()?.parent()?.join("share/qemu/targets.json");
        Some(Targets { value: serde_json::from_slice(&fs::read(path).ok()?).ok()? })
    }

    fn text(&self, name: &str) -> String {
        self.value[name].as_str().unwrap_or("/nonexistent").to_owned()
    }

    fn number(&self, name: &str) -> u64 {
        self.value[name].as_u64().unwrap_or_default()
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == "--version") {
        println!("QEMU emulator version 0 (a probe)");
        return;
    }
    if args.windows(2).any(|pair| pair == ["-machine", "none"]) {
        // It cannot be asked what it can do.
        std::process::exit(1);
    }
    let Some(targets) = Targets::load() else {
        eprintln!("PROBE targets unreadable");
        std::process::exit(1);
    };
    report("status", Ok(()));
    for line in fs::read_to_string("/proc/self/status").unwrap_or_default().lines() {
        if [
            "Uid:",
            "Gid:",
            "Groups:",
            "CapInh:",
            "CapPrm:",
            "CapEff:",
            "CapBnd:",
            "CapAmb:",
            "NoNewPrivs:",
            "Seccomp:",
        ]
        .iter()
        .any(|name| line.starts_with(name))
        {
            eprintln!("STATUS {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    files(&targets, &args);
    sockets(&targets);
    processes();
    kernel();
    executions(&targets);
    if targets.value["every_call"] == true {
        every_call();
    }
    eprintln!("PROBE end reached");
    std::process::exit(1);
}

fn report(name: &str, result: io::Result<()>) {
    match result {
        Ok(()) => eprintln!("PROBE {name} reached"),
        Err(error) => match error.raw_os_error() {
            Some(number) => eprintln!("PROBE {name} {}", errno_name(number)),
            None => eprintln!("PROBE {name} {error}"),
        },
    }
}

fn errno_name(number: i32) -> String {
    match number {
        libc::EPERM => "EPERM".to_owned(),
        libc::EACCES => "EACCES".to_owned(),
        libc::ENOSYS => "ENOSYS".to_owned(),
        libc::EBADF => "EBADF".to_owned(),
        libc::ENOENT => "ENOENT".to_owned(),
        number => format!("errno-{number}"),
    }
}

/// A system call by its number; an error is the kernel's.
fn call(number: c_long, arguments: [c_long; 6]) -> io::Result<c_long> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: each caller passes numbers, addresses of what lives until the call is over, or addresses that cannot be
    // read and written, for which the kernel gives EFAULT. What succeeds harms this process alone.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn probe(name: &str, number: c_long, arguments: [c_long; 6]) {
    report(name, call(number, arguments).map(drop));
}

fn address<T>(value: &T) -> c_long {
    std::ptr::from_ref(value) as c_long
}

fn files(targets: &Targets, args: &[String]) {
    let read = |path: &str| File::open(path).and_then(|file| io::copy(&mut &file, &mut io::sink())).map(drop);
    for name in ["key_of_the_user", "control_key", "record", "other_disk", "home_file"] {
        report(&format!("read_{name}"), read(&targets.text(name)));
    }
    report("list_home", fs::read_dir(targets.text("home")).map(drop));
    report("list_state", fs::read_dir(targets.text("state")).map(drop));
    report("read_etc_passwd", read("/etc/passwd"));
    report("read_init_command_line", read("/proc/1/cmdline"));
    let parent = std::os::unix::process::parent_id();
    report("read_supervisor_environment", read(&format!("/proc/{parent}/environ")));
    report("list_processes", fs::read_dir("/proc").map(drop));
    report("make_file_in_tmp", File::create("/tmp/microagent-jail-probe").map(drop));
    report("make_file_in_home", File::create(format!("{}/made", targets.text("home"))).map(drop));
    let own = fs::read_link("/proc/self/exe").unwrap_or_default();
    let both = |path: &Path| OpenOptions::new().read(true).write(true).open(path).map(drop);
    report("write_own_program", both(&own));
    report("write_home_file", both(Path::new(&targets.text("home_file"))));
    // Access mode 3 needs no right to the file.
    for (name, access) in
        [("empty_home_file", libc::O_RDONLY), ("empty_home_file_without_right", libc::O_ACCMODE)]
    {
        let path = CString::new(targets.text("home_file")).expect("a path has no zero byte");
        let flags = c_long::from(access | libc::O_TRUNC);
        probe(name, libc::SYS_openat, [libc::AT_FDCWD.into(), path.as_ptr() as c_long, flags, 0, 0, 0]);
        probe(&format!("{name}_by_open"), libc::SYS_open, [path.as_ptr() as c_long, flags, 0, 0, 0, 0]);
    }
    // The overlay is descriptor N of `-add-fd fd=N,set=0`: it can be used, and not be opened anew.
    let overlay = args.iter().find_map(|arg| arg.strip_prefix("fd=")?.strip_suffix(",set=0"));
    let again = format!("/proc/self/fd/{}", overlay.unwrap_or("-1"));
    report("open_overlay_anew", both(Path::new(&again)));
    let own: c_long = overlay.and_then(|number| number.parse().ok()).unwrap_or(-1);
    let huge: c_long = 8 << 40;
    probe("grow_own_disk", libc::SYS_ftruncate, [own, huge, 0, 0, 0, 0]);
    probe("fill_the_host_s_disk", libc::SYS_fallocate, [own, 0, 0, huge, 0, 0]);
    probe("write_beyond_own_disk", libc::SYS_pwrite64, [own, address(b"x"), 1, huge, 0, 0]);
    let access = c_long::from(libc::PROT_READ | libc::PROT_WRITE);
    let private = c_long::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    probe("memory_of_the_host", libc::SYS_mmap, [0, 8 << 30, access, private, -1, 0]);
    let left = (0..4096).any(|number: c_int| {
        let mut found = std::mem::MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: the kernel writes a stat of this size to the place, which was zeroed.
        let found = unsafe { (libc::fstat(number, found.as_mut_ptr()) == 0).then(|| found.assume_init()) };
        found.is_some_and(|found| found.st_ino == targets.number("left_open"))
    });
    let gone = io::Error::from_raw_os_error(libc::EBADF);
    report("descriptor_of_the_caller", if left { Ok(()) } else { Err(gone) });
}

/// Connects a socket of any family to an address; the result is that of the first step that fails.
fn connect<T>(family: c_int, kind: c_int, protocol: c_int, to: &T, len: usize) -> io::Result<c_int> {
    let socket = call(libc::SYS_socket, [family.into(), kind.into(), protocol.into(), 0, 0, 0])?;
    call(libc::SYS_connect, [socket, address(to), len as c_long, 0, 0, 0])?;
    Ok(socket as c_int)
}

fn unix_address(name: &[u8]) -> (sockaddr_un, usize) {
    // SAFETY: a socket address of zeros is a valid one.
    let mut to: sockaddr_un = unsafe { std::mem::zeroed() };
    to.sun_family = libc::AF_UNIX as u16;
    for (place, byte) in to.sun_path.iter_mut().zip(name) {
        *place = *byte as libc::c_char;
    }
    (
        to,
        std::mem::size_of::<libc::sa_family_t>()
            + name.len().min(107)
            + usize::from(name.first() != Some(&0)),
    )
}

fn inet_address(port: u64) -> libc::sockaddr_in {
    // SAFETY: a socket address of zeros is a valid one.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    to.sin_family = libc::AF_INET as u16;
    to.sin_port = (port as u16).to_be();
    to.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    to
}

fn sockets(targets: &Targets) {
    let stream = libc::SOCK_STREAM;
    for name in ["bus", "control_socket"] {
        let (to, len) = unix_address(targets.text(name).as_bytes());
        report(&format!("connect_{name}"), connect(libc::AF_UNIX, stream, 0, &to, len).map(drop));
    }
    let (to, len) = unix_address(format!("\0{}", targets.text("abstract")).as_bytes());
    report("connect_abstract", connect(libc::AF_UNIX, stream, 0, &to, len).map(drop));
    let tcp = inet_address(targets.number("tcp_port"));
    let udp = inet_address(targets.number("udp_port"));
    let len = std::mem::size_of::<libc::sockaddr_in>();
    report("connect_tcp", connect(libc::AF_INET, stream, 0, &tcp, len).map(drop));
    report("connect_mptcp", connect(libc::AF_INET, stream, 262, &tcp, len).map(drop));
    let socket = |family: c_int, kind: c_int, protocol: c_int| {
        call(libc::SYS_socket, [family.into(), kind.into(), protocol.into(), 0, 0, 0])
    };
    let send = |socket: c_long, flags: c_int, to: &libc::sockaddr_in| {
        call(libc::SYS_sendto, [socket, address(b"x"), 1, flags.into(), address(to), len as c_long])
    };
    let fast_open = socket(libc::AF_INET, stream, 0).and_then(|fd| send(fd, libc::MSG_FASTOPEN, &tcp));
    report("tcp_fast_open", fast_open.map(drop));
    let datagram = socket(libc::AF_INET, libc::SOCK_DGRAM, 0).and_then(|fd| send(fd, 0, &udp));
    report("send_udp", datagram.map(drop));
    let listening =
        socket(libc::AF_INET, stream, 0).and_then(|fd| call(libc::SYS_listen, [fd, 1, 0, 0, 0, 0]));
    report("listen_tcp", listening.map(drop));
    let families = [
        ("socket_inet6", libc::AF_INET6, stream),
        ("socket_netlink", libc::AF_NETLINK, libc::SOCK_RAW),
        ("socket_vsock", libc::AF_VSOCK, stream),
        ("socket_packet", libc::AF_PACKET, libc::SOCK_RAW),
        ("socket_icmp", libc::AF_INET, libc::SOCK_RAW),
        ("socket_alg", libc::AF_ALG, libc::SOCK_SEQPACKET),
    ];
    for (name, family, kind) in families {
        let protocol = if name == "socket_icmp" { libc::IPPROTO_ICMP } else { 0 };
        report(name, socket(family, kind, protocol).map(drop));
    }
    let pair = [0_i32; 2];
    probe("socketpair", libc::SYS_socketpair, [libc::AF_UNIX.into(), stream.into(), 0, address(&pair), 0, 0]);
}

fn processes() {
    let parent = c_long::from(std::os::unix::process::parent_id());
    probe("signal_supervisor", libc::SYS_kill, [parent, 0, 0, 0, 0, 0]);
    probe("signal_thread_of_supervisor", libc::SYS_tgkill, [parent, parent, 0, 0, 0, 0]);
    probe("signal_everybody", libc::SYS_kill, [-1, 0, 0, 0, 0, 0]);
    probe("queue_signal", libc::SYS_rt_sigqueueinfo, [parent, 0, -1, 0, 0, 0]);
    probe("trace_supervisor", libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), parent, 0, 0, 0, 0]);
    let word = [0_u8; 8];
    let ours = libc::iovec { iov_base: word.as_ptr() as *mut c_void, iov_len: 8 };
    let theirs = libc::iovec { iov_base: word.as_ptr() as *mut c_void, iov_len: 8 };
    let vectors = [parent, address(&ours), 1, address(&theirs), 1, 0];
    probe("read_memory_of_supervisor", libc::SYS_process_vm_readv, vectors);
    probe("write_memory_of_supervisor", libc::SYS_process_vm_writev, vectors);
    probe("open_process", libc::SYS_pidfd_open, [parent, 0, 0, 0, 0, 0]);
    probe("owner_of_signals", libc::SYS_fcntl, [0, libc::F_SETOWN.into(), parent, 0, 0, 0]);
    probe("outlive_supervisor", libc::SYS_prctl, [libc::PR_SET_PDEATHSIG.into(), 0, 0, 0, 0, 0]);
    probe("become_root", libc::SYS_setresuid, [0, 0, 0, 0, 0, 0]);
    probe(
        "other_limits",
        libc::SYS_prlimit64,
        [parent, libc::RLIMIT_NOFILE.into(), 0, address(&[0_u64; 2]), 0, 0],
    );
}

fn kernel() {
    let zeros = [0_u64; 32];
    let zero = address(&zeros);
    probe("io_uring", libc::SYS_io_uring_setup, [1, zero, 0, 0, 0, 0]);
    probe("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0]);
    let user = c"user";
    let keyring = -4_i64; // KEY_SPEC_USER_KEYRING
    probe(
        "add_key",
        libc::SYS_add_key,
        [user.as_ptr() as c_long, user.as_ptr() as c_long, zero, 1, keyring, 0],
    );
    probe("keyring", libc::SYS_keyctl, [0, keyring, 0, 0, 0, 0]);
    probe("bpf", libc::SYS_bpf, [0, zero, 48, 0, 0, 0]);
    let event = [1_u64 | 112 << 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // a software clock
    probe("perf_event_open", libc::SYS_perf_event_open, [address(&event), 0, -1, -1, 0, 0]);
    probe("shared_memory", libc::SYS_shmget, [0, 4096, 0o1600, 0, 0, 0]);
    probe("message_queue", libc::SYS_msgget, [0, 0o1600, 0, 0, 0, 0]);
    probe("semaphores", libc::SYS_semget, [0, 1, 0o1600, 0, 0, 0]);
    let queue = c"microagent-jail-probe";
    let open = c_long::from(libc::O_CREAT | libc::O_RDWR);
    probe("posix_queue", libc::SYS_mq_open, [queue.as_ptr() as c_long, open, 0o600, 0, 0, 0]);
    let root = c"/";
    let root = root.as_ptr() as c_long;
    let current = c_long::from(libc::AT_FDCWD);
    probe(
        "name_to_handle",
        libc::SYS_name_to_handle_at,
        [current, root, address(&[8_u32; 64]), address(&[0_u32; 2]), 0, 0],
    );
    probe("open_by_handle", libc::SYS_open_by_handle_at, [current, zero, 0, 0, 0, 0]);
    probe("fanotify", libc::SYS_fanotify_init, [0, 0, 0, 0, 0, 0]);
    probe("inotify", libc::SYS_inotify_init1, [0, 0, 0, 0, 0, 0]);
    probe("set_clock", libc::SYS_clock_settime, [0, -1, 0, 0, 0, 0]);
    probe("user_namespace", libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0, 0]);
    probe("join_namespace", libc::SYS_setns, [-1, 0, 0, 0, 0, 0]);
    probe("mount", libc::SYS_mount, [-1, -1, -1, 0, 0, 0]);
    probe("file_system_context", libc::SYS_fsopen, [c"tmpfs".as_ptr() as c_long, 0, 0, 0, 0, 0]);
    probe("open_tree", libc::SYS_open_tree, [current, root, 1, 0, 0, 0]);
    probe("chroot", libc::SYS_chroot, [root, 0, 0, 0, 0, 0]);
    probe("memory_file", libc::SYS_memfd_create, [user.as_ptr() as c_long, 0, 0, 0, 0, 0]);
    probe("secret_memory", libc::SYS_memfd_secret, [0, 0, 0, 0, 0, 0]);
    probe("personality", libc::SYS_personality, [0x0004_0000, 0, 0, 0, 0, 0]);
    probe("host_name", libc::SYS_sethostname, [-1, 1, 0, 0, 0, 0]);
    probe("type_at_terminal", libc::SYS_ioctl, [0, 0x5412, address(b"x"), 0, 0, 0]); // TIOCSTI
    let program = [0_u64, 0];
    let attach = [0, libc::SOL_SOCKET.into(), libc::SO_ATTACH_FILTER.into(), address(&program), 16, 0];
    probe("filter_of_a_socket", libc::SYS_setsockopt, attach);
}

/// Ways to another program. A child that came about ends at once.
fn executions(targets: &Targets) {
    let own = fs::read_link("/proc/self/exe").unwrap_or_default();
    let text =
        |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).expect("a path has no zero byte");
    let no_strings = [0_usize; 1];
    let none = address(&no_strings);
    for (name, path) in
        [("execute_true", PathBuf::from("/bin/true")), ("execute_disk", targets.text("other_disk").into())]
    {
        let path = text(&path);
        probe(name, libc::SYS_execve, [path.as_ptr() as c_long, -1, none, 0, 0, 0]);
    }
    // The number that the jail lets be executed: everything is opened, to get it back.
    let mut highest = -1;
    while let Ok(number) = call(
        libc::SYS_openat,
        [libc::AT_FDCWD.into(), text(&own).as_ptr() as c_long, libc::O_PATH.into(), 0, 0, 0],
    ) {
        highest = number;
    }
    // Descriptors in flight are limited for all processes of a user together, to 1024 with usual settings.
    let many = io::Error::from_raw_os_error(libc::EMFILE);
    report("many_descriptors", if highest >= 512 { Ok(()) } else { Err(many) });
    let empty = c"";
    let at = libc::AT_EMPTY_PATH.into();
    // Arguments that cannot be read: a program that may be executed gives EFAULT and nothing happens.
    for (name, number) in
        [("execute_highest_descriptor", highest), ("execute_the_armed_descriptor", highest + 1)]
    {
        let path = empty.as_ptr() as c_long;
        report(
            name,
            match call(libc::SYS_execveat, [number, path, -1, none, at, 0]) {
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
                other => other.map(drop),
            },
        );
    }
    // The filter allows the number and cannot read the path, for which the kernel does not look at the number.
    let other = c"/bin/true".as_ptr() as c_long;
    report(
        "execute_true_by_the_armed_descriptor",
        match call(libc::SYS_execveat, [highest + 1, other, -1, none, at, 0]) {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
            result => result.map(drop),
        },
    );
    let duplicated = call(libc::SYS_dup3, [highest, highest + 1, 0, 0, 0, 0]);
    report("dup_to_the_armed_descriptor", duplicated.map(drop));
    let raised = [u64::from(u32::MAX); 2];
    probe("raise_own_limit", libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE.into(), address(&raised), 0, 0, 0]);
    for number in 3..=highest {
        if number > 64 {
            let _ = call(libc::SYS_close, [number, 0, 0, 0, 0, 0]);
        }
    }
    child("fork", libc::SYS_fork, [0; 6]);
    child("clone_process", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0, 0]);
    child(
        "clone_namespace",
        libc::SYS_clone,
        [c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, 0, 0, 0, 0],
    );
    probe("clone3", libc::SYS_clone3, [-1, 88, 0, 0, 0, 0]);
}

fn child(name: &str, number: c_long, arguments: [c_long; 6]) {
    match call(number, arguments) {
        // SAFETY: the child ends at once, without anything of the parent's.
        Ok(0) => unsafe { libc::_exit(0) },
        result => report(name, result.map(drop)),
    }
}

/// Highest number of a system call that is tried; Linux 7 has fewer than 480.
const LAST_CALL: c_long = 600;

/// Bit of the numbers of the x32 convention.
const X32: c_long = 0x4000_0000;

/// Makes every call there is, with arguments that cannot work, and tells which ones the kernel looked at. Left out are
/// those that end this process or its waits, which are allowed and are known to be.
fn every_call() {
    let left_out = [
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_pause,
        // `uretprobe` and `uprobe`, which the kernel lets pass whatever filters say, and answers with SIGILL.
        335,
        336,
    ];
    let looked_at = |number: c_long| match call(number, [-1; 6]) {
        Err(error) => !matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)),
        Ok(_) => true,
    };
    let numbers: Vec<_> = (0..=LAST_CALL).filter(|number| !left_out.contains(number)).collect();
    let allowed: Vec<_> =
        numbers.iter().filter(|number| looked_at(**number)).map(|number| number.to_string()).collect();
    eprintln!("CALLS {}", allowed.join(" "));
    let x32 = numbers.iter().map(|number| number | X32).filter(|number| looked_at(*number)).count();
    eprintln!("X32 {x32}");
}
