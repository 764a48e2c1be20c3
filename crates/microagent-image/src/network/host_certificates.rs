//! Certificates that are kept for one registry, in the directories that Docker and podman read.
//!
//! # Source
//! docker.com, "Verify repository client with certificates"; containers-certs.d(5).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use microagent_store::{Access, open_file};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::environment::Environment;
use crate::error::ImageError;

/// Largest file of certificates; a chain has some kilobytes, a bundle of everybody's some hundred.
const FILE_LIMIT: u64 = 1024 * 1024;
/// Most files of one registry that are looked at.
const FILES_MAX: usize = 64;

/// What is known of one registry.
#[derive(Debug, Default)]
pub(super) struct HostCertificates {
    /// `*.crt`: trusted for this registry besides the system's.
    pub(super) authorities: Vec<CertificateDer<'static>>,
    /// `*.cert` with its `*.key`: what we show to it.
    pub(super) own: Option<OwnCertificate>,
}

/// Our certificate for a registry that asks for one.
#[derive(Debug)]
pub(super) struct OwnCertificate {
    pub(super) path: PathBuf,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl HostCertificates {
    /// Reads the first directory that is kept for a registry (`HOST[:PORT]`); most registries have none.
    pub(super) fn find(environment: &Environment, registry: &str) -> Result<HostCertificates, ImageError> {
        for dir in &environment.registry_certificate_dirs {
            let dir = dir.join(registry);
            match std::fs::read_dir(&dir) {
                Ok(entries) => {
                    let names: io::Result<BTreeSet<PathBuf>> =
                        entries.take(FILES_MAX).map(|entry| entry.map(|entry| entry.path())).collect();
                    return Self::read(names.map_err(|source| unusable(&dir, source.into()))?);
                }
                // Directories of root's that are not for us say nothing to us.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {}
                Err(e) => return Err(unusable(&dir, e.into())),
            }
        }
        Ok(HostCertificates::default())
    }

    fn read(files: BTreeSet<PathBuf>) -> Result<HostCertificates, ImageError> {
        let mut found = HostCertificates::default();
        for path in &files {
            match path.extension().and_then(OsStr::to_str) {
                Some("crt") => found.authorities.extend(certificates(path)?),
                Some("cert") if found.own.is_none() => {
                    let key_file = path.with_extension("key");
                    let key = PrivateKeyDer::from_pem_slice(&contents(&key_file)?)
                        .map_err(|source| unusable(&key_file, source.into()))?;
                    found.own = Some(OwnCertificate { path: path.clone(), chain: certificates(path)?, key });
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ImageError> {
    let bytes = contents(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(unusable(path, "no certificate in it".into())),
        Ok(certificates) => Ok(certificates),
        Err(source) => Err(unusable(path, source.into())),
    }
}

fn contents(path: &Path) -> Result<Vec<u8>, ImageError> {
    // Links are followed: systems keep one file under several names.
    let read = open_file(path, Access::ReadFollowing).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_LIMIT { Err(io::Error::other("it is too large")) } else { Ok(bytes) }
    });
    read.map_err(|source| unusable(path, source.into()))
}

fn unusable(path: &Path, source: Box<dyn std::error::Error + Send + Sync>) -> ImageError {
    ImageError::Certificates { path: path.to_owned(), source }
}
