//! Against Debian's `docker-registry`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use microagent_image::{Environment, ImageError, Origin, Platform, PullPolicy};
use microagent_tests::registry::{Registry, RegistryOptions};
use tokio_util::sync::CancellationToken;

use crate::support::layout::{Layer, Layout, digest_of, noise};
use crate::support::{Events, Home, advice, assert_clean_disk, options, read_from_disk, text};

/// Makes an image of one file and puts it into the registry as `team/app:v1`.
fn publish(registry: &Registry, home: &Home, content: &str) -> (String, Layout) {
    let layout = Layout::simple(&home.path(&format!("layout-{content}")), content);
    registry.push(&layout.reference("latest"), "team/app:v1").unwrap();
    (format!("{}/team/app:v1", registry.address()), layout)
}

#[tokio::test]
async fn pulls_once_and_then_needs_no_registry() {
    let (home, registry) = (Home::new(), Registry::start().unwrap());
    let (reference, _) = publish(&registry, &home, "one");
    let image = home.pull(&reference).await.unwrap();
    assert_eq!(image.origin, Origin::Registry);
    assert_eq!(image.resolved_reference, reference);
    assert_eq!(image.config.cmd, ["/bin/cmd"]);
    assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("7:8", "/w"));
    assert_eq!(fs::metadata(&image.disk).unwrap().permissions().mode() & 0o777, 0o400);
    assert_eq!(fs::metadata(&image.disk).unwrap().len(), image.disk_bytes);
    assert_clean_disk(&image.disk);
    assert_eq!(read_from_disk(&image.disk, "/etc/content"), "one");
    assert_eq!(home.store.disk_path(&image.disk_id), image.disk);
    assert_eq!(home.files("partial"), [""; 0]);

    // By digest, also under another name, and without the registry.
    let by_digest = format!("{}/other/name@{}", registry.address(), image.digest);
    drop(registry);
    for policy in [PullPolicy::Missing, PullPolicy::Never] {
        for name in [&reference, &by_digest] {
            let again = home.ensure(name, policy).await.unwrap();
            assert_eq!((again.origin, &again.digest), (Origin::Cache, &image.digest));
            assert_eq!((&again.resolved_reference, &again.reference), (name, name));
            assert_eq!(again.disk, image.disk);
        }
    }
    let error = home.ensure(&reference, PullPolicy::Always).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }) && error.is_retryable(), "{error:?}");
    let error = home.ensure("team/other", PullPolicy::Never).await.unwrap_err();
    assert!(matches!(error, ImageError::NotCached { .. }), "{error:?}");
}

#[tokio::test]
async fn always_notices_that_a_tag_moved_and_missing_does_not() {
    let (home, registry) = (Home::new(), Registry::start().unwrap());
    let (reference, _) = publish(&registry, &home, "one");
    let one = home.pull(&reference).await.unwrap();
    let unchanged = home.ensure(&reference, PullPolicy::Always).await.unwrap();
    assert_eq!((unchanged.origin, &unchanged.digest), (Origin::Cache, &one.digest));
    publish(&registry, &home, "two");
    assert_eq!(home.pull(&reference).await.unwrap().digest, one.digest);
    let two = home.ensure(&reference, PullPolicy::Always).await.unwrap();
    assert_eq!(two.origin, Origin::Registry);
    assert_eq!(read_from_disk(&two.disk, "/etc/content"), "two");
    assert_eq!(home.store.list().unwrap().images.len(), 1);
}

