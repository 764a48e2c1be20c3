//! Which walls of the jail this host supports. Queries the kernel; changes nothing.

#![allow(unsafe_code)]

use std::path::Path;

use microagent_qemu::argv::Accel;

use super::privileges::{Account, NoAccount};

/// `LANDLOCK_CREATE_RULESET_VERSION` of `linux/landlock.h`: asks for the version of the interface.
const LANDLOCK_VERSION: libc::c_uint = 1;

/// The first version of Landlock that knows a kind of rule, and what that is.
const LANDLOCK_RULES: [(u32, &str); 4] = [
    (3, "truncating files (Linux 6.2)"),
    (4, "TCP (6.7)"),
    (5, "ioctls of devices (6.10)"),
    (6, "signals and abstract sockets (6.12)"),
];

/// The walls of a machine's jail on this host.
///
/// The least that is needed is a seccomp filter and Landlock's rules for files (Linux 5.13): without the first QEMU can
/// connect to other processes, without the second it can read what its user can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walls {
    has_filter: bool,
    landlock: u32,
    account: Result<(), NoAccount>,
}

impl Walls {
    /// Queries the host. QEMU's path determines whether another user can execute it.
    pub fn survey(qemu: &Path, accel: Accel) -> Walls {
        Walls {
            has_filter: has_filter(),
            landlock: landlock_version(),
            account: Account::choose(qemu, accel == Accel::Kvm).map(drop),
        }
    }

    /// Missing walls without which machines start only on request, one phrase each.
    pub fn missing(&self) -> Vec<String> {
        let filter = (!self.has_filter).then(|| "the kernel has no seccomp filters".to_owned());
        let landlock =
            (self.landlock == 0).then(|| "the kernel has no Landlock, or it is not enabled".to_owned());
        filter.into_iter().chain(landlock).collect()
    }

    /// Missing walls that are accepted, because other walls deny the same.
    pub fn remarks(&self) -> Vec<String> {
        let lacking: Vec<_> = LANDLOCK_RULES
            .iter()
            .filter(|(version, _)| self.landlock > 0 && self.landlock < *version)
            .map(|(_, rule)| *rule)
            .collect();
        let landlock = (!lacking.is_empty())
            .then(|| format!("Landlock has no rules for {}; the filter denies them", lacking.join(", ")));
        let account = match self.account {
            Ok(()) | Err(NoAccount::OrdinaryUser) => None,
            Err(NoAccount::NotPermitted) => {
                Some("QEMU stays root without capabilities: this root cannot change its user")
            }
            Err(NoAccount::ProgramClosed) => {
                Some("QEMU stays root without capabilities: its directory is closed to other users")
            }
            Err(NoAccount::KvmClosed) => {
                Some("QEMU stays root without capabilities: only root can open /dev/kvm")
            }
        };
        landlock.into_iter().chain(account.map(str::to_owned)).collect()
    }

    /// The available walls, one phrase each.
    pub fn standing(&self) -> Vec<String> {
        let mut walls = Vec::new();
        if self.has_filter {
            walls.push("seccomp filter".to_owned());
        }
        if self.landlock > 0 {
            walls.push(format!("Landlock {}", self.landlock));
        }
        walls.push("no capabilities".to_owned());
        if self.account.is_ok() {
            walls.push("a user of its own".to_owned());
        }
        walls.push("files as descriptors".to_owned());
        walls
    }
}

/// Version of the kernel's Landlock, 0 for none.
fn landlock_version() -> u32 {
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the kernel reads nothing and gives a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, LANDLOCK_VERSION) };
    u32::try_from(version).unwrap_or_default()
}

/// Whether the kernel has filters that refuse a call.
fn has_filter() -> bool {
    let action = libc::SECCOMP_RET_ERRNO;
    let action = std::ptr::from_ref(&action);
    // SAFETY: the kernel reads one number, which lives until the call is over.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, action) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_a_filter_and_landlock_is_missing_and_the_rest_is_remarked() {
        let full = Walls { has_filter: true, landlock: 7, account: Ok(()) };
        assert_eq!((full.missing().len(), full.remarks().len()), (0, 0));
        assert!(full.standing().contains(&"a user of its own".to_owned()));

        let bookworm = Walls { landlock: 2, account: Err(NoAccount::OrdinaryUser), ..full.clone() };
        assert_eq!(bookworm.missing().len(), 0);
        assert!(bookworm.remarks()[0].contains("TCP (6.7)"), "{:?}", bookworm.remarks());
        assert!(!bookworm.standing().contains(&"a user of its own".to_owned()));

        let none = Walls { has_filter: false, landlock: 0, account: Err(NoAccount::NotPermitted) };
        assert_eq!((none.missing().len(), none.remarks().len()), (2, 1));
    }

    #[test]
    fn this_kernel_is_asked() {
        let walls = Walls::survey(Path::new("/bin/sh"), Accel::Tcg);
        assert_eq!(walls.has_filter, Path::new("/proc/sys/kernel/seccomp/actions_avail").exists());
    }
}
