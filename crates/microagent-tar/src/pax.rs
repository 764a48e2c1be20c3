//! Extended (pax) headers: records that override the fields of the header after them.
//!
//! # Source
//!
//! POSIX.1-2017 `pax`, section "pax Extended Header"; GNU tar manual, appendix "Sparse Formats"; libarchive's
//! tar(5) for `LIBARCHIVE.xattr.*`.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::Attribute;

/// base64 of attribute values: libarchive writes no padding, other programs may.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The overrides that the extended headers before an entry contain.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link_path: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<(i64, u32)>,
    /// Attributes in libarchive's form come first, so that the plain form wins if a name has both.
    pub(crate) attributes: Vec<Attribute>,
    plain_attributes: Vec<Attribute>,
    pub(crate) sparse: Sparse,
}

/// The three formats in which GNU tar stores sparse files in pax archives.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Version 1.0: the map precedes the data.
    pub(crate) map_in_data: bool,
    major: Option<u64>,
    /// Logical size of the file.
    pub(crate) size: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// Offsets and lengths alternately. Version 0.0 has a record for each, 0.1 one for all.
    pub(crate) map: Vec<u64>,
}

impl Sparse {
    pub(crate) fn is_used(&self) -> bool {
        self.map_in_data || self.size.is_some() || !self.map.is_empty()
    }
}

/// Parses the records of one extended header.
pub(crate) fn parse(mut data: &[u8]) -> Result<Overrides, &'static str> {
    let mut overrides = Overrides::default();
    while !data.is_empty() {
        let (key, value, rest) = record(data).ok_or("a malformed pax record")?;
        overrides.take(key, value)?;
        data = rest;
    }
    let plain = std::mem::take(&mut overrides.plain_attributes);
    overrides.attributes.extend(plain);
    Ok(overrides)
}

/// Splits off the first record: length in decimal, space, key, `=`, value, newline.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = data.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(decimal(&data[..blank])?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let body = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&b| b == b'=')?;
    (equals > 0).then_some((&body[..equals], &body[equals + 1..], rest))
}

