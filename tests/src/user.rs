//! Who runs the command: the caller, and (when that is root) somebody without any privilege.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Neither root nor anybody who owns something on a usual system.
const ORDINARY_ID: u32 = 54_321;

/// Who runs the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Caller,
    /// Another user, in no group but its own and without any capability; only root can become that.
    Ordinary,
}

impl User {
    /// The user without privileges: the caller, unless that is root.
    pub fn unprivileged() -> User {
        if is_root() { User::Ordinary } else { User::Caller }
    }

    /// Has the command run as this user. Changing the user id drops all groups and capabilities.
    pub(crate) fn apply(self, command: &mut Command) {
        if self == User::Ordinary {
            command.uid(ORDINARY_ID).gid(ORDINARY_ID);
        }
    }

    /// The beginning of a command line that runs the rest of it as this user.
    pub(crate) fn prefix(self) -> Vec<String> {
        match self {
            User::Caller => Vec::new(),
            User::Ordinary => {
                let id = ORDINARY_ID.to_string();
                ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"].map(str::to_owned).into()
            }
        }
    }

    /// Makes a file or directory this user's.
    pub(crate) fn own(self, path: &Path) {
        if self == User::Ordinary {
            chown(path, Some(ORDINARY_ID), Some(ORDINARY_ID))
                .unwrap_or_else(|e| panic!("cannot give `{}` to the ordinary user: {e}", path.display()));
        }
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The group that machines of root have, and nobody else: what they open a second time belongs to it.
pub const MACHINES_GROUP: u32 = 1_900_000_000;

/// Whether nobody but the owner of a file, and machines of that owner, can open it.
pub fn is_closed_to_others(path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(path).expect("the file is there");
    let group_is_closed = found.mode() & 0o070 == 0 || (found.uid() == 0 && found.gid() == MACHINES_GROUP);
    found.mode() & 0o007 == 0 && group_is_closed
}
