//! Images that are measured: made once from Debian's packages, kept in the work directory.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::Bench;
use crate::program::run;

/// The small image: busybox.
pub(crate) const SMALL: &str = "bench/small:1";

/// The large image: busybox and 1 GiB beside it.
pub(crate) const LARGE: &str = "bench/large:1";

/// Names under which busybox is called.
const APPLETS: [&str; 5] = ["sh", "true", "sleep", "uname", "reboot"];

/// Size of the file in the large image.
const LARGE_BYTES: u64 = 1 << 30;

/// Directories of the image with many files, files in each, and the size of a file.
const MANY_DIRECTORIES: u32 = 100;
const MANY_FILES: u32 = 100;
const MANY_BYTES: u64 = 50_000;

impl Bench {
    /// A tar of the small root file system.
    pub(crate) fn small_tar(&self) -> Result<PathBuf> {
        self.once("small.tar", |tar| {
            let rootfs = self.rootfs("small")?;
            pack(&rootfs, tar)
        })
    }

    /// A tar of the large root file system.
    pub(crate) fn large_tar(&self) -> Result<PathBuf> {
        self.once("large.tar", |tar| {
            let rootfs = self.rootfs("large")?;
            write_noise(&rootfs.join("noise"), LARGE_BYTES)?;
            pack(&rootfs, tar)?;
            Ok(fs::remove_dir_all(rootfs)?)
        })
    }

    /// A tar of a root file system with many files.
    pub(crate) fn many_files_tar(&self) -> Result<PathBuf> {
        self.once("many.tar", |tar| {
            let rootfs = self.rootfs("many")?;
            for directory in 0..MANY_DIRECTORIES {
                let directory = rootfs.join(format!("usr/lib/{directory}"));
                fs::create_dir_all(&directory)?;
                for file in 0..MANY_FILES {
                    write_noise(&directory.join(file.to_string()), MANY_BYTES)?;
                }
            }
            pack(&rootfs, tar)?;
            Ok(fs::remove_dir_all(rootfs)?)
        })
    }

    /// An OCI layout with one gzip layer: a minimal Debian.
    pub(crate) fn debian_layout(&self) -> Result<PathBuf> {
        self.once("debian.oci", |layout| {
            let tar = self.once("debian.tar", |tar| {
                eprintln!("making a minimal Debian with mmdebstrap (about a minute) …");
                let mut command = Command::new("mmdebstrap");
                run(command.args(["--quiet", "--variant=minbase", "bookworm"]).arg(tar)).map(drop)
            })?;
            let image = format!("{}:1", layout.display());
            run(Command::new("umoci").args(["init", "--layout"]).arg(layout))?;
            run(Command::new("umoci").args(["new", "--image", &image]))?;
            run(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(tar)).map(drop)
        })
    }

    /// The same in one file, for podman.
    pub(crate) fn debian_archive(&self) -> Result<PathBuf> {
        let layout = self.debian_layout()?;
        self.once("debian.oci.tar", |archive| {
            let from = format!("oci:{}:1", layout.display());
            let to = format!("oci-archive:{}:localhost/bench/debian:1", archive.display());
            run(Command::new("skopeo").args(["copy", "--quiet", &from, &to])).map(drop)
        })
    }

    /// Brings an image into the shared state directory.
    pub(crate) fn import(&self, tar: &Path, reference: &str) -> Result<()> {
        run(self.microagent(&self.state()).args(["image", "import"]).arg(tar).arg(reference)).map(drop)
    }

    /// Makes a file or directory under its final name only when it is complete.
    fn once(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.dir.join(name);
        if path.exists() {
            return Ok(path);
        }
        let half = self.dir.join(format!("half-made-{name}"));
        if half.is_dir() {
            fs::remove_dir_all(&half)?;
        }
        make(&half).with_context(|| format!("making {}", path.display()))?;
        fs::rename(&half, &path)?;
        Ok(path)
    }

    fn rootfs(&self, name: &str) -> Result<PathBuf> {
        let rootfs = self.dir.join(name);
        if rootfs.exists() {
            fs::remove_dir_all(&rootfs)?;
        }
        fs::create_dir_all(rootfs.join("bin"))?;
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("busybox-static is not installed")?;
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet))?;
        }
        Ok(rootfs)
    }
}

fn pack(rootfs: &Path, tar: &Path) -> Result<()> {
    let flags = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-cf"];
    run(Command::new("tar").args(flags).arg(tar).arg("-C").arg(rootfs).arg(".")).map(drop)
}

/// Bytes that no file system stores as a hole and no compressor makes small (xorshift).
fn write_noise(path: &Path, len: u64) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..len / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.write_all(&state.to_le_bytes())?;
    }
    Ok(out.flush()?)
}
