//! Every future of the library can be moved to another thread, and what a program passes around is `Send` and `Sync`.
//!
//! Only compiled: none of the futures is polled.
#![allow(clippy::expect_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent::apply::ApplyMode;
use microagent::image::{
    ConfigChanges, ImagePrune, ImportSource, LoadOptions, NetworkOptions, PullOptions, SaveTarget,
};
use microagent::snapshot::{ForkOptions, SnapshotContents, SnapshotDeleteMode};
use microagent::template::TemplatePrune;
use microagent::{
    AttachOptions, AttachedRun, CommitOptions, Console, CopySource, CopyTarget, CreateOptions, DeleteMode,
    Engine, EngineOptions, Error, Exec, ExecControl, ExecOptions, ExecStdin, FileListOptions, FileRange,
    JobId, JobOutputOptions, JobStdin, LogOptions, Lookup, NetworkMode, PROFILES, Progress, RunOptions,
    SpecFile, StartOptions, Streaming, SuperviseOptions, SymlinkMode, SyncOptions, Workspace, WorkspaceName,
    private_network, volume,
};

fn assert_send<T: Send>(value: T) {
    drop(value);
}

fn assert_send_and_sync<T: Send + Sync>() {}

#[test]
fn values_pass_between_threads() {
    assert_send_and_sync::<Engine>();
    assert_send_and_sync::<Workspace>();
    assert_send_and_sync::<Progress>();
    assert_send_and_sync::<Error>();
    assert_send_and_sync::<RunOptions>();
    assert_send_and_sync::<ExecControl>();
    assert_send_and_sync::<ExecStdin>();
    assert_send_and_sync::<Exec>();
    assert_send_and_sync::<Console>();
    assert_send_and_sync::<Streaming<Vec<u8>>>();
    assert_send_and_sync::<microagent::Images>();
    assert_send_and_sync::<microagent::Volumes>();
    assert_send_and_sync::<microagent::PrivateNetworks>();
    assert_send_and_sync::<microagent::Templates>();
    assert_send_and_sync::<microagent::Snapshots>();
}

#[test]
fn every_future_of_an_engine_is_send() {
    let engine = Engine::new(EngineOptions::new("/nonexistent", "/nonexistent"));
    let progress = Progress::new();
    let name: WorkspaceName = "web".parse().expect("a name");
    assert_send(engine.run(RunOptions::new("x"), &progress));
    assert_send(engine.run_attached(RunOptions::new("x"), AttachOptions::new(), &progress));
    assert_send(engine.run_detached(RunOptions::new("x"), &progress));
    assert_send(engine.create(CreateOptions::new(name, "x"), &progress));
    assert_send(engine.check_secrets(&[], &progress));
    let spec = SpecFile::default();
    assert_send(engine.create_from_snapshot(&spec, &|_| None));
    assert_send(engine.start_from_snapshot(&spec, &|_| None, &progress));
    assert_send(engine.list());
    assert_send(engine.doctor());
    assert_send(engine.verify_kernel());

    let snapshots = engine.workspace(&"web".parse().expect("a name")).snapshots();
    let (tag, other) = ("a".parse().expect("a tag"), "other".parse().expect("a name"));
    assert_send(engine.free_layers());
    assert_send(engine.snapshot_bytes());
    assert_send(snapshots.create(None, SnapshotContents::Disk));
    assert_send(snapshots.list());
    let (contents, file) = (SnapshotContents::Disk, Path::new("web.snapshot"));
    assert_send(snapshots.export(&tag, contents, &progress));
    assert_send(snapshots.export_to(&tag, contents, file, &progress));
    let source = ImportSource::Path(file.to_owned());
    assert_send(engine.import_snapshot(source, &other, contents, &progress));
    assert_send(snapshots.get(&tag));
    assert_send(snapshots.delete(&tag, SnapshotDeleteMode::Ordinary));
    assert_send(snapshots.restore(&tag, &progress));
    assert_send(snapshots.start(&tag, &progress));
    assert_send(snapshots.start_workspace(&tag, &other, &progress));
    assert_send(snapshots.create_workspace(&tag, &other));

    let images = engine.images();
    assert_send(images.stored_bytes());
    let (pull, network, changes) =
        (PullOptions::default(), NetworkOptions::default(), ConfigChanges::default());
    assert_send(images.create("x", &pull, &progress));
    assert_send(images.get("x"));
    assert_send(images.history("x"));
    assert_send(images.list());
    assert_send(images.delete("x"));
    assert_send(images.tag("x", "y"));
    assert_send(images.prune(ImagePrune::All));
    assert_send(images.import(ImportSource::Path("x".into()), "x", &changes, &progress));
    assert_send(images.load(ImportSource::Path("x".into()), &LoadOptions::default(), &progress));
    assert_send(images.push("x", &network, &progress));
    assert_send(images.save(&[], SaveTarget::Path("x".into()), &network, &progress));

    let volume = "data".parse().expect("a name");
    let volumes = engine.volumes();
    assert_send(volumes.create(&volume, volume::SIZE_MIB));
    assert_send(volumes.list());
    assert_send(volumes.get(&volume));
    assert_send(volumes.resize(&volume, volume::SIZE_MIB));
    assert_send(volumes.delete(&volume, volume::VolumeDeleteMode::Unused));
    assert_send(volumes.prune(&progress));
    let network_name = "backend".parse().expect("a name");
    let networks = engine.networks();
    assert_send(networks.create(&network_name, None));
    assert_send(networks.list());
    assert_send(networks.get(&network_name));
    assert_send(networks.delete(&network_name, private_network::NetworkDeleteMode::Unused));
    let resources = PROFILES[0].resources;
    let templates = engine.templates();
    assert_send(templates.create(resources, NetworkMode::Isolated, &progress));
    assert_send(templates.list());
    assert_send(templates.get("x"));
    assert_send(templates.delete("x"));
    assert_send(templates.prune(TemplatePrune::Stale));
}

