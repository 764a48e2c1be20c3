//! A workspace's changes as an image: whole, told apart from what the machine writes, and readable by others.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_tests::host::SmallDisk;
use microagent_tests::process::Process;
use microagent_tests::registry::Registry;
use microagent_tests::{Finished, Home, User, host, listing, user, wait_for};
use rustix::process::Signal;
use serde_json::Value;

/// Exit code of "try again": the disk may have room later.
const TRY_AGAIN: i32 = 75;

/// The digest of a layer without entries, everywhere.
const EMPTY_LAYER: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// Everything that a file system keeps of its files, one line each. Times of the directories that the agent
/// makes things in, and what names the machine, are left out.
const DESCRIBE: &str = r#"cd /; { find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./lost+found \
    -o -path ./etc/hostname -o -path ./etc/hosts -o -path ./etc/machine-id -o -path ./etc/mtab \
    -o -path ./etc/resolv.conf -o -path ./usr/lib/modules \) -prune -o \
    \( -path . -o -path ./etc -o -path ./usr/lib \) -printf '%p %y %m %U %G\n' \
    -o -type d -printf '%p %y %m %U %G %T@\n' -o -printf '%p %y %m %U %G %T@ %s %n %l\n' | LC_ALL=C sort;
    find . -xdev -type f ! -path './etc/host*' ! -path './etc/machine-id' ! -path './etc/resolv.conf' \
    -newermt 2024-01-01 -exec sha256sum {} + | LC_ALL=C sort;
    perl -e '$p = "/srv/deep/noted"; $k = "user.note"; $v = "\0" x 64; $n = syscall(191, $p, $k, $v, 64);
        print "note ", unpack("H*", substr($v, 0, $n)), "\n"'; } | tr '\377' '?'"#;

/// Changes of every kind.
const CHANGE: &str = r#"set -e
    mkdir -p /srv/deep/er && chmod 2750 /srv/deep && chown 1000:1001 /srv/deep
    seq 100000 > /srv/deep/numbers && ln /srv/deep/numbers /srv/numbers-too && ln -s deep/numbers /srv/link
    printf x > "/srv/deep/er/$(printf '%0200d' 7)" && printf odd > "$(printf '/srv/not utf-8 \377\n')"
    cp /bin/true /srv/setuid && chown 5:6 /srv/setuid && chmod 4755 /srv/setuid
    mkfifo -m 600 /srv/fifo && mknod -m 640 /srv/null c 1 3
    printf noted > /srv/deep/noted
    perl -e '$p = "/srv/deep/noted"; $k = "user.note"; $v = "a=b\n\0c"; syscall(188, $p, $k, $v, 6, 0) == 0 or die $!'
    touch -d '2001-02-03 04:05:06.789' /srv/deep/er
    rm -r /usr/share/doc /etc/cron.daily && rm /etc/debian_version /usr/bin/perlbug 2>/dev/null || :
    echo changed >> /etc/passwd && chmod 600 /etc/group && chown 3:4 /etc/issue
    rm -r /var/cache && echo file > /var/cache && rm /etc/issue.net && mkdir /etc/issue.net && echo in > /etc/issue.net/in
    rm -r /usr/share/perl5 2>/dev/null || :; mkdir -p /usr/share/perl5 && echo new > /usr/share/perl5/only
    mv /opt /renamed && mkdir /opt && chmod 700 /root && echo secret > /root/.profile && : > /srv/empty
"#;

fn home() -> Home {
    Home::new(User::Caller)
}

/// A kept workspace in which this was run; gives what it printed.
fn kept(home: &Home, name: &str, fixture: &str, script: &str) -> String {
    let options = ["--keep", "--name", name, "--network", "isolated"];
    let run = home.run(fixture, options, &["sh", "-c", script]).success();
    assert_eq!(run.summary("Exit code"), "0", "{}", run.told());
    run.guest_output().to_owned()
}

fn commit(home: &Home, name: &str, reference: &str) -> Value {
    home.microagent(["commit", "--json", name, reference]).success().json()
}

/// What a run of an image prints.
fn printed(home: &Home, image: &str, script: &str) -> String {
    let run = home.microagent(["run", "--pull", "never", "--network", "isolated", image, "sh", "-c", script]);
    run.success().guest_output().to_owned()
}

fn images(home: &Home) -> Vec<String> {
    let list = home.microagent(["image", "list", "--json"]).success().json();
    let names = list["images"].as_array().unwrap().iter();
    names.map(|image| image["resolved_reference"].as_str().unwrap().to_owned()).collect()
}

