//! Makes a fresh guest into one workspace's machine. The order matters: randomness before anything can
//! ask for it, the clock before anything is written.
//!
//! On the image's disk it writes `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf` and
//! `/etc/machine-id`, each only if it differs, `/etc/mtab` if it is missing, and the directories `/proc`, `/sys`, `/dev`, `/etc` and those that
//! disks are mounted on if they are missing; where there are secrets, `/run` and `/run/secrets`, too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use microagent_proto::{Configure, Configured, GuestError, GuestErrorKind, Network, Root, Timings};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::console;
use crate::disk;
use crate::mounts;
use crate::net;
use crate::secrets;
use crate::settings;
use crate::surroundings;
use crate::sys;

/// Longest host name that the kernel takes, in bytes.
const HOSTNAME_LIMIT: usize = 64;

/// Stands in the files of names until the workspace's are known, at their usual length.
const PLACEHOLDER_NAME: &str = "microagent-template-000";

/// What was done before anything was known of the workspace.
#[derive(Debug)]
pub(crate) struct Mounted {
    network: Option<net::Started>,
}

/// Mounts the disk of an image that no guest has used yet, and lays out what [`configure`] then only has to
/// write over. Nothing of a workspace is known here.
pub(crate) fn mount_fresh_root() -> Result<Mounted, GuestError> {
    let disk = |e: disk::DiskError| fail(e.kind(), &e);
    disk::mount_root(&Root { scsi_target: disk::EARLY_TARGET, grow: true }).map_err(disk)?;
    disk::switch_root().map_err(disk)?;
    write_names(&Names {
        hostname: PLACEHOLDER_NAME,
        machine_id: "00000000000000000000000000000000",
        network: None,
    });
    disk::read_ahead();
    Ok(Mounted { network: net::start().map_err(|e| fail(GuestErrorKind::Network, &e))? })
}

/// Configures everything that [`mount_fresh_root`] has not done. After a failure the machine is of no use.
pub(crate) fn configure(
    wanted: &Configure,
    boot_us: u64,
    mounted: Option<&Mounted>,
) -> Result<Configured, GuestError> {
    let start = Instant::now();
    let other = |what: &'static str| {
        move |source: io::Error| fail(GuestErrorKind::Other, &StepError { what, source })
    };
    seed(&wanted.entropy.0).map_err(other("seed the random numbers"))?;
    set_clock(wanted.clock_unix_ns).map_err(other("set the clock"))?;
    set_hostname(&wanted.hostname).map_err(other("set the host name"))?;

    let started = mounted.and_then(|mounted| mounted.network.as_ref());
    let network = || wanted.network.as_ref().map_or(Ok(()), |network| net::configure(network, started));
    let ((network, network_us), (disk, disk_us)) = if mounted.is_some() {
        (timed(network), (Ok(()), 0))
    } else {
        // The disk's driver and the network's do not wait for each other.
        std::thread::scope(|scope| {
            let network = wanted.network.is_some().then(|| scope.spawn(|| timed(network)));
            let disk = timed(|| disk::mount_root(&wanted.root).and_then(|()| disk::switch_root()));
            let network = network.map(|thread| thread.join().expect("a panic ends the whole agent"));
            (network.unwrap_or((Ok(()), 0)), disk)
        })
    };
    network.map_err(|e| fail(GuestErrorKind::Network, &e))?;
    if mounted.is_none() && disk.is_ok() {
        surroundings::clear_run();
    }
    disk.map_err(|e| fail(e.kind(), &e))?;
    let (mounts, mounts_us) = timed(|| mounts::mount_all(&wanted.mounts));
    mounts.map_err(|e| fail(GuestErrorKind::Mount, &e))?;
    settings::apply(&wanted.settings).map_err(|e| fail(GuestErrorKind::Setting, &e))?;
    write_names(&Names {
        hostname: &wanted.hostname,
        machine_id: &wanted.machine_id,
        network: wanted.network.as_ref(),
    });
    // Last, so that nothing is mounted over them.
    secrets::deliver(&wanted.secrets, &wanted.secrets_owner).map_err(|e| fail(GuestErrorKind::Other, &e))?;
    settings::protect_root(&wanted.settings).map_err(|e| fail(GuestErrorKind::Setting, &e))?;
    let timings = Timings { boot_us, disk_us: disk_us + mounts_us, network_us, total_us: elapsed_us(start) };
    Ok(Configured { timings, notices: Vec::new() })
}

/// Gives a machine that was configured as another one before its own entropy, clock, names and secrets.
pub(crate) fn rename(wanted: &Configure) -> Result<(), GuestError> {
    let other = |what: &'static str| {
        move |source: io::Error| fail(GuestErrorKind::Other, &StepError { what, source })
    };
    seed(&wanted.entropy.0).map_err(other("seed the random numbers"))?;
    set_clock(wanted.clock_unix_ns).map_err(other("set the clock"))?;
    set_hostname(&wanted.hostname).map_err(other("set the host name"))?;
    write_names(&Names {
        hostname: &wanted.hostname,
        machine_id: &wanted.machine_id,
        network: wanted.network.as_ref(),
    });
    // What was captured had none: such a machine is not captured. They were added to the workspace since then.
    secrets::deliver(&wanted.secrets, &wanted.secrets_owner).map_err(|e| fail(GuestErrorKind::Other, &e))
}

/// A network that could not be set up, for the host.
pub(crate) fn network_failure(error: &net::NetworkError) -> GuestError {
    fail(GuestErrorKind::Network, error)
}

/// A step that has no error type of its own.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
struct StepError {
    what: &'static str,
    source: io::Error,
}

