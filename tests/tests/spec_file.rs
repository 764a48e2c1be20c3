//! Spec files on real guests: what they say is what the guest finds, flags go over it, and a workspace follows a
//! changed one.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;

use microagent_tests::{Finished, Home, User};

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// A spec file of busybox without network, in a directory of its own.
fn write_spec(home: &Home, lines: &str) {
    let image = home.image("busybox");
    home.write("specs/microagent.yaml", format!("image: '{image}'\nnetwork: {{mode: isolated}}\n{lines}"));
}

const SPEC: &str = "specs/microagent.yaml";

#[test]
fn a_run_is_what_its_file_says_and_flags_go_over_it() {
    let home = home();
    home.make_dir("specs");
    home.write("specs/prepare.sh", "#!/bin/sh\necho script >> /root/made\n");
    home.write("specs/token", "of the host");
    home.write("specs/variables", "FROM_FILE=beside the spec\nGREETING=file\n");
    write_spec(
        &home,
        "
name: report
keep: true
hostname: box
workdir: /tmp
resources: {memoryMiB: 200, cpuCount: 1}
setup: ['echo line > /root/made']
setupFiles: [prepare.sh]
env: {GREETING: spec, PORT: 8080}
envFiles: [variables]
secrets: {TOKEN: 'file:token'}
outputs: [{name: made, path: /root/made}]
exec: 'pwd; hostname; cat /root/made /run/secrets/TOKEN; echo; echo \"$GREETING $PORT $FROM_FILE\"; nproc'
timeout: 5m
service: never
",
    );
    let ran = home.microagent(["run", "--file", SPEC]).success();
    assert_eq!((ran.summary("Workspace"), ran.summary("Network")), ("report", "isolated"));
    assert!(ran.summary("Resources").starts_with("memory=200MiB cpus=1 "), "{}", ran.told());
    let said = "/tmp\nbox\nline\nscript\nof the host\nspec 8080 beside the spec\n1\n";
    assert!(ran.text().ends_with(said), "{}", ran.told());
    ran.says("`service` of the spec file has no effect on run");
    home.microagent(["artifact", "get", "report", "made", "made"]).success();
    assert_eq!(fs::read_to_string(home.path().join("made")).unwrap(), "line\nscript\n");
    home.microagent(["delete", "report", "--yes"]).success();

    let flags =
        ["run", "--file", SPEC, "--rm", "--name", "other", "-e", "GREETING=flag", "-w", "/", "-m", "256"];
    let ran = home.microagent(flags).args(["sh", "-c", "pwd; hostname; echo $GREETING $PORT"]).success();
    assert_eq!(ran.summary("Workspace"), "other");
    assert!(ran.summary("Resources").starts_with("memory=256MiB cpus=1 "), "{}", ran.told());
    assert!(ran.text().ends_with("/\nbox\nflag 8080\n"), "{}", ran.told());
    home.nothing_is_left();
}

/// The lines of changes that `apply` shows.
fn changes(applied: &Finished) -> Vec<&str> {
    applied.text().lines().filter_map(|line| line.strip_prefix("  ")).collect()
}

