//! Extracts a tar stream to files below one directory.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;

use microagent_tar::read::{ReadError, Reader, Source};
use microagent_tar::shown;

use crate::place::{Failure, PlaceError, Placer};

/// Longest name in a stream: the kernel's limit for paths (`PATH_MAX`).
const PATH_LIMIT: usize = 4096;

/// Which entries and attributes of a stream are extracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Files get the owners of the stream instead of the caller's, and keep their set-id bits.
    pub owners: bool,
    /// Devices and FIFOs are created, not skipped.
    pub special: bool,
    /// All extended attributes are set, not only `user.*`.
    pub all_attributes: bool,
    /// Which symbolic links are made.
    pub links: SymlinkRule,
}

/// Which symbolic links are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymlinkRule {
    /// All links, regardless of their targets.
    All,
    /// Links to targets below the stream's first directory, which stay there if that directory is moved, and which no
    /// later entry can redirect. Targets with `..` after a name are excluded, because the name may be a link.
    Inside,
}

impl Rules {
    /// Everything as in the stream: for root, and for streams from a trusted side.
    pub const EVERYTHING: Rules =
        Rules { owners: true, special: true, all_attributes: true, links: SymlinkRule::All };

    /// Only files, directories and links, owned by the caller.
    pub const HARMLESS: Rules =
        Rules { owners: false, special: false, all_attributes: false, links: SymlinkRule::All };
}

/// Counts of an extracted stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of the stream.
    pub entries: u64,
    /// Devices and FIFOs that the rules exclude.
    pub special_skipped: u64,
    /// Symbolic links that the rules exclude, and hard links to them.
    pub links_skipped: u64,
    /// Extended attributes that the rules exclude or the file system does not support.
    pub attributes_dropped: u64,
}

/// Why unpacking stopped. Complete files are kept; there are no incomplete files.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError<E: Error + 'static> {
    /// The stream ends early or is not valid.
    #[error("the tar stream is not usable")]
    Stream(#[source] ReadError<E>),
    /// An entry could not be extracted.
    #[error("cannot unpack `{name}`")]
    Entry {
        /// Its name, with bytes that are not printable escaped.
        name: String,
        /// Why.
        source: PlaceError,
    },
}

/// The caller's source, whose error type also covers errors of written files.
#[derive(Debug)]
pub(crate) struct Feed<S>(S);

/// An error of the source, or of the file to which its bytes are written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError<E: Error + 'static> {
    #[error(transparent)]
    Source(E),
    #[error("cannot write")]
    Write(#[source] io::Error),
}

impl<S: Source> Source for Feed<S> {
    type Error = FeedError<S::Error>;

    fn fill(&mut self) -> Result<&[u8], Self::Error> {
        self.0.fill().map_err(FeedError::Source)
    }

    fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }
}

/// Unpacks a whole stream below an open directory.
///
/// # Errors
/// Fails if the source fails, the stream is damaged, or an entry cannot be or must not be extracted.
pub fn unpack<S: Source>(root: &OwnedFd, source: S, rules: Rules) -> Result<Unpacked, UnpackError<S::Error>> {
    let mut placer = Placer::new(root, rules);
    let mut reader = Reader::new(Feed(source), PATH_LIMIT);
    let mut entries = 0;
    while let Some(member) = reader.next_member().map_err(|e| at(&[], Failure::Stream(e)))? {
        entries += 1;
        placer.place(&member, &mut reader).map_err(|failure| at(&member.name, failure))?;
    }
    reader.finish().map_err(|e| at(&[], Failure::Stream(ReadError::Source(e))))?;
    let placed = placer.finish().map_err(|(name, error)| at(&name, Failure::Place(error)))?;
    Ok(Unpacked { entries, ..placed })
}

