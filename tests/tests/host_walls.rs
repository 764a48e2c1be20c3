//! Hosts that lack something, or hide it: each works, or says clearly what is missing.

use std::fs;
use std::path::{Path, PathBuf};

use microagent_tests::{Finished, Home, User, host, user};

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// A call on a host that answers some system calls as `wall` says.
fn without<const N: usize>(home: &Home, wall: &str, words: [&str; N]) -> Finished {
    let program = home.published(Path::new(env!("CARGO_BIN_EXE_without-wall")));
    let microagent = home.program().to_str().expect("test paths are UTF-8");
    home.other(program.to_str().expect("test paths are UTF-8")).args([wall, microagent]).args(words).run()
}

#[test]
fn a_host_without_what_is_not_needed_has_whole_workspaces() {
    for missing in ["namespaces", "reflink", "tmpfile", "vsock", "ipv6"] {
        let home = home();
        let image = home.image("busybox");
        without(&home, missing, ["create", "web", "--image", &image, "-p", "0:80"]).code(0);
        without(&home, missing, ["start", "web"]).code(0);
        let said = without(&home, missing, ["exec", "web", "--", "echo", "hello"]).code(0);
        assert_eq!(said.text(), "hello\n", "{missing}");
        without(&home, missing, ["halt", "web"]).code(0);
        without(&home, missing, ["snapshot", "create", "web"]).code(0);
        without(&home, missing, ["clone", "web", "copy"]).code(0);
        without(&home, missing, ["delete", "web", "copy", "--yes"]).code(0);
        home.nothing_is_left();
    }
}

#[test]
fn a_file_system_without_locks_is_refused_with_what_to_do() {
    let home = home();
    let refused = without(&home, "locks", ["run", &home.image("busybox"), "true"]).code(1);
    refused.says("No locks available").says("--state-dir");
    home.nothing_is_left();
}