#[tokio::test]
async fn takes_every_compression_and_the_manifest_of_docker() {
    let (home, registry) = (Home::new(), Registry::start().unwrap());
    let mut layout = Layout::new(&home.path("layout"));
    let layers = [
        Layer::plain(&[("a", b"plain"), ("over", b"1")]),
        Layer::gzip(&[("b", b"gzip"), ("over", b"2")]),
        Layer::zstd(&[("c", b"zstd"), ("over", b"3")]),
        Layer::plain(&[]),
    ];
    layout.tag("latest", layout.image("linux/amd64", &layers));
    registry.push(&layout.reference("latest"), "mixed").unwrap();
    let image = home.pull(&format!("{}/mixed", registry.address())).await.unwrap();
    assert_clean_disk(&image.disk);
    for (path, content) in [("/a", "plain"), ("/b", "gzip"), ("/c", "zstd"), ("/over", "3")] {
        assert_eq!(read_from_disk(&image.disk, path), content);
    }

    let docker = Layout::simple(&home.path("docker"), "docker");
    let copied = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--format", "v2s2"])
        .arg(docker.reference("latest"))
        .arg(format!("docker://{}/docker", registry.address()))
        .status()
        .unwrap();
    assert!(copied.success());
    let image = home.pull(&format!("{}/docker", registry.address())).await.unwrap();
    assert_eq!(read_from_disk(&image.disk, "/etc/content"), "docker");
}

