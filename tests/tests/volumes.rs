//! Named volumes on real guests: what they keep, who can have them, what is wrong with them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use microagent_tests::host::SmallDisk;
use microagent_tests::process::Process;
use microagent_tests::{Finished, Home, User, host, user, wait_for};
use rustix::process::Signal;

/// Exit code of "try again": whoever has it lets it go some time.
const TRY_AGAIN: i32 = 75;

fn home() -> Home {
    Home::new(User::unprivileged())
}

fn disk_of(home: &Home, volume: &str) -> PathBuf {
    home.state().join("volumes").join(volume).join("disk.ext4")
}

#[track_caller]
fn attached(home: &Home, volume: &str) -> serde_json::Value {
    home.microagent(["volume", "status", volume, "--json"]).success().json()["attached_to"].clone()
}

#[test]
fn a_volume_outlives_its_workspaces() {
    let home = home();
    assert_eq!(home.microagent(["volume", "ls"]).success().text(), "No volumes.\n");
    let created = home.microagent(["volume", "create", "data", "--size-mib", "64"]).success();
    assert_eq!(created.text(), "Created volume \"data\" (64 MiB)\n");
    home.microagent(["volume", "create", "data"]).run().code(1).says("exists already");

    // Empty for its user, who is the owner of what it covers.
    let line = "ls -A /home/app && stat -c '%u:%g %a' /home/app && echo first > /home/app/file";
    let run = home.sh(&["-v", "data:/home/app", "-u", "app"], line);
    assert_eq!(run.guest_output(), "1000:1000 755\n");
    // Nothing was asked to flush it but the end of the run.
    host::e2fsck(&disk_of(&home, "data"));
    let run = home
        .sh(&["--cold", "-v", "data:/srv/deep/down"], "cat /srv/deep/down/file; stat -c %u /srv/deep/down");
    assert_eq!(run.guest_output(), "first\n1000\n");

    // A kept workspace, warm and cold; the volume is not in the way of anything that rests.
    home.create("web", ["-v", "data:/work"]);
    for (warm, line) in [("on", "second"), ("off", "third")] {
        home.microagent(["start", "web"]).env("MICROAGENT_WARM", warm).success();
        assert_eq!(attached(&home, "data"), "web");
        let append = format!("echo {line} >> /work/file");
        home.microagent(["exec", "web", "--", "sh", "-c", &append]).success();
        home.microagent(["halt", "web"]).success();
        assert!(attached(&home, "data").is_null());
    }
    host::e2fsck(&disk_of(&home, "data"));
    // Looked at while it rests, a path means the same.
    home.microagent(["cp", "web:/work/file", "file"]).success();
    assert_eq!(fs::read_to_string(home.path().join("file")).unwrap(), "first\nsecond\nthird\n");

    let run = home.sh(&["-v", "data:/x"], "cat /x/file");
    assert_eq!(run.guest_output(), "first\nsecond\nthird\n");
    home.microagent(["delete", "web", "--yes"]).success();
    let list = home.microagent(["volume", "list"]).success();
    assert_eq!(list.text(), "NAME                 SIZE-MIB ATTACHED\ndata                 64       -\n");
    home.microagent(["volume", "rm", "data"]).success();
    home.microagent(["volume", "rm", "data"]).run().code(1).says("no volume `data`");
    home.microagent(["volume", "rm", "data", "-y"]).success();
    home.nothing_is_left();
}

