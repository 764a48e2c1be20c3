//! The directories above something that is trusted: whoever can rename an entry of one can put something else there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::process::{getegid, geteuid};

/// Most links on the way to a path; the kernel's own limit.
const LINKS_MAX: usize = 40;

/// Mode bits of a directory: only the owner of an entry renames or removes it.
const STICKY: u32 = 0o1000;

/// The user that a process sees as the owner of files of users that its user namespace does not have, unless
/// `/proc/sys/kernel/overflowuid` says another.
const OVERFLOW_UID: u32 = 65_534;

/// A directory in which another user can replace what is trusted.
#[derive(Debug, thiserror::Error)]
pub enum UntrustedParent {
    /// It belongs to another user.
    #[error("`{}` belongs to another user (uid {owner}), who could replace what is in it", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// A link on the way belongs to another user.
    #[error("the link `{}` belongs to another user (uid {owner}), who decides where it leads", path.display())]
    ForeignLink {
        /// The link.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Other users can write to it.
    #[error("other users can write to `{}` (mode {mode:04o}), and could replace what is in it", path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Refuses a path on which another user can replace a directory or, if the last part exists, that. What does not exist yet
/// is made by this user.
///
/// # Errors
/// Fails with the first such directory, from the bottom.
pub fn check_parents(path: &Path) -> Result<(), UntrustedParent> {
    let viewer = Viewer::current();
    for parent in above(path) {
        let Ok(found) = fs::metadata(&parent) else { continue };
        viewer.check(parent, &found)?;
    }
    for link in links(path) {
        let Ok(found) = fs::symlink_metadata(&link) else { continue };
        viewer.check_link(link, &found)?;
    }
    Ok(())
}

/// The links that are followed on the way to a path, and to what they lead to.
fn links(path: &Path) -> Vec<PathBuf> {
    let mut links = Vec::new();
    let mut left: Vec<PathBuf> = vec![std::path::absolute(path).unwrap_or_else(|_| path.to_owned())];
    let mut reached = PathBuf::new();
    while let Some(next) = left.pop() {
        let mut parts = next.components();
        let Some(part) = parts.next() else { continue };
        let rest = parts.as_path().to_owned();
        left.push(rest);
        if part == Component::ParentDir {
            // What was reached has no links any more.
            reached.pop();
            continue;
        }
        let here = reached.join(part);
        match fs::read_link(&here) {
            Ok(target) if links.len() < LINKS_MAX => {
                links.push(here);
                left.push(target);
            }
            _ => reached = here,
        }
    }
    links
}

/// The directories above a path, as it is written and as its links lead.
fn above(path: &Path) -> Vec<PathBuf> {
    let written = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = written.ancestors().find_map(|part| Some((part, fs::canonicalize(part).ok()?)));
    let mut parents: Vec<PathBuf> = written.ancestors().skip(1).map(Path::to_owned).collect();
    if let Some((part, real)) = real {
        // Of a path that is there the last part is not above it.
        parents.extend(real.ancestors().skip(usize::from(part == written)).map(Path::to_owned));
    }
    parents
}

/// Who looks at a directory.
#[derive(Debug, Clone, Copy)]
struct Viewer {
    uid: u32,
    gid: u32,
    /// The owner that stands for users of other namespaces, if there are any.
    unknown_uid: Option<u32>,
}

impl Viewer {
    fn current() -> Viewer {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let has_all = map.split_whitespace().eq(["0", "0", "4294967295"]);
        let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
        let overflow = overflow.and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW_UID);
        Viewer {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            unknown_uid: (!has_all).then_some(overflow),
        }
    }

    fn is_trusted(self, owner: u32) -> bool {
        owner == 0 || owner == self.uid || Some(owner) == self.unknown_uid
    }

    /// In a directory where everybody can make entries, such as `/tmp`, a link can be anybody's.
    fn check_link(self, path: PathBuf, found: &fs::Metadata) -> Result<(), UntrustedParent> {
        match found.uid() {
            owner if self.is_trusted(owner) => Ok(()),
            owner => Err(UntrustedParent::ForeignLink { path, owner }),
        }
    }

    fn check(self, path: PathBuf, found: &fs::Metadata) -> Result<(), UntrustedParent> {
        let (owner, mode) = (found.uid(), found.mode() & 0o7777);
        if !self.is_trusted(owner) {
            return Err(UntrustedParent::Foreign { path, owner });
        }
        // A group of the user alone, as many distributions make it, has no other members.
        let is_own_group = found.gid() == self.gid && self.gid == self.uid;
        let others = if is_own_group { 0o002 } else { 0o022 };
        if mode & others != 0 && mode & STICKY == 0 {
            return Err(UntrustedParent::Writable { path, mode });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_above_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (open, link) = (dir.path().join("open"), dir.path().join("link"));
        fs::create_dir(&open).unwrap();
        symlink(&open, &link).unwrap();
        for (mode, refused) in [(0o755, false), (0o777, true), (0o1777, false), (0o702, true)] {
            set_mode(&open, mode);
            // Whether the state directory is there or not, and whatever leads to it.
            for state in [open.join("state"), open.join("deep/state"), link.join("state")] {
                let checked = check_parents(&state);
                assert_eq!(checked.is_err(), refused, "{mode:o} {checked:?}");
                if let Err(error) = checked {
                    assert!(matches!(error, UntrustedParent::Writable { mode: found, .. } if found == mode));
                }
            }
        }
        set_mode(&open, 0o777);
        fs::create_dir(open.join("state")).unwrap();
        assert!(check_parents(&open.join("state")).is_err());
        assert!(check_parents(&open).is_ok());
    }

    #[test]
    fn only_root_and_the_user_own_what_is_above() {
        let dir = tempfile::tempdir().unwrap();
        let found = fs::metadata(dir.path()).unwrap();
        let me = Viewer { uid: found.uid(), gid: found.gid() + 1, unknown_uid: None };
        let check = |viewer: Viewer, mode: u32| {
            set_mode(dir.path(), mode);
            viewer.check(dir.path().to_owned(), &fs::metadata(dir.path()).unwrap())
        };
        assert!(check(me, 0o755).is_ok());
        let stranger = Viewer { uid: found.uid() + 1, ..me };
        let is_root = found.uid() == 0;
        assert_eq!(matches!(check(stranger, 0o755), Err(UntrustedParent::Foreign { .. })), !is_root);
        assert!(check(Viewer { unknown_uid: Some(found.uid()), ..stranger }, 0o755).is_ok());
        // A group of the user alone.
        assert!(check(me, 0o775).is_err());
        let private = Viewer { gid: found.gid(), ..me };
        assert_eq!(check(private, 0o775).is_ok(), found.gid() == found.uid());
        assert!(check(private, 0o777).is_err());
    }

    #[test]
    fn a_link_of_another_user_on_the_way_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let [home, first, second] = ["home", "first", "second"].map(|name| root.join(name));
        fs::create_dir(&home).unwrap();
        symlink("../", home.join("up")).unwrap();
        symlink(&home, &first).unwrap();
        symlink("first/up/first", &second).unwrap();
        assert_eq!(links(&home.join("state")), Vec::<PathBuf>::new());
        assert_eq!(links(&first.join("state")), std::slice::from_ref(&first));
        let on_the_way = [second.clone(), first.clone(), home.join("up"), first.clone()];
        assert_eq!(links(&second.join("state")), on_the_way);
        symlink("circle", root.join("circle")).unwrap();
        assert_eq!(links(&root.join("circle")).len(), LINKS_MAX);

        let me = fs::symlink_metadata(&first).unwrap();
        let viewer = Viewer { uid: me.uid(), gid: me.gid(), unknown_uid: None };
        assert!(viewer.check_link(first.clone(), &me).is_ok());
        if me.uid() == 0 {
            std::os::unix::fs::lchown(&first, Some(54_321), None).unwrap();
            for state in [first.join("state"), second.join("state"), second] {
                assert!(matches!(
                    check_parents(&state),
                    Err(UntrustedParent::ForeignLink { owner: 54_321, .. })
                ));
            }
        }
    }
}
