//! What lies below a directory, to be compared with what lay there before.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One line per path: kind, mode, size, time of change. Links are not followed. A path that goes away while we
/// look is left out.
pub fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        // A directory's size and time change with what is in it, which has lines of its own.
        let (size, time) = if metadata.is_dir() { (0, 0) } else { (metadata.size(), metadata.mtime_nsec()) };
        found.insert(path, format!("mode {:o} size {size} time {time}", metadata.mode()));
    }
    found
}

/// All sockets and pipes below a directory.
pub fn channels(root: &Path) -> Vec<PathBuf> {
    let is_channel = |path: &PathBuf| {
        fs::symlink_metadata(path).is_ok_and(|metadata| {
            let kind = metadata.file_type();
            kind.is_socket() || kind.is_fifo()
        })
    };
    listing(root).into_keys().filter(is_channel).collect()
}

/// Bytes that the files below a directory take on disk.
pub fn disk_usage(root: &Path) -> u64 {
    listing(root).keys().filter_map(|path| fs::symlink_metadata(path).ok()).map(|m| m.blocks() * 512).sum()
}
