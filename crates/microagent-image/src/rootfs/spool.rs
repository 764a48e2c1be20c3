//! Where file contents of one layer lie until their place on the disk is known.
//!
//! A nameless temporary file, so that nothing is left behind however we end. Contents start on block
//! boundaries, in the order of the layer, so that on the disk they usually lie in the same order and are
//! copied in few large pieces, by the kernel. Blocks of zeros are remembered instead of written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::RootfsError;

/// Block size of spool and disk.
pub(super) const BLOCK: u64 = microagent_ext4::BLOCK_SIZE as u64;
/// Bytes collected before they are written.
const BUFFER: usize = 1 << 20;
const _: () = assert!((BUFFER as u64).is_multiple_of(BLOCK));

static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Consecutive blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) start: u64,
    pub(super) count: u64,
}

/// A spool being filled.
pub(super) struct SpoolWriter {
    file: File,
    buffer: Vec<u8>,
    /// Block at which the buffer begins.
    block: u64,
    zeros: Vec<Blocks>,
}

/// A spool to copy from.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    /// Ascending; adjacent ones are one.
    zeros: Vec<Blocks>,
}

impl SpoolWriter {
    pub(super) fn create(scratch: &Path) -> Result<SpoolWriter, RootfsError> {
        let file = tempfile::tempfile_in(scratch)
            .map_err(RootfsError::host(format!("create a temporary file in `{}`", scratch.display())))?;
        Ok(SpoolWriter { file, buffer: Vec::with_capacity(BUFFER), block: 0, zeros: Vec::new() })
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), RootfsError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Appends `count` zero bytes.
    pub(super) fn write_zeros(&mut self, mut count: u64) -> Result<(), RootfsError> {
        while count > 0 {
            let now = count.min((BUFFER - self.buffer.len()) as u64);
            self.buffer.resize(self.buffer.len() + now as usize, 0);
            count -= now;
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Pads to a block boundary and returns the number of the block that comes next.
    pub(super) fn align(&mut self) -> Result<u64, RootfsError> {
        let padding = (self.buffer.len() as u64).wrapping_neg() % BLOCK;
        self.write_zeros(padding)?;
        Ok(self.block + self.buffer.len() as u64 / BLOCK)
    }

    pub(super) fn finish(mut self) -> Result<Spool, RootfsError> {
        self.align()?;
        self.flush()?;
        Ok(Spool { file: self.file, zeros: self.zeros })
    }

    fn flush_if_full(&mut self) -> Result<(), RootfsError> {
        if self.buffer.len() == BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes the buffer, whole blocks, without those that are zero.
    fn flush(&mut self) -> Result<(), RootfsError> {
        let mut written = 0;
        let mut blocks =
            self.buffer.chunks_exact(BLOCK as usize).map(|block| block == ZEROS).enumerate().peekable();
        while let Some((first, is_zero)) = blocks.next() {
            let mut end = first + 1;
            while blocks.next_if(|&(_, same)| same == is_zero).is_some() {
                end += 1;
            }
            let range = first * BLOCK as usize..end * BLOCK as usize;
            written = range.end;
            let start = self.block + first as u64;
            if !is_zero {
                self.file
                    .write_all_at(&self.buffer[range], start * BLOCK)
                    .map_err(RootfsError::host("write the uncompressed layer to a temporary file"))?;
                continue;
            }
            let count = (end - first) as u64;
            match self.zeros.last_mut() {
                Some(last) if last.start + last.count == start => last.count += count,
                _ => self.zeros.push(Blocks { start, count }),
            }
        }
        debug_assert_eq!(written, self.buffer.len(), "only whole blocks are flushed");
        self.block += (written as u64) / BLOCK;
        self.buffer.clear();
        Ok(())
    }
}

impl Spool {
    /// Copies blocks to `disk`, where they begin at block `target`; zero blocks are left out.
    pub(super) fn copy(&self, blocks: Blocks, disk: &File, target: u64) -> io::Result<()> {
        let end = blocks.start + blocks.count;
        let mut at = blocks.start;
        let mut next = self.zeros.partition_point(|zero| zero.start + zero.count <= at);
        while at < end {
            let (stop, resume) = match self.zeros.get(next) {
                Some(zero) if zero.start < end => (zero.start.max(at), (zero.start + zero.count).min(end)),
                _ => (end, end),
            };
            copy_range(
                &self.file,
                at * BLOCK,
                disk,
                (target + at - blocks.start) * BLOCK,
                (stop - at) * BLOCK,
            )?;
            at = resume;
            next += 1;
        }
        Ok(())
    }
}

/// Copies bytes from file to file, in the kernel where it can.
fn copy_range(from: &File, mut source: u64, to: &File, mut target: u64, mut length: u64) -> io::Result<()> {
    while length > 0 {
        let most = usize::try_from(length).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), most) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => length -= count as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(
                rustix::io::Errno::XDEV
                | rustix::io::Errno::NOSYS
                | rustix::io::Errno::INVAL
                | rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::PERM,
            ) => return copy_bytes(from, source, to, target, length),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The same through memory, for files on different file systems and old kernels.
fn copy_bytes(from: &File, mut source: u64, to: &File, mut target: u64, mut length: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(length).unwrap_or(BUFFER))];
    while length > 0 {
        let now = (buffer.len() as u64).min(length);
        let piece = &mut buffer[..now as usize];
        from.read_exact_at(piece, source)?;
        to.write_all_at(piece, target)?;
        (source, target, length) = (source + now, target + now, length - now);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn zero_blocks_are_neither_written_nor_copied() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = SpoolWriter::create(dir.path()).unwrap();
        spool.write(b"start").unwrap();
        assert_eq!(spool.align().unwrap(), 1);
        spool.write_zeros(3 << 20).unwrap();
        assert_eq!(spool.align().unwrap(), 769);
        spool.write(&[7; 5000]).unwrap();
        assert_eq!(spool.align().unwrap(), 771);
        let spool = spool.finish().unwrap();
        assert_eq!(spool.zeros, [Blocks { start: 1, count: 768 }]);
        assert!(spool.file.metadata().unwrap().blocks() * 512 < 1 << 20);

        for copy in [copy_range, copy_bytes] {
            let disk = tempfile::tempfile().unwrap();
            copy(&spool.file, 0, &disk, 4096, 4096).unwrap();
            let mut read = [0; 5];
            disk.read_exact_at(&mut read, 4096).unwrap();
            assert_eq!(&read, b"start");
        }
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(8 << 20).unwrap();
        spool.copy(Blocks { start: 0, count: 771 }, &disk, 10).unwrap();
        let mut read = vec![0; 771 * 4096];
        disk.read_exact_at(&mut read, 10 * 4096).unwrap();
        assert_eq!(&read[..5], b"start");
        assert!(read[5..769 * 4096].iter().all(|&b| b == 0));
        assert!(read[769 * 4096..][..5000].iter().all(|&b| b == 7));
        assert!(disk.metadata().unwrap().blocks() * 512 < 1 << 20);
        // A range that begins and ends within zeros.
        spool.copy(Blocks { start: 100, count: 10 }, &disk, 1000).unwrap();
    }
}