#[test]
fn read_only_is_held_by_the_host() {
    let home = home();
    let made = home.sh(&["-v", "data:/work"], "echo kept > /work/file");
    assert!(
        made.stderr.contains("volume `data` did not exist and was created (1024 MiB)"),
        "{}",
        made.told()
    );
    let written = |home: &Home| fs::metadata(disk_of(home, "data")).unwrap().modified().unwrap();
    let before = written(&home);
    // Root in the guest does what it can to the device itself.
    let line = "cat /work/file; ! touch /work/new; ! mount -o remount,rw /work; \
                device=$(grep ' /work ' /proc/mounts | cut -d' ' -f1); blockdev --setrw $device; \
                ! dd if=/dev/zero of=$device bs=4096 count=16 conv=fsync || echo written";
    for run in [home.sh(&["-v", "data:/work:ro"], line), home.sh(&["--cold", "-v", "data:/work:ro"], line)] {
        assert_eq!(run.guest_output(), "kept\n", "{}", run.told());
    }
    assert_eq!(written(&home), before);

    // There is nothing to read on one that does not exist.
    let run = home.run("busybox", ["-v", "none:/x:ro"], &["true"]).run();
    run.code(1).says("no volume `none`").says("microagent volume create none");
    // One that was not unmounted has a journal that must be replayed first.
    home.create("web", ["-v", "data:/work"]);
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "web", "--", "sh", "-c", "echo more > /work/more; sync"]).success();
    home.microagent(["kill", "web"]).success();
    let run = home.run("busybox", ["--network", "isolated", "-v", "data:/x:ro"], &["true"]).run().code(1);
    run.says("was not unmounted cleanly").says("without :ro");
    for failed in home.workspaces().into_iter().filter(|name| name != "web") {
        home.microagent(["delete", &failed, "--yes"]).success();
    }
    assert_eq!(home.sh(&["-v", "data:/x"], "cat /x/more").guest_output(), "more\n");
    assert_eq!(home.sh(&["-v", "data:/x:ro"], "cat /x/more").guest_output(), "more\n");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn one_machine_has_it_at_a_time() {
    let home = home();
    home.microagent(["volume", "create", "data", "--size-mib", "64"]).success();
    home.create("web", ["-v", "data:/work"]);
    home.create("other", ["-v", "data:/work"]);
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "web", "--", "sh", "-c", "echo kept > /work/kept; sync /work/kept"]).success();
    let status = home.microagent(["status", "web"]).success();
    assert_eq!(status.summary("Mounted"), "/work (volume data)");
    home.microagent(["clone", "other", "third"]).success().says("attaches the same volume data as other");
    home.microagent(["delete", "third", "--yes"]).success();
    let by_web = |refused: Finished| {
        refused.code(TRY_AGAIN).says("volume `data` is in use by workspace `web`").says("microagent halt web")
    };
    by_web(home.microagent(["start", "other"]).run());
    assert_eq!(home.state_of("other"), "prepared");
    by_web(home.run("busybox", ["-v", "data:/x"], &["true"]).run());
    by_web(home.microagent(["cp", "other:/work/kept", "x"]).run());
    by_web(home.microagent(["volume", "resize", "data", "--size-mib", "128"]).run());
    by_web(home.microagent(["volume", "delete", "data", "--yes"]).run());
    assert_eq!(home.workspaces(), ["other", "web"]);

    // The holder dies, and nobody had the time to let it go.
    let supervisor = wait_for("the supervisor", Duration::from_secs(60), || {
        let processes = home.processes();
        processes.iter().find(|process| Process::is_supervisor(process)).cloned().ok_or(processes)
    });
    supervisor.signal(Signal::KILL);
    wait_for("its end", Duration::from_secs(60), || if supervisor.is_alive() { Err(()) } else { Ok(()) });
    home.microagent(["start", "other"]).success();
    assert_eq!(attached(&home, "data"), "other");
    assert_eq!(home.microagent(["exec", "other", "--", "cat", "/work/kept"]).success().text(), "kept\n");
    assert_eq!(home.state_of("web"), "failed");
    home.microagent(["halt", "other"]).success();

    // Two that are started at once: one has it, the other is told so.
    let starts = ["web", "other"].map(|name| home.microagent(["start", name]).start());
    let mut codes: Vec<_> = starts.map(|start| start.finish().status.code()).into();
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(TRY_AGAIN)]);

    // Resting ones keep it too, unless it is forced; that kills who has it.
    for name in ["web", "other"] {
        home.microagent(["halt", name]).success();
    }
    let refused = home.microagent(["volume", "delete", "data"]).run().code(1);
    refused.says("belongs to workspaces `other`, `web`").says("--force");
    home.microagent(["start", "web"]).success();
    let forced = home.microagent(["volume", "delete", "data", "--force"]).success();
    assert_eq!(
        forced.text(),
        "Killed web and deleted volume \"data\"\nCannot start without it: other, web\n",
        "{}",
        forced.told()
    );
    assert_eq!(home.state_of("web"), "stopped");
    for refused in
        [home.microagent(["start", "web"]).run(), home.microagent(["cp", "other:/etc/hostname", "x"]).run()]
    {
        refused.code(1).says("no volume `data`").says("microagent volume create data");
    }
    home.microagent(["volume", "create", "data", "--size-mib", "64"]).success();
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "web", "--", "sh", "-c", "test -z \"$(ls -A /work)\""]).success();
    home.microagent(["delete", "web", "other", "--yes"]).success();
    home.microagent(["volume", "delete", "data"]).success();
    home.nothing_is_left();
}

