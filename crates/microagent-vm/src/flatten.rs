//! Reads layers of a root disk as one, and merges them into one file. The layers are what guests wrote: their headers and
//! tables are hostile, and files that they name are never opened.

use std::cmp;
use std::io;
use std::path::{Path, PathBuf};

use imago::file::File;
use imago::format::access::FormatAccess;
use imago::format::drivers::ShallowMapping;
use imago::qcow2::Qcow2;
use microagent_store::{Access, open_file};

use crate::overlay::{Backing, OverlayError, check_features, check_layer, create_overlay};
use crate::spec::LayerFile;

/// Bytes that are copied at a time.
const CHUNK: u64 = 1 << 20;

/// What a layer says of a range of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Nothing: the layer below it tells.
    Unallocated,
    Zeros,
    Data,
}

type Image = FormatAccess<File>;

/// A part of what layers change of a base disk.
#[derive(Debug, PartialEq, Eq)]
pub enum DiskPart<'a> {
    /// Zeros, which hide what is below.
    Zeros {
        /// Where they begin.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Bytes, at most 1 MiB.
    Data {
        /// Where they begin.
        offset: u64,
        /// What is there.
        bytes: &'a [u8],
    },
}

/// Reads what these layers, the lowest one first, change of their base disk, in the order of its offsets.
///
/// # Errors
/// Fails if a layer cannot be read or is damaged, or as `each` does.
pub fn read_layers(
    layers: &[LayerFile],
    size_bytes: u64,
    each: impl FnMut(DiskPart<'_>) -> io::Result<()>,
) -> Result<(), OverlayError> {
    let mut images = Vec::new();
    for LayerFile { layer, path } in layers {
        let image = open(path, Some(layer.bytes));
        images.push(image.map_err(|source| OverlayError { path: path.clone(), source })?);
    }
    let top = layers.last().map_or_else(PathBuf::new, |layer| layer.path.clone());
    if images.is_empty() {
        return Ok(());
    }
    read(&images, size_bytes, each).map_err(|source| OverlayError { path: top, source })
}

/// A layer that is being written.
pub struct LayerWriter {
    path: PathBuf,
    image: Image,
}

impl LayerWriter {
    /// Creates the layer, of `size_bytes`, on a base disk.
    ///
    /// # Errors
    /// Fails if the file exists or cannot be written. The caller has to remove an incomplete file.
    pub fn create(path: &Path, base: &Path, size_bytes: u64) -> Result<LayerWriter, OverlayError> {
        create_overlay(path, Backing::Base(base), size_bytes)?;
        let opened = open_file(path, Access::Modify)
            .and_then(|file| Qcow2::<File>::open_image(File::try_from(file)?, true));
        let image = opened.map_err(|source| OverlayError { path: path.to_owned(), source })?;
        Ok(LayerWriter { path: path.to_owned(), image: Image::new(image) })
    }

    /// Writes a part.
    ///
    /// # Errors
    /// Fails if it cannot be written.
    pub fn write(&self, part: &DiskPart<'_>) -> Result<(), OverlayError> {
        let written = match part {
            DiskPart::Zeros { offset, length } => self.image.write_zeroes(*offset, *length),
            DiskPart::Data { offset, bytes } => self.image.write(*bytes, *offset),
        };
        written.map_err(|source| OverlayError { path: self.path.clone(), source })
    }

    /// Flushes it.
    ///
    /// # Errors
    /// Fails if it cannot be written.
    pub fn finish(self) -> Result<(), OverlayError> {
        let flushed = self.image.flush().and_then(|()| self.image.sync());
        flushed.map_err(|source| OverlayError { path: self.path, source })
    }
}

/// Writes a new overlay of `size_bytes` on `base` with the content of these layers, the lowest one first, and of the overlay
/// on them. The cost depends on what they contain.
///
/// # Errors
/// Fails if a file cannot be read or is damaged, or the new one cannot be written. The caller has to remove an incomplete file.
pub fn flatten(
    layers: &[LayerFile],
    overlay: &Path,
    to: &Path,
    base: &Path,
    size_bytes: u64,
) -> Result<(), OverlayError> {
    let of = |path: &Path| {
        let path = path.to_owned();
        move |source| OverlayError { path, source }
    };
    let mut images = Vec::new();
    for LayerFile { layer, path } in layers {
        images.push(open(path, Some(layer.bytes)).map_err(of(path))?);
    }
    images.push(open(overlay, None).map_err(of(overlay))?);
    create_overlay(to, Backing::Base(base), size_bytes)?;
    let copied = open_file(to, Access::Modify).and_then(|file| {
        let merged = Image::new(Qcow2::<File>::open_image(File::try_from(file)?, true)?);
        read(&images, size_bytes, |part| match part {
            DiskPart::Zeros { offset, length } => merged.write_zeroes(offset, length),
            DiskPart::Data { offset, bytes } => merged.write(bytes, offset),
        })?;
        merged.flush()?;
        merged.sync()
    });
    copied.map_err(of(to))
}

/// Opens a file by itself, without the files that its header names. A layer has a known length.
fn open(path: &Path, bytes: Option<u64>) -> io::Result<Image> {
    let file = open_file(path, Access::Read)?;
    match bytes {
        Some(bytes) => check_layer(&file, bytes)?,
        None => check_features(&file)?,
    }
    Ok(Image::new(Qcow2::<File>::open_image(File::try_from(file)?, false)?))
}

fn read(images: &[Image], size: u64, mut each: impl FnMut(DiskPart<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut offset = 0;
    while offset < size {
        let (content, source, length) = topmost(images, offset, size - offset)?;
        match content {
            Content::Unallocated => {}
            Content::Zeros => each(DiskPart::Zeros { offset, length })?,
            Content::Data => {
                let bytes = &mut buffer[..length as usize];
                source.read(&mut *bytes, offset)?;
                each(DiskPart::Data { offset, bytes })?;
            }
        }
        offset += length;
    }
    Ok(())
}

/// What is at an offset of the disk: the content, the image that has it, and how far it goes.
fn topmost(images: &[Image], offset: u64, most: u64) -> io::Result<(Content, &Image, u64)> {
    let mut length = most;
    let mut lowest = None;
    for image in images.iter().rev() {
        let (content, of_image) = content(image, offset, length)?;
        length = cmp::min(length, of_image);
        lowest = Some(image);
        if content != Content::Unallocated {
            let length = if content == Content::Data { length.min(CHUNK) } else { length };
            return Ok((content, image, length));
        }
    }
    let image = lowest.ok_or_else(|| io::Error::other("there are no layers"))?;
    Ok((Content::Unallocated, image, length))
}

fn content(image: &Image, offset: u64, most: u64) -> io::Result<(Content, u64)> {
    // A layer may be shorter than the disk, which was enlarged afterwards; so is all that is below it.
    let Some(left) = image.size().checked_sub(offset).filter(|left| *left > 0) else {
        return Ok((Content::Unallocated, most));
    };
    let (mapping, length) = image.get_shallow_mapping(offset, most.min(left))?;
    if length == 0 {
        return Err(io::Error::other("its tables are damaged"));
    }
    let content = match mapping {
        ShallowMapping::Raw { .. } | ShallowMapping::Special { .. } => Content::Data,
        ShallowMapping::Zero { explicit: true, .. } => Content::Zeros,
        _ => Content::Unallocated,
    };
    Ok((content, length))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use microagent_model::{Layer, LayerId};

    use super::*;

    const CLUSTER: u64 = 64 << 10;
    const MIB: u64 = 1 << 20;

    fn image(path: &Path, writable: bool) -> Image {
        let access = if writable { Access::Modify } else { Access::Read };
        let file = File::try_from(open_file(path, access).unwrap()).unwrap();
        Image::new(Qcow2::<File>::open_image(file, writable).unwrap())
    }

    /// Makes an overlay with these clusters: the byte that fills them, or zeros.
    fn overlay(dir: &Path, name: &str, size: u64, clusters: &[(u64, Option<u8>)]) -> PathBuf {
        let path = dir.join(name);
        create_overlay(&path, Backing::Base(Path::new("/base.ext4")), size).unwrap();
        let overlay = image(&path, true);
        for (cluster, content) in clusters {
            match content {
                Some(byte) => {
                    let bytes = vec![*byte; CLUSTER as usize];
                    overlay.write(&bytes[..], cluster * CLUSTER).unwrap();
                }
                None => overlay.write_zeroes(cluster * CLUSTER, CLUSTER).unwrap(),
            }
        }
        overlay.flush().unwrap();
        path
    }

    fn layer(path: &Path) -> LayerFile {
        let bytes = std::fs::metadata(path).unwrap().len();
        LayerFile { layer: Layer { id: LayerId::of([0; 16]), bytes }, path: path.to_owned() }
    }

    /// The content of each of the first clusters: what fills it, zeros, or nothing.
    fn clusters(path: &Path, count: u64) -> Vec<Option<u8>> {
        let image = image(path, false);
        let of = |cluster| match content(&image, cluster * CLUSTER, CLUSTER).unwrap() {
            (Content::Unallocated, _) => None,
            (Content::Zeros, _) => Some(0),
            (Content::Data, _) => {
                let mut bytes = vec![0; CLUSTER as usize];
                image.read(&mut bytes[..], cluster * CLUSTER).unwrap();
                assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                Some(bytes[0])
            }
        };
        (0..count).map(of).collect()
    }

    #[test]
    fn the_topmost_layer_counts_and_zeros_hide_what_is_below() {
        let dir = tempfile::tempdir().unwrap();
        let lowest =
            overlay(dir.path(), "a", 2 * MIB, &[(0, Some(1)), (1, Some(1)), (2, Some(1)), (31, Some(1))]);
        // The disk was enlarged after the first layer.
        let middle =
            overlay(dir.path(), "b", 4 * MIB, &[(1, Some(2)), (2, None), (40, Some(2)), (50, Some(2))]);
        let top = overlay(dir.path(), "c", 4 * MIB, &[(40, Some(3)), (50, None), (63, Some(3))]);
        let to = dir.path().join("merged");
        flatten(&[layer(&lowest), layer(&middle)], &top, &to, Path::new("/base.ext4"), 4 * MIB).unwrap();
        let mut expected = vec![None; 64];
        for (cluster, byte) in [(0, 1), (1, 2), (2, 0), (31, 1), (40, 3), (50, 0), (63, 3)] {
            expected[cluster] = Some(byte);
        }
        assert_eq!(clusters(&to, 64), expected);
        assert!(std::fs::metadata(&to).unwrap().len() < 2 * MIB);
    }

    #[test]
    fn a_layer_that_names_another_file_or_is_cut_off_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let lowest = overlay(dir.path(), "a", MIB, &[(0, Some(1)), (9, Some(1))]);
        let top = overlay(dir.path(), "b", MIB, &[]);
        let (to, known) = (dir.path().join("merged"), layer(&lowest));
        let refusal = || {
            let refused =
                flatten(std::slice::from_ref(&known), &top, &to, Path::new("/base.ext4"), MIB).unwrap_err();
            assert!(!to.exists());
            refused.source.to_string()
        };
        let file = std::fs::OpenOptions::new().write(true).open(&lowest).unwrap();
        // Byte 79 has the bit of an external data file.
        std::os::unix::fs::FileExt::write_at(&file, &[4], 79).unwrap();
        assert!(refusal().contains("features"));
        file.set_len(known.layer.bytes / 2).unwrap();
        assert!(refusal().contains("damaged"));
    }
}
