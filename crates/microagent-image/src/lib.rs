//! From an image reference to a base disk.
//!
//! [`ImageStore::ensure`] takes what a person types (`busybox`, `registry.example.org/team/app:v1`,
//! `oci:DIR:TAG`, …) and gives an [`Image`]: its configuration, and one read-only ext4 file that all its
//! workspaces share. On the way content comes from a registry or an archive, is
//! verified against its digests, kept in a cache under the state directory, and unpacked by [`rootfs`].
//!
//! What is kept: a record per reference, the base disk, and also manifest, configuration and layers as they
//! came. Layers cost about a third of the disk's space and are what images share when one is pulled after
//! another, and what `commit` and `push` build on. [`ImageStore::prune`] removes what no record and no
//! workspace needs; layers go with their image.
//!
//! This crate never looks at environment variables, never prints, never runs anything but credential helpers, and
//! never needs a privilege. Any process may be killed at any
//! moment: nothing gets its final name before it is whole, and locks end with their holders.

mod adopt;
mod archive;
mod blocking;
pub mod bundle;
mod cache;
mod commit;
mod compression;
mod config;
mod credentials;
mod daemon;
mod digest;
mod disk;
mod environment;
mod error;
mod fetch;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod import;
mod in_use;
mod load;
mod manifest;
mod network;
mod options;
mod progress;
mod push;
mod record;
mod reference;
mod registry;
mod removal;
mod resolve;
pub mod rootfs;
mod save;
mod store;
mod tag;

pub use adopt::DiskLease;
pub use archive::ArchiveError;
pub use commit::{Commit, CommitDetails, Committed, Layer};
pub use config::{ConfigChanges, ConfigError, HealthCheck, ImageConfig};
pub use credentials::CredentialError;
pub use digest::{Digest, DigestError};
pub use environment::{Environment, StandardInput};
pub use error::{ImageError, ImageHint};
pub use history::{HistoryLayer, HistoryStep, ImageHistory};
pub use import::ImportSource;
pub use load::LoadOptions;
pub use manifest::{ManifestError, Platform, PlatformError};
pub use network::{NetworkOptions, ProxyMode, certificates, client as http_client};
pub use options::{Origin, PullOptions, PullPolicy};
pub use progress::{ImageEvent, NoProgress, Progress};
pub use push::Pushed;
pub use reference::{
    DaemonReference, ImageReference, LocalReference, ReferenceError, RegistryReference, Transport,
};
pub use removal::{DamagedImage, ImageDeletion, ImageList, ImagePrune, ImageSummary, Pruned};
pub use save::{SaveTarget, Saved, SavedImage};
pub use store::{Image, ImageStore};
pub use tag::Tagged;
