//! Calls that have no safe wrapper elsewhere: a handful of ioctls, `kill(-1)`, `swapoff`.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;

/// `RNDADDENTROPY`, `RNDRESEEDCRNG`: linux/random.h.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
/// `EXT4_IOC_RESIZE_FS`: `_IOW('f', 16, __u64)`, linux/ext4.h.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
/// `FIFREEZE`: `_IOWR('X', 119, int)`, linux/fs.h.
const FIFREEZE: libc::Ioctl = 0xC004_5877;

/// Microseconds since the machine's start.
pub(crate) fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000
}

/// Passes a pointer to `argument` to an ioctl.
///
/// # Safety
/// `request` must expect a pointer to a `T` and nothing that outlives the call.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and the caller vouches for the pointer.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Mixes a seed into the random pool, credits it, and makes the generator start anew from the pool.
pub(crate) fn seed_random(random: BorrowedFd<'_>, seed: &[u8; 32]) -> io::Result<()> {
    #[repr(C)]
    struct RandPoolInfo {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; 32],
    }
    let mut info = RandPoolInfo { entropy_count: 256, buf_size: 32, buf: *seed };
    // SAFETY: RNDADDENTROPY reads a rand_pool_info with buf_size bytes after it.
    unsafe { ioctl(random, RNDADDENTROPY, &mut info)? };
    // SAFETY: RNDRESEEDCRNG ignores its argument.
    unsafe { ioctl(random, RNDRESEEDCRNG, &mut 0u64) }
}

/// Grows a mounted ext4 file system to so many blocks.
pub(crate) fn ext4_resize(mount: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    let mut blocks = blocks;
    // SAFETY: EXT4_IOC_RESIZE_FS reads one __u64.
    unsafe { ioctl(mount, EXT4_IOC_RESIZE_FS, &mut blocks) }
}

/// Flushes a file system completely and lets nobody write any more.
pub(crate) fn freeze(mount: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: FIFREEZE ignores its argument.
    unsafe { ioctl(mount, FIFREEZE, &mut 0u64) }
}

/// Lets nobody write through a mount that is not attached yet.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    /// `MOUNT_ATTR_RDONLY`, `_NOSUID` and `_NODEV`: linux/mount.h.
    const READ_ONLY: u64 = 0x1 | 0x2 | 0x4;
    let attributes = MountAttr { attr_set: READ_ONLY, ..MountAttr::default() };
    // SAFETY: the path is a C string, and the kernel reads a structure of the given size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal to every process but this one; `false` when there is none.
pub(crate) fn kill_all(signal: libc::c_int) -> bool {
    // SAFETY: kill touches no memory of this process; PID 1 itself is spared by the kernel.
    unsafe { libc::kill(-1, signal) == 0 }
}

/// Whether the kernel knows a signal of this number (`_NSIG`).
pub(crate) fn is_signal(number: u8) -> bool {
    (1..=64).contains(&number)
}

/// Sends a signal to a process group; `false` when it has no process.
pub(crate) fn kill_group(group: i32, signal: libc::c_int) -> bool {
    // A group of 1 would mean every process, one of 0 the agent's own.
    // SAFETY: kill touches no memory of this process.
    group > 1 && unsafe { libc::kill(-group, signal) == 0 }
}

/// Sends a signal to one process; `false` when there is none.
pub(crate) fn kill_process(pid: i32, signal: libc::c_int) -> bool {
    // Only positive numbers name one process.
    // SAFETY: kill touches no memory of this process.
    pid > 0 && unsafe { libc::kill(pid, signal) == 0 }
}

/// Stops swapping to a file or device.
pub(crate) fn swap_off(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a live C string.
    if unsafe { libc::swapoff(path.as_ptr()) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers a descriptor with the running event loop.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open and the same until the AsyncFd, which owns it, lets go of it.
    Ok(unsafe { AsyncFd::register(fd)? })
}

/// A request about one network interface; the name is cut to what the kernel takes.
fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data, valid when all zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: sockaddr is plain data, valid when all zero.
    let mut generic: libc::sockaddr = unsafe { std::mem::zeroed() };
    generic.sa_family = libc::AF_INET as libc::sa_family_t;
    // A sockaddr_in has the port in bytes 0 and 1 of sa_data and the address in 2 to 5.
    for (to, from) in generic.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    generic
}

/// Sets an interface's flags to "up".
pub(crate) fn interface_up(socket: impl AsFd, name: &str) -> io::Result<()> {
    let mut request = interface_request(name);
    // SAFETY: SIOCGIFFLAGS and SIOCSIFFLAGS take an ifreq; the first fills in ifru_flags, an integer.
    unsafe {
        ioctl(socket.as_fd(), libc::SIOCGIFFLAGS, &mut request)?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        ioctl(socket.as_fd(), libc::SIOCSIFFLAGS, &mut request)
    }
}

/// Sets an Ethernet interface's hardware address.
pub(crate) fn set_hardware_address(socket: impl AsFd, name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request = interface_request(name);
    let mut address = socket_address(Ipv4Addr::UNSPECIFIED);
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: SIOCSIFHWADDR reads an ifreq with ifru_hwaddr set.
    unsafe { ioctl(socket.as_fd(), libc::SIOCSIFHWADDR, &mut request) }
}

/// Sets an interface's address and netmask.
pub(crate) fn set_address(
    socket: impl AsFd,
    name: &str,
    address: Ipv4Addr,
    netmask: Ipv4Addr,
) -> io::Result<()> {
    for (number, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, netmask)] {
        let mut request = interface_request(name);
        request.ifr_ifru.ifru_addr = socket_address(value);
        // SAFETY: both requests read an ifreq with ifru_addr (or its twin ifru_netmask) set.
        unsafe { ioctl(socket.as_fd(), number, &mut request)? };
    }
    Ok(())
}

/// Removes the address with this name from its interface: it ends when it is not "up" any more.
pub(crate) fn remove_alias(socket: impl AsFd, name: &str) -> io::Result<()> {
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_flags = 0;
    // SAFETY: SIOCSIFFLAGS reads an ifreq with ifru_flags set.
    unsafe { ioctl(socket.as_fd(), libc::SIOCSIFFLAGS, &mut request) }
}

/// Adds the default route.
pub(crate) fn add_default_route(socket: impl AsFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: rtentry is plain data and pointers that may be null.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT reads an rtentry.
    unsafe { ioctl(socket.as_fd(), libc::SIOCADDRT, &mut route) }
}
