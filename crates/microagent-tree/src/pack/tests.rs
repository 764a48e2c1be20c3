//! Trees as streams.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::*;

/// Returns everything that is written, in one piece.
fn collect(walk: impl FnOnce(Pieces) -> Result<(), PackError>) -> Result<Vec<u8>, PackError> {
    let tar = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&tar);
    walk(Pieces::new(move |piece| {
        assert!(piece.len() <= PIECE_LIMIT);
        taken.lock().unwrap().extend(piece);
        true
    }))?;
    Ok(std::mem::take(&mut *tar.lock().unwrap()))
}

pub(crate) fn pack_all(path: &Path) -> Vec<u8> {
    pack(path).unwrap()
}

fn pack(path: &Path) -> Result<Vec<u8>, PackError> {
    pack_with(path, SymlinkMode::Follow)
}

fn pack_with(path: &Path, links: SymlinkMode) -> Result<Vec<u8>, PackError> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    collect(|pieces| super::pack(&path, base_name(path.to_bytes()), links, pieces).map(drop))
}

/// Describes a tree as `find` and `getfattr` would.
pub(crate) fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let link = fs::read_link(&path).map(|target| target.display().to_string()).unwrap_or_default();
        let content = if found.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let path_c = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        let len = if found.is_dir() { 0 } else { found.len() };
        let relative = path.strip_prefix(root.parent().unwrap()).unwrap();
        let (mode, links, rdev) = (found.mode(), found.nlink(), found.rdev());
        let (uid, gid, mtime) = (found.uid(), found.gid(), (found.mtime(), found.mtime_nsec()));
        let attributes = attributes(&path_c, AtFlags::SYMLINK_NOFOLLOW);
        lines.push(format!(
            "{relative:?} {mode:o} {links} {rdev} {uid} {gid} {len} {mtime:?} {link} {content:?} {attributes:?}"
        ));
        if found.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    lines.sort();
    lines
}

pub(crate) fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

pub(crate) fn make_tree(root: &Path) {
    fs::create_dir(root).unwrap();
    fs::write(root.join("plain"), b"content").unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("block"), [7; 512]).unwrap();
    fs::write(root.join("large"), vec![3; 200_000]).unwrap();
    fs::set_permissions(root.join("plain"), fs::Permissions::from_mode(0o4750)).unwrap();
    fs::hard_link(root.join("plain"), root.join("zz-other-name")).unwrap();
    symlink("plain", root.join("link")).unwrap();
    symlink("x".repeat(300), root.join("long-link")).unwrap();
    let deep = root.join("d".repeat(120)).join("e".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(250)), b"deep").unwrap();
    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"not utf-8 \xff\n");
    fs::write(root.join(odd), b"odd").unwrap();
    run("mkfifo", &[root.join("fifo").as_os_str()]);
    rustix::fs::setxattr(root.join("plain"), "user.note", b"a\0=\nb", rustix::fs::XattrFlags::empty())
        .unwrap();
    rustix::fs::setxattr(root, "user.dir", b"", rustix::fs::XattrFlags::empty()).unwrap();
    run("touch", &["-d".as_ref(), "1960-05-04 03:02:01.25".as_ref(), root.join("empty").as_os_str()]);
    run("touch", &["-d".as_ref(), "2300-01-01".as_ref(), root.join("block").as_os_str()]);
    if rustix::process::getuid().is_root() {
        run("mknod", &[root.join("null").as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()]);
        std::os::unix::fs::lchown(root.join("large"), Some(3_000_000_000), Some(70_000)).unwrap();
    }
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
}

#[test]
fn gnu_tar_unpacks_the_same_tree() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    make_tree(&root);
    let tar = pack(&root).unwrap();
    fs::write(dir.path().join("tree.tar"), &tar).unwrap();
    let to = dir.path().join("unpacked");
    fs::create_dir(&to).unwrap();
    let archive = dir.path().join("tree.tar");
    run(
        "tar",
        &[
            "--xattrs".as_ref(),
            "--xattrs-include=*".as_ref(),
            "-xpf".as_ref(),
            archive.as_os_str(),
            "-C".as_ref(),
            to.as_os_str(),
        ],
    );
    // Sockets are not packed.
    fs::remove_file(root.join("socket")).unwrap();
    let (mut wanted, mut got) = (describe(&root), describe(&to.join("tree")));
    // Its own time changed when the socket went.
    for lines in [&mut wanted, &mut got] {
        lines.retain(|line| !line.starts_with("\"tree\" "));
    }
    pretty_assert(&wanted, &got);
    assert_eq!(pack(&root).unwrap(), pack(&root).unwrap());
}

pub(crate) fn pretty_assert(wanted: &[String], got: &[String]) {
    for (wanted, got) in wanted.iter().zip(got) {
        assert_eq!(wanted, got);
    }
    assert_eq!(wanted.len(), got.len());
}

#[test]
fn a_single_file_has_its_base_name_and_links_to_it_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("report.txt"), b"text").unwrap();
    symlink("report.txt", dir.path().join("latest")).unwrap();
    for name in ["report.txt", "latest"] {
        let tar = pack(&dir.path().join(name)).unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path_bytes().as_ref(), name.as_bytes());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"text");
        assert!(entries.next().is_none());
        assert_eq!(tar.len() % BLOCK, 0);
    }
    let tar = pack_with(&dir.path().join("latest"), SymlinkMode::Keep).unwrap();
    let mut archive = tar::Archive::new(&tar[..]);
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.link_name_bytes().unwrap().as_ref(), b"report.txt");
}

#[test]
fn what_is_missing_is_named() {
    let missing = pack(Path::new("/nonexistent/file")).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read `/nonexistent/file`");
}

#[test]
fn base_names() {
    for (path, wanted) in [("/", "."), ("/a/b", "b"), ("/a/b/", "b"), ("/a/..", "."), ("//a", "a")] {
        assert_eq!(base_name(path.as_bytes()), wanted.as_bytes());
    }
}
