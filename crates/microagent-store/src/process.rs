//! A process that is still the one that was recorded.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// First argument of a supervisor process; its name and the directory of its workspace follow.
pub const SUPERVISE_ARGUMENT: &str = "__supervise";

/// Argument of each QEMU, after `-name`.
pub const VMM_NAME: &str = "microagent";

/// Longest command line that is read, in bytes. That of QEMU has some kilobytes, and a path has at most 4096.
const COMMAND_LINE_LIMIT: u64 = 1024 * 1024;

/// A process id with its start time, so that a reused id is not taken for the old process.
///
/// # Source
/// `proc_pid_stat(5)`, field 22 (`starttime`, clock ticks since boot), and the boot id, because both
/// may repeat after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id` of the boot it ran in.
    pub boot_id: String,
}

/// Whether `/proc` hides processes from this user, as it does where it is mounted with `hidepid` and the user is not in
/// its group. Then a supervisor, which cannot be traced, looks as if it had ended.
///
/// # Source
/// `proc(5)`, mount options. Without `hidepid` everybody can read the state of every process.
pub fn processes_are_hidden() -> bool {
    fs::File::open("/proc/1/stat").and_then(|mut file| file.read(&mut [0; 16])).is_err()
}

impl ProcessId {
    /// The calling process.
    pub fn current() -> Option<ProcessId> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// The process that has this id now, if there is one.
    pub fn of(pid: i32) -> Option<ProcessId> {
        let stat = stat(pid)?;
        stat.is_alive().then(|| ProcessId { pid, start_time: stat.start_time, boot_id: boot_id() })
    }

    /// Whether that very process still runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Whether it ran since the host was started.
    pub fn is_of_this_boot(&self) -> bool {
        self.boot_id == boot_id()
    }

    /// Whether the main thread of a process has ended while others run. Its parent hears of its end when all have.
    pub fn has_lost_its_main_thread(pid: i32) -> bool {
        stat(pid).is_some_and(|stat| stat.is_zombie && stat.is_alive())
    }

    /// The supervisor of the workspace with this directory, found among all processes: whatever it has written of itself.
    pub fn supervisor_of(workspace: &Path) -> Option<ProcessId> {
        pids().filter_map(ProcessId::of).find(|process| process.is_supervisor_of(workspace))
    }

    /// Whether it runs and is the supervisor of the workspace with this directory.
    pub fn is_supervisor_of(&self, workspace: &Path) -> bool {
        self.is_alive() && self.has_role(&Role::Supervisor { workspace })
    }

    /// Kills the process if it is still the recorded one and has this role. The check and the signal are of the same
    /// process: the descriptor refers to it before it is looked at.
    pub(crate) fn kill(&self, role: &Role<'_>) {
        let Some(process) = Pid::from_raw(self.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            return;
        };
        if self.is_alive() && self.has_role(role) {
            // Gone in between is as good as killed.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// Whether the process with this id has a role. What is looked at is set by the kernel or by microagent.
    pub(crate) fn has_role(&self, role: &Role<'_>) -> bool {
        let arguments = command_line(self.pid);
        match role {
            Role::Supervisor { workspace } => is_supervise(&arguments, workspace),
            Role::Vmm { supervisor } => {
                is_named(&arguments) && stat(self.pid).is_some_and(|stat| stat.session == supervisor.pid)
            }
        }
    }
}

/// What a process is for.
#[derive(Debug)]
pub(crate) enum Role<'a> {
    /// The supervisor of the workspace with this directory.
    Supervisor { workspace: &'a Path },
    /// A QEMU that this supervisor has started. A supervisor has a session of its own, which its QEMU cannot leave.
    Vmm { supervisor: &'a ProcessId },
}

/// The processes of one machine as a record names them.
///
/// A supervisor that was taken over writes its record, and could name any process of the user there. Only processes
/// that have the role are believed.
#[derive(Debug, Clone)]
pub struct MachineProcesses<'a> {
    workspace: &'a Path,
    supervisor: Option<&'a ProcessId>,
    vmm: Option<&'a ProcessId>,
}

impl<'a> MachineProcesses<'a> {
    /// The processes of a machine of the workspace with this directory.
    pub fn of(
        workspace: &'a Path,
        supervisor: Option<&'a ProcessId>,
        vmm: Option<&'a ProcessId>,
    ) -> MachineProcesses<'a> {
        MachineProcesses { workspace, supervisor, vmm }
    }

    /// The supervisor, if it runs.
    pub fn supervisor(&self) -> Option<&'a ProcessId> {
        self.supervisor.filter(|process| process.is_supervisor_of(self.workspace))
    }

    /// QEMU, if it runs.
    pub fn vmm(&self) -> Option<&'a ProcessId> {
        let (vmm, supervisor) = (self.vmm?, self.supervisor?);
        // As long as QEMU is in its session, a supervisor's process id is not given to another process.
        let is_led = match ProcessId::of(supervisor.pid) {
            Some(_) => self.supervisor().is_some(),
            None => true,
        };
        (is_led && vmm.is_alive() && vmm.has_role(&Role::Vmm { supervisor })).then_some(vmm)
    }

    /// All of its processes: those of the supervisor's session, which none of them can leave. None without a supervisor.
    pub fn all(&self) -> Vec<i32> {
        let Some(supervisor) = self.supervisor() else { return Vec::new() };
        pids().filter(|pid| stat(*pid).is_some_and(|stat| stat.session == supervisor.pid)).collect()
    }

    /// QEMU, if it runs although its supervisor has ended.
    pub fn orphan(&self) -> Option<&'a ProcessId> {
        self.vmm().filter(|_| self.supervisor().is_none())
    }

    /// Kills both; the supervisor first, so that it cannot report the end of QEMU.
    pub fn kill(&self) {
        let vmm = self.vmm();
        if let Some(process) = self.supervisor {
            process.kill(&Role::Supervisor { workspace: self.workspace });
        }
        if let (Some(vmm), Some(supervisor)) = (vmm, self.supervisor) {
            vmm.kill(&Role::Vmm { supervisor });
        }
    }

    /// Kills a QEMU whose supervisor has ended.
    pub fn kill_orphan(&self) {
        if let (Some(vmm), Some(supervisor)) = (self.orphan(), self.supervisor) {
            vmm.kill(&Role::Vmm { supervisor });
        }
    }
}

