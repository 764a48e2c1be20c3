//! Listing, deleting, pruning; processes that are killed; disks that are full.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use microagent_image::{ImageError, ImagePrune, Origin, PullPolicy};
use microagent_model::{DnsSettings, ImageIdentity, NetworkMode, Resources, RestartPolicy, State};
use microagent_store::{MachineState, WORKSPACE_FORMAT, WorkspaceDir, WorkspaceRecord};

use crate::support::faulty::{Act, Faulty, Request};
use crate::support::layout::{Layer, Layout, noise};
use crate::support::{Home, assert_clean_disk, text};

/// Makes a workspace whose disk lies on an image.
fn workspace_on(home: &Home, name: &str, image: &microagent_image::Image) -> WorkspaceDir {
    let dir = home.state().workspace(&name.parse().unwrap());
    fs::create_dir(dir.path()).unwrap();
    let record = WorkspaceRecord {
        format: WORKSPACE_FORMAT,
        name: name.parse().unwrap(),
        created_at: Timestamp::now(),
        image: ImageIdentity {
            reference: image.reference.clone(),
            resolved_reference: image.resolved_reference.clone(),
            digest: image.digest.clone(),
            disk: image.disk_id.clone(),
        },
        profile: "small".into(),
        resources: Resources { memory_mib: 512, cpu_count: 2, size_mib: 1024 },
        network: NetworkMode::User,
        dns: DnsSettings::default(),
        forwards: Vec::new(),
        networks: Vec::new(),
        brokers: Vec::new(),
        hostname: name.into(),
        identity: None,
        restart: RestartPolicy::Never,
        disks: Vec::new(),
        publish: Vec::new(),
        egress: Default::default(),
        limits: Default::default(),
        secrets: Vec::new(),
        labels: Default::default(),
        settings: Default::default(),
        outputs: Vec::new(),
        disposable: false,
        machine: MachineState::resting(State::Stopped, Timestamp::now()),
        layers: Vec::new(),
        from_snapshot: None,
    };
    record.save_new(&dir).unwrap();
    dir
}

