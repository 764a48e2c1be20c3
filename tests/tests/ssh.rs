//! The host's own ssh, sftp and scp in a workspace that no network reaches, with the settings of the page.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use microagent_tests::{Home, Invocation, User, host, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// The page that these settings are from.
const PAGE: &str = include_str!("../../docs/how-to/ssh-and-editors.md");

/// Large enough for many windows of a channel.
const FILE_BYTES: usize = 8 << 20;

/// A home with the running workspace `dev`, where root accepts the key in `key`. ssh knows its user by the system's list
/// of users, so this is the caller, who is in it.
fn home() -> Home {
    let home = Home::new(User::Caller);
    let image = home.image("systemd");
    let create = ["create", "dev", "--image", &image, "--network", "isolated"];
    let options = ["--setup", "mkdir -p -m 700 /root/.ssh", "--tmpfs", "/run/sshd:mode=755"];
    home.microagent(create).args(options).success();
    home.microagent(["start", "dev"]).success();
    let key = home.path().join("key");
    host::must("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
    home.microagent(["cp", "key.pub", "dev:/root/.ssh/authorized_keys"]).success();
    home.microagent(["exec", "dev", "chown", "root:root", "/root/.ssh/authorized_keys"]).success();

    let (_, rest) = PAGE.split_once("```\nHost *.microagent\n").unwrap();
    let (settings, _) = rest.split_once("```").unwrap();
    home.write("config", format!("Host *.microagent\n{settings}"));
    home.make_dir("bin");
    symlink(home.program(), home.path().join("bin/microagent")).unwrap();
    home
}

/// A call of one of ssh's programs, which finds `microagent` where a shell would.
fn with_ssh<'a>(home: &'a Home, program: &str, words: &[&str]) -> Invocation<'a> {
    let path = format!("{}/bin:{}", home.path().display(), std::env::var("PATH").unwrap());
    let options = ["-F", "config", "-i", "key", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"];
    home.other(program).env("PATH", path).args(options).args(words)
}

#[test]
fn ssh_sftp_and_scp_reach_a_workspace_through_exec() {
    let home = home();
    let at = "dev.microagent";
    let content: Vec<u8> = (0..FILE_BYTES).map(|number| ((number * number) >> 7) as u8).collect();
    home.write("sent", &content);

    // Exit code, both streams, and nothing else: also the end of the command that carries it is quiet.
    let ran = with_ssh(&home, "ssh", &[at, "echo out; echo err >&2; exit 3"]).run().code(3);
    assert_eq!((ran.text(), ran.stderr.as_str()), ("out\n", "err\n"));
    let echoed = with_ssh(&home, "ssh", &[at, "cat"]).stdin(content.clone()).success();
    assert!(echoed.stdout == content && echoed.stderr.is_empty(), "{} bytes", echoed.stdout.len());
    let tty = with_ssh(&home, "ssh", &["-tt", at, "test -t 0 && tty"]).success();
    assert!(tty.text().starts_with("/dev/pts/"), "{}", tty.told());

    home.write("batch", "put sent /root/put\nget /root/put got\nls -l /root/put\n");
    let listed = with_ssh(&home, "sftp", &["-b", "batch", at]).success();
    assert!(listed.text().contains(&format!(" {FILE_BYTES} ")), "{}", listed.told());
    assert!(fs::read(home.path().join("got")).unwrap() == content);
    // With the protocol of sftp, and with that of old.
    for (option, name) in [("-r", "new"), ("-rO", "old")] {
        let target = format!("{at}:/root/{name}");
        with_ssh(&home, "ssh", &[at, "mkdir", &format!("/root/{name}")]).success();
        with_ssh(&home, "scp", &[option, "sent", &target]).success();
        with_ssh(&home, "scp", &[option, &target, name]).success();
        assert!(fs::read(home.path().join(name).join("sent")).unwrap() == content, "{name}");
    }

    // A port of the guest, without a network device.
    home.microagent(["exec", "dev", "/usr/sbin/sshd"]).success();
    let greeted = with_ssh(&home, "ssh", &["-W", "localhost:22", at]).success();
    assert!(greeted.text().starts_with("SSH-2.0-OpenSSH"), "{}", greeted.told());
    home.microagent(["exec", "dev", "sh", "-c", "kill $(cat /run/sshd.pid)"]).success();

    // What a session leaves in the background ends with it, and so does a client that is killed in the middle, as that of
    // an editor is.
    with_ssh(&home, "ssh", &[at, "setsid sleep 1000 > /dev/null 2>&1 < /dev/null &"]).success();
    let cut = with_ssh(&home, "ssh", &[at, "echo there; sleep 1000"]).start();
    cut.prints("there");
    cut.kill();
    let left = "cat /proc/[0-9]*/comm 2> /dev/null | grep -cE 'sshd|sleep'";
    wait_for("all that ssh has started to end", PATIENCE, || {
        let left = home.microagent(["exec", "dev", "--", "sh", "-c", left]).run();
        if left.text() == "0\n" { Ok(()) } else { Err(left.told()) }
    });
    // What the page says of a connection that fails.
    home.microagent(["exec", "dev", "--", "sh", "-c", "umount /run/sshd; rmdir /run/sshd"]).success();
    let failed = with_ssh(&home, "ssh", &[at, "true"]).failure();
    assert!(failed.told().contains("Connection closed by "), "{}", failed.told());
    home.microagent(["exec", "dev", "/usr/sbin/sshd", "-t"])
        .failure()
        .says("Missing privilege separation directory");
    home.microagent(["delete", "--force", "dev"]).success();
    home.nothing_is_left();
}
