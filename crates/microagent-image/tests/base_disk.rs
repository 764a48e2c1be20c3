//! Base disks held against `umoci unpack`, and against layers that are broken or hostile.
//!
//! The comparison needs root (to unpack owners and devices, and to mount) and the fixtures
//! (`cargo xtask fixtures`); without root it prints that. The rest runs for anyone.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests are tests")]

#[path = "base_disk/archive.rs"]
mod archive;
#[path = "base_disk/bundles.rs"]
mod bundles;
#[path = "base_disk/compare.rs"]
mod compare;
#[path = "base_disk/faults.rs"]
mod faults;
#[path = "base_disk/generated.rs"]
mod generated;
#[path = "base_disk/growth.rs"]
mod growth;
#[path = "base_disk/oracle.rs"]
mod oracle;

use std::path::{Path, PathBuf};
use std::process::Command;

use microagent_image::rootfs::{self, Compression, DiskStats, LayerFile, Limits, Rootfs, RootfsError};

/// A program that may lie where only root looks.
fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|program| program.exists())
        .unwrap_or_else(|| panic!("`{name}` is missing: run xtask/install-packages"))
}

/// Says why a test is skipped when it needs root and is not.
fn is_root(purpose: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: {purpose} needs root");
    }
    root
}

/// What a command prints, which must succeed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed: {}\n{text}", output.status);
    text
}

#[track_caller]
fn assert_clean(disk: &Path) {
    run(Command::new(tool("e2fsck")).arg("-fn").arg(disk));
}

/// A directory for one test, with a place for temporary files of which none may stay.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::create_dir(dir.path().join("scratch")).unwrap();
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Builds `disk` of layers in files.
    fn build(&self, layers: &[LayerFile]) -> Result<DiskStats, RootfsError> {
        self.build_with(layers, &Limits::default(), &|| false)
    }

    fn build_with(
        &self,
        layers: &[LayerFile],
        limits: &Limits,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<DiskStats, RootfsError> {
        let scratch = self.path("scratch");
        let result = rootfs::build(
            &Rootfs { layers, volumes: &[] },
            &self.path("disk"),
            &scratch,
            limits,
            &|_| {},
            cancelled,
        );
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "temporary files stay");
        assert_eq!(self.path("disk").exists(), result.is_ok(), "a failed build leaves no disk");
        result
    }

    /// Builds `disk` of uncompressed archives.
    fn build_tars(&self, tars: &[Vec<u8>]) -> Result<DiskStats, RootfsError> {
        self.build(&self.layers(tars))
    }

    /// Puts archives or blobs into files, compressed as they look.
    fn layers(&self, blobs: &[Vec<u8>]) -> Vec<LayerFile> {
        let write = |(i, blob): (usize, &Vec<u8>)| {
            let path = self.path(&format!("layer{i}"));
            std::fs::write(&path, blob).unwrap();
            LayerFile { path, compression: Compression::sniff(blob), diff_id: None }
        };
        blobs.iter().enumerate().map(write).collect()
    }
}