fn skopeo(home: &Home, reference: &str) -> Value {
    let inspect = home.other("skopeo").args(["inspect", "--tls-verify=false", reference]).success();
    serde_json::from_slice(&inspect.stdout).unwrap()
}

/// Nothing of a commit lies where downloads and layers come in.
fn no_partial_files(state: &Path, when: &str) {
    let files = partial_files(state);
    assert!(files.is_empty(), "{when}: {files:?}");
}

fn partial_files(state: &Path) -> Vec<PathBuf> {
    listing::listing(&state.join("images/partial")).into_keys().filter(|path| path.is_file()).collect()
}

#[test]
fn a_committed_image_has_every_change_and_nothing_else() {
    let home = home();
    let before = kept(&home, "changed", "debian", &format!("{CHANGE}\n{DESCRIBE}"));
    let committed = commit(&home, "changed", "team/changed:1");
    assert!(committed["content_bytes"].as_u64().unwrap() > 500_000, "{committed}");
    let after = printed(&home, "team/changed:1", DESCRIBE);
    assert!(
        before.contains("/srv/deep/numbers f 644") && before.contains("\nnote 613d620a0063\n"),
        "{before}"
    );
    let differing: Vec<_> = before.lines().zip(after.lines()).filter(|(a, b)| a != b).take(10).collect();
    assert!(
        before == after,
        "{differing:#?}\n{} and {} lines",
        before.lines().count(),
        after.lines().count()
    );
    let names = "ls -d /usr/share/doc /etc/cron.daily 2>/dev/null; cat /etc/hostname";
    let name = printed(&home, "team/changed:1", names);
    assert!(name.starts_with("run-"), "the machine is named anew: {name}");
    home.microagent(["delete", "changed", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn an_unchanged_workspace_is_an_empty_layer_and_shares_the_disk() {
    let home = home();
    kept(&home, "same", "busybox", "cat /etc/hostname");
    let (first, second) = (commit(&home, "same", "same:1"), commit(&home, "same", "same:2"));
    assert_eq!(first["diff_id"], EMPTY_LAYER);
    assert_eq!(first["layer_digest"], second["layer_digest"]);
    assert_eq!(first["content_bytes"], 0);
    let disks = || {
        let found = listing::listing(&home.state().join("images/disks")).into_keys();
        found.filter(|path| path.extension().is_some_and(|extension| extension == "ext4")).count()
    };
    assert_eq!(disks(), 1);
    assert_eq!(printed(&home, "same:1", "echo hello"), "hello\n");
    assert_eq!(disks(), 1, "no second disk with the same content");
    home.microagent(["delete", "same", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn commits_build_on_commits_and_changes_say_how_they_run() {
    let home = home();
    kept(&home, "one", "busybox", "echo one > /one; echo gone > /gone");
    let changes = [
        "CMD [\"cat\", \"/one\"]",
        "ENV GREETING='good day' B=2",
        "LABEL maker=us",
        "EXPOSE 80",
        "WORKDIR /srv/new",
        "VOLUME /data",
        "STOPSIGNAL SIGINT",
        "USER 7:8",
    ];
    let flags = changes.iter().flat_map(|line| ["--change", line]);
    let call = home.call().args(["commit", "-m", "the first", "-a", "somebody"]).args(flags);
    call.args(["one", "chain:1"]).success();
    let run = home.microagent(["run", "--pull", "never", "--network", "isolated", "chain:1"]).success();
    assert_eq!(run.guest_output(), "one\n");
    assert_eq!(printed(&home, "chain:1", "pwd; echo $GREETING $B; id -u"), "/srv/new\ngood day 2\n7\n");

    let run = home.call().args([
        "run",
        "--keep",
        "--name",
        "two",
        "--user",
        "0",
        "--network",
        "isolated",
        "chain:1",
    ]);
    run.args(["sh", "-c", "rm /gone; echo two > /two; mkdir /srv/new/x"]).success();
    commit(&home, "two", "chain:2");
    home.microagent(["image", "save", "chain:2", "-o", "chain.tar"]).success();
    let archive = format!("oci-archive:{}", home.path().join("chain.tar").display());
    let config = home.other("skopeo").args(["inspect", "--config", &archive]).success();
    let config: Value = serde_json::from_slice(&config.stdout).unwrap();
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["cat", "/one"]), "{config}");
    assert_eq!(config["config"]["Labels"]["maker"], "us");
    assert_eq!(config["config"]["StopSignal"], "SIGINT");
    assert_eq!(config["config"]["ExposedPorts"], serde_json::json!({"80/tcp": {}}));
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
    let history = config["history"].as_array().unwrap();
    assert_eq!(history[history.len() - 2]["comment"], "the first");
    assert_eq!(history[history.len() - 2]["author"], "somebody");
    assert_eq!(
        printed(&home, "chain:2", "cat /one /two; ls /gone 2>/dev/null; ls /srv/new"),
        "one\ntwo\nx\n"
    );

    let bad = home.microagent(["commit", "--change", "HEALTHCHECK NONE", "two", "x:1"]).run().code(2);
    bad.says("HEALTHCHECK");
    for name in ["one", "two"] {
        home.microagent(["delete", name, "--yes"]).success();
    }
    // The image below may lose its name: what another one needs of it stays.
    home.microagent(["image", "delete", "chain:1", "--yes"]).success();
    home.microagent(["image", "prune"]).success();
    assert_eq!(printed(&home, "chain:2", "cat /two"), "two\n");
    home.nothing_is_left();
}

#[test]
fn skopeo_and_podman_read_what_was_committed() {
    let home = home();
    let registry = Registry::start().unwrap();
    kept(&home, "made", "busybox", "echo content > /marker; rm -r /home; chmod 711 /root");
    let reference = format!("{}/team/made:1", registry.address());
    let committed = home.microagent(["commit", "--json", "--push", "made", &reference]).success().json();
    assert_eq!(committed["pushed"]["digest"], committed["digest"], "{committed}");
    let seen = skopeo(&home, &format!("docker://{reference}"));
    assert_eq!(seen["Digest"], committed["digest"]);
    assert_eq!(seen["Layers"].as_array().unwrap().last().unwrap(), &committed["layer_digest"]);

    let save = home.microagent(["image", "save", "-o", "-", &reference]).success();
    assert!(save.stdout.len() > 1000 && save.stderr.contains("Saving"), "{} bytes", save.stdout.len());
    let file = home.write("made.tar", &save.stdout);
    let archive = format!("oci-archive:{}", file.display());
    assert_eq!(skopeo(&home, &archive)["Digest"], committed["digest"]);
    // A terminal would be no place for it.
    home.microagent(["image", "save", &reference]).run().code(2);
    if !user::is_root() {
        return host::skip("only root's podman can mount an image");
    }
    let storage = |command: &str| {
        let (root, run) = (home.path().join("podman"), home.path().join("podman-run"));
        let podman = home.other("podman").args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        podman.arg("--root").arg(root).arg("--runroot").arg(run).args(command.split(' '))
    };
    let loaded = storage("load --quiet -i").arg(&file).success();
    assert!(loaded.text().contains(&reference), "{}", loaded.told());
    let mounted = storage("image mount").arg(&reference).success();
    let root = Path::new(mounted.text().trim());
    assert_eq!(fs::read_to_string(root.join("marker")).unwrap(), "content\n");
    assert!(!root.join("home").exists());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(root.join("root")).unwrap().permissions().mode() & 0o7777, 0o711);
    assert!(!root.join("etc/machine-id").exists());
    storage("image umount").arg(&reference).success();
    home.microagent(["delete", "made", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn what_cannot_be_committed_is_said_and_leaves_nothing() {
    let home = home();
    home.microagent(["commit", "nobody", "x:1"]).run().code(1).says("nobody");
    kept(&home, "odd", "busybox", "touch /.wh.sneaky");
    for (reference, text) in [("UPPER:1", "lower case"), ("oci:dir", "a place"), ("x@sha256:12", "digest")] {
        home.microagent(["commit", "odd", reference]).run().code(2).says(text);
    }
    home.microagent(["commit", "odd", "odd:1"]).run().code(1).says("/.wh.sneaky");
    let running = home
        .run(
            "busybox",
            ["--name", "busy", "--keep", "--network", "isolated"],
            &["sh", "-c", "echo up; sleep 600"],
        )
        .start();
    home.log_has("busy", "console.log", "up");
    home.microagent(["commit", "busy", "busy:1"]).run().code(1).says("busy").says("running");
    home.microagent(["delete", "busy", "--force"]).success();
    running.finish().failure();
    assert_eq!(images(&home).len(), 1, "only the fixture: {:?}", images(&home));
    no_partial_files(&home.state(), "afterwards");
    home.microagent(["delete", "odd", "--yes"]).success();
    home.nothing_is_left();
}

/// Lets the disk of a resting workspace be read no faster than a mebibyte per second, so that a commit of tens of mebibytes
/// does not come to its end before a test interrupts it. Gives what sets another rate.
fn takes_a_while<'a>(home: &'a Home, name: &'a str) -> impl Fn(u64) + 'a {
    let limit = move |rate: u64| {
        home.write("limits.yaml", format!("limits: {{diskBps: {rate}}}\n"));
        home.microagent(["apply", name, "--file", "limits.yaml"]).success();
    };
    limit(1 << 20);
    limit
}

/// The command, the supervisor and QEMU, each killed while the machine starts and while the changes flow.
#[test]
fn killed_at_any_stage_there_is_no_image_and_the_next_commit_works() {
    let home = home();
    kept(&home, "victim", "busybox", "seq 2500000 > /numbers; echo small > /small");
    let limit = takes_a_while(&home, "victim");
    let before = images(&home);
    // The machine is halted as soon as something has come, so that the rest cannot be faster than the test.
    let flowing = |qemu: &Process| {
        wait_for("the layer to grow", Duration::from_secs(120), || {
            let files = partial_files(&home.state());
            let sizes: Vec<u64> = files.iter().filter_map(|path| Some(path.metadata().ok()?.len())).collect();
            if sizes.iter().any(|size| *size > 0) { Ok(()) } else { Err(sizes) }
        });
        qemu.signal(Signal::STOP);
    };
    for stage in ["start", "flow"] {
        for target in ["command", "supervisor", "qemu"] {
            let running = home.microagent(["commit", "victim", "victim:1"]).start();
            let (supervisor, qemu) = (running.supervisor(), running.qemu());
            if stage == "flow" {
                flowing(&qemu);
            }
            let ended: Finished = match target {
                "command" => running.kill(),
                // A template that cannot be restored costs a boot, not the commit.
                "qemu" if stage == "start" => {
                    qemu.signal(Signal::KILL);
                    let ended = running.finish();
                    let _ = home.microagent(["image", "delete", "victim:1"]).run();
                    ended
                }
                "supervisor" => {
                    supervisor.signal(Signal::KILL);
                    running.finish().failure()
                }
                _ => {
                    qemu.signal(Signal::KILL);
                    running.finish().failure()
                }
            };
            home.processes_end();
            assert_eq!(images(&home), before, "{stage}, {target}: {}", ended.told());
            assert_eq!(home.state_of("victim"), "stopped", "{stage}, {target}");
            if target != "command" {
                no_partial_files(&home.state(), &format!("{stage}, {target}"));
            }
            // A killed command cannot take its file along; pruning does.
            home.microagent(["image", "prune"]).success();
            no_partial_files(&home.state(), &format!("{stage}, {target}"));
        }
    }
    limit(1 << 30);
    commit(&home, "victim", "victim:1");
    assert_eq!(printed(&home, "victim:1", "tail -n1 /numbers; cat /small"), "2500000\nsmall\n");
    home.microagent(["delete", "victim", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn ctrl_c_ends_a_commit_and_leaves_nothing() {
    let home = home();
    kept(&home, "slow", "busybox", "seq 2500000 > /numbers");
    let limit = takes_a_while(&home, "slow");
    let running = home.microagent(["commit", "slow", "slow:1"]).start();
    running.qemu();
    running.signal(Signal::INT);
    running.finish().code(130);
    home.processes_end();
    assert_eq!(images(&home).len(), 1);
    no_partial_files(&home.state(), "afterwards");
    limit(1 << 30);
    commit(&home, "slow", "slow:1");
    home.microagent(["delete", "slow", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_disk_that_fills_during_a_commit_is_said_so_and_nothing_half_made_stays() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = home();
    let state = home.make_dir("state");
    let _disk = SmallDisk::mount(&state, 110);
    let call = || home.call().env("MICROAGENT_STATE_DIR", &state).env("MICROAGENT_WARM", "off");
    // What does not compress needs its room twice.
    let fill = "dd if=/dev/urandom of=/noise bs=1M count=48";
    let run =
        call().args(["run", "--keep", "--name", "large", "--network", "isolated", &home.image("busybox")]);
    run.args(["sh", "-c", fill]).success();
    let failed = call().args(["commit", "large", "large:1"]).run().code(TRY_AGAIN);
    failed.says("disk full").says("image prune");
    home.processes_end();
    let list = call().args(["image", "list", "--json"]).success().json();
    assert_eq!(list["images"].as_array().unwrap().len(), 1, "{list}");
    no_partial_files(&state, "afterwards");
    let run = call()
        .args(["run", "--network", "isolated", &home.image("busybox"), "echo", "still works"])
        .success();
    assert_eq!(run.guest_output(), "still works\n");
    call().args(["delete", "large", "--yes"]).success();
    home.processes_end();
}
