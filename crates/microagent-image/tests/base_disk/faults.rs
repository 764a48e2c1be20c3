//! Layers that are broken, hostile or too large, and a host that fails: one clear error each, and nothing
//! left behind ([`Place::build_with`] checks that every time).

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use microagent_image::rootfs::{self, Compression, Damage, LayerFile, Limits, Rootfs, RootfsError};

use crate::archive::{Header, Tar, gzip};
use crate::{Place, assert_clean, is_root, run, tool};

fn small() -> Vec<u8> {
    Tar::new().entry(b'5', "dir/", "").file("dir/file", &[b'x'; 3000]).file("after", b"after").end()
}

#[track_caller]
fn damage(result: Result<rootfs::DiskStats, RootfsError>) -> (usize, Damage) {
    match result {
        Err(RootfsError::Damaged { layer, source }) => (layer, source),
        other => panic!("expected a damaged layer, got {other:?}"),
    }
}

#[test]
fn an_archive_that_ends_early() {
    let tar = small();
    let data = 2 * 512 + 100;
    for cut in [100, 512 + 10, data, data + 2950] {
        let found = Place::new().build_tars(&[small(), tar[..cut].to_vec()]);
        let is_truncated = |source: &Damage| matches!(source, Damage::Truncated { .. });
        assert!(
            matches!(&found, Err(RootfsError::Damaged { layer: 1, source }) if is_truncated(source)),
            "cut at {cut}: {found:?}"
        );
    }
    // All padding may be missing at the end: `umoci insert` writes such layers.
    Place::new().build_tars(&[tar[..data + 2900].to_vec()]).unwrap();
    // Between two members nothing tells an end from a cut but the digest.
    let place = Place::new();
    let mut layers = place.layers(&[tar[..512].to_vec()]);
    layers[0].diff_id = Some(format!("sha256:{}", "0".repeat(64)));
    assert!(matches!(damage(place.build(&layers)), (0, Damage::DiffId { .. })));
}

#[test]
fn compressed_streams_that_end_early_or_have_a_flipped_bit() {
    let zstd = zstd::encode_all(&small()[..], 3).unwrap();
    for blob in [gzip(&small()), zstd] {
        Place::new().build_tars(std::slice::from_ref(&blob)).unwrap();
        for cut in [5, blob.len() / 2, blob.len() - 1] {
            let found = damage(Place::new().build_tars(&[small(), blob[..cut].to_vec()]));
            assert!(matches!(found, (1, Damage::Decompress(_))), "cut at {cut}: {found:?}");
        }
    }
    let mut blob = gzip(&small());
    let middle = blob.len() / 2;
    blob[middle] ^= 0x10;
    let (_, found) = damage(Place::new().build_tars(&[blob]));
    assert!(matches!(found, Damage::Decompress(_) | Damage::Tar { .. }), "{found:?}");
}

#[test]
fn a_layer_that_is_another_one() {
    let place = Place::new();
    let mut layers = place.layers(&[small(), gzip(&small())]);
    let right = "sha256:24a4a1e7a1e4f0b6ef8b9e8dd0c65f7bbf2ef9e3dca1d9eb58b0b6c1f6a5d0a0";
    layers[1].diff_id = Some(right.into());
    let (layer, found) = damage(place.build(&layers));
    let Damage::DiffId { expected, found } = found else { panic!("{found:?}") };
    assert_eq!((layer, expected.as_str()), (1, right));
    layers[1].diff_id = Some(found);
    place.build(&layers).unwrap();
}

#[test]
fn names_that_climb_out() {
    for (kind, name, link) in [
        (b'0', "../evil", ""),
        (b'0', "dir/../../evil", ""),
        (b'5', "/..", ""),
        (b'2', "./dir/./../../link", "target"),
        (b'1', "link", "../../etc/passwd"),
        (b'1', "link", "dir/../../outside"),
        (b'0', "dir/.wh...", ""),
        (b'0', ".wh..", ""),
        (b'0', ".wh.", ""),
    ] {
        let hostile = Tar::new().entry(b'5', "dir/", "").entry(kind, name, link).end();
        let result = Place::new().build_tars(&[small(), hostile]);
        let Err(RootfsError::Escape { layer: 1, name: told }) = result else {
            panic!("{name} {link}: {result:?}")
        };
        assert_eq!(told, name);
    }
}

