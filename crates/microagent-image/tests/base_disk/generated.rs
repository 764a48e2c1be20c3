//! Generated archives: whatever their bytes, building a disk never panics, and what it builds is clean.
//! Where root runs the tests, generated layers are also held against umoci.

use proptest::prelude::*;

use crate::archive::{Header, Tar};
use crate::compare;
use crate::oracle::{self, Mounted};
use crate::{Place, assert_clean, is_root};

/// Few names, so that entries meet: directories mostly `a` to `c`, files mostly `f` and `g`, or few layers
/// would make sense.
fn path(last: &'static [&'static str]) -> impl Strategy<Value = String> {
    let parents =
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "a", "b", "c", ".", "f"]), 0..3);
    (parents, prop::sample::select(last)).prop_map(|(mut parts, last)| {
        parts.push(last);
        parts.join("/")
    })
}

fn entry() -> impl Strategy<Value = (u8, String, String)> {
    let target = || {
        let path = || path(&["a", "b", "c", "f", "g"]);
        prop_oneof![
            path(),
            path().prop_map(|path| format!("/{path}")),
            path().prop_map(|path| format!("../{path}"))
        ]
    };
    let files: &[&str] = &["f", "f", "g", "g", "f", "g", "a", ".wh.a", ".wh.f", ".wh.b", ".wh..wh..opq"];
    prop_oneof![
        8 => (Just(b'0'), path(files), Just(String::new())),
        6 => (Just(b'5'), path(&["a", "b", "c", "a", "b", "c", "f", "."]), Just(String::new())),
        2 => (Just(b'2'), path(&["a", "b", "f", "g"]), target()),
        1 => (Just(b'1'), path(&["f", "g", "h"]), path(&["f", "g"])),
    ]
}

fn layers() -> impl Strategy<Value = Vec<Vec<(u8, String, String)>>> {
    prop::collection::vec(prop::collection::vec(entry(), 0..12), 1..4)
}

fn archive(entries: &[(u8, String, String)]) -> Vec<u8> {
    // Named roots have the same time everywhere.
    let mut tar = Tar::new().entry(b'5', "./", "");
    for (i, (kind, name, target)) in entries.iter().enumerate() {
        tar = match kind {
            b'0' => tar.file(name, format!("{i} {name}").as_bytes()),
            b'5' => tar.entry(b'5', name, ""),
            kind => tar.entry(*kind, name, target),
        };
    }
    tar.end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_refused_or_empty(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let place = Place::new();
        if place.build_tars(&[bytes]).is_ok() {
            assert_clean(&place.path("disk"));
        }
    }

    #[test]
    fn mutated_archives_are_refused_or_clean(
        entries in prop::collection::vec(entry(), 1..8),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        repair in any::<bool>(),
    ) {
        let mut bytes = archive(&entries);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if repair {
            // Checksums that are right again let changes of other fields through.
            for unit in bytes.chunks_exact_mut(512).filter(|unit| unit[257..262] == *b"ustar") {
                unit[148..156].fill(b' ');
                let sum: u32 = unit.iter().map(|&b| u32::from(b)).sum();
                unit[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
        let place = Place::new();
        if place.build_tars(&[bytes]).is_ok() {
            assert_clean(&place.path("disk"));
        }
    }

    #[test]
    fn extended_headers_are_refused_or_clean(
        records in prop::collection::vec((prop::sample::select(vec![
            "path", "linkpath", "size", "uid", "gid", "mtime", "SCHILY.xattr.user.a", "LIBARCHIVE.xattr.user.b",
            "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.realsize",
            "GNU.sparse.name", "GNU.sparse.offset", "GNU.sparse.numbytes", "SCHILY.xattr.system.posix_acl_access",
        ]), prop_oneof![
            "[0-9]{1,3}", "[0-9]{1,22}", "(0|5),(1|512|4096)(,5000,7)?", "-?[0-9]{0,12}(\\.[0-9]{0,10})?", "[a-z/.]{0,20}",
        ]), 1..6),
        kind in prop::sample::select(vec![b'0', b'S', b'1', b'2', b'5', b'L', b'g', b'D']),
        data in prop::collection::vec(prop_oneof![Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..1500),
    ) {
        let mut pax = Vec::new();
        for (key, value) in &records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            pax.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
        }
        let tar = Tar::new()
            .file("target", b"content")
            .header(&Header { kind: b'x', name: b"pax", link: b"", size: pax.len() as u64 })
            .data(&pax)
            .header(&Header { kind, name: b"name", link: b"target", size: data.len() as u64 })
            .data(&data)
            .file("after", b"after");
        let place = Place::new();
        if place.build_tars(&[tar.end()]).is_ok() {
            assert_clean(&place.path("disk"));
        }
    }
}

#[test]
fn generated_layers_are_what_umoci_unpacks() {
    if !is_root("unpacking and mounting images") {
        return;
    }
    let config = ProptestConfig { cases: 60, max_shrink_iters: 100, ..ProptestConfig::default() };
    let same = std::cell::Cell::new(0);
    proptest::test_runner::TestRunner::new(config)
        .run(&layers(), |layers| {
            let place = Place::new();
            let files = place.layers(&layers.iter().map(|layer| archive(layer)).collect::<Vec<_>>());
            let ours = place.build(&files);
            let theirs = oracle::unpack(&files, &place.path("bundle"));
            // umoci removes what a link replaces before it looks for the target, which may be the same. GNU tar
            // writes such links when it is given a name twice, so we take them.
            if ours.is_ok() && matches!(&theirs, Err(told) if told.contains("link: no such file")) {
                return Ok(());
            }
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "ours {:?}, umoci {:?}", ours, theirs);
            let Ok(root) = theirs else { return Ok(()) };
            assert_clean(&place.path("disk"));
            let mounted = Mounted::new(&place.path("disk"), place.path("mounted"));
            let mut differences = compare::differences(&compare::read(&root), &compare::read(&mounted.root));
            // Times of directories that were touched are those of umoci's clock.
            differences.retain(|[_, fact, ..]| fact != "mtime");
            prop_assert!(differences.is_empty(), "{:?}", differences);
            same.set(same.get() + 1);
            Ok(())
        })
        .unwrap();
    assert!(same.get() >= 8, "only {} of 60 images could be compared", same.get());
}
