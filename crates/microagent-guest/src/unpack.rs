//! From the binary to files, once, atomically, by any number of processes at a time.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use microagent_store::{Access, StateDir, fsync_dir, open_file};
use sha2::{Digest, Sha256};

use crate::{
    EmbeddedGuest, GuestError, GuestFiles, INITRAMFS, INITRAMFS_SHA256, KERNEL_LEN, KERNEL_PACKED,
    KERNEL_SHA256, Verified,
};

/// Digits of an identity.
const IDENTITY_LEN: usize = 16;

/// Largest kernel that is accepted from a user; real ones have 10 to 60 MB.
const KERNEL_LIMIT: u64 = 512 * 1024 * 1024;

/// Offset and value of the magic number in a bzImage's header (`Documentation/arch/x86/boot.rst`).
const BZIMAGE_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");

impl EmbeddedGuest {
    /// Gives the guest's files, unpacking them if they are not there or not whole.
    ///
    /// # Errors
    /// Fails when they cannot be written; nothing half-made stands under their name then.
    pub fn unpack(&self, state: &StateDir) -> Result<GuestFiles, GuestError> {
        let files = self.files(state);
        if is_whole(&files) {
            return Ok(files);
        }
        let place = files.kernel.parent().expect("the files lie in a directory");
        make(state, place, &files).map_err(|source| GuestError::Unpack { path: place.to_owned(), source })?;
        Ok(files)
    }

    /// As [`EmbeddedGuest::unpack`], with a kernel of the user's in place of the carried one. The kernel is used
    /// where it lies.
    ///
    /// # Errors
    /// Fails when the kernel cannot be read, is not an uncompressed kernel or a bzImage, or the rest
    /// cannot be unpacked.
    pub fn unpack_with_kernel(&self, state: &StateDir, kernel: &Path) -> Result<GuestFiles, GuestError> {
        let sum = kernel_sum(kernel)?;
        let kernel = fs::canonicalize(kernel)
            .map_err(|source| GuestError::Read { path: kernel.to_owned(), source })?;
        let initramfs = self.unpack(state)?.initramfs;
        Ok(GuestFiles { kernel, initramfs, identity: identity(&sum) })
    }

    /// Computes the sums of what this build carries and of what lies unpacked in the state directory.
    /// Changes nothing.
    ///
    /// # Errors
    /// Fails when a sum is wrong or an unpacked file cannot be read.
    pub fn verify(&self, state: &StateDir) -> Result<Verified, GuestError> {
        let packed = |source| GuestError::Read { path: PathBuf::from("embedded kernel"), source };
        let kernel = zstd::Decoder::with_buffer(KERNEL_PACKED).and_then(sum).map_err(packed)?;
        expect("the embedded kernel", KERNEL_SHA256, &kernel)?;
        expect("the embedded initramfs", INITRAMFS_SHA256, &hex(&Sha256::digest(INITRAMFS)))?;

        let files = self.files(state);
        let unpacked = files.kernel.exists() || files.initramfs.exists();
        if unpacked {
            for (path, sum) in [(&files.kernel, KERNEL_SHA256), (&files.initramfs, INITRAMFS_SHA256)] {
                expect(&format!("`{}`", path.display()), sum, &file_sum(path)?)?;
            }
        }
        Ok(Verified {
            kernel: self.kernel_info(),
            initramfs_sha256: INITRAMFS_SHA256,
            unpacked: unpacked.then_some(files),
        })
    }

    fn files(self, state: &StateDir) -> GuestFiles {
        let identity = identity(KERNEL_SHA256);
        let dir = state.guest().join(&identity);
        GuestFiles { kernel: dir.join("vmlinux"), initramfs: dir.join("initramfs.cpio"), identity }
    }
}

/// Bytes of the initramfs that are compared before it is used: its first directories, which neither zeros nor another
/// kind of file has. Whether all of it is right is for [`EmbeddedGuest::verify`] to say.
const START_LEN: usize = 512;