#[test]
fn ten_disks_at_once_and_one_within_the_other() {
    let home = home();
    // The innermost is named first; it must end up on the outer one all the same.
    let mut options = vec!["-v".to_owned(), "inner:/d0/inner".to_owned()];
    for number in 0..9 {
        options.extend(["-v".to_owned(), format!("v{number}:/d{number}")]);
        let name = format!("v{number}");
        home.microagent(["volume", "create", &name, "--size-mib", "16"]).success();
    }
    home.microagent(["volume", "create", "inner", "--size-mib", "16"]).success();
    let create = ["create", "many", "--network", "isolated", "--image", &home.image("busybox")];
    home.microagent(create).args(&options).success();
    let write = "for d in 0 1 2 3 4 5 6 7 8; do echo $d > /d$d/file; done; echo inner > /d0/inner/file";
    let read = "cat /d?/file /d0/inner/file | tr '\\n' ' '; grep -c ' /d[0-9]' /proc/mounts";
    for (warm, line) in [("on", write), ("off", read), ("on", read)] {
        home.microagent(["start", "many"]).env("MICROAGENT_WARM", warm).success();
        let done = home.microagent(["exec", "many", "--", "sh", "-c", line]).success();
        if line == read {
            assert_eq!(done.text(), "0 1 2 3 4 5 6 7 8 inner 10\n");
        }
        home.microagent(["halt", "many"]).success();
    }
    let refused = home.run("busybox", ["-v", "v0:/a", "-v", "v1:/a/"], &["true"]).run().code(2);
    refused.says("two disks are mounted on `/a`");
    home.microagent(["delete", "many", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_volume_grows_with_what_is_on_it_and_a_full_one_is_the_guests_affair() {
    let home = home();
    home.microagent(["volume", "create", "data", "--size-mib", "32"]).success();
    let fill = "echo kept > /work/kept; sync; dd if=/dev/zero of=/work/big bs=1M count=100; \
                sync; test -s /work/big; rm /work/big; cat /work/kept";
    let run = home.sh(&["-v", "data:/work"], fill);
    assert!(run.stderr.contains("No space left on device"), "{}", run.told());
    assert!(run.guest_output().ends_with("kept\n"), "{}", run.told());

    let shrink = home.microagent(["volume", "resize", "data", "--size-mib", "31"]).run().code(2);
    shrink.says("cannot shrink").says("cp -a");
    // Beyond 16 GiB, where the tables of a grown file system lie elsewhere.
    for (size_mib, least_mib) in [("200", 180), ("20480", 20_000)] {
        let resized = home.microagent(["volume", "resize", "data", "--size-mib", size_mib]).success();
        assert_eq!(resized.summary("Size"), format!("{size_mib} MiB"));
        let run = home.sh(&["-v", "data:/work"], "cat /work/kept; df -m /work | awk 'NR == 2 { print $2 }'");
        let (kept, mib) = run.guest_output().trim_end().split_once('\n').unwrap();
        assert_eq!(kept, "kept");
        assert!(mib.parse::<u64>().unwrap() > least_mib, "{mib} of {size_mib}");
        host::e2fsck(&disk_of(&home, "data"));
    }
    // Made as large as that it costs nothing.
    home.microagent(["volume", "create", "large", "--size-mib", "65536"]).success();
    home.sh(&["-v", "large:/work"], "echo x > /work/x");
    let large = home.microagent(["volume", "status", "large", "--json"]).success().json();
    assert!(large["bytes"].as_u64().unwrap() < 64 << 20, "{large}");
    home.nothing_is_left();
}

#[test]
fn a_damaged_volume_is_said_to_be_damaged_and_harms_nothing_else() {
    let home = home();
    home.microagent(["volume", "create", "bad", "--size-mib", "64"]).success();
    home.create("web", ["-v", "bad:/work"]);
    home.microagent(["start", "web"]).success();
    home.microagent(["halt", "web"]).success();
    let disk = fs::File::options().write(true).open(disk_of(&home, "bad")).unwrap();
    let templates = |home: &Home| {
        let list = home.microagent(["template", "list", "--json"]).success().json();
        list["templates"].as_array().unwrap().len()
    };
    let before = templates(&home);
    assert!(before > 0);
    // Its tables first, then all of what says that it is a file system.
    for (at, len, problem) in [(4096, 4096, "cannot be mounted: it is damaged"), (0, 4096, "holds no ext4")] {
        disk.write_all_at(&vec![0xA5; len], at).unwrap();
        for warm in ["on", "off"] {
            let start = home.microagent(["start", "web"]).env("MICROAGENT_WARM", warm).run().code(1);
            start.says("the disk for `/work`").says(problem).says("e2fsck -f");
        }
    }
    assert_eq!(home.state_of("web"), "failed");
    assert_eq!(templates(&home), before, "no template is to blame");
    home.run("busybox", ["--network", "isolated"], &["true"]).success();
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_volume_whose_host_is_full_fails_its_machine_clearly() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = Home::new(User::Caller);
    let state = home.make_dir("state");
    let disk = SmallDisk::mount(&state, 96);
    let call = || home.call().env("MICROAGENT_STATE_DIR", &state);
    let image = home.image("busybox");
    let fill =
        "echo kept > /work/kept; sync; dd if=/dev/zero bs=1M count=300 | tr '\\000' x > /work/big; sync";
    let run =
        ["run", "--name", "filler", "--network", "isolated", "-v", "data:/work", "--exec", fill, &image];
    call().args(run).run().code(TRY_AGAIN).says("the host's disk is full");
    home.processes_end();
    call().args(["delete", "filler", "--yes"]).success();
    // The volume is as full as it was; what was flushed is on it once there is room.
    fs::write(state.join("room"), "").unwrap();
    host::must("mount", &["-o", "remount,size=400m", state.to_str().unwrap()]);
    disk.wait_for_free_mib(100);
    let run = ["run", "--network", "isolated", "-v", "data:/work", &image, "cat", "/work/kept"];
    assert_eq!(call().args(run).success().guest_output(), "kept\n");
    home.processes_end();
}

/// PostgreSQL's own words, in the image of Debian's packages.
const POSTGRES: &str = "/usr/lib/postgresql/15/bin";
const DATABASE: &str = "/var/lib/postgresql";

/// Starts a workspace with a database and waits until that answers.
#[track_caller]
fn start_database(home: &Home, name: &str) {
    home.microagent(["start", name]).success();
    // Asked before it has looked at the PID file of its last life, a client could have the number that is in there.
    home.log_has(name, "console.log", "ready to accept connections");
}

#[track_caller]
fn query(home: &Home, name: &str, sql: &str) -> String {
    let words = ["exec", name, "--", "psql", "-h", "/tmp", "-qAt", "-c", sql, "postgres"];
    home.microagent(words).success().text().trim_end().to_owned()
}

#[test]
fn a_database_keeps_every_committed_row_through_a_kill_and_a_move() {
    let home = home();
    home.microagent(["volume", "create", "rows", "--size-mib", "512"]).success();
    let image = home.image("services");
    let mount = format!("rows:{DATABASE}");
    let service = format!("exec {POSTGRES}/postgres -D {DATABASE} -k /tmp -c listen_addresses=");
    let create = |name: &str| {
        let words = ["create", name, "--network", "isolated", "--memory", "1g", "--image", &image];
        home.microagent(words).args(["-u", "postgres", "-v", &mount, "--service-command", &service])
    };
    // Its directory is the volume's root: nothing is in the way there, and it is the right user's.
    let init = format!("{POSTGRES}/initdb -D {DATABASE} --auth=trust --no-locale -E UTF8");
    create("db").args(["--setup", &init]).deadline(Duration::from_secs(400)).success();
    start_database(&home, "db");
    query(&home, "db", "create table t (n int)");
    let inserts = "for n in $(seq 100000); do echo \"insert into t values ($n);\"; echo \"\\\\echo $n\"; done | \
                   stdbuf -oL psql -h /tmp -q -v ON_ERROR_STOP=1 postgres";
    let inserting = home.microagent(["exec", "db", "--", "bash", "-c", inserts]).start();
    wait_for("rows", Duration::from_secs(120), || {
        let rows: u32 = query(&home, "db", "select count(*) from t").parse().unwrap();
        if rows > 50 { Ok(()) } else { Err(rows) }
    });
    home.microagent(["kill", "db"]).success();
    let reported =
        inserting.finish().failure().text().lines().filter_map(|line| line.parse::<u32>().ok()).max();
    let reported = reported.unwrap();
    assert!(reported > 10, "{reported}");

    let kept = format!("select count(distinct n) from t where n <= {reported}");
    start_database(&home, "db");
    assert_eq!(query(&home, "db", &kept), reported.to_string());
    home.microagent(["halt", "db"]).success();
    host::e2fsck(&disk_of(&home, "rows"));

    create("db2").success();
    start_database(&home, "db2");
    assert_eq!(query(&home, "db2", &kept), reported.to_string());
    home.microagent(["delete", "db", "db2", "--yes"]).success();
    home.nothing_is_left();
}
