//! Images on their way out: further names, archives, pushes. What was sent is read by skopeo.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use microagent_image::{
    ConfigChanges, Digest, Environment, ImageError, ImageHint, ImportSource, NetworkOptions, PullPolicy,
    Pushed, SaveTarget, Saved,
};
use microagent_tests::registry::{Registry, RegistryOptions};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::support::faulty::{Act, Faulty};
use crate::support::layout::{Layer, Layout, noise, tar};
use crate::support::{Events, Home, options, read_from_disk, text};

fn network() -> NetworkOptions {
    options().network
}

async fn push(home: &Home, reference: &str) -> Result<Pushed, ImageError> {
    let cancel = CancellationToken::new();
    home.store.push(reference, &network(), &Events::default(), &cancel).await
}

async fn save(home: &Home, references: &[&str], file: &Path) -> Result<Saved, ImageError> {
    let references: Vec<String> = references.iter().map(|&reference| reference.to_owned()).collect();
    let (target, cancel) = (SaveTarget::Path(file.to_owned()), CancellationToken::new());
    home.store.save(&references, target, &network(), &Events::default(), &cancel).await
}

fn skopeo(args: &[&str]) -> Vec<u8> {
    let output = Command::new("skopeo").arg("--insecure-policy").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn inspect(reference: &str) -> Value {
    serde_json::from_slice(&skopeo(&["inspect", "--tls-verify=false", reference])).unwrap()
}

/// A layout with an image of several layers, one of them twice.
fn layered(home: &Home) -> (String, Vec<Layer>) {
    let mut layout = Layout::new(&home.path("layout"));
    let twice = Layer::gzip(&[("etc/twice", b"2")]);
    let layers = vec![
        Layer::plain(&[("big", &noise(7, 1 << 20))]),
        twice.clone(),
        Layer::zstd(&[("etc/content", b"layered")]),
        twice,
    ];
    layout.tag("latest", layout.image("linux/amd64", &layers));
    (layout.reference("latest"), layers)
}

#[tokio::test]
async fn a_tag_is_a_name_like_any_other_and_moves() {
    let home = Home::new();
    let layout = Layout::simple(&home.path("one"), "one");
    let one = home.pull(&layout.reference("latest")).await.unwrap();
    let two = Layout::simple(&home.path("two"), "two");
    let two = home.pull(&two.reference("latest")).await.unwrap();
    let tagged = home.store.tag(&layout.reference("latest"), "my/app").unwrap();
    assert_eq!(tagged.resolved_reference, "docker.io/my/app:latest");
    assert_eq!(tagged.digest, one.digest);
    assert_eq!(home.ensure("my/app", PullPolicy::Never).await.unwrap().digest, one.digest);
    let digits = two.digest.strip_prefix("sha256:").unwrap();
    home.store.tag(&digits[..12], "my/app:latest").unwrap();
    assert_eq!(home.ensure("my/app", PullPolicy::Never).await.unwrap().digest, two.digest);
    assert_eq!(home.store.list().unwrap().images.len(), 3);
    // What a tag names stays when the name that brought it in goes.
    drop((one, two));
    home.store.tag(&layout.reference("latest"), "my/app:one").unwrap();
    home.store.delete(&layout.reference("latest")).unwrap();
    let image = home.ensure("my/app:one", PullPolicy::Never).await.unwrap();
    assert_eq!(read_from_disk(&image.disk, "/etc/content"), "one");

    for (from, to) in [("no/such", "a:1"), ("my/app", "oci:x"), ("my/app", "UPPER")] {
        home.store.tag(from, to).unwrap_err();
    }
    let error = home.store.tag("my/app", &format!("x@{}", Digest::of(b""))).unwrap_err();
    assert!(matches!(error, ImageError::TargetName { .. }), "{error:?}");
    assert!(matches!(Home::new().store.tag("a", "b"), Err(ImageError::NoSuchImage { .. })));
}

#[tokio::test]
async fn a_saved_archive_is_read_by_skopeo_and_by_us_and_is_the_same_each_time() {
    let home = Home::new();
    let (reference, _) = layered(&home);
    let image = home.pull(&reference).await.unwrap();
    home.store.tag(&reference, "team/app:1").unwrap();
    let other = Layout::simple(&home.path("other"), "other");
    home.pull(&other.reference("latest")).await.unwrap();
    home.store.tag(&other.reference("latest"), "team/other:1").unwrap();

    let (file, again) = (home.path("app.tar"), home.path("again.tar"));
    let saved = save(&home, &["team/app:1"], &file).await.unwrap();
    assert_eq!(saved.images[0].digest, image.digest);
    assert_eq!(saved.bytes, fs::metadata(&file).unwrap().len());
    save(&home, &["team/app:1"], &again).await.unwrap();
    assert!(fs::read(&file).unwrap() == fs::read(&again).unwrap(), "the same image gives the same bytes");
    assert_eq!(inspect(&format!("oci-archive:{}", file.display()))["Digest"], image.digest.as_str());
    let copy = home.path("copy");
    skopeo(&[
        "copy",
        "--quiet",
        &format!("oci-archive:{}", file.display()),
        &format!("dir:{}", copy.display()),
    ]);

    let both = home.path("both.tar");
    let saved = save(&home, &["team/app:1", "team/other:1"], &both).await.unwrap();
    assert_eq!(saved.images.len(), 2);
    let fresh = Home::new();
    for (name, content) in [("team/app:1", "layered"), ("team/other:1", "other")] {
        let reference = format!("oci-archive:{}:docker.io/{name}", both.display());
        let image = fresh.pull(&reference).await.unwrap();
        assert_eq!(read_from_disk(&image.disk, "/etc/content"), content);
        inspect(&reference);
    }

    // Twice in one command is once in the archive.
    save(&home, &["team/app:1", "team/app:1"], &both).await.unwrap();
    assert!(fs::read(&both).unwrap() == fs::read(&file).unwrap());
}

#[tokio::test]
async fn docker_kinds_become_ocis_in_an_archive() {
    let (home, registry) = (Home::new(), Registry::start().unwrap());
    let layout = Layout::simple(&home.path("layout"), "docker");
    let name = format!("{}/docker:1", registry.address());
    let to = format!("docker://{name}");
    skopeo(&[
        "copy",
        "--quiet",
        "--dest-tls-verify=false",
        "--format=v2s2",
        &layout.reference("latest"),
        &to,
    ]);
    let image = home.pull(&name).await.unwrap();
    let saved = save(&home, &[&name], &home.path("x.tar")).await.unwrap();
    assert_ne!(saved.images[0].digest, image.digest);
    let archive = format!("oci-archive:{}", home.path("x.tar").display());
    let manifest: Value = serde_json::from_slice(&skopeo(&["inspect", "--raw", &archive])).unwrap();
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.image.config.v1+json");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    let again = Home::new().pull(&archive).await.unwrap();
    assert_eq!((again.digest, again.disk_id), (saved.images[0].digest.clone(), image.disk_id.clone()));
    // A push keeps what Docker wrote, byte for byte.
    let other = format!("{}/pushed:1", registry.address());
    home.store.tag(&name, &other).unwrap();
    assert_eq!(push(&home, &other).await.unwrap().digest, image.digest);
    assert_eq!(inspect(&format!("docker://{other}"))["Digest"], image.digest.as_str());
}

#[tokio::test]
async fn a_save_that_fails_leaves_the_old_file_and_nothing_else() {
    let home = Home::new();
    let (reference, layers) = layered(&home);
    home.pull(&reference).await.unwrap();
    let dir = home.path("out");
    fs::create_dir(&dir).unwrap();
    let file = dir.join("app.tar");
    fs::write(&file, "before").unwrap();
    assert!(matches!(save(&home, &["no/such"], &file).await, Err(ImageError::NoSuchImage { .. })));
    let blob = home.state().images().join("blobs/sha256").join(layers[0].digest().hex());
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    bytes[70_000] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    let error = save(&home, &[&reference], &file).await.unwrap_err();
    assert!(matches!(error, ImageError::WrongDigest { .. }), "{error:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "before");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    let error = save(&home, &[&reference], &home.path("no/such/dir.tar")).await.unwrap_err();
    assert!(text(&error).contains("no/such/dir.tar"), "{}", text(&error));
}

#[tokio::test]
async fn layers_that_another_image_had_made_needless_are_fetched_for_a_save() {
    let home = Home::new();
    let (plain, packed) = (Layer::plain(&[("etc/content", b"x")]), Layer::gzip(&[("etc/content", b"x")]));
    for (name, layer) in [("plain", &plain), ("packed", &packed)] {
        let mut layout = Layout::new(&home.path(name));
        layout.tag("latest", layout.image("linux/amd64", std::slice::from_ref(layer)));
        home.pull(&layout.reference("latest")).await.unwrap();
        home.store.tag(&layout.reference("latest"), &format!("{name}:1")).unwrap();
    }
    let blobs = home.state().images().join("blobs/sha256");
    assert!(!blobs.join(packed.digest().hex()).exists(), "the disk was there, so no layer was fetched");
    save(&home, &["packed:1"], &home.path("packed.tar")).await.unwrap();
    assert!(blobs.join(packed.digest().hex()).exists());

    // Without its source, an image that lacks a layer is an error.
    fs::remove_file(blobs.join(packed.digest().hex())).unwrap();
    fs::remove_dir_all(home.path("packed")).unwrap();
    assert!(save(&home, &["packed:1"], &home.path("x.tar")).await.is_err());
    let tar = tar(&[("a", b"b")]);
    let (none, events, cancel) = (ConfigChanges::default(), Events::default(), CancellationToken::new());
    let source = ImportSource::Reader(Box::new(std::io::Cursor::new(tar.clone())));
    home.store.import(source, "imported:1", &none, &events, &cancel).await.unwrap();
    fs::remove_file(blobs.join(Digest::of(&tar).hex())).unwrap();
    let error = save(&home, &["imported:1"], &home.path("x.tar")).await.unwrap_err();
    assert!(matches!(error, ImageError::MissingBlob { .. }), "{error:?}");
}

#[tokio::test]
async fn a_push_sends_what_is_missing_and_skopeo_reads_it() {
    let (home, registry) = (Home::new(), Registry::start().unwrap());
    let (reference, layers) = layered(&home);
    let image = home.pull(&reference).await.unwrap();
    let name = format!("{}/team/app:1", registry.address());
    home.store.tag(&reference, &name).unwrap();
    let pushed = push(&home, &name).await.unwrap();
    assert_eq!((pushed.blobs_sent, pushed.blobs_present), (4, 0), "three layers and the configuration");
    assert_eq!(pushed.digest, image.digest);
    assert_eq!(inspect(&format!("docker://{name}"))["Digest"], image.digest.as_str());
    let reader = Home::new();
    let back = reader.pull(&name).await.unwrap();
    assert_eq!(back.digest, image.digest);
    assert_eq!(read_from_disk(&back.disk, "/etc/content"), "layered");

    let again = push(&home, &name).await.unwrap();
    assert_eq!((again.blobs_sent, again.blobs_present, again.bytes_sent), (0, 4, 0));

    // Another repository of the same registry gets the layers from there.
    let fresh = Home::new();
    fresh.pull(&name).await.unwrap();
    let other = format!("{}/other/app:1", registry.address());
    fresh.store.tag(&name, &other).unwrap();
    let mounted = push(&fresh, &other).await.unwrap();
    assert_eq!((mounted.blobs_sent, mounted.digest), (0, image.digest.clone()));
    assert!(registry.log().contains(&format!("mount={}", layers[0].digest().as_str().replace(':', "%3A"))));
    inspect(&format!("docker://{other}"));
}

#[tokio::test]
async fn a_push_logs_in_and_trusts_as_a_pull_does() {
    let login = Some(("somebody".to_owned(), "secret".to_owned()));
    let registry =
        Registry::start_with(RegistryOptions { login, tls: true, ..RegistryOptions::default() }).unwrap();
    let name = format!("{}/private:1", registry.address());
    let dir = tempfile::tempdir().unwrap();
    let environment = |password: &str| {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("somebody:{password}"));
        let file = dir.path().join(password).join("config.json");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let auths = serde_json::json!({"auths": {registry.address(): {"auth": auth}}});
        fs::write(&file, auths.to_string()).unwrap();
        Environment {
            docker_config: Some(dir.path().join(password)),
            ssl_cert_file: Some(registry.ca_file()),
            ..Environment::default()
        }
    };
    for (environment, authenticated) in [
        (Environment { ssl_cert_file: Some(registry.ca_file()), ..Environment::default() }, false),
        (environment("wrong"), true),
    ] {
        let home = Home::with_environment(environment);
        let layout = Layout::simple(&home.path("layout"), "x");
        home.pull(&layout.reference("latest")).await.unwrap();
        home.store.tag(&layout.reference("latest"), &name).unwrap();
        match push(&home, &name).await.unwrap_err() {
            error @ ImageError::PushDenied { .. } => {
                let hint = error.hint().unwrap();
                let is_right = match hint {
                    ImageHint::Advice(text) => authenticated && text.contains("may write"),
                    hint => !authenticated && hint == ImageHint::LogInOrTag,
                };
                assert!(is_right, "{error:?}");
            }
            error => panic!("{error:?}"),
        }
    }
    let home = Home::with_environment(environment("secret"));
    let layout = Layout::simple(&home.path("layout"), "x");
    let image = home.pull(&layout.reference("latest")).await.unwrap();
    home.store.tag(&layout.reference("latest"), &name).unwrap();
    assert_eq!(push(&home, &name).await.unwrap().digest, image.digest);
    assert_eq!(Home::with_environment(environment("secret")).pull(&name).await.unwrap().digest, image.digest);
}

#[tokio::test]
async fn pushes_that_cannot_go_well_say_why() {
    let home = Home::new();
    let layout = Layout::simple(&home.path("layout"), "x");
    let reference = layout.reference("latest");
    home.pull(&reference).await.unwrap();
    let error = push(&home, &reference).await.unwrap_err();
    assert!(matches!(error, ImageError::TargetName { .. }), "{error:?}");
    assert!(matches!(push(&home, "127.0.0.1:1/not/here").await, Err(ImageError::NoSuchImage { .. })));
    home.store.tag(&reference, "127.0.0.1:1/x:1").unwrap();
    let error = push(&home, "127.0.0.1:1/x:1").await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error:?}");

    // A registry that refuses, one that answers nonsense, and one that is in trouble for a moment.
    let refuse = |act: fn() -> Act| {
        Faulty::start(&[], move |request| match request.method.as_str() {
            "HEAD" => Act::Status(404, String::new()),
            _ => act(),
        })
    };
    type Make = fn() -> Act;
    let cases: [(Make, &str); 3] = [
        (
            || Act::Status(403, r#"{"errors":[{"code":"DENIED","message":"no room"}]}"#.into()),
            "DENIED no room",
        ),
        (|| Act::Status(202, String::new()), "does not say where to upload to"),
        (|| Act::Status(500, String::new()), "answered 500"),
    ];
    for (act, expected) in cases {
        let registry = refuse(act);
        let name = format!("{}/x:1", registry.address);
        home.store.tag(&reference, &name).unwrap();
        let error = push(&home, &name).await.unwrap_err();
        assert!(text(&error).contains(expected), "{}", text(&error));
    }
}
