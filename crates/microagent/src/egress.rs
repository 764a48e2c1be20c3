//! What a workspace's network let through and what it did not: the filter's decisions, as they lie in `egress.jsonl`.
//! Reading changes nothing.

use std::io;

use microagent_net::Decision;
use microagent_store::WorkspaceName;
use tokio_util::sync::CancellationToken;

use crate::observe::Follower;
use crate::{Engine, Error};

/// Longest line that is taken for a decision, in bytes; ours are far shorter.
const LINE_LIMIT: usize = 16 * 1024;

impl Engine {
    /// The decisions about a workspace's connections and names, oldest first, of all its lives, as far as the bounded log
    /// has them. A workspace that was never connected has none.
    ///
    /// # Errors
    /// Fails when there is no such workspace or its log cannot be read.
    pub fn egress(&self, name: &WorkspaceName) -> Result<Vec<Decision>, Error> {
        let path = self.existing(name)?.egress_log();
        let bytes = crate::observe::read_whole(&path)?;
        Ok(bytes.split(|byte| *byte == b'\n').filter_map(decision).collect())
    }

    /// Passes on the decisions that there are and then those that come, until the workspace rests or `cancel` says so.
    ///
    /// # Errors
    /// Fails when there is no such workspace, its log cannot be read, or the sink fails.
    pub async fn follow_egress(
        &self,
        name: &WorkspaceName,
        sink: &mut (dyn FnMut(Decision) -> io::Result<()> + Send),
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let path = self.existing(name)?.egress_log();
        let unwritable = |source| Error::File { action: "write", path: "standard output".into(), source };
        let unreadable = |source| Error::File { action: "read", path: path.clone(), source };
        let mut log = Follower::open(&path).map_err(unreadable)?;
        for decision in self.egress(name)? {
            sink(decision).map_err(unwritable)?;
        }
        let mut lines = Lines::default();
        let mut sink = |bytes: &[u8]| lines.take(bytes, |line| decision(line).map_or(Ok(()), &mut *sink));
        self.follow_file(name, &mut log, &path, &mut sink, cancel).await
    }
}

/// A torn line is none.
fn decision(line: &[u8]) -> Option<Decision> {
    serde_json::from_slice(line).ok()
}

/// Bytes that come in pieces, as lines.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.begun.len() + piece.len() <= LINE_LIMIT {
                self.begun.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                each(&self.begun)?;
                self.begun.clear();
            }
        }
        Ok(())
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
            lines.take(bytes, |line| {
                seen.push(String::from_utf8_lossy(line).trim_end().to_owned());
                Ok(())
            })
        };
        take(b"one\ntw").unwrap();
        take(b"o\n").unwrap();
        take(&[b'x'; LINE_LIMIT]).unwrap();
        take(b"yyy\nthree\nfo").unwrap();
        assert_eq!(seen.len(), 4);
        assert_eq!((seen[0].as_str(), seen[1].as_str(), seen[3].as_str()), ("one", "two", "three"));
        assert_eq!(seen[2].len(), LINE_LIMIT);
    }
}