#[test]
fn a_workspace_follows_its_file() {
    let home = home();
    home.make_dir("specs");
    let apply = |lines: &str| {
        write_spec(&home, lines);
        home.microagent(["apply", "web", "--file", SPEC])
    };
    let exec =
        |line: &str| home.microagent(["exec", "web", "--", "sh", "-c", line]).success().text().to_owned();
    let record = || fs::read_to_string(home.workspace("web").join("workspace.json")).unwrap();
    let workload = || fs::read_to_string(home.workspace("web").join("workload.json")).unwrap();

    write_spec(
        &home,
        "name: web\nsetup: [touch /root/made]\nenv: {A: one, B: secret of b}\nrestart: never\n",
    );
    // The name of the line goes before that of the file.
    home.microagent(["create", "--file", SPEC]).success();
    let same = home.microagent(["apply", "--file", SPEC]).success();
    assert!(same.text().ends_with("Nothing to change.\n"), "{}", same.told());

    // While it runs: restart policy and outputs, and nothing else.
    home.microagent(["start", "web"]).success();
    let live = "restart: on-failure\noutputs: [{name: made, path: /root/made}]\n";
    let applied = apply(live).success();
    assert_eq!(changes(&applied), ["restart: never -> on-failure", "outputs[made]: none -> /root/made"]);
    assert!(apply(live).success().text().ends_with("Nothing to change.\n"));
    let (before, kept) = (record(), workload());
    let refused = apply("restart: always\nenv: {A: two}\nuser: nobody\n").run().code(1);
    refused.says("is running, and user, env[A], env[B] change only at rest").says("microagent halt web");
    let looked = apply("restart: always\nenv: {A: two}\n").args(["--dry-run"]).success();
    assert!(looked.text().contains("Would change:\n"), "{}", looked.told());
    assert!(looked.text().contains("  env[A]: changed (only at rest)\n"), "{}", looked.told());
    assert_eq!((record(), workload()), (before, kept));
    // Its supervisor knows nothing of it, and leaves it as it is.
    home.microagent(["halt", "web"]).success();
    let status = home.microagent(["status", "web", "--json"]).success().json();
    assert_eq!(status["restart"], "on-failure", "{status}");
    home.microagent(["artifact", "get", "web", "made", "made"]).success();

    // At rest: all else.
    let (before, kept) = (record(), workload());
    let rest = "hostname: box\nworkdir: /tmp\nenv: {A: two, C: three}\nshell: ash\n\
        resources: {memoryMiB: 200, cpuCount: 1, sizeMiB: 2048}\nservice: 'echo serving; exec sleep 1000'\n";
    let looked = apply(rest).args(["--dry-run"]).success();
    assert_eq!((record(), workload()), (before.clone(), kept.clone()));
    let applied = apply(rest).success();
    assert_eq!(changes(&applied), changes(&looked));
    assert_eq!(
        changes(&applied),
        [
            "resources.memoryMiB: 512 -> 200",
            "resources.cpuCount: 2 -> 1",
            "resources.sizeMiB: 1024 -> 2048",
            "service: none -> echo serving; exec sleep 1000",
            "shell: none -> ash",
            "hostname: web -> box",
            "workdir: / -> /tmp",
            "env[A]: changed",
            "env[B]: removed",
            "env[C]: added",
        ]
    );
    assert!(!applied.text().contains("two") && !record().contains("secret of b"));
    // As if it had been killed between the two files: the second try writes the other.
    home.write(".microagent/workspaces/web/workspace.json", &before);
    let again = apply(rest).success();
    assert_eq!(changes(&again).len(), 4, "{}", again.told());
    assert!(apply(rest).success().text().ends_with("Nothing to change.\n"));

    home.microagent(["start", "web"]).success();
    home.log_has("web", "console.log", "serving");
    assert_eq!(
        exec("hostname; pwd; echo $A $B $C $HOSTNAME; nproc; ls /root/made"),
        "box\n/tmp\ntwo three box\n1\n/root/made\n"
    );
    let blocks: u64 = exec("df -m / | tail -n 1 | awk '{print $2}'").trim().parse().unwrap();
    assert!(blocks > 1500, "the disk has {blocks} MiB");
    home.microagent(["halt", "web"]).success();

    // What cannot change is named, and nothing else changes either.
    let before = record();
    let refused = apply("restart: never\nsetup: [other]\nresources: {sizeMiB: 1024}\n").run().code(2);
    refused.says("its disk has 2048 MiB").says("its setup has run").says("nothing was changed");
    home.write("specs/other.yaml", "image: alpine:3.20\nrestart: never\n");
    let refused = home.microagent(["apply", "web", "--file", "specs/other.yaml", "--json"]).run().code(2);
    refused.says("the file says `alpine:3.20`");
    apply("network: {mode: user}\n").run().code(2).says("is given twice");
    apply("resources: {memoryMiB: 1}\n").run().code(2).says("too little");
    assert_eq!(record(), before);
    let json = apply("restart: always\n").args(["--json"]).success().json();
    assert_eq!(json["changes"][0]["key"], "restart");
    assert_eq!((&json["changes"][0]["new"], &json["dry_run"]), (&"always".into(), &false.into()));
    home.microagent(["delete", "web", "--yes"]).success();
    home.microagent(["apply", "web", "--file", SPEC]).run().code(1).says("no workspace `web`");
    home.nothing_is_left();
}