/// Stands for a kernel together with the carried initramfs.
fn identity(kernel_sum: &str) -> String {
    let mut sum = hex(&Sha256::digest(format!("{kernel_sum} {INITRAMFS_SHA256}")));
    sum.truncate(IDENTITY_LEN);
    sum
}

/// Whether both files have their length and their first bytes. Their content was flushed before they got their names.
fn is_whole(files: &GuestFiles) -> bool {
    let starts = |path: &Path, len, start: &[u8]| {
        let mut found = vec![0; start.len()];
        open_file(path, Access::Read).is_ok_and(|file| {
            file.metadata().is_ok_and(|metadata| metadata.len() == len)
                && file.read_exact_at(&mut found, 0).is_ok()
                && found == start
        })
    };
    starts(&files.kernel, KERNEL_LEN, b"\x7fELF")
        && starts(&files.initramfs, INITRAMFS.len() as u64, &INITRAMFS[..START_LEN.min(INITRAMFS.len())])
}

/// Writes both files beside their place and then renames the directory.
fn make(state: &StateDir, place: &Path, files: &GuestFiles) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(state.guest())?;
    DirBuilder::new().recursive(true).mode(0o700).create(state.tmp())?;
    let draft = state.scratch()?;
    let kernel = create(&draft.path().join("vmlinux"))?;
    zstd::stream::copy_decode(KERNEL_PACKED, &kernel)?;
    kernel.sync_all()?;
    let mut initramfs = create(&draft.path().join("initramfs.cpio"))?;
    initramfs.write_all(INITRAMFS)?;
    initramfs.sync_all()?;
    fsync_dir(draft.path())?;

    match fs::symlink_metadata(place) {
        // Made by somebody else in the meantime. The draft goes.
        Ok(_) if is_whole(files) => return Ok(()),
        Ok(_) => draft.exchange(place)?,
        Err(_) => match draft.publish(place) {
            Err(_) if is_whole(files) => return Ok(()),
            published => published?,
        },
    }
    fsync_dir(&state.guest())
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Sum of a user's kernel, after a look at its first bytes.
fn kernel_sum(path: &Path) -> Result<String, GuestError> {
    let read = |source| GuestError::Read { path: path.to_owned(), source };
    let not_a_kernel = || GuestError::NotAKernel { path: path.to_owned() };
    // The user's, so links lead to it as usual.
    let mut file = open_file(path, Access::ReadFollowing).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => not_a_kernel(),
        _ => read(source),
    })?;
    if file.metadata().map_err(read)?.len() > KERNEL_LIMIT {
        return Err(not_a_kernel());
    }
    let mut head = Vec::new();
    (&mut file).take(4096).read_to_end(&mut head).map_err(read)?;
    let (offset, magic) = BZIMAGE_MAGIC;
    let is_bzimage = head.get(offset..offset + magic.len()) == Some(magic);
    if !head.starts_with(b"\x7fELF") && !is_bzimage {
        return Err(not_a_kernel());
    }
    file_sum(path)
}

fn file_sum(path: &Path) -> Result<String, GuestError> {
    let read = |source| GuestError::Read { path: path.to_owned(), source };
    File::open(path).and_then(sum).map_err(read)
}

