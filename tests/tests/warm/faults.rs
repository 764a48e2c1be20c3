//! A template's files are damaged, gone, or lie; whoever makes one is killed, or is not alone.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use microagent_tests::process::Process;
use microagent_tests::{Home, Running, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{
    MISSING, home, is_cold, is_mounted, is_warm, only_image_template, only_template, quick, start,
    templates_in,
};

/// What is told when the files are not those that were frozen.
const DAMAGED: &str = "the template was damaged and is made anew";

/// What is told when they are, and yet the machine cannot be restored.
const NOT_RESTORED: &str = "the template could not be restored";

fn truncate(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

/// The same content in another file.
fn replace(path: &Path) {
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    fs::rename(copy, path).unwrap();
}

/// Flips the lowest bit in the middle, and sets the time of change back as far as a program can.
fn flip_a_bit(path: &Path) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let metadata = file.metadata().unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(metadata.len() / 2)).unwrap();
    file.read_exact(&mut byte).unwrap();
    byte[0] ^= 1;
    file.seek(SeekFrom::Start(metadata.len() / 2)).unwrap();
    file.write_all(&byte).unwrap();
    file.set_times(FileTimes::new().set_modified(metadata.modified().unwrap())).unwrap();
}

fn delete(path: &Path) {
    fs::remove_file(path).unwrap();
}

/// Damages a file in each way; each time the next run notices, prints a notice, completes, and makes a new template.
fn is_noticed(name: &str, damages: &[fn(&Path)]) {
    let home = home();
    is_cold(quick(&home, &["true"]), MISSING);
    for damage in damages {
        damage(&only_template(&home).join(name));
        is_cold(quick(&home, &["true"]), DAMAGED);
    }
    is_warm(quick(&home, &["true"]));
    home.nothing_is_left();
}

#[test]
fn damaged_memory_is_noticed() {
    is_noticed("ram", &[truncate, replace, flip_a_bit, delete]);
}

#[test]
fn a_damaged_state_is_noticed() {
    is_noticed("state", &[truncate, replace, flip_a_bit, delete]);
}

#[test]
fn a_damaged_manifest_is_noticed() {
    let empty: fn(&Path) = |path| fs::write(path, "").unwrap();
    let other: fn(&Path) = |path| fs::write(path, "{\"format\": 1}").unwrap();
    // The manifest's own time does not matter; what it says of the others does.
    let lying: fn(&Path) = |path| edit_manifest(path, |manifest| manifest["ram"]["size"] = json!(4096));
    let of_another_shape: fn(&Path) =
        |path| edit_manifest(path, |manifest| manifest["shape"]["cpu_count"] = json!(2));
    is_noticed("manifest.json", &[truncate, empty, other, lying, of_another_shape, delete]);
}

#[test]
fn a_damaged_template_of_an_image_is_noticed_and_made_anew() {
    let home = home();
    is_cold(quick(&home, &["true"]), MISSING);
    is_warm(quick(&home, &["true"]));
    let damages: [fn(&Path); 4] = [truncate, replace, flip_a_bit, delete];
    for name in ["ram", "state", "disk.qcow2"] {
        for damage in damages {
            damage(&only_image_template(&home).join(name));
            // The machine's own template is good, so the start is warm all the same.
            let run = is_warm(quick(&home, &["true"]));
            assert_eq!(start(&run).1, "restored from a template of this machine", "{name}");
        }
        is_mounted(quick(&home, &["true"]));
    }
    home.nothing_is_left();
}

#[test]
fn an_image_template_that_does_not_come_to_life_falls_back_to_a_boot() {
    let home = home();
    is_cold(quick(&home, &["true"]), MISSING);
    is_warm(quick(&home, &["true"]));
    forge(&only_image_template(&home), "state", |file| {
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    });
    // It boots with the disk that the template has left it.
    let run = is_cold(quick(&home, &["sh", "-c", "echo alive > /file; cat /file"]), NOT_RESTORED);
    assert_eq!(super::support::printed(&run), "alive\n");
    only_template(&home);
    is_warm(quick(&home, &["true"]));
    is_mounted(quick(&home, &["true"]));
    home.nothing_is_left();
}

