//! Where images come from, and that they come once.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use microagent_tests::registry::{Registry, RegistryOptions};
use microagent_tests::{Finished, Home, User, fixtures, host};

fn home() -> Home {
    Home::new(User::unprivileged())
}

fn hello(home: &Home, image: &str) -> Finished {
    let run = home.microagent(["run", "--json", "--network", "isolated", image, "echo", "hello"]).success();
    assert_eq!(run.json()["result"]["stdout"], "hello\n", "{}", run.told());
    run
}

fn push(registry: &Registry, fixture: &str, name: &str) {
    let source = format!("oci:{}:{}", fixtures::layout(fixture).display(), fixtures::TAG);
    registry.push(&source, name).unwrap_or_else(|e| panic!("{e:#}\n{}", registry.log()));
}

/// Inode and time of change of each base disk: what a second unpacking would change.
fn base_disks(home: &Home) -> Vec<(PathBuf, u64, i64)> {
    let found = microagent_tests::listing::listing(&home.state().join("images"));
    let disks =
        found.into_keys().filter(|path| path.extension().is_some_and(|extension| extension == "ext4"));
    let identity = |path: PathBuf| {
        let metadata = fs::metadata(&path).unwrap();
        (path, metadata.ino(), metadata.mtime_nsec())
    };
    disks.map(identity).collect()
}

#[test]
fn local_archives_and_layouts_run() {
    let home = home();
    hello(&home, &home.image("busybox"));
    for (transport, file) in [("oci-archive", "busybox.oci.tar"), ("docker-archive", "busybox.docker.tar")] {
        let archive = home.published(&fixtures::path(file));
        hello(&home, &format!("{transport}:{}", archive.display()));
    }
    home.nothing_is_left();
}

#[test]
fn archives_come_in_through_pipes() {
    let home = home();
    let archive = std::fs::read(fixtures::path("busybox.docker.tar")).unwrap();
    let loaded = home.microagent(["image", "load", "--name", "piped:1"]).stdin(archive.clone()).success();
    assert!(loaded.text().contains("Image: "), "{}", loaded.told());
    let list = home.microagent(["image", "list", "--json"]).success().json();
    let name = list["images"][0]["resolved_reference"].as_str().unwrap().to_owned();
    let run = home.microagent(["run", "--pull", "never", "--network", "isolated", &name, "echo", "loaded"]);
    assert_eq!(run.success().guest_output(), "loaded\n");
    let run = home.microagent(["run", "--network", "isolated", "docker-archive:-", "echo", "piped"]);
    assert_eq!(run.stdin(archive.clone()).success().guest_output(), "piped\n");

    let imported = home.microagent(["image", "import", "-", "wrong:1"]).stdin(archive).run().code(1);
    imported.says("image load");
    home.microagent(["run", "containers-storage:app", "true"]).run().code(2).says("podman save");
    home.microagent(["run", "docker-daemon:app", "true"])
        .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        .run()
        .says("neither Docker nor podman answers");
    home.nothing_is_left();
}

#[test]
fn a_root_file_system_is_imported_from_a_file_and_from_standard_input() {
    let home = home();
    let tar = fixtures::rootfs_tar(&[("srv/marker", "imported\n")]);
    let file = home.write("rootfs.tar", &tar);
    home.call().args(["image", "import"]).arg(&file).arg("from-file:1").success();
    home.microagent(["image", "import", "-", "from-stdin:1"]).stdin(tar).success();
    for image in ["from-file:1", "from-stdin:1"] {
        let run = home
            .microagent(["run", "--pull", "never", "--network", "isolated", image, "cat", "/srv/marker"])
            .success();
        assert_eq!(run.guest_output(), "imported\n");
    }
    let list = home.microagent(["image", "list"]).success();
    assert!(list.text().contains("from-file:1") && list.text().contains("from-stdin:1"), "{}", list.told());
    home.microagent(["image", "import", "-", "torn:1"]).stdin(&b"this is no tar"[..]).failure();
    home.microagent(["image", "delete", "from-file:1"]).success();
    let gone = home.microagent(["run", "--pull", "never", "from-file:1", "true"]).run().code(1);
    assert!(gone.stderr.contains("from-file:1") && gone.stderr.contains("Hint:"), "{}", gone.told());
}