#[test]
fn disks_of_a_file_are_attached_and_exchanged() {
    let home = home();
    home.make_dir("specs");
    home.make_dir("specs/tree");
    home.write("specs/tree/hello", "from the bundle\n");
    let tar = ["-cf", "specs/tree.tar", "-C", "specs/tree", "."];
    home.other("tar").args(tar).success();
    let apply = |lines: &str| {
        write_spec(&home, lines);
        home.microagent(["apply", "web", "--file", SPEC])
    };
    let exec =
        |line: &str| home.microagent(["exec", "web", "--", "sh", "-c", line]).success().text().to_owned();
    let bundle = "bundles: [{path: tree.tar, mountpoint: /src, mode: ro}]\n";

    // The volume stands before the bundle, so that what goes away is not the last.
    write_spec(&home, &format!("name: web\nvolumes: ['first:/data']\n{bundle}"));
    home.microagent(["create", "--file", SPEC])
        .success()
        .says("volume `first` did not exist and was created");
    assert!(
        apply(&format!("volumes: ['first:/data']\n{bundle}")).success().text().contains("Nothing to change.")
    );
    home.microagent(["start", "web"]).success();
    assert_eq!(
        exec("cat /src/hello; echo kept > /data/file; mount | grep -c ' on /src .*ro'"),
        "from the bundle\n1\n"
    );
    apply("volumes: []\n").run().code(1).says("volumes[/data] changes only at rest");
    home.microagent(["halt", "web"]).success();

    // Its disk has been made: the tar file may go.
    fs::remove_file(home.path().join("specs/tree.tar")).unwrap();
    let applied = apply("volumes: [{name: second, mountpoint: /other}, 'first:/data:ro']\n").success();
    assert_eq!(
        changes(&applied),
        ["volumes[/data]: first:rw -> first:ro", "volumes[/other]: none -> second:rw"]
    );
    applied.says("volume `second` did not exist and was created");
    home.microagent(["start", "web"]).success();
    assert_eq!(
        exec("cat /src/hello /data/file; touch /other/x; touch /data/x 2>/dev/null || echo read only"),
        "from the bundle\nkept\nread only\n"
    );
    home.microagent(["halt", "web"]).success();
    let applied = apply("volumes: []\n").success();
    assert_eq!(changes(&applied), ["volumes[/other]: second:rw -> none", "volumes[/data]: first:ro -> none"]);
    home.microagent(["start", "web"]).success();
    assert_eq!(exec("cat /src/hello; ls -A /data"), "from the bundle\n");
    home.microagent(["halt", "web"]).success();

    let before = fs::read_to_string(home.workspace("web").join("workspace.json")).unwrap();
    apply("bundles: []\nrestart: always\n").run().code(2).says("its bundles have been made into disks");
    apply("volumes: ['first:/src']\n").run().code(2).says("two disks are mounted on");
    apply("disks: [{path: none.img, mountpoint: /x}]\n").run().code(1).says("none.img");
    assert_eq!(fs::read_to_string(home.workspace("web").join("workspace.json")).unwrap(), before);
    home.microagent(["delete", "web", "--yes"]).success();
    for volume in ["first", "second"] {
        home.microagent(["volume", "delete", volume]).success();
    }
    home.nothing_is_left();
}

