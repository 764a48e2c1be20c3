//! Creates the headers of a tar stream: the blocks before the content of a file.
//!
//! # Source
//! POSIX.1-2001 `pax` interchange format; extended attributes as `SCHILY.xattr.*` records, as GNU tar and
//! Go's `archive/tar` write and read them.

use crate::{BLOCK, Entry, Kind};

/// Largest value of a number field of 8 bytes (7 octal digits) and of 12 bytes (11 digits).
const SHORT_LIMIT: u64 = 0o7_777_777;
const LONG_LIMIT: u64 = 0o77_777_777_777;

/// Lengths of the name fields in bytes.
const NAME_LEN: usize = 100;
const LINK_LEN: usize = 100;

/// Returns the blocks before the content of an entry. A [`Kind::File`] has the size of that content. Names of
/// directories must end in a slash.
pub fn header(entry: &Entry<u64>) -> Vec<u8> {
    with_records(entry, &records(entry))
}

fn with_records(entry: &Entry<u64>, records: &[u8]) -> Vec<u8> {
    let mut blocks = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        let len = records.len() as u64;
        blocks.extend_from_slice(&block(b"PaxHeaders/entry", b'x', len, 0o644, (0, 0), 0, &[], (0, 0)));
        blocks.extend_from_slice(records);
        blocks.resize(blocks.len() + padding(len), 0);
    }
    let (type_flag, len, target, device): (u8, u64, &[u8], (u32, u32)) = match &entry.kind {
        Kind::File(len) => (b'0', *len, &[], (0, 0)),
        Kind::HardLink(target) => (b'1', 0, target, (0, 0)),
        Kind::Symlink(target) => (b'2', 0, target, (0, 0)),
        Kind::CharacterDevice { major, minor } => (b'3', 0, &[], (*major, *minor)),
        Kind::BlockDevice { major, minor } => (b'4', 0, &[], (*major, *minor)),
        Kind::Directory => (b'5', 0, &[], (0, 0)),
        Kind::Fifo => (b'6', 0, &[], (0, 0)),
    };
    let owner = (entry.meta.uid, entry.meta.gid);
    let seconds = u64::try_from(entry.meta.mtime.0).unwrap_or(0);
    blocks.extend_from_slice(&block(
        &entry.name,
        type_flag,
        len,
        entry.meta.mode.into(),
        owner,
        seconds,
        target,
        device,
    ));
    blocks
}

