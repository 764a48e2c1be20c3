//! Whatever an image holds in place of a layer: an error or a disk, never a panic, nothing outside.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_image::rootfs::{Compression, LayerFile, Limits, Rootfs, build};

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("layer");
    std::fs::write(&path, bytes).expect("a small file");
    let layer = LayerFile { path, compression: Compression::sniff(bytes), diff_id: None };
    let limits = Limits { max_unpacked_bytes: 1 << 20, max_entries: 1000, ..Limits::default() };
    let volumes = ["/data/of/it".to_owned(), "../out".to_owned()];
    let rootfs = Rootfs { layers: &[layer], volumes: &volumes };
    let _ = build(&rootfs, &dir.path().join("disk"), dir.path(), &limits, &|_| {}, &|| false);
});