#[tokio::test]
async fn an_image_made_by_umoci_from_busybox() {
    let (home, registry) = (Home::new(), Registry::start().unwrap());
    let layout = home.path("umoci");
    let umoci = |arguments: &[&str]| {
        let output = Command::new("umoci").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (path, tagged) = (layout.to_str().unwrap(), format!("{}:latest", layout.display()));
    umoci(&["init", "--layout", path]);
    umoci(&["new", "--image", &tagged]);
    // A copy of our own: umoci makes the directory of what it reads writable.
    fs::create_dir(home.path("bin")).unwrap();
    let copy = home.path("bin/busybox");
    fs::copy("/bin/busybox", &copy).unwrap();
    umoci(&["insert", "--rootless", "--image", &tagged, copy.to_str().unwrap(), "/bin/busybox"]);
    umoci(&["config", "--image", &tagged, "--config.cmd", "/bin/busybox", "--config.env", "A=b"]);
    registry.push(&format!("oci:{tagged}"), "busybox").unwrap();
    let image = home.pull(&format!("{}/busybox", registry.address())).await.unwrap();
    assert_clean_disk(&image.disk);
    assert_eq!(image.config.cmd, ["/bin/busybox"]);
    assert!(image.config.env.contains(&"A=b".to_owned()));
    assert!(image.content_bytes >= fs::metadata("/bin/busybox").unwrap().len());
}

#[tokio::test]
async fn an_index_gives_the_image_for_the_platform() {
    let (home, registry) = (Home::new(), Registry::start().unwrap());
    let mut layout = Layout::new(&home.path("layout"));
    let arm = layout.image("linux/arm64", &[Layer::gzip(&[("arch", b"arm64")])]);
    let amd = layout.image("linux/amd64", &[Layer::gzip(&[("arch", b"amd64")])]);
    let only_arm = layout.index(std::slice::from_ref(&arm));
    let index = layout.index(&[arm.clone(), amd.clone()]);
    let index_digest = layout.tag("both", index);
    layout.tag("arm", only_arm);
    layout.tag("lone-arm", arm.clone());
    for tag in ["both", "arm", "lone-arm"] {
        registry.push(&layout.reference(tag), &format!("multi:{tag}")).unwrap();
    }
    let named = |what: &str| format!("{}/multi{what}", registry.address());
    let image = home.pull(&named(":both")).await.unwrap();
    assert_eq!(image.digest, digest_of(&amd).to_string());
    assert_eq!(read_from_disk(&image.disk, "/arch"), "amd64");
    // The digest of the index stands for the same image.
    let by_index = home.ensure(&named(&format!("@{index_digest}")), PullPolicy::Never).await.unwrap();
    assert_eq!(by_index.digest, image.digest);

    let error = home.pull(&named(":arm")).await.unwrap_err();
    assert!(
        text(&error).contains("no image for platform linux/amd64; there is linux/arm64"),
        "{}",
        text(&error)
    );
    let error = home.pull(&named(":lone-arm")).await.unwrap_err();
    assert!(
        text(&error).contains("the image is for platform linux/arm64, not linux/amd64"),
        "{}",
        text(&error)
    );
    let options = options().platform("linux/arm64".parse::<Platform>().unwrap());
    let other =
        home.store.ensure(&named(":both"), &options, &Events::default(), &CancellationToken::new()).await;
    assert_eq!(other.unwrap().digest, digest_of(&arm).to_string());
}

#[tokio::test]
async fn unknown_images_are_told_apart_from_errors() {
    let (home, registry) = (Home::new(), Registry::start().unwrap());
    publish(&registry, &home, "one");
    for name in ["nothing", "team/app:v2", &format!("team/app@{}", microagent_image::Digest::of(b"x"))] {
        let error = home.pull(&format!("{}/{name}", registry.address())).await.unwrap_err();
        assert!(matches!(error, ImageError::UnknownImage { .. }), "{error:?}");
        assert!(!error.is_retryable());
        assert!(advice(&error).contains("spelling"));
    }
    home.assert_no_image();
}

const USER: &str = "user";
const PASSWORD: &str = "pass:word";

fn closed_registry() -> Registry {
    let login = Some((USER.to_owned(), PASSWORD.to_owned()));
    Registry::start_with(RegistryOptions { login, ..RegistryOptions::default() }).unwrap()
}

fn login_file(registry: &Registry, password: &str) -> String {
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
    serde_json::json!({"auths": {registry.address(): {"auth": auth}}}).to_string()
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[tokio::test]
async fn logs_in_with_the_files_of_docker_and_podman() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), closed_registry());
    let at = |name: &str| dir.path().join(name);
    let good = login_file(&registry, PASSWORD);
    write(&at("docker/config.json"), &good);
    write(&at("run/containers/auth.json"), &good);
    write(&at("config/containers/auth.json"), &good);
    write(&at("explicit.json"), &good);
    let nothing = Environment::default;
    let (reference, _) = publish(&registry, &Home::new(), "secret");
    for environment in [
        Environment { docker_config: Some(at("docker")), ..nothing() },
        Environment { runtime_dir: Some(at("run")), ..nothing() },
        Environment { config_home: Some(at("config")), ..nothing() },
        Environment { registry_auth_file: Some(at("explicit.json")), ..nothing() },
    ] {
        let home = Home::with_environment(environment.clone());
        let image = home.pull(&reference).await.unwrap_or_else(|e| panic!("{environment:?}: {}", text(&e)));
        assert_eq!(read_from_disk(&image.disk, "/etc/content"), "secret");
    }

    let home = Home::new();
    let error = home.pull(&reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Denied { authenticated: false, .. }), "{error:?}");
    assert!(advice(&error).contains("log in"), "{error:?}");

    write(&at("wrong/config.json"), &login_file(&registry, "guess"));
    let home = Home::with_environment(Environment { docker_config: Some(at("wrong")), ..nothing() });
    let error = home.pull(&reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Denied { authenticated: true, .. }), "{error:?}");
    assert!(!text(&error).contains("guess"));
}

