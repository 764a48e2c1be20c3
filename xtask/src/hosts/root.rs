//! The root file system of a Debian release, and tests in it.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use super::{Suite, Who, directory};
use crate::fixtures::target_directory;
use crate::process::{capture, program, root as repository, run};

/// Raised whenever what is installed changes in another way than by `xtask/packages`.
const VERSION: u32 = 1;

/// What is installed beside the packages that tests need.
const MORE_PACKAGES: &str = "iproute2,binutils";

/// Numeric id of the user without privileges, the same as in the tests.
const ORDINARY_ID: &str = "54321";

/// Makes `$1` the root of a mount and PID namespace, with the directories after it up to `--` at the same
/// paths as here, and runs the rest of the words there.
const ENTER: &str = r#"set -eu
root=$1; shift
mount --bind "$root" "$root"
mkdir -p "$root/.outside"
while [ "$1" != -- ]; do mkdir -p "$root$1"; mount --bind "$1" "$root$1"; shift; done
shift
mount -t proc proc "$root/proc"
for dir in sys dev; do mount --rbind "/$dir" "$root/$dir"; done
mount -t tmpfs -o mode=755 tmpfs "$root/run"
cd "$root"
pivot_root . .outside
umount -l /.outside
exec "$@"
"#;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Skipped,
    Failed,
}

/// How a root is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// With all of root's capabilities, in namespaces of mounts and processes.
    Namespaces,
    /// As podman runs containers unless it is told otherwise: few capabilities, a filter of system calls, a small
    /// `/dev/shm`, `/sys` and control groups that are read-only. The network is the host's.
    Container,
}

/// A root file system that tests run in.
pub(super) struct Root {
    path: PathBuf,
    shared: Vec<PathBuf>,
}

impl Root {
    /// Makes it unless it is there.
    pub(super) fn prepare(suite: Suite) -> Result<Root> {
        let path = directory(suite);
        let packages = packages()?;
        let stamp = path.with_extension("stamp");
        let wanted = format!("{VERSION} {packages}");
        if fs::read_to_string(&stamp).ok().as_deref() != Some(&wanted) {
            make(suite, &path, &packages)?;
            fs::write(&stamp, wanted).context("cannot write the stamp of a root")?;
        }
        let target = fs::canonicalize(target_directory()).context("there is no target directory")?;
        let fixtures = fs::canonicalize(target.join("fixtures")).context("there are no fixtures")?;
        Ok(Root { path, shared: vec![repository(), target, fixtures] })
    }

    /// What QEMU of this release calls itself.
    pub(super) fn qemu_version(&self) -> Result<String> {
        let mut command = self.enter(Who::Root);
        let text = capture(command.args(["qemu-system-x86_64", "--version"]))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    /// Runs one test to its end, and gives what it printed.
    pub(super) fn test(
        &self,
        program: &Path,
        name: &str,
        user: Who,
        place: Place,
        deadline: Duration,
    ) -> Result<(Outcome, String)> {
        let mut command = match place {
            Place::Namespaces => self.enter(user),
            Place::Container => self.contain(user, deadline),
        };
        command.arg(program).args([name, "--exact", "--nocapture", "--test-threads", "1"]);
        let log = tempfile::tempfile().context("cannot make a file for the output")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?).process_group(0);
        let child = command.spawn().context("cannot start unshare")?;
        let ended = end(child, deadline)?;
        let mut output = Vec::new();
        let mut log = log;
        std::io::Seek::rewind(&mut log)?;
        log.read_to_end(&mut output)?;
        let mut output = String::from_utf8_lossy(&output).into_owned();
        if ended.is_none() {
            output.push_str(&format!("\nnot finished after {} s", deadline.as_secs()));
        }
        let outcome = match ended {
            Some(true) if output.contains("SKIPPED:") => Outcome::Skipped,
            Some(true) => Outcome::Passed,
            Some(false) | None => Outcome::Failed,
        };
        Ok((outcome, output))
    }

    /// The beginning of a command line that runs in this root. All of its processes end with it.
    fn enter(&self, user: Who) -> Command {
        let mut command = program("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
        command.args(["bash", "-c", ENTER, "enter"]).arg(&self.path).args(&self.shared).arg("--");
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root").env("CARGO_TARGET_DIR", &self.shared[1]).env("RUST_BACKTRACE", "0");
        if user == Who::User {
            command.args(["setpriv", "--reuid", ORDINARY_ID, "--regid", ORDINARY_ID, "--clear-groups", "--"]);
        }
        command
    }

    /// The beginning of a command line that runs in a container of this root. podman ends it at the deadline, too,
    /// because it is no child of podman's.
    fn contain(&self, user: Who, deadline: Duration) -> Command {
        let storage = self.path.with_extension("podman");
        // crun refuses the hybrid hierarchy of cgroup v1; runc takes both.
        let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let mut command = program("podman");
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        command.args(["--runtime", if is_v2 { "crun" } else { "runc" }]);
        command.arg("--root").arg(&storage).arg("--runroot").arg(storage.join("run"));
        command.args(["run", "--rm", "--network", "host", "--timeout", &deadline.as_secs().to_string()]);
        for shared in &self.shared {
            let path = shared.display();
            command.args(["--volume", &format!("{path}:{path}")]);
        }
        command.args(["--env", "HOME=/root", "--env", "RUST_BACKTRACE=0"]);
        command.args(["--env", &format!("CARGO_TARGET_DIR={}", self.shared[1].display())]);
        if user == Who::User {
            command.args(["--user", &format!("{ORDINARY_ID}:{ORDINARY_ID}")]);
        }
        command.arg("--rootfs").arg(&self.path);
        command
    }
}

/// Waits for a process; `None` when it was killed because its time was up.
fn end(mut child: Child, deadline: Duration) -> Result<Option<bool>> {
    let until = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= until {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let group = group.context("a process without a number")?;
            kill_process_group(group, Signal::KILL).context("cannot end a test")?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The packages that `make demo` and `make test` install, without those that only build or make fixtures.
pub(crate) fn packages() -> Result<String> {
    let list =
        fs::read_to_string(repository().join("xtask/packages")).context("cannot read xtask/packages")?;
    let names = list.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let purpose = words.next()?;
        let name = words.next()?;
        let needed = matches!(purpose, "demo" | "test") && !matches!(name, "mmdebstrap" | "python3-pip");
        needed.then_some(name)
    });
    let mut names: Vec<&str> = names.collect();
    names.push("ca-certificates");
    Ok(format!("{},{MORE_PACKAGES}", names.join(",")))
}

fn make(suite: Suite, path: &Path, packages: &str) -> Result<()> {
    eprintln!("making {} …", path.display());
    if path.exists() {
        fs::remove_dir_all(path).context("cannot remove the old root")?;
    }
    let parent = path.parent().context("a root lies in a directory")?;
    fs::create_dir_all(parent)?;
    let mut command = program("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--aptopt=APT::Install-Recommends \"false\""]);
    // A mirror may be behind: the indexes of testing are good for a week only.
    command.args(["--aptopt=Acquire::Check-Valid-Until \"false\""]);
    command.arg(format!("--include={packages}")).arg(suite.name()).arg(path);
    if let Err(error) = run(&mut command) {
        let _ = fs::remove_dir_all(path);
        bail!("cannot make the root of {}: {error}", suite.name());
    }
    Ok(())
}
