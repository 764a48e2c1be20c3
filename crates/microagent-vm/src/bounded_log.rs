//! A log that a hostile writer cannot make large, with its last lines at hand.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes kept in memory for messages about a failure.
const TAIL_LIMIT: usize = 16 * 1024;

/// Appends to a file of at most `limit` bytes; a full file becomes `NAME.1` in place of the one before, so
/// at most twice the limit lies on disk and the newest `limit` bytes are always there.
#[derive(Debug)]
pub(crate) struct BoundedLog {
    path: PathBuf,
    file: File,
    len: u64,
    limit: u64,
    tail: Vec<u8>,
}

impl BoundedLog {
    /// Starts a new log, whatever lay there before.
    pub(crate) fn create(path: &Path, limit: u64) -> io::Result<BoundedLog> {
        let _ = fs::remove_file(older(path));
        Ok(BoundedLog { path: path.to_owned(), file: open(path)?, len: 0, limit, tail: Vec::new() })
    }

    /// Appends. A log that cannot be written does not stop what is logged; the tail is kept all the same.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
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
        }
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// The newest bytes as text.
    pub(crate) fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }
}

/// Where a full log goes.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

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
