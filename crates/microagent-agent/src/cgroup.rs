//! One control group per command, so that everything it started can be ended at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;

/// How deep below a command's group the groups of its own are followed when it is removed.
const DEPTH_LIMIT: usize = 32;

/// Pause between two looks whether a group is empty.
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// Makes and removes groups.
#[derive(Debug)]
pub(crate) struct Cgroups {
    root: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// A group that was made ahead of its command.
    spare: Option<Cgroup>,
    /// Groups that still had processes when their command ended.
    lingering: Vec<String>,
}

impl Cgroups {
    /// Works below this directory of a cgroup2 file system. The first command finds its group made.
    pub(crate) fn new(root: OwnedFd) -> io::Result<Cgroups> {
        let groups = Cgroups { root, state: Mutex::default() };
        let spare = groups.create()?;
        groups.state().spare = Some(spare);
        Ok(groups)
    }

    /// Their parent.
    pub(crate) fn root(&self) -> io::Result<OwnedFd> {
        self.root.try_clone()
    }

    /// Makes a group for one command.
    pub(crate) fn create(&self) -> io::Result<Cgroup> {
        let name = {
            let mut state = self.state();
            if let Some(spare) = state.spare.take() {
                return Ok(spare);
            }
            state.next += 1;
            format!("exec-{}", state.next)
        };
        mkdirat(&self.root, &name, Mode::from_raw_mode(0o755))?;
        let dir = openat(&self.root, &name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Cgroup { name, dir })
    }

    /// Removes the group of a command that has ended. While background processes live in it, it stays,
    /// and is tried again when the next command ends.
    pub(crate) fn retire(&self, group: Cgroup) {
        let mut state = self.state();
        state.lingering.push(group.name);
        state.lingering.retain(|name| !remove(self.root.as_fd(), name, DEPTH_LIMIT));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

/// Removes a group with the groups below it; `false` while processes are in it.
fn remove(parent: BorrowedFd<'_>, name: &str, depth: usize) -> bool {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return true,
        Err(_) if depth == 0 => return false,
        Err(_) => {}
    }
    let Ok(dir) = openat(parent, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
        return false;
    };
    let Ok(entries) = Dir::read_from(&dir) else { return false };
    for entry in entries.flatten() {
        if entry.file_type() == FileType::Directory
            && let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            remove(dir.as_fd(), name, depth - 1);
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok()
}

/// The group of one command.
#[derive(Debug)]
pub(crate) struct Cgroup {
    name: String,
    dir: OwnedFd,
}

impl Cgroup {
    /// Kills every process in the group and below it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let file = openat(&self.dir, "cgroup.kill", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(file, b"1")?;
        Ok(())
    }

    /// Waits until no process is in the group or below it, for at most `deadline`; `false` if one still is.
    pub(crate) async fn emptied(&self, deadline: Duration) -> io::Result<bool> {
        let start = Instant::now();
        while self.is_populated()? {
            if start.elapsed() > deadline {
                return Ok(false);
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        Ok(true)
    }

    fn is_populated(&self) -> io::Result<bool> {
        let file = openat(&self.dir, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = [0; 256];
        let count = rustix::io::read(file, &mut text)?;
        Ok(text[..count].split(|byte| *byte == b'\n').any(|line| line == b"populated 1"))
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}
