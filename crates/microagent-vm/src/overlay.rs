//! A workspace's disk: a qcow2 overlay on the image's base disk, or on layers of it.

use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use imago::FormatCreateBuilder;
use imago::file::File;
use imago::format::PreallocateMode;
use imago::format::drivers::FormatDriverInstance;
use imago::qcow2::Qcow2;
use microagent_ext4::{SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, size_by_superblock};
use microagent_store::{Access, open_file};

/// Feature bits about the last use: dirty (bit 0) and corrupt (bit 1).
const TOLERATED_FEATURES: u64 = 0b11;

/// Why an overlay could not be created or grown.
#[derive(Debug, thiserror::Error)]
#[error("cannot make disk `{}`", path.display())]
pub struct OverlayError {
    /// The overlay.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

/// What an overlay lies on.
#[derive(Debug, Clone, Copy)]
pub enum Backing<'a> {
    /// A base disk.
    Base(&'a Path),
    /// A layer.
    Layer(&'a Path),
}

/// Creates an empty overlay of `size_bytes`. The cost does not depend on the size of what it lies on.
///
/// The header names the backing file for tools such as `qemu-img`; microagent never uses that name.
///
/// # Errors
/// Fails if the file exists or cannot be written. The caller has to remove an incomplete file.
pub fn create_overlay(path: &Path, backing: Backing<'_>, size_bytes: u64) -> Result<(), OverlayError> {
    create(path, backing, size_bytes).map_err(|source| OverlayError { path: path.to_owned(), source })
}

fn create(path: &Path, backing: Backing<'_>, size_bytes: u64) -> io::Result<()> {
    let (under, format) = match backing {
        Backing::Base(path) => (path, "raw"),
        Backing::Layer(path) => (path, "qcow2"),
    };
    let under = under.to_str().ok_or_else(|| io::Error::other("the path of the base disk is not UTF-8"))?;
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let file = File::try_from(file)?;
    Qcow2::<File>::create_builder(file).size(size_bytes).backing(under.to_owned(), format.to_owned()).create()
}

/// Grows an overlay to `size_bytes`; a larger one is not changed. Its guest must not run. The base disk is not read.
///
/// # Errors
/// Fails if it cannot be read or written; its size is then unchanged.
pub fn grow_overlay(path: &Path, size_bytes: u64) -> Result<(), OverlayError> {
    grow(path, size_bytes).map_err(|source| OverlayError { path: path.to_owned(), source })
}

fn grow(path: &Path, size_bytes: u64) -> io::Result<()> {
    let file = open_file(path, Access::Modify)?;
    check_features(&file)?;
    let overlay = Qcow2::<File>::open_image(File::try_from(file)?, true)?;
    overlay.resize_grow(size_bytes, PreallocateMode::None)?;
    overlay.flush()?;
    overlay.sync()
}

/// Checks that an overlay's header has only features that [`create_overlay`] writes. A QEMU that was taken over could
/// have changed the header to name another file for the data, which the next QEMU would then open.
///
/// # Errors
/// Fails if it cannot be read, is not a qcow2 file of version 3, or has other features or tables of other sizes.
///
/// # Source
/// QEMU's `docs/interop/qcow2.txt`: version at byte 4, incompatible features at bytes 72 to 79.
pub(crate) fn check_features(overlay: &std::fs::File) -> io::Result<()> {
    let mut header = [0; 80];
    overlay.read_exact_at(&mut header, 0)?;
    if !header.starts_with(b"QFI\xfb\0\0\0\x03") {
        return Err(io::Error::other("it is not a qcow2 file of version 3"));
    }
    let features = header[72..].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    match features & !TOLERATED_FEATURES {
        0 => check_tables(overlay),
        found => Err(io::Error::other(format!("its header has features that are never written: {found:#x}"))),
    }
}

/// Checks what a reader of an overlay must not trust before it allocates memory: its clusters have 64 KiB, and its table of
/// reference counts has at least one cluster and as many as [`create_overlay`] gives the largest disk.
///
/// # Source
/// QEMU's `docs/interop/qcow2.txt`: logarithm of the cluster's size at bytes 20 to 23, clusters of the reference count table
/// at bytes 56 to 59.
fn check_tables(overlay: &std::fs::File) -> io::Result<()> {
    /// A cluster of this table, of 8 bytes an entry, counts 8192 blocks of 32,768 clusters: 16 TiB.
    const COUNT_TABLE_CLUSTERS_MAX: u32 = 2;
    let field = |at| {
        let mut bytes = [0; 4];
        overlay.read_exact_at(&mut bytes, at).map(|()| u32::from_be_bytes(bytes))
    };
    let (cluster_bits, count_clusters) = (field(20)?, field(56)?);
    if cluster_bits == 16 && (1..=COUNT_TABLE_CLUSTERS_MAX).contains(&count_clusters) {
        Ok(())
    } else {
        Err(io::Error::other("its header has tables that are never written"))
    }
}

/// [`check_features`], and that the header has no larger disk than `size_bytes`. The machine that wrote to the overlay could
/// have changed that, too.
///
/// # Errors
/// Fails if the header cannot be read, has other features, or another size.
pub(crate) fn check_overlay(overlay: &std::fs::File, size_bytes: u64) -> io::Result<()> {
    check_features(overlay)?;
    match header_size(overlay)? {
        found if found <= size_bytes => Ok(()),
        found => Err(io::Error::other(format!(
            "its header has {} MiB, the workspace {} MiB: a machine changed it, or a resize was interrupted and has to be \
             repeated",
            found >> 20,
            size_bytes >> 20,
        ))),
    }
}

/// Size of the disk in an overlay's header.
///
/// # Source
/// QEMU's `docs/interop/qcow2.txt`: the size of the disk at bytes 24 to 31.
fn header_size(overlay: &std::fs::File) -> io::Result<u64> {
    let mut size = [0; 8];
    overlay.read_exact_at(&mut size, 24)?;
    Ok(u64::from_be_bytes(size))
}

/// Largest size of an overlay's file, in bytes, by its header: all of its disk, with the tables for that. A table's entry
/// of 8 bytes stands for a cluster of 64 KiB, and a reference count of 2 bytes for each of those.
///
/// # Errors
/// Fails when the header cannot be read.
pub(crate) fn largest_bytes(overlay: &std::fs::File) -> io::Result<u64> {
    /// For what is there whatever the size is.
    const BASIC_BYTES: u64 = 16 << 20;
    let size = header_size(overlay)?;
    Ok(size.saturating_add(size / 1024).saturating_add(BASIC_BYTES))
}

/// Checks that a layer is the file that it was when it was made, by its length, and that it has no features that are never
/// written.
///
/// # Errors
/// Fails if it cannot be read, has another length, or has other features.
pub(crate) fn check_layer(layer: &std::fs::File, bytes: u64) -> io::Result<()> {
    let found = layer.metadata()?.len();
    if bytes != 0 && found != bytes {
        return Err(io::Error::other(format!("the layer is damaged: it has {found} bytes of {bytes}")));
    }
    check_features(layer)
}

/// Checks that a base disk is complete, by the size in its file system's header.
///
/// # Errors
/// Fails if it cannot be read, was not written by microagent, or has another size.
pub(crate) fn check_base(base: &std::fs::File) -> io::Result<()> {
    let damaged = |why: String| io::Error::other(format!("{why}; it is made again when its image is pulled"));
    let mut superblock = [0; SUPERBLOCK_LEN];
    match base.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        read => read?,
    }
    let found = base.metadata()?.len();
    match size_by_superblock(&superblock) {
        None => Err(damaged("the base disk is damaged".to_owned())),
        Some(size) if size != found => {
            Err(damaged(format!("the base disk is damaged: it has {found} bytes of {size}")))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_small_and_refuses_to_overwrite() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        create_overlay(&path, Backing::Base(Path::new("/base.ext4")), 64 << 30).unwrap();
        let largest = largest_bytes(&std::fs::File::open(&path).unwrap()).unwrap();
        assert!((64 << 30..65 << 30).contains(&largest), "{largest}");
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.starts_with(b"QFI\xfb"));
        assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
        assert!(create_overlay(&path, Backing::Base(Path::new("/base.ext4")), 64 << 30).is_err());
    }

    #[test]
    fn grows_and_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        // The size lies at byte 24 of the header, as the format has it.
        let size = || {
            let bytes = std::fs::read(&path).unwrap();
            u64::from_be_bytes(bytes[24..32].try_into().unwrap())
        };
        create_overlay(&path, Backing::Base(Path::new("/base.ext4")), 1 << 30).unwrap();
        for (asked, then) in [(2 << 30, 2 << 30), (2 << 30, 2 << 30), (1 << 30, 2 << 30), (3 << 40, 3 << 40)]
        {
            grow_overlay(&path, asked).unwrap();
            assert_eq!(size(), then, "{asked}");
        }
        assert!(grow_overlay(&dir.path().join("none"), 1 << 30).is_err());
        std::fs::write(&path, b"no qcow2").unwrap();
        assert!(grow_overlay(&path, 1 << 30).is_err());
    }

