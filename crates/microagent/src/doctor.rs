//! Checks whether the host can run machines.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use microagent_guest::EmbeddedGuest;
use microagent_proto::chain;
use microagent_store::{WorkspaceRecord, processes_are_hidden};
use microagent_vm::architecture::QEMU_PACKAGE;
use microagent_vm::{Accel, AccelDecision, KvmFacts, KvmUnusable, Walls, accel};
use rustix::fs::{Access, access, statvfs};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use crate::blocking::blocking;
use crate::{Engine, Error, Hint, WeakJail};

/// Deadline for `PROGRAM --version`.
const VERSION_DEADLINE: Duration = Duration::from_secs(30);

/// Free disk space in bytes, below which a run of an image of usual size may fail.
const DISK_LOW: u64 = 2 << 30;

/// Free disk space in bytes, below which runs fail.
const DISK_MIN: u64 = 64 << 20;

/// Open files that one machine needs at most, with reserve: QEMU's disks and sockets.
const NOFILE_MIN: u64 = 256;

/// Bytes of address space that QEMU needs in addition to the guest's memory.
const ADDRESS_SPACE_MIN: u64 = 4 << 30;

/// Outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No problem.
    Ok,
    /// Runs work, with a limitation.
    Warning,
    /// Runs fail until this is fixed.
    Failed,
}

/// One check.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Check {
    /// Stable short name: `qemu`, `accelerator`, `kernel`, `jail`, `disk_space`, `state_dir`, `limits`,
    /// `ping`, `processes`, `warm_start`.
    pub name: &'static str,
    /// The outcome.
    pub status: Status,
    /// The finding, in one line.
    pub detail: String,
    /// How to fix the problem, if there is one.
    pub remedy: Option<Hint>,
}

/// All checks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// `linux-kvm` or `linux-tcg`.
    pub backend: String,
    /// In a fixed order.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether runs can work.
    pub fn ok(&self) -> bool {
        self.checks.iter().all(|check| check.status != Status::Failed)
    }
}

/// The result of the kernel check.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KernelReport {
    /// Version of the guest kernel.
    pub version: String,
    /// SHA-256 of the uncompressed kernel, in hexadecimal.
    pub sha256: String,
    /// Path of the unpacked kernel.
    pub path: PathBuf,
    /// Whether the checksums of embedded and unpacked files are correct.
    pub ok: bool,
    /// The problem, if there is one.
    pub problem: Option<String>,
}

impl Engine {
    /// Checks the host. Changes nothing.
    ///
    /// # Errors
    /// Fails only if the runtime is shut down meanwhile. A problem of the host is a check that failed, not an error.
    pub async fn doctor(&self) -> Result<Report, Error> {
        let engine = self.clone();
        blocking(move || Ok(engine.check_host())).await
    }

    fn check_host(&self) -> Report {
        let decision = accel::decide(self.options().accel, &KvmFacts::gather());
        let accel = decision.as_ref().map_or(Accel::Kvm, |decision| decision.accel);
        Report {
            backend: accel::backend(accel).to_owned(),
            checks: vec![
                self.check_qemu(),
                check_accelerator(decision),
                check_kernel(),
                self.check_jail(accel),
                self.check_disk_space(),
                self.check_state_dir(),
                check_limits(),
                check_pings(),
                self.check_processes(),
                self.check_warm_start(),
            ],
        }
    }

    /// Unpacks the guest's files if they are missing, and recomputes their checksums.
    ///
    /// # Errors
    /// Fails if the state directory cannot be used, or the files cannot be written or read.
    pub async fn verify_kernel(&self) -> Result<KernelReport, Error> {
        let engine = self.clone();
        blocking(move || engine.check_guest_files()).await
    }

    fn check_guest_files(&self) -> Result<KernelReport, Error> {
        self.prepare()?;
        let guest = EmbeddedGuest::embedded();
        let info = guest.kernel_info();
        let files = guest.unpack(self.state())?;
        let problem = guest.verify(self.state()).err().map(|error| chain(&error));
        Ok(KernelReport {
            version: info.release.to_owned(),
            sha256: info.sha256.to_owned(),
            path: files.kernel,
            ok: problem.is_none(),
            problem,
        })
    }

