//! Whatever lies in a state directory in place of a record: a record or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_store::{StateDir, VolumeRecord, Workload, WorkspaceRecord};

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<WorkspaceRecord>(bytes);
    let _ = serde_json::from_slice::<VolumeRecord>(bytes);
    let _ = serde_json::from_slice::<Workload>(bytes);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let state = StateDir::at(dir.path().to_owned());
    let workspace = state.workspace(&"fuzzed".parse().expect("a name"));
    std::fs::create_dir_all(workspace.path()).expect("a directory of our own");
    std::fs::write(workspace.record(), bytes).expect("a small file");
    let _ = WorkspaceRecord::load(&workspace);
});
