//! The user of a QEMU that root starts, and dropping all capabilities.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, fchmod, fchown};
use rustix::io::Errno;
use rustix::process::{geteuid, getpid};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, Gid, Uid, capabilities,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// First user id of machines. Distributions assign nothing between 1,879,048,192 and 2,147,352,575 (systemd's
/// `UIDS-GIDS.md`); process ids end at 4,194,304, so that each machine of a host has one of its own.
const FIRST_UID: u32 = 1_900_000_000;

/// Group of all machines, to which the shared memory of templates belongs.
const GROUP: u32 = FIRST_UID;

/// The user of a machine if [`FIRST_UID`] is not mapped, as in a container with few user ids.
const NOBODY: u32 = 65_534;

/// Capabilities that are needed to change the user, and to end a process of that user.
const NEEDED: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::KILL);

/// The highest capability number of the interface.
const HIGHEST_CAPABILITY: u32 = 63;

/// A user that owns no files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    uid: u32,
    gid: u32,
    /// The group that opens `/dev/kvm`, where it needs one.
    kvm_group: Option<u32>,
}

/// Why QEMU runs as the user that starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAccount {
    /// An ordinary user starts it and cannot change the user.
    OrdinaryUser,
    /// Root in a container that cannot change its user.
    NotPermitted,
    /// Only this user can read QEMU's files.
    ProgramClosed,
    /// Only root opens `/dev/kvm`.
    KvmClosed,
}

impl Account {
    /// The user for a machine that this process starts.
    ///
    /// # Errors
    /// Tells why QEMU stays the user that it is.
    pub(crate) fn choose(qemu: &Path, kvm: bool) -> Result<Account, NoAccount> {
        if !geteuid().is_root() {
            return Err(NoAccount::OrdinaryUser);
        }
        let may = capabilities(None).is_ok_and(|sets| sets.effective.contains(NEEDED));
        let maps = |name| fs::read_to_string(name).unwrap_or_default();
        let (uids, gids) = (maps("/proc/self/uid_map"), maps("/proc/self/gid_map"));
        let pid = getpid().as_raw_nonzero().get().unsigned_abs();
        let uid = [FIRST_UID + pid, NOBODY].into_iter().find(|id| is_mapped(&uids, *id));
        let gid = [GROUP, NOBODY].into_iter().find(|id| is_mapped(&gids, *id));
        // In a user namespace that denies it, root could not leave its other groups.
        let may = may && !maps("/proc/self/setgroups").starts_with("deny");
        let (true, Some(uid), Some(gid)) = (may, uid, gid) else { return Err(NoAccount::NotPermitted) };
        if !is_open_to_others(qemu) {
            return Err(NoAccount::ProgramClosed);
        }
        let kvm_group = if kvm { kvm_group()? } else { None };
        Ok(Account { uid, gid, kvm_group })
    }

    /// Lets machines of this group open a file that this process has made.
    ///
    /// # Errors
    /// Fails when the file is somebody else's.
    pub(crate) fn admit(&self, file: &fs::File, access: super::FileAccess) -> io::Result<()> {
        let mode = match access {
            super::FileAccess::Read => Mode::RUSR | Mode::WUSR | Mode::RGRP,
            super::FileAccess::ReadWrite => Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP,
        };
        fchown(file, None, Some(Gid::from_raw(self.gid)))?;
        fchmod(file, mode)?;
        Ok(())
    }

    /// Whether it can open a file of this owner and mode.
    pub(crate) fn can_open(&self, found: &fs::Metadata, access: super::FileAccess) -> bool {
        let wanted = match access {
            super::FileAccess::Read => 0o4,
            super::FileAccess::ReadWrite => 0o6,
        };
        let shift = match (found.uid() == self.uid, found.gid() == self.gid) {
            (true, _) => 6,
            (false, true) => 3,
            (false, false) => 0,
        };
        found.mode() >> shift & wanted == wanted
    }
}

/// Whether a map of a user namespace contains an id.
///
/// # Source
/// `user_namespaces(7)`.
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().unwrap_or_default());
        let (first, count) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        (first..first.saturating_add(count)).contains(&u64::from(id))
    })
}

