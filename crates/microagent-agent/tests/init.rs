//! Process 1 of a real guest: who it is, what it sees, and how the machine ends with it.

#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use harness::{Machine, Session, Vm, argv, exec, settings, shell};
use microagent_proto::{Command, Exec, ExecInput, ExecRole, Exit, GuestEvent, StartErrorKind};

const SIGUSR1: u8 = 10;
const SIGTERM: u8 = 15;

async fn configured<'a>(vm: &'a Vm) -> Session<'a> {
    let session = vm.session().await;
    session.configure(settings()).await.unwrap_or_else(|e| panic!("{e:?}\n{}", vm.console()));
    session
}

fn main_program(exec: Exec) -> Exec {
    Exec { role: ExecRole::Main, ..exec }
}

#[tokio::test]
async fn the_main_program_is_process_1_and_others_see_it_so() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    // Before it, something waits in its place, takes in orphans, and cannot be killed from inside.
    session.sh("(sleep 0.1 &) ; kill -9 1; kill -HUP 1").await;
    session.sh("while ps -o args | grep -q '^sleep [0]'; do sleep 0.1; done; ! ps -o stat | grep -q Z").await;

    let line = "echo $$ $(tr -d '\\0' </proc/1/comm) $(cat /proc/self/cgroup); trap 'echo reloaded' HUP; \
                echo ready; while :; do sleep 0.1; done";
    let mut main = session.start_exec(main_program(shell(line))).await;
    main.expect("1 sh 0::/\nready\n").await;
    // A setting of the whole guest, a signal and an open file reach it.
    assert_eq!(session.sh("kill -HUP 1; echo $$ | grep -vx 1 >/dev/null && echo other").await, "other");
    main.expect("reloaded\n").await;
    session.sh("echo through the door >/proc/1/fd/1").await;
    main.expect("through the door\n").await;
    // There is one.
    let second = session.run(main_program(shell("true"))).await;
    assert!(second.not_started.unwrap().message.contains("has had its main program"));
    // What has no handler ends it when the host sends it, and not when others do.
    assert_eq!(session.sh("kill -USR2 1; kill -KILL 1; ps -o pid | grep -cx ' *1'").await, "1");
    main.send(ExecInput::Signal(SIGUSR1)).await;
    assert_eq!(main.finish().await.exit, Some(Exit::Signal(SIGUSR1)));
    // With it everything ends, and the machine takes no more.
    let late = session.run(shell("true")).await;
    assert!(late.not_started.is_some(), "{late:?}");
}

#[tokio::test]
async fn a_main_program_under_an_init_is_a_process_like_others() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    let under = |line: &str| Exec { role: ExecRole::MainUnderInit, ..shell(line) };
    let output = session.run(under("test $$ != 1 && (sleep 0.2 &); kill -TERM $$")).await;
    assert_eq!(output.exit, Some(Exit::Signal(SIGTERM)));
    // What it has left behind lives on.
    assert_eq!(session.sh("echo still here").await, "still here");
}

#[tokio::test]
async fn a_large_command_line_and_the_proc_of_nobody() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    let many: Vec<String> = (0..15).map(|_| "x".repeat(100_000)).collect();
    let mut words = vec!["sh", "-c", "echo $# $(echo \"$*\" | wc -c)", "sh"];
    words.extend(many.iter().map(String::as_str));
    assert_eq!(session.run(argv(&words)).await.text(), "15 1500015\n");
    // A guest without /proc runs commands all the same.
    assert_eq!(session.sh("umount -l /proc; echo gone").await, "gone");
    assert_eq!(session.sh("ls /proc; echo works").await, "works");
    // As process 1, too; and more than the kernel takes is said to be too much.
    let too_many: Vec<_> = (0..30).map(|_| b"y".repeat(100_000).into()).collect();
    let refused = session.run(main_program(exec(Command::Argv(
        [b"true".to_vec().into()].into_iter().chain(too_many).collect(),
    ))));
    let message = refused.await.not_started.unwrap().message;
    assert!(message.contains("arguments and environment are larger than"), "{message}");
}

#[tokio::test]
async fn a_machine_ends_itself() {
    for (line, event) in [
        ("poweroff -f", GuestEvent::PoweredOff),
        ("halt -f", GuestEvent::PoweredOff),
        ("reboot -f", GuestEvent::Restarted),
        // As an init is told.
        ("kill -USR2 1", GuestEvent::PoweredOff),
        ("kill -TERM 1", GuestEvent::Restarted),
    ] {
        let mut vm = Vm::start(&Machine::default());
        {
            let session = configured(&vm).await;
            session.sh("cd /bin && for name in poweroff halt reboot; do ln -s busybox $name; done").await;
            let mut watch = session.watch().await;
            let command =
                session.start_exec(shell(&format!("echo kept >/srv/kept; {line}; sleep 1000"))).await;
            assert_eq!(session.guest_event(&mut watch).await, event, "{line}");
            assert_eq!(command.finish().await.exit, Some(Exit::Signal(9)), "{line}");
        }
        vm.wait().await;
        harness::check_disk(&vm.disk());
    }
}

#[tokio::test]
async fn a_main_program_ends_the_machine() {
    for (command, exit) in [("poweroff", Exit::PoweredOff), ("reboot", Exit::Restarted)] {
        let mut vm = Vm::start(&Machine::default());
        {
            let session = configured(&vm).await;
            let line = format!("exec busybox {command} -f");
            assert_eq!(session.run(main_program(shell(&line))).await.exit, Some(exit));
        }
        vm.wait().await;
    }
}

