//! Whatever a guest sends in place of files: an error or files, never a panic, nothing outside.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_tar::read::ReadSource;
use microagent_tree::{Rules, unpack};

fuzz_target!(|bytes: &[u8]| {
    let outer = tempfile::tempdir().expect("a temporary directory");
    let dir = outer.path().join("destination");
    std::fs::create_dir(&dir).expect("a fresh directory");
    let root = std::fs::File::open(&dir).expect("a directory of our own");
    // Files are filled with what was sent, but a hole costs nothing and may have any length.
    let _ = unpack(&root.into(), ReadSource::new(bytes), Rules::HARMLESS);
    let count = std::fs::read_dir(outer.path()).expect("our own directory").count();
    assert_eq!(count, 1, "something lies beside the destination");
});
