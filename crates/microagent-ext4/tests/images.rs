//! Every image passes `e2fsck -fn`, and `debugfs` finds in it what was declared. Needs e2fsprogs, and
//! prints this and passes where they are missing.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use microagent_ext4::{Builder, Error, Inode, Layout, Meta, Options, ROOT, Special};
use proptest::prelude::*;

const EPOCH: u32 = 1_704_067_200;
const UUID: [u8; 16] = [0xd0, 0xd0, 0xca, 0xca, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 2];

fn meta(mode: u16) -> Meta {
    Meta { mode, uid: 0, gid: 0, mtime: (i64::from(EPOCH), 0) }
}

fn builder() -> Builder {
    Builder::new(Options::new(UUID, EPOCH))
}

/// A program of e2fsprogs, which may lie where only root looks.
fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|program| program.exists())
}

/// An image in a file of its own, removed at the end.
struct Image {
    file: tempfile::NamedTempFile,
}

impl Image {
    /// Writes `layout` and gives each of `files` its `content`.
    fn write(layout: &Layout, files: &[(Inode, Vec<u8>)]) -> Image {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        file.as_file().set_len(layout.len()).unwrap();
        let mut seen = BTreeSet::new();
        layout
            .write_metadata(&mut |offset, bytes| {
                assert!(offset + bytes.len() as u64 <= layout.len());
                assert!(seen.insert(offset), "offset {offset} is written twice");
                file.as_file().write_all_at(bytes, offset)
            })
            .unwrap();
        for (inode, content) in files {
            let mut rest = &content[..];
            for (offset, length) in layout.extents(*inode) {
                let (now, later) = rest.split_at(rest.len().min(length as usize));
                file.as_file().write_all_at(now, offset).unwrap();
                rest = later;
            }
            assert!(rest.is_empty(), "more content than extents");
        }
        Image { file }
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn assert_clean(&self) {
        let Some(e2fsck) = tool("e2fsck") else {
            eprintln!("skipped: no e2fsck on this machine");
            return;
        };
        let out = Command::new(e2fsck).arg("-fn").arg(self.path()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        // "optimize" would be e2fsck's own wish to rebuild, not an error, and exits 0.
        assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    }

    /// What debugfs prints for a request; nothing where it is missing.
    fn debugfs(&self, request: &str) -> Option<Vec<u8>> {
        let debugfs = tool("debugfs")?;
        Some(Command::new(debugfs).args(["-R", request]).arg(self.path()).output().unwrap().stdout)
    }

    fn assert_debugfs(&self, request: &str, parts: &[&str]) {
        let Some(out) = self.debugfs(request) else {
            eprintln!("skipped: no debugfs on this machine");
            return;
        };
        let text = String::from_utf8_lossy(&out);
        for part in parts {
            assert!(text.contains(part), "`{request}` does not say `{part}`:\n{text}");
        }
    }
}

fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    })
    .take(length)
    .collect()
}

#[test]
fn empty_tree() {
    let layout = builder().seal().unwrap();
    assert_eq!(layout.len(), 128 << 20);
    Image::write(&layout, &[]).assert_clean();
}

