//! Tar files and ext4 images of the user's as disks, on real guests; and tar files that mean harm.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use microagent_tests::{Finished, Home, User, host, wait_for};
use rustix::process::Signal;

/// Exit code of "try again": whoever has it lets it go some time.
const TRY_AGAIN: i32 = 75;

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// A tar file with these entries; a name that ends in `/` is a directory.
fn tar(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let is_dir = name.ends_with('/');
        header.set_entry_type(if is_dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(if is_dir { 0o755 } else { 0o640 });
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What a program makes of bytes.
#[track_caller]
fn filtered(program: &str, args: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let feeding = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// An ext4 image of the user's own making, with one file.
#[track_caller]
fn image(home: &Home, name: &str) -> PathBuf {
    let tree = home.make_dir(&format!("{name}.d"));
    fs::write(tree.join("file"), "on the image\n").unwrap();
    let path = home.write(name, "");
    fs::File::options().write(true).open(&path).unwrap().set_len(32 << 20).unwrap();
    let shown = path.to_str().unwrap();
    host::must("mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree.to_str().unwrap(), shown]);
    path
}

#[track_caller]
fn refused(home: &Home, options: &[&str]) -> Finished {
    home.microagent(["run", "--network", "isolated"]).args(options).arg(home.image("busybox")).failure()
}

#[test]
fn a_tar_file_becomes_a_disk_of_the_workspace() {
    let home = home();
    let plain = tar(&[("./", ""), ("./dir/", ""), ("./dir/file", "content\n")]);
    home.write("in.tar", &plain);
    home.write("in.tar.gz", filtered("gzip", &["-c"], &plain));
    home.write("in.tar.zst", filtered("zstd", &["-q", "-c"], &plain));
    home.write("called-otherwise", &plain);
    let three = [
        "-v",
        "in.tar:/a",
        "-v",
        "./in.tar.gz:/b:ro",
        "-v",
        "in.tar.zst:/c",
        "--bundle",
        "n=called-otherwise:/d:ro",
    ];
    let line = "cat /a/dir/file /b/dir/file /c/dir/file /d/dir/file; stat -c '%u:%g %a' /a/dir/file; \
                ! touch /b/new; ! touch /d/new; ls -A /a; dd if=/dev/zero of=/a/room bs=1M count=300";
    let run = home.sh(&three, line);
    assert_eq!(run.guest_output(), "content\ncontent\ncontent\ncontent\n1000:1000 640\ndir\n");
    home.nothing_is_left();

    // It belongs to the workspace: the file may go, the changes stay, and a copy has its own.
    home.create("web", ["-v", "in.tar:/in"]);
    fs::remove_file(home.path().join("in.tar")).unwrap();
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "web", "--", "sh", "-c", "echo changed >> /in/dir/file"]).success();
    home.microagent(["halt", "web"]).success();
    let bundle = home.workspace("web").join("bundle-0.ext4");
    host::e2fsck(&bundle);
    home.microagent(["clone", "web", "copy"]).success();
    home.write("more", "more\n");
    home.microagent(["cp", "more", "copy:/in/dir/more"]).success();
    home.microagent(["cp", "copy:/in/dir/.", "out"]).success();
    assert_eq!(fs::read_to_string(home.path().join("out/file")).unwrap(), "content\nchanged\n");
    assert_eq!(fs::read_to_string(home.path().join("out/more")).unwrap(), "more\n");
    home.microagent(["start", "web"]).success();
    let listed = home.microagent(["exec", "web", "--", "ls", "/in/dir"]).success();
    assert_eq!(listed.text(), "file\n");
    home.microagent(["halt", "web"]).success();

    // The image that a workspace becomes has the place and nothing of what was mounted there.
    home.microagent(["commit", "web", "mine:1"]).success();
    let committed = home.microagent(["run", "--network", "isolated", "mine:1", "ls", "-A", "/in"]).success();
    assert_eq!(committed.guest_output(), "");
    home.microagent(["delete", "web", "copy", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn an_image_file_is_attached_as_it_is() {
    let home = home();
    let path = image(&home, "data.ext4");
    image(&home, "raw");
    let run = home.sh(
        &["-v", "data.ext4:/x", "--disk", "n=./raw:/y:ro"],
        "cat /x/file /y/file; ! touch /y/new; echo new > /x/new",
    );
    assert_eq!(run.guest_output(), "on the image\non the image\n");
    host::e2fsck(&path);
    assert_eq!(fs::metadata(&path).unwrap().len(), 32 << 20);

    // One writer, or any number of readers; whatever name it goes by.
    std::os::unix::fs::symlink(&path, home.path().join("link.img")).unwrap();
    home.create("web", ["-v", "link.img:/x"]);
    home.create("reader", ["-v", "data.ext4:/x:ro"]);
    home.microagent(["start", "web"]).success();
    home.microagent(["start", "reader"]).run().code(TRY_AGAIN).says("data.ext4` is in use");
    assert_eq!(home.state_of("reader"), "prepared");
    home.microagent(["halt", "web"]).success();
    home.microagent(["start", "reader"]).success();
    let run = home.sh(&["-v", "data.ext4:/x:ro"], "cat /x/new");
    assert_eq!(run.guest_output(), "new\n");
    home.microagent(["start", "web"]).run().code(TRY_AGAIN).says("is in use");
    home.microagent(["halt", "reader"]).success();

    // What the recorded path has become since is not followed.
    let elsewhere = image(&home, "elsewhere.ext4");
    fs::remove_file(&path).unwrap();
    home.microagent(["start", "web"]).run().code(1).says("data.ext4").says("No such file");
    fs::create_dir(&path).unwrap();
    home.microagent(["start", "web"]).run().code(2).says("never shared");
    fs::remove_dir(&path).unwrap();
    fs::rename(&elsewhere, &path).unwrap();
    home.microagent(["start", "web"]).success();
    home.microagent(["delete", "web", "reader", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn what_is_no_disk_is_refused_before_anything_is_made() {
    let home = home();
    home.make_dir("src");
    home.make_dir("dir.tar");
    home.write("empty.img", "");
    home.write("text.img", "no file system at all\n");
    for (options, texts) in [
        (["-v", "./src:/src"], ["is never shared", "tar -C DIR -c . | microagent run -v -:/guest/path"]),
        (["-v", "dir.tar:/src"], ["is never shared", "microagent cp"]),
        (["--disk", "src:/src"], ["is never shared", "microagent cp"]),
        (["-v", "none.tar:/src"], ["none.tar", "No such file"]),
        (["-v", "none.ext4:/src"], ["none.ext4", "No such file"]),
        (["-v", "empty.img:/src"], ["is not a disk image", "mkfs.ext4"]),
        (["--disk", "/dev/null:/src"], ["is not a disk image", "mkfs.ext4"]),
        (["-v", "data:work"], ["is not absolute", "as /work"]),
        (["-v", "data:/work:z"], ["`z` is not a mount mode", ":ro"]),
        (["-v", "data:/"], ["nothing can be mounted on", "as /work"]),
    ] {
        let run = refused(&home, &options);
        assert!(texts.iter().all(|text| run.stderr.contains(text)), "{}", run.told());
        assert!(home.workspaces().is_empty(), "{}", run.told());
    }
    // The base disk of an image is not for everybody to write on.
    home.sh(&[], "true");
    let disks = fs::read_dir(home.state().join("images/disks")).unwrap().flatten().map(|entry| entry.path());
    let base = disks.into_iter().find(|path| path.extension().is_some_and(|end| end == "ext4")).unwrap();
    let attached = format!("{}:/x", base.display());
    refused(&home, &["--disk", &attached]).code(2).says("microagent's own state");
    // Only the guest looks into a file.
    let run = refused(&home, &["-v", "text.img:/x"]).code(1);
    let failed = home.workspaces().pop().unwrap();
    run.says("the disk for `/x`").says("holds no ext4 file system");
    home.microagent(["delete", &failed, "--yes"]).success();
    home.nothing_is_left();
}

/// A member that says that it has so many bytes, and so many gzip members of zeros behind it.
fn bomb(home: &Home, name: &str, says: u64, zeros_mib: usize) -> PathBuf {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..4].copy_from_slice(b"bomb");
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(says);
    header.set_cksum();
    let mut packed = filtered("gzip", &["-c"], header.as_bytes());
    let zeros = filtered("gzip", &["-c"], &vec![0; 1 << 20]);
    for _ in 0..zeros_mib {
        packed.extend_from_slice(&zeros);
    }
    home.write(name, packed)
}

#[test]
fn a_tar_file_that_means_harm_is_refused_and_leaves_nothing() {
    let home = home();
    home.sh(&[], "true");
    let climbing = tar(&[("ok", "x"), ("a/../../evil", "x")]);
    let good = tar(&[("file", "x")]);
    home.write("climbing.tar", &climbing);
    home.write("cut.tar.gz", &filtered("gzip", &["-c"], &good)[..30]);
    home.write("xz.tar", filtered("xz", &["-c"], &good));
    home.write(
        "text.tar",
        "this is no tar file, whatever its name says, and it is long enough for a header: ".repeat(20),
    );
    bomb(&home, "says.tar.gz", 40 << 30, 1);
    let used = || microagent_tests::listing::disk_usage(Path::new(&home.state()));
    let before = used();
    for (file, text) in [
        ("climbing.tar", "tries to reach outside its root with `a/../../evil`"),
        ("cut.tar.gz", "is damaged, or not a tar file"),
        ("xz.tar", "compressed with xz"),
        ("text.tar", "is damaged, or not a tar file"),
        ("says.tar.gz", "exceeds a limit: it unpacks to more than 34359738368 bytes"),
    ] {
        let run = refused(&home, &["-v", &format!("{file}:/in")]).code(1).says(file).says(text);
        assert!(!run.stderr.contains("layer"), "{}", run.told());
        home.nothing_is_left();
    }
    assert!(used() <= before + (1 << 20), "{} bytes, {before} before", used());
    // Absolute names stay below the root, links lead where they lead in the guest.
    let mut builder =
        tar::Builder::new(tar(&[("/absolute", "inside\n"), (".wh.file", "kept\n")])[..2048].to_vec());
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "out", "/etc/passwd").unwrap();
    home.write("odd.tar", builder.into_inner().unwrap());
    let run =
        home.sh(&["-v", "odd.tar:/in"], "cat /in/absolute /in/.wh.file; readlink /in/out; head -c 4 /in/out");
    assert_eq!(run.guest_output(), "inside\nkept\n/etc/passwd\nroot");
    home.nothing_is_left();
}

#[test]
fn a_tar_stream_on_standard_input_is_a_volume() {
    let home = home();
    let run = |options: &[&str], words: &[&str]| {
        let call = home.call().args(["run", "--raw", "--network", "isolated"]).args(options);
        call.arg(home.image("busybox")).args(words)
    };
    let stream = tar(&[("dir/", ""), ("dir/file", "content")]);
    let read = run(&["-v", "-:/src:ro"], &["cat", "/src/dir/file"]).stdin(stream.clone()).success();
    assert_eq!(read.text(), "content");
    // It is the disk of the workspace, which keeps it.
    home.call()
        .args(["create", "web", "--image", &home.image("busybox"), "--bundle", "-:/src"])
        .stdin(stream.clone())
        .success();
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "web", "test", "-s", "/src/dir/file"]).success();
    home.microagent(["delete", "--force", "--yes", "web"]).success();

    run(&["-i", "-v", "-:/src"], &["cat"]).stdin(stream.clone()).run().code(2).says("omit -i");
    run(&["-v", "-:/a", "-v", "-:/b"], &["true"]).stdin(stream.clone()).run().code(2).says("attached twice");
    run(&["-v", "-:/src"], &["true"])
        .stdin(b"no tar".to_vec())
        .run()
        .code(1)
        .says("the tar stream on standard input is damaged, or not a tar file");
    run(&["-v", "-:/src"], &["true"]).stdin(Vec::new()).run().code(1).says("it is empty");
    let climbing = tar(&[("../../etc/evil", "x")]);
    run(&["-v", "-:/src"], &["true"]).stdin(climbing).run().code(1).says("reach outside");
    // A stream that does not end does not hold up a signal.
    let waiting = run(&["-v", "-:/src"], &["true"]).stdin_kept_open(stream).start();
    wait_for("the stream to be read", Duration::from_secs(60), || {
        let scratch = fs::read_dir(home.state().join("tmp")).into_iter().flatten().count();
        if scratch > 0 { Ok(()) } else { Err("nothing in tmp") }
    });
    waiting.signal(Signal::TERM);
    waiting.finish().code(130);
    home.nothing_is_left();
}