#[test]
fn a_file_that_names_a_snapshot_makes_a_workspace_of_it_and_changes_that() {
    let home = home();
    home.make_dir("specs");
    let service = "while true; do echo x >> /dev/shm/count; sleep 0.2; done";
    home.create("lab", ["-e", "STAGE=lab", "--service-command", service]);
    home.microagent(["start", "lab"]).success();
    let exec = |name: &str, line: &str| {
        home.microagent(["exec", name, "--", "sh", "-c", line]).success().text().to_owned()
    };
    exec("lab", "echo prepared > /root/file; echo note > /dev/shm/note; sync");
    home.microagent(["snapshot", "create", "lab", "--tag", "prepared"]).success();
    let write = |keys: &str| home.write(SPEC, format!("fromSnapshot: lab:prepared\n{keys}"));
    write("name: trial\nenv: {STAGE: trial}\nrestart: always\nlabels: {team: a}\n");
    // What does not go with a snapshot makes nothing.
    let create = |words: &[&str]| home.microagent(["create", "--file", SPEC]).args(words);
    create(&["-m", "1g"]).run().code(2).says("fromSnapshot").says("write the settings into the file");
    write("name: trial\nsetup: ['true']\n");
    create(&[]).run().code(2).says("its setup has run");
    write("name: trial\nvolumes: ['data:/data']\n");
    create(&["--start"]).run().code(1).says("the disks of the workspace is different");
    write("name: trial\nimage: busybox\n");
    create(&[]).run().code(2).says("`image` and `fromSnapshot`");
    home.write(SPEC, "name: trial\nfromSnapshot: lab:none\n");
    create(&[]).run().code(1).says("has no snapshot `none`");
    home.write(SPEC, "name: trial\nfromSnapshot: lab\n");
    create(&[]).run().code(2).says("WORKSPACE:TAG");
    assert_eq!(home.workspaces(), ["lab"]);

    write("name: trial\nenv: {STAGE: trial}\nrestart: always\nlabels: {team: a}\n");
    let made = create(&[]).success();
    assert_eq!((made.summary("Workspace"), made.summary("State")), ("trial", "stopped"));
    let status = home.microagent(["status", "trial", "--json"]).success().json();
    assert_eq!((&status["restart"], &status["labels"]["team"]), (&"always".into(), &"a".into()), "{status}");
    home.microagent(["start", "trial"]).success();
    let shown = "cat /root/file; echo $STAGE; hostname; ls /dev/shm/note 2> /dev/null || echo booted";
    assert_eq!(exec("trial", shown), "prepared\ntrial\ntrial\nbooted\n");
    // The file is the workspace's from then on.
    let applied = home.microagent(["apply", "--file", SPEC]).success();
    assert!(applied.text().ends_with("Nothing to change.\n"), "{}", applied.told());
    home.microagent(["halt", "trial"]).success();
    write("name: trial\nenv: {STAGE: later}\n");
    home.microagent(["apply", "--file", SPEC]).success();
    home.write(SPEC, "name: trial\nfromSnapshot: lab:other\n");
    home.microagent(["apply", "--file", SPEC]).run().code(2).says("created from snapshot `lab:prepared`");

    // With the processes of that time, and another name than the file's.
    write("name: trial\nresources: {memoryMiB: 600}\n");
    let started = create(&["live", "--start", "--json"]).success().json();
    // A memory has the size of its machine; the next boot has that of the file.
    let size = |document: &serde_json::Value| document["resources"]["memory_mib"].clone();
    assert_eq!((&started["state"], size(&started)), (&"running".into(), 512.into()));
    assert_eq!(exec("live", "cat /root/file /dev/shm/note; hostname"), "prepared\nnote\nlive\n");
    home.microagent(["restart", "live"]).success();
    assert_eq!(size(&home.microagent(["status", "live", "--json"]).success().json()), 600);
    home.microagent(["run", "--file", SPEC]).run().code(2).says("no image was given");
}
