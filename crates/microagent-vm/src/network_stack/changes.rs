//! What changes on the host while a stack runs: its addresses, its name servers, its hosts file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use microagent_net::{HostAddresses, HostChange, HostWatch, host_entries, host_resolver};
use microagent_store::read_limited_following;
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};

use super::Instructions;
use super::messages::{receive_message, send_message};

/// How often it is looked for changes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Longest files in bytes.
const RESOLV_CONF_LIMIT: u64 = 64 * 1024;
const HOSTS_LIMIT: u64 = 1024 * 1024;

/// Longest change in bytes as text.
const CHANGE_LIMIT: usize = 8 * 1024 * 1024;

/// Follows the host.
pub(super) struct Follower {
    /// None if the kernel does not tell of changes.
    watch: Option<HostWatch>,
    next_look: Instant,
    /// Whether the addresses have changed and could not be read.
    owes_addresses: bool,
}

impl Follower {
    pub(super) fn new() -> Follower {
        Follower { watch: HostWatch::new().ok(), next_look: Instant::now(), owes_addresses: false }
    }

    /// When it looks next.
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Brings the instructions up to date, if it is time. Says whether they have changed.
    pub(super) fn refresh(&mut self, instructions: &mut Instructions) -> bool {
        if Instant::now() < self.next_look {
            return false;
        }
        self.next_look = Instant::now() + INTERVAL;
        let mut has_changed = false;
        self.owes_addresses |= self.watch.as_ref().is_some_and(HostWatch::has_changed);
        if self.owes_addresses
            && let Ok(addresses) = HostAddresses::now()
        {
            self.owes_addresses = false;
            has_changed |= replace(&mut instructions.host_addresses, addresses);
        }
        let files = &instructions.host_files;
        // A file that is missing or empty is being replaced: what it said holds until it says something else.
        if let Some(text) = read(files.resolv_conf.as_ref(), RESOLV_CONF_LIMIT)
            && text.lines().any(|line| line.trim_start().starts_with("nameserver"))
        {
            has_changed |= replace(&mut instructions.name_servers, host_resolver(&text).name_servers);
        }
        if let Some(text) = read(files.hosts.as_ref(), HOSTS_LIMIT).filter(|text| !text.is_empty()) {
            has_changed |= replace(&mut instructions.names.of_host, host_entries(&text));
        }
        has_changed
    }
}

fn read(path: Option<&PathBuf>, limit: u64) -> Option<String> {
    let bytes = read_limited_following(path?, limit).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replaces a value; says whether it was another one.
fn replace<T: PartialEq>(value: &mut T, new: T) -> bool {
    let is_other = *value != new;
    *value = new;
    is_other
}

/// Tells a stack what the instructions say of the host.
///
/// # Errors
/// When the stack does not take it now.
pub(super) fn tell(stack: BorrowedFd<'_>, instructions: &Instructions) -> io::Result<()> {
    let change = HostChange {
        addresses: Some(instructions.host_addresses.clone()),
        name_servers: Some(instructions.name_servers.clone()),
        hosts: Some(instructions.names.of_host.clone()),
    };
    let text = serde_json::to_vec(&change)?;
    // It may be longer than a message.
    let file = memfd_create("change", MemfdFlags::CLOEXEC)?;
    let mut rest = &text[..];
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    seek(&file, SeekFrom::Start(0))?;
    send_message(stack, b"host", &[file.as_fd()])
}

/// Takes what [`tell`] sent; `None` if nothing was sent.
pub(super) fn hear(keeper: &OwnedFd) -> Option<HostChange> {
    let mut message = [0; 8];
    let (_, descriptors) = receive_message(keeper, &mut message).ok()?;
    let file = descriptors.into_iter().next()?;
    let mut text = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = rustix::io::read(&file, &mut piece[..]) {
        text.extend_from_slice(&piece[..count]);
        if text.len() > CHANGE_LIMIT {
            return None;
        }
    }
    serde_json::from_slice(&text).ok()
}
