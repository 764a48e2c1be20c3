//! Commands that are spoken to while they run: input, terminals, signals, and their end.

#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;

use std::time::{Duration, Instant};

use harness::{Machine, Output, Session, Vm, argv, settings, shell};
use microagent_proto::{
    Exec, ExecInput, ExecRole, Exit, GuestErrorKind, INPUT_CHUNK_LIMIT, PathKind, STDIN_WINDOW, Terminal,
};
use tokio::time::sleep;

const SIGINT: u8 = 2;
const SIGUSR1: u8 = 10;
const SIGTERM: u8 = 15;

async fn configured(vm: &Vm) -> Session<'_> {
    let session = vm.session().await;
    let configured = session.configure(settings()).await;
    configured.unwrap_or_else(|e| panic!("{e:?}; console:\n{}", vm.console()));
    session
}

fn with_stdin(exec: Exec) -> Exec {
    Exec { stdin: true, ..exec }
}

fn on_terminal(exec: Exec) -> Exec {
    let terminal = Some(Terminal { rows: 24, cols: 80, term: "xterm-256color".to_owned() });
    Exec { stdin: true, terminal, ..exec }
}

/// Bytes that do not repeat soon.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    std::iter::repeat_with(next).take(len).collect()
}

async fn through_cat(session: &Session<'_>, bytes: &[u8]) -> Output {
    let mut command = session.start_exec(with_stdin(argv(&["cat"]))).await;
    command.stdin(bytes).await;
    command.send(ExecInput::End).await;
    command.finish().await
}

/// Polls a shell condition.
async fn eventually(session: &Session<'_>, condition: &str) {
    let start = Instant::now();
    while session.run(shell(condition)).await.exit != Some(Exit::Code(0)) {
        let console = session.vm.console();
        assert!(start.elapsed() < harness::STEP_DEADLINE, "never true: {condition}\n{console}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn input_arrives_whole_however_much_it_is() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    let bytes = noise(6_000_000, 1);
    let output = through_cat(&session, &bytes).await;
    assert_eq!(output.exit, Some(Exit::Code(0)), "{:?}", output.not_started);
    assert!(output.stdout == bytes, "{} of {} bytes came back", output.stdout.len(), bytes.len());
    // Nothing at all is an end, too.
    assert_eq!(through_cat(&session, b"").await.exit, Some(Exit::Code(0)));

    // Half a megabyte each way through thirty at once.
    let all = (0..30).map(|number| {
        let session = &session;
        async move {
            let bytes = noise(500_000, number + 7);
            through_cat(session, &bytes).await.stdout == bytes
        }
    });
    assert!(futures::future::join_all(all).await.into_iter().all(|same| same));

    // Its reader may be another user's program that opens its streams again by name.
    let mut asked = with_stdin(shell("cat /dev/stdin >/dev/stdout"));
    asked.user = "user".to_owned();
    let mut command = session.start_exec(asked).await;
    command.stdin(b"by name").await;
    command.send(ExecInput::End).await;
    assert_eq!(command.finish().await.text(), "by name");
}

#[tokio::test]
async fn a_command_that_does_not_read_holds_up_nothing() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;

    let until = |file: &str| format!("while ! test -e /srv/{file}; do sleep 0.1; done");
    let mut command =
        session.start_exec(with_stdin(shell(&format!("echo out; {}; exit 3", until("one"))))).await;
    command.stdin(&noise(STDIN_WINDOW, 1)).await;
    session.sh("touch /srv/one").await;
    let output = command.finish().await;
    assert_eq!((output.text(), output.exit), ("out\n", Some(Exit::Code(3))));

    // Signals overtake what is not read. The kernel's pipe takes a part.
    let mut command = session.start_exec(with_stdin(shell("echo ready; exec sleep 1000"))).await;
    command.expect("ready\n").await;
    command.stdin(&noise(STDIN_WINDOW, 1)).await;
    command.send(ExecInput::Signal(SIGTERM)).await;
    assert_eq!(command.finish().await.exit, Some(Exit::Signal(SIGTERM)));

    // A command that has closed its input runs on, and takes no more.
    let line = format!("exec <&-; echo closed; {}; echo end", until("two"));
    let mut command = session.start_exec(with_stdin(shell(&line))).await;
    command.expect("closed\n").await;
    command.stdin(&noise(STDIN_WINDOW, 1)).await;
    session.sh("touch /srv/two").await;
    let output = command.finish().await;
    assert_eq!((output.text(), output.exit), ("end\n", Some(Exit::Code(0))));

    // A host that ignores the window is not served.
    let mut command = session.start_exec(with_stdin(shell("sleep 654321"))).await;
    let mut served = 0;
    while command.try_send(ExecInput::Stdin(noise(INPUT_CHUNK_LIMIT, 1).into())).await {
        served += INPUT_CHUNK_LIMIT;
        assert!(served < 4 << 20, "the window has no end");
    }
    eventually(&session, "! ps -o args | grep -q '^sleep [6]54321'").await;

    // Input for a command that has none goes nowhere.
    let mut command = session.start_exec(shell("cat; echo end")).await;
    command.stdin(b"unwanted").await;
    assert_eq!(command.finish().await.text(), "end\n");
}

#[tokio::test]
async fn signals_reach_the_group_and_a_kill_everything() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    // The shell and its child are one group.
    let line = "trap 'echo got usr1' USR1; sleep 9999 & wait; echo done";
    let mut command = session.start_exec(shell(line)).await;
    eventually(&session, "ps -o args | grep -q '^sleep [9]999'").await;
    command.send(ExecInput::Signal(SIGUSR1)).await;
    let output = command.finish().await;
    assert_eq!((output.text(), output.exit), ("got usr1\ndone\n", Some(Exit::Code(0))));
    // Numbers that are no signals do nothing.
    let line = "echo ready; while ! test -e /srv/go; do sleep 0.1; done; echo done";
    let mut command = session.start_exec(shell(line)).await;
    command.send(ExecInput::Signal(0)).await;
    command.send(ExecInput::Signal(65)).await;
    command.send(ExecInput::Resize { rows: 1, cols: 1 }).await;
    session.sh("touch /srv/go").await;
    assert_eq!(command.finish().await.text(), "ready\ndone\n");

    let line = "trap '' TERM HUP INT; (setsid sh -c 'trap \"\" TERM; while :; do sleep 7777; done' &); \
                echo ready; while :; do sleep 8888; done";
    let mut command = session.start_exec(shell(line)).await;
    command.expect("ready\n").await;
    eventually(&session, "test $(ps -o args | grep -c '^sleep [78]') = 2").await;
    command.send(ExecInput::Kill).await;
    assert_eq!(command.finish().await.exit, Some(Exit::Signal(9)));
    // Gone when its end is told, not some time later.
    assert_eq!(session.sh("ps -o args | grep -c '^sleep [78]' || true").await, "0");
}