#[tokio::test]
async fn lists_without_touching_anything() {
    let home = Home::new();
    assert!(home.store.list().unwrap().images.is_empty());
    assert!(!home.state().root().exists(), "listing creates nothing");

    let layout = Layout::simple(&home.path("layout"), "one");
    let image = home.pull(&layout.reference("latest")).await.unwrap();
    fs::write(home.state().images().join("refs/damaged.json"), "{").unwrap();
    fs::write(home.state().images().join("refs/newer.json"), r#"{"format": 99}"#).unwrap();
    let list = home.store.list().unwrap();
    assert_eq!(list.images.len(), 1);
    let one = &list.images[0];
    assert_eq!((&one.digest, &one.disk_id), (&image.digest, &image.disk_id));
    assert_eq!(one.origin, Origin::OciLayout);
    assert!(one.disk_present && one.disk_bytes == image.disk_bytes && one.download_bytes > 0);
    assert!(one.last_used_at >= one.created_at.round(jiff::Unit::Second).unwrap() - Duration::from_secs(1));
    let reasons: Vec<&str> = list.damaged.iter().map(|damaged| damaged.reason.as_str()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("is damaged")), "{reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("has format 99")), "{reasons:?}");
    drop(image);
    let error = home.store.prune(ImagePrune::Unused).unwrap_err();
    assert!(matches!(error, ImageError::TooNew { .. }), "what a newer release needs is not ours to judge");
}

#[tokio::test]
async fn a_lost_or_damaged_disk_is_made_again() {
    let home = Home::new();
    let layout = Layout::simple(&home.path("layout"), "one");
    let image = home.pull(&layout.reference("latest")).await.unwrap();
    let whole = fs::read(&image.disk).unwrap();
    for damage in ["gone", "short", "no notes"] {
        match damage {
            "gone" => fs::remove_file(&image.disk).unwrap(),
            "short" => {
                fs::remove_file(&image.disk).unwrap();
                fs::write(&image.disk, &whole[..1000]).unwrap();
            }
            _ => {
                fs::remove_file(&image.disk).unwrap();
                fs::remove_file(image.disk.with_extension("json")).unwrap();
            }
        }
        let again = home.pull(&layout.reference("latest")).await.unwrap();
        assert_eq!(fs::read(&again.disk).unwrap(), whole, "{damage}");
    }
}

#[tokio::test]
async fn delete_spares_what_others_need() {
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let shared = Layer::gzip(&[("shared", &noise(1, 50_000))]);
    let one = layout.image("linux/amd64", &[shared.clone(), Layer::gzip(&[("one", b"1")])]);
    let two = layout.image("linux/amd64", &[shared.clone(), Layer::gzip(&[("two", b"2")])]);
    layout.tag("one", one.clone());
    layout.tag("alias", one);
    layout.tag("two", two);
    let [one, alias, two] = ["one", "alias", "two"].map(|tag| layout.reference(tag));
    let first = home.pull(&one).await.unwrap();
    home.pull(&alias).await.unwrap();
    let second = home.pull(&two).await.unwrap();

    let error = home.store.delete(&one).unwrap_err();
    assert!(matches!(error, ImageError::Busy { .. }) && error.is_retryable(), "images are leased: {error:?}");
    let (first_digest, first_disk, second_disk) =
        (first.digest.clone(), first.disk.clone(), second.disk.clone());
    let workspace = workspace_on(&home, "web", &first);
    drop((first, second));

    // Another name remains, so this one may go although a workspace lies on the disk.
    let deletion = home.store.delete(&one).unwrap();
    assert_eq!(deletion.references.len(), 1);
    assert!(first_disk.exists());
    for name in [alias.as_str(), first_digest.as_str(), &first_digest["sha256:".len()..][..12]] {
        let error = home.store.delete(name).unwrap_err();
        assert!(
            matches!(&error, ImageError::InUse { workspaces, .. } if *workspaces == ["web"]),
            "{error:?}"
        );
    }
    assert!(first_disk.exists());
    fs::write(workspace.record(), "{").unwrap();
    let error = home.store.delete(&alias).unwrap_err();
    assert!(
        matches!(&error, ImageError::UnreadableWorkspace { workspace, .. } if workspace == "web"),
        "{error:?}"
    );

    fs::remove_dir_all(workspace.path()).unwrap();
    let deletion = home.store.delete(&first_digest[..20]).unwrap();
    assert!(deletion.freed_bytes > 0);
    assert!(!first_disk.exists());
    assert!(second_disk.exists());
    assert!(home.files("blobs/sha256").contains(&shared.digest().hex().to_owned()));
    home.pull(&two).await.unwrap();
    for nothing in [one.as_str(), "busybox", "sha256:0123456789ab"] {
        assert!(matches!(home.store.delete(nothing), Err(ImageError::NoSuchImage { .. })), "{nothing}");
    }
    assert!(matches!(home.store.delete("Bad Name"), Err(ImageError::Reference { .. })));
}

#[tokio::test]
async fn prune_frees_what_nothing_needs() {
    let home = Home::new();
    assert_eq!(home.store.prune(ImagePrune::All).unwrap().freed_bytes, 0);
    let mut layout = Layout::simple(&home.path("layout"), "one");
    let one = home.pull(&layout.reference("latest")).await.unwrap();
    let (one_disk, one_digest) = (one.disk.clone(), one.digest.clone());
    let workspace = workspace_on(&home, "web", &one);
    // The tag moves on; the workspace still lies on what it stood for.
    layout.tag("latest", layout.image("linux/amd64", &[Layer::gzip(&[("two", &noise(1, 50_000))])]));
    let two = home.pull(&layout.reference("latest")).await.unwrap();
    let two_disk = two.disk.clone();
    drop((one, two));
    let images = home.state().images();
    fs::write(images.join("partial").join("a".repeat(64)), vec![1; 10_000]).unwrap();
    fs::write(images.join("blobs/sha256").join("b".repeat(64)), vec![1; 10_000]).unwrap();
    fs::write(images.join("refs/damaged.json"), "{").unwrap();
    fs::create_dir(images.join("scratch/dead")).unwrap();
    fs::write(images.join("scratch/dead/disk.ext4"), vec![1; 10_000]).unwrap();

    let pruned = home.store.prune(ImagePrune::Unused).unwrap();
    assert_eq!((pruned.references.len(), pruned.damaged_records, pruned.blobs), (0, 1, 1));
    assert_eq!((pruned.disks, pruned.partial_files), (0, 2));
    assert!(pruned.freed_bytes >= 30_000);
    assert!(one_disk.exists() && two_disk.exists());
    let manifest = one_digest.strip_prefix("sha256:").unwrap().to_owned();
    assert!(home.files("blobs/sha256").contains(&manifest), "`commit` needs the image of the workspace");

    let pruned = home.store.prune(ImagePrune::All).unwrap();
    assert_eq!((pruned.references.len(), pruned.disks), (1, 1));
    assert!(one_disk.exists() && !two_disk.exists());
    fs::remove_dir_all(workspace.path()).unwrap();
    let pruned = home.store.prune(ImagePrune::Unused).unwrap();
    assert_eq!(pruned.disks, 1);
    assert_eq!(home.store.stored_bytes().unwrap(), 0);
    for dir in ["refs", "disks", "blobs/sha256", "partial", "scratch", "locks"] {
        assert_eq!(home.files(dir), [""; 0], "{dir}");
    }
}

#[tokio::test]
async fn names_are_counted_and_kept_by_their_image() {
    let home = Home::new();
    let layout = Layout::simple(&home.path("layout"), "one");
    let image = home.pull(&layout.reference("latest")).await.unwrap();
    let workspace = workspace_on(&home, "web", &image);
    let before = home.store.stored_bytes().unwrap();
    assert!(before > 0);
    let used = home.store.list().unwrap().images[0].resolved_reference.clone();
    home.store.tag(&used, "other:1").unwrap();
    home.store.tag(&used, "other:2").unwrap();
    assert_eq!(home.store.stored_bytes().unwrap(), before, "a name takes nothing");
    drop(image);
    let names = |home: &Home| -> Vec<String> {
        let images = home.store.list().unwrap().images;
        images.into_iter().map(|image| image.resolved_reference).collect()
    };
    // The workspace needs the name that it was created by; once that is gone, any other one is kept.
    assert_eq!(home.store.prune(ImagePrune::All).unwrap().references.len(), 2);
    assert_eq!(names(&home), std::slice::from_ref(&used));
    home.store.tag(&used, "other:1").unwrap();
    home.store.delete(&used).unwrap();
    assert_eq!(home.store.prune(ImagePrune::All).unwrap().references.len(), 0);
    assert_eq!(names(&home).len(), 1);
    fs::remove_dir_all(workspace.path()).unwrap();
    home.store.prune(ImagePrune::All).unwrap();
    assert_eq!((names(&home).len(), home.store.stored_bytes().unwrap()), (0, 0));
}

/// Not a test of its own: what [`in_another_process`] runs.
#[tokio::test]
async fn pull_for_another_process() {
    let (Ok(state), Ok(reference)) = (std::env::var("TEST_STATE"), std::env::var("TEST_REFERENCE")) else {
        return;
    };
    let store = microagent_image::ImageStore::new(microagent_store::StateDir::at(state));
    let options = crate::support::options();
    let (events, cancel) = (crate::support::Events::default(), tokio_util::sync::CancellationToken::new());
    match store.ensure(&reference, &options, &events, &cancel).await {
        Ok(image) => println!("pulled {}", image.digest),
        Err(error) => println!("failed {} | {:?}", text(&error), error.hint()),
    }
}

/// A pull in a process of its own, through a program that starts others if need be.
fn in_another_process(wrapper: &[&str], state: &Path, reference: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(&test),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&test);
            command
        }
    };
    command.args(["--exact", "cache::pull_for_another_process", "--nocapture"]);
    command
        .env("TEST_STATE", state)
        .env("TEST_REFERENCE", reference)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