#[test]
fn every_future_of_a_workspace_is_send() {
    let engine = Engine::new(EngineOptions::new("/nonexistent", "/nonexistent"));
    let progress = Progress::new();
    let name: WorkspaceName = "web".parse().expect("a name");
    let workspace = engine.workspace(&name);
    assert_send(workspace.check_start(&progress));
    assert_send(workspace.start(StartOptions::new(), &progress));
    assert_send(workspace.halt());
    assert_send(workspace.halt_within(Duration::ZERO));
    assert_send(workspace.stop());
    assert_send(workspace.stop_within(Duration::ZERO));
    assert_send(workspace.renew(None));
    assert_send(workspace.kill());
    assert_send(workspace.pause());
    assert_send(workspace.resume());
    assert_send(workspace.quarantine(None));
    assert_send(workspace.wait(&progress));
    assert_send(workspace.wait_healthy(&progress));
    assert_send(workspace.supervise(SuperviseOptions::new(), &progress));
    assert_send(workspace.delete(DeleteMode::Kill));
    assert_send(workspace.clone_to(&name));
    assert_send(workspace.fork(&[], ForkOptions::new(), &progress));
    assert_send(workspace.fork_numbered(1, ForkOptions::new(), &progress));
    assert_send(workspace.rename_to(&name));
    let nothing: &Lookup = &|_| None;
    let spec = SpecFile::default();
    assert_send(workspace.apply(&spec, nothing, ApplyMode::DryRun));
    assert_send(workspace.exec(ExecOptions::new(["true"])));
    assert_send(workspace.start_job(ExecOptions::new(["true"])));
    let job = workspace.job(JobId::FIRST);
    assert_send(job.output(JobOutputOptions::new()));
    assert_send(job.wait());
    assert_send(job.signal(2));
    assert_send(job.kill());
    assert_send(job.stdin());
    assert_send(job.follow_output(JobOutputOptions::new()));
    assert_send(workspace.console());
    assert_send(workspace.publish(&[]));
    assert_send(workspace.unpublish("80".parse().expect("a port")));
    assert_send(workspace.list_files("/x", FileListOptions::new(1), &progress));
    assert_send(workspace.read_file("/x", FileRange::new(1), &progress));
    assert_send(workspace.write_file("/x", Vec::new(), 0o644, &progress));
    assert_send(workspace.copy_in(CopySource::path("x"), "/x", &progress));
    assert_send(workspace.copy_out("/x", CopyTarget::path("x"), &progress));
    assert_send(workspace.sync(&SyncOptions::new("x", "/x"), &progress));
    assert_send(workspace.sync_watching(&SyncOptions::new("x", "/x"), &progress));
    assert_send(workspace.copy_out_tar("/x", SymlinkMode::Follow, &progress));
    assert_send(workspace.fetch_artifact("x", Path::new("x"), &progress));
    assert_send(workspace.fetch_artifact_tar("x", &progress));
    assert_send(workspace.changes(&progress));
    assert_send(workspace.export(&progress));
    assert_send(workspace.export_to("x".as_ref(), &progress));
    assert_send(workspace.processes());
    assert_send(workspace.commit(CommitOptions::new("x"), &progress));
    assert_send(workspace.logs(LogOptions::new()));
    assert_send(workspace.events());
    assert_send(workspace.egress());
    assert_send(workspace.follow_logs(LogOptions::new()));
    assert_send(workspace.follow_events());
    assert_send(workspace.follow_egress());
    assert_send(workspace.stats());
    assert_send(workspace.is_responsive(Duration::ZERO));
    assert_send(workspace.follow_stats());
}

/// Not called: there is no running workspace.
#[allow(dead_code, reason = "only compiled")]
fn every_future_of_a_stream_is_send(
    mut exec: Exec,
    mut console: Console,
    mut items: Streaming<Vec<u8>>,
    mut input: JobStdin,
    mut run: AttachedRun,
) {
    assert_send(input.write(b"x"));
    assert_send(input.ended());
    assert_send(input.close());
    assert_send(run.next());
    assert_send(run.wait());
    assert_send(exec.next());
    assert_send(exec.control().kill());
    assert_send(exec.control().signal(2));
    assert_send(exec.control().resize(1, 1));
    assert_send(exec.control().started());
    assert_send(console.next());
    assert_send(console.write(b"x"));
    assert_send(items.next());
    if let Some(stdin) = exec.take_stdin() {
        assert_send(stdin.write("x"));
    }
    assert_send(exec.wait());
}

/// Not called, as above: these take what the others took.
#[allow(dead_code, reason = "only compiled")]
fn the_other_ends_of_streams_are_send(exec: Exec, input: JobStdin) {
    assert_send(exec.collect_output(1));
    assert_send(input.finish());
}

/// A new method must be added above: its name must be in this file.
#[test]
fn every_public_future_is_in_this_file() {
    let here = include_str!("futures_are_send.rs");
    let mut found = 0;
    for source in rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = fs::read_to_string(&source).expect("a source file can be read");
        for declaration in text.split("    pub async fn ").skip(1) {
            let name: String = declaration.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            assert!(here.contains(&format!(".{name}(")), "`{name}` of {} is missing here", source.display());
            found += 1;
        }
    }
    assert!(found > 50, "only {found} futures were found");
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a source directory can be listed");
    let paths = entries.map(|entry| entry.expect("an entry can be read").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => rust_files(&path),
            false => Vec::from_iter(path.extension().is_some_and(|end| end == "rs").then_some(path)),
        })
        .collect()
}