    #[test]
    fn an_overlay_that_names_another_file_for_its_data_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        create_overlay(&path, Backing::Base(Path::new("/base.ext4")), 1 << 30).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        check_features(&file).unwrap();
        // Byte 79 has bits 0 to 7.
        for (bits, is_fine) in [(0b001, true), (0b010, true), (0b100, false), (0b1_0000, false)] {
            file.write_at(&[bits], 79).unwrap();
            assert_eq!(check_features(&file).is_ok(), is_fine, "{bits:#b}");
        }
        std::fs::write(&path, b"QFI\xfb\0\0\0\x02").unwrap();
        assert!(check_features(&file).is_err());
    }

    #[test]
    fn a_header_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        create_overlay(&path, Backing::Base(Path::new("/base.ext4")), 1 << 30).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let good = std::fs::read(&path).unwrap();
        check_overlay(&file, 1 << 30).unwrap();
        assert!(check_overlay(&file, (1 << 30) - 1).is_err());
        // Size of the disk, of a cluster, of the table of reference counts.
        let lies: [(u64, &[u8]); 4] =
            [(24, &(1_u64 << 40).to_be_bytes()), (20, &[0, 0, 0, 9]), (56, &[0; 4]), (56, &[0xff; 4])];
        for (at, lie) in lies {
            file.write_all_at(lie, at).unwrap();
            assert!(check_overlay(&file, 1 << 30).is_err(), "{at}: {lie:?}");
            file.write_all_at(&good, 0).unwrap();
        }
        file.write_all_at(&[0; 4], 56).unwrap();
        assert!(grow_overlay(&path, 2 << 30).is_err());
    }
}