/// SHA-256 of all that a reader gives, in hex.
fn sum(mut from: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn expect(what: &str, expected: &'static str, found: &str) -> Result<(), GuestError> {
    if expected == found {
        return Ok(());
    }
    Err(GuestError::Damaged { what: what.to_owned(), expected, found: found.to_owned() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::KernelInfo;

    fn state(dir: &tempfile::TempDir) -> StateDir {
        let state = StateDir::at(dir.path().join("state"));
        state.prepare().unwrap();
        state
    }

    fn no_rubbish(state: &StateDir) {
        assert_eq!(fs::read_dir(state.tmp()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(state.guest()).unwrap().count(), 1);
    }

    #[test]
    fn unpacks_once_and_verifies() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(&dir);
        let guest = EmbeddedGuest::embedded();
        assert_eq!(guest.verify(&state).unwrap().unpacked, None);
        let files = guest.unpack(&state).unwrap();
        let made = fs::metadata(&files.kernel).unwrap();
        assert_eq!(made.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&files.initramfs).unwrap(), INITRAMFS);
        assert_eq!(guest.unpack(&state).unwrap(), files);
        assert_eq!(fs::metadata(&files.kernel).unwrap().modified().unwrap(), made.modified().unwrap());
        assert_eq!(guest.verify(&state).unwrap().unpacked, Some(files));
        no_rubbish(&state);
    }

    #[test]
    fn what_is_not_whole_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(&dir);
        let files = EmbeddedGuest::embedded().unpack(&state).unwrap();
        File::options().write(true).open(&files.kernel).unwrap().set_len(100).unwrap();
        assert!(matches!(EmbeddedGuest::embedded().verify(&state), Err(GuestError::Damaged { .. })));
        assert_eq!(EmbeddedGuest::embedded().unpack(&state).unwrap(), files);
        fs::remove_file(&files.initramfs).unwrap();
        assert!(matches!(EmbeddedGuest::embedded().verify(&state), Err(GuestError::Read { .. })));
        assert_eq!(EmbeddedGuest::embedded().unpack(&state).unwrap(), files);
        EmbeddedGuest::embedded().verify(&state).unwrap();
        no_rubbish(&state);
    }

    #[test]
    fn many_at_once_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(&dir);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| assert!(is_whole(&EmbeddedGuest::embedded().unpack(&state).unwrap())));
            }
        });
        EmbeddedGuest::embedded().verify(&state).unwrap();
        no_rubbish(&state);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path().join("state"));
        fs::write(state.root(), b"in the way").unwrap();
        let error = EmbeddedGuest::embedded().unpack(&state).unwrap_err();
        assert!(matches!(error, GuestError::Unpack { .. }), "{error}");
    }

    #[test]
    fn a_kernel_of_the_users_is_used_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(&dir);
        let own = EmbeddedGuest::embedded().unpack(&state).unwrap();
        let copy = dir.path().join("copy");
        fs::copy(&own.kernel, &copy).unwrap();
        let files = EmbeddedGuest::embedded().unpack_with_kernel(&state, &copy).unwrap();
        assert_eq!((files.kernel.as_path(), &files.identity), (copy.as_path(), &own.identity));

        let mut bzimage = vec![0; 4096];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(&copy, bzimage).unwrap();
        let files = EmbeddedGuest::embedded().unpack_with_kernel(&state, &copy).unwrap();
        assert_ne!(files.identity, own.identity);

        for content in [&b""[..], b"\x28\xb5\x2f\xfd", &[0; 5000]] {
            fs::write(&copy, content).unwrap();
            let error = EmbeddedGuest::embedded().unpack_with_kernel(&state, &copy).unwrap_err();
            assert!(matches!(error, GuestError::NotAKernel { .. }), "{error}");
        }
        let missing =
            EmbeddedGuest::embedded().unpack_with_kernel(&state, &dir.path().join("none")).unwrap_err();
        assert!(matches!(missing, GuestError::Read { .. }), "{missing}");
        let directory = EmbeddedGuest::embedded().unpack_with_kernel(&state, dir.path()).unwrap_err();
        assert!(matches!(directory, GuestError::NotAKernel { .. }), "{directory}");
    }

    #[test]
    fn the_kernel_is_described() {
        let KernelInfo { release, source, sha256, len } = EmbeddedGuest::embedded().kernel_info();
        assert!(release.ends_with("-microagent") && source.starts_with("linux-"), "{release} {source}");
        assert!(sha256.len() == 64 && len > 1_000_000);
    }
}
