//! Why an image could not be had, listed or removed.
//!
//! Each variant names what was attempted; the cause is in `source`. [`ImageError::hint`] says what a person
//! can do, [`ImageError::is_retryable`] whether the same call may go well later.

mod hint;

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_store::{LoadError, LockError, OpenError, ReadError, WriteError};

use crate::archive::ArchiveError;
use crate::config::ConfigError;
use crate::credentials::CredentialError;
use crate::digest::Digest;
use crate::manifest::ManifestError;
use crate::reference::ReferenceError;
use crate::rootfs::RootfsError;

pub use hint::ImageHint;

/// Why an image operation failed. Unless a variant says otherwise, the cache is unchanged, except
/// that blobs that were fetched completely are kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The reference cannot be parsed.
    #[error("cannot use image reference `{reference}`")]
    Reference {
        /// The reference, made printable.
        reference: String,
        /// What is wrong with the reference.
        source: ReferenceError,
    },
    /// The reference cannot name an image that this host makes or pushes.
    #[error("cannot name an image `{reference}`: {reason}")]
    TargetName {
        /// The reference.
        reference: String,
        /// Why not.
        reason: &'static str,
    },
    /// The pull policy is `never`, and the image is not in the cache.
    #[error("image `{reference}` is not in the cache, and policy `never` forbids fetching it")]
    NotCached {
        /// The full reference.
        reference: String,
    },
    /// The cache has no such image.
    #[error("no image `{reference}` in the cache")]
    NoSuchImage {
        /// Reference or digest, as given.
        reference: String,
    },
    /// A blob of a cached image is missing and cannot be fetched.
    #[error("blob {digest} of image `{reference}` is missing from the cache")]
    MissingBlob {
        /// The full reference of the image.
        reference: String,
        /// The blob.
        digest: Digest,
    },
    /// A shortened digest matches several images.
    #[error("`{prefix}` matches {count} images")]
    Ambiguous {
        /// The shortened digest.
        prefix: String,
        /// How many images it matches.
        count: usize,
    },
    /// The registry does not know the image.
    #[error("registry has no image `{reference}`{}", colon(detail))]
    UnknownImage {
        /// The full reference.
        reference: String,
        /// What the registry said, made printable.
        detail: String,
    },
    /// The registry refuses to send the image.
    #[error("registry refuses image `{reference}`{}", colon(detail))]
    Denied {
        /// The full reference.
        reference: String,
        /// What the registry said, made printable.
        detail: String,
        /// Whether the request carried a login.
        authenticated: bool,
    },
    /// The registry refuses to accept the image.
    #[error("registry refuses to take image `{reference}`{}", colon(detail))]
    PushDenied {
        /// The full reference.
        reference: String,
        /// What the registry said, made printable.
        detail: String,
        /// Whether the request carried a login.
        authenticated: bool,
    },
    /// Configured credentials cannot be read.
    #[error("cannot get credentials for registry `{registry}`")]
    Credentials {
        /// The registry.
        registry: String,
        /// Why.
        source: CredentialError,
    },
    /// The certificates to check a registry with cannot be loaded.
    #[error("cannot load certificates from `{}`", path.display())]
    Certificates {
        /// The file or directory.
        path: PathBuf,
        /// What the loader said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A proxy setting is not the URL of an HTTP proxy.
    #[error("`{proxy}` is not the URL of an HTTP proxy")]
    Proxy {
        /// The setting, without user name and password.
        proxy: String,
    },
    /// The registry's name has no address.
    #[error("there is no registry `{registry}`")]
    UnknownRegistry {
        /// The registry.
        registry: String,
        /// What the network said.
        source: reqwest::Error,
    },
    /// The name of the registry cannot be looked up, because there is no network or no name server.
    #[error("cannot look up registry `{registry}`")]
    Offline {
        /// The registry.
        registry: String,
        /// What the network said.
        source: reqwest::Error,
    },
    /// The registry speaks plain HTTP, which only loopback and named registries may.
    #[error("registry `{registry}` answers in plain HTTP, not in HTTPS")]
    PlainHttp {
        /// The registry.
        registry: String,
    },
    /// A host that the registry redirects to wants a login, which is for the registry only.
    #[error("registry `{registry}` redirects to `{host}`, which asks for a login")]
    LoginElsewhere {
        /// The registry.
        registry: String,
        /// The host that it redirects to.
        host: String,
    },
    /// The registry did not answer: no route, no connection, a failure of TLS, or a timeout.
    #[error("cannot reach registry `{registry}`")]
    Unreachable {
        /// The registry.
        registry: String,
        /// What the network said.
        source: reqwest::Error,
    },
    /// An unexpected answer.
    #[error("registry `{registry}` answered {status} for {what}{}", colon(detail))]
    Response {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// What the registry said, made printable.
        detail: String,
        /// How long the registry asks its clients to wait.
        retry_after: Option<Duration>,
    },
    /// The connection was closed before the announced bytes had arrived.
    #[error("registry `{registry}` closed the connection early")]
    ClosedEarly {
        /// The registry.
        registry: String,
    },
    /// An answer that violates the protocol.
    #[error("registry `{registry}` violates the protocol: {detail}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What is wrong.
        detail: String,
    },
    /// A download failed, and each retry failed as well. The bytes received so far are kept.
    #[error("download of {digest} stopped at {received} of {size} bytes")]
    Interrupted {
        /// The blob.
        digest: Digest,
        /// Bytes received so far.
        received: u64,
        /// Size of the blob in bytes.
        size: u64,
        /// The last failure.
        source: Box<ImageError>,
    },
    /// The content does not match its digest. It is discarded.
    #[error("{what} has digest {actual}, not {expected}")]
    WrongDigest {
        /// What was fetched or read.
        what: String,
        /// The digest that it should have.
        expected: Digest,
        /// The digest that it has.
        actual: Digest,
    },
    /// The content is longer or shorter than announced. It is discarded.
    #[error("{what} is {} the {expected} bytes announced", if *longer { "longer than" } else { "shorter than" })]
    WrongSize {
        /// What was fetched or read.
        what: String,
        /// Bytes announced.
        expected: u64,
        /// Whether there were more bytes than announced; otherwise there were fewer.
        longer: bool,
    },
    /// The content is larger than the limit for its kind.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What was read.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The manifest or index cannot be used.
    #[error("cannot use image `{reference}`")]
    Manifest {
        /// The full reference.
        reference: String,
        /// Why.
        source: Box<ManifestError>,
    },
    /// The configuration cannot be used.
    #[error("cannot use the configuration of image `{reference}`")]
    Config {
        /// The full reference.
        reference: String,
        /// Why.
        source: ConfigError,
    },
    /// A layout or archive cannot be read.
    #[error("cannot read image from `{}`", path.display())]
    Archive {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: Box<ArchiveError>,
    },
    /// The image in an archive has no name.
    #[error("the image in `{}` has no name", path.display())]
    Unnamed {
        /// The archive.
        path: PathBuf,
    },
    /// A path was given where an image reference is expected.
    #[error("`{}` is a file or directory, and was given in place of an image's name", path.display())]
    IsAFile {
        /// The path.
        path: PathBuf,
    },
    /// An archive was named `-`, and there is no standard input to read it from.
    #[error("there is no standard input to read an archive from")]
    NoStandardInput,
    /// The file given as a root file system is an archive of images.
    #[error("`{}` is an archive of images, not a root file system", path.display())]
    IsAnArchive {
        /// The file.
        path: PathBuf,
    },
    /// No daemon listens on this machine.
    #[error("neither Docker nor podman answers on this machine: no socket at {}", paths(tried))]
    NoDaemon {
        /// The sockets that were looked for.
        tried: Vec<PathBuf>,
    },
    /// The address of the daemon is not that of a socket on this machine.
    #[error("`{address}` is not the address of a socket on this machine")]
    DaemonAddress {
        /// The address, made printable.
        address: String,
    },
    /// The connection to the daemon failed.
    #[error("cannot communicate with the daemon at `{}`", socket.display())]
    Daemon {
        /// Its socket.
        socket: PathBuf,
        /// What the network said.
        source: reqwest::Error,
    },
    /// No daemon has the image.
    #[error("no image `{reference}` at {}", paths(sockets))]
    NotInDaemon {
        /// The name as it was asked for.
        reference: String,
        /// The sockets of the daemons that were asked.
        sockets: Vec<PathBuf>,
    },
    /// The file to import is not a tar archive.
    #[error("cannot import the root file system: {reason}")]
    NotATar {
        /// What the file is.
        reason: &'static str,
    },
    /// The layers cannot be made into a base disk.
    #[error("cannot unpack image `{reference}`")]
    Unpack {
        /// The full reference.
        reference: String,
        /// Why.
        source: Box<RootfsError>,
    },
    /// The disk is full. Blobs that were fetched completely are kept.
    #[error("disk full: `{}` has {} MiB free{}", dir.display(), free / MIB, needed_text(*needed))]
    DiskFull {
        /// The directory that is full.
        dir: PathBuf,
        /// Free bytes at that time.
        free: u64,
        /// Bytes that are needed, as far as known.
        needed: Option<u64>,
    },
    /// A file operation failed.
    #[error("cannot {action} `{}`", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error("cannot keep images")]
    State {
        /// Why.
        source: OpenError,
    },
    /// A record cannot be read.
    #[error("cannot read an image record")]
    Read {
        /// Why.
        source: ReadError,
    },
    /// A record cannot be written.
    #[error("cannot write an image record")]
    Write {
        /// Why.
        source: WriteError,
    },
    /// A record of a newer release; refusing beats guessing.
    #[error("image record `{}` has format {found}, which this build does not know", path.display())]
    TooNew {
        /// The record.
        path: PathBuf,
        /// The format found there.
        found: u32,
    },
    /// A workspace's disk lies on the image.
    #[error("image `{reference}` is in use by {}", workspaces.join(", "))]
    InUse {
        /// Reference or digest, as given.
        reference: String,
        /// The workspaces.
        workspaces: Vec<String>,
    },
    /// A workspace whose record cannot be read may lie on any image.
    #[error("cannot tell which image workspace `{workspace}` uses")]
    UnreadableWorkspace {
        /// The workspace.
        workspace: String,
        /// What is wrong with its record.
        source: Box<LoadError>,
    },
    /// The workspaces cannot be listed.
    #[error("cannot list workspaces in `{}`", dir.display())]
    ListWorkspaces {
        /// Their directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another command, or a value that this process keeps, is at it, and took longer than the wait.
    #[error("another command is {what}")]
    Busy {
        /// What it is doing.
        what: String,
    },
    /// A lock could not be taken for another reason than being held.
    #[error("cannot lock the image cache")]
    Lock {
        /// Why.
        source: LockError,
    },
    /// Ended on request.
    #[error("cancelled")]
    Cancelled,
}

