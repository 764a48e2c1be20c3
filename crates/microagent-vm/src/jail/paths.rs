//! Landlock rules: the paths that QEMU may open by itself.
//! These are its program, libraries and firmware, and the files that the C library and QEMU read when they start.
//! Files of the machine are not included, because QEMU gets them as descriptors. Files that QEMU opens a second time
//! through their descriptor are allowed as these files, not by name.
//!
//! # Source
//! Linux `Documentation/userspace-api/landlock.rst`. What is opened was seen with `strace` on QEMU 7.2, 10.0 and 11.1.

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use rustix::fs::{FileType, fstat};

use super::program::Executable;
use super::{FileAccess, Jailed};

/// The newest version of rules that is requested; an older kernel enforces the ones that it supports.
pub(crate) const NEWEST: ABI = ABI::V10;

/// Libraries and what the dynamic linker and the C library read.
const SYSTEM_READ: [&str; 9] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/usr/share/qemu",
    "/usr/share/seabios",
];

/// What QEMU and its libraries read of the system's state.
const SYSTEM_STATE: [&str; 5] = [
    "/proc/sys/vm/max_map_count",
    "/proc/filesystems",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage",
];

/// QEMU's own state, as the process that enters the jail sees it.
const SELF_STATE: [&str; 1] = ["/proc/self/status"];

/// Devices that QEMU opens.
const DEVICES: [&str; 3] = ["/dev/null", "/dev/urandom", "/dev/random"];

/// The device of hardware virtualisation.
const KVM: &str = "/dev/kvm";

/// Directories for which there must be no rule, and none for their parents.
const NEVER: [&str; 4] = ["/home", "/root", "/etc", "/tmp"];

/// Rules that are not enforced yet.
#[derive(Debug)]
pub(super) struct Rules(RulesetCreated);

impl Rules {
    /// Makes the rules.
    ///
    /// # Errors
    /// Fails when the kernel knows Landlock and refuses them.
    pub(super) fn new(executable: &Executable, jailed: Jailed<'_>) -> Result<Rules, RulesetError> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?;
        let execute = AccessFs::Execute | AccessFs::ReadFile;
        for path in [Some(executable.path()), executable.interpreter()].into_iter().flatten() {
            ruleset = allow(ruleset, path, execute)?;
        }
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let own = own_dirs(executable.path(), jailed.state_dir);
        for path in SYSTEM_READ.iter().chain(&SYSTEM_STATE).map(PathBuf::from).chain(own) {
            ruleset = allow(ruleset, &path, read)?;
        }
        let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        for path in DEVICES.into_iter().chain(jailed.kvm.then_some(KVM)) {
            ruleset = allow(ruleset, Path::new(path), device)?;
        }
        for reopened in jailed.reopened {
            let access = match reopened.access {
                FileAccess::Read => AccessFs::ReadFile.into(),
                FileAccess::ReadWrite => AccessFs::ReadFile | AccessFs::WriteFile,
            };
            ruleset = ruleset.add_rule(PathBeneath::new(reopened.file, access))?;
        }
        Ok(Rules(ruleset))
    }

    /// Enforces the rules on the calling process, permanently.
    ///
    /// # Errors
    /// As [`Rules::new`].
    pub(super) fn enforce(self) -> Result<(), RulesetError> {
        let Rules(mut ruleset) = self;
        for path in SELF_STATE {
            ruleset = allow(ruleset, Path::new(path), AccessFs::ReadFile.into())?;
        }
        ruleset.restrict_self().map(drop)
    }
}

/// Directories of libraries beside a program's directory.
const LIBRARIES: [&str; 4] = ["lib", "lib32", "lib64", "libx32"];

/// Libraries and firmware of a QEMU outside of `/usr` (`PREFIX/bin/qemu`, `PREFIX/lib`, `PREFIX/share/qemu`). They are
/// resolved first, so that a link among them cannot open what no rule may open.
fn own_dirs(program: &Path, state_dir: &Path) -> Vec<PathBuf> {
    let Some(prefix) = program.parent().and_then(Path::parent) else { return Vec::new() };
    let dirs = LIBRARIES.into_iter().chain(["share/qemu"]).map(|name| prefix.join(name));
    let resolved = dirs.filter_map(|path| fs::canonicalize(path).ok()).filter(|path| path.is_dir());
    let state_dir = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    resolved.filter(|path| is_allowed(path, &state_dir)).collect()
}

/// Whether a rule may be about a directory.
fn is_allowed(dir: &Path, state_dir: &Path) -> bool {
    let contains = |kept: &Path| kept.starts_with(dir);
    !contains(state_dir) && !dir.starts_with(state_dir) && !NEVER.iter().any(|kept| contains(Path::new(kept)))
}

/// Adds a rule for a path. A path that is not there needs none.
pub(crate) fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(fd) = PathFd::new(path) else { return Ok(ruleset) };
    // Where `/proc` hides processes of others (hidepid), the directory of a child can be opened and not be looked at.
    match fstat(&fd) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
            ruleset.add_rule(PathBeneath::new(fd, access))
        }
        Ok(_) => ruleset.add_rule(PathBeneath::new(fd, access & AccessFs::from_file(NEWEST))),
        Err(_) => Ok(ruleset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_is_about_a_home_or_the_state_directory() {
        let state = Path::new("/srv/agent/.microagent");
        for dir in [
            "/",
            "/srv",
            "/srv/agent",
            "/srv/agent/.microagent",
            "/srv/agent/.microagent/lib",
            "/home",
            "/root",
        ] {
            assert!(!is_allowed(Path::new(dir), state), "{dir}");
        }
        for dir in
            ["/srv/agent/lib", "/opt/qemu/lib64", "/usr/lib", "/home/user/lib", "/root/qemu/share/qemu"]
        {
            assert!(is_allowed(Path::new(dir), state), "{dir}");
        }
    }

    #[test]
    fn a_qemu_of_ones_own_brings_libraries_and_firmware_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let home = fs::canonicalize(dir.path()).unwrap();
        for made in
            ["bin", "lib", "lib64", "share/qemu", "share/secrets", "Documents", "library", ".microagent"]
        {
            fs::create_dir_all(home.join(made)).unwrap();
        }
        std::os::unix::fs::symlink(&home, home.join("libx32")).unwrap();
        std::os::unix::fs::symlink("/usr/lib", home.join("lib32")).unwrap();
        let mut dirs = own_dirs(&home.join("bin/qemu-system-x86_64"), &home.join(".microagent"));
        dirs.sort();
        let usr_lib = fs::canonicalize("/usr/lib").unwrap();
        let mut expected = [home.join("lib"), home.join("lib64"), home.join("share/qemu"), usr_lib];
        expected.sort();
        assert_eq!(dirs, expected);
    }
}