#[test]
fn every_kind_of_inode() {
    let mut b = builder();
    b.set_meta(ROOT, Meta { mode: 0o711, uid: 7, gid: 8, mtime: (1, 2) }).unwrap();
    b.set_xattr(ROOT, b"security.selinux", b"system_u:object_r:root_t:s0").unwrap();
    let usr = b.directory(ROOT, b"usr", meta(0o1777)).unwrap();
    let owned = Meta { mode: 0o4755, uid: 3_000_000_000, gid: 70_000, mtime: (4_102_444_800, 123_456_789) };
    let cat = b.file(usr, b"cat", owned, 9_000).unwrap();
    b.hard_link(usr, b"dog", cat).unwrap();
    b.file(usr, b"empty", meta(0o600), 0).unwrap();
    b.symlink(ROOT, b"fast", &[b'f'; 59], meta(0o777)).unwrap();
    b.symlink(ROOT, b"slow", &[b's'; 60], meta(0o777)).unwrap();
    let longest = b.symlink(ROOT, b"longest", &[b'l'; 4095], meta(0o777)).unwrap();
    b.hard_link(ROOT, b"longest2", longest).unwrap();
    b.special(ROOT, b"null", meta(0o666), Special::Character { major: 1, minor: 3 }).unwrap();
    b.special(ROOT, b"disk", meta(0o660), Special::Block { major: 259, minor: 70_000 }).unwrap();
    b.special(ROOT, b"fifo", meta(0o644), Special::Fifo).unwrap();
    b.special(ROOT, b"sock", meta(0o644), Special::Socket).unwrap();
    let attributes = b.file(ROOT, b"attributes", meta(0o644), 0).unwrap();
    b.set_xattr(attributes, b"user.small", b"old").unwrap();
    b.set_xattr(attributes, b"user.small", b"new").unwrap();
    b.set_xattr(attributes, b"user.empty", b"").unwrap();
    b.set_xattr(attributes, b"user.large", &[0x42; 3000]).unwrap();
    b.set_xattr(attributes, b"security.capability", &[1, 0, 0, 2, 0, 0, 0, 0]).unwrap();
    let sparse = b.sparse_file(ROOT, b"sparse", meta(0o644), (1 << 30) + 5, &[(1, 2), (1 << 18, 1)]).unwrap();
    b.file(ROOT, b"strange \xff\n name", meta(0o644), 0).unwrap();
    b.file(ROOT, &[b'n'; 255], meta(0o644), 0).unwrap();
    b.directory(ROOT, b"lost+found", meta(0o700)).unwrap();

    let layout = b.seal().unwrap();
    assert_eq!(layout.extents(sparse).map(|e| e.1).sum::<u64>(), 3 * 4096);
    assert_eq!(layout.extents(usr).count(), 0, "directories are no files");
    let data = content(9_000, 1);
    let image = Image::write(&layout, &[(cat, data.clone()), (sparse, content(8192 + 5, 2))]);
    image.assert_clean();
    if let Some(read) = image.debugfs("cat /usr/dog") {
        assert_eq!(read, data);
    }
    if let Some(read) = image.debugfs("cat /sparse") {
        assert_eq!(read.len(), (1 << 30) + 5);
        assert_eq!(read[4096..12288], content(8192, 2));
        assert!(read[..4096].iter().chain(&read[12288..1 << 30]).all(|&b| b == 0));
    }
    image.assert_debugfs(
        "stat /usr/cat",
        &["Mode:  04755", "User: -1294967296", "Group: 70000", "Links: 2", "mtime: 0xf4865700:1d6f3455"],
    );
    image.assert_debugfs("stat /disk", &["Type: block special", "number: 259:70000"]);
    image.assert_debugfs("stat /null", &["Type: character special", "01:03"]);
    image.assert_debugfs("ea_get /attributes user.small", &["user.small (3) = \"new\""]);
    image.assert_debugfs(
        "ea_list /attributes",
        &["user.empty (0)", "user.large (3000)", "security.capability (8)"],
    );
    image.assert_debugfs("ls -p /", &["/2/040711/7/8/.//", "strange"]);
    image.assert_debugfs("stat <8>", &["Size: 16777216"]);
}

#[test]
fn directories_around_and_far_beyond_one_block() {
    let mut b = builder();
    for count in [300, 336, 337, 338, 339, 340, 341, 342, 400, 20_000] {
        let dir = b.directory(ROOT, format!("dir{count}").as_bytes(), meta(0o755)).unwrap();
        for i in 0..count {
            // A record of 12 bytes each, so that the one-block limit is met exactly.
            let name = u32::to_be_bytes(i | 0x8080_8080);
            let name = [name[0] | 0x80, name[1], name[2] | (i >> 7) as u8 & 0x7F | 0x80, name[3]];
            let name = if i < 64 { [b'a' + (i % 26) as u8, b'A' + (i / 26) as u8, 0xC3, 0xA9] } else { name };
            let full = [&name[..], format!("{i:x}").as_bytes()].concat();
            b.file(dir, &full[..full.len().min(255)], meta(0o644), 0).unwrap();
        }
    }
    // Two levels: 255-byte names make leaves of 15 entries, so 508 leaves are exceeded soon.
    let deep = b.directory(ROOT, b"deep", meta(0o755)).unwrap();
    for i in 0..9_000 {
        b.file(deep, format!("{i:0>255}").as_bytes(), meta(0o644), 0).unwrap();
    }
    let image = Image::write(&b.seal().unwrap(), &[]);
    image.assert_clean();
    image.assert_debugfs("htree_dump /deep", &["Number of entries (count)", "Indirect levels: 1"]);
    image.assert_debugfs(&format!("stat /deep/{:0>255}", 8_999), &["Type: regular"]);
}