/// The ids of all processes.
fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The arguments of a process, the program first; none if they cannot be read.
fn command_line(pid: i32) -> Vec<Vec<u8>> {
    let mut text = Vec::new();
    let read = fs::File::open(format!("/proc/{pid}/cmdline"))
        .and_then(|file| file.take(COMMAND_LINE_LIMIT).read_to_end(&mut text));
    let is_whole = read.is_ok() && text.pop() == Some(0);
    if is_whole { text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect() } else { Vec::new() }
}

fn is_supervise(arguments: &[Vec<u8>], workspace: &Path) -> bool {
    let [_, first, _, dir] = arguments else { return false };
    let dir = Path::new(OsStr::from_bytes(dir));
    first == SUPERVISE_ARGUMENT.as_bytes() && (dir == workspace || is_same_file(dir, workspace))
}

fn is_named(arguments: &[Vec<u8>]) -> bool {
    arguments.windows(2).any(|pair| pair[0] == b"-name" && pair[1] == VMM_NAME.as_bytes())
}

/// Whether two paths lead to one directory: the state directory may be given as a link.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    id(one).is_some_and(|found| id(other) == Some(found))
}

/// What the kernel says of a process, as far as it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    /// Its main thread has ended.
    is_zombie: bool,
    session: i32,
    thread_count: u64,
    start_time: u64,
}

impl Stat {
    /// A process of which only the main thread has ended is alive.
    fn is_alive(self) -> bool {
        !self.is_zombie || self.thread_count > 1
    }
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&text))
}

/// The command name in field 2 may hold spaces and parentheses: fields count from the last `)`.
///
/// # Source
/// `proc_pid_stat(5)`: state, session, threads and start time are fields 3, 6, 20 and 22.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let session = fields.nth(2)?.parse().ok()?;
    let thread_count = fields.nth(13)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    Some(Stat { is_zombie: state == 'Z', session, thread_count, start_time })
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_itself_and_not_another_start() {
        let me = ProcessId::current().unwrap();
        assert!(me.is_alive());
        let reused = ProcessId { start_time: me.start_time + 1, ..me };
        assert!(!reused.is_alive());
    }

    #[test]
    fn a_hostile_command_name_does_not_shift_the_fields() {
        let line = "7 (a) R 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 5 18 4242 20";
        assert_eq!(
            parse_stat(line),
            Some(Stat { is_zombie: false, session: 3, thread_count: 5, start_time: 4242 })
        );
    }

    #[test]
    fn a_process_lives_as_long_as_one_of_its_threads() {
        let of =
            |is_zombie, thread_count| Stat { is_zombie, session: 1, thread_count, start_time: 1 }.is_alive();
        assert!(of(false, 1) && of(true, 2));
        assert!(!of(true, 1) && !of(true, 0));
    }

    #[test]
    fn a_dead_child_is_not_alive() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(id.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    #[test]
    fn a_process_without_the_role_is_not_killed() {
        let mut foreign = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(foreign.id()).unwrap()).unwrap();
        let me = ProcessId::current().unwrap();
        let workspace = Path::new("/state/workspaces/web");
        let ended = ProcessId { pid: i32::MAX, ..me.clone() };
        for (supervisor, vmm) in
            [(Some(&id), None), (None, Some(&id)), (Some(&me), Some(&id)), (Some(&ended), Some(&id))]
        {
            let named = MachineProcesses::of(workspace, supervisor, vmm);
            assert!(named.supervisor().is_none() && named.vmm().is_none());
            named.kill();
            named.kill_orphan();
        }
        assert!(id.is_alive() && foreign.try_wait().unwrap().is_none());
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }

    #[test]
    fn the_arguments_tell_a_supervisor_of_a_workspace() {
        let dir = tempfile::tempdir().unwrap();
        let (workspace, link) = (dir.path().join("web"), dir.path().join("link"));
        fs::create_dir(&workspace).unwrap();
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let arguments =
            |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
        let started_for = |path: &Path| arguments(&["m", SUPERVISE_ARGUMENT, "web", path.to_str().unwrap()]);
        assert!(is_supervise(&started_for(&workspace), &workspace));
        assert!(is_supervise(&started_for(&link.join("web")), &workspace));
        assert!(!is_supervise(&started_for(dir.path()), &workspace));
        assert!(!is_supervise(&started_for(Path::new("/none")), &dir.path().join("none")));
        assert!(!is_supervise(&arguments(&["m", SUPERVISE_ARGUMENT, "web"]), &workspace));
        assert!(is_named(&arguments(&["q", "-name", VMM_NAME])) && !is_named(&arguments(&["q", VMM_NAME])));
    }
}
