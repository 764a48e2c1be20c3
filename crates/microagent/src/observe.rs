//! What can be seen of a workspace from outside: log, events, result, figures. Reading changes nothing.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use microagent_store::{
    Access, ProcessId, RecordedResult, State, StateEvent, Workload, WorkspaceDir, WorkspaceName, open_file,
    read_json,
};
use microagent_vm::{LogPlace, older_log, place_since};
use serde::Serialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{Engine, Error, RunResult};

/// Most bytes of console log that are handed out at once; the log itself is bounded below this.
const LOG_LIMIT: u64 = 64 * 1024 * 1024;

/// How often a log or a state that is followed is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Most bytes that are passed on at once.
const FOLLOW_BYTES: u64 = 1024 * 1024;

/// How long a processor's use is measured.
const SAMPLE: Duration = Duration::from_millis(250);

/// Clock ticks in a second as `/proc` has them: the same on every Linux that we run on (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// What a machine uses on its host.
#[derive(Debug, Clone, Serialize)]
pub struct Stats {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// QEMU's process.
    pub pid: i32,
    /// Share of one processor in percent; above 100 where it uses several.
    pub cpu_percent: f64,
    /// Resident memory of QEMU in bytes; what it shares with other machines of the same template is in it.
    pub memory_bytes: u64,
    /// Bytes read from disks since its start.
    pub io_read_bytes: u64,
    /// Bytes written to disks since its start.
    pub io_write_bytes: u64,
    /// When this was measured.
    pub sampled_at: Timestamp,
}

/// More about a workspace than its record.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Whether every start runs something.
    pub has_service: bool,
    /// Whether setup is still to be done.
    pub setup_pending: bool,
    /// Bytes that its own disk takes on the host, without the image's.
    pub disk_bytes: u64,
    /// How its last command or service ended.
    pub result: Option<RunResult>,
}

impl Engine {
    /// What the guest's console and the workload printed, oldest first, at most 64 MiB.
    ///
    /// # Errors
    /// Fails when there is no such workspace or its log cannot be read.
    pub fn logs(&self, name: &WorkspaceName) -> Result<Vec<u8>, Error> {
        read_whole(&self.existing(name)?.console_log())
    }

    /// What [`Engine::logs`] gives, as far as it was printed since a moment, to a second.
    ///
    /// # Errors
    /// As [`Engine::logs`].
    pub fn logs_since(&self, name: &WorkspaceName, since: Timestamp) -> Result<Vec<u8>, Error> {
        let path = self.existing(name)?.console_log();
        let unix_ms = u64::try_from(since.as_millisecond()).unwrap_or(0);
        let failed = |source| Error::File { action: "read", path: path.clone(), source };
        let read = |path: &Path, at: u64| match read_from(path, at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        };
        match place_since(&path, unix_ms).map_err(failed)? {
            LogPlace::Start => self.logs(name),
            LogPlace::Older(at) => {
                let mut bytes = read(&older_log(&path), at).map_err(failed)?;
                bytes.extend(read(&path, 0).map_err(failed)?);
                Ok(bytes)
            }
            LogPlace::Newest(at) => read(&path, at).map_err(failed),
            LogPlace::End => Ok(Vec::new()),
        }
    }

    /// Passes on what the log has now, as far as `since` and the last `tail` lines go, and then what comes, until the
    /// workspace rests or `cancel` says so.
    ///
    /// # Errors
    /// Fails when there is no such workspace, its log cannot be read, or the sink fails.
    pub async fn follow_logs(
        &self,
        name: &WorkspaceName,
        since: Option<Timestamp>,
        tail: Option<usize>,
        sink: &mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let dir = self.existing(name)?;
        let path = dir.console_log();
        let unreadable = |source| Error::File { action: "read", path: path.clone(), source };
        let unwritable = |source| Error::File { action: "write", path: "standard output".into(), source };
        let mut log = Follower::open(&path).map_err(unreadable)?;
        let now = match since {
            Some(since) => self.logs_since(name, since)?,
            None => self.logs(name)?,
        };
        sink(tail.map_or(&now[..], |lines| last_lines(&now, lines))).map_err(unwritable)?;
        self.follow_file(name, &mut log, &path, sink, cancel).await
    }