#[test]
fn symlinks_lead_nowhere_outside() {
    let place = Place::new();
    let trap = Tar::new()
        .entry(b'2', "absolute", "/etc")
        .file("absolute/microagent-trap", b"inside")
        .entry(b'2', "climbing", "../../../../../../../../tmp")
        .file("climbing/microagent-trap", b"inside too")
        .entry(b'1', "linked", "climbing/microagent-trap")
        .end();
    place.build_tars(&[trap]).unwrap();
    assert_clean(&place.path("disk"));
    assert!(!std::path::Path::new("/etc/microagent-trap").exists());
    assert!(!std::path::Path::new("/tmp/microagent-trap").exists());
    for (path, content) in [
        ("/etc/microagent-trap", "inside"),
        ("/tmp/microagent-trap", "inside too"),
        ("/linked", "inside too"),
    ] {
        let read =
            run(Command::new(tool("debugfs")).args(["-R", &format!("cat {path}")]).arg(place.path("disk")));
        assert!(read.starts_with(content), "{path}: {read}");
    }
    // A hard link cannot name what is only outside.
    let steal = Tar::new().entry(b'2', "up", "/../../../..").entry(b'1', "stolen", "up/etc/hostname").end();
    assert!(matches!(damage(Place::new().build_tars(&[steal])), (0, Damage::Entry { .. })));
    let circle = Tar::new().entry(b'2', "a", "b").entry(b'2', "b", "a").file("a/file", b"").end();
    assert!(matches!(damage(Place::new().build_tars(&[circle])), (0, Damage::Entry { .. })));
}

#[test]
fn entries_that_make_no_sense() {
    for (what, tar) in [
        ("a file as root", Tar::new().file("./", b"")),
        ("a hard link to nothing", Tar::new().entry(b'1', "link", "nothing")),
        ("a hard link to a directory", Tar::new().entry(b'5', "dir", "").entry(b'1', "link", "dir")),
        ("a file below a file", Tar::new().file("file", b"").file("file/below", b"")),
        ("a symlink to nothing", Tar::new().entry(b'2', "link", "")),
        ("an unknown type", Tar::new().entry(b'q', "name", "")),
        ("data behind the end", Tar { bytes: [vec![0; 512], Tar::new().file("a", b"").end()].concat() }),
        (
            "a bad pax record",
            Tar::new().header(&Header { kind: b'x', name: b"x", link: b"", size: 3 }).data(b"9 a"),
        ),
        ("an owner too large", Tar::new().pax("uid=4294967296").file("a", b"")),
        ("a map behind the file", Tar::new().pax("GNU.sparse.map=0,9").file("a", b"123456789")),
        ("a name too long", Tar::new().pax(&format!("path={}", "n".repeat(256))).file("a", b"")),
    ] {
        let result = Place::new().build_tars(&[tar.end()]);
        assert!(matches!(result, Err(RootfsError::Damaged { layer: 0, .. })), "{what}: {result:?}");
    }
}

