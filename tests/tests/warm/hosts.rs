//! The host gets in the way: no room, no permission, another QEMU, no memory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use microagent_tests::host::SmallDisk;
use microagent_tests::{Home, User, host, user};
use rustix::fs::statvfs;

use super::support::{MISSING, QUICK, home, is_cold, is_warm, listed, quick, templates_in};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_template_directory_that_is_read_only_costs_the_warm_start_and_nothing_else() {
    let home = Home::new(User::unprivileged());
    is_cold(home.run("busybox", ["--json", "--cold", "--network", "isolated"], &["true"]), "--cold");
    let templates = home.state().join("templates");
    set_mode(&templates, 0o500);
    is_cold(quick(&home, &["true"]), "and none can be made");
    set_mode(&templates, 0o700);
    assert_eq!(templates_in(&home.state()).len(), 0);
    is_cold(quick(&home, &["true"]), MISSING);
    // What is there already needs no writing.
    set_mode(&templates, 0o500);
    is_warm(quick(&home, &["true"]));
    set_mode(&templates, 0o700);
    home.nothing_is_left();
}

#[test]
fn a_disk_that_is_too_full_for_a_template_costs_the_warm_start_and_nothing_else() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = home();
    let state = home.make_dir("state");
    let _disk = SmallDisk::mount(&state, 200);
    let image = home.image("busybox");
    let call = || home.call().env("MICROAGENT_STATE_DIR", &state).arg("run");
    let quick = || call().args(QUICK).args([&image, "true"]);
    call().args(["--cold", "--network", "isolated", &image, "true"]).success();
    // Leaves room for a run, but not for the memory of a guest.
    let free = || statvfs(&state).map(|stat| stat.f_bavail * stat.f_frsize).unwrap();
    let ballast = state.join("ballast");
    fs::write(&ballast, vec![1; usize::try_from(free() - (12 << 20)).unwrap()]).unwrap();

    let notes = call().args(["--profile", "tiny", "--network", "isolated", &image, "echo", "full"]).success();
    assert_eq!(notes.guest_output(), "full\n");
    notes.says("Note: no template was made: ").says("No space left on device");
    is_cold(quick(), MISSING);
    assert_eq!(templates_in(&state).len(), 0);
    assert_eq!(fs::read_dir(state.join("tmp")).unwrap().count(), 0);
    assert!(free() > 10 << 20, "{} bytes are free", free());

    fs::remove_file(ballast).unwrap();
    is_cold(quick(), MISSING);
    is_warm(quick());
    home.processes_end();
}

#[test]
fn an_upgraded_qemu_starts_from_no_template_of_the_old_one() {
    let home = home();
    let bin = home.make_dir("bin");
    home.make_dir("share");
    // It looks for firmware and modules beside itself.
    symlink("/usr/share/qemu", home.path().join("share/qemu")).unwrap();
    symlink("/usr/lib", home.path().join("lib")).unwrap();
    let (installed, own) = (host::find_program("qemu-system-x86_64"), bin.join("qemu-system-x86_64"));
    let install = || {
        // As a package manager does it: a new file takes the name of the old one.
        fs::copy(&installed, bin.join("new")).unwrap();
        fs::rename(bin.join("new"), &own).unwrap();
    };
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let run = || quick(&home, &["true"]).env("PATH", &path);
    install();
    is_cold(run(), MISSING);
    is_warm(run());
    // The installed one is another file, though it is the same program.
    is_cold(quick(&home, &["true"]), MISSING);
    install();
    is_cold(run(), MISSING);
    is_warm(run());
    is_warm(quick(&home, &["true"]));
    assert_eq!(listed(&home).iter().filter(|template| template["disk"].is_null()).count(), 3);
    home.nothing_is_left();
}

/// Address space that this program and its supervisor can live in, and QEMU with the memory asked for cannot.
const ADDRESS_SPACE: &str = "--as=3221225472";

#[test]
fn memory_that_the_host_refuses_fails_clearly_and_leaves_nothing() {
    if !host::has_program("prlimit") {
        return host::skip("there is no prlimit to take memory away with");
    }
    let home = home();
    let large = ["run", "--memory", "6000", "--cpus", "1", "--network", "isolated"];
    let image = home.image("busybox");
    let program = home.program().to_str().unwrap();
    for options in [&["--cold"][..], &[]] {
        let run = home.other("prlimit").arg(ADDRESS_SPACE).arg(program).args(large).args(options);
        let run = run.args([&image, "true"]).run().code(1);
        let run = run.says("QEMU failed: ").says("Cannot allocate memory");
        let name = run.failed_workspace().to_owned();
        home.processes_end();
        assert_eq!(home.state_of(&name), "failed");
        home.microagent(["delete", &name, "--yes"]).success();
        assert_eq!(templates_in(&home.state()).len(), 0);
        home.nothing_is_left();
    }
    // A machine that fits still runs, below the same limit.
    let small = ["run", "--profile", "tiny", "--network", "isolated", &image, "echo", "fits"];
    let run = home.other("prlimit").arg(ADDRESS_SPACE).arg(program).args(small).success();
    assert_eq!(run.guest_output(), "fits\n");
    home.nothing_is_left();
}
