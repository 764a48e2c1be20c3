//! Reads and follows logs of a workspace: console, events. Reading changes nothing.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use microagent_store::{Access, StateEvent, open_file};
use microagent_vm::{LogPlace, older_log, place_since};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Workspace;
use crate::Error;
use crate::blocking::blocking;
use crate::streaming::{Streaming, hand_over};

/// Most bytes of one file of the console log that are returned; the limit of the file is lower.
const LOG_LIMIT: u64 = 64 * 1024 * 1024;

/// Interval of reading a followed log and the state.
pub(super) const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Most bytes of one piece of a followed log.
const FOLLOW_BYTES: u64 = 1024 * 1024;

/// Length of the queue of a followed log.
pub(super) const QUEUE: usize = 4;

/// Which part of a log is read. Create with [`LogOptions::new`] and change with its methods.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct LogOptions {
    /// Output before this time is left out, with a resolution of one second.
    pub since: Option<Timestamp>,
    /// Only this number of lines at the end is returned.
    pub tail: Option<usize>,
}

impl LogOptions {
    /// Creates options for the whole log.
    pub fn new() -> LogOptions {
        LogOptions::default()
    }

    /// Leaves out output before this time, with a resolution of one second.
    #[must_use]
    pub fn since(self, since: Timestamp) -> LogOptions {
        LogOptions { since: Some(since), ..self }
    }

    /// Returns only this number of lines at the end of the log.
    #[must_use]
    pub fn tail(self, lines: usize) -> LogOptions {
        LogOptions { tail: Some(lines), ..self }
    }
}

impl Workspace {
    /// Returns the console log: its newest part, 8 to 16 MiB at most.
    ///
    /// The log has the output of the service and of setup steps, what programs write to `/dev/console`, and messages of
    /// the guest kernel. It does not have the output of [`Workspace::exec`] and of jobs. Without a service it is usually
    /// empty. It is kept when the machine ends, and the next start replaces it.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its log cannot be read.
    pub async fn logs(&self, options: LogOptions) -> Result<Vec<u8>, Error> {
        let workspace = self.clone();
        blocking(move || workspace.read_log(options)).await
    }

    fn read_log(&self, options: LogOptions) -> Result<Vec<u8>, Error> {
        let path = self.existing()?.console_log();
        let bytes = match options.since {
            Some(since) => read_since(&path, since)?,
            None => read_whole(&path)?,
        };
        Ok(match options.tail {
            Some(lines) => last_lines(&bytes, lines).to_vec(),
            None => bytes,
        })
    }

    /// Streams the result of [`Workspace::logs`] and then new output, until the workspace is
    /// [resting](microagent_model::State::is_resting). The stream of a workspace that is resting now ends at once.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its log cannot be read.
    pub async fn follow_logs(&self, options: LogOptions) -> Result<Streaming<Vec<u8>>, Error> {
        let path = self.existing()?.console_log();
        let log = Follower::open(&path)?;
        let workspace = self.clone();
        Ok(Streaming::start(QUEUE, |sender| async move {
            hand_over(&sender, workspace.logs(options).await?).await?;
            workspace.follow(log, &sender, |bytes| vec![bytes]).await
        }))
    }

    /// Returns the changes of state of the workspace, oldest first; about the last two thousand.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its events cannot be read.
    pub async fn events(&self) -> Result<Vec<StateEvent>, Error> {
        let dir = self.existing()?;
        blocking(move || {
            dir.read_events().map_err(|source| Error::File { action: "read", path: dir.events(), source })
        })
        .await
    }

    /// Streams the result of [`Workspace::events`] and then new changes of state, until the workspace is resting. The
    /// stream of a workspace that is resting now ends at once: follow it after the start.
    ///
    /// # Errors
    /// As [`Workspace::events`].
    pub async fn follow_events(&self) -> Result<Streaming<StateEvent>, Error> {
        let past = self.events().await?;
        let workspace = self.clone();
        Ok(Streaming::start(QUEUE, |sender| async move {
            let mut last = past.last().map(|event| event.at);
            for event in past {
                hand_over(&sender, event).await?;
            }
            loop {
                // The state before the events: what comes in between is not missed.
                let rests = workspace.state().map_or(true, |state| !state.is_live());
                // A workspace that was deleted has no more events.
                let fresh = workspace.events().await.unwrap_or_default();
                for event in fresh {
                    if last.is_none_or(|last| event.at > last) {
                        last = Some(event.at);
                        hand_over(&sender, event).await?;
                    }
                }
                if rests {
                    return Ok(());
                }
                sleep(FOLLOW_INTERVAL).await;
            }
        }))
    }