fn edit_manifest(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut manifest);
    fs::write(path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}

/// Writes into a file of a template and makes its manifest say that this is how it was frozen: what somebody
/// could do who is this user, and what a template is worth that passes every check and is not a template.
fn forge(template: &Path, name: &str, write: impl FnOnce(&mut File)) {
    let path = template.join(name);
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    write(&mut file);
    let metadata = file.metadata().unwrap();
    edit_manifest(&template.join("manifest.json"), |manifest| {
        manifest[name] = json!({
            "device": metadata.dev(),
            "inode": metadata.ino(),
            "size": metadata.len(),
            "changed_s": metadata.ctime(),
            "changed_ns": metadata.ctime_nsec(),
        });
    });
}

/// The run completes all the same: it boots, once, prints a notice, and the template is gone.
fn falls_back(name: &str, write: fn(&mut File)) {
    let home = home();
    is_cold(quick(&home, &["true"]), MISSING);
    forge(&only_template(&home), name, write);
    let run = is_cold(quick(&home, &["true"]), NOT_RESTORED);
    let notices = run.json()["notices"].to_string();
    assert!(notices.contains(NOT_RESTORED) && notices.contains("the machine boots instead"), "{notices}");
    let stderr = &run.stderr;
    assert!(stderr.is_empty(), "JSON output has its notices in the document: {stderr}");
    assert_eq!(templates_in(&home.state()).len(), 0, "it is thrown away");

    is_cold(quick(&home, &["true"]), MISSING);
    forge(&only_template(&home), name, write);
    let run =
        home.run("busybox", ["--profile", "tiny", "--network", "isolated"], &["echo", "alive"]).success();
    assert_eq!(run.guest_output(), "alive\n");
    run.says("Note: the template could not be restored").says("the machine boots instead");
    is_cold(quick(&home, &["true"]), MISSING);
    is_warm(quick(&home, &["true"]));
    home.nothing_is_left();
}

#[test]
fn a_state_that_is_rubbish_falls_back_to_a_boot() {
    falls_back("state", |file| {
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        file.write_all(&vec![0xa5; len]).unwrap();
    });
}

#[test]
fn a_state_that_ends_early_falls_back_to_a_boot() {
    falls_back("state", |file| file.set_len(file.metadata().unwrap().len() / 2).unwrap());
}

#[test]
fn memory_that_is_empty_falls_back_to_a_boot() {
    falls_back("ram", |file| {
        let len = file.metadata().unwrap().len();
        file.set_len(0).unwrap();
        file.set_len(len).unwrap();
    });
}

/// The supervisor of a guest that never answers is in its walls while QEMU still restores that guest, and boots another
/// one from there, on the same network.
#[test]
fn a_supervisor_is_confined_while_its_guest_is_restored() {
    let home = home();
    let options = ["--profile", "tiny", "--name", "replaced"];
    // The name server of every guest.
    let line = "nc 10.0.2.3 53 < /dev/null && echo connected";
    let restores =
        |process: &Process| process.is_qemu() && process.words.iter().any(|word| word == "-incoming");
    // The first QEMU is stopped; one that was gone before this test stopped it is followed by another.
    let (running, first) = loop {
        home.run("busybox", options, &["true"]).success();
        forge(&only_template(&home), "ram", |file| {
            let len = file.metadata().unwrap().len();
            file.set_len(0).unwrap();
            file.set_len(len).unwrap();
        });
        let running = home.run("busybox", options, &["sh", "-c", line]).start();
        let first = running.descendant("a QEMU that restores", restores);
        first.stop();
        if first.is_alive() {
            break (running, first);
        }
        running.finish().code(0);
    };
    let status = wait_for("the walls of the supervisor", Duration::from_secs(120), || {
        let status = fs::read_to_string(format!("/proc/{}/status", first.parent)).unwrap_or_default();
        if status.contains("Seccomp:\t2") { Ok(status) } else { Err(status) }
    });
    assert!(first.is_alive(), "it was confined only when the first QEMU was gone");
    first.signal(Signal::CONT);
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let run = running.finish().code(0).says("the machine boots instead");
    assert_eq!(run.guest_output(), "connected\n");
    home.nothing_is_left();
}

