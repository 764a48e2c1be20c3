//! Operations that a workspace's state may not allow.

use std::fmt;

/// An operation on a workspace that its state may not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are those of the operations")]
pub enum Action {
    Start,
    Halt,
    Stop,
    Kill,
    Pause,
    Resume,
    Quarantine,
    Delete,
    Clone,
    Fork,
    Rename,
    Snapshot,
    Restore,
    UseSnapshot,
    DeleteSnapshot,
    Compare,
    Commit,
    Apply,
    Publish,
    Renew,
    Exec,
    StartJob,
    ReachJob,
    Console,
    ReachGuest,
    ReachFiles,
    ReadDisk,
    FlushDisk,
    Measure,
    Sync,
}

impl fmt::Display for Action {
    /// The words after `cannot`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Start => "start it",
            Action::Halt => "halt it",
            Action::Stop => "stop it",
            Action::Kill => "kill it",
            Action::Pause => "pause it",
            Action::Resume => "resume it",
            Action::Quarantine => "quarantine it",
            Action::Delete => "delete it",
            Action::Clone => "clone it",
            Action::Fork => "fork it",
            Action::Rename => "rename it",
            Action::Snapshot => "make a snapshot of it",
            Action::Restore => "restore a snapshot of it",
            Action::UseSnapshot => "use a snapshot of it",
            Action::DeleteSnapshot => "delete a snapshot of it",
            Action::Compare => "compare its disk with its image",
            Action::Commit => "commit it",
            Action::Apply => "change it",
            Action::Publish => "change its published ports",
            Action::Renew => "renew its time to live",
            Action::Exec => "run a command in it",
            Action::StartJob => "start a job in it",
            Action::ReachJob => "reach its jobs",
            Action::Console => "use its console",
            Action::ReachGuest => "reach its guest",
            Action::ReachFiles => "reach its files",
            Action::ReadDisk => "read its disk",
            Action::FlushDisk => "flush its disk",
            Action::Measure => "measure it",
            Action::Sync => "keep a directory in sync with it",
        })
    }
}
