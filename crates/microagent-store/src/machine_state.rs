//! `machine/state.json` of a workspace: what its supervisor tells of the current or last machine.
//!
//! Only the directory `machine/` can be written by a confined supervisor, and a guest may have taken it over. So whoever
//! reads the file believes nothing in it: its size is limited, it is a regular file, each field is checked, and texts are made
//! safe to show. It has no paths. Processes that it names are believed only as far as the kernel shows that they have the
//! role ([`MachineProcesses`](crate::MachineProcesses)). A file that cannot be read makes the workspace `failed`, and its next
//! start replaces the file.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use microagent_model::{DISK_MIB_MAX, FailureKind, PORTS_MAX, Publish, Resources, State, WorkspaceFailure};
use serde::{Deserialize, Serialize};

use crate::atomic::{ReadError, WriteError, read_json, read_json_limited, write_json_limited};
use crate::remove_tree::remove_tree;
use crate::{ProcessId, WorkspaceDir};

/// Largest file that is written and read back, in bytes. The largest number of published ports fits.
const STATE_LIMIT: u64 = 256 * 1024;

/// Longest text that is believed, in characters.
const TEXT_MAX: usize = 4096;

/// Longest name that is believed, in bytes: a profile, a backend, the id of a boot.
const NAME_MAX: usize = 64;

/// Most walls of a jail that can be missing.
const WALLS_MAX: usize = 16;

/// Another size than the workspace's own, for one start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneStart {
    /// Name of the profile that the sizes started from.
    pub profile: String,
    /// Size of the machine; the disk is the workspace's own.
    pub resources: Resources,
}

/// The way from a machine's network device to the host's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The process of the network stack.
    pub stack: ProcessId,
    /// The published ports, with the ports of the host that are listened at.
    pub published: Vec<Publish>,
}

/// `machine/state.json`: state and processes of the current or last machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// State as last written; see [`WorkspaceRecord::observed_state`](crate::WorkspaceRecord::observed_state).
    pub state: State,
    /// When `state` was last written.
    pub changed_at: Timestamp,
    /// What ran it: `linux-kvm` or `linux-tcg`.
    #[serde(default)]
    pub backend: Option<String>,
    /// Its supervisor.
    #[serde(default)]
    pub supervisor: Option<ProcessId>,
    /// Its VMM.
    #[serde(default)]
    pub vmm: Option<ProcessId>,
    /// Its network; see [`WorkspaceRecord::observed_link`](crate::WorkspaceRecord::observed_link).
    #[serde(default)]
    pub link: Option<Link>,
    /// Why the state is `failed`, or what became of a quarantined machine.
    #[serde(default)]
    pub failure: Option<WorkspaceFailure>,
    /// Whether a client requested its end. A machine that ended without a request may be restarted.
    #[serde(default)]
    pub asked_to_end: bool,
    /// When its time to live ends, if it has one. Kept only while it runs.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Walls of the jail that the host lacked.
    #[serde(default)]
    pub weak_jail: Vec<String>,
    /// Its size, if it was not the workspace's own.
    #[serde(default)]
    pub one_start: Option<OneStart>,
}

impl MachineState {
    /// A state without a machine.
    pub fn resting(state: State, changed_at: Timestamp) -> MachineState {
        MachineState {
            state,
            changed_at,
            backend: None,
            supervisor: None,
            vmm: None,
            link: None,
            failure: None,
            asked_to_end: false,
            expires_at: None,
            weak_jail: Vec::new(),
            one_start: None,
        }
    }

    /// Reads the state of a workspace that was made at this time. One that has had no machine has no file.
    pub(crate) fn load(dir: &WorkspaceDir, created_at: Timestamp) -> MachineState {
        match read_json_limited::<MachineState>(&dir.state_file(), STATE_LIMIT) {
            Ok(state) => state.checked(),
            Err(error) if error.is_not_found() => MachineState::resting(State::Prepared, created_at),
            Err(error) => MachineState::unreadable(created_at, &error),
        }
    }

    /// The state in a record of a format before 7, which had both.
    pub(crate) fn of_older_record(path: &Path) -> Result<MachineState, ReadError> {
        read_json::<MachineState>(path).map(MachineState::checked)
    }