#[test]
fn what_exceeds_a_limit() {
    let default = Limits::default();
    let many = (0..100).fold(Tar::new(), |tar, i| tar.file(&format!("{i}"), b"")).end();
    let wide = Tar::new().pax(&format!("path={}", "n/".repeat(3000))).file("a", b"").end();
    let attributes =
        Tar::new().pax(&format!("SCHILY.xattr.user.a={}", "v".repeat(5000))).file("a", b"").end();
    let header = Tar::new().header(&Header { kind: b'x', name: b"x", link: b"", size: 1 << 30 }).end();
    let hole = Tar::new().pax("GNU.sparse.major=1");
    let hole = hole.pax("GNU.sparse.size=9223372036854775807").file("a", b"").end();
    for (what, tar, limits) in [
        ("entries", &many, Limits { max_entries: 99, ..default }),
        ("metadata", &many, Limits { max_metadata_bytes: 100, ..default }),
        ("bytes", &many, Limits { max_unpacked_bytes: 50_000, ..default }),
        ("a path", &wide, default),
        ("an extended header", &header, default),
        ("a hole", &hole, default),
    ] {
        let place = Place::new();
        let result = place.build_with(&place.layers(std::slice::from_ref(tar)), &limits, &|| false);
        assert!(matches!(result, Err(RootfsError::Limit { layer: 0, .. })), "{what}: {result:?}");
    }
    // All layers count together.
    let place = Place::new();
    let layers = place.layers(&[many.clone(), many.clone()]);
    let limits = Limits { max_entries: 199, ..default };
    assert!(matches!(place.build_with(&layers, &limits, &|| false), Err(RootfsError::Limit { .. })));
    let result = Place::new().build_tars(&[attributes]);
    assert!(matches!(&result, Err(RootfsError::Unfit { name, .. }) if name == "/a"), "{result:?}");
}

/// A gigabyte of zeros in one megabyte: refused at the limit, and without a limit no more than zeros.
#[test]
fn a_bomb_is_bounded() {
    use std::io::Write;
    let size = 1u64 << 30;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all(&Tar::new().header(&Header { kind: b'0', name: b"bomb", link: b"", size }).bytes)
        .unwrap();
    for _ in 0..size >> 20 {
        encoder.write_all(&[0; 1 << 20]).unwrap();
    }
    encoder.write_all(&[0; 1024]).unwrap();
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 10 << 20);

    let place = Place::new();
    let layers = place.layers(&[bomb]);
    let limits = Limits { max_unpacked_bytes: 64 << 20, ..Limits::default() };
    let result = place.build_with(&layers, &limits, &|| false);
    assert!(matches!(result, Err(RootfsError::Limit { .. })), "{result:?}");

    use std::os::unix::fs::MetadataExt;
    let stats = place.build(&layers).unwrap();
    assert_eq!(stats.content_bytes, size);
    assert!(std::fs::metadata(place.path("disk")).unwrap().blocks() * 512 < 8 << 20, "zeros take space");
}

/// Paths that cost much to follow are given up, not followed for hours.
#[test]
fn long_ways_end() {
    let long = "d/".repeat(40);
    let mut tar = Tar::new().entry(b'5', &long, "");
    tar = tar.pax(&format!("linkpath={}", "d/../".repeat(800))).entry(b'2', "0", "x");
    for i in 1..40 {
        tar = tar.pax(&format!("linkpath={}{}", "d/../".repeat(800), i - 1)).entry(b'2', &i.to_string(), "x");
    }
    let entry = Tar::new().file("39/x", b"").bytes;
    for _ in 0..6_000 {
        tar.bytes.extend_from_slice(&entry);
    }
    let result = Place::new().build_tars(&[tar.end()]);
    assert!(matches!(result, Err(RootfsError::Limit { .. })), "{result:?}");
}

