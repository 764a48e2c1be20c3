//! Two trees, and what is told of their difference.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use microagent_proto::DiffForm;

use super::*;

/// Entries of the layer that makes `here` of `base`: path, kind and mode, and content or target.
fn layer(here: &Path, base: &Path) -> Result<Vec<String>, DiffError> {
    let open = |path: &Path| openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let (here, base) = (open(here), open(base));
    let tar = pack::collect(move |pieces| compare(here, base, None, Teller::new(DiffForm::Layer, pieces)))?;
    let mut archive = tar::Archive::new(&tar[..]);
    let describe = |entry: tar::Entry<'_, &[u8]>| {
        let mut entry = entry;
        let kind = entry.header().entry_type().as_byte() as char;
        let mode = entry.header().mode().unwrap();
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned());
        let mut content = String::new();
        io::Read::read_to_string(&mut entry, &mut content).unwrap();
        format!("{path} {kind} {mode:o} {}", link.unwrap_or(content)).trim_end().to_owned()
    };
    Ok(archive.entries().unwrap().map(|entry| describe(entry.unwrap())).collect())
}

/// The paths that are told of the difference.
fn paths(here: &Path, base: &Path) -> Vec<String> {
    let open = |path: &Path| openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let (here, base) = (open(here), open(base));
    let told = pack::collect(move |pieces| compare(here, base, None, Teller::new(DiffForm::Paths, pieces)));
    let told = String::from_utf8(told.unwrap()).unwrap();
    told.split_terminator('\0').map(str::to_owned).collect()
}

/// A tree, and a second one whose files are the same inodes.
fn trees() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (base, here) = (dir.path().join("base"), dir.path().join("here"));
    for path in ["etc/ssl", "usr/bin", "var/lib", "root", "proc"] {
        fs::create_dir_all(base.join(path)).unwrap();
    }
    for path in ["etc/passwd", "etc/hosts", "etc/ssl/cert", "usr/bin/a", "usr/bin/b", "var/lib/x"] {
        fs::write(base.join(path), path).unwrap();
    }
    fs::set_permissions(base.join("root"), fs::Permissions::from_mode(0o700)).unwrap();
    let copied = Command::new("cp").arg("-al").args([&base, &here]).status().unwrap();
    assert!(copied.success());
    (dir, base, here)
}

