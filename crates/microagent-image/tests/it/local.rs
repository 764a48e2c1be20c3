//! Images that other tools on this machine have: archives in files and streams, and podman's own socket.

use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use microagent_image::{
    Environment, Image, ImageError, ImportSource, LoadOptions, Origin, PullPolicy, StandardInput,
};
use tokio_util::sync::CancellationToken;

use crate::support::layout::{Layer, Layout};
use crate::support::{Events, Home, read_from_disk, text};

async fn load(home: &Home, source: ImportSource, name: Option<&str>) -> Result<Vec<Image>, ImageError> {
    let options = name.map_or_else(LoadOptions::new, |name| LoadOptions::new().name(name));
    home.store.load(source, &options, &Events::default(), &CancellationToken::new()).await
}

fn bytes(bytes: Vec<u8>) -> ImportSource {
    ImportSource::Reader(Box::new(Cursor::new(bytes)))
}

/// An archive that skopeo makes of a layout; `to` is its way to say which kind.
fn archive(layout: &Layout, to: &str) {
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", &layout.reference("latest"), to])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn archives_are_loaded_under_their_names() {
    let home = Home::new();
    let layout = Layout::simple(&home.path("layout"), "loaded");
    let path = |name: &str| home.path(name).to_str().unwrap().to_owned();
    archive(&layout, &format!("docker-archive:{}:team/app:1", path("docker.tar")));
    archive(&layout, &format!("oci-archive:{}:team/oci:2", path("oci.tar")));
    archive(&layout, &format!("oci-archive:{}:latest", path("nameless.tar")));

    for (file, name) in [("docker.tar", "docker.io/team/app:1"), ("oci.tar", "docker.io/team/oci:2")] {
        // From a file, and as a stream, plain and compressed.
        let from_file = load(&home, ImportSource::Path(home.path(file)), None).await.unwrap();
        assert_eq!(from_file.len(), 1);
        assert_eq!((from_file[0].resolved_reference.as_str(), from_file[0].origin), (name, Origin::Load));
        assert_eq!(read_from_disk(&from_file[0].disk, "/etc/content"), "loaded");
        let again = load(&home, bytes(fs::read(home.path(file)).unwrap()), None).await.unwrap();
        assert_eq!((again[0].origin, &again[0].digest), (Origin::Cache, &from_file[0].digest));
        let gzip = Command::new("gzip").arg("-c").arg(home.path(file)).output().unwrap().stdout;
        assert_eq!(load(&Home::new(), bytes(gzip), None).await.unwrap()[0].digest, from_file[0].digest);
        // It is an image like any other, without a registry.
        assert_eq!(home.ensure(name, PullPolicy::Missing).await.unwrap().digest, from_file[0].digest);
    }

    let error = load(&home, ImportSource::Path(home.path("nameless.tar")), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Unnamed { .. }), "{}", text(&error));
    let named = load(&home, ImportSource::Path(home.path("nameless.tar")), Some("mine:3")).await.unwrap();
    assert_eq!(named[0].resolved_reference, "docker.io/library/mine:3");
    assert_eq!(home.files("scratch"), [""; 0]);
}

#[tokio::test]
async fn several_images_come_in_at_once() {
    let home = Home::new();
    let (one, two) = (Layout::simple(&home.path("one"), "one"), Layout::simple(&home.path("two"), "two"));
    for (layout, name) in [(&one, "a/one:1"), (&two, "a/two:2")] {
        let events = Events::default();
        let cancel = CancellationToken::new();
        let image = home.pull(&layout.reference("latest")).await.unwrap();
        home.store.tag(&image.digest, name).unwrap();
        drop((image, events, cancel));
    }
    let target = microagent_image::SaveTarget::Path(home.path("both.tar"));
    let references = ["a/one:1".to_owned(), "a/two:2".to_owned()];
    let network = microagent_image::NetworkOptions::default();
    home.store
        .save(&references, target, &network, &Events::default(), &CancellationToken::new())
        .await
        .unwrap();
    let other = Home::new();
    let loaded = load(&other, ImportSource::Path(home.path("both.tar")), None).await.unwrap();
    let names: Vec<&str> = loaded.iter().map(|image| image.resolved_reference.as_str()).collect();
    assert_eq!(names, ["docker.io/a/one:1", "docker.io/a/two:2"]);
    assert_eq!(read_from_disk(&loaded[1].disk, "/etc/content"), "two");
}

#[tokio::test]
async fn what_is_no_archive_is_refused_and_archives_are_no_root_file_systems() {
    let home = Home::new();
    for (content, expected) in [
        (Vec::new(), "`index.json` is missing"),
        (vec![b'x'; 4096], "the tar is damaged"),
        (Layer::plain(&[("etc/hostname", b"x")]).bytes, "is missing"),
    ] {
        let error = load(&home, bytes(content), None).await.unwrap_err();
        assert!(text(&error).contains(expected) || text(&error).contains("is missing"), "{}", text(&error));
    }
    let layout = Layout::simple(&home.path("layout"), "x");
    let path = |name: &str| home.path(name).to_str().unwrap().to_owned();
    archive(&layout, &format!("docker-archive:{}:team/app:1", path("docker.tar")));
    archive(&layout, &format!("oci-archive:{}:team/app:1", path("oci.tar")));
    for file in ["docker.tar", "oci.tar"] {
        let none = microagent_image::ConfigChanges::default();
        let source = ImportSource::Path(home.path(file));
        let imported =
            home.store.import(source, "r:1", &none, &Events::default(), &CancellationToken::new()).await;
        let error = imported.unwrap_err();
        assert!(matches!(error, ImageError::IsAnArchive { .. }), "{}", text(&error));
        assert_eq!(home.files("partial"), [""; 0]);
    }
}

