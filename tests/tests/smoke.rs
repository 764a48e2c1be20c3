//! Commands that need no guest: they answer, in the documented form.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use microagent_tests::{Home, User};

#[test]
fn doctor_says_whether_runs_can_work() {
    for user in [User::Caller, User::unprivileged()] {
        let home = Home::new(user);
        let doctor = home.microagent(["doctor"]).success();
        for check in ["qemu", "accelerator", "kernel", "jail", "disk space", "state dir", "limits"] {
            assert!(
                doctor.text().contains(&format!("{check}: ")),
                "no line about {check}\n{}",
                doctor.told()
            );
        }
        let json = home.microagent(["doctor", "--json"]).success();
        assert_eq!(json.json()["ok"], true, "{}", json.told());
        let backend = json.json()["backend"].as_str().unwrap().to_owned();
        assert!(doctor.text().contains(&backend), "{}", doctor.told());
        assert!(!home.state().exists(), "doctor changes nothing");
    }
}

#[test]
fn doctor_takes_the_accelerator_that_works_and_says_why() {
    let home = Home::new(User::unprivileged());
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let hardware = cpuinfo.split_whitespace().any(|word| word == "vmx" || word == "svm");
    let doctor = home.microagent(["doctor", "--json", "--accel", "auto"]).success().json();
    let checks = doctor["checks"].as_array().unwrap();
    let accelerator = checks.iter().find(|check| check["name"] == "accelerator").unwrap();
    let detail = accelerator["detail"].as_str().unwrap();
    if hardware {
        assert!(detail.contains("vmx") || detail.contains("svm") || detail.contains("/dev/kvm"), "{detail}");
    } else {
        assert_eq!(doctor["backend"], "linux-tcg");
        assert!(detail.contains("vmx"), "{detail}");
    }
}

#[test]
fn version_profiles_and_kernel_answer() {
    let home = Home::new(User::Caller);
    let version = home.microagent(["version"]).success();
    assert_eq!(version.text(), format!("microagent {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(home.microagent(["--version"]).success().text(), version.text());
    let profiles = home.microagent(["profiles"]).success();
    for row in [
        "tiny     256 MiB    1     512 MiB",
        "small    512 MiB    2     1024 MiB",
        "large    4096 MiB   4     16384 MiB",
    ] {
        assert!(profiles.text().contains(row), "{}", profiles.told());
    }
    let kernel = home.microagent(["kernel", "verify", "--json"]).success().json();
    assert_eq!(kernel["ok"], true);
    assert_eq!(kernel["sha256"].as_str().unwrap().len(), 64);
    assert!(kernel["version"].as_str().unwrap().starts_with("6."));
}

#[test]
fn completions_and_man_pages_come_out() {
    let home = Home::new(User::Caller);
    for shell in ["bash", "zsh", "fish"] {
        let script = home.microagent(["completions", shell]).success();
        assert!(script.text().contains("microagent"), "{}", script.told());
    }
    let script = home.write("complete.bash", home.microagent(["completions", "bash"]).success().stdout);
    home.other("bash").arg("-n").arg(script).success();
    home.microagent(["man", "--dir", "./man"]).success();
    let pages: Vec<_> =
        std::fs::read_dir(home.path().join("man")).unwrap().map(|page| page.unwrap().file_name()).collect();
    for page in ["microagent.1", "microagent-run.1", "microagent-list.1"] {
        assert!(pages.iter().any(|name| name == page), "{pages:?}");
    }
}

#[test]
fn help_is_help_and_nonsense_is_refused_with_a_hint() {
    let home = Home::new(User::Caller);
    let help = home.microagent(["run", "--help"]).success();
    assert!(help.text().contains("Examples:"), "{}", help.told());
    home.microagent(["run", "--nonsense"]).run().code(2).says("--nonsense").says("Hint:");
    home.microagent(["frobnicate"]).run().code(2).says("frobnicate").says("Hint:");
    home.microagent(["run"]).run().code(2).says("no image was given");
    let json = home.microagent(["run", "--json", "--profile", "huge", "busybox"]).run().code(2);
    assert_eq!(json.json_error()["kind"], "invalid", "{}", json.told());
}

#[test]
fn dockers_flags_that_do_not_map_are_refused_with_the_way_that_works() {
    let home = Home::new(User::Caller);
    for flag in
        ["--privileged", "--device=/dev/kvm", "--cap-add=ALL", "--pid=host", "--ipc=host", "--gpus=all"]
    {
        let run = home.microagent(["run", flag, "busybox"]).run().code(2);
        run.says(flag.split('=').next().unwrap()).says("is not possible here").says("Hint:");
    }
    let run = home.microagent(["run", "-v", "/srv:/srv", "busybox"]).run().code(2);
    run.says("a directory of the host is never shared").says("Hint:");
    assert!(!home.state().exists(), "a refused command touches nothing");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let home = Home::new(User::Caller);
    let program = home.program().to_str().unwrap().to_owned();
    let line = "\"$0\" run --help | true; echo ${PIPESTATUS[0]}";
    assert_eq!(home.other("bash").args(["-c", line, &program]).success().text(), "0\n");
}