#[test]
fn large_files_cross_groups_and_need_trees() {
    let mut b = builder();
    let spanning = b.file(ROOT, b"spanning", meta(0o644), 3 << 30).unwrap();
    let pieces: Vec<(u32, u32)> = (0..5_000).map(|i| (i * 3, 1 + i % 2)).collect();
    let many = b.sparse_file(ROOT, b"many", meta(0o644), 5_000 * 3 * 4096, &pieces).unwrap();
    let layout = b.seal().unwrap();
    assert!(layout.extents(spanning).count() > 4, "the tree is larger than the inode");
    assert_eq!(layout.extents(many).count(), 5_000);
    let data = content(7_500 * 4096, 3);
    let image = Image::write(&layout, &[(many, data.clone())]);
    image.assert_clean();
    if let Some(read) = image.debugfs("cat /many") {
        let mut expected = vec![0; 5_000 * 3 * 4096];
        let mut rest = &data[..];
        for (first, count) in pieces {
            let (now, later) = rest.split_at(count as usize * 4096);
            expected[first as usize * 4096..][..now.len()].copy_from_slice(now);
            rest = later;
        }
        assert!(read == expected, "content differs");
    }
}

#[test]
fn many_inodes_and_groups() {
    let mut b = builder();
    let mut dir = ROOT;
    for i in 0..70_000u32 {
        if i % 200 == 0 {
            dir = b.directory(ROOT, format!("d{i}").as_bytes(), meta(0o755)).unwrap();
        }
        b.file(dir, format!("file{i}").as_bytes(), meta(0o644), u64::from(i % 3) * 100).unwrap();
    }
    // Pushes the geometry past one flex group and several superblock copies.
    b.sparse_file(ROOT, b"huge", meta(0o644), 3 << 30, &[(0, 3 << 18)]).unwrap();
    let layout = b.seal().unwrap();
    assert!(layout.len() > 16 * (128 << 20));
    Image::write(&layout, &[]).assert_clean();
}

#[test]
fn an_exact_size_is_kept_whatever_it_is() {
    for (mib, journal_blocks) in
        [(16, 1024), (64, 1024), (100, 1024), (129, 1024), (1024, 4096), (2100, 8192)]
    {
        let blocks = mib * 256;
        let options =
            Options { blocks: Some(blocks), journal_blocks, free_blocks: 0, ..Options::new(UUID, EPOCH) };
        let layout = Builder::new(options).seal().unwrap();
        let lost = blocks * 4096 - layout.len();
        assert!(lost < 3 << 20, "{mib} MiB: {lost} bytes are lost");
        let image = Image::write(&layout, &[]);
        image.assert_clean();
        if let Some(listed) = image.debugfs("ls -p /") {
            assert_eq!(String::from_utf8_lossy(&listed).lines().filter(|line| line.contains("/")).count(), 2);
        }
    }
    let tiny = Options { blocks: Some(256), ..Options::new(UUID, EPOCH) };
    assert!(matches!(Builder::new(tiny).seal(), Err(Error::TooLarge)));
}

#[test]
fn a_chain_of_directories_does_not_recurse() {
    let mut b = builder();
    let mut dir = ROOT;
    for _ in 0..20_000 {
        dir = b.directory(dir, b"d", meta(0o755)).unwrap();
    }
    b.seal().unwrap().write_metadata(&mut |_, _| Ok(())).unwrap();
}

#[test]
fn more_links_than_ext4_counts() {
    let mut b = builder();
    let file = b.file(ROOT, b"file", meta(0o644), 0).unwrap();
    for i in 1..microagent_ext4::LINK_MAX {
        b.hard_link(ROOT, i.to_string().as_bytes(), file).unwrap();
    }
    assert!(matches!(b.hard_link(ROOT, b"one too many", file), Err(Error::TooManyLinks)));
    let many = b.directory(ROOT, b"many", meta(0o755)).unwrap();
    for i in 0..65_100 {
        b.directory(many, i.to_string().as_bytes(), meta(0o755)).unwrap();
    }
    Image::write(&b.seal().unwrap(), &[]).assert_clean();
}

#[test]
fn refused_input() {
    let mut b = builder();
    let file = b.file(ROOT, b"file", meta(0o644), 0).unwrap();
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'n'; 256]] {
        assert!(
            matches!(b.file(ROOT, name, meta(0o644), 0), Err(Error::Name { .. })),
            "{}",
            name.escape_ascii()
        );
    }
    assert!(matches!(b.file(file, b"below a file", meta(0o644), 0), Err(Error::Handle)));
    assert!(matches!(b.hard_link(ROOT, b"root", ROOT), Err(Error::Handle)));
    assert!(matches!(b.symlink(ROOT, b"s", b"", meta(0o777)), Err(Error::SymlinkTarget { length: 0 })));
    assert!(matches!(
        b.symlink(ROOT, b"s", &[b's'; 4096], meta(0o777)),
        Err(Error::SymlinkTarget { length: 4096 })
    ));
    let device = Special::Character { major: 4096, minor: 0 };
    assert!(matches!(b.special(ROOT, b"c", meta(0o600), device), Err(Error::Device { major: 4096, .. })));
    assert!(matches!(b.file(ROOT, b"f", meta(0o644), 1 << 45), Err(Error::FileTooLarge { .. })));
    for segments in [&[(0, 0)][..], &[(5, 1), (5, 1)], &[(10, 1)]] {
        assert!(matches!(
            b.sparse_file(ROOT, b"f", meta(0o644), 40_000, segments),
            Err(Error::FileTooLarge { .. })
        ));
    }
    assert!(matches!(b.set_xattr(file, b"unknown.name", b""), Err(Error::Attribute { .. })));
    b.file(ROOT, b"file", meta(0o644), 0).unwrap();
    assert!(matches!(b.seal(), Err(Error::DuplicateName { name }) if name == b"file"));
}

