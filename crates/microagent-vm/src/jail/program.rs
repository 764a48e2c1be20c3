//! The one program that the jail executes, once.
//!
//! A seccomp filter cannot look at paths, but at numbers: it allows `execveat` of one descriptor and no other way to
//! execute. That descriptor has the highest number that the process may have. It is closed by the execution itself, and
//! the limit on open files, which nobody without capabilities can raise again, is lowered to its number: no later
//! descriptor can get it. So the filter, which stays, allows no second execution of a descriptor. An absolute path,
//! for which the kernel ignores the descriptor, passes the filter: Landlock's rules and QEMU's own filter refuse it,
//! and a program executed so would be in the same jail.

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most program headers of an ELF file that are read; real ones have about a dozen.
const PROGRAM_HEADERS_MAX: u16 = 64;

/// Longest path of an interpreter.
const INTERPRETER_MAX: u64 = 4096;

/// `PT_INTERP` of `elf(5)`.
const PT_INTERP: u32 = 3;

/// Why a program cannot be executed in the jail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// It cannot be opened.
    #[error("cannot open `{}`", path.display())]
    Open {
        /// The program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a script or something else.
    #[error("`{}` is not a 64-bit ELF program; the jail executes QEMU itself, not a script that starts it", path.display())]
    NotElf {
        /// The program.
        path: PathBuf,
    },
    /// An argument has a zero byte.
    #[error("an argument of QEMU has a zero byte")]
    Argument,
}

/// A program with its arguments, ready to be executed.
#[derive(Debug)]
pub(crate) struct Executable {
    file: OwnedFd,
    path: PathBuf,
    interpreter: Option<PathBuf>,
    args: Vec<CString>,
    slot: RawFd,
}

impl Executable {
    /// Opens a program. `args` come after its name.
    ///
    /// # Errors
    /// Fails when it is not there or is not an ELF program.
    pub(crate) fn open(path: &Path, args: &[OsString]) -> Result<Executable, ProgramError> {
        let failed = |source: io::Error| ProgramError::Open { path: path.to_owned(), source };
        let resolved = std::fs::canonicalize(path).map_err(failed)?;
        let readable = File::open(&resolved).map_err(failed)?;
        let Some(interpreter) = interpreter(&readable).map_err(failed)? else {
            return Err(ProgramError::NotElf { path: path.to_owned() });
        };
        let file = rustix::fs::open(&resolved, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failed(errno.into()))?;
        let name = path.as_os_str().to_owned();
        let words = std::iter::once(name).chain(args.iter().cloned());
        let args = words.map(|word| CString::new(word.into_vec())).collect::<Result<_, _>>();
        let args = args.map_err(|_| ProgramError::Argument)?;
        Ok(Executable { file, path: resolved, interpreter: interpreter.path, args, slot: -1 })
    }

    /// The program with links resolved.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The dynamic linker that the program names.
    pub(crate) fn interpreter(&self) -> Option<&Path> {
        self.interpreter.as_deref()
    }

    /// The descriptor that may be executed; valid after [`Executable::arm`].
    pub(super) fn slot(&self) -> RawFd {
        self.slot
    }

    /// Moves the program's descriptor to the highest number, and prevents later descriptors with that number. The
    /// process may have fewer than `most` descriptors then.
    pub(super) fn arm(mut self, most: u64) -> io::Result<Executable> {
        let limit = getrlimit(Resource::Nofile);
        let highest = limit.maximum.unwrap_or(most).min(most) - 1;
        // It can be above the soft limit of now.
        setrlimit(Resource::Nofile, Rlimit { current: Some(highest + 1), maximum: limit.maximum })?;
        let slot = RawFd::try_from(highest).map_err(io::Error::other)?;
        let moved = rustix::io::fcntl_dupfd_cloexec(&self.file, slot)?;
        setrlimit(Resource::Nofile, Rlimit { current: Some(highest), maximum: Some(highest) })?;
        // Above an inherited descriptor with that very number there is no room for another.
        self.slot = moved.as_raw_fd();
        self.file = moved;
        Ok(self)
    }

    /// Executes it with an empty environment. Returns only on failure.
    pub(super) fn execute(self) -> io::Error {
        let mut args: Vec<*const libc::c_char> = self.args.iter().map(|arg| arg.as_ptr()).collect();
        args.push(std::ptr::null());
        let environment = [std::ptr::null::<libc::c_char>()];
        let file = self.file.into_raw_fd();
        // SAFETY: the strings and both null-terminated arrays live until the call returns, which it does only when it
        // has failed; the path is a literal.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                file,
                c"".as_ptr(),
                args.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        io::Error::last_os_error()
    }
}

/// An ELF file's interpreter, if it has one.
struct Interpreter {
    path: Option<PathBuf>,
}

/// Reads what a 64-bit little-endian ELF file names as its interpreter; `None` for another file.
///
/// # Source
/// `elf(5)`.
fn interpreter(file: &File) -> io::Result<Option<Interpreter>> {
    let mut header = [0; 64];
    let mut reader = file;
    if let Err(error) = reader.read_exact(&mut header) {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let offset = u64_at(&header, 32);
    let (size, count) = (u16_at(&header, 54), u16_at(&header, 56).min(PROGRAM_HEADERS_MAX));
    for index in 0..count {
        let mut entry = [0; 56];
        let at = u64::from(index).saturating_mul(size.into()).saturating_add(offset);
        if file.read_exact_at(&mut entry, at).is_err() {
            return Ok(None);
        }
        if u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) == PT_INTERP {
            let len = usize::try_from(u64_at(&entry, 32).min(INTERPRETER_MAX)).unwrap_or_default();
            let mut path = vec![0; len];
            file.read_exact_at(&mut path, u64_at(&entry, 8))?;
            let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
            let path = PathBuf::from(OsStr::from_bytes(&path[..end]));
            return Ok(Some(Interpreter { path: Some(path) }));
        }
    }
    Ok(Some(Interpreter { path: None }))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_names_its_interpreter_and_a_script_is_refused() {
        let shell = Executable::open(Path::new("/bin/sh"), &[]).unwrap();
        let interpreter = shell.interpreter().unwrap();
        assert!(interpreter.is_absolute() && interpreter.exists(), "{}", interpreter.display());
        assert!(!shell.path().is_symlink());

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu");
        for content in [&b"#!/bin/sh\nexit 0\n"[..], b"", b"\x7fELF\x02\x01", &[b'x'; 4096]] {
            std::fs::write(&path, content).unwrap();
            assert!(matches!(Executable::open(&path, &[]), Err(ProgramError::NotElf { .. })));
        }
        let missing = Executable::open(&dir.path().join("none"), &[]);
        assert!(matches!(missing, Err(ProgramError::Open { .. })));
    }
}
