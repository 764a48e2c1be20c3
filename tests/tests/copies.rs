//! Files into and out of workspaces, running and resting, on real guests.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use microagent_tests::pty::Pty;
use microagent_tests::{Home, User};
use rustix::fs::{XattrFlags, getxattr, setxattr};

fn home() -> Home {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    home
}

#[track_caller]
fn end(home: &Home) {
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

/// The same steps on a resting and on a running workspace.
#[test]
fn files_and_directories_go_both_ways_by_the_rules_of_docker() {
    let home = home();
    home.write("app.py", "print(1)\n");
    fs::set_permissions(home.path().join("app.py"), fs::Permissions::from_mode(0o640)).unwrap();
    let tree = home.make_dir("tree");
    home.make_dir("tree/empty");
    home.write("tree/one", "1\n");
    fs::hard_link(tree.join("one"), tree.join("same")).unwrap();
    symlink("one", tree.join("link")).unwrap();
    // Looks like records of a tar stream to whoever splits them at newlines.
    let lines = b"a\n18 path=elsewhere\n=\0";
    setxattr(tree.join("one"), "user.lines", lines, XattrFlags::empty()).unwrap();
    for running in [false, true] {
        if running {
            home.microagent(["start", "web"]).success();
        }
        let cp = |from: &str, to: &str| home.microagent(["cp", from, to]);
        cp("app.py", "web:/root/").success();
        cp("app.py", "web:/root/renamed.py").success();
        cp("tree", "web:/root/new").success();
        cp("tree", "web:/root/new").success();
        cp("tree/.", "web:/tmp").success();
        cp("app.py", "web:/missing/").run().code(1).says("there is no directory");
        cp("tree", "web:/root/renamed.py").run().code(2).says("is not a directory");
        cp("nothing", "web:/root/").run().code(1).says("nothing");
        cp("web:/nothing", "out").run().code(1).says("does not exist");

        cp("web:/root/renamed.py", "back.py").success();
        assert_eq!(fs::read_to_string(home.path().join("back.py")).unwrap(), "print(1)\n");
        assert_eq!(fs::metadata(home.path().join("back.py")).unwrap().mode() & 0o777, 0o640);
        let back = if running { "back-running" } else { "back-resting" };
        cp("web:/root/new", back).success();
        let back = home.path().join(back);
        let inode = |name: &str| fs::metadata(back.join(name)).unwrap().ino();
        assert_eq!(inode("one"), inode("same"));
        assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("one"));
        assert!(back.join("empty").is_dir() && back.join("tree/one").is_file());
        let mut found = [0; 64];
        let len = getxattr(back.join("one"), "user.lines", &mut found).unwrap();
        assert_eq!(&found[..len], lines);
        let time = |path: &std::path::Path| fs::metadata(path).unwrap().mtime();
        assert_eq!(time(&back.join("one")), time(&tree.join("one")));
    }
    let words = ["exec", "web", "--", "stat", "-c", "%u %a", "/root/app.py", "/tmp/one"];
    let owner = fs::metadata(tree.join("one")).unwrap().uid();
    let shown = home.microagent(words).success();
    assert!(shown.text().starts_with(&format!("{owner} 640\n{owner} ")), "{}", shown.told());
    end(&home);
}

#[test]
fn a_tar_stream_goes_in_and_comes_out_as_it_is() {
    let home = home();
    home.write("app.py", "print(1)\n");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o4711);
    header.set_uid(1234);
    header.set_gid(5678);
    header.set_mtime(1_500_000_000);
    tar.append_data(&mut header, "dir/file", &b"hello"[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    home.microagent(["cp", "-", "web:/root"]).stdin(tar.clone()).success();
    let cp = |to: &str, tar: &[u8]| home.microagent(["cp", "-", to, "--json"]).stdin(tar.to_vec()).run();
    let missing = cp("web:/missing", &tar).code(1).told();
    assert!(
        missing.contains("there is no directory `/missing`") && missing.contains("not_found"),
        "{missing}"
    );
    assert!(missing.contains("create the directory first\""), "{missing}");
    cp("web:/etc/passwd", &tar).code(2).says("which is not a directory");
    // The guest is well, and what it was sent is not.
    cp("web:/tmp", b"no tar at all").code(1).says("guest_refused");
    let out = home.microagent(["cp", "web:/root/dir/file", "-"]).success();
    let mut archive = tar::Archive::new(&out.stdout[..]);
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    let header = entry.header();
    assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (1234, 5678));
    assert_eq!((header.mode().unwrap() & 0o7777, header.mtime().unwrap()), (0o4711, 1_500_000_000));
    home.microagent(["cp", "app.py", "other.py"])
        .run()
        .code(2)
        .says("neither source nor target is in a workspace");
    home.microagent(["cp", "web:/a", "web:/b"]).run().code(2).says("both in workspaces");
    // The guest refuses what is no tar, and the workspace is unharmed.
    home.microagent(["cp", "-", "web:/root"]).stdin("this is not a tar stream".repeat(100)).run().code(1);
    home.microagent(["cp", "app.py", "web:/root/"]).success();
    end(&home);
}