    fn check_qemu(&self) -> Check {
        let name = "qemu";
        match self.find_qemu() {
            Err(error) => missing(name, &error),
            Ok(path) => match first_line(&path) {
                Some(version) => ok(name, format!("{version} ({})", path.display())),
                None => failed(name, format!("`{}` does not tell its version", path.display()), reinstall()),
            },
        }
    }

    fn check_jail(&self, accel: Accel) -> Check {
        let name = "jail";
        let qemu = self.find_qemu();
        let Ok(qemu) = qemu else {
            return Check {
                status: Status::Warning,
                ..failed(
                    name,
                    "not known without QEMU".to_owned(),
                    Hint::InstallPackage { package: QEMU_PACKAGE },
                )
            };
        };
        let walls = Walls::survey(&qemu, accel);
        let mut detail = walls.standing().join(", ");
        for remark in walls.missing().iter().chain(&walls.remarks()) {
            detail.push_str("; ");
            detail.push_str(remark);
        }
        match (walls.missing().is_empty(), self.options().weak_jail) {
            (true, _) => ok(name, detail),
            (false, WeakJail::Allow) => Check {
                status: Status::Warning,
                ..failed(name, detail, Hint::advice("use a kernel with what is missing"))
            },
            (false, WeakJail::Refuse) => failed(name, detail, Hint::AllowWeakJail),
        }
    }

    fn check_disk_space(&self) -> Check {
        let name = "disk_space";
        let path = nearest_existing(self.state().root());
        match statvfs(&path) {
            Ok(stat) => {
                let free = stat.f_bavail.saturating_mul(stat.f_frsize);
                let detail = format!("{} MiB free at `{}`", free >> 20, path.display());
                let remedy = Hint::FreeSpace { leftover: None };
                match free {
                    ..DISK_MIN => failed(name, detail, remedy),
                    DISK_MIN..DISK_LOW => Check { status: Status::Warning, ..failed(name, detail, remedy) },
                    _ => ok(name, detail),
                }
            }
            Err(errno) => failed(name, format!("`{}`: {errno}", path.display()), Hint::ChooseStateDir),
        }
    }

    /// Checks for QEMU processes whose supervisor has ended, which no other command shows.
    fn check_processes(&self) -> Check {
        let name = "processes";
        if processes_are_hidden() {
            return Check { status: Status::Warning, ..missing(name, &Error::ProcessesHidden) };
        }
        let workspaces = self.state().workspace_names().unwrap_or_default();
        let strays: Vec<String> = workspaces
            .iter()
            .filter_map(|workspace| {
                let dir = self.state().workspace(workspace);
                let record = WorkspaceRecord::load(&dir).ok()?;
                let qemu = record.processes(&dir).orphan()?;
                Some(format!("QEMU of `{workspace}` (process {}) has outlived its supervisor", qemu.pid))
            })
            .collect();
        match strays.is_empty() {
            true => ok(name, "no QEMU has outlived its supervisor".to_owned()),
            false => Check {
                status: Status::Warning,
                ..failed(name, strays.join("; "), Hint::advice("start or delete the workspace: both end it"))
            },
        }
    }

    /// Checks whether machines start from templates, and counts templates.
    fn check_warm_start(&self) -> Check {
        let name = "warm_start";
        let templates = match self.templates().read_list() {
            Ok(templates) => templates,
            Err(error) => {
                let remedy = Hint::advice(
                    "make it readable, or remove it: templates are made again when they are needed",
                );
                return Check { status: Status::Warning, ..failed(name, chain(&error), remedy) };
            }
        };
        let useful: Vec<_> = templates.iter().filter(|template| !template.stale).collect();
        let mib = useful.iter().map(|template| template.bytes).sum::<u64>() >> 20;
        let there = match useful.len() {
            0 => "no templates yet".to_owned(),
            1 => format!("1 template, {mib} MiB"),
            many => format!("{many} templates, {mib} MiB"),
        };
        ok(
            name,
            match &self.options().templates.warm() {
                Ok(()) if useful.is_empty() => format!("on, {there}: the first run of each size makes one"),
                Ok(()) => format!("on, {there}"),
                Err(reason) => format!("off, {reason}; {there}"),
            },
        )
    }

