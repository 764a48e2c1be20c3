//! Notices that the directory of a workspace was removed while its machine runs (`rm -rf`). Nothing could list or end
//! such a machine any more, so its supervisor ends it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often the directory is looked at. A notification of the kernel would come at once, but there are only so many
/// (`/proc/sys/user/max_inotify_instances`), and none on some file systems.
const INTERVAL: Duration = Duration::from_secs(2);

/// A directory that should stay.
#[derive(Debug)]
pub(super) struct DirectoryWatch {
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
    interval: Interval,
}

impl DirectoryWatch {
    /// Watches the directory that has this path now. Needs a runtime.
    pub(super) fn of(path: &Path) -> DirectoryWatch {
        let mut interval = interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        DirectoryWatch { path: path.to_owned(), identity: identity(path).ok(), interval }
    }

    /// Waits until it is gone, or another one has its path. May be dropped and called again.
    pub(super) async fn gone(&mut self) {
        loop {
            self.interval.tick().await;
            match identity(&self.path) {
                Ok(found) if Some(found) == self.identity => {}
                Ok(_) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                // It cannot be looked at now, which does not mean that it is gone.
                Err(_) => {}
            }
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    async fn is_gone(watch: &mut DirectoryWatch) -> bool {
        timeout(10 * INTERVAL, watch.gone()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_is_gone_when_it_is_removed_or_exchanged() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("web");
        fs::create_dir(&path).unwrap();
        let mut watch = DirectoryWatch::of(&path);
        assert!(!is_gone(&mut watch).await);
        fs::write(path.join("file"), "x").unwrap();
        assert!(!is_gone(&mut watch).await);

        fs::rename(&path, base.path().join("elsewhere")).unwrap();
        assert!(is_gone(&mut watch).await);
        fs::create_dir(&path).unwrap();
        assert!(is_gone(&mut watch).await);
    }
}
