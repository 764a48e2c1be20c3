//! What a run leaves behind, and where it writes.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use microagent_tests::{Home, User, host, listing, user};

fn disposable(user: User) {
    let home = Home::new(user);
    let (state, scratch) = (home.path().join("deep/er/state"), home.make_dir("scratch"));
    let call = || {
        home.call()
            .env("MICROAGENT_STATE_DIR", &state)
            .env("TMPDIR", &scratch)
            .env("XDG_RUNTIME_DIR", &scratch)
    };
    let image = home.image("busybox");
    fs::create_dir(home.path().join("work")).unwrap();
    let work = home.path().join("work");
    fs::set_permissions(&work, fs::Permissions::from_mode(0o555)).unwrap();
    let before = listing::listing(home.path());
    call().dir(&work).args(["run", &image, "sh", "-c", "echo 1 > /file"]).success();
    let in_state = |path: &std::path::PathBuf| path.starts_with(home.path().join("deep"));
    let after = |_: ()| {
        let mut now = listing::listing(home.path());
        now.retain(|path, _| !in_state(path));
        now
    };
    assert_eq!(after(()), before, "something was written outside the state directory");

    // Templates that the first run did not make, the second one makes; a run that is killed may not.
    call().dir(&work).args(["run", &image, "true"]).success();
    call().dir(&work).args(["run", &image, "true"]).success();

    // A failed run writes no more elsewhere, and a further one of the same image adds nothing to the state.
    call().dir(&work).args(["run", "--timeout", "1", "--name", "slow", &image, "sleep", "60"]).run().code(1);
    call().dir(&work).args(["delete", "slow", "--yes"]).success();
    // When an image was last used is written down, so only the names are compared.
    let names = || listing::listing(&state).into_keys().collect::<Vec<_>>();
    let names_before = names();
    call().dir(&work).args(["run", &image, "true"]).success();
    assert_eq!(names(), names_before, "a disposable run left something");
    assert_eq!(after(()), before, "something was written outside the state directory");
    home.processes_end();
    assert_eq!(call().arg("list").success().text(), "No workspaces.\n");

    for (path, line) in listing::listing(&state) {
        assert!(user::is_closed_to_others(&path), "{} is open to others: {line}", path.display());
    }
}

#[test]
fn a_disposable_run_leaves_nothing_for_the_caller() {
    disposable(User::Caller);
}

#[test]
fn a_disposable_run_leaves_nothing_for_an_ordinary_user() {
    if !user::is_root() {
        return host::skip("the caller is an ordinary user already");
    }
    disposable(User::Ordinary);
}

/// Makes every file system read-only but the state directory's, then runs the rest of the words.
const ALL_READ_ONLY: &str = r#"
    set -e
    mount --make-rprivate /
    mount --bind "$1" "$1"
    while read -r _ _ _ _ point _; do
        case $point in
            /proc|/proc/*|/sys|/sys/*|/dev|/dev/pts|"$1") ;;
            *) mount -o remount,bind,ro "$point" ;;
        esac
    done < /proc/self/mountinfo
    shift
    exec "$@"
"#;

#[test]
fn only_the_state_directory_has_to_be_writable() {
    if !user::is_root() {
        return host::skip("only root can make its whole file system read-only");
    }
    let home = Home::new(User::Caller);
    let state = home.make_dir("state");
    let (state, image) = (state.to_str().unwrap(), home.image("busybox"));
    let words = ["--mount", "sh", "-c", ALL_READ_ONLY, "sh", state, home.program().to_str().unwrap()];
    let run = home
        .other("unshare")
        .args(words)
        .args(["--state-dir", state, "run", &image, "echo", "fine"])
        .success();
    assert_eq!(run.guest_output(), "fine\n");
    let write =
        home.other("unshare").args(&words[..6]).args(["touch", "/tmp/microagent-test-probe"]).failure();
    assert!(
        write.stderr.contains("Read-only file system"),
        "the check itself does not work\n{}",
        write.told()
    );
}
