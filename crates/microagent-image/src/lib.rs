//! From an image reference to a base disk.

mod config;
mod credentials;
mod digest;
mod environment;
mod manifest;
mod progress;
mod reference;
pub mod rootfs;

pub use config::{ConfigError, ImageConfig, ImportChanges};
pub use credentials::CredentialError;
pub use digest::{Digest, DigestError};
pub use environment::Environment;
pub use manifest::{ManifestError, Platform, PlatformError};
pub use progress::{ImageEvent, NoProgress, Progress};
pub use reference::{ImageReference, LocalReference, ReferenceError, RegistryReference, Transport};
