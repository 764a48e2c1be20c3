//! Settings of the guest's system that the user gave: kernel settings, file systems in memory, limits, a read-only root.
//!
//! All of them are applied once, before any program of the image runs. One that cannot be applied fails the start: a
//! program that relies on it would otherwise fail later and say less.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use microagent_proto::{Limit, Settings, Tmpfs};
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::mounts::{MountError, mount_point};

/// Largest number of a resource limit (`RLIMIT_RTTIME`).
const LIMIT_LAST: u8 = 15;

/// The number of open files, the one limit that root cannot raise without bounds.
const OPEN_FILES: u8 = libc::RLIMIT_NOFILE as u8;

/// Where the kernel says how many open files a program may have at most; `sysctl fs.nr_open`.
const OPEN_FILES_MAX: &str = "/proc/sys/fs/nr_open";

/// Limits of every command.
static LIMITS: OnceLock<Vec<Limit>> = OnceLock::new();

/// Why a setting could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("the kernel setting `{0}` has no name below /proc/sys")]
    Name(String),
    #[error("the guest's kernel does not accept `{name}` = `{value}`")]
    Sysctl { name: String, value: String, source: io::Error },
    #[error(transparent)]
    Place(#[from] MountError),
    #[error("cannot mount a file system in memory on `{path}`")]
    Tmpfs { path: String, source: io::Error },
    #[error("cannot change the size of /dev/shm")]
    Shm(#[source] io::Error),
    #[error("there is no resource limit with number {0}")]
    Limit(u8),
    #[error("the guest's kernel allows at most {0} open files (fs.nr_open), also as a limit")]
    OpenFiles(u64),
    #[error("cannot make the root disk read-only")]
    Root(#[source] io::Error),
}

/// The limits of a command.
pub(crate) fn limits() -> &'static [Limit] {
    LIMITS.get().map_or(&[], Vec::as_slice)
}

/// Applies everything but [`protect_root`].
pub(crate) fn apply(settings: &Settings) -> Result<(), SettingsError> {
    for (name, value) in &settings.sysctls {
        let path = sysctl_path(name).ok_or_else(|| SettingsError::Name(name.clone()))?;
        fs::write(path, value).map_err(|source| SettingsError::Sysctl {
            name: name.clone(),
            value: value.clone(),
            source,
        })?;
    }
    settings.tmpfs.iter().try_for_each(mount_tmpfs)?;
    if let Some(bytes) = settings.shm_bytes {
        let options = CString::new(format!("size={bytes}")).expect("digits have no NUL");
        mount_remount("/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, &*options)
            .map_err(|e| SettingsError::Shm(e.into()))?;
    }
    if let Some(limit) = settings.limits.iter().find(|limit| limit.resource > LIMIT_LAST) {
        return Err(SettingsError::Limit(limit.resource));
    }
    check_open_files(&settings.limits)?;
    // The guest is configured once.
    let _ = LIMITS.set(settings.limits.clone());
    Ok(())
}

/// Refuses a limit that no program could be started with.
fn check_open_files(limits: &[Limit]) -> Result<(), SettingsError> {
    let most = fs::read_to_string(OPEN_FILES_MAX).ok().and_then(|text| text.trim().parse().ok());
    let Some(most) = most else { return Ok(()) };
    let above = limits.iter().any(|limit| limit.resource == OPEN_FILES && limit.hard > most);
    if above { Err(SettingsError::OpenFiles(most)) } else { Ok(()) }
}

/// Lets no program write to the root disk, when everything that the agent writes there is written.
pub(crate) fn protect_root(settings: &Settings) -> Result<(), SettingsError> {
    if !settings.read_only {
        return Ok(());
    }
    // Of this mount alone: what is below it stays as it is.
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOATIME, c"")
        .map_err(|e| SettingsError::Root(e.into()))
}

/// The file of a setting; `None` for a name that leads out of the directory.
fn sysctl_path(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split(['.', '/']).collect();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let good = parts.iter().all(|part| !part.is_empty() && part.chars().all(is_plain));
    good.then(|| format!("/proc/sys/{}", parts.join("/")))
}

fn mount_tmpfs(wanted: &Tmpfs) -> Result<(), SettingsError> {
    let path = Path::new(std::ffi::OsStr::from_bytes(&wanted.path));
    let point = mount_point(path)?;
    let failed = |source| SettingsError::Tmpfs { path: path.display().to_string(), source };
    let mut options = format!("mode={:o},uid={},gid={}", wanted.mode, wanted.uid, wanted.gid);
    if let Some(size) = wanted.size_bytes {
        options += &format!(",size={size}");
    }
    let options = CString::new(options).expect("numbers have no NUL");
    let exec = if wanted.exec { MountFlags::empty() } else { MountFlags::NOEXEC };
    mount("tmpfs", &point, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV | exec, &*options)
        .map_err(|e| failed(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_file_below_its_directory() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(sysctl_path("net/ipv4/x").as_deref(), Some("/proc/sys/net/ipv4/x"));
        for bad in ["", ".x", "a..b", "../../etc/passwd", "a.b\n"] {
            assert_eq!(sysctl_path(bad), None, "{bad}");
        }
    }
}
