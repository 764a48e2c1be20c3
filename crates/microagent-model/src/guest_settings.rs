//! Settings of a guest's system that hold at every start: kernel settings, file systems in memory, resource limits.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::HealthSettings;

/// Settings of a guest's system. The default changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestSettings {
    /// Kernel settings as `sysctl` has them: `net.core.somaxconn` and its value.
    pub sysctls: BTreeMap<String, String>,
    /// File systems in memory, in the order in which they are mounted.
    pub tmpfs: Vec<Tmpfs>,
    /// Size of `/dev/shm` in bytes, in place of half the guest's memory.
    pub shm_bytes: Option<u64>,
    /// Resource limits of every command.
    pub ulimits: Vec<Ulimit>,
    /// Whether programs can write to the root disk.
    pub root: RootAccess,
    /// Signal that asks the service to end, in place of the image's; a name or a number.
    pub stop_signal: Option<String>,
    /// How many seconds processes have to end when the machine is halted or stopped; at most a day.
    pub stop_timeout_s: Option<u32>,
    /// Time to live in seconds: how long a machine may run after its start before it is halted. At least 1.
    pub ttl_s: Option<u32>,
    /// The health check; each value replaces the image's.
    pub health: HealthSettings,
}

impl GuestSettings {
    /// Returns the time to live, if there is one.
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl_s.filter(|seconds| *seconds != 0).map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Sets the time to live, in whole seconds; zero removes it.
    pub fn set_ttl(&mut self, ttl: Duration) {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() != 0);
        self.ttl_s = Some(u32::try_from(seconds).unwrap_or(u32::MAX)).filter(|seconds| *seconds != 0);
    }
}

/// Whether programs can write to the root disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootAccess {
    /// Programs can write.
    #[default]
    ReadWrite,
    /// Programs can only read.
    ReadOnly,
}

/// A file system in the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path in the guest; made if it is missing.
    pub path: String,
    /// Size in bytes, in place of half the guest's memory.
    pub size_bytes: Option<u64>,
    /// Permissions of its root directory.
    pub mode: u32,
    /// Owner of its root directory.
    pub uid: u32,
    /// Group of its root directory.
    pub gid: u32,
    /// Whether programs on it can be executed.
    pub exec: bool,
}

/// A resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The resource: `nofile`, `nproc` or another name of `docker run --ulimit`.
    pub name: String,
    /// The limit; `None` for no limit.
    pub soft: Option<u64>,
    /// The value up to which a program may raise the limit; `None` for no limit.
    pub hard: Option<u64>,
}

/// Longest time that processes have to end when a machine is halted or stopped.
pub const STOP_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Most kernel settings, file systems or limits of one guest, each.
pub const SETTINGS_MAX: usize = 64;

/// Longest value of a kernel setting, in bytes.
const SYSCTL_VALUE_MAX: usize = 1024;

/// Longest path of a file system, in bytes.
const PATH_MAX: usize = 1024;

/// Names of limits by their number.
///
/// # Source
/// `getrlimit(2)`, `asm-generic/resource.h`.
pub const ULIMITS: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// Why a text is not a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// A kernel setting is not written as one.
    #[error("expected NAME=VALUE, such as net.core.somaxconn=1024")]
    Sysctl,
    /// A path is not absolute, is too long, or has `..` in it.
    #[error("expected an absolute path without `..`, such as /run or /run:size=64m")]
    TmpfsPath,
    /// An option of a file system is not known, or its value is not one.
    #[error("expected the options size=BYTES, mode=OCTAL, uid=N, gid=N, exec or noexec")]
    TmpfsOption,
    /// A limit is not written as one.
    #[error("expected NAME=SOFT[:HARD] with numbers or `unlimited`, such as nofile=1024:4096")]
    Ulimit,
    /// A limit has a name that is not known.
    #[error("unknown limit; there are: {}", ULIMITS.join(", "))]
    UlimitName,
    /// A soft limit is above its hard limit.
    #[error("the soft limit is above the hard limit")]
    UlimitOrder,
}

/// Splits `NAME=VALUE`.
///
/// # Errors
/// Fails when it is no kernel setting.
pub fn parse_sysctl(text: &str) -> Result<(String, String), SettingError> {
    let (name, value) = text.split_once('=').ok_or(SettingError::Sysctl)?;
    check_sysctl(name, value)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Accepts what can be a kernel setting. Whether the guest's kernel has it, only the guest knows.
///
/// # Errors
/// Fails when the name cannot be a path below `/proc/sys`.
pub fn check_sysctl(name: &str, value: &str) -> Result<(), SettingError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let parts = name.split(['.', '/']);
    let good = name.len() <= 256 && parts.clone().count() > 1 && {
        let mut parts = parts;
        parts.all(|part| !part.is_empty() && part.chars().all(is_plain))
    };
    let good_value = value.len() <= SYSCTL_VALUE_MAX && !value.chars().any(|c| c.is_control() && c != '\t');
    if good && good_value { Ok(()) } else { Err(SettingError::Sysctl) }
}

impl FromStr for Tmpfs {
    type Err = SettingError;

    /// `PATH[:OPTION,OPTION…]`.
    fn from_str(text: &str) -> Result<Tmpfs, SettingError> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        let leads_up = path.split('/').any(|part| part == "..");
        if !path.starts_with('/') || path.len() > PATH_MAX || leads_up || path.contains('\0') {
            return Err(SettingError::TmpfsPath);
        }
        let mut tmpfs =
            Tmpfs { path: path.to_owned(), size_bytes: None, mode: 0o1777, uid: 0, gid: 0, exec: false };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            tmpfs.option(option)?;
        }
        Ok(tmpfs)
    }
}

