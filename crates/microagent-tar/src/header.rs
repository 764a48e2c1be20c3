//! One 512-byte tar header, in its four dialects: v7, ustar (POSIX), star and GNU.
//!
//! # Source
//!
//! POSIX.1-2017 `pax`, GNU tar manual "Basic Tar Format"; where they are ambiguous, Go's `archive/tar`, which container
//! engines use to read layers.

use crate::BLOCK as UNIT;

pub(crate) type Unit = [u8; UNIT];

/// The fields of one header. Code that uses a number checks that the kernel accepts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) link_name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: u16,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    /// Only in headers of type `S`.
    pub(crate) sparse: Option<GnuSparse>,
}

/// The fields for sparse files in a header of GNU's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GnuSparse {
    /// Logical size of the file.
    pub(crate) size: u64,
    pub(crate) map: SparseMap,
}

/// Offsets and lengths of the stored parts, and whether a unit with more of them follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SparseMap {
    pub(crate) parts: Vec<(u64, u64)>,
    pub(crate) continued: bool,
}

/// A unit at the position of a header, after parsing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Header(Header),
    /// All zero: the end of the archive.
    Zero,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

pub(crate) fn parse(unit: &Unit) -> Result<Parsed, &'static str> {
    if unit.iter().all(|&b| b == 0) {
        return Ok(Parsed::Zero);
    }
    check_sum(unit)?;
    let dialect = dialect(unit);
    let mut name = text(&unit[0..100]).to_vec();
    let prefix: &[u8] = match dialect {
        Dialect::Ustar => text(&unit[345..500]),
        Dialect::Star => text(&unit[345..476]),
        Dialect::V7 | Dialect::Gnu => b"",
    };
    if !prefix.is_empty() {
        name = [prefix, b"/", &name].concat();
    }
    let mut kind = unit[156];
    if kind == 0 {
        // Before types were invented, a directory was a name with a slash at its end.
        kind = if name.ends_with(b"/") { b'5' } else { b'0' };
    }
    let device =
        |field: &[u8]| if dialect == Dialect::V7 { Ok(0) } else { number(field, "a bad device number") };
    Ok(Parsed::Header(Header {
        kind,
        mode: (number(&unit[100..108], "a bad mode")? & 0o7777) as u16,
        uid: number(&unit[108..116], "a bad owner")?,
        gid: number(&unit[116..124], "a bad group")?,
        size: size(&unit[124..136])?,
        mtime: number(&unit[136..148], "a bad modification time")?,
        link_name: text(&unit[157..257]).to_vec(),
        major: device(&unit[329..337])?,
        minor: device(&unit[337..345])?,
        sparse: (kind == b'S').then(|| gnu_sparse(unit)).transpose()?,
        name,
    }))
}

fn gnu_sparse(unit: &Unit) -> Result<GnuSparse, &'static str> {
    Ok(GnuSparse { size: size(&unit[483..495])?, map: sparse_map(&unit[386..483])? })
}

/// A continuation of a sparse file's map.
pub(crate) fn more_sparse(unit: &Unit) -> Result<SparseMap, &'static str> {
    sparse_map(&unit[..505])
}

/// Pairs of 12 bytes each, then a flag: more follow. An empty field ends the list.
fn sparse_map(field: &[u8]) -> Result<SparseMap, &'static str> {
    let (pairs, mark) = field.split_at(field.len() - 1);
    let mut parts = Vec::new();
    for pair in pairs.chunks_exact(24) {
        if pair[12] == 0 {
            break;
        }
        parts.push((size(&pair[..12])?, size(&pair[12..])?));
    }
    Ok(SparseMap { parts, continued: mark[0] != 0 })
}

/// Parses a field that counts bytes.
fn size(field: &[u8]) -> Result<u64, &'static str> {
    u64::try_from(number(field, "a bad size")?).map_err(|_| "a negative size")
}

/// The bytes of a field up to the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

fn dialect(unit: &Unit) -> Dialect {
    match (&unit[257..263], &unit[263..265], &unit[508..512]) {
        (b"ustar\0", _, b"tar\0") => Dialect::Star,
        (b"ustar\0", ..) => Dialect::Ustar,
        (b"ustar ", b" \0", _) => Dialect::Gnu,
        _ => Dialect::V7,
    }
}

/// Verifies the checksum of a header, a sum of unsigned or, by old programs, signed bytes.
fn check_sum(unit: &Unit) -> Result<(), &'static str> {
    let stored = number(&unit[148..156], "a bad checksum field")?;
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (i, &b) in unit.iter().enumerate() {
        let b = if (148..156).contains(&i) { b' ' } else { b };
        unsigned += i64::from(b);
        signed += i64::from(b.cast_signed());
    }
    if stored == unsigned || stored == signed { Ok(()) } else { Err("a header with a wrong checksum") }
}

/// Parses octal digits, or base 256 if the first bit is set.
fn number(field: &[u8], what: &'static str) -> Result<i64, &'static str> {
    if field[0] & 0x80 != 0 {
        return base256(field).ok_or(what);
    }
    let digits = field.trim_ascii_start();
    let digits = digits.iter().position(|&b| b != 0).map_or(&b""[..], |start| &digits[start..]);
    let end = digits.iter().position(|&b| b == 0 || b == b' ').unwrap_or(digits.len());
    digits[..end]
        .iter()
        .try_fold(0i64, |value, &digit| match digit {
            b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
            _ => None,
        })
        .ok_or(what)
}

/// Parses a two's complement number. The highest bit marks the encoding, the second highest is the sign.
fn base256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] | 0x80 } else { field[0] & 0x7F };
    let mut value = i128::from(first.cast_signed());
    for &b in &field[1..] {
        value = value.checked_mul(256)?.checked_add(i128::from(b))?;
    }
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_shape() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"    644 ", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"777777777777", 0o777_777_777_777),
            (b"\x80\0\0\0\xFF\xFF\xFF\xFE", 0xFFFF_FFFE),
            (b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", -1),
            (b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x80", -128),
        ] {
            assert_eq!(number(field, "bad"), Ok(value), "{}", field.escape_ascii());
        }
        // What stands behind the end of a number is not read.
        assert_eq!(number(b"0644 x\0\0", "bad"), Ok(0o644));
        for field in [
            &b"000064x\0"[..],
            b"0000648\0",
            b"-000644\0",
            b"\xBF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
        ] {
            assert_eq!(number(field, "bad"), Err("bad"), "{}", field.escape_ascii());
        }
    }

    #[test]
    fn a_flipped_bit_is_seen() {
        let mut unit = [0; UNIT];
        unit[0] = b'a';
        unit[148..156].copy_from_slice(format!("{:06o}\0 ", i64::from(b'a') + 8 * 32).as_bytes());
        assert!(matches!(parse(&unit), Ok(Parsed::Header(h)) if h.name == b"a" && h.kind == b'0'));
        unit[120] ^= 1;
        assert_eq!(parse(&unit), Err("a header with a wrong checksum"));
        assert_eq!(parse(&[0; UNIT]), Ok(Parsed::Zero));
    }
}