#[tokio::test]
async fn a_shell_on_a_terminal_is_one_as_everywhere() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    session.sh("cd /bin && for name in stty tty jobs; do ln -s busybox $name; done").await;

    let output =
        session.run(on_terminal(shell("tty; stty size; echo $TERM; echo err >&2; tty >/dev/tty"))).await;
    assert_eq!(output.text(), "/dev/pts/0\r\n24 80\r\nxterm-256color\r\nerr\r\n/dev/pts/0\r\n");
    let mut asked = on_terminal(shell("echo again >$(tty); echo $TERM; stat -c %u:%g:%a $(tty)"));
    asked.user = "user".to_owned();
    asked.env = vec![(b"TERM".to_vec().into(), b"dumb".to_vec().into())];
    assert_eq!(session.run(asked).await.text(), "again\r\ndumb\r\n1000:5:620\r\n");

    // What was written last is not lost.
    for _ in 0..10 {
        let output = session.run(on_terminal(shell("seq 1 2000"))).await;
        assert_eq!(output.text().lines().count(), 2000);
    }

    let mut asked = on_terminal(argv(&["sh", "-i"]));
    asked.env = vec![(b"PS1".to_vec().into(), b"prompt> ".to_vec().into())];
    let mut command = session.start_exec(asked).await;
    command.expect("prompt> ").await;
    command.stdin("echo grü''ße\r".as_bytes()).await;
    command.expect("\ngrüße\r\n").await;
    // The terminal's keys: ^C ends the foreground command, not the shell.
    command.stdin(b"sleep 1000\r").await;
    eventually(&session, "ps -o args | grep -q '^sleep [1]000'").await;
    command.stdin(b"\x03").await;
    command.expect("prompt> ").await;
    command.stdin(b"echo code $?\r").await;
    command.expect("\ncode 130\r\n").await;
    // A signal of the host's goes where the key's would.
    command.stdin(b"sleep 2000\r").await;
    eventually(&session, "ps -o args | grep -q '^sleep [2]000'").await;
    command.send(ExecInput::Signal(SIGINT)).await;
    command.stdin(b"echo code $?\r").await;
    command.expect("\ncode 130\r\n").await;
    // ^Z stops it, the shell continues, and so does the command in its time.
    command.stdin(b"sleep 3000\r").await;
    eventually(&session, "ps -o args | grep -q '^sleep [3]000'").await;
    command.stdin(b"\x1a").await;
    command.expect("Stopped").await;
    command.stdin(b"echo $((40 + 2)); fg\r").await;
    command.expect("\n42\r\n").await;
    eventually(&session, "ps -o stat,args | grep -q '^S.*sleep [3]000'").await;
    command.stdin(b"\x03").await;
    command.expect("prompt> ").await;
    command.stdin(b"echo code $?\r").await;
    command.expect("\ncode 130\r\n").await;
    // The end of the input is the key for it; where it means something else, it is lost on a shell.
    command.expect("prompt> ").await;
    command.send(ExecInput::End).await;
    assert_eq!(command.finish().await.exit, Some(Exit::Code(0)));

    // Programs learn of a new size.
    let line = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.1; done";
    let mut command = session.start_exec(on_terminal(shell(line))).await;
    command.expect("ready\r\n").await;
    command.send(ExecInput::Resize { rows: 50, cols: 132 }).await;
    command.expect("50 132\r\n").await;
    assert_eq!(command.finish().await.exit, Some(Exit::Code(0)));

    // Much input for a program that takes it raw, while it prints as much.
    let mut command = session
        .start_exec(on_terminal(shell("stty raw -echo; echo ready; head -c 300000 | sha256sum")))
        .await;
    command.expect("ready").await;
    let bytes = noise(300_000, 3);
    command.stdin(&bytes).await;
    let sum = through(&session, "sha256sum", &bytes).await;
    let output = command.finish().await;
    assert_eq!(output.text().trim(), sum.trim());

    // A host that goes takes the whole session with it, also what ignores a hang-up.
    let mut command = session.start_exec(on_terminal(shell("trap '' HUP; sleep 4000 & sleep 4000"))).await;
    command.stdin(b"x").await;
    eventually(&session, "test $(ps -o args | grep -c '^sleep [4]000') = 2").await;
    drop(command);
    eventually(&session, "! ps -o args | grep -q '^sleep [4]000'").await;
}

