//! How images are brought in, and where they came from.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::manifest::Platform;
use crate::network::NetworkOptions;
use crate::rootfs::Limits;

/// When to ask the source of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Each time; what has not changed is still not fetched again.
    Always,
    /// When the image is not in the cache.
    #[default]
    Missing,
    /// Not at all.
    Never,
    /// When the image is not in the cache, Docker or podman on this machine; never a registry.
    Local,
}

/// How to bring an image in.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PullOptions {
    /// When to ask the source.
    pub policy: PullPolicy,
    /// Which image of a multi-platform one.
    pub platform: Platform,
    /// Bounds on what layers may unpack to.
    pub limits: Limits,
    /// Patience with the network.
    pub network: NetworkOptions,
    /// How long to wait for another command that does the same work.
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
    /// Chooses when to ask the source.
    #[must_use]
    pub fn policy(mut self, policy: PullPolicy) -> PullOptions {
        self.policy = policy;
        self
    }

    /// Chooses the image of a multi-platform one.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> PullOptions {
        self.platform = platform;
        self
    }
}

/// Where an image came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Origin {
    /// It was here already.
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
