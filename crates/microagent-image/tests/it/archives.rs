//! Layouts, archives and imports.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::process::Command;

use microagent_image::{ConfigChanges, Digest, Image, ImageError, ImportSource, Origin, PullPolicy};
use tokio_util::sync::CancellationToken;

use crate::support::layout::{Layer, Layout, tar};
use crate::support::{Events, Home, assert_clean_disk, read_from_disk, text};

fn skopeo(source: &str, destination: &str) {
    let mut command = Command::new("skopeo");
    let output =
        command.args(["--insecure-policy", "copy", "--quiet", source, destination]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_layout_is_unpacked_once_and_a_change_is_noticed() {
    let home = Home::new();
    let mut layout = Layout::simple(&home.path("layout"), "one");
    let reference = layout.reference("latest");
    let error = home.ensure(&reference, PullPolicy::Never).await.unwrap_err();
    assert!(matches!(error, ImageError::NotCached { .. }), "{error:?}");

    let one = home.pull(&reference).await.unwrap();
    assert_eq!(one.origin, Origin::OciLayout);
    assert_clean_disk(&one.disk);
    assert_eq!(read_from_disk(&one.disk, "/etc/content"), "one");
    for policy in [PullPolicy::Missing, PullPolicy::Never, PullPolicy::Always] {
        assert_eq!(home.ensure(&reference, policy).await.unwrap().origin, Origin::Cache);
    }
    // Without a tag the only image is meant.
    let bare = reference.trim_end_matches(":latest");
    assert_eq!(home.pull(bare).await.unwrap().digest, one.digest);

    layout.tag("latest", layout.image("linux/amd64", &[Layer::plain(&[("etc/content", b"two")])]));
    let two = home.pull(&reference).await.unwrap();
    assert_eq!(two.origin, Origin::OciLayout);
    assert_eq!(read_from_disk(&two.disk, "/etc/content"), "two");
}

#[tokio::test]
async fn several_images_need_a_name() {
    let home = Home::new();
    let mut layout = Layout::simple(&home.path("layout"), "one");
    layout.tag("v2", layout.image("linux/amd64", &[Layer::plain(&[("two", b"2")])]));
    let bare = layout.reference("x").replace(":x", "");
    let error = home.pull(&bare).await.unwrap_err();
    assert!(text(&error).contains("several images: latest, v2"), "{}", text(&error));
    let error = home.pull(&layout.reference("v3")).await.unwrap_err();
    assert!(text(&error).contains("no image `v3`; there is latest, v2"), "{}", text(&error));
    assert!(matches!(&error, ImageError::Archive { source, .. } if source.is_not_found()), "{error:?}");
    home.pull(&layout.reference("v2")).await.unwrap();

    let archive = home.path("both.tar");
    let packed =
        Command::new("tar").arg("-C").arg(home.path("layout")).arg("-cf").arg(&archive).arg(".").status();
    assert!(packed.unwrap().success());
    let named = |tag: &str| format!("oci-archive:{}{tag}", archive.display());
    assert!(text(&home.pull(&named("")).await.unwrap_err()).contains("several images"));
    // Without its format a path is no reference, whether or not the name of an image could be written so.
    for path in [archive.display().to_string(), home.path("layout").display().to_string()] {
        let error = home.pull(&path).await.unwrap_err();
        assert!(matches!(error, ImageError::IsAFile { .. }), "{error:?}");
        assert!(error.hint().unwrap().to_string().contains("oci-archive:"));
    }
    let image = home.pull(&named(":v2")).await.unwrap();
    assert_eq!(image.origin, Origin::Cache, "the same image as in the layout");
}

#[tokio::test]
async fn archives_give_the_same_disk_as_the_layout() {
    let home = Home::new();
    let layout = Layout::simple(&home.path("layout"), "content");
    let (oci, docker) = (home.path("oci.tar"), home.path("docker.tar"));
    skopeo(&layout.reference("latest"), &format!("oci-archive:{}:v1", oci.display()));
    skopeo(&layout.reference("latest"), &format!("docker-archive:{}:team/app:v1", docker.display()));

    let image = home.pull(&format!("oci-archive:{}", oci.display())).await.unwrap();
    assert_eq!(image.origin, Origin::OciArchive);
    assert_eq!(read_from_disk(&image.disk, "/etc/content"), "content");

    let named = |name: &str| format!("docker-archive:{}{name}", docker.display());
    let other = home.pull(&named("")).await.unwrap();
    assert_eq!(other.origin, Origin::DockerArchive);
    assert_eq!(other.disk, image.disk, "the same layers make the same disk");
    assert_eq!(other.config, image.config);
    for name in ["", ":team/app:v1", ":docker.io/team/app:v1"] {
        assert_eq!(home.pull(&named(name)).await.unwrap().origin, Origin::Cache, "{name}");
    }
    let error = home.pull(&named(":team/app:v2")).await.unwrap_err();
    assert!(text(&error).contains("no image `team/app:v2`; there is"), "{}", text(&error));
}

#[tokio::test]
async fn archives_that_are_compressed_as_a_whole_are_read() {
    let home = Home::new();
    let layout = Layout::simple(&home.path("layout"), "content");
    let (oci, docker) = (home.path("oci.tar"), home.path("docker.tar"));
    skopeo(&layout.reference("latest"), &format!("oci-archive:{}:v1", oci.display()));
    skopeo(&layout.reference("latest"), &format!("docker-archive:{}:team/app:v1", docker.display()));
    for (transport, file) in [("oci-archive", &oci), ("docker-archive", &docker)] {
        let plain = home.pull(&format!("{transport}:{}", file.display())).await.unwrap();
        let bytes = fs::read(file).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        for (name, bytes) in
            [("gz", gzip.finish().unwrap()), ("zst", zstd::encode_all(&bytes[..], 1).unwrap())]
        {
            let packed = file.with_extension(name);
            fs::write(&packed, &bytes).unwrap();
            let fresh = Home::new();
            let image = fresh.pull(&format!("{transport}:{}", packed.display())).await.unwrap();
            assert_eq!(image.digest, plain.digest, "{transport} {name}");
            assert_eq!(read_from_disk(&image.disk, "/etc/content"), "content");

            fs::write(&packed, &bytes[..bytes.len() / 2]).unwrap();
            let fresh = Home::new();
            let error = fresh.pull(&format!("{transport}:{}", packed.display())).await.unwrap_err();
            assert!(matches!(error, ImageError::Archive { .. }), "{error:?}");
            fresh.assert_no_image();
        }
    }
}

#[tokio::test]
async fn a_docker_archive_with_links_and_compressed_layers() {
    let home = Home::new();
    let layers = [Layer::plain(&[("a", b"1")]), Layer::gzip(&[("b", b"2")])];
    let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.diff_id).collect();
    let config =
        serde_json::json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": diff_ids}});
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": null,
        "Layers": ["id1/layer.tar", "id2/layer.tar"]}]);
    let dir = home.path("archive");
    for id in ["id1", "id2"] {
        fs::create_dir_all(dir.join(id)).unwrap();
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    fs::write(dir.join("sum.tar"), &layers[0].bytes).unwrap();
    std::os::unix::fs::symlink("../sum.tar", dir.join("id1/layer.tar")).unwrap();
    fs::write(dir.join("id2/layer.tar"), &layers[1].bytes).unwrap();
    let pack = |name: &str| {
        let path = home.path(name);
        assert!(
            Command::new("tar")
                .arg("-C")
                .arg(&dir)
                .arg("-cf")
                .arg(&path)
                .arg(".")
                .status()
                .unwrap()
                .success()
        );
        format!("docker-archive:{}", path.display())
    };
    let image = home.pull(&pack("good.tar")).await.unwrap();
    assert_clean_disk(&image.disk);
    assert_eq!(
        (read_from_disk(&image.disk, "/a"), read_from_disk(&image.disk, "/b")),
        ("1".into(), "2".into())
    );

    // A layer that is not what the configuration says.
    let other = Home::new();
    fs::write(dir.join("sum.tar"), &Layer::plain(&[("a", b"9")]).bytes).unwrap();
    let error = other.pull(&pack("bad.tar")).await.unwrap_err();
    assert!(matches!(error, ImageError::WrongDigest { .. }), "{error:?}");
    fs::write(dir.join("sum.tar"), &layers[0].bytes).unwrap();
    fs::write(dir.join("id2/layer.tar"), &Layer::gzip(&[("b", b"9")]).bytes).unwrap();
    let error = other.pull(&pack("bad2.tar")).await.unwrap_err();
    assert!(matches!(error, ImageError::Unpack { .. }), "{error:?}");
    other.assert_no_image();
}