/// Whether every user can execute a program and what lies beside it.
fn is_open_to_others(program: &Path) -> bool {
    let Ok(program) = fs::canonicalize(program) else { return false };
    let open = |path: &Path| fs::metadata(path).is_ok_and(|found| found.mode() & 0o001 != 0);
    fs::metadata(&program).is_ok_and(|found| found.mode() & 0o005 == 0o005) && program.ancestors().all(open)
}

fn kvm_group() -> Result<Option<u32>, NoAccount> {
    let Ok(found) = fs::metadata("/dev/kvm") else { return Ok(None) };
    match found.mode() {
        mode if mode & 0o006 == 0o006 => Ok(None),
        mode if mode & 0o060 == 0o060 && found.gid() != 0 => Ok(Some(found.gid())),
        _ => Err(NoAccount::KvmClosed),
    }
}

/// Changes to the user, if one is given, and drops all capabilities permanently, for this process and the programs
/// that it executes.
///
/// # Errors
/// Fails when the kernel refuses; the process must exit then.
pub(super) fn drop_all(account: Option<&Account>) -> io::Result<()> {
    lock_privileges()?;
    if let Some(account) = account {
        become_user(account)?;
    }
    keep(CapabilitySet::empty())
}

/// Drops all capabilities permanently except these; programs that it executes have none.
///
/// # Errors
/// Fails when the kernel refuses; the process must exit then.
pub(super) fn drop_but(kept: CapabilitySet) -> io::Result<()> {
    lock_privileges()?;
    let held = capabilities(None)?.permitted;
    keep(held & kept)
}

/// Prevents gaining new capabilities.
fn lock_privileges() -> io::Result<()> {
    let held = capabilities(None)?.effective;
    if held.contains(CapabilitySet::SETPCAP) {
        drop_bounding_set()?;
        let bits = CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
        set_capabilities_secure_bits(bits)?;
    }
    clear_ambient_capability_set()?;
    Ok(())
}

fn keep(kept: CapabilitySet) -> io::Result<()> {
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?;
    set_no_new_privs(true)?;
    Ok(())
}

fn drop_bounding_set() -> io::Result<()> {
    for number in 0..=HIGHEST_CAPABILITY {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // Higher ones than the kernel knows do not exist.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn become_user(account: &Account) -> io::Result<()> {
    let groups: Vec<Gid> = account.kvm_group.map(Gid::from_raw).into_iter().collect();
    set_thread_groups(&groups)?;
    let gid = Gid::from_raw(account.gid);
    set_thread_res_gid(Some(gid), Some(gid), Some(gid))?;
    let uid = Uid::from_raw(account.uid);
    set_thread_res_uid(Some(uid), Some(uid), Some(uid))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_only_where_it_is_mapped() {
        let host = "         0          0 4294967295\n";
        let container = "0 100000 65536\n";
        let single = "0 1000 1\n";
        assert!(is_mapped(host, FIRST_UID + 4_194_304));
        assert!(!is_mapped(container, FIRST_UID) && is_mapped(container, NOBODY));
        assert!(is_mapped(single, 0) && !is_mapped(single, NOBODY));
        assert!(!is_mapped("", 0) && !is_mapped("nonsense\n", 7));
    }

    #[test]
    fn a_program_in_a_private_directory_is_closed_to_others() {
        use std::os::unix::fs::PermissionsExt;
        assert!(is_open_to_others(Path::new("/bin/sh")));
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let program = dir.path().join("qemu");
        fs::write(&program, "x").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!is_open_to_others(&program));
    }

    #[test]
    fn modes_say_who_can_open() {
        use super::super::FileAccess::{Read, ReadWrite};
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = |mode| {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            fs::metadata(file.path()).unwrap()
        };
        let own = found(0o600);
        let stranger = Account { uid: own.uid() + 1, gid: own.gid() + 1, kvm_group: None };
        let member = Account { gid: own.gid(), ..stranger.clone() };
        assert!(!stranger.can_open(&found(0o660), Read) && stranger.can_open(&found(0o604), Read));
        assert!(!stranger.can_open(&found(0o604), ReadWrite));
        assert!(member.can_open(&found(0o660), ReadWrite) && !member.can_open(&found(0o640), ReadWrite));
        // The class that fits first decides.
        assert!(!member.can_open(&found(0o606), Read));
    }
}