async fn through(session: &Session<'_>, program: &str, bytes: &[u8]) -> String {
    let mut command = session.start_exec(with_stdin(argv(&[program]))).await;
    command.stdin(bytes).await;
    command.send(ExecInput::End).await;
    command.finish().await.text().to_owned()
}

#[tokio::test]
async fn a_service_is_asked_first_and_in_its_own_way() {
    let mut vm = Vm::start(&Machine::default());
    {
        let session = configured(&vm).await;
        let helper = session
            .start_exec(shell("trap 'echo helper asked; exit 0' TERM; echo $$ >/helper; echo ready; while :; do sleep 0.1; done"));
        let mut helper = helper.await;
        helper.expect("ready\n").await;
        let line = "trap 'sleep 1; kill -0 $(cat /helper) && echo helper lives; exit 5' USR1; trap 'echo wrong' TERM; \
                    echo ready; while :; do sleep 0.1; done";
        let mut service = session.start_exec(Exec { role: ExecRole::MainUnderInit, ..shell(line) }).await;
        service.expect("ready\n").await;

        assert_eq!(session.shut_down(0, 10).await.unwrap_err().kind, GuestErrorKind::Invalid);
        session.shut_down(SIGUSR1, 60_000).await.unwrap_or_else(|e| panic!("{e:?}\n{}", vm.console()));
        let service = service.finish().await;
        assert_eq!((service.text(), service.exit), ("helper lives\n", Some(Exit::Code(5))));
        let helper = helper.finish().await;
        assert_eq!((helper.text(), helper.exit), ("helper asked\n", Some(Exit::Code(0))));
    }
    vm.wait().await;
}

#[tokio::test]
async fn a_service_that_does_not_end_is_killed_after_its_grace() {
    let mut vm = Vm::start(&Machine::default());
    {
        let session = configured(&vm).await;
        let line = "trap 'echo asked' USR1; trap '' TERM; echo ready; while :; do sleep 0.1; done";
        let mut service = session.start_exec(Exec { role: ExecRole::Main, ..shell(line) }).await;
        service.expect("ready\n").await;
        session.shut_down(SIGUSR1, 5000).await.unwrap_or_else(|e| panic!("{e:?}\n{}", vm.console()));
        let service = service.finish().await;
        assert_eq!((service.text(), service.exit), ("asked\n", Some(Exit::Signal(9))));
    }
    vm.wait().await;
}

#[tokio::test]
async fn small_questions_are_answered() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    session.sh("cd /srv && mkdir dir && ln -s dir link && printf 12345 >file && chown 7:8 file && chmod 4750 file").await;
    let file = session.stat(b"/srv/file", false).await.unwrap();
    assert_eq!((file.kind, file.mode, file.uid, file.gid, file.len), (PathKind::File, 0o4750, 7, 8, 5));
    assert_eq!(session.stat(b"/srv/link", true).await.unwrap().kind, PathKind::Directory);
    let link = PathKind::Symlink { target: b"dir".to_vec().into() };
    assert_eq!(session.stat(b"/srv/link", false).await.unwrap().kind, link);
    assert_eq!(session.stat(b"/srv/none", true).await.unwrap_err().kind, GuestErrorKind::NotFound);
    let before = session.fs_usage().await.unwrap();
    session.sh("dd if=/dev/zero of=/srv/fill bs=1M count=4 2>/dev/null; sync").await;
    let after = session.fs_usage().await.unwrap();
    assert_eq!(before.total, after.total);
    assert!(
        after.used >= before.used + (4 << 20) && after.used + after.available <= after.total,
        "{after:?}"
    );
}