#[tokio::test]
async fn damaged_layouts_and_archives_are_refused() {
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let layer = Layer::gzip(&[("a", &vec![7; 100_000])]);
    let digest = layer.digest();
    layout.tag("latest", layout.image("linux/amd64", std::slice::from_ref(&layer)));
    let archive = home.path("oci.tar");
    skopeo(&layout.reference("latest"), &format!("oci-archive:{}:v1", archive.display()));

    type Is = fn(&ImageError) -> bool;
    let mut garbled = layer.bytes.clone();
    garbled[20] ^= 1;
    let damages: [(&[u8], Is); 3] = [
        (&garbled, |e| matches!(e, ImageError::WrongDigest { .. })),
        (&layer.bytes[1..], |e| matches!(e, ImageError::WrongSize { longer: false, .. })),
        (&[layer.bytes.clone(), vec![0]].concat(), |e| {
            matches!(e, ImageError::WrongSize { longer: true, .. })
        }),
    ];
    for (bytes, is_expected) in damages {
        fs::write(layout.blob_path(&digest), bytes).unwrap();
        let error = home.pull(&layout.reference("latest")).await.unwrap_err();
        assert!(is_expected(&error), "{error:?}");
    }
    fs::remove_file(layout.blob_path(&digest)).unwrap();
    let error = home.pull(&layout.reference("latest")).await.unwrap_err();
    assert!(matches!(error, ImageError::Archive { .. }), "{error:?}");

    let whole = fs::read(&archive).unwrap();
    for length in [0, 100, 512, 700, whole.len() / 2] {
        fs::write(&archive, &whole[..length]).unwrap();
        let error = home.pull(&format!("oci-archive:{}", archive.display())).await.unwrap_err();
        let expected = matches!(error, ImageError::Archive { .. } | ImageError::WrongSize { .. });
        assert!(expected, "{length}: {error:?}");
    }
    home.assert_no_image();
    assert_eq!(home.files("partial"), [""; 0]);
}