#[tokio::test]
async fn a_killed_pull_leaves_no_entry_and_no_lock() {
    let home = Home::new();
    let layer = Layer::plain(&[("big", &noise(5, 3 << 20))]);
    let digest = layer.digest();
    let stalling = {
        let digest = digest.clone();
        move |request: &Request| match request.earlier {
            0 if request.is_blob(&digest) => Act::StallAfter(1 << 20),
            _ => Act::Serve,
        }
    };
    let faulty = Faulty::start(&[layer], stalling);
    let mut child = in_another_process(&[], home.state().root(), &faulty.reference()).spawn().unwrap();
    let partial = home.state().images().join("partial").join(digest.hex());
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::metadata(&partial).map_or(0, |metadata| metadata.len()) < 1 << 20 {
        assert!(Instant::now() < deadline, "the other process does not pull");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    faulty.release();
    home.assert_no_image();

    let image = home.pull(&faulty.reference()).await.unwrap();
    assert_clean_disk(&image.disk);
    let resumed = faulty.requests().iter().filter(|r| r.is_blob(&digest)).map(Request::range_start).max();
    assert_eq!(resumed, Some(1 << 20), "the next pull continues after the last byte");
    assert_eq!(home.files("partial"), [""; 0]);
}

#[tokio::test]
async fn killed_while_unpacking_there_is_a_whole_disk_or_none() {
    let home = Home::new();
    let layers: Vec<Layer> = (0..4).map(|at| Layer::gzip(&[("zeros", &vec![at; 48 << 20])])).collect();
    let faulty = Faulty::start(&layers, |_| Act::Serve);
    let mut child = in_another_process(&[], home.state().root(), &faulty.reference()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while home.files("scratch").is_empty() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the other process does not unpack");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(home.store.list().unwrap().images.iter().all(|image| image.disk_present));
    assert!(home.files("disks").len() != 1 || home.files("disks")[0].ends_with(".json"), "notes come first");

    let image = home.pull(&faulty.reference()).await.unwrap();
    assert_clean_disk(&image.disk);
    assert_eq!(home.files("scratch"), [""; 0]);
    for layer in &layers {
        assert_eq!(
            faulty.sent(&layer.digest()),
            layer.bytes.len() as u64,
            "what was fetched is not fetched again"
        );
    }
}

#[tokio::test]
async fn two_processes_share_one_pull() {
    let home = Home::new();
    let layer = Layer::plain(&[("big", &noise(6, 3 << 20))]);
    let (digest, size) = (layer.digest(), layer.bytes.len() as u64);
    let faulty = Faulty::start(&[layer], |_| Act::Serve);
    let state = home.state();
    let children: Vec<_> =
        (0..3).map(|_| in_another_process(&[], state.root(), &faulty.reference()).spawn().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(&format!("pulled {}", faulty.manifest)), "{said}");
    }
    assert_eq!(faulty.sent(&digest), size);
    assert_eq!(home.ensure(&faulty.reference(), PullPolicy::Never).await.unwrap().origin, Origin::Cache);
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing_half_made() {
    let home = Home::new();
    let mount = home.path("small");
    fs::create_dir(&mount).unwrap();
    // A file system of 4 MiB in a mount namespace of its own, which an ordinary user may have as well.
    let script = format!("mount -t tmpfs -o size=4m none {0} && exec \"$@\"", mount.display());
    let wrapper = ["unshare", "--map-root-user", "--mount", "sh", "-c", &script, "sh"];
    let able = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).output();
    if !able.is_ok_and(|output| output.status.success()) {
        println!("skipped: this host allows no mount namespace to us");
        return;
    }
    // The layer fits, the disk does not; and a layer that does not fit either.
    for (layer, announced) in [
        (Layer::gzip(&[("zeros", &vec![b'z'; 16 << 20])]), None),
        (Layer::plain(&[("noise", &noise(1, 6 << 20))]), None),
        (Layer::plain(&[("noise", &noise(2, 6 << 20))]), Some(3 << 20)),
    ] {
        let size = announced.unwrap_or(layer.bytes.len() as u64);
        let faulty = Faulty::start_announcing(&[layer], &[size], |_| Act::Serve);
        let output =
            in_another_process(&wrapper, &mount.join("state"), &faulty.reference()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected = if announced.is_some() { "longer than" } else { "failed disk full" };
        assert!(said.contains(expected), "{said} {}", String::from_utf8_lossy(&output.stderr));
        assert!(announced.is_some() || said.contains("FreeSpace"), "{said}");
    }
}
