//! How images are brought in, and where they came from.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::manifest::Platform;
use crate::network::NetworkOptions;
use crate::rootfs::Limits;

/// When an image is fetched from its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Each time. Layers that are in the cache are not fetched again.
    Always,
    /// When the image is not in the cache. The default.
    #[default]
    Missing,
    /// Never: the image must be in the cache.
    Never,
    /// Never from a registry: if the image is not in the cache, it is fetched from Docker or podman on this machine.
    Local,
}

/// Options of `Images::create`. The default fetches the image for this host's processor if it is not in the cache.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PullOptions {
    /// When the image is fetched.
    pub policy: PullPolicy,
    /// The platform: which image of a multi-platform image is used.
    pub platform: Platform,
    /// Limits of the unpacked layers.
    pub limits: Limits,
    /// Proxies and time limits of connections.
    pub network: NetworkOptions,
    /// How long to wait for another command that works on the cache.
    pub lock_patience: Duration,
}

impl Default for PullOptions {
    fn default() -> PullOptions {
        PullOptions {
            policy: PullPolicy::default(),
            platform: Platform::default(),
            limits: Limits::default(),
            network: NetworkOptions::default(),
            // As long as a large layer over a slow line may take.
            lock_patience: Duration::from_secs(30 * 60),
        }
    }
}

impl PullOptions {
    /// Sets when the image is fetched.
    #[must_use]
    pub fn policy(mut self, policy: PullPolicy) -> PullOptions {
        self.policy = policy;
        self
    }

    /// Sets the platform.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> PullOptions {
        self.platform = platform;
        self
    }
}

/// The source of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Origin {
    /// The cache: it was not fetched.
    Cache,
    /// A registry.
    Registry,
    /// An OCI layout directory.
    OciLayout,
    /// A tar of an OCI layout.
    OciArchive,
    /// A `docker save` tar.
    DockerArchive,
    /// A root file system tar.
    Import,
    /// The changes of a workspace.
    Commit,
    /// An archive that was loaded, or read from standard input.
    Load,
    /// Docker or podman on this machine.
    Daemon,
}

impl Origin {
    /// Whether it can be asked again.
    pub(crate) fn is_elsewhere(self) -> bool {
        match self {
            Origin::Registry | Origin::OciLayout | Origin::OciArchive | Origin::DockerArchive => true,
            Origin::Cache | Origin::Import | Origin::Commit | Origin::Load | Origin::Daemon => false,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Origin::Cache => "cache",
            Origin::Registry => "registry",
            Origin::OciLayout => "oci-layout",
            Origin::OciArchive => "oci-archive",
            Origin::DockerArchive => "docker-archive",
            Origin::Import => "import",
            Origin::Commit => "commit",
            Origin::Load => "load",
            Origin::Daemon => "daemon",
        })
    }
}