#[test]
fn files_that_the_kernel_makes_are_copied_with_what_is_in_them() {
    let home = home();
    home.microagent(["start", "web"]).success();
    // Both have another size than their content: none, and a page.
    home.microagent(["cp", "web:/proc/version", "version"]).success();
    home.microagent(["cp", "web:/sys/kernel/mm/transparent_hugepage/enabled", "enabled"]).success();
    let in_guest = |path: &str| home.microagent(["exec", "web", "--", "cat", path]).success().stdout;
    let got = |name: &str| fs::read(home.path().join(name)).unwrap();
    assert!(!got("version").is_empty());
    assert_eq!(got("version"), in_guest("/proc/version"));
    assert_eq!(got("enabled"), in_guest("/sys/kernel/mm/transparent_hugepage/enabled"));
    home.microagent(["cp", "web:/proc/1/pagemap", "core"])
        .run()
        .code(1)
        .says("/proc/1/pagemap")
        .says("8 MiB");
    assert!(!home.path().join("core").exists());
    // The other way, a file is named by where it is.
    home.make_dir("closed");
    home.write("closed/file", "x");
    fs::set_permissions(home.path().join("closed/file"), fs::Permissions::from_mode(0o000)).unwrap();
    for (source, named) in
        [("closed", "`closed/file`"), ("closed/.", "`closed/file`"), ("closed/file", "`closed/file`")]
    {
        home.microagent(["cp", source, "web:/root/other"])
            .run()
            .code(1)
            .says(&format!("cannot read {named}"));
    }
    end(&home);
}

#[test]
fn nothing_of_a_guest_lands_outside_the_destination() {
    let home = home();
    let secret = home.write("secret", "secret");
    let dest = home.make_dir("dest");
    home.microagent(["start", "web"]).success();
    let line = "mkdir /root/t && ln -s ../../secret /root/t/l && ln -s / /root/t/d && echo x > /root/t/f";
    home.microagent(["exec", "web", "--", "sh", "-c", line]).success();
    home.microagent(["cp", "web:/root/t", "dest/"]).success();
    assert!(fs::symlink_metadata(dest.join("t/l")).unwrap().is_symlink());
    // The links are files and directories now, which must not be written through what was copied before.
    let line = "cd /root/t && rm l d && echo evil > l && mkdir d && echo evil > d/evil";
    home.microagent(["exec", "web", "--", "sh", "-c", line]).success();
    home.microagent(["cp", "web:/root/t", "dest/"]).failure();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    assert!(!std::path::Path::new("/evil").exists());
    end(&home);
}

#[test]
fn links_at_the_destination_are_followed_on_both_sides() {
    let home = home();
    home.microagent(["start", "web"]).success();
    let guest =
        |line: &str| home.microagent(["exec", "web", "--", "sh", "-c", line]).success().text().to_owned();
    guest(
        "mkdir -p /s/enabled /s/avail; echo old > /s/avail/site; cd /s/enabled; ln -s ../avail/site site; \
         ln -s ../avail/new dangling; ln -s ../avail dir; ln -s b a; ln -s a b; ln -s site twice",
    );
    let cp = |from: &str, to: &str| home.microagent(["cp", from, to]);
    for (number, to) in ["site", "twice", "dangling"].iter().enumerate() {
        home.write("file", format!("{number}\n"));
        cp("file", &format!("web:/s/enabled/{to}")).success();
    }
    assert_eq!(guest("cat /s/avail/site /s/avail/new; readlink /s/enabled/site"), "1\n2\n../avail/site\n");
    cp("file", "web:/s/enabled/dir").success();
    assert_eq!(guest("cat /s/avail/file"), "2\n");
    cp("file", "web:/s/enabled/a").run().code(2).says("form a loop");

    // The host's links likewise; a source that is a link is copied as one.
    let real = home.make_dir("real");
    for (link, target) in [("link", "real/kept"), ("gone", "real/made"), ("into", "real"), ("loop", "loop")] {
        symlink(target, home.path().join(link)).unwrap();
    }
    home.write("real/kept", "old\n");
    for to in ["link", "gone", "into"] {
        cp("web:/s/avail/site", to).success();
        assert!(fs::symlink_metadata(home.path().join(to)).unwrap().is_symlink(), "{to}");
    }
    for name in ["kept", "made", "site"] {
        assert_eq!(fs::read_to_string(real.join(name)).unwrap(), "1\n", "{name}");
    }
    cp("web:/s/avail/site", "loop").run().code(2).says("form a loop");
    cp("web:/s/enabled/site", "a-link").success();
    assert_eq!(fs::read_link(home.path().join("a-link")).unwrap().to_str(), Some("../avail/site"));

    // What a copy cannot take along is counted.
    guest("mkdir /mixed; mkfifo /mixed/pipe; mknod /mixed/null c 1 3; echo x > /mixed/file");
    cp("web:/mixed", "mixed").success().says("2 FIFOs and devices were left out");
    assert!(home.path().join("mixed/file").exists());
    let _socket = std::os::unix::net::UnixListener::bind(real.join("socket")).unwrap();
    cp("real", "web:/root/").success().says("1 socket was left out");
    fs::remove_file(real.join("socket")).unwrap();
    home.microagent(["halt", "web"]).success();
    end(&home);
}

/// A copy that takes long shows on a terminal how far it is, and takes that off the screen when it ends.
#[test]
fn a_terminal_shows_how_far_a_copy_is() {
    let home = home();
    home.microagent(["start", "web"]).success();
    home.write("big", "x".repeat(32 << 20));
    for words in [["cp", "big", "web:/root/"], ["cp", "web:/root/big", "back"]] {
        let mut terminal = Pty::start(&home, &words, (24, 80));
        terminal.shows("Copying");
        terminal.shows("MiB/s");
        assert_eq!(terminal.finish(), 0, "{words:?}");
    }
    home.microagent(["kill", "web"]).success();
    end(&home);
}