#[tokio::test]
async fn an_archive_on_standard_input_is_a_reference() {
    let source = Home::new();
    let layout = Layout::simple(&source.path("layout"), "piped");
    let file = source.path("docker.tar");
    archive(&layout, &format!("docker-archive:{}:team/app:1", file.display()));
    let content = fs::read(&file).unwrap();
    let open = move || Box::new(Cursor::new(content.clone())) as Box<dyn Read + Send>;
    let standard_input = Some(StandardInput::new(open));
    let home = Home::with_environment(Environment { standard_input, ..Environment::default() });
    for reference in ["docker-archive:-", "docker-archive:-:team/app:1"] {
        let image = home.pull(reference).await.unwrap();
        assert_eq!(read_from_disk(&image.disk, "/etc/content"), "piped");
        assert_eq!(home.ensure(reference, PullPolicy::Never).await.unwrap().digest, image.digest);
    }
    let error = Home::new().pull("docker-archive:-").await.unwrap_err();
    assert!(matches!(error, ImageError::NoStandardInput), "{}", text(&error));
}

/// podman's API service, with a storage of its own. Ends when dropped.
struct Podman {
    service: Child,
    dir: PathBuf,
}

impl Podman {
    /// A podman that works on a storage in `dir`.
    fn command(dir: &Path) -> Command {
        let mut command = Command::new("podman");
        command
            .args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--root"])
            .arg(dir.join("root"));
        command.arg("--runroot").arg(dir.join("run"));
        command
    }

    fn start(dir: &Path) -> Podman {
        let socket = dir.join("podman.sock");
        let mut command = Podman::command(dir);
        command.args(["system", "service", "--time", "0"]).arg(format!("unix://{}", socket.display()));
        let service = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let podman = Podman { service, dir: dir.to_owned() };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !fs::metadata(&socket).is_ok_and(|found| found.file_type().is_socket()) {
            assert!(Instant::now() < deadline, "podman does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        podman
    }

    fn run(&self, arguments: &[&str]) {
        let output = Podman::command(&self.dir).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn environment(&self) -> Environment {
        let docker_host = Some(format!("unix://{}", self.dir.join("podman.sock").display()));
        Environment { docker_host, ..Environment::default() }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.service.kill();
        let _ = self.service.wait();
    }
}

#[tokio::test]
async fn podman_gives_its_images_over_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let podman = Podman::start(dir.path());
    let source = Home::new();
    let archived = |content: &str| {
        let layout = Layout::simple(&source.path(content), content);
        let file = source.path(&format!("{content}.tar"));
        archive(&layout, &format!("docker-archive:{}:localhost/team/app:1", file.display()));
        file.to_str().unwrap().to_owned()
    };
    podman.run(&["load", "-q", "-i", &archived("first")]);
    let home = Home::with_environment(podman.environment());
    let reference = "docker-daemon:localhost/team/app:1";
    let image = home.pull(reference).await.unwrap_or_else(|e| panic!("{}", text(&e)));
    assert_eq!((image.origin, image.resolved_reference.as_str()), (Origin::Daemon, reference));
    assert_eq!(read_from_disk(&image.disk, "/etc/content"), "first");
    // What is here under the same ID is not transferred again.
    let again = home.ensure(reference, PullPolicy::Always).await.unwrap();
    assert_eq!((again.origin, &again.digest), (Origin::Cache, &image.digest));
    podman.run(&["load", "-q", "-i", &archived("second")]);
    let moved = home.pull(reference).await.unwrap();
    assert_eq!(read_from_disk(&moved.disk, "/etc/content"), "second");

    // By its plain name only when that is asked for.
    let local = home.ensure("localhost/team/app:1", PullPolicy::Local).await.unwrap();
    assert_eq!(local.digest, moved.digest);
    let error = home.ensure("localhost/team/none", PullPolicy::Local).await.unwrap_err();
    assert!(matches!(error, ImageError::NotInDaemon { .. }), "{}", text(&error));
    drop(podman);
    let error = home.pull(reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Daemon { .. }) && error.is_retryable(), "{}", text(&error));
    assert_eq!(home.ensure(reference, PullPolicy::Never).await.unwrap().digest, moved.digest);
    // The layers are here, though podman is not.
    let target = microagent_image::SaveTarget::Path(home.path("saved.tar"));
    let network = microagent_image::NetworkOptions::default();
    let cancel = CancellationToken::new();
    home.store.save(&[reference.to_owned()], target, &network, &Events::default(), &cancel).await.unwrap();

    let environment =
        Environment { docker_host: Some("unix:///nonexistent/docker.sock".into()), ..Environment::default() };
    let error = Home::with_environment(environment).pull(reference).await.unwrap_err();
    assert!(matches!(error, ImageError::NoDaemon { .. }), "{}", text(&error));
}
