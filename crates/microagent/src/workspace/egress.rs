//! Reads the recorded decisions of the egress policy (`egress.jsonl`). Reading changes nothing.

use microagent_model::egress::Decision;
use microagent_store::WorkspaceDir;

use super::Workspace;
use super::logs::{Follower, read_whole};
use crate::Error;
use crate::blocking::blocking;
use crate::streaming::{Streaming, hand_over};

/// Longest line that is parsed, in bytes; decisions are far shorter.
const LINE_LIMIT: usize = 16 * 1024;

/// Length of the queue of decisions.
const QUEUE: usize = 64;

impl Workspace {
    /// Returns the decisions of the egress policy about connections and names, of all machines of the workspace, oldest
    /// first. The log has a limited size (4 to 8 MiB): older decisions are lost.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its log cannot be read.
    pub async fn egress(&self) -> Result<Vec<Decision>, Error> {
        let dir = self.existing()?;
        blocking(move || decisions_in(&dir)).await
    }

    /// Streams the result of [`Workspace::egress`] and then new decisions, until the workspace is resting.
    ///
    /// # Errors
    /// As [`Workspace::egress`].
    pub async fn follow_egress(&self) -> Result<Streaming<Decision>, Error> {
        let log = Follower::open(&self.existing()?.egress_log())?;
        let past = self.egress().await?;
        let workspace = self.clone();
        Ok(Streaming::start(QUEUE, |sender| async move {
            for decision in past {
                hand_over(&sender, decision).await?;
            }
            let mut lines = Lines::default();
            workspace.follow(log, &sender, |bytes| lines.take(&bytes, decision)).await
        }))
    }
}

/// The decisions about the workspace in this directory, oldest first.
pub(crate) fn decisions_in(dir: &WorkspaceDir) -> Result<Vec<Decision>, Error> {
    let bytes = read_whole(&dir.egress_log())?;
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(decision).collect())
}

/// Ignores a torn line.
fn decision(line: &[u8]) -> Option<Decision> {
    serde_json::from_slice(line).ok()
}

/// Bytes that come in pieces, as lines.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// What `read` makes of each line that is complete with these bytes.
    fn take<T>(&mut self, bytes: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Vec<T> {
        let mut items = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.begun.len() + piece.len() <= LINE_LIMIT {
                self.begun.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                items.extend(read(&self.begun));
                self.begun.clear();
            }
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines_and_are_bounded() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        let mut take = |bytes: &[u8]| {
            seen.extend(lines.take(bytes, |line| Some(String::from_utf8_lossy(line).trim_end().to_owned())));
        };
        take(b"one\ntw");
        take(b"o\n");
        take(&[b'x'; LINE_LIMIT]);
        take(b"yyy\nthree\nfo");
        assert_eq!(seen.len(), 4);
        assert_eq!((seen[0].as_str(), seen[1].as_str(), seen[3].as_str()), ("one", "two", "three"));
        assert_eq!(seen[2].len(), LINE_LIMIT);
    }
}
