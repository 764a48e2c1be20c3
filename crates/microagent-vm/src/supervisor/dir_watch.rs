//! Watches whether the directory of a workspace still exists. If the user removes it, no command could find the
//! machine any more.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use microagent_store::WorkspaceDir;
use tokio::time::{Instant, sleep_until};

/// Interval of the check.
const INTERVAL: Duration = Duration::from_secs(2);

/// A directory as it was when its machine was started.
#[derive(Debug)]
pub(super) struct DirWatch {
    device: u64,
    inode: u64,
    next: Instant,
}

impl DirWatch {
    /// Begins to watch.
    pub(super) fn of(dir: &WorkspaceDir) -> io::Result<DirWatch> {
        let found = std::fs::metadata(dir.path())?;
        Ok(DirWatch { device: found.dev(), inode: found.ino(), next: Instant::now() + INTERVAL })
    }

    /// Waits until it is removed or replaced. Cancel-safe.
    pub(super) async fn gone(&mut self, dir: &WorkspaceDir) {
        loop {
            sleep_until(self.next).await;
            self.next = Instant::now() + INTERVAL;
            match std::fs::metadata(dir.path()) {
                Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {}
                _ => return,
            }
        }
    }
}