/// Writes a file anew, as another inode.
fn replace(path: &Path, content: &str) {
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn nothing_changed_is_an_empty_archive() {
    let (_dir, base, here) = trees();
    assert_eq!(layer(&here, &base).unwrap(), [""; 0]);
    assert_eq!(layer(&base, &base).unwrap(), [""; 0]);
}

#[test]
fn what_the_agent_writes_is_left_out() {
    let (_dir, base, here) = trees();
    replace(&here.join("etc/hosts"), "127.0.0.1 localhost\n");
    fs::write(here.join("etc/machine-id"), "0").unwrap();
    symlink("x", here.join("etc/resolv.conf")).unwrap();
    fs::write(here.join("proc/1"), "").unwrap();
    fs::create_dir(here.join("sys")).unwrap();
    fs::create_dir(here.join("lost+found")).unwrap();
    assert_eq!(layer(&here, &base).unwrap(), [""; 0]);
    // Not even missing.
    fs::remove_file(here.join("etc/hosts")).unwrap();
    fs::remove_dir_all(here.join("proc")).unwrap();
    assert_eq!(layer(&here, &base).unwrap(), [""; 0]);
}

#[test]
fn changes_come_with_the_directories_on_their_way() {
    let (_dir, base, here) = trees();
    fs::write(here.join("root/.profile"), "new").unwrap();
    replace(&here.join("usr/bin/b"), "other");
    fs::set_permissions(here.join("usr/bin/b"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(here.join("root/.profile"), here.join("root/again")).unwrap();
    symlink("passwd", here.join("etc/link")).unwrap();
    let told = layer(&here, &base).unwrap();
    assert_eq!(
        told,
        [
            "etc/ 5 755",
            "etc/link 2 777 passwd",
            "root/ 5 700",
            "root/.profile 0 644 new",
            "root/again 1 644 root/.profile",
            "usr/ 5 755",
            "usr/bin/ 5 755",
            "usr/bin/b 0 4755 other",
        ]
    );
}

#[test]
fn what_is_gone_leaves_a_whiteout() {
    let (_dir, base, here) = trees();
    fs::remove_dir_all(here.join("etc/ssl")).unwrap();
    fs::remove_file(here.join("usr/bin/a")).unwrap();
    fs::remove_dir_all(here.join("var")).unwrap();
    // A file in the place of a directory, and the other way round.
    fs::remove_dir(here.join("root")).unwrap();
    fs::write(here.join("root"), "file").unwrap();
    fs::remove_file(here.join("usr/bin/b")).unwrap();
    fs::create_dir(here.join("usr/bin/b")).unwrap();
    fs::write(here.join("usr/bin/b/in"), "in").unwrap();
    let told = layer(&here, &base).unwrap();
    assert_eq!(
        told,
        [
            "etc/ 5 755",
            "etc/.wh.ssl 0 600",
            "root 0 644 file",
            "usr/ 5 755",
            "usr/bin/ 5 755",
            "usr/bin/.wh.a 0 600",
            "usr/bin/b/ 5 755",
            "usr/bin/b/in 0 644 in",
            ".wh.var 0 600",
        ]
    );
}

#[test]
fn a_directory_made_anew_hides_what_was_in_it() {
    let (_dir, base, here) = trees();
    fs::remove_dir_all(here.join("usr/bin")).unwrap();
    fs::create_dir(here.join("usr/bin")).unwrap();
    fs::write(here.join("usr/bin/c"), "c").unwrap();
    let told = layer(&here, &base).unwrap();
    assert_eq!(told[told.len() - 3..], ["usr/bin/.wh.a 0 600", "usr/bin/.wh.b 0 600", "usr/bin/c 0 644 c"]);
}

#[test]
fn attributes_and_modes_of_directories_are_changes() {
    let (_dir, base, here) = trees();
    fs::set_permissions(&here, fs::Permissions::from_mode(0o711)).unwrap();
    rustix::fs::setxattr(here.join("var"), "user.note", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(layer(&here, &base).unwrap(), ["./ 5 711", "var/ 5 755"]);
}

#[test]
fn a_name_that_would_be_taken_for_a_whiteout_is_refused() {
    let (_dir, base, here) = trees();
    fs::write(here.join("root/.wh.x"), "").unwrap();
    let error = GuestError::from(layer(&here, &base).unwrap_err());
    assert_eq!(error.kind, GuestErrorKind::Invalid);
    assert!(error.message.contains("/root/.wh.x"), "{}", error.message);
}

#[test]
fn two_lists_become_one() {
    let seen = |inode| Seen { inode, kind: FileType::RegularFile };
    let list =
        |names: &[&str]| names.iter().map(|name| (CString::new(*name).unwrap(), seen(1))).collect::<Vec<_>>();
    let merged = merge(list(&["a", "c", "d"]), list(&["b", "c"]));
    let told: Vec<_> = merged
        .iter()
        .map(|name| (name.name.to_str().unwrap(), name.here.is_some(), name.base.is_some()))
        .collect();
    assert_eq!(told, [("a", true, false), ("b", false, true), ("c", true, true), ("d", true, false)]);
}

#[test]
fn paths_are_told_as_docker_does() {
    let (_dir, base, here) = trees();
    assert_eq!(paths(&here, &base), [""; 0]);
    fs::set_permissions(&here, fs::Permissions::from_mode(0o711)).unwrap();
    fs::remove_dir_all(here.join("etc/ssl")).unwrap();
    replace(&here.join("etc/passwd"), "other");
    fs::write(here.join("etc/.wh.x"), "").unwrap();
    fs::create_dir_all(here.join("srv/app")).unwrap();
    fs::write(here.join("srv/app/a b"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(here.join("srv/socket")).unwrap();
    // A file in the place of a directory, and the other way round.
    fs::remove_dir(here.join("root")).unwrap();
    fs::write(here.join("root"), "file").unwrap();
    fs::remove_file(here.join("usr/bin/b")).unwrap();
    fs::create_dir(here.join("usr/bin/b")).unwrap();
    fs::write(here.join("usr/bin/b/in"), "in").unwrap();
    assert_eq!(
        paths(&here, &base),
        [
            "C/etc",
            "A/etc/.wh.x",
            "C/etc/passwd",
            "D/etc/ssl",
            "C/root",
            "A/srv",
            "A/srv/app",
            "A/srv/app/a b",
            "A/srv/socket",
            "C/usr",
            "C/usr/bin",
            "C/usr/bin/b",
            "A/usr/bin/b/in",
        ]
    );
}
