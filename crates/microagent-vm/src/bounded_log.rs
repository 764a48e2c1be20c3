//! A log of limited size for untrusted writers. Its last lines are kept in memory, and optionally the times of writes.
//!
//! The times are marks in a second file (`NAME.times`), at most one per second: time, number of the file (from 0
//! since the start of the log), and position in it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use microagent_store::{Access, open_file};
use tokio::sync::mpsc;

/// Bytes kept in memory for messages about a failure.
const TAIL_LIMIT: usize = 16 * 1024;

/// Pieces in the queue of a watcher; each is one write of at most 64 KiB.
const WATCH_QUEUE: usize = 16;

/// Least time between two marks in milliseconds.
const MARK_INTERVAL_MS: u64 = 1000;

/// Bytes of a mark.
const MARK_LEN: usize = 24;

/// Most marks of a log: about a mebibyte.
const MARK_LIMIT: usize = 43_690;

/// Appends to a file of at most `limit` bytes. A full file is renamed to `NAME.1` and replaces the previous one, so
/// the disk has at most twice the limit, and always the newest `limit` bytes.
#[derive(Debug)]
pub(crate) struct BoundedLog {
    path: PathBuf,
    file: File,
    len: u64,
    limit: u64,
    tail: Vec<u8>,
    marks: Option<Marks>,
    /// The watcher of new writes.
    watcher: Option<mpsc::Sender<Vec<u8>>>,
}

impl BoundedLog {
    /// Starts a new log, which replaces an existing one.
    pub(crate) fn create(path: &Path, limit: u64) -> io::Result<BoundedLog> {
        let _ = fs::remove_file(older(path));
        Ok(BoundedLog {
            path: path.to_owned(),
            file: open(path)?,
            len: 0,
            limit,
            tail: Vec::new(),
            marks: None,
            watcher: None,
        })
    }

    /// Continues an existing log. An incomplete last line is ended.
    pub(crate) fn append_to(path: &Path, limit: u64) -> io::Result<BoundedLog> {
        let mut file = open_file(path, Access::Append)?;
        let mut len = file.metadata()?.len();
        if len > 0 {
            let mut last = [0];
            file.read_exact_at(&mut last, len - 1)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                len += 1;
            }
        }
        Ok(BoundedLog {
            path: path.to_owned(),
            file,
            len,
            limit,
            tail: Vec::new(),
            marks: None,
            watcher: None,
        })
    }

    /// Records the times of writes.
    pub(crate) fn with_times(mut self) -> io::Result<BoundedLog> {
        let path = times(&self.path);
        let file = open(&path)?;
        self.marks = Some(Marks { path, file, count: 0, last_ms: None, generation: 0 });
        Ok(self)
    }

    /// Returns a receiver of everything that is written from now on; it replaces an earlier one. A slow receiver misses
    /// writes, which are in the log.
    pub(crate) fn watch(&mut self) -> mpsc::Receiver<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        self.watcher = Some(sender);
        receiver
    }

    /// Appends. A write error is ignored; the last lines are kept in memory in any case.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        if let Some(watcher) = &self.watcher
            && let Err(mpsc::error::TrySendError::Closed(_)) = watcher.try_send(bytes.to_vec())
        {
            self.watcher = None;
        }
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > 2 * TAIL_LIMIT {
            self.tail.drain(..self.tail.len() - TAIL_LIMIT);
        }
        let _ = self.write(bytes);
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len + bytes.len() as u64 > self.limit {
            fs::rename(&self.path, older(&self.path))?;
            self.file = open(&self.path)?;
            self.len = 0;
            if let Some(marks) = &mut self.marks {
                marks.generation += 1;
                marks.last_ms = None;
            }
        }
        if let Some(marks) = &mut self.marks {
            marks.note(unix_ms(), self.len)?;
        }
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Returns the newest bytes as text.
    pub(crate) fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }
}

/// The file of marks as it is written.
#[derive(Debug)]
struct Marks {
    path: PathBuf,
    file: File,
    count: usize,
    last_ms: Option<u64>,
    generation: u64,
}

impl Marks {
    /// Adds a mark, unless the last one is of the same second.
    fn note(&mut self, now_ms: u64, offset: u64) -> io::Result<()> {
        if self.last_ms.is_some_and(|last| now_ms.saturating_sub(last) < MARK_INTERVAL_MS) {
            return Ok(());
        }
        if self.count == MARK_LIMIT {
            self.thin_out()?;
        }
        self.file.write_all(&Mark { unix_ms: now_ms, generation: self.generation, offset }.encode())?;
        self.count += 1;
        self.last_ms = Some(now_ms);
        Ok(())
    }

    /// Drops every second mark, so a long log has less precise times.
    fn thin_out(&mut self) -> io::Result<()> {
        let bytes = read_times(&self.path)?;
        let kept: Vec<u8> = bytes.chunks_exact(MARK_LEN).step_by(2).flatten().copied().collect();
        let fresh = self.path.with_extension("times.new");
        let mut file = open(&fresh)?;
        file.write_all(&kept)?;
        fs::rename(&fresh, &self.path)?;
        self.file = file;
        self.count = kept.len() / MARK_LEN;
        Ok(())
    }
}

