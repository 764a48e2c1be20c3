//! The end of the guest's work: processes, then mounts, then a disk with nothing left to write.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use microagent_proto::{GuestError, GuestErrorKind, SHUT_DOWN_REST, ShutDown};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::console;
use crate::init::{self, Disposition, Init, agent_proc};
use crate::reaper::Reaper;
use crate::sys;

/// How long a process may take to end after it was asked to, when the grace of the shutdown is over.
const GRACE: Duration = Duration::from_secs(2);

/// Pause between two looks whether processes have ended.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// How long a main program that is alone by now may take to end by itself.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long killed processes may take to be gone; only one that hangs in the kernel takes any time.
const KILL_DEADLINE: Duration = Duration::from_secs(1);

// What the host was promised.
const _: () = assert!(GRACE.as_millis() + KILL_DEADLINE.as_millis() <= SHUT_DOWN_REST.as_millis());

/// How often everything that is mounted is tried again: each round frees what the one before was holding.
const UNMOUNT_ROUNDS: usize = 4;

/// Ends all processes and leaves every file system complete on its disk.
pub(crate) async fn shut_down(reaper: &Reaper, init: &Init, wanted: &ShutDown) -> Result<(), GuestError> {
    let deadline = Instant::now() + Duration::from_millis(wanted.grace_ms.into());
    end_main(reaper, init, wanted, deadline).await;
    end_processes(reaper, init, deadline).await;
    end_swap();
    let left = unmount_all();
    rustix::fs::sync();
    // The innermost first, and the root last.
    let left = left.iter().rev().map(CString::as_c_str).filter(|point| is_on_a_disk(point));
    left.chain([c"/"]).try_for_each(complete)
}

/// Leaves a mounted file system complete on its disk.
fn complete(point: &CStr) -> Result<(), GuestError> {
    let attempt = |what| format!("cannot {what} the file system of `{}`", point.to_string_lossy());
    match mount_remount(point, MountFlags::RDONLY, c"") {
        Ok(()) => Ok(()),
        // Something in the kernel still holds a file open for writing. Frozen, the file system is as
        // complete on disk as an unmounted one.
        Err(Errno::BUSY) => freeze(point).map_err(|e| disk_error(&attempt("flush"), &e)),
        Err(e) => Err(disk_error(&attempt("make read-only"), &e.into())),
    }
}

/// Whether a file system could lack something on a disk. What the workload has mounted otherwise is its own affair.
fn is_on_a_disk(point: &CStr) -> bool {
    const EXT4_SUPER_MAGIC: i64 = 0xEF53;
    rustix::fs::statfs(point).is_ok_and(|found| found.f_type == EXT4_SUPER_MAGIC)
}

fn disk_error(attempt: &str, error: &io::Error) -> GuestError {
    GuestError { kind: GuestErrorKind::Disk, message: format!("{attempt}: {error}") }
}

/// Asks the main program in its own way, and lets it end in peace before anything that it uses goes.
async fn end_main(reaper: &Reaper, init: &Init, wanted: &ShutDown, deadline: Instant) {
    let Some(main) = reaper.main() else { return };
    if main == init.pid() && init.disposition(wanted.signal) != Disposition::Takes {
        // The kernel spares a process 1 that has not said what to do about the signal. Those that it started are asked, and
        // it may end when they have; alone, it has nothing to end in peace.
        if !init.is_alone() {
            ask_everybody();
            let followed = async {
                tokio::select! { () = alone(init) => {} () = reaper.main_ended() => {} }
                // A script has something to do after what it waited for.
                let _ = timeout(LAST_WORDS, reaper.main_ended()).await;
            };
            let _ = timeout_at(deadline, followed).await;
        }
        reaper.kill_main_as_if_by(wanted.signal);
    } else {
        reaper.signal_main(wanted.signal);
        if timeout_at(deadline, reaper.main_ended()).await.is_err() {
            console::say("the service did not end in time");
        }
    }
}

/// Waits until process 1 is the only one of the guest.
async fn alone(init: &Init) {
    while !init.is_alone() {
        sleep(LOOK_PAUSE).await;
    }
}

/// A signal that asks every process to end. A stopped one takes no signal before it continues.
fn ask_everybody() {
    sys::kill_all(libc::SIGTERM);
    sys::kill_all(libc::SIGCONT);
}

/// Asks everything that still runs to end, then kills it.
async fn end_processes(reaper: &Reaper, init: &Init, deadline: Instant) {
    if !init.is_alone() {
        ask_everybody();
        let _ = timeout_at(deadline.max(Instant::now() + GRACE), alone(init)).await;
    }
    if sys::kill_all(libc::SIGKILL) && timeout(KILL_DEADLINE, reaper.alone()).await.is_err() {
        console::say("some processes cannot be killed");
    }
}

/// A swap file keeps its file system from becoming read-only.
fn end_swap() {
    for line in init::read(agent_proc(), "swaps").unwrap_or_default().lines().skip(1) {
        let Some(path) = line.split_whitespace().next() else { continue };
        let Ok(path) = CString::new(unescape(path.as_bytes())) else { continue };
        if let Err(error) = sys::swap_off(&path) {
            console::say_error("cannot stop swapping", &error);
        }
    }
}

/// Unmounts disks and what the workload mounted, innermost first; gives those that something still holds.
fn unmount_all() -> Vec<CString> {
    let mut left = Vec::new();
    for _ in 0..UNMOUNT_ROUNDS {
        let mounts = init::read_bytes(agent_proc(), "self/mountinfo").unwrap_or_default();
        let points = workload_mounts(&mounts);
        let found = points.len();
        let held = |point: &CString| unmount(point.as_c_str(), UnmountFlags::NOFOLLOW).is_err();
        left = points.into_iter().rev().filter(held).collect();
        left.reverse();
        if left.is_empty() || left.len() == found {
            break;
        }
    }
    left
}

/// Mount points of disks and of the workload's own, in the order of mounting. The kernel's stay: they hold nothing.
fn workload_mounts(mountinfo: &[u8]) -> Vec<CString> {
    const OURS: [&[u8]; 3] = [b"/proc", b"/sys", b"/dev"];
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|point| {
            let below = |dir: &&[u8]| {
                point.strip_prefix(*dir).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
            };
            point != b"/" && !OURS.iter().any(below)
        })
        .filter_map(|point| CString::new(point).ok())
        .collect()
}

/// The kernel writes spaces, tabs, newlines and backslashes in paths as a backslash and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let escaped = after.get(..3).filter(|_| *first == b'\\');
        match escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => bytes.push(*first),
        }
    }
    bytes
}

fn freeze(point: &CStr) -> io::Result<()> {
    let root = openat(CWD, point, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    sys::freeze(root.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_workloads_mounts_are_unmounted() {
        let mountinfo = b"21 1 8:0 / / rw - ext4 /dev/sda rw\n\
            22 21 0:5 / /dev rw - devtmpfs devtmpfs rw\n\
            23 22 0:6 / /dev/pts rw - devpts devpts rw\n\
            24 21 0:7 / /devices rw - tmpfs tmpfs rw\n\
            25 21 0:8 / /mnt/a\\040b\\134c rw - tmpfs tmpfs rw\n";
        let points: Vec<_> =
            workload_mounts(mountinfo).iter().map(|p| p.to_str().unwrap().to_owned()).collect();
        assert_eq!(points, ["/devices", "/mnt/a b\\c"]);
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"a\\xyz"), b"a\\xyz");
        assert_eq!(unescape(b"\\"), b"\\");
    }
}