#[tokio::test]
async fn what_is_no_image_is_named() {
    let home = Home::new();
    let plain = home.path("plain.tar");
    fs::write(&plain, tar(&[("etc/passwd", b"root")])).unwrap();
    let gzip = home.path("x.tar.bz2");
    fs::write(&gzip, b"BZh91AY&SY").unwrap();
    for (reference, expected) in [
        (format!("oci:{}", home.path("nothing").display()), "No such file"),
        (format!("oci:{}", home.dir.path().display()), "it is not an OCI layout: `oci-layout` is missing"),
        (format!("oci-archive:{}", plain.display()), "it is not an OCI layout: `oci-layout` is missing"),
        (format!("docker-archive:{}", plain.display()), "it is not a `docker save` archive"),
        (format!("docker-archive:{}", gzip.display()), "the archive is compressed with bzip2"),
        (format!("oci-archive:{}", home.dir.path().display()), "it is not an archive"),
    ] {
        let error = home.pull(&reference).await.unwrap_err();
        assert!(text(&error).contains(expected), "{reference}: {}", text(&error));
    }
}

async fn import(home: &Home, source: ImportSource, changes: &ConfigChanges) -> Result<Image, ImageError> {
    home.store.import(source, "my/root:v1", changes, &Events::default(), &CancellationToken::new()).await
}

fn reader(bytes: &[u8]) -> ImportSource {
    ImportSource::Reader(Box::new(Cursor::new(bytes.to_vec())))
}