    /// Passes on what comes into a file of a workspace until it rests or `cancel` says so.
    pub(crate) async fn follow_file(
        &self,
        name: &WorkspaceName,
        log: &mut Follower,
        path: &Path,
        sink: &mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let unreadable = |source| Error::File { action: "read", path: path.to_owned(), source };
        let unwritable = |source| Error::File { action: "write", path: "standard output".into(), source };
        loop {
            // The state before the log: what comes in between is not missed.
            let rests = self.workspace(name).map_or(true, |details| !details.state.is_live());
            while let Some(bytes) = log.next(path).map_err(unreadable)? {
                sink(&bytes).map_err(unwritable)?;
            }
            if rests {
                return Ok(());
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(Error::Cancelled),
                () = sleep(FOLLOW_INTERVAL) => {}
            }
        }
    }

    /// What happened to a workspace, oldest first; about the last two thousand changes of state.
    ///
    /// # Errors
    /// Fails when there is no such workspace or its events cannot be read.
    pub fn events(&self, name: &WorkspaceName) -> Result<Vec<StateEvent>, Error> {
        let dir = self.existing(name)?;
        dir.read_events().map_err(|source| Error::File { action: "read", path: dir.events(), source })
    }

    /// How the last command or service of a workspace ended, if one did.
    ///
    /// # Errors
    /// Fails when there is no such workspace or its result is damaged.
    pub fn result(&self, name: &WorkspaceName) -> Result<Option<RunResult>, Error> {
        match read_json::<RecordedResult>(&self.existing(name)?.result()) {
            Ok(recorded) => Ok(Some(recorded.into())),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(self.damaged(name, error)),
        }
    }

    /// Looks at more of a workspace than its record.
    ///
    /// # Errors
    /// Fails when there is no such workspace or its files are damaged.
    pub fn inspect(&self, name: &WorkspaceName) -> Result<Inspection, Error> {
        let dir = self.existing(name)?;
        let workload = Workload::load(&dir).map_err(|e| self.damaged(name, e))?;
        Ok(Inspection {
            has_service: workload.service.is_some(),
            setup_pending: !workload.setup.is_empty(),
            disk_bytes: disk_bytes(&dir),
            result: self.result(name)?,
        })
    }

    /// Measures what the machine of a running workspace uses; takes a quarter of a second.
    ///
    /// # Errors
    /// Fails when the workspace does not run.
    pub async fn stats(&self, name: &WorkspaceName) -> Result<Stats, Error> {
        let record = self.observe(name)?;
        let state = record.observed_state();
        let wrong = || Error::WrongState { name: name.clone(), state, action: "measure it" };
        if !matches!(state, State::Running | State::Stopping | State::Starting) {
            return Err(wrong());
        }
        let vmm = record.vmm.as_ref().ok_or_else(wrong)?;
        let begun = Instant::now();
        let before = processor_time(vmm).ok_or_else(wrong)?;
        sleep(SAMPLE).await;
        let after = processor_time(vmm).ok_or_else(wrong)?;
        let used = after.saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64();
        let field = |file: &str, key: &str| number(&process_file(vmm, file)?, key);
        Ok(Stats {
            workspace: name.clone(),
            pid: vmm.pid,
            cpu_percent: (used * 1000.0).round() / 10.0,
            memory_bytes: field("status", "VmRSS:").ok_or_else(wrong)? * 1024,
            io_read_bytes: field("io", "read_bytes:").unwrap_or(0),
            io_write_bytes: field("io", "write_bytes:").unwrap_or(0),
            sampled_at: Timestamp::now(),
        })
    }
}

/// The log as it grows. A full one is renamed and begun anew, and so is it by a new start.
pub(crate) struct Follower {
    file: Option<File>,
    inode: u64,
    at: u64,
}

impl Follower {
    /// From the end on.
    pub(crate) fn open(path: &Path) -> io::Result<Follower> {
        let mut follower = Follower { file: None, inode: 0, at: 0 };
        if follower.reopen(path)?
            && let Some(file) = &follower.file
        {
            follower.at = file.metadata()?.len();
        }
        Ok(follower)
    }

