//! Reads a file whole, within a bound.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use microagent_proto::{SECRET_LIMIT, SecretValue};
use rustix::fs::OFlags;

use super::SecretFault;

/// The content of a regular file as it is. One that is larger than a secret may be is an error.
pub(super) fn read(path: &Path) -> Result<SecretValue, SecretFault> {
    // Without waiting for whoever writes into a pipe.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(SecretFault::Read)?;
    let found = file.metadata().map_err(SecretFault::Read)?;
    if !found.is_file() {
        return Err(SecretFault::NotAFile);
    }
    // Room for all of it from the start: a buffer that grows leaves copies behind.
    let most = SECRET_LIMIT + 1;
    let mut content = SecretValue(Vec::with_capacity(most));
    file.take(most as u64).read_to_end(&mut content.0).map_err(SecretFault::Read)?;
    if content.0.len() > SECRET_LIMIT {
        return Err(SecretFault::TooLarge { limit: SECRET_LIMIT });
    }
    Ok(content)
}