impl Tmpfs {
    fn option(&mut self, option: &str) -> Result<(), SettingError> {
        let number = |text: &str| text.parse().map_err(|_| SettingError::TmpfsOption);
        match option.split_once('=') {
            Some(("size", size)) => self.size_bytes = Some(bytes(size).ok_or(SettingError::TmpfsOption)?),
            Some(("mode", mode)) => {
                let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
                self.mode = mode.ok_or(SettingError::TmpfsOption)?;
            }
            Some(("uid", uid)) => self.uid = number(uid)?,
            Some(("gid", gid)) => self.gid = number(gid)?,
            None if option == "exec" => self.exec = true,
            None if option == "noexec" => self.exec = false,
            // As every one is.
            None if ["rw", "nosuid", "nodev"].contains(&option) => {}
            _ => return Err(SettingError::TmpfsOption),
        }
        Ok(())
    }
}

impl fmt::Display for Tmpfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tmpfs { path, size_bytes, mode, uid, gid, exec } = self;
        write!(f, "{path}:mode={mode:o}")?;
        if let Some(size) = size_bytes {
            write!(f, ",size={size}")?;
        }
        if (*uid, *gid) != (0, 0) {
            write!(f, ",uid={uid},gid={gid}")?;
        }
        f.write_str(if *exec { ",exec" } else { "" })
    }
}

/// Bytes, or with a unit: `65536`, `64k`, `64m`, `1g`. At least one.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| *bytes > 0)
}

impl FromStr for Ulimit {
    type Err = SettingError;

    /// `NAME=SOFT[:HARD]`; -1 and `unlimited` are no limit.
    fn from_str(text: &str) -> Result<Ulimit, SettingError> {
        let (name, limits) = text.split_once('=').ok_or(SettingError::Ulimit)?;
        Ulimit::new(name, limits)
    }
}

impl Ulimit {
    /// The limit of this name, `SOFT[:HARD]`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn new(name: &str, limits: &str) -> Result<Ulimit, SettingError> {
        if !ULIMITS.contains(&name) {
            return Err(SettingError::UlimitName);
        }
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard) = (limit(soft)?, limit(hard)?);
        if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
            return Err(SettingError::UlimitOrder);
        }
        Ok(Ulimit { name: name.to_owned(), soft, hard })
    }

    /// The number of what is limited.
    pub fn number(&self) -> Option<u8> {
        ULIMITS.iter().position(|name| *name == self.name).and_then(|index| u8::try_from(index).ok())
    }
}

fn limit(text: &str) -> Result<Option<u64>, SettingError> {
    match text {
        "-1" | "unlimited" => Ok(None),
        text => text.parse().map(Some).map_err(|_| SettingError::Ulimit),
    }
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
        write!(f, "{}={}", self.name, shown(self.soft))?;
        if self.soft == self.hard { Ok(()) } else { write!(f, ":{}", shown(self.hard)) }
    }
}

impl fmt::Display for RootAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RootAccess::ReadWrite => "read-write",
            RootAccess::ReadOnly => "read-only",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_settings_stay_below_their_directory() {
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(parse_sysctl("net.core.somaxconn=1024"), pair("net.core.somaxconn", "1024"));
        assert_eq!(parse_sysctl("kernel.core_pattern=a=b"), pair("kernel.core_pattern", "a=b"));
        for bad in ["net.core", "x=1", "=1", "net..x=1", "net.../x=1", "../etc/x=1", "/net/x=1", "net.x=a\nb"]
        {
            assert_eq!(parse_sysctl(bad), Err(SettingError::Sysctl), "{bad}");
        }
    }

    #[test]
    fn file_systems_are_written_as_in_docker() {
        let tmpfs: Tmpfs = "/run:rw,size=64m,mode=1770,uid=5,gid=6,exec,nosuid".parse().unwrap();
        assert_eq!((tmpfs.path.as_str(), tmpfs.size_bytes, tmpfs.mode), ("/run", Some(64 << 20), 0o1770));
        assert_eq!((tmpfs.uid, tmpfs.gid, tmpfs.exec), (5, 6, true));
        assert_eq!(tmpfs.to_string().parse(), Ok(tmpfs));
        assert_eq!("/run".parse::<Tmpfs>().unwrap().to_string(), "/run:mode=1777");
        for bad in ["run", "", "/a/../b", "/a\0"] {
            assert_eq!(bad.parse::<Tmpfs>(), Err(SettingError::TmpfsPath), "{bad}");
        }
        for bad in ["/a:size=0", "/a:size=x", "/a:mode=9", "/a:mode=77777", "/a:suid", "/a:nope=1"] {
            assert_eq!(bad.parse::<Tmpfs>(), Err(SettingError::TmpfsOption), "{bad}");
        }
    }

    #[test]
    fn limits_are_written_as_in_docker() {
        let limit: Ulimit = "nofile=1024:4096".parse().unwrap();
        assert_eq!((limit.number(), limit.soft, limit.hard), (Some(7), Some(1024), Some(4096)));
        assert_eq!(limit.to_string(), "nofile=1024:4096");
        assert_eq!("core=-1".parse::<Ulimit>().unwrap().to_string(), "core=unlimited");
        for (bad, error) in [
            ("nofile", SettingError::Ulimit),
            ("nofile=x", SettingError::Ulimit),
            ("files=1", SettingError::UlimitName),
            ("nofile=2:1", SettingError::UlimitOrder),
            ("nofile=-1:1", SettingError::UlimitOrder),
        ] {
            assert_eq!(bad.parse::<Ulimit>(), Err(error), "{bad}");
        }
    }
}
