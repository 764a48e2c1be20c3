//! The library's examples on real guests, and programs whose supervisor is not there.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;

use microagent_tests::{Home, Invocation, User};

/// An example of the library, which is its own supervisor.
#[track_caller]
fn example<'a>(home: &'a Home, name: &str) -> Invocation<'a> {
    let path = home.program().with_file_name("examples").join(name);
    assert!(path.is_file(), "build it: cargo build -p microagent --examples");
    home.other(path.to_str().unwrap()).arg(home.state())
}

#[test]
fn one_command_is_run_by_a_program_of_its_own() {
    let home = Home::new(User::unprivileged());
    let run = example(&home, "run").args([&home.image("busybox"), "sh", "-c", "echo out; exit 3"]).run();
    assert_eq!(run.code(3).text(), "out\n");
    home.nothing_is_left();
}

#[test]
fn a_workspace_is_created_used_copied_from_and_committed() {
    let home = Home::new(User::unprivileged());
    let used = example(&home, "workspace").arg(home.image("busybox")).success();
    for line in
        ["made once", "counted: 5", "copied out: ./made", "committed: example-image:latest", "deleted: true"]
    {
        assert!(used.text().contains(line), "`{line}` is missing\n{}", used.told());
    }
    assert_eq!(fs::read_to_string(home.path().join("made")).unwrap(), "made once\n");
    home.nothing_is_left();
}

#[test]
fn many_runs_at_once_end_or_are_cancelled_and_leave_nothing() {
    let home = Home::new(User::unprivileged());
    let many = example(&home, "many").args([&home.image("busybox"), "8", "true"]).success();
    let last = many.text().lines().last().unwrap_or_default();
    let numbers: Vec<u32> =
        last.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    assert_eq!((numbers[0] + numbers[1], numbers[2]), (20, 0), "{}", many.told());
    home.nothing_is_left();
    // The time is up while they run.
    let many = example(&home, "many").args([&home.image("busybox"), "1", "sleep", "1000"]).success();
    assert!(many.text().ends_with("exited: 0, cancelled: 20, left: 0\n"), "{}", many.told());
    home.nothing_is_left();
}

#[test]
fn errors_have_the_class_that_their_cause_has() {
    let home = Home::new(User::unprivileged());
    let made = example(&home, "errors").arg(home.image("busybox")).success();
    let wanted = [
        "/bin/true: Host",
        "/bin/false: Host",
        "/no/such/program: Host",
        "image of the cache: NotFound",
        "run without time: Invalid",
        "left: 0",
        "events: booting booted setup command",
        "command at rest: WrongState",
        "command without time: Invalid",
        "job without time: Invalid",
        "no tar stream: GuestRefused",
        "tar to nowhere: NotFound",
        "tar to a file: Invalid",
        "time limit: 124 None true",
        "deleted: Deletion { deleted: true, ended: true }",
    ];
    assert_eq!(made.text().lines().collect::<Vec<_>>(), wanted, "{}", made.told());
    let made = made.says("`/bin/true` did not start as a supervisor of this build of microagent");
    made.says("cannot start supervisor `/no/such/program`").says("no image `no/such/image` in the cache");
    home.nothing_is_left();
}

#[test]
fn a_supervisor_that_is_not_there_leaves_nothing() {
    let home = Home::new(User::unprivileged());
    let image = home.image("busybox");
    fs::copy(home.program(), home.path().join("gone")).unwrap();
    for words in [
        format!("run --name once --network isolated {image} true"),
        format!("run --keep --name kept --network isolated {image} true"),
        format!("create made --network isolated --image {image} --setup true"),
    ] {
        // The program runs on after its file is gone, but it cannot start itself as a supervisor.
        let line = format!("cp gone here; exec 5< ./here; rm ./here; exec /proc/self/fd/5 {words}");
        home.other("bash").args(["-c", &line]).run().failure().says("cannot start supervisor");
        home.nothing_is_left();
    }
}
