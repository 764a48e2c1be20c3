//! What changes on the host while a stack runs: its addresses, its name servers, its hosts file.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use microagent_net::{HostAddresses, HostChange, HostEntry, HostWatch, host_entries, host_resolver};
use microagent_store::{NetworkDir, NetworkRecord, read_limited_following};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};

use super::Instructions;
use super::member_connections::{ANSWER_LEN, MemberConnection, read_answer};
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
    /// Has an event when a record of a private network is replaced. None without networks, or if the host has no more
    /// of these: members are then looked for with everything else.
    members: Option<OwnedFd>,
    next_look: Instant,
    /// Whether the addresses have changed and could not be read.
    owes_addresses: bool,
}

impl Follower {
    pub(super) fn new(instructions: &Instructions) -> Follower {
        let watch = HostWatch::new().ok();
        let members = watch_members(instructions);
        Follower { watch, members, next_look: Instant::now(), owes_addresses: false }
    }

    /// Is readable when members have changed.
    pub(super) fn members(&self) -> Option<BorrowedFd<'_>> {
        self.members.as_ref().map(AsFd::as_fd)
    }

    /// Looks at once if members have changed.
    pub(super) fn look_at_members(&mut self) {
        let Some(members) = &self.members else { return };
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut reader = Reader::new(members, &mut buffer);
        while reader.next().is_ok() {
            self.next_look = Instant::now();
        }
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
        for join in &mut instructions.joins {
            // A record that cannot be read is of a network that was deleted: who was a member is known.
            if let Ok(record) = NetworkRecord::load(&NetworkDir::at(&join.dir))
                && record.created_at == join.created_at
            {
                has_changed |= replace(&mut join.membership.members, member_entries(&record));
            }
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
        members: Some(instructions.joins.iter().map(|join| join.membership.members.clone()).collect()),
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

/// What a keeper says.
pub(super) enum Heard {
    /// What has changed on the host.
    Change(HostChange),
    /// A connection to a member that was asked for.
    MemberConnection(MemberConnection),
}

/// Takes what [`tell`] or [`serve_requests`](super::member_connections::serve_requests) sent; `None` if nothing was sent.
pub(super) fn hear(keeper: &OwnedFd) -> Option<Heard> {
    let mut message = [0; ANSWER_LEN];
    let (len, descriptors) = receive_message(keeper, &mut message).ok()?;
    if &message[..len] != b"host" {
        return read_answer(&message[..len], descriptors).map(Heard::MemberConnection);
    }
    let file = descriptors.into_iter().next()?;
    let mut text = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = rustix::io::read(&file, &mut piece[..]) {
        text.extend_from_slice(&piece[..count]);
        if text.len() > CHANGE_LIMIT {
            return None;
        }
    }
    serde_json::from_slice(&text).ok().map(Heard::Change)
}

/// Watches the records of private networks.
fn watch_members(instructions: &Instructions) -> Option<OwnedFd> {
    if instructions.joins.is_empty() {
        return None;
    }
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
    for join in &instructions.joins {
        // A record is replaced by a rename.
        inotify::add_watch(&watch, &join.dir, WatchFlags::MOVED_TO).ok()?;
    }
    Some(watch)
}

/// The names of members, as they are and as host names, with their addresses.
pub fn member_entries(record: &NetworkRecord) -> Vec<HostEntry> {
    let names = record.members.iter().flat_map(|(name, address)| {
        let label = Some(name.to_hostname()).filter(|label| label != name.as_str());
        std::iter::once(name.to_string()).chain(label).map(|name| (name, (*address).into()))
    });
    names.collect()
}
