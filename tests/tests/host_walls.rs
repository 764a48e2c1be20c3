//! Hosts that lack something, or hide it: each works, or says clearly what is missing.

use microagent_tests::{Finished, Home, User, host, user};

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// A call on a host that answers some system calls as `wall` says.
fn without<const N: usize>(home: &Home, wall: &str, words: [&str; N]) -> Finished {
    let program = home.published(std::path::Path::new(env!("CARGO_BIN_EXE_without-wall")));
    let microagent = home.program().to_str().expect("test paths are UTF-8");
    home.other(program.to_str().expect("test paths are UTF-8")).args([wall, microagent]).args(words).run()
}

#[test]
fn a_host_without_what_is_not_needed_has_whole_workspaces() {
    for missing in ["namespaces", "reflink", "vsock", "ipv6"] {
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
    let overlay = "mount -t tmpfs tmpfs /mnt; mkdir /mnt/lower /mnt/upper /mnt/work; \
                   mount -t overlay overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work";
    let devices = "mount -t tmpfs tmpfs /dev; mknod -m 666 /dev/null c 1 3";
    for (what, mounts) in [
        ("/dev/shm of 64 MiB", "mount -t tmpfs -o size=64m tmpfs /dev/shm"),
        ("no devices", devices),
        ("a state directory from which nothing can be executed", "mount -t tmpfs -o noexec,nosuid tmpfs"),
        ("a state directory on overlayfs", overlay),
    ] {
        let home = home();
        let state = home.make_dir(".microagent");
        let state = state.to_str().expect("test paths are UTF-8");
        let mounts = match mounts.ends_with("tmpfs") || mounts == overlay {
            true => format!("{mounts} {state}; chown --reference={state}/.. {state}; chmod 700 {state}"),
            false => mounts.to_owned(),
        };
        let image = home.image("busybox");
        let run = home.on_host(&mounts).args(["run", &image, "echo", what]).success();
        assert_eq!(run.guest_output(), format!("{what}\n"));
        home.nothing_is_left();
    }
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
