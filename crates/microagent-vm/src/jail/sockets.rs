//! Which sockets a process in a jail can make.
//!
//! A filter has to look at all three arguments. The family alone lets other protocols of the Internet pass, for which
//! Landlock has no rule: Multipath TCP reaches ports that TCP may not connect to. And a pair of UNIX datagram sockets
//! is connected to nothing for good: either end can send to the path of any other socket.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// Family, type and protocol.
pub(crate) type Kind = (libc::c_int, libc::c_int, libc::c_int);

/// Flags that may come with a type.
const FLAGS: libc::c_int = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// Most open files of a process that passes few descriptors on. The kernel counts descriptors under way for all
/// processes of a user together, and compares them with the sender's limit: one message of 253 more than this stays below
/// the 1024 that other programs usually have.
const FEW_FILES: u64 = 768;

/// Rules for `socket` and `socketpair`: these kinds, with or without flags.
pub(crate) fn kinds(kinds: &[Kind]) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |(family, kind, protocol): &Kind| {
        SeccompRule::new(vec![
            argument(0, SeccompCmpOp::Eq, *family)?,
            argument(1, SeccompCmpOp::MaskedEq(bits(!FLAGS)), *kind)?,
            argument(2, SeccompCmpOp::Eq, *protocol)?,
        ])
    };
    kinds.iter().map(rule).collect()
}

/// Limits the open files of this process, and so the descriptors that it can have under way.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn limit_files() -> io::Result<()> {
    let most = getrlimit(Resource::Nofile).maximum.map_or(FEW_FILES, |held| held.min(FEW_FILES));
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Limits the open files of a process that needs many and passes some on: to half of what it may have. A supervisor may
/// have all, so that it can pass descriptors whatever this process has under way.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn leave_files() -> io::Result<()> {
    let held = getrlimit(Resource::Nofile).maximum;
    let most = held.map(|held| (held / 2).max(FEW_FILES.min(held)));
    Ok(setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?)
}

fn argument(
    number: u8,
    operator: SeccompCmpOp,
    value: libc::c_int,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, bits(value))
}

/// The bits of an `int` as an argument of a system call has them.
fn bits(value: libc::c_int) -> u64 {
    value.cast_unsigned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_passes_descriptors_leaves_half_of_them_to_others() {
        let held = getrlimit(Resource::Nofile).maximum.unwrap();
        leave_files().unwrap();
        let left = getrlimit(Resource::Nofile);
        let most = Some((held / 2).max(FEW_FILES.min(held)));
        assert_eq!((left.current, left.maximum), (most, most));
        limit_files().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).maximum, Some(FEW_FILES.min(held)));
    }
}

/// Tries of a process that was taken over, for tests of both jails.
#[cfg(test)]
#[allow(unsafe_code)]
pub(crate) mod tries {
    use std::io;

    use super::Kind;

    fn result(value: libc::c_long) -> io::Result<libc::c_long> {
        if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
    }

    pub(crate) fn socket((family, kind, protocol): Kind) -> io::Result<libc::c_long> {
        // SAFETY: the call takes numbers.
        result(unsafe { libc::syscall(libc::SYS_socket, family, kind, protocol) })
    }

    pub(crate) fn pair((family, kind, protocol): Kind) -> io::Result<[libc::c_int; 2]> {
        let mut ends = [0; 2];
        // SAFETY: the kernel writes two numbers to the place.
        result(unsafe { libc::syscall(libc::SYS_socketpair, family, kind, protocol, ends.as_mut_ptr()) })?;
        Ok(ends)
    }

    /// Calls with numbers and with a message or address of zeros.
    pub(crate) fn send(
        call: libc::c_long,
        socket: libc::c_long,
        flags: libc::c_int,
    ) -> io::Result<libc::c_long> {
        let zeros = [0_u64; 16];
        let (message, address) = (zeros.as_ptr(), zeros.as_ptr());
        // SAFETY: whichever of the calls it is, it reads at most this place.
        result(unsafe {
            match call {
                libc::SYS_sendmmsg => libc::syscall(call, socket, message, 1, flags),
                libc::SYS_sendmsg => libc::syscall(call, socket, message, flags),
                _ => libc::syscall(call, socket, message, 1_u64, flags, address, 16),
            }
        })
    }

    pub(crate) fn is_denied<T>(result: &io::Result<T>) -> bool {
        matches!(result, Err(error) if error.raw_os_error() == Some(libc::EPERM))
    }

    /// What no jail allows.
    pub(crate) const NO_SOCKETS: &[Kind] = &[
        (libc::AF_INET, libc::SOCK_STREAM, 262),
        (libc::AF_INET6, libc::SOCK_STREAM, 262),
        (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        (libc::AF_INET, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP),
        (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
        (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        (libc::AF_UNIX, libc::SOCK_STREAM, 0),
        (libc::AF_UNIX, libc::SOCK_DGRAM, 0),
        (libc::AF_UNIX, libc::SOCK_SEQPACKET, 0),
        (libc::AF_NETLINK, libc::SOCK_RAW, 0),
        (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
    ];
}
