//! Keeps a directory of the host and one of a workspace the same, without sharing either.
//!
//! Both sides are listed, a pure function plans what is copied and removed ([`plan`]), and tar streams carry it, as in
//! a copy. Nothing is merged: what both sides have changed since the last sync is reported.

mod base;
mod guest;
mod host;
mod ignore;
mod plan;
mod round;
mod watch;

use std::path::PathBuf;

use microagent_model::WorkspaceName;

pub use self::plan::ConflictReason;
use self::round::{Round, Scope};
use super::Workspace;
use super::copy::absolute;
use crate::error::SyncError;
use crate::streaming::Streaming;
use crate::{Error, Progress};

/// Length of the queue of a sync that watches.
const QUEUE: usize = 4;

/// Which directories [`Workspace::sync`] makes the same, and how. Create with [`SyncOptions::new`] and change with its
/// methods.
///
/// ```no_run
/// # use microagent::{Progress, SyncOptions, Workspace};
/// # async fn example(web: &Workspace, progress: &Progress) -> Result<(), microagent::Error> {
/// let options = SyncOptions::new("site", "/srv/site").delete(true).exclude("*.log");
/// let report = web.sync(&options, progress).await?;
/// println!("{} files copied", report.copied.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncOptions {
    /// Directory of the host.
    pub host_dir: PathBuf,
    /// Directory of the guest.
    pub guest_path: String,
    /// Whether the guest's directory is copied to the host, and not the host's to the guest.
    pub back: bool,
    /// Whether what the source does not have is removed from the target.
    pub delete: bool,
    /// Whether files that have changed in the target are overwritten.
    pub overwrite: bool,
    /// Patterns of paths that are not part of the sync, as lines of a `.gitignore` file.
    pub excludes: Vec<String>,
    /// Whether `.gitignore` files of the host's directory are honoured.
    pub gitignore: bool,
    /// Whether the sync is only planned.
    pub dry_run: bool,
}

impl SyncOptions {
    /// Creates options that copy what has changed from the host to the guest, where nothing is removed.
    pub fn new(host_dir: impl Into<PathBuf>, guest_path: impl Into<String>) -> SyncOptions {
        SyncOptions {
            host_dir: host_dir.into(),
            guest_path: guest_path.into(),
            back: false,
            delete: false,
            overwrite: false,
            excludes: Vec::new(),
            gitignore: true,
            dry_run: false,
        }
    }

    /// Sets whether the guest's directory is copied to the host, and not the host's to the guest.
    #[must_use]
    pub fn back(self, back: bool) -> SyncOptions {
        SyncOptions { back, ..self }
    }

    /// Sets whether what the source does not have is removed from the target. Paths that are not part of the sync, and
    /// sockets, FIFOs and devices are never removed.
    #[must_use]
    pub fn delete(self, delete: bool) -> SyncOptions {
        SyncOptions { delete, ..self }
    }

    /// Sets whether files that the target has changed since the last sync are overwritten. Otherwise they are kept.
    #[must_use]
    pub fn overwrite(self, overwrite: bool) -> SyncOptions {
        SyncOptions { overwrite, ..self }
    }

    /// Excludes paths, on both sides: a line as in a `.gitignore` file of the host's directory. A pattern that begins
    /// with `!` includes paths that an earlier pattern or a `.gitignore` file excludes.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> SyncOptions {
        self.excludes.push(pattern.into());
        self
    }

    /// Sets whether `.gitignore` files are honoured: those in the host's directory, and those above it up to the top of
    /// its git repository. Then `.git` is not part of the sync either. The default is `true`.
    #[must_use]
    pub fn gitignore(self, gitignore: bool) -> SyncOptions {
        SyncOptions { gitignore, ..self }
    }

    /// Sets whether the sync is only planned: nothing changes, and the report says what would.
    #[must_use]
    pub fn dry_run(self, dry_run: bool) -> SyncOptions {
        SyncOptions { dry_run, ..self }
    }

    /// The guest's directory: an absolute path below the root directory, without empty parts.
    fn guest_dir(&self) -> Result<String, Error> {
        let path = absolute(&self.guest_path);
        let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if parts.is_empty() || parts.iter().any(|part| *part == ".." || part.contains('\0')) {
            return Err(SyncError::GuestPath { path: self.guest_path.clone() }.into());
        }
        Ok(format!("/{}", parts.join("/")))
    }
}

