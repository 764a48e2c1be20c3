use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal, test_kill_process,
};
use tokio::runtime::Builder;

use super::*;
use crate::spawn::{Process, Program, spawn};

fn emptied(path: &Path, access: OFlags) -> io::Result<()> {
    rustix::fs::open(path, access | OFlags::TRUNC, Mode::empty()).map(drop).map_err(Into::into)
}

/// Makes the first process of the system the one that is told of a pipe's data.
#[allow(unsafe_code)]
fn signal_owner() -> io::Result<()> {
    let (reader, _writer) = io::pipe()?;
    // SAFETY: the call takes numbers only.
    let result = unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETOWN, 1) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Checks all that must work and all that must fail, in a thread of its own.
#[test]
fn a_confined_thread_reaches_its_workspace_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path().join("state"));
    state.prepare().unwrap();
    let own = WorkspaceDir::at(state.workspaces().join("own"));
    let other = state.workspaces().join("other");
    fs::create_dir(own.path()).unwrap();
    own.make_machine_dir().unwrap();
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("control.key"), "secret").unwrap();
    fs::write(own.record(), "settings").unwrap();
    let outside = dir.path().join("outside");
    fs::write(&outside, "x").unwrap();
    let listener = UnixListener::bind(dir.path().join("bus")).unwrap();

    let scratch = state.tmp().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let (place, own_dir, record) = (dir.path().to_owned(), own.machine(), own.record());
    let results = std::thread::spawn(move || {
        let needs = Needs {
            dir: own,
            state: state.clone(),
            templates: Templates::Makes(scratch.clone()),
            removes: true,
            groups: Vec::new(),
            children: Vec::new(),
            other_user: true,
        };
        confine(&needs).unwrap();
        let file = own_dir.join("file");
        fs::write(&file, "x").unwrap();
        fs::rename(&file, own_dir.join("renamed")).unwrap();
        fs::read("/proc/self/stat").unwrap();
        // A template is written, and nothing of one once it has its name.
        let template = state.templates().join("template");
        fs::write(scratch.join("ram"), "x").unwrap();
        fs::rename(&scratch, &template).unwrap();
        fs::write(template.join("ram"), "y").unwrap();
        leave_templates(&Needs { templates: Templates::None, ..needs }).unwrap();
        fs::write(own_dir.join("renamed"), "z").unwrap();
        let refused = [
            ("program", Command::new("/bin/true").status().map(drop)),
            ("TCP", TcpStream::connect("127.0.0.1:9").map(drop)),
            ("UNIX socket", std::os::unix::net::UnixStream::connect(place.join("bus")).map(drop)),
            ("thread", std::thread::Builder::new().spawn(|| ()).map(drop)),
            ("file", fs::read(place.join("outside")).map(drop)),
            ("key", fs::read(other.join("control.key")).map(drop)),
            ("other workspace", fs::rename(&other, own_dir.join("other"))),
            ("other workspace renamed", fs::rename(&other, other.with_file_name("third"))),
            ("other workspace removed", fs::remove_dir_all(&other)),
            ("own workspace renamed", fs::rename(record.parent().unwrap(), other.with_file_name("third"))),
            ("new workspace", fs::create_dir(other.with_file_name("third"))),
            ("new file", fs::write(place.join("new"), "x")),
            ("settings", fs::write(&record, "x")),
            ("settings read", fs::read(&record).map(drop)),
            ("settings replaced", fs::rename(own_dir.join("renamed"), &record)),
            ("settings linked", fs::hard_link(&record, own_dir.join("linked"))),
            ("file beside the settings", fs::write(record.with_file_name("disk.qcow2"), "x")),
            ("emptied file", emptied(&place.join("outside"), OFlags::RDONLY)),
            ("file emptied without a right", emptied(&place.join("outside"), OFlags::ACCMODE)),
            ("own file emptied without a right", emptied(&own_dir.join("renamed"), OFlags::ACCMODE)),
            ("owner of signals", signal_owner()),
            ("mode", fs::set_permissions(place.join("outside"), fs::Permissions::from_mode(0o777))),
            ("published template", fs::write(template.join("ram"), "z")),
            ("removed template", fs::remove_file(template.join("ram"))),
            ("signal", test_kill_process(Pid::from_raw(2).unwrap()).map_err(Into::into)),
        ];
        refused.map(|(what, result)| (what, result.map_err(|error| error.kind())))
    })
    .join()
    .unwrap();
    drop(listener);
    for (what, result) in results {
        let kind = result.expect_err(what);
        assert!(matches!(kind, ErrorKind::PermissionDenied | ErrorKind::CrossesDevices), "{what}: {kind:?}");
    }
}