#[tokio::test]
async fn an_imported_tar_is_an_ordinary_image() {
    let home = Home::new();
    let files: &[(&str, &[u8])] = &[("etc/content", b"imported")];
    let changes = ConfigChanges {
        cmd: Some(vec!["sh".into(), "-c".into(), "true".into()]),
        env: vec!["A=b".into()],
        user: Some("5".into()),
        working_dir: Some("/etc".into()),
        volumes: vec!["/var/lib/data".into()],
        ..ConfigChanges::default()
    };
    let image = import(&home, reader(&tar(files)), &changes).await.unwrap();
    assert_eq!(image.origin, Origin::Import);
    assert_eq!(image.resolved_reference, "docker.io/my/root:v1");
    assert_eq!(image.config.cmd, ["sh", "-c", "true"]);
    assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("5", "/etc"));
    assert_clean_disk(&image.disk);
    assert_eq!(read_from_disk(&image.disk, "/etc/content"), "imported");
    let listing =
        Command::new("debugfs").args(["-R", "stat /var/lib/data"]).arg(&image.disk).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    assert!(listing.contains("Type: directory") && listing.contains("Mode:  0755"), "{listing}");
    assert_eq!(home.pull("my/root:v1").await.unwrap().digest, image.digest);

    // The same input gives the same digest, in another store and from a file.
    let (other, path) = (Home::new(), home.path("root.tar"));
    fs::write(&path, tar(files)).unwrap();
    let again = import(&other, ImportSource::Path(path), &changes).await.unwrap();
    assert_eq!(again.digest, image.digest);
    // Compressed it is another layer with the same content.
    for layer in [Layer::gzip(files), Layer::zstd(files)] {
        let packed = import(&home, reader(&layer.bytes), &changes).await.unwrap();
        assert_ne!(packed.digest, image.digest);
        assert_eq!(packed.disk, image.disk);
    }
    assert_eq!(home.files("partial"), [""; 0]);
    assert_eq!(home.store.list().unwrap().images.len(), 1);
}

/// Fails in the middle.
struct Failing(usize);

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(1).ok_or_else(|| std::io::Error::other("the pipe broke"))?;
        buffer.fill(0);
        Ok(buffer.len())
    }
}

#[tokio::test]
async fn a_stop_signal_that_is_none_is_refused() {
    for (signal, good) in
        [("SIGINT", true), ("SIGRTMIN+3", true), ("9", true), ("BOGUS", false), ("99", false)]
    {
        let changes = ConfigChanges { stop_signal: Some(signal.into()), ..ConfigChanges::default() };
        match import(&Home::new(), reader(&tar(&[("a", b"")])), &changes).await {
            Ok(_) => assert!(good, "{signal}"),
            Err(error) => {
                assert!(!good, "{}", text(&error));
                let expected = format!("the image's stop signal `{signal}` is not a signal");
                assert!(text(&error).contains(&expected), "{}", text(&error));
            }
        }
    }
}

#[tokio::test]
async fn imports_of_something_else_are_refused() {
    let home = Home::new();
    let none = ConfigChanges::default();
    let whole = Layer::gzip(&[("a", &crate::support::layout::noise(3, 100_000))]).bytes;
    let truncated_plain = &tar(&[("a", &[1; 5000])])[..3000];
    for (bytes, expected) in [
        (&b""[..], "it is empty"),
        (b"BZh91AY&SY", "compressed with bzip2"),
        (&whole[..whole.len() / 2], "gzip data is damaged or cut off"),
        (truncated_plain, "layer 1 is damaged"),
        (
            b"this is a text and not a tar at all, though quite long enough to be looked at",
            "layer 1 is damaged",
        ),
    ] {
        let error = import(&home, reader(bytes), &none).await.unwrap_err();
        assert!(text(&error).contains(expected), "{}", text(&error));
    }
    let error = import(&home, ImportSource::Reader(Box::new(Failing(3))), &none).await.unwrap_err();
    assert!(text(&error).contains("the pipe broke"), "{}", text(&error));
    let error =
        import(&home, ImportSource::Path(Path::new("/nonexistent/x").into()), &none).await.unwrap_err();
    assert!(text(&error).contains("/nonexistent/x"), "{}", text(&error));
    for bad in ["oci:dir", "UPPER", &format!("x@{}", Digest::of(b""))] {
        let events = Events::default();
        let cancel = CancellationToken::new();
        let outcome = home.store.import(reader(&tar(&[])), bad, &none, &events, &cancel).await;
        assert!(
            matches!(outcome, Err(ImageError::TargetName { .. } | ImageError::Reference { .. })),
            "{bad}"
        );
    }
    home.assert_no_image();
    assert_eq!(home.files("partial"), [""; 0]);
}