#[tokio::test]
async fn a_shutdown_leaves_time_to_what_a_shell_has_started() {
    let mut vm = Vm::start(&Machine::default());
    {
        let session = configured(&vm).await;
        // The shell has no handler, its child has.
        let child =
            "trap 'echo asked; sleep 3; echo done; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
        let line = format!("sh -c \"{child}\"; echo after");
        let mut main = session.start_exec(main_program(shell(&line))).await;
        main.expect("ready\n").await;
        session.shut_down(SIGTERM, 60_000).await.unwrap_or_else(|e| panic!("{e:?}\n{}", vm.console()));
        let main = main.finish().await;
        assert_eq!((main.text(), main.exit), ("asked\ndone\nafter\n", Some(Exit::Code(0))));
    }
    vm.wait().await;
}

#[tokio::test]
async fn a_main_program_that_says_nothing_to_its_signal_ends_at_once() {
    let mut vm = Vm::start(&Machine::default());
    {
        let session = configured(&vm).await;
        let mut main = session.start_exec(main_program(shell("echo ready; exec sleep 1000"))).await;
        main.expect("ready\n").await;
        let start = std::time::Instant::now();
        session.shut_down(SIGUSR1, 600_000).await.unwrap_or_else(|e| panic!("{e:?}\n{}", vm.console()));
        assert!(start.elapsed() < harness::STEP_DEADLINE);
        assert_eq!(main.finish().await.exit, Some(Exit::Signal(SIGUSR1)));
    }
    vm.wait().await;
}

#[tokio::test]
async fn memory_that_runs_out_is_told() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    let mut watch = session.watch().await;
    let output = session
        .run(shell("echo 'Out of memory: Killed process 5 (liar) total-vm:1kB' >/dev/kmsg; tail /dev/zero"))
        .await;
    assert_eq!(output.out_of_memory.as_deref(), Some("tail"));
    assert_eq!(output.exit, Some(Exit::Signal(9)));
    assert_eq!(session.guest_event(&mut watch).await, GuestEvent::OutOfMemory { program: "tail".to_owned() });
    assert_eq!(session.run(shell("true")).await.out_of_memory, None);
}

#[tokio::test]
async fn the_surroundings_are_those_of_a_machine() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    assert_eq!(
        session.sh("readlink /etc/mtab; cat /etc/mtab | grep -c ' / ext4'").await,
        "/proc/self/mounts\n1"
    );
    session.sh("grep -q '^[0-9]* [0-9]* [0-9:]* / / .* shared:' /proc/self/mountinfo").await;
    let watches =
        session.sh("cat /proc/sys/fs/inotify/max_user_watches /proc/sys/vm/max_map_count; grep -c '^Max processes *unlimited' /proc/self/limits").await;
    assert_eq!(watches, "524288\n1048576\n1");
    // What is deleted does not stay on the host.
    session.sh("dd if=/dev/urandom of=/srv/big bs=1M count=8 2>/dev/null; sync").await;
    let before = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(vm.disk()).unwrap());
    session.sh("rm /srv/big; sync").await;
    let given_back =
        || before - std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(vm.disk()).unwrap());
    vm.within("giving blocks back", async {
        while given_back() < (6 << 20) / 512 {
            session.sh("sync; sleep 0.1").await;
        }
    })
    .await;
}

#[tokio::test]
async fn helpers_that_outlive_a_command_are_heard() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    let line = "mkfifo /srv/p; (while read -r l; do echo \"got $l\"; done </srv/p) & exec >/srv/p; seq 1 50; echo END";
    let output = session.run(shell(line)).await;
    assert_eq!((output.text().lines().count(), output.exit), (51, Some(Exit::Code(0))), "{output:?}");
    // One that stays and says nothing holds nobody up for long.
    assert_eq!(session.sh("sleep 100000 & echo done").await, "done");
}

#[tokio::test]
async fn a_missing_working_directory_is_made_for_an_image_and_refused_otherwise() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    let at = |make_working_dir| Exec {
        working_dir: b"/no/such".to_vec().into(),
        make_working_dir,
        ..shell("pwd")
    };
    let refused = session.run(at(false)).await.not_started.unwrap();
    assert_eq!(refused.kind, StartErrorKind::WorkingDir);
    assert_eq!(session.sh("ls -d /no 2>/dev/null || echo missing").await, "missing");
    assert_eq!(session.run(at(true)).await.text(), "/no/such\n");
}

#[tokio::test]
async fn what_is_built_in_is_found_and_reported() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    let modules = "/lib/modules/$(uname -r)";
    assert_eq!(session.sh(&format!("grep -c /overlay.ko {modules}/modules.builtin")).await, "1");
    assert_eq!(
        session.sh(&format!("echo x 2>/dev/null >{modules}/new || echo read-only")).await,
        "read-only"
    );
    session.sh("test -s /sys/kernel/btf/vmlinux && cat /proc/pressure/memory >/dev/null").await;
    session.sh("grep -qw btrfs /proc/filesystems && grep -qw nfs4 /proc/filesystems && test -e /proc/self/loginuid").await;
    let tracing = "mount -t tracefs t /sys/kernel/tracing && echo 'p:probe do_sys_openat2' >/sys/kernel/tracing/kprobe_events";
    session.sh(tracing).await;
}
