//! Everything that `stat`, `readlink`, `getxattr` and `read` tell of each path must be the same.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::oracle::{self, Mounted};
use crate::{Place, assert_clean, is_root};

/// Facts of one path, each under its name.
type Facts = BTreeMap<String, String>;
type Tree = BTreeMap<Vec<u8>, Facts>;

/// Differences that are meant: fixture, path and fact (a `*` at the end stands for any rest), and why.
const ACCEPTED: [(&str, &str, &str, &str); 7] = [
    ("layers", "/srv", "mtime", CLOCK),
    ("layers", "/srv/late", "mtime", CLOCK),
    ("layers", "/srv/opaque/sub", "mtime", CLOCK),
    ("layers", "/srv/made*", "mtime", IMPLIED),
    ("layers", "/srv/missing*", "mtime", IMPLIED),
    ("caps", "/caps/attributes", "attribute user.empty", EMPTY),
    ("caps", "/caps/libarchive", "attribute user.from libarchive", "umoci knows no LIBARCHIVE.xattr records"),
];
const CLOCK: &str = "umoci leaves the time of the whiteout's removal; we keep what the layers say";
const IMPLIED: &str =
    "a directory that no layer names has the time of unpacking for umoci and 1970 for us, always the same";
const EMPTY: &str = "umoci drops attributes with an empty value";

/// Reads a whole tree.
pub(crate) fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    // First path of each inode with several names.
    let mut groups: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let full = at(root, &path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        let mut facts = facts(&full, &metadata);
        if metadata.is_dir() {
            let names: Vec<OsString> =
                fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            pending.extend(names.into_iter().map(|name| [&path[..], b"/", name.as_bytes()].concat()));
        } else {
            facts.insert("links".into(), metadata.nlink().to_string());
        }
        if !metadata.is_dir() && metadata.nlink() > 1 {
            let first = groups.entry(metadata.ino()).or_insert_with(|| path.clone());
            if path < *first {
                first.clone_from(&path);
            }
            facts.insert("inode".into(), metadata.ino().to_string());
        }
        tree.insert(path, facts);
    }
    for facts in tree.values_mut() {
        if let Some(ino) = facts.remove("inode") {
            let first = groups[&ino.parse().unwrap()].escape_ascii().to_string();
            facts.insert("same as".into(), first);
        }
    }
    tree
}

fn at(root: &Path, path: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec([root.as_os_str().as_bytes(), path].concat()))
}

fn facts(path: &Path, metadata: &fs::Metadata) -> Facts {
    let mut facts = Facts::new();
    let mut say = |name: &str, value: String| facts.insert(name.to_owned(), value);
    say("mode", format!("{:o}", metadata.mode()));
    say("owner", format!("{}:{}", metadata.uid(), metadata.gid()));
    say("mtime", format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec()));
    let kind = metadata.file_type();
    if !kind.is_dir() {
        say("size", metadata.len().to_string());
        say("device", metadata.rdev().to_string());
    }
    if kind.is_symlink() {
        say("target", fs::read_link(path).unwrap().as_os_str().as_bytes().escape_ascii().to_string());
    }
    if kind.is_file() {
        let mut hasher = Sha256::new();
        std::io::copy(&mut fs::File::open(path).unwrap(), &mut Hasher(&mut hasher)).unwrap();
        say("content", format!("{:x?}", &hasher.finalize()[..8]));
    }
    for name in attribute_names(path) {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, &name[..], &mut value).unwrap();
        let shown = String::from_utf8_lossy(&name).into_owned();
        say(&format!("attribute {shown}"), value[..length].escape_ascii().to_string());
    }
    facts
}

struct Hasher<'a>(&'a mut Sha256);

impl std::io::Write for Hasher<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn attribute_names(path: &Path) -> Vec<Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    names[..length].split(|&b| b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Each difference as path, fact, expected and found; `-` for what is missing.
pub(crate) fn differences(expected: &Tree, found: &Tree) -> Vec<[String; 4]> {
    let mut differences = Vec::new();
    let none = Facts::new();
    let paths: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    for path in paths {
        let shown = path.escape_ascii().to_string();
        let (left, right) = match (expected.get(path), found.get(path)) {
            (Some(_), None) => {
                differences.push([shown, "path".into(), "there".into(), "-".into()]);
                continue;
            }
            (None, Some(_)) => {
                differences.push([shown, "path".into(), "-".into(), "there".into()]);
                continue;
            }
            (left, right) => (left.unwrap_or(&none), right.unwrap_or(&none)),
        };
        let facts: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
        for fact in facts {
            if left.get(fact) != right.get(fact) {
                let value = |facts: &Facts| {
                    facts.get(fact).map_or("-".into(), |value| value.chars().take(80).collect())
                };
                differences.push([shown.clone(), fact.clone(), value(left), value(right)]);
            }
        }
    }
    differences
}

fn matches(pattern: &str, text: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == text, |start| text.starts_with(start))
}

/// `by_tar` are layers that umoci cannot read; GNU tar unpacks them above the others.
#[track_caller]
fn assert_same_as_umoci(fixture: &str, by_tar: &[usize]) {
    if !is_root("unpacking and mounting an image") {
        return;
    }
    let place = Place::new();
    let layers = oracle::layers(&microagent_tests::fixtures::layout(fixture));
    let stats = place.build(&layers).unwrap();
    assert_clean(&place.path("disk"));
    let for_umoci: Vec<_> =
        (0..layers.len()).filter(|i| !by_tar.contains(i)).map(|i| layers[i].clone()).collect();
    let unpacked = oracle::unpack(&for_umoci, &place.path("bundle")).unwrap();
    for &layer in by_tar {
        oracle::untar(&layers[layer], &unpacked);
    }
    let expected = read(&unpacked);
    let mounted = Mounted::new(&place.path("disk"), place.path("mounted"));
    let found = read(&mounted.root);
    assert!(stats.inodes >= 10 && stats.disk_bytes == fs::metadata(place.path("disk")).unwrap().len());

    let mut unused: Vec<_> = ACCEPTED.iter().filter(|accepted| accepted.0 == fixture).collect();
    let all = unused.clone();
    let left: Vec<_> = differences(&expected, &found)
        .into_iter()
        .filter(|[path, fact, ..]| {
            let is_accepted = |accepted: &&&(&str, &str, &str, &str)| {
                matches(accepted.1, path) && matches(accepted.2, fact)
            };
            unused.retain(|accepted| !is_accepted(&accepted));
            !all.iter().any(|accepted| is_accepted(&accepted))
        })
        .collect();
    let lines: Vec<String> = left
        .iter()
        .map(|[path, fact, left, right]| format!("{path}: {fact}: umoci {left}, disk {right}"))
        .collect();
    assert!(lines.is_empty(), "{} differences:\n{}", lines.len(), lines[..lines.len().min(60)].join("\n"));
    assert!(unused.is_empty(), "differences that are accepted but not there: {unused:?}");
}

#[test]
fn debian_is_what_umoci_unpacks() {
    assert_same_as_umoci("debian", &[]);
}

#[test]
fn layers_are_what_umoci_unpacks() {
    assert_same_as_umoci("layers", &[]);
}

#[test]
fn caps_are_what_umoci_unpacks() {
    // Layer 4 has sparse files in GNU's own format.
    assert_same_as_umoci("caps", &[4]);
}
