//! What lies in the state directory is what is expected there, and what is written there can be read again.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use microagent_tests::{Home, User, host};

fn home() -> Home {
    Home::new(User::Caller)
}

#[test]
fn a_setup_script_of_the_largest_size_is_stored_and_run() {
    let home = home();
    let mut script = "echo ran > /ran\n".to_owned();
    script.push_str(&"#\"\\\n".repeat((1024 * 1024 - script.len()) / 4));
    home.write("setup.sh", &script);
    home.create("web", ["--setup-file", "setup.sh"]);
    assert_eq!(home.state_of("web"), "prepared");
    home.microagent(["start", "web"]).success();
    assert_eq!(home.microagent(["exec", "web", "--", "cat", "/ran"]).success().text(), "ran\n");
    home.microagent(["kill", "web"]).success();

    script.push_str(&"#".repeat(8));
    home.write("setup.sh", &script);
    let refused = home
        .microagent(["create", "other", "--image", &home.image("busybox"), "--setup-file", "setup.sh"])
        .failure();
    refused.says("1 MiB");
    assert_eq!(home.workspaces(), ["web"]);
}

#[test]
fn what_no_message_can_carry_is_refused_before_a_boot() {
    let home = home();
    let names: Vec<String> = (0..7).map(|number| format!("env{number}")).collect();
    for name in &names {
        home.write(name, format!("{name}={}\n", "x".repeat(1000 * 1000)));
    }
    let files: Vec<_> = names.iter().flat_map(|name| ["--env-file", name.as_str()]).collect();
    let run = home
        .call()
        .arg("run")
        .args(&files)
        .args(["--network", "isolated", &home.image("busybox"), "true"])
        .run();
    run.code(2).says("arguments and environment are larger than 6 MiB");
    let create =
        home.call().args(["create", "web", "--image", &home.image("busybox"), "--service-command", "true"]);
    create.args(&files).run().code(2).says("arguments and environment are larger than 6 MiB");
    home.nothing_is_left();
    assert!(!home.state().join("workspaces/web").exists());
}

#[test]
fn nothing_but_a_regular_file_is_written_or_waited_for() {
    let home = home();
    home.create("web", []);
    let decoy = home.write("decoy", "precious");
    let logs = ["console.log", "vmm.log", "supervisor.log", "output", "egress.jsonl"];
    for log in logs {
        let path = home.workspace("web").join(log);
        for is_fifo in [true, false] {
            let _ = fs::remove_file(&path);
            if is_fifo {
                host::must("mkfifo", &[path.to_str().unwrap()]);
            } else {
                symlink(&decoy, &path).unwrap();
            }
            let started = home.microagent(["start", "web"]).run();
            if !started.status.success() {
                assert!(started.told().contains("not a regular file"), "{log}: {}", started.told());
            }
            home.microagent(["logs", "web"]).run();
            home.microagent(["kill", "web"]).run();
            assert_eq!(fs::read_to_string(&decoy).unwrap(), "precious", "{log}");
        }
        fs::remove_file(&path).unwrap();
    }
    home.microagent(["start", "web"]).success();
    assert_eq!(home.microagent(["exec", "web", "--", "echo", "fine"]).success().text(), "fine\n");
    home.microagent(["kill", "web"]).success();
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_machine_ends_when_its_directory_is_removed() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    assert!(!home.processes().is_empty());
    home.remove_dir(&home.workspace("web"));
    home.processes_end();
    home.nothing_is_left();

    home.create("web", []);
    home.microagent(["start", "web"]).success();
    home.remove_dir(&home.state());
    home.processes_end();
}

#[test]
fn delete_ends_what_outlived_its_supervisor_and_doctor_shows_it() {
    let home = home();
    home.create("web", []);
    // Stands for a QEMU that ignores the death of its supervisor.
    let mut orphan = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", orphan.id())).unwrap();
    let start_time: u64 =
        stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let path = home.workspace("web").join("workspace.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["state"] = "running".into();
    record["vmm"] = serde_json::json!({
        "pid": orphan.id(), "start_time": start_time, "boot_id": boot_id.trim(),
    });
    fs::write(&path, record.to_string()).unwrap();
    assert_eq!(home.state_of("web"), "failed");
    let doctor = home.microagent(["doctor"]).success();
    let stray = format!("QEMU of `web` (process {}) has outlived its supervisor", orphan.id());
    assert!(doctor.text().contains(&stray), "{}", doctor.told());
    home.microagent(["delete", "web", "--yes"]).success();
    let killed = orphan.wait().unwrap();
    assert!(!killed.success(), "{killed}");
    home.nothing_is_left();
}

#[test]
fn a_damaged_base_disk_or_kernel_is_noticed_before_a_guest_uses_it() {
    let home = home();
    home.create("web", []);
    let base = fs::read_dir(home.state().join("images/disks")).unwrap().flatten().map(|entry| entry.path());
    let base = base.into_iter().find(|path| path.extension().is_some_and(|end| end == "ext4")).unwrap();
    let whole = fs::read(&base).unwrap();
    let mut zeroed = whole.clone();
    zeroed[1024..2048].fill(0);
    for damaged in [&whole[..whole.len() / 2], &zeroed] {
        fs::remove_file(&base).unwrap();
        fs::write(&base, damaged).unwrap();
        home.microagent(["start", "web"]).failure().says("the base disk is damaged");
    }
    // The next use of the image makes it anew, with the same bytes.
    home.run("busybox", ["--network", "isolated"], &["true"]).success();
    assert!(fs::read(&base).unwrap() == whole);
    for file in ["vmlinux", "initramfs.cpio"] {
        let guest = fs::read_dir(home.state().join("guest")).unwrap().flatten().next().unwrap().path();
        let len = fs::metadata(guest.join(file)).unwrap().len();
        fs::remove_file(guest.join(file)).unwrap();
        fs::write(guest.join(file), vec![0; usize::try_from(len).unwrap()]).unwrap();
        home.run("busybox", ["--network", "isolated"], &["true"]).success();
    }
    home.microagent(["start", "web"]).success();
    home.microagent(["kill", "web"]).success();
}