fn fail(kind: GuestErrorKind, error: &dyn std::error::Error) -> GuestError {
    GuestError { kind, message: microagent_proto::chain(error) }
}

/// Does a step, and says how many microseconds it took.
fn timed<T>(step: impl FnOnce() -> T) -> (T, u64) {
    let start = Instant::now();
    let result = step();
    (result, elapsed_us(start))
}

fn elapsed_us(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn seed(entropy: &[u8; 32]) -> io::Result<()> {
    sys::seed_random(File::open("/dev/urandom")?.as_fd(), entropy)
}

/// Sets the wall clock of a machine that stood still.
pub(crate) fn correct_clock(unix_ns: u64) -> Result<(), GuestError> {
    set_clock(unix_ns)
        .map_err(|source| fail(GuestErrorKind::Other, &StepError { what: "set the clock", source }))
}

fn set_clock(unix_ns: u64) -> io::Result<()> {
    let tv_sec = i64::try_from(unix_ns / 1_000_000_000).expect("u64::MAX / 10⁹ fits an i64");
    let tv_nsec = i64::try_from(unix_ns % 1_000_000_000).expect("less than 10⁹ fits an i64");
    Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec })?)
}

fn set_hostname(name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() > HOSTNAME_LIMIT {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// What programs know the machine by.
struct Names<'a> {
    hostname: &'a str,
    machine_id: &'a str,
    network: Option<&'a Network>,
}

/// Writes the small files by which programs learn the machine's names. A full or damaged disk is no
/// reason to keep its owner out, so failures only show on the console.
fn write_names(names: &Names<'_>) {
    let files = [
        ("/etc/hostname", format!("{}\n", names.hostname)),
        ("/etc/hosts", hosts(names.hostname, names.network)),
        ("/etc/resolv.conf", names.network.map_or_else(String::new, resolv_conf)),
        ("/etc/machine-id", format!("{}\n", names.machine_id)),
    ];
    if let Err(error) = fs::create_dir("/etc").or_else(exists_already) {
        console::say_error("cannot make /etc", &error);
    }
    for (path, content) in files {
        if let Err(error) = replace_if_different(Path::new(path), content.as_bytes()) {
            console::say_error(&format!("cannot write {path}"), &error);
        }
    }
}

fn exists_already(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

/// Leaves a file with this content that everybody can read. A link (`resolv.conf` of a system with a resolver service)
/// becomes a file, and so does one of several names of a file: what else they stand for is not ours to write.
fn replace_if_different(path: &Path, content: &[u8]) -> io::Result<()> {
    let len = content.len() as u64;
    let old_len = match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() || found.nlink() > 1 => fs::remove_file(path).map(|()| 0)?,
        Ok(found) => {
            if found.mode() & 0o444 != 0o444 {
                fs::set_permissions(path, fs::Permissions::from_mode(found.mode() & 0o7777 | 0o444))?;
            }
            if found.len() == len && fs::read(path)? == content {
                return Ok(());
            }
            found.len()
        }
        Err(_) => 0,
    };
    // Written over and then cut, so that a full disk does not leave an empty file.
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(content)?;
    if old_len > len { file.set_len(len) } else { Ok(()) }
}

fn hosts(hostname: &str, network: Option<&Network>) -> String {
    let own = network.map_or_else(|| "127.0.1.1".to_owned(), |network| network.address.to_string());
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         {own}\t{hostname}\n"
    )
}

fn resolv_conf(network: &Network) -> String {
    let mut text: String = network.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    for (keyword, words) in [("search", &network.search), ("options", &network.options)] {
        if !words.is_empty() {
            text += &format!("{keyword} {}\n", words.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use microagent_proto::{MacAddress, NetworkV6};

    use super::*;

    #[test]
    fn links_and_further_names_become_files_and_what_they_stand_for_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", &path).unwrap();
        replace_if_different(&path, b"nameserver 10.0.2.3\n").unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());

        let (link, name) = (dir.path().join("link"), dir.path().join("name"));
        std::os::unix::fs::symlink("resolv.conf", &link).unwrap();
        fs::hard_link(&path, &name).unwrap();
        for other in [&link, &name] {
            replace_if_different(other, b"short\n").unwrap();
            assert!(fs::symlink_metadata(other).unwrap().is_file());
            assert_eq!(fs::read(other).unwrap(), b"short\n");
        }
        assert_eq!(fs::read(&path).unwrap(), b"nameserver 10.0.2.3\n");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        replace_if_different(&path, b"nameserver 10.0.2.3\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    }

    #[test]
    fn equal_content_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hostname");
        replace_if_different(&path, b"web\n").unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        replace_if_different(&path, b"web\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn own_name_resolves_with_and_without_network() {
        assert!(hosts("web", None).ends_with("127.0.1.1\tweb\n"));
        let mut network = Network {
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix_len: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            ipv6: NetworkV6 {
                address: "fd00::15".parse().unwrap(),
                prefix_len: 64,
                gateway: "fd00::2".parse().unwrap(),
            },
            private: Vec::new(),
            dns: vec!["10.0.2.3".parse().unwrap()],
            search: Vec::new(),
            options: Vec::new(),
        };
        assert_eq!(resolv_conf(&network), "nameserver 10.0.2.3\n");
        network.search = vec!["corp.example".to_owned(), "example".to_owned()];
        network.options = vec!["ndots:5".to_owned()];
        assert_eq!(
            resolv_conf(&network),
            "nameserver 10.0.2.3\nsearch corp.example example\noptions ndots:5\n"
        );
    }
}