#[test]
fn cancelling_at_any_moment() {
    let data: Vec<u8> = (0..3 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let tar = gzip(&Tar::new().file("file", &data).end());
    let calls = AtomicU64::new(0);
    let place = Place::new();
    let layers = place.layers(&[tar.clone(), tar]);
    place
        .build_with(&layers, &Limits::default(), &|| calls.fetch_add(1, Ordering::Relaxed) > u64::MAX / 2)
        .unwrap();
    let all = calls.into_inner();
    assert!(all > 20, "asked {all} times only");
    for at in [0, 1, 2, all / 4, all / 2, all - 1] {
        std::fs::remove_file(place.path("disk")).unwrap_or_default();
        let calls = AtomicU64::new(0);
        let result =
            place.build_with(&layers, &Limits::default(), &|| calls.fetch_add(1, Ordering::Relaxed) >= at);
        assert!(matches!(result, Err(RootfsError::Cancelled)), "at call {at} of {all}: {result:?}");
    }
}

#[test]
fn progress_counts_what_is_read() {
    let place = Place::new();
    let layers = place.layers(&[small(), gzip(&small())]);
    let total: u64 = layers.iter().map(|layer| layer.path.metadata().unwrap().len()).sum();
    let most = AtomicU64::new(0);
    let progress = |bytes| {
        most.fetch_max(bytes, Ordering::Relaxed);
    };
    let (out, scratch) = (place.path("disk"), place.path("scratch"));
    rootfs::build(
        &Rootfs { layers: &layers, volumes: &[] },
        &out,
        &scratch,
        &Limits::default(),
        &progress,
        &|| false,
    )
    .unwrap();
    assert_eq!(most.into_inner(), total);
}

#[test]
fn a_host_that_fails() {
    let place = Place::new();
    let missing = LayerFile { path: place.path("nothing"), compression: Compression::Gzip, diff_id: None };
    let result = place.build(&[missing]);
    assert!(matches!(&result, Err(error @ RootfsError::Host { .. }) if !error.is_disk_full()), "{result:?}");
    let directory = LayerFile { path: place.path("scratch"), compression: Compression::None, diff_id: None };
    assert!(matches!(place.build(&[directory]), Err(RootfsError::Host { .. })));

    // A disk that exists already is not overwritten, and not removed.
    std::fs::write(place.path("disk"), "precious").unwrap();
    let (out, scratch) = (place.path("disk"), place.path("scratch"));
    let layers = place.layers(&[small()]);
    let result = rootfs::build(
        &Rootfs { layers: &layers, volumes: &[] },
        &out,
        &scratch,
        &Limits::default(),
        &|_| {},
        &|| false,
    );
    assert!(matches!(result, Err(RootfsError::Host { .. })), "{result:?}");
    assert_eq!(std::fs::read(out).unwrap(), b"precious");
}

/// A tmpfs, as long as this lives.
struct Tmpfs(std::path::PathBuf);

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk() {
    if !is_root("mounting a small file system") {
        return;
    }
    let data: Vec<u8> = (0..6 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let tar = Tar::new().file("file", &data).end();
    let place = Place::new();
    let small = Tmpfs(place.path("small"));
    std::fs::create_dir(&small.0).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&small.0));
    let layers = place.layers(&[tar]);
    for (out, scratch) in
        [(small.0.join("disk"), place.path("scratch")), (place.path("disk"), small.0.clone())]
    {
        let result = rootfs::build(
            &Rootfs { layers: &layers, volumes: &[] },
            &out,
            &scratch,
            &Limits::default(),
            &|_| {},
            &|| false,
        );
        let error = result.unwrap_err();
        assert!(error.is_disk_full(), "{error:?}");
        assert!(!out.exists());
        assert_eq!(std::fs::read_dir(&small.0).unwrap().count(), 0);
    }
}

#[test]
fn the_same_layers_give_the_same_bytes() {
    let (first, second) = (Place::new(), Place::new());
    let tars = [small(), Tar::new().file("dir/.wh.file", b"").file("new", b"new").end()];
    first.build_tars(&tars).unwrap();
    // Compression does not count.
    second.build_tars(&[gzip(&tars[0]), zstd::encode_all(&tars[1][..], 3).unwrap()]).unwrap();
    let read = |place: &Place| std::fs::read(place.path("disk")).unwrap();
    assert!(read(&first) == read(&second), "the disks differ");
    let third = Place::new();
    third.build_tars(&tars[..1]).unwrap();
    assert!(read(&first)[1024..2048] != read(&third)[1024..2048], "other layers have another UUID");
}

#[test]
fn no_layers_are_an_empty_disk() {
    let place = Place::new();
    let stats = place.build(&[]).unwrap();
    assert_eq!(stats.content_bytes, 0);
    assert_clean(&place.path("disk"));
}
