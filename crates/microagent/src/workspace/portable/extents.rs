//! Contents of disks in parts: a kind, an offset and a length for each range, and its bytes if it has some.

use std::io;

use microagent_vm::DiskPart;

use super::stream::PieceWriter;
use super::{PART_BYTES, unusable};
use crate::Error;

/// Kinds of a range.
const ZEROS: u8 = 0;
const DATA: u8 = 1;

/// Bytes before those of a range: kind, offset and length, both of 8 bytes, little endian.
const RANGE_HEADER: usize = 17;

/// Writes parts of one content.
pub(super) struct PartWriter<'a, W: io::Write> {
    to: &'a mut PieceWriter<W>,
    name: &'static str,
    number: u64,
    part: Vec<u8>,
}

impl<'a, W: io::Write> PartWriter<'a, W> {
    pub(super) fn new(to: &'a mut PieceWriter<W>, name: &'static str) -> PartWriter<'a, W> {
        PartWriter { to, name, number: 0, part: Vec::with_capacity(PART_BYTES) }
    }

    /// Adds a range of a disk.
    pub(super) fn range(&mut self, range: &DiskPart<'_>) -> io::Result<()> {
        let (kind, offset, length, bytes) = match range {
            DiskPart::Zeros { offset, length } => (ZEROS, offset, *length, &[][..]),
            DiskPart::Data { offset, bytes } => (DATA, offset, bytes.len() as u64, *bytes),
        };
        self.part.push(kind);
        self.part.extend(offset.to_le_bytes());
        self.part.extend(length.to_le_bytes());
        self.bytes(bytes)
    }

    /// Adds plain bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.part.extend(bytes);
        if self.part.len() >= PART_BYTES { self.end_part() } else { Ok(()) }
    }

    fn end_part(&mut self) -> io::Result<()> {
        self.to.write(&format!("{}/{}", self.name, self.number), &self.part)?;
        self.number += 1;
        self.part.clear();
        Ok(())
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.part.is_empty() { Ok(()) } else { self.end_part() }
    }
}

/// Reads ranges of a disk: ascending, without overlaps, within its size.
#[derive(Debug)]
pub(super) struct Ranges {
    size: u64,
    end: u64,
}

impl Ranges {
    pub(super) fn new(size: u64) -> Ranges {
        Ranges { size, end: 0 }
    }

    /// Takes the ranges of a part.
    pub(super) fn take(
        &mut self,
        mut part: &[u8],
        mut each: impl FnMut(DiskPart<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while !part.is_empty() {
            let Some((header, rest)) = part.split_at_checked(RANGE_HEADER) else {
                return Err(unusable("a range in it is cut off"));
            };
            let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
            let (offset, length) = (number(1), number(9));
            let end = offset.checked_add(length).filter(|end| *end <= self.size);
            let (Some(end), true) = (end, offset >= self.end && length > 0) else {
                return Err(unusable("a range in it is not on its disk, or out of order"));
            };
            self.end = end;
            part = match header[0] {
                ZEROS => {
                    each(DiskPart::Zeros { offset, length })?;
                    rest
                }
                DATA => {
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    let Some((bytes, rest)) = rest.split_at_checked(length) else {
                        return Err(unusable("a range in it is cut off"));
                    };
                    each(DiskPart::Data { offset, bytes })?;
                    rest
                }
                _ => return Err(unusable("a range in it is of no known kind")),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(kind: u8, offset: u64, length: u64, bytes: &[u8]) -> Vec<u8> {
        [&[kind][..], &offset.to_le_bytes(), &length.to_le_bytes(), bytes].concat()
    }

    fn taken(size: u64, parts: &[Vec<u8>]) -> Result<Vec<(u64, u64)>, String> {
        let (mut ranges, mut found) = (Ranges::new(size), Vec::new());
        for part in parts {
            let taken = ranges.take(part, |part| {
                found.push(match part {
                    DiskPart::Zeros { offset, length } => (offset, length),
                    DiskPart::Data { offset, bytes } => (offset, bytes.len() as u64),
                });
                Ok(())
            });
            taken.map_err(|e| e.to_string())?;
        }
        Ok(found)
    }

    #[test]
    fn ranges_ascend_and_stay_on_the_disk() {
        let good = [range(DATA, 0, 3, b"abc"), [range(ZEROS, 3, 5, b""), range(DATA, 9, 1, b"x")].concat()];
        assert_eq!(taken(10, &good).unwrap(), [(0, 3), (3, 5), (9, 1)]);
        let bad = [
            range(DATA, 0, 11, b"hello world"),
            range(ZEROS, u64::MAX, 2, b""),
            range(ZEROS, 0, u64::MAX, b""),
            range(ZEROS, 2, 0, b""),
            range(2, 0, 1, b""),
            range(DATA, 0, 4, b"abc"),
            vec![0; RANGE_HEADER - 1],
        ];
        for part in bad {
            assert!(taken(10, std::slice::from_ref(&part)).is_err(), "{part:?}");
        }
        let twice = [range(ZEROS, 0, 4, b""), range(ZEROS, 3, 4, b"")];
        assert!(taken(10, &twice).is_err());
    }
}