#[test]
fn a_policy_that_denies_what_emulation_needs_is_named_and_leaves_nothing() {
    let home = home();
    let run = ["--accel", "tcg", "run", "--cold", &home.image("busybox"), "true"];
    let refused = without(&home, "execmem", run).code(1);
    let refused = refused.says("QEMU failed: ").says("Permission denied");
    let name = refused.failed_workspace().to_owned();
    home.microagent(["delete", &name, "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_limit_of_the_size_of_files_is_an_error_and_not_a_signal() {
    let home = home();
    let program = home.program().to_str().expect("test paths are UTF-8");
    let line = r#"ulimit -f 100; exec "$@""#;
    let limited = ["-c", line, "sh", program, "run", &home.image("busybox"), "true"];
    home.other("sh").args(limited).run().code(1).says("File too large").says("ulimit -f");
    home.nothing_is_left();
}

#[test]
fn a_limit_of_open_files_is_raised_where_it_may_be_and_named_where_not() {
    let home = home();
    let program = home.program().to_str().expect("test paths are UTF-8");
    let image = home.image("busybox");
    let limited = |limit: &str, words: &[&str]| {
        let line = format!(r#"ulimit {limit}; exec "$@""#);
        home.other("sh").args(["-c", &line, "sh", program]).args(words).run()
    };
    let run = ["run", "--cold", &image, "echo", "hello"];
    assert_eq!(limited("-S -n 30", &run).code(0).guest_output(), "hello\n");
    let run = ["run", "--cold", "--name", "few", &image, "true"];
    limited("-n 40", &run).code(1).says("Too many open files").says("`ulimit -n`");
    home.microagent(["delete", "few", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_host_with_one_processor_runs_guests_with_two() {
    let home = home();
    let program = home.program().to_str().expect("test paths are UTF-8");
    let words = ["-c", "0", program, "run", &home.image("busybox"), "nproc"];
    assert_eq!(home.other("taskset").args(words).run().code(0).guest_output(), "2\n");
    home.nothing_is_left();
}

#[test]
fn mounts_of_a_host_that_are_small_or_odd_change_nothing() {
    if !user::is_root() {
        return host::skip("only root can mount");
    }
    const OVERLAY: &str = "mount -t tmpfs tmpfs /mnt; mkdir /mnt/lower /mnt/upper /mnt/work; \
                           mount -t overlay overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work";
    for (what, mounts) in [
        ("/dev/shm of 64 MiB", "mount -t tmpfs -o size=64m tmpfs /dev/shm"),
        ("no devices", "mount -t tmpfs tmpfs /dev; mknod -m 666 /dev/null c 1 3"),
        // The program itself may lie there.
        (
            "/tmp from which nothing can be executed",
            "mount --bind /tmp /tmp; mount --bind $program $program; \
                                                     mount -o remount,bind,noexec,nosuid /tmp",
        ),
        (
            "a state directory from which nothing can be executed",
            "mount -t tmpfs -o noexec,nosuid tmpfs $state",
        ),
        ("a state directory on overlayfs", &format!("{OVERLAY} $state")),
    ] {
        let home = home();
        let state = home.make_dir(".microagent");
        let [state, program] =
            [state.as_path(), home.program()].map(|path| path.to_str().expect("test paths are UTF-8"));
        let owned = "chown --reference=$state/.. $state; chmod 700 $state";
        let image = home.image("busybox");
        let mounts = format!("state={state}; program={program}; {mounts}; {owned}");
        let run = home.on_host(&mounts).args(["run", &image, "echo", what]).success();
        assert_eq!(run.guest_output(), format!("{what}\n"));
        home.nothing_is_left();
    }
}

/// A control group of this test's with 1 GiB of memory; gone when dropped.
struct SmallGroup {
    path: PathBuf,
}

impl SmallGroup {
    /// Makes one, if this host has control groups of memory.
    fn make() -> Option<SmallGroup> {
        const LIMIT: &str = "1073741824";
        let name = format!("microagent-test-{}", std::process::id());
        let [v1, v2] = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(|root| Path::new(root).join(&name));
        for (path, file) in [(v1, "memory.limit_in_bytes"), (v2, "memory.max")] {
            if fs::create_dir(&path).is_err() {
                continue;
            }
            let group = SmallGroup { path };
            if fs::write(group.path.join(file), LIMIT).is_ok() {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for SmallGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

#[test]
fn a_host_with_one_processor_and_1_gib_runs_guests() {
    if !user::is_root() {
        return host::skip("only root can make a control group");
    }
    let Some(group) = SmallGroup::make() else {
        return host::skip("this host has no control groups of memory");
    };
    let home = home();
    let enter = format!("echo $$ > {}/cgroup.procs; taskset -pc 0 $$ > /dev/null", group.path.display());
    let image = home.image("busybox");
    // Cold, with a freeze, from both kinds of template.
    for options in [&["--cold"][..], &[], &[], &[]] {
        let run = home.on_host(&enter).arg("run").args(options).args([&image, "nproc"]).success();
        assert_eq!(run.guest_output(), "2\n");
    }
    home.create("web", []);
    home.on_host(&enter).args(["start", "web"]).success();
    assert_eq!(home.microagent(["exec", "web", "--", "echo", "hello"]).success().text(), "hello\n");
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn a_host_that_hides_processes_runs_commands_and_refuses_what_nobody_could_find_again() {
    if !user::is_root() {
        return host::skip("only root can mount");
    }
    let home = home();
    let image = home.image("busybox");
    let hiding = || home.on_host("mount -t proc -o hidepid=2 proc /proc");
    assert_eq!(hiding().args(["run", &image, "echo", "hello"]).success().guest_output(), "hello\n");
    home.create("web", []);
    hiding().args(["start", "web"]).run().code(1).says("`hidepid`").says("`gid=`");
    let doctor = hiding().args(["doctor", "--json"]).success().json();
    let checks = doctor["checks"].as_array().expect("a list");
    let processes = checks.iter().find(|check| check["name"] == "processes").expect("it is checked");
    assert_eq!(processes["status"], "warning", "{processes}");
    assert_eq!(home.microagent(["status", "web", "--json"]).success().json()["state"], "prepared");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

/// The newest version of glibc whose functions the program uses, as `major.minor`.
fn needed_glibc(program: &Path) -> (u32, u32) {
    let listed =
        host::must("objdump", &["--private-headers", program.to_str().expect("test paths are UTF-8")]);
    let versions = listed.split_whitespace().filter_map(|word| word.strip_prefix("GLIBC_"));
    let versions = versions.filter_map(|version| {
        let (major, minor) = version.split_once('.')?;
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    });
    versions.max().expect("the program is linked with glibc")
}

#[test]
fn the_program_needs_no_newer_c_library_than_the_pages_say() {
    if !host::has_program("objdump") {
        return host::skip("there is no objdump (binutils)");
    }
    let needed = needed_glibc(home().program());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    for page in ["docs/reference/hosts.md", "docs/how-to/install.md"] {
        let text = fs::read_to_string(root.join(page)).expect("the page can be read");
        let (_, rest) = text.split_once("glibc ").expect("the page names a version");
        let version = rest.split([' ', ',']).next().and_then(|version| version.split_once('.'));
        let (major, minor) = version.expect("it is a version");
        let named = (major.parse().expect("a number"), minor.parse().expect("a number"));
        assert!(
            needed <= named,
            "the program needs glibc {needed:?}, {page} says {named:?}; build on Debian 12"
        );
    }
}