    /// Opens what has the name now, if that is another file than before.
    fn reopen(&mut self, path: &Path) -> io::Result<bool> {
        match open_file(path, Access::Read) {
            Ok(file) => {
                let metadata = file.metadata()?;
                let another = self.file.is_none() || self.inode != metadata.ino();
                // The same file, shorter: a new start has begun it anew.
                if another || metadata.len() < self.at {
                    self.inode = metadata.ino();
                    self.file = Some(file);
                    self.at = 0;
                    return Ok(true);
                }
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The next bytes, if there are any.
    fn next(&mut self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(file) = &mut self.file {
                file.seek(SeekFrom::Start(self.at))?;
                let mut bytes = Vec::new();
                file.take(FOLLOW_BYTES).read_to_end(&mut bytes)?;
                if !bytes.is_empty() {
                    self.at += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
            }
            if !self.reopen(path)? {
                return Ok(None);
            }
        }
    }
}

impl From<RecordedResult> for RunResult {
    fn from(recorded: RecordedResult) -> RunResult {
        RunResult {
            started_at: recorded.started_at,
            exited_at: recorded.exited_at,
            exit_code: recorded.exit_code,
            signal: recorded.signal,
            start_error: recorded.start_error,
            dropped_bytes: recorded.dropped_bytes,
        }
    }
}

/// The last so many lines; one without a line end counts.
pub fn last_lines(bytes: &[u8], lines: usize) -> &[u8] {
    let whole = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if lines == 0 || bytes.is_empty() {
        return &[];
    }
    let ends = whole.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let start = ends.map(|(at, _)| at + 1).nth(lines - 1);
    &bytes[start.unwrap_or(0)..]
}

/// A bounded log with the file before it; nothing where there is none.
pub(crate) fn read_whole(log: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    for path in [older_log(log), log.to_owned()] {
        match read_from(&path, 0) {
            Ok(part) => bytes.extend(part),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::File { action: "read", path, source }),
        }
    }
    Ok(bytes)
}

/// From this place on, but not more than the last [`LOG_LIMIT`] bytes.
fn read_from(path: &Path, at: u64) -> io::Result<Vec<u8>> {
    let mut file = open_file(path, Access::Read)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(at.max(len.saturating_sub(LOG_LIMIT))))?;
    let mut bytes = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn disk_bytes(dir: &WorkspaceDir) -> u64 {
    fs::metadata(dir.disk()).map_or(0, |found| found.blocks() * 512)
}

fn process_file(process: &ProcessId, file: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{}/{file}", process.pid)).ok()?;
    // The number may be another process's by now.
    process.is_alive().then_some(text)
}

fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}

/// What a process has used of all processors.
///
/// # Source
/// `proc_pid_stat(5)`, fields 14 (`utime`) and 15 (`stime`), in clock ticks.
fn processor_time(process: &ProcessId) -> Option<Duration> {
    let stat = process_file(process, "stat")?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let ticks = next()? + next()?;
    Some(Duration::from_micros(ticks * 1_000_000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_lines_are_counted_from_the_end() {
        for (text, lines, wanted) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("a\n\n\n", 2, "\n\n"),
            ("a\n", 0, ""),
            ("", 3, ""),
        ] {
            assert_eq!(last_lines(text.as_bytes(), lines), wanted.as_bytes(), "{text:?} {lines}");
        }
    }

    #[test]
    fn a_log_is_followed_through_its_renaming() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "old").unwrap();
        let mut follower = Follower::open(&path).unwrap();
        assert_eq!(follower.next(&path).unwrap(), None);
        File::options().append(true).open(&path).unwrap().write_all(b" new").unwrap();
        assert_eq!(follower.next(&path).unwrap().unwrap(), b" new");
        fs::rename(&path, dir.path().join("log.1")).unwrap();
        assert_eq!(follower.next(&path).unwrap(), None);
        fs::write(&path, "next").unwrap();
        assert_eq!(follower.next(&path).unwrap().unwrap(), b"next");
        assert_eq!(follower.next(&path).unwrap(), None);
    }

    #[test]
    fn a_process_has_used_time() {
        let me = ProcessId::current().unwrap();
        let before = processor_time(&me).unwrap();
        let end = before + Duration::from_millis(30);
        while processor_time(&me).unwrap() < end {
            std::hint::black_box(0);
        }
        assert!(number(&process_file(&me, "status").unwrap(), "VmRSS:").unwrap() > 0);
    }
}