/// A position in a log with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    unix_ms: u64,
    generation: u64,
    offset: u64,
}

impl Mark {
    fn encode(self) -> [u8; MARK_LEN] {
        let mut bytes = [0; MARK_LEN];
        for (field, value) in bytes.chunks_exact_mut(8).zip([self.unix_ms, self.generation, self.offset]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Mark {
        let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Mark { unix_ms: field(0), generation: field(8), offset: field(16) }
    }
}

/// Position in the log or the file before it from which everything was written since a given time, to a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogPlace {
    /// The start of the older file.
    Start,
    /// This position of the older file ([`older`]).
    Older(u64),
    /// This position of the current file.
    Newest(u64),
    /// Nothing was written since then.
    End,
}

/// Looks up the position of the first write since `unix_ms`. Without times it is the start.
///
/// # Errors
/// Fails if the times exist and cannot be read.
pub fn place_since(path: &Path, unix_ms: u64) -> io::Result<LogPlace> {
    let bytes = match read_times(&times(path)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LogPlace::Start),
        Err(error) => return Err(error),
    };
    let marks: Vec<Mark> = bytes.chunks_exact(MARK_LEN).take(MARK_LIMIT).map(Mark::decode).collect();
    let Some(newest) = marks.last().map(|mark| mark.generation) else { return Ok(LogPlace::Start) };
    // What came within a second after a mark has no mark of its own.
    let since = unix_ms.saturating_sub(MARK_INTERVAL_MS);
    Ok(match marks.iter().find(|mark| mark.unix_ms >= since) {
        None => LogPlace::End,
        Some(mark) if mark.generation == newest => LogPlace::Newest(mark.offset),
        Some(mark) if mark.generation + 1 == newest => LogPlace::Older(mark.offset),
        Some(_) => LogPlace::Start,
    })
}

/// All marks that a file can have.
fn read_times(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = (MARK_LIMIT * MARK_LEN) as u64;
    open_file(path, Access::Read)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn times(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".times");
    name.into()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the path to which a full log is renamed.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn open(path: &Path) -> io::Result<File> {
    open_file(path, Access::Replace)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_written_since_a_moment_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(place_since(&path, 5000).unwrap(), LogPlace::Start);
        let mut log = BoundedLog::create(&path, 100).unwrap().with_times().unwrap();
        let marks = log.marks.as_mut().unwrap();
        for (ms, generation, offset) in
            [(1000, 0, 0), (3000, 1, 0), (5000, 1, 40), (5400, 1, 50), (9000, 2, 0), (9900, 2, 9)]
        {
            marks.generation = generation;
            marks.note(ms, offset).unwrap();
        }
        for (since, wanted) in [
            (500, LogPlace::Start),
            (3500, LogPlace::Older(0)),
            (5500, LogPlace::Older(40)),
            (9500, LogPlace::Newest(0)),
            (20_000, LogPlace::End),
        ] {
            assert_eq!(place_since(&path, since).unwrap(), wanted, "{since}");
        }
        assert_eq!(fs::metadata(times(&path)).unwrap().len(), 4 * MARK_LEN as u64);
    }

    #[test]
    fn marks_are_bounded_and_thinned_out_evenly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = BoundedLog::create(&path, 100).unwrap().with_times().unwrap();
        let marks = log.marks.as_mut().unwrap();
        for number in 0..3 * MARK_LIMIT as u64 {
            marks.note(number * 1000, number).unwrap();
        }
        assert!(fs::metadata(times(&path)).unwrap().len() <= (MARK_LIMIT * MARK_LEN) as u64);
        let LogPlace::Newest(place) = place_since(&path, 50_000_000).unwrap() else { panic!("not found") };
        assert!((49_999..50_010).contains(&place), "{place}");
    }

    #[test]
    fn goes_on_after_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for lives in 1..=3 {
            let mut log = BoundedLog::append_to(&path, 24).unwrap();
            log.append(b"a line\n");
            log.append(b"torn");
            drop(log);
            let text = fs::read_to_string(&path).unwrap();
            match lives {
                1 => assert_eq!(text, "a line\ntorn"),
                2 => assert_eq!(text, "a line\ntorn\na line\ntorn"),
                _ => assert_eq!((text.as_str(), older(&path).exists()), ("a line\ntorn", true)),
            }
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn stays_within_twice_its_bound_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = BoundedLog::create(&path, 100).unwrap();
        for number in 0..1000 {
            log.append(format!("line {number}\n").as_bytes());
        }
        let on_disk = fs::metadata(&path).unwrap().len() + fs::metadata(older(&path)).unwrap().len();
        assert!(on_disk <= 200, "{on_disk} bytes");
        assert!(fs::read_to_string(&path).unwrap().ends_with("line 999\n"));
        assert!(log.tail().ends_with("line 999\n"));
        assert!(log.tail.len() <= 2 * TAIL_LIMIT);
    }
}