impl Overrides {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.plain_attributes.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = percent_decoded(name).ok_or("a malformed attribute name")?;
            let value = BASE64.decode(value).map_err(|_| "a malformed attribute value")?;
            self.attributes.push((name, value));
            return Ok(());
        }
        if value.is_empty() {
            // An empty value takes the override back.
            match key {
                b"path" => self.path = None,
                b"linkpath" => self.link_path = None,
                b"size" => self.size = None,
                b"uid" => self.uid = None,
                b"gid" => self.gid = None,
                b"mtime" => self.mtime = None,
                _ => {}
            }
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link_path = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value).ok_or("a bad pax size")?),
            b"uid" => self.uid = Some(id(value).ok_or("a bad pax owner")?),
            b"gid" => self.gid = Some(id(value).ok_or("a bad pax group")?),
            b"mtime" => self.mtime = Some(time(value).ok_or("a bad pax modification time")?),
            _ => self.take_sparse(key, value).ok_or("a bad pax sparse record")?,
        }
        Ok(())
    }

    fn take_sparse(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let sparse = &mut self.sparse;
        match key {
            b"GNU.sparse.major" => sparse.major = Some(decimal(value)?),
            b"GNU.sparse.minor" => sparse.map_in_data = sparse.major == Some(1) && decimal(value)? == 0,
            b"GNU.sparse.name" => sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.size = Some(decimal(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => sparse.map.push(decimal(value)?),
            b"GNU.sparse.map" => {
                sparse.map = value.split(|&b| b == b',').map(decimal).collect::<Option<_>>()?;
            }
            _ => {}
        }
        Some(())
    }
}

pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

fn id(digits: &[u8]) -> Option<u32> {
    decimal(digits).and_then(|value| u32::try_from(value).ok())
}

/// Parses seconds with an optional fraction, rounded down to nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&b| b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or(b"");
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |i: usize| fraction.get(i).map_or(0, |digit| u32::from(digit - b'0'));
    let nanoseconds = (0..9).fold(0, |value, i| value * 10 + digit(i));
    match (negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

fn percent_decoded(name: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            decoded.push(*first);
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        let text = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
        decoded.push(u8::from_str_radix(text, 16).ok()?);
        rest = after;
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds records with their lengths.
    fn records(bodies: &[&[u8]]) -> Vec<u8> {
        let record = |body: &&[u8]| {
            let length = (body.len()..).find(|n| n.to_string().len() + body.len() + 2 == *n).unwrap();
            [format!("{length} ").as_bytes(), body, b"\n"].concat()
        };
        bodies.iter().flat_map(record).collect()
    }

    #[test]
    fn records_override_fields() {
        let data = records(&[
            b"path=a\xFFb\nc d ",
            b"size=512",
            b"mtime=-1.25",
            b"uid=4294967295",
            b"gid=12",
            b"linkpath=/usr/b",
            b"comment=unknown",
        ]);
        let parsed = parse(&data).unwrap();
        assert_eq!(parsed.path.unwrap(), b"a\xFFb\nc d ");
        assert_eq!(parsed.link_path.unwrap(), b"/usr/b");
        assert_eq!((parsed.size, parsed.mtime), (Some(512), Some((-2, 750_000_000))));
        assert_eq!((parsed.uid, parsed.gid), (Some(u32::MAX), Some(12)));
        let taken_back = parse(&records(&[b"size=512", b"size=", b"path=", b"uid=1", b"uid="])).unwrap();
        assert_eq!(taken_back, Overrides::default());
    }

    #[test]
    fn attributes_keep_every_byte() {
        let data = records(&[
            b"SCHILY.xattr.user.x=\0\n=\xFF",
            b"SCHILY.xattr.user.none=",
            b"LIBARCHIVE.xattr.user.a%3Db=aGVsbG8",
        ]);
        let expected: Vec<Attribute> = vec![
            (b"user.a=b".to_vec(), b"hello".to_vec()),
            (b"user.x".to_vec(), b"\0\n=\xFF".to_vec()),
            (b"user.none".to_vec(), b"".to_vec()),
        ];
        assert_eq!(parse(&data).unwrap().attributes, expected);
        for bad in [
            &b"LIBARCHIVE.xattr.user.%4=aGVsbG8"[..],
            b"LIBARCHIVE.xattr.user.%+4=aGVsbG8",
            b"LIBARCHIVE.xattr.user.a=\xFF",
        ] {
            assert!(parse(&records(&[bad])).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times() {
        for (text, time_value) in [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("4102444800.123456789123", Some((4_102_444_800, 123_456_789))),
            ("-0.5", Some((-1, 500_000_000))),
            ("-315619200", Some((-315_619_200, 0))),
            ("1.", Some((1, 0))),
            (".5", None),
            ("1.x", None),
            ("--1", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), time_value, "{text}");
        }
    }

    #[test]
    fn malformed_records() {
        for data in [
            "5 a=b\n",
            "6 a=b",
            "x a=b\n",
            "6 ab=\n0",
            "5 ab\n",
            "5 =a\n",
            "99999999999999999999 a=b\n",
            "0 a=b\n",
        ] {
            assert!(parse(data.as_bytes()).is_err(), "{data:?}");
        }
    }

    #[test]
    fn sparse_versions() {
        let sparse = |bodies: &[&[u8]]| parse(&records(bodies)).unwrap().sparse;
        let old = sparse(&[b"GNU.sparse.size=100", b"GNU.sparse.offset=10", b"GNU.sparse.numbytes=5"]);
        assert_eq!((old.size, old.map, old.map_in_data), (Some(100), vec![10, 5], false));
        let list = sparse(&[b"GNU.sparse.map=1,2,3,4"]);
        assert!(list.is_used() && list.map == [1, 2, 3, 4]);
        let new = sparse(&[b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=7"]);
        assert_eq!((new.size, new.map_in_data), (Some(7), true));
        assert!(!sparse(&[b"path=a"]).is_used());
    }
}