const MIB: u64 = 1024 * 1024;

fn colon(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn paths(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
    paths.join(", ")
}

fn needed_text(needed: Option<u64>) -> String {
    needed.map_or_else(String::new, |needed| format!(", {} MiB needed", needed.div_ceil(MIB)))
}

impl ImageError {
    /// Whether the same call can go well later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            ImageError::Unreachable { source, .. } => {
                certificate_problem(source).is_none() && !source.is_redirect()
            }
            ImageError::Response { status, .. } => *status == 429 || *status >= 500,
            ImageError::Offline { .. }
            | ImageError::NoDaemon { .. }
            | ImageError::Daemon { .. }
            | ImageError::ClosedEarly { .. }
            | ImageError::Interrupted { .. }
            | ImageError::Busy { .. }
            | ImageError::DiskFull { .. } => true,
            _ => false,
        }
    }

    /// How long the registry asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            ImageError::Response { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The registry at the other end failed in a way that may pass within seconds.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            ImageError::Unreachable { .. } | ImageError::Response { .. } | ImageError::ClosedEarly { .. } => {
                self.is_retryable()
            }
            _ => false,
        }
    }

    /// A manifest that cannot be used.
    pub(crate) fn manifest(reference: &str, source: ManifestError) -> ImageError {
        ImageError::Manifest { reference: reference.to_owned(), source: Box::new(source) }
    }

    /// An archive that cannot be read.
    pub(crate) fn archive(path: &Path, source: ArchiveError) -> ImageError {
        ImageError::Archive { path: path.to_owned(), source: Box::new(source) }
    }

    /// A failed file operation; a full disk becomes [`ImageError::DiskFull`].
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> ImageError {
        let dir = path.parent().unwrap_or(path);
        Self::disk_full(&source, dir).unwrap_or_else(|| ImageError::File {
            action,
            path: path.to_owned(),
            source,
        })
    }

    /// A failed record; a full disk becomes [`ImageError::DiskFull`].
    pub(crate) fn write(source: WriteError, dir: &Path) -> ImageError {
        Self::disk_full(&source, dir).unwrap_or(ImageError::Write { source })
    }

    /// A failed unpacking; a full disk becomes [`ImageError::DiskFull`].
    pub(crate) fn unpack(source: RootfsError, reference: &str, dir: &Path) -> ImageError {
        Self::disk_full(&source, dir).unwrap_or_else(|| ImageError::Unpack {
            reference: reference.to_owned(),
            source: Box::new(source),
        })
    }

    fn disk_full(error: &(dyn StdError + 'static), dir: &Path) -> Option<ImageError> {
        let full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let is_full = chain(error).any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| full(e.kind())));
        is_full.then(|| ImageError::DiskFull { dir: dir.to_owned(), free: free_bytes(dir), needed: None })
    }
}