/// Returns the blocks before the content of a sparse file. `parts` are offsets and lengths, in order and within the
/// size of the entry. The caller writes the parts one after the other, and then [`padding`] for their sum. Other
/// entries than files have no parts.
///
/// # Source
/// GNU tar manual, "Storing Sparse Files", PAX format version 1.0.
pub fn sparse_header(entry: &Entry<u64>, parts: &[(u64, u64)]) -> Vec<u8> {
    let Kind::File(size) = entry.kind else { return header(entry) };
    // The last pair says where the file ends, for readers that take no other word for it.
    let pairs = parts.iter().copied().chain([(size, 0)]);
    let mut map = format!("{}\n", parts.len() + 1);
    map.extend(pairs.map(|(offset, length)| format!("{offset}\n{length}\n")));
    let mut map = map.into_bytes();
    map.resize(map.len() + padding(map.len() as u64), 0);
    let stored = map.len() as u64 + parts.iter().map(|part| part.1).sum::<u64>();

    let mut records = records(&Entry { kind: Kind::File(stored), name: Vec::new(), ..entry.clone() });
    record(&mut records, b"GNU.sparse.major", b"1");
    record(&mut records, b"GNU.sparse.minor", b"0");
    record(&mut records, b"GNU.sparse.name", &entry.name);
    record(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
    // The name for readers that know nothing of holes, and would take the map for content.
    let plain = Entry { kind: Kind::File(stored), name: b"GNUSparseFile.0/file".to_vec(), ..entry.clone() };
    let mut blocks = with_records(&plain, &records);
    blocks.extend(map);
    blocks
}

/// Returns how many zeros fill the last block after `len` bytes of content.
pub fn padding(len: u64) -> usize {
    let over = usize::try_from(len % BLOCK as u64).expect("less than a block");
    if over == 0 { 0 } else { BLOCK - over }
}

/// Returns the records for values that do not fit into a ustar header.
fn records(entry: &Entry<u64>) -> Vec<u8> {
    let mut records = Vec::new();
    if entry.name.len() > NAME_LEN {
        record(&mut records, b"path", &entry.name);
    }
    if let Kind::HardLink(target) | Kind::Symlink(target) = &entry.kind
        && target.len() > LINK_LEN
    {
        record(&mut records, b"linkpath", target);
    }
    let mut number = |name: &[u8], value: u64, limit: u64| {
        if value > limit {
            record(&mut records, name, value.to_string().as_bytes());
        }
    };
    number(b"uid", entry.meta.uid.into(), SHORT_LIMIT);
    number(b"gid", entry.meta.gid.into(), SHORT_LIMIT);
    if let Kind::File(len) = entry.kind {
        number(b"size", len, LONG_LIMIT);
    }
    let (seconds, nanoseconds) = entry.meta.mtime;
    let fits = u64::try_from(seconds).is_ok_and(|seconds| seconds <= LONG_LIMIT);
    if nanoseconds != 0 || !fits {
        record(&mut records, b"mtime", decimal_time(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in &entry.attributes {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// Formats seconds with a fraction. Before 1970 it is a negative decimal number, so the fraction counts downwards.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds > 0 {
        let (seconds, fraction) = (seconds + 1, 1_000_000_000 - nanoseconds);
        return format!("-{}.{fraction:09}", seconds.unsigned_abs());
    }
    if nanoseconds == 0 { seconds.to_string() } else { format!("{seconds}.{nanoseconds:09}") }
}

/// Formats one record: its length in decimal, space, `name=value`, newline.
fn record(records: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let rest = name.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + decimal_digits(len) {
        len = rest + decimal_digits(len);
    }
    records.extend_from_slice(format!("{len} ").as_bytes());
    records.extend_from_slice(name);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn decimal_digits(number: usize) -> usize {
    number.to_string().len()
}

/// Formats one header block. Values that do not fit are truncated; a record before the header has them in full.
#[expect(clippy::too_many_arguments, reason = "one per field of the format")]
fn block(
    path: &[u8],
    type_flag: u8,
    len: u64,
    mode: u32,
    owner: (u32, u32),
    seconds: u64,
    target: &[u8],
    device: (u32, u32),
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    text(&mut block[0..100], path);
    octal(&mut block[100..108], (mode & 0o7777).into());
    octal(&mut block[108..116], owner.0.into());
    octal(&mut block[116..124], owner.1.into());
    octal(&mut block[124..136], len);
    octal(&mut block[136..148], seconds);
    block[156] = type_flag;
    text(&mut block[157..257], target);
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block[329..337], device.0.into());
    octal(&mut block[337..345], device.1.into());
    // The sum is taken with spaces in its own place.
    block[148..156].fill(b' ');
    let sum = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
    block
}

fn text(field: &mut [u8], value: &[u8]) {
    let len = value.len().min(field.len());
    field[..len].copy_from_slice(&value[..len]);
}

/// Writes octal digits and a NUL; a number that is too large is written as 0.
fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let digits = format!("{value:0width$o}");
    let digits = if digits.len() > width { "0".repeat(width) } else { digits };
    field[..width].copy_from_slice(digits.as_bytes());
    field[width] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Meta;

    #[test]
    fn a_record_counts_its_own_digits() {
        for value_len in [0, 1, 85, 86, 87, 88, 89, 90, 980, 985, 990, 9_980, 9_990] {
            let mut bytes = Vec::new();
            record(&mut bytes, b"path", &vec![b'x'; value_len]);
            let text = std::str::from_utf8(&bytes).unwrap();
            let (len, _) = text.split_once(' ').unwrap();
            assert_eq!(len.parse::<usize>().unwrap(), bytes.len());
        }
    }

    #[test]
    fn times_before_1970_are_decimal_numbers() {
        assert_eq!(decimal_time(1, 5), "1.000000005");
        assert_eq!(decimal_time(7, 0), "7");
        // 1969-12-31 23:59:58.25 is second -2 and a quarter.
        assert_eq!(decimal_time(-2, 250_000_000), "-1.750000000");
        assert_eq!(decimal_time(-1, 999_999_999), "-0.000000001");
        assert_eq!(decimal_time(-3, 0), "-3");
    }

    #[test]
    fn a_file_with_holes_comes_back_through_our_reader() {
        use crate::read::{Extent, Reader};
        let entry = Entry {
            name: b"n/".repeat(80),
            kind: Kind::File(10 << 30),
            meta: Meta { mode: 0o640, uid: 3_000_000_000, gid: 7, mtime: (5, 6) },
            attributes: vec![(b"user.a".to_vec(), b"b".to_vec())],
        };
        for parts in [vec![], vec![(0, 5)], vec![(4096, 700), (9 << 30, 3)]] {
            let mut stream = sparse_header(&entry, &parts);
            let stored: u64 = parts.iter().map(|part| part.1).sum();
            stream.extend(vec![b'x'; stored as usize + padding(stored)]);
            stream.resize(stream.len() + 2 * BLOCK, 0);
            let mut reader = Reader::new(&stream[..], 4096);
            let member = reader.next_member().unwrap().unwrap();
            assert_eq!(
                (&member.name, member.meta, &member.attributes),
                (&entry.name, entry.meta, &entry.attributes)
            );
            assert_eq!(member.kind, Kind::File(Extent { size: 10 << 30, parts: Some(parts) }));
            assert_eq!(reader.next_member().unwrap(), None);
        }
    }

    #[test]
    fn every_field_comes_back_through_another_reader() {
        let entry = Entry {
            name: [&b"a/".repeat(80)[..], b"\xff\xfe"].concat(),
            kind: Kind::Symlink(b"../".repeat(60)),
            meta: Meta { mode: 0o4755, uid: 3_000_000_000, gid: 70_000, mtime: (1_700_000_000, 123_456_789) },
            attributes: vec![
                (b"user.empty".to_vec(), Vec::new()),
                (b"user.bytes".to_vec(), vec![0, 61, 255]),
            ],
        };
        let mut stream = header(&entry);
        stream.resize(stream.len() + 2 * BLOCK, 0);
        let mut archive = tar::Archive::new(&stream[..]);
        let mut read = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(read.path_bytes().as_ref(), entry.name);
        assert_eq!(read.link_name_bytes().unwrap().as_ref(), b"../".repeat(60));
        assert_eq!(read.header().mode().unwrap(), 0o4755);
        assert_eq!(read.header().gid().unwrap(), 70_000);
        let records: Vec<_> = read
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|record| record.map(|r| (r.key_bytes().to_vec(), r.value_bytes().to_vec())).unwrap())
            .collect();
        assert!(records.contains(&(b"uid".to_vec(), b"3000000000".to_vec())));
        assert!(records.contains(&(b"mtime".to_vec(), b"1700000000.123456789".to_vec())));
        assert!(records.contains(&(b"SCHILY.xattr.user.empty".to_vec(), Vec::new())));
    }
}