#[test]
fn a_template_may_go_while_a_guest_runs_from_it() {
    let home = home();
    is_cold(quick(&home, &["true"]), MISSING);
    // Afterwards it touches programs and memory that it has not touched before.
    let line = "echo working; while [ ! -e /go ]; do sleep 0.2; done
                dd if=/dev/zero of=/dev/shm/big bs=1M count=60 2> /dev/null; wc -c < /dev/shm/big
                sha256sum /bin/busybox > /dev/null && echo done";
    for (name, remove) in [("pruned", true), ("removed", false)] {
        let options = ["--profile", "tiny", "--network", "isolated", "--name", name];
        let running = home.run("busybox", options, &["sh", "-c", line]).start();
        home.log_has(name, "console.log", "working");
        if remove {
            home.microagent(["template", "prune", "--all"]).success();
        } else {
            templates_in(&home.state()).iter().for_each(|template| fs::remove_dir_all(template).unwrap());
        }
        assert_eq!(templates_in(&home.state()).len(), 0);
        home.microagent(["exec", name, "--", "touch", "/go"]).success();
        let run = running.finish().code(0);
        assert_eq!(run.guest_output(), "working\n62914560\ndone\n");
        is_cold(quick(&home, &["true"]), MISSING);
    }
    is_warm(quick(&home, &["true"]));
    home.nothing_is_left();
}

/// Whether somebody is writing a template at this moment: its state file is there, its name is not.
fn is_freezing(home: &Home) -> bool {
    let entries = fs::read_dir(home.state().join("tmp")).into_iter().flatten().flatten();
    let mut halves = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("scratch-"));
    halves.any(|entry| entry.path().join("state").exists())
}

/// A run that does not end by itself, and its supervisor, which is stopped in the middle of a freeze. A freeze takes some tens
/// of milliseconds; a run that is through it before it was seen has its template taken away and is followed by another.
#[track_caller]
fn caught_in_a_freeze(home: &Home) -> (Running<'_>, Process) {
    let before = templates_in(&home.state());
    let options = ["--profile", "tiny", "--network", "isolated", "--name", "frozen"];
    let end = Instant::now() + Duration::from_secs(200);
    loop {
        let begun = home.run("busybox", options, &["sh", "-c", "echo working; sleep 7654"]).start();
        let supervisor = begun.supervisor();
        let works =
            || fs::read_to_string(home.workspace("frozen").join("machine/console.log")).unwrap_or_default();
        while !is_freezing(home) && !works().contains("working") {
            assert!(Instant::now() < end, "there was no freeze");
            std::thread::sleep(Duration::from_millis(1));
        }
        supervisor.stop();
        if is_freezing(home) {
            return (begun, supervisor);
        }
        begun.kill();
        supervisor.signal(Signal::CONT);
        home.processes_end();
        home.microagent(["delete", "frozen", "--force"]).success();
        for template in templates_in(&home.state()).iter().filter(|template| !before.contains(template)) {
            fs::remove_dir_all(template).unwrap();
        }
    }
}

