//! Operations on a workspace of which only the record exists.

use microagent_store::{WORKSPACE_FORMAT, WorkspaceRecord};
use serde_json::json;

use crate::{
    CancellationToken, CommitOptions, CopySource, CopyTarget, CreateOptions, Engine, EngineOptions, Error,
    FileRange, Progress, RunOptions, StartOptions, State, SuperviseOptions, SymlinkMode, Workspace,
};

/// An engine and its workspace `web`, which is halted.
pub(crate) fn halted() -> (tempfile::TempDir, Workspace) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new(EngineOptions::new(dir.path().join("state"), "/bin/false"));
    engine.prepare().unwrap();
    let mut record: WorkspaceRecord = serde_json::from_value(json!({
        "format": WORKSPACE_FORMAT,
        "name": "web",
        "created_at": "2026-01-01T00:00:00Z",
        "image": {
            "reference": "busybox",
            "resolved_reference": "docker.io/library/busybox:latest",
            "digest": "sha256:0",
            "disk": "sha256:1",
        },
        "profile": "small",
        "resources": { "memory_mib": 512, "cpu_count": 2, "size_mib": 1024 },
        "network": "user",
        "hostname": "web",
        "disks": [],
        "secrets": [],
        "outputs": [{ "name": "a", "path": "/a" }],
        "disposable": false,
    }))
    .unwrap();
    record.machine.state = State::Halted;
    engine
        .state()
        .create_workspace(&record.name, record.durability(), |dir| {
            record.save_new(dir).map_err(std::io::Error::other)
        })
        .unwrap();
    let workspace = engine.workspace(&record.name);
    (dir, workspace)
}

#[tokio::test]
async fn a_call_that_is_cancelled_before_it_begins_has_no_effect() {
    let (dir, web) = halted();
    let engine = web.engine();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let progress =
        Progress::new().cancel(cancel).observer(|event| panic!("a cancelled operation reports {event:?}"));
    let options = || RunOptions::new("busybox").name("once".parse().unwrap());
    let destination = dir.path().join("out");
    let outcomes = [
        web.start(StartOptions::new(), &progress).await.map(drop),
        web.supervise(SuperviseOptions::new(), &progress).await.map(drop),
        web.commit(CommitOptions::new("new"), &progress).await.map(drop),
        web.copy_in(CopySource::path("/etc/hostname"), "/", &progress).await,
        web.copy_out("/a", CopyTarget::path(&destination), &progress).await,
        web.copy_out_tar("/a", SymlinkMode::Keep, &progress).await.map(drop),
        web.read_file("/a", FileRange::new(1), &progress).await.map(drop),
        web.write_file("/a", Vec::new(), 0o644, &progress).await,
        web.fetch_artifact("a", &destination, &progress).await.map(drop),
        engine.create(CreateOptions::new("new".parse().unwrap(), "busybox"), &progress).await.map(drop),
        engine.run(options(), &progress).await.map(drop),
        engine.run_detached(options(), &progress).await.map(drop),
        engine.images().create("busybox", &crate::image::PullOptions::default(), &progress).await.map(drop),
    ];
    for (index, outcome) in outcomes.into_iter().enumerate() {
        assert!(matches!(outcome, Err(Error::Cancelled)), "call {index}: {outcome:?}");
    }
    assert_eq!(web.state().unwrap(), State::Halted);
    assert_eq!(engine.list().await.unwrap().len(), 1);
    assert!(!destination.exists());
}

#[test]
fn a_host_path_that_does_not_exist_is_not_found() {
    let missing = |name: &str| Error::File {
        action: "read",
        path: name.into(),
        source: std::io::ErrorKind::NotFound.into(),
    };
    let error = missing("site");
    assert_eq!(error.kind(), crate::ErrorKind::NotFound);
    assert_eq!(error.hint().unwrap().to_string(), "check the path");
}
