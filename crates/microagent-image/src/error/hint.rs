//! What a user can do about an error of images, as data. `Display` has words that name no option of any program.

use std::fmt;

use super::{ImageError, certificate_problem};
use crate::manifest::ManifestError;

/// What a user can do about an [`ImageError`]. `Display` is an English sentence that applies in any program.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageHint {
    /// A sentence: lower case, no full stop.
    Advice(String),
    /// Allow plain HTTP to this registry, if the network can be trusted.
    AllowPlainHttp {
        /// The registry.
        registry: String,
    },
    /// Pull the image again.
    PullAgain,
    /// Pull the image first, or let it be pulled when it is missing.
    PullFirst,
    /// See which images are in the cache.
    ListImages,
    /// Log in, or give the image a name of another registry.
    LogInOrTag,
    /// Remove images, or use another state directory.
    FreeSpace,
    /// Use another state directory.
    ChooseStateDir,
    /// Remove damaged records.
    PruneDamaged,
    /// Delete the workspaces that use the image.
    DeleteWorkspaces,
    /// Delete the workspace whose record is damaged.
    DeleteWorkspace,
    /// Give the archive's image a name.
    NameImage,
    /// Load the archive's images.
    LoadArchive,
    /// Name the archive with the transport of its kind, or import a root file system.
    ChooseTransport,
}

impl fmt::Display for ImageHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageHint::Advice(text) => text,
            ImageHint::AllowPlainHttp { registry } => {
                return write!(f, "allow plain HTTP to registry `{registry}`, if you trust the network to it");
            }
            ImageHint::PullAgain => "pull the image again",
            ImageHint::PullFirst => "pull the image first, or allow fetching images that are missing",
            ImageHint::ListImages => "list the images, to see which ones are in the cache",
            ImageHint::LogInOrTag => {
                "log in with docker login or podman login, or give the image a name of another registry"
            }
            ImageHint::FreeSpace => "free disk space: remove images that are not needed, or use another state directory",
            ImageHint::ChooseStateDir => "use another state directory",
            ImageHint::PruneDamaged => "remove damaged records: prune the images",
            ImageHint::DeleteWorkspaces => "delete the workspaces that use the image first",
            ImageHint::DeleteWorkspace => "delete the workspace with the damaged record first",
            ImageHint::NameImage => "give the image of the archive a name",
            ImageHint::LoadArchive => "load the images of the archive",
            ImageHint::ChooseTransport => {
                "`oci:` takes a layout directory, `oci-archive:` a tar of one, `docker-archive:` a `docker save` tar; \
                 a root file system is imported"
            }
        })
    }
}

impl ImageError {
    /// Returns a hint: what the user can do.
    pub fn hint(&self) -> Option<ImageHint> {
        Some(match self {
            ImageError::PlainHttp { registry } => ImageHint::AllowPlainHttp { registry: registry.clone() },
            ImageError::MissingBlob { .. } => ImageHint::PullAgain,
            ImageError::NotCached { .. } => ImageHint::PullFirst,
            ImageError::NoSuchImage { .. } => ImageHint::ListImages,
            ImageError::PushDenied { authenticated: false, .. } => ImageHint::LogInOrTag,
            ImageError::DiskFull { .. } => ImageHint::FreeSpace,
            ImageError::State { .. } => ImageHint::ChooseStateDir,
            ImageError::Read { .. } => ImageHint::PruneDamaged,
            ImageError::InUse { .. } => ImageHint::DeleteWorkspaces,
            ImageError::UnreadableWorkspace { .. } => ImageHint::DeleteWorkspace,
            ImageError::Unnamed { .. } => ImageHint::NameImage,
            ImageError::IsAnArchive { .. } => ImageHint::LoadArchive,
            ImageError::Archive { source, .. } if source.is_of_another_kind() => ImageHint::ChooseTransport,
            _ => return self.advice().map(ImageHint::Advice),
        })
    }

    /// Returns advice that applies in any program.
    fn advice(&self) -> Option<String> {
        let hint = match self {
            ImageError::Reference { source, .. } => return Some(source.hint()),
            ImageError::Credentials { source, .. } => return Some(source.hint()),
            ImageError::Archive { source, .. } => return source.hint(),
            ImageError::UnknownRegistry { .. } => {
                "check the spelling of the registry's name; behind a proxy, HTTPS_PROXY has to name it"
            }
            ImageError::IsAFile { path } => {
                let path = path.display();
                return Some(format!(
                    "write docker-archive:{path} for what `docker save` or `podman save` wrote, oci-archive:{path} for \
                     an OCI archive, oci:{path} for a layout directory"
                ));
            }
            ImageError::NoDaemon { .. } => {
                "start Docker, or podman.socket of the user's systemd, or set DOCKER_HOST"
            }
            ImageError::DaemonAddress { .. } => "DOCKER_HOST has to look like unix:///run/docker.sock",
            ImageError::Daemon { .. } => "check that it runs and that you may use its socket",
            ImageError::NotInDaemon { .. } => "`docker images` or `podman images` shows what is there",
            ImageError::Offline { .. } => {
                "there seems to be no network: check the connection and /etc/resolv.conf; images that are in the \
                 cache run without it"
            }
            ImageError::LoginElsewhere { .. } => "logins are sent to the registry only; tell its operator",
            ImageError::Unreachable { source, .. } => unreachable_hint(source),
            ImageError::TargetName { .. } => "choose a name such as `myroot:latest`",
            ImageError::Ambiguous { .. } => "give more digits of the digest",
            ImageError::UnknownImage { .. } => "check the spelling of name and tag",
            ImageError::Denied { authenticated: true, .. } => {
                "check the spelling, and that the account you are logged in with may read it"
            }
            ImageError::Denied { authenticated: false, .. } => {
                "check the spelling; if the image is private, log in first: docker login or podman login"
            }
            ImageError::PushDenied { authenticated: true, .. } => {
                "check the spelling, and that the account you are logged in with may write to it"
            }
            ImageError::Certificates { .. } => {
                "install ca-certificates, or point SSL_CERT_FILE at a file of trusted certificates"
            }
            ImageError::Proxy { .. } => {
                "a proxy looks like http://host:3128; see HTTP_PROXY, HTTPS_PROXY, ALL_PROXY"
            }
            ImageError::Response { status: 429, .. } => {
                "the registry limits how much is pulled: log in, or try later"
            }
            ImageError::Response { status: 500.., .. } => "the registry has a problem: try again later",
            ImageError::Interrupted { .. } => "run the command again: the pull continues where it stopped",
            ImageError::WrongDigest { .. } | ImageError::WrongSize { .. } => {
                "the content was changed or damaged during the transfer; nothing of it was kept"
            }
            ImageError::Manifest { source, .. } if matches!(**source, ManifestError::Schema1) => {
                "push the image again with a current tool"
            }
            ImageError::NotATar { .. } => "give a tar, plain or compressed with gzip or zstd",
            ImageError::TooNew { .. } => "use the newer release, or remove the image with it",
            ImageError::Busy { .. } => "try again when it has ended",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

fn unreachable_hint(source: &reqwest::Error) -> &'static str {
    if certificate_problem(source).is_some() {
        "the registry's certificate is not trusted here: if it has a CA of its own, point SSL_CERT_FILE at it"
    } else if source.is_timeout() {
        "the registry does not answer: check the address, the network and proxy settings"
    } else {
        "check the registry's name and port, the network, and HTTP_PROXY, HTTPS_PROXY, NO_PROXY"
    }
}
