//! Makes the copy of a captured machine a machine of its own, before any of its programs continues.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::Instant;

use microagent_proto::{Configure, Configured, GuestError, Timings};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::boot::SCRATCH;
use crate::configure;
use crate::console;
use crate::net;
use crate::sockets;

/// What tells boots of a kernel apart.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Gives the machine entropy, clock, names and addresses of its own, and resets connections.
pub(crate) fn renew(wanted: &Configure) -> Result<Configured, GuestError> {
    let start = Instant::now();
    configure::rename(wanted)?;
    if let Some(network) = &wanted.network {
        net::renew(network).map_err(|e| configure::network_failure(&e))?;
    }
    if let Err(error) = sockets::reset_connections() {
        console::say_error("connections of the captured machine stay open", &error);
    }
    if let Err(error) = cover_boot_id() {
        console::say_error("the boot id is that of the captured machine", &error);
    }
    let total_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    let timings = Timings { boot_us: 0, disk_us: 0, network_us: 0, total_us };
    Ok(Configured { timings, notices: Vec::new() })
}

/// The kernel never changes its boot id, so programs are shown a file in its place.
fn cover_boot_id() -> io::Result<()> {
    let mut random = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let cover = Path::new(SCRATCH).join("boot_id");
    // In a machine that is the copy of a copy this file is mounted already, in every mount namespace that was made since.
    // It is written in place, and mounted anew, in case a program has unmounted it.
    fs::write(&cover, uuid(random))?;
    match unmount(BOOT_ID, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(mount_bind(&cover, BOOT_ID)?)
}

/// A random UUID as text (RFC 9562, version 4), with a line feed.
fn uuid(mut random: [u8; 16]) -> String {
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let mut text = String::new();
    for (index, byte) in random.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_has_the_form_of_the_kernels() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff\n");
    }
}