    fn unreadable(created_at: Timestamp, error: &ReadError) -> MachineState {
        let why = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
        let message = printable(&format!("its state is not known: {error}{why}"), TEXT_MAX, &[]);
        let failure = Some(WorkspaceFailure { kind: FailureKind::SupervisorDied, message });
        MachineState { failure, ..MachineState::resting(State::Failed, created_at) }
    }

    /// Writes the state, atomically. The caller is the workspace's supervisor, or holds its lock.
    ///
    /// # Errors
    /// Fails when the file cannot be replaced; the old one is then still there.
    pub fn save(&self, dir: &WorkspaceDir) -> Result<(), WriteError> {
        let path = dir.state_file();
        let failed = |source: io::Error| WriteError::Write { path: path.clone(), source };
        dir.make_machine_dir().map_err(failed)?;
        // A directory in its place could not be replaced.
        if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            remove_tree(&path).map_err(failed)?;
        }
        write_json_limited(&path, self, STATE_LIMIT, dir.durability())
    }

    /// Without what no supervisor writes that is what it claims to be.
    fn checked(self) -> MachineState {
        let one_start = self.one_start.filter(|size| {
            is_name(&size.profile) && size.resources.size_mib <= DISK_MIB_MAX && size.resources.cpu_count > 0
        });
        MachineState {
            backend: self.backend.filter(|backend| is_name(backend)),
            supervisor: self.supervisor.filter(is_process),
            vmm: self.vmm.filter(is_process),
            link: self.link.filter(|link| is_process(&link.stack) && link.published.len() <= PORTS_MAX),
            failure: self.failure.map(|failure| WorkspaceFailure {
                message: printable(&failure.message, TEXT_MAX, &[]),
                ..failure
            }),
            weak_jail: self
                .weak_jail
                .iter()
                .take(WALLS_MAX)
                .map(|wall| printable(wall, TEXT_MAX, &[]))
                .collect(),
            one_start,
            ..self
        }
    }
}

impl WorkspaceDir {
    pub(crate) fn state_file(&self) -> PathBuf {
        self.machine().join("state.json")
    }
}

fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= NAME_MAX && text.bytes().all(is_part)
}

/// Whether these can be the numbers of an ordinary process: 0 and negative ones mean groups and everybody, 1 is init.
fn is_process(process: &ProcessId) -> bool {
    process.pid > 1 && (process.boot_id.is_empty() || is_name(&process.boot_id))
}

