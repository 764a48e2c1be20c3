//! Whom a command runs as: the OCI `User` string, looked up in the image's own `/etc/passwd` and
//! `/etc/group` by the rules that Docker has (no name service, numbers need no entry).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Most that is read of each file; real ones have a few kilobytes.
const FILE_LIMIT: u64 = 4 * 1024 * 1024;

/// Largest number that is taken for a user or group, as in runc.
const ID_LIMIT: u32 = i32::MAX as u32;

/// Most supplementary groups: the kernel's own bound (`NGROUPS_MAX`).
const GROUPS_LIMIT: usize = 65_536;

/// Numbers and home of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("the image has no user `{0}` in /etc/passwd")]
    NoUser(String),
    #[error("the image has no group `{0}` in /etc/group")]
    NoGroup(String),
    #[error("cannot read {path}")]
    Read { path: &'static str, source: io::Error },
}

/// Looks a user string up in the running root file system.
pub(crate) fn resolve(user: &str) -> Result<Identity, UserError> {
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    resolve_in(user, &passwd, &group)
}

/// The names of users by their numbers; of two with one number, the first.
pub(crate) fn names() -> BTreeMap<u32, String> {
    let passwd = read("/etc/passwd").unwrap_or_default();
    let mut names = BTreeMap::new();
    for entry in passwd_entries(&passwd) {
        names.entry(entry.uid).or_insert_with(|| entry.name.to_owned());
    }
    names
}

/// A missing file is an empty one: such images can only be used with numbers.
fn read(path: &'static str) -> Result<String, UserError> {
    let failed = |source| UserError::Read { path, source };
    let file = match File::open(Path::new(path)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `NAME`, `UID`, `NAME:GROUP`, `UID:GID` and mixtures; empty means user 0.
fn resolve_in(user: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user, wanted_group) = user.split_once(':').unwrap_or((user, ""));
    let wanted_uid = if user.is_empty() { Some(0) } else { id(user) };
    let entry = passwd_entries(passwd)
        .find(|entry| (!user.is_empty() && entry.name == user) || Some(entry.uid) == wanted_uid);
    let name = entry.as_ref().map_or("", |entry| entry.name);
    let (uid, own_gid, home) = match (&entry, wanted_uid) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.home),
        (None, Some(uid)) => (uid, 0, ""),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let (gid, groups) = if wanted_group.is_empty() {
        // Belongs to every group that lists it.
        let listed = group_entries(group).filter(|group| !name.is_empty() && group.has_member(name));
        (own_gid, listed.map(|group| group.gid).take(GROUPS_LIMIT).collect())
    } else {
        let wanted_gid = id(wanted_group);
        let found = group_entries(group)
            .find(|group| group.name == wanted_group || Some(group.gid) == wanted_gid)
            .map(|group| group.gid);
        let gid = found.or(wanted_gid).ok_or_else(|| UserError::NoGroup(wanted_group.to_owned()))?;
        (gid, Vec::new())
    };
    let home = if home.is_empty() { "/" } else { home }.to_owned();
    Ok(Identity { uid, gid, groups, home })
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= ID_LIMIT)
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Lines that are not entries (comments, `+` of NIS, damaged ones) are passed over.
fn passwd_entries(passwd: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or("");
        Some(PasswdEntry { name, uid, gid, home })
    })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl GroupEntry<'_> {
    fn has_member(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == user)
    }
}

fn group_entries(group: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let gid = id(fields.nth(1)?)?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or("") })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\n+::::::\n\
        www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nbare:x:50:60\n  spaced:x:70:70::/home/s:\n\
        1000:x:44:44::/home/odd:/bin/sh\nlater:x:1000:1000::/home/later:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:syslog,www-data\nwww-data:x:33:\nstaff:x:50:www-data\nbroken\n";

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn users_resolve_as_docker_resolves_them() {
        for (user, wanted) in [
            ("", identity(0, 0, &[], "/root")),
            ("root", identity(0, 0, &[], "/root")),
            ("www-data", identity(33, 33, &[4, 50], "/var/www")),
            ("33", identity(33, 33, &[4, 50], "/var/www")),
            ("www-data:adm", identity(33, 4, &[], "/var/www")),
            ("www-data:4", identity(33, 4, &[], "/var/www")),
            ("www-data:777", identity(33, 777, &[], "/var/www")),
            ("4321", identity(4321, 0, &[], "/")),
            ("4321:8765", identity(4321, 8765, &[], "/")),
            (":staff", identity(0, 50, &[], "/root")),
            ("bare", identity(50, 60, &[], "/")),
            ("spaced", identity(70, 70, &[], "/home/s")),
            // The first entry that matches by name or by number wins.
            ("1000", identity(44, 44, &[], "/home/odd")),
        ] {
            assert_eq!(resolve_in(user, PASSWD, GROUP).unwrap(), wanted, "user `{user}`");
        }
    }

    #[test]
    fn unknown_names_are_named() {
        for (user, wanted) in [
            ("nobody", "the image has no user `nobody` in /etc/passwd"),
            ("-1", "the image has no user `-1` in /etc/passwd"),
            ("4294967296", "the image has no user `4294967296` in /etc/passwd"),
            ("2147483648", "the image has no user `2147483648` in /etc/passwd"),
            ("root:wheel", "the image has no group `wheel` in /etc/group"),
        ] {
            assert_eq!(resolve_in(user, PASSWD, GROUP).unwrap_err().to_string(), wanted);
        }
    }

    #[test]
    fn an_image_without_the_files_can_be_used_with_numbers() {
        assert_eq!(resolve_in("", "", "").unwrap(), identity(0, 0, &[], "/"));
        assert_eq!(resolve_in("5:6", "", "").unwrap(), identity(5, 6, &[], "/"));
        assert!(resolve_in("root", "", "").is_err());
    }
}
