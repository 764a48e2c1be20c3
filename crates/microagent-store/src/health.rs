//! `machine/health.json`: the newest health checks of a machine, as its supervisor tells of them.
//!
//! As with [`MachineState`](crate::MachineState), whoever reads the file believes nothing in it: its size is limited, it is
//! a regular file, and texts are made safe to show. It decides nothing but what is shown, and whether `supervise` ends the
//! machine.

use std::io;
use std::path::PathBuf;

use jiff::Timestamp;
use microagent_model::{HealthState, State};
use serde::{Deserialize, Serialize};

use crate::atomic::{Durability, WriteError, read_json_limited, write_json_limited};
use crate::machine_state::printable;
use crate::remove_tree::remove_tree;
use crate::{WorkspaceDir, WorkspaceRecord};

/// Most checks that are kept, as in Docker.
pub const HEALTH_CHECKS_MAX: usize = 5;

/// Longest output of one check that is kept: its end, in bytes.
pub const HEALTH_OUTPUT_MAX: usize = 4096;

/// Largest file that is written and read back, in bytes.
const FILE_LIMIT: u64 = 256 * 1024;

/// Most bytes that JSON makes of one character, and that a byte which is no text becomes.
const ESCAPED_MAX: usize = 6;
const _: () = assert!(HEALTH_CHECKS_MAX * (ESCAPED_MAX * HEALTH_OUTPUT_MAX + 4096) < FILE_LIMIT as usize);

/// Longest reason that is believed, in characters.
const REASON_MAX: usize = 256;

/// State and newest checks of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthReport {
    /// The state.
    pub state: HealthState,
    /// Failed checks in a row that count.
    pub failing_streak: u32,
    /// The newest checks, oldest first.
    pub checks: Vec<HealthResult>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthResult {
    /// When it started (host clock).
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Its exit code; 128 + number for a signal. `None` if it did not end by itself.
    pub exit_code: Option<i32>,
    /// The end of what it printed.
    pub output: String,
    /// Why it has no exit code, or could not be started.
    pub problem: Option<String>,
}

impl HealthReport {
    /// Before the first check.
    pub fn starting() -> HealthReport {
        HealthReport { state: HealthState::Starting, failing_streak: 0, checks: Vec::new() }
    }

    /// Adds the newest check.
    pub fn push(&mut self, check: HealthResult) {
        self.checks.push(check);
        let surplus = self.checks.len().saturating_sub(HEALTH_CHECKS_MAX);
        self.checks.drain(..surplus);
    }

    /// Reads what was written of the current or last machine; `None` if nothing was, or nothing that can be believed.
    pub fn load(dir: &WorkspaceDir) -> Option<HealthReport> {
        read_json_limited::<HealthReport>(&dir.health_file(), FILE_LIMIT).ok().map(HealthReport::checked)
    }

    /// The health of the machine that runs now, if it has a health check.
    pub fn observe(dir: &WorkspaceDir, record: &WorkspaceRecord) -> Option<HealthReport> {
        let runs = matches!(record.observed_state(), State::Running | State::Paused | State::Stopping);
        if runs { HealthReport::load(dir) } else { None }
    }

    /// Writes it, atomically. The caller is the workspace's supervisor.
    ///
    /// # Errors
    /// Fails when the file cannot be replaced; the old one is then still there.
    pub fn save(&self, dir: &WorkspaceDir) -> Result<(), WriteError> {
        // It is about a machine that a loss of power ends.
        write_json_limited(&dir.health_file(), self, FILE_LIMIT, Durability::Cached)
    }

