//! How a layer is compressed, told from its first bytes. Media types lie now and then; the bytes do not.

use std::io::{self, Read};
use std::path::Path;

use microagent_store::{Access, open_file};

use crate::manifest::{LAYER_GZIP, LAYER_TAR, LAYER_ZSTD};
use crate::rootfs::Compression;

/// How many bytes tell.
pub(crate) const MAGIC_LEN: u64 = 6;

/// Names a compression that is known and not taken.
pub(crate) fn unsupported_name(start: &[u8]) -> Option<&'static str> {
    [(XZ, "xz"), (BZIP2, "bzip2")]
        .into_iter()
        .find(|(magic, _)| start.starts_with(magic))
        .map(|(_, name)| name)
}

const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z'];
const BZIP2: &[u8] = b"BZh";

/// Says why a compression that is known is not taken.
pub(crate) fn unsupported(start: &[u8]) -> Option<&'static str> {
    match unsupported_name(start)? {
        "xz" => Some("it is compressed with xz, which is not supported"),
        _ => Some("it is compressed with bzip2, which is not supported"),
    }
}

/// The compression of a file.
pub(crate) fn of_file(path: &Path) -> io::Result<Compression> {
    Ok(Compression::sniff(&start_of(path)?))
}

/// The bytes of a file that tell its compression.
pub(crate) fn start_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    open_file(path, Access::Read)?.take(MAGIC_LEN).read_to_end(&mut start)?;
    Ok(start)
}

/// The media type of a layer with that compression.
pub(crate) fn media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => LAYER_TAR,
        Compression::Gzip => LAYER_GZIP,
        Compression::Zstd => LAYER_ZSTD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_by_the_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        for (content, media_type_expected) in [
            (&[0x1f, 0x8b, 8][..], LAYER_GZIP),
            (&[0x28, 0xb5, 0x2f, 0xfd], LAYER_ZSTD),
            (b"usr/", LAYER_TAR),
            (b"", LAYER_TAR),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(media_type(of_file(&path).unwrap()), media_type_expected);
        }
        assert!(unsupported(b"BZh91").is_some() && unsupported(b"usr/").is_none());
    }
}
