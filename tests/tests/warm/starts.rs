//! Which starts are warm, how that is said, and the commands around it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use std::fs;

use microagent_tests::{Home, User, listing, user};

use super::support::{
    MISSING, QUICK, home, is_cold, is_mounted, is_warm, listed, only_image_template, only_template, printed,
    quick, templates_in,
};

#[test]
fn the_second_run_of_a_shape_is_warm_and_says_so() {
    for user in [User::Caller, User::unprivileged()] {
        let home = Home::new(user);
        let first = is_cold(quick(&home, &["echo", "first"]), MISSING);
        assert_eq!(printed(&first), "first\n");
        assert!(first.json()["timeline"]["freeze_us"].as_u64().unwrap() > 0, "{}", first.told());
        let inode = fs::metadata(only_template(&home).join("ram")).unwrap().ino();

        let doctor = home.microagent(["doctor"]).success();
        assert!(doctor.text().contains("warm start: on, 1 template, "), "{}", doctor.told());

        let second = is_warm(quick(&home, &["echo", "second"]));
        assert_eq!(printed(&second), "second\n");
        assert_eq!(fs::metadata(only_template(&home).join("ram")).unwrap().ino(), inode);
        // It was frozen once more, with its image mounted.
        assert!(second.json()["timeline"]["freeze_us"].as_u64().unwrap() > 0, "{}", second.told());
        let inode = fs::metadata(only_image_template(&home).join("ram")).unwrap().ino();

        let third = is_mounted(quick(&home, &["echo", "third"]));
        assert_eq!(printed(&third), "third\n");
        assert_eq!(third.json()["timeline"]["freeze_us"], 0, "{}", third.told());
        assert_eq!(fs::metadata(only_image_template(&home).join("ram")).unwrap().ino(), inode);
        home.nothing_is_left();
    }
}

#[test]
fn another_size_or_network_is_another_shape() {
    let home = home();
    is_cold(quick(&home, &["true"]), MISSING);
    is_cold(home.run("busybox", ["--json", "--profile", "tiny"], &["true"]), MISSING);
    is_cold(home.run("busybox", ["--json", "--memory", "200", "--cpus", "2"], &["true"]), MISSING);
    assert_eq!(templates_in(&home.state()).len(), 3);
    is_warm(home.run("busybox", ["--json", "--memory", "200", "--cpus", "2"], &["true"]));
    is_warm(home.run("busybox", ["--json", "--profile", "tiny"], &["true"]));
    // The disk's size does not matter to that template: it sees the disk only afterwards. That of an image has
    // the disk at its size.
    for mib in [2000, 1000, 3000, 2000] {
        let size = mib.to_string();
        let options = ["--json", "--profile", "tiny", "--size-mib", &size];
        let show = "cat /sys/class/block/sda/size; df -m / | tail -1";
        let run = is_warm(home.run("busybox", options, &["sh", "-c", show]));
        let printed = printed(&run);
        assert_eq!(printed.lines().next(), Some((mib * 2048).to_string().as_str()), "{}", run.told());
        let of_file_system: u64 = printed.split_whitespace().nth(2).unwrap().parse().unwrap();
        assert!((mib * 9 / 10..=mib).contains(&of_file_system), "{}", run.told());
    }
    home.nothing_is_left();
}

#[test]
fn a_template_belongs_to_its_user_alone() {
    let home = home();
    is_cold(quick(&home, &["true"]), MISSING);
    is_warm(quick(&home, &["true"]));
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&home.state().join("templates")), 0o700);
    for (template, files) in [(only_template(&home), 3), (only_image_template(&home), 4)] {
        assert_eq!(mode(&template), 0o700);
        for name in ["ram", "state", "manifest.json", "disk.qcow2"].iter().take(files) {
            assert!(user::is_closed_to_others(&template.join(name)), "{name}");
            if *name == "ram" && user::is_root() {
                // Machines of root have users of their own, which open it without a copy.
                assert_eq!(fs::metadata(template.join(name)).unwrap().gid(), user::MACHINES_GROUP);
            }
        }
        let found = fs::read_dir(&template).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(found.filter(|name| name != "disk.qcow2").count(), 3);
        // Memory that the guest never touched takes no room.
        let ram = fs::metadata(template.join("ram")).unwrap();
        assert_eq!(ram.len(), 256 << 20);
        assert!(ram.blocks() * 512 < ram.len() / 2, "{} blocks", ram.blocks());
    }
}