/// What is refused to a supervisor that does not remove its workspace at its end, as that of a run does.
#[test]
fn a_confined_thread_changes_only_what_is_in_its_own_directory() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path().join("state"));
    state.prepare().unwrap();
    let own = WorkspaceDir::at(state.workspaces().join("own"));
    fs::create_dir(own.path()).unwrap();
    own.make_machine_dir().unwrap();
    fs::write(own.record(), "settings").unwrap();
    let volume = state.volume(&"data".parse().unwrap());
    fs::create_dir(volume.path()).unwrap();
    fs::write(volume.record(), "volume").unwrap();
    let (kept, kept_volume) = (own.record(), volume.record());
    let results = std::thread::spawn(move || {
        let needs = Needs {
            dir: own.clone(),
            state,
            templates: Templates::None,
            removes: false,
            groups: Vec::new(),
            children: Vec::new(),
            other_user: false,
        };
        confine(&needs).unwrap();
        let beside = |name: &str| own.path().join(name);
        let within = |name: &str| own.machine().join(name);
        fs::create_dir_all(within("jobs/1")).unwrap();
        fs::write(within("jobs/1/output"), "x").unwrap();
        fs::remove_dir_all(within("jobs")).unwrap();
        fs::write(within("file"), "x").unwrap();
        fs::create_dir(within("dir")).unwrap();
        [
            ("settings", fs::write(own.record(), "x")),
            ("settings removed", fs::remove_file(own.record())),
            ("settings replaced", fs::rename(within("file"), own.record())),
            ("settings moved", fs::rename(own.record(), within("record"))),
            ("file beside them", fs::write(beside("new"), "x")),
            ("directory beside them", fs::create_dir(beside("snapshots"))),
            ("directory moved beside them", fs::rename(within("dir"), beside("snapshots"))),
            ("own directory replaced", fs::rename(own.machine(), beside("other"))),
            ("workspace renamed", fs::rename(own.path(), own.path().with_file_name("other"))),
            ("link", std::os::unix::fs::symlink(own.record(), within("link"))),
            ("volume", fs::write(volume.record(), "x")),
            ("volume removed", fs::remove_file(volume.record())),
            ("file beside the volume", fs::write(volume.path().join("new"), "x")),
        ]
        .map(|(what, result)| (what, result.map_err(|error| error.kind())))
    })
    .join()
    .unwrap();
    for (what, result) in results {
        let kind = result.expect_err(what);
        assert!(matches!(kind, ErrorKind::PermissionDenied | ErrorKind::CrossesDevices), "{what}: {kind:?}");
    }
    assert_eq!(fs::read_to_string(kept).unwrap(), "settings");
    assert_eq!(fs::read_to_string(kept_volume).unwrap(), "volume");
}

/// Asks for a descriptor of the process at the other end of a socket.
#[allow(unsafe_code)]
fn process_at_other_end(socket: &UnixStream) -> Result<(), Errno> {
    let (mut found, mut length) = (0, size_of::<RawFd>() as libc::socklen_t);
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERPIDFD);
    // SAFETY: the kernel writes a number to the place, which has room for one.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut found).cast(), &raw mut length)
    };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

/// Puts a copy of a descriptor to a number.
#[allow(unsafe_code)]
fn copy_to(fd: &impl AsRawFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: the call is to fail; what has the number stays open.
    let result = unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap()
}

/// A process that does nothing until it is killed.
fn sleeper() -> Process {
    let (path, args) = (Path::new("/bin/sleep"), ["600".into()]);
    spawn(Program { path, args: &args, inherit: &[], stdin: None, jail: None }).unwrap()
}