#[test]
fn a_failing_sink_is_reported() {
    let layout = builder().seal().unwrap();
    let error =
        layout.write_metadata(&mut |_, _| Err(io::Error::from(io::ErrorKind::StorageFull))).unwrap_err();
    assert!(matches!(error, Error::Write(e) if e.kind() == io::ErrorKind::StorageFull));
}

/// What a generated tree declares.
#[derive(Debug, Clone)]
enum Gen {
    File(u64),
    Sparse(Vec<(u32, u32)>),
    Symlink(usize),
    Link,
    Special(u32, u32),
    Dir(Vec<(Vec<u8>, Gen, Vec<u8>)>),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>().prop_map(|b| if b == 0 || b == b'/' { b'_' } else { b }), 1..=255)
        .prop_map(|name| if name.iter().all(|&b| b == b'.') { b"dots".to_vec() } else { name })
}

fn tree() -> impl Strategy<Value = Gen> {
    let leaf = prop_oneof![
        4 => (0u64..100_000).prop_map(Gen::File),
        1 => Just(Gen::File(32_768 * 4096 + 5)),
        1 => prop::collection::vec((1u32..50, 1u32..9), 1..40).prop_map(Gen::Sparse),
        1 => (1usize..300).prop_map(Gen::Symlink),
        1 => Just(Gen::Link),
        1 => (0u32..4096, 0u32..0x10_0000).prop_map(|(major, minor)| Gen::Special(major, minor)),
    ];
    leaf.prop_recursive(4, 120, 40, |inner| {
        let attribute = prop::collection::vec(any::<u8>(), 0..200);
        prop::collection::vec((name(), inner, attribute), 0..40).prop_map(Gen::Dir)
    })
}

fn declare(b: &mut Builder, parent: Inode, entries: &[(Vec<u8>, Gen, Vec<u8>)], last: &mut Option<Inode>) {
    let mut used = BTreeSet::new();
    for (name, node, attribute) in entries {
        if !used.insert(name.clone()) {
            continue;
        }
        let inode = match node {
            Gen::File(size) => b.file(parent, name, meta(0o644), *size).unwrap(),
            Gen::Sparse(pieces) => {
                let mut end = 0;
                let segments: Vec<_> = pieces
                    .iter()
                    .map(|&(gap, count)| {
                        let first = end + gap;
                        end = first + count;
                        (first, count)
                    })
                    .collect();
                b.sparse_file(parent, name, meta(0o600), u64::from(end) * 4096 + 77, &segments).unwrap()
            }
            Gen::Symlink(length) => b.symlink(parent, name, &vec![b't'; *length], meta(0o777)).unwrap(),
            Gen::Link => {
                if let Some(last) = *last {
                    b.hard_link(parent, name, last).unwrap();
                }
                continue;
            }
            Gen::Special(major, minor) => {
                b.special(parent, name, meta(0o600), Special::Block { major: *major, minor: *minor }).unwrap()
            }
            Gen::Dir(entries) => {
                let dir = b.directory(parent, name, meta(0o755)).unwrap();
                declare(b, dir, entries, last);
                b.set_xattr(dir, b"trusted.generated", attribute).unwrap();
                continue;
            }
        };
        b.set_xattr(inode, b"trusted.generated", attribute).unwrap();
        *last = Some(inode);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn generated_trees_are_clean_and_repeatable(entries in prop::collection::vec((name(), tree(), prop::collection::vec(any::<u8>(), 0..200)), 0..60)) {
        let build = || {
            let mut b = builder();
            declare(&mut b, ROOT, &entries, &mut None);
            b.seal().unwrap()
        };
        let layout = build();
        Image::write(&layout, &[]).assert_clean();
        let bytes = |layout: &Layout| {
            let mut all = Vec::new();
            layout.write_metadata(&mut |offset, bytes| { all.push((offset, bytes.to_vec())); Ok(()) }).unwrap();
            all
        };
        prop_assert!(bytes(&layout) == bytes(&build()));
    }
}
