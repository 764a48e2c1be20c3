//! Bundles: one archive of a user's as a disk, and what it may cost.

use std::path::Path;
use std::process::Command;

use microagent_image::bundle::{self, BUNDLE_LIMITS, BundleError};
use microagent_image::rootfs::{DiskStats, Limits};

use crate::archive::{Tar, gzip};
use crate::{Place, assert_clean, run, tool};

fn build(place: &Place, archive: &[u8], limits: &Limits) -> Result<DiskStats, BundleError> {
    let (tar, scratch) = (place.path("files.tar"), place.path("scratch"));
    std::fs::write(&tar, archive).unwrap();
    let result = bundle::build(&tar, &place.path("disk"), &scratch, limits, &|| false);
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "temporary files stay");
    assert_eq!(place.path("disk").exists(), result.is_ok(), "a failed build leaves no disk");
    result
}

#[track_caller]
fn limit(archive: &[u8], limits: &Limits) -> String {
    match build(&Place::new(), archive, limits) {
        Err(BundleError::Limit { limit, path }) => {
            assert_eq!(path.file_name(), Some("files.tar".as_ref()));
            limit
        }
        other => panic!("expected a limit, got {other:?}"),
    }
}

fn debugfs(disk: &Path, request: &str) -> String {
    run(Command::new(tool("debugfs")).args(["-R", request]).arg(disk))
}

#[test]
fn every_name_is_only_a_name() {
    let place = Place::new();
    let archive = Tar::new().file(".wh.a", b"one").file("a", b"two").file("dir/.wh..wh..opq", b"three").end();
    build(&place, &gzip(&archive), &BUNDLE_LIMITS).unwrap();
    assert_clean(&place.path("disk"));
    for (name, content) in [("/.wh.a", "one"), ("/a", "two"), ("/dir/.wh..wh..opq", "three")] {
        assert!(debugfs(&place.path("disk"), &format!("cat {name}")).starts_with(content), "{name}");
    }
}

#[test]
fn a_bomb_is_refused_at_its_bound() {
    // Many entries, small where it is packed.
    let mut many = Tar::new();
    for number in 0..2000 {
        many = many.file(&format!("f{number}"), b"");
    }
    let limits = Limits { max_entries: 1000, ..BUNDLE_LIMITS };
    assert!(limit(&gzip(&many.end()), &limits).contains("1000"));
    // Zeros, which are held nowhere and count all the same.
    let zeros = Tar::new().file("zeros", &vec![0; 8 << 20]).end();
    let limits = Limits { max_unpacked_bytes: 4 << 20, ..BUNDLE_LIMITS };
    assert!(limit(&gzip(&zeros), &limits).contains("4194304 bytes"));
    // Several files, each of which would be small enough.
    let parts = (0..4).fold(Tar::new(), |tar, number| tar.file(&format!("f{number}"), &vec![0; 2 << 20]));
    assert!(limit(&gzip(&parts.end()), &limits).contains("4194304 bytes"));
    // Long names, which are held in memory.
    let name = "n".repeat(90);
    let long = (0..50).fold(Tar::new(), |tar, number| tar.file(&format!("{name}/{number}"), b""));
    let limits = Limits { max_metadata_bytes: 4096, ..BUNDLE_LIMITS };
    limit(&gzip(&long.end()), &limits);
}

#[test]
fn no_directory_lies_deeper_than_a_path_can_say() {
    // Each link leads to the end of the last stretch, so that no single name is long.
    let mut archive = Tar::new();
    let stretch = vec!["d"; 40].join("/");
    let mut at = String::new();
    for number in 0..60 {
        archive = archive.file(&format!("{at}{stretch}/file"), b"x");
        let link = format!("link{number}");
        archive = archive.entry(b'2', &link, &format!("{at}{stretch}"));
        at = format!("{link}/");
    }
    let deep = build(&Place::new(), &gzip(&archive.end()), &BUNDLE_LIMITS);
    match deep {
        Err(BundleError::Damaged { source, .. }) => {
            let source = source.to_string();
            assert!(
                source.contains("deeper than any path") || source.contains("too many symlinks"),
                "{source}"
            );
        }
        other => panic!("{other:?}"),
    }
    let shallow = Tar::new().file(&format!("{}/file", vec!["d"; 45].join("/")), b"x").end();
    build(&Place::new(), &shallow, &BUNDLE_LIMITS).unwrap();
}

#[test]
fn a_pipe_or_a_directory_is_no_bundle() {
    let place = Place::new();
    for (what, tar) in [("a directory", place.path("scratch")), ("a device", "/dev/zero".into())] {
        let (out, scratch) = (place.path("disk"), place.path("scratch"));
        let result = bundle::build(&tar, &out, &scratch, &BUNDLE_LIMITS, &|| false);
        assert!(matches!(result, Err(BundleError::Read { .. })), "{what}");
    }
    let cancelled = {
        let tar = place.path("files.tar");
        std::fs::write(&tar, Tar::new().file("a", b"x").end()).unwrap();
        bundle::build(&tar, &place.path("disk"), &place.path("scratch"), &BUNDLE_LIMITS, &|| true)
    };
    assert!(matches!(cancelled, Err(BundleError::Cancelled)));
}
