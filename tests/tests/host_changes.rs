//! Hosts that change for everybody while machines run. `cargo xtask kvm-trial` runs these tests in a machine of its own.

use std::fs;
use std::time::{Duration, SystemTime};

use microagent_tests::{Home, User, host, user};

const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";

/// Ask for no memory that is not there (`vm.overcommit_memory`), and half of the memory counts as there.
const NEVER: &str = "2";

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// A setting of the host, which comes back at the end of the test.
struct Changed {
    path: &'static str,
    before: String,
}

impl Changed {
    fn write(path: &'static str, value: &str) -> Changed {
        let before = fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
        fs::write(path, value).unwrap_or_else(|e| panic!("cannot write {path}: {e}"));
        Changed { path, before }
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        let _ = fs::write(self.path, &self.before);
    }
}

/// Sets the host's clock by this many seconds.
fn set_clock_by(seconds: i64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_secs();
    let then = now.checked_add_signed(seconds).expect("it is after 1970");
    host::must("date", &["--set", &format!("@{then}")]);
}

#[test]
#[ignore = "changes a setting of the host: `cargo xtask kvm-trial` runs it"]
fn a_host_that_promises_only_memory_that_it_has_runs_guests() {
    if !user::is_root() {
        return host::skip("only root can change the setting");
    }
    let _strict = Changed::write(OVERCOMMIT, NEVER);
    let home = home();
    let image = home.image("busybox");
    // Cold, with a freeze, from both kinds of template.
    for options in [&["--cold"][..], &[], &[], &[]] {
        let run = home.microagent(["run", "--network", "isolated"]).args(options);
        assert_eq!(run.args([&image, "echo", "hello"]).success().guest_output(), "hello\n");
    }
    let memory = fs::read_to_string("/proc/meminfo").expect("it can be read");
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let most_mib = total.and_then(|kib| kib.parse::<u64>().ok()).expect("it has a total") / 1024 * 3 / 4;
    let most = ["run", "--cold", "--network", "isolated", "--memory", &most_mib.to_string(), &image, "true"];
    let refused = home.microagent(most).run().code(1);
    let refused = refused.says("QEMU failed: ").says("Cannot allocate memory");
    let name = refused.failed_workspace().to_owned();
    home.microagent(["delete", &name, "--yes"]).success();
    home.nothing_is_left();
}

#[test]
#[ignore = "sets the host's clock: `cargo xtask kvm-trial` runs it"]
fn a_clock_that_is_set_back_harms_no_machine() {
    if !user::is_root() {
        return host::skip("only root can set the clock");
    }
    const HOUR: i64 = 3600;
    let home = home();
    let image = home.image("busybox");
    home.create("web", ["--ttl", "2h"]);
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "--detach", "web", "--", "sleep", "3000"]).success();
    let state = || home.microagent(["status", "web", "--json"]).success().json()["state"].clone();
    for seconds in [-HOUR, 2 * HOUR, -HOUR] {
        set_clock_by(seconds);
        assert_eq!(state(), "running", "after {seconds} s");
        let said = home.microagent(["exec", "--timeout", "60", "web", "--", "echo", "hello"]).success();
        assert_eq!(said.text(), "hello\n", "after {seconds} s");
        // Its lists and times are of the future now, or long ago.
        for words in
            [&["jobs", "web"][..], &["logs", "web"], &["events", "web"], &["stats", "web"], &["list"]]
        {
            home.call().args(words).success();
        }
        // A guest has the clock of its host, also one that was frozen before.
        let run = home.microagent(["run", "--network", "isolated", &image, "date", "+%s"]).success();
        let guest: u64 = run.guest_output().trim().parse().expect("`date` prints a number");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
        let off = now.abs_diff(Duration::from_secs(guest));
        assert!(off < Duration::from_secs(600), "{off:?} after {seconds} s");
    }
    let jobs = home.microagent(["jobs", "web", "--json"]).success().json();
    assert_eq!(jobs["jobs"][0]["state"], "running", "{jobs}");
    home.microagent(["pause", "web"]).success();
    home.microagent(["resume", "web"]).success();
    home.microagent(["halt", "web"]).success();
    home.microagent(["start", "web"]).success();
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}