#[test]
fn killed_during_a_freeze_leaves_nothing_that_matters() {
    // The freeze of a shape while it boots, and that of an image once it is mounted.
    for (supervisor_too, of_image) in [(false, false), (true, false), (false, true), (true, true)] {
        let home = home();
        if of_image {
            is_cold(quick(&home, &["true"]), MISSING);
        }
        let (begun, supervisor) = caught_in_a_freeze(&home);
        if supervisor_too {
            // Stopped, the command does not end because it sees the end of its supervisor.
            begun.signal(Signal::STOP);
            supervisor.signal(Signal::KILL);
        }
        begun.kill();
        supervisor.signal(Signal::CONT);
        home.processes_end();
        for template in templates_in(&home.state()) {
            let files = 3 + usize::from(template.join("disk.qcow2").exists());
            assert_eq!(fs::read_dir(&template).unwrap().count(), files, "it is whole or it is not there");
        }
        // What a killed supervisor left is swept when it is old enough to be nobody's work.
        let minutes_ago = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(120));
        for entry in fs::read_dir(home.state().join("tmp")).unwrap().flatten() {
            File::open(entry.path()).unwrap().set_times(minutes_ago).unwrap();
        }
        let next = quick(&home, &["echo", "next"]).success();
        assert_eq!(super::support::printed(&next), "next\n");
        is_warm(quick(&home, &["true"]));
        for failed in home.workspaces() {
            home.microagent(["delete", &failed, "--yes"]).success();
        }
        home.nothing_is_left();
    }
}

#[test]
fn of_two_first_runs_at_once_one_makes_the_template() {
    let home = home();
    // Neither is to be first because the other one unpacks the image or the guest's kernel.
    is_cold(home.run("busybox", ["--json", "--cold", "--network", "isolated"], &["true"]), "--cold");
    // The machine of the first is stopped on its way to the freeze; one that was faster than this test is followed by
    // another.
    let (first, machine) = loop {
        let first = quick(&home, &["true"]).start();
        let machine = first.qemu();
        machine.stop();
        if templates_in(&home.state()).is_empty() && !is_freezing(&home) {
            break (first, machine);
        }
        machine.signal(Signal::CONT);
        first.finish().code(0);
        home.microagent(["template", "prune", "--all"]).success();
    };
    is_cold(quick(&home, &["true"]), &format!("{MISSING}; another run is making it"));
    machine.signal(Signal::CONT);
    assert_eq!(start(&first.finish().code(0)).1, MISSING);
    only_template(&home);
    is_warm(quick(&home, &["true"]));
    home.nothing_is_left();
}

/// Where the overlay has what the guest wrote to the first bytes of its disk.
fn first_data_cluster(overlay: &File) -> u64 {
    let number = |offset: u64| {
        let mut bytes = [0; 8];
        overlay.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_be_bytes(bytes)
    };
    let pointer = |entry: u64| entry & 0x00ff_ffff_ffff_fe00;
    let l1_table = number(40);
    let cluster = pointer(number(pointer(number(l1_table))));
    assert_ne!(cluster, 0, "the guest has written its superblock");
    cluster
}

#[test]
fn a_root_disk_that_cannot_be_mounted_is_to_blame_and_not_the_template() {
    let home = home();
    is_cold(quick(&home, &["true"]), MISSING);
    let template = only_template(&home);
    let image = home.image("busybox");
    home.microagent(["create", "web", "--image", &image, "--profile", "tiny", "--network", "isolated"])
        .success();
    home.microagent(["start", "web"]).success();
    home.microagent(["halt", "web"]).success();
    let overlay = home.state().join("workspaces/web/disk.qcow2");
    let overlay = OpenOptions::new().read(true).write(true).open(overlay).unwrap();
    overlay.write_all_at(&[0; 65536], first_data_cluster(&overlay)).unwrap();

    let start = home.microagent(["start", "web"]).run().code(1);
    assert!(!start.stderr.contains(NOT_RESTORED), "{}", start.told());
    start.says("cannot mount");
    home.processes_end();
    assert!(template.exists(), "the template is good");
    is_warm(quick(&home, &["true"]));
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}