    /// Removes what was written of the last machine.
    ///
    /// # Errors
    /// Fails when it is there and cannot be removed.
    pub fn remove(dir: &WorkspaceDir) -> io::Result<()> {
        match remove_tree(&dir.health_file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn checked(mut self) -> HealthReport {
        let surplus = self.checks.len().saturating_sub(HEALTH_CHECKS_MAX);
        self.checks.drain(..surplus);
        for check in &mut self.checks {
            check.output = printable(&check.output, HEALTH_OUTPUT_MAX, &['\n', '\t']);
            check.problem = check.problem.take().map(|problem| printable(&problem, REASON_MAX, &[]));
        }
        self
    }
}

impl HealthResult {
    /// A check that ended now.
    pub fn new(
        started_at: Timestamp,
        exit_code: Option<i32>,
        output: &[u8],
        problem: Option<String>,
    ) -> HealthResult {
        let tail = &output[output.len().saturating_sub(HEALTH_OUTPUT_MAX)..];
        // Bytes that are no text become a character of three bytes each, which counts as one.
        let output = printable(&String::from_utf8_lossy(tail), HEALTH_OUTPUT_MAX, &['\n', '\t']);
        let problem = problem.map(|problem| printable(&problem, REASON_MAX, &[]));
        HealthResult { started_at, ended_at: Timestamp::now(), exit_code, output, problem }
    }

    /// Whether all was well.
    pub fn succeeded(&self) -> bool {
        self.exit_code == Some(0) && self.problem.is_none()
    }
}

impl WorkspaceDir {
    fn health_file(&self) -> PathBuf {
        self.machine().join("health.json")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn workspace() -> (tempfile::TempDir, WorkspaceDir) {
        let dir = tempfile::tempdir().unwrap();
        let workspace = WorkspaceDir::at(dir.path());
        workspace.make_machine_dir().unwrap();
        (dir, workspace)
    }

    fn check(output: &[u8]) -> HealthResult {
        HealthResult::new(Timestamp::UNIX_EPOCH, Some(1), output, Some("a\u{1b}b".into()))
    }

    #[test]
    fn what_is_saved_is_loaded_again_however_much_a_guest_prints() {
        let (_dir, workspace) = workspace();
        assert_eq!(HealthReport::load(&workspace), None);
        let mut report = HealthReport { failing_streak: 9, ..HealthReport::starting() };
        for output in [&b"x"[..], &[0; 10_000], &[0xff; 10_000], &[b'"'; 10_000], &[b'\n'; 10_000], b"last\n"]
        {
            report.push(check(output));
        }
        report.save(&workspace).unwrap();
        let found = HealthReport::load(&workspace).unwrap();
        assert_eq!(found, report);
        assert_eq!((found.checks.len(), found.checks[4].output.as_str()), (HEALTH_CHECKS_MAX, "last\n"));
        assert!(found.checks.iter().all(|check| check.output.chars().count() <= HEALTH_OUTPUT_MAX));
        HealthReport::remove(&workspace).unwrap();
        HealthReport::remove(&workspace).unwrap();
        assert_eq!(HealthReport::load(&workspace), None);
    }

    #[test]
    fn the_end_of_a_long_output_is_kept() {
        let output = [vec![b'x'; 2 * HEALTH_OUTPUT_MAX], b"the end".to_vec()].concat();
        assert!(check(&output).output.ends_with("xthe end"));
    }

    #[test]
    fn what_a_machine_writes_there_is_not_believed() {
        let (dir, workspace) = workspace();
        let path = workspace.health_file();
        let other = dir.path().join("other");
        fs::write(&other, serde_json::to_vec(&HealthReport::starting()).unwrap()).unwrap();
        for content in ["", "[]", "{\"state\": \"well\"}", &"x".repeat(1 << 20)] {
            fs::write(&path, content).unwrap();
            assert_eq!(HealthReport::load(&workspace), None, "{content:.20}");
        }
        fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        assert_eq!(HealthReport::load(&workspace), None);
        HealthReport::remove(&workspace).unwrap();
        assert!(other.exists(), "what a link named stays");
        let wild = HealthResult { output: "a\r\u{1b}[2J\u{202e}b\n".into(), ..check(b"") };
        let wild = HealthReport { checks: vec![wild; 50], ..HealthReport::starting() };
        fs::write(&path, serde_json::to_vec(&wild).unwrap()).unwrap();
        let found = HealthReport::load(&workspace).unwrap();
        assert_eq!((found.checks.len(), found.checks[0].output.as_str()), (HEALTH_CHECKS_MAX, "a  [2J b\n"));
        fs::remove_file(&path).unwrap();
        fs::create_dir_all(path.join("full")).unwrap();
        assert_eq!(HealthReport::load(&workspace), None);
        HealthReport::remove(&workspace).unwrap();
        assert!(!path.exists());
    }
}