#[test]
fn an_image_of_a_registry_runs_again_when_the_registry_is_gone() {
    let home = home();
    let registry = Registry::start().unwrap();
    push(&registry, "busybox", "team/busybox:1");
    let image = format!("{}/team/busybox:1", registry.address());
    let first = hello(&home, &image);
    let digest = first.json()["image"]["digest"].as_str().unwrap().to_owned();
    let disks = base_disks(&home);
    assert_eq!(disks.len(), 1, "{disks:?}");
    host::e2fsck(&disks[0].0);

    let always =
        home.microagent(["run", "--pull", "always", "--network", "isolated", &image, "true"]).success();
    assert!(always.text().contains("Exit code: 0"), "{}", always.told());
    drop(registry);
    let second = hello(&home, &image);
    assert_eq!(second.json()["image"]["digest"], digest.as_str());
    assert_ne!(
        first.json()["image"]["origin"],
        second.json()["image"]["origin"],
        "the second comes from the cache"
    );
    hello(&home, &format!("{}@{digest}", image.trim_end_matches(":1")));
    assert_eq!(base_disks(&home), disks, "nothing was unpacked again");

    let always = home.microagent(["run", "--pull", "always", &image, "true"]).failure();
    assert!(always.stderr.contains("Error: ") && always.stderr.contains(&image[..14]), "{}", always.told());
    home.nothing_is_left();
}

#[test]
fn an_unknown_image_is_said_so() {
    let home = home();
    let registry = Registry::start().unwrap();
    let image = format!("{}/no/such:image", registry.address());
    let run = home.microagent(["run", &image, "true"]).run().code(1);
    assert!(run.stderr.contains(&image), "{}", run.told());
    let json = home.microagent(["run", "--json", &image, "true"]).run().code(1);
    assert_eq!(json.json_error()["kind"], "not_found", "{}", json.told());
    home.microagent(["run", "--pull", "never", &image, "true"]).run().code(1).says("Hint:");
    home.nothing_is_left();
}

#[test]
fn a_login_is_read_where_docker_left_it() {
    let home = home();
    let login = ("somebody".to_owned(), "secret word".to_owned());
    let registry =
        Registry::start_with(RegistryOptions { login: Some(login), ..RegistryOptions::default() }).unwrap();
    push(&registry, "busybox", "private:1");
    let image = format!("{}/private:1", registry.address());
    let run = home.microagent(["image", "pull", &image]).failure();
    assert!(run.stderr.contains("login"), "{}", run.told());

    let auth = base64(b"somebody:secret word");
    let docker = home.make_dir("docker");
    let config = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{auth}\"}}}}}}", registry.address());
    home.write("docker/config.json", config);
    home.microagent(["image", "pull", &image]).env("DOCKER_CONFIG", &docker).success();
    let run = home.microagent(["run", "--network", "isolated", &image, "echo", "in"]).success();
    assert_eq!(run.guest_output(), "in\n");
    let search = home.other("grep").args(["-rlF", "-e", "secret word", "-e", &auth]).arg(home.state()).run();
    assert_eq!(search.code(1).text(), "", "the password is written down");
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn two_first_runs_at_once_do_the_work_once() {
    let home = home();
    let registry = Registry::start().unwrap();
    push(&registry, "layers", "layers:1");
    let image = format!("{}/layers:1", registry.address());
    let pulls = [(); 2].map(|()| home.microagent(["image", "pull", &image]).start());
    for pull in pulls {
        pull.finish().code(0);
    }
    assert_eq!(base_disks(&home).len(), 1);
    // A pull of what is here fetches no blob: there is none any more.
    assert!(registry.remove_layers() > 1);
    home.microagent(["image", "pull", &image]).success();
    assert_eq!(base_disks(&home).len(), 1);
    Home::new(User::Caller).microagent(["image", "pull", &image]).failure();
    home.nothing_is_left();
}