/// Adds the name of the entry to a failure.
fn at<E: Error + 'static>(name: &[u8], failure: Failure<E>) -> UnpackError<E> {
    let entry = |source| UnpackError::Entry { name: shown(name), source };
    UnpackError::Stream(match failure {
        Failure::Place(error) => return entry(error),
        Failure::Stream(ReadError::Source(FeedError::Write(error))) => {
            return entry(PlaceError::System { doing: "write it", source: error });
        }
        Failure::Stream(ReadError::Source(FeedError::Source(error))) => ReadError::Source(error),
        Failure::Stream(ReadError::Malformed { what, after }) => ReadError::Malformed { what, after },
        Failure::Stream(ReadError::Truncated { after }) => ReadError::Truncated { after },
        Failure::Stream(ReadError::Limit { limit }) => ReadError::Limit { limit },
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use microagent_tar::write::{header, padding};
    use microagent_tar::{BLOCK, Entry, Kind, Meta};
    use proptest::prelude::*;
    use rustix::fs::{CWD, Mode, OFlags, XattrFlags, openat, setxattr};

    use super::*;
    use crate::pack::tests::{describe, make_tree, pack_all, pretty_assert, run};

    /// A stream in memory, which may fail at its end.
    struct Bytes<'a>(&'a [u8], bool);

    #[derive(Debug, thiserror::Error)]
    #[error("it ended too early")]
    struct BrokeOff;

    impl Source for Bytes<'_> {
        type Error = BrokeOff;

        fn fill(&mut self) -> Result<&[u8], BrokeOff> {
            match (self.0, self.1) {
                ([], true) => Err(BrokeOff),
                _ => Ok(&self.0[..self.0.len().min(1000)]),
            }
        }

        fn consume(&mut self, count: usize) {
            self.0 = &self.0[count..];
        }
    }

    fn unpack_by(rules: Rules, dir: &Path, source: Bytes<'_>) -> Result<Unpacked, UnpackError<BrokeOff>> {
        let root = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        unpack(&root, source, rules)
    }

    fn unpack_into(dir: &Path, stream: &[u8]) -> Result<Unpacked, UnpackError<BrokeOff>> {
        unpack_by(Rules::EVERYTHING, dir, Bytes(stream, false))
    }

    fn refusal(dir: &Path, stream: &[u8]) -> PlaceError {
        refusal_by(Rules::EVERYTHING, dir, stream)
    }

    fn refusal_by(rules: Rules, dir: &Path, stream: &[u8]) -> PlaceError {
        match unpack_by(rules, dir, Bytes(stream, false)) {
            Err(UnpackError::Entry { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }

    const META: Meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: (1_000_000, 0) };

    /// An entry with name and kind.
    type Shape<'a> = (&'a str, Kind<u64>);

    fn stream_of(entries: &[Shape<'_>]) -> Vec<u8> {
        let mut stream = Vec::new();
        for (name, kind) in entries {
            let name = name.as_bytes().to_vec();
            stream.extend(header(&Entry { name, kind: kind.clone(), meta: META, attributes: Vec::new() }));
            if let Kind::File(len) = kind {
                stream.resize(stream.len() + *len as usize, b'x');
                stream.resize(stream.len() + padding(*len), 0);
            }
        }
        stream.resize(stream.len() + 2 * BLOCK, 0);
        stream
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_packed_is_unpacked_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        make_tree(&root);
        fs::remove_file(root.join("socket")).unwrap();
        let attribute = |name: &str, key: &str, value: &[u8]| {
            setxattr(root.join(name), key, value, XattrFlags::empty()).unwrap();
        };
        attribute("large", "user.lines", b"a\n20 SCHILY.xattr.x=y\n\n=\0");
        if rustix::process::getuid().is_root() {
            // cap_net_raw, effective, in revision 2 of its form; lost if it is set before the owner.
            attribute(
                "large",
                "security.capability",
                &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            );
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o1555)).unwrap();
        run("touch", &["-d".as_ref(), "2001-02-03 04:05:06.7".as_ref(), root.as_os_str()]);
        let wanted = describe(&root);
        let to = dir.path().join("unpacked");
        fs::create_dir(&to).unwrap();
        let stream = pack_all(&root);
        let unpacked = unpack_into(&to, &stream).unwrap();
        assert_eq!(unpacked.attributes_dropped, 0);
        pretty_assert(&wanted, &describe(&to.join("tree")));
        // Over itself it goes as well, and leaves nothing else.
        assert_eq!(unpack_into(&to, &stream).unwrap(), unpacked);
        pretty_assert(&wanted, &describe(&to.join("tree")));
        assert_eq!(pack_all(&to.join("tree")), stream);
    }

    #[test]
    fn holes_stay_holes_for_us_and_for_gnu_tar() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir(&root).unwrap();
        for (name, at, len) in [("middle", 5 << 20, 9 << 20), ("end", 0, 4 << 20), ("nothing", 0, 3 << 20)] {
            let file = fs::File::create(root.join(name)).unwrap();
            if name != "nothing" {
                std::os::unix::fs::FileExt::write_all_at(&file, b"some data", at).unwrap();
            }
            file.set_len(len).unwrap();
        }
        let stream = pack_all(&root);
        assert!(stream.len() < 100_000, "{}", stream.len());
        let (ours, gnu) = (dir.path().join("ours"), dir.path().join("gnu"));
        fs::create_dir(&ours).unwrap();
        fs::create_dir(&gnu).unwrap();
        unpack_into(&ours, &stream).unwrap();
        let archive = dir.path().join("tree.tar");
        fs::write(&archive, &stream).unwrap();
        run("tar", &["-xf".as_ref(), archive.as_os_str(), "-C".as_ref(), gnu.as_os_str()]);
        for to in [&ours, &gnu] {
            pretty_assert(&describe(&root), &describe(&to.join("tree")));
            for name in ["middle", "end", "nothing"] {
                assert_eq!(fs::read(to.join("tree").join(name)).unwrap(), fs::read(root.join(name)).unwrap());
                assert!(fs::metadata(to.join("tree").join(name)).unwrap().blocks() < 1000, "{name}");
            }
        }
    }

    #[test]
    fn what_gnu_tar_packed_is_unpacked_the_same() {
        for format in ["gnu", "pax", "ustar", "v7"] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("tree");
            fs::create_dir_all(root.join("sub/deeper")).unwrap();
            fs::write(root.join("sub/file"), vec![9; 5000]).unwrap();
            fs::hard_link(root.join("sub/file"), root.join("sub/same")).unwrap();
            symlink("../sub/file", root.join("sub/link")).unwrap();
            let holes = fs::File::create(root.join("holes")).unwrap();
            for at in [100_000, 300_000, 700_000, 900_000, 1_300_000, 1_700_000] {
                std::os::unix::fs::FileExt::write_at(&holes, b"data", at).unwrap();
            }
            holes.set_len(2_000_000).unwrap();
            if format == "gnu" || format == "pax" {
                fs::create_dir(root.join("n".repeat(180))).unwrap();
                fs::write(root.join("n".repeat(180)).join("m".repeat(120)), b"long").unwrap();
                fs::write(root.join(OsStr::from_bytes(b"odd \xff\nname")), b"odd").unwrap();
            }
            // Old formats have whole seconds.
            run(
                "find",
                &[
                    root.as_os_str(),
                    "-exec".as_ref(),
                    "touch".as_ref(),
                    "-h".as_ref(),
                    "-d".as_ref(),
                    "2020-01-01".as_ref(),
                    "{}".as_ref(),
                    "+".as_ref(),
                ],
            );
            let archive = dir.path().join("tree.tar");
            let sparse = if format == "gnu" || format == "pax" { "--sparse" } else { "--no-xattrs" };
            run(
                "tar",
                &[
                    OsStr::new(&format!("--format={format}")),
                    sparse.as_ref(),
                    "-cf".as_ref(),
                    archive.as_os_str(),
                    "-C".as_ref(),
                    dir.path().as_os_str(),
                    "tree".as_ref(),
                ],
            );
            let to = dir.path().join("unpacked");
            fs::create_dir(&to).unwrap();
            unpack_into(&to, &fs::read(&archive).unwrap()).unwrap();
            pretty_assert(&describe(&root), &describe(&to.join("tree")));
            if sparse == "--sparse" {
                assert!(fs::metadata(to.join("tree/holes")).unwrap().blocks() < 1000);
            }
        }
    }

    #[test]
    fn nothing_leaves_the_destination() {
        let outer = tempfile::tempdir().unwrap();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        let dest = outer.path().join("dest");
        fs::create_dir(&dest).unwrap();
        symlink("..", dest.join("up")).unwrap();
        symlink(outer.path(), dest.join("absolute")).unwrap();
        symlink("../secret", dest.join("to-secret")).unwrap();
        let link = |to: &str| Kind::Symlink(to.as_bytes().to_vec());
        let attacks: [(&[Shape<'static>], &str); 9] = [
            (&[("../evil", Kind::File(1))], "its name leads out"),
            (&[("a/../../evil", Kind::File(1))], "its name leads out"),
            (&[("up/evil", Kind::File(1))], "a link on the way to it leads out"),
            (&[("absolute/evil", Kind::File(1))], "a link on the way to it leads out"),
            (&[("up", Kind::Directory), ("up/evil", Kind::File(1))], "leads out"),
            (&[("own", link("..")), ("own/evil", Kind::File(1))], "leads out"),
            (&[("hard", Kind::HardLink(b"../secret".to_vec()))], "its name leads out"),
            (&[("hard", Kind::HardLink(b"up/secret".to_vec()))], "leads out"),
            (&[(".", link("elsewhere"))], "only a directory can replace"),
        ];
        for (attack, text) in attacks {
            let refused = refusal(&dest, &stream_of(attack)).to_string();
            assert!(refused.contains(text), "{attack:?}: {refused}");
            assert_eq!(names(outer.path()), ["dest", "secret"], "{attack:?}");
            let _ = fs::remove_file(dest.join("own"));
            assert_eq!(names(&dest), ["absolute", "to-secret", "up"], "{attack:?}");
        }
        // A name in the last place is replaced, not followed; one that begins with a slash begins here.
        let entries = [("to-secret", Kind::File(3)), ("/etc/absolute", Kind::File(1))];
        unpack_into(&dest, &stream_of(&entries)).unwrap();
        assert_eq!(fs::read_to_string(outer.path().join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_to_string(dest.join("to-secret")).unwrap(), "xxx");
        assert_eq!(fs::read_to_string(dest.join("etc/absolute")).unwrap(), "x");
    }

    #[test]
    fn links_inside_the_destination_serve_as_directories() {
        let dest = tempfile::tempdir().unwrap();
        fs::create_dir_all(dest.path().join("usr/lib")).unwrap();
        symlink("usr/lib", dest.path().join("lib")).unwrap();
        let entries = [("lib/", Kind::Directory), ("lib/new", Kind::File(4)), ("lib/a/b", Kind::File(1))];
        unpack_into(dest.path(), &stream_of(&entries)).unwrap();
        assert_eq!(fs::read_to_string(dest.path().join("usr/lib/new")).unwrap(), "xxxx");
        assert!(fs::symlink_metadata(dest.path().join("lib")).unwrap().is_symlink());
        assert_eq!(fs::metadata(dest.path().join("usr/lib/a")).unwrap().mode() & 0o7777, 0o755);
    }

    #[test]
    fn files_and_directories_do_not_replace_each_other() {
        let dest = tempfile::tempdir().unwrap();
        fs::create_dir(dest.path().join("dir")).unwrap();
        fs::write(dest.path().join("file"), "old").unwrap();
        let cases: [(&[Shape<'static>], &str); 3] = [
            (&[("dir", Kind::File(1))], "a directory exists there"),
            (&[("file", Kind::Directory)], "something other than a directory exists there"),
            (&[("file/below", Kind::File(1))], "a parent of it is not a directory"),
        ];
        for (entries, text) in cases {
            assert_eq!(refusal(dest.path(), &stream_of(entries)).to_string(), text);
        }
        assert_eq!(names(dest.path()), ["dir", "file"]);
        assert_eq!(fs::read_to_string(dest.path().join("file")).unwrap(), "old");
    }

    #[test]
    fn a_torn_or_damaged_stream_leaves_no_half_file() {
        let dest = tempfile::tempdir().unwrap();
        fs::write(dest.path().join("file"), "old").unwrap();
        let mut stream = stream_of(&[("file", Kind::File(5000)), ("more", Kind::File(10))]);
        for cut in [0, 100, 512, 3000, stream.len() - 1024] {
            let broken = unpack_by(Rules::EVERYTHING, dest.path(), Bytes(&stream[..cut], true));
            assert!(matches!(broken, Err(UnpackError::Stream(ReadError::Source(BrokeOff)))), "{broken:?}");
        }
        fs::write(dest.path().join("file"), "old").unwrap();
        fs::remove_file(dest.path().join("more")).unwrap();
        let torn = unpack_into(dest.path(), &stream[..3000]);
        assert!(matches!(torn, Err(UnpackError::Stream(ReadError::Truncated { .. }))), "{torn:?}");
        stream[3] ^= 1;
        let damaged = unpack_into(dest.path(), &stream);
        assert!(matches!(damaged, Err(UnpackError::Stream(ReadError::Malformed { .. }))), "{damaged:?}");
        assert_eq!(names(dest.path()), ["file"]);
        assert_eq!(fs::read_to_string(dest.path().join("file")).unwrap(), "old");
    }

    #[test]
    fn nested_attributes_are_bounded() {
        let dest = tempfile::tempdir().unwrap();
        let mut stream = Vec::new();
        for depth in 1..=20 {
            let name = "d/".repeat(depth).into_bytes();
            let attributes = vec![(b"other.note".to_vec(), vec![b'x'; 1_000_000])];
            stream.extend(header(&Entry { name, kind: Kind::Directory, meta: META, attributes }));
        }
        let refused = refusal_by(Rules::HARMLESS, dest.path(), &stream);
        assert!(matches!(refused, PlaceError::AttributesTooLarge), "{refused}");
    }

    #[test]
    fn what_could_harm_is_left_out() {
        let dest = tempfile::tempdir().unwrap();
        let rules = Rules::HARMLESS;
        let entry = |name: &str, kind, mode| Entry {
            name: name.as_bytes().to_vec(),
            kind,
            meta: Meta { mode, uid: 12345, gid: 12345, mtime: (5, 0) },
            attributes: vec![
                (b"user.note".to_vec(), b"a".to_vec()),
                (b"trusted.note".to_vec(), b"b".to_vec()),
                (
                    b"security.capability".to_vec(),
                    vec![1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                ),
            ],
        };
        let entries = [
            entry("srv", Kind::Directory, 0o7755),
            entry("srv/tool", Kind::File(0), 0o6755),
            entry("srv/same", Kind::HardLink(b"srv/tool".to_vec()), 0o6755),
            entry("srv/disk", Kind::BlockDevice { major: 8, minor: 0 }, 0o666),
            entry("srv/fifo", Kind::Fifo, 0o666),
        ];
        let mut stream: Vec<u8> = entries.iter().flat_map(header).collect();
        stream.resize(stream.len() + 2 * BLOCK, 0);
        let unpacked = unpack_by(rules, dest.path(), Bytes(&stream, false)).unwrap();
        let (left_out, dropped) = (unpacked.special_skipped, unpacked.attributes_dropped);
        assert_eq!((unpacked.entries, left_out, dropped), (5, 2, 4));
        assert_eq!(names(dest.path()), ["srv"]);
        assert_eq!(names(&dest.path().join("srv")), ["same", "tool"]);
        let tool = fs::metadata(dest.path().join("srv/tool")).unwrap();
        assert_eq!((tool.mode() & 0o7777, tool.nlink(), tool.mtime()), (0o755, 2, 5));
        assert_eq!(tool.uid(), rustix::process::getuid().as_raw());
        assert_eq!(fs::metadata(dest.path().join("srv")).unwrap().mode() & 0o7777, 0o1755);
    }

    fn paths() -> impl Strategy<Value = String> {
        let part =
            prop_oneof![4 => Just("a"), 3 => Just("b"), 1 => Just("c"), 1 => Just(".."), 1 => Just("")];
        proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
    }

    fn shapes() -> impl Strategy<Value = (String, Kind<u64>)> {
        let bytes = |path: String| path.into_bytes();
        let kind = prop_oneof![
            Just(Kind::File(3)),
            Just(Kind::Directory),
            paths().prop_map(move |path| Kind::Symlink(bytes(format!("../{path}")))),
            paths().prop_map(move |path| Kind::Symlink(bytes(path))),
            paths().prop_map(move |path| Kind::HardLink(bytes(path))),
        ];
        (paths(), kind)
    }

    /// Lists the symbolic links below a directory.
    fn links(dir: &Path) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_symlink() {
                found.push(path);
            } else if path.is_dir() {
                found.extend(links(&path));
            }
        }
        found
    }

    proptest! {
        #[test]
        fn links_stay_inside_when_they_are_to(shapes in proptest::collection::vec(shapes(), 1..20)) {
            let outer = tempfile::tempdir().unwrap();
            let dest = outer.path().join("dest");
            fs::create_dir(&dest).unwrap();
            let rules = Rules { links: SymlinkRule::Inside, ..Rules::HARMLESS };
            for (name, kind) in &shapes {
                // Below one item, which may then be moved anywhere.
                let name = format!("item/{name}");
                let kind = match kind {
                    Kind::HardLink(target) => Kind::HardLink([&b"item/"[..], target].concat()),
                    kind => kind.clone(),
                };
                let stream = stream_of(&[(name.as_str(), kind)]);
                let _ = unpack_by(rules, &dest, Bytes(&stream, false));
            }
            let item = dest.join("item");
            let all = if item.is_dir() { links(&item) } else { Vec::new() };
            for link in all {
                // A whole path, without what may be missing at its end.
                let mut leads_to = link.parent().unwrap().canonicalize().unwrap();
                let target = fs::read_link(&link).unwrap();
                for part in &target {
                    leads_to = leads_to.join(part);
                    match leads_to.canonicalize() {
                        Ok(path) => leads_to = path,
                        Err(_) => break,
                    }
                    prop_assert!(leads_to.starts_with(item.canonicalize().unwrap()), "{link:?} {target:?}");
                }
            }
        }

        #[test]
        fn no_names_and_links_lead_out(shapes in proptest::collection::vec(shapes(), 1..12)) {
            let outer = tempfile::tempdir().unwrap();
            // What the links may lead to, under names that the stream knows.
            fs::write(outer.path().join("a"), "secret").unwrap();
            fs::create_dir(outer.path().join("b")).unwrap();
            fs::create_dir(outer.path().join("dest")).unwrap();
            for shape in &shapes {
                // One by one, so that what is refused does not keep the rest from being tried.
                let stream = stream_of(std::slice::from_ref(&(shape.0.as_str(), shape.1.clone())));
                let _ = unpack_by(Rules::HARMLESS, &outer.path().join("dest"), Bytes(&stream, false));
            }
            let secret = fs::metadata(outer.path().join("a")).unwrap();
            prop_assert_eq!((secret.nlink(), secret.len()), (1, 6));
            prop_assert_eq!(names(outer.path()), ["a", "b", "dest"]);
            prop_assert!(names(&outer.path().join("b")).is_empty());
        }
    }
}