/// What a sync has done, or would do. All paths begin at the synced directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncReport {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Files, directories and links that were copied.
    pub copied: Vec<PathBuf>,
    /// Size of the copied files in bytes.
    pub copied_bytes: u64,
    /// Paths that were removed from the target.
    pub removed: Vec<PathBuf>,
    /// Paths that were left as they are on both sides, and why.
    pub conflicts: Vec<SyncConflict>,
    /// Paths that only the target has changed or removed since the last sync. They were left as they are.
    pub kept: Vec<PathBuf>,
    /// Paths of the host that could not be read. Neither they nor what is below them was changed on either side.
    pub unreadable: Vec<SyncUnreadable>,
    /// Number of paths that are the same on both sides. A sync that watches does not count those that it does not look at.
    pub unchanged: u64,
    /// Number of sockets, FIFOs and devices of the source. They are not copied.
    pub special: u64,
    /// Whether this is only a plan.
    pub dry_run: bool,
}

/// A path that a sync leaves as it is on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncConflict {
    /// The path, from the synced directory.
    pub path: PathBuf,
    /// Why.
    pub reason: ConflictReason,
}

/// A path of the host that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncUnreadable {
    /// The path, from the synced directory.
    pub path: PathBuf,
    /// Why, in the words of the system.
    pub reason: String,
}

impl Workspace {
    /// Copies what has changed in a directory of the host to one of the workspace, which is running or
    /// [resting](microagent_model::State::is_resting), or with [`SyncOptions::back`] the other way.
    ///
    /// A file has changed if its kind, size, permissions or time differ; where only the time does, the content decides.
    /// Files are copied as by [`Workspace::copy_in`] and [`Workspace::copy_out`]. Links are copied as links, and none is
    /// followed on either side: a directory of the guest to which a link leads is refused. A missing directory of the
    /// guest is made.
    ///
    /// What a sync leaves on both sides is recorded with the workspace. So a path that both sides have changed since the
    /// last sync is a conflict ([`SyncReport::conflicts`]), and one that only the target has changed is kept
    /// ([`SyncReport::kept`]), unless [`SyncOptions::overwrite`] is set. In the first sync of two directories the source
    /// wins. A path that is missing in the guest is copied in any case.
    ///
    /// A file or directory of the host that cannot be opened is left out ([`SyncReport::unreadable`]), with everything
    /// below it.
    ///
    /// # Errors
    /// Fails if a directory does not exist ([`NotFound`](crate::ErrorKind::NotFound)), a pattern or a path is not valid
    /// or there are more than 1,000,000 files ([`Invalid`](crate::ErrorKind::Invalid)), another sync of the two
    /// directories is in progress ([`Busy`](crate::ErrorKind::Busy)), a file cannot be read to its end or not be written,
    /// or `progress` is cancelled. What was copied before is kept.
    pub async fn sync(&self, options: &SyncOptions, progress: &Progress) -> Result<SyncReport, Error> {
        let mut round = Round::new(self, options, progress)?;
        let guest = self.guest(progress).await?;
        let report = round.run(&guest, Scope::Everything).await;
        let left = guest.leave().await;
        let report = report?;
        left.map(|()| report)
    }

    /// Syncs as [`Workspace::sync`], and again whenever something changes in the host's directory, until the stream is
    /// dropped or `progress` is cancelled. The first item is the report of the first sync; further ones come when
    /// something was copied or removed, or a path is newly in conflict or unreadable. Changes in the guest do not start a sync.
    ///
    /// A paused workspace gets the changes when it is resumed. [`SyncOptions::back`] and [`SyncOptions::dry_run`] have
    /// no effect.
    ///
    /// # Errors
    /// Fails as [`Workspace::sync`], or if the workspace is not running
    /// ([`WrongState`](crate::ErrorKind::WrongState)). The stream fails likewise, also when the machine ends; if the host
    /// does not let the user watch so many directories ([`Host`](crate::ErrorKind::Host)); and if the host's directory is
    /// removed or replaced ([`NotFound`](crate::ErrorKind::NotFound)).
    pub async fn sync_watching(
        &self,
        options: &SyncOptions,
        progress: &Progress,
    ) -> Result<Streaming<SyncReport>, Error> {
        let options = SyncOptions { back: false, dry_run: false, ..options.clone() };
        let round = Round::new(self, &options, progress)?;
        let watching = watch::Watching::start(self, round)?;
        Ok(Streaming::start(QUEUE, |sender| watching.run(sender)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_directory_is_one_below_the_root() {
        let dir = |path: &str| SyncOptions::new("x", path).guest_dir().ok();
        for (path, wanted) in [("/srv/app", "/srv/app"), ("srv//app/./", "/srv/app"), ("/...", "/...")] {
            assert_eq!(dir(path).as_deref(), Some(wanted));
        }
        for path in ["", "/", "/.", "//", "/srv/..", "..", "/a\0b"] {
            assert_eq!(dir(path), None, "{path:?}");
        }
    }
}