/// Without what a terminal obeys or reorders, but for these characters, of limited length.
pub fn printable(text: &str, longest: usize, kept: &[char]) -> String {
    let reorders = |c: char| matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    let is_bad = |c: char| (c.is_control() && !kept.contains(&c)) || reorders(c);
    text.chars().take(longest).map(|c| if is_bad(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use serde_json::json;

    use super::*;

    fn workspace() -> (tempfile::TempDir, WorkspaceDir) {
        let dir = tempfile::tempdir().unwrap();
        let workspace = WorkspaceDir::at(dir.path());
        workspace.make_machine_dir().unwrap();
        (dir, workspace)
    }

    fn load(dir: &WorkspaceDir) -> MachineState {
        MachineState::load(dir, Timestamp::UNIX_EPOCH)
    }

    fn full() -> MachineState {
        MachineState {
            backend: Some("linux-kvm".into()),
            supervisor: ProcessId::current(),
            vmm: ProcessId::current(),
            link: ProcessId::current()
                .map(|stack| Link { stack, published: vec!["8080:80".parse().unwrap(); PORTS_MAX] }),
            failure: Some(WorkspaceFailure { kind: FailureKind::Boot, message: "no `disk`: gone".into() }),
            asked_to_end: true,
            expires_at: Some(Timestamp::MAX),
            weak_jail: vec!["no Landlock".into()],
            one_start: Some(OneStart {
                profile: "small".into(),
                resources: Resources { memory_mib: 64, cpu_count: 1, size_mib: 1024 },
            }),
            ..MachineState::resting(State::Running, Timestamp::UNIX_EPOCH)
        }
    }

    #[test]
    fn what_is_saved_is_loaded_again() {
        let (_dir, workspace) = workspace();
        assert_eq!(load(&workspace), MachineState::resting(State::Prepared, Timestamp::UNIX_EPOCH));
        full().save(&workspace).unwrap();
        assert_eq!(load(&workspace), full());
    }

    #[test]
    fn what_cannot_be_a_state_is_failed_with_one_line() {
        let (_dir, workspace) = workspace();
        let path = workspace.state_file();
        let huge = format!("{{\"state\": \"running\", \"x\": \"{}\"}}", "x".repeat(1 << 20));
        for content in [
            "",
            "[]",
            "{",
            "{\"state\": 7}",
            "{\"state\": \"\\u001b]0;owned\\u0007\\n\\u202e\"}",
            huge.as_str(),
            "{\"state\": \"running\", \"changed_at\": \"2026-11-29T00:00:00Z\", \"supervisor\": {\"pid\": \"1\"}}",
        ] {
            fs::write(&path, content).unwrap();
            let found = load(&workspace);
            let message = found.failure.unwrap().message;
            assert_eq!(
                (found.state, found.supervisor, found.vmm),
                (State::Failed, None, None),
                "{content:.80}"
            );
            assert!(!message.chars().any(char::is_control) && message.len() < 1000, "{message}");
        }
        full().save(&workspace).unwrap();
        assert_eq!(load(&workspace), full());
    }

    #[test]
    fn what_is_no_regular_file_is_failed_and_replaced() {
        let (dir, workspace) = workspace();
        let path = workspace.state_file();
        let other = dir.path().join("other");
        fs::write(&other, serde_json::to_vec(&full()).unwrap()).unwrap();
        let places: [&dyn Fn(); 4] = [
            &|| symlink(&other, &path).unwrap(),
            &|| symlink("/dev/zero", &path).unwrap(),
            &|| mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
            &|| fs::create_dir_all(path.join("full")).unwrap(),
        ];
        for place in places {
            place();
            assert_eq!(load(&workspace).state, State::Failed);
            full().save(&workspace).unwrap();
            assert_eq!(load(&workspace), full());
            fs::remove_file(&path).unwrap();
        }
        assert!(other.symlink_metadata().unwrap().is_file(), "what a link named is not changed");
    }

    #[test]
    fn fields_that_are_not_what_they_claim_are_not_believed() {
        let (_dir, workspace) = workspace();
        let process = |pid: i32| json!({"pid": pid, "start_time": 1, "boot_id": "x"});
        let resources = json!({"memory_mib": 64, "cpu_count": 1, "size_mib": 1024});
        for (field, value) in [
            ("supervisor", process(0)),
            ("supervisor", process(-1)),
            ("vmm", process(1)),
            ("vmm", json!({"pid": 7, "start_time": 1, "boot_id": "../../x\u{1b}"})),
            ("link", json!({"stack": process(-9), "published": []})),
            ("backend", json!("\u{1b}[31m")),
            ("backend", json!("/etc/passwd")),
            ("one_start", json!({"profile": "a\nb", "resources": resources})),
            (
                "one_start",
                json!({"profile": "x", "resources": {"memory_mib": 64, "cpu_count": 0, "size_mib": 1}}),
            ),
            (
                "one_start",
                json!({"profile": "x", "resources": {"memory_mib": 1, "cpu_count": 1, "size_mib": u64::MAX}}),
            ),
        ] {
            let mut state = json!({"state": "halted", "changed_at": "2026-11-29T00:00:00Z"});
            state[field] = value;
            fs::write(workspace.state_file(), state.to_string()).unwrap();
            let found = load(&workspace);
            assert_eq!(found, MachineState::resting(State::Halted, found.changed_at), "{state}");
        }
        let escapes = "\u{1b}[2J".repeat(100_000);
        let wild = MachineState {
            failure: Some(WorkspaceFailure {
                kind: FailureKind::Boot,
                message: "a\r\n\u{9b}31m\u{202e}b".into(),
            }),
            weak_jail: vec![escapes[..5_000].to_owned(); 17],
            ..full()
        };
        fs::write(workspace.state_file(), serde_json::to_vec(&wild).unwrap()).unwrap();
        let found = load(&workspace);
        assert_eq!(found.failure.unwrap().message, "a   31m b");
        assert_eq!(found.weak_jail.len(), WALLS_MAX);
        assert!(found.weak_jail.iter().all(|wall| wall.len() <= TEXT_MAX && !wall.contains('\u{1b}')));
    }
}
