//! What fuzzers reach of the decoders that are nobody else's business. Built with the feature `fuzzing` only.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::archive::{Archive, ArchiveError};
use crate::blocking::Meter;
use crate::config;
use crate::error::ImageError;
use crate::manifest::{self, Document, Platform};
use crate::reference::ImageReference;
use crate::registry::{challenge, retry_after};

/// Reads bytes as each of the documents that a registry, an archive or a person hands in. What is taken means the same
/// when it is read again from what it is written as.
pub fn documents(bytes: &[u8]) {
    for media_type in [None, Some("application/vnd.oci.image.manifest.v1+json")] {
        match manifest::decode(bytes, media_type) {
            Ok(Document::Image(image)) => {
                let again = manifest::decode(&image.encode(), None);
                assert!(matches!(again, Ok(Document::Image(_))), "a manifest that was written is not read");
                let _ = (image.to_oci(), image.distinct_layers().len());
            }
            Ok(Document::Index(index)) => drop(manifest::select(&index, &Platform::default()).cloned()),
            Err(_) => {}
        }
    }
    if let Ok(parsed) = config::decode(bytes) {
        let _ = crate::disk::id(&parsed.diff_ids, &parsed.config.volumes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for challenge in challenge::parse(text) {
        let _ = challenge.parameter("realm");
    }
    let _ = retry_after::parse(text, Timestamp::UNIX_EPOCH);
    let _ = text.parse::<Platform>();
    if let Ok(ImageReference::Registry(reference)) = text.parse() {
        let full = reference.to_string();
        let again = full.parse::<ImageReference>();
        assert!(matches!(again, Ok(ImageReference::Registry(again)) if again.to_string() == full), "{full}");
    }
}

/// Reads bytes as an archive of images.
pub fn archive(bytes: &[u8]) {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let open = || -> io::Result<std::fs::File> {
        let mut file = tempfile::tempfile_in(scratch.path())?;
        file.write_all(bytes)?;
        Ok(file)
    };
    let file = open().expect("a small file");
    let meter = Meter::default();
    let images = Archive::of(file, "archive".into(), scratch.path(), &meter)
        .and_then(|archive| archive.images(&Platform::default(), &meter));
    match images {
        Ok(images) => {
            for found in images {
                let _ = found.image.read_blob(&found.image.root.digest, 1 << 20);
            }
        }
        Err(ImageError::Archive { source, .. }) if matches!(*source, ArchiveError::Open { .. }) => {
            panic!("a file of our own cannot be opened: {source}")
        }
        Err(_) => {}
    }
}