/// Free bytes for an unprivileged user; zero when the file system does not say.
pub(crate) fn free_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
}

/// An error and what lies under it.
pub(crate) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The certificate that no retry mends, if that is what it was.
pub(crate) fn certificate_problem<'a>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a rustls::CertificateError> {
    match tls_problem(error) {
        Some(rustls::Error::InvalidCertificate(problem)) => Some(problem),
        _ => None,
    }
}

/// Whether TLS was answered with something else: nearly always HTTP.
pub(crate) fn speaks_plain_http(error: &(dyn StdError + 'static)) -> bool {
    matches!(tls_problem(error), Some(rustls::Error::InvalidMessage(_)))
}

/// What TLS found wrong, if it was TLS that failed.
fn tls_problem<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    // An `io::Error` hides what it wraps from `source()`, and rustls' error comes wrapped in two of them.
    let deeper = |&error: &&'a (dyn StdError + 'static)| -> Option<&'a (dyn StdError + 'static)> {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    };
    std::iter::successors(Some(error), deeper).find_map(|error| error.downcast_ref())
}

/// Whether the name of a host was looked up, and there is none of that name. The system's resolver tells its
/// reasons apart by text only: all are final but the one for "no answer just now" (glibc, musl).
pub(crate) fn is_unknown_host(error: &(dyn StdError + 'static)) -> bool {
    const LOOKUP: &str = "failed to lookup address information: ";
    const PASSING: [&str; 3] = ["Temporary failure", "Try again", "System error"];
    chain(error)
        .filter_map(|error| error.to_string().strip_prefix(LOOKUP).map(str::to_owned))
        .any(|reason| !PASSING.iter().any(|passing| reason.starts_with(passing)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_told_from_a_resolver_in_trouble() {
        let lookup =
            |reason: &str| io::Error::other(format!("failed to lookup address information: {reason}"));
        for (reason, unknown) in [
            ("Name or service not known", true),
            ("No address associated with hostname", true),
            ("Name does not resolve", true),
            ("Temporary failure in name resolution", false),
            ("Try again", false),
        ] {
            let path = PathBuf::from("x");
            let error = ImageError::File { action: "reach", path, source: lookup(reason) };
            assert_eq!(is_unknown_host(&error), unknown, "{reason}");
        }
        assert!(!is_unknown_host(&io::Error::from(io::ErrorKind::ConnectionRefused)));
    }
}