/// What a supervisor that was taken over may try on processes of its user, on those that it has started among them.
#[test]
fn a_confined_thread_kills_what_it_has_started_and_signals_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let needs = Needs {
        dir: WorkspaceDir::at(dir.path().join("own")),
        state: StateDir::at(dir.path().to_owned()),
        templates: Templates::None,
        removes: false,
        groups: Vec::new(),
        children: Vec::new(),
        other_user: true,
    };
    let tried = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let _within = runtime.enter();
        let (mut child, other) = (sleeper(), sleeper());
        let pid_of = |process: &Process| Pid::from_raw(process.numbers().pid).unwrap();
        let of_other = pidfd_open(pid_of(&other), PidfdFlags::empty()).unwrap();
        let (socket, _end) = UnixStream::pair().unwrap();
        confine(&Needs { children: vec![child.numbers()], ..needs }).unwrap();
        let pid = pid_of(&child);
        let tried = [
            ("by number", kill_process(pid, Signal::KILL)),
            ("by number, to see whether it is there", test_kill_process(pid)),
            ("itself by number", kill_process(rustix::process::getpid(), Signal::KILL)),
            ("another signal", pidfd_send_signal(child.handle(), Signal::TERM)),
            ("another process", pidfd_send_signal(&of_other, Signal::KILL)),
            ("another child", pidfd_send_signal(other.handle(), Signal::KILL)),
            ("a new descriptor", pidfd_open(pid, PidfdFlags::empty()).map(drop)),
            ("the other end of a socket", process_at_other_end(&socket)),
        ];
        // Nothing gets the number for which the filter allows a signal, and a process that has ended is nobody's.
        let number = child.numbers().handle;
        let taken = [fcntl_dupfd_cloexec(&of_other, number).map(drop), copy_to(&of_other, number)];
        child.kill();
        let status = runtime.block_on(child.wait()).unwrap();
        (tried, taken, status.signal(), pidfd_send_signal(child.handle(), Signal::KILL))
    });
    let (tried, taken, killed_by, afterwards) = tried.join().unwrap();
    for (what, result) in tried {
        assert_eq!(result, Err(Errno::PERM), "{what}");
    }
    assert_eq!(taken, [Err(Errno::INVAL), Err(Errno::BADF)]);
    assert_eq!((killed_by, afterwards), (Some(libc::SIGKILL), Err(Errno::SRCH)));
}

/// A supervisor whose guest is restored may remove the template of that guest, until the guest is set up.
#[test]
fn a_confined_thread_removes_its_own_template_only_and_none_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path().to_owned());
    state.prepare().unwrap();
    let own = WorkspaceDir::at(state.workspaces().join("own"));
    fs::create_dir(own.path()).unwrap();
    own.make_machine_dir().unwrap();
    let [restored, another, remade] =
        ["restored", "another", "remade"].map(|name| state.templates().join(name));
    for template in [&restored, &another] {
        fs::create_dir(template).unwrap();
        fs::write(template.join("ram"), "x").unwrap();
        fs::write(template.join("manifest.json"), "x").unwrap();
    }
    let kept = another.clone();
    let tried = std::thread::spawn(move || {
        let needs = Needs {
            dir: own,
            state,
            templates: Templates::Discards(restored.clone()),
            removes: false,
            groups: Vec::new(),
            children: Vec::new(),
            other_user: false,
        };
        confine(&needs).unwrap();
        let tried = [
            ("a file of another", fs::remove_file(another.join("ram"))),
            ("another", fs::remove_dir(&another)),
            ("another, moved", fs::rename(&another, restored.join("moved"))),
            ("another, listed", fs::read_dir(&another).map(drop)),
            ("a file of its own, written to", fs::write(restored.join("ram"), "y")),
            ("a new one", fs::create_dir(&remade)),
        ];
        fs::remove_file(restored.join("manifest.json")).unwrap();
        leave_templates(&Needs { templates: Templates::None, ..needs }).unwrap();
        let late = [
            ("a file of its own, late", fs::remove_file(restored.join("ram"))),
            ("its own, late", fs::remove_dir_all(&restored)),
        ];
        tried
            .into_iter()
            .chain(late)
            .map(|(what, result)| (what, result.map_err(|e| e.kind())))
            .collect::<Vec<_>>()
    });
    for (what, result) in tried.join().unwrap() {
        let kind = result.expect_err(what);
        assert!(
            matches!(
                kind,
                ErrorKind::PermissionDenied | ErrorKind::CrossesDevices | ErrorKind::DirectoryNotEmpty
            ),
            "{what}: {kind:?}"
        );
    }
    assert_eq!(fs::read_dir(kept).unwrap().count(), 2);
}