    /// Passes on new bytes of a log of the workspace, until the workspace is resting.
    pub(super) async fn follow<T>(
        &self,
        mut log: Follower,
        sender: &mpsc::Sender<Result<T, Error>>,
        mut items: impl FnMut(Vec<u8>) -> Vec<T> + Send,
    ) -> Result<(), Error> {
        loop {
            // The state before the log: what comes in between is not missed.
            let rests = self.state().map_or(true, |state| !state.is_live());
            loop {
                let (read, back) = blocking(move || {
                    let read = log.next();
                    Ok((read, log))
                })
                .await?;
                log = back;
                let Some(bytes) = read? else { break };
                for item in items(bytes) {
                    hand_over(sender, item).await?;
                }
            }
            if rests {
                return Ok(());
            }
            sleep(FOLLOW_INTERVAL).await;
        }
    }
}

/// A log as it grows. A full one is renamed and begun anew, and so is it by a new start.
pub(super) struct Follower {
    path: PathBuf,
    file: Option<File>,
    inode: u64,
    at: u64,
}

impl Follower {
    /// From the end on.
    pub(super) fn open(path: &Path) -> Result<Follower, Error> {
        let mut follower = Follower { path: path.to_owned(), file: None, inode: 0, at: 0 };
        follower.seek_end().map_err(|source| follower.unreadable(source))?;
        Ok(follower)
    }

    fn seek_end(&mut self) -> io::Result<()> {
        if self.reopen()?
            && let Some(file) = &self.file
        {
            self.at = file.metadata()?.len();
        }
        Ok(())
    }

    fn unreadable(&self, source: io::Error) -> Error {
        Error::File { action: "read", path: self.path.clone(), source }
    }

    /// Opens what has the name now, if that is another file than before.
    fn reopen(&mut self) -> io::Result<bool> {
        match open_file(&self.path, Access::Read) {
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
    fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.read().map_err(|source| self.unreadable(source))
    }

    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
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
            if !self.reopen()? {
                return Ok(None);
            }
        }
    }
}

/// What a log has since a moment, to a second.
fn read_since(path: &Path, since: Timestamp) -> Result<Vec<u8>, Error> {
    let unix_ms = u64::try_from(since.as_millisecond()).unwrap_or(0);
    let failed = |source| Error::File { action: "read", path: path.to_owned(), source };
    let read = |path: &Path, at: u64| match read_from(path, at) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    };
    match place_since(path, unix_ms).map_err(failed)? {
        LogPlace::Start => read_whole(path),
        LogPlace::Older(at) => {
            let mut bytes = read(&older_log(path), at).map_err(failed)?;
            bytes.extend(read(path, 0).map_err(failed)?);
            Ok(bytes)
        }
        LogPlace::Newest(at) => read(path, at).map_err(failed),
        LogPlace::End => Ok(Vec::new()),
    }
}

/// Returns this number of lines at the end of these bytes. A last line without a line end counts.
pub fn last_lines(bytes: &[u8], lines: usize) -> &[u8] {
    let whole = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if lines == 0 || bytes.is_empty() {
        return &[];
    }
    let ends = whole.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let start = ends.map(|(at, _)| at + 1).nth(lines - 1);
    &bytes[start.unwrap_or(0)..]
}

/// A bounded log with the file before it; empty without either.
pub(super) fn read_whole(log: &Path) -> Result<Vec<u8>, Error> {
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

#[cfg(test)]
mod tests {
    use std::fs;
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
        assert_eq!(follower.next().unwrap(), None);
        File::options().append(true).open(&path).unwrap().write_all(b" new").unwrap();
        assert_eq!(follower.next().unwrap().unwrap(), b" new");
        fs::rename(&path, dir.path().join("log.1")).unwrap();
        assert_eq!(follower.next().unwrap(), None);
        fs::write(&path, "next").unwrap();
        assert_eq!(follower.next().unwrap().unwrap(), b"next");
        assert_eq!(follower.next().unwrap(), None);
    }
}