    fn check_state_dir(&self) -> Check {
        let name = "state_dir";
        let root = self.state().root();
        let existing = nearest_existing(root);
        let detail = format!("`{}`", root.display());
        if let Err(error) = self.check_access() {
            return missing(name, &error);
        }
        match access(&existing, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) if existing == root => ok(name, format!("{detail} is writable")),
            Ok(()) => ok(name, format!("{detail} will be made by the first run")),
            Err(errno) => failed(
                name,
                format!("{detail} cannot be written: `{}`: {errno}", existing.display()),
                Hint::ChooseStateDir,
            ),
        }
    }
}

fn reinstall() -> Hint {
    Hint::advice("install it anew")
}

fn ok(name: &'static str, detail: String) -> Check {
    Check { name, status: Status::Ok, detail, remedy: None }
}

fn failed(name: &'static str, detail: String, remedy: Hint) -> Check {
    Check { name, status: Status::Failed, detail, remedy: Some(remedy) }
}

fn missing(name: &'static str, error: &Error) -> Check {
    Check { name, status: Status::Failed, detail: error.to_string(), remedy: error.hint() }
}

fn check_accelerator(decision: Result<AccelDecision, KvmUnusable>) -> Check {
    let decision = match decision {
        Ok(decision) => decision,
        Err(unusable) => return missing("accelerator", &Error::Kvm(unusable)),
    };
    let detail = format!("{}: {}", decision.accel.as_str(), decision.reason);
    match decision.remedy {
        None => ok("accelerator", detail),
        Some(remedy) => {
            Check { status: Status::Warning, ..failed("accelerator", detail, Hint::advice(remedy)) }
        }
    }
}

/// The kernel is embedded in this program, so only `kernel verify` reads the unpacked files.
fn check_kernel() -> Check {
    let guest = EmbeddedGuest::embedded();
    let info = guest.kernel_info();
    ok("kernel", format!("{} carried inside, sha256 {}", info.release, &info.sha256[..12]))
}

/// Checks limits that a caller (a service manager, a CI runner, a shell) may have set too low.
fn check_limits() -> Check {
    let limits = [
        ("open files (ulimit -n)", Resource::Nofile, NOFILE_MIN),
        ("address space (ulimit -v)", Resource::As, ADDRESS_SPACE_MIN),
        ("file size (ulimit -f)", Resource::Fsize, DISK_LOW),
    ];
    let low: Vec<String> = limits
        .into_iter()
        .filter_map(|(what, resource, least)| {
            let current = getrlimit(resource).current?;
            (current < least).then(|| format!("{what} is {current}, at least {least} is needed"))
        })
        .collect();
    if low.is_empty() {
        return ok("limits", "open files, address space and file size are sufficient".to_owned());
    }
    failed(
        "limits",
        low.join("; "),
        Hint::advice("raise them where this process is started (ulimit, systemd LimitNOFILE=, …)"),
    )
}

/// Guests ping through sockets of the host, which only groups of a range may open.
fn check_pings() -> Check {
    match socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::ICMP)) {
        Ok(_) => ok("ping", "guests can ping".to_owned()),
        Err(error) => {
            let detail =
                format!("this user cannot send pings ({}), so guests cannot either", io::Error::from(error));
            let remedy =
                Hint::advice("where they are needed: sysctl -w net.ipv4.ping_group_range='0 2147483647'");
            Check { status: Status::Warning, ..failed("ping", detail, remedy) }
        }
    }
}

/// Returns the path, or its closest existing parent.
fn nearest_existing(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// Returns the first line of `PROGRAM --version`.
fn first_line(program: &Path) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + VERSION_DEADLINE;
    while child.try_wait().ok()?.is_none() {
        if Instant::now() > deadline {
            // A program that hangs on --version has no version to tell.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}
