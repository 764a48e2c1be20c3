//! Finds the stored parts and the holes of a file.

use std::fs::File;

use rustix::fs::{SeekFrom, Stat, seek};
use rustix::io::Errno;

/// Fewest bytes of holes for which a file is packed as a sparse file; smaller holes cost more than they save.
const HOLE_MIN: u64 = 64 * 1024;
/// Most parts of a sparse file; the last one contains everything that follows, including holes. A map of so many
/// parts is smaller than the limit of readers (1 MiB).
const PARTS_MAX: usize = 8192;
const _: () = assert!(PARTS_MAX * 2 * "18446744073709551615\n".len() < 1 << 20);

/// Returns the stored parts of a file, each an offset and a length, in order. `None`: the holes are too small, or the
/// file system does not report them. The result may be outdated at once if another process writes to the file.
pub(crate) fn stored_parts(file: &File, stat: &Stat) -> Option<Vec<(u64, u64)>> {
    let size = u64::try_from(stat.st_size).ok()?;
    let blocks = u64::try_from(stat.st_blocks).ok()?;
    if blocks.saturating_mul(512).saturating_add(HOLE_MIN) > size {
        return None;
    }
    let mut parts: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            // Nothing but a hole is left.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            // Cut off meanwhile.
            Err(Errno::NXIO) => size,
            Err(_) => return None,
        };
        add(&mut parts, start, end);
        if parts.len() == PARTS_MAX {
            let last = parts.last_mut()?;
            last.1 = size - last.0;
            break;
        }
        at = end.max(start + 1);
    }
    let stored: u64 = parts.iter().map(|part| part.1).sum();
    (stored.saturating_add(HOLE_MIN) <= size).then_some(parts)
}

/// Adds a part; merges it with the previous one if the hole between them is small.
fn add(parts: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    match parts.last_mut() {
        Some((offset, length)) if start - (*offset + *length) < HOLE_MIN => *length = end - *offset,
        _ => parts.push((start, end - start)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::fs::fstat;

    use super::*;

    fn parts(write: impl Fn(&File)) -> Option<Vec<(u64, u64)>> {
        let file = tempfile::tempfile().unwrap();
        write(&file);
        stored_parts(&file, &fstat(&file).unwrap())
    }

    #[test]
    fn large_holes_are_seen_and_small_ones_are_not_worth_it() {
        const MIB: u64 = 1 << 20;
        assert_eq!(parts(|_| {}), None);
        assert_eq!(parts(|file| file.write_all_at(&[1; 300_000], 0).unwrap()), None);
        assert_eq!(parts(|file| file.set_len(8192).unwrap()), None);
        assert_eq!(parts(|file| file.set_len(MIB).unwrap()), Some(vec![]));
        let found = parts(|file| {
            file.write_all_at(&[1; 8192], 0).unwrap();
            // A hole of one page, and one of many.
            file.write_all_at(&[1; 4096], 12288).unwrap();
            file.write_all_at(&[1; 4096], 3 * MIB).unwrap();
            file.set_len(5 * MIB + 7).unwrap();
        })
        .expect("the file system of tests knows holes");
        assert_eq!(found, [(0, 16384), (3 * MIB, 4096)]);
    }
}