#[test]
fn every_image_has_a_template_of_its_own() {
    let home = home();
    let run = |image: &str| home.run(image, QUICK, &["cat", "/etc/os-release"]);
    let busybox = || quick(&home, &["sh", "-c", "echo $((++n)) >> /count; cat /count"]);
    is_cold(busybox(), MISSING);
    is_warm(run("debian"));
    is_warm(busybox());
    let debian = is_mounted(run("debian"));
    assert!(printed(&debian).contains("Debian GNU/Linux"), "{}", debian.told());
    for _ in 0..2 {
        // What the run before has written is not there.
        assert_eq!(printed(&is_mounted(busybox())), "1\n");
    }
    let disks: Vec<_> = listed(&home).iter().map(|template| template["disk"].clone()).collect();
    assert_eq!(disks.iter().filter(|disk| disk.is_null()).count(), 1, "{disks:?}");
    assert_eq!(disks.len(), 3);

    // Setup, users and kept disks are as after a boot.
    let options = [
        &QUICK[1..],
        &[
            "--keep",
            "--name",
            "kept",
            "--setup",
            "echo set > /s",
            "--output",
            "s=/s",
            &home.image("busybox"),
            "id",
        ],
    ];
    home.microagent(["run"]).args(options.concat()).success();
    home.microagent(["artifact", "get", "kept", "s", "s"]).success();
    assert_eq!(fs::read_to_string(home.path().join("s")).unwrap(), "set\n");
    home.microagent(["delete", "kept", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn cold_and_off_use_none_and_make_none() {
    let home = home();
    let cold =
        || home.run("busybox", ["--json", "--cold", "--network", "isolated", "--profile", "tiny"], &["true"]);
    let off = || quick(&home, &["true"]).env("MICROAGENT_WARM", "off");
    is_cold(cold(), "--cold");
    is_cold(off(), "MICROAGENT_WARM");
    assert_eq!(listed(&home), Vec::<serde_json::Value>::new());

    is_cold(quick(&home, &["true"]), MISSING);
    let before = listing::listing(&home.state().join("templates"));
    is_cold(cold(), "--cold");
    is_cold(off(), "MICROAGENT_WARM");
    assert_eq!(listing::listing(&home.state().join("templates")), before);
    let doctor = home.microagent(["doctor"]).env("MICROAGENT_WARM", "off").success();
    assert!(doctor.text().contains("warm start: off, turned off by MICROAGENT_WARM"), "{}", doctor.told());
    is_warm(quick(&home, &["true"]));
    home.nothing_is_left();
}

/// The machine that reads a resting disk starts as any other.
#[test]
fn fetching_an_artifact_makes_and_uses_a_template() {
    let home = home();
    let options = ["--keep", "--name", "kept", "--cold", "--output", "r=/report", "--network", "isolated"];
    home.run("busybox", options, &["sh", "-c", "echo content > /report"]).success();
    assert_eq!(templates_in(&home.state()).len(), 0);
    let mut used = Vec::new();
    for name in ["one", "two"] {
        home.microagent(["artifact", "get", "kept", "r", name]).success();
        assert_eq!(fs::read_to_string(home.path().join(name)).unwrap(), "content\n");
        let template = only_template(&home);
        used.push(fs::metadata(template.join("manifest.json")).unwrap().modified().unwrap());
    }
    assert!(used[0] < used[1], "the second machine started from the template of the first");
    home.microagent(["delete", "kept", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn templates_are_built_listed_and_pruned_by_hand() {
    let home = home();
    let build = ["template", "build", "--profile", "tiny", "--network", "isolated"];
    let built = home.microagent(build).arg("--json").success().json();
    let list = listed(&home);
    assert_eq!(list.len(), 1);
    assert_eq!(built["template"], list[0]);
    assert_eq!((&list[0]["memory_mib"], &list[0]["network"]), (&256.into(), &"isolated".into()));
    assert_eq!(list[0]["stale"], false);
    assert!(built["timeline"]["freeze_us"].as_u64().unwrap() > 0, "{built}");
    is_warm(quick(&home, &["true"]));

    // Once more makes another one in its place.
    let inode = |home: &Home| fs::metadata(only_template(home).join("ram")).unwrap().ino();
    let before = inode(&home);
    let again = home.microagent(build).success();
    assert!(again.text().contains("Frozen: "), "{}", again.told());
    assert_ne!(inode(&home), before);
    is_warm(quick(&home, &["true"]));

    assert_eq!(home.microagent(["template", "prune"]).success().text(), "Nothing to remove.\n");
    let pruned = home.microagent(["template", "prune", "--all"]).success();
    assert!(pruned.text().starts_with("Removed 2 templates, "), "{}", pruned.told());
    assert_eq!(home.microagent(["template", "list"]).success().text(), "No templates.\n");
    is_cold(quick(&home, &["true"]), MISSING);
    home.nothing_is_left();
}

#[test]
fn the_least_recently_used_templates_make_room() {
    let home = home();
    let build = |mib: usize| {
        let mib = mib.to_string();
        home.microagent(["template", "build", "--cpus", "1", "--network", "isolated", "--memory", &mib])
            .success();
    };
    let sizes = |home: &Home| {
        let mut sizes: Vec<_> =
            listed(home).iter().map(|template| template["memory_mib"].as_u64().unwrap()).collect();
        sizes.sort_unstable();
        sizes
    };
    for mib in 128..151 {
        build(mib);
    }
    assert_eq!(sizes(&home), (128..151).collect::<Vec<_>>());
    // The oldest is used, so it stays when there is one too many; the image of that run has one now, too.
    is_warm(home.run(
        "busybox",
        ["--json", "--memory", "128", "--cpus", "1", "--network", "isolated"],
        &["true"],
    ));
    build(151);
    assert_eq!(sizes(&home), [128, 128].into_iter().chain(130..152).collect::<Vec<_>>());
    home.nothing_is_left();
}

#[test]
fn perf_measures_both_kinds_of_start() {
    let home = home();
    let image = home.image("busybox");
    let series =
        ["--profile", "tiny", "--network", "isolated", "--iterations", "2", "--json", "--image", &image];
    let boot = home.microagent(["perf", "boot"]).args(series).success().json();
    let iterations = boot["iterations"].as_array().unwrap();
    let starts: Vec<_> = iterations.iter().map(|iteration| iteration["start"].as_str().unwrap()).collect();
    assert_eq!(starts, ["cold", "warm", "cold", "warm"]);
    for iteration in iterations {
        assert_eq!(iteration["ok"], true, "{iteration}");
        let phases = iteration["phases"].as_object().unwrap();
        let parts = ["disk_ms", "network_ms"];
        let sum: f64 = phases
            .iter()
            .filter(|(name, _)| !parts.contains(&name.as_str()))
            .map(|(_, ms)| ms.as_f64().unwrap())
            .sum();
        let total = iteration["duration_ms"].as_f64().unwrap();
        assert!((sum - total).abs() < 1.0, "the phases are {sum} ms of {total} ms: {iteration}");
    }
    for (start, phase) in [("cold", "kernel_and_agent"), ("warm", "restore")] {
        let summary = &boot["summary"][start];
        assert_eq!((&summary["count"], &summary["failures"]), (&2.into(), &0.into()));
        assert!(summary["min_ms"].as_f64() <= summary["p50_ms"].as_f64(), "{summary}");
        assert!(summary["p95_ms"].is_null(), "two samples have no 95th percentile");
        let phases = summary["phases"].as_array().unwrap();
        assert!(phases.iter().any(|one| one["name"] == phase), "{summary}");
    }

    let ready = home.microagent(["perf", "ready", "--start", "warm"]).args(series).success().json();
    for iteration in ready["iterations"].as_array().unwrap() {
        assert!(iteration["full_ready_ms"].as_f64() < iteration["duration_ms"].as_f64(), "{iteration}");
    }
    // What fails is told, counted, and the exit code.
    let failed = home.microagent(["perf", "boot", "--exec", "exit 3"]).args(series).run().code(1).json();
    assert_eq!(failed["summary"]["warm"]["failures"], 2);
    assert_eq!(failed["iterations"][0]["error"], "the command exited with 3");
    let off = home.microagent(["perf", "boot", "--start", "warm"]).args(series).env("MICROAGENT_WARM", "off");
    let off = off.run().code(1).json();
    assert_eq!(off["iterations"][0]["error"], "it started cold: turned off by MICROAGENT_WARM");
    home.nothing_is_left();
}
