//! What lies in the state directory is what is expected there, and what is written there can be read again.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::time::Duration;

use microagent_tests::{Home, User, host, wait_for};

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
        let path = home.workspace("web").join("machine").join(log);
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

/// A process as records name it.
fn recorded(pid: u32) -> serde_json::Value {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start_time: u64 =
        stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    serde_json::json!({ "pid": pid, "start_time": start_time, "boot_id": boot_id.trim() })
}

/// Changes the recorded state of a workspace.
fn change_record(home: &Home, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let path = home.workspace(name).join("machine/state.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    fs::write(&path, record.to_string()).unwrap();
}

#[test]
fn delete_ends_what_outlived_its_supervisor_and_doctor_shows_it() {
    let home = home();
    home.create("web", []);
    // Stands for a QEMU that ignores the death of its supervisor: the session and the name are QEMU's.
    home.write("leader", "sh -c 'read line' qemu -name microagent 0<&3 >/dev/null & echo $!; echo $$");
    let (read, _held_open) = std::io::pipe().unwrap();
    let mut leader = Command::new("setsid");
    leader.args(["sh", "-c", "exec 3<&0; . ./leader"]).current_dir(home.path());
    let told = leader.stdin(read).stderr(Stdio::null()).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let pids: Vec<u32> = told.lines().map(|line| line.parse().unwrap()).collect();
    let [orphan, supervisor] = pids[..] else { panic!("{told}") };
    change_record(&home, "web", |record| {
        record["state"] = "running".into();
        record["vmm"] = recorded(orphan);
        record["supervisor"] = serde_json::json!({ "pid": supervisor, "start_time": 1, "boot_id": "" });
    });
    assert_eq!(home.state_of("web"), "failed");
    let doctor = home.microagent(["doctor"]).success();
    let stray = format!("QEMU of `web` (process {orphan}) has outlived its supervisor");
    assert!(doctor.text().contains(&stray), "{}", doctor.told());
    home.microagent(["delete", "web", "--yes"]).success();
    wait_for("the orphan to end", Duration::from_secs(60), || {
        let stat = fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { Err(stat) }
    });
    home.nothing_is_left();
}

#[test]
fn a_record_that_names_other_processes_ends_none_of_them() {
    let home = home();
    home.create("web", ["--volume", "data:/data"]);
    let mut stranger = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    home.create("other", []);
    home.microagent(["start", "other"]).success();
    let other = home.microagent(["status", "other", "--json"]).success().json();
    let pid = |key: &str| u32::try_from(other[key].as_u64().unwrap()).unwrap();
    let machine = [recorded(pid("supervisor_pid")), recorded(pid("vmm_pid"))];
    let me = recorded(std::process::id());
    let stranger_id = recorded(stranger.id());
    let named = [
        [stranger_id.clone(), stranger_id.clone()],
        // The leader of its session, as a supervisor is.
        [me, stranger_id],
        machine,
    ];
    let holder = home.state().join("volumes/data/holder.json");
    for [supervisor, vmm] in named {
        let name = |record: &mut serde_json::Value| {
            record["state"] = "running".into();
            record["supervisor"] = supervisor.clone();
            record["vmm"] = vmm.clone();
        };
        for workspace in ["web", "other"] {
            let held = serde_json::json!({ "workspace": workspace, "supervisor": supervisor, "vmm": vmm });
            fs::write(&holder, held.to_string()).unwrap();
            change_record(&home, "web", name);
            assert_eq!(home.state_of("web"), "failed");
            home.microagent(["kill", "web"]).success();
            change_record(&home, "web", name);
            home.microagent(["start", "web"]).success();
            home.microagent(["kill", "web"]).success();
        }
        change_record(&home, "web", name);
        fs::write(
            &holder,
            serde_json::json!({ "workspace": "other", "supervisor": supervisor, "vmm": vmm }).to_string(),
        )
        .unwrap();
        home.microagent(["volume", "delete", "data", "--force"]).success();
        home.microagent(["doctor"]).success();
        assert!(stranger.try_wait().unwrap().is_none());
        assert_eq!(home.state_of("other"), "running");
        home.microagent(["volume", "create", "data"]).success();
    }
    home.microagent(["delete", "web", "--yes"]).success();
    home.microagent(["delete", "other", "--force"]).success();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
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