#[tokio::test]
async fn logs_in_with_a_helper_program() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), closed_registry());
    let (reference, _) = publish(&registry, &Home::new(), "secret");
    let helpers = |kind: &str, name: &str| {
        let value = match kind {
            "credHelpers" => serde_json::json!({registry.address(): name}),
            _ => serde_json::json!(name),
        };
        write(&dir.path().join("config.json"), &serde_json::json!({kind: value}).to_string());
        let environment = Environment {
            docker_config: Some(dir.path().to_owned()),
            path: Some(format!("{}:/usr/bin:/bin", dir.path().display()).into()),
            ..Environment::default()
        };
        Home::with_environment(environment)
    };
    let program = |name: &str, script: &str| {
        let staged = dir.path().join("staged");
        write(&staged, &format!("#!/bin/sh\n{script}\n"));
        // Copied by another process: a child forked meanwhile by a parallel test may hold our descriptor, and a
        // file that is open for writing cannot be run.
        let path = dir.path().join(format!("docker-credential-{name}"));
        assert!(
            Command::new("install").args(["-m", "755"]).arg(&staged).arg(&path).status().unwrap().success()
        );
    };
    program("good", &format!(r#"cat >/dev/null; echo '{{"Username":"{USER}","Secret":"{PASSWORD}"}}'"#));
    program("locked", "cat >/dev/null; echo the keyring is locked; exit 1");
    for kind in ["credHelpers", "credsStore"] {
        let home = helpers(kind, "good");
        let image = home.pull(&reference).await.unwrap();
        assert_eq!(read_from_disk(&image.disk, "/etc/content"), "secret");
    }
    let error = helpers("credsStore", "locked").pull(&reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Credentials { .. }), "{error:?}");
    assert!(text(&error).contains("the keyring is locked"), "{}", text(&error));
    let error = helpers("credsStore", "missing").pull(&reference).await.unwrap_err();
    assert!(text(&error).contains("docker-credential-missing"), "{}", text(&error));
}

#[tokio::test]
async fn trusts_a_private_ca_only_when_told() {
    let registry = Registry::start_with(RegistryOptions { tls: true, ..RegistryOptions::default() }).unwrap();
    let (path_reference, _) = publish(&registry, &Home::new(), "tls");
    let trusted = Environment { ssl_cert_file: Some(registry.ca_file()), ..Environment::default() };
    for host in ["127.0.0.1", "localhost"] {
        let reference = path_reference.replace("127.0.0.1", host);
        let home = Home::with_environment(trusted.clone());
        let image = home.pull(&reference).await.unwrap();
        assert_eq!(read_from_disk(&image.disk, "/etc/content"), "tls");
    }
    // A directory of certificates does as well.
    let dir = tempfile::tempdir().unwrap();
    fs::copy(registry.ca_file(), dir.path().join("ca.pem")).unwrap();
    let environment = Environment { ssl_cert_dir: Some(dir.path().to_owned()), ..Environment::default() };
    Home::with_environment(environment).pull(&path_reference).await.unwrap();

    let home = Home::new();
    let error = home.pull(&path_reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }) && !error.is_retryable(), "{error:?}");
    assert!(advice(&error).contains("SSL_CERT_FILE"), "{error:?}");
    home.assert_no_image();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_do_the_work_once() {
    let (home, registry) = (Home::new(), Registry::start().unwrap());
    let mut layout = Layout::new(&home.path("layout"));
    let layers = [
        Layer::plain(&[("one", &noise(1, 4 << 20))]),
        Layer::plain(&[("two", &noise(2, 4 << 20))]),
        Layer::gzip(&[("three", b"3")]),
    ];
    layout.tag("latest", layout.image("linux/amd64", &layers));
    registry.push(&layout.reference("latest"), "busy").unwrap();
    let before = registry.log();
    let reference = format!("{}/busy", registry.address());
    let all = futures::future::join_all((0..4).map(|_| {
        let (store, reference) = (home.store.clone(), reference.clone());
        tokio::spawn(async move {
            let (options, events) = (options(), Events::default());
            store.ensure(&reference, &options, &events, &CancellationToken::new()).await
        })
    }));
    let images: Vec<_> = all.await.into_iter().map(|image| image.unwrap().unwrap()).collect();
    assert!(images.iter().all(|image| image.disk == images[0].disk));
    assert_clean_disk(&images[0].disk);
    let log = registry.log();
    let fetched = |digest: &str| {
        log[before.len()..]
            .lines()
            .filter(|l| l.contains("\"GET ") && l.contains(&format!("/blobs/{digest}")))
            .count()
    };
    for layer in &layers {
        assert_eq!(fetched(layer.digest().as_str()), 1, "{}", registry.log());
    }
    assert_eq!(home.files("disks").len(), 2);
    assert_eq!(home.files("partial"), [""; 0]);
}
